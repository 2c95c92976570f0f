"""`embedding-assets search` and `evaluate`: ask an index, and measure how well it answers."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_assets.cli.terminal import (
    AsJson,
    console,
    errors_for_people,
    is_terminal,
    print_rows,
    warn,
)

if TYPE_CHECKING:
    from embedding_assets.api import Collection

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
        list[str] | None,
        typer.Option(
            "--collection",
            "-c",
            help="A collection to search in; may be given several times. Default: all that are "
            "built.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many documents.")] = 5,
    full: Annotated[
        bool, typer.Option("--full", help="Show whole chunks, not only their best sentences.")
    ] = False,
    context: Annotated[
        int,
        typer.Option(
            min=0,
            max=100,
            help="Show of each document the best chunk whole, and so many before and after it.",
        ),
    ] = 0,
    exact: Exact = False,
    as_json: AsJson = False,
) -> None:
    """Find the documents nearest to a text, each with its best passages.

    A score is the cosine of question and passage, 1 at most. Of several collections with different
    models the ranks are fused.
    """
    from resources.identity.content_hash import canonical_question

    with errors_for_people():
        canonical_question(text)  # a mistake in the command is told before anything is loaded
        import embedding_assets as ea
        from embedding_assets.cli.answers import answers, as_rows, print_answers
        from embedding_assets.retrieval.search import CHUNKS_PER_DOCUMENT

        asked = _asked(collection)
        hits = ea.search(text, asked, k * CHUNKS_PER_DOCUMENT, exact=exact)
        found = answers(hits, asked, k, context)
    if len(hits.spaces) > 1:
        models = " and ".join(space.model for space in hits.spaces)
        warn(f"Ranks of {models} were fused: scores of different models cannot be compared.")
    if as_json:
        print_rows(as_rows(found), True)
        return
    print_answers(found, text, hits, full=full or bool(context))


def _asked(names: "Sequence[str] | None") -> "list[Collection]":
    """The collections to search in; says which others of the project are left out, and why."""
    import embedding_assets as ea
    from embedding_assets.api import loaded

    if names:
        return [ea.open(name) for name in dict.fromkeys(names)]
    available, broken = loaded()
    if not available or (len(available) == 1 and not broken):
        return [ea.open()]
    built = [one for one in available.values() if one.index.is_built]
    for sentence in broken:
        warn(f"Not searched: {sentence}")
    if built and len(built) < len(available):
        left_out = [name for name, one in available.items() if one not in built]
        warn(f"Not searched, for nothing is built there yet: {', '.join(left_out)}.")
    return built or list(available.values())


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
