"""What a newcomer does, with the real programs in a copy of the project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedding_assets.cli.main import app
from tests.support.checkout import copy_checkout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("checkout") / "project", model_cache)
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


def _run(project: Path, command: str, *, fails: bool = False) -> str:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("DAGSTER")},
        "PYTHONPATH": str(project),
        "DAGSTER_HOME": str(project / "dagster_home"),
        "EMBEDDING_DATA_DIR": str(project / "data"),
        "VIRTUAL_ENV": str(project / ".venv"),
        "PATH": f"{project / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    done = subprocess.run(
        command,
        shell=True,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if (done.returncode != 0) != fails:
        pytest.fail(f"exit code {done.returncode}: {done.stdout[-4000:]}")
    assert "leaked" not in done.stdout
    return done.stdout


def test_the_demo_indexes_the_sample_and_a_second_demo_embeds_nothing(project: Path) -> None:
    demo = "make --assume-old .venv/.installed demo"
    first = _run(project, demo)
    assert "120 (120 added, 0 changed, 0 unchanged, 0 deleted, 0 refused)" in first
    assert "0 hits" in first
    assert "0 errors" in first
    for check in ("accounting", "error_rate", "completeness", "retrieval_quality"):
        assert f"✓ {check}" in first
    assert "✗" not in first
    assert "pep-" in first
    for noise in ("DEBUG", "Warning", "elemetry", "superseded"):
        assert noise not in first
    second = _run(project, demo)
    assert "nothing: every chunk was in the cache" in second
    assert "(0 written, 0 removed)" in second


def test_a_new_corpus_by_following_the_readme_literally(project: Path) -> None:
    page = (project / "README.md").read_text().split("## Add your own corpus")[1].split("\n## ")[0]
    scaffold, build = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (documents,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    _run(project, scaffold)
    written = project / "embedding_assets" / "defs" / "my_docs" / "defs.yaml"
    assert written.read_text().splitlines()[:3] == settings.splitlines()[:3]
    written.write_text(settings)
    (project / "my_docs").mkdir()
    (project / "my_docs" / "first.jsonl").write_text(documents)
    output = _run(project, "set -e\n" + build)
    assert "All definitions loaded successfully" in output
    assert "four weeks" in output


def test_mistakes_on_the_command_line_end_in_one_sentence(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = _run(project, "embedding-assets search hello -c nowhere", fails=True)
    assert unknown.startswith("Error: There is no collection 'nowhere'. Collections: ")
    # The same program in this process: to start it takes much longer than to find a mistake.
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path))
    empty = CliRunner().invoke(app, ["search", " ", "-c", "peps"])
    assert "The text to search for is empty." in empty.output
    unbuilt = CliRunner().invoke(app, ["search", "hi", "-c", "peps"])
    assert "Build it first: `embedding-assets build peps`" in unbuilt.output
    assert not list(tmp_path.rglob("*.xml"))  # no model was compiled to find that out
    assert (empty.exit_code, unbuilt.exit_code) == (1, 1)
    for output in (unknown, empty.output, unbuilt.output):
        assert "Traceback" not in output
