"""Which vector store a URL means."""

from collections.abc import Callable

from resources.urls import local_path, made_from_url, seconds, split_options, without_options
from resources.vector_stores.base import VectorStore
from resources.vector_stores.lancedb import LanceDBVectorStore


def vector_store_from_url(url: str) -> VectorStore:
    """The store that a URL describes.

    Args:
        url: a LanceDB folder, or the URL of one on object storage, such as s3://bucket/prefix;
            `?keep=1h` says for how long versions are kept for other machines.

    Raises:
        InvalidInputError: the URL describes no store.
    """
    return made_from_url(url, "A vector store", _SCHEMES)


def _folder(url: str) -> VectorStore:
    return _lancedb(url, local_path)


def _object_storage(url: str) -> VectorStore:
    return _lancedb(url, str)


def _lancedb(url: str, place: Callable[[str], str]) -> VectorStore:
    address, options = split_options(url, {"keep": seconds})
    named = {f"{name}_seconds": value for name, value in options.items()}
    uri = place(without_options(address, "a LanceDB store", known="keep=1h"))
    return LanceDBVectorStore(uri=uri, **named)


_SCHEMES = {
    "": _folder,
    "file": _folder,
    **dict.fromkeys(("s3", "gs", "az", "abfss"), _object_storage),
}
