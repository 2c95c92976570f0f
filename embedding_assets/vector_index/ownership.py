"""Which partition owns a document, where more than one may hold it."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import pyarrow as pa

from embedding_assets.artifacts.keys import documents_key, withheld_key
from embedding_assets.artifacts.rows import to_arrow
from embedding_assets.artifacts.schemas import DOCUMENTS
from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.partitions import partition_for

_ELSEWHERE = pa.schema([("document_id", pa.string()), ("partition", pa.string())])
_CLAIMS = pa.schema(
    [
        *_ELSEWHERE,
        *(DOCUMENTS.field(name) for name in ("file", "read_at")),
        ("withheld", pa.bool_()),
    ]
)
_PERIODS = pa.schema([DOCUMENTS.field("file"), ("begins", pa.timestamp("us", "UTC"))])


class Ownership:
    """Decides about documents that more than one partition holds.

    Among the files that a run reads, `documents` keeps the latest record of an id. So if both
    partitions read the same files, the document moved: it belongs to the partition in which it
    was seen last. If not, the archive may hold it in both, and it belongs to the later period,
    whichever of them ran last.

    A partition that holds it only because its deletion is withheld gives it up to any other.

    In other partitions of the run it is left out; its rows in partitions outside the run are
    removed with the commit of its own partition, and if it belongs to one of those, it is left
    out of the run.

    Tables:
        ids: hashes of the ids of the run's documents, until the claimants are found.
        elsewhere: documents of the run that the index has under partitions outside the run.
        claimants: hashes of the ids that may be in more than one partition: few, or none. What is
            not among them needs no place in any other table.
        claims: each partition that holds a claimant, with file and time of its record,
            and whether its deletion is withheld.
        periods: when the period begins to which a file is limited, if it holds a disputed id.
        superseded: the documents that a partition holds though another one owns them.
    """

    def __init__(
        self, collection: CollectionAssets, resources: CollectionResources, database: Scratch
    ) -> None:
        self._name = collection.name
        self._resources = resources
        self._database = database
        self._all_partitions = set(collection.partitions.get_partition_keys())
        self._partition_for = partition_for(collection.settings.partitions)
        self._run: Sequence[str] = ()
        self.others: list[str] = []
        """Partitions outside the run under which the index has documents of the run."""
        self.former: list[str] = []
        """Partitions in the index that the collection had before its settings changed."""

    def find(self, partitions: Sequence[str]) -> None:
        """Fills the tables for a run over some partitions."""
        database = self._database
        self._run = partitions
        self._find_claimants()
        database.create("claims", _CLAIMS)
        self._insert_claims(partitions)
        others = database.rows(
            "SELECT DISTINCT partition FROM elsewhere SEMI JOIN claims USING (document_id)"
        )
        self.others = [partition for (partition,) in others]
        exists = self._resources.artifacts.exists
        self._insert_claims(p for p in self.others if exists(documents_key(self._name, p)))
        self._mark_withheld()
        self._find_periods()
        database.execute(
            """
            CREATE OR REPLACE TABLE superseded AS
            SELECT document_id, partition FROM claims LEFT JOIN periods USING (file)
            QUALIFY row_number() OVER (
                PARTITION BY document_id
                ORDER BY withheld, begins DESC NULLS LAST, read_at DESC, partition DESC
            ) > 1
            """
        )

    def heirs(self, rows: pa.RecordBatch) -> list[str | None]:
        """The partition of the run with which each row of a former partition goes, or moves.

        It is that to which the row's document would belong now; so the index is never without what
        the new partitions have not brought yet. If the collection has no such partition, it is the
        first one that runs. None: no partition of this run.

        Args:
            rows: with columns `document_id` and `timestamp`.
        """
        run = set(self._run)

        def heir(document_id: str, timestamp: datetime | None) -> str | None:
            partition = self._partition_for(document_id, timestamp)
            if partition is not None and partition not in self._all_partitions:
                return self._run[0]
            return partition if partition in run else None

        return [*map(heir, rows["document_id"].to_pylist(), rows["timestamp"].to_pylist())]

    def _find_claimants(self) -> None:
        """Fills `claimants` and `elsewhere`, and finds the former partitions."""
        database = self._database
        database.create("ids", pa.schema([("hash", pa.uint64())]))
        for partition in self._run:
            with self._resources.artifacts.reading(documents_key(self._name, partition)) as path:
                database.execute(
                    "INSERT INTO ids SELECT hash(id) FROM read_parquet($path)", path=str(path)
                )
        database.create("elsewhere", _ELSEWHERE)
        partitions: set[str] = set()
        for embedder in self._resources.embedders:  # it may have moved out of another space's table
            for rows in self._resources.store.scan(
                self._name, embedder.space, _ELSEWHERE.names, not_partitions=self._run
            ):
                partitions |= set(rows["partition"].unique().to_pylist())
                database.insert(
                    "elsewhere",
                    rows,
                    "SEMI JOIN ids ON ids.hash = hash(incoming.document_id)",
                )
        self.former = sorted(partitions - self._all_partitions)
        database.execute(
            """
            CREATE OR REPLACE TABLE claimants AS
            SELECT hash FROM ids GROUP BY hash HAVING count(*) > 1
            UNION SELECT hash(document_id) FROM elsewhere
            """
        )
        database.drop("ids")

    def _insert_claims(self, partitions: Iterable[str]) -> None:
        for partition in partitions:
            with self._resources.artifacts.reading(documents_key(self._name, partition)) as path:
                self._database.execute(
                    "INSERT INTO claims SELECT id, $partition, file, read_at, false "
                    "FROM read_parquet($path) WHERE hash(id) IN (SELECT hash FROM claimants)",
                    partition=partition,
                    path=str(path),
                )

    def _mark_withheld(self) -> None:
        """Says which claims are of documents that the partition's part of the source lost."""
        artifacts = self._resources.artifacts
        for (partition,) in self._database.rows("SELECT DISTINCT partition FROM claims"):
            if artifacts.exists(key := withheld_key(self._name, partition)):
                with artifacts.reading(key) as path:
                    self._database.execute(
                        "UPDATE claims SET withheld = true WHERE partition = $partition "
                        "AND document_id IN (SELECT document_id FROM read_parquet($path))",
                        partition=partition,
                        path=str(path),
                    )

    def _find_periods(self) -> None:
        disputed = self._database.rows(
            "SELECT DISTINCT file FROM claims QUALIFY count(*) OVER (PARTITION BY document_id) > 1"
        )
        period_of = self._resources.source.period_of
        periods = [(file, period[0]) for (file,) in disputed if (period := period_of(file))]
        self._database.create("periods", _PERIODS)
        self._database.insert("periods", to_arrow(periods, _PERIODS))
