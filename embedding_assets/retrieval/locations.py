"""Where the documents of hits stand in the source."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import documents_key
from resources.artifact_stores.base import ArtifactStore
from resources.document_sources.dated_paths import fixed_folder
from resources.vector_stores.base import SearchHit


def locations(
    collection: str, source: str, artifacts: ArtifactStore, hits: Iterable[SearchHit]
) -> dict[str, str]:
    """File and line of the hits' documents, as "file:line", by document id.

    Args:
        collection: the collection's name.
        source: the path of its source.
        artifacts: those that are not on this machine are not fetched, and their documents left out.
        hits: hits of this collection.
    """
    ids_of: dict[str, set[str]] = {}
    for hit in hits:
        ids_of.setdefault(hit.partition, set()).add(hit.document_id)
    folder = Path(source if Path(source).is_dir() else fixed_folder(source))
    found = {}
    for partition, ids in ids_of.items():
        key = documents_key(collection, partition)
        if not artifacts.exists(key) or artifacts.bytes_used(key) is None:
            continue
        with artifacts.reading(key) as path:
            rows = pq.read_table(path, columns=["id", "file", "line"], filters=[("id", "in", ids)])
        for row in rows.to_pylist():
            found[row["id"]] = f"{_shown(folder, row['file'])}:{row['line']}"
    return found


def _shown(folder: Path, file: str) -> str:
    """The file's path as an editor opens it from here; as in the source if it is elsewhere."""
    path = folder / file
    if not path.is_file():
        return file
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
