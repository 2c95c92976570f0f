"""What every artifact store promises: whole files, each replaced in one step."""

import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from resources.artifact_stores.base import ArtifactNotFoundError, ArtifactStore
from resources.artifact_stores.files import FileArtifactStore
from resources.artifact_stores.from_url import artifact_store_from_url
from resources.artifact_stores.overlay import OverlayArtifactStore
from tests.support.artifacts import KEY, everything, read, write


def overlay(folder: Path) -> ArtifactStore:
    return OverlayArtifactStore(
        below=FileArtifactStore(url=str(folder / "below")),
        above=FileArtifactStore(url=str(folder / "above")),
    )


KINDS: dict[str, Callable[[Path], ArtifactStore]] = {
    "folder": lambda folder: artifact_store_from_url(f"{folder}/artifacts"),
    "file://": lambda folder: artifact_store_from_url(f"file://{folder}/artifacts"),
    "memory://": lambda _: artifact_store_from_url(f"memory://{uuid.uuid4().hex}/artifacts"),
    "overlay": overlay,
}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return KINDS[request.param](tmp_path)


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


def test_what_is_removed_is_gone_and_no_other_key_with_it(store):
    other = "peps/documents/2021/documents.parquet"
    write(store, b"2020")
    write(store, b"2021", other)
    store.remove(KEY)
    store.remove(KEY)
    assert (store.exists(KEY), store.list_keys("peps/")) == (False, [other])
    with pytest.raises(ArtifactNotFoundError):
        read(store)
    assert read(store, other) == b"2021"
    write(store, b"again")
    assert (read(store), read(store, other)) == (b"again", b"2021")


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
