"""Unpartitioned assets that measure this machine, on demand: batch sizes, and the cache.

What is measured, and how, is in `benchmarks/`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg
from pydantic import Field

from embedding_assets.collection.embedder_settings import FirstEmbedderSettings
from embedding_assets.collection.environment import read_environment
from embedding_assets.collection.resources import shared_resources
from resources.artifact_stores.base import ArtifactStore
from resources.embedders.local import LocalEmbedder

GROUP = "benchmarks"
EMBEDDER_KEY = "benchmark_embedder"


class BatchSizeConfig(dg.Config):
    """What the comparison of batch sizes measures."""

    sentences: int = Field(
        default=1_000, ge=1, description="Sentences of the sample collection to embed."
    )
    batch_sizes: list[int] = Field(
        default=[1, 4, 8, 16, 32, 64, 128, 256],
        min_length=1,
        description="Texts in one call of the embedder.",
    )
    window: int = Field(
        default=1_024,
        ge=1,
        description="Texts that the engine is given at once, to cut into batches by tokens.",
    )
    repeats: int = Field(default=3, ge=1, description="Rounds; medians are shown.")


class CacheConfig(dg.Config):
    """What the comparison of ways to use the cache measures."""

    sentences: int = Field(
        default=2_000, ge=2, description="Sentences of the sample collection to embed."
    )
    repeated_percent: list[int] = Field(
        default=[0, 20, 80, 100], description="Shares of repeated texts, in percent."
    )
    flush_size: int = Field(
        default=FirstEmbedderSettings().flush_size,
        ge=1,
        description="Maximum number of texts in work that are not yet durable in the cache.",
    )
    one_at_a_time: int = Field(
        default=200, ge=1, description="Texts for the slowest way; its time is scaled to all."
    )
    repeats: int = Field(default=3, ge=1, description="Rounds; medians are shown.")


@dg.definitions
def defs() -> dg.Definitions:
    """A code location of their own, so that they do not stand beside the user's data."""
    environment = read_environment()
    shared = dg.Definitions(
        resources={"artifact_store": shared_resources(environment)["artifact_store"]}
    )
    return dg.Definitions.merge(benchmark_definitions(str(environment.models)), shared)


def benchmark_definitions(model_cache: str) -> dg.Definitions:
    """The assets, and the embedder that they measure; a run's configuration can change both.

    Args:
        model_cache: folder of compiled models.
    """
    return dg.Definitions(
        assets=[batch_size, cache],
        resources={EMBEDDER_KEY: LocalEmbedder(model_cache=model_cache)},
    )


def _asset(name: str, description: str) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    return dg.asset(
        key=dg.AssetKey([GROUP, name]),
        group_name=GROUP,
        description=description,
        kinds={"benchmark"},
        required_resource_keys={EMBEDDER_KEY, "artifact_store"},
    )


@_asset(
    "batch_size",
    "Throughput and latency of the embedder by batch size, and of the token-budget engine, on "
    "sentences of the sample collection.",
)
def batch_size(context: dg.AssetExecutionContext, config: BatchSizeConfig) -> dg.MaterializeResult:
    from benchmarks.batch_size import measure_batch_sizes, plot_batch_sizes
    from benchmarks.texts import some_sentences

    embedder = getattr(context.resources, EMBEDDER_KEY)
    texts = some_sentences(config.sentences)
    rows = measure_batch_sizes(
        embedder, texts, config.batch_sizes, config.window, config.repeats, context.log.info
    )
    best = next(row for row in rows if row.best)
    image = plot_batch_sizes(rows, f"{len(texts):,} sentences, {embedder.space.model}")
    return dg.MaterializeResult(
        metadata={
            "best_batch_size": best.batch_size,
            "best_texts_per_second": best.texts_per_second,
            "best_tokens_per_second": best.tokens_per_second,
            "sentences": len(texts),
            "engine": embedder.describe(),
            **_shown(context.resources.artifact_store, "batch_size", rows, image),
        }
    )


@_asset(
    "cache",
    "What the embedding cache saves: without it, cold, warm, and with repeated texts, against one "
    "text at a time and against batches without a cache.",
)
def cache(context: dg.AssetExecutionContext, config: CacheConfig) -> dg.MaterializeResult:
    from benchmarks.cache import WARM, measure_cache, plot_cache
    from benchmarks.texts import some_sentences

    embedder = getattr(context.resources, EMBEDDER_KEY)
    texts = some_sentences(config.sentences)
    rows = measure_cache(
        embedder,
        texts,
        config.repeated_percent,
        config.flush_size,
        config.one_at_a_time,
        config.repeats,
        context.log.info,
    )
    warm = next(row for row in rows if row.way == WARM)
    image = plot_cache(rows, f"{len(texts):,} sentences, {embedder.space.model}")
    return dg.MaterializeResult(
        metadata={
            "warm_against_one_at_a_time": warm.against_one_at_a_time,
            "warm_against_batched": warm.against_batched,
            "warm_texts_per_second": warm.texts_per_second,
            "sentences": len(texts),
            "engine": embedder.describe(),
            **_shown(context.resources.artifact_store, "cache", rows, image),
        }
    )


def _shown(
    artifacts: ArtifactStore, name: str, rows: Sequence[Any], image: bytes
) -> dict[str, Any]:
    """Table and plot as metadata; the plot is also kept as `benchmarks/NAME/NAME.png`."""
    from benchmarks.measure import machine
    from benchmarks.plots import markdown_image

    key = f"{GROUP}/{name}/{name}.png"
    with artifacts.writing(key) as path:
        path.write_bytes(image)
    records = [
        dg.TableRecord(
            {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(row).items()}
        )
        for row in rows
    ]
    return {
        "table": dg.MetadataValue.table(records),
        "plot": dg.MetadataValue.md(markdown_image(image, name)),
        "plot_artifact": key,
        **machine(),
    }
