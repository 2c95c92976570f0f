"""Our embedder against sentence-transformers' own `encode`, side by side on the same texts.

    python -m benchmarks.embedder [--precision auto|fp32|bf16] [--repeats 3] [--texts 200]

Short texts are sentences (about 16 tokens), long ones paragraphs filled up to about 237 tokens, of
the PEPs in ../shared/data. The two take turns, so that a busy machine hits both; medians are shown.
"""

import argparse
import gzip
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from resources.local_embedder import LocalEmbedder

PEPS = Path(__file__).parents[2] / "shared" / "data" / "peps" / "2020-01-01.jsonl.gz"
SHORT_TOKENS, LONG_TOKENS = (8, 24), (226, 248)


def texts_of_length(embedder: LocalEmbedder, tokens: tuple[int, int], count: int) -> list[str]:
    """Sentences, or runs of sentences, of so many tokens (special tokens included)."""
    tokenizer = embedder.new_tokenizer()
    found: list[str] = []
    with gzip.open(PEPS, "rt", encoding="utf-8") as lines:
        for line in lines:
            run = ""
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(json.loads(line)["text"].split())):
                run = f"{run} {sentence}".strip()
                length = len(tokenizer.encode(run))
                if tokens[0] <= length <= tokens[1]:
                    found.append(run)
                if length >= tokens[0]:
                    run = ""
                if len(found) == count:
                    return found
    return found


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, default=None)
    options = parser.parse_args()
    ours = LocalEmbedder(
        device="cpu", precision=options.precision, batch_tokens=options.batch_tokens
    )
    ours.embed(["warm up"])
    theirs = SentenceTransformer(str(ours._files.folder), device="cpu")
    print(ours.describe())
    for name, tokens in (("short", SHORT_TOKENS), ("long", LONG_TOKENS)):
        texts = texts_of_length(ours, tokens, options.texts * (4 if name == "short" else 1))
        batch = ours.embed(texts)
        reference = theirs.encode(texts, batch_size=32, show_progress_bar=False)
        deviation = float(1 - (batch.vectors * reference).sum(1).min())
        pairs = [
            (
                seconds(lambda: ours.embed(texts)),  # noqa: B023
                seconds(lambda: theirs.encode(texts, batch_size=32, show_progress_bar=False)),  # noqa: B023
            )
            for _ in range(options.repeats)
        ]
        total = int(np.sum(batch.tokens))
        our_time, their_time = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(their / our for our, their in pairs)
        print(
            f"{name}: {len(texts)} texts of {total / len(texts):.0f} tokens; "
            f"ours {total / our_time:,.0f} tokens/s, "
            f"sentence-transformers {total / their_time:,.0f} tokens/s, "
            f"ratio {ratio:.2f}; 1 - cosine <= {deviation:.0e}"
        )


if __name__ == "__main__":
    main()
