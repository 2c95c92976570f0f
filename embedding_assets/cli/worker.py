"""`embedding-assets worker`: embeds what bulk jobs of the HTTP service ask for."""

import os
from typing import Annotated

import typer

from embedding_assets.cli.terminal import console, errors_for_people
from resources.errors import InvalidInputError, MissingPackageError, NotFoundError


def worker(
    nice: Annotated[
        int, typer.Option(min=0, max=19, help="Processor time goes to others first: 0 to 19.")
    ] = 10,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether a worker of this machine is alive.")
    ] = False,
) -> None:
    """Embed what bulk jobs of the HTTP service ask for, one part at a time, until it is stopped.

    It needs EMBEDDING_BROKER, as the service does. Several workers, on several machines, share the
    parts; they need the same cache (redis://…) and the same EMBEDDING_JOBS.
    """
    with errors_for_people():
        try:
            from embedding_assets.bulk.queue import project_queue
        except ImportError as error:
            raise MissingPackageError("`embedding-assets worker`", "jobs") from error
        from embedding_assets.service.settings import read_service_settings

        queue = project_queue()
        if queue is None:
            raise InvalidInputError(
                "There is no queue to work on: set EMBEDDING_BROKER to redis://… for the service "
                "and for its workers."
            )
        if check:
            if not queue.is_worker_alive():
                raise NotFoundError("No worker of this machine answers.")
            console.print("A worker of this machine is alive.")
            return
        os.nice(nice)
        console.print("Waiting for bulk jobs.")
        queue.work(read_service_settings().job_days)
