"""What is refused: where it is written, and the details by which one entry speaks of another."""

from collections.abc import Iterable
from typing import Any

from embedding_assets.artifacts.parquet import write_parquet
from embedding_assets.artifacts.schemas import QUARANTINE
from embedding_assets.artifacts.scratch import Scratch
from resources.artifact_stores.base import ArtifactStore

DUPLICATE_DETAIL = "another record has this id: "
"""Begins the detail of a refused duplicate; the winner's file, " line " and its line follow."""


def duplicate_winner(detail: str) -> str:
    """The file of the record for which a duplicate was refused."""
    return detail.removeprefix(DUPLICATE_DETAIL).rpartition(" line ")[0]


def replace_quarantine(
    database: Scratch,
    artifacts: ArtifactStore,
    key: str,
    fresh: str,
    *,
    same: str,
    keep_files: Iterable[str] = (),
    **parameters: Any,
) -> int:
    """Writes what is refused now in the place of what was; there is no file if nothing ever was.

    Args:
        database: makes the tables `known` and `merged` of it.
        artifacts: where the quarantine is.
        key: its key.
        fresh: SQL: what is refused now, with the columns of `QUARANTINE` but `attempts`.
        same: SQL: which entry of `known` a row of `fresh` repeats; it counts one attempt more.
        keep_files: entries that are known of these files stay as they are.
        parameters: of `fresh`.

    Returns:
        The number of entries.
    """
    there_before = artifacts.exists(key)
    database.create("known", QUARANTINE)
    if there_before:
        with artifacts.reading(key) as previous:
            database.execute("INSERT INTO known FROM read_parquet($path)", path=str(previous))
    database.execute(
        f"""
        CREATE OR REPLACE TABLE merged AS
        SELECT *, 1 + coalesce((SELECT max(attempts) FROM known WHERE {same}), 0) AS attempts
        FROM ({fresh}) fresh
        """,
        **parameters,
    )
    database.execute(
        "INSERT INTO merged BY NAME FROM known WHERE file IN (SELECT unnest($kept::VARCHAR[]))",
        kept=[*keep_files],
    )
    (entries,) = database.row("SELECT count(*) FROM merged")
    if entries or there_before:
        with artifacts.writing(key) as path:
            rows = database.stream("FROM merged ORDER BY file, line, reason, detail")
            write_parquet(path, QUARANTINE, rows)
    return entries
