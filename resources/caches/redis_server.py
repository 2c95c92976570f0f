"""A Redis server that may be away, full, or somebody else's: asked through circuit breakers."""

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from resources.caches.base import (
    CacheUnavailableError,
)
from resources.errors import InvalidInputError
from resources.limits.circuit_breaker import CircuitBreaker
from resources.redis_client import Seldom, ask_primary, forget_connections, reason, redis_client

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import redis

_Result = TypeVar("_Result")


class RedisServer:
    """One server behind two breakers: for everything, and for writing (a full one can be read)."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        self._reachable = CircuitBreaker()
        self._writable = CircuitBreaker()
        self._counts: Counter[str] = Counter()
        self._seldom = Seldom()

    def ask(self, action: "Callable[[redis.Redis], _Result]") -> _Result | None:
        """The server's answer; None if there is none, which is counted and warned of."""
        if not self._reachable.allows():
            return None
        try:
            answer = self._primary(action)
        except ImportError:
            raise
        except Exception as error:  # also what a parser raises at bytes that are not Redis's
            self._reachable.failed()
            self.count("commands_failed", 1)
            self.warn(
                "unreachable",
                f"The embedding cache {self._url} does not answer ({self._reason(error)}). The run "
                "goes on without it: its look-ups are misses, and new vectors are not shared. "
                "It is asked again at intervals of 1 to 30 s.",
            )
            self._disconnect()
            return None
        if self._reachable.succeeded():
            _log.info(f"The embedding cache {self._url} answers again.")
        return answer

    def ask_or_raise(self, action: "Callable[[redis.Redis], _Result]") -> _Result:
        """The server's answer.

        Raises:
            CacheUnavailableError: there is none.
        """
        try:
            return self._primary(action)
        except ImportError:
            raise
        except Exception as error:
            self._disconnect()
            raise CacheUnavailableError(
                f"The embedding cache {self._url} does not answer: {self._reason(error)}"
            ) from None  # the cause may show what was sent

    def command(self, *words: Any) -> Any:
        """The server's answer to one command.

        Raises:
            CacheUnavailableError: there is none.
        """
        return cast(Any, self.ask_or_raise(lambda server: server.execute_command(*words)))

    def write(self, commands: Sequence[tuple[Any, ...]]) -> list[Any] | None:
        """The answer to each command, an exception where it was refused; None if there is none."""
        if not self._writable.allows():
            return None
        replies = self.ask(lambda server: piped(server, commands))
        if replies is None:
            return None
        refusals = [reply for reply in replies if isinstance(reply, Exception)]
        if refusals:
            self.count("commands_failed", len(refusals))
            self.warn(
                "refused",
                f"The embedding cache {self._url} refuses to store ({self._reason(refusals[0])}). "
                "The run goes on; what is not stored is embedded again when it is needed again.",
            )
        if isinstance(replies[-1], Exception):
            self._writable.failed()
        else:
            self._writable.succeeded()
        return replies

    def count(self, what: str, number: int) -> None:
        with self._lock:
            self._counts[what] += number

    def counts(self) -> dict[str, int]:
        names = ("lookups_unanswered", "vectors_not_stored", "commands_failed")
        with self._lock:
            return {name: self._counts[name] for name in names}

    def warn(self, kind: str, message: str) -> None:
        """Logs a warning, unless one of the kind was logged a short time ago."""
        if self._seldom.due(kind):
            _log.warning(message)

    def _primary(self, action: "Callable[[redis.Redis], _Result]") -> _Result:
        return ask_primary(self._connected(), action, self._moved)

    def _moved(self) -> None:
        self.warn(
            "moved",
            f"The embedding cache {self._url} takes no writes any more, as after a failover. It is "
            "connected to anew.",
        )

    def _reason(self, error: Exception) -> str:
        return reason(error, self._client)

    def _connected(self) -> "redis.Redis":
        with self._lock:
            if self._client is None:
                username, password = _credentials(self._url)
                self._client = redis_client(
                    self._url,
                    self._timeout,
                    "A cache in Redis",
                    username=username,
                    password=password,
                )
            return self._client

    def _disconnect(self) -> None:
        with self._lock:
            if self._client is not None:
                forget_connections(self._client)


# --- URLs

_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_known_credentials: dict[str, tuple[str | None, str | None]] = {}
"""Credentials by URL: in no resource, because Dagster shows and records those."""


def _credentials(url: str) -> tuple[str | None, str | None]:
    username = os.environ.get("EMBEDDING_CACHE_USERNAME") or None
    password = os.environ.get("EMBEDDING_CACHE_PASSWORD") or None
    return _known_credentials.get(url, (username, password))


def without_credentials(url: str) -> str:
    """Takes user and password out of a URL and remembers them.

    Raises:
        InvalidInputError: it is no URL of a Redis server. The message does not repeat it: where a
            password was not quoted, any part of it may be the password.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=True) if parts.query else ())
        place = parts.netloc.rpartition("@")[2]
        right = (
            parts.scheme in ("redis", "rediss", "unix")
            and not parts.fragment
            and options.keys() <= _OPTIONS
            and (parts.port is None or place)
            and (parts.scheme == "unix" or bool(re.fullmatch(r"/?\d*", parts.path)))
        )
        shown = urlunsplit(parts._replace(netloc=place))
    except ValueError:
        right, parts, shown = False, urlsplit(""), ""
    if not right:
        raise InvalidInputError(
            "The URL of the embedding cache must look like redis://user:password@host:6379/0, "
            "rediss://… (TLS) or unix:///path/to/socket, with special characters of user and "
            f"password quoted (# as %23, / as %2F, ? as %3F); options: {', '.join(_OPTIONS)}."
        )
    if parts.username or parts.password:
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        _known_credentials[shown] = (username or None, password or None)
    return shown


def piped(server: "redis.Redis", commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    with server.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        return pipeline.execute(raise_on_error=False)
