"""What the house does by the clock: refills, ends of grants, jobs left alone, calls nobody answers for, old receipts.

Each chore finds its candidates in a read model, which may be a little behind, and leaves the decision to the ledger,
which is not: what has been done already, by whomever, is decided to be nothing. So chores may be repeated, interrupted,
and done by several processes at once. A candidate that cannot be dealt with is logged and keeps no other waiting.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar, get_args

import structlog

from api.house import House
from api.idempotency import KEPT_FOR
from api.teams import cancel_orphans
from domain.charging import ExpireJob, expire_job
from domain.credit import ExpireCredits, RefillCredits, expire_credits, first_day_of, refill_credits
from domain.errors import Refusal
from domain.event import Command
from domain.job import FailCall, fail_call
from domain.streams import CREDIT, JOB, TEAM
from domain.team import RefillPeriod
from infra import conversations, webhooks
from infra.ids import new_id
from infra.journal import Connection
from infra.ledger import Unavailable
from infra.scheduler import OUT_OF_REACH, Chore
from projections import calls, due, jobs, webhook_deliveries
from projections.calls import OverdueCall
from projections.jobs import LeftAlone

log = structlog.get_logger()
C = TypeVar("C")

SYSTEM = "system"  # who did it, in the journal
PAGE = 200  # candidates that are decided together
PURGED_AT_ONCE = 5000  # rows of one delete
PERIODS: tuple[RefillPeriod, ...] = get_args(RefillPeriod)

_PURGE_RECEIPTS = """
delete from app.idempotency where ctid = any (array(
    select ctid from app.idempotency where created_at < %s limit %s))
"""


def chores(house: House) -> Sequence[Chore]:
    """All chores of a house, in the order in which they are done when several are due."""
    often, seldom = house.settings.chore_seconds, house.settings.purge_seconds
    return (
        Chore("refill_credits", often, partial(refill, house)),
        Chore("expire_credits", often, partial(expire_grants, house)),
        Chore("interrupt_calls", often, partial(interrupt_calls, house)),
        Chore("expire_jobs", often, partial(expire_jobs, house)),
        Chore("cancel_orphans", often, partial(cancel_orphaned, house)),
        Chore("purge_receipts", seldom, partial(purge_receipts, house)),
        Chore("purge_deliveries", seldom, partial(purge_deliveries, house)),
        Chore("forget_webhook_secrets", seldom, partial(forget_webhook_secrets, house)),
        Chore("purge_conversations", seldom, partial(purge_conversations, house)),
        Chore("rewrap_secrets", seldom, partial(rewrap_secrets, house)),
        Chore("sign_checkpoint", seldom, partial(sign_checkpoint, house)),
    )


# -- credits -----------------------------------------------------------------------------------------------------------


async def refill(house: House, at: datetime) -> int:
    """Grants what auto-refill promised for the current day, week or month."""

    async def one(team_id: str) -> bool:
        command = RefillCredits(**_signature(at), transaction_id=new_id())
        return await _decide(house, refill_credits, command, CREDIT.stream(team_id), TEAM.stream(team_id))

    refilled = 0
    for period in PERIODS:

        async def some(connection: Connection, after: str | None, period: RefillPeriod = period) -> list[str]:
            first_day = first_day_of(period, at)
            return await due.to_refill(connection, period, first_day, after=after or "", limit=PAGE)

        refilled += await sweep(house, some, one)
    return refilled


async def expire_grants(house: House, at: datetime) -> int:
    """Takes back what is left of grants that have ended."""

    async def some(connection: Connection, after: str | None) -> list[str]:
        return await due.with_ended_grants(connection, at, after=after or "", limit=PAGE)

    async def one(team_id: str) -> bool:
        return await _decide(house, expire_credits, ExpireCredits(**_signature(at)), CREDIT.stream(team_id))

    return await sweep(house, some, one)


# -- jobs and calls ----------------------------------------------------------------------------------------------------


async def interrupt_calls(house: House, at: datetime) -> int:
    """Ends calls whose process cannot be carrying them any more."""

    async def some(connection: Connection, after: OverdueCall | None) -> list[OverdueCall]:
        return await calls.overdue(connection, at, after=after, limit=PAGE)

    async def one(call: OverdueCall) -> bool:
        command = FailCall(**_signature(at), call_id=call.call_id, error="interrupted")
        return await _decide(house, fail_call, command, JOB.stream(call.job_id))

    return await sweep(house, some, one)


async def expire_jobs(house: House, at: datetime) -> int:
    """Ends jobs in which nothing has happened for JOB_EXPIRY_HOURS."""
    idle = timedelta(hours=house.settings.job_expiry_hours)

    async def some(connection: Connection, after: LeftAlone | None) -> list[LeftAlone]:
        return await jobs.left_alone(connection, at - idle, after=after, limit=PAGE)

    async def one(job: LeftAlone) -> bool:
        command = ExpireJob(**_signature(at), charge_id=new_id(), idle=idle)
        return await _decide(house, expire_job, command, JOB.stream(job.job_id), CREDIT.stream(job.team_id))

    return await sweep(house, some, one)


async def cancel_orphaned(house: House, at: datetime) -> int:
    """Cancels open jobs of deleted teams, should the one who deleted a team not have come that far."""
    return await cancel_orphans(house, by=SYSTEM)


# -- tables of our own -------------------------------------------------------------------------------------------------


async def purge_receipts(house: House, at: datetime) -> int:
    """Forgets answers that were kept for repeats; some of them hold secrets."""
    return await _purge(house, _PURGE_RECEIPTS, at - KEPT_FOR)


async def purge_deliveries(house: House, at: datetime) -> int:
    """Forgets what webhooks were told long ago."""
    return await _purge(house, webhooks.PURGE, at - webhooks.KEPT_FOR)


async def forget_webhook_secrets(house: House, at: datetime) -> int:
    """Forgets what signed for webhooks and never will again."""
    async with house.pool.connection() as connection:
        return await webhook_deliveries.forget_secrets(connection, at)


async def purge_conversations(house: House, at: datetime) -> int:
    """Forgets what was said in calls PROMPTS_KEPT_DAYS ago."""
    return await _purge(house, conversations.PURGE, at - timedelta(days=house.settings.prompts_kept_days))


async def rewrap_secrets(house: House, at: datetime) -> int:
    """Encrypts with the newest key what older ones of the ring wrote, so that those can leave it."""
    return await house.secrets.rewrap() + await house.conversations.rewrap()


async def sign_checkpoint(house: House, at: datetime) -> int:
    """Signs how the journal is, if it has grown: nobody can rewrite it behind that unseen."""
    latest = await house.notary.latest()
    signed = await house.notary.checkpoint()
    return int(signed != latest)


async def _purge(house: House, statement: str, before: datetime) -> int:
    purged = 0
    while True:
        async with house.pool.connection() as connection:
            cursor = await connection.execute(statement.encode(), (before, PURGED_AT_ONCE))
        purged += cursor.rowcount
        if cursor.rowcount < PURGED_AT_ONCE:
            return purged


# -- what chores have in common ----------------------------------------------------------------------------------------


def _signature(at: datetime) -> dict[str, Any]:
    return {"at": at, "by": SYSTEM, "request": ""}


async def sweep(
    house: House,
    some: Callable[[Connection, C | None], Awaitable[list[C]]],
    one: Callable[[C], Awaitable[bool]],
) -> int:
    """Goes through all candidates, page by page.

    Args:
        some: the next candidates behind the one given, PAGE at most.
        one: deals with one of them, and says whether there was anything to do.

    Returns:
        For how many there was.
    """
    done = 0
    last: C | None = None
    while True:
        async with house.pool.connection() as connection:
            candidates = await some(connection, last)
        outcomes = await asyncio.gather(*map(one, candidates), return_exceptions=True)
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                _note(candidate, outcome)
            else:
                done += outcome
        if len(candidates) < PAGE:
            return done
        last = candidates[-1]


def _note(candidate: object, problem: BaseException) -> None:
    """One candidate's trouble is its own, unless it is that of everybody."""
    if isinstance(problem, (*OUT_OF_REACH, Unavailable)) or not isinstance(problem, Exception):
        raise problem
    if not isinstance(problem, Refusal):  # a refusal means that things have changed since the read model looked
        log.error("chore.candidate_failed", candidate=str(candidate), exc_info=problem)


async def _decide(house: House, decide: Callable[..., Any], command: Command, *streams: str) -> bool:
    outcome = await house.ledger.carry_out(decide, command, *streams)
    return bool(outcome.events)
