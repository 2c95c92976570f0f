"""Make the sample corpus: a fixed selection of short PEPs from a snapshot of the PEP archive.

Writes one gzipped JSON Lines file per decade. The same source gives the same bytes every time.
"""

import argparse
import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIELDS = ("id", "title", "created", "status", "type", "text")
MAX_TEXT_BYTES = 20_000

# A list and not a rule, so that a newer snapshot cannot change which documents the sample's
# queries and relevance judgements speak of.
PEPS_BY_YEAR: dict[int, tuple[int, ...]] = {
    2000: (4, 203, 218, 221, 232),
    2001: (7, 236, 255, 257, 263, 273, 274, 666),
    2002: (279, 285, 289, 292),
    2003: (305, 308, 309, 320, 322, 328),
    2004: (20, 336, 338),
    2005: (341, 352, 354),
    2006: (357, 3000, 3099, 3102, 3105, 3107, 3110),
    2007: (3115, 3120, 3129, 3131, 3132),
    2008: (370, 371, 372, 373),
    2009: (378, 380, 387, 389, 3003, 3148),
    2010: (393, 3149),
    2011: (394, 404, 628, 3154, 3155),
    2012: (409, 412, 417, 424, 3144),
    2013: (441, 442, 443, 448, 449),
    2014: (461, 468, 475, 476, 478),
    2015: (486, 503, 506),
    2016: (515, 520, 530, 540),
    2017: (541, 552, 553, 562),
    2018: (13, 569, 581),
    2019: (585, 592, 602, 604),
    2020: (614, 616, 618, 632),
    2021: (659, 660, 671, 678),
    2022: (685, 686, 693),
    2023: (704, 709, 713, 731),
    2024: (758, 762, 764, 765),
    2025: (779, 784, 799, 811, 814),
    2026: (826, 833, 838, 840, 841),
}


def read_documents(source: Path) -> dict[str, dict[str, str]]:
    """Read a snapshot of the PEP archive.

    Args:
        source: Gzipped JSON Lines; every line is an object with at least `FIELDS`.

    Returns:
        The documents by their id.
    """
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        return {document["id"]: document for document in map(json.loads, lines)}


def select(documents: dict[str, dict[str, str]]) -> Iterator[dict[str, str]]:
    """Pick the sample's documents, in the order of `PEPS_BY_YEAR`, reduced to `FIELDS`.

    Args:
        documents: The snapshot's documents by their id.

    Yields:
        One document at a time.

    Raises:
        ValueError: A PEP is missing, was created in another year than listed here, is longer than
            `MAX_TEXT_BYTES`, or does not say that it is in the public domain.
    """
    for year, numbers in PEPS_BY_YEAR.items():
        for number in numbers:
            document_id = f"pep-{number:04d}"
            document = documents.get(document_id)
            if document is None:
                raise ValueError(
                    f"{document_id} is not in the source; use the snapshot the README names"
                )
            if not document["created"].startswith(str(year)):
                raise ValueError(
                    f"{document_id} is listed under {year} but was created on {document['created']}"
                )
            size = len(document["text"].encode())
            if size > MAX_TEXT_BYTES:
                raise ValueError(f"{document_id} has {size} bytes of text, limit {MAX_TEXT_BYTES}")
            if not is_public_domain(document["text"]):
                raise ValueError(f"{document_id} does not place itself in the public domain")
            yield {field: document[field] for field in FIELDS}


def is_public_domain(text: str) -> bool:
    """Tell whether a PEP's own text places it in the public domain (a few do not)."""
    return re.search(r"placed\s+in(?:to)?\s+the\s+public\s+domain", text, re.IGNORECASE) is not None


def write_jsonl(path: Path, documents: Iterable[dict[str, str]]) -> None:
    """Write documents as gzipped JSON Lines, without a time stamp or name in the gzip header.

    Args:
        path: The file to write; a file that is there is replaced in one step.
        documents: What to write, one line each.
    """
    temporary = path.with_name(path.name + ".tmp")
    with (
        temporary.open("wb") as raw,
        # Not gzip.compress: its header differs between Python versions.
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as lines,
    ):
        for document in documents:
            lines.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
    temporary.replace(path)


def make_sample(source: Path, output: Path) -> list[Path]:
    """Write the sample's files.

    Args:
        source: The snapshot of the PEP archive.
        output: The folder to write to; made where it is missing.

    Returns:
        The files written, oldest decade first; each is sorted by creation date and id.
    """
    by_decade: dict[str, list[dict[str, str]]] = {}
    for document in sorted(select(read_documents(source)), key=lambda d: (d["created"], d["id"])):
        by_decade.setdefault(document["created"][:3] + "0s", []).append(document)
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for decade, documents in by_decade.items():
        path = output / f"peps-{decade}.jsonl.gz"
        write_jsonl(path, documents)
        paths.append(path)
    return paths


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="snapshot of the PEPs")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to")
    arguments = parser.parse_args()
    for path in make_sample(arguments.source, arguments.output):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
