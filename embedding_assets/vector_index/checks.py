"""The checks of `vector_index`: the index holds what it should, whole, and finds it."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.settings import EvaluationSettings
from embedding_assets.retrieval.evaluation import evaluate_index
from embedding_assets.retrieval.search import IndexReader
from embedding_assets.runs.check_results import EXAMPLES, check_result
from embedding_assets.vector_index.numbers import Completeness, Integrity


class IndexChecks:
    """What stands in the store after the run, read back from the store."""

    def __init__(self, collection: CollectionAssets) -> None:
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
                    description="No chunk is in the fallback's embedding space. Warns; fails above "
                    "checks.max_fallback_share.",
                )
            )
        if collection.settings.evaluation:
            self.specs.append(
                dg.AssetCheckSpec(
                    "retrieval_quality",
                    asset=self._asset,
                    blocking=True,
                    description="nDCG@10 and recall@10 on the collection's judged queries. The run "
                    "fails below evaluation.min_ndcg_at_10.",
                )
            )

    def results(
        self,
        context: dg.AssetExecutionContext,
        resources: CollectionResources,
        integrity: Sequence[Integrity],
        completeness: Sequence[Completeness],
        rows: Sequence[int],
    ) -> list[dg.AssetCheckResult]:
        """Judges what was found in the tables of the spaces, of which there is one entry each.

        Args:
            context: of the step.
            resources: of the collection.
            integrity: what the rows of the run's partitions are like.
            completeness: how they differ from what ought to be there.
            rows: of all partitions.
        """
        results = [
            self._integrity(resources, integrity),
            self._completeness(completeness, rows),
        ]
        if self._collection.settings.fallback:
            results.append(self._fallback_share(rows))
        if self._collection.settings.evaluation:
            results.append(self._quality(context, resources, self._collection.settings.evaluation))
        return results

    def _integrity(
        self, resources: CollectionResources, tables: Sequence[Integrity]
    ) -> dg.AssetCheckResult:
        invalid_vectors = sum(len(table.left.invalid_vectors) for table in tables)
        wrong_keys = sum(len(table.left.wrong_keys) for table in tables)
        damaged = [chunk_id for table in tables for chunk_id in table.found.chunk_ids]
        rows = sum(table.left.rows for table in tables)
        repaired = sum(table.repaired for table in tables)
        examples = ", ".join(damaged[:EXAMPLES])
        said = f"{repaired:,} damaged rows were written again. " if repaired else ""
        if invalid_vectors or wrong_keys:
            said += (
                f"Of {rows:,} rows {invalid_vectors:,} give back a vector that is none of their "
                f"embedding space, and {wrong_keys:,} a text that is not that of their key, such "
                f"as {examples}: the store changes what is written to it."
            )
        else:
            said += (
                f"{rows:,} rows were read back: all vectors are valid in their embedding space, "
                "and all keys are those of their texts."
            )
        return check_result(
            self._asset,
            "vector_integrity",
            not invalid_vectors and not wrong_keys,
            said,
            {
                "rows_checked": rows,
                "rows_repaired": repaired,
                "invalid_vectors": invalid_vectors,
                "keys_not_recomputable": wrong_keys,
                "examples": examples or "none",
                "embedding_space": ", ".join(e.space.id for e in resources.embedders),
            },
        )

    def _completeness(
        self, tables: Sequence[Completeness], rows: Sequence[int]
    ) -> dg.AssetCheckResult:
        differences = {
            "documents_missing": sum(table.documents_missing for table in tables),
            "chunks_missing": sum(table.chunks_missing for table in tables),
            "chunks_surplus": sum(table.chunks_surplus for table in tables),
            "documents_with_gaps": sum(table.documents_with_gaps for table in tables),
        }
        found = [f"{n:,} {name.replace('_', ' ')}" for name, n in differences.items() if n]
        said = (
            f"The index differs from the documents: {', '.join(found)}. Materialize vector_index "
            "again: it writes the difference."
            if found
            else "The chunks of all documents of these partitions are in the index, and nothing "
            f"else is; it has {sum(rows):,} rows in all."
        )
        metadata = {**differences, "rows_in_index": sum(rows)}
        return check_result(self._asset, "completeness", not found, said, metadata)

    def _fallback_share(self, rows: Sequence[int]) -> dg.AssetCheckResult:
        share = sum(rows[1:]) / sum(rows) if sum(rows) else 0.0
        most = self._collection.settings.checks.max_fallback_share
        said = (
            f"{sum(rows[1:]):,} of {sum(rows):,} rows ({share:.1%}) are in the space of the "
            f"fallback, {'more than' if share > most else 'at most'} {most:.0%} "
            "(checks.max_fallback_share). The next run of their partitions moves them, if the "
            "embedder is well."
            if share
            else f"All {sum(rows):,} rows are in the embedding space of the first embedder."
        )
        return check_result(
            self._asset,
            "fallback_share",
            share == 0,
            said,
            {
                "fallback_share": share,
                "fallback_rows": sum(rows[1:]),
                "rows_in_index": sum(rows),
                "max_fallback_share": most,
            },
            dg.AssetCheckSeverity.ERROR if share > most else dg.AssetCheckSeverity.WARN,
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
        passed, least = result.ndcg_at_10 >= settings.min_ndcg_at_10, settings.min_ndcg_at_10
        said = (
            f"nDCG@10 is {result.ndcg_at_10:.4f} and recall@10 {result.recall_at_10:.4f} over "
            f"{result.queries:,} judged queries"
            f"{'' if passed else f', less than {least:g} (evaluation.min_ndcg_at_10)'}."
        )
        return check_result(
            self._asset,
            "retrieval_quality",
            passed,
            said,
            {
                "ndcg_at_10": result.ndcg_at_10,
                "recall_at_10": result.recall_at_10,
                "queries": result.queries,
                "min_ndcg_at_10": least,
            },
        )
