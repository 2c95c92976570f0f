"""Real texts to embed: sentences and runs of sentences from the sample's PEPs."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

SAMPLE = Path(__file__).parents[1] / "sample_data"
KINDS = {"short": (8, 24), "medium": (80, 120), "long": (220, 250)}
"""Tokens of one text, special tokens included. The default model takes at most 256."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_MIN_CHARACTERS, _MAX_CHARACTERS = 20, 400
"""Shorter "sentences" are numbers of lists, longer ones tables and code."""
_TOKENS_PER_WORD = 1.7


def sentences(folder: Path = SAMPLE) -> list[str]:
    """The distinct sentences of all documents, in their order.

    Args:
        folder: `*.jsonl.gz` files with a field `text`.

    Raises:
        FileNotFoundError: there are none.
    """
    found: dict[str, None] = {}
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise FileNotFoundError(f"no *.jsonl.gz in {folder}; the benchmarks take their texts there")
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = " ".join(json.loads(line)["text"].split())
                for sentence in _SENTENCE_END.split(text):
                    if _MIN_CHARACTERS <= len(sentence) <= _MAX_CHARACTERS:
                        found[sentence] = None
    return list(found)


def some_sentences(count: int, folder: Path = SAMPLE) -> list[str]:
    """As many distinct sentences as there are, at most `count`, from all over the documents."""
    everything = sentences(folder)
    return everything[:: max(1, len(everything) // count)][:count]


def texts_of_kind(kind: str, tokens: int, tokenizer: Tokenizer) -> list[str]:
    """Distinct texts of one length class, `tokens` tokens in all; fewer if the sample ends.

    Args:
        kind: one of `KINDS`, or "mixed": equal parts of the tokens from each.
        tokens: how many in all, special tokens included.
        tokenizer: counts them; without truncation.
    """
    if kind == "mixed":
        parts = [texts_of_kind(one, tokens // len(KINDS), tokenizer) for one in KINDS]
        # Dealt out evenly, so that every stretch of the list holds all lengths.
        places = [((i + 0.5) / len(part), text) for part in parts for i, text in enumerate(part)]
        return [text for _, text in sorted(places)]
    least, most = KINDS[kind]
    found: dict[str, int] = {}
    total = 0
    for text in _runs(least, most, tokenizer):
        length = len(tokenizer.encode(text))
        if least <= length <= most and text not in found:
            found[text] = length
            total += length
            if total >= tokens:
                break
    return list(found)


def _runs(least: int, most: int, tokenizer: Tokenizer) -> Iterator[str]:
    """Sentences filled up to `least` tokens; when they are used up, runs of words."""
    everything = sentences()
    run: list[str] = []
    length = special = len(tokenizer.encode(""))
    for sentence, encoding in zip(everything, tokenizer.encode_batch_fast(everything), strict=True):
        tokens = len(encoding) - special
        if length + tokens > most:
            run, length = [], special
        run.append(sentence)
        length += tokens
        if length >= least:
            yield " ".join(run)
            run, length = [], special
    words = " ".join(everything).split()
    count = round((least + most) / 2 / _TOKENS_PER_WORD)
    for shift in range(count):
        for start in range(shift, len(words) - count, count):
            yield " ".join(words[start : start + count])
