"""A client of Redis that never waits for long, and looks for the server anew after a failover."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from resources.errors import InvalidInputError, MissingPackageError

if TYPE_CHECKING:
    import redis

_SECONDS_BETWEEN_WARNINGS = 600.0

_Result = TypeVar("_Result")


def redis_client(url: str, timeout: float, what: str, **options: Any) -> "redis.Redis":
    """A client that sends each command once, within a time limit.

    Args:
        url: redis://…, rediss://… or unix://….
        timeout: seconds for one command, and for connecting.
        what: needs the client, as the subject of a sentence.
        **options: of the client; those of the URL win.

    Raises:
        ValueError: it is no such URL. The message may hold a password.
        MissingPackageError: the package of the client is not installed.
    """
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise MissingPackageError(what, "redis") from error
    times = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    # By default a command to a stalled server is repeated for up to a minute, and so applied again
    # and again. With the newer protocol's maintenance messages, stale connections go unnoticed.
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2, **times, **options)


def client_of(variable: str, url: str, timeout: float) -> "redis.Redis":
    """The client that an environment variable names.

    Args:
        variable: its name.
        url: what it holds.
        timeout: as of `redis_client`.

    Raises:
        InvalidInputError: it is no URL of a Redis. The message does not repeat it.
        MissingPackageError: the package of the client is not installed.
    """
    try:
        return redis_client(url, timeout, f"{variable} in Redis")
    except MissingPackageError:
        raise
    except ValueError:
        pass
    # Outside of `except`: the error may hold the password.
    raise InvalidInputError(
        f"{variable} must be a URL such as redis://host:6379/0, rediss://… or unix://…"
    )


def ask_primary(
    client: "redis.Redis",
    action: "Callable[[redis.Redis], _Result]",
    moved: Callable[[], None],
) -> _Result:
    """What the server answers; if it takes no writes any more, what its successor does.

    After a failover the name leads to another server, but open connections to the old one, which
    answers READONLY as long as they live: so they are closed, and the name is looked up again.

    Args:
        client: of the server.
        action: what to ask; its answers to several commands may be exceptions.
        moved: is told that the server takes no writes.
    """
    try:
        answer = action(client)
    except Exception as error:
        if not _demoted(error):
            raise
    else:
        if not isinstance(answer, list) or not any(map(_demoted, answer)):
            return answer
    moved()
    forget_connections(client)
    return action(client)


def forget_connections(client: "redis.Redis") -> None:
    """Closes those that nobody uses now: the next command connects, and looks the name up."""
    client.connection_pool.disconnect(inuse_connections=False)


def reason(error: Exception, client: "redis.Redis | None") -> str:
    """What went wrong, without the password."""
    text = f"{type(error).__name__}: {error}"
    password = client and client.connection_pool.connection_kwargs.get("password")
    return text.replace(password, "***") if password else text


def is_redis_error(error: Exception) -> bool:
    """Whether it says that the server, or the way to it, fails: not that the code does."""
    from redis.exceptions import RedisError

    # ValueError: the answer is not what was asked for.
    return isinstance(error, RedisError | OSError | ValueError)


def shown(url: str) -> str:
    """A URL without user, password and options."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class Seldom:
    """Says which kinds of warnings are due: each at most once in ten minutes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def due(self, kind: str) -> bool:
        """Whether to warn now; then it counts as done."""
        now = time.monotonic()
        with self._lock:
            if now - self._last.get(kind, -_SECONDS_BETWEEN_WARNINGS) < _SECONDS_BETWEEN_WARNINGS:
                return False
            self._last[kind] = now
            return True


def _demoted(answer: object) -> bool:
    if not isinstance(answer, Exception):
        return False
    from redis.exceptions import MasterDownError, ReadOnlyError

    # A script's own command may be what is refused: then the code is not the first word.
    return isinstance(answer, ReadOnlyError | MasterDownError) or "READONLY" in str(answer)
