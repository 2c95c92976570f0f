"""Which vector store a URL means."""

from resources.urls import local_path, made_from_url, without_options
from resources.vector_stores.base import VectorStore
from resources.vector_stores.lancedb import LanceDBVectorStore


def vector_store_from_url(url: str) -> VectorStore:
    """The store that a URL describes.

    Args:
        url: a LanceDB folder, or the URL of one on object storage, such as s3://bucket/prefix.

    Raises:
        InvalidInputError: the URL describes no store.
    """
    return made_from_url(url, "A vector store", _SCHEMES)


def _folder(url: str) -> VectorStore:
    return LanceDBVectorStore(uri=local_path(without_options(url, "a LanceDB store")))


def _object_storage(url: str) -> VectorStore:
    return LanceDBVectorStore(uri=without_options(url, "a LanceDB store"))


_SCHEMES = {
    "": _folder,
    "file": _folder,
    **dict.fromkeys(("s3", "gs", "az", "abfss"), _object_storage),
}
