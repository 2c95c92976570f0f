"""Artifacts of a run that leaves no trace."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import PrivateAttr

from resources.artifact_stores.base import ArtifactStore
from resources.artifact_stores.files import FileArtifactStore


@contextmanager
def temporary_overlay(below: ArtifactStore) -> Iterator[ArtifactStore]:
    """Takes what is written into a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="overlay-") as folder:
        yield OverlayArtifactStore(below=below, above=FileArtifactStore(url=folder))


class OverlayArtifactStore(ArtifactStore):
    """Shows what `below` holds, and keeps in `above` what is written: a run that leaves no trace.

    What is removed is hidden until this object is gone.
    """

    below: ArtifactStore
    above: ArtifactStore
    _hidden: set[str] = PrivateAttr(default_factory=set)

    def address(self, key: str) -> str:
        return self.below.address(key)

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
