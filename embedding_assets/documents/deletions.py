"""Which deletions an ingest withholds, and until when.

A document that a partition knows and the source no longer has, there or in any other partition,
would be deleted; but an export that was cut short, saved in another form or not mounted looks like
an archive from which somebody removed documents: so a deletion is withheld if its file was not read
to its end, if too large a share of its file was refused, or if it is one of too many in its file,
its partition or the whole run. While it is withheld, the document is carried over from the
partition's documents of last time, so that chunks, vectors and rows stay, and additions and changes
go on beside it. What is withheld is written down per partition, before its documents, so that it
stays withheld however much is added later; and its documents carry no mark of their files, so that
each run looks again. It ends when the source has the document again, here or elsewhere, or when
somebody agrees: to exactly what is written down (`embedding-assets accept`), or to all that one run
would withhold (its config `accept_deletions`). Sensors need no memory of it, for the digest of what
the source held is written with it: nothing is requested again until the source changes or somebody
has agreed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import documents_key, withheld_key
from embedding_assets.artifacts.rows import to_arrow
from embedding_assets.artifacts.schemas import SOURCE_YIELDS, WITHHELD
from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.artifacts.withheld import accepted_in, how_to_agree, write_withheld
from embedding_assets.collection.settings import DeletionSettings
from embedding_assets.documents.spool import KNOWN, SOUND_RECORDS, YIELDS
from embedding_assets.runs.check_results import EXAMPLES
from resources.artifact_stores.base import ArtifactStore
from resources.document_sources import RefusalReason

_EARLIER = pa.schema(
    [
        ("partition", pa.string()),
        ("document_id", pa.string()),
        ("accepted", pa.bool_()),
        ("stays", pa.bool_()),
    ]
)
_SCOPES = pa.schema(
    [("scope", pa.string()), ("name", pa.string()), ("part", pa.int64()), ("whole", pa.int64())]
)
_REASONS = {
    "unfinished": "{name} was not read to its end, and {part:,} of its {whole:,} known documents "
    "were not seen",
    "refused": "of {name} {part:,} of {whole:,} records were refused",
    "empty": "{name} is there, but holds nothing any more: {part:,} of its {whole:,} known "
    "documents are gone",
    "file": "{part:,} of the {whole:,} known documents of {name} are gone",
    "partition": "{part:,} of the {whole:,} known documents of partition {name} are gone",
    "all": "{part:,} of the {whole:,} known documents of these partitions are gone",
    "earlier": "{part:,} documents of {name} were withheld before and are still gone",
}
_HALF_A_RECORD = (RefusalReason.malformed_line.value, RefusalReason.invalid_utf8.value)
"""If the last record of a file was refused for one of these, and documents were known after it, the
file was cut off there."""
_MOST_FILES = 1_000
"""Of so many files a partition remembers how much they held, the largest first."""
_ENDS_WITH_ITS_CAUSE = ("unfinished", "refused", "empty")
"""Why a deletion is withheld; the first that applies is told. `part` of `whole` is what suggests
it, `name` the file or partition."""


@dataclass(frozen=True)
class WithheldDeletions:
    """What one run withholds.

    Attributes:
        partitions: the number of documents by partition.
        files: those in which they were, with the number of their documents.
        sentence: why, and what to do; "" if nothing is withheld.
    """

    partitions: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    sentence: str = ""

    @property
    def documents(self) -> int:
        return sum(self.partitions.values())


@dataclass
class DeletionGuard:
    """Finds what to withhold among the documents of a `Spool` and those of last time.

    Tables that it makes of the scratch database:
        known_documents: what the partitions of the run knew, without their texts.
        yields_before: how many documents a file held when a partition was read last.
        earlier: the ids that were withheld before, and whether somebody agreed.
        gone: known documents that the source no longer has; `renamed` if it has what they say.
        scopes: files, partitions and the run as a whole that suggest a mistake.
        withheld: those of `gone` that stay, with `why`, a key of `_REASONS`.

    Attributes:
        database: the spool's.
        artifacts: where the documents of last time are.
        collection: the collection's name.
        settings: how much may go.
        accept: whether everything may go.
    """

    database: Scratch
    artifacts: ArtifactStore
    collection: str
    settings: DeletionSettings
    accept: bool = False

    def find(
        self,
        known: Sequence[str],
        broken_files: Sequence[str],
        there: Collection[str],
        elsewhere: Callable[[list[str]], Sequence[str]],
    ) -> WithheldDeletions:
        """Fills the table `withheld`.

        Args:
            known: those partitions of the run that have documents of last time.
            broken_files: files that were not read to their end.
            there: all files that were read.
            elsewhere: from files to the partitions outside the run that may have got documents of
                theirs though this run does not see it.
        """
        self._load(known)
        self._find_gone()
        self._find_unreadable_files(broken_files)
        self._find_empty_files(there)
        self._find_scopes_that_lose_much()
        self.database.execute(
            """
            CREATE OR REPLACE TABLE withheld AS
            SELECT g.*, CASE
                WHEN file IN (SELECT name FROM scopes WHERE scope = 'unfinished') THEN 'unfinished'
                WHEN file IN (SELECT name FROM scopes WHERE scope = 'refused') THEN 'refused'
                WHEN file IN (SELECT name FROM scopes WHERE scope = 'empty') THEN 'empty'
                WHEN renamed THEN NULL
                WHEN file IN (SELECT name FROM scopes WHERE scope = 'file') THEN 'file'
                WHEN partition IN (SELECT name FROM scopes WHERE scope = 'partition')
                    THEN 'partition'
                WHEN EXISTS (FROM scopes WHERE scope = 'all') THEN 'all'
                WHEN id IN (SELECT document_id FROM earlier WHERE stays) THEN 'earlier'
            END AS why
            FROM gone g WHERE why IS NOT NULL
            """
        )
        self._let_go_what_moved(elsewhere)
        return self._told()

    def yields(self) -> Mapping[str, str]:
        """What is to be remembered of the files of each partition, as `SOURCE_YIELDS`.

        Files of so few documents that they may all go are left out.
        """
        rows = self.database.rows(
            """
            SELECT partition, name, documents
            FROM (SELECT partition, file AS name FROM records
                  UNION SELECT partition, '' FROM records) JOIN yields USING (name)
            WHERE documents > $documents
            QUALIFY row_number() OVER (PARTITION BY partition ORDER BY documents DESC, name)
                <= $most
            """,
            documents=self.settings.max_documents,
            most=_MOST_FILES,
        )
        found: dict[str, dict[str, int]] = {}
        for partition, name, documents in rows:
            found.setdefault(partition, {})[name] = documents
        return {partition: orjson.dumps(files).decode() for partition, files in found.items()}

    def rows(self, partition: str) -> pa.RecordBatch:
        """What is withheld of a partition, as `WITHHELD`."""
        batches = self.database.stream(
            "SELECT id AS document_id, file, why AS reason FROM withheld "
            "WHERE partition = $partition ORDER BY id",
            partition=partition,
        )
        table = pa.Table.from_batches(list(batches)).cast(WITHHELD).combine_chunks()
        return table.to_batches()[0]

    def write(self, partition: str, source: str) -> None:
        """Writes down what is withheld of a partition."""
        write_withheld(self.artifacts, self.collection, partition, [self.rows(partition)], source)

    def forget(self, partition: str) -> None:
        """Nothing of a partition is withheld any more."""
        if self.artifacts.exists(key := withheld_key(self.collection, partition)):
            self.artifacts.remove(key)

    def _load(self, known: Sequence[str]) -> None:
        """Fills `known_documents`, `yields_before` and `earlier`."""
        self.database.create("known_documents", KNOWN)
        self.database.create("yields_before", YIELDS)
        self.database.create("earlier", _EARLIER)
        columns = ", ".join(name for name in KNOWN.names if name != "partition")
        for partition in known:
            with self.artifacts.reading(documents_key(self.collection, partition)) as previous:
                self.database.execute(
                    f"INSERT INTO known_documents SELECT $partition, {columns} "
                    "FROM read_parquet($previous)",
                    partition=partition,
                    previous=str(previous),
                )
                before = to_arrow([*yields_of(pq.read_schema(previous).metadata)], YIELDS)
                self.database.insert("yields_before", before)
            if not self.artifacts.exists(key := withheld_key(self.collection, partition)):
                continue
            with self.artifacts.reading(key) as path:
                self.database.execute(
                    "INSERT INTO earlier SELECT $partition, document_id, $accepted, "
                    "NOT $accepted AND reason NOT IN (SELECT unnest($passing)) "
                    "FROM read_parquet($path)",
                    passing=[*_ENDS_WITH_ITS_CAUSE],
                    partition=partition,
                    accepted=accepted_in(path),
                    path=str(path),
                )

    def _find_gone(self) -> None:
        """Fills `gone`, and takes what may go out of `known_documents`, so that none counts it."""
        database = self.database
        # Of a document that had moved, only the place where it was seen last.
        database.execute(
            """
            CREATE OR REPLACE TABLE gone AS
            SELECT *,
                   version IN (SELECT version FROM records UNION ALL SELECT version FROM elsewhere)
                   AS renamed
            FROM known_documents k
            WHERE NOT EXISTS (SELECT 1 FROM records r WHERE r.id = k.id)
              AND NOT EXISTS (SELECT 1 FROM elsewhere e WHERE e.id = k.id)
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY read_at DESC, partition DESC) = 1
            """
        )
        if self.accept:
            database.execute("DELETE FROM gone")
        else:
            for table in ("gone", "known_documents"):
                database.execute(
                    f"DELETE FROM {table} WHERE (partition, id) IN "
                    "(SELECT (partition, document_id) FROM earlier WHERE accepted)"
                )

    def _find_unreadable_files(self, broken_files: Sequence[str]) -> None:
        database, settings = self.database, self.settings
        database.create("scopes", _SCOPES)
        database.execute(
            """
            INSERT INTO scopes
            WITH last AS (
                SELECT file, max_by(reason, line) AS reason, max(line) AS line FROM (
                    SELECT file, line, reason FROM refusals
                    UNION ALL SELECT file, line, NULL FROM records
                    UNION ALL SELECT file, line, NULL FROM elsewhere
                ) GROUP BY file
            ), cut AS (
                SELECT DISTINCT file FROM gone JOIN last USING (file)
                WHERE last.reason IN (SELECT unnest($half)) AND gone.line >= last.line
            )
            SELECT 'unfinished', file, count(g.id), count(*)
            FROM known_documents k LEFT JOIN gone g USING (partition, id, file)
            WHERE file IN (SELECT unnest($broken::VARCHAR[]) UNION FROM cut) GROUP BY file
            """,
            half=[*_HALF_A_RECORD],
            broken=[*broken_files],
        )
        database.execute(
            """
            INSERT INTO scopes SELECT 'refused', file, refused, refused + coalesce(read, 0)
            FROM (SELECT file, count(*) AS refused FROM refusals
                  WHERE reason NOT IN (SELECT unnest($sound)) GROUP BY file)
            LEFT JOIN (SELECT file, count(*) AS read FROM (
                  SELECT file FROM records UNION ALL SELECT file FROM elsewhere) GROUP BY file)
              USING (file)
            JOIN (SELECT file, count(*) AS lost FROM gone GROUP BY file) USING (file)
            LEFT JOIN (SELECT name AS file, max(documents) AS before
                  FROM yields_before GROUP BY name) USING (file)
            WHERE greatest(lost, before) > 1 AND refused > $share * (refused + coalesce(read, 0))
            """,
            sound=SOUND_RECORDS,
            share=settings.max_refused_share,
        )

    def _find_empty_files(self, there: Collection[str]) -> None:
        """Whoever removes all documents of a file seldom leaves an empty one."""
        if self.settings.max_refused_share >= 1:
            return
        rows = self.database.rows(
            """
            SELECT 'empty', file, count(g.id), count(*)
            FROM known_documents k LEFT JOIN gone g USING (partition, id, file)
            WHERE file NOT IN (SELECT file FROM records UNION ALL SELECT file FROM elsewhere
                               UNION ALL SELECT file FROM refusals)
            GROUP BY file
            HAVING count(g.id) > 1
                OR count(g.id) = 1 AND file IN (SELECT name FROM yields_before WHERE documents > 1)
            """
        )
        empty = [row for row in rows if row[1] in there]
        self.database.insert("scopes", to_arrow(empty, _SCOPES))

    def _find_scopes_that_lose_much(self) -> None:
        """Files, partitions, and the run as a whole.

        A run over one partition of many sees little of a file: so what the whole file held when
        the partition was read last is compared too.
        """
        for scope, name in (("file", "file"), ("partition", "partition"), ("all", "''")):
            self.database.execute(
                f"""
                INSERT INTO scopes
                SELECT '{scope}', name, if(many, gone, before - now), if(many, known, before)
                FROM (
                    SELECT {name} AS name, count(*) AS known, count(g.id) AS gone
                    FROM known_documents k
                    LEFT JOIN (FROM gone WHERE NOT renamed) g USING (partition, id, file)
                    GROUP BY name
                ) LEFT JOIN (
                    SELECT b.name, max(b.documents) AS before,
                           coalesce(any_value(y.documents), 0) AS now
                    FROM yields_before b LEFT JOIN yields y USING (name)
                    WHERE '{scope}' <> 'partition' GROUP BY b.name
                ) USING (name), LATERAL (SELECT gone > $documents AS many)
                WHERE gone > $share * known
                  AND (many OR before - now > greatest($documents, $share * before))
                """,
                documents=self.settings.max_documents,
                share=self.settings.max_share,
            )

    def _let_go_what_moved(self, elsewhere: Callable[[list[str]], Sequence[str]]) -> None:
        """Of files with dates a run sees only some: others may have the document since."""
        files = self.database.rows("SELECT DISTINCT file FROM withheld")
        if not files:
            return
        for partition in elsewhere([file for (file,) in files]):
            key = documents_key(self.collection, partition)
            if not self.artifacts.exists(key):
                continue
            with self.artifacts.reading(key) as path:
                self.database.execute(
                    "DELETE FROM withheld WHERE EXISTS (SELECT 1 FROM read_parquet($path) other "
                    "WHERE other.id = withheld.id AND other.read_at > withheld.read_at)",
                    path=str(path),
                )

    def _told(self) -> WithheldDeletions:
        by_partition = self.database.rows(
            "SELECT partition, count(*) FROM withheld GROUP BY ALL ORDER BY partition"
        )
        if not by_partition:
            return WithheldDeletions()
        by_file = self.database.rows(
            "SELECT file, count(*) FROM withheld GROUP BY ALL ORDER BY count(*) DESC, file"
        )
        reasons = self.database.rows(
            """
            SELECT why, coalesce(name, file), coalesce(part, count(*)), whole
            FROM withheld w LEFT JOIN scopes s ON s.scope = w.why
              AND s.name = CASE w.why WHEN 'partition' THEN w.partition WHEN 'all' THEN ''
                                      ELSE w.file END
            GROUP BY why, coalesce(name, file), part, whole ORDER BY count(*) DESC, 1, 2
            """
        )
        partitions = dict(by_partition)
        told = _sentence(self.collection, partitions, reasons)
        return WithheldDeletions(partitions, dict(by_file), told)


def _sentence(
    collection: str,
    partitions: Mapping[str, int],
    reasons: Sequence[tuple[str, str, int, int | None]],
) -> str:
    told = [
        _REASONS[why].format(name=name, part=part, whole=whole)
        + (f" ({part / whole:.0%})" if whole else "")
        for why, name, part, whole in reasons[:EXAMPLES]
    ]
    more = f"; and so on for {len(reasons) - EXAMPLES:,} more" if len(reasons) > EXAMPLES else ""
    one = sum(partitions.values()) == 1
    return (
        f"{sum(partitions.values()):,} document{' is' if one else 's are'} not in the source "
        f"any more, and {'its deletion is' if one else 'their deletions are'} withheld: "
        f"{'; '.join(told)}{more}. If the source is wrong, mend it and run again. If it is "
        f"right, agree: {how_to_agree(collection, partitions)}."
    )


def yields_of(metadata: Mapping[bytes, bytes] | None) -> Iterator[tuple[str, int]]:
    """How many documents each file held when these documents were read, as far as remembered."""
    written = (metadata or {}).get(SOURCE_YIELDS.encode(), b"{}")
    yield from orjson.loads(written).items()
