"""The servers that benchmarks/serve.py compares, each in a process of its own.

python -m benchmarks.servers ours|lock|empty PORT FOLDER
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

if TYPE_CHECKING:
    from embedding_assets.api import Collection

COLLECTION = "benchmark"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DIMENSION = 384


def collection(folder: Path, models: str) -> "Collection":
    """One that has the default model, a DuckDB cache, and what is in its vector store already."""
    from embedding_assets.api import Collection
    from embedding_assets.collection.collection import CollectionResources
    from embedding_assets.collection.settings import CollectionSettings
    from resources.artifact_stores.files import FileArtifactStore
    from resources.caches.duckdb import DuckDBEmbeddingCache
    from resources.embedders.local import LocalEmbedder
    from resources.vector_stores.lancedb import LanceDBVectorStore

    (folder / "empty.jsonl").touch()
    made = CollectionSettings.model_validate(
        {
            "name": COLLECTION,
            "source": {"path": str(folder / "empty.jsonl")},
            "partitions": {"by": "bucket", "count": 1},
        }
    )
    resources = CollectionResources(
        source=made.source.build(),
        embedder=LocalEmbedder(model_cache=models),
        fallback=None,
        artifacts=FileArtifactStore(url=str(folder / "artifacts")),
        cache=DuckDBEmbeddingCache(path=str(folder / "cache.duckdb")),
        store=LanceDBVectorStore(uri=str(folder / "vectors")),
    )
    return Collection(made, resources)


def ours(folder: Path) -> FastAPI:
    """The service over that collection."""
    from embedding_assets.service.access import Access
    from embedding_assets.service.app import create_app
    from embedding_assets.service.keys import KeyRing
    from embedding_assets.service.service import Service
    from embedding_assets.service.settings import ServiceSettings
    from resources.limits.quota import MemoryQuotas

    settings = ServiceSettings()
    served = {COLLECTION: collection(folder, os.environ["BENCHMARK_MODELS"])}
    service = Service(served, [], settings)
    access = Access(KeyRing(folder / "keys.json"), MemoryQuotas(), settings.quota, service.metrics)
    return create_app(service, access)


def lock(folder: Path) -> FastAPI:
    """What people write: a model, a lock, and `encode` of one text in a thread."""
    del folder
    import threading

    from sentence_transformers import SentenceTransformer

    from resources.embedders.local_model.model_files import find_model

    model, one_at_a_time = SentenceTransformer(str(find_model(MODEL, None))), threading.Lock()
    app = FastAPI()

    @app.post("/embed")
    def embed(body: dict[str, Any]) -> dict[str, Any]:
        with one_at_a_time:
            return {"embedding": model.encode(body["text"]).tolist(), "cached": False}

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def empty(folder: Path) -> FastAPI:
    """An endpoint that does nothing, and answers as many bytes as a vector has."""
    del folder
    body = orjson.dumps(
        {"embedding": [round(0.01234567 * n % 1, 8) for n in range(DIMENSION)], "cached": True,
         "model": MODEL}
    )  # fmt: skip
    app = FastAPI()

    @app.post("/embed")
    async def embed(request: Request) -> Response:
        del request
        return Response(body, media_type="application/json")

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    kind, port, folder = sys.argv[1:]
    app = {"ours": ours, "lock": lock, "empty": empty}[kind](Path(folder or tempfile.mkdtemp()))
    sys.setswitchinterval(0.0005)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
