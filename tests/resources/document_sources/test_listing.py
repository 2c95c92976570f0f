"""Which files a source reads, in which order, and which belong to a period."""

import os
from datetime import datetime
from pathlib import Path

import pytest

from resources.document_sources import FileDocumentSource, Refusal
from tests.support.documents import GOOD, UTC, outcomes, read, refusal, write, write_parquet


def test_a_folder_is_read_recursively_in_the_order_of_paths(tmp_path: Path):
    for name in ("b.jsonl", "a/z.jsonl", "a/b/c.jsonl.gz", "B.jsonl", ".hidden.jsonl", ".git/x.md"):
        write(tmp_path / name, GOOD)
    found = read(tmp_path)
    assert [item.file for item in found] == ["B.jsonl", "a/b/c.jsonl.gz", "a/z.jsonl", "b.jsonl"]
    assert read(f"{tmp_path}/") == found
    assert read(tmp_path.as_uri()) == found


def test_a_file_of_unknown_format_is_seen(tmp_path: Path):
    for name in ("a.docx", "b.jsonl", "c", "d.gz", "e.parquet.gz", "f.json"):
        write(tmp_path / name, GOOD)
    found = read(tmp_path)
    assert outcomes(found) == ["unknown_format", "good"] + ["unknown_format"] * 4
    assert [item.line for item in found if isinstance(item, Refusal)] == [None] * 5


SPARK = [
    "_SUCCESS", "_metadata", "_common_metadata", "._SUCCESS.crc", "_committed_17", "_started_17",
    "_temporary/0/part-0.parquet", "_delta_log/00000.json", "_delta_log/00010.checkpoint.parquet",
    "_spark_metadata/0", "year=2020/_SUCCESS",
]  # fmt: skip


def test_what_spark_and_hive_write_beside_the_data_is_passed_over(tmp_path: Path):
    columns = {"id": ["a"], "text": ["x"]}
    for name in SPARK:
        write(tmp_path / name, b"PAR1")
    for name in ("part-0.parquet", "year=2020/part-1.parquet", "_year=2021/part-2.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_parquet(tmp_path / name, columns)
    files = ["_year=2021/part-2.parquet", "part-0.parquet", "year=2020/part-1.parquet"]
    assert [item.file for item in read(tmp_path)] == files
    assert [item.file for item in read(tmp_path, format="parquet")] == files
    assert [item.file for item in read(tmp_path / "**" / "*.parquet")] == files
    assert [file.path for file in FileDocumentSource(path=str(tmp_path)).files()] == files


def test_an_underscore_hides_no_document_of_another_format_and_none_that_is_asked_for(
    tmp_path: Path,
):
    write(tmp_path / "_SUCCESS", b"")
    write(tmp_path / "_posts" / "2020-01-02-a.md", b"x")
    write(tmp_path / "_index.md", b"x")
    write(tmp_path / "_notes.log", GOOD)
    assert [item.file for item in read(tmp_path)] == ["_index.md", "_posts/2020-01-02-a.md"]
    assert outcomes(read(tmp_path / "_notes.log", format="jsonl")) == ["good"]
    assert outcomes(read(tmp_path / "_*.log", format="jsonl")) == ["good"]
    assert outcomes(read(tmp_path / "_SUCCESS")) == ["unknown_format"]


def test_a_link_to_a_folder_is_named_for_what_it_is_whatever_its_ending(tmp_path: Path):
    write(tmp_path / "data" / "a.jsonl", GOOD)
    for name in ("linked", "linked.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "gone")
    found = read(tmp_path)
    assert outcomes(found) == ["good", "linked_folder", "linked_folder", "broken_file"]
    assert "name the folder in a source of its own" in refusal(found[1:2]).detail
    assert "link to nothing" in refusal(found[3:]).detail


def test_a_given_format_overrides_the_endings(tmp_path: Path):
    write(tmp_path / "a.log", GOOD)
    write(tmp_path / "b.txt.gz", GOOD)
    assert outcomes(read(tmp_path, format="jsonl")) == ["good", "good"]


def test_globs_and_memory_urls(tmp_path: Path):
    for name in ("a/1.jsonl", "a/b/2.jsonl", "a/3.txt", "c/4.jsonl"):
        write(tmp_path / name, GOOD)
    assert [i.file for i in read(tmp_path / "a" / "*.jsonl")] == ["1.jsonl"]
    assert [i.file for i in read(tmp_path / "a" / "**" / "*.jsonl")] == ["1.jsonl", "b/2.jsonl"]
    assert [i.file for i in read(tmp_path / "?" / "*.jsonl")] == ["a/1.jsonl", "c/4.jsonl"]

    import fsspec

    with fsspec.open("memory://archive/x/a.jsonl", "wb") as file:
        file.write(GOOD)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        assert [i.file for i in read("memory://archive")] == ["x/a.jsonl"]
    finally:
        fsspec.filesystem("memory").rm("/archive", recursive=True)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.jsonl", "*.jsonl", "empty", "%Y.jsonl"])
def test_a_source_that_matches_nothing_is_an_error_not_an_empty_archive(tmp_path: Path, path: str):
    (tmp_path / "empty").mkdir()
    source = FileDocumentSource(path=str(tmp_path / path))
    with pytest.raises(FileNotFoundError, match=r"(?s)Expected documents at .*Check the source"):
        source.read()
    with pytest.raises(FileNotFoundError):
        source.files()


def _day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


PERIODS = [
    ("%Y.jsonl", [("2019-05-01", "2020-01-01")], ["2019.jsonl"]),
    ("%Y.jsonl", [("2019-12-31", "2020-01-02")], ["2019.jsonl", "2020.jsonl"]),
    ("%Y/%m/*.jsonl", [("2020-01-31", "2020-02-01")], ["2020/01/a.jsonl"]),
    (
        "%Y/%m/*.jsonl",
        [("2020-01-31", "2020-02-02"), ("2020-02-10", "2020-02-11")],
        ["2020/01/a.jsonl", "2020/02/a.jsonl"],
    ),
    ("%Y/%m", [("2020-02-01", "2020-03-01")], ["2020/02/a.jsonl", "2020/02/b/c.jsonl"]),
    ("%Y-%m-%d.jsonl", [("2020-02-28", "2020-03-02")], ["2020-02-29.jsonl", "2020-03-01.jsonl"]),
    ("%Y-%m-%d.jsonl", [("2031-01-01", "2031-02-01")], []),
    ("%Y%m%dT%H.jsonl", [("2020-01-01", "2020-01-02")], ["20200101T23.jsonl"]),
    ("%Y.jsonl", [("9999-01-01", "9999-12-31")], []),
    ("%Y.jsonl", [], []),
]


@pytest.mark.parametrize(("pattern", "periods", "expected"), PERIODS)
def test_periods_select_files_by_the_dates_in_their_names(
    tmp_path: Path, pattern: str, periods: list[tuple[str, str]], expected: list[str]
):
    for name in (
        "2019.jsonl",
        "2020.jsonl",
        "2020/01/a.jsonl",
        "2020/02/a.jsonl",
        "2020/02/b/c.jsonl",
        "2020-02-29.jsonl",
        "2020-03-01.jsonl",
        "20200101T23.jsonl",
        "20200102T00.jsonl",
    ):
        write(tmp_path / name, GOOD)
    wanted = [(_day(start), _day(end)) for start, end in periods]
    source = FileDocumentSource(path=str(tmp_path / pattern))
    assert [item.file for item in source.read(wanted)] == expected
    assert [file.path for file in source.files(wanted)] == expected


@pytest.mark.parametrize(
    ("pattern", "file", "period"),
    [
        ("%Y/%m/*.jsonl", "2020/12/a.jsonl", ("2020-12-01", "2021-01-01")),
        ("%Y.jsonl", "2020.jsonl", ("2020-01-01", "2021-01-01")),
        ("*.jsonl", "2020.jsonl", None),
        ("%m/*.jsonl", "03/a.jsonl", None),  # March of every year
        ("%Y/%d.jsonl", "2020/03.jsonl", None),
    ],
)
def test_the_period_of_a_file_is_known_where_its_name_tells_exactly_one(
    tmp_path: Path, pattern: str, file: str, period: tuple[str, str] | None
):
    write(tmp_path / file, GOOD)
    source = FileDocumentSource(path=str(tmp_path / pattern))
    assert source.period_of(file) == (period and tuple(map(_day, period)))


def test_without_periods_placeholders_match_every_date(tmp_path: Path):
    for name in ("2019/01.jsonl", "2020/02.jsonl", "latest/01.jsonl", "2020/2.jsonl"):
        write(tmp_path / name, GOOD)
    assert [i.file for i in read(tmp_path / "%Y" / "%m.jsonl")] == [
        "2019/01.jsonl",
        "2020/02.jsonl",
    ]


def test_without_periods_folders_named_by_dates_are_read_whole(tmp_path: Path):
    names = ["2019/01/a.jsonl", "2020/02/b.jsonl", "2020/02/x/c.jsonl"]
    for name in [*names, "2020/b.jsonl", "latest/02/d.jsonl"]:
        write(tmp_path / name, GOOD)
    assert [i.file for i in read(tmp_path / "%Y" / "%m")] == names


def test_a_period_without_files_is_legitimate_but_not_in_a_missing_or_empty_archive(tmp_path: Path):
    periods = [(_day("2020-01-01"), _day("2020-02-01"))]
    for folder in ("missing", "empty"):
        if folder == "empty":
            (tmp_path / folder).mkdir()
        with pytest.raises(FileNotFoundError, match="deleted"):
            read(tmp_path / folder / "%Y.jsonl", periods)
    write(tmp_path / "archive" / "2019.jsonl", GOOD)
    assert read(tmp_path / "archive" / "%Y.jsonl", periods) == []
    with pytest.raises(FileNotFoundError, match="nothing in it matches"):
        read(tmp_path / "archive" / "%Y.jsonl.gz", periods)


def test_periods_do_not_restrict_a_source_without_placeholders(tmp_path: Path):
    write(tmp_path / "a.jsonl", GOOD)
    assert outcomes(read(tmp_path, [(_day("2020-01-01"), _day("2020-02-01"))])) == ["good"]


def test_files_are_listed_with_size_and_time_without_being_opened(tmp_path: Path):
    path = write(tmp_path / "a.parquet", b"not parquet")
    os.utime(path, (1577836800, 1577836800))
    (file,) = FileDocumentSource(path=str(tmp_path)).files()
    assert (file.path, file.size, file.modified) == (
        "a.parquet",
        12,
        datetime(2020, 1, 1, tzinfo=UTC),
    )


def test_a_link_has_the_time_of_the_file_that_is_read(tmp_path: Path):
    target = write(tmp_path / "elsewhere" / "a.jsonl", GOOD)
    link = tmp_path / "archive" / "a.jsonl"
    link.parent.mkdir()
    link.symlink_to(target)
    for seconds in (1_000, 2_000):
        os.utime(target, (seconds, seconds))
        for path in (link.parent, link):
            [file] = FileDocumentSource(path=str(path)).files()
            assert file.modified == datetime.fromtimestamp(seconds, UTC)
            assert file.size == len(GOOD) + 1
