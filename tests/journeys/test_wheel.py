"""The wheel, installed into another Dagster project, with the real programs and the real model."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.checkout import PROJECT, make_environment

PACKAGED = ("embedding_assets", "resources", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
PYPROJECT = """\
[project]
name = "archive"
version = "0.1.0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "archive"
registry_modules = ["archive.components.*"]
"""
DEFINITIONS = """\
from pathlib import Path

from dagster import definitions, load_from_defs_folder


@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
DOCUMENTS = [
    {"id": "1", "title": "Opening hours", "text": "The library is open from nine to five."},
    {"id": "2", "title": "Lending", "text": "Books are lent for four weeks, films for one."},
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout")
    for name in PACKAGED:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, checkout / name)
    _check(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."],
        checkout,
    )
    (built,) = checkout.glob("*.whl")
    return built


class NewProject:
    """What `create-dagster project archive` writes, and an environment with only the wheel in it.

    Attributes:
        folder: the project's.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        package = folder / "src" / "archive"
        (package / "defs").mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PYPROJECT)
        for module in (package / "__init__.py", package / "defs" / "__init__.py"):
            module.touch()
        (package / "definitions.py").write_text(DEFINITIONS)
        self._home = folder / ".dagster_home"
        self._home.mkdir()
        shutil.copy(PROJECT / "dagster_home" / "dagster.yaml", self._home)
        self._venv = folder / ".venv"
        self._make_environment(wheel, package.parent)

    def _make_environment(self, wheel: Path, source: Path) -> None:
        make_environment(self._venv, (source,), ("dg", "dagster"))
        python = str(self._venv / "bin" / "python")
        install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
        _check([sys.executable, "-m", "pip", "--python", python, *install], self.folder)

    def run(self, *command: str) -> str:
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DAGSTER", "EMBEDDING", "PYTHON"))
        }
        environment |= {
            "DAGSTER_HOME": str(self._home),
            "VIRTUAL_ENV": str(self._venv),
            "PATH": f"{self._venv / 'bin'}{os.pathsep}{environment['PATH']}",
            "COLUMNS": "200",
        }
        return _check(
            [str(self._venv / "bin" / command[0]), *command[1:]], self.folder, environment
        )


def _check(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}"
    return done.stdout


def test_the_wheel_holds_both_packages_and_nothing_of_the_checkout(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "embedding_assets",
        "resources",
    }
    assert not [name for name in names if name.startswith("embedding_assets/defs/")]
    for needed in ("embedding_assets/py.typed", "resources/py.typed"):
        assert needed in names
    packaged = [
        path.relative_to(PROJECT).as_posix()
        for folder in ("embedding_assets", "resources")
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and "defs" not in path.parts and "__pycache__" not in path.parts
    ]
    assert sorted(set(packaged) - set(names)) == []


@pytest.mark.slow
def test_three_commands_make_a_searchable_collection_in_another_project(
    wheel: Path, tmp_path: Path, model_cache: Path
) -> None:
    project = NewProject(tmp_path / "archive", wheel)
    (project.folder / "data").mkdir()
    (project.folder / "data" / "models").symlink_to(model_cache)
    (project.folder / "my_docs").mkdir()
    lines = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
    (project.folder / "my_docs" / "first.jsonl").write_text(lines)

    project.run("dg", "scaffold", "defs", "embedding_assets.EmbeddingCollection", "my_docs")
    defs = project.folder / "src" / "archive" / "defs"
    written = (defs / "my_docs" / "defs.yaml").read_text()
    # A second collection brings the same shared resources.
    (defs / "others").mkdir()
    (defs / "others" / "defs.yaml").write_text(written.replace("my_docs", "others"))
    buckets = "bucket_00...bucket_15"
    selection = ("--assets", 'key:"my_docs/*"', "--partition-range", buckets)
    project.run("dg", "launch", *selection)
    found = project.run("embedding-assets", "search", "When can I borrow a film?", "-c", "my_docs")
    assert "four weeks" in found

    program = (
        "import embedding_assets as ea\n"
        "print(ea.__file__, *ea.collections())\n"
        "print([hit.document_id for hit in ea.open('my_docs').search('borrow a film', k=1)])"
    )
    where, ids = project.run("python", "-c", program).splitlines()[-2:]
    assert where.startswith(str(project.folder / ".venv"))
    assert where.endswith(" my_docs others")
    assert ids == "['2']"
    assert (project.folder / "data" / "vectors").is_dir()
    assert (project.folder / "data" / "cache.duckdb").is_file()
    assert "embedding_assets.EmbeddingCollection" in project.run("dg", "list", "components")
