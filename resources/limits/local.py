"""Rate limits of one machine: all its processes share a small file."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resources.limits.base import NO_LIMITS, Answer, Limits, RateLimiter

SLOTS = 100
PACE = 0.15
"""Maximum share of a limit that is granted within a tenth of its window."""
LONGEST_SLEEP = 0.05
"""Seconds between two looks at a spent budget: another process may end a request at any time."""


class LocalRateLimiter(RateLimiter):
    """Every process of this machine, through one small file under a lock; no server."""

    def __init__(
        self,
        path: Path,
        limits: Limits = NO_LIMITS,
        *,
        window: float = 60.0,
        lease: float = 120.0,
    ) -> None:
        """Shares the limits with all processes that use the same file.

        Args:
            path: the file; its folder is made. All processes with the same key name the same one.
            limits: see `RateLimiter`.
            window: see `RateLimiter`.
            lease: see `RateLimiter`.
        """
        super().__init__(limits, window=window, lease=lease)
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def _step(self, ask: dict[str, Any]) -> Answer:
        with self._file() as descriptor:
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            # The same for all processes, and it never jumps; at a boot it starts again.
            now = time.monotonic()
            complete = self._complete(ask)
            try:
                state = _State.parse(content, now, self._window)
                answer = state.step(now, complete)
            except (AttributeError, IndexError, TypeError, ValueError):  # not written by us
                state = _State(paused=now + self._window)
                answer = state.step(now, complete)
            # One write, never shorter than the last: a killed process leaves the old or the new.
            os.pwrite(descriptor, state.serialize().ljust(len(content)), 0)
        return answer

    @contextmanager
    def _file(self) -> Iterator[int]:
        import fcntl

        # Opened each time: a lock belongs to an opening, and a forked child would share it.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


@dataclass
class _State:
    """What is known of a budget. `_LUA` is the same in Redis; a test asks both the same.

    Attributes:
        slots: requests and tokens that ended, by number of the slot of time.
        leases: end of the lease, and tokens, of each request in flight.
        learned: limits that the provider told.
        paused: until when nothing is sent.
        seen: time of the last step.
    """

    slots: dict[str, list[float]] = field(default_factory=dict)
    leases: dict[str, list[float]] = field(default_factory=dict)
    learned: list[float] = field(default_factory=lambda: [0, 0])
    paused: float = 0.0
    seen: float = -math.inf

    @classmethod
    def parse(cls, content: bytes, now: float, window: float) -> "_State":
        """What is of before the last boot is taken as a budget just spent."""
        state = cls(**json.loads(content)) if content.strip() else cls()
        return state if state.seen <= now else cls(learned=state.learned, paused=now + window)

    def serialize(self) -> bytes:
        return json.dumps(vars(self), separators=(",", ":")).encode()

    def step(self, now: float, ask: dict[str, Any]) -> Answer:
        slot = ask["window"] / SLOTS
        current = math.floor(now / slot)
        if ask["outage"] == "goes on" and now - self.seen > ask["window"]:
            # Nobody of this machine knew of it.
            self.paused = max(self.paused, now + ask["window"])
        self.seen = -math.inf if ask["outage"] == "over" else now
        self.slots = {k: v for k, v in self.slots.items() if int(k) >= current - SLOTS}

        def ended(requests: float, tokens: float) -> None:
            entry = self.slots.setdefault(str(current), [0, 0])
            entry[0] += requests
            entry[1] += tokens

        if ask["acquire"]:
            # Asked again: the answer was lost on its way.
            self.leases.pop(ask["acquire"][0], None)
        for key, (end, tokens) in list(self.leases.items()):
            if end <= now:
                ended(1, tokens)
                del self.leases[key]
        if ask["settle"] and self.leases.pop(ask["settle"][0], None):
            ended(1, ask["settle"][1])
        self.learned = [new or old for new, old in zip(ask["learn"], self.learned, strict=True)]
        self.paused = max(self.paused, now + ask["pause"])
        limits = [
            min(a, b) if a and b else a or b
            for a, b in zip(ask["limits"], self.learned, strict=True)
        ]

        in_flight = [float(len(self.leases)), sum(tokens for _, tokens in self.leases.values())]

        def used(since: int) -> list[float]:
            kept = [entry for key, entry in self.slots.items() if int(key) >= since]
            return [in_flight[i] + sum(entry[i] for entry in kept) for i in (0, 1)]

        window, tenth = used(current - SLOTS), used(current - SLOTS // 10)
        for i in (0, 1):
            # Somebody who does not ask us uses the key too.
            if limits[i] and ask["remaining"][i] >= 0:
                foreign = max(0, limits[i] - ask["remaining"][i] - window[i])
                ended(*((foreign, 0) if i == 0 else (0, foreign)))
                window[i] += foreign
                tenth[i] += foreign
        wait = 0.0
        if ask["acquire"]:
            wanted = [1, ask["acquire"][1]]
            wait = self._wait(now, wanted, limits, window, tenth)
            if wait is None:
                wait = min(slot, LONGEST_SLEEP) * (0.5 + ask["jitter"])
            elif wait == 0:
                self.leases[ask["acquire"][0]] = [now + ask["lease"], wanted[1]]
                window = [window[i] + wanted[i] for i in (0, 1)]
        paused = max(0.0, self.paused - now)
        return Answer(wait, (window[0], window[1]), (limits[0], limits[1]), paused)

    def _wait(
        self,
        now: float,
        wanted: list[float],
        limits: list[float],
        window: list[float],
        tenth: list[float],
    ) -> float | None:
        """0 to grant, -1 if it never can be, else seconds; None: until some request has ended."""
        if any(limits[i] and wanted[i] > limits[i] for i in (0, 1)):
            return -1.0
        if self.paused > now:
            return self.paused - now
        spent = any(
            limits[i]
            and (
                window[i] + wanted[i] > limits[i]
                or (tenth[i] > 0 and tenth[i] + wanted[i] > PACE * limits[i])
            )
            for i in (0, 1)
        )
        return None if spent else 0.0
