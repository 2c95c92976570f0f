"""The report on a collection: what it holds, what it is about, and how its runs went."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from embedding_assets.collection.collection import CollectionResources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.operations.report.map_sections import map_sections, repeated_text_section
from embedding_assets.operations.report.page import Page
from embedding_assets.operations.report.repeated_text import RepeatedText
from embedding_assets.operations.report.run_sections import (
    refused,
    refused_section,
    runs_section,
    slowest_section,
)
from embedding_assets.operations.report.sample import IndexCounts, VectorSample
from embedding_assets.operations.report.size_sections import figures, moment, size_sections
from embedding_assets.runs.history import PartitionNumbers


@dataclass(frozen=True)
class Report:
    """`markdown` is for Dagster; the artifact `key` is the same as an HTML file."""

    markdown: str
    key: str
    numbers: dict[str, int | float]


def write_report(
    settings: CollectionSettings,
    resources: CollectionResources,
    history: Sequence[PartitionNumbers],
    vectors: int,
) -> Report:
    """Writes the report to the artifact store.

    Args:
        settings: the collection's.
        resources: the collection's.
        history: materialisations of `embeddings`, newest first.
        vectors: how many of them the map shows.
    """
    name, space, now = settings.name, resources.embedder.space, time.time()
    counts = IndexCounts.of(name, resources)
    sample = VectorSample.draw(name, resources, counts, vectors)
    repeated = RepeatedText(sample.texts, sample.documents)
    reasons, unread = refused(resources.artifacts, name)
    records_refused = sum(reason.records for reason in reasons)
    page = Page(
        name,
        f"Vectors of {space.model}, {space.dimension:,} dimensions. Drawn {moment(now)} UTC.",
        [
            *figures(name, resources, counts, history, now),
            ("repeated chunks", f"{repeated.share:.1%}"),
            ("records refused", f"{records_refused:,}"),
        ],
        [
            *map_sections(name, resources, counts, sample, repeated),
            repeated_text_section(repeated),
            *size_sections(settings, resources, counts, sample),
            runs_section(history, settings.checks),
            slowest_section(history),
            refused_section(reasons, unread),
        ],
    )
    key = f"{name}/report/report.html"
    with resources.artifacts.writing(key) as path:
        path.write_text(page.html(), encoding="utf-8")
    numbers: dict[str, int | float] = {
        "rows_in_index": counts.chunks.total(),
        "vectors_in_map": len(sample),
        "quarantined": records_refused,
    }
    return Report(page.markdown(), key, numbers)
