"""Groups of similar vectors, the words by which they differ, and a map on which they lie apart."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_DIMENSIONS = 32
"""Vectors are compared along so many axes of their greatest variance: the rest is mostly noise."""
_CHUNKS_PER_CLUSTER = 20
_ROUNDS = 20
_NEAR, _FAR = 10, 5
_STEPS = 150
_STEM, _LEAST_SHARE = 5, 0.02
_WORD = re.compile(r"[぀-ヿ一-鿿]{2}|[^\W\d_]{3,}")
"""Words of three letters and more; of scripts that do not part words, two letters."""


def principal_components(vectors: np.ndarray, count: int = _DIMENSIONS) -> np.ndarray:
    """Projects vectors on the directions in which they vary most.

    By a random projection that is made better twice (Halko, Martinsson, Tropp 2011), as a singular
    value decomposition of wide vectors takes seconds.

    Args:
        vectors: shape (n, dimension), float32.
        count: how many directions at most.

    Returns:
        Shape (n, at most count), float32, the direction of the greatest variance first.
    """
    centred = vectors - vectors.mean(axis=0)
    width = min(count + 8, *centred.shape)
    random = np.random.default_rng(0).standard_normal((centred.shape[1], width))
    basis = centred @ random.astype(np.float32)
    for _ in range(2):
        basis = centred @ (centred.T @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    axes = np.linalg.svd(basis.T @ centred, full_matrices=False)[2]
    return centred @ axes[:count].T


def cluster(points: np.ndarray, most: int) -> np.ndarray:
    """Groups points by the angle between them (spherical k-means).

    Args:
        points: shape (n, d), float32, around 0.
        most: how many groups at most; fewer points make fewer.

    Returns:
        The group of each point, shape (n,), int; group 0 is the largest.
    """
    directions = _normalised(points)
    count = max(1, min(most, len(points) // _CHUNKS_PER_CLUSTER))
    centres = directions[_apart(directions, count)]
    groups = np.zeros(len(points), int)
    for _ in range(_ROUNDS):
        before, groups = groups, (directions @ centres.T).argmax(axis=1)
        if (groups == before).all():
            break
        member = np.eye(count, dtype=np.float32)[groups]
        centres = _normalised(member.T @ directions)
    order = np.argsort(-np.bincount(groups, minlength=count), kind="stable")
    return np.argsort(order)[groups]


def _apart(directions: np.ndarray, count: int) -> list[int]:
    """Rows that are far from each other, each drawn by its distance (k-means++)."""
    random = np.random.default_rng(0)
    chosen = [int(random.integers(len(directions)))]
    distance = 1 - directions @ directions[chosen[0]]
    while len(chosen) < count:
        weight = np.maximum(distance, 1e-9) ** 2
        chosen.append(int(random.choice(len(directions), p=weight / weight.sum())))
        distance = np.minimum(distance, 1 - directions @ directions[chosen[-1]])
    return chosen


def central(points: np.ndarray, groups: np.ndarray) -> list[int]:
    """For each group the row that is nearest to its middle."""
    directions = _normalised(points)
    rows = []
    for group in range(int(groups.max(initial=-1)) + 1):
        own = np.flatnonzero(groups == group)
        middle = directions[own].mean(axis=0)
        rows.append(int(own[(directions[own] @ middle).argmax()]))
    return rows


def characteristic_words(
    texts: Sequence[str], groups: np.ndarray, count: int = 8
) -> list[list[str]]:
    """The words that tell each group from the others, the best first.

    A word counts once a text (c-TF-IDF by presence): its share of the group's texts, times the
    logarithm of how often that is its share of all texts. So words that are everywhere, in any
    language, count nothing, and no list of them is needed.

    Args:
        texts: n of them.
        groups: the group of each.
        count: how many words of each group.
    """
    words = [{*_WORD.findall(text.casefold())} for text in texts]
    everywhere = Counter(word for own in words for word in own)
    found = []
    for group in range(int(groups.max(initial=-1)) + 1):
        rows = np.flatnonzero(groups == group)
        here = Counter(word for row in rows for word in words[row])
        scores = {
            word: times / len(rows) * math.log(times * len(texts) / (len(rows) * everywhere[word]))
            for word, times in here.items()
            if times >= max(2, _LEAST_SHARE * len(rows))
        }
        best = sorted((word for word in scores if scores[word] > 0), key=lambda w: (-scores[w], w))
        found.append(_different(best, count))
    return found


def _different(words: Sequence[str], count: int) -> list[str]:
    """The first words, without those that begin as one before: plurals, inflections."""
    kept: dict[str, str] = {}
    for word in words:
        if not any(word.startswith(stem) or stem.startswith(word) for stem in kept):
            kept[word[:_STEM]] = word
        if len(kept) == count:
            break
    return list(kept.values())


def layout(points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Places points on a plane, such that near ones stay near and groups lie apart.

    It begins with the plane through the middles of the groups; then each point is drawn to those
    that are nearest to it and pushed from some others, as in UMAP (McInnes, Healy, Melville 2018).

    Args:
        points: shape (n, d), float32.
        groups: the group of each.

    Returns:
        Shape (n, 2), float64, finite.
    """
    count = len(points)
    near = min(_NEAR, count - 1)
    directions = _normalised(points)
    alike = directions @ directions.T
    np.fill_diagonal(alike, -2)
    nearest = np.argpartition(-alike, near - 1, axis=1)[:, :near]
    # Complex numbers: a place on a plane is one number, which is three times as fast.
    places = _plane_of_groups(points, groups)
    random = np.random.default_rng(0)
    for step in range(_STEPS):
        apart = places[:, None] - places[nearest]
        pull = 2 * apart / (1 + _square(apart))
        apart = places[:, None] - places[random.integers(count, size=(count, _FAR))]
        square = _square(apart)
        force = (apart / ((0.05 + square) * (1 + square))).sum(axis=1) * (near / _FAR)
        drawn, by = pull.ravel(), nearest.ravel()
        force += np.bincount(by, np.real(drawn), count)
        force += 1j * np.bincount(by, np.imag(drawn), count)
        force = (force - pull.sum(axis=1)) / near
        places += (1 - step / _STEPS) * force / np.maximum(np.abs(force), 1)
    return np.column_stack([np.real(places), np.imag(places)])


def _square(numbers: np.ndarray) -> np.ndarray:
    return np.real(numbers) ** 2 + np.imag(numbers) ** 2


def _plane_of_groups(points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Where points lie on the plane in which the middles of their groups differ most."""
    middles = np.stack([points[groups == group].mean(axis=0) for group in np.unique(groups)])
    if len(middles) < 3:
        middles = points
    axes = np.linalg.svd(middles - middles.mean(axis=0), full_matrices=False)[2][:2]
    places = points @ axes.T @ np.array([1, 1j])[: len(axes)]
    return places / max(float(places.std()), 1e-9)


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
