"""Which rate limiter the environment asks for."""

import os
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from resources.errors import InvalidInputError
from resources.limits.base import VARIABLE, Limits, RateLimiter
from resources.limits.local import LocalRateLimiter
from resources.limits.redis import RedisRateLimiter


def rate_limiter(
    identity: str, folder: Path, limits: Limits, *, window: float, lease: float
) -> RateLimiter:
    """The limiter that the environment asks for.

    Args:
        identity: the same for all who share a limit, such as a hash of server, model and key.
        folder: where the processes of this machine share it.
        limits: see `RateLimiter`.
        window: see `RateLimiter`.
        lease: see `RateLimiter`.

    Environment:
        EMBEDDING_RATE_LIMITER: redis://…, rediss://… or unix://…; `machines=N` in its query says
            by how many machines the limits are divided while Redis is away (4).
    """
    path = folder / f"{identity}.json"
    url = os.environ.get(VARIABLE)
    if not url:
        return LocalRateLimiter(path, limits, window=window, lease=lease)
    address, _, query = url.partition("?")
    options = dict(parse_qsl(query))
    machines = options.pop("machines", "4")
    if not machines.isdigit() or int(machines) < 1:
        raise InvalidInputError(f"{VARIABLE}: machines must be a number from 1, got {machines!r}")
    return RedisRateLimiter(
        address + (f"?{urlencode(options)}" if options else ""),
        f"embedding-assets:rate-limit:{identity}",
        folder / f"{identity}.share.json",
        limits,
        machines=int(machines),
        window=window,
        lease=lease,
    )
