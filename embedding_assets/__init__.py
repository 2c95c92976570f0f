"""Dagster assets that keep a vector index of a document archive up to date."""

from embedding_assets.component import EmbeddingCollection

__all__ = ["EmbeddingCollection"]
