"""Where assets leave their Parquet files for each other."""

from abc import ABC, abstractmethod
from typing import Any

import dagster as dg

from resources.errors import EmbeddingAssetsError


class ArtifactNotFoundError(EmbeddingAssetsError, FileNotFoundError):
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
    def address(self, key: str) -> str:
        """The URI of an artifact, or of a folder of them, which people see: without a secret."""

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

    def bytes_used(self, prefix: str) -> int | None:  # noqa: ARG002
        """What is in a folder takes on a disk of this machine; None: it is elsewhere."""
        return None

    @abstractmethod
    def remove(self, key: str) -> None:
        """Removes an artifact; one that is not there is no error."""
