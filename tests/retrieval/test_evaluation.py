"""The retrieval metrics, against hand-computed values and in odd cases, and the loaders."""

import gzip
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import pytrec_eval

from embedding_assets.retrieval.evaluation import (
    evaluate,
    load_qrels,
    load_queries,
    ndcg_at_k,
    recall_at_k,
)
from embedding_assets.retrieval.fusion import documents_from_chunks
from resources.errors import NotFoundError
from tests.support.data import XQUAD, json_lines


class TestNdcg:
    def test_equals_hand_computed_value_for_graded_relevance(self):
        relevance = {"a": 3, "b": 2, "c": 1}
        # b at rank 1, an unjudged document at 2, a at 3; the ideal order is a, b, c.
        dcg = 2 / 1 + 0 + 3 / 2
        ideal = 3 / 1 + 2 / math.log2(3) + 1 / 2
        assert ndcg_at_k(["b", "x", "a"], relevance) == pytest.approx(dcg / ideal)
        assert dcg / ideal == pytest.approx(0.735007, abs=1e-6)

    def test_gain_is_linear_and_not_exponential(self):
        assert ndcg_at_k(["b", "a"], {"a": 2, "b": 1}) == pytest.approx(
            (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
        )

    @pytest.mark.parametrize("rank", range(1, 11))
    def test_only_relevant_document_scores_by_the_logarithm_of_its_rank(self, rank: int):
        ranking = [f"x{number}" for number in range(1, rank)] + ["a"]
        assert ndcg_at_k(ranking, {"a": 1}) == pytest.approx(1 / math.log2(rank + 1))

    def test_ranks_after_k_do_not_count(self):
        ranking = [f"x{number}" for number in range(10)] + ["a"]
        assert ndcg_at_k(ranking, {"a": 1}, k=10) == 0.0
        assert ndcg_at_k(ranking, {"a": 1}, k=11) == pytest.approx(1 / math.log2(12))

    def test_is_1_for_the_best_first_k_of_more_relevant_documents(self):
        relevance = {f"d{number}": 1 for number in range(20)}
        assert ndcg_at_k([f"d{number}" for number in range(10)], relevance, k=10) == 1.0

    def test_fewer_than_k_results_are_compared_with_the_full_ideal(self):
        assert ndcg_at_k(["a"], {"a": 1, "b": 1}) == pytest.approx(1 / (1 + 1 / math.log2(3)))
        assert ndcg_at_k([], {"a": 1}) == 0.0

    def test_unjudged_zero_and_negative_documents_gain_nothing(self):
        expected = 1 / math.log2(3)
        for first in ({}, {"x": 0}, {"x": -1}):
            assert ndcg_at_k(["x", "a"], {"a": 1, **first}) == pytest.approx(expected)

    def test_is_0_where_no_document_is_relevant(self):
        assert ndcg_at_k(["a"], {"a": 0}) == 0.0
        assert ndcg_at_k(["a"], {}) == 0.0

    def test_is_1_for_the_ideal_order_only(self):
        relevance = {"a": 3, "b": 2, "c": 1}
        for ranking in itertools.permutations("abc"):
            assert (ndcg_at_k(ranking, relevance) == 1.0) == (ranking == ("a", "b", "c"))


class TestRecall:
    def test_is_the_share_of_relevant_documents_among_the_first_k(self):
        relevance = {"a": 1, "b": 2, "c": 1, "x": 0}
        assert recall_at_k(["a", "x", "b", "c"], relevance, k=3) == pytest.approx(2 / 3)
        assert recall_at_k(["a", "x", "b", "c"], relevance, k=4) == 1.0

    def test_divides_by_all_relevant_documents_even_if_more_than_k(self):
        assert recall_at_k(["a", "b"], dict.fromkeys("abcd", 1), k=2) == 0.5

    def test_is_0_where_no_document_is_relevant(self):
        assert recall_at_k(["a"], {"a": 0}) == 0.0


@pytest.mark.parametrize("metric", [ndcg_at_k, recall_at_k])
class TestBothMetrics:
    def test_refuses_k_below_1(self, metric):
        with pytest.raises(ValueError, match="k of at least 1, got 0"):
            metric(["a"], {"a": 1}, k=0)

    def test_refuses_a_document_ranked_twice(self, metric):
        with pytest.raises(ValueError, match="got 'a' twice"):
            metric(["a", "b", "a"], {"a": 1})

    def test_is_invariant_under_renaming_and_order_of_judgements(self, metric):
        for ranking, relevance in random_cases():
            expected = metric(ranking, relevance)
            renamed = {document[::-1] + "'": score for document, score in relevance.items()}
            shuffled = dict(reversed(renamed.items()))
            assert metric([document[::-1] + "'" for document in ranking], shuffled) == expected

    def test_is_invariant_under_order_of_documents_that_gain_nothing(self, metric):
        for ranking, relevance in random_cases():
            others = iter(sorted(d for d in ranking if relevance.get(d, 0) <= 0))
            swapped = [d if relevance.get(d, 0) > 0 else next(others) for d in ranking]
            assert metric(swapped, relevance) == metric(ranking, relevance)

    def test_stays_between_0_and_1_and_never_falls_when_a_better_document_moves_up(self, metric):
        for ranking, relevance in random_cases():
            before = metric(ranking, relevance)
            assert 0.0 <= before <= 1.0 + 1e-12
            for rank in range(1, len(ranking)):
                worse, better = ranking[rank - 1], ranking[rank]
                if relevance.get(better, 0) > max(0, relevance.get(worse, 0)):
                    moved = [*ranking[: rank - 1], better, worse, *ranking[rank + 1 :]]
                    assert metric(moved, relevance) >= before


def random_cases() -> list[tuple[list[str], dict[str, int]]]:
    generator = random.Random(7)
    documents = [f"d{number:02d}" for number in range(25)]
    return [
        (
            generator.sample(documents, generator.randint(1, 25)),
            {d: generator.randint(-1, 3) for d in generator.sample(documents, 8)},
        )
        for _ in range(50)
    ]


class TestDocumentsFromChunks:
    def test_a_document_scores_as_its_best_chunk(self):
        hits = [("a", 0.5), ("b", 0.6), ("a", 0.9), ("c", 0.7), ("b", 0.1)]
        assert documents_from_chunks(hits, 10) == ["a", "c", "b"]

    def test_returns_k_documents_and_not_k_chunks(self):
        hits = [("a", 0.9), ("a", 0.8), ("a", 0.7), ("b", 0.6), ("c", 0.5)]
        assert documents_from_chunks(hits, 2) == ["a", "b"]

    def test_equal_scores_are_ordered_by_descending_id_whatever_the_order_of_hits(self):
        hits = [("a", 0.5), ("b", 0.5), ("c", 0.5), ("d", 0.9)]
        for order in itertools.permutations(hits):
            assert documents_from_chunks(order, 3) == ["d", "c", "b"]

    def test_negative_scores_are_ranked_too(self):
        assert documents_from_chunks([("a", -0.5), ("b", -0.1)], 2) == ["b", "a"]

    def test_no_hits_give_no_documents(self):
        assert documents_from_chunks([], 10) == []

    def test_refuses_a_score_that_is_not_a_number(self):
        with pytest.raises(ValueError, match="score for document 'a', got nan"):
            documents_from_chunks([("a", math.nan)], 1)

    def test_refuses_k_below_1(self):
        with pytest.raises(ValueError, match="k of at least 1"):
            documents_from_chunks([("a", 1.0)], 0)


class TestEvaluate:
    def test_takes_the_mean_over_queries_and_keeps_each(self):
        result = evaluate(
            {"q1": ["a", "b"], "q2": ["x", "b"]}, {"q1": {"a": 1}, "q2": {"b": 1, "c": 1}}
        )
        ndcg = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
        assert result.queries == 2
        assert result.ndcg_at_10 == pytest.approx((1 + ndcg) / 2)
        assert result.recall_at_10 == pytest.approx((1 + 0.5) / 2)
        assert [query.query_id for query in result.per_query] == ["q1", "q2"]
        assert result.per_query[1].ndcg_at_10 == pytest.approx(ndcg)
        assert result.per_query[1].recall_at_10 == 0.5
        assert [query.first_relevant_rank for query in result.per_query] == [1, 2]

    def test_keeps_the_text_what_was_found_and_the_rank_of_what_is_relevant(self):
        found, relevance = {"q1": ["x", "b", "y"]}, {"q1": {"a": 1, "b": 2, "c": 0}}
        (query,) = evaluate(found, relevance, {"q1": "What is b?"}).per_query
        assert (query.text, query.found) == ("What is b?", ["x", "b", "y"])
        assert query.relevant == {"a": None, "b": 2}

    def test_query_without_ranking_counts_0(self):
        result = evaluate({"q1": ["a"]}, {"q1": {"a": 1}, "q2": {"b": 1}})
        assert (result.queries, result.ndcg_at_10, result.recall_at_10) == (2, 0.5, 0.5)
        assert result.per_query[1].first_relevant_rank is None

    def test_query_without_relevant_document_is_left_out(self):
        result = evaluate({"q1": ["a"], "q2": ["b"]}, {"q1": {"a": 1}, "q2": {"b": 0}, "q3": {}})
        assert (result.queries, result.ndcg_at_10) == (1, 1.0)

    def test_query_without_judgements_is_ignored(self):
        assert evaluate({"q1": ["a"], "q9": ["x"]}, {"q1": {"a": 1}}).queries == 1

    def test_first_relevant_rank_looks_beyond_the_cutoff(self):
        ranking = [f"x{number}" for number in range(14)] + ["a"]
        (query,) = evaluate({"q1": ranking}, {"q1": {"a": 1}}).per_query
        assert (query.ndcg_at_10, query.first_relevant_rank) == (0.0, 15)

    def test_is_invariant_under_order_of_rankings_and_judgements(self):
        cases = random_cases()
        rankings: Mapping[str, Sequence[str]] = {f"q{i}": case[0] for i, case in enumerate(cases)}
        qrels = {f"q{i}": case[1] for i, case in enumerate(cases)}
        result = evaluate(rankings, qrels)
        turned = evaluate(dict(reversed(rankings.items())), dict(reversed(qrels.items())))
        assert (result.ndcg_at_10, result.recall_at_10) == (turned.ndcg_at_10, turned.recall_at_10)
        assert result.per_query == list(reversed(turned.per_query))

    @pytest.mark.parametrize("qrels", [{}, {"q1": {}}, {"q1": {"a": 0}}])
    def test_refuses_judgements_without_any_relevant_document(self, qrels: dict):
        with pytest.raises(ValueError, match="at least one query with a relevant document"):
            evaluate({"q1": ["a"]}, qrels)

    def test_error_in_a_ranking_names_the_query(self):
        with pytest.raises(ValueError, match="query 'q1': expected each document once"):
            evaluate({"q1": ["a", "a"]}, {"q1": {"a": 1}})


def test_agrees_with_pytrec_eval_on_random_runs_in_which_scores_tie() -> None:
    generator = random.Random(11)
    documents = [f"d{number:02d}" for number in range(40)]
    qrels, chunk_hits = {}, {}
    for number in range(200):
        judged = generator.sample(documents, generator.randint(1, 20))
        qrels[f"q{number}"] = {judged[0]: 1} | {d: generator.randint(-1, 3) for d in judged[1:]}
        chunk_hits[f"q{number}"] = [
            (generator.choice(documents), generator.randint(-2, 4) / 4)
            for _ in range(generator.randint(0, 80))
        ]
    result = evaluate(
        {q: documents_from_chunks(hits, 100) for q, hits in chunk_hits.items()}, qrels
    )

    run = {
        q: {d: max(s for e, s in hits if e == d) for d, _ in hits} for q, hits in chunk_hits.items()
    }
    oracle = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10"}).evaluate(run)
    for query in result.per_query:
        expected = oracle.get(query.query_id, {"ndcg_cut_10": 0.0, "recall_10": 0.0})
        assert query.ndcg_at_10 == pytest.approx(expected["ndcg_cut_10"], abs=1e-9), query
        assert query.recall_at_10 == pytest.approx(expected["recall_10"], abs=1e-9), query
    assert result.queries == len(qrels)


class TestLoadQueries:
    def test_reads_plain_and_gzipped_files_and_skips_blank_lines(self, tmp_path: Path):
        text = (
            '{"_id": "q2", "text": "zwei?"}\n\n{"_id": "q1", "text": "\u4e00?", "metadata": {}}\r\n'
        )
        (tmp_path / "q.jsonl").write_text("\ufeff" + text, encoding="utf-8")
        (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        for name in ("q.jsonl", "q.jsonl.gz"):
            queries = load_queries(tmp_path / name)
            assert list(queries.items()) == [("q2", "zwei?"), ("q1", "\u4e00?")]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", r"q\.jsonl:2: expected a JSON object, but "),
            ('["q1"]', r"q\.jsonl:2: expected a JSON object, got "),
            ('{"text": "x"}', r'q\.jsonl:2: expected "_id" to be a non-empty string, got None'),
            ('{"_id": 7, "text": "x"}', r'q\.jsonl:2: expected "_id" .* got 7'),
            ('{"_id": "q1", "text": " "}', r'q\.jsonl:2: expected "text" .* got \' \''),
            ('{"_id": "q0", "text": "x"}', r"q\.jsonl:2: query id 'q0' comes a second time"),
        ],
    )
    def test_error_names_file_line_and_what_was_expected(
        self, tmp_path: Path, line: str, message: str
    ):
        path = tmp_path / "q.jsonl"
        path.write_text('{"_id": "q0", "text": "ok"}\n' + line + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_queries(path)

    def test_refuses_an_empty_file(self, tmp_path: Path):
        path = tmp_path / "q.jsonl"
        path.write_text("\n")
        with pytest.raises(ValueError, match=r"q\.jsonl: expected lines of .* found none"):
            load_queries(path)

    def test_missing_file_is_named(self, tmp_path: Path):
        with pytest.raises(NotFoundError, match=r"absent\.jsonl"):
            load_queries(tmp_path / "absent.jsonl")


class TestLoadQrels:
    @pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore\n", ""])
    @pytest.mark.parametrize("name", ["test.tsv", "test.tsv.gz"])
    def test_reads_with_and_without_header_plain_and_gzipped(
        self, tmp_path: Path, header: str, name: str
    ):
        content = (header + "q1\td1\t2\nq1\td2\t0\n\nq2\td1\t1\n").encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert load_qrels(path) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("q1 d1 1", r"test\.tsv:2: expected the columns query-id, corpus-id, score"),
            ("q1\t0\td1\t1", r"test\.tsv:2: expected the columns"),
            ("q1\t\t1", r"test\.tsv:2: expected the columns"),
            ("q1\td1\t0.5", r"test\.tsv:2: expected a whole number as score, got '0\.5'"),
            ("query-id\tcorpus-id\tscore", r"test\.tsv:2: expected a whole number as score"),
            ("q0\td0\t2", r"test\.tsv:2: document 'd0' was judged 1 for query 'q0' before, now 2"),
        ],
    )
    def test_error_names_file_line_and_what_was_expected(
        self, tmp_path: Path, line: str, message: str
    ):
        path = tmp_path / "test.tsv"
        path.write_text("q0\td0\t1\n" + line + "\n")
        with pytest.raises(ValueError, match=message):
            load_qrels(path)

    def test_refuses_a_file_with_only_a_header(self, tmp_path: Path):
        path = tmp_path / "test.tsv"
        path.write_text("query-id\tcorpus-id\tscore\n")
        with pytest.raises(ValueError, match=r"test\.tsv: expected lines of .* found none"):
            load_qrels(path)

    def test_bytes_that_are_not_utf_8_are_refused_with_the_file_name(self, tmp_path: Path):
        path = tmp_path / "test.tsv"
        path.write_bytes(b"q1\td\xff\t1\n")
        with pytest.raises(ValueError, match=r"test\.tsv: expected UTF-8"):
            load_qrels(path)

    @pytest.mark.parametrize(
        "content", [b"q1\td1\t1\n", gzip.compress(b"q1\td1\t1\n" * 9)[:-9]], ids=["plain", "cut"]
    )
    def test_broken_gzip_is_refused_with_the_file_name(self, tmp_path: Path, content: bytes):
        path = tmp_path / "test.tsv.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"test\.tsv\.gz: expected a whole gzip file"):
            load_qrels(path)


def test_reads_a_data_set_in_beir_layout():
    queries = load_queries(XQUAD / "queries.jsonl.gz")
    qrels = load_qrels(XQUAD / "qrels.tsv.gz")
    documents = {record["_id"] for record in json_lines(XQUAD / "corpus.jsonl.gz")}
    assert len(queries) == len(qrels) == 1185
    assert qrels.keys() == queries.keys()
    assert {document for judged in qrels.values() for document in judged} <= documents
