"""The keys of the stages' files in the artifact store."""

QUARANTINE_FILE = "quarantine.parquet"


def documents_key(collection: str, partition: str) -> str:
    return f"{collection}/documents/{partition}/documents.parquet"


def documents_quarantine_key(collection: str, partition: str | None) -> str:
    """The refused documents of one partition; None: those that belong to no partition."""
    folder = f"{partition}/" if partition is not None else ""
    return f"{collection}/documents/{folder}{QUARANTINE_FILE}"


def withheld_prefix(collection: str) -> str:
    """The folder with a file for each partition of which deletions are withheld."""
    return f"{collection}/documents/withheld/"


def withheld_key(collection: str, partition: str) -> str:
    return f"{withheld_prefix(collection)}{partition}.parquet"


def chunks_key(collection: str, partition: str) -> str:
    return f"{collection}/deduplicated_chunks/{partition}/chunks.parquet"


def plan_key(collection: str, partition: str) -> str:
    return f"{collection}/deduplicated_chunks/{partition}/plan.parquet"


def vectors_key(collection: str, partition: str) -> str:
    return f"{collection}/embeddings/{partition}/vectors.parquet"


def fallback_vectors_key(collection: str, partition: str) -> str:
    """The vectors of documents that only the fallback could embed, in its own space."""
    return f"{collection}/embeddings/{partition}/fallback_vectors.parquet"


def embeddings_quarantine_key(collection: str, partition: str) -> str:
    return f"{collection}/embeddings/{partition}/{QUARANTINE_FILE}"
