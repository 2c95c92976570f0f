"""Dagster assets that keep a vector index of a document archive up to date."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedding_assets.component import EmbeddingCollection

__all__ = ["EmbeddingCollection"]


def __getattr__(name: str) -> Any:
    # Dagster finds the component here. It brings pyarrow, DuckDB and more along, half of what
    # `import dagster` costs: not for whoever only imports the package.
    if name == "EmbeddingCollection":
        from embedding_assets.component import EmbeddingCollection

        return EmbeddingCollection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
