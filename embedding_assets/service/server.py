"""Runs the application: one process, one event loop, one registry of metrics."""

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from embedding_assets.collection.environment import read_environment
from embedding_assets.service.browsers import is_loopback
from resources.errors import InvalidInputError, MissingPackageError, NotFoundError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from embedding_assets.api import Collection
    from embedding_assets.bulk.queue import JobQueue

_SWITCH_SECONDS = 0.0005
"""The event loop waits no longer for threads that calculate in Python; by default ten times as
long."""
_IDLE_SECONDS = 75
_HEADER_SECONDS = 20.0
_QUEUED_CONNECTIONS = 2_048
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def serve_project(
    names: Sequence[str], host: str, port: int, announce: Callable[[str], None]
) -> None:
    """Serves the project around the working directory, until SIGTERM or SIGINT.

    Then it takes nothing new, and answers what it has accepted.

    Args:
        names: the collections that are served; none: all that can be loaded.
        host: address to listen at.
        port: port to listen at; 0: one that is free.
        announce: is told where it listens, a line at a time.

    Raises:
        InvalidInputError: others than this machine could ask, and there are no keys; or it cannot
            listen there.
        MissingPackageError: the extra `service` is not installed.
        NotFoundError: there is no collection, or one of these names cannot be loaded.
    """
    try:
        from embedding_assets.service.access import Access
        from embedding_assets.service.app import create_app
    except ImportError as error:
        raise MissingPackageError("`embedding-assets serve`", "service") from error
    import embedding_assets as ea
    from embedding_assets.api import loaded
    from embedding_assets.project import written_definitions
    from embedding_assets.service.keys import FILE_NAME, KeyRing
    from embedding_assets.service.project_watch import ProjectWatch
    from embedding_assets.service.service import Service
    from embedding_assets.service.settings import read_service_settings
    from resources.limits.from_url import quotas_from_url

    environment = read_environment()
    look = partial(written_definitions, environment.project)
    written = look()
    available, broken = loaded()
    if names:
        available, broken = {name: ea.open(name) for name in names}, []
    if not available:
        raise NotFoundError(
            "\n".join(["There is no collection to serve: `embedding-assets new FOLDER`.", *broken])
        )
    keys = KeyRing(environment.data_dir / FILE_NAME)
    check_address(host, has_keys=keys.any)
    settings = read_service_settings()
    service = Service(available, broken, settings, environment.dagster_home)
    watch = ProjectWatch(service, lambda: _named(loaded(), names), look, since=written)
    service.watch = watch.run
    quotas = quotas_from_url(environment.rate_limiter)
    access = Access(keys, quotas, settings.quota, service.metrics)
    app = create_app(service, access, _queue(environment.broker))
    sockets = listen(host, port)
    port = sockets[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    announce(f"Search page:   http://{shown}:{port}/")
    announce(f"Documentation: http://{shown}:{port}/docs")
    _run(app, sockets, settings.drain_seconds)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at each address of a host: `localhost` may have two.

    Args:
        host: name or address.
        port: 0: one that is free, the same at each address.

    Raises:
        InvalidInputError: they cannot, because another program does, say.
    """
    opened: list[socket.socket] = []
    refused: list[OSError] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        addresses, refused = [], [error]
    for family, _, protocol, _, address in dict.fromkeys(addresses):
        free = opened[0].getsockname()[1] if opened else port
        try:
            opened.append(_socket(family, protocol, (address[0], free, *address[2:])))
        except OSError as error:
            refused.append(error)
    for error in refused:
        # That a name has an address of IPv6, too, is no harm where there is no IPv6.
        if not opened or error.errno not in _NOT_HERE:
            for one in opened:
                one.close()
            raise InvalidInputError(_why_not(host, port, error)) from None
    return opened


def _socket(family: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    # By the protocol's number asyncio knows that it may send small answers without delay.
    made = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(_QUEUED_CONNECTIONS)
    except OSError:
        made.close()
        raise
    return made


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} is in use: another program listens there, perhaps this one, started "
            "before. End that, or take another port: --port N; 0 is any that is free."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} is not for this user: take one from 1024 on, with --port N."
    return f"It cannot listen at {host}, port {port}: {error.strerror}. Choose another --host."


def _queue(broker: str | None) -> "JobQueue | None":
    if broker is None:
        return None
    try:
        from embedding_assets.bulk.queue import project_queue
    except ImportError as error:
        raise MissingPackageError("EMBEDDING_BROKER", "jobs") from error
    return project_queue()


def _named(
    found: "tuple[dict[str, Collection], list[str]]", names: Sequence[str]
) -> "tuple[dict[str, Collection], list[str]]":
    """The collections of these names; none: all."""
    collections, broken = found
    return {name: one for name, one in collections.items() if not names or name in names}, broken


def _run(app: "FastAPI", sockets: list[socket.socket], drain_seconds: int) -> None:
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Protocol(AutoHTTPProtocol):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
        """Closes connections over which no request has come after a while."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            asyncio.get_running_loop().call_later(_HEADER_SECONDS, self._close_if_silent)

        def _close_if_silent(self) -> None:
            transport: Any = self.transport  # pyright: ignore[reportAttributeAccessIssue]
            if getattr(self, "cycle", None) is None and not transport.is_closing():
                transport.close()

    sys.setswitchinterval(_SWITCH_SECONDS)
    config = uvicorn.Config(
        app,
        http=Protocol,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
        backlog=_QUEUED_CONNECTIONS,
    )
    uvicorn.Server(config).run(sockets)


def check_address(host: str, *, has_keys: bool) -> None:
    """Without keys nobody but this machine may ask.

    Raises:
        InvalidInputError: others could.
    """
    if not has_keys and not is_loopback(host):
        raise InvalidInputError(
            f"Without API keys the service is for this machine only, and {host} can be reached "
            "from others. Make a key first: `embedding-assets keys create NAME`."
        )
