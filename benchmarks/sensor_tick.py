"""Time and memory of a tick of the source sensor over many files.

    python -m benchmarks.sensor_tick [--files 100000]

One document a file, by month. Each tick runs in a process of its own, as long as a code server
would: imports are not counted. Promises, at 100,000 files: less than 5 s and 300 MB (the whole
process) when nothing has changed, and exactly one run request when one file has.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS, MEGABYTES = 5.0, 300.0
_PER_FOLDER = 1_000


def write_files(folder: Path, count: int) -> None:
    for number in range(count):
        path = file_of(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_document(path, number, "The first version.")


def file_of(folder: Path, number: int) -> Path:
    return folder / f"{number // _PER_FOLDER:04d}" / f"{number}.jsonl"


def write_document(path: Path, number: int, text: str) -> None:
    month = f"20{number % 20:02d}-{1 + number % 12:02d}-01"
    path.write_text(json.dumps({"id": str(number), "text": text, "created": month}) + "\n")


def tick(folder: Path, cursor: str | None) -> dict[str, Any]:
    """One tick in this process."""
    from embedding_assets.automation.source_sensor import SourceTick
    from embedding_assets.collection import Collection
    from embedding_assets.process_memory import peak_memory_mb
    from embedding_assets.settings import CollectionSettings
    from resources.artifact_store import FileArtifactStore
    from resources.document_source import FieldNames, FileDocumentSource

    settings = CollectionSettings.model_validate(
        {
            "name": "corpus",
            "source": {"path": str(folder / "archive"), "fields": {"timestamp": "created"}},
            "partitions": {"by": "month", "start": "2000-01-01"},
        }
    )
    source = FileDocumentSource(
        path=settings.source.path, fields=FieldNames(**settings.source.fields.model_dump())
    )
    artifacts = FileArtifactStore(url=str(folder / "artifacts"))
    started, cpu_started = time.perf_counter(), time.process_time()
    result = SourceTick(Collection(settings), source, artifacts).evaluate(cursor)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_started,
        "megabytes": peak_memory_mb(),
        "requests": len(getattr(result, "run_requests", None) or []),
        "cursor": getattr(result, "cursor", None) or cursor,
    }


def in_process(folder: Path, cursor: str | None) -> dict[str, Any]:
    arguments = [sys.executable, "-m", "benchmarks.sensor_tick", "--tick", str(folder)]
    answer = subprocess.run(
        [*arguments, *([cursor] if cursor else [])], check=True, capture_output=True, text=True
    )
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--tick"]:
        print(json.dumps(tick(Path(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    count = parser.parse_args().files
    with tempfile.TemporaryDirectory(prefix="sensor-tick-") as name:
        folder = Path(name)
        write_files(folder / "archive", count)
        cursor, settled = None, False
        while not settled:
            found = in_process(folder, cursor)
            cursor, settled = found["cursor"], bool(json.loads(found["cursor"])["listing"])
            _print("first looks", found)
        unchanged = in_process(folder, cursor)
        _print("unchanged", unchanged)
        write_document(file_of(folder / "archive", count // 2), count // 2, "Another version.")
        changed = in_process(folder, cursor)
        _print("one changed", changed)
    kept = (
        unchanged["seconds"] < SECONDS
        and max(unchanged["megabytes"], changed["megabytes"]) < MEGABYTES
        and unchanged["requests"] == 0
        and changed["requests"] == 1
    )
    raise SystemExit(0 if kept else "A promise does not hold.")


def _print(what: str, found: dict[str, Any]) -> None:
    print(
        f"{what:12} {found['seconds']:6.2f} s ({found['cpu_seconds']:.2f} s of CPU) "
        f"{found['megabytes']:6.0f} MB {found['requests']} run requests, "
        f"cursor {len(found['cursor'])} bytes",
        flush=True,
    )


if __name__ == "__main__":
    main()
