"""The checks of `embeddings`: throughput, hit rate, error rate, drift of the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.embeddings.canaries import Canaries, SpaceDriftError
from embedding_assets.runs.check_results import EXAMPLES
from embedding_assets.runs.trends import trend
from resources.embedders.cosine import MIN_COSINE_OF_SPACE

if TYPE_CHECKING:
    from embedding_assets.embeddings.numbers import EmbeddingNumbers


class EmbeddingChecks:
    """Throughput, cache hit rate, error rate of a run: against thresholds and the last runs."""

    def __init__(self, collection: CollectionAssets) -> None:
        self._asset = collection.asset_key("embeddings")
        self._thresholds = collection.settings.checks
        self.specs = [
            dg.AssetCheckSpec(name, asset=self._asset, description=description)
            for name, description in (
                ("throughput", "Chunks and tokens embedded a second."),
                ("cache_hit_rate", "Share of the distinct chunks that the cache held."),
                ("error_rate", "Share of the texts to embed that were refused."),
                ("unknown_tokens", "Share of the tokens embedded that the model does not know."),
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
        judged = [
            (
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
            (
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
            (
                "error_rate",
                numbers.error_rate <= limits.max_error_rate,
                limits.max_error_rate_rise,
                {
                    "error_rate": numbers.error_rate,
                    "errors": numbers.texts_refused,
                    "texts": numbers.texts_tried,
                    "max_error_rate": limits.max_error_rate,
                    "examples": "; ".join(numbers.error_examples[:EXAMPLES]) or "none",
                },
            ),
        ]
        return [
            self._no_drift(canaries),
            self._known_tokens(numbers),
            *(self._against_last_runs(instance, *judgement) for judgement in judged),
        ]

    def _no_drift(self, canaries: Canaries) -> dg.AssetCheckResult:
        """Passed: a drift ends the run before, see `drifted`."""
        cosines = ", ".join(
            f"{space}: {'first vectors' if cosine is None else f'{cosine:.6f}'}"
            for space, cosine in canaries.cosines.items()
        )
        return dg.AssetCheckResult(
            asset_key=self._asset,
            check_name="space_drift",
            passed=True,
            metadata={
                "least_cosine": cosines or "nothing was embedded",
                "min_cosine": MIN_COSINE_OF_SPACE,
            },
        )

    def _known_tokens(self, numbers: "EmbeddingNumbers") -> dg.AssetCheckResult:
        limit = self._thresholds.max_unknown_tokens
        passed = numbers.unknown_share <= limit
        return dg.AssetCheckResult(
            asset_key=self._asset,
            check_name="unknown_tokens",
            passed=passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=None
            if passed
            else (
                f"The model does not know {numbers.unknown_share:.1%} of the tokens, more than "
                f"{limit:.1%} (checks.max_unknown_tokens): what they mean is not in the vectors. "
                "Is it a model for the language and the script of these documents?"
            ),
            metadata={
                "unknown_share": numbers.unknown_share,
                "tokens_unknown": numbers.tokens_unknown,
                "max_unknown_tokens": limit,
            },
        )

    def _against_last_runs(
        self,
        instance: dg.DagsterInstance,
        name: str,
        passed: bool,
        allowed: float,
        metadata: dict[str, Any],
    ) -> dg.AssetCheckResult:
        """A result that also fails where the run is much worse than the runs before."""
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
