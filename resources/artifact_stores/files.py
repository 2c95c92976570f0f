"""Where assets leave their Parquet files for each other."""

import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field, PrivateAttr

from resources.leftovers import owner, remove_leftovers


class ArtifactNotFoundError(FileNotFoundError):
    """An asset asked for a file that the asset before it has not written."""

    def __init__(self, key: str, location: str) -> None:
        super().__init__(
            f"Artifact '{key}' was not found at {location}. "
            f"Materialize the asset that writes it ('{'/'.join(key.split('/')[:2])}') "
            "for this partition first."
        )


class ArtifactStore(dg.ConfigurableResource, ABC):
    """Whole files by key (`collection/asset/partition/name.parquet`), replaced in one step."""

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def reading(self, key: str) -> Any:
        """A context manager that yields a local `Path` with the artifact's bytes.

        Raises:
            ArtifactNotFoundError: nothing was written under this key.
        """

    @abstractmethod
    def writing(self, key: str) -> Any:
        """A context manager that yields a local `Path` to write to.

        The artifact appears, or is replaced, when the block ends; if it raises, nothing changes.
        """

    @abstractmethod
    def list_keys(self, prefix: str, suffix: str = "") -> list[str]:
        """The keys in a folder (`prefix` ends with "/") and below it, sorted."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Removes an artifact; one that is not there is no error."""


class FileArtifactStore(ArtifactStore):
    """A local folder, or any fsspec URL such as `s3://bucket/prefix`."""

    url: str = Field(default="data/artifacts", description="Folder or fsspec URL of all artifacts.")

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
            target = Path(self._location(key))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Of all files beside it: some of them are written only when they change.
            remove_leftovers(target.parent, ".*.", ".tmp")
            thread = threading.get_ident()
            temporary = target.with_name(f".{target.name}.{owner()}.{thread}.tmp")
            try:
                yield temporary
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
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

    def remove(self, key: str) -> None:
        if self.exists(key):
            self._filesystem.rm_file(self._location(key))

    @cached_property
    def _filesystem_and_root(self) -> tuple[Any, str]:
        return fsspec.core.url_to_fs(self.url)

    @property
    def _filesystem(self) -> Any:
        return self._filesystem_and_root[0]

    @property
    def _is_local(self) -> bool:
        return isinstance(self._filesystem, LocalFileSystem)

    def _location(self, key: str) -> str:
        return f"{self._filesystem_and_root[1].rstrip('/')}/{key}"


class OverlayArtifactStore(ArtifactStore):
    """Shows what `below` holds, and keeps in `above` what is written: a run that leaves no trace.

    What is removed is hidden until this object is gone.
    """

    below: ArtifactStore
    above: ArtifactStore
    _hidden: set[str] = PrivateAttr(default_factory=set)

    def exists(self, key: str) -> bool:
        return self.above.exists(key) or (key not in self._hidden and self.below.exists(key))

    def reading(self, key: str) -> Any:
        hidden_or_replaced = key in self._hidden or self.above.exists(key)
        return (self.above if hidden_or_replaced else self.below).reading(key)

    def writing(self, key: str) -> Any:
        return self.above.writing(key)

    def list_keys(self, prefix: str, suffix: str = "") -> list[str]:
        below = {*self.below.list_keys(prefix, suffix)} - self._hidden
        return sorted(below | {*self.above.list_keys(prefix, suffix)})

    def remove(self, key: str) -> None:
        self.above.remove(key)
        self._hidden.add(key)
