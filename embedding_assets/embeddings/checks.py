"""The checks of `embeddings`: throughput, hit rate, error rate, drift of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.embeddings.canaries import CANARIES, Canaries, SpaceDriftError
from embedding_assets.runs.check_results import EXAMPLES, check_result
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
                (
                    "throughput",
                    "Chunks and tokens embedded a second. Warns below checks.min_chunks_per_second "
                    "and when much slower than the last runs.",
                ),
                (
                    "cache_hit_rate",
                    "Share of the distinct chunks that the cache held. Warns below "
                    "checks.min_cache_hit_rate and when much lower than in the last runs.",
                ),
                (
                    "error_rate",
                    "Share of the texts to embed that were refused. Fails above "
                    "checks.max_error_rate; warns when much higher than in the last runs.",
                ),
                (
                    "unknown_tokens",
                    "Share of the tokens embedded that the model does not know. Warns above "
                    "checks.max_unknown_tokens.",
                ),
                (
                    "space_drift",
                    "Fixed texts still get the vectors that they got at first. Otherwise the run "
                    "fails before a vector is written.",
                ),
            )
        ]

    def drifted(self, drift: SpaceDriftError) -> dg.AssetCheckEvaluation:
        """What is recorded when the run ends because the model is no longer the one it was."""
        return dg.AssetCheckEvaluation(
            asset_key=self._asset,
            check_name="space_drift",
            passed=False,
            description=str(drift),
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
        judged = [
            self._throughput(numbers, used),
            self._cache_hit_rate(numbers),
            self._error_rate(numbers),
        ]
        return [
            self._no_drift(canaries),
            self._known_tokens(numbers),
            *(self._against_last_runs(instance, one) for one in judged),
        ]

    def _throughput(self, numbers: "EmbeddingNumbers", used: Mapping[str, float]) -> "_Judged":
        rate, least = numbers.chunks_per_second, self._thresholds.min_chunks_per_second
        passed = not numbers.embedded or rate >= least
        slow = _unless(passed, f"less than {least:g}", "min_chunks_per_second")
        tokens = _rate(numbers.tokens_per_second)
        said = (
            f"{numbers.embedded:,} chunks were embedded: {tokens} tokens/s, {_rate(rate)} chunks/s"
            f"{slow}."
            if numbers.embedded
            else "Nothing was embedded, so there is no speed to judge."
        )
        metadata = {
            "chunks_per_second": rate,
            "tokens_per_second": numbers.tokens_per_second,
            "embedded": numbers.embedded,
            "min_chunks_per_second": least,
            **used,
        }
        drop = self._thresholds.max_throughput_drop
        return _Judged("throughput", passed, said, metadata, drop, _rate)

    def _cache_hit_rate(self, numbers: "EmbeddingNumbers") -> "_Judged":
        rate, least = numbers.cache_hit_rate, self._thresholds.min_cache_hit_rate
        passed = rate >= least
        said = (
            f"The cache held {numbers.cache_hits:,} of {numbers.distinct_chunks:,} distinct chunks "
            f"({rate:.1%}){_unless(passed, f'less than {least:.0%}', 'min_cache_hit_rate')}."
            if numbers.distinct_chunks
            else "There were no chunks to look up in the cache."
        )
        metadata = {
            "cache_hit_rate": rate,
            "cache_hits": numbers.cache_hits,
            "cache_misses": numbers.cache_misses,
            "cache_entries_rejected": numbers.cache_entries_rejected,
            "min_cache_hit_rate": least,
        }
        drop = self._thresholds.max_cache_hit_rate_drop
        return _Judged("cache_hit_rate", passed, said, metadata, drop, "{:.1%}".format)

    def _error_rate(self, numbers: "EmbeddingNumbers") -> "_Judged":
        rate, most = numbers.error_rate, self._thresholds.max_error_rate
        passed = rate <= most
        said = (
            f"{numbers.texts_refused:,} of {numbers.texts_tried:,} texts were refused ({rate:.2%})"
            f"{_unless(passed, f'more than {most:.1%}', 'max_error_rate')}."
            if numbers.texts_tried
            else "No text was given to the model."
        )
        if numbers.error_examples:
            said += f" Such as {numbers.error_examples[0]}"
        metadata = {
            "error_rate": rate,
            "errors": numbers.texts_refused,
            "texts": numbers.texts_tried,
            "max_error_rate": most,
            "examples": "; ".join(numbers.error_examples[:EXAMPLES]) or "none",
        }
        severity = dg.AssetCheckSeverity.WARN if passed else dg.AssetCheckSeverity.ERROR
        rise = self._thresholds.max_error_rate_rise
        return _Judged("error_rate", passed, said, metadata, rise, "{:.2%}".format, severity)

    def _no_drift(self, canaries: Canaries) -> dg.AssetCheckResult:
        """Passed: a drift ends the run before, see `drifted`."""
        cosines = ", ".join(
            f"{space}: {'first vectors' if cosine is None else f'{cosine:.6f}'}"
            for space, cosine in canaries.cosines.items()
        )
        known = [cosine for cosine in canaries.cosines.values() if cosine is not None]
        if known:
            said = (
                f"{len(CANARIES)} fixed texts get the vectors that they got at first: the least "
                f"cosine is {min(known):.6f}, and may be {MIN_COSINE_OF_SPACE}."
            )
        elif canaries.cosines:
            said = f"The first vectors of {len(CANARIES)} fixed texts are kept: later ones must be "
            said += "the same."
        else:
            said = "Nothing was embedded, so the model was not asked."
        metadata = {
            "least_cosine": cosines or "nothing was embedded",
            "min_cosine": MIN_COSINE_OF_SPACE,
        }
        return check_result(self._asset, "space_drift", True, said, metadata)

    def _known_tokens(self, numbers: "EmbeddingNumbers") -> dg.AssetCheckResult:
        limit = self._thresholds.max_unknown_tokens
        passed = numbers.unknown_share <= limit
        if not passed:
            said = (
                f"The model does not know {numbers.unknown_share:.1%} of the tokens, more than "
                f"{limit:.1%} (checks.max_unknown_tokens): what they mean is not in the vectors. "
                "Is it a model for the language and the script of these documents?"
            )
        elif numbers.tokens_judged:
            said = (
                f"The model does not know {numbers.tokens_unknown:,} of {numbers.tokens_judged:,} "
                f"tokens ({numbers.unknown_share:.1%})."
            )
        else:
            said = "Nothing was embedded, or the embedder does not tell which tokens it knows."
        return check_result(
            self._asset,
            "unknown_tokens",
            passed,
            said,
            {
                "unknown_share": numbers.unknown_share,
                "tokens_unknown": numbers.tokens_unknown,
                "max_unknown_tokens": limit,
            },
            dg.AssetCheckSeverity.WARN,
        )

    def _against_last_runs(
        self, instance: dg.DagsterInstance, one: "_Judged"
    ) -> dg.AssetCheckResult:
        """A result that also fails where the run is much worse than the runs before."""
        check = dg.AssetCheckKey(self._asset, one.name)
        last = trend(instance, check, one.metadata, allowed=one.allowed)
        return check_result(
            self._asset,
            one.name,
            one.passed and not last.worse,
            one.sentence + last.told(one.form),
            {**one.metadata, **last.metadata()},
            one.severity,
        )


@dataclass(frozen=True)
class _Judged:
    """A number of the run against its threshold, to be compared with the last runs.

    Attributes:
        name: of the check.
        passed: whether it keeps to the threshold.
        sentence: that says so.
        metadata: of the result.
        allowed: how much worse than the last runs it may be, see `trend`.
        form: writes such a number for people.
        severity: of a result that is not well.
    """

    name: str
    passed: bool
    sentence: str
    metadata: dict[str, Any]
    allowed: float
    form: Callable[[float], str]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN


def _unless(passed: bool, broken: str, threshold: str) -> str:
    """What a sentence goes on with where a threshold is broken."""
    return "" if passed else f", {broken} (checks.{threshold})"


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
