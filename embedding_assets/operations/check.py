"""Cheap checks of what would fail later.

Nothing is changed, downloaded or embedded, no key is sent, and of the source only the beginning is
read.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embedding_assets.collection.collection import CollectionResources
from embedding_assets.collection.environment import Environment
from embedding_assets.collection.missing_files import missing_files
from embedding_assets.collection.resources import shared_resources
from embedding_assets.collection.settings import CollectionSettings, unset_variables
from embedding_assets.operations.propose import refused_records
from resources.artifact_stores.base import ArtifactStore
from resources.caches.base import EmbeddingCache
from resources.document_sources import FileDocumentSource
from resources.document_sources.base import SourceFile
from resources.document_sources.sample import list_some, read_documents
from resources.embedders.local_model.model_files import find_local_model, weight_files
from resources.embedders.local_settings import LocalSettings
from resources.embedders.openai.client import OpenAIClient
from resources.embedders.openai.settings import OpenAISettings
from resources.errors import EmbeddingAssetsError, not_permitted
from resources.redis_client import reason, redis_client, shown
from resources.vector_stores.base import VectorStore

Status = Literal["ok", "warning", "error"]
_REDIS_SECONDS = 2.0


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        collection: its name; None: it is about what all collections share.
        subject: what was looked at.
        status: "error": a run would fail; "warning": it may not do what is meant.
        sentence: what is there, or what is wrong and what to do.
    """

    collection: str | None
    subject: str
    status: Status
    sentence: str


def check_collection(
    settings: CollectionSettings, resources: CollectionResources
) -> Iterator[Finding]:
    """Whether a collection's source, embedders and files are there and can be used."""

    def found(subject: str, look: Callable[[], tuple[Status, str]]) -> Finding:
        return Finding(settings.name, subject, *_looked(look))

    files: list[SourceFile] = []

    missing = dict(missing_files(settings))

    def source() -> tuple[Status, str]:
        if unset_variables(settings.source.path):
            return "error", missing["source", "path"]
        listed, are_all = list_some(settings.source.path)
        files.extend(listed)
        more = "" if are_all else "more than "
        return "ok", f"{more}{len(listed):,} files at {settings.source.path}"

    yield found("source", source)
    if files:
        yield found("records", lambda: _records(settings, resources, files))
    for part in ("embedder", "fallback"):
        if embedder := getattr(settings, part):
            yield found(part, lambda embedder=embedder: _embedder(embedder))
    if settings.evaluation:
        said = " ".join(said for path, said in missing.items() if path[0] == "evaluation")
        there = f"{settings.evaluation.queries} and {settings.evaluation.qrels} are there"
        yield Finding(settings.name, "evaluation", "error" if said else "ok", said or there)


def check_project(environment: Environment) -> Iterator[Finding]:
    """Whether what all collections share can be reached: cache, stores, rate limiter."""
    shared = shared_resources(environment)
    looks: dict[str, Callable[[], tuple[Status, str]]] = {
        "data folder": lambda: _writable(environment.data_dir),
        "cache": lambda: _cache(environment, shared["embedding_cache"]),
        "artifacts": lambda: _artifacts(environment, shared["artifact_store"]),
        "vectors": lambda: _vectors(environment, shared["vector_store"]),
    }
    if environment.rate_limiter:
        looks["rate limiter"] = lambda: _rate_limiter(environment)
    for subject, look in looks.items():
        yield Finding(None, subject, *_looked(look))


def _looked(look: Callable[[], tuple[Status, str]]) -> tuple[Status, str]:
    try:
        return look()
    except EmbeddingAssetsError as error:
        return "error", str(error)
    except Exception as error:  # a dozen kinds of a dozen storages
        return "error", not_permitted(error) or f"{type(error).__name__}: {error}"


def _records(
    settings: CollectionSettings, resources: CollectionResources, files: list[SourceFile]
) -> tuple[Status, str]:
    source = resources.source
    assert isinstance(source, FileDocumentSource)
    sample = read_documents(source, files)
    read = len(sample.found)
    refused = refused_records(sample, settings.partitions)
    number = sum(one.records for one in refused)
    if not read:
        return "warning", "the files hold no records yet"
    said = f"{read - number:,} of the first {read:,} records become documents"
    if not number:
        return "ok", said
    said += "; refused: " + "; ".join(
        f"{one.reason} {one.records:,}, such as {one.example}" for one in refused
    )
    if number == read:
        return "error", f"{said}. Compare source.fields with the fields that are there."
    return ("warning" if number / read > settings.checks.max_refused_records else "ok"), said


def _embedder(embedder: object) -> tuple[Status, str]:
    if isinstance(embedder, LocalSettings):
        return _local_model(embedder)
    assert isinstance(embedder, OpenAISettings)
    return _server(embedder)


def _local_model(embedder: LocalSettings) -> tuple[Status, str]:
    folder = find_local_model(embedder.model, embedder.revision)
    if isinstance(folder, Path):
        if not (folder / "config.json").exists() or not weight_files(folder):
            return "error", f"{folder} is no model: it has no config.json, or no weights."
        return "ok", f"{embedder.model} is on this machine"
    said = f"{embedder.model} is not on this machine ({folder})"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return "error", f"{said}, and HF_HUB_OFFLINE forbids to download it."
    return "warning", (
        f"{said}: the first run downloads it from the Hugging Face hub. Where that cannot be "
        "reached, or is the name misspelt, set embedder.model to the folder of a model."
    )


def _server(embedder: OpenAISettings) -> tuple[Status, str]:
    if importlib.util.find_spec("openai") is None:
        return "error", "provider: openai needs a package: pip install 'embedding-assets[openai]'"
    if embedder.tokenizer and not Path(embedder.tokenizer).exists():
        return "error", f"tokenizer: there is nothing at {embedder.tokenizer}"
    client = OpenAIClient(embedder)
    if client.key_variable and client.key is None:
        return "error", (
            f"The environment variable {client.key_variable} is not set; it must hold the key for "
            f"{embedder.base_url}. It may stand in the project's .env."
        )
    key = f"its key is in {client.key_variable}" if client.key_variable else "without a key"
    return "ok", f"{embedder.model} at {embedder.base_url}, {key}; the server was not asked"


def _cache(environment: Environment, cache: EmbeddingCache) -> tuple[Status, str]:
    where = shown(environment.cache) if environment.cache else "cache.duckdb in the data folder"
    return "ok", f"{where} can be read; embedding spaces in it: {len(cache.spaces())}"


def _artifacts(environment: Environment, artifacts: ArtifactStore) -> tuple[Status, str]:
    artifacts.exists("check")
    return _stored(environment.artifacts, "artifacts", environment)


def _vectors(environment: Environment, store: VectorStore) -> tuple[Status, str]:
    status, said = _stored(environment.vectors, "vectors", environment)
    local = Path(environment.vectors or environment.data_dir / "vectors")
    is_new = "://" not in str(environment.vectors) and not local.exists()  # and stays so
    if status == "ok" and not is_new:
        said += f"; collections in it: {len(store.collections())}"
    return status, said


def _stored(url: str | None, name: str, environment: Environment) -> tuple[Status, str]:
    if url and "://" in url:
        return "ok", f"{shown(url)} can be read"
    return _writable(Path(url) if url else environment.data_dir / name)


def _writable(folder: Path) -> tuple[Status, str]:
    above = next(each for each in (folder, *folder.parents) if each.exists())
    if not above.is_dir():
        return "error", f"{above} is no folder: name another one."
    if not os.access(above, os.W_OK):
        return "error", (
            f"{folder} cannot be written: give this user the right to write in {above}, or name "
            "another folder."
        )
    return "ok", f"{folder} can be written"


def _rate_limiter(environment: Environment) -> tuple[Status, str]:
    url = environment.rate_limiter or ""
    client = redis_client(url.partition("?")[0], _REDIS_SECONDS, "EMBEDDING_RATE_LIMITER")
    try:
        client.ping()
    except Exception as error:
        return "error", f"{shown(url)} does not answer: {reason(error, client)}"
    return "ok", f"{shown(url)} answers"
