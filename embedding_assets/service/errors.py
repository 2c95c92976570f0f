"""What the service answers when it cannot do what was asked, each with a status of HTTP."""

import math


class ServiceError(Exception):
    """An answer that is no success.

    Attributes:
        status: of HTTP.
        code: for programs; it never changes.
        message: a sentence for people, which says what to do.
        field: of the request that is at fault, if one is.
        retry_after: seconds after which the same request is worth while.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Those that belong to the answer."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class QueueFullError(ServiceError):
    """More is waiting than will be embedded in the time that anybody waits."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            503,
            "queue_full",
            f"More texts are waiting than can be embedded soon. Try again in "
            f"{max(1, math.ceil(retry_after))} s.",
            retry_after=retry_after,
        )
