"""Sends what is in the outbox: at least once, signed, and so that no receiver can harm another one or us.

One task a process takes deliveries that are due under a lease, each webhook's first before anybody's second, and never
more at once of one webhook, one team or one host than their share: who is slow or dead holds up only itself. An attempt
ends after 15 seconds, follows no redirect and reads nothing of the answer but its head. Where it may go is the
connector's business (infra/addresses.py), judged by the very address that is connected to.

What came of the attempts is written in one statement for all of them. A process that dies in between leaves its leases
to run out, and the same deliveries are sent again under the same ids: receivers know these by their `webhook-id`.
Signatures and headers are those of Standard Webhooks (https://www.standardwebhooks.com).
"""

import asyncio
import base64
import contextlib
import hmac
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Literal
from uuid import UUID

import aiohttp
import msgspec
import psycopg
import structlog
from psycopg.rows import class_row
from psycopg_pool import PoolTimeout

from domain.streams import WEBHOOK
from domain.webhook import DisableWebhook, Webhook, disable_webhook, next_attempt
from infra import metrics
from infra.addresses import public_connector, was_private
from infra.background import cancelled
from infra.journal import Connection
from infra.ledger import Ledger, Unavailable
from infra.metrics import WebhookOutcome
from infra.secrets import SecretMissing, SecretStore, Undecryptable
from infra.version import SERVICE, VERSION

log = structlog.get_logger()

ATTEMPT_SECONDS = 15.0
LEASE = timedelta(seconds=60)  # longer than an attempt and everything around it
AT_ONCE = 256
AT_ONCE_BY_WEBHOOK, AT_ONCE_BY_TEAM, AT_ONCE_BY_HOST = 8, 16, 32
LOOK_SECONDS = 0.01  # between two looks into the outbox, but
LOOK_SHARE = 3  # at least so many times as long as the last one took
IDLE_SECONDS = 1.0
RETRY_SECONDS = 1.0
KEPT_FOR = timedelta(days=30)

SECRET, AUTH_HEADER = "webhook_secret", "webhook_auth_header"  # the kinds of what is kept for a webhook
_OUT_OF_REACH = (Unavailable, psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, OSError)

# Webhooks with something to do are found by leaping through the index, so a backlog costs no more than a single row.
_TAKE = """
with recursive waiting as (
    (select webhook_id from app.webhook_deliveries where status = 'pending' order by webhook_id limit 1)
    union all
    select (select further.webhook_id from app.webhook_deliveries as further
            where further.status = 'pending' and further.webhook_id > waiting.webhook_id
            order by further.webhook_id limit 1)
    from waiting where waiting.webhook_id is not null
), due as (
    select its.*, row_number() over (partition by its.webhook_id order by its.next_attempt_at) as of_webhook
    from waiting cross join lateral (
        select delivery_id, webhook_id, team_id, host, next_attempt_at
        from app.webhook_deliveries
        where webhook_id = waiting.webhook_id and status = 'pending' and next_attempt_at <= %(now)s
          and coalesce(leased_until <= %(now)s, true)
        order by next_attempt_at
        limit greatest(0, %(by_webhook)s - coalesce((%(busy)s::jsonb ->> waiting.webhook_id::text)::int, 0))
    ) as its
), by_team as (
    select due.*, row_number() over (partition by team_id order by of_webhook, next_attempt_at)
        + coalesce((%(busy)s::jsonb ->> ('team ' || team_id))::int, 0) as of_team
    from due
), by_host as (
    select by_team.*, row_number() over (partition by host order by of_webhook, next_attempt_at)
        + coalesce((%(busy)s::jsonb ->> ('host ' || host))::int, 0) as of_host
    from by_team
    where of_team <= %(by_team)s
), taken as (
    select delivery_id
    from app.webhook_deliveries
    where delivery_id in (
        select delivery_id from by_host
        where of_host <= %(by_host)s
        order by of_webhook, next_attempt_at
        limit %(free)s)
      and status = 'pending' and next_attempt_at <= %(now)s and coalesce(leased_until <= %(now)s, true)
    for update skip locked
)
update app.webhook_deliveries as delivery
set leased_until = %(until)s
from taken
where delivery.delivery_id = taken.delivery_id
returning delivery.delivery_id::text, delivery.webhook_id::text, delivery.team_id, delivery.host, delivery.attempts,
          delivery.leased_until, delivery.payload::text
"""

# Whoever lost the lease, to another process or to somebody who wants it sent again, has nothing to say any more.
_SETTLE = """
update app.webhook_deliveries as delivery
set status = settled.status, attempts = settled.attempts, next_attempt_at = settled.next_attempt_at,
    leased_until = null, response_status = settled.response_status, last_error = settled.last_error,
    delivered_at = settled.delivered_at
from json_to_recordset(%s) as settled (
    delivery_id uuid, leased_until timestamptz, status text, attempts integer, next_attempt_at timestamptz,
    response_status smallint, last_error text, delivered_at timestamptz)
where delivery.delivery_id = settled.delivery_id and delivery.leased_until = settled.leased_until
"""

_REDELIVER = """
update app.webhook_deliveries
set status = 'pending', attempts = 0, next_attempt_at = %s, leased_until = null, delivered_at = null
where webhook_id = %s and delivery_id = %s
"""

# The newest of each webhook stays: it says when the webhook was last triggered.
PURGE = """
delete from app.webhook_deliveries
where delivery_id in (
    select old.delivery_id
    from app.webhook_deliveries as old
    where old.status <> 'pending' and old.created_at < %s
      and exists (select from app.webhook_deliveries as newer
                  where newer.webhook_id = old.webhook_id and newer.created_at > old.created_at)
    limit %s)
"""


async def redeliver(connection: Connection, webhook_id: str, delivery_id: str, at: datetime) -> bool:
    """Makes a delivery due again, with its whole schedule before it.

    Returns:
        Whether there is such a delivery.
    """
    cursor = await connection.execute(_REDELIVER, (at, webhook_id, delivery_id))
    return cursor.rowcount > 0


# -- one attempt -------------------------------------------------------------------------------------------------------


class Due(msgspec.Struct, kw_only=True):
    """A delivery that this process may attempt now, until its lease ends."""

    delivery_id: str
    webhook_id: str
    team_id: str
    host: str
    attempts: int
    leased_until: datetime
    payload: str

    @property
    def shares(self) -> tuple[str, str, str]:
        """What it takes a place of."""
        return self.webhook_id, f"team {self.team_id}", f"host {self.host}"


class Settled(msgspec.Struct, kw_only=True):
    """What came of it."""

    delivery_id: str
    leased_until: datetime
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_attempt_at: datetime | None = None
    response_status: int | None = None
    last_error: str | None = None
    delivered_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said, or why it said nothing; `error` is for the team to read."""

    outcome: WebhookOutcome
    status: int | None = None
    error: str | None = None
    retry_after: str | None = None


def headers_for(delivery_id: str, at: datetime, body: bytes, secrets: Iterable[bytes]) -> dict[str, str]:
    """The headers of Standard Webhooks.

    Args:
        at: the moment of this attempt.
        secrets: `whsec_...`, each makes a signature of its own.
    """
    message, timestamp = f"msg_{delivery_id}", str(int(at.timestamp()))
    signed = f"{message}.{timestamp}.".encode() + body
    digests = (hmac.digest(base64.b64decode(secret.removeprefix(b"whsec_")), signed, "sha256") for secret in secrets)
    return {
        "Content-Type": "application/json",
        "User-Agent": f"{SERVICE}/{VERSION}",
        "webhook-id": message,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
    }


async def post(session: aiohttp.ClientSession, url: str, headers: dict[str, str], body: bytes) -> Answer:
    """One request; whatever goes wrong is an answer, too."""
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            return _judged(response.status, response.headers.get("Retry-After"))
    except TimeoutError:
        return Answer("unreachable", error="no answer in time")
    except Exception as problem:  # noqa: BLE001 a stranger answers: whatever that provokes counts as a failure of theirs
        if was_private(problem):
            return Answer("private_target", error="the address is not public")
        return Answer("unreachable", error=_reason(problem))


def _judged(status: int, retry_after: str | None) -> Answer:
    if 200 <= status < 300:
        return Answer("delivered", status)
    error = f"answered {status}, and redirects are not followed" if 300 <= status < 400 else f"answered {status}"
    return Answer("refused", status, error, retry_after)


def _reason(problem: Exception) -> str:
    match problem:
        case aiohttp.ClientConnectorDNSError():
            return "the host cannot be found"
        case aiohttp.ClientSSLError():
            return "no secure connection: the certificate or the protocol is not accepted"
        case aiohttp.ClientConnectorError():
            return "no connection"
        case aiohttp.ClientResponseError():
            return "the answer is not HTTP"
        case _:
            return "the connection was lost"


def wait_asked_for(retry_after: str | None, at: datetime) -> timedelta | None:
    """What a `Retry-After` header asks for: seconds, or a date. What cannot be read asks for nothing."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdecimal():
        return timedelta(seconds=min(int(retry_after[:9]), int(timedelta(days=365).total_seconds())))
    try:
        moment = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    return max(timedelta(0), (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - at)


# -- all of them -------------------------------------------------------------------------------------------------------


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Sender:
    """The sender of one process; any number of processes send side by side.

    Args:
        connect: opens a connection as the application's role.
        ledger: knows where a webhook is, and hears when it wants no more.
        secrets: keeps what signs and authorizes.
        allow_private: WEBHOOK_ALLOW_PRIVATE.
        now: the clock of schedules and leases.
        jitter: makes the waits between attempts uneven; gives 0 to 1.
        attempt_s: how long an attempt may take.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        ledger: Ledger,
        secrets: SecretStore,
        *,
        allow_private: bool = False,
        now: Callable[[], datetime] = _utc_now,
        jitter: Callable[[], float] = random.random,
        attempt_s: float = ATTEMPT_SECONDS,
    ) -> None:
        self._connect = connect
        self._ledger = ledger
        self._secrets = secrets
        self._allow_private = allow_private
        self._now = now
        self._jitter = jitter
        self._attempt_s = attempt_s
        self._news = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._attempts: set[asyncio.Task[None]] = set()
        self._busy: Counter[str] = Counter()
        self._settled: list[Settled] = []
        self._session: aiohttp.ClientSession | None = None

    def wake(self, position: int = 0) -> None:
        """There may be something to send."""
        self._news.set()

    async def start(self) -> None:
        # A connection for each attempt: one that was kept may just be closing, which would look like a failure. No
        # cookies, no decompression, and nothing from the environment: a proxy would connect wherever it is told.
        options: dict[str, Any] = {"limit": 0, "force_close": True}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(**options) if self._allow_private else public_connector(**options),
            timeout=aiohttp.ClientTimeout(total=self._attempt_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        self._task = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self, timeout_s: float = ATTEMPT_SECONDS) -> None:
        """Begins nothing new, waits for the attempts that are under way, and writes down what came of them.

        Args:
            timeout_s: how long to wait; what takes longer is sent again when its lease has run out.
        """
        self._closing = True
        if self._task is None or self._session is None:
            return
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=timeout_s)
        for attempt in self._attempts:
            attempt.cancel()
        self._news.set()
        await asyncio.wait({self._task}, timeout=2 * RETRY_SECONDS)
        await cancelled(self._task)
        await self._session.close()

    # -- the outbox ------------------------------------------------

    async def _run(self) -> None:
        while not self._closing:
            try:
                async with await self._connect() as connection:
                    await self._work(connection)
            except _OUT_OF_REACH as problem:
                log.warning("webhooks.waiting", reason=type(problem).__name__)
            except Exception:  # nothing may end this loop: the next look may well succeed
                log.exception("webhooks.failed")
            else:
                continue
            await asyncio.sleep(RETRY_SECONDS)

    async def _work(self, connection: Connection) -> None:
        while True:
            started = time.monotonic()
            self._news.clear()
            is_over = self._closing and not self._attempts
            await self._settle(connection)
            if is_over:
                return
            if not self._closing:
                await self._begin(connection)
            await asyncio.sleep(max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - started)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._news.wait()

    async def _begin(self, connection: Connection) -> None:
        """Takes what is due and starts with it, as far as there is room."""
        free = AT_ONCE - len(self._attempts)
        if not free:
            return
        now = self._now()
        asked = {
            "now": now,
            "until": now + LEASE,
            "busy": msgspec.json.encode(self._busy).decode(),
            "free": free,
            "by_webhook": AT_ONCE_BY_WEBHOOK,
            "by_team": AT_ONCE_BY_TEAM,
            "by_host": AT_ONCE_BY_HOST,
        }
        async with connection.cursor(row_factory=class_row(Due)) as cursor:
            await cursor.execute(_TAKE, asked)
            taken = await cursor.fetchall()
        for due in taken:
            self._busy.update(due.shares)
            attempt = asyncio.create_task(self._deliver(due), name=f"delivery {due.delivery_id}")
            self._attempts.add(attempt)
            attempt.add_done_callback(partial(self._ended, due))

    def _ended(self, due: Due, attempt: asyncio.Task[None]) -> None:
        self._attempts.discard(attempt)
        self._busy -= Counter(due.shares)
        if not attempt.cancelled() and (problem := attempt.exception()) is not None:
            log.error("webhook.crashed", delivery_id=due.delivery_id, exc_info=problem)
        self._news.set()

    async def _settle(self, connection: Connection) -> None:
        settled = self._settled[:]
        if settled:
            await connection.execute(_SETTLE, (msgspec.json.encode(settled).decode(),))
            del self._settled[: len(settled)]

    # -- one delivery ------------------------------------------------

    async def _deliver(self, due: Due) -> None:
        """Attempts a delivery. If what it needs cannot be had just now, its lease runs out and it comes again."""
        try:
            webhook: Webhook | None = (await self._ledger.read(WEBHOOK.stream(due.webhook_id))).states[0]
            if webhook is None or not webhook.is_active:
                why = "disabled" if webhook is not None and webhook.status == "disabled" else "deleted"
                self._settled.append(_over(due, f"the webhook is {why}"))
                return
            answer = await self._attempt(due, webhook)
            if answer.status == HTTPStatus.GONE:
                await self._disable(webhook, due)
        except _OUT_OF_REACH as problem:
            log.warning("webhook.put_off", delivery_id=due.delivery_id, reason=type(problem).__name__)
        else:
            self._settled.append(self._outcome(due, answer))

    async def _attempt(self, due: Due, webhook: Webhook) -> Answer:
        assert self._session is not None
        at, body = self._now(), due.payload.encode()
        try:
            secrets = [await self._secrets.get(UUID(each)) for each in webhook.signing_secrets(at)]
            headers = headers_for(due.delivery_id, at, body, secrets)
            if webhook.auth_header_id is not None:
                headers["Authorization"] = (await self._secrets.get(UUID(webhook.auth_header_id))).decode()
        except (SecretMissing, Undecryptable) as problem:
            log.warning("webhook.secret_unreadable", webhook_id=webhook.webhook_id, reason=type(problem).__name__)
            return Answer("unreachable", error="the webhook's secret cannot be read")
        started = time.monotonic()
        answer = await post(self._session, webhook.webhook_url, headers, body)
        metrics.webhook_attempted(answer.outcome, time.monotonic() - started)
        log.info(
            "webhook.attempted",
            delivery_id=due.delivery_id,
            webhook_id=due.webhook_id,
            attempt=due.attempts + 1,
            outcome=answer.outcome,
            http_status=answer.status,
        )
        return answer

    async def _disable(self, webhook: Webhook, due: Due) -> None:
        command = DisableWebhook(
            at=self._now(), by="system", request=due.delivery_id, reason="the receiver answered 410 Gone"
        )
        await self._ledger.carry_out(disable_webhook, command, WEBHOOK.stream(webhook.webhook_id))

    def _outcome(self, due: Due, answer: Answer) -> Settled:
        now = self._now()
        settled = Settled(
            delivery_id=due.delivery_id,
            leased_until=due.leased_until,
            status="failed",
            attempts=due.attempts + 1,
            response_status=answer.status,
            last_error=answer.error,
        )
        if answer.outcome == "delivered":
            settled.status, settled.delivered_at = "delivered", now
        elif answer.status != HTTPStatus.GONE:
            asked = wait_asked_for(answer.retry_after, now)
            again = next_attempt(settled.attempts, now, jitter=self._jitter(), retry_after=asked)
            settled.status, settled.next_attempt_at = ("pending", again) if again else ("failed", None)
        return settled


def _over(due: Due, why: str) -> Settled:
    """A delivery that nobody waits for any more."""
    return Settled(
        delivery_id=due.delivery_id,
        leased_until=due.leased_until,
        status="failed",
        attempts=due.attempts,
        last_error=why,
    )
