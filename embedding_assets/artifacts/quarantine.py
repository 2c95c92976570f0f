"""What is refused: how it is written and read, and how often for which reason."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import QUARANTINE_FILE
from embedding_assets.artifacts.parquet import write_parquet
from embedding_assets.artifacts.schemas import QUARANTINE, QUARANTINED
from embedding_assets.artifacts.scratch import Scratch, scratch
from resources.artifact_stores.base import ArtifactStore
from resources.plain_text import plain

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


@dataclass(frozen=True)
class QuarantineFile:
    """What an asset refused of one partition; `partition` None: what belongs to none."""

    stage: str
    partition: str | None
    key: str


def quarantine_files(artifacts: ArtifactStore, collection: str) -> list[QuarantineFile]:
    """All of a collection that are there: by asset, and first what belongs to no partition."""
    found = []
    for stage in ("documents", "embeddings"):
        folder = f"{collection}/{stage}/"
        for key in artifacts.list_keys(folder, f"/{QUARANTINE_FILE}"):
            partition = key.removeprefix(folder).removesuffix(QUARANTINE_FILE).rstrip("/")
            found.append(QuarantineFile(stage, partition or None, key))
    return sorted(found, key=lambda file: (file.stage, file.partition or ""))


def read_quarantine(
    artifacts: ArtifactStore,
    files: Iterable[QuarantineFile],
    concerns: Callable[[str], bool] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Streams entries, with the columns of `QUARANTINED`.

    Args:
        artifacts: where the files are; those that are not there are left out.
        files: which to read.
        concerns: whether a source file is of interest: of what belongs to no partition, the
            entries of other source files are left out.
    """
    of_interest = lru_cache(maxsize=4096)(concerns) if concerns is not None else None
    for file in files:
        if not artifacts.exists(file.key):
            continue
        with artifacts.reading(file.key) as path, pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(columns=QUARANTINE.names):
                if file.partition is None and of_interest is not None:
                    keep = [of_interest(name) for name in batch["file"].to_pylist()]
                    batch = batch.filter(pa.array(keep, pa.bool_()))
                constant = [
                    pa.array([value] * len(batch), pa.string())
                    for value in (file.stage, file.partition)
                ]
                yield pa.record_batch([*constant, *batch.columns], schema=QUARANTINED)


@dataclass(frozen=True)
class QuarantineReason:
    """How many entries of the quarantine have one reason, and one of them as an example.

    Attributes:
        stage: the asset that refused them: "documents" records, "embeddings" chunks.
        reason: the code.
        records: how many.
        document_id: of the example, if it is known; and so on.
        file: its file in the source.
        line: its line, or its row in Parquet; None: the whole file.
        detail: what is wrong with it, for people; the example has the commonest.
    """

    stage: str
    reason: str
    records: int
    document_id: str | None
    file: str | None
    line: int | None
    detail: str

    @property
    def example(self) -> str:
        """Where the example is, and what is wrong with it, in one line."""
        line = f" line {self.line:,}" if self.line is not None else ""
        return plain(f"{self.file or self.document_id or 'unknown'}{line}: {self.detail}")

    @property
    def told(self) -> str:
        """The reason, how many have it, and the example."""
        return f"{self.reason} ({self.records:,}), such as {self.example}"


def quarantine_reasons(entries: Iterable[pa.RecordBatch]) -> list[QuarantineReason]:
    """Counts entries, with the columns of `QUARANTINED`, by asset and reason; the most first."""
    batches = (batch for batch in entries if len(batch))
    first = next(batches, None)
    if first is None:  # nearly always: not worth a database
        return []
    with scratch() as database:
        database.create("quarantined", QUARANTINED)
        database.insert("quarantined", first)
        for batch in batches:
            database.insert("quarantined", batch)
        rows = database.rows(
            """
            SELECT stage, reason, records, document_id, file, line, detail
            FROM (SELECT *,
                         count(*) OVER (PARTITION BY stage, reason) AS records,
                         count(*) OVER (PARTITION BY stage, reason, detail) AS alike
                  FROM quarantined)
            QUALIFY row_number() OVER (
                PARTITION BY stage, reason ORDER BY alike DESC, file, line, detail) = 1
            ORDER BY records DESC, stage, reason
            """
        )
    return [QuarantineReason(*row) for row in rows]
