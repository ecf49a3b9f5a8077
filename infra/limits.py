"""Rate limits per team and the login throttle: a sliding window, in Redis or in the embedded store.

The idea: one short string per team, a list of buckets `start last requests tokens`, at most 61 of them, each a 60th of
the window wide, and their sums. A bucket stays in the window until its *last* use is a whole window old, so nothing is
forgotten early (no more than the limit passes in any 60 seconds) and nothing later than a second after its time. One
script reads the string, drops what is old from its front, decides, and writes it back: the sums make that cheap
however busy the team is. A refused call writes nothing. The time comes as an argument, because the embedded store
knows no TIME: machines that share a Redis need clocks that agree (NTP).

Redis away: every request to it has a time-out; the first failure opens a circuit, from then on this process keeps the
limits in its own embedded store with the same script, and a task asks until Redis answers again. So a limit is never
the reason for a 500, and only those who find the outage wait for it.
"""

import asyncio
import contextlib
import contextvars
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol, cast

import msgspec
from burner_redis import BurnerRedis  # type: ignore[import-untyped]
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from infra import metrics
from infra.background import cancelled
from infra.log import log

Limit = Literal["requests", "tokens"]
Health = Literal["ok", "degraded"]

WINDOW_S: Final = 60
TIMEOUT_S: Final = 0.25

_MOST_CONNECTIONS = 32
_RECOVERY_PAUSE_S = 1.0
# Lua 5.1 counts in doubles, exactly up to 2**53: this leaves room for sums.
_MOST_TOKENS = 2**50

_LUA = """
-- KEYS[1] the window's string; ARGV: now and window in ms; 0, or for a correction the start of the bucket that it
-- belongs to; wanted requests and tokens; limits of both (0 = none).
local now, window, start = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local wanted = {tonumber(ARGV[4]), tonumber(ARGV[5])}
local limits = {tonumber(ARGV[6]), tonumber(ARGV[7])}

-- The string: both sums, then the buckets, the oldest first.
local requests, tokens, buckets = string.match(redis.call('GET', KEYS[1]) or '0 0', '^(%d+) (%d+)(.*)$')
local used = {tonumber(requests), tonumber(tokens)}
local newest = tonumber(string.match(buckets, ';(%d+)[ %d]+$', -70) or 0)
-- More than a window ahead: written by a clock gone wrong, which must not block a team for long.
if newest > now + window then used, buckets, newest = {0, 0}, '', 0 end

-- What is a whole window old leaves.
local kept = 1
while true do
  local last, r, t, after = string.match(buckets, '^;%d+ (%d+) (%d+) (%d+)()', kept)
  if not last or tonumber(last) > now - window then break end
  used = {used[1] - r, used[2] - t}
  kept = after
end
buckets = string.sub(buckets, kept)

-- How long until `wanted` fits, while the oldest uses leave first.
local function wait_for(kind)
  local excess = used[kind] + wanted[kind] - limits[kind]
  if limits[kind] == 0 or wanted[kind] == 0 or excess <= 0 then return 0 end
  for last, r, t in string.gmatch(buckets, ';%d+ (%d+) (%d+) (%d+)') do
    excess = excess - (kind == 1 and r or t)
    if excess <= 0 then return last + window - now end
  end
  return window
end
local waits = {wait_for(1), wait_for(2)}
local refused = waits[1] > 0 and 1 or waits[2] > 0 and 2 or 0

local place = '^(.*);%d (%%d+) (%%d+) (%%d+)(.*)$'
-- A correction whose bucket has left: what was too much has left with it, what was too little counts now.
local late = start > 0 and wanted[2] > 0 and not string.find(buckets, string.format(place, start))
if refused == 0 and (start == 0 or late) then
  -- A clock a little behind writes into the newest bucket: the order stays, and nothing leaves early.
  start = math.max(newest, now - now % math.floor(window / 60))
  if start > newest then buckets = buckets .. string.format(';%d %d 0 0', start, now) end
end
local before, last, r, t, behind = string.match(buckets, string.format(place, start))
if refused == 0 and before then
  if late or wanted[1] > 0 then last = math.max(tonumber(last), now) end
  local left = math.max(0, t + wanted[2])
  used = {used[1] + wanted[1], used[2] + left - t}
  buckets = before .. string.format(';%d %d %d %d', start, last, r + wanted[1], left) .. behind
  local state = string.format('%d %d', used[1], used[2]) .. buckets
  redis.call('SET', KEYS[1], state, 'PX', string.format('%d', window * 2))
end

-- How long until nothing is counted any more.
local empty = (string.match(buckets, ' (%d+) %d+ %d+$', -70) or now - window) + window - now
return {
  refused, math.max(waits[1], waits[2]), start,
  used[1], used[2], used[1] > 0 and empty or 0, used[2] > 0 and empty or 0,
}
"""

_FAILURES = (RedisError, OSError, TimeoutError)


class Ticket:
    """What a call or an attempt took, so that it can be corrected once more is known."""

    __slots__ = ("key", "settled", "start", "store", "tokens")

    def __init__(self, store: "_Store", key: str, start: int, tokens: int) -> None:
        self.store = store
        self.key = key
        self.start = start
        self.tokens = tokens
        self.settled = False


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `take` and `attempt`."""

    allowed: bool
    limit: Limit | None = None
    """The limit that refused."""
    retry_after_s: int = 0
    headers: dict[str, str] = {}
    """The x-ratelimit-* headers, without those of an unlimited kind; also for a refused call."""
    ticket: Ticket | None = None
    """For `settle` or `withdraw`; None when there is nothing to settle."""


class Limits:
    """RPM and TPM of teams over a sliding minute, and the throttle of failed logins. Never raises.

    Args:
        redis_url: the Redis that all processes share, or None for the embedded store.
        workers: processes that answer beside each other; without a shared Redis each takes its share.
        prefix: goes before every key in Redis.
        timeout_s: longest wait for one answer of Redis.
        clock: seconds since 1970, for calls that name no time.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        workers: int = 1,
        prefix: str = "saas:limits:",
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._workers = workers
        self._prefix = prefix
        self._clock = clock
        self._embedded = _Embedded()
        self._shared = _Shared(redis_url, timeout_s, probe_key=f"{prefix}probe") if redis_url else None
        if workers > 1 and not redis_url:
            log.warning("limits.divided", workers=workers, remedy="set REDIS_URL to share limits exactly")

    async def take(
        self, team_id: str, *, rpm_limit: int, tpm_limit: int, tokens: int, now: float | None = None
    ) -> Allowance:
        """Take one request and an estimate of its tokens, both or neither (contract, section 0.8).

        Args:
            team_id: whose limits.
            rpm_limit: requests in 60 seconds; 0 = unlimited.
            tpm_limit: tokens in 60 seconds; 0 = unlimited. An estimate above it counts as the limit.
            tokens: the estimate; 0 when the body is too broken for one, which checks requests only.
            now: seconds since 1970, if not the clock's.
        """
        if not rpm_limit and not tpm_limit:
            return Allowance(allowed=True)
        key, at = f"{self._prefix}team:{team_id}", self._milliseconds(now)
        store = self._store()
        try:
            allowance = await self._take(store, key, at, rpm_limit, tpm_limit, tokens)
        except _Away:
            allowance = await self._take(self._embedded, key, at, rpm_limit, tpm_limit, tokens)
        if allowance.limit:
            metrics.limit_rejected(allowance.limit)
        return allowance

    async def settle(self, ticket: Ticket | None, actual_tokens: int, *, now: float | None = None) -> None:
        """Correct an estimate to what was really used; 0 gives all of it back. The first call counts.

        The correction lands where the estimate stands; if that has left the window, an excess counts now.
        """
        if ticket is None or ticket.settled:
            return
        ticket.settled = True
        difference = min(max(actual_tokens, 0), _MOST_TOKENS) - ticket.tokens
        if difference:
            with contextlib.suppress(_Away):
                at = self._milliseconds(now)
                await ticket.store.run(ticket.key, at, WINDOW_S * 1000, ticket.start, 0, difference, 0, 0)

    async def attempt(self, key: str, *, limit: int = 10, window_s: int = 900, now: float | None = None) -> Allowance:
        """Count an attempt before it is made, so that many at once cannot outrun the count.

        A refused attempt is not counted. `forgive` after a success, and `withdraw` where nobody could judge, leave only
        failures to be counted. The limit is never divided among workers: whoever mistypes must not depend on which of
        them answers.

        Args:
            key: who attempts what, for example e-mail and address; only its digest is stored.
            limit: attempts in the window.
            window_s: seconds.
            now: seconds since 1970, if not the clock's.
        """
        key, store = self._attempts(key), self._store()
        arguments = (self._milliseconds(now), window_s * 1000, 0, 1, 0, limit, 0)
        try:
            refused, wait_ms, start, *_ = await store.run(key, *arguments)
        except _Away:
            store = self._embedded
            refused, wait_ms, start, *_ = await store.run(key, *arguments)
        ticket = None if refused else Ticket(store, key, start, 0)
        return Allowance(allowed=not refused, retry_after_s=_whole_seconds(wait_ms), ticket=ticket)

    async def withdraw(self, ticket: Ticket | None, *, window_s: int = 900, now: float | None = None) -> None:
        """Count an attempt no longer, since nobody looked at what was tried; the others stay."""
        if ticket is None or ticket.settled:
            return
        ticket.settled = True
        with contextlib.suppress(_Away):
            await ticket.store.run(ticket.key, self._milliseconds(now), window_s * 1000, ticket.start, -1, 0, 0, 0)

    async def forgive(self, key: str) -> None:
        """Forget all attempts under this key, after one that succeeded."""
        with contextlib.suppress(_Away):
            await self._store().forget(self._attempts(key))
        await self._embedded.forget(self._attempts(key))

    async def ping(self) -> Health:
        """Say whether the limits are kept where they should be (for /health/ready)."""
        if self._shared is None:
            return "ok"
        return "ok" if await self._shared.answers() else "degraded"

    async def close(self) -> None:
        """Give back the connections."""
        if self._shared is not None:
            await self._shared.close()
        await self._embedded.close()

    async def _take(self, store: "_Store", key: str, at: int, rpm_limit: int, tpm_limit: int, tokens: int) -> Allowance:
        if store is self._embedded:
            rpm_limit, tpm_limit = self._share(rpm_limit), self._share(tpm_limit)
        # Nobody counts the tokens of a team without a limit, which saves settling them.
        estimate = min(max(tokens, 0), tpm_limit, _MOST_TOKENS)
        answer = await store.run(key, at, WINDOW_S * 1000, 0, 1, estimate, rpm_limit, tpm_limit)
        refused, wait_ms, start, requests, used_tokens, requests_reset_ms, tokens_reset_ms = answer
        return Allowance(
            allowed=not refused,
            limit=(None, "requests", "tokens")[refused],
            retry_after_s=_whole_seconds(wait_ms),
            headers=_headers("requests", rpm_limit, requests, requests_reset_ms)
            | _headers("tokens", tpm_limit, used_tokens, tokens_reset_ms),
            ticket=Ticket(store, key, start, estimate) if tpm_limit and not refused else None,
        )

    def _store(self) -> "_Store":
        return self._embedded if self._shared is None or self._shared.away else self._shared

    def _share(self, limit: int) -> int:
        return max(1, limit // self._workers) if limit else 0

    def _milliseconds(self, now: float | None) -> int:
        return int((self._clock() if now is None else now) * 1000)

    def _attempts(self, key: str) -> str:
        return f"{self._prefix}attempts:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _headers(kind: Limit, limit: int, used: int, reset_ms: int) -> dict[str, str]:
    if not limit:
        return {}
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(max(0, limit - used)),
        f"x-ratelimit-reset-{kind}": f"{reset_ms / 1000:g}s",
    }


def _whole_seconds(wait_ms: int) -> int:
    return -(-wait_ms // 1000)


class _Away(Exception):
    """Redis did not answer."""


class _Store(Protocol):
    async def run(self, key: str, *numbers: int) -> list[int]: ...

    async def forget(self, key: str) -> None: ...


class _Embedded:
    """The same script in this process.

    The embedded store hides what has expired but frees it only when it is read again, so that is done here, the
    oldest first: otherwise logins under made-up names would fill the memory.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._db = BurnerRedis()
        self._script = self._db.register_script(_LUA)
        self._expiries: OrderedDict[str, float] = OrderedDict()

    async def run(self, key: str, *numbers: int) -> list[int]:
        now, lifetime_s = self._monotonic(), 2 * numbers[1] / 1000
        self._expiries[key] = now + lifetime_s + 1
        self._expiries.move_to_end(key)
        while (oldest := next(iter(self._expiries))) and self._expiries[oldest] < now:
            del self._expiries[oldest]
            await self._db.get(oldest)
        return cast("list[int]", await self._script(keys=[key], args=list(numbers)))

    async def forget(self, key: str) -> None:
        self._expiries.pop(key, None)
        await self._db.delete(key)

    async def close(self) -> None:
        await self._db.aclose()


class _Shared:
    """Redis, with a time-out on everything and a circuit that the first failure opens.

    Args:
        url: where it is.
        timeout_s: longest wait for one answer.
        probe_key: what the script is tried on to learn whether Redis is back, writing included.
    """

    def __init__(self, url: str, timeout_s: float, *, probe_key: str) -> None:
        # No time-outs and retries of the client's own: ours covers connecting, sending and reading at once.
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._script = self._redis.register_script(_LUA)
        self._turns = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._timeout_s = timeout_s
        self._probe_key = probe_key
        self._recovery: asyncio.Task[None] | None = None
        self.away = False
        metrics.limits_kept_here(False)

    async def run(self, key: str, *numbers: int) -> list[int]:
        return cast("list[int]", await self._ask(lambda: self._script(keys=[key], args=list(numbers))))

    async def forget(self, key: str) -> None:
        await self._ask(lambda: self._redis.delete(key))

    async def answers(self) -> bool:
        try:
            await self._ask(self._probe)
        except _Away:
            return False
        return True

    async def close(self) -> None:
        await cancelled(self._recovery)
        await self._redis.aclose()

    async def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        async with self._turns:
            # The circuit may have opened while this one waited for its turn.
            if self.away:
                raise _Away
            try:
                return await self._in_time(question)
            except _FAILURES as error:
                self._open_circuit(error)
                raise _Away from error

    async def _in_time(self, question: Callable[[], Awaitable[Any]]) -> Any:
        for last_try in (False, True):
            asked = time.monotonic()
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await question()
            except TimeoutError:
                # An alarm that rings late, or early by a loop's stale clock, says that this process was busy, not
                # that Redis is away: it asks once more. The first question may have counted as well, which errs
                # on the safe side.
                punctual = 0.9 < (time.monotonic() - asked) / self._timeout_s < 1.2
                if last_try or punctual:
                    raise
        raise AssertionError("unreachable")

    async def _probe(self) -> None:
        await self._script(keys=[self._probe_key], args=[int(time.time() * 1000), 1000, 0, 0, 0, 0, 0])

    def _open_circuit(self, error: Exception) -> None:
        if self.away:
            return
        self.away = True
        metrics.limits_kept_here(True)
        log.warning("limits.degraded", error=type(error).__name__)
        # A context of its own, or the recovery would be logged under the request that saw the failure.
        self._recovery = asyncio.create_task(self._recover(), context=contextvars.Context())

    async def _recover(self) -> None:
        while self.away:
            await asyncio.sleep(_RECOVERY_PAUSE_S)
            with contextlib.suppress(*_FAILURES):
                await self._in_time(self._probe)
                self.away = False
        metrics.limits_kept_here(False)
        log.info("limits.recovered")
