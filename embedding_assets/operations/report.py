"""The report on a collection: how its runs went, and what its vectors look like."""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import QUARANTINE_FILE
from embedding_assets.collection.collection import CollectionResources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.operations.report_plots import history_png, map_png
from embedding_assets.operations.vector_sample import VectorSample, principal_components, spread
from embedding_assets.runs.history import PartitionNumbers, by_run
from resources.artifact_stores.base import ArtifactStore

_TOP = 10
_POINTS_OF_HISTORY = 200
_TITLES = 16
_NEIGHBOURS_OF = 5
_NEIGHBOURS = 3
_HITS = 20
"""Looked at for neighbours: most hits are chunks of the same document."""
_QUARANTINE_FILES = 2_000


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


def _pictures(history: Sequence[PartitionNumbers], sample: VectorSample) -> dict[str, bytes]:
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
