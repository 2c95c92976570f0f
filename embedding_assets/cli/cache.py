"""`embedding-assets cache`: look into the cache of vectors, make it smaller, move it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from embedding_assets.cli.terminal import (
    AsJson,
    console,
    errors_for_people,
    is_terminal,
    print_rows,
)
from resources.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from resources.caches.base import EmbeddingCache, Removed

app = typer.Typer(
    help="Statistics, pruning, invalidation and copies of the cache of vectors.",
    no_args_is_help=True,
)

CacheUrl = Annotated[
    str | None,
    typer.Option(
        "--cache", help="Path of a DuckDB file, or redis://… Default: that of the project."
    ),
]
Space = Annotated[str | None, typer.Option("--space", help="Only this embedding space (its id).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Remove nothing, say what would be.")]


@app.command()
def stats(
    cache: CacheUrl = None,
    by_day: Annotated[bool, typer.Option("--by-day", help="The hit rate of each day.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show entries, bytes, hits, misses and hit rate by embedding space."""
    with errors_for_people():
        opened = _opened(cache)
        with _status("Counting …", as_json):
            statistics = opened.statistics()
            days = opened.lookups() if by_day else []
    if by_day:
        rows: list[dict[str, Any]] = [
            {
                "day": str(day.day),
                "embedding_space": day.space_id,
                "hits": day.hits,
                "misses": day.misses,
                "hit_rate": _rate(day.hits, day.misses),
            }
            for day in days
        ]
    else:
        rows = [
            {
                "embedding_space": space.space_id,
                "model": space.model or "unknown",
                "dimension": space.dimension,
                "entries": space.entries,
                "bytes": space.bytes,
                "hits": space.hits,
                "misses": space.misses,
                "hit_rate": _rate(space.hits, space.misses),
            }
            for space in statistics
        ]
    print_rows(rows, as_json, "Embedding cache")


@app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(help="Remove what was written longer ago: 12h, 30d, 8w.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Remove the oldest until so much is left: 500MB, 2GB.")
    ] = None,
    space: Space = None,
    cache: CacheUrl = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove entries by age or total size."""
    from resources.caches.base import Retention

    with errors_for_people():
        retention = Retention(
            _age(older_than) if older_than is not None else None,
            _size(max_size) if max_size is not None else None,
        )
        opened = _opened(cache)
        with _status("Pruning …", as_json):
            removed = opened.prune(retention, space, dry_run=dry_run)
    _print_removed(removed, dry_run, as_json)


@app.command()
def invalidate(
    text: Annotated[
        list[str] | None,
        typer.Option(help="Exactly what was embedded: context and text of a chunk, or a query."),
    ] = None,
    text_file: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="A file that holds exactly what was embedded."),
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="A content hash: 40 hexadecimal characters.")
    ] = None,
    space: Space = None,
    cache: CacheUrl = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove the vectors of texts, of keys, or of a whole embedding space."""
    from resources.caches.vectors import hash_array
    from resources.identity.content_hash import HASH_BYTES, content_hash, query_hash

    with errors_for_people():
        texts = [*(text or []), *(path.read_text() for path in text_file or [])]
        hashes = [make(one) for one in texts for make in (content_hash, query_hash)]
        for one in key or []:
            if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * HASH_BYTES}}}", one):
                raise InvalidInputError(
                    f"A key has {2 * HASH_BYTES} hexadecimal characters; got {one!r}."
                )
            hashes.append(bytes.fromhex(one))
        if not hashes and space is None:
            raise InvalidInputError(
                "Say what to invalidate: --text, --text-file, --key or --space."
            )
        opened = _opened(cache)
        with _status("Invalidating …", as_json):
            keys = hash_array(list(dict.fromkeys(hashes))) if hashes else None
            removed = opened.invalidate(keys, space, dry_run=dry_run)
    _print_removed(removed, dry_run, as_json)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Path of a DuckDB file, or redis://…")],
    target: Annotated[str, typer.Argument(help="Path of a DuckDB file, or redis://…")],
    space: Space = None,
    as_json: AsJson = False,
) -> None:
    """Copy vectors from one cache to another; what the target holds is kept."""
    from resources.caches.base import copy_entries
    from resources.caches.from_url import cache_from_url

    with errors_for_people():
        origin = _named_cache(source)
        entries = sum(s.entries for s in origin.statistics() if space in (None, s.space_id))
        if not entries:
            raise NotFoundError(
                f"{_named(origin)} holds no vectors" + (f" of space '{space}'." if space else ".")
            )
        destination = cache_from_url(target)
        with _progress("Copying", entries, as_json) as advance:
            copied = copy_entries(origin, destination, space, advance)
    print_rows([{"entries": entries, "copied": copied}], as_json, "Copied")


def _named_cache(url: str) -> "EmbeddingCache":
    """A cache that somebody names, of which there must be something to read."""
    from resources.caches.from_url import cache_from_url

    cache = cache_from_url(url)
    file = getattr(cache, "path", None)
    if file is not None and not Path(file).exists():
        raise NotFoundError(f"There is no cache at {Path(file).absolute()}.")
    return cache


def _opened(url: str | None) -> "EmbeddingCache":
    if url is not None:
        return _named_cache(url)
    from embedding_assets.collection.resources import shared_resources

    return shared_resources()["embedding_cache"]


def _named(cache: "EmbeddingCache") -> str:
    return str(getattr(cache, "path", None) or getattr(cache, "url", None) or "The cache")


def _rate(hits: int, misses: int) -> float | None:
    return round(hits / (hits + misses), 4) if hits + misses else None


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if not match:
        raise InvalidInputError(f"An age looks like 12h, 30d or 8w; got {text!r}.")
    unit = {"h": "hours", "d": "days", "w": "weeks"}[match[2]]
    return timedelta(**{unit: float(match[1])})


def _size(text: str) -> int:
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise InvalidInputError(f"A size looks like 500MB or 2GB; got {text!r}.") from None


def _print_removed(removed: "list[Removed]", dry_run: bool, as_json: bool) -> None:
    outcome = "would_be_removed" if dry_run else "removed"
    rows = [
        {"embedding_space": one.space_id, outcome: one.entries, "bytes": one.bytes}
        for one in removed
    ]
    if not rows and not as_json:
        console.print("Nothing to remove.")
        return
    print_rows(rows, as_json, "Would be removed" if dry_run else "Removed")


@contextmanager
def _status(text: str, as_json: bool) -> Iterator[None]:
    if is_terminal(as_json):
        with console.status(text):
            yield
    else:
        yield


@contextmanager
def _progress(text: str, total: int, as_json: bool) -> Iterator[Callable[[int], None]]:
    from rich.progress import Progress

    with Progress(console=console, disable=not is_terminal(as_json)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda entries: progress.advance(task, entries)
