"""The source of files: broken files, its settings, and what it does not import."""

import errno
import gzip
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from resources.document_sources import (
    Document,
    DocumentSource,
    FieldNames,
    FileDocumentSource,
    FileFormat,
    Refusal,
    RefusalReason,
)
from resources.document_sources.listing import UnlistableFolderError
from tests.support.checkout import PROJECT
from tests.support.data import PEPS
from tests.support.documents import GOOD, outcomes, read, write, write_parquet


def _numbered(count: int) -> bytes:
    return b"".join(b'{"id": %d, "text": "text %d"}\n' % (i, i * i * 7919) for i in range(count))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_it_is_known_how_far_a_file_has_been_read(tmp_path: Path, name: str) -> None:
    data = _numbered(100_000)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    size = (tmp_path / name).stat().st_size
    source = FileDocumentSource(path=str(tmp_path))
    assert source.bytes_read() == 0
    reached = []
    for number, _ in enumerate(source.read()):
        if number % 10_000 == 0:
            reached.append(source.bytes_read() / size)
    assert reached == sorted(reached)
    assert reached[0] < 0.2
    assert 0.4 < reached[5] < 0.7
    assert 0.8 < reached[-1] <= 1
    assert source.bytes_read() == 0, "the file is closed"


@pytest.mark.parametrize("damage", ["truncated", "checksum", "trailing garbage", "second member"])
def test_records_before_gzip_damage_are_yielded_then_one_refusal_and_the_next_file(
    tmp_path: Path, damage: str
):
    whole = gzip.compress(_numbered(1000))
    broken = {
        "truncated": whole[: len(whole) // 2],
        "checksum": whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],
        "trailing garbage": whole + b"garbage",
        "second member": whole + whole[:40],
    }[damage]
    (tmp_path / "a.jsonl.gz").write_bytes(broken)
    write(tmp_path / "b.jsonl", GOOD)
    found = read(tmp_path)
    documents = found[:-2]
    if damage == "truncated":
        assert 200 < len(documents) < 900
    else:
        assert len(documents) >= 1000
    assert outcomes(documents) == [str(i) for i in range(len(documents))]
    assert outcomes(found[-2:]) == ["broken_file", "good"]
    assert (found[-2].file, found[-2].line) == ("a.jsonl.gz", None)


@pytest.mark.parametrize(
    "content", [b"", b"not gzip at all", b"\x1f\x8b", b"\x1f\x8b\x08" + b"\xff" * 50]
)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.txt.gz"])
def test_what_is_not_gzip_is_a_broken_file(tmp_path: Path, content: bytes, name: str):
    (tmp_path / name).write_bytes(content)
    write(tmp_path / "b.jsonl", GOOD)
    assert outcomes(read(tmp_path)) == ["broken_file", "good"]


def test_gzip_of_several_members_is_read_whole(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(_numbered(2)) + gzip.compress(GOOD))
    assert outcomes(read(tmp_path)) == ["0", "1", "good"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_an_unreadable_file_is_a_broken_file(tmp_path: Path):
    write(tmp_path / "a.jsonl", GOOD).chmod(0)
    write(tmp_path / "b.jsonl", GOOD)
    assert outcomes(read(tmp_path)) == ["broken_file", "good"]


@pytest.mark.parametrize("path", ["", "**/*.jsonl", "%Y/*.jsonl"])
def test_a_folder_that_cannot_be_listed_is_an_error_not_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
):
    write(tmp_path / "2019" / "a.jsonl", GOOD)
    write(tmp_path / "2020" / "b.jsonl", GOOD)
    scandir = os.scandir

    def failing(folder: str) -> Any:
        if str(folder).endswith("2019"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    source = FileDocumentSource(path=str(tmp_path / path))
    with pytest.raises(UnlistableFolderError, match=r"2019.*Input/output error"):
        source.files()
    (tmp_path / "2019").rename(tmp_path / ".2019")
    assert [file.path for file in source.files()] == ["2020/b.jsonl"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_dead_links_are_refused_and_links_to_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c").symlink_to(tmp_path, target_is_directory=True)
    target = write(tmp_path / "d.jsonl", GOOD)
    (tmp_path / "e.jsonl").symlink_to(target)
    found = read(tmp_path, format=FileFormat.jsonl)
    assert outcomes(found) == ["broken_file", "broken_file", "linked_folder", "good", "good"]
    assert [item.file for item in found] == ["a.jsonl", "b.jsonl", "c", "d.jsonl", "e.jsonl"]


def test_dagster_configures_the_source(tmp_path: Path):
    write(tmp_path / "a.log", b'{"_id": "a", "text": "x", "when": "2020-01-01"}')
    seen = []

    @dg.asset
    def documents(source: FileDocumentSource) -> None:
        assert isinstance(source, DocumentSource)
        seen.extend(source.read())

    fields = {"id": "_id", "timestamp": "when"}
    config = {"path": str(tmp_path), "format": "jsonl", "fields": fields}
    assert dg.materialize(
        [documents],
        resources={"source": FileDocumentSource.configure_at_launch()},
        run_config={"resources": {"source": {"config": config}}},
    ).success
    assert dg.materialize([documents], resources={"source": FileDocumentSource(**config)}).success
    assert outcomes(seen) == ["a", "a"]


def test_every_setting_is_described():
    for model in (FileDocumentSource, FieldNames):
        for name, field in model.model_fields.items():
            assert field.description, name


def test_reading_every_format_does_not_import_pandas(tmp_path: Path):
    moment = pa.array([1577836800123456789], pa.timestamp("ns"))
    write_parquet(tmp_path / "a.parquet", {"id": ["a"], "text": ["x"], "t": moment, "u": moment})
    write(tmp_path / "b.csv", b"id,text,t", b"b,x,2020-01-01")
    write(tmp_path / "c.jsonl", b'{"id": "c", "text": "x", "t": 0}')
    script = (
        "import sys\n"
        "from resources.document_sources import Document, FieldNames, FileDocumentSource\n"
        "source = FileDocumentSource(path=sys.argv[1], fields=FieldNames(timestamp='t'))\n"
        "assert all(isinstance(item, Document) for item in source.read())\n"
        "assert not {'pandas', 'torch', 'lancedb', 'openvino'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=PROJECT, check=True)


def test_the_peps_of_three_days_are_read_and_the_undated_refused():
    found = read(PEPS, fields=FieldNames(timestamp="created"))
    count = Counter(i.file for i in found if isinstance(i, Document))
    assert sum(count.values()) + sum(isinstance(i, Refusal) for i in found) == 30 + 40 + 48
    assert {i.reason for i in found if isinstance(i, Refusal)} == {RefusalReason.no_timestamp}
    assert count["2026-08-22.jsonl.gz"] == 48
