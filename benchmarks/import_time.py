"""What a process pays before it does anything, and what a command at the prompt costs.

    python -m benchmarks.import_time [--quick] [--repeats 7]

CPU time (user and system) of fresh processes that take turns, less that of an empty one; medians
are shown, so that a busy machine disturbs little. A search has a floor: `import dagster`, the model
loaded and one text embedded, one query of LanceDB, each by the library as it comes. The same again
with LanceDB and OpenVINO imported as we do it, without what nobody needs, is judged too. A year of
the sample is built first, in a folder that is removed afterwards. Nobody finds pandas, which is
there for the tests and not in an installation: where it is, pyarrow loads it, for 0.2 s or more.
"""

import argparse
import atexit
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from benchmarks.measure import Line, in_turn, median, print_tables, spread, write_results
from embedding_assets.collection.environment import read_environment

REFERENCE, OURS = "import dagster", "import embedding_assets.definitions"
PROGRAMS = {
    "nothing": "pass",
    REFERENCE: REFERENCE,
    OURS: OURS,
    "load the definitions": "import embedding_assets.definitions as d; d.defs()",
    "import dagster, pyarrow.parquet, duckdb": "import dagster, pyarrow.parquet, duckdb",
}
FLOOR, LEAN = "the floor of a search", "the floor with our lean imports"
SEARCH, AGAIN = "search", "search, asked before"
_OURS = str(Path(sys.executable).parent / "embedding-assets")
COLLECTION, PARTITION = "peps", "2020"
_FLOOR = """
import sys

import dagster, numpy
from tokenizers import Tokenizer

question, model, vectors, table, imports = sys.argv[1:]
if imports == "lean":
    from resources.lean_imports import import_lancedb, import_openvino
    lancedb, openvino = import_lancedb(), import_openvino()
else:
    import lancedb, openvino
core = openvino.Core()
compiled = core.compile_model(f"{model}/model.xml", "CPU", {"CACHE_DIR": f"{model}/floor"})
ids = numpy.array([Tokenizer.from_file(f"{model}/tokenizer.json").encode(question).ids])
given = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
names = [one.get_any_name() for one in compiled.inputs]
vector = compiled({name: given.get(name, numpy.zeros_like(ids)) for name in names})[0][0]
search = lancedb.connect(vectors).open_table(table).search(vector)
assert search.distance_type("cosine").limit(5).to_list()
"""


def cpu_seconds(*command: str, statuses: tuple[int, ...] = (0,)) -> float:
    """User and system time of a process, which ends with one of these statuses."""
    environment = {**os.environ, "PYTHONPATH": _without_pandas()}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in statuses:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@cache
def _without_pandas() -> str:
    """What PYTHONPATH has to be, so that nobody can import pandas."""
    folder = tempfile.mkdtemp(prefix="without-pandas-")
    atexit.register(shutil.rmtree, folder)
    (Path(folder) / "pandas.py").write_text(
        "raise ModuleNotFoundError('No module named pandas', name='pandas')\n"
    )
    return os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))


def imports() -> dict[str, Callable[[], float]]:
    """What the libraries and our own code cost to load."""
    python = partial(cpu_seconds, sys.executable, "-c")
    return {name: partial(python, program) for name, program in PROGRAMS.items()}


def commands(data: Path) -> dict[str, Callable[[], float]]:
    """What commands cost, with the sample's index in the folder of outputs."""
    of = ("--collection", COLLECTION)
    (model,) = (path.parent for path in (data / "models").glob("*/model.xml"))
    (table,) = (data / "vectors").glob("*.lance")
    run = partial(cpu_seconds, _OURS)
    places = (str(model), str(table.parent), table.stem)

    def floor(imports: str) -> float:
        return cpu_seconds(sys.executable, "-c", _FLOOR, _question(), *places, imports)

    return {
        FLOOR: partial(floor, "as they come"),
        LEAN: partial(floor, "lean"),
        SEARCH: lambda: run("search", _question(), *of),
        AGAIN: partial(run, "search", "a question that was asked before", *of),
        "collections": partial(run, "collections"),
        "cache stats": partial(run, "cache", "stats"),
        f"plan of {PARTITION}": partial(run, "plan", COLLECTION, PARTITION),
        "--help": partial(run, "--help"),
        "search with an unknown option": partial(run, "search", "x", "--nope", statuses=(2,)),
        "search in no such collection": partial(run, "search", "x", "-c", "nowhere", statuses=(1,)),
    }


def _question() -> str:
    """One that nobody asked yet, so that the model is loaded."""
    return f"Which proposal speaks of the number {time.monotonic_ns()}?"


def build_sample(folder: Path) -> None:
    """Builds a year of the sample in the folder; processes started later know of it."""
    models = read_environment().models
    models.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir()
    (folder / "data" / "models").symlink_to(models)  # to compile it again would take a minute
    os.environ["EMBEDDING_PROJECT"] = str(Path(__file__).parents[1])
    os.environ["EMBEDDING_DATA_DIR"] = str(folder / "data")
    os.environ["DAGSTER_HOME"] = str(folder / "home")
    shutil.copytree(Path(__file__).parents[1] / "dagster_home", folder / "home")
    # 3: the check of the retrieval quality misses all the other years.
    cpu_seconds(_OURS, "build", COLLECTION, PARTITION, statuses=(0, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="import-time-") as folder:
        build_sample(Path(folder))
        ways = {**imports(), **commands(Path(folder) / "data")}
        for way in ways.values():
            way()  # writes byte code, warms the file cache
        taken = in_turn(ways, 2 if options.quick else options.repeats)
    empty = median(taken["nothing"])
    reference = median(taken[REFERENCE]) - empty
    rows = [
        {
            "program": name,
            "CPU s": median(seconds) - empty,
            f"× {REFERENCE}": (median(seconds) - empty) / reference,
            "spread": spread(seconds),
        }
        for name, seconds in taken.items()
        if name != "nothing"
    ]
    ratio = (median(taken[OURS]) - empty) / reference
    above = {
        floor: median([a - b for a, b in zip(taken[SEARCH], taken[floor], strict=True)])
        for floor in (FLOOR, LEAN)
    }
    lines = [
        Line(f"{OURS}, against {REFERENCE}", 1.3, ratio, at_most=True),
        *(
            Line(f"CPU of a {SEARCH}, above {floor}", 0.5, seconds, "s", at_most=True)
            for floor, seconds in above.items()
        ),
    ]
    tables = {"CPU time of a fresh process, less that of an empty one": rows}
    write_results("import_time", "Import time and commands", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
