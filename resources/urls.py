"""What the URL of a store or a server says. No error repeats a URL: it may hold a password."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import ValidationError

from resources.errors import InvalidInputError

if TYPE_CHECKING:
    import fsspec

_Made = TypeVar("_Made")
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def made_from_url(url: str, what: str, schemes: Mapping[str, Callable[[str], _Made]]) -> _Made:
    """What a URL describes, made by the function of its scheme.

    Args:
        url: to be read.
        what: is described, as the subject of a sentence.
        schemes: the functions; that of "" takes paths.

    Raises:
        InvalidInputError: the URL has no scheme of these, or an option that cannot be.
    """
    scheme = _scheme(url)
    if scheme is None or scheme not in schemes:
        path = "a path, or " if "" in schemes else ""
        known = ", ".join(f"{one}://" for one in schemes if one)
        got = (
            f"this one begins with {scheme}://"
            if scheme
            else "this one has no scheme (a path with a colon in its name is written ./name)"
        )
        raise InvalidInputError(f"{what} is {path}a URL that begins with {known}; {got}.")
    try:
        return schemes[scheme](url)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    raise InvalidInputError(f"The options of the URL cannot be: {wrong}.")


def open_storage(url: str, what: str) -> "tuple[fsspec.AbstractFileSystem, str]":
    """The storage that a path or an fsspec URL names, and the path there.

    Args:
        url: a path, or any URL that fsspec knows.
        what: says so, as the subject of a sentence.

    Raises:
        InvalidInputError: a package that this storage needs is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise InvalidInputError(f"{what} names a storage that cannot be used: {error}.") from error


def in_folder(url: str, folder: Path) -> str:
    """The URL; where it is a relative path, that path in a folder."""
    return url if _scheme(url) != "" else str(folder / Path(url).expanduser())


def as_uri(url: str) -> str:
    """The URL; of a path, the file:// URL of that."""
    return url if "://" in url else Path(url).expanduser().absolute().as_uri()


def split_options(
    url: str, known: Mapping[str, Callable[[str], Any]]
) -> tuple[str, dict[str, Any]]:
    """The URL without the options that are known, and what these say.

    Raises:
        InvalidInputError: one of them cannot be read.
    """
    address, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    taken = {}
    for name in known.keys() & options.keys():
        try:
            taken[name] = known[name](options.pop(name))
        except ValueError as error:
            raise InvalidInputError(f"The option {name} of the URL: {error}") from None
    rest = urlencode(options) if taken else query
    return address + (f"?{rest}" if rest else ""), taken


def without_options(url: str, what: str, known: str = "") -> str:
    """The URL, which Dagster shows, as it is.

    Args:
        url: to be checked.
        what: it describes, as an object of a sentence.
        known: options that were taken out of it before, with a value each, as an example.

    Raises:
        InvalidInputError: it has options, or a password.
    """
    if "?" in url:
        others = f", but for ?{known}" if known else ""
        raise InvalidInputError(f"The URL of {what} takes no options (?name=value){others}.")
    check_no_password(url, what)
    return url


def check_no_password(url: str, what: str) -> None:
    """Refuses a URL that must not be shown, though Dagster shows it.

    Raises:
        InvalidInputError: it has a password.
    """
    if re.search(r"://[^/]*:[^/]*@", url):
        raise InvalidInputError(
            f"The URL of {what} must hold no password: Dagster shows it. The storage's own "
            "variables hold one, such as AWS_SECRET_ACCESS_KEY or FSSPEC_SFTP_PASSWORD."
        )


def local_path(url: str) -> str:
    """The path that a URL without a host names."""
    path = urlsplit(url).path if "://" in url else url
    return str(Path(path).expanduser())


def seconds(text: str) -> float:
    """The seconds of a time such as 0.3, 90s, 24h or 30d.

    Raises:
        InvalidInputError: it is no time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip())
    if not match or match[2] not in _SECONDS:
        raise InvalidInputError("a time looks like 90s, 24h or 30d; a number alone is seconds.")
    return float(match[1]) * _SECONDS[match[2]]


def _scheme(url: str) -> str | None:
    """The scheme; "" of a path, None of what is neither, such as host:6379."""
    scheme, colon, rest = url.partition(":")
    if not colon or "/" in scheme:
        return ""
    proper = rest.startswith("//") and re.fullmatch(r"[A-Za-z][\w+.-]{0,19}", scheme)
    return scheme.lower() if proper else None
