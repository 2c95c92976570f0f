"""`embedding-assets`: what Dagster's own command line does not do - plan, search, evaluate."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from embedding_assets.cli.cache import app as cache_app
from embedding_assets.cli.terminal import (
    AsJson,
    console,
    errors_for_people,
    is_terminal,
    plain,
    print_rows,
    warn,
)
from resources.errors import EmbeddingAssetsError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from embedding_assets.api import Collection
    from embedding_assets.operations.plan import Plan
    from resources.identity.embedding_space import EmbeddingSpace
    from resources.vector_stores.base import VectorStore

app = typer.Typer(
    help="Plan runs of this project's collections, search and evaluate them. "
    "To build them use Dagster: `dagster dev -w workspace.yaml`, or `dagster asset materialize`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cache_app, name="cache")
_SNIPPET = 160
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="Compare with every chunk. Large collections are searched through an approximate "
        "index, which may miss some.",
    ),
]


def main() -> None:
    app()


@app.command()
def collections(as_json: AsJson = False) -> None:
    """List the collections and their indexes, those that are no longer configured too."""
    from embedding_assets.api import loaded

    with errors_for_people():
        available, broken = loaded()
        for sentence in broken:
            warn(f"Not loaded: {sentence}")
        store = _store(available)
        rows = []
        for name in {*available, *store.collections()}:
            collection = available.get(name)
            # Of a table without a collection nobody knows, as long as one of them is not loaded.
            uses, other = {}, "none" if collection or not broken else "unknown"
            try:
                uses = _uses_of_spaces(collection)
            except EmbeddingAssetsError as error:
                warn(f"The model of '{name}' is not known: {error}")
                other = "unknown"
            rows += [
                {
                    "collection": name,
                    "source": collection.settings.source.path if collection else None,
                    "model": space.model,
                    "embedding_space": space.id,
                    "chunks": store.count(name, space),
                    "use": uses.get(space, other),
                }
                for space in {*uses, *store.spaces(name)}
            ]
    rows.sort(key=lambda row: (row["collection"], row["use"], row["embedding_space"]))
    print_rows(rows, as_json, "Collections")


@app.command()
def drop_index(
    collection: Annotated[
        str, typer.Argument(help="The collection, as in `collections`; it may be there no more.")
    ],
    space: Annotated[str, typer.Argument(help="The embedding space's id, as in `collections`.")],
) -> None:
    """Remove an index of a model or a collection that is no longer configured; the cache stays."""
    from embedding_assets.api import loaded

    with errors_for_people():
        available, broken = loaded()
        store = _store(available)
        found = next((there for there in store.spaces(collection) if there.id == space), None)
        if found is None:
            raise NotFoundError(
                f"'{collection}' has no index for the embedding space '{space}'; "
                "`embedding-assets collections` lists those that are there."
            )
        if collection not in available and broken:
            raise InvalidInputError(
                f"The index may be that of a collection that could not be loaded: {broken[0]}"
            )
        if found in _uses_of_spaces(available.get(collection)):
            raise InvalidInputError(
                f"'{collection}' uses {found.model} ({space}): it is in its YAML."
            )
        chunks = store.count(collection, found)
        store.drop_table(collection, found)
    console.print(plain(f"Removed {chunks:,} chunks of {found.model} from '{collection}'."))


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What to look for.")],
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="The collection; may be left out if there is one."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many chunks.")] = 5,
    exact: Exact = False,
    as_json: AsJson = False,
) -> None:
    """Find the chunks nearest to a text."""
    import embedding_assets as ea

    with errors_for_people():
        name = (opened := ea.open(collection)).name
        hits = opened.search(text, k, exact=exact)
    if len(hits.spaces) > 1:
        models = " and ".join(space.model for space in hits.spaces)
        warn(
            f"Part of '{name}' is in the fallback's embedding space. Ranks of {models} were "
            "fused; their scores cannot be compared."
        )
    if as_json:
        print_rows([asdict(hit) for hit in hits], True)
        return
    table = Table(title=plain(f"{name}: {text}"), title_justify="left", show_lines=True)
    for column, options in (
        ("score", {"justify": "right"}),
        ("document", {"overflow": "fold"}),
        ("span", {"justify": "right"}),
        ("text", {}),
    ):
        table.add_column(column, **options)  # pyright: ignore[reportArgumentType]
    for hit in hits:
        snippet = " ".join(hit.text.split())
        if len(snippet) > _SNIPPET:
            snippet = snippet[:_SNIPPET] + "…"
        table.add_row(
            f"{hit.score:.3f}",
            plain(hit.document_id),
            f"{hit.span_start}-{hit.span_end}",
            Text.assemble((plain(" ".join(hit.title.split())), "bold"), "\n", plain(snippet)),
        )
    console.print(table)


@app.command()
def evaluate(
    collection: Annotated[str, typer.Argument(help="The collection.")],
    queries: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help='JSON Lines: {"_id": ..., "text": ...}. Default: the collection\'s own.',
        ),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="TSV: query id, document id, relevance. Default: the collection's own.",
        ),
    ] = None,
    per_query: Annotated[
        typer.FileTextWrite | None,
        typer.Option(help="Write the figures of each query to this JSON Lines file."),
    ] = None,
    exact: Exact = False,
    as_json: AsJson = False,
) -> None:
    """Measure retrieval quality (nDCG@10, recall@10) against relevance judgements."""
    import embedding_assets as ea

    with errors_for_people():
        opened = ea.open(collection)
        with console.status("Searching …") if is_terminal(as_json) else nullcontext():
            result = opened.evaluate(queries, qrels, exact=exact)
        if per_query is not None:
            per_query.writelines(json.dumps(asdict(one)) + "\n" for one in result.per_query)
    row = {
        "collection": opened.name,
        "ndcg_at_10": round(result.ndcg_at_10, 5),
        "recall_at_10": round(result.recall_at_10, 5),
        "queries": result.queries,
    }
    print_rows([row], as_json, "Retrieval quality")


@app.command()
def plan(
    collection: Annotated[
        str | None,
        typer.Argument(help="The collection; may be left out if there is one."),
    ] = None,
    partition_range: Annotated[
        str | None,
        typer.Option(help="FIRST...LAST, or one partition; by default all.", metavar="RANGE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do and cost: changes, texts to embed, tokens, dollars, time.

    Reads the source, splits and asks the cache; embeds nothing and changes nothing.
    """
    import embedding_assets as ea

    with errors_for_people():
        name = (opened := ea.open(collection)).name
        with _progress_lines(as_json):
            found = opened.plan(partition_range)
    if as_json:
        json.dump({"collection": name, **asdict(found)}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    rows = [
        {"partition": key, **{label: f"{n.get(name, 0):,}" for label, name in _PLANNED.items()}}
        for key, n in found.partitions.items()
        if any(n.get(name) for name in _WORK)
    ]
    if rows:
        print_rows(rows, False, f"{name}: partitions with something to do")
    at_rest = len(found.partitions) - len(rows)
    console.print(f"Nothing to do in {at_rest:,} of {len(found.partitions):,} partitions.")
    if found.unplaced:
        console.print(f"{found.unplaced:,} records would be refused and belong to no partition.")
    if found.withheld:
        console.print(plain(found.withheld))
    console.print(f"To embed: {found.texts:,} texts, {found.tokens:,} tokens{_costs(found)}.")


@app.command()
def accept(
    collection: Annotated[str, typer.Argument(help="The collection.")],
    partition: Annotated[
        str | None,
        typer.Option(
            help="FIRST...LAST, or one partition; without it, what is withheld is listed.",
            metavar="RANGE",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Agree to deletions that are withheld: the next run removes those documents."""
    import embedding_assets as ea
    from embedding_assets.artifacts.withheld import as_range

    with errors_for_people():
        opened = ea.open(collection)
        withheld = opened.accept_deletions(partition) if partition else opened.withheld()
    rows = [{"partition": key, "documents": documents} for key, documents in withheld.items()]
    documents = sum(withheld.values())
    if as_json:
        print_rows(rows, True)
        return
    if partition:
        console.print(
            f"The next run of {plain(partition)} removes {documents:,} documents that the source "
            "no longer has. Sensors that are on request it; `embedding-assets plan` shows it."
        )
        return
    if rows:
        print_rows(rows, False, f"{opened.name}: documents that the source no longer has, but stay")
    console.print(
        f"The deletion of {documents:,} documents is withheld. To agree, name the partitions: "
        f"`embedding-assets accept {opened.name} --partition {plain(as_range(withheld))}`."
        if rows
        else f"No deletions of '{opened.name}' are withheld."
    )


_PLANNED = {
    "added": "added",
    "changed": "changed",
    "deleted": "deleted",
    "withheld": "deletions_withheld",
    "refused": "quarantined",
    "chunks": "chunks",
    "to embed": "cache_misses",
    "tokens": "tokens_to_embed",
}
_WORK = ("added", "changed", "deleted", "deletions_withheld", "cache_misses")


def _costs(found: "Plan") -> str:
    costs = f", ${found.dollars:,.4f}" if found.dollars else ""
    if found.tokens and found.seconds is None:
        return f"{costs}; how long that takes is known after the first run"
    return costs + (f", about {found.seconds:,.0f} s" if found.tokens else "")


@contextmanager
def _progress_lines(as_json: bool) -> Iterator[None]:
    """Shows the lines of a plan's log to somebody at a terminal."""
    log = logging.getLogger("embedding_assets.operations.plan")
    handler = logging.StreamHandler(sys.stderr) if is_terminal(as_json) else logging.NullHandler()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _store(available: "Mapping[str, Collection]") -> "VectorStore":
    """The one that all collections share, of which there may be none."""
    from embedding_assets.collection.resources import shared_resources

    for collection in available.values():
        return collection.resources.store
    return shared_resources()["vector_store"]


def _uses_of_spaces(collection: "Collection | None") -> "dict[EmbeddingSpace, str]":
    """What each space that a collection's settings name is for."""
    uses = ("search", "fallback")
    embedders = collection.resources.embedders if collection else ()
    return {e.space: use for e, use in zip(embedders, uses, strict=False)}
