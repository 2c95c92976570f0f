"""Rankings of several embedding spaces, or of other kinds, made into one."""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence


def fuse_rankings(rankings: Sequence[Sequence[str]]) -> list[str]:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009, with their k = 60)."""
    if len(rankings) == 1:
        return list(rankings[0])
    scores: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, name in enumerate(ranking, start=1):
            scores[name] += 1 / (60 + rank)
    return sorted(scores, key=lambda name: -scores[name])


def documents_from_chunks(hits: Iterable[tuple[str, float]], k: int) -> list[str]:
    """Turn scored chunks into a ranking of documents: a document scores as its best chunk.

    Equal scores are ordered by descending document id, as trec_eval does.

    Args:
        hits: Document id and score of each chunk found, in any order; a higher score is better.
        k: How many documents to return. Ask the index for more chunks than that: several may
            belong to one document.

    Returns:
        At most k distinct document ids, best first.

    Raises:
        ValueError: `k` is below 1, or a score is not a number.
    """
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    best: dict[str, float] = {}
    for document, score in hits:
        if math.isnan(score):
            raise ValueError(f"expected a score for document {document!r}, got {score}")
        best[document] = max(score, best.get(document, -math.inf))
    return heapq.nlargest(k, best, key=lambda document: (best[document], document))
