"""Embeds with OpenAI, or with any server that has OpenAI's embeddings interface."""

import hashlib
import threading
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from resources.embedders.base import Embedder, EmbeddingBatch, Role
from resources.embedders.cosine import normalized
from resources.embedders.openai.requests import Requests, TooManyTextsError
from resources.embedders.openai.settings import OpenAISettings
from resources.embedders.openai.token_estimate import estimating_tokenizer
from resources.embedders.pricing import FREE, Price, price_of
from resources.errors import EmbeddingError, SettingsError
from resources.identity.embedding_space import EmbeddingSpace, canonical_json

_SHARE_OF_LIMIT = 0.05
"""Maximum share of the tokens per minute that one request takes: the budget is used evenly."""

_making = threading.Lock()


class OpenAIEmbedder(OpenAISettings, Embedder):
    """Sends each batch as one request, within the limits that all processes share.

    The key is read from the environment when the first request is sent, and is kept nowhere else.
    """

    rate_limits: str = Field(
        default="~/.cache/embedding-assets/rate_limits",
        description="Folder in which the processes of this machine share their limits, and what "
        "they learned of servers. The environment variable EMBEDDING_RATE_LIMITER, a Redis URL, "
        "shares the limits between machines.",
    )

    @property
    def space(self) -> EmbeddingSpace:
        return self._space

    @property
    def shorter_dimensions(self) -> Sequence[int]:
        return sorted({*self.matryoshka_dimensions}, reverse=True)

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

    @property
    def price(self) -> Price:
        return price_of(self.known_as) or FREE

    def new_tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self._tokenizer_json)

    def batches(self, texts: Sequence[str]) -> list[slice]:
        """Requests: within the provider's limits, and small enough for even use of the budget."""
        counts = [count for _, count, _ in self._fitted(texts, "document")]
        return self._packed(counts, slice(0, len(counts)))

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        fitted = self._fitted(texts, role)
        counts = [count for _, count, _ in fitted]
        vectors = np.zeros((len(texts), self.space.dimension), dtype=np.float32)
        tokens = np.zeros(len(texts), dtype=np.int32)
        dollars = 0.0
        given_up = self._requests.given_up  # the one of now, whichever later calls will have
        batches = self._packed(counts, slice(0, len(counts)))[::-1]
        while batches:
            batch = batches.pop()
            sent = [text for text, _, _ in fitted[batch]]
            try:
                found, cost = self._requests.send(sent, sum(counts[batch]), role, given_up)
            except TooManyTextsError as error:
                dollars += error.dollars
                batches += self._packed(counts, batch, error.most)[::-1]
                continue
            except EmbeddingError as error:
                error.dollars += dollars
                raise
            vectors[batch] = normalized(found.vectors)
            tokens[batch] = _shared_out(found.tokens, counts[batch])
            dollars += cost
        truncated = np.array([cut for _, _, cut in fitted], dtype=np.int32)
        return EmbeddingBatch(vectors, tokens, truncated, dollars)

    def give_up(self) -> None:
        self._requests.give_up()

    @property
    def kind(self) -> str:
        return "openai"

    def describe(self) -> str:
        limits = self._requests.known_limits
        return (
            f"{self.model} at {self.base_url}, up to {self.max_concurrency} requests at a time; "
            f"limits a minute: {limits.requests or 'unknown'} requests, "
            f"{limits.tokens or 'unknown'} tokens"
        )

    def statistics(self) -> dict[str, float]:
        """What was used since this resource was made, which in Dagster is a run.

        Returns:
            requests, retries, tokens, dollars; seconds_rate_limited (summed over threads);
            rate_limit_utilisation (share of the limit that all processes together used, as of the
            last request) and rate_limit_share (of the limits, that this machine took by itself:
            below 1 where EMBEDDING_RATE_LIMITER did not answer).
        """
        return self._requests.statistics()

    @property
    def _requests(self) -> Requests:
        with _making:
            return self._made

    @cached_property
    def _made(self) -> Requests:
        return Requests(self, Path(self.rate_limits).expanduser())

    @cached_property
    def _space(self) -> EmbeddingSpace:
        details: dict[str, Any] = {
            "prompts": {"document": self.document_prompt, "query": self.query_prompt},
            "tokenizer": hashlib.sha256(self._tokenizer_json.encode()).hexdigest(),
        }
        if self.answers_as:
            details["answers_as"] = self.answers_as
        if not self.is_openai:
            details["server"] = self.server_name or self.base_url
        return EmbeddingSpace(
            provider="openai" if self.is_openai else "openai-compatible",
            model=self.model,
            weights="",
            dimension=self.dimension,
            max_tokens=self.max_input_tokens,
            normalized=True,
            details=canonical_json(details),
        )

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

    def _packed(
        self, counts: Sequence[int], texts: slice, most_texts: int | None = None
    ) -> list[slice]:
        """Fewest requests of texts in a row."""
        most_texts = min(most_texts or self._requests.most_texts, self._requests.most_texts)
        most = self.max_request_tokens
        if limit := self._requests.known_limits.tokens:
            most = min(most, int(limit * _SHARE_OF_LIMIT))
        packed = []
        start, tokens = texts.start, 0
        for end in range(texts.start, texts.stop):
            if end > start and (tokens + counts[end] > most or end - start == most_texts):
                packed.append(slice(start, end))
                start, tokens = end, 0
            tokens += counts[end]
        if start < texts.stop:
            packed.append(slice(start, texts.stop))
        return packed


def _shared_out(total: int | None, counts: Sequence[int]) -> np.ndarray:
    """Splits the tokens of a request among its texts, in proportion to the counts."""
    bounds = np.array([0, *accumulate(counts)], dtype=np.float64)
    if total is not None and bounds[-1]:
        bounds *= total / bounds[-1]
    return np.diff(np.rint(bounds)).astype(np.int32)
