"""The commands of the cache, and the choice of it."""

import json
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from embedding_assets.cli.main import app
from embedding_assets.collection.resources import shared_resources
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.from_url import cache_from_url
from resources.caches.memory import MemoryEmbeddingCache
from resources.caches.redis import RedisEmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE
from resources.identity.content_hash import query_hash
from tests.support.caches import OTHER_DIMENSION, SPACE, DuckDB, Redis, hashes, held, put, vectors


def test_the_environment_chooses_the_cache(monkeypatch, tmp_path, redis_server):
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path))
    default = shared_resources()["embedding_cache"]
    assert isinstance(default, DuckDBEmbeddingCache)
    assert default.path == str(tmp_path / "cache.duckdb")
    monkeypatch.setenv("EMBEDDING_CACHE", redis_server.url + "?ttl=1m&timeout=2")
    redis = shared_resources()["embedding_cache"]
    assert isinstance(redis, RedisEmbeddingCache)
    assert (redis.url, redis.ttl_seconds, redis.timeout) == (redis_server.url, 60, 2.0)
    monkeypatch.setenv("EMBEDDING_CACHE", str(tmp_path / "other.duckdb"))
    monkeypatch.setenv("EMBEDDING_CACHE_MEMORY_MB", "8")
    memory = shared_resources()["embedding_cache"]
    assert isinstance(memory, MemoryEmbeddingCache)
    assert isinstance(memory.behind, DuckDBEmbeddingCache)
    assert (memory.behind.path, memory.max_megabytes) == (str(tmp_path / "other.duckdb"), 8)


def run(*arguments: str, fails: bool = False) -> Any:
    result = CliRunner().invoke(app, ["cache", *arguments])
    assert result.exit_code == int(fails), result.output
    if fails:
        return result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


@pytest.mark.parametrize(("source", "target"), [(DuckDB, Redis), (Redis, DuckDB)])
def test_the_command_line_counts_prunes_invalidates_and_copies(
    tmp_path, redis_server, source, target
):
    kind = source(tmp_path, redis_server)
    url, cache = kind.url(), kind.new()
    kind.put_earlier(40, range(10), SPACE)
    put(cache, range(10, 20))
    put(cache, range(5), OTHER_DIMENSION)
    cache.get(SPACE, hashes(*range(15, 25)))
    cache.save_lookups()
    first, second = sorted(
        run("stats", "--cache", url, "--json"), key=lambda r: r["entries"], reverse=True
    )
    assert first == {
        "embedding_space": SPACE.id,
        "model": "a",
        "dimension": 16,
        "entries": 20,
        "bytes": first["bytes"],
        "hits": 5,
        "misses": 5,
        "hit_rate": 0.5,
    }
    assert second["hit_rate"] is None
    (day,) = run("stats", "--by-day", "--cache", url, "--json")
    assert (day["hits"], day["misses"], day["hit_rate"]) == (5, 5, 0.5)
    assert "Embedding cache" in run("stats", "--cache", url)

    older = ("prune", "--older-than", "30d", "--cache", url, "--json")
    assert run(*older, "--dry-run")[0]["would_be_removed"] == 10
    assert run(*older)[0]["removed"] == 10
    assert run(*older) == []
    assert "Nothing" in run(*older[:-1])

    invalidated = ("invalidate", "--text", "text 15", "--cache", url, "--space", SPACE.id, "--json")
    assert run(*invalidated, "--dry-run")[0]["would_be_removed"] == 1
    assert run(*invalidated)[0]["removed"] == 1
    assert held(cache, range(20)) == [*range(10, 15), *range(16, 20)]
    cache.put(SPACE, pa.array([query_hash("A query")], CONTENT_HASH_TYPE), vectors(1))
    assert run("invalidate", "--text", "A query", "--cache", url, "--json")[0]["removed"] == 1
    key = hashes(16)[0].as_py().hex()
    assert run("invalidate", "--key", key, "--cache", url, "--json")[0]["removed"] == 1

    target = target(tmp_path, redis_server).url("copy")
    assert run("copy", url, target, "--json") == [{"entries": 13, "copied": 13}]
    assert held(cache_from_url(target), range(20)) == [*range(10, 15), *range(17, 20)]
    assert run("invalidate", "--space", SPACE.id, "--cache", url, "--json")[0]["removed"] == 8
    assert run("prune", "--max-size", "0 MB", "--cache", url, "--json")[0]["removed"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "Say what to prune"),
        (["prune", "--older-than", "soon"], "12h, 30d or 8w"),
        (["prune", "--max-size", "many"], "500MB or 2GB"),
        (["invalidate"], "Say what to invalidate"),
        (["invalidate", "--key", "abc"], "40 hexadecimal"),
        (["stats", "--cache", "redis://user:planted@127.0.0.1:1/0"], "does not answer"),
        (["stats", "--cache", "redis://user:planted#@127.0.0.1:1/0"], "must look like"),
        (["copy", "nowhere.duckdb", "elsewhere.duckdb"], "There is no cache at /"),
        (["stats", "--cache", "nowhere.duckdb"], "nowhere.duckdb."),
    ],
)
def test_a_mistake_ends_in_one_sentence(monkeypatch, tmp_path, arguments, message):
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    output = run(*arguments, fails=True)
    assert message in " ".join(output.split())
    assert "planted" not in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
