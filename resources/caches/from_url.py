"""Which embedding cache a URL means."""

from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from resources.caches.base import EmbeddingCache

_FIELDS = {
    "ttl": ("ttl_seconds", int),
    "prefix": ("key_prefix", str),
    "storage": ("storage", str),
    "timeout": ("timeout", float),
}


def cache_from_url(url: str, memory_megabytes: int = 0) -> EmbeddingCache:
    """The cache that a URL describes.

    Args:
        url: a path (or duckdb:///path) of a DuckDB file, or redis://user:password@host:port/0,
            rediss://…, unix:///socket, with the options ttl=SECONDS, prefix=TEXT,
            storage=float16, timeout=SECONDS.
        memory_megabytes: keep so many megabytes of vectors in this process's memory; 0: none.

    Raises:
        ValueError: the URL describes no cache. The message does not repeat it: it may hold a
            password.
    """
    scheme = url.partition(":")[0].lower() if "://" in url else "duckdb"
    if scheme == "duckdb":
        from resources.caches.duckdb import DuckDBEmbeddingCache

        path = Path(url.removeprefix("duckdb://")).expanduser()
        cache: EmbeddingCache = DuckDBEmbeddingCache(path=str(path))
    elif scheme in ("redis", "rediss", "unix"):
        cache = _redis_cache(url)
    else:
        raise ValueError(
            "A cache is a path of a DuckDB file, or a URL that begins with duckdb://, redis://, "
            f"rediss:// or unix://; this one begins with {scheme[:20]}://."
        )
    if not memory_megabytes:
        return cache
    from resources.caches.memory import MemoryEmbeddingCache

    return MemoryEmbeddingCache(behind=cache, max_megabytes=memory_megabytes)


def _redis_cache(url: str) -> EmbeddingCache:
    from resources.caches.redis import RedisEmbeddingCache

    base, _, query = url.partition("?")
    options = dict(parse_qsl(query))
    ours = {
        field: convert(options.pop(name))
        for name, (field, convert) in _FIELDS.items()
        if name in options
    }
    rest = query if not ours else urlencode(options)
    return RedisEmbeddingCache(url=base + ("?" + rest if rest else ""), **ours)
