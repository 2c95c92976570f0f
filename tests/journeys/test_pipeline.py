"""What the four assets promise together, on real stores, with an embedder that counts."""

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.settings import ChunkingSettings
from embedding_assets.deduplicated_chunks.chunks import Splitter
from embedding_assets.runs.history import latest_materializations
from resources.caches.vectors import CONTENT_HASH_TYPE
from resources.embedders.base import EmbeddingBatch, Role
from resources.errors import EmbeddingError, ModelError
from resources.identity.content_hash import content_hash
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.deduplicated_chunks.test_splitter import byte_level, generated_texts
from tests.support.fakes import (
    NOT_A_NUMBER,
    POISON,
    CountingEmbedder,
    fake_vector,
    word_piece_tokenizer,
)
from tests.support.instance import shipped_instance
from tests.support.pipeline import (
    Pipeline,
    checks,
    numbers,
    per_partition,
    sentences,
    write_jsonl,
)

BUCKETS = {"partitions": {"by": "bucket", "count": 1}}
YEARS = {
    "source": {"fields": {"timestamp": "created"}},
    "partitions": {"by": "year", "start": "2023-01-01"},
}


def _records(count: int) -> list[dict[str, str]]:
    return [
        {
            "id": f"d{i}",
            "title": f"Title {i}",
            "text": f"Paragraph number {i} of this text.\n\nIt says {i * 7}.",
        }
        for i in range(count)
    ]


def _dated(document_id: str, created: str, text: str = "") -> dict[str, str]:
    return {"id": document_id, "created": created, "text": text or f"The text of {document_id}."}


def _long_text(paragraphs: int, seed: int = 0) -> str:
    words = [
        "archive",
        "index",
        "vector",
        "token",
        "cluster",
        "garden",
        "river",
        "mountain",
        "letter",
        "number",
        "window",
    ]
    rng = np.random.default_rng(seed)
    return "\n\n".join(
        f"Paragraph {i}. " + " ".join(rng.choice(words, 40)) + "." for i in range(paragraphs)
    )


def _pipeline(
    folder: Path, records: Sequence[Mapping[str, Any]], settings: dict[str, Any], **options: Any
) -> Pipeline:
    source = write_jsonl(folder / "source" / "a.jsonl", records)
    return Pipeline(folder, str(source.parent), settings=dict(settings), **options)


def _ids(pipeline: Pipeline) -> set[str]:
    return {row["document_id"] for row in pipeline.rows()}


def _fake(pipeline: Pipeline) -> CountingEmbedder:
    assert isinstance(pipeline.embedder, CountingEmbedder)
    return pipeline.embedder


# --- Incremental runs ----------------------------------------------------------------------------


def test_a_first_run_embeds_everything_and_a_second_nothing(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source" / "a.jsonl", _records(50))
    pipeline = Pipeline(
        tmp_path, str(source), settings={"partitions": {"by": "bucket", "count": 3}}
    )
    first = pipeline.run()
    assert all(checks(first).values())
    assert numbers(first, "documents")["added"] == 50
    assert numbers(first, "embeddings")["embedded"] == len(pipeline.rows()) == 50
    second = pipeline.run()
    assert numbers(second, "documents")["unchanged"] == 50
    assert numbers(second, "embeddings")["embedded"] == 0
    assert numbers(second, "embeddings")["cache_hit_rate"] == 3
    assert numbers(second, "vector_index")["rows_written"] == 0
    assert all(checks(second).values())


def test_renamed_and_reordered_source_files_embed_and_write_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    records = _records(20)
    pipeline = _pipeline(tmp_path, records[:12], BUCKETS)
    write_jsonl(source / "b.jsonl", records[12:])
    pipeline.run()
    before, embedded = pipeline.rows(), len(_fake(pipeline).texts)
    (source / "a.jsonl").unlink()
    (source / "b.jsonl").unlink()
    write_jsonl(source / "elsewhere" / "z.jsonl", records[::-2])
    write_jsonl(source / "c.jsonl", records[::-1][1::2])
    again = pipeline.run()
    assert len(_fake(pipeline).texts) == embedded == 20
    assert numbers(again, "vector_index")["rows_written"] == 0
    assert numbers(again, "vector_index")["rows_removed"] == 0
    assert numbers(again, "documents")["unchanged"] == 20
    assert pipeline.rows() == before


def test_one_edited_paragraph_embeds_at_most_three_texts(tmp_path: Path) -> None:
    paragraphs = _long_text(60).split("\n\n")
    pipeline = _pipeline(tmp_path, [{"id": "long", "text": "\n\n".join(paragraphs)}], BUCKETS)
    pipeline.run()
    chunks = len(pipeline.rows())
    assert chunks > 10
    for edited in (0, 31):
        paragraphs[edited] += " One more sentence was written here."
        write_jsonl(
            tmp_path / "source" / "a.jsonl", [{"id": "long", "text": "\n\n".join(paragraphs)}]
        )
        before = len(_fake(pipeline).texts)
        result = pipeline.run()
        assert 1 <= len(_fake(pipeline).texts) - before <= 3
        assert numbers(result, "documents")["changed"] == 1
        assert all(checks(result).values())


def test_folders_may_be_called_anything_that_a_path_allows(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "title": "A", "text": "one"}])
    # The second, taken for a pattern, would match the first as well.
    for name in ("x1/yy/version=1/it's", "x[1]/y*/version=1/it's"):
        pipeline = Pipeline(tmp_path / name, str(source), settings=dict(BUCKETS))
        for _ in range(2):
            assert _all_but_throughput(pipeline.run())
        write_jsonl(source, [{"id": name, "title": name, "text": name}])
        assert _all_but_throughput(pipeline.run())
        assert [row["text"] for row in pipeline.rows()] == [name]


def _all_but_throughput(result: dg.ExecuteInProcessResult) -> bool:
    """On a busy machine, one of three runs over a single text may be much slower than another."""
    return all(passed for name, passed in checks(result).items() if name != "throughput")


def test_the_same_paragraph_in_two_collections_is_embedded_once(tmp_path: Path) -> None:
    record = {"id": "mine", "title": "Shared", "text": "The same paragraph."}
    first = _pipeline(tmp_path, [record], BUCKETS, name="first")
    other = write_jsonl(tmp_path / "other.jsonl", [{**record, "id": "theirs"}])
    second = Pipeline(tmp_path, str(other), name="second", settings=dict(BUCKETS))
    assert first.cache.path == second.cache.path
    first.run()
    result = second.run()
    assert len(_fake(first).texts) == 1
    assert _fake(second).texts == []
    assert numbers(result, "embeddings")["cache_hits"] == 1
    assert [r["vector"] for r in first.rows()] == [r["vector"] for r in second.rows()]


@pytest.mark.parametrize("count", [1, 8], ids=["one partition", "over partitions"])
def test_a_text_that_occurs_twice_in_one_run_is_embedded_once(tmp_path: Path, count: int) -> None:
    records = [{"id": f"d{i}", "text": "Twelve times the same text."} for i in range(12)]
    pipeline = _pipeline(tmp_path, records, {"partitions": {"by": "bucket", "count": count}})
    result = pipeline.run()
    assert sum(m["documents"] > 0 for m in per_partition(result, "documents").values()) > count / 2
    assert len(_fake(pipeline).texts) == numbers(result, "embeddings")["embedded"] == 1
    assert numbers(result, "embeddings")["chunks"] == len(pipeline.rows()) == 12
    assert all(checks(result).values())


def test_unchanged_documents_are_not_split_again_and_changed_settings_split_all(
    tmp_path: Path,
) -> None:
    records = [{"id": f"d{i}", "title": "T", "text": _long_text(4, i)} for i in range(10)]
    pipeline = _pipeline(tmp_path, records, BUCKETS)
    assert numbers(pipeline.run(), "deduplicated_chunks")["documents_split"] == 10
    records[3]["text"] += " More."
    write_jsonl(tmp_path / "source" / "a.jsonl", records)
    result = numbers(pipeline.run(), "deduplicated_chunks")
    assert (result["documents_split"], result["documents_unchanged"]) == (1, 9)
    whole = len(pipeline.rows())

    finer = _pipeline(tmp_path, records, {**BUCKETS, "chunking": {"max_tokens": 64}})
    result = finer.run()
    assert numbers(result, "deduplicated_chunks")["documents_split"] == 10
    assert len(finer.rows()) > whole
    assert all(checks(result).values())
    alone = _pipeline(tmp_path / "new", records, {**BUCKETS, "chunking": {"max_tokens": 64}})
    alone.run()
    assert finer.rows() == alone.rows()


def test_a_changed_context_gives_the_rows_of_a_fresh_build(tmp_path: Path) -> None:
    records = [{"id": f"d{i}", "title": f"T{i}", "text": _long_text(3, i)} for i in range(4)]
    _pipeline(tmp_path, records, BUCKETS).run()
    changed = _pipeline(tmp_path, records, {**BUCKETS, "chunking": {"context": "none"}})
    assert all(checks(changed.run()).values())
    fresh = _pipeline(tmp_path / "new", records, {**BUCKETS, "chunking": {"context": "none"}})
    fresh.run()
    assert {row["context"] for row in changed.rows()} == {""}
    assert changed.rows() == fresh.rows()


def test_another_model_gets_a_table_of_its_own_and_the_old_one_stays(tmp_path: Path) -> None:
    old = _pipeline(tmp_path, _records(6), BUCKETS)
    old.run()
    before = old.rows()
    embedder = CountingEmbedder(model="another", dimension=16)
    new = _pipeline(tmp_path, _records(6), BUCKETS, embedder=embedder)
    # Vectors of the old space must not get into the new table.
    with pytest.raises(dg.Failure, match=r"another embedding space.*Materialize 'corpus/embedd"):
        new.run(assets=["vector_index"])
    assert new.rows() == []
    assert all(checks(new.run()).values())
    assert {len(row["vector"]) for row in new.rows()} == {16}
    assert len(new.rows()) == len(before)
    assert old.rows() == before


def test_documents_that_vanish_while_settings_change_leave_no_chunks_to_embed(
    tmp_path: Path,
) -> None:
    _pipeline(tmp_path, _records(3), BUCKETS).run()
    (tmp_path / "source" / "a.jsonl").write_text("")
    changed = _pipeline(tmp_path, [], {**BUCKETS, "chunking": {"context": "none"}})
    result = changed.run(config={"documents": {"accept_deletions": True}})
    assert numbers(result, "deduplicated_chunks")["distinct_chunks"] == 0
    assert _fake(changed).texts == []
    assert changed.rows() == []


# --- Deleted, moved, shortened -------------------------------------------------------------------


def test_a_deleted_document_disappears_even_the_last_of_its_partition(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, [_dated("a", "2023-05-01"), _dated("b", "2024-05-01")], YEARS)
    pipeline.run()
    write_jsonl(tmp_path / "source" / "a.jsonl", [_dated("a", "2023-05-01")])
    result = pipeline.run()
    assert numbers(result, "documents")["deleted"] == 1
    assert numbers(result, "vector_index")["rows_removed"] == 1
    assert _ids(pipeline) == {"a"}
    assert all(checks(result).values())


def test_a_shorter_document_leaves_no_chunk_of_its_older_version(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, [{"id": "a", "text": _long_text(30)}], BUCKETS)
    pipeline.run()
    assert len(pipeline.rows()) > 5
    write_jsonl(tmp_path / "source" / "a.jsonl", [{"id": "a", "text": _long_text(1)}])
    result = pipeline.run()
    (row,) = pipeline.rows()
    assert row["text"] == _long_text(1)
    assert all(checks(result).values())


@pytest.mark.parametrize(
    ("old", "new", "only_new"),
    [("2023", "2024", True), ("2024", "2023", True), ("2024", "2023", False)],
)
def test_a_document_that_moves_to_another_partition_leaves_no_trace_in_the_old_one(
    tmp_path: Path, old: str, new: str, only_new: bool
) -> None:
    moving, staying = _long_text(8), [_dated("s3", "2023-02-02"), _dated("s4", "2024-02-02")]
    pipeline = _pipeline(tmp_path, [*staying, _dated("m", f"{old}-06-01", moving)], YEARS)
    pipeline.run()
    write_jsonl(tmp_path / "source" / "a.jsonl", [*staying, _dated("m", f"{new}-06-01", moving)])
    result = pipeline.run(new) if only_new else pipeline.run()
    assert all(checks(result).values())
    expected = _pipeline(tmp_path / "b", [*staying, _dated("m", f"{new}-06-01", moving)], YEARS)
    expected.run()
    assert pipeline.rows() == expected.rows()
    # The old partition's artifacts still hold the document: they must not bring it back.
    result = pipeline.run(old, assets=["vector_index"])
    assert all(checks(result).values())
    assert pipeline.rows() == expected.rows()


def test_a_run_does_not_remove_what_another_has_put_elsewhere_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staying = [_dated("s3", "2023-02-02"), _dated("s4", "2024-02-02")]
    pipeline = _pipeline(tmp_path, [*staying, _dated("m", "2023-06-01")], YEARS)
    pipeline.run()
    write_jsonl(tmp_path / "source" / "a.jsonl", [*staying, _dated("m", "2024-06-01")])
    pipeline.run(assets=["documents", "deduplicated_chunks", "embeddings"])
    replace = LanceDBVectorStore.replace

    def late_replace(*given: Any, **options: Any) -> None:
        monkeypatch.undo()
        pipeline.run("2024", assets=["vector_index"])
        replace(*given, **options)

    monkeypatch.setattr(LanceDBVectorStore, "replace", late_replace)
    pipeline.run("2023", assets=["vector_index"])
    partitions = {row["document_id"]: row["partition"] for row in pipeline.rows()}
    assert partitions == {"s3": "2023", "s4": "2024", "m": "2024"}


def test_a_moved_document_that_cannot_be_embedded_is_in_neither_partition(tmp_path: Path) -> None:
    others = [_dated(f"o{i}", "2024-02-02") for i in range(3)]
    pipeline = _pipeline(tmp_path, [*others, _dated("m", "2023-06-01", "Old text.")], YEARS)
    pipeline.run()
    records = [*others, _dated("m", "2024-06-01", f"New text: {POISON}.")]
    write_jsonl(tmp_path / "source" / "a.jsonl", records)
    pipeline.run("2024")
    assert _ids(pipeline) == {"o0", "o1", "o2"}


def test_any_order_of_partitions_gives_an_equal_store(tmp_path: Path) -> None:
    order = ("2025", "2023", "2024")
    first = [_dated(f"d{i}", f"{2023 + i % 3}-03-01", _long_text(1 + i, i)) for i in range(9)]
    second = [
        _dated(r["id"], f"{2023 + (i + i % 2) % 3}-03-01", r["text"] + " Edited." * (i % 2))
        for i, r in enumerate(first)
        if i != 4
    ]
    pipeline = _pipeline(tmp_path, first, YEARS)
    for partition in order:
        pipeline.run(partition)
    write_jsonl(tmp_path / "source" / "a.jsonl", second)
    for partition in order[::-1]:
        assert all(checks(pipeline.run(partition)).values())
    fresh = _pipeline(tmp_path / "fresh", second, YEARS)
    fresh.run()
    assert pipeline.rows() == fresh.rows()


# --- Duplicate ids -------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a.jsonl", "b.jsonl"), ("b.jsonl", "a.jsonl")])
@pytest.mark.parametrize("turned", [False, True], ids=["in order", "reversed"])
def test_the_winner_of_a_duplicate_id_depends_on_neither_file_names_nor_order(
    tmp_path: Path, names: tuple[str, str], turned: bool
) -> None:
    texts = [f"Version {i} of the document." for i in range(5)]
    records = [{"id": "same", "text": text} for text in texts]
    if turned:
        records.reverse()
    pipeline = _pipeline(tmp_path, [], BUCKETS)
    write_jsonl(tmp_path / "source" / names[0], records[:2])
    write_jsonl(tmp_path / "source" / names[1], records[2:])
    (tmp_path / "source" / "a.jsonl").touch()
    result = pipeline.run()
    (row,) = pipeline.rows()
    assert row["text"] == "Version 4 of the document."  # always this one
    (winner,) = pipeline.documents()
    losers = pipeline.quarantine()
    assert {q["reason"] for q in losers} == {"duplicate_id"}
    assert {q["document_id"] for q in losers} == {"same"}
    assert all(f"{winner['file']} line {winner['line']}" in q["detail"] for q in losers)
    positions = {(q["file"], q["line"]) for q in losers} | {(winner["file"], winner["line"])}
    assert positions == {
        (names[0], 1), (names[0], 2), (names[1], 1), (names[1], 2), (names[1], 3),
    }  # fmt: skip
    assert numbers(result, "documents")["quarantined"] == 4
    assert all(checks(result).values())


@pytest.mark.parametrize("runs", [[()], [("2023",)], [("2024",)], [("2024",), ("2023",)]])
def test_of_duplicate_ids_in_two_partitions_the_later_wins_in_whatever_is_run(
    tmp_path: Path, runs: list[tuple[str, ...]]
) -> None:
    records = [
        _dated("same", "2024-01-01", "The later one."),
        _dated("other", "2023-01-01"),
        _dated("same", "2023-01-01", "The earlier one."),
    ]
    pipeline = _pipeline(tmp_path, records, YEARS)
    for keys in runs:
        assert all(checks(pipeline.run(*keys)).values())
    texts = {row["text"] for row in pipeline.rows()}
    assert "The earlier one." not in texts
    assert ("The later one." in texts) == (runs != [("2023",)])
    if runs != [("2024",)]:
        (loser,) = pipeline.quarantine()
        assert (loser["reason"], loser["file"], loser["line"]) == ("duplicate_id", "a.jsonl", 3)
        assert "a.jsonl line 1" in loser["detail"]


# --- Broken sources ------------------------------------------------------------------------------


def test_documents_of_a_file_that_breaks_are_kept_and_the_file_is_named(tmp_path: Path) -> None:
    records = [{"id": f"z{i}", "text": _long_text(1, i)} for i in range(200)]
    source = tmp_path / "source"
    pipeline = _pipeline(tmp_path, _records(3), BUCKETS)
    whole = gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode())
    (source / "b.jsonl.gz").write_bytes(whole)
    pa_table = pa.table({"id": ["p1", "p2"], "text": ["From a table.", "Also from a table."]})
    import pyarrow.parquet as pq

    pq.write_table(pa_table, source / "c.parquet")
    pipeline.run()
    before = pipeline.rows()
    assert len({row["document_id"] for row in before}) == 205

    (source / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (source / "c.parquet").write_bytes(b"PAR1 no longer a table PAR1")
    result = pipeline.run()
    assert pipeline.rows() == before
    assert checks(result)["accounting"] is False
    (accounting,) = [
        e for e in result.get_asset_check_evaluations() if e.check_name == "accounting"
    ]
    assert accounting.severity == dg.AssetCheckSeverity.ERROR
    assert accounting.metadata["broken_files"].value == "b.jsonl.gz, c.parquet"
    assert int(str(accounting.metadata["deletions_withheld"].value)) > 2
    assert {(q["reason"], q["file"]) for q in pipeline.quarantine()} == {
        ("broken_file", "b.jsonl.gz"),
        ("broken_file", "c.parquet"),
    }
    assert numbers(result, "documents")["deleted"] == 0

    pipeline.run()
    assert pipeline.rows() == before
    assert {q["attempts"] for q in pipeline.quarantine()} == {2}

    (source / "b.jsonl.gz").write_bytes(whole)
    (source / "c.parquet").unlink()
    result = pipeline.run()
    assert all(checks(result).values())
    assert _ids(pipeline) == {r["document_id"] for r in before} - {"p1", "p2"}
    assert pipeline.quarantine() == []


def test_a_document_kept_from_a_broken_file_does_not_return_to_its_old_partition(
    tmp_path: Path,
) -> None:
    moved = gzip.compress(json.dumps(_dated("m", "2024-06-01")).encode() + b"\n")
    pipeline = _pipeline(tmp_path, [_dated("s", "2023-02-02")], YEARS)
    old = gzip.compress(json.dumps(_dated("m", "2023-06-01")).encode() + b"\n")
    (tmp_path / "source" / "m.jsonl.gz").write_bytes(old)
    pipeline.run()
    (tmp_path / "source" / "m.jsonl.gz").write_bytes(moved)
    pipeline.run("2024")
    expected = pipeline.rows()
    assert {r["partition"] for r in expected if r["document_id"] == "m"} == {"2024"}
    (tmp_path / "source" / "m.jsonl.gz").write_bytes(b"no gzip")
    pipeline.run("2023")  # its artifacts knew the document last
    assert pipeline.rows() == expected
    pipeline.run()
    assert pipeline.rows() == expected


def test_a_missing_source_fails_the_run_clearly_and_leaves_the_index_untouched(
    tmp_path: Path,
) -> None:
    pipeline = _pipeline(tmp_path, _records(4), BUCKETS)
    pipeline.run()
    before = pipeline.rows()
    (tmp_path / "source" / "a.jsonl").rename(tmp_path / "away")
    (tmp_path / "source").rmdir()
    with pytest.raises(FileNotFoundError, match=r"Expected documents at .*source"):
        pipeline.run()
    assert pipeline.rows() == before
    assert len(pipeline.documents()) == 4


def test_quarantine_entries_of_files_that_are_gone_go_too(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pipeline = _pipeline(tmp_path, _records(2), BUCKETS)
    (source / "bad.jsonl").write_text("not json\n")
    pipeline.run()
    assert [(q["reason"], q["file"], q["line"]) for q in pipeline.quarantine()] == [
        ("malformed_line", "bad.jsonl", 1)
    ]
    pipeline.run()
    assert [q["attempts"] for q in pipeline.quarantine()] == [2]
    (source / "bad.jsonl").rename(source / "renamed.jsonl")
    pipeline.run()
    assert [q["file"] for q in pipeline.quarantine()] == ["renamed.jsonl"]


# --- Texts and embedders that fail ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"), [(POISON, "embedding_failed"), (NOT_A_NUMBER, "invalid_vector")]
)
def test_a_document_that_cannot_be_embedded_is_quarantined_whole_and_the_others_stored(
    tmp_path: Path, bad: str, reason: str
) -> None:
    # Two bad documents: when all else is cached, they alone must not look like a broken embedder.
    poisoned = [
        {"id": f"bad{i}", "text": f"{_long_text(10, i)}\n\nBut {bad}.\n\n{_long_text(10, 10 + i)}"}
        for i in range(2)
    ]
    pipeline = _pipeline(tmp_path, [*_records(20), *poisoned], BUCKETS)
    for attempt in (1, 2):
        result = pipeline.run(raise_on_error=False)
        assert _ids(pipeline) == {f"d{i}" for i in range(20)}
        outcome = numbers(result, "embeddings")
        assert outcome["errors"] == 2
        assert outcome["cache_hits"] + outcome["cache_misses"] == outcome["distinct_chunks"]
        assert outcome["embedded"] + outcome["errors"] == outcome["cache_misses"]
        assert checks(result)["error_rate"] is False
        assert checks(result)["completeness"]
        assert checks(result)["vector_integrity"]
        assert numbers(result, "vector_index")["documents_withheld"] == 2
        refused = pipeline.embedding_quarantine()
        assert [(q["document_id"], q["file"], q["line"]) for q in refused] == [
            ("bad0", "a.jsonl", 21),
            ("bad1", "a.jsonl", 22),
        ]
        assert {q["reason"] for q in refused} == {reason}
        assert {q["attempts"] for q in refused} == {attempt}
    write_jsonl(tmp_path / "source" / "a.jsonl", [*_records(20), {"id": "bad0", "text": "Cured."}])
    result = pipeline.run()
    assert all(checks(result).values())
    assert _ids(pipeline) == {f"d{i}" for i in range(20)} | {"bad0"}
    assert pipeline.embedding_quarantine() == []


def test_errors_below_the_threshold_pass_the_check(tmp_path: Path) -> None:
    records = [*_records(3), {"id": "bad", "text": POISON}]
    settings = {**BUCKETS, "checks": {"max_error_rate": 0.5}}
    result = _pipeline(tmp_path, records, settings).run()
    assert checks(result)["error_rate"]
    assert numbers(result, "embeddings")["errors"] == 1


class _CountsCalls(CountingEmbedder):
    """Counts also the calls that fail."""

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        CALLS.append(len(texts))
        return super().embed(texts, role)


CALLS: list[int] = []


@pytest.mark.parametrize("new_texts", [1, 2, 300])
def test_an_embedder_that_always_fails_fails_the_run_soon_and_previous_rows_stay(
    tmp_path: Path, new_texts: int
) -> None:
    pipeline = _pipeline(tmp_path, _records(5), BUCKETS)
    pipeline.run()
    before = pipeline.rows()
    broken = _pipeline(
        tmp_path, _records(5 + new_texts), BUCKETS, embedder=_CountsCalls(fails_always=True)
    )
    CALLS.clear()
    with pytest.raises(EmbeddingError, match="the fake model cannot embed"):
        broken.run()
    assert 1 <= len(CALLS) < 40
    assert broken.rows() == before
    hits = broken.store.search("corpus", broken.embedder.space, np.ones(32, np.float32), 5)
    assert len(hits) == 5


def test_what_is_evicted_between_plan_and_embedding_is_embedded_again(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, _records(10), BUCKETS)
    pipeline.run()
    before = pipeline.rows()
    plan = pipeline.run(assets=["documents", "deduplicated_chunks"])
    assert numbers(plan, "deduplicated_chunks")["cache_hits"] == 10
    Path(pipeline.cache.path).unlink()
    result = pipeline.run(assets=["embeddings", "vector_index"])
    assert numbers(result, "embeddings")["embedded"] == 10
    assert pipeline.rows() == before
    assert all(checks(result).values())


def test_hostile_bytes_in_the_cache_are_embedded_again_and_repaired(tmp_path: Path) -> None:
    import duckdb

    hostile = [b"", b"x", b"\xff" * 128, b"\x00" * 128, b"\x00\x00\xc0\x7f" * 32, b"A" * 1_000]
    pipeline = _pipeline(tmp_path, _records(len(hostile) + 2), BUCKETS)
    pipeline.run()
    before = pipeline.rows()
    space = pipeline.embedder.space
    with duckdb.connect(pipeline.cache.path) as database:
        for row, entry in zip(before, hostile, strict=False):
            database.execute(
                f'UPDATE "vectors_{space.id}" SET vector = ? WHERE content_hash = ?',
                [entry, row["content_hash"]],
            )
    result = pipeline.run()
    assert numbers(result, "embeddings")["cache_entries_rejected"] == len(hostile)
    assert numbers(result, "embeddings")["embedded"] == len(hostile)
    assert pipeline.rows() == before
    assert all(checks(result).values())
    hashes = pa.array([row["content_hash"] for row in before], CONTENT_HASH_TYPE)
    repaired = pipeline.cache.get(space, hashes)
    assert repaired.found.all()
    assert repaired.rejected == 0


# --- Chunking through the pipeline ---------------------------------------------------------------

_MARKDOWN = "\n\n".join(
    f"# Part {part}\n\nIntroduction to part {part}.\n\n"
    + "\n\n".join(f"## Section {part}.{s}\n\n{_long_text(5, 10 * part + s)}" for s in range(4))
    for part in range(3)
)


@pytest.mark.parametrize(
    "chunking",
    [
        {},
        {"context": "none"},
        {"context": "headings"},
        {"context": "headings", "max_tokens": 32},
        {"overlap": 40},
        {"overlap": 30, "context": "headings", "max_tokens": 128},
        {"strategy": "whole"},
    ],
    ids=str,
)
def test_every_row_holds_exactly_its_span_of_the_document_and_is_within_the_limit(
    tmp_path: Path, chunking: dict[str, Any]
) -> None:
    records = [
        {"id": "md", "title": "A title " * 40, "text": _MARKDOWN},
        {"id": "plain", "title": "Short", "text": _long_text(30)},
        {"id": "untitled", "text": "Ünïcödé, 世界, and a word" + " word" * 300},
    ]
    pipeline = _pipeline(tmp_path, records, {**BUCKETS, "chunking": chunking})
    result = pipeline.run()
    assert all(checks(result).values())
    texts = {d["id"]: d["text"] for d in pipeline.documents()}
    tokenizer = word_piece_tokenizer()
    limit = chunking.get("max_tokens", 256)
    covered: dict[str, set[int]] = {document: set() for document in texts}
    repeated = 0
    for row in pipeline.rows():
        text = texts[row["document_id"]]
        assert row["text"] == text[row["span_start"] : row["span_end"]]
        assert row["content_hash"] == content_hash(row["context"] + row["text"])
        span = set(range(row["span_start"], row["span_end"]))
        repeated += len(span & covered[row["document_id"]])
        covered[row["document_id"]] |= span
        if chunking.get("strategy") != "whole":
            assert len(tokenizer.encode(row["context"] + row["text"])) <= limit
        if chunking.get("context") == "none":
            assert row["context"] == ""
    for document, text in texts.items():
        assert not "".join(c for i, c in enumerate(text) if i not in covered[document]).strip()
    assert bool(repeated) == ("overlap" in chunking)
    embedded = {row["context"] + row["text"] for row in pipeline.rows()}
    assert set(_fake(pipeline).texts) == embedded


class _ByteLevelEmbedder(CountingEmbedder):
    def new_tokenizer(self) -> Tokenizer:
        return byte_level()


@pytest.mark.parametrize("context", ["none", "title", "headings"])
@pytest.mark.parametrize("embedder", [CountingEmbedder(), _ByteLevelEmbedder()])
def test_no_text_is_over_the_limit_when_it_is_tokenised_by_itself(
    embedder: CountingEmbedder, context: Any
) -> None:
    # Parts of words, and words without the space before them, may be other tokens by themselves.
    texts = [text for text in generated_texts(seed=3, count=30) if text]
    titles = [f"antidisestablishmentarianism{i} " * 9 for i in range(len(texts))]
    documents = pa.record_batch(
        {
            "id": [str(i) for i in range(len(texts))],
            "title": titles,
            "text": texts,
            "version": [bytes(20)] * len(texts),
        }
    )
    settings = ChunkingSettings(max_tokens=24, context=context)
    chunks = Splitter("corpus", settings, embedder).chunks(documents).to_pylist()
    encodings = embedder.new_tokenizer().encode_batch(
        [chunk["context"] + chunk["text"] for chunk in chunks], add_special_tokens=False
    )
    assert max(map(len, encodings)) + embedder.special_tokens == 24


def test_an_overlap_for_a_larger_model_leaves_room_beside_a_long_title(tmp_path: Path) -> None:
    records = [{"id": "a", "title": "long title " * 60, "text": "words of a text. " * 300}]
    source = write_jsonl(tmp_path / "a.jsonl", records)
    chunking = {"max_tokens": 512, "overlap": 256}  # of a model that takes 254
    pipeline = Pipeline(tmp_path, str(source), settings={"chunking": chunking})
    assert all(checks(pipeline.run()).values())
    assert 5 < len(pipeline.rows()) < 50


def test_headings_above_a_chunk_are_in_its_context(tmp_path: Path) -> None:
    records = [{"id": "md", "title": "Manual", "text": _MARKDOWN}]
    pipeline = _pipeline(tmp_path, records, {**BUCKETS, "chunking": {"context": "headings"}})
    pipeline.run()
    contexts = {row["context"] for row in pipeline.rows()}
    assert "Manual\n\nPart 1 > Section 1.2\n\n" in contexts
    assert all(context.startswith("Manual\n\nPart ") for context in contexts)


@pytest.mark.parametrize("max_tokens", [256, 64])
def test_strategy_whole_embeds_title_and_text_as_one_and_counts_what_the_model_cuts(
    tmp_path: Path, max_tokens: int
) -> None:
    long = " ".join(["word"] * 400)
    records = [
        {"id": "long", "title": "Two words", "text": long},
        {"id": "short", "title": "A title", "text": "A text."},
        {"id": "untitled", "text": "Only a text."},
    ]
    chunking = {"strategy": "whole", "max_tokens": max_tokens}
    pipeline = _pipeline(tmp_path, records, {**BUCKETS, "chunking": chunking})
    result = pipeline.run()
    assert sorted(_fake(pipeline).texts) == sorted(
        ["Two words " + long, "A title A text.", "Only a text."]
    )
    # 402 words and two special tokens, of which the model takes 256.
    assert numbers(result, "embeddings")["tokens_truncated"] == 404 - 256
    chunks = pipeline._table(lambda name, key: f"{name}/deduplicated_chunks/{key}/chunks.parquet")
    assert {c["document_id"]: (c["tokens"], c["tokens_truncated"]) for c in chunks} == {
        "long": (256, 404 - 256),
        "short": (7, 0),
        "untitled": (6, 0),
    }
    assert [(r["span_start"], r["span_end"]) for r in pipeline.rows()] == [
        (0, len(r["text"])) for r in pipeline.rows()
    ]


# --- Numbers and checks --------------------------------------------------------------------------


def test_every_partition_of_a_range_run_has_its_own_metadata_in_plain_numbers(
    tmp_path: Path,
) -> None:
    pipeline = _pipeline(tmp_path, _records(20), {"partitions": {"by": "bucket", "count": 3}})
    result = pipeline.run()
    expected = {
        "documents": ["documents", "added", "changed", "unchanged", "deleted", "quarantined"],
        "deduplicated_chunks": ["chunks", "distinct_chunks", "cache_hits", "cache_misses"],
        "embeddings": [
            "chunks", "distinct_chunks", "cache_hits", "cache_misses", "cache_hit_rate",
            "embedded", "tokens", "tokens_truncated", "chunks_per_second", "tokens_per_second",
            "errors", "error_rate", "peak_memory_mb",
        ],
        "vector_index": ["rows", "rows_written", "rows_removed"],
    }  # fmt: skip
    for asset, names in expected.items():
        found = per_partition(result, asset)
        assert set(found) == {"bucket_0", "bucket_1", "bucket_2"}
        for metadata in found.values():
            assert set(names) <= set(metadata)
            assert all(type(metadata[name]) in (int, float) for name in names)
            assert metadata["dagster/partition_row_count"] == metadata[names[0]]
    embeddings = per_partition(result, "embeddings")
    rows = [row["partition"] for row in pipeline.rows()]
    for metadata in per_partition(result, "vector_index").values():
        assert metadata["dagster/row_count"] == len(rows)
        assert metadata["dagster/table_name"] == f"corpus__{pipeline.embedder.space.id}"
    for partition, metadata in embeddings.items():
        assert metadata["chunks"] == metadata["embedded"] == rows.count(str(partition))
    assert sum(m["tokens"] for m in embeddings.values()) == sum(
        len(text.split()) + 2 for text in _fake(pipeline).texts
    )


def test_throughput_and_cache_hit_rate_are_judged_by_the_thresholds(tmp_path: Path) -> None:
    limits = {"min_chunks_per_second": 1e12, "min_cache_hit_rate": 0.5}
    pipeline = _pipeline(tmp_path, _records(5), {**BUCKETS, "checks": limits})
    first = pipeline.run()
    assert not checks(first)["throughput"]
    assert not checks(first)["cache_hit_rate"]
    assert {e.severity for e in first.get_asset_check_evaluations() if not e.passed} == {
        dg.AssetCheckSeverity.WARN
    }
    said = sentences(first)
    assert said["throughput"].startswith("5 chunks were embedded: ")
    assert said["throughput"].endswith("less than 1e+12 (checks.min_chunks_per_second).")
    assert said["cache_hit_rate"] == (
        "The cache held 0 of 5 distinct chunks (0.0%), less than 50% (checks.min_cache_hit_rate)."
    )
    second = pipeline.run()
    assert all(checks(second).values())  # nothing was embedded, all came from the cache
    assert sentences(second) == {
        "accounting": "Of 5 records read 5 are stored and 0 refused.",
        "space_drift": "Nothing was embedded, so the model was not asked.",
        "unknown_tokens": (
            "Nothing was embedded, or the embedder does not tell which tokens it knows."
        ),
        "throughput": "Nothing was embedded, so there is no speed to judge.",
        "cache_hit_rate": "The cache held 5 of 5 distinct chunks (100.0%).",
        "error_rate": "No text was given to the model.",
        "vector_integrity": (
            "5 rows were read back: all vectors are valid in their embedding space, and all keys "
            "are those of their texts."
        ),
        "completeness": (
            "The chunks of all documents of these partitions are in the index, and nothing else "
            "is; it has 5 rows in all."
        ),
    }


def _table(pipeline: Pipeline) -> Any:
    import lancedb

    name = f"{pipeline.name}__{pipeline.embedder.space.id}"
    return lancedb.connect(pipeline.store.uri).open_table(name)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("vector", [0.5] * 32),
        ("vector", [0.0] * 32),
        ("text", "another text"),
        ("context", "another context"),
        ("content_hash", b"x" * 20),
    ],
)
def test_vector_integrity_fails_where_a_stored_row_was_altered(
    tmp_path: Path, column: str, value: Any
) -> None:
    class Altering(LanceDBVectorStore):
        """Stores one row wrongly, as a failing disk would."""

        def replace(
            self, collection: str, space: EmbeddingSpace, rows: pa.RecordBatchReader, **options: Any
        ) -> None:
            table = rows.read_all()
            altered = table.to_pylist()
            altered[0][column] = value
            table = pa.Table.from_pylist(altered, table.schema)
            super().replace(collection, space, table.to_reader(), **options)

    pipeline = _pipeline(tmp_path, _records(5), BUCKETS)
    pipeline.resources["vector_store"] = Altering(uri=pipeline.store.uri)
    result = pipeline.run(raise_on_error=False)
    assert checks(result)["vector_integrity"] is False
    (check,) = [
        e for e in result.get_asset_check_evaluations() if e.check_name == "vector_integrity"
    ]
    assert check.metadata["rows_checked"].value == 5
    assert str(check.metadata["examples"].value) in str(check.description)
    key = "invalid_vectors" if column == "vector" else "keys_not_recomputable"
    assert check.metadata[key].value == 1


def test_completeness_fails_where_the_store_lost_or_invented_rows(tmp_path: Path) -> None:
    class Lossy(LanceDBVectorStore):
        """Acknowledges rows that it does not keep."""

        def replace(
            self, collection: str, space: EmbeddingSpace, rows: pa.RecordBatchReader, **options: Any
        ) -> None:
            table = rows.read_all()
            if len(table) > 1:
                table = table.slice(0, len(table) - 1)
            super().replace(collection, space, table.to_reader(), **options)

    pipeline = _pipeline(tmp_path, [{"id": "a", "text": _long_text(30)}], BUCKETS)
    sound = pipeline.resources["vector_store"]
    pipeline.resources["vector_store"] = Lossy(uri=pipeline.store.uri)
    result = pipeline.run(raise_on_error=False)
    assert checks(result)["completeness"] is False
    assert (
        "differs from the documents: 1 chunks missing, 1 documents with gaps."
        in sentences(result)["completeness"]
    )
    pipeline.resources["vector_store"] = sound
    assert checks(pipeline.run())["completeness"]


def test_a_row_lost_or_strange_in_the_store_is_put_right_by_the_next_run(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, [{"id": "a", "text": _long_text(30)}, *_records(3)], BUCKETS)
    pipeline.run()
    before = pipeline.rows()
    _table(pipeline).delete(f"chunk_id = '{before[2]['chunk_id']}'")
    stranger = {**before[0], "chunk_id": "strange", "document_id": "nobody"}
    _table(pipeline).add([stranger])
    assert pipeline.rows() != before
    result = pipeline.run()
    assert numbers(result, "vector_index")["rows_written"] == 1
    assert numbers(result, "vector_index")["rows_removed"] == 1
    assert pipeline.rows() == before
    assert numbers(result, "embeddings")["embedded"] == 0


def test_completeness_fails_where_an_asset_in_between_was_left_out(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, _records(3), BUCKETS)
    pipeline.run()
    records = [{"id": f"d{i}", "text": f"All new: {i}."} for i in range(3)]
    write_jsonl(tmp_path / "source" / "a.jsonl", records)
    result = pipeline.run(assets=["documents", "vector_index"], raise_on_error=False)
    assert checks(result)["completeness"] is False
    result = pipeline.run(
        assets=["documents", "deduplicated_chunks", "vector_index"], raise_on_error=False
    )
    assert checks(result)["completeness"] is False
    assert all(checks(pipeline.run()).values())


@pytest.mark.parametrize(("minimum", "passes"), [(0.9, True), (1.0, False)])
def test_retrieval_quality_blocks_below_its_threshold(
    tmp_path: Path, minimum: float, passes: bool
) -> None:
    """The fake's vectors find a text only by itself, which is enough to be right or wrong."""
    records = [{"id": f"d{i}", "text": f"Text {i}"} for i in range(20)]
    queries = [{"_id": f"q{i}", "text": f"Text {i}"} for i in range(10)]
    write_jsonl(tmp_path / "queries.jsonl", queries)
    judged = "".join(f"q{i}\td{i if i else 1}\t1\n" for i in range(10))  # q0 is judged wrongly
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    evaluation = {
        "queries": str(tmp_path / "queries.jsonl"),
        "qrels": str(tmp_path / "qrels.tsv"),
        "min_ndcg_at_10": minimum,
    }
    pipeline = _pipeline(tmp_path, records, {**BUCKETS, "evaluation": evaluation})
    result = pipeline.run(raise_on_error=False)
    assert checks(result)["retrieval_quality"] is passes
    (check,) = [
        e for e in result.get_asset_check_evaluations() if e.check_name == "retrieval_quality"
    ]
    assert 0.9 <= float(str(check.metadata["ndcg_at_10"].value)) < 1.0
    assert check.blocking
    if passes:
        assert result.success
        before = len(_fake(pipeline).texts)
        pipeline.run()
        assert len(_fake(pipeline).texts) == before  # the queries were cached


# --- Runs that fail half-way ---------------------------------------------------------------------


class _FailsAt(CountingEmbedder):
    """Out of order, not confused by a text: nothing can be embedded any more."""

    outage_at: str

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        if any(self.outage_at in text for text in texts):
            raise ModelError("the model went away")
        return super().embed(texts, role)


def test_a_range_run_that_fails_late_keeps_what_was_finished_and_resumes(tmp_path: Path) -> None:
    records = [
        _dated(f"d{year}-{i}", f"{year}-03-01") for year in range(2022, 2026) for i in range(4)
    ]
    settings = {**YEARS, "partitions": {"by": "year", "start": "2022-01-01"}}
    settings["embedder"] = {"flush_size": 4}  # else one call would have texts of all years
    with shipped_instance(tmp_path / "instance") as instance:
        broken = _pipeline(tmp_path, records, settings, embedder=_FailsAt(outage_at="d2024-"))
        with pytest.raises(EmbeddingError, match="the model went away"):
            broken.run("2022", "2025", instance=instance)

        def materialized(asset: str) -> set[str]:
            return instance.get_materialized_partitions(dg.AssetKey(["corpus", asset]))

        years = {str(year) for year in range(2022, 2026)}
        assert materialized("documents") == materialized("deduplicated_chunks") == years
        assert materialized("embeddings") == {"2022", "2023"}
        assert materialized("vector_index") == set()

        repaired = _pipeline(tmp_path, records, settings)
        result = repaired.run("2022", "2025", instance=instance)
        assert sorted(_fake(repaired).texts) == sorted(
            r["text"] for r in records if r["created"][:4] in ("2024", "2025")
        )
        assert materialized("embeddings") == materialized("vector_index") == years
        assert all(checks(result).values())
        assert len(repaired.rows()) == 16
        leftovers = [p for p in (tmp_path / "artifacts").rglob("*") if re.search("tmp", p.name)]
        assert leftovers == []


def test_small_partitions_share_a_call_and_each_keeps_its_own_numbers(tmp_path: Path) -> None:
    records = [
        _dated(f"d{year}-{i}", f"{year}-03-01", text="the same in every year" if i == 0 else "")
        for year in (2023, 2024, 2025)
        for i in range(3)
    ]
    pipeline = _pipeline(tmp_path, records, YEARS)
    result = pipeline.run("2023", "2025")
    assert _fake(pipeline).batch_sizes == [7]
    told = per_partition(result, "embeddings")
    assert {p: (n["embedded"], n["cache_hits"]) for p, n in told.items() if n["chunks"]} == {
        "2023": (3, 0),
        "2024": (2, 1),
        "2025": (2, 1),
    }
    assert all(n["cache_hits"] + n["cache_misses"] == n["distinct_chunks"] for n in told.values())
    for row in pipeline.rows():
        expected = fake_vector(row["context"] + row["text"], len(row["vector"]))
        np.testing.assert_allclose(row["vector"], expected, atol=1e-6)
    assert len(pipeline.rows()) == 9
    assert all(checks(result).values())


def test_partitions_of_a_run_over_very_many_keep_their_essential_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [_dated(f"d{year}", f"{year}-03-01") for year in (2023, 2024, 2025)]
    pipeline = _pipeline(tmp_path, records, YEARS)
    monkeypatch.setattr("embedding_assets.runs.range_run._FEW_PARTITIONS", 1)
    result = pipeline.run("2023", "2024")
    kept = {asset: set(per_partition(result, asset)["2023"]) for asset in CollectionAssets.ASSETS}
    assert kept["documents"] == {"added", "changed", "unchanged", "deleted", "quarantined"}
    assert kept["embeddings"] == {
        "chunks", "distinct_chunks", "cache_hits", "cache_misses", "cache_hit_rate", "embedded",
        "tokens", "tokens_truncated", "chunks_per_second", "tokens_per_second", "errors",
        "error_rate", "peak_memory_mb",
    }  # fmt: skip
    assert kept["vector_index"] == {"rows_written", "dagster/row_count"}
    asset = dg.AssetKey(["corpus", "embeddings"])
    history = latest_materializations(pipeline._instance, asset, 10)
    assert len(history) == 2
    assert all(entry.numbers["seconds_embedding"] > 0 for entry in history)
    assert numbers(result, "embeddings")["embedded"] == 2
    alone = pipeline.run("2025")
    assert set(per_partition(alone, "deduplicated_chunks")["2025"]) > {"chunks", "cache_hit_rate"}


def test_a_store_that_fails_in_a_late_partition_keeps_earlier_ones_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_assets.runs.grouping._PARTITIONS_TOGETHER", 1)

    class FailsAt2024(LanceDBVectorStore):
        def replace(
            self, collection: str, space: EmbeddingSpace, rows: pa.RecordBatchReader, **options: Any
        ) -> None:
            table = rows.read_all()
            if "2024" in table["partition"].to_pylist():
                raise OSError("the disk is full")
            super().replace(collection, space, table.to_reader(), **options)

    records = [_dated(f"d{year}", f"{year}-03-01") for year in range(2023, 2026)]
    with shipped_instance(tmp_path / "instance") as instance:
        pipeline = _pipeline(tmp_path, records, YEARS)
        sound = pipeline.resources["vector_store"]
        pipeline.resources["vector_store"] = FailsAt2024(uri=pipeline.store.uri)
        with pytest.raises(OSError, match="the disk is full"):
            pipeline.run("2023", "2025", instance=instance)
        index = dg.AssetKey(["corpus", "vector_index"])
        assert instance.get_materialized_partitions(index) == {"2023"}
        assert _ids(pipeline) == {"d2023"}
        pipeline.resources["vector_store"] = sound
        result = pipeline.run("2023", "2025", instance=instance)
        assert numbers(result, "vector_index")["rows_written"] == 2
        assert numbers(result, "embeddings")["embedded"] == 0
        assert _ids(pipeline) == {"d2023", "d2024", "d2025"}


def test_a_row_that_something_else_damaged_in_the_store_is_written_again(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, _records(6), BUCKETS)
    pipeline.run()
    before = pipeline.rows()
    table = _table(pipeline)
    first, second = before[0]["chunk_id"], before[1]["chunk_id"]
    table.update(where=f"chunk_id = '{first}'", values={"text": "not what was embedded"})
    table.update(where=f"chunk_id = '{second}'", values={"vector": [0.0] * 32})
    assert pipeline.rows() != before
    result = pipeline.run(assets=["vector_index"])
    assert pipeline.rows() == before
    assert checks(result)["vector_integrity"]
