"""One door for each family of stores: what a URL means, and what is said of a senseless one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedding_assets.collection.resources import shared_resources
from resources.artifact_stores.files import FileArtifactStore
from resources.artifact_stores.from_url import artifact_store_from_url
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.from_url import cache_from_url
from resources.caches.redis import RedisEmbeddingCache
from resources.document_sources.dated_paths import check_source_path
from resources.errors import InvalidInputError
from resources.vector_stores.from_url import vector_store_from_url
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.checkout import PROJECT

DOORS: list[Callable[[str], Any]] = [
    cache_from_url,
    artifact_store_from_url,
    vector_store_from_url,
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("localhost:6379", r"has no scheme .* ./name"),
        ("user:planted@localhost:6379/0", "has no scheme"),
        ("redis:/planted", "has no scheme"),
        ("ftp://user:planted@host", "begins with ftp://"),
        ("data/store?ttl=planted", "takes no options"),
    ],
)
def test_what_is_no_url_of_a_store_is_refused_without_repeating_it(
    door: Callable[[str], Any], url: str, sentence: str
) -> None:
    with pytest.raises(InvalidInputError, match=sentence) as caught:
        door(url)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "door", [artifact_store_from_url, vector_store_from_url, check_source_path]
)
def test_a_password_that_dagster_would_show_is_refused(door: Callable[[str], Any]) -> None:
    with pytest.raises(InvalidInputError, match="must hold no password") as caught:
        door("s3://user:planted@bucket/prefix")
    assert "planted" not in str(caught.value)


def test_paths_and_urls_are_understood(tmp_path: Path) -> None:
    for path in (str(tmp_path / "x"), f"duckdb://{tmp_path}/x"):
        cache = cache_from_url(path)
        assert isinstance(cache, DuckDBEmbeddingCache)
        assert cache.path == str(tmp_path / "x")
    for path in (str(tmp_path), f"file://{tmp_path}", "s3://bucket/prefix", "./a:b"):
        artifacts, store = artifact_store_from_url(path), vector_store_from_url(path)
        assert isinstance(artifacts, FileArtifactStore)
        assert isinstance(store, LanceDBVectorStore)
        expected = {f"file://{tmp_path}": str(tmp_path), "./a:b": "a:b"}.get(path, path)
        assert (artifacts.url, store.uri) == (expected, expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("ttl=soon", "option ttl .* looks like 90s, 24h or 30d"),
        ("ttl=0", "ttl_seconds: .*greater than or equal to 1"),
        ("ttl=", "looks like"),
        ("storage=float8", "storage: .*'float16'"),
        ("timeout=-1", "option timeout"),
    ],
)
def test_an_option_of_redis_that_cannot_be_is_told_by_its_name(options: str, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        cache_from_url(f"redis://host:6379/0?{options}")


def test_a_time_to_live_may_have_a_unit() -> None:
    cache = cache_from_url("redis://host:6379/0?ttl=24h&timeout=300ms")
    assert isinstance(cache, RedisEmbeddingCache)
    assert (cache.ttl_seconds, cache.timeout) == (86_400, 0.3)


def test_the_environment_says_where_each_store_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDDING_PROJECT", str(PROJECT))
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("EMBEDDING_ARTIFACTS", "s3://bucket/artifacts")
    monkeypatch.setenv("EMBEDDING_VECTORS", "elsewhere/vectors")
    made = shared_resources()
    assert made["artifact_store"].url == "s3://bucket/artifacts"
    assert made["vector_store"].uri == str(PROJECT / "elsewhere" / "vectors")
    assert made["embedding_cache"].path == str(tmp_path / "cache.duckdb")
    monkeypatch.setenv("EMBEDDING_CACHE", "localhost:6379")
    with pytest.raises(InvalidInputError, match="redis://"):
        shared_resources()


def test_a_storage_whose_package_is_missing_is_named_with_the_package() -> None:
    with pytest.raises(InvalidInputError, match=r"The URL of the artifacts .*adlfs"):
        artifact_store_from_url("abfs://archive/artifacts").exists("a/b.parquet")
