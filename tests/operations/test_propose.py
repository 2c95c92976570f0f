"""What is proposed for data that nobody has described: the format, the fields, the partitions."""

import gzip
import io
import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from embedding_assets.operations.propose import Proposal, propose
from resources.document_sources import Document, FileDocumentSource, sample
from resources.document_sources.base import SourceNotFoundError
from resources.errors import InvalidInputError

TEXT = "The library is open from nine to five and closed on public holidays. "
TEXT_AND_ID = {"id": "id", "text": "text"}


@pytest.fixture
def proposed(tmp_path: Path) -> Callable[..., Proposal]:
    """What is proposed for one of some files, or, by the name "", for the folder they are in."""

    def look(name: str, files: dict[str, bytes]) -> Proposal:
        for file, content in files.items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(content)
        return propose(str(tmp_path / name), tmp_path)

    return look


def jsonl(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def source_of(proposal: Proposal) -> dict[str, Any]:
    """Of a proposal's YAML, what its source says but for the path."""
    attributes = yaml.safe_load(proposal.yaml)["attributes"]
    return {key: value for key, value in attributes["source"].items() if key != "path"}


def rows(number: int = 3, **fields: Any) -> bytes:
    """Records whose fields are constants, or are made from their number."""
    return jsonl(
        *(
            {name: value(n) if callable(value) else value for name, value in fields.items()}
            for n in range(number)
        )
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.jsonl",
            rows(id=str, title=lambda n: f"T{n}", text=lambda n: TEXT * n + TEXT),
            {"fields": {"id": "id", "title": "title", "text": "text"}},
        ),
        (
            "nested.jsonl",
            rows(
                meta=lambda n: {"uuid": f"u{n}", "published": f"2021-0{n + 1}-01"},
                content={"headline": "Opening hours", "body": TEXT * 3},
            ),
            {
                "fields": {
                    "id": "meta.uuid",
                    "title": "content.headline",
                    "text": "content.body",
                    "timestamp": "meta.published",
                }
            },
        ),
        (
            "semicolons.csv",
            f"Nr;Titel;Langtext;Datum\n1;Zeiten;{TEXT};2021-03-04\n2;Preise;{TEXT};2021-05-06".encode(),
            {"fields": {"id": "Nr", "title": "Titel", "text": "Langtext", "timestamp": "Datum"}},
        ),
        (
            "latin.csv",
            f"id,text\n1,Die Bücherei ist geöffnet, {TEXT}\n".replace("ffnet,", "ffnet").encode(
                "cp1252"
            ),
            {"encoding": "cp1252", "fields": {"id": "id", "text": "text"}},
        ),
        (
            "epoch.jsonl",
            rows(id=int, text=lambda n: TEXT * (n + 1), created=lambda n: 1_600_000_000 + n),
            {"fields": {"id": "id", "text": "text", "timestamp": "created"}},
        ),
        (
            "days.jsonl",
            rows(id=int, text=lambda n: TEXT * (n + 1), created_at=lambda n: 31_536_000 * 2 + n),
            {
                "fields": {
                    "id": "id",
                    "text": "text",
                    "timestamp": "created_at",
                    "timestamp_unit": "s",
                }
            },
        ),
        (  # the field that is called like a text goes before a longer one
            "html.jsonl",
            rows(id=int, raw_html="<p>x</p>" * 99, text=TEXT * 3),
            {"fields": TEXT_AND_ID},
        ),
        (  # numbers that might be dates, but are not called so
            "numbers.jsonl",
            rows(id=str, text=TEXT, pages=lambda n: 2020 + n),
            {"fields": TEXT_AND_ID},
        ),
        (  # by content alone
            "names.csv",
            f"a,b,c\nx1,Opening hours of it,{TEXT}\nx2,Prices and more fees,{TEXT * 2}\n".encode(),
            {"fields": {"id": "a", "title": "b", "text": "c"}},
        ),
        (  # times that are all in the future cannot begin partitions
            "future.jsonl",
            rows(id=str, text=TEXT, due_date="2999-01-01"),
            {"fields": {**TEXT_AND_ID, "timestamp": "due_date"}},
        ),
        ("lines.log", TEXT.encode() * 3, {"format": "text"}),
        (
            "rows.json",
            rows(id=str, text=TEXT),
            {"format": "jsonl", "fields": {"id": "id", "text": "text"}},
        ),
        (
            "table.dat",
            f"id;text\n1;{TEXT}\n2;{TEXT}\n3;{TEXT}\n".encode(),
            {"format": "csv", "fields": {"id": "id", "text": "text"}},
        ),
        ("notes.md", f"# Hours\n\n{TEXT}\n".encode(), {}),
        (
            "dated.md",
            f"---\ndate: 2021-03-04\n---\n# Hours\n\n{TEXT}\n".encode(),
            {"fields": {"timestamp": "date"}},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_format_encoding_and_fields_are_found(
    proposed: Callable[..., Proposal], name: str, content: bytes, expected: dict[str, Any]
) -> None:
    proposal = proposed(name, {name: content})
    assert source_of(proposal) == expected
    assert not proposal.refused
    assert all(isinstance(one, Document) for one in proposal.sample.found)


def test_parquet_is_looked_into_and_its_rows_are_counted(tmp_path: Path) -> None:
    table = pa.table({"key": [*range(5_000)], "abstract": [TEXT] * 5_000})
    pq.write_table(table, tmp_path / "rows.bin")
    proposal = propose(str(tmp_path / "rows.bin"), tmp_path)
    assert source_of(proposal) == {"format": "parquet", "fields": {"id": "key", "text": "abstract"}}
    assert proposal.sample.documents == 5_000
    assert proposal.settings.partitions.count == 16


@pytest.mark.parametrize(
    ("documents", "by", "start"),
    [
        (300, "year", "2020-01-01"),
        (200_000, "month", "2020-03-01"),
        (6_000_000, "day", "2020-03-01"),
    ],
)
def test_the_period_of_partitions_follows_span_and_number(
    proposed: Callable[..., Proposal],
    monkeypatch: pytest.MonkeyPatch,
    documents: int,
    by: str,
    start: str,
) -> None:
    first = datetime(2020, 3, 4, tzinfo=timezone.utc)
    records = [
        {"id": n, "text": TEXT, "created": first + timedelta(days=70) * n} for n in range(31)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), buffer)
    monkeypatch.setattr(sample, "MOST_RECORDS", 30)
    monkeypatch.setattr(sample, "_rows", lambda *_: documents)  # as its footer says
    proposal = proposed("a.parquet", {"a.parquet": buffer.getvalue()})
    assert (proposal.settings.partitions.by, proposal.settings.partitions.start) == (by, start)


def test_of_a_folder_the_files_of_one_format_are_taken_and_the_others_are_named(
    proposed: Callable[..., Proposal], tmp_path: Path
) -> None:
    record = {"id": "a", "text": TEXT}
    proposal = proposed(
        "",
        {
            "2020.jsonl.gz": gzip.compress(jsonl(record)),
            "deep/2021.jsonl": jsonl({**record, "id": "b"}),
            "README": b"Read me",
            "picture.png": b"\x89PNG",
        },
    )
    assert proposal.settings.source.path == "**/*.jsonl*"
    assert ".png (1)" in proposal.notes[0]
    assert "no ending (1)" in proposal.notes[0]
    found = FileDocumentSource(path=f"{tmp_path}/{proposal.settings.source.path}").read()
    assert [one.id for one in found if isinstance(one, Document)] == ["a", "b"]


def test_markdown_and_text_go_together(proposed: Callable[..., Proposal]) -> None:
    proposal = proposed("", {"a.md": b"# A\n\nSome text.", "b.txt": b"Some more.", ".hidden": b"x"})
    assert proposal.settings.source.path == "."
    assert len(proposal.sample.found) == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.jsonl", b"", ["empty.jsonl is empty"]),
        ("empty.unknown", b"  \n", ["empty.unknown is empty"]),
        ("array.json", b'[{"id": 1},\n {"id": 2}]', ["one JSON array", "jq -c '.[]'"]),
        ("array.jsonl", b'[{"id": 1},\n {"id": 2}]', ["one JSON array", "jq -c '.[]'"]),
        ("object.json", b'{\n "id": 1\n}', ["one object over several lines"]),
        ("paper.pdf", b"%PDF-1.7\n", ["is a PDF", "jsonl, csv, parquet, text, markdown"]),
        ("noise.bin", bytes(range(256)) * 9, ["is binary"]),
        ("numbers.jsonl", rows(id=int, size=float), ["No field", "holds text", "id, size"]),
        ("broken.jsonl", b"{id: 1}\n", ["No record can be read", "broken.jsonl"]),
    ],
)
def test_what_cannot_be_read_is_told_with_what_is_possible(
    proposed: Callable[..., Proposal], name: str, content: bytes, expected: list[str]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        proposed(name, {name: content})
    for part in expected:
        assert part in str(caught.value)


def test_without_an_id_a_command_is_told_that_gives_each_record_one(
    proposed: Callable[..., Proposal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = f"color,text\nred,{TEXT}\nred,{TEXT * 2}\nred,{TEXT * 2}\n".encode()
    with pytest.raises(InvalidInputError, match="none of color, text differs") as caught:
        proposed("items.csv", {"items.csv": content})
    (command,) = [line for line in str(caught.value).splitlines() if "duckdb.sql" in line]
    assert os.system(command) == 0
    again = propose("with_ids.parquet", tmp_path)
    assert source_of(again)["fields"] == {"id": "id", "text": "text"}
    assert len({*pq.read_table("with_ids.parquet")["id"].to_pylist()}) == 2


def test_a_missing_folder_is_told_and_an_id_that_comes_twice_and_a_second_text(
    proposed: Callable[..., Proposal], tmp_path: Path
) -> None:
    with pytest.raises(SourceNotFoundError, match="does not exist"):
        propose(str(tmp_path / "nowhere" / "x.jsonl"), tmp_path)
    long = TEXT * 9
    records = [{"id": n // 2 if n < 2 else n, "body": long, "notes": TEXT * 5} for n in range(60)]
    proposal = proposed("a.jsonl", {"a.jsonl": jsonl(*records)})
    assert [(one.reason, one.records) for one in proposal.refused] == [("duplicate_id", 1)]
    assert any("notes is long text too" in note for note in proposal.notes)


def test_times_that_some_records_lack_are_not_partitioned_by_and_it_is_said(
    proposed: Callable[..., Proposal],
) -> None:
    records = [
        {"id": n, "text": TEXT, "created": "2020-01-01" if n % 5 else None} for n in range(50)
    ]
    proposal = proposed("a.jsonl", {"a.jsonl": jsonl(*records)})
    assert proposal.settings.partitions.by == "bucket"
    assert any("created is a time, but 20% of the records have none" in n for n in proposal.notes)


def test_only_the_beginning_is_read_of_large_files_and_of_a_folder_of_many(
    proposed: Callable[..., Proposal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_MOST_BYTES", 100_000)
    content = rows(9_999, id=str, text=TEXT)
    proposal = proposed("large.jsonl", {"large.jsonl": content})
    assert len(proposal.sample.found) < 2_000
    assert not proposal.sample.refusals
    assert proposal.sample.documents == pytest.approx(9_999, rel=0.05)

    monkeypatch.setattr(sample, "MOST_FILES_LISTED", 40)
    monkeypatch.setattr(sample, "MOST_FILES_READ", 5)
    many = {
        f"many/{n % 7}/{n}.jsonl": rows(2, id=lambda i, n=n: f"{n}-{i}", text=TEXT)
        for n in range(90)
    }
    read: list[str] = []
    opened = sample.read_file

    def counted(file: Any, *args: Any) -> Any:
        read.append(file.path)
        return opened(file, *args)

    monkeypatch.setattr(sample, "read_file", counted)
    proposal = proposed("many", many)
    assert "There are more files than the 40 that were looked at." in proposal.notes[0]
    assert len({*read}) == 5
    assert source_of(proposal) == {"fields": TEXT_AND_ID}


def test_a_csv_file_without_a_header_is_noticed(proposed: Callable[..., Proposal]) -> None:
    proposal = proposed("a.csv", {"a.csv": f"1,{TEXT}\n2,{TEXT}\n3,{TEXT}\n".encode()})
    assert any("'1', which looks like a value" in note for note in proposal.notes)


def test_ids_that_come_in_several_files_are_told_of(proposed: Callable[..., Proposal]) -> None:
    record = {"id": "a", "text": TEXT, "created": "2020-01-01"}
    snapshots = {
        f"{year}.jsonl": jsonl(record, {**record, "id": str(year)}) for year in (2020, 2021)
    }
    proposal = proposed("", snapshots)
    assert source_of(proposal)["fields"]["id"] == "id"
    assert any("1 of 3 ids come in several files" in note for note in proposal.notes)
