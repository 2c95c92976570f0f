"""Which files a source consists of: a file, a folder, a glob, or a path with dates in it."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any, cast

import fsspec
from dateutil.parser import isoparse
from fsspec.implementations.local import LocalFileSystem

from resources.document_sources.base import (
    CTIME,
    LINKED_FOLDER,
    Period,
    SourceFile,
    SourceNotFoundError,
)
from resources.document_sources.dated_paths import PLACEHOLDERS, expand, fixed_folder, generalise
from resources.document_sources.timestamps import in_utc
from resources.errors import EmbeddingAssetsError
from resources.urls import open_storage


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
    path: str,
    periods: Sequence[Period] | None,
    is_marker: Callable[[str], bool],
) -> tuple[fsspec.AbstractFileSystem, list[SourceFile]]:
    """Lists the files of a source, sorted by path.

    Args:
        path: file, folder (searched recursively), glob, or any fsspec URL, with or without the
            placeholders %Y, %m, %d, %H. Hidden names, which begin with a dot, are left out.
        periods: only files whose placeholders name a time in one of these; None: all of them.
            Without placeholders all files are listed.
        is_marker: says of a name below the folder whether its underscore marks a file that is no
            data; it is left out, unless the path itself speaks of such names.

    Raises:
        SourceNotFoundError: there is no file at all, in contrast to none for the given periods: an
            archive that is not mounted must not look like one from which all was deleted.
        UnlistableFolderError: a local folder is there, but its files cannot be listed.
    """
    filesystem, pattern = open_storage(path, "source.path")
    if isinstance(filesystem, LocalFileSystem):
        filesystem = _LocalFileSystem()
    filesystem.invalidate_cache()
    exact = filesystem.exists(pattern)
    has_placeholders = not exact and any(p in pattern for p in PLACEHOLDERS)
    patterns, root = [generalise(pattern)], fixed_folder(pattern)
    if exact:
        patterns = [pattern]
        root = pattern.rstrip("/") if filesystem.isdir(pattern) else pattern.rpartition("/")[0]
    elif has_placeholders and periods is not None:
        patterns = list(dict.fromkeys(expand(pattern, periods)))

    is_glob = any(c in pattern for c in "*?[")
    may_be_marked = "/_" not in pattern[len(root) :]

    def listed(pattern: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for location, info in _list(filesystem, pattern, folders=has_placeholders and not is_glob):
            name = location[len(root) :].lstrip("/") if location.startswith(root) else location
            is_named = exact and location == pattern
            is_hidden = any(part.startswith(".") for part in name.split("/"))
            if is_named or not (is_hidden or (may_be_marked and is_marker(name))):
                yield name, location, info

    found = {
        location: _source_file(filesystem, name, location, info)
        for each in patterns
        for name, location, info in listed(each)
    }
    if not found and not (has_placeholders and any(listed(generalise(pattern)))):
        raise _nothing_found(path, pattern, root, filesystem)
    return filesystem, sorted(found.values(), key=lambda file: file.path)


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


def _source_file(
    filesystem: fsspec.AbstractFileSystem, name: str, location: str, info: dict[str, Any]
) -> SourceFile:
    problem = None
    # Opening a named pipe would wait for ever. Links to folders are not followed: they may loop.
    if info["type"] != "file" and not filesystem.isfile(location):
        if filesystem.isdir(location):
            problem = LINKED_FOLDER
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
            return in_utc(value)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, timezone.utc)
        if isinstance(value, str):
            return in_utc(isoparse(value))
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
    named = ", ".join(p for p in PLACEHOLDERS if p in pattern)
    if named:
        finding += f" ({named} stands for a part of a time; the sign itself is written [%])"
    return SourceNotFoundError(
        f"Expected documents at {path!r} (looked for {pattern!r} from {Path.cwd()}), but "
        f"{finding}. Check the source's `path`, and that its storage is mounted and complete: "
        f"no file is not taken to mean that every document was deleted."
    )
