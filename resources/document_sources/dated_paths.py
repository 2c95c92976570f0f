"""Placeholders in a path for the time of the documents in a file: archive/%Y/%m/*.parquet."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fsspec

from resources.document_sources.base import Period
from resources.document_sources.timestamps import in_utc
from resources.errors import InvalidInputError
from resources.urls import check_no_password, open_storage

PLACEHOLDERS = {
    "%Y": "[0-9][0-9][0-9][0-9]",
    "%m": "[0-9][0-9]",
    "%d": "[0-9][0-9]",
    "%H": "[0-9][0-9]",
}
"""strftime placeholders, from the coarsest to the finest, with their glob."""

_SPECIAL = re.compile(r"[*?\[]|%(?=[YmdH])")


def check_source_path(path: str) -> None:
    """Checks what can be known of a source's path without a look at the storage.

    Raises:
        InvalidInputError: no file can have such a path, or it holds a password.
    """
    if not path.strip():
        raise InvalidInputError("source.path must name a file, folder, glob or URL; it is empty")
    if "\0" in path:
        raise InvalidInputError("source.path holds a NUL character, which no file's name has")
    for part in path.split("/"):
        if "**" in part and part != "**":
            better = re.sub(r"\*{2,}", "**/*" if part.startswith("**") else "*", part)
            raise InvalidInputError(
                "in source.path, ** stands for any folders and stands alone between slashes: "
                f"write {better!r} in place of {part!r}"
            )
    check_no_password(path, "a source")
    known = {*fsspec.available_protocols(), *fsspec.registry}
    for address in path.split("::"):
        scheme, is_url, _ = address.partition("://")
        if is_url and scheme not in known:
            raise InvalidInputError(
                f"source.path begins with {scheme}://, which is no storage that fsspec knows, such "
                "as s3://, gs:// or https://"
            )


def sparing_names(path: str) -> str:
    """A local path in which the names of folders that are there mean just those.

    In 100%done or [old], if there is such a folder, %d is no placeholder and [old] no glob.
    """
    if is_there(path):
        return path
    parts = path.split("/")
    there = next(n for n in range(len(parts)) if not is_there("/".join(parts[: n + 1]) or "/"))
    return "/".join([*(_SPECIAL.sub(r"[\g<0>]", part) for part in parts[:there]), *parts[there:]])


def is_there(path: str) -> bool:
    """Whether there is a local file or folder, as far as one may look."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def period_of(path: str, file: str) -> Period | None:
    """The time that the placeholders of a source's path name for one of its files.

    Args:
        path: the source's path, with or without placeholders.
        file: the file's path relative to the source's root (`SourceFile.path`).

    Returns:
        The period whose runs read the file; None: every run reads it, or it is no single period.
    """
    named = [placeholder for placeholder in PLACEHOLDERS if placeholder in path]
    if not named or named != list(PLACEHOLDERS)[: len(named)]:
        return None  # such as %m alone: a month of every year
    _, pattern = open_storage(path, "source.path")
    below = pattern[len(fixed_folder(pattern)) :].lstrip("/")
    match = re.match(_expression(below), file)
    if match is None:
        return None
    parts = {f"%{name}": int(value) for name, value in match.groupdict().items()}
    try:
        start = datetime(
            parts["%Y"],
            parts.get("%m", 1),
            parts.get("%d", 1),
            parts.get("%H", 0),
            tzinfo=timezone.utc,
        )
        return start, _next(start, named[-1])
    except (ValueError, OverflowError):  # such as month 13: no period has that name
        return None


def _expression(pattern: str) -> str:
    """A glob with placeholders as a regular expression; of each placeholder the first is kept."""
    expression, seen = "", set()
    for token in re.split(r"(%[YmdH]|\*\*/?|\*|\?|\[[^\]]*\])", pattern):
        if token in PLACEHOLDERS:
            name = token[1]
            digits = "[0-9]{4}" if name == "Y" else "[0-9]{2}"
            expression += digits if name in seen else f"(?P<{name}>{digits})"
            seen.add(name)
        elif token.startswith("**"):
            expression += ".*"
        elif token == "*":
            expression += "[^/]*"
        elif token == "?":
            expression += "[^/]"
        elif token.startswith("["):
            expression += "[^" + token[2:] if token.startswith("[!") else token
        else:
            expression += re.escape(token)
    return expression


def expand(pattern: str, periods: Iterable[Period]) -> Iterator[str]:
    """The pattern with its placeholders filled in, once for each time within the periods."""
    finest = [p for p in PLACEHOLDERS if p in pattern][-1]
    for start, end in periods:
        moment, end = _floor(in_utc(start), finest), in_utc(end)
        while moment < end:
            filled = pattern.replace("%Y", f"{moment.year:04d}").replace(
                "%m", f"{moment.month:02d}"
            )
            yield filled.replace("%d", f"{moment.day:02d}").replace("%H", f"{moment.hour:02d}")
            try:
                moment = _next(moment, finest)
            except (OverflowError, ValueError):  # the year 10000
                break


def _floor(moment: datetime, unit: str) -> datetime:
    return datetime(
        moment.year,
        1 if unit == "%Y" else moment.month,
        1 if unit in ("%Y", "%m") else moment.day,
        moment.hour if unit == "%H" else 0,
        tzinfo=timezone.utc,
    )


def _next(moment: datetime, unit: str) -> datetime:
    if unit == "%H":
        return moment + timedelta(hours=1)
    if unit == "%d":
        return moment + timedelta(days=1)
    return _floor(moment + timedelta(days=31 if unit == "%m" else 366), unit)


def generalise(pattern: str) -> str:
    """The pattern as a glob that matches every time."""
    for placeholder, glob in PLACEHOLDERS.items():
        pattern = pattern.replace(placeholder, glob)
    return pattern


def fixed_folder(pattern: str) -> str:
    """The folder below which everything lies that the pattern can match."""
    pattern = generalise(pattern)
    pattern = pattern[: min((i for i in map(pattern.find, "*?[") if i >= 0), default=None)]
    return pattern.rpartition("/")[0]
