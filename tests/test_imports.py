"""What an import may cost, and what our code never imports at all."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import PROJECT

HEAVY: list[str] = re.findall(
    r'"(\w+)"',
    (PROJECT / "pyproject.toml").read_text().partition("level-imports = [")[2].partition("]")[0],
)
"""What ruff refuses at the top of a module."""
UNSAFE = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")


def run_python(program: str, *arguments: str, **environment: str) -> Any:
    """The JSON that a program prints as its last line, run in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((PROJECT / folder).rglob("*.py")):
            yield path.relative_to(PROJECT), ast.parse(path.read_text())


def imported_packages(module: ast.Module) -> set[str]:
    """The top-level packages of all imports, those inside functions too."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def test_importing_or_loading_the_definitions_loads_nothing_heavy() -> None:
    assert "torch" in HEAVY
    program = f"""
import json, sys
import embedding_assets.definitions
found = lambda: [name for name in {HEAVY} if name in sys.modules]
imported = found()
assert embedding_assets.definitions.defs().resolve_all_asset_keys()
print(json.dumps([imported, found()]))
"""
    assert run_python(program) == [[], []]


def test_importing_the_definitions_loads_no_data_libraries_either() -> None:
    program = """
import json, sys
import embedding_assets.definitions
libraries = ("pyarrow", "duckdb", "numpy", "tokenizers", "fsspec")
print(json.dumps([name for name in libraries if name in sys.modules]))
"""
    assert run_python(program) == []


def test_to_open_a_collection_loads_no_definitions_and_nothing_heavy() -> None:
    program = f"""
import json, sys
import embedding_assets as ea
assert ea.open("peps").resources.embedder.special_tokens
ours = ("documents", "deduplicated_chunks", "embeddings", "vector_index", "automation")
names = [*{HEAVY}, *("embedding_assets." + name for name in ours), "benchmarks"]
print(json.dumps([name for name in names if name in sys.modules]))
"""
    assert run_python(program) == []


def test_the_component_is_found_by_name_and_by_listing() -> None:
    import embedding_assets
    from embedding_assets.component import EmbeddingCollection

    assert embedding_assets.EmbeddingCollection is EmbeddingCollection
    assert "EmbeddingCollection" in dir(embedding_assets)
    assert not hasattr(embedding_assets, "anything_else")


def test_what_is_installed_never_imports_what_only_the_checkout_has() -> None:
    guilty = {
        str(path): names
        for path, module in sources("embedding_assets", "resources")
        if (names := imported_packages(module) & {"benchmarks", "tests", "sample_data"})
    }
    assert guilty == {}


def test_resources_never_import_the_assets() -> None:
    guilty = [
        p for p, module in sources("resources") if "embedding_assets" in imported_packages(module)
    ]
    assert guilty == []


def test_nothing_is_pickled() -> None:
    guilty = {
        str(path): unsafe
        for path, module in sources("embedding_assets", "resources")
        if (unsafe := imported_packages(module) & set(UNSAFE))
    }
    assert guilty == {}


def test_code_that_comes_with_a_model_is_never_trusted() -> None:
    trusting = [
        path
        for path, module in sources("embedding_assets", "resources")
        for node in ast.walk(module)
        if (
            isinstance(node, ast.keyword)
            and node.arg == "trust_remote_code"
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        )
        or (isinstance(node, ast.Constant) and node.value == "trust_remote_code")
    ]
    assert trusting == []


_RUN = """
import json, sys
from pathlib import Path
from resources.embedders.local import LocalEmbedder
from tests.support.pipeline import Pipeline, numbers
folder = Path(sys.argv[1])
embedder = LocalEmbedder(model_cache=sys.argv[2], device="cpu", precision="fp32")
pipeline = Pipeline(
    folder, str(folder / "a.jsonl"), embedder=embedder,
    settings={"partitions": {"by": "bucket", "count": 2}},
)
embedded = numbers(pipeline.run(), "embeddings")["embedded"]
names = ("torch", "transformers", "sentence_transformers", "openvino")
print(json.dumps([embedded, [name for name in names if name in sys.modules]]))
"""


@pytest.mark.slow
def test_a_run_in_which_everything_is_cached_loads_no_model_library(
    tmp_path: Path, model_cache: Path
) -> None:
    texts = ["Cats purr.", "Dogs bark.", "Ducks quack.", "Owls hoot."]
    records = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(records))
    assert run_python(_RUN, str(tmp_path), str(model_cache))[0] == len(texts)
    assert run_python(_RUN, str(tmp_path), str(model_cache)) == [0, []]


def test_openvino_is_loaded_without_the_telemetry_that_would_fork_and_report(
    model_cache: Path,
) -> None:
    for path, module in sources("resources", "embedding_assets", "benchmarks"):
        if path != Path("resources/lean_imports.py"):
            assert "openvino" not in imported_packages(module), path
    program = f"""
import json, os, sys

def forbidden():
    raise AssertionError("a process was forked")

os.fork = forbidden
from resources.embedders.local import LocalEmbedder
assert LocalEmbedder(model_cache={str(model_cache)!r}).embed(["a text"]).vectors.any()
print(json.dumps([sys.modules["openvino_telemetry"], "openvino" in sys.modules]))
"""
    assert run_python(program, CI="false") == [None, True]
