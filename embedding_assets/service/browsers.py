"""What web pages of others may make a browser ask of a service without keys: nothing.

It is for this machine only, but so is the browser. A page may send requests to 127.0.0.1, and by a
name of its own that it makes mean 127.0.0.1 (DNS rebinding) it could read the answers.
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from embedding_assets.service.errors import ServiceError

_HOST = re.compile(r"\[(?P<v6>[0-9a-fA-F:.]+)\](:[0-9]*)?|(?P<name>[^:@/]+)(:[0-9]*)?")


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine and can mean no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refusal(headers: Iterable[tuple[bytes, bytes]]) -> ServiceError | None:
    """Why a request is not answered; None if no page of another origin can have made it.

    Args:
        headers: of the request, names in small letters.
    """
    for name, value in headers:
        # What names no host is no browser.
        if name == b"host" and not _is_of_this_machine(value):
            return ServiceError(
                421,
                "unknown_host",
                "Without API keys the service answers only to this machine's own names: ask for "
                "localhost or 127.0.0.1, or make a key: `embedding-assets keys create NAME`.",
            )
        if name == b"origin" and not _is_of_this_machine(value.partition(b"://")[2]):
            return ServiceError(
                403,
                "cross_origin",
                "Without API keys the service answers no page of another host: let the server that "
                "the page is from ask.",
            )
    return None


@lru_cache(64)
def _is_of_this_machine(host: bytes) -> bool:
    """Remembered, since each request asks and they hardly ever differ."""
    match = _HOST.fullmatch(host.decode("latin-1").lower())
    return match is not None and is_loopback(match["v6"] or match["name"])
