"""The settings of one collection, as they stand in its YAML file."""

import os
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field, ValidationInfo, field_validator, model_validator

from embedding_assets.collection.base_settings import Settings
from embedding_assets.collection.embedder_settings import (
    AnyEmbedder,
    AnyFallback,
    LocalEmbedderSettings,
)
from resources.document_sources import FileDocumentSource
from resources.document_sources.dated_paths import (
    check_source_path,
    fixed_folder,
    generalise,
    is_there,
    sparing_names,
)
from resources.document_sources.settings import FileSourceSettings

FIRST_YEAR = 1000
"""The earliest that partitions can begin."""


class SourceSettings(FileSourceSettings, Settings):
    """Where the documents are.

    Relative paths start at the folder of the YAML file if what they name is there, else at the
    project.
    """

    read_unchanged_files: bool = Field(
        default=False,
        description="Read a partition's files again even if the storage says that all of them are "
        "as they were: their sizes, their times, and on object stores their ETags. For storages "
        "whose word is not good.",
    )

    def build(self) -> FileDocumentSource:
        """The source of these documents."""
        return FileDocumentSource(**self.model_dump(include=set(FileSourceSettings.model_fields)))


class PartitionSettings(Settings):
    """How a collection is cut into partitions."""

    by: Literal["day", "week", "month", "year", "bucket"] = Field(
        default="bucket",
        description="The period of the document's timestamp; 'bucket' is a hash of its id, for "
        "documents that carry no time.",
    )
    start: str | None = Field(
        default=None, description="First day (YYYY-MM-DD) of the first partition, in UTC."
    )
    count: int = Field(default=16, ge=1, le=10_000, description="Number of buckets.")

    @model_validator(mode="after")
    def _start_is_given_for_time(self) -> "PartitionSettings":
        if self.by != "bucket":
            try:
                first_day = date.fromisoformat(self.start or "")
            except ValueError:
                raise ValueError(
                    f"partitions by {self.by} need 'start', the first day as YYYY-MM-DD, "
                    f'for example start: "2020-01-01"; got {self.start!r}'
                ) from None
            if first_day.year < FIRST_YEAR:
                raise ValueError(
                    f"partitions.start is {self.start}; it must be in the year {FIRST_YEAR} or "
                    "later, for keys of partitions have four digits for it"
                )
            today = datetime.now(timezone.utc).date()
            if period_start(first_day, self.by) > today:
                raise ValueError(
                    f"partitions.start is {self.start}, which is in the future: there would be no "
                    f"partition yet, and today's documents ({today}) would belong to none"
                )
        return self


def period_start(day: date, by: str) -> date:
    """The first day of the period that a day is in; of a week that is Monday."""
    if by == "week":
        return day - timedelta(days=day.weekday())
    if by == "month":
        return day.replace(day=1)
    if by == "year":
        return day.replace(month=1, day=1)
    return day


class ChunkingSettings(Settings):
    """How documents are cut into chunks, and what goes before each."""

    strategy: Literal["structure", "whole"] = Field(
        default="structure",
        description="'structure' cuts along headings, paragraphs, sentences and words; 'whole' "
        "embeds title and text as one, cut at the model's limit.",
    )
    max_tokens: int = Field(
        default=256,
        ge=16,
        description="Maximum number of tokens of one embedded text, context and special tokens "
        "included; never more than the model's own limit.",
    )
    overlap: int = Field(
        default=0, ge=0, description="Maximum number of tokens that neighbours share."
    )
    context: Literal["none", "title", "headings"] = Field(
        default="title",
        description="What is put before the embedded text (not into the chunk's span): nothing, "
        "the document's title, or title and headings above the chunk.",
    )

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> "ChunkingSettings":
        if self.overlap > self.max_tokens // 2:
            raise ValueError(
                f"overlap ({self.overlap}) must be at most half of max_tokens ({self.max_tokens})"
            )
        return self


class EvaluationSettings(Settings):
    """Judged queries, in BEIR layout, with which the index is measured after each run."""

    queries: str = Field(description='JSON Lines file with {"_id": ..., "text": ...} a query.')
    qrels: str = Field(description="TSV file: query id, document id, relevance.")
    min_ndcg_at_10: float = Field(
        default=0.0, ge=0, le=1, description="The check retrieval_quality fails below this."
    )

    @field_validator("queries", "qrels")
    @classmethod
    def _path_is_given(cls, path: str, info: ValidationInfo) -> str:
        if not path.strip():
            raise ValueError(f"evaluation.{info.field_name} must name a file; it is empty")
        return path


class CheckSettings(Settings):
    """When the checks of a run warn or fail."""

    max_refused_records: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the records read above which the check accounting warns that they "
        "were refused; it fails where all are. Duplicates and records of other times do not count.",
    )
    min_chunks_per_second: float = Field(
        default=1.0, ge=0, description="Throughput of embedding under which the check warns."
    )
    min_cache_hit_rate: float = Field(
        default=0.0, ge=0, le=1, description="Cache hit rate under which the check warns."
    )
    max_error_rate: float = Field(
        default=0.01, ge=0, le=1, description="Share of refused texts above which the check fails."
    )
    max_unknown_tokens: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of tokens that the model does not know above which the check warns.",
    )
    max_fallback_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the index in the fallback's space above which the check fails; it "
        "warns above 0.",
    )
    max_throughput_drop: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="The check warns when throughput is lower than the median of the last runs by "
        "more than this share of it, and lower than in each of them. 1 switches it off.",
    )
    max_cache_hit_rate_drop: float = Field(
        default=0.5, ge=0, le=1, description="The same for the hit rate, as a difference."
    )
    max_error_rate_rise: float = Field(
        default=0.01, ge=0, le=1, description="The same for the error rate, when it rises."
    )


class DeletionSettings(Settings):
    """How much may go from the index by itself. What is more is withheld until somebody agrees."""

    max_share: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of the known documents of a file, a partition or a run above which "
        "deletions are withheld, if they are more than max_documents too. 1 withholds nothing.",
    )
    max_documents: int = Field(
        default=10,
        ge=0,
        description="Maximum number of documents that may go from a file, a partition or a run "
        "whatever their share.",
    )
    max_refused_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of refused records above which a file counts as unreadable, as one does "
        "that is empty: its known documents stay, and the check accounting warns. 1 switches both "
        "off.",
    )


class BackfillSettings(Settings):
    """How a backfill is cut into runs."""

    partitions_per_run: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of partitions that one run takes; by default a year of "
        "daily partitions, and of others all (then `dagster asset materialize --partition-range` "
        "works too).",
    )


class SourceSensorSettings(Settings):
    """How often, and how long, the sensor looks for changed files."""

    every_seconds: int = Field(
        default=60, ge=1, description="Minimum seconds between two looks at the source."
    )
    seconds_per_tick: float = Field(
        default=20.0,
        gt=0,
        le=50,
        description="Maximum seconds that a look takes for opening changed files; the others "
        "wait for the next one. A single file that takes longer is taken to touch every "
        "partition. Dagster gives up a sensor after 60 s.",
    )
    max_runs_per_tick: int = Field(
        default=10,
        ge=1,
        description="Maximum number of runs that one look requests; the others wait.",
    )


class ReconcileSensorSettings(Settings):
    """How often, and how long, the sensor compares source, quarantine and index."""

    every_seconds: int = Field(
        default=3600, ge=1, description="Minimum seconds between two comparisons."
    )
    seconds_per_tick: float = Field(
        default=20.0,
        gt=0,
        le=50,
        description="Maximum seconds that a comparison takes for each, files and partitions; the "
        "next one goes on from there.",
    )
    max_runs_per_tick: int = Field(
        default=10, ge=1, description="Maximum number of runs that one comparison requests."
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="Runs after which a partition that stays different is only reported.",
    )


class AutomationSettings(Settings):
    """What starts runs by itself, and when."""

    running: bool = Field(
        default=False,
        description="Whether schedule and sensors run as soon as the project is loaded; "
        "otherwise they are switched on in the UI.",
    )
    hour: int = Field(
        default=2, ge=0, le=23, description="Hour of the schedule's runs, in UTC (0 to 23)."
    )
    freshness_hours: float | None = Field(
        default=None,
        gt=0,
        description="Hours without a materialisation after which an asset counts as stale; by "
        "default the period of the partitions and half a day. Buckets have no default: their "
        "documents may rest for years.",
    )
    source_sensor: SourceSensorSettings = SourceSensorSettings()
    reconcile_sensor: ReconcileSensorSettings = ReconcileSensorSettings()

    @property
    def default_sensor_status(self) -> dg.DefaultSensorStatus:
        return dg.DefaultSensorStatus.RUNNING if self.running else dg.DefaultSensorStatus.STOPPED

    @property
    def default_schedule_status(self) -> dg.DefaultScheduleStatus:
        return (
            dg.DefaultScheduleStatus.RUNNING if self.running else dg.DefaultScheduleStatus.STOPPED
        )


class CollectionSettings(Settings):
    """All that the YAML file of a collection may say."""

    name: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
        description="Asset key prefix and table name: letters, digits and underscores.",
    )
    description: str | None = Field(
        default=None, description="What the collection is, in Markdown; on all its assets."
    )
    owners: list[str] = Field(
        default=[], description="Who answers for it: e-mail addresses, or teams as team:NAME."
    )
    tags: dict[str, str] = Field(
        default={}, description="Labels of all its assets, by which Dagster filters."
    )
    source: SourceSettings
    partitions: PartitionSettings = PartitionSettings()
    chunking: ChunkingSettings = ChunkingSettings()
    embedder: AnyEmbedder = LocalEmbedderSettings()
    fallback: AnyFallback | None = None
    evaluation: EvaluationSettings | None = None
    checks: CheckSettings = CheckSettings()
    deletions: DeletionSettings = DeletionSettings()
    backfill: BackfillSettings = BackfillSettings()
    automation: AutomationSettings = AutomationSettings()

    @field_validator("owners")
    @classmethod
    def _owners_can_be_told_from_each_other(cls, owners: list[str]) -> list[str]:
        for owner in owners:
            try:
                dg.AssetSpec("any", owners=[owner])
            except dg.DagsterInvalidDefinitionError:
                raise ValueError(
                    "each of owners must be an e-mail address, such as ann@example.org, or a team, "
                    f"such as team:search; got {owner!r}"
                ) from None
        return owners

    @field_validator("tags")
    @classmethod
    def _tags_are_labels(cls, tags: dict[str, str]) -> dict[str, str]:
        for name, value in tags.items():
            try:
                dg.AssetSpec("any", tags={name: value})
            except dg.DagsterInvalidDefinitionError:
                raise ValueError(
                    "names and values of tags have at most 63 letters, digits, '_', '-' and '.', "
                    f"and a name may have one more part before a '/'; got {name!r}: {value!r}"
                ) from None
        return tags

    @property
    def partitions_per_run(self) -> int | None:
        """Maximum number of partitions of one run; None: no limit."""
        if self.backfill.partitions_per_run is None and self.partitions.by == "day":
            return 366
        return self.backfill.partitions_per_run

    @model_validator(mode="after")
    def _time_partitions_have_timestamps(self) -> "CollectionSettings":
        if self.partitions.by != "bucket" and self.source.fields.timestamp is None:
            raise ValueError(
                f"partitions by {self.partitions.by} need source.fields.timestamp, the name of "
                "the field with the document's time; for undated documents use "
                "partitions: {by: bucket, count: 16}"
            )
        return self

    def rendered(self, resolve: Callable[[str], Any]) -> "CollectionSettings":
        """Fills in templates such as {{ env.ARCHIVE }} in the paths.

        One with a variable that is not set stays as it is: no file is called so, and it says why.
        """

        def fill(path: str) -> str:
            return str(resolve(path)) if "{{" in path and not unset_variables(path) else path

        filled = self._with_paths(fill)
        check_source_path(filled.source.path)
        return filled

    def with_absolute_paths(self, beside: Path, project: Path) -> "CollectionSettings":
        """Relative local paths start at `beside` if what they name is there, else at the project.

        Args:
            beside: the folder of the YAML file.
            project: the folder of the Dagster project that holds it.
        """
        return self._with_paths(
            lambda path: _located(path, beside, project),
            lambda path: _located_source(path, beside, project),
        )

    def _with_paths(
        self, change: Callable[[str], str], change_source: Callable[[str], str] | None = None
    ) -> "CollectionSettings":
        path = (change_source or change)(self.source.path)
        source = self.source.model_copy(update={"path": path})
        evaluation = self.evaluation and self.evaluation.model_copy(
            update={
                "queries": change(self.evaluation.queries),
                "qrels": change(self.evaluation.qrels),
            }
        )
        return self.model_copy(
            update={
                "source": source,
                "evaluation": evaluation,
                "embedder": self.embedder.with_paths(change),
                "fallback": self.fallback and self.fallback.with_paths(change),
            }
        )


def unset_variables(path: str) -> list[str]:
    """The environment variables in a path's templates that are not set."""
    named = re.findall(r"\{\{[^}]*?\benv(?:\.|\(\s*['\"])(\w+)", path)
    return [name for name in named if name not in os.environ]


def _located(path: str, beside: Path, project: Path) -> str:
    """Where a file is."""
    if "://" in path:
        return path
    local = Path(path).expanduser()
    return str((beside if is_there(str(beside / local)) else project) / local)


def _located_source(path: str, beside: Path, project: Path) -> str:
    """Where the files are that a path, possibly with globs and placeholders, names."""
    if "://" in path:
        return path
    local = Path(path).expanduser()
    here = sparing_names(str(beside / local))
    folder = fixed_folder(here)
    if is_there(here) or any(Path(folder or "/").glob(generalise(here)[len(folder) :].lstrip("/"))):
        return here
    return sparing_names(str(project / local))
