"""Rate limits of several machines, through one key in Redis and the clock of Redis."""

import json
import logging
import math
import threading
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from resources.limits.base import NO_LIMITS, VARIABLE, Answer, Limits, RateLimiter
from resources.limits.local import LONGEST_SLEEP, PACE, SLOTS, LocalRateLimiter
from resources.redis_client import (
    Seldom,
    ask_primary,
    client_of,
    forget_connections,
    is_redis_error,
    reason,
    shown,
)

_log = logging.getLogger(__name__)

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
    this machine grants its share of the limits by itself, until Redis is back. The processes of a
    machine wait for that window once, not each of them; and where no limit is known, nothing waits.
    The connection is the limiter's own. Redis should not evict its key: `maxmemory-policy
    noeviction`, or an instance of its own.
    """

    def __init__(
        self,
        url: str,
        key: str,
        fallback: Path,
        limits: Limits = NO_LIMITS,
        *,
        machines: int = 4,
        timeout: float = 0.3,
        window: float = 60.0,
        lease: float = 120.0,
    ) -> None:
        """Shares the limits with all machines that use the same key of the server.

        Args:
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
        self._client = client_of(VARIABLE, url, timeout)
        self._script = self._client.register_script(_LUA)
        self._shown = shown(url)
        self._seldom = Seldom()
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

    def _step(self, ask: dict[str, Any]) -> Answer:
        if time.monotonic() >= self._ask_again:
            try:
                return self._in_redis(ask)
            except Exception as error:
                if not is_redis_error(error):
                    raise
                self._is_away(ask, error)
        return self._alone(ask)

    def _in_redis(self, ask: dict[str, Any]) -> Answer:
        complete = self._complete(ask)
        complete |= {
            "known": self._known,
            "slots": SLOTS,
            "pace": PACE,
            "longest_sleep": LONGEST_SLEEP,
        }
        if self._time_away() >= self._window:
            # Redis does not know what this machine and others sent meanwhile.
            complete["pause"] = max(complete["pause"], self._window)
        arguments = {"keys": [self._key], "args": [json.dumps(complete)]}
        found = json.loads(
            ask_primary(
                self._client, lambda client: self._script(**arguments, client=client), self._moved
            )
        )
        with self._state_lock:
            was_away = self._away_since is not None
            self._known, self._away_since = True, None
            self._limits_seen = (found["limits"][0], found["limits"][1])
        if was_away:
            self._share._step({"outage": "over"})
            _log.info(f"{VARIABLE}: {self._shown} answers again; the limits are shared as before.")
        return Answer(found["wait"], tuple(found["used"]), self._limits_seen, found["paused"])

    def _alone(self, ask: dict[str, Any]) -> Answer:
        limits = self._learned(ask)
        share = [max(1, math.floor(limit / self._machines)) if limit else 0 for limit in limits]
        alone = {"limits": share, "learn": (0, 0), "remaining": (-1, -1)}
        return replace(self._share._step({**ask, **alone}), share=1 / self._machines)

    def _learned(self, ask: dict[str, Any]) -> tuple[float, float]:
        """The limits of all machines, as far as they are known here; 0 for none."""
        with self._state_lock:
            reported = ask.get("learn", (0, 0))
            own = (self._limits.requests or 0, self._limits.tokens or 0)
            limits = [
                min(filter(None, (mine, new or seen)), default=0)
                for seen, mine, new in zip(self._limits_seen, own, reported, strict=True)
            ]
            self._limits_seen = (limits[0], limits[1])
            return self._limits_seen

    def _is_away(self, ask: dict[str, Any], error: Exception) -> None:
        forget_connections(self._client)  # the name may lead to another server by now
        limited = any(self._learned(ask))
        with self._state_lock:
            now = time.monotonic()
            self._ask_again = now + min(1.0, self._window / 4)
            if self._away_since is None:
                self._away_since = now
                if limited:
                    # Who was never connected takes the word of this machine's other processes.
                    self._share._step(
                        {"pause": self._window} if self._known else {"outage": "goes on"}
                    )
        if self._seldom.due("away"):
            share = f"1/{self._machines} of the limits (machines={self._machines} in the URL)"
            _log.warning(
                f"{VARIABLE}: {self._shown} does not answer ({reason(error, self._client)}). "
                + (
                    f"Nothing is sent for up to {self._window:.0f} s, because what other machines "
                    f"send is not known; then this machine takes {share}"
                    if limited
                    else f"No limit is known, so nothing waits; of one that the provider tells "
                    f"this machine takes {share}"
                )
                + ", until the server answers: it is asked again each second."
            )

    def _moved(self) -> None:
        if self._seldom.due("moved"):
            _log.warning(
                f"{VARIABLE}: {self._shown} takes no writes any more, as after a failover. It is "
                "connected to anew."
            )

    def _time_away(self) -> float:
        """Seconds since Redis was first found away; 0 while it is there."""
        since = self._away_since
        return 0.0 if since is None else time.monotonic() - since
