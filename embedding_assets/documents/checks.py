"""Asset checks: each one judges numbers that the step itself has just produced or read back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pyarrow as pa

from embedding_assets.collection.collection import Collection, CollectionResources
from embedding_assets.collection.settings import EvaluationSettings
from embedding_assets.embeddings.canaries import MIN_COSINE, Canaries, SpaceDriftError
from embedding_assets.retrieval.evaluation import Evaluation, evaluate, load_qrels, load_queries
from embedding_assets.retrieval.search import rank_documents
from embedding_assets.runs.trends import trend
from resources.caches.base import valid_vectors
from resources.identity.content_hash import content_hash

if TYPE_CHECKING:
    from embedding_assets.documents.asset import Ingested
    from embedding_assets.embeddings.asset import EmbeddingNumbers
    from embedding_assets.vector_index.asset import IndexUpdate

_EXAMPLES = 5


class DocumentChecks:
    """`accounting`: every record of the source is stored, quarantined, or of another partition."""

    def __init__(self, collection: Collection) -> None:
        self._asset = collection.asset_key("documents")
        self.specs = [
            dg.AssetCheckSpec(
                "accounting",
                asset=self._asset,
                description="read = stored + quarantined + other partitions; every file readable.",
            )
        ]

    def results(self, ingested: "Ingested") -> list[dg.AssetCheckResult]:
        accounted = ingested.stored + sum(ingested.quarantined.values()) + ingested.elsewhere
        balanced = ingested.read == accounted
        reasons = "\n".join(f"| {why} | {n} |" for why, n in ingested.quarantined.most_common())
        return [
            dg.AssetCheckResult(
                asset_key=self._asset,
                check_name="accounting",
                passed=balanced and not ingested.broken_files,
                severity=dg.AssetCheckSeverity.WARN if balanced else dg.AssetCheckSeverity.ERROR,
                metadata={
                    "read": ingested.read,
                    "stored": ingested.stored,
                    "quarantined": sum(ingested.quarantined.values()),
                    "other_partitions": ingested.elsewhere,
                    "partitions_not_read_again": ingested.unread_partitions,
                    "retained_from_broken_files": ingested.retained,
                    "broken_files": ", ".join(ingested.broken_files[:_EXAMPLES]) or "none",
                    "quarantine_reasons": dg.MetadataValue.md(
                        f"| reason | records |\n|---|---|\n{reasons}" if reasons else "none"
                    ),
                },
            )
        ]


class EmbeddingChecks:
    """Throughput, cache hit rate, error rate of a run: against thresholds and the last runs."""

    def __init__(self, collection: Collection) -> None:
        self._asset = collection.asset_key("embeddings")
        self._thresholds = collection.settings.checks
        self.specs = [
            dg.AssetCheckSpec(name, asset=self._asset, description=description)
            for name, description in (
                ("throughput", "Chunks and tokens embedded a second."),
                ("cache_hit_rate", "Share of the distinct chunks that the cache held."),
                ("error_rate", "Share of the texts to embed that were refused."),
                ("space_drift", "Fixed texts still get the vectors that they got at first."),
            )
        ]

    def drifted(self, drift: SpaceDriftError) -> dg.AssetCheckEvaluation:
        """What is recorded when the run ends because the model is no longer the one it was."""
        return dg.AssetCheckEvaluation(
            asset_key=self._asset,
            check_name="space_drift",
            passed=False,
            metadata={"least_cosine": dg.MetadataValue.float(drift.cosine)},
        )

    def results(
        self,
        numbers: "EmbeddingNumbers",
        used: Mapping[str, float],
        canaries: Canaries,
        instance: dg.DagsterInstance,
    ) -> list[dg.AssetCheckResult]:
        """The checks of a run.

        Args:
            numbers: of all its partitions.
            used: what embedder and cache tell of their servers.
            canaries: those of this run.
            instance: has the results of the runs before.
        """
        limits = self._thresholds

        def result(
            name: str, passed: bool, allowed: float, metadata: dict[str, Any]
        ) -> dg.AssetCheckResult:
            against_last_runs = trend(
                instance, dg.AssetCheckKey(self._asset, name), metadata, allowed=allowed
            )
            fails = name == "error_rate" and not passed
            return dg.AssetCheckResult(
                asset_key=self._asset,
                check_name=name,
                passed=passed and not against_last_runs.worse,
                severity=dg.AssetCheckSeverity.ERROR if fails else dg.AssetCheckSeverity.WARN,
                metadata={**metadata, **against_last_runs.metadata()},
            )

        return [
            dg.AssetCheckResult(
                asset_key=self._asset,
                check_name="space_drift",
                passed=True,  # a drift ends the run, see `drifted`
                metadata={
                    "least_cosine": ", ".join(
                        f"{space}: {'first vectors' if cosine is None else f'{cosine:.6f}'}"
                        for space, cosine in canaries.cosines.items()
                    )
                    or "nothing was embedded",
                    "min_cosine": MIN_COSINE,
                },
            ),
            result(
                "throughput",
                not numbers.embedded or numbers.chunks_per_second >= limits.min_chunks_per_second,
                limits.max_throughput_drop,
                {
                    "chunks_per_second": numbers.chunks_per_second,
                    "tokens_per_second": numbers.tokens_per_second,
                    "embedded": numbers.embedded,
                    "min_chunks_per_second": limits.min_chunks_per_second,
                    **used,
                },
            ),
            result(
                "cache_hit_rate",
                numbers.cache_hit_rate >= limits.min_cache_hit_rate,
                limits.max_cache_hit_rate_drop,
                {
                    "cache_hit_rate": numbers.cache_hit_rate,
                    "cache_hits": numbers.cache_hits,
                    "cache_misses": numbers.cache_misses,
                    "cache_entries_rejected": numbers.cache_entries_rejected,
                    "min_cache_hit_rate": limits.min_cache_hit_rate,
                },
            ),
            result(
                "error_rate",
                numbers.error_rate <= limits.max_error_rate,
                limits.max_error_rate_rise,
                {
                    "error_rate": numbers.error_rate,
                    "errors": numbers.texts_refused,
                    "texts": numbers.texts_tried,
                    "max_error_rate": limits.max_error_rate,
                    "examples": "; ".join(numbers.error_examples[:_EXAMPLES]) or "none",
                },
            ),
        ]


class IndexChecks:
    """What stands in the store after the run, read back from the store."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._asset = collection.asset_key("vector_index")
        self.specs = [
            dg.AssetCheckSpec(
                "vector_integrity",
                asset=self._asset,
                description="Every vector is finite, of the space's dimension and norm, and its "
                "key can be recomputed from the stored text.",
            ),
            dg.AssetCheckSpec(
                "completeness",
                asset=self._asset,
                description="Every stored document's chunks 0..n-1 are in the index, and nothing "
                "else is.",
            ),
        ]
        if collection.settings.fallback:
            self.specs.append(
                dg.AssetCheckSpec(
                    "fallback_share",
                    asset=self._asset,
                    description="No chunk is in the fallback's embedding space.",
                )
            )
        if collection.settings.evaluation:
            self.specs.append(
                dg.AssetCheckSpec(
                    "retrieval_quality",
                    asset=self._asset,
                    blocking=True,
                    description="nDCG@10 and recall@10 on the collection's judged queries.",
                )
            )

    def results(
        self,
        context: dg.AssetExecutionContext,
        resources: CollectionResources,
        updates: Sequence["IndexUpdate"],
    ) -> list[dg.AssetCheckResult]:
        results = [self._integrity(resources, updates), self._completeness(resources, updates)]
        if self._collection.settings.fallback:
            results.append(self._fallback_share(resources))
        if self._collection.settings.evaluation:
            results.append(self._quality(context, resources, self._collection.settings.evaluation))
        return results

    def _integrity(
        self, resources: CollectionResources, updates: Sequence["IndexUpdate"]
    ) -> dg.AssetCheckResult:
        """Reads the rows back; damaged ones are written again, and then looked at once more."""
        rows = repaired = 0
        damaged: list[str] = []
        bad_vectors: list[str] = []
        bad_keys: list[str] = []
        for update in updates:
            found, vectors, keys = _damaged_rows(resources, update)
            if vectors or keys:
                first = {*vectors, *keys}
                damaged += sorted(first)
                update.repair(sorted(first))
                found, vectors, keys = _damaged_rows(resources, update)
                repaired += len(first - {*vectors, *keys})
            rows += found
            bad_vectors += vectors
            bad_keys += keys
        return dg.AssetCheckResult(
            asset_key=self._asset,
            check_name="vector_integrity",
            passed=not bad_vectors and not bad_keys,
            metadata={
                "rows_checked": rows,
                "rows_repaired": repaired,
                "invalid_vectors": len(bad_vectors),
                "keys_not_recomputable": len(bad_keys),
                "examples": ", ".join(damaged[:_EXAMPLES]) or "none",
                "embedding_space": ", ".join(update.space.id for update in updates),
            },
        )

    def _completeness(
        self, resources: CollectionResources, updates: Sequence["IndexUpdate"]
    ) -> dg.AssetCheckResult:
        missing, surplus, broken = np.sum([update.differences() for update in updates], axis=0)
        documents = sum(update.documents_missing for update in updates)
        return dg.AssetCheckResult(
            asset_key=self._asset,
            check_name="completeness",
            passed=not (missing or surplus or broken or documents),
            metadata={
                "documents_missing": documents,
                "chunks_missing": int(missing),
                "chunks_surplus": int(surplus),
                "documents_with_gaps": int(broken),
                "rows_in_index": sum(
                    resources.store.count(update.collection, update.space) for update in updates
                ),
            },
        )

    def _fallback_share(self, resources: CollectionResources) -> dg.AssetCheckResult:
        rows = [
            resources.store.count(self._collection.name, embedder.space)
            for embedder in resources.embedders
        ]
        share = sum(rows[1:]) / sum(rows) if sum(rows) else 0.0
        most = self._collection.settings.checks.max_fallback_share
        return dg.AssetCheckResult(
            asset_key=self._asset,
            check_name="fallback_share",
            passed=share == 0,
            severity=dg.AssetCheckSeverity.ERROR if share > most else dg.AssetCheckSeverity.WARN,
            metadata={
                "fallback_share": share,
                "fallback_rows": sum(rows[1:]),
                "rows_in_index": sum(rows),
                "max_fallback_share": most,
            },
        )

    def _quality(
        self,
        context: dg.AssetExecutionContext,
        resources: CollectionResources,
        settings: EvaluationSettings,
    ) -> dg.AssetCheckResult:
        result = evaluate_collection(
            self._collection.name, resources, Path(settings.queries), Path(settings.qrels)
        )
        context.log.info(f"nDCG@10 {result.ndcg_at_10:.4f} over {result.queries} queries")
        return dg.AssetCheckResult(
            asset_key=self._asset,
            check_name="retrieval_quality",
            passed=result.ndcg_at_10 >= settings.min_ndcg_at_10,
            metadata={
                "ndcg_at_10": result.ndcg_at_10,
                "recall_at_10": result.recall_at_10,
                "queries": result.queries,
                "min_ndcg_at_10": settings.min_ndcg_at_10,
            },
        )


def _damaged_rows(
    resources: CollectionResources, update: "IndexUpdate"
) -> tuple[int, list[str], list[str]]:
    """Reads the rows of the run's partitions back from the store.

    Returns:
        The number of rows, and the chunk ids of those with an invalid vector, and of those whose
        content hash is not that of their text.
    """
    space = update.space
    rows, bad_vectors, bad_keys = 0, [], []
    for batch in resources.store.scan(
        update.collection,
        space,
        ["chunk_id", "content_hash", "context", "text", "vector"],
        partitions=update.partitions,
    ):
        rows += len(batch)
        vectors = batch["vector"]
        matrix = np.zeros((len(batch), space.dimension), dtype=np.float32)
        if not vectors.null_count and vectors.type.list_size == space.dimension:
            matrix = vectors.flatten().to_numpy(zero_copy_only=False).reshape(matrix.shape)
        chunks = batch["chunk_id"]
        bad_vectors += chunks.filter(pa.array(~valid_vectors(space, matrix))).to_pylist()
        bad_keys += [
            chunk
            for chunk, key, context, text in zip(
                chunks.to_pylist(),
                batch["content_hash"].to_pylist(),
                batch["context"].to_pylist(),
                batch["text"].to_pylist(),
                strict=True,
            )
            if key != content_hash((context or "") + (text or ""))
        ]
    return rows, bad_vectors, bad_keys


def evaluate_collection(
    collection: str,
    resources: CollectionResources,
    queries: Path,
    qrels: Path,
    *,
    exact: bool = False,
) -> Evaluation:
    """Searches for every judged query in the whole index and scores the document rankings.

    Args:
        collection: the collection's name.
        resources: its embedders and stores.
        queries: JSON Lines file of queries.
        qrels: TSV file of judgements.
        exact: compare with every chunk, as `VectorStore.search` says.

    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed.
        LookupError: the collection has no index yet.
    """
    judgements = load_qrels(qrels)
    texts = {key: text for key, text in load_queries(queries).items() if key in judgements}
    return evaluate(rank_documents(collection, resources, texts, exact=exact), judgements)
