"""The memory before a cache: what was used last is answered without the cache behind."""

import dataclasses
from pathlib import Path

import duckdb

from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.memory import MemoryEmbeddingCache
from tests.support.caches import SPACE, hashes, held, put
from tests.support.pipeline import Pipeline, write_jsonl


def test_memory_answers_without_the_cache_behind_within_its_bound(tmp_path):
    space = dataclasses.replace(SPACE, dimension=1024)
    behind = DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))
    cache = MemoryEmbeddingCache(behind=behind, max_megabytes=1)
    numbers = range(400)  # 1.6 MB
    put(cache, numbers, space)
    assert held(cache, range(100), space) == list(range(100))
    with duckdb.connect(behind.path):  # closing moves what is in the log into the file
        pass
    again = MemoryEmbeddingCache(behind=behind, max_megabytes=1)  # as in the next run
    Path(behind.path).rename(tmp_path / "away")
    assert held(again, range(100), space) == list(range(100))
    assert again.get(space, hashes(200)).found.tolist() == [False]
    (tmp_path / "away").replace(behind.path)
    held(cache, range(10), space)  # just used
    assert held(cache, range(160, 400), space) == list(range(160, 400))
    assert cache._memory.size_bytes <= 1 << 20
    Path(behind.path).unlink()
    assert 200 < int(cache.get(space, hashes(*range(160, 400))).found.sum()) <= 240
    assert not cache.get(space, hashes(*range(50, 60))).found.any()


def test_a_run_saves_what_it_looked_up(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"id": str(i), "text": f"Text {i}."} for i in range(9)])
    settings = {"partitions": {"by": "bucket", "count": 1}}
    pipeline = Pipeline(tmp_path / "p", str(tmp_path / "*.jsonl"), settings=settings)
    pipeline.resources["embedding_cache"] = MemoryEmbeddingCache(behind=pipeline.cache)
    pipeline.run()
    pipeline.run(assets=["embeddings"])
    ((hits, misses),) = [(s.hits, s.misses) for s in pipeline.cache.statistics()]
    assert (hits, misses) == (9, 9)
