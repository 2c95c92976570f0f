"""Reading and writing artifacts, and what really lies in a store."""

from pathlib import Path

import fsspec

from resources.artifact_stores.base import ArtifactStore
from resources.artifact_stores.files import FileArtifactStore
from resources.artifact_stores.overlay import OverlayArtifactStore

KEY = "peps/documents/2020/documents.parquet"


def everything(store: ArtifactStore) -> list[str]:
    """The names of all files in the store's folders, temporary ones too."""
    if isinstance(store, OverlayArtifactStore):
        return sorted(everything(store.below) + everything(store.above))
    assert isinstance(store, FileArtifactStore)
    filesystem, root = fsspec.core.url_to_fs(store.url)
    return sorted(Path(p).name for p in filesystem.find(root)) if filesystem.exists(root) else []


def write(store: ArtifactStore, content: bytes, key: str = KEY) -> None:
    with store.writing(key) as path:
        path.write_bytes(content)


def read(store: ArtifactStore, key: str = KEY) -> bytes:
    with store.reading(key) as path:
        return path.read_bytes()
