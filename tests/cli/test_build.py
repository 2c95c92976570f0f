"""`embedding-assets build`: the whole of a run at the prompt, recorded as Dagster records it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from embedding_assets import api
from embedding_assets.cli.build_progress import progress
from embedding_assets.cli.main import app
from resources.dagster_instance.dead_runs import working_on
from resources.errors import EmbedderUnavailableError
from tests.support.checkout import PROJECT
from tests.support.fakes import NOT_A_NUMBER, CountingEmbedder
from tests.support.instance import dagster_home, shipped_instance
from tests.support.openai_server import Answer, OpenAIServer, Request
from tests.support.pipeline import ASSETS, Pipeline, write_jsonl
from tests.support.project import Project

BUCKETS = {"partitions": {"by": "bucket", "count": 2}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = dagster_home(tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


@pytest.fixture
def corpus(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pipeline]:
    """A collection that commands take for the project's."""
    del home

    def of(texts: list[str], **options: Any) -> Pipeline:
        records = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
        source = write_jsonl(tmp_path / "source.jsonl", records)
        settings = {**BUCKETS, **options.pop("settings", {})}
        pipeline = Pipeline(tmp_path, str(source), settings=settings, **options)
        monkeypatch.setattr(api, "open", lambda _: pipeline.opened)
        return pipeline

    return of


def build(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["build", "corpus", *arguments])


def test_a_build_says_what_it_did_and_the_next_one_embeds_nothing(
    corpus: Callable[..., Pipeline], home: Path
) -> None:
    pipeline = corpus(["one text", "another text", "one text"])
    first = build()
    assert first.exit_code == 0, first.output
    assert "3 (3 added, 0 changed, 0 unchanged, 0 deleted, 0 refused)" in first.stdout
    assert "3 rows (3 written, 0 removed)" in first.stdout
    assert "✓ completeness" in first.stdout
    assert 'embedding-assets search "..." -c corpus' in first.stdout
    assert len(pipeline.rows()) == 3
    built = json.loads(build("bucket_0...bucket_1", "--json").stdout)  # and nothing else
    assert sorted(pipeline.embedder.texts) == ["another text", "one text"]
    assert built["status"] == "succeeded"
    assert built["partitions"] == ["bucket_0", "bucket_1"]
    assert built["assets"]["documents"]["unchanged"] == 3
    assert built["assets"]["embeddings"]["cache_misses"] == 0
    assert built["assets"]["vector_index"]["rows_written"] == 0
    _assert_dagster_has_all_of_it(home, built)


def _assert_dagster_has_all_of_it(home: Path, built: dict[str, Any]) -> None:
    with shipped_instance(home) as instance:
        run = instance.get_run_by_id(built["runs"][0])
        assert run is not None
        assert run.status == dg.DagsterRunStatus.SUCCESS
        assert run.run_config == {}
        keys = [dg.AssetKey(["corpus", asset]) for asset in ASSETS]
        assert run.asset_selection == {*keys}
        for key in keys:
            assert instance.get_materialized_partitions(key) == {"bucket_0", "bucket_1"}
        recorded = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    told = {check["check"] for check in built["checks"]}
    assert told >= {"accounting", "completeness"}
    assert len(told) == len(recorded)


def test_a_check_that_fails_is_the_exit_status_and_a_warning_only_if_asked(
    corpus: Callable[..., Pipeline],
) -> None:
    fails = {"settings": {"checks": {"min_cache_hit_rate": 1.0}}}
    corpus(["one text"], **fails)
    warned = build()
    assert warned.exit_code == 0, warned.output
    assert "! cache_hit_rate" in warned.stdout
    corpus(["another text"], **fails)
    assert build("--strict").exit_code == 3
    corpus(["one text", NOT_A_NUMBER])
    red = build()
    assert red.exit_code == 3, red.output
    assert "✗ error_rate" in red.stdout
    assert "invalid_vector" in red.stdout
    corpus([])
    withheld = build()
    assert withheld.exit_code == 3, withheld.output
    assert "The deletion of 2 documents is withheld." in withheld.stdout
    assert "embedding-assets accept corpus --partition bucket_0" in withheld.stdout


def test_a_run_that_fails_names_its_cause_and_only_a_bug_its_traceback(
    corpus: Callable[..., Pipeline], tmp_path: Path
) -> None:
    corpus(["one text"])
    (tmp_path / "source.jsonl").unlink()
    mistake = build()
    assert mistake.exit_code == 1
    assert mistake.stdout.split("\n")[1].startswith("Failed at documents: ")
    assert "source.jsonl" in mistake.stdout.split("\n")[1]
    assert "Traceback" not in mistake.output
    assert "File " not in mistake.output

    class Fails(CountingEmbedder):
        error: str = ""

        def embed(self, *_: Any, **__: Any) -> Any:
            raise {"server": EmbedderUnavailableError, "bug": RuntimeError}[self.error]("No: 1")

    corpus(["one text"], embedder=Fails(error="server"))
    server = build()
    assert server.exit_code == 1
    assert server.stdout.split("\n")[1] == "Failed at embeddings: No: 1"
    assert "File " not in server.output
    corpus(["one text"], embedder=Fails(error="bug"))
    bug = build()
    assert bug.exit_code == 1
    assert bug.stdout.split("\n")[1] == "Failed at embeddings: RuntimeError: No: 1"
    assert "test_build.py" in bug.stdout


def test_who_waits_for_another_run_says_for_which_and_goes_on_when_it_is_over(
    corpus: Callable[..., Pipeline], home: Path
) -> None:
    pipeline = corpus(["one text"])
    terminal = Console(file=StringIO(), force_terminal=True, force_interactive=True, width=100)
    with shipped_instance(home) as instance:
        other = instance.add_run(dg.DagsterRun("other", status=dg.DagsterRunStatus.STARTED))
        events = instance.event_log_storage
        events.initialize_concurrency_limit_to_default("embedding_device")
        assert events.claim_concurrency_slot("embedding_device", other.run_id, "step").is_claimed
        said: list[str] = []

        def frees(level: int, asset: str, text: str) -> None:
            del level, asset
            if "waits for a place" in text:
                said.append(text)
                events.free_concurrency_slots_for_run(other.run_id)

        with working_on(instance, other.run_id), progress(terminal, "corpus") as watcher:
            assert "Building corpus" in drawn(terminal)
            watcher.message = frees
            built = pipeline.opened.build(watcher=watcher)
    assert built.status == "succeeded"
    assert other.run_id in said[0]
    assert f"process {os.getpid()} on " in said[0]
    last = drawn(terminal).rpartition("Building corpus, 2 partitions, bucket_0...bucket_1")[2]
    assert [line.split()[:2] for line in last.splitlines()[1:5]] == [["✓", one] for one in ASSETS]


def drawn(terminal: Console) -> str:
    assert isinstance(terminal.file, StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue())


def test_a_range_that_is_none_is_told_before_anything_runs(
    corpus: Callable[..., Pipeline], home: Path
) -> None:
    corpus(["one text"])
    unknown = build("bucket_9")
    assert unknown.exit_code == 1
    assert "There is no partition 'bucket_9'" in unknown.stderr
    with shipped_instance(home) as instance:
        assert instance.get_runs() == []


FLUSH = 4


@pytest.fixture
def served(project: Project) -> Iterator[OpenAIServer]:
    """A project whose texts a server embeds, a flush a request."""
    with OpenAIServer() as server:
        records = [{"id": str(number), "text": f"Text number {number}."} for number in range(24)]
        write_jsonl(project.folder / "docs" / "source.jsonl", records)
        embedder = {
            "provider": "openai",
            "base_url": server.url,
            "model": "small",
            "dimensions": 16,
            "max_request_inputs": FLUSH,
            "max_concurrency": 1,
            "flush_size": FLUSH,
            "timeout": 5,
        }
        source = {"path": "docs/*.jsonl"}
        project.write({"name": "docs", "source": source, "embedder": embedder, **BUCKETS})
        dagster_home(project.folder / "dagster_home")
        yield server


@contextmanager
def command(project: Project, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The program as a user starts it, who has exported nothing."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DAGSTER", "EMBEDDING"))
    }
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "embedding-assets"), *arguments],
        cwd=project.folder,
        env={**environment, "PYTHONPATH": f"{PROJECT}{os.pathsep}{project.folder}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupted(project: Project, server: OpenAIServer, *, at_once: bool) -> tuple[str, str]:
    """What a build says that is interrupted when the server has answered two more requests."""
    waiting = threading.Event()

    def never(request: Request) -> Answer:
        waiting.set()
        return Answer(body=server.content(request), after=600)

    canaries = 1
    server.script[:] = [server.embeddings] * (canaries + 2)
    server.always = never
    with command(project, "build", "docs") as process:
        assert waiting.wait(300), process.communicate()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("Stopping: what is under way comes to its end" in s for s in process.stderr)
        if at_once:
            process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stdout + stderr
    return stdout, stderr


@pytest.mark.slow
def test_what_was_interrupted_goes_on_and_embeds_at_most_a_flush_again(
    project: Project, served: OpenAIServer
) -> None:
    stdout, _ = interrupted(project, served, at_once=False)
    assert "Interrupted. What was finished is kept." in stdout
    assert "To go on: " in stdout
    _, stderr = interrupted(project, served, at_once=True)
    assert "Ended at once. What was finished is kept; the same command goes on." in stderr
    served.always = served.embeddings
    with command(project, "build", "docs") as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "24 rows" in stdout
    sent = Counter(text for request in served.requests for text in request.texts)
    again = {text: times for text, times in sent.items() if text.startswith("Text") and times > 1}
    interruptions = 2
    assert len(again) <= interruptions * FLUSH
    with shipped_instance(project.folder / "dagster_home") as instance:
        last, *before = instance.get_runs()
        assert last.status == dg.DagsterRunStatus.SUCCESS
        assert {run.status for run in before} == {dg.DagsterRunStatus.FAILURE}
        assert not instance.event_log_storage.get_concurrency_info("embedding_device").claimed_slots


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_watching_builds_exactly_what_changes(project: Project) -> None:
    with command(project, "build", "docs", "--watch", "--every", "0.1", "--json") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["assets"]["documents"]["added"] == 24
        more = [{"id": "24", "text": "Another text."}, {"id": "25"}]
        write_jsonl(project.folder / "docs" / "more.jsonl", more)
        second = json.loads(process.stdout.readline())
        assert len(second["partitions"]) == 1
        assert second["assets"]["documents"]["added"] == 1
        assert [reason["reason"] for reason in second["refused"]] == ["empty_text"]
        process.send_signal(signal.SIGTERM)
        rest, stderr = process.communicate()
    assert (process.returncode, rest) == (130, "")
    assert "Interrupted. To go on: " in stderr
