"""Which embedding cache a URL means."""

from resources.caches.base import EmbeddingCache
from resources.urls import local_path, made_from_url, seconds, split_options, without_options


def cache_from_url(url: str, memory_megabytes: int = 0) -> EmbeddingCache:
    """The cache that a URL describes.

    Args:
        url: a path (or duckdb:///path) of a DuckDB file, or redis://user:password@host:port/0,
            rediss://…, unix:///socket, with the options ttl=24h, prefix=TEXT, storage=float16,
            timeout=0.3.
        memory_megabytes: keep so many megabytes of vectors in this process's memory; 0: none.

    Raises:
        InvalidInputError: the URL describes no cache. The message does not repeat it: it may hold a
            password.
    """
    cache = made_from_url(url, "An embedding cache", _SCHEMES)
    if not memory_megabytes:
        return cache
    from resources.caches.memory import MemoryEmbeddingCache

    return MemoryEmbeddingCache(behind=cache, max_megabytes=memory_megabytes)


def _duckdb(url: str) -> EmbeddingCache:
    from resources.caches.duckdb import DuckDBEmbeddingCache

    return DuckDBEmbeddingCache(path=local_path(without_options(url, "a DuckDB cache")))


def _redis(url: str) -> EmbeddingCache:
    from resources.caches.redis import RedisEmbeddingCache

    readers = {"ttl": seconds, "prefix": str, "storage": str, "timeout": seconds}
    names = {"ttl": "ttl_seconds", "prefix": "key_prefix"}
    address, options = split_options(url, readers)
    return RedisEmbeddingCache(
        url=address, **{names.get(name, name): value for name, value in options.items()}
    )


_SCHEMES = {"": _duckdb, "duckdb": _duckdb, "redis": _redis, "rediss": _redis, "unix": _redis}
