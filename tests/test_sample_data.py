"""The sample corpus: what it promises in its README, and that its script reproduces it."""

import gzip
import json
import zlib
from collections import Counter
from pathlib import Path

import pytest

from embedding_assets.retrieval.evaluation import load_qrels, load_queries
from sample_data import make_sample
from tests.support.data import snapshot

SAMPLE = Path(make_sample.__file__).parent
PATHS = sorted(SAMPLE.glob("*.jsonl.gz"))


def read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def documents() -> list[dict[str, str]]:
    return [document for path in PATHS for document in read(path)]


def test_sample_is_several_small_files():
    assert [path.name for path in PATHS] == [
        "peps-2000s.jsonl.gz",
        "peps-2010s.jsonl.gz",
        "peps-2020s.jsonl.gz",
    ]
    assert sum(path.stat().st_size for path in PATHS) < 500_000


def test_every_document_has_the_promised_fields_as_text(documents: list[dict[str, str]]):
    for document in documents:
        assert tuple(document) == make_sample.FIELDS
        assert all(isinstance(value, str) and value for value in document.values())


def test_documents_are_120_short_ones_in_the_public_domain(documents: list[dict[str, str]]):
    assert len({document["id"] for document in documents}) == len(documents) == 120
    for document in documents:
        assert len(document["text"].encode()) <= make_sample.MAX_TEXT_BYTES
        assert make_sample.is_public_domain(document["text"])


def test_every_year_and_every_type_is_represented(documents: list[dict[str, str]]):
    years = Counter(document["created"][:4] for document in documents)
    assert sorted(years) == [str(year) for year in range(2000, 2027)]
    assert min(years.values()) >= 2
    types = Counter(document["type"] for document in documents)
    assert types.keys() == {"Standards Track", "Informational", "Process"}
    assert min(types.values()) >= 10


def test_each_file_holds_its_decade_sorted_by_date_and_id():
    for path in PATHS:
        keys = [(document["created"], document["id"]) for document in read(path)]
        assert keys == sorted(keys)
        assert all(path.name == f"peps-{created[:3]}0s.jsonl.gz" for created, _ in keys)


def test_every_query_is_judged_and_every_judged_document_is_there(documents: list[dict[str, str]]):
    queries = load_queries(SAMPLE / "queries.jsonl")
    qrels = load_qrels(SAMPLE / "qrels.tsv")
    assert list(queries) == list(qrels) == [f"q{number:02d}" for number in range(1, 31)]
    ids = {document["id"] for document in documents}
    for judged in qrels.values():
        assert judged.keys() <= ids
        assert 1 <= len(judged) <= 2
        assert all(score > 0 for score in judged.values())


def test_no_query_quotes_a_title(documents: list[dict[str, str]]):
    titles = {document["id"]: document["title"].lower() for document in documents}
    queries = load_queries(SAMPLE / "queries.jsonl")
    for query_id, judged in load_qrels(SAMPLE / "qrels.tsv").items():
        for document_id in judged:
            assert titles[document_id] not in queries[query_id].lower()


def test_script_reproduces_the_committed_files_from_an_archive_that_holds_their_documents(
    tmp_path: Path, documents: list[dict[str, str]]
):
    others = [{**row, "id": f"other {i}"} for i, row in enumerate(snapshot("2026-08-22"))]
    archive = [{"blob": "0", **row} for row in reversed(documents)]
    make_sample.write_jsonl(tmp_path / "archive.jsonl.gz", [*others, *archive])
    written = make_sample.make_sample(tmp_path / "archive.jsonl.gz", tmp_path / "sample")
    assert [path.name for path in written] == [path.name for path in PATHS]
    assert sorted(path.name for path in (tmp_path / "sample").iterdir()) == [
        path.name for path in PATHS
    ]
    for new, committed in zip(written, PATHS, strict=True):
        assert gzip.decompress(new.read_bytes()) == gzip.decompress(committed.read_bytes())
        # zlib-ng, which some builds of Python use, compresses the same text to other bytes.
        if "ng" not in zlib.ZLIB_RUNTIME_VERSION:
            assert new.read_bytes() == committed.read_bytes()


def test_script_refuses_a_source_that_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make_sample, "PEPS_BY_YEAR", {2004: (20,)})
    good = {
        "id": "pep-0020",
        "title": "The Zen of Python",
        "created": "2004-08-19",
        "status": "Active",
        "type": "Informational",
        "text": "This document has been placed in the\npublic domain.",
        "blob": "0",
    }
    assert list(make_sample.select({"pep-0020": good})) == [
        {field: good[field] for field in make_sample.FIELDS}
    ]
    for change, message in (
        ({"created": "2005-01-01"}, "created on 2005-01-01"),
        ({"text": good["text"] + "x" * 20_000}, "limit 20000"),
        ({"text": "All rights reserved."}, "public domain"),
    ):
        with pytest.raises(ValueError, match=message):
            list(make_sample.select({"pep-0020": {**good, **change}}))
    with pytest.raises(ValueError, match="pep-0020 is not in the source"):
        list(make_sample.select({}))
