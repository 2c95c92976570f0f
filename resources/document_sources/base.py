"""Where documents come from, and what a record becomes: a document, or a refusal that says why."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum

import dagster as dg
from pydantic import ConfigDict, Field

from resources.document_sources.timestamps import TimestampUnit
from resources.errors import EmbeddingAssetsError

MAX_ID_LENGTH = 1024
"""Longest document id, in characters."""
MAX_DETAIL_LENGTH = 200
"""Longest detail of a refusal, in characters."""


class SourceNotFoundError(EmbeddingAssetsError, FileNotFoundError):
    """The source holds no file at all, as when its storage is not mounted."""


class RefusalReason(str, Enum):
    """Why a record, or a whole file, did not become a document."""

    malformed_line = "malformed_line"
    """The record is not what its format demands: JSON syntax, number of CSV columns."""
    invalid_utf8 = "invalid_utf8"
    """Bytes that are no characters in UTF-8, or in the encoding that the source declares."""
    lone_surrogate = "lone_surrogate"
    """Half of a UTF-16 surrogate pair: a string that no UTF-8 file can hold."""
    empty_text = "empty_text"
    """No text, text that is not a string, or nothing but white space."""
    unsafe_text = "unsafe_text"
    """More combining marks in a row than any script uses; normalising them would take hours."""
    nul_character = "nul_character"
    """A NUL in id, title or text: binary data, or an encoding that nobody declared."""
    no_id = "no_id"
    no_timestamp = "no_timestamp"
    bad_metadata = "bad_metadata"
    """A field that JSON cannot express: nested too deep, an integer beyond 64 bits."""
    too_large = "too_large"
    broken_file = "broken_file"
    """The file cannot be read (any further): more of its records may exist than were seen."""
    linked_folder = "linked_folder"
    """A link to a folder: it is not followed, for it may lead in a circle."""
    unknown_format = "unknown_format"
    """The file's ending does not tell its format."""
    duplicate_id = "duplicate_id"
    outside_partitions = "outside_partitions"
    outside_file_period = "outside_file_period"
    """Its time is not the one that the file's name tells: runs of its partition do not read it."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document, in canonical form.

    Attributes:
        id: unique within the collection; canonical, at most `MAX_ID_LENGTH` characters.
        title: canonical; "" if there is none.
        text: canonical, never empty.
        timestamp: aware, in UTC; None only if the source declares no timestamp field.
        metadata: every other field of the record, as JSON with sorted keys; "{}" if none.
        file: path of the file, relative to the root of its source, "/" between folders.
        line: where the record begins: line (from 1) in text formats, row (from 1) in Parquet.
    """

    id: str
    title: str
    text: str
    timestamp: datetime | None
    metadata: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record, or the unread rest of a file, that did not become a document.

    Attributes:
        reason: code to count and to filter by.
        document_id: the record's id where it could be read.
        file: as in `Document`.
        line: as in `Document`; None if the refusal concerns a whole file.
        detail: for a person; at most `MAX_DETAIL_LENGTH` characters, always valid UTF-8.
    """

    reason: RefusalReason
    document_id: str | None
    file: str
    line: int | None
    detail: str


class FieldNames(dg.Config):
    """How a source's records name the parts of a document. All other fields become metadata."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(
        default="id",
        description=(
            "Field with the document's id, unique in the collection: a non-empty string of at most "
            "1024 characters, an integer, a decimal, a UUID, a date or a time. A dot leads into a "
            "nested field, as in `meta.uuid`; so it does for title, text and timestamp. Not used "
            "for text and Markdown files, whose id is their path."
        ),
    )
    title: str = Field(
        default="title",
        description=(
            "Field with the title; it may be missing. In Markdown a key of the front matter, "
            "before the first heading and the file's name."
        ),
    )
    text: str = Field(
        default="text", description="Field with the text. Not used for text and Markdown files."
    )
    timestamp: str | None = Field(
        default=None,
        description=(
            "Field with the document's time, by which it is partitioned: ISO 8601 (without an "
            "offset it is taken as UTC), a date or timestamp type, a date of 4, 6, 8, 14 or 17 "
            "digits, or a number since 1970. In Markdown a key of the front "
            "matter; for text and Markdown 'modified' is the file's modification time. "
            "Empty: documents carry no time."
        ),
    )
    timestamp_unit: TimestampUnit | None = Field(
        default=None,
        description=(
            "Unit of a timestamp that is a number since 1970: s, ms, us or ns. Empty: told by the "
            "number's size, and what may be read in two ways, such as 86400, is refused."
        ),
    )


class RefusedRecord(Exception):
    """Raised inside a reader; becomes a `Refusal` with the position known there."""

    def __init__(self, reason: RefusalReason, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def at(self, file: str, line: int | None, document_id: str | None = None) -> Refusal:
        return Refusal(self.reason, document_id, file, line, bounded(self.detail))


def bounded(text: str, length: int = MAX_DETAIL_LENGTH) -> str:
    """A printable excerpt of at most `length` characters that UTF-8 can encode."""
    # Cut first: the text may have megabytes.
    text = text[: length + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"


def excerpt(data: bytes) -> str:
    """The first 80 bytes of a line, for a refusal's detail."""
    return data[:80].decode("utf-8", "backslashreplace")


LINKED_FOLDER = "a link to a folder, which is not followed: name the folder in a source of its own"
"""The problem of a file that is none, and will not be one either."""
CTIME = "ctime "
"""Begins the etag of a file on a local disk: the time of its last status change follows."""
Period = tuple[datetime, datetime]
"""Half-open: from the first instant up to, and without, the second. Naive ones are UTC."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as the storage lists it; nothing of it has been read.

    Attributes:
        path: relative to the source's root, "/" between folders, always valid UTF-8.
        location: what the file system opens.
        size: bytes, as stored; None if the storage does not say.
        modified: aware; None if the storage does not say.
        etag: the storage's own mark that differs after every write, if it has one. Of a local file
            its ctime, which nobody can set: archivers and rsync restore the mtime.
        problem: why it cannot be read although it is there, such as a named pipe.
    """

    path: str
    location: str
    size: int | None
    modified: datetime | None
    etag: str | None
    problem: str | None = None

    @property
    def status_changed(self) -> datetime | None:
        """The ctime of a local file; None elsewhere."""
        if self.etag is None or not self.etag.startswith(CTIME):
            return None
        return datetime.fromtimestamp(float(self.etag.removeprefix(CTIME)), timezone.utc)


class DocumentSource(dg.ConfigurableResource, ABC):
    """Streams a collection's documents from wherever they are kept."""

    @property
    @abstractmethod
    def kinds(self) -> set[str]:
        """What the documents are kept in, as Dagster calls it: csv, parquet, s3."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The URI of what holds them, which people see: without a secret."""

    @abstractmethod
    def read(self, periods: Sequence[Period] | None = None) -> Iterator[Document | Refusal]:
        """Streams every record as a document or a refusal, always in the same order.

        Args:
            periods: half-open spans of UTC time. A hint that saves reading: a source that knows
                from names alone that a file holds other times leaves it out; documents of other
                times may still come. None: everything.

        Raises:
            SourceNotFoundError: the source is not there, or wholly empty. Raised by the call
                itself, before the first document is asked for.
        """

    @abstractmethod
    def files(self, periods: Sequence[Period] | None = None) -> list[SourceFile]:
        """Lists what `read` would read, sorted by path, without opening any of it.

        Raises:
            SourceNotFoundError: as in `read`.
        """

    @abstractmethod
    def read_file(self, file: SourceFile) -> Iterator[Document | Refusal]:
        """Streams the records of one file that `files` listed, as `read` would."""

    def bytes_read(self) -> int:
        """How far `read` is in the file of its last record, in bytes as stored; 0: not known."""
        return 0

    @abstractmethod
    def period_of(self, file: str) -> Period | None:
        """The only period whose runs read a file, by its path; None: every run reads it."""
