"""`embedding-assets collections` and `drop-index`: the indexes there are, and which are in use."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_assets.cli.terminal import (
    AsJson,
    console,
    errors_for_people,
    plain,
    print_rows,
    warn,
)
from resources.errors import EmbeddingAssetsError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from embedding_assets.api import Collection
    from resources.identity.embedding_space import EmbeddingSpace
    from resources.vector_stores.base import VectorStore


def collections(as_json: AsJson = False) -> None:
    """List the collections and their indexes, those that are no longer configured too."""
    from embedding_assets.api import loaded

    with errors_for_people():
        available, broken = loaded()
        for sentence in broken:
            warn(f"Not loaded: {sentence}")
        store = _store(available)
        rows = []
        for name in {*available, *store.collections()}:
            collection = available.get(name)
            # Of a table without a collection nobody knows, as long as one of them is not loaded.
            uses, other = {}, "none" if collection or not broken else "unknown"
            try:
                uses = _uses_of_spaces(collection)
            except EmbeddingAssetsError as error:
                warn(f"The model of '{name}' is not known: {error}")
                other = "unknown"
            rows += [
                {
                    "collection": name,
                    "source": collection.settings.source.path if collection else None,
                    "model": space.model,
                    "embedding_space": space.id,
                    "chunks": store.count(name, space),
                    "use": uses.get(space, other),
                }
                for space in {*uses, *store.spaces(name)}
            ]
    rows.sort(key=lambda row: (row["collection"], row["use"], row["embedding_space"]))
    print_rows(rows, as_json, "Collections")


def drop_index(
    collection: Annotated[
        str, typer.Argument(help="The collection, as in `collections`; it may be there no more.")
    ],
    space: Annotated[str, typer.Argument(help="The embedding space's id, as in `collections`.")],
) -> None:
    """Remove an index of a model or a collection that is no longer configured; the cache stays."""
    from embedding_assets.api import loaded

    with errors_for_people():
        available, broken = loaded()
        store = _store(available)
        found = next((there for there in store.spaces(collection) if there.id == space), None)
        if found is None:
            raise NotFoundError(
                f"'{collection}' has no index for the embedding space '{space}'; "
                "`embedding-assets collections` lists those that are there."
            )
        if collection not in available and broken:
            raise InvalidInputError(
                f"The index may be that of a collection that could not be loaded: {broken[0]}"
            )
        if found in _uses_of_spaces(available.get(collection)):
            raise InvalidInputError(
                f"'{collection}' uses {found.model} ({space}): it is in its YAML."
            )
        chunks = store.count(collection, found)
        store.drop_table(collection, found)
    console.print(plain(f"Removed {chunks:,} chunks of {found.model} from '{collection}'."))


def _store(available: "Mapping[str, Collection]") -> "VectorStore":
    """The one that all collections share, of which there may be none."""
    from embedding_assets.collection.resources import shared_resources

    for collection in available.values():
        return collection.resources.store
    return shared_resources()["vector_store"]


def _uses_of_spaces(collection: "Collection | None") -> "dict[EmbeddingSpace, str]":
    """What each space that a collection's settings name is for."""
    uses = ("search", "fallback")
    embedders = collection.resources.embedders if collection else ()
    return {e.space: use for e, use in zip(embedders, uses, strict=False)}
