"""What is measured of the service, as Prometheus names it: base units, and counters to divide."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from resources.identity.embedding_space import EmbeddingSpace

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_SIZES = tuple(2**power for power in range(0, 12))
_TOKENS = tuple(2**power for power in range(3, 18))


class Metrics:
    """The registry of one server, which is one process.

    Histograms and no summaries: those of several replicas can be added.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, histogram = self._counter, self._histogram
        self.requests = counter("http_requests", "Answers.", "endpoint", "status")
        self.request_seconds = histogram(
            "http_request_seconds", "From the first byte to the last.", _SECONDS, "endpoint"
        )
        self.texts = counter("texts", "Texts answered.", "endpoint", "cached")
        self.tokens = counter("tokens", "Tokens that models have embedded.")
        self.failures = counter("failures", "Texts without a vector, or not stored.", "kind")
        self.lookups = counter("cache_lookups", "Texts that memory did not hold.", "result")
        self.cache_seconds = histogram(
            "cache_seconds", "Reading and writing the cache.", _SECONDS, "operation"
        )
        self.queue_seconds = histogram(
            "queue_seconds", "For which a text waited for the model.", _SECONDS
        )
        self.inference_seconds = histogram(
            "inference_seconds", "Of a batch, tokenizing included.", _SECONDS
        )
        self.store_seconds = histogram(
            "store_seconds", "Of a search in the vector store.", _SECONDS
        )
        self.batch_texts = histogram("batch_texts", "Texts of a batch.", _SIZES)
        self.batch_tokens = histogram("batch_tokens", "Tokens of a batch.", _TOKENS)
        self.queued_texts = self._gauge("queued_texts", "Waiting for the model.")
        self.queued_tokens = self._gauge("queued_tokens", "As estimated.")
        self.running = self._gauge("running_batches", "With the model.")
        self.rate_limited = counter("rate_limited", "Requests over a limit.", "dimension")
        self.model = Info(
            "embedding_model", "A space that is served.", ["space"], registry=self.registry
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"embedding_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"embedding_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"embedding_{name}", text, labels, buckets=buckets, registry=self.registry)

    def has_model(self, space: EmbeddingSpace, kind: str) -> None:
        """A model is loaded."""
        told = {"model": space.model, "dimension": str(space.dimension), "kind": kind}
        self.model.labels(space.id).info(told)

    def forget_model(self, space: str) -> None:
        """It is served no more."""
        with suppress(KeyError):  # it never was
            self.model.remove(space)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        of_status, of_endpoint = self._of_answers(endpoint, status)
        of_status.inc()
        of_endpoint.observe(seconds)

    def texts_answered(self, endpoint: str, cached: int, computed: int) -> None:
        """Counts texts that have got a vector."""
        of_cached, of_computed = self._of_texts(endpoint)
        if cached:
            of_cached.inc(cached)
        if computed:
            of_computed.inc(computed)

    @lru_cache(maxsize=256)  # noqa: B019 - there is one of these in a process
    def _of_answers(self, endpoint: str, status: int) -> tuple[Counter, Histogram]:
        return (
            self.requests.labels(endpoint, str(status)),
            self.request_seconds.labels(endpoint),
        )

    @lru_cache(maxsize=256)  # noqa: B019
    def _of_texts(self, endpoint: str) -> tuple[Counter, Counter]:
        return self.texts.labels(endpoint, "true"), self.texts.labels(endpoint, "false")

    # --- As `VectorObserver` ----------------------------------------------------------------------

    def batch(self, texts: int, tokens: int, seconds: float, waited: Sequence[float]) -> None:
        self.tokens.inc(tokens)
        self.batch_texts.observe(texts)
        self.batch_tokens.observe(tokens)
        self.inference_seconds.observe(seconds)
        for each in waited:
            self.queue_seconds.observe(each)

    def looked_up(self, hits: int, misses: int, seconds: float) -> None:
        self.lookups.labels("hit").inc(hits)
        self.lookups.labels("miss").inc(misses)
        if seconds:
            self.cache_seconds.labels("read").observe(seconds)

    def written(self, texts: int, seconds: float) -> None:
        if texts:
            self.cache_seconds.labels("write").observe(seconds)

    def failed(self, kind: str, texts: int) -> None:
        self.failures.labels(kind).inc(texts)
