"""Artifacts are whole files: replaced in one step, and nothing stays behind."""

import os
import socket
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import fsspec
import pytest

from resources.artifact_stores.base import ArtifactNotFoundError, ArtifactStore
from resources.artifact_stores.files import FileArtifactStore
from resources.artifact_stores.overlay import OverlayArtifactStore

KEY = "peps/documents/2020/documents.parquet"
PROJECT = Path(__file__).parents[3]


@pytest.fixture(params=["folder", "file://", "memory://"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileArtifactStore:
    urls = {
        "folder": str(tmp_path / "artifacts"),
        "file://": f"file://{tmp_path}/artifacts",
        "memory://": f"memory://{uuid.uuid4().hex}/artifacts",
    }
    return FileArtifactStore(url=urls[request.param])


def everything(store: FileArtifactStore) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(store.url)
    return sorted(Path(p).name for p in filesystem.find(root)) if filesystem.exists(root) else []


def write(store: ArtifactStore, content: bytes, key: str = KEY) -> None:
    with store.writing(key) as path:
        path.write_bytes(content)


def read(store: ArtifactStore, key: str = KEY) -> bytes:
    with store.reading(key) as path:
        return path.read_bytes()


def test_what_was_written_is_read_and_replaced(store):
    assert not store.exists(KEY)
    for content in (b"first", b"", b"x" * 100_000):
        write(store, content)
        assert store.exists(KEY)
        assert read(store) == content
    assert everything(store) == ["documents.parquet"]


def test_keys_are_found_by_folder_and_name(store):
    assert store.list_keys("peps/", "/quarantine.parquet") == []
    keys = [f"peps/{at}/quarantine.parquet" for at in ("documents", "documents/2020", "embeddings")]
    for key in (*keys, KEY, "peps2/documents/quarantine.parquet", "peps/x/no-quarantine.parquet"):
        write(store, b"x", key)
    assert store.list_keys("peps/", "/quarantine.parquet") == sorted(keys)
    assert store.list_keys("peps/documents/", "/documents.parquet") == [KEY]


def test_keys_do_not_touch_each_other(store):
    other = "peps/documents/2021/documents.parquet"
    write(store, b"2020")
    write(store, b"2021", other)
    assert (read(store), read(store, other)) == (b"2020", b"2021")


def test_a_missing_artifact_says_what_to_materialize(store):
    with pytest.raises(ArtifactNotFoundError, match=r"'peps/documents'.*first") as caught:
        read(store)
    assert isinstance(caught.value, FileNotFoundError)
    assert KEY in str(caught.value)


def test_nothing_is_visible_before_the_block_ends(store):
    with store.writing(KEY) as path:
        path.write_bytes(b"half")
        assert not store.exists(KEY)
    assert read(store) == b"half"


@pytest.mark.parametrize("written", [b"half", None])
def test_a_block_that_raises_leaves_the_old_content_and_no_temporary_file(store, written):
    def fail() -> None:
        with store.writing(KEY) as path:
            temporary.append(path)
            if written is not None:
                path.write_bytes(written)
            raise RuntimeError("broken")

    temporary: list[Path] = []
    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert not store.exists(KEY)
    write(store, b"old")
    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert read(store) == b"old"
    assert everything(store) == ["documents.parquet"]
    assert not any(path.exists() for path in temporary)


def test_a_block_that_writes_nothing_raises_and_keeps_the_old_content(store):
    write(store, b"old")
    with pytest.raises(FileNotFoundError), store.writing(KEY):
        pass
    assert read(store) == b"old"


def test_a_reader_keeps_what_it_opened_while_a_writer_replaces_it(store):
    write(store, b"old")
    with store.reading(KEY) as path, path.open("rb") as file:
        write(store, b"new")
        assert file.read() == b"old"
    assert read(store) == b"new"


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
for _ in range(200):
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


def test_threads_that_write_at_once_leave_one_whole_file(store):
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def work(letter: bytes) -> None:
        try:
            start.wait()
            for _ in range(100):
                with store.writing(KEY) as path, path.open("wb") as file:
                    for _ in range(100):
                        file.write(letter * 100)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    content = read(store)
    assert content == content[:1] * 10_000
    assert everything(store) == ["documents.parquet"]


def test_an_overlay_shows_what_lies_below_and_never_changes_it(store, tmp_path):
    above = FileArtifactStore(url=str(tmp_path / "above"))
    overlay = OverlayArtifactStore(below=store, above=above)
    other = "peps/documents/2021/documents.parquet"
    write(store, b"below")
    write(store, b"other", other)
    assert read(overlay) == b"below"
    write(overlay, b"above")
    overlay.remove(other)
    assert read(overlay) == b"above"
    assert overlay.list_keys("peps/") == [KEY]
    with pytest.raises(ArtifactNotFoundError):
        read(overlay, other)
    write(overlay, b"again", other)
    assert read(overlay, other) == b"again"
    overlay.remove(KEY)
    assert not overlay.exists(KEY)
    assert (read(store), read(store, other)) == (b"below", b"other")
