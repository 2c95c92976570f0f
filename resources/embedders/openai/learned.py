"""What was learned of a server, remembered across calls and runs: how it wants to be asked."""

import json
import logging
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

_log = logging.getLogger(__name__)

_REMEMBERED = 86_400.0
"""Seconds: then the server may have become better, and is asked anew."""


@dataclass(frozen=True)
class Form:
    """Which parameters a request has.

    Attributes:
        encoding: of the vectors; None: it is not said.
        dimensions: whether their length is said.
    """

    encoding: Literal["base64", "float"] | None = "base64"
    dimensions: bool = True

    def without(self, parameter: str | None) -> "Form | None":
        """The next form to try when the server refuses a parameter; None if there is none."""
        if parameter == "dimensions" and self.dimensions:
            return replace(self, dimensions=False)
        if parameter == "encoding_format" and self.encoding:
            return replace(self, encoding="float" if self.encoding == "base64" else None)
        return None


@dataclass(frozen=True)
class Learned:
    """What is known of a server.

    Attributes:
        most_texts: that it takes in a request; None where no limit is known.
        most_requests: that it answers in time when they are in flight together; None as above.
        form: that it takes.
        since: when it was learned, in seconds of the epoch.
    """

    most_texts: int | None = None
    most_requests: int | None = None
    form: Form = field(default_factory=Form)
    since: float = 0.0


class Memory:
    """Keeps what is known in a small file, which all processes of this machine share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: Learned | None = None

    @property
    def known(self) -> Learned:
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return self._known

    def takes_no_more_than(self, texts: int) -> None:
        """A request of more texts is refused, or is not answered in time."""
        known = self.known.most_texts
        if known is None or texts < known:
            self._remember(most_texts=texts, most_requests=None)
            _log.warning("From now on at most %d texts are sent in a request", texts)

    def answers_no_more_than(self, requests: int) -> None:
        """More requests at a time are not answered in time."""
        if self.known.most_requests != requests:
            self._remember(most_requests=requests)
            _log.warning("From now on at most %d requests are sent at a time", requests)

    def takes(self, form: Form) -> None:
        """A request of this form was answered."""
        if form != self.known.form:
            self._remember(form=form)

    def _read(self) -> Learned:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            known = Learned(**{**content, "form": Form(**content["form"])})
            if 0 <= time.time() - known.since < _REMEMBERED:
                return known
        except (OSError, ValueError, TypeError, KeyError):  # none yet, or of another version
            pass
        return Learned()

    def _remember(self, **changes: Any) -> None:
        with self._lock:
            others = self._read()  # what another process has learned meanwhile
            known = others if others.since else self._known or others
            learned = self._known = replace(known, since=time.time(), **changes)
        beside = self._path.with_suffix(f".{uuid4().hex}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(asdict(learned)), encoding="utf-8")
            beside.replace(self._path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            _log.warning("What was learned of the server is not kept: %s", error)
