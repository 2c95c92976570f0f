"""Quotas of clients over all replicas of a service, by the clock of Redis."""

import hashlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from resources.limits.base import VARIABLE
from resources.limits.quota import (
    SLOTS,
    UNLIMITED,
    Cost,
    MemoryQuotas,
    Quota,
    Quotas,
    Verdict,
    verdict,
)
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

_SECONDS_BETWEEN_TRIES = 1.0
_PLAIN_CLIENT = re.compile(r"[A-Za-z0-9_-]{1,64}")

# The same as `MemoryQuotas.take`, over the server's own clock in microseconds: numbers of Lua hold
# them exactly. A refusal writes nothing.
_LUA = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local slot, slots = tonumber(ARGV[1]), tonumber(ARGV[2])
local limits, wanted = {}, {}
for i = 1, 3 do limits[i], wanted[i] = tonumber(ARGV[2 + i]), tonumber(ARGV[5 + i]) end
local current = math.floor(now / slot)
local content = redis.call('GET', KEYS[1])
local changed, kept, used = false, {}, {0, 0, 0}

local function add(number, amounts)
  local last = kept[#kept]
  if not last or last[1] ~= number then
    last = {number, 0, 0, 0}
    kept[#kept + 1] = last
  end
  for i = 1, 3 do
    last[i + 1] = last[i + 1] + amounts[i]
    used[i] = used[i] + amounts[i]
  end
end

for _, entry in ipairs(content and cmsgpack.unpack(content) or {}) do
  local number = entry[1]
  if number > current then  -- the clock was set back
    number, changed = current, true
  end
  if number >= current - slots then add(number, {entry[2], entry[3], entry[4]}) end
end
local before = {used[1], used[2], used[3]}
local wait, allowed = {0, 0, 0}, true
for i = 1, 3 do
  local excess = used[i] + wanted[i] - limits[i]
  if limits[i] >= 0 and wanted[i] > 0 and excess > 0 then
    allowed = false
    for _, entry in ipairs(kept) do
      excess = excess - entry[i + 1]
      if excess <= 0 then
        wait[i] = (entry[1] + slots + 1) * slot - now
        break
      end
    end
  end
end
if allowed then add(current, wanted) end
if allowed or changed then
  redis.call('SET', KEYS[1], cmsgpack.pack(kept), 'PX', math.ceil((slots + 1) * slot / 1000))
end
local reset = {0, 0, 0}
for _, entry in ipairs(kept) do
  for i = 1, 3 do
    if entry[i + 1] > 0 then reset[i] = (entry[1] + slots + 1) * slot - now end
  end
end
return {allowed and 1 or 0, before, wait, reset}
"""


class RedisQuotas(Quotas):
    """The clients of all replicas, one key in Redis for each.

    While Redis is away each replica grants its share of a quota by itself, so that together they
    keep it. What was granted before an outage is not known during it, nor the other way round: a
    window in which one begins or ends may hold both.
    """

    def __init__(
        self,
        url: str,
        prefix: str = "embedding-assets:quota",
        *,
        replicas: int = 4,
        timeout: float = 0.1,
        window: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Shares the quotas with all replicas that use the same prefix of the server.

        Args:
            url: redis://host:6379/0, rediss://… or unix://…
            prefix: of the keys in Redis.
            replicas: by how many the quotas are divided while Redis is away.
            timeout: seconds for one command, and for connecting.
            window: seconds for which the quotas are meant.
            clock: tells when to ask again a server that was away; see `MemoryQuotas`.

        Raises:
            InvalidInputError: the URL cannot be that of a Redis.
        """
        if replicas < 1 or window <= 0:
            raise ValueError(f"replicas and window must be positive, got {replicas} and {window} s")
        self._client = client_of(VARIABLE, url, timeout)
        self._script = self._client.register_script(_LUA)
        self._shown = shown(url)
        self._seldom = Seldom()
        self._prefix = prefix
        self._replicas = replicas
        self._window = window
        self._slot = math.ceil(window * 1e6 / SLOTS)  # microseconds
        self._clock = clock
        self._share = MemoryQuotas(window, clock)
        self._lock = threading.Lock()
        self._away = False
        self._ask_again = -math.inf

    def take(self, client: str, quota: Quota, cost: Cost) -> Verdict:
        """See `Quotas.take`. Waits for Redis for `timeout` at most."""
        if quota == Quota():
            return UNLIMITED
        if self._may_answer():
            try:
                found = self._in_redis(client, quota, cost)
            except Exception as error:
                if not is_redis_error(error):
                    raise
                self._is_away(error)
            else:
                self._answers()
                return found
        return self._alone(client, quota, cost)

    def _in_redis(self, client: str, quota: Quota, cost: Cost) -> Verdict:
        limits = [-1 if limit is None else limit for limit in quota.limits]
        arguments = {
            "keys": [f"{self._prefix}:{_plain(client)}"],
            "args": [self._slot, SLOTS, *limits, *cost.amounts],
        }
        allowed, used, wait, reset = ask_primary(
            self._client, lambda client: self._script(**arguments, client=client), self._moved
        )
        wait = [micros / 1e6 for micros in wait]
        return verdict(
            bool(allowed), quota.limits, cost.amounts, used, wait, lambda i: reset[i] / 1e6
        )

    def _alone(self, client: str, quota: Quota, cost: Cost) -> Verdict:
        found = self._share.take(client, quota.share(self._replicas), cost)
        if found.retry_after < math.inf or found.dimension is None:
            return found
        limit = getattr(quota, found.dimension)
        if getattr(cost, found.dimension) > limit:
            return replace(found, limit=limit)
        # It exceeds the share, not the quota: Redis grants it when it is back, whenever that is.
        return replace(found, retry_after=self._window)

    def _may_answer(self) -> bool:
        """Whether to ask Redis; while it is away one thread tries now and then, no others."""
        with self._lock:
            if not self._away:
                return True
            now = self._clock()
            if now < self._ask_again:
                return False
            self._ask_again = now + _SECONDS_BETWEEN_TRIES
            return True

    def _is_away(self, error: Exception) -> None:
        forget_connections(self._client)  # the name may lead to another server by now
        with self._lock:
            self._away = True
            self._ask_again = self._clock() + _SECONDS_BETWEEN_TRIES
        if self._seldom.due("away"):
            _log.warning(
                f"{VARIABLE}: {self._shown} does not answer ({reason(error, self._client)}). This "
                f"replica grants 1/{self._replicas} of each client's quota by itself "
                f"(replicas={self._replicas} in the URL), until the server answers: it is asked "
                "again each second."
            )

    def _answers(self) -> None:
        if not self._away:
            return
        with self._lock:
            was_away, self._away = self._away, False
        if was_away:
            _log.info(f"{VARIABLE}: {self._shown} answers again; quotas are shared as before.")

    def _moved(self) -> None:
        if self._seldom.due("moved"):
            _log.warning(
                f"{VARIABLE}: {self._shown} takes no writes any more, as after a failover. It is "
                "connected to anew."
            )


def _plain(client: str) -> str:
    """A client as a part of a key's name; a hash where it could be anything."""
    if _PLAIN_CLIENT.fullmatch(client):
        return client
    digest = hashlib.sha256(client.encode(errors="surrogatepass")).hexdigest()
    return f"sha256.{digest}"  # the dot is in no plain one
