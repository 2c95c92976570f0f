"""What a collection is about: clusters of its vectors, neighbours, and text that is repeated."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from embedding_assets.collection.collection import CollectionResources
from embedding_assets.operations.report.clusters import (
    central,
    characteristic_words,
    cluster,
    layout,
    principal_components,
)
from embedding_assets.operations.report.neighbours import Neighbours, neighbours
from embedding_assets.operations.report.page import Cell, Quote, Section, Table
from embedding_assets.operations.report.plots import Group, map_plot
from embedding_assets.operations.report.repeated_text import RepeatedText
from embedding_assets.operations.report.sample import IndexCounts, VectorSample
from embedding_assets.operations.report.svg import CATEGORIES

_TOP = 10
_FEWEST = 3


def map_sections(
    collection: str,
    resources: CollectionResources,
    counts: IndexCounts,
    sample: VectorSample,
    repeated: RepeatedText,
) -> Iterator[Section]:
    """The map with its clusters, and what is near to the middle of each."""
    speaking = [row for row, is_most in enumerate(repeated.mostly) if not is_most]
    if len(speaking) < _FEWEST:
        yield Section("Map of the vectors", "There are not enough vectors in the index.")
        return
    points = principal_components(sample.vectors)
    own = cluster(points[speaking], len(CATEGORIES))
    middles = [speaking[row] for row in central(points[speaking], own)]
    words = characteristic_words([sample.texts[row] for row in speaking], own)
    groups = np.full(len(sample), len(words))
    groups[speaking] = own
    sizes = np.bincount(groups, minlength=len(words) + 1).tolist()
    legend: dict[int | None, Group] = {
        number: Group(name, _share(sizes[number], len(sample))) for number, name in enumerate(words)
    }
    if sizes[-1]:
        legend[None] = Group(["repeated text"], _share(sizes[-1], len(sample)))
    places = layout(points, groups)
    shown = [None if group == len(words) else group for group in groups.tolist()]
    yield Section(
        "What it is about",
        f"{len(sample):,} of {counts.chunks.total():,} chunks, chosen at random: the nearer two "
        "dots, the more alike their vectors. Clusters bear the words that tell them from the rest.",
        map_plot(places, shown, legend),
        map_plot(places, shown, legend, sample.titles),
        Table(
            ("", "words", "chunks", "in the middle of it"),
            [
                (f"{number + 1}", ", ".join(name), f"{sizes[number]:,}", sample.titles[middle])
                for number, (name, middle) in enumerate(zip(words, middles, strict=True))
            ],
            numbers=frozenset((2,)),
        ),
    )
    yield _neighbours(collection, resources, sample, middles, repeated)


def _share(part: int, whole: int) -> str:
    return f"{part:,} chunks, {part / whole:.0%}"


def _neighbours(
    collection: str,
    resources: CollectionResources,
    sample: VectorSample,
    rows: list[int],
    repeated: RepeatedText,
) -> Section:
    cells: list[tuple[Cell, ...]] = []
    for middle, group in groupby(neighbours(collection, resources, sample, rows, repeated), _chunk):
        for number, pair in enumerate(group):
            near = Quote(pair.near_title, pair.near_text)
            cells.append(("" if number else middle, f"{pair.cosine:.3f}", near))
    return Section(
        "Near in meaning",
        "The chunk in the middle of each cluster, and the nearest ones of other documents. "
        "Repeated text is left out.",
        table=Table(
            ("chunk", "cosine", "near it in another document"),
            cells,
            numbers=frozenset((1,)),
        ),
    )


def _chunk(pair: Neighbours) -> Quote:
    return Quote(pair.title, pair.text)


def repeated_text_section(repeated: RepeatedText) -> Section:
    """What is said again and again."""
    title, looked_at = "Repeated text", f"{repeated.documents:,} documents were looked at."
    if not repeated.passages:
        return Section(title, f"None: no sentence stands in many documents. {looked_at}")
    return Section(
        title,
        f"The same words in many documents, which tell nothing of any of them. {looked_at} To "
        "index it costs as much as anything else: take it out at the source if it is much.",
        table=Table(
            ("passage", "documents", "share"),
            [
                (p.text, f"{p.documents:,}", f"{p.documents / repeated.documents:.0%}")
                for p in repeated.passages[:_TOP]
            ],
            numbers=frozenset((1, 2)),
        ),
    )
