"""What `benchmarks.engine` compares. Each runs in a process of its own and takes orders.

    python -m benchmarks.contestants NAME        (started by benchmarks.engine)

One JSON object a line comes in, one goes out. Same weights, truncation and pooling for all; the
clock stops when the vectors are in files (ours also waits until the disk has them).
"""

import argparse
import inspect
import json
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import padding_waste, peak_mb, reset_peak, seconds, written_mb
from embedding_assets.collection.embedder_settings import FirstEmbedderSettings
from resources.embedders.local import CPU_BATCH_TOKENS, LocalEmbedder
from resources.embedders.local_model.model_files import DEFAULT_MODEL, find_model
from resources.embedders.local_model.token_batches import padded_length, token_batches
from resources.lean_imports import import_openvino
from resources.machine import machine

ENCODE_BATCHES = (8, 16, 32, 64, 128, 256)
ORACLE_BATCH_TOKENS = (512, 768, 1024, 2048)
FLUSH_SIZE = FirstEmbedderSettings().flush_size
"""As users have it who do not choose one."""
_TRIAL_TEXTS = 128
_TRIAL_PASSES = 4


class Contestant(ABC):
    """Made and warmed up once; then `prepare` and several `run` for each set of texts."""

    def __init__(self, model_cache: str) -> None:
        self.model_cache = model_cache
        self.texts: list[str] = []

    def prepare(self, texts: list[str]) -> None:
        """What need not be repeated, and is not timed."""
        self.texts = texts

    @abstractmethod
    def run(self, folder: Path) -> dict[str, Any] | None:
        """Embeds all texts from nothing; what must be durable goes to the empty folder.

        Returns:
            Further numbers, if any.
        """

    def facts(self) -> dict[str, Any]:
        """What was chosen for these texts, and the share of padding."""
        return {}

    def vectors(self) -> np.ndarray | None:
        """Shape (n, dimension), float32: of the prepared texts, to compare with the reference."""
        return None

    def fill_cache(self, texts: list[str], vectors: np.ndarray, folder: Path) -> None:
        """Puts vectors into the cache, so that `run_cached` finds all of them."""
        raise NotImplementedError

    def run_cached(self) -> None:
        """Gets the vector of each text of `fill_cache`, without the model."""
        raise NotImplementedError


class Ours(Contestant):
    """`LocalEmbedder.embed` alone; and the look-up of what is cached, without Dagster."""

    precision = "auto"
    memory_megabytes = 0

    def __init__(self, model_cache: str) -> None:
        super().__init__(model_cache)
        self.embedder = LocalEmbedder(
            model_cache=model_cache,
            precision=self.precision,  # pyright: ignore[reportArgumentType]
        )
        self.embedder.embed(["warm up"])

    def run(self, folder: Path) -> dict[str, Any] | None:
        np.save(folder / "vectors.npy", self.embedder.embed(self.texts).vectors)

    def facts(self) -> dict[str, Any]:
        lengths = self.embedder.embed(self.texts).tokens
        budget = self.embedder.batch_tokens or CPU_BATCH_TOKENS
        waste = padding_waste(
            lengths.tolist(), [b.tolist() for b in token_batches(lengths, budget)]
        )
        return {"padding_waste": waste, "chosen": self.embedder.describe()}

    def vectors(self) -> np.ndarray:
        return self.embedder.embed(self.texts).vectors

    def fill_cache(self, texts: list[str], vectors: np.ndarray, folder: Path) -> None:
        import pyarrow as pa

        from resources.caches.duckdb import DuckDBEmbeddingCache
        from resources.caches.memory import MemoryEmbeddingCache
        from resources.caches.vectors import CONTENT_HASH_TYPE
        from resources.identity.content_hash import content_hash

        self.texts = texts
        self.cache = DuckDBEmbeddingCache(path=str(folder / "cache.duckdb"))
        hashes = pa.array([content_hash(text) for text in texts], CONTENT_HASH_TYPE)
        self.cache.put(self.embedder.space, hashes, vectors)
        if self.memory_megabytes:
            self.cache = MemoryEmbeddingCache(
                behind=self.cache, max_megabytes=self.memory_megabytes
            )
            self.cache.get(self.embedder.space, hashes)

    def run_cached(self) -> None:
        from benchmarks.cache import embed_through_cache

        _, embedded = embed_through_cache(self.embedder, self.cache, self.texts, FLUSH_SIZE)
        assert embedded == 0

    def cache_ways(self, shares: list[int], one_at_a_time: int) -> list[dict[str, Any]]:
        """One round of the benchmark asset `cache` over the prepared texts."""
        from dataclasses import asdict

        from benchmarks.cache import measure_cache

        rows = measure_cache(
            self.embedder, self.texts, shares, FLUSH_SIZE, one_at_a_time, 1, lambda _line: None
        )
        return [asdict(row) for row in rows]


class OursInMemory(Ours):
    """The look-up with `EMBEDDING_CACHE_MEMORY_MB` set, in a process that met the texts before."""

    memory_megabytes = 512


class OurAssets(Ours):
    """All four assets through Dagster: from a file of documents to rows in the vector store."""

    def prepare(self, texts: list[str]) -> None:
        super().prepare(texts)
        self._corpus = Path(tempfile.mkdtemp(prefix="engine-benchmark-")) / "corpus.jsonl"
        with self._corpus.open("w") as file:
            for number, text in enumerate(texts):
                file.write(json.dumps({"id": str(number), "text": text}) + "\n")
        self._run_in(Path(tempfile.mkdtemp(prefix="engine-benchmark-")), warm_up=True)

    def run(self, folder: Path) -> dict[str, Any]:
        return self._run_in(folder)

    def _run_in(self, folder: Path, *, warm_up: bool = False) -> dict[str, Any]:
        pipeline = self._pipeline(folder, 10 if warm_up else None)
        result = pipeline.run()
        return {
            f"seconds_{event.node_name.rpartition('__')[2]}": event.step_success_data.duration_ms
            / 1e3
            for event in result.all_events
            if event.event_type_value == "STEP_SUCCESS"
        }

    def _pipeline(self, folder: Path, first: int | None = None) -> Any:
        from tests.support.pipeline import Pipeline

        source = self._corpus
        if first is not None:
            source = folder / "first.jsonl"
            source.write_text("".join(self._corpus.open().readlines()[:first]))
        return Pipeline(
            folder,
            str(source),
            embedder=self.embedder,
            settings={
                "partitions": {"by": "bucket", "count": 1},
                "chunking": {"strategy": "whole"},
            },
        )

    def fill_cache(self, texts: list[str], vectors: np.ndarray, folder: Path) -> None:
        self.prepare(texts)
        super().fill_cache(texts, vectors, folder)  # where the pipeline has its cache
        self._cached = self._pipeline(folder)
        self._cached.run(assets=["documents", "deduplicated_chunks"])

    def run_cached(self) -> None:
        self._cached.run(assets=["embeddings"])


class OurAssetsInFp32(OurAssets):
    """`OurAssets` without bf16, the precision that all the others compute in."""

    precision = "fp32"


class Oracle(Contestant):
    """The compiled model's forward passes and nothing else: token ids are sorted, cut into batches
    and padded beforehand, and vectors are not copied out. Nobody can be faster with this model.
    """

    def __init__(self, model_cache: str) -> None:
        from resources.embedders.local_model.openvino_model import (
            MODEL_FILE,
            OpenVINOModel,
            compiled_model,
        )

        super().__init__(model_cache)
        openvino = import_openvino()
        embedder = LocalEmbedder(model_cache=model_cache)
        embedder.embed(["compiles the model and chooses its precision"])
        model = embedder._loaded.model
        if not isinstance(model, OpenVINOModel):
            raise SystemExit("the oracle needs a model that runs through OpenVINO")
        self.precision = model.precision
        folder = compiled_model(embedder._files, embedder.space, Path(model_cache).absolute())
        self._limit = embedder.space.max_tokens
        self._tokenizer = embedder.new_tokenizer()
        settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[self.precision],
            "INFERENCE_NUM_THREADS": machine().cores,
            "NUM_STREAMS": machine().cores,
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        compiled = openvino.Core().compile_model(str(folder / MODEL_FILE), "CPU", settings)
        profiled = {**settings, "NUM_STREAMS": 1, "PERF_COUNT": True}
        self._profiled = openvino.Core().compile_model(str(folder / MODEL_FILE), "CPU", profiled)
        self._inputs = [one.any_name for one in compiled.inputs]
        self._queue = openvino.AsyncInferQueue(compiled, machine().cores)
        self._batches: list[dict[str, np.ndarray]] = []

    def prepare(self, texts: list[str]) -> None:
        super().prepare(texts)
        encodings = self._tokenizer.encode_batch_fast(texts)
        ids = [np.array(e.ids[: self._limit], dtype=np.int64) for e in encodings]
        self._lengths = np.array([len(row) for row in ids])

        def padded(rows: np.ndarray) -> dict[str, np.ndarray]:
            shape = (len(rows), padded_length(int(self._lengths[rows].max()), self._limit))
            arrays = {name: np.zeros(shape, dtype=np.int64) for name in self._inputs}
            for place, row in enumerate(rows):
                arrays["input_ids"][place, : len(ids[row])] = ids[row]
                arrays["attention_mask"][place, : len(ids[row])] = 1
            return arrays

        def speed(budget: int) -> float:
            # Batches from all over: a fair sample of all lengths.
            batches = list(token_batches(self._lengths, budget))
            some = batches[:: max(1, len(batches) // 12)]
            feeds = [padded(rows) for rows in some]
            self._infer(feeds)
            return sum(int(self._lengths[r].sum()) for r in some) / seconds(
                lambda: self._infer(feeds)
            )

        self._budget = max(ORACLE_BATCH_TOKENS, key=speed)
        self._rows = list(token_batches(self._lengths, self._budget))
        self._batches = [padded(rows) for rows in self._rows]

    def run(self, folder: Path) -> None:
        del folder
        self._infer(self._batches)

    def facts(self) -> dict[str, Any]:
        waste = padding_waste(self._lengths.tolist(), [rows.tolist() for rows in self._rows])
        return {
            "padding_waste": waste,
            "chosen": f"{self.precision}, batches of {self._budget} tokens; {self._profile()}",
            "precision": self.precision,
        }

    def _profile(self) -> str:
        """Where the runtime says that the time of the longest texts' forward pass goes."""
        request = self._profiled.create_infer_request()
        times: Counter[str] = Counter()
        for feed in [self._batches[0]] * _TRIAL_PASSES:
            request.infer(feed)
        for node in request.get_profiling_info():
            times[node.node_type] += node.real_time.total_seconds()
        shares = [f"{kind} {t / times.total():.0%}" for kind, t in times.most_common(3)]
        return f"time: {', '.join(shares)}"

    def _infer(self, feeds: Sequence[dict[str, np.ndarray]]) -> None:
        for feed in feeds:
            self._queue.start_async(feed)
        self._queue.wait_all()


class SentenceTransformers(Contestant):
    """`SentenceTransformer.encode` in fp32, batch 32, as most people call it."""

    batch_size = 32

    @cached_property
    def model(self) -> Any:
        from sentence_transformers import SentenceTransformer

        folder = str(find_model(DEFAULT_MODEL))
        return SentenceTransformer(folder, device="cpu", local_files_only=True)

    def prepare(self, texts: list[str]) -> None:
        super().prepare(texts)
        self.encode(["warm up"])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(
            self.model.encode(list(texts), batch_size=self.batch_size, show_progress_bar=False)
        )

    def run(self, folder: Path) -> None:
        np.save(folder / "vectors.npy", self.encode(self.texts))

    def facts(self) -> dict[str, Any]:
        lengths = [len(ids) for ids in self.model.tokenizer(self.texts, truncation=True).input_ids]
        order = np.argsort([-len(text) for text in self.texts], kind="stable")  # as `encode` does
        batches = [
            order[start : start + self.batch_size].tolist()
            for start in range(0, len(order), self.batch_size)
        ]
        return {
            "padding_waste": padding_waste(lengths, batches),
            "chosen": f"batch size {self.batch_size}",
        }

    def vectors(self) -> np.ndarray:
        return self.encode(self.texts)

    def singly(self, count: int) -> float:
        """Seconds for one text, one text at a time."""
        some = self.texts[:: max(1, len(self.texts) // count)]
        return sum(seconds(lambda t=text: self.model.encode(t)) for text in some) / len(some)


class SentenceTransformersAtItsBest(SentenceTransformers):
    """`encode` with the batch size that is fastest for these texts on this machine."""

    def prepare(self, texts: list[str]) -> None:
        super().prepare(texts)
        some = texts[:: max(1, len(texts) // _TRIAL_TEXTS)]

        def taken(size: int) -> float:
            self.batch_size = size
            return min(seconds(lambda: self.encode(some)) for _ in range(2))

        self.batch_size = min(ENCODE_BATCHES, key=taken)


class LangChain(SentenceTransformers):
    """`CacheBackedEmbeddings` over `encode`, vectors in a `LocalFileStore`."""

    def _embeddings(self, store: Any) -> Any:
        from langchain_classic.embeddings import CacheBackedEmbeddings  # pyright: ignore[reportMissingImports]
        from langchain_core.embeddings import Embeddings  # pyright: ignore[reportMissingImports]

        outer = self

        class Wrapped(Embeddings):
            """The contestant's model behind the interface of the library."""

            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                return outer.encode(texts).tolist()

            def embed_query(self, text: str) -> list[float]:
                return self.embed_documents([text])[0]

        return CacheBackedEmbeddings.from_bytes_store(
            Wrapped(), store, namespace=DEFAULT_MODEL, key_encoder="blake2b"
        )

    def _store(self, folder: Path) -> Any:
        from langchain_classic.storage import LocalFileStore  # pyright: ignore[reportMissingImports]

        return LocalFileStore(folder)

    def run(self, folder: Path) -> None:
        self._embeddings(self._store(folder)).embed_documents(self.texts)

    def fill_cache(self, texts: list[str], vectors: np.ndarray, folder: Path) -> None:
        self.texts = texts
        self._cached = self._embeddings(self._store(folder))
        self._cached.document_embedding_store.mset(list(zip(texts, vectors.tolist(), strict=True)))

    def run_cached(self) -> None:
        assert len(self._cached.embed_documents(self.texts)) == len(self.texts)


class LangChainInMemory(LangChain):
    """The same with an `InMemoryByteStore`: faster than any other store, and not durable."""

    def _store(self, folder: Path) -> Any:
        from langchain_core.stores import InMemoryByteStore  # pyright: ignore[reportMissingImports]

        del folder
        return InMemoryByteStore()


class LlamaIndex(SentenceTransformers):
    """`IngestionPipeline` over `encode`; its cache is held in memory and persisted to a file."""

    def _pipeline(self) -> Any:
        from llama_index.core.embeddings import BaseEmbedding  # pyright: ignore[reportMissingImports]
        from llama_index.core.ingestion import IngestionCache, IngestionPipeline  # pyright: ignore[reportMissingImports]

        outer = self

        class Wrapped(BaseEmbedding):
            """The contestant's model behind the interface of the library."""

            def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
                return outer.encode(texts).tolist()

            def _get_text_embedding(self, text: str) -> list[float]:
                return self._get_text_embeddings([text])[0]

            def _get_query_embedding(self, query: str) -> list[float]:
                return self._get_text_embedding(query)

            async def _aget_query_embedding(self, query: str) -> list[float]:
                return self._get_text_embedding(query)

        # Many texts at a time, so that `encode` can sort them by length.
        embedding = Wrapped(model_name=DEFAULT_MODEL, embed_batch_size=2_048)
        return IngestionPipeline(transformations=[embedding], cache=IngestionCache())

    def _nodes(self) -> list[Any]:
        from llama_index.core.schema import TextNode  # pyright: ignore[reportMissingImports]

        return [TextNode(id_=str(number), text=text) for number, text in enumerate(self.texts)]

    def run(self, folder: Path) -> None:
        pipeline = self._pipeline()
        pipeline.run(nodes=self._nodes())
        pipeline.persist(str(folder))

    def fill_cache(self, texts: list[str], vectors: np.ndarray, folder: Path) -> None:
        del folder  # what is held in memory is its fastest cache
        self.texts = texts
        self._cached = self._pipeline()
        encode, self.encode = self.encode, lambda texts: vectors[: len(texts)]
        self._cached.run(nodes=self._nodes())
        self.encode = encode

    def run_cached(self) -> None:
        assert len(self._cached.run(nodes=self._nodes())) == len(self.texts)


CONTESTANTS: dict[str, Callable[[str], Contestant]] = {
    "oracle": Oracle,
    "ours: embed": Ours,
    "ours: look-up in memory": OursInMemory,
    "ours: assets": OurAssets,
    "ours: assets, fp32": OurAssetsInFp32,
    "sentence-transformers, 32": SentenceTransformers,
    "sentence-transformers, best": SentenceTransformersAtItsBest,
    "LangChain": LangChain,
    "LangChain, in memory": LangChainInMemory,
    "LlamaIndex": LlamaIndex,
}


def matrix_peak() -> dict[str, float]:
    """The most GFLOP/s that a product of two square matrices reached, by precision."""
    import torch

    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for size in (1_024, 2_048):
            left = torch.rand(size, size).to(dtype)
            with torch.inference_mode():
                torch.mm(left, left)
                for _ in range(12):
                    taken = seconds(lambda m=left: torch.mm(m, m))
                    peaks[name] = max(peaks.get(name, 0.0), 2 * size**3 / taken / 1e9)
    return peaks


def _orders() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=[*CONTESTANTS, "matrix peak"])
    parser.add_argument("--model-cache", required=True)
    options = parser.parse_args()
    # Libraries print to stdout; answers go where they cannot.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    start = time.perf_counter()
    if options.name == "matrix peak":
        answer(matrix_peak())
        return
    contestant = CONTESTANTS[options.name](options.model_cache)
    answer({"warm_up_seconds": time.perf_counter() - start})
    for order in _orders():
        answer(_obey(contestant, **order))


def _obey(contestant: Any, do: str, **details: Any) -> Any:
    if do == "run":
        reset_peak()
        before = written_mb()
        with tempfile.TemporaryDirectory(prefix="engine-benchmark-") as folder:
            start = time.perf_counter()
            more = contestant.run(Path(folder)) or {}
            taken = time.perf_counter() - start
            written = written_mb() - before
        return {"seconds": taken, "peak_mb": peak_mb(), "written_mb": written, **more}
    if do == "run_cached":
        contestant.run_cached()  # the first after the others' turns finds the memory taken away
        reset_peak()
        return {"seconds": seconds(contestant.run_cached), "peak_mb": peak_mb()}
    if do in ("prepare", "fill_cache"):
        texts = json.loads(Path(details.pop("texts")).read_text())
        if do == "prepare":
            contestant.prepare(texts)
            return contestant.facts()
        vectors = np.load(details["vectors"])
        contestant.fill_cache(texts, vectors, Path(details["folder"]))
        return {}
    if do == "vectors":
        vectors = contestant.vectors()
        if vectors is not None:
            np.save(details["path"], vectors)
        return {"saved": vectors is not None}
    method = getattr(contestant, do)
    assert inspect.ismethod(method)
    return method(**details)


if __name__ == "__main__":
    main()
