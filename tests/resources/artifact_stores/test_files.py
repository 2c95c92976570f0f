"""Several processes on one folder, and one that was killed while it wrote there."""

import os
import socket
import subprocess
import sys

from resources.artifact_stores.files import FileArtifactStore
from tests.support.artifacts import KEY, everything, read, write
from tests.support.checkout import PROJECT

KILLED = """
import os, signal, sys
from resources.artifact_stores.files import FileArtifactStore

with FileArtifactStore(url=sys.argv[1]).writing(sys.argv[2]) as path:
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    store = FileArtifactStore(url=str(tmp_path))
    subprocess.run([sys.executable, "-c", KILLED, store.url, KEY], cwd=PROJECT, check=False)
    assert not store.exists(KEY)
    assert len(everything(store)) == 1
    write(store, b"whole")
    assert read(store) == b"whole"
    assert everything(store) == ["documents.parquet"]


def test_what_a_living_process_or_another_machine_writes_is_left_alone(tmp_path):
    store = FileArtifactStore(url=str(tmp_path))
    write(store, b"first")
    folder = (tmp_path / KEY).parent
    living = folder / f".documents.parquet.{socket.gethostname()}.{os.getppid()}.tmp"
    elsewhere = folder / ".documents.parquet.another-machine.999999999.tmp"
    for path in (living, elsewhere):
        path.write_bytes(b"half")
    write(store, b"second")
    assert living.exists()
    assert elsewhere.exists()
    assert read(store) == b"second"


WRITE_OFTEN = """
import sys
from resources.artifact_stores.files import FileArtifactStore

store = FileArtifactStore(url=sys.argv[1])
for _ in range(60):
    with store.writing(sys.argv[2]) as path:
        path.write_bytes(sys.argv[3].encode() * 100_000)
"""


def test_processes_that_write_at_once_leave_one_whole_file(tmp_path):
    store = FileArtifactStore(url=str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITE_OFTEN, store.url, KEY, letter], cwd=PROJECT)
        for letter in "abc"
    ]
    seen = set()
    while any(process.poll() is None for process in processes):
        if store.exists(KEY):
            content = read(store)
            assert content == content[:1] * 100_000
            seen.add(content[:1])
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert seen <= {b"a", b"b", b"c"}
    assert everything(store) == ["documents.parquet"]
