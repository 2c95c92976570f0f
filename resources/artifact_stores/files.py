"""Artifacts in a local folder, or on any fsspec storage."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pydantic import Field

from resources.artifact_stores.base import ArtifactNotFoundError, ArtifactStore
from resources.atomic_write import atomic_write
from resources.disk_usage import bytes_in
from resources.urls import as_uri, open_storage


class FileArtifactStore(ArtifactStore):
    """A local folder, or any fsspec URL such as `s3://bucket/prefix`."""

    url: str = Field(default="data/artifacts", description="Folder or fsspec URL of all artifacts.")

    def address(self, key: str) -> str:
        return as_uri(f"{self.url.rstrip('/')}/{key}")

    def exists(self, key: str) -> bool:
        return self._filesystem.exists(self._location(key))

    @contextmanager
    def reading(self, key: str) -> Iterator[Path]:
        if not self.exists(key):
            raise ArtifactNotFoundError(key, self._location(key))
        if self._is_local:
            yield Path(self._location(key))
            return
        with tempfile.TemporaryDirectory(prefix="artifact-") as folder:
            copy = Path(folder) / Path(key).name
            self._filesystem.get_file(self._location(key), str(copy))
            yield copy

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        if self._is_local:
            with atomic_write(Path(self._location(key))) as temporary:
                yield temporary
            return
        folder = Path(tempfile.mkdtemp(prefix="artifact-"))
        try:
            temporary = folder / Path(key).name
            yield temporary
            # Object stores show an object only when its upload is complete.
            self._filesystem.put_file(str(temporary), self._location(key))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def list_keys(self, prefix: str, suffix: str = "") -> list[str]:
        root = self._location("")
        self._filesystem.invalidate_cache()  # other processes write here too
        found = (location[len(root) :] for location in self._filesystem.find(root + prefix))
        # Hidden names are files that are being written.
        return sorted(k for k in found if k.endswith(suffix) and "/." not in k)

    def bytes_used(self, prefix: str) -> int | None:
        return bytes_in(Path(self._location(prefix))) if self._is_local else None

    def remove(self, key: str) -> None:
        if self.exists(key):
            self._filesystem.rm_file(self._location(key))

    @cached_property
    def _filesystem_and_root(self) -> tuple[Any, str]:
        return open_storage(self.url, "The URL of the artifacts")

    @property
    def _filesystem(self) -> Any:
        return self._filesystem_and_root[0]

    @property
    def _is_local(self) -> bool:
        return isinstance(self._filesystem, LocalFileSystem)

    def _location(self, key: str) -> str:
        return f"{self._filesystem_and_root[1].rstrip('/')}/{key}"
