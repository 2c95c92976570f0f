"""What the OpenAPI document allows, and what it does not, is never answered with a defect."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.test_embeddings import pipeline
from tests.support.fakes import CountingEmbedder
from tests.support.service import RunningService

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1_800),  # eight minutes on two cores that others use, too
    pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11"),
]

CASES = 5_000


def test_thousands_of_requests_made_from_the_document_meet_no_defect(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    made.run()
    schemathesis = shutil.which("schemathesis", path=Path(sys.executable).parent)
    assert schemathesis, "the extra `dev` brings it"
    # By one worker: two of them meet a fault of CPython's parser in threads.
    command = [schemathesis, "run", "openapi.json", "--checks", "not_a_server_error"]
    command += ["--max-examples", "850", "--phases", "examples,coverage,fuzzing"]
    with RunningService(made.opened, folder=tmp_path) as running:
        (tmp_path / "openapi.json").write_bytes(running.client.get("/openapi.json").content)
        # What it remembers of a run it puts into the working directory.
        done = subprocess.run(
            [*command, "--url", running.url], cwd=tmp_path, capture_output=True, text=True
        )
        answered = re.findall(
            r'embedding_http_requests_total\{.*status="(\d+)"\} (\S+)',
            running.client.get("/metrics").text,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(float(count) for _, count in answered) >= CASES
    assert {status for status, _ in answered if status >= "500"} == set()
