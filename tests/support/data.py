"""Where the texts lie that ship with the tests; `tests/data/README.md` names their sources."""

import gzip
import json
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parents[1] / "data"
FIELD = _DATA / "field"
HOSTILE = _DATA / "hostile"
PEPS = _DATA / "peps"
XQUAD = _DATA / "xquad-en"


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def snapshot(day: str) -> list[dict[str, Any]]:
    """PEPs as they stood on 2020-01-01, 2025-01-01 or 2026-08-22."""
    return json_lines(PEPS / f"{day}.jsonl.gz")
