"""`embedding-assets serve`: embeddings and search over HTTP."""

from typing import Annotated

import typer

from embedding_assets.cli.terminal import console, errors_for_people


def serve(
    collection: Annotated[
        list[str] | None,
        typer.Option(
            "--collection", "-c", help="A collection to serve; may be given several times. "
            "Default: all."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need API keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen at; 0: one that is free.")
    ] = 8080,
) -> None:  # fmt: skip
    """Answer for embeddings and searches over HTTP, from the pipeline's cache, model and index.

    Its search page is at `/`, its documentation at `/docs`, and what it measures at `/metrics`.
    OpenAI's clients take `/v1` for their base URL. Bodies are JSON and say so. Without API keys
    only this machine is answered, by the names localhost and 127.0.0.1, and no web page of another
    host. Settings beside these: EMBEDDING_SERVE_…
    """
    with errors_for_people():
        from embedding_assets.service.server import serve_project

        serve_project(list(dict.fromkeys(collection or ())), host, port, console.print)
