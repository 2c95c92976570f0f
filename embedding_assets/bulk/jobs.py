"""Bulk jobs: files of texts whose vectors somebody fetches later. What is known of one is in files.

A queue may lose a message or deliver it twice; the files say what is done, so that neither loses
anything, and whoever works on a job goes on where it stands:

    ID/job.json                  what was asked for
    ID/input                     the file that was sent
    ID/read.json                 it was read: how many records each part has
    ID/texts/00000.parquet       the records of a part
    ID/begun/00000/0             a worker has begun with it, for the first time
    ID/vectors/00000.parquet     what became of it
    ID/result                    all parts together
    ID/done.json, failed.json, cancelled.json    how it ended
"""

import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Literal, TypeVar

from pydantic import BaseModel

from embedding_assets.collection.environment import Environment
from resources.artifact_stores.base import ArtifactStore
from resources.artifact_stores.from_url import artifact_store_from_url
from resources.document_sources.formats.registry import FileFormat
from resources.embedders.base import Role
from resources.errors import InvalidInputError

_ID = re.compile(r"[0-9a-f]{32}")
_ENDINGS = ("done", "failed", "cancelled")
ResultFormat = Literal["parquet", "jsonl"]
_Record = TypeVar("_Record", bound=BaseModel)


class Job(BaseModel):
    """What was asked for.

    Attributes:
        id: 32 hexadecimal digits.
        owner: id of the API key that it belongs to; None: there were no keys.
        collection: embeds as this one does.
        space: id of the embedding space that its model had then.
        role: of the texts.
        url: what is read; None: the file that was sent.
        format: of the file; None: told by its ending.
        id_field: of each record; one without it gets the number of its line.
        text_field: of each record.
        result: how the result is written.
        max_bytes: of all files that a URL names.
        created_at: aware, UTC.
    """

    id: str
    owner: str | None
    collection: str
    space: str
    role: Role
    url: str | None
    format: FileFormat | None
    id_field: str
    text_field: str
    result: ResultFormat
    max_bytes: int
    created_at: datetime


class Ending(BaseModel):
    """How a job ended.

    Attributes:
        message: why it failed.
        failed: records that have no vector.
        cached: records whose vector was there before.
        bytes: of the result.
    """

    message: str | None = None
    failed: int = 0
    cached: int = 0
    bytes: int = 0


class _Reading(BaseModel):
    records: list[int]


State = Literal["waiting", "embedding", "done", "failed", "cancelled"]


class Standing(BaseModel):
    """How far a job is.

    Attributes:
        state: waiting until its file has been read; then embedding, until it has ended.
        records: of its file; None: not known yet.
        embedded: records of which is known what became of them.
        ending: if it has ended.
    """

    state: State
    records: int | None = None
    embedded: int = 0
    ending: Ending | None = None


def new_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(16)


class Jobs:
    """All jobs, in a folder or on an object storage."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store

    def create(self, job: Job) -> None:
        """Records a job whose file is there, if it has one."""
        self._write(job.id, "job.json", job)

    def find(self, job_id: str) -> Job | None:
        """A job; None if there is none with this id."""
        if not _ID.fullmatch(job_id):
            return None
        try:
            return self._read(job_id, "job.json", Job)
        except FileNotFoundError:
            return None

    def ids(self) -> list[str]:
        """Of all jobs; what it costs grows with all of their files."""
        keys = self.store.list_keys("", "/job.json")
        return [key.partition("/")[0] for key in keys]

    def standing(self, job_id: str) -> Standing:
        """How far a job is; what it costs grows with the number of its parts."""
        try:
            return self._standing(job_id)
        except FileNotFoundError:  # it was removed, or goes on, since its files were listed
            return self._standing(job_id)

    def _standing(self, job_id: str) -> Standing:
        names = self._names(job_id)
        reading = _Reading(records=[])
        if "read.json" in names:
            reading = self._read(job_id, "read.json", _Reading)
        done = sum(
            records
            for part, records in enumerate(reading.records)
            if f"vectors/{part:05}.parquet" in names
        )
        records = sum(reading.records) if "read.json" in names else None
        for state in _ENDINGS:
            if f"{state}.json" in names:
                ending = self._read(job_id, f"{state}.json", Ending)
                done = records if state == "done" and records is not None else done
                return Standing(state=state, records=records, embedded=done, ending=ending)
        return Standing(
            state="waiting" if records is None else "embedding", records=records, embedded=done
        )

    def has_ended(self, job_id: str) -> bool:
        """Whether it is done, failed, cancelled or gone."""
        names = self._names(job_id)
        return "job.json" not in names or any(f"{state}.json" in names for state in _ENDINGS)

    def end(self, job_id: str, state: Literal["done", "failed", "cancelled"], how: Ending) -> None:
        """Records how a job ended; what it needed to get there is removed, unless it may go on."""
        self._write(job_id, f"{state}.json", how)
        if state == "done":
            self._remove(job_id, ("input", "texts/", "vectors/", "begun/"))

    def cancel(self, job_id: str) -> None:
        """Ends a job; a worker that has begun with a part of it finishes that."""
        self.end(job_id, "cancelled", Ending())

    def reopen(self, job_id: str) -> None:
        """Lets a job that failed or was cancelled go on."""
        self._remove(job_id, ("begun/",))  # first: else a part might count as tried too often
        self._remove(job_id, ("failed.json", "cancelled.json"))

    def remove(self, job_id: str) -> None:
        """Removes all of a job; its record goes last, so that what is left is found again."""
        self._remove(job_id, ("",))

    def sweep(self, job_id: str) -> None:
        """Removes what was still written for a job after it was removed: nobody finds it else."""
        if not self.store.exists(f"{job_id}/job.json"):
            self.remove(job_id)

    def unfinished(self) -> list[str]:
        """Ids of the jobs that somebody should be working on."""
        return [job_id for job_id in self.ids() if not self.has_ended(job_id)]

    def remove_older_than(self, days: float) -> int:
        """Removes jobs that were asked for so long ago; returns how many."""
        oldest, removed = datetime.now(timezone.utc) - timedelta(days=days), 0
        for job_id in self.ids():
            job = self.find(job_id)
            if job is not None and job.created_at < oldest:
                self.remove(job_id)
                removed += 1
        return removed

    # --- Parts ------------------------------------------------------------------------------------

    def was_read(self, job_id: str) -> bool:
        """Whether all parts are there."""
        return self.store.exists(f"{job_id}/read.json")

    def note_read(self, job_id: str, records: Sequence[int]) -> None:
        """All parts are there; `records`: of each of them."""
        self._write(job_id, "read.json", _Reading(records=list(records)))

    def parts(self, job_id: str) -> range:
        """The numbers of its parts."""
        return range(len(self._read(job_id, "read.json", _Reading).records))

    def missing_parts(self, job_id: str) -> list[int]:
        """The numbers of the parts that nobody has finished."""
        names = self._names(job_id)
        return [n for n in self.parts(job_id) if f"vectors/{n:05}.parquet" not in names]

    def begin_part(self, job_id: str, part: int) -> int:
        """Notes that somebody begins with a part; returns how often that was so before."""
        begun = len(self.store.list_keys(f"{job_id}/begun/{part:05}/"))
        with self.store.writing(f"{job_id}/begun/{part:05}/{begun}") as path:
            path.write_bytes(b"")
        return begun

    def forget_beginning(self, job_id: str, part: int, begun: int) -> None:
        """Whoever began with a part, as the `begun` before it had, has given up in good order."""
        self.store.remove(f"{job_id}/begun/{part:05}/{begun}")

    # ----------------------------------------------------------------------------------------------

    def _names(self, job_id: str) -> set[str]:
        return {key.removeprefix(f"{job_id}/") for key in self.store.list_keys(f"{job_id}/")}

    def _read(self, job_id: str, name: str, kind: type[_Record]) -> _Record:
        with self.store.reading(f"{job_id}/{name}") as path:
            return kind.model_validate_json(path.read_bytes())

    def _write(self, job_id: str, name: str, record: BaseModel) -> None:
        with self.store.writing(f"{job_id}/{name}") as path:
            path.write_text(record.model_dump_json(), encoding="utf-8")

    def _remove(self, job_id: str, beginnings: Iterable[str]) -> None:
        last = f"{job_id}/job.json"
        keys = [key for key in self.store.list_keys(f"{job_id}/") if key != last]
        if "" in beginnings:
            keys.append(last)
        for key in keys:
            if key.removeprefix(f"{job_id}/").startswith(tuple(beginnings)):
                self.store.remove(key)


def jobs_of(environment: Environment) -> Jobs:
    """Where the project's jobs are.

    Raises:
        InvalidInputError: the environment's URL names no folder.
    """
    try:
        url = environment.jobs or str(environment.data_dir / "jobs")
        return Jobs(artifact_store_from_url(url))
    except InvalidInputError as error:
        raise InvalidInputError(f"EMBEDDING_JOBS: {error}") from None
