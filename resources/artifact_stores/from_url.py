"""Which artifact store a URL means."""

from resources.artifact_stores.base import ArtifactStore
from resources.artifact_stores.files import FileArtifactStore
from resources.urls import local_path, made_from_url, without_options

_REMOTE = ("s3", "gs", "gcs", "az", "abfs", "abfss", "adl", "hdfs", "sftp", "smb", "oss", "memory")


def artifact_store_from_url(url: str) -> ArtifactStore:
    """The store that a URL describes.

    Args:
        url: a folder, or the fsspec URL of one, such as s3://bucket/prefix.

    Raises:
        InvalidInputError: the URL describes no store.
    """
    return made_from_url(url, "An artifact store", _SCHEMES)


def _folder(url: str) -> ArtifactStore:
    return FileArtifactStore(url=local_path(without_options(url, "an artifact store")))


def _remote(url: str) -> ArtifactStore:
    return FileArtifactStore(url=without_options(url, "an artifact store"))


_SCHEMES = {"": _folder, "file": _folder, **dict.fromkeys(_REMOTE, _remote)}
