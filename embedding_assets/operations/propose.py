"""Proposes a collection for data that nobody has described yet, from the beginning of them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import yaml

from embedding_assets.collection.partitions import partition_for, partitions_definition
from embedding_assets.collection.settings import (
    FIRST_YEAR,
    CollectionSettings,
    PartitionSettings,
)
from embedding_assets.operations.guess_fields import Column, GuessedFields, columns_of, guess_fields
from resources.document_sources import Document, FileDocumentSource, FileFormat, Refusal
from resources.document_sources.base import RefusalReason, SourceFile
from resources.document_sources.dated_paths import check_source_path, fixed_folder, sparing_names
from resources.document_sources.formats.registry import format_of
from resources.document_sources.formats.sniff import guess_encoding, json_array, sniff_format
from resources.document_sources.sample import (
    ONE_A_FILE,
    Sample,
    head,
    list_some,
    read_documents,
    read_records,
)
from resources.errors import InvalidInputError

_MOST_OF_A_PERIOD = {"year": 10_000, "month": 50_000}
"""Documents; with more of them the next finer period is proposed. Each partition of a run costs
Dagster a tenth of a second, so that too many of them are worse than large ones."""
_MOST_PARTITIONS = {"year": 300, "month": 1_200, "day": 8_000}
_BUCKETS = ((1_000, 4), (20_000, 16), (200_000, 64))
_MOST_BUCKETS = 256
_AT_LEAST = 10
"""How many times more documents are expected than the files that were listed hold."""
_NON_ASCII = 0.2
_GZIP = ".gz"
_MOST_NAMES = 12

_YAML = """\
type: embedding_assets.EmbeddingCollection
attributes:
  name: {name}
  source:
{source}
  partitions: {partitions}
  # The most useful of the other settings; all of them, with their defaults: docs/settings.md.
  # chunking: {{max_tokens: 256, context: title}}
  # embedder: {{model: sentence-transformers/all-MiniLM-L6-v2}}
  # automation: {{running: true}}      # look for changed files, and run by itself
"""


@dataclass(frozen=True)
class RefusedReason:
    """Records of a sample that would be refused, with an example."""

    reason: str
    records: int
    example: str


@dataclass
class Proposal:
    """A collection as it could be.

    Attributes:
        name: of the collection.
        yaml: its file.
        settings: the same, read.
        sample: the documents and refusals that the first records become.
        columns: the fields of the records.
        refused: what would be refused of the sample, by reason.
        notes: what somebody should know who agrees.
        are_all_listed: whether all files are known; else there are more documents than
            `sample.documents`.
    """

    name: str
    yaml: str
    settings: CollectionSettings
    sample: Sample
    columns: list[Column]
    refused: list[RefusedReason]
    notes: list[str]
    are_all_listed: bool

    @property
    def example(self) -> Document | None:
        """A document as it would be stored."""
        documents = [one for one in self.sample.found if isinstance(one, Document)]
        return next((one for one in documents if one.title), next(iter(documents), None))


@dataclass
class _Source:
    """What is known so far of where the documents are, and how they are written."""

    path: str
    files: list[SourceFile]
    format: FileFormat | None = None
    encoding: str | None = None
    notes: list[str] = field(default_factory=list)
    are_all_listed: bool = True

    def build(self, fields: Mapping[str, str]) -> FileDocumentSource:
        settings: dict[str, Any] = {"path": self.path, "format": self.format}
        return FileDocumentSource(**settings, encoding=self.encoding, fields=dict(fields))

    @property
    def one_a_file(self) -> bool:
        return all((self.format or format_of(file.path)) in ONE_A_FILE for file in self.files)


def propose(path: str, project: Path, name: str | None = None) -> Proposal:
    """Looks at the beginning of some data, and proposes the YAML of a collection of them.

    Args:
        path: file, folder, glob or URL; a relative one starts at the working directory.
        project: the folder of the Dagster project.
        name: of the collection; None: from the path.

    Raises:
        InvalidInputError: nothing there can be read as documents; it says what is possible.
        SourceNotFoundError: there is no file.
    """
    check_source_path(path)
    local = "://" not in path
    absolute = sparing_names(str(Path(path).expanduser().absolute())) if local else path
    source = _found(absolute)
    sample = _read(source)
    records = [record for those in sample.records.values() for record in those]
    if not records:
        raise InvalidInputError(_nothing_read(source, sample))
    guessed = guess_fields(sample.records, one_a_file=source.one_a_file)
    columns = columns_of(records)
    if not source.one_a_file:
        _check_fields(guessed, columns, source)
    name = name or _name(path)
    number = sample.documents * (1 if source.are_all_listed else _AT_LEAST)
    partitions = _partitions(guessed.times, number)
    written = _written(name, _in_project(source.path, project, local), source, guessed, partitions)
    settings = CollectionSettings.model_validate(yaml.safe_load(written)["attributes"])
    documents = read_documents(source.build(guessed.names), source.files)
    documents.documents, documents.is_whole = sample.documents, sample.is_whole
    notes = [*source.notes, *guessed.notes, *_notes(documents, guessed, settings)]
    refused = refused_records(documents, settings.partitions)
    listed = source.are_all_listed
    return Proposal(name, written, settings, documents, columns, refused, notes, listed)


def _found(path: str) -> _Source:
    """The files of a source, of one kind of format; those of others are left out, and named."""
    files, are_all = list_some(path if "://" in path else sparing_names(path))
    source = _Source(path, [file for file in files if file.problem is None])
    source.are_all_listed = are_all
    if not are_all:
        source.notes.append(f"There are more files than the {len(files):,} that were looked at.")
    kinds: dict[FileFormat | str, list[SourceFile]] = {}
    for file in source.files:
        known = format_of(file.path)
        kinds.setdefault("one a file" if known in ONE_A_FILE else known or "", []).append(file)
    unknown = kinds.pop("", [])
    if not source.files:
        raise InvalidInputError(f"{files[0].path}: {files[0].problem}")
    if not kinds:
        largest = max(unknown, key=_size)
        source.format = sniff_format(head(path, largest), largest.location)
        return source
    chosen = max(kinds.values(), key=lambda those: sum(map(_size, those)))
    if len(chosen) < len(source.files):
        _narrow(source, chosen)
    return source


def _narrow(source: _Source, chosen: Sequence[SourceFile]) -> None:
    """Lets a folder's path name the chosen files alone, as far as one glob can."""
    ending, _ = Counter(map(_ending, chosen)).most_common(1)[0]
    bare = ending.removesuffix(_GZIP)
    kept = [file for file in source.files if _ending(file).removesuffix(_GZIP) == bare]
    alike = all(file.path.endswith(ending) for file in kept)
    others = Counter(_ending(file) or "no ending" for file in source.files if file not in kept)
    named = ", ".join(f"{ending} ({number:,})" for ending, number in others.most_common())
    source.notes.append(f"Left out are files of other endings: {named}.")
    source.files = kept
    if not any(sign in source.path for sign in "*?["):
        source.path = f"{source.path.rstrip('/')}/**/*{ending if alike else bare + '*'}"


def _ending(file: SourceFile) -> str:
    name = Path(file.path.rpartition("/")[2])
    return Path(name.stem).suffix + name.suffix if name.suffix == _GZIP else name.suffix


def _size(file: SourceFile) -> int:
    return file.size or 0


def _read(source: _Source) -> Sample:
    """The raw records; if they are not UTF-8, in the likeliest other encoding."""
    sample = read_records(source.build({}), source.files)
    damaged = [one for one in sample.refusals if one.reason == RefusalReason.invalid_utf8]
    records = [record for those in sample.records.values() for record in those]
    if not damaged or not all(str(record).isascii() for record in records):
        return sample
    file = next(file for file in source.files if file.path == damaged[0].file)
    source.encoding = guess_encoding(head(source.path, file))
    if source.encoding is None:
        return sample
    source.notes.append(
        f"The files are not UTF-8; {source.encoding} reads them. See in the example whether every "
        "letter is right; if not, name another one in source.encoding."
    )
    return read_records(source.build({}), source.files)


def _nothing_read(source: _Source, sample: Sample) -> str:
    file = source.files[0]
    begun = head(source.path, file)
    if not begun.strip():
        return f"{file.location} is empty: there is nothing to look at."
    if begun.lstrip().startswith(b"["):
        return json_array(file.location)
    why = "; ".join(dict.fromkeys(f"{one.file}: {one.detail}" for one in sample.refusals[:3]))
    return f"No record can be read. {why or 'There is none.'}"


def _check_fields(guessed: GuessedFields, columns: Sequence[Column], source: _Source) -> None:
    fields = ", ".join(column.path for column in columns[:_MOST_NAMES])
    if len(columns) > _MOST_NAMES:
        fields += f" and {len(columns) - _MOST_NAMES} more"
    first = source.files[0].location
    if "text" not in guessed.names:
        raise InvalidInputError(
            f"No field of {first} holds text that could be embedded; its fields are {fields}. A "
            "document's text is a string: if it is there in parts, write them into one field."
        )
    if "id" not in guessed.names:
        copied = f"COPY (SELECT md5(t::VARCHAR) AS id, * FROM '{first}' t) TO 'with_ids.parquet' "
        raise InvalidInputError(
            f"No field of {first} can be the id of a document: none of {fields} differs in each "
            "record. By its id a record is known again when its text has changed. Either add a "
            "field with a key of your own; or take the hash of a record as its id, in a copy (a "
            "changed record is then a new document):\n"
            f"  python -c \"import duckdb; duckdb.sql('''{copied}''')\"\n"
            "  embedding-assets new with_ids.parquet"
        )


def _name(path: str) -> str:
    """A collection's name from the last part of a path that says something."""
    address = path.partition("://")[2] or str(Path(path).expanduser().absolute())
    if any(sign in address for sign in "*?[%"):
        address = fixed_folder(address) or address
    stem = address.rstrip("/").rpartition("/")[2].split(".")[0]
    name = re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_").lower()
    return name if name[:1].isalpha() else f"docs_{name}".rstrip("_")


def _in_project(path: str, project: Path, local: bool) -> str:
    """A path as the YAML says it: relative to the project, if it lies in there."""
    if local and Path(path).is_relative_to(project):
        return str(Path(path).relative_to(project))
    return path


def _partitions(seen: Sequence[datetime], number: int) -> str:
    """Periods of which each holds a sensible number of documents; without times, buckets."""
    now = datetime.now(timezone.utc)
    if not seen or min(seen) > now:
        count = next((count for most, count in _BUCKETS if number <= most), _MOST_BUCKETS)
        return f"{{by: bucket, count: {count}}}"
    times = sorted(seen)
    first, last = times[0], min(times[-1], now)
    oldest = now - timedelta(days=365 * _MOST_PARTITIONS["year"])
    if first < oldest:  # for most archives no time, but what stands for one that is not known
        first = next((time for time in times if time >= oldest), first)
    days = max(1, (last - first).days)
    until_now = max(1, (now - first).days)
    by = "year"
    for coarse, finer, length in (("year", "month", 30), ("month", "day", 1)):
        documents = number / max(1, days / {"year": 365, "month": 30}[coarse])
        if documents > _MOST_OF_A_PERIOD[coarse] and until_now / length <= _MOST_PARTITIONS[finer]:
            by = finer
    start = date(max(first.year, FIRST_YEAR), 1 if by == "year" else first.month, 1)
    return f'{{by: {by}, start: "{start}"}}'


def _written(
    name: str,
    path: str,
    source: _Source,
    guessed: GuessedFields,
    partitions: str,
) -> str:
    lines = [f"path: {_flow(path)}"]
    if source.format is not None:
        lines.append(f"format: {source.format.value}")
    if source.encoding is not None:
        lines.append(f"encoding: {source.encoding}")
    if guessed.names:
        lines.append(f"fields: {_flow(guessed.names)}")
    return _YAML.format(
        name=name,
        source="\n".join(f"    {line}" for line in lines),
        partitions=partitions,
    )


def _flow(value: Any) -> str:
    """YAML in one line."""
    written = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000
    )
    return written.removesuffix("\n").removesuffix("\n...")


def _notes(sample: Sample, guessed: GuessedFields, settings: CollectionSettings) -> list[str]:
    notes = []
    if guessed.times and not sample.is_whole:
        notes.append(
            f"The earliest of the times seen is {min(guessed.times):%Y-%m-%d}. If there are "
            "earlier ones further on, let partitions.start begin before them."
        )
    documents = [one for one in sample.found if isinstance(one, Document)]
    files = Counter(id_ for id_, _ in {(one.id, one.file) for one in documents})
    if again := sum(number > 1 for number in files.values()):
        notes.append(
            f"{again:,} of {len(files):,} ids come in several files. Of each the newest record is "
            "kept, by its time; the others are refused as duplicate_id."
        )
    text = "".join(document.text[:1_000] for document in documents[:100])
    if sum(not sign.isascii() for sign in text) > _NON_ASCII * len(text):
        notes.append(
            f"Much of the text is not English, which {settings.embedder.model} was made for: a "
            "multilingual model, such as intfloat/multilingual-e5-small, finds more in it."
        )
    return notes


def refused_records(sample: Sample, partitions: PartitionSettings) -> list[RefusedReason]:
    """What would be refused, by reason, the commonest first; those ids too that come twice."""
    found: dict[str, list[str]] = {}
    known = {*partitions_definition(partitions).get_partition_keys()}
    home = partition_for(partitions)
    ids: set[tuple[str, str]] = set()
    for one in sample.found:
        where = f"{one.file}:{one.line}" if one.line else one.file
        if isinstance(one, Refusal):
            found.setdefault(one.reason.value, []).append(f"{where}: {one.detail}")
        elif home(one.id, one.timestamp) not in known:
            reason = RefusalReason.outside_partitions.value
            found.setdefault(reason, []).append(f"{where}: its time is {one.timestamp}")
        elif (one.file, one.id) in ids:
            reason = RefusalReason.duplicate_id.value
            found.setdefault(reason, []).append(f"{where}: {one.id} is there before")
        else:
            ids.add((one.file, one.id))
    rows = [RefusedReason(reason, len(each), each[0]) for reason, each in found.items()]
    return sorted(rows, key=lambda row: -row.records)
