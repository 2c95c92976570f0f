"""What is done about each failure: one table, for documents and for questions."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from resources.embedders.base import Role
from resources.embedders.openai.failures import Cause, Failure
from resources.embedders.openai.settings import OpenAISettings
from resources.errors import (
    CredentialsError,
    EmbedderUnavailableError,
    EmbeddingError,
    ModelError,
    SettingsError,
    TextError,
)

_LONGEST_DELAY = 30.0
"""Seconds; of the exponential backoff."""

_TRIES_ALONE = 3
"""How often a single text is sent before it is doubted."""

Action = Literal["stop", "again", "wait", "pause", "ask harmless", "split", "shrink", "leave out"]
"""What to do next.

"again", "wait" and "pause" send the same once more: at once, after a while, or after a while in
which nobody sends anything. "ask harmless" sends a text that every server can embed, and nothing
else until it is answered; then the same once more, and if it fails as before, it is at fault.
"split": one of the texts is. "shrink": they are too many, and so are others. "leave out": the
parameter that the server does not know.
"""


@dataclass(frozen=True)
class Rule:
    """What is done about failures of one cause.

    Attributes:
        error: that is raised when no hope is left.
        documents: how often in a row documents are sent before `then` is done.
        then: what is done then.
        questions: how often a question is sent. It waits for nobody, but for a second or two.
        between: what is done until then.
    """

    error: type[EmbeddingError]
    documents: int
    then: Action
    questions: int = 1
    between: Literal["wait", "pause"] = "wait"


_FOR_EVER = 1_000_000  # until `max_wait` is over

RULES: Mapping[Cause, Rule] = {
    "key": Rule(CredentialsError, 1, "stop"),
    "quota": Rule(EmbedderUnavailableError, 1, "stop"),
    "model": Rule(ModelError, 1, "stop"),
    "address": Rule(SettingsError, 1, "stop"),
    "setting": Rule(SettingsError, 1, "stop"),
    "parameter": Rule(SettingsError, 1, "leave out"),
    "batch": Rule(TextError, 1, "shrink"),
    "text": Rule(TextError, 1, "split"),
    "vectors": Rule(TextError, 3, "split", questions=3),
    "limit": Rule(EmbedderUnavailableError, _FOR_EVER, "stop", questions=3, between="pause"),
    # A server may fail because of a text, or because it is ill: a harmless text tells.
    "fault": Rule(EmbedderUnavailableError, 3, "ask harmless", questions=3),
    "overload": Rule(EmbedderUnavailableError, 6, "ask harmless", questions=3),
    "connection": Rule(EmbedderUnavailableError, 6, "ask harmless", questions=3),
    "time-out": Rule(EmbedderUnavailableError, 1, "ask harmless"),
}

_MAY_BE_THE_PROXY = ("address", "fault", "overload", "connection", "time-out")


@dataclass(frozen=True)
class Next:
    """What to do now.

    Attributes:
        action: what.
        failure: about which.
        delay: seconds to wait before.
        ended: it was given up because the time is over.
    """

    action: Action
    failure: Failure
    delay: float = 0.0
    ended: bool = False


class Patience:
    """Of one request: counts its failures, and says after each what to do."""

    def __init__(
        self, settings: OpenAISettings, role: Role, texts: int, *, warm: bool, suspect: bool
    ) -> None:
        """Begins with a request of so many texts.

        Args:
            settings: of the waiting.
            role: a question waits only for seconds.
            texts: how many.
            warm: the server has answered before: it is not loading its model just now.
            suspect: they are part of a request in which one was at fault.
        """
        self._settings = settings
        self.is_question = role == "query"
        self._texts = texts
        self._warm, self._suspect = warm, suspect
        self._failures = self._in_a_row = 0
        self._blamed: Failure | None = None
        self._began = time.monotonic()
        self._first_failure: float | None = None
        self._well = self._crowded = False
        self.asks_harmless = False
        """Whether the next request is the harmless text."""

    @property
    def most(self) -> float:
        """Seconds that are waited in all."""
        return self._settings.query_max_wait if self.is_question else self._settings.max_wait

    @property
    def timeout(self) -> float:
        """Seconds for the next request."""
        if not self.is_question:
            return self._settings.timeout
        return min(self._settings.timeout, max(0.1, self._end - time.monotonic()))

    @property
    def queue_timeout(self) -> float | None:
        """Seconds to wait until a request may be sent; None: however long it takes."""
        return max(0.1, self._end - time.monotonic()) if self.is_question else None

    @property
    def _end(self) -> float:
        """The moment when it is given up."""
        began = self._began if self.is_question else self._first_failure
        return (began or time.monotonic()) + self.most

    def after_failure(self, failure: Failure, *, crowded: bool = False) -> Next:
        """What to do about a failure of the texts, or of the harmless one.

        Args:
            failure: what went wrong.
            crowded: other requests were in flight at the same time.
        """
        rule = RULES[failure.cause]
        self._failures += 1
        self._first_failure = self._first_failure or time.monotonic()
        if self.asks_harmless:
            transient = rule.then == "ask harmless" or rule.between == "pause"
            return self._later(failure, rule) if transient else Next("stop", failure)
        same = self._blamed is not None and self._blamed.cause == failure.cause
        self._crowded = crowded and failure.cause == "time-out"
        if not self._crowded:
            self._in_a_row = self._in_a_row + 1 if same else 1
            if same and self._well:
                return self._verdict(failure)
        self._blamed, self._well = failure, False
        if self._in_a_row < self._tries(rule) and not self._crowded:
            return self._later(failure, rule)
        if rule.then != "ask harmless":
            return Next(self._fitting(rule.then), failure)
        if self.is_question:
            return Next("stop", failure)
        if self._suspect and self._texts > 1:
            return Next("split", failure)
        self.asks_harmless = True
        return self._later(failure, rule, 0.0)

    def after_harmless(self) -> Next:
        """What to do now that the harmless text was answered."""
        assert self._blamed is not None
        self.asks_harmless = False
        if self._crowded:  # with fewer at a time it may be in time
            return Next("again", self._blamed)
        self._well = True
        if self._blamed.cause == "time-out" and self._warm:  # once more would take as long
            return self._verdict(self._blamed)
        return Next("again", self._blamed)

    def error(self, step: Next, key_variable: str | None, proxy: str | None) -> EmbeddingError:
        """Says that no hope is left, why, and what to do.

        Args:
            step: the last one.
            key_variable: the environment variable that holds the key, where there is one.
            proxy: through which the requests went.
        """
        failure, settings = step.failure, self._settings
        kind = RULES[failure.cause].error
        setting = "query_max_wait" if self.is_question else "max_wait"
        later = "Ask again" if self.is_question else "What is embedded is kept: run again"
        reason, advice = failure.reason, ""
        if proxy and failure.cause in _MAY_BE_THE_PROXY:
            reason += f", through the proxy {proxy} that the environment names"
        if step.ended and (failure.seconds or 0.0) >= settings.retry_delay:
            advice = (
                f". It asks to wait {step.delay:,.0f} s, longer than {setting} ({self.most:,.0f} "
                f"s) allows. {later} later"
            )
        elif step.ended:
            advice = (
                f". Given up after {setting} ({self.most:,.0f} s). {later} when the server is well"
            )
        elif kind is CredentialsError and key_variable:
            advice = f". Is the environment variable {key_variable} right?"
        elif kind is CredentialsError:
            advice = ". Name the environment variable that holds the key in api_key_env"
        elif failure.cause == "address":
            advice = ". Is base_url right? It has the path up to /embeddings, often /v1"
        elif kind is EmbedderUnavailableError and failure.cause != "quota":
            advice = f". {later} when the server is well"
        return kind(f"{settings.base_url}: {reason}{advice}.")

    def nobody_waits_longer(self) -> EmbeddingError:
        """It was given up before it was sent."""
        reason = "was given up"
        if self.is_question:
            reason = (
                "others use up what its rate limit allows, or it asked for a pause; a question "
                f"waits {self.most:g} s at most (query_max_wait). Ask again later"
            )
        return EmbedderUnavailableError(f"{self._settings.base_url}: {reason}.")

    def _verdict(self, failure: Failure) -> Next:
        many = failure.cause == "time-out" and self._texts > 1
        return Next("shrink" if many else "split", failure)

    def _fitting(self, action: Action) -> Action:
        if action == "shrink" and self._texts == 1:
            return "split"
        if action == "split" and self.is_question and self._texts > 1:
            return "shrink"  # who asks cannot do without one of them
        return action

    def _tries(self, rule: Rule) -> int:
        if self.is_question:
            return rule.questions
        if self._suspect:
            return 1
        # One text that takes long is not sent in parts.
        alone = rule.then == "ask harmless" and self._texts == 1
        return max(rule.documents, _TRIES_ALONE) if alone else rule.documents

    def _later(self, failure: Failure, rule: Rule, delay: float | None = None) -> Next:
        if delay is None:
            delay = self._delay(failure)
        if time.monotonic() + delay > self._end:
            return Next("stop", failure, delay, ended=True)
        return Next(rule.between, failure, delay)

    def _delay(self, failure: Failure) -> float:
        """Seconds until the next attempt."""
        shortest = self._settings.retry_delay
        # Full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter", 2015.
        longest = min(_LONGEST_DELAY, shortest * 2 ** (self._failures - 1))
        delay = failure.seconds
        # Overloaded servers say "at once" again and again, or when a limit resets that is not
        # spent.
        if delay is None or (self._failures > 1 and delay < shortest):
            delay = max(delay or 0.0, random.uniform(0, longest))
        return delay
