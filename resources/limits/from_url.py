"""Which rate limiter, and which quotas of clients, a URL means."""

from pathlib import Path

from resources.errors import InvalidInputError
from resources.limits.base import VARIABLE, Limits, RateLimiter
from resources.limits.local import LocalRateLimiter
from resources.limits.quota import MemoryQuotas, Quotas
from resources.limits.redis import RedisRateLimiter
from resources.limits.redis_quota import RedisQuotas
from resources.urls import made_from_url, split_options

_REDIS = ("redis", "rediss", "unix")


def rate_limiter_from_url(
    url: str | None, identity: str, folder: Path, limits: Limits, *, window: float, lease: float
) -> RateLimiter:
    """The limiter that a URL describes.

    Args:
        url: redis://…, rediss://… or unix://…; `machines=N` in its query says by how many machines
            the limits are divided while Redis is away (4). None: one machine shares them in files.
        identity: the same for all who share a limit, such as a hash of server, model and key.
        folder: where the processes of this machine share it.
        limits: see `RateLimiter`.
        window: see `RateLimiter`.
        lease: see `RateLimiter`.

    Raises:
        InvalidInputError: the URL describes no limiter. The message does not repeat it: it may hold
            a password.
    """
    if not url:
        return LocalRateLimiter(folder / f"{identity}.json", limits, window=window, lease=lease)

    def redis(url: str) -> RateLimiter:
        address, options = split_options(url, {"machines": _machines, "replicas": _replicas})
        options.pop("replicas", None)  # of the quotas, which may have the same URL
        key, share = f"embedding-assets:rate-limit:{identity}", folder / f"{identity}.share.json"
        return RedisRateLimiter(address, key, share, limits, window=window, lease=lease, **options)

    return made_from_url(url, f"{VARIABLE}, the rate limiter,", dict.fromkeys(_REDIS, redis))


def quotas_from_url(url: str | None, *, window: float = 60.0) -> Quotas:
    """The quotas of clients that a URL describes.

    Args:
        url: redis://…, rediss://… or unix://…, as of the rate limiter; `replicas=N` in its query
            says by how many replicas they are divided while Redis is away (4). None: this process
            counts them by itself.
        window: seconds for which they are meant.

    Raises:
        InvalidInputError: the URL describes none. The message does not repeat it: it may hold a
            password.
    """
    if not url:
        return MemoryQuotas(window)

    def redis(url: str) -> Quotas:
        known = {"replicas": _replicas, "machines": _machines}
        address, options = split_options(url, known)
        options.pop("machines", None)  # of the rate limiter, which may have the same URL
        return RedisQuotas(address, window=window, **options)

    return made_from_url(url, f"{VARIABLE}, the rate limiter,", dict.fromkeys(_REDIS, redis))


def _machines(text: str) -> int:
    return _number(text, "machines")


def _replicas(text: str) -> int:
    return _number(text, "replicas")


def _number(text: str, of: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise InvalidInputError(f"{VARIABLE} divides the limits by a number of {of} from 1.")
    return int(text)
