"""Which files a source consists of: a file, a folder, a glob, or a path with dates in it."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePath
from typing import Any, cast

import fsspec
from dateutil.parser import isoparse
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from resources.document_sources.base import CTIME, Period, SourceFile, SourceNotFoundError
from resources.errors import EmbeddingAssetsError

# strftime placeholders, from the coarsest to the finest, with their glob.
PLACEHOLDERS = {
    "%Y": "[0-9][0-9][0-9][0-9]",
    "%m": "[0-9][0-9]",
    "%d": "[0-9][0-9]",
    "%H": "[0-9][0-9]",
}


class UnlistableFolderError(EmbeddingAssetsError):
    """A folder of the source cannot be listed, so what is in it must not look deleted.

    No `OSError`: those are what fsspec passes over.
    """


class _LocalFileSystem(LocalFileSystem):
    """Local files, of which no folder is passed over because the system cannot list it."""

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        try:
            return super().ls(path, detail=detail, **kwargs)
        except FileNotFoundError:  # removed since the folder above was listed
            raise
        except OSError as error:
            if PurePath(path).name.startswith("."):  # nothing in it is read anyway
                raise
            raise UnlistableFolderError(
                f"Expected a folder of documents at {str(path)!r}, but it cannot be listed "
                f"({error}). Repair it, or narrow the source's `path`: nothing in it is taken to "
                "be deleted."
            ) from error


def find_files(
    path: str, periods: Sequence[Period] | None
) -> tuple[fsspec.AbstractFileSystem, list[SourceFile]]:
    """Lists the files of a source, sorted by path.

    Args:
        path: file, folder (searched recursively), glob, or any fsspec URL, with or without the
            placeholders %Y, %m, %d, %H. Hidden names, which begin with a dot, are left out.
        periods: only files whose placeholders name a time in one of these; None: all of them.
            Without placeholders all files are listed.

    Raises:
        SourceNotFoundError: there is no file at all, in contrast to none for the given periods: an
            archive that is not mounted must not look like one from which all was deleted.
        UnlistableFolderError: a local folder is there, but its files cannot be listed.
    """
    filesystem, pattern = url_to_fs(path)
    if isinstance(filesystem, LocalFileSystem):
        filesystem = _LocalFileSystem()
    filesystem.invalidate_cache()
    exact = filesystem.exists(pattern)
    has_placeholders = not exact and any(p in pattern for p in PLACEHOLDERS)
    if exact:
        patterns = [pattern]
    elif has_placeholders and periods is not None:
        patterns = list(dict.fromkeys(_expand(pattern, periods)))
    else:
        patterns = [_generalise(pattern)]
    root = _root(filesystem, pattern, exact)

    is_glob = any(c in pattern for c in "*?[")

    def listed(pattern: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for location, info in _list(filesystem, pattern, folders=has_placeholders and not is_glob):
            name = location[len(root) :].lstrip("/") if location.startswith(root) else location
            is_named = exact and location == pattern
            if is_named or not any(part.startswith(".") for part in name.split("/")):
                yield name, location, info

    found = {
        location: _source_file(filesystem, name, location, info)
        for each in patterns
        for name, location, info in listed(each)
    }
    if not found and not (has_placeholders and any(listed(_generalise(pattern)))):
        raise _nothing_found(path, pattern, root, filesystem)
    return filesystem, sorted(found.values(), key=lambda file: file.path)


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
    filesystem, pattern = url_to_fs(path)
    below = pattern[len(_root(filesystem, pattern, exact=False)) :].lstrip("/")
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


def _list(
    filesystem: fsspec.AbstractFileSystem, path: str, *, folders: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files that a path or glob names; those in folders that a glob matches if `folders`."""
    if isinstance(filesystem, LocalFileSystem) and filesystem.isdir(path):
        # As `find`, which would hold the details of all files at once.
        for _, _, found in filesystem.walk(path, detail=True):
            for info in cast(dict[str, dict[str, Any]], found).values():
                yield info["name"], info
        return
    if filesystem.isdir(path):
        entries: Any = filesystem.find(path, detail=True)
    elif filesystem.exists(path):
        entries = {path: filesystem.info(path)}
    elif any(c in path for c in "*?["):
        entries = filesystem.glob(path, detail=True)
    else:
        entries = {}
    for location, info in entries.items():
        if info["type"] != "directory":
            yield location, info
        elif folders:
            yield from _list(filesystem, location, folders=False)


def _expand(pattern: str, periods: Sequence[Period]) -> Iterator[str]:
    finest = [p for p in PLACEHOLDERS if p in pattern][-1]
    for start, end in periods:
        moment, end = _floor(_utc(start), finest), _utc(end)
        while moment < end:
            filled = pattern.replace("%Y", f"{moment.year:04d}").replace(
                "%m", f"{moment.month:02d}"
            )
            yield filled.replace("%d", f"{moment.day:02d}").replace("%H", f"{moment.hour:02d}")
            try:
                moment = _next(moment, finest)
            except (OverflowError, ValueError):  # the year 10000
                break


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    return moment.astimezone(timezone.utc)


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


def _generalise(pattern: str) -> str:
    for placeholder, glob in PLACEHOLDERS.items():
        pattern = pattern.replace(placeholder, glob)
    return pattern


def _root(filesystem: fsspec.AbstractFileSystem, pattern: str, exact: bool) -> str:
    """The folder below which everything lies that the pattern can match."""
    if exact and filesystem.isdir(pattern):
        return pattern.rstrip("/")
    if not exact:
        pattern = _generalise(pattern)
        pattern = pattern[: min((i for i in map(pattern.find, "*?[") if i >= 0), default=None)]
    return pattern.rpartition("/")[0]


def _source_file(
    filesystem: fsspec.AbstractFileSystem, name: str, location: str, info: dict[str, Any]
) -> SourceFile:
    problem = None
    # Opening a named pipe would wait for ever. Links to folders are not followed: they may loop.
    if info["type"] != "file" and not filesystem.isfile(location):
        if filesystem.isdir(location):
            problem = "a link to a folder, which is not followed: name the folder in a source"
        else:
            problem = "not a regular file, or a link to nothing"
    if info.get("islink") and problem is None:
        # fsspec tells the size of the file, but the times of the link.
        target = Path(location).stat()
        info = {**info, "mtime": target.st_mtime, "created": target.st_ctime}
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if etag is None and "ino" in info:
        etag = f"{CTIME}{info['created']}"
    return SourceFile(
        path=name.encode("utf-8", "backslashreplace").decode(),
        location=location,
        size=info.get("size"),
        modified=_modified(info),
        etag=str(etag) if etag is not None else None,
        problem=problem,
    )


def _modified(info: dict[str, Any]) -> datetime | None:
    for key in ("mtime", "LastModified", "last_modified", "updated"):
        value = info.get(key)
        if isinstance(value, datetime):
            return _utc(value)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, timezone.utc)
        if isinstance(value, str):
            return _utc(isoparse(value))
    return None


def _has_entries(filesystem: fsspec.AbstractFileSystem, folder: str) -> bool:
    try:
        return bool(filesystem.ls(folder, detail=False))
    except FileNotFoundError:
        return False


def _nothing_found(
    path: str, pattern: str, root: str, filesystem: fsspec.AbstractFileSystem
) -> SourceNotFoundError:
    if not filesystem.exists(root):
        finding = f"the folder {root!r} does not exist"
    elif not _has_entries(filesystem, root):
        finding = f"the folder {root!r} is empty"
    else:
        finding = f"the folder {root!r} exists, but nothing in it matches"
    return SourceNotFoundError(
        f"Expected documents at {path!r} (looked for {pattern!r} from {Path.cwd()}), but "
        f"{finding}. Check the source's `path`, and that its storage is mounted and complete: "
        f"no file is not taken to mean that every document was deleted."
    )
