"""One budget of requests and tokens per minute for every process that uses the same key.

A request is granted if it, all requests in flight, and all that ended within the last window fit
the limit. One that reaches the server within some window was in flight at its beginning, or was
granted later: so no window at the server holds more than the limit, whatever the network's delay,
as long as no request takes more tokens than were asked for. What it did not take is free again as
soon as it ends. Ends are counted in slots of 1/100 window, so 97 to 99 % of a limit can be used.

Providers may enforce a limit over shorter times than they say. So no tenth of a window takes more
than 15 % of it, but for a single request larger than that.
"""

import json
import math
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

VARIABLE = "EMBEDDING_RATE_LIMITER"
SLOTS = 100
PACE = 0.15
"""Most of a limit that is granted within a tenth of its window."""
_LONGEST_SLEEP = 0.05
"""Seconds between two looks at a spent budget: another process may end a request at any time."""


class LimitError(ValueError):
    """A single request exceeds the limit, so that no waiting helps."""


class GivenUpError(RuntimeError):
    """Who waited was told to wait no more."""


@dataclass(frozen=True)
class Limits:
    """What a provider allows, per window; None where it is unknown or unlimited."""

    requests: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Told:
    """What a provider's answer says about its limits.

    Attributes:
        limits: its limits.
        remaining: how much of them it counts as left.
    """

    limits: Limits = Limits()
    remaining: Limits = Limits()


@dataclass(frozen=True)
class Grant:
    """Leave to send one request; to be settled when the request has ended, however it ended."""

    id: str
    tokens: int


@dataclass(frozen=True)
class Usage:
    """What one limiter granted in this process, and what all together used.

    Attributes:
        requests: granted to this process.
        tokens: taken by this process.
        seconds_waited: summed over its threads, for the budget or for a pause.
        limits: in force.
        utilisation: the share of the limit, of requests or of tokens, whichever is larger, that
            all processes together used in the window before the last grant.
    """

    requests: int = 0
    tokens: int = 0
    seconds_waited: float = 0.0
    limits: Limits = Limits()
    utilisation: float = 0.0


@dataclass(frozen=True)
class _Answer:
    """Attributes:
    wait: 0 if granted, -1 if it never can be, else seconds after which to ask again.
    used: requests and tokens, in flight and in the last window.
    limits: in force for requests and tokens; 0 for none.
    paused: seconds for which nothing is sent.
    """

    wait: float
    used: tuple[float, float]
    limits: tuple[float, float]
    paused: float = 0.0


def _limits(answer: _Answer) -> Limits:
    return Limits(*(int(limit) or None for limit in answer.limits))


class RateLimiter(ABC):
    """May be used from several threads."""

    def __init__(
        self, limits: Limits = Limits(), *, window: float = 60.0, lease: float = 120.0
    ) -> None:
        """Args:
        limits: of this key; those that the provider tells hold too, the lower ones win.
        window: seconds for which the limits are meant.
        lease: seconds after which a request counts as ended that a killed process did not settle.
        """
        if window <= 0 or lease <= 0:
            raise ValueError(f"window and lease must be positive, got {window} and {lease} s")
        self._limits = limits
        self._window = window
        self._lease = lease
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._usage = Usage()

    @abstractmethod
    def _step(self, ask: dict[str, Any]) -> _Answer:
        """Does what is asked, as one atomic step for all processes."""

    def acquire(self, tokens: int, given_up: threading.Event | None = None) -> Grant:
        """Waits until one request of so many tokens is within the limits.

        Args:
            tokens: an upper bound of what the request will take.
            given_up: ends the waiting.

        Raises:
            LimitError: the limit is lower than this one request.
            GivenUpError: `given_up` was set.
        """
        given_up = given_up or threading.Event()
        grant = Grant(uuid4().hex, tokens)
        began = time.monotonic()
        # The threads of a process wait in turn, so that only one of them asks again and again.
        with self._turn:
            while True:
                if given_up.is_set():
                    raise GivenUpError
                answer = self._step({"acquire": [grant.id, tokens]})
                if answer.wait == 0:
                    break
                if answer.wait < 0:
                    raise LimitError(
                        f"one request takes up to {tokens:,} tokens, but the limit is "
                        f"{answer.limits[0]:,.0f} requests and {answer.limits[1]:,.0f} tokens "
                        "per minute"
                    )
                given_up.wait(min(answer.wait, 1.0))
        with self._guard:
            used = [u / limit for u, limit in zip(answer.used, answer.limits, strict=True) if limit]
            self._usage = Usage(
                self._usage.requests + 1,
                self._usage.tokens,
                self._usage.seconds_waited + time.monotonic() - began,
                _limits(answer),
                max(used, default=0.0),
            )
        return grant

    def settle(self, grant: Grant, tokens: int, told: Told = Told()) -> None:
        """Says that a granted request has ended.

        Args:
            grant: from `acquire`.
            tokens: what it took.
            told: what the answer said about limits.
        """
        limits, remaining = told.limits, told.remaining
        answer = self._step(
            {
                "settle": [grant.id, tokens],
                "learn": [limits.requests or 0, limits.tokens or 0],
                "remaining": [
                    -1 if left is None else left for left in (remaining.requests, remaining.tokens)
                ],
            }
        )
        with self._guard:
            self._usage = replace(
                self._usage, tokens=self._usage.tokens + tokens, limits=_limits(answer)
            )

    def pause(self, seconds: float) -> None:
        """No process sends anything for so long."""
        self._step({"pause": seconds})

    @property
    def limits(self) -> Limits:
        """The limits in force now, learned ones included."""
        return _limits(self._step({}))

    @property
    def paused(self) -> float:
        """Seconds for which no process sends anything."""
        return self._step({}).paused

    def usage(self) -> Usage:
        """Costs nothing: it is what the last grant or its end showed."""
        with self._guard:
            return self._usage

    def _complete(self, ask: dict[str, Any]) -> dict[str, Any]:
        nothing = {"acquire": None, "settle": None, "pause": 0, "learn": [0, 0]}
        return {
            **nothing,
            "remaining": [-1, -1],
            "limits": [self._limits.requests or 0, self._limits.tokens or 0],
            "window": self._window,
            "lease": self._lease,
            "jitter": random.random(),
            **ask,
        }


class LocalRateLimiter(RateLimiter):
    """Every process of this machine, through one small file under a lock; no server."""

    def __init__(
        self,
        path: Path,
        limits: Limits = Limits(),
        *,
        window: float = 60.0,
        lease: float = 120.0,
    ) -> None:
        """Args:
        path: the file; its folder is made. All processes with the same key name the same one.
        limits: see `RateLimiter`.
        window: see `RateLimiter`.
        lease: see `RateLimiter`.
        """
        super().__init__(limits, window=window, lease=lease)
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def _step(self, ask: dict[str, Any]) -> _Answer:
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
    """What is known of a budget. `_LUA` is the same in Redis: change both.

    Attributes:
        slots: requests and tokens that ended, by number of the slot of time.
        leases: end of the lease, and tokens, of each request in flight.
        learned: limits that the provider told.
        paused: until when nothing is sent.
    """

    slots: dict[str, list[float]] = field(default_factory=dict)
    leases: dict[str, list[float]] = field(default_factory=dict)
    learned: list[float] = field(default_factory=lambda: [0, 0])
    paused: float = 0.0
    seen: float = 0.0

    @classmethod
    def parse(cls, content: bytes, now: float, window: float) -> "_State":
        """What is of before the last boot is taken as a budget just spent."""
        state = cls(**json.loads(content)) if content.strip() else cls()
        return state if state.seen <= now else cls(learned=state.learned, paused=now + window)

    def serialize(self) -> bytes:
        return json.dumps(vars(self), separators=(",", ":")).encode()

    def step(self, now: float, ask: dict[str, Any]) -> _Answer:
        slot = ask["window"] / SLOTS
        current = math.floor(now / slot)
        self.seen = now
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
            if any(limits[i] and wanted[i] > limits[i] for i in (0, 1)):
                wait = -1.0
            elif self.paused > now:
                wait = self.paused - now
            elif any(
                limits[i]
                and (
                    window[i] + wanted[i] > limits[i]
                    or (tenth[i] > 0 and tenth[i] + wanted[i] > PACE * limits[i])
                )
                for i in (0, 1)
            ):
                wait = min(slot, _LONGEST_SLEEP) * (0.5 + ask["jitter"])
            else:
                self.leases[ask["acquire"][0]] = [now + ask["lease"], wanted[1]]
                window = [window[i] + wanted[i] for i in (0, 1)]
        paused = max(0.0, self.paused - now)
        return _Answer(wait, (window[0], window[1]), (limits[0], limits[1]), paused)


# The same as `_State.step`, over the server's own clock, in one atomic step.
_LUA = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local ask = cjson.decode(ARGV[1])
local content = redis.call('GET', KEYS[1])
local state = content and cjson.decode(content)
  or {slots = {}, leases = {}, learned = {0, 0}, paused = 0}
local slot = ask.window / ask.slots
local current = math.floor(now / slot)
if not content and ask.known then state.paused = now + ask.window end
if (state.seen or 0) > now + slot then
  -- The clock was set back.
  state = {slots = {}, leases = {}, learned = state.learned, paused = now + ask.window}
end
state.seen = now

local function ended(requests, tokens)
  local key = string.format('%.0f', current)
  local entry = state.slots[key] or {0, 0}
  state.slots[key] = {entry[1] + requests, entry[2] + tokens}
end

for key in pairs(state.slots) do
  if tonumber(key) < current - ask.slots then state.slots[key] = nil end
end
if ask.acquire ~= cjson.null then state.leases[ask.acquire[1]] = nil end
for key, lease in pairs(state.leases) do
  if lease[1] <= now then
    ended(1, lease[2])
    state.leases[key] = nil
  end
end
if ask.settle ~= cjson.null and state.leases[ask.settle[1]] then
  state.leases[ask.settle[1]] = nil
  ended(1, ask.settle[2])
end
local limits = {}
for i = 1, 2 do
  if ask.learn[i] > 0 then state.learned[i] = ask.learn[i] end
  local a, b = ask.limits[i], state.learned[i]
  limits[i] = (a > 0 and b > 0) and math.min(a, b) or math.max(a, b)
end
state.paused = math.max(state.paused, now + ask.pause)

local window, tenth = {0, 0}, {0, 0}
for _, lease in pairs(state.leases) do
  window[1], window[2] = window[1] + 1, window[2] + lease[2]
end
tenth = {window[1], window[2]}
for key, entry in pairs(state.slots) do
  for i = 1, 2 do
    window[i] = window[i] + entry[i]
    if tonumber(key) >= current - math.floor(ask.slots / 10) then tenth[i] = tenth[i] + entry[i] end
  end
end
for i = 1, 2 do
  if limits[i] > 0 and ask.remaining[i] >= 0 then
    local foreign = math.max(0, limits[i] - ask.remaining[i] - window[i])
    if i == 1 then ended(foreign, 0) else ended(0, foreign) end
    window[i], tenth[i] = window[i] + foreign, tenth[i] + foreign
  end
end
local wait = 0
if ask.acquire ~= cjson.null then
  local wanted = {1, ask.acquire[2]}
  for i = 1, 2 do
    if limits[i] > 0 then
      if wanted[i] > limits[i] then wait = -1 end
      if wait == 0 and (window[i] + wanted[i] > limits[i]
          or (tenth[i] > 0 and tenth[i] + wanted[i] > ask.pace * limits[i])) then
        wait = math.min(slot, ask.longest_sleep) * (0.5 + ask.jitter)
      end
    end
  end
  if wait >= 0 and state.paused > now then wait = state.paused - now end
  if wait == 0 then
    state.leases[ask.acquire[1]] = {now + ask.lease, wanted[2]}
    window = {window[1] + 1, window[2] + wanted[2]}
  end
end
redis.call('SET', KEYS[1], cjson.encode(state), 'PX',
  math.ceil(1000 * (2 * ask.window + ask.lease + math.max(0, state.paused - now))))
return cjson.encode({wait = wait, used = window, limits = limits,
  paused = math.max(0, state.paused - now)})
"""


class RedisRateLimiter(RateLimiter):
    """Every machine, through one key in Redis and the clock of Redis.

    While Redis is away nothing is granted for one window, for what the others sent is unknown; then
    this machine grants its share of the limits by itself, until Redis is back. The connection is
    the limiter's own. Redis should not evict its key: `maxmemory-policy noeviction`, or an instance
    of its own.
    """

    def __init__(
        self,
        url: str,
        key: str,
        fallback: Path,
        limits: Limits = Limits(),
        *,
        machines: int = 4,
        timeout: float = 0.3,
        window: float = 60.0,
        lease: float = 120.0,
    ) -> None:
        """Args:
        url: redis://host:6379/0, rediss://… or unix://…
        key: of the budget in Redis.
        fallback: file of the machine's share, see `LocalRateLimiter`.
        limits: see `RateLimiter`.
        machines: by how many the limits are divided while Redis is away.
        timeout: seconds for one command.
        window: see `RateLimiter`.
        lease: see `RateLimiter`.
        """
        super().__init__(limits, window=window, lease=lease)
        if machines < 1:
            raise ValueError(f"machines must be at least 1, got {machines}")
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # By default the client tries again for up to a minute, and so applies a step several times.
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        try:
            client = Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        except ValueError:
            client = None
        if client is None:  # outside of `except`: the error may hold the password
            raise ValueError(
                f"{VARIABLE} must be a URL such as redis://host:6379/0, rediss://… or unix://…"
            )
        self._script = client.register_script(_LUA)
        self._key = key
        self._machines = machines
        self._fallback_path = fallback
        self._state_lock = threading.Lock()
        self._known = False
        self._away_since: float | None = None
        self._ask_again = 0.0
        self._limits_seen = (0.0, 0.0)

    @cached_property
    def _share(self) -> LocalRateLimiter:
        return LocalRateLimiter(self._fallback_path, window=self._window, lease=self._lease)

    def _step(self, ask: dict[str, Any]) -> _Answer:
        if time.monotonic() >= self._ask_again:
            try:
                return self._in_redis(ask)
            except Exception as error:
                if not _is_redis_error(error):
                    raise
            with self._state_lock:
                now = time.monotonic()
                if self._away_since is None:
                    self._away_since = now
                self._ask_again = now + min(1.0, self._window / 4)
        return self._alone(ask)

    def _in_redis(self, ask: dict[str, Any]) -> _Answer:
        complete = self._complete(ask)
        complete |= {
            "known": self._known,
            "slots": SLOTS,
            "pace": PACE,
            "longest_sleep": _LONGEST_SLEEP,
        }
        if self._time_away() >= self._window:
            # Redis does not know what this machine and others sent meanwhile.
            complete["pause"] = max(complete["pause"], self._window)
        found = json.loads(self._script(keys=[self._key], args=[json.dumps(complete)]))
        with self._state_lock:
            self._known, self._away_since = True, None
            self._limits_seen = (found["limits"][0], found["limits"][1])
        return _Answer(found["wait"], tuple(found["used"]), self._limits_seen, found["paused"])

    def _alone(self, ask: dict[str, Any]) -> _Answer:
        with self._state_lock:
            told = ask.get("learn", (0, 0))
            own = (self._limits.requests or 0, self._limits.tokens or 0)
            limits = [
                min(filter(None, (mine, new or seen)), default=0)
                for seen, mine, new in zip(self._limits_seen, own, told, strict=True)
            ]
            self._limits_seen = (limits[0], limits[1])
        share = [max(1, math.floor(limit / self._machines)) if limit else 0 for limit in limits]
        if ask.get("acquire") and self._time_away() < self._window:
            return _Answer(_LONGEST_SLEEP, (0, 0), (limits[0], limits[1]))
        return self._share._step({**ask, "limits": share, "learn": (0, 0), "remaining": (-1, -1)})

    def _time_away(self) -> float:
        """Seconds since Redis was first found away; 0 while it is there."""
        since = self._away_since
        return 0.0 if since is None else time.monotonic() - since


def _is_redis_error(error: Exception) -> bool:
    from redis.exceptions import RedisError

    # ValueError: the answer is no JSON.
    return isinstance(error, RedisError | OSError | ValueError)


def rate_limiter(
    identity: str, folder: Path, limits: Limits, *, window: float, lease: float
) -> RateLimiter:
    """The limiter that the environment asks for.

    Args:
        identity: the same for all who share a limit, such as a hash of server, model and key.
        folder: where the processes of this machine share it.
        limits: see `RateLimiter`.
        window: see `RateLimiter`.
        lease: see `RateLimiter`.

    Environment:
        EMBEDDING_RATE_LIMITER: redis://…, rediss://… or unix://…; `machines=N` in its query says
            by how many machines the limits are divided while Redis is away (4).
    """
    path = folder / f"{identity}.json"
    url = os.environ.get(VARIABLE)
    if not url:
        return LocalRateLimiter(path, limits, window=window, lease=lease)
    address, _, query = url.partition("?")
    options = dict(parse_qsl(query))
    machines = options.pop("machines", "4")
    if not machines.isdigit() or int(machines) < 1:
        raise ValueError(f"{VARIABLE}: machines must be a number from 1, got {machines!r}")
    return RedisRateLimiter(
        address + (f"?{urlencode(options)}" if options else ""),
        f"embedding-assets:rate-limit:{identity}",
        folder / f"{identity}.share.json",
        limits,
        machines=int(machines),
        window=window,
        lease=lease,
    )
