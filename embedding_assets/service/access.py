"""Who may ask for what, and how much of it a minute."""

import asyncio
import math
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import Scope

from embedding_assets.service.browsers import refusal
from embedding_assets.service.errors import ServiceError
from embedding_assets.service.keys import ApiKey, KeyRing
from embedding_assets.service.metrics import Metrics
from resources.limits.quota import Cost, MemoryQuotas, Quota, Quotas, Verdict

_WINDOW = 60


class Access:
    """Checks the key of each request and counts what it takes."""

    def __init__(self, keys: KeyRing, quotas: Quotas, quota: Quota, metrics: Metrics) -> None:
        """Without keys everybody may do everything, and each address has the quota.

        Args:
            keys: those that were made.
            quotas: counts.
            quota: of whoever has no other.
            metrics: of the server.
        """
        self._keys = keys
        self._quotas = quotas
        self._quota = quota
        self._metrics = metrics

    def refused(self, scope: Scope) -> ServiceError | None:
        """Why a request is not even looked at: there are no keys, and a page may have made it."""
        return None if self._keys.any else refusal(scope["headers"])

    def identify(self, request: Request, scope: str | None = None) -> None:
        """Remembers in the request who asks.

        Args:
            request: of which only the headers are looked at.
            scope: that its key must allow; by default none.

        Raises:
            ServiceError: there are keys and the request has none of them, or one that does not
                allow it.
        """
        if not self._keys.any:
            request.state.client, request.state.quota = _address(request), self._quota
            request.state.key = None
            return
        key = self._keys.find(presented(request))
        if key is None:
            raise ServiceError(
                401,
                "invalid_api_key",
                "A valid API key is needed, in the header X-API-Key, or as "
                "'Authorization: Bearer KEY'; `embedding-assets keys create` makes one.",
            )
        request.state.key = key
        request.state.client = key.id
        request.state.quota = key.limits if any(key.limits.limits) else self._quota
        if scope is not None:
            self.check(request, scope)

    def check(self, request: Request, scope: str) -> None:
        """Raises ServiceError if the request's key does not allow what the scope names."""
        key: ApiKey | None = request.state.key
        if key is not None and not key.allows(scope):
            raise ServiceError(403, "not_permitted", f"This API key does not allow '{scope}'.")

    def may(self, request: Request, scope: str) -> bool:
        """Whether the request's key allows what the scope names."""
        key: ApiKey | None = request.state.key
        return key is None or key.allows(scope)

    def sees(self, request: Request, scope: str) -> bool:
        """Whether a request that needs no key has one that allows a scope, or there are no keys."""
        if not self._keys.any:
            return True
        key = self._keys.find(presented(request))
        return key is not None and key.allows(scope)

    async def take(self, request: Request, texts: Sequence[str]) -> None:
        """Counts a request and its texts; tokens as estimated, for it costs nothing.

        Raises:
            ServiceError: it is over a limit of its key or address.
        """
        quota: Quota = request.state.quota
        if not any(limit is not None for limit in quota.limits):
            return
        client = request.state.client
        cost = Cost(1, len(texts), sum(2 + len(text) // 4 for text in texts))
        if isinstance(self._quotas, MemoryQuotas):
            verdict = self._quotas.take(client, quota, cost)
        else:  # asks a server
            loop = asyncio.get_running_loop()
            verdict = await loop.run_in_executor(None, self._quotas.take, client, quota, cost)
        request.state.headers = _headers(verdict)
        if verdict.allowed:
            return
        self._metrics.rate_limited.labels(verdict.dimension).inc()
        if math.isinf(verdict.retry_after):
            raise ServiceError(
                422,
                "over_limit",
                f"One request may not take more than {verdict.limit:,} {verdict.dimension}, which "
                "is what is allowed in a minute: send less in each.",
            )
        raise ServiceError(
            429,
            "rate_limited",
            f"The limit is {verdict.limit:,} {verdict.dimension} a minute. Try again in "
            f"{verdict.retry_after:.1f} s.",
            retry_after=verdict.retry_after,
        )


def presented(request: Request) -> str:
    """The key that a request carries; "" if it has none."""
    if key := request.headers.get("x-api-key"):
        return key
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _headers(verdict: Verdict) -> dict[str, str]:
    """Those in common use, and the draft of the IETF's working group on HTTP APIs."""
    if verdict.dimension is None or verdict.remaining is None:
        return {}
    reset = math.ceil(verdict.reset)
    return {
        "X-RateLimit-Limit": str(verdict.limit),
        "X-RateLimit-Remaining": str(verdict.remaining),
        "X-RateLimit-Reset": str(reset),
        "RateLimit-Policy": f'"{verdict.dimension}";q={verdict.limit};w={_WINDOW}',
        "RateLimit": f'"{verdict.dimension}";r={verdict.remaining};t={reset}',
    }
