"""Retrieval quality: nDCG and recall of document rankings against relevance judgements.

Queries and judgements are read in the layout of the BEIR benchmark (Thakur et al. 2021,
https://arxiv.org/abs/2104.08663), so that its data sets can be used as they are.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embedding_assets.retrieval.search import IndexReader
from resources.errors import InvalidInputError, NotFoundError

CUTOFF = 10
"""The rank at which BEIR and MTEB report, and so do we."""

QRELS_HEADER = ("query-id", "corpus-id", "score")


@dataclass(frozen=True, kw_only=True)
class QueryEvaluation:
    """How well one query was answered.

    Attributes:
        query_id: The query, as in the judgements.
        ndcg_at_10: Between 0 and 1.
        recall_at_10: Between 0 and 1.
        first_relevant_rank: Rank, counted from 1, of the first relevant document; None where the
            whole ranking has none.
        text: The query itself; "" where nobody gave it.
        found: The documents found, best first.
        relevant: Rank, counted from 1, of each relevant document; None: it was not found.
    """

    query_id: str
    ndcg_at_10: float
    recall_at_10: float
    first_relevant_rank: int | None
    text: str = ""
    found: Sequence[str] = ()
    relevant: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a set of queries was answered.

    Attributes:
        ndcg_at_10: Mean over the queries.
        recall_at_10: Mean over the queries.
        queries: How many queries the means are taken over.
        per_query: One entry a query, in the order of the judgements.
    """

    ndcg_at_10: float
    recall_at_10: float
    queries: int
    per_query: list[QueryEvaluation]


def load_queries(path: str | Path) -> dict[str, str]:
    """Read queries: JSON Lines of `{"_id": "q1", "text": "..."}`; other fields are ignored.

    Args:
        path: The file; gzipped if its name ends in `.gz`. Blank lines are skipped.

    Returns:
        Query text by query id, in the order of the file.

    Raises:
        NotFoundError: There is no such file.
        InvalidInputError: A line is not such an object, an id comes twice, there is no query at
            all, or the file cannot be decoded. The message names file and line.
    """
    queries: dict[str, str] = {}
    for where, line in _lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{where}: expected a JSON object, but {error}") from error
        if not isinstance(record, dict):
            raise InvalidInputError(f"{where}: expected a JSON object, got {line[:80]!r}")
        for key in ("_id", "text"):
            value = record.get(key)
            if not isinstance(value, str) or not value.strip():
                raise InvalidInputError(
                    f'{where}: expected "{key}" to be a non-empty string, got {value!r}'
                )
        if record["_id"] in queries:
            raise InvalidInputError(f"{where}: query id {record['_id']!r} comes a second time")
        queries[record["_id"]] = record["text"]
    if not queries:
        raise InvalidInputError(
            f'{path}: expected lines of {{"_id": "q1", "text": "..."}}, found none'
        )
    return queries


def load_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read relevance judgements: three columns separated by tabs, query id, document id, score.

    Args:
        path: The file; gzipped if its name ends in `.gz`. Blank lines are skipped, and so is a
            first line that is `QRELS_HEADER`.

    Returns:
        Per query id the score of each judged document; above 0 means relevant.

    Raises:
        NotFoundError: There is no such file.
        InvalidInputError: A line has not these columns, a score is not a whole number, a document
            is judged twice with different scores, there is no judgement at all, or the file cannot
            be decoded. The message names file and line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, (where, line) in enumerate(_lines(path)):
        columns = tuple(column.strip() for column in line.split("\t"))
        if number == 0 and columns == QRELS_HEADER:
            continue
        if len(columns) != len(QRELS_HEADER) or not all(columns):
            raise InvalidInputError(
                f"{where}: expected the columns {', '.join(QRELS_HEADER)} separated by tabs, "
                f"got {line[:80]!r}"
            )
        query_id, document_id, text = columns
        try:
            score = int(text)
        except ValueError as error:
            raise InvalidInputError(
                f"{where}: expected a whole number as score, got {text!r}"
            ) from error
        judged = qrels.setdefault(query_id, {})
        if judged.setdefault(document_id, score) != score:
            raise InvalidInputError(
                f"{where}: document {document_id!r} was judged {judged[document_id]} for query "
                f"{query_id!r} before, now {score}"
            )
    if not qrels:
        raise InvalidInputError(f"{path}: expected lines of {', '.join(QRELS_HEADER)}, found none")
    return qrels


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, with "file:line" for error messages."""
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"There is no file {path.absolute()}.")
    number = 0
    with (
        gzip.open(path, "rt", encoding="utf-8-sig")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8-sig")
    ) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"{path}: expected UTF-8 after line {number}, but {error}"
            ) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InvalidInputError(f"{path}: expected a whole gzip file, but {error}") from error


def ndcg_at_k(ranking: Sequence[str], relevance: Mapping[str, int], k: int = CUTOFF) -> float:
    """Normalised discounted cumulative gain of one ranking (Järvelin & Kekäläinen 2002).

    DCG = Σ gain(rank) / log2(rank + 1) over the first k ranks, divided by the DCG of the best
    possible ranking. The gain is the score itself, not 2^score − 1: so do trec_eval's `ndcg_cut`
    and pytrec_eval, which BEIR and MTEB report. Documents without a judgement, or with a negative
    one, gain 0.

    K. Järvelin, J. Kekäläinen: Cumulated gain-based evaluation of IR techniques. ACM TOIS 20(4),
    2002, https://doi.org/10.1145/582415.582418

    Args:
        ranking: Document ids, best first.
        relevance: Score by document id, for this query.
        k: How many ranks count.

    Returns:
        Between 0 and 1; 0 where no document is relevant.

    Raises:
        ValueError: `k` is below 1, or a document is ranked twice.
    """
    _check(ranking, k)
    gains = _gains(relevance)
    if not gains:
        return 0.0
    ideal = sorted(gains.values(), reverse=True)[:k]
    return _dcg(gains.get(document, 0) for document in ranking[:k]) / _dcg(ideal)


def recall_at_k(ranking: Sequence[str], relevance: Mapping[str, int], k: int = CUTOFF) -> float:
    """Share of a query's relevant documents (score above 0) that are among the first k.

    Args:
        ranking: Document ids, best first.
        relevance: Score by document id, for this query.
        k: How many ranks count.

    Returns:
        Between 0 and 1; 0 where no document is relevant.

    Raises:
        ValueError: `k` is below 1, or a document is ranked twice.
    """
    _check(ranking, k)
    relevant = _gains(relevance)
    if not relevant:
        return 0.0
    return sum(document in relevant for document in ranking[:k]) / len(relevant)


def evaluate(
    rankings: Mapping[str, Sequence[str]],
    qrels: Mapping[str, Mapping[str, int]],
    texts: Mapping[str, str] | None = None,
) -> Evaluation:
    """Evaluate the rankings of a set of queries.

    The judgements say which queries count. One with no ranking scores 0, as under trec_eval's
    `-c`; one with no relevant document is left out, because no ranking could score above 0.

    Args:
        rankings: Per query id the document ids, best first. Queries without judgements are ignored.
        qrels: Per query id the score of each judged document, as from `load_qrels`.
        texts: Per query id the query itself, to be told with its figures.

    Returns:
        The means, and the figures of each query.

    Raises:
        InvalidInputError: No query has a relevant document.
        ValueError: A document is ranked twice.
    """
    per_query = []
    for query_id, relevance in qrels.items():
        relevant = _gains(relevance)
        if not relevant:
            continue
        ranking = rankings.get(query_id, ())
        ranks = {document: rank for rank, document in enumerate(ranking, 1)}
        found = [ranks[document] for document in relevant if document in ranks]
        try:
            figures = QueryEvaluation(
                query_id=query_id,
                ndcg_at_10=ndcg_at_k(ranking, relevance, CUTOFF),
                recall_at_10=recall_at_k(ranking, relevance, CUTOFF),
                first_relevant_rank=min(found, default=None),
                text=(texts or {}).get(query_id, ""),
                found=[*ranking],
                relevant={document: ranks.get(document) for document in relevant},
            )
        except ValueError as error:
            raise ValueError(f"query {query_id!r}: {error}") from error
        per_query.append(figures)
    if not per_query:
        raise InvalidInputError(
            "expected at least one query with a relevant document (score above 0) in the "
            f"judgements, got {len(qrels)} queries with none"
        )
    return Evaluation(
        ndcg_at_10=math.fsum(query.ndcg_at_10 for query in per_query) / len(per_query),
        recall_at_10=math.fsum(query.recall_at_10 for query in per_query) / len(per_query),
        queries=len(per_query),
        per_query=per_query,
    )


def _gains(relevance: Mapping[str, int]) -> dict[str, int]:
    return {document: score for document, score in relevance.items() if score > 0}


def _dcg(gains: Iterable[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _check(ranking: Sequence[str], k: int) -> None:
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    seen: set[str] = set()
    for document in ranking:
        # Counted twice, a relevant document would lift the score above that of the ideal ranking.
        if document in seen:
            raise ValueError(f"expected each document once in a ranking, got {document!r} twice")
        seen.add(document)


def evaluate_index(
    index: IndexReader, queries: Path, qrels: Path, *, exact: bool = False
) -> Evaluation:
    """Searches for every judged query in the whole index and scores the document rankings.

    Args:
        index: the collection's.
        queries: JSON Lines file of queries.
        qrels: TSV file of judgements.
        exact: compare with every chunk, as `VectorStore.search` says.

    Raises:
        InvalidInputError: a file is malformed.
        NotFoundError: a file is missing, or the collection has no index yet.
    """
    judgements = load_qrels(qrels)
    texts = {key: text for key, text in load_queries(queries).items() if key in judgements}
    return evaluate(index.rank_documents(texts, CUTOFF, exact=exact), judgements, texts)
