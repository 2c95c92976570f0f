"""Asset `report`: how the collection's runs went, and what its vectors look like."""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from embedding_assets.artifacts.keys import QUARANTINE_FILE
from embedding_assets.collection.collection import Collection, CollectionResources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.operations.report_plots import history_png, map_png
from embedding_assets.runs.history import PartitionNumbers, by_run, latest_materializations
from resources.artifact_stores.base import ArtifactStore

_TOP = 10
_POINTS_OF_HISTORY = 200
_TITLES = 16
_NEIGHBOURS_OF = 5
_NEIGHBOURS = 3
_HITS = 20
"""Looked at for neighbours: most hits are chunks of the same document."""
_QUARANTINE_FILES = 2_000
_ROWS_READ_PER_VECTOR = 10


class ReportConfig(dg.Config):
    """What a run of the report looks at."""

    materializations: int = Field(
        default=5_000,
        ge=1,
        description="How many of the newest materialisations of `embeddings` are looked at.",
    )
    vectors: int = Field(
        default=2_000, ge=3, description="How many vectors the map is made of, chosen at random."
    )


def report_asset(collection: Collection) -> dg.AssetsDefinition:
    @dg.asset(
        key=collection.asset_key("report"),
        deps=[collection.asset_key("vector_index")],
        group_name=collection.name,
        # Without one, Dagster's command line refuses to run all assets over a range of partitions.
        backfill_policy=dg.BackfillPolicy.single_run(),
        required_resource_keys=collection.resource_keys,
        description="History of the runs, a map of the vectors, nearest neighbours, the slowest "
        "partitions and the commonest reasons of the quarantine. Materialize it when you want "
        "to look.",
        kinds={"markdown"},
    )
    def report(context: dg.AssetExecutionContext, config: ReportConfig) -> dg.MaterializeResult:
        resources = collection.resources(context)
        history = latest_materializations(
            context.instance, collection.asset_key("embeddings"), config.materializations
        )
        written = write_report(collection.settings, resources, history, config.vectors)
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.md(written.markdown),
                "artifact": written.key,
                **written.numbers,
            }
        )

    return report


@dataclass(frozen=True)
class Report:
    """`markdown` holds its pictures; the artifact `key` names them as files beside it."""

    markdown: str
    key: str
    numbers: dict[str, int | float]


def write_report(
    settings: CollectionSettings,
    resources: CollectionResources,
    history: Sequence[PartitionNumbers],
    vectors: int,
) -> Report:
    """Writes the report and its plots to the artifact store.

    Args:
        settings: the collection's.
        resources: the collection's.
        history: materialisations of `embeddings`, newest first.
        vectors: how many of them the map shows.
    """
    name = settings.name
    sample = VectorSample.draw(name, resources, vectors)
    refused, unread = quarantine_reasons(resources.artifacts, name)
    pictures = _pictures(history, sample)
    text = "\n\n".join(
        [
            f"# Report on {name}",
            f"{sample.of:,} chunks in the index, embedded by {resources.embedder.space.model}.",
            "## Runs",
            _history_section(history),
            "## Map of the vectors",
            _map_section(sample, "map" in pictures),
            "## Nearest neighbours",
            _neighbours(name, resources, sample),
            "## Slowest partitions",
            _slowest(history),
            "## Quarantine",
            _quarantine(refused, unread),
        ]
    )
    folder = f"{name}/report"
    for picture, content in pictures.items():
        with resources.artifacts.writing(f"{folder}/{picture}.png") as path:
            path.write_bytes(content)
    with resources.artifacts.writing(f"{folder}/report.md") as path:
        path.write_text(text, encoding="utf-8")
    for picture, content in pictures.items():
        data = base64.b64encode(content).decode()
        text = text.replace(f"]({picture}.png)", f"](data:image/png;base64,{data})")
    numbers: dict[str, int | float] = {
        "rows_in_index": sample.of,
        "vectors_in_map": len(sample),
        "quarantined": sum(refused.values()),
        **{f"{picture}_png_bytes": len(content) for picture, content in pictures.items()},
    }
    return Report(text, f"{folder}/report.md", numbers)


def _pictures(history: Sequence[PartitionNumbers], sample: "VectorSample") -> dict[str, bytes]:
    """PNG files by name, as far as there is something to draw."""
    pictures: dict[str, bytes] = {}
    if history:
        pictures["history"] = history_png(by_run(history)[-_POINTS_OF_HISTORY:])
    if len(sample) > 2:
        points, shares = principal_components(sample.vectors)
        partitions = {key: number for number, key in enumerate(sorted(set(sample.partitions)))}
        pictures["map"] = map_png(
            points,
            shares,
            [partitions[key] for key in sample.partitions],
            {row: " ".join(sample.titles[row].split()) for row in spread(points, _TITLES)},
        )
    return pictures


@dataclass(frozen=True)
class VectorSample:
    """Some rows of the index, in random order.

    Attributes:
        of: how many rows the index has.
        vectors: shape (n, dimension), float32, all finite.
        titles: of the chunks' documents; the id of one that has none.
        documents: their ids.
        chunks: the chunks' ids.
        partitions: their partitions.
    """

    of: int
    vectors: np.ndarray
    titles: list[str]
    documents: list[str]
    chunks: list[str]
    partitions: list[str]

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def draw(cls, collection: str, resources: CollectionResources, size: int) -> "VectorSample":
        """The same sample for the same index, in whatever order its rows are.

        Of all rows only the partition is read, and the vectors only of some partitions: to read
        all vectors of a large index takes minutes.
        """
        store, space = resources.store, resources.embedder.space
        rows_of: Counter[str] = Counter()
        for batch in store.scan(collection, space, ["partition"]):
            rows_of.update(batch["partition"].to_pylist())
        partitions = sorted(rows_of)
        Random(collection).shuffle(partitions)
        chosen, rows = [], 0
        while partitions and rows < _ROWS_READ_PER_VECTOR * size:
            chosen.append(partitions.pop())
            rows += rows_of[chosen[-1]]
        columns = ["chunk_id", "document_id", "title", "partition", "vector"]
        kept = None
        for batch in store.scan(
            collection, space, columns, partitions=chosen if partitions else None
        ):
            table = pa.Table.from_batches([batch]).select(columns)
            table = table if kept is None else pa.concat_tables([kept, table])
            # Chunk ids are hashes: the smallest are a random sample.
            kept = table.sort_by("chunk_id").slice(0, size).combine_chunks()
        if kept is None:
            return cls(0, np.zeros((0, space.dimension), np.float32), [], [], [], [])
        vectors = kept["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = vectors.reshape(len(kept), space.dimension)
        finite = np.isfinite(vectors).all(axis=1)  # the check `vector_integrity` tells of others
        kept = kept.filter(pa.array(finite))
        documents = kept["document_id"].to_pylist()
        return cls(
            rows_of.total(),
            vectors[finite],
            [title or id for title, id in zip(kept["title"].to_pylist(), documents, strict=True)],
            documents,
            kept["chunk_id"].to_pylist(),
            kept["partition"].to_pylist(),
        )


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Projects vectors on the two directions in which they vary most.

    Args:
        vectors: shape (n, dimension), float32, n >= 2.

    Returns:
        The points, shape (n, 2), float32, and the share of the variance along each axis. The
        signs are such that the same vectors in another order give the same map.
    """
    centred = vectors - vectors.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    variance = singular**2
    first, second = variance[:2] / max(float(variance.sum()), np.finfo(np.float32).tiny)
    return centred @ axes.T, (float(first), float(second))


def spread(points: np.ndarray, count: int) -> list[int]:
    """Rows of points that are far from each other: each next is the farthest from those before.

    Args:
        points: shape (n, 2).
        count: how many rows at most.
    """
    chosen = [int(np.abs(points - np.median(points, axis=0)).sum(axis=1).argmin())]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        step = np.linalg.norm(points - points[chosen[-1]], axis=1)
        distance = np.minimum(distance, step)
        if not distance.max():
            break
        chosen.append(int(distance.argmax()))
    return chosen


def quarantine_reasons(artifacts: ArtifactStore, collection: str) -> tuple[Counter[str], int]:
    """Counts what is in quarantine now by reason, and the files that were too many to read."""
    keys = artifacts.list_keys(f"{collection}/", f"/{QUARANTINE_FILE}")
    reasons: Counter[str] = Counter()
    for key in keys[:_QUARANTINE_FILES]:
        with artifacts.reading(key) as path:
            reasons.update(pq.read_table(path, columns=["reason"])["reason"].to_pylist())
    return reasons, len(keys[_QUARANTINE_FILES:])


def _history_section(history: Sequence[PartitionNumbers]) -> str:
    if not history:
        return "No materialisation of `embeddings` is recorded yet."
    runs = len({entry.run_id for entry in history})
    return (
        "![throughput, hit rate, error rate and tokens of the last runs](history.png)\n\n"
        f"The last {len(history):,} materialisations of `embeddings`, runs: {runs:,}, times in "
        "UTC. A run over many partitions is several points."
    )


def _map_section(sample: VectorSample, drawn: bool) -> str:
    if not drawn:
        return "There are not enough vectors in the index."
    return (
        "![map of the vectors](map.png)\n\n"
        f"{len(sample):,} of {sample.of:,} chunks, chosen at random, on the first two principal "
        "components; the colour runs from the first partition to the last."
    )


def _neighbours(collection: str, resources: CollectionResources, sample: VectorSample) -> str:
    """For some chunks, the nearest ones of other documents."""
    a_chunk_of = {document: row for row, document in enumerate(sample.documents)}
    rows = []
    for row in list(a_chunk_of.values())[:_NEIGHBOURS_OF]:
        hits = resources.store.search(
            collection, resources.embedder.space, sample.vectors[row], _HITS
        )
        own = next((hit.text for hit in hits if hit.chunk_id == sample.chunks[row]), "")
        others = [hit for hit in hits if hit.document_id != sample.documents[row]]
        rows += [
            (f"{sample.titles[row]}: {own}", f"{hit.score:.3f}", f"{hit.title}: {hit.text}")
            for hit in others[:_NEIGHBOURS]
        ]
    return _table(("chunk", "cosine", "near it in another document"), rows)


def _seconds(entry: PartitionNumbers) -> float:
    return entry.numbers.get("seconds", entry.numbers.get("seconds_embedding", 0.0))


def _slowest(history: Sequence[PartitionNumbers]) -> str:
    newest: dict[str, PartitionNumbers] = {}
    for entry in history:
        newest.setdefault(entry.partition, entry)
    slowest = sorted(newest.values(), key=_seconds, reverse=True)
    return _table(
        ("partition", "seconds in embeddings", "chunks", "embedded", "run"),
        [
            (
                entry.partition,
                f"{_seconds(entry):,.1f}",
                f"{entry.numbers.get('chunks', 0):,.0f}",
                f"{entry.numbers.get('embedded', 0):,.0f}",
                entry.run_id[:8],
            )
            for entry in slowest[:_TOP]
        ],
    )


def _quarantine(reasons: Counter[str], unread: int) -> str:
    table = _table(("reason", "entries"), [(why, f"{n:,}") for why, n in reasons.most_common(_TOP)])
    return f"{table}\n\n{unread:,} more files were not read." if unread else table


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_line, row))} |" for row in rows]
    if not lines:
        return "None."
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines])


_LINE_LENGTH = 100
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~!&$])")


def _line(text: str) -> str:
    """One line of text that Markdown shows as it is."""
    text = " ".join(text.split())
    if len(text) > _LINE_LENGTH:
        text = f"{text[: _LINE_LENGTH - 1]}…"
    return _MARKUP.sub(r"\\\1", text)
