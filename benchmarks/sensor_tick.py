"""Time and memory of a tick of the source sensor over many files.

    python -m benchmarks.sensor_tick [--quick] [--files 100000]

One document a file, by month. Each tick runs in a process of its own, as long as a code server
would: imports are not counted in the seconds, but in the memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Line, print_tables, write_results

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
    from embedding_assets.collection.collection import CollectionAssets
    from embedding_assets.collection.settings import CollectionSettings
    from embedding_assets.runs.memory import peak_memory_mb
    from resources.artifact_stores.files import FileArtifactStore

    settings = CollectionSettings.model_validate(
        {
            "name": "corpus",
            "source": {"path": str(folder / "archive"), "fields": {"timestamp": "created"}},
            "partitions": {"by": "month", "start": "2000-01-01"},
        }
    )
    source = settings.source.build()
    artifacts = FileArtifactStore(url=str(folder / "artifacts"))
    started, cpu_started = time.perf_counter(), time.process_time()
    result = SourceTick(CollectionAssets(settings), source, artifacts).evaluate(cursor)
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="few files")
    options = parser.parse_args()
    count = 5_000 if options.quick else options.files
    rows: list[dict[str, Any]] = []

    def one_tick(what: str, cursor: str | None) -> dict[str, Any]:
        found = in_process(folder, cursor)
        rows.append(
            {
                "tick": what,
                "seconds": found["seconds"],
                "CPU s": found["cpu_seconds"],
                "peak MB": found["megabytes"],
                "run requests": found["requests"],
                "bytes of cursor": len(found["cursor"]),
            }
        )
        return found

    with tempfile.TemporaryDirectory(prefix="sensor-tick-") as name:
        folder = Path(name)
        write_files(folder / "archive", count)
        cursor, settled = None, False
        while not settled:
            cursor = one_tick("first looks", cursor)["cursor"]
            settled = bool(json.loads(cursor)["listing"])
        unchanged = one_tick("nothing changed", cursor)
        write_document(file_of(folder / "archive", count // 2), count // 2, "Another version.")
        changed = one_tick("one file changed", cursor)
    peak = max(unchanged["megabytes"], changed["megabytes"])
    requests = changed["requests"] if not unchanged["requests"] else None
    lines = [
        Line(f"tick over {count:,} unchanged files", 5, unchanged["seconds"], "s", at_most=True),
        Line("peak memory of a tick, imports included", 300, peak, "MB", at_most=True),
        Line("run requests when one file has changed", 1, requests, ""),
        Line("run requests when one file has changed", 1, requests, "", at_most=True),
    ]
    tables = {f"Ticks over {count:,} files": rows}
    write_results("sensor_tick", "The source sensor", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
