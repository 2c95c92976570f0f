"""What the environment says, the project's `.env` included, is the same for every command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding_assets.collection.environment import Environment, read_environment
from embedding_assets.collection.resources import shared_resources
from embedding_assets.service.settings import ServiceSettings
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.embedders.pricing import prices_file
from resources.identity.content_hash import HASH_BYTES
from tests.support.checkout import PROJECT
from tests.support.fakes import CountingEmbedder
from tests.support.pipeline import write_jsonl

_HASH = pa.array([b"0" * HASH_BYTES], pa.binary(HASH_BYTES))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A Dagster project that is not the package's own, with one collection and a `.env`."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "mine"\n'
    )
    folder = tmp_path / "mine" / "defs" / "docs"
    folder.mkdir(parents=True)
    (folder / "defs.yaml").write_text(
        "type: embedding_assets.EmbeddingCollection\n"
        "attributes: {name: docs, source: {path: '{{ env.ARCHIVE }}/a.jsonl'}}\n"
    )
    for package in (tmp_path / "mine", tmp_path / "mine" / "defs"):
        (package / "__init__.py").touch()
    write_jsonl(tmp_path / "archive" / "a.jsonl", [{"id": "1", "text": "One."}])
    (tmp_path / ".env").write_text(
        f"EMBEDDING_DATA_DIR=elsewhere\nARCHIVE={tmp_path / 'archive'}\n"
    )
    return tmp_path


def _run(project: Path, *command: str, **variables: str) -> str:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EMBEDDING_", "DAGSTER_"))
    }
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=project,
        env=inherited | {"PYTHONPATH": f"{project}{os.pathsep}{PROJECT}"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _entries(project: Path, **variables: str) -> int:
    shown = json.loads(_run(project, "embedding-assets", "cache", "stats", "--json", **variables))
    return sum(row["entries"] for row in shown)


@pytest.mark.slow
def test_dagster_and_the_command_line_read_the_same_dotenv(project: Path) -> None:
    space = CountingEmbedder().space
    cache = DuckDBEmbeddingCache(path=str(project / "elsewhere" / "cache.duckdb"))
    cache.put(space, _HASH, np.eye(1, space.dimension, dtype=np.float32))
    assert _entries(project) == 1
    assert _entries(project, EMBEDDING_DATA_DIR="third") == 0  # the environment wins
    (listed,) = json.loads(_run(project, "embedding-assets", "collections", "--json"))
    assert listed["source"] == f"{project / 'archive'}/a.jsonl"
    _run(
        project, "dagster", "asset", "materialize", "-m", "embedding_assets.definitions",
        "--select", 'key:"docs/documents"', "--partition-range", "bucket_00...bucket_15",
    )  # fmt: skip
    assert list((project / "elsewhere" / "artifacts" / "docs" / "documents").iterdir())
    assert not (project / "data").exists()


def test_data_belongs_to_the_project_that_is_named_or_around(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIVE", "")
    monkeypatch.setenv("EMBEDDING_DATA_DIR", "data")
    monkeypatch.delenv("EMBEDDING_PROJECT", raising=False)
    assert read_environment().project == PROJECT
    assert read_environment(project / "mine").data_dir == project / "data"
    monkeypatch.setenv("EMBEDDING_PROJECT", str(project))
    assert shared_resources()["artifact_store"].url == str(project / "data" / "artifacts")
    monkeypatch.setenv("EMBEDDING_PRICES", "mine.yaml")
    assert read_environment().prices == prices_file() == project / "mine.yaml"
    monkeypatch.setenv("EMBEDDING_PROJECT", str(project / "mine"))
    with pytest.raises(ValueError, match=r"EMBEDDING_PROJECT must name .* \[tool.dg.project\]"):
        read_environment()


def test_a_wrong_variable_is_named_and_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_CACHE", "redis://:planted@host")
    monkeypatch.setenv("EMBEDDING_CACHE_MEMORY_MB", "planted")
    with pytest.raises(ValueError, match=r"EMBEDDING_CACHE_MEMORY_MB: .*integer") as caught:
        read_environment()
    assert "planted" not in str(caught.value)
    monkeypatch.delenv("EMBEDDING_CACHE_MEMORY_MB")
    assert "planted" not in repr(read_environment())


def test_every_variable_of_the_code_is_declared() -> None:
    declared = {f"EMBEDDING_{name.upper()}" for name in Environment.model_fields}
    declared |= {str(ServiceSettings.model_config.get("env_prefix"))}  # names its own
    folders = ("embedding_assets", "resources")
    sources = [path.read_text() for folder in folders for path in (PROJECT / folder).rglob("*.py")]
    assert set(re.findall(r'"(EMBEDDING_[A-Z_]+)"', "".join(sources))) <= declared
