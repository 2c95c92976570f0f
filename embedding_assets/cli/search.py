"""`embedding-assets search` and `evaluate`: ask an index, and measure how well it answers."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from embedding_assets.cli.terminal import (
    AsJson,
    console,
    errors_for_people,
    is_terminal,
    plain,
    print_rows,
    warn,
)
from resources.errors import InvalidInputError

_SNIPPET = 160
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="Compare with every chunk. Large collections are searched through an approximate "
        "index, which may miss some.",
    ),
]


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
    with errors_for_people():
        if not text.strip():
            raise InvalidInputError("The text to search for is empty.")
        import embedding_assets as ea

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
        typer.Option(
            help="Write each query to this JSON Lines file: text, figures, the documents found, "
            "and the rank of each relevant one.",
            encoding="utf-8",
        ),
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
            lines = (json.dumps(asdict(one), ensure_ascii=False) for one in result.per_query)
            per_query.writelines(f"{line}\n" for line in lines)
    row = {
        "collection": opened.name,
        "ndcg_at_10": round(result.ndcg_at_10, 5),
        "recall_at_10": round(result.recall_at_10, 5),
        "queries": result.queries,
    }
    print_rows([row], as_json, "Retrieval quality")
