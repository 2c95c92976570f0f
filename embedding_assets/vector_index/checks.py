"""The checks of `vector_index`: the index holds what it should, whole, and finds it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pyarrow as pa

from embedding_assets.collection.collection import Collection, CollectionResources
from embedding_assets.collection.settings import EvaluationSettings
from embedding_assets.retrieval.evaluation import evaluate_index
from embedding_assets.retrieval.search import IndexReader
from embedding_assets.runs.check_results import EXAMPLES
from resources.caches.vectors import valid_vectors
from resources.identity.content_hash import content_hash

if TYPE_CHECKING:
    from embedding_assets.vector_index.update import IndexUpdate


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
                "examples": ", ".join(damaged[:EXAMPLES]) or "none",
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
        index = IndexReader(self._collection.name, resources)
        result = evaluate_index(index, Path(settings.queries), Path(settings.qrels))
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
