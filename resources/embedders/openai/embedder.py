"""Embeds with OpenAI, or with any server that has OpenAI's embeddings interface."""

import hashlib
import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import numpy as np
from pydantic import Field, field_validator
from tokenizers import Tokenizer

from resources.embedders.base import Embedder, EmbeddingBatch, Role
from resources.embedders.openai.models import (
    CAN_BE_SHORTENED,
    OPENAI_DIMENSIONS,
    OPENAI_KEY,
    OPENAI_URL,
)
from resources.embedders.openai.protocol import Refusal, Reply, Vectors, read, told
from resources.embedders.openai.token_estimate import estimating_tokenizer
from resources.embedders.pricing import Budget, dollars_per_million_tokens, prices_file
from resources.errors import (
    CredentialsError,
    EmbedderUnavailableError,
    EmbeddingError,
    MissingPackageError,
    SettingsError,
)
from resources.identity.embedding_space import EmbeddingSpace, canonical_json
from resources.limits.base import GivenUpError, Grant, LimitError, Limits, RateLimiter, Usage
from resources.limits.concurrency import AdaptiveConcurrency
from resources.limits.from_environment import rate_limiter

_SHARE_OF_LIMIT = 0.05
"""Most of the tokens per minute that one request takes, so that the budget is used evenly."""
_MOST_INCOMPLETE_ANSWERS = 3
_LONGEST_DELAY = 30.0
"""Seconds; of the exponential backoff."""

_log = logging.getLogger(__name__)


class OpenAIEmbedder(Embedder):
    """Sends each batch as one request, within the limits that all processes share.

    The key is read from the environment when the first request is sent, and is kept nowhere else.
    """

    model: str = Field(description="The model's name, such as text-embedding-3-small.")
    base_url: str = Field(
        default=OPENAI_URL,
        description="Where the server is, with the path up to /embeddings, for example "
        "http://127.0.0.1:8080/v1.",
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="Length of the vectors. OpenAI's models have a default, and text-embedding-3 "
        "shortens its vectors to any other; for other models it says what the server answers.",
    )
    api_key_env: str | None = Field(
        default=None,
        description="Name of the environment variable that holds the key; by default "
        f"{OPENAI_KEY} at OpenAI's own URL, and none elsewhere.",
    )
    server_name: str | None = Field(
        default=None,
        description="Stands for the server in the identity of the vectors, instead of its URL. "
        "Two servers may have the same name only if they compute the same vectors.",
    )
    tokenizer: str | None = Field(
        default=None,
        description="The model's tokenizer.json. By default tokens are estimated, about twice as "
        "many as OpenAI counts in English, so that every text fits.",
    )
    document_prompt: str = Field(default="", description="Text put before each document.")
    query_prompt: str = Field(default="", description="Text put before each query.")
    max_input_tokens: int = Field(
        default=8191, ge=1, description="Longest text in tokens; what is longer is cut."
    )
    max_request_inputs: int = Field(default=2048, ge=1, description="Most texts of a request.")
    max_request_tokens: int = Field(
        default=300_000, ge=1, description="Most tokens of a request, of all its texts together."
    )
    max_concurrency: int = Field(
        default=8, ge=1, description="Most requests in flight; how many adapts to the server."
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="Limit of this key; by default what the server tells."
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="Limit of this key; by default what the server tells."
    )
    max_dollars: float | None = Field(
        default=None, ge=0, description="Most that one run may spend; prices are in prices.yaml."
    )
    timeout: float = Field(default=60.0, gt=0, description="Seconds for one request.")
    max_wait: float = Field(
        default=900.0,
        ge=0,
        description="Seconds from the first failure of a request on until it is given up. A longer "
        "wait that the server asks for ends the run at once.",
    )
    retry_delay: float = Field(
        default=0.5,
        gt=0,
        description="Seconds that the first retry waits at most; each further one twice as long.",
    )
    rate_limits: str = Field(
        default="~/.cache/embedding-assets/rate_limits",
        description="Folder in which the processes of this machine share their limits. The "
        "environment variable EMBEDDING_RATE_LIMITER, a Redis URL, shares them between machines.",
    )
    rate_limit_window: float = Field(
        default=60.0, gt=0, description="Seconds for which the limits are meant."
    )

    @field_validator("base_url")
    @classmethod
    def _url_has_no_secret(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be a URL such as http://127.0.0.1:8080/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "base_url must hold no user, password or query: it is shown to people. "
                "Put the key into the environment variable that api_key_env names"
            )
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable_is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not name.isidentifier():
            raise ValueError(
                f"api_key_env must be the name of an environment variable, such as {OPENAI_KEY}, "
                "not the key itself"
            )
        return name

    @property
    def space(self) -> EmbeddingSpace:
        return self._space

    @property
    def special_tokens(self) -> int:
        return self._tokenizer_of_requests.num_special_tokens_to_add(False)

    @property
    def max_text_tokens(self) -> int:
        prompt = self._tokenizer_of_requests.encode(self.document_prompt, add_special_tokens=False)
        return self.max_input_tokens - self.special_tokens - len(prompt)

    @property
    def concurrency(self) -> int:
        return self.max_concurrency

    def new_tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self._tokenizer_json)

    def batches(self, texts: Sequence[str]) -> list[slice]:
        """Requests: within the provider's limits, and small enough for even use of the budget."""
        return list(self._packed([count for _, count, _ in self._fitted(texts, "document")]))

    def dollars(self, tokens: int) -> float:
        return tokens * (dollars_per_million_tokens(self.model) or 0.0) / 1e6

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        fitted = self._fitted(texts, role)
        counts = [count for _, count, _ in fitted]
        vectors = np.zeros((len(texts), self.space.dimension), dtype=np.float32)
        tokens = np.zeros(len(texts), dtype=np.int32)
        given_up = self._shared.given_up  # the one of now, whichever later calls will have
        for batch in self._packed(counts):
            sent = [text for text, _, _ in fitted[batch]]
            found = self._request(sent, sum(counts[batch]), given_up)
            vectors[batch] = _normalized(found.vectors)
            tokens[batch] = _shared_out(found.tokens, counts[batch])
        truncated = np.array([cut for _, _, cut in fitted], dtype=np.int32)
        return EmbeddingBatch(vectors, tokens, truncated)

    def give_up(self) -> None:
        if made := self._made_so_far:
            made.given_up.set()
            made.given_up = threading.Event()  # later calls may wait again

    def describe(self) -> str:
        limits = self._known_limits
        return (
            f"{self.model} at {self.base_url}, up to {self.max_concurrency} requests at a time; "
            f"limits a minute: {limits.requests or 'unknown'} requests, "
            f"{limits.tokens or 'unknown'} tokens"
        )

    def statistics(self) -> dict[str, float]:
        """What was used since this resource was made, which in Dagster is a run.

        Returns:
            requests, retries, tokens, dollars; seconds_rate_limited (summed over threads) and
            rate_limit_utilisation (share of the limit that all processes together used, as of the
            last request).
        """
        made = self._made_so_far
        usage = made.limiter.usage() if made else Usage()
        return {
            "requests": made.requests if made else 0,
            "retries": made.retries if made else 0,
            "tokens": usage.tokens,
            "dollars": made.budget.spent if made else 0.0,
            "seconds_rate_limited": usage.seconds_waited,
            "rate_limit_utilisation": usage.utilisation,
        }

    # --- Texts -----------------------------------------------------------------------------------

    @cached_property
    def _space(self) -> EmbeddingSpace:
        dimension = self.dimensions or OPENAI_DIMENSIONS.get(self.model)
        if dimension is None:
            raise SettingsError(
                f"How long are the vectors of {self.model!r}? Set 'dimensions', for example "
                "dimensions: 768.",
            )
        details: dict[str, Any] = {
            "prompts": {"document": self.document_prompt, "query": self.query_prompt},
            "tokenizer": hashlib.sha256(self._tokenizer_json.encode()).hexdigest(),
        }
        if not self._is_openai:
            details["server"] = self.server_name or self.base_url
        return EmbeddingSpace(
            provider="openai" if self._is_openai else "openai-compatible",
            model=self.model,
            weights="",
            dimension=dimension,
            max_tokens=self.max_input_tokens,
            normalized=True,
            details=canonical_json(details),
        )

    @property
    def _is_openai(self) -> bool:
        return urlsplit(self.base_url).hostname == urlsplit(OPENAI_URL).hostname

    @cached_property
    def _tokenizer_json(self) -> str:
        if self.tokenizer is None:
            return estimating_tokenizer().to_str()
        path = Path(self.tokenizer).expanduser()
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise SettingsError(f"{path} is not a readable tokenizer.json ({error}).") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer.to_str()

    @property
    def _tokenizer_of_requests(self) -> Tokenizer:
        """One a thread."""
        local = self._local
        if not hasattr(local, "tokenizer"):
            local.tokenizer = self.new_tokenizer()
        return local.tokenizer

    @cached_property
    def _local(self) -> threading.local:
        return threading.local()

    def _fitted(self, texts: Sequence[str], role: Role) -> list[tuple[str, int, int]]:
        """Each text as it is sent, its tokens, and how many tokens were cut off."""
        prompt = self.document_prompt if role == "document" else self.query_prompt
        special = self.special_tokens
        room = self.max_input_tokens - special
        tokenizer = self._tokenizer_of_requests
        fitted = []
        sent = [prompt + text for text in texts]
        for text, encoding in zip(
            sent, tokenizer.encode_batch(sent, add_special_tokens=False), strict=True
        ):
            tokens = len(encoding)
            if tokens <= room:
                fitted.append((text, tokens + special, 0))
            else:
                # Where the first token begins that has no room: no character is cut in two.
                end = encoding.offsets[room][0]
                fitted.append((text[:end], self.max_input_tokens, tokens - room))
        return fitted

    def _packed(self, counts: Sequence[int]) -> Iterator[slice]:
        """Fewest requests of texts in a row."""
        most = self.max_request_tokens
        if limit := self._known_limits.tokens:
            most = min(most, int(limit * _SHARE_OF_LIMIT))
        start = tokens = 0
        for end, count in enumerate(counts):
            if end > start and (tokens + count > most or end - start == self.max_request_inputs):
                yield slice(start, end)
                start, tokens = end, 0
            tokens += count
        if start < len(counts):
            yield slice(start, len(counts))

    @property
    def _known_limits(self) -> Limits:
        """As far as the last request showed them."""
        configured = Limits(self.requests_per_minute, self.tokens_per_minute)
        made = self._made_so_far
        seen = made.limiter.usage().limits if made else Limits()
        return Limits(seen.requests or configured.requests, seen.tokens or configured.tokens)

    # --- Requests --------------------------------------------------------------------------------

    def _request(self, texts: list[str], estimate: int, given_up: threading.Event) -> Vectors:
        """One request, again and again until it succeeds or no hope is left."""
        first_failure: float | None = None
        incomplete = failures = 0
        while True:
            found, number = self._attempt(texts, estimate, given_up)
            if isinstance(found, Vectors):
                self._shared.concurrency.succeeded()
                return found
            failures += 1
            first_failure = first_failure or time.monotonic()
            if found.remedy in ("stop", "split"):
                raise self._error(found)
            if found.remedy == "retry or split":
                incomplete += 1
                if incomplete == _MOST_INCOMPLETE_ANSWERS:
                    raise self._error(found)
            else:
                self._shared.concurrency.failed(number)
            # Full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter", 2015.
            longest = min(_LONGEST_DELAY, self.retry_delay * 2 ** (failures - 1))
            delay = found.seconds
            # Overloaded servers say "at once" again and again, or when a limit resets that is
            # not spent.
            if delay is None or (failures > 1 and delay < self.retry_delay):
                delay = max(delay or 0.0, random.uniform(0, longest))
            if time.monotonic() + delay > first_failure + self.max_wait:
                raise self._error(found, delay)
            self._shared.count(retries=1)
            _log.warning("%s; next attempt in %.1f s", found.reason, delay)
            if found.remedy == "pause":
                self._shared.limiter.pause(delay)
            else:
                given_up.wait(delay)

    def _attempt(
        self, texts: list[str], estimate: int, given_up: threading.Event
    ) -> tuple[Vectors | Refusal, int]:
        """Sends one request; counts what it cost and what it took of the limits."""
        with self._shared.concurrency.slot() as number:
            price = self._price
            self._shared.budget.reserve(price * estimate)
            grant: Grant | None = None
            charged = 0  # tokens
            reply: Reply | str | None = None
            try:
                grant = self._acquire(estimate, given_up)
                charged = estimate  # so long as nothing else is known
                reply = self._exchange(texts)
                if isinstance(reply, str):
                    return Refusal("retry", EmbedderUnavailableError, reply), number
                found = read(reply, self.model, len(texts), self.space.dimension)
                if isinstance(found, Vectors):
                    charged = found.tokens or estimate
                    found = Vectors(found.vectors, charged)
                return found, number
            finally:
                refused = isinstance(reply, Reply) and reply.status >= 400
                self._shared.budget.settle(price * estimate, 0.0 if refused else price * charged)
                if grant:
                    self._shared.count(requests=1)
                    headers = reply.headers if isinstance(reply, Reply) else {}
                    self._shared.limiter.settle(grant, charged, told(headers))

    def _acquire(self, tokens: int, given_up: threading.Event) -> Grant:
        try:
            return self._shared.limiter.acquire(tokens, given_up)
        except GivenUpError as error:
            raise EmbedderUnavailableError(f"{self.base_url} was given up") from error
        except LimitError as error:
            raise SettingsError(
                f"{error}. Raise tokens_per_minute or requests_per_minute, or lower "
                "chunking.max_tokens",
            ) from error

    def _exchange(self, texts: list[str]) -> Reply | str:
        """The server's answer, or why there is none. The client's errors, which hold the key, end
        here."""
        import openai

        options: dict[str, Any] = {"encoding_format": "base64"}
        if self.dimensions and self.model.startswith(CAN_BE_SHORTENED):
            options["dimensions"] = self.dimensions
        try:
            raw = self._shared.client.embeddings.with_raw_response.create(
                input=texts, model=self.model, **options
            )
            response = raw.http_response
        except openai.APIStatusError as error:
            response = error.response
        except openai.APITimeoutError:
            return f"No answer within {self.timeout:g} s"
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            return f"No complete answer ({type(cause).__name__}: {cause})".replace(
                self._key or "\0", "***"
            )
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, response.content, self._key)

    def _error(self, refusal: Refusal, delay: float | None = None) -> EmbeddingError:
        reason = refusal.reason
        if delay is not None and (refusal.seconds or 0.0) >= self.retry_delay:
            reason += (
                f". It asks to wait {delay:,.0f} s, longer than max_wait ({self.max_wait:,.0f} s) "
                "allows. What is embedded is kept: run again later"
            )
        elif delay is not None:
            reason += (
                f". Given up after max_wait ({self.max_wait:,.0f} s). What is embedded is kept: "
                "run again when the server is well"
            )
        elif refusal.error is CredentialsError:
            name = self._key_variable
            reason += (
                f". Is the environment variable {name} right?"
                if name
                else ". Name the environment variable that holds the key in api_key_env"
            )
        return refusal.error(f"{self.base_url}: {reason}.")

    @property
    def _key_variable(self) -> str | None:
        # OpenAI's key is not sent to other servers because it happens to be in the environment.
        return self.api_key_env or (OPENAI_KEY if self._is_openai else None)

    @property
    def _key(self) -> str | None:
        name = self._key_variable
        return (dg.EnvVar(name).get_value() or "").strip() or None if name else None

    def _new_client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            raise MissingPackageError("provider: openai", "openai") from None
        key = self._key
        if key is None and self._key_variable:
            raise CredentialsError(
                f"The environment variable {self._key_variable} is not set; it must hold the key "
                f"for {self.base_url}.",
            )
        if key and not (key.isascii() and key.isprintable()):
            raise CredentialsError(
                f"The environment variable {self._key_variable} holds characters that no key has.",
            )
        return OpenAI(
            api_key=key or "none",
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=0,  # it would also retry what is hopeless, and outside of our limits
        )

    @cached_property
    def _price(self) -> float:
        """US dollars a token."""
        price = dollars_per_million_tokens(self.model)
        if price is None and self.max_dollars is not None:
            raise SettingsError(
                f"max_dollars needs the price of {self.model!r}: add a line to {prices_file()}.",
            )
        return (price or 0.0) / 1e6

    @property
    def _shared(self) -> "_Shared":
        with _making:
            return self._made

    @property
    def _made_so_far(self) -> "_Shared | None":
        """Not `_shared`: what describes an embedder needs no key."""
        return self.__dict__.get("_made")

    @cached_property
    def _made(self) -> "_Shared":
        # A provider's limits are of the key and the model. The hash is slow to invert.
        secret = hashlib.scrypt((self._key or "").encode(), salt=b"rate limit", n=4096, r=8, p=1)
        identity = hashlib.sha256(
            canonical_json([self.base_url, self.model, secret.hex()]).encode()
        ).hexdigest()[:24]
        limiter = rate_limiter(
            identity,
            Path(self.rate_limits).expanduser(),
            Limits(self.requests_per_minute, self.tokens_per_minute),
            window=self.rate_limit_window,
            lease=2 * self.timeout,
        )
        return _Shared(
            self._new_client(),
            limiter,
            AdaptiveConcurrency(self.max_concurrency),
            Budget(self.max_dollars),
        )


@dataclass
class _Shared:
    """What all threads that use an embedder have in common."""

    client: Any
    limiter: RateLimiter
    concurrency: AdaptiveConcurrency
    budget: Budget
    requests: int = 0
    retries: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    given_up: threading.Event = field(default_factory=threading.Event)

    def count(self, requests: int = 0, retries: int = 0) -> None:
        with self.lock:
            self.requests += requests
            self.retries += retries


_making = threading.Lock()


def _normalized(vectors: np.ndarray) -> np.ndarray:
    """Norm 1, as OpenAI's are and other servers' may not be; what is not finite stays so."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        return (vectors / norms).astype(np.float32)


def _shared_out(total: int | None, counts: Sequence[int]) -> np.ndarray:
    """Splits the tokens of a request among its texts, in proportion to the counts."""
    bounds = np.array([0, *accumulate(counts)], dtype=np.float64)
    if total is not None and bounds[-1]:
        bounds *= total / bounds[-1]
    return np.diff(np.rint(bounds)).astype(np.int32)
