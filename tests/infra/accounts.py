"""A small business for the tests of journal and ledger: accounts that get and spend credits.

Decisions are as in the domain, but over one kind of stream only, so that a test says what it is about and no more.
"""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from domain.credit import Account, AccountOpened, AdjustCredits, CreditsCharged, GrantCredits, adjust_credits
from domain.credit import grant_credits as grant_credits
from domain.errors import InsufficientCredits
from domain.event import Command, Event
from domain.pricing import ZERO
from domain.team import Budget
from infra import journal, postgres
from infra.journal import Connection, Draft, Recorded
from infra.ledger import Ledger, Outcome
from tests.waiting import eventually

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
ACCOUNT, OTHER = "credit-research", "credit-sales"

_numbers = itertools.count(1)


def who(request: str = "request-1") -> dict[str, Any]:
    return {"at": NOON, "by": "key-1", "request": request}


class Open(Command):
    team_id: str


class Charge(Command):
    job_id: str


def open_account(account: Account | None, command: Open) -> list[Event]:
    if account is not None:
        return []
    return [AccountOpened(at=command.at, team_id=command.team_id, organization_id="acme")]


def spend(account: Account | None, command: AdjustCredits) -> list[Event]:
    """Refuses what the account does not have."""
    assert account is not None
    if account.remaining < -command.credits:
        raise InsufficientCredits(credits_needed=-command.credits, credits_available=account.remaining)
    return adjust_credits(account, command)


def charge_without_looking(account: Account | None, command: Charge) -> list[Event]:
    """A decision with a bug: it charges a job as often as it is asked."""
    assert account is not None
    return [
        CreditsCharged(
            at=command.at,
            transaction_id=f"charge-{next(_numbers)}",
            team_id=account.team_id,
            organization_id=account.organization_id,
            credits=1,
            remaining_credits=account.remaining - 1,
            held_credits=account.held,
            job_id=command.job_id,
            credits_from_hold=0,
            terms=Budget().terms,
            client_cost_usd=ZERO,
            tokens=0,
        )
    ]


def opening(account: str = ACCOUNT, request: str = "request-1") -> Open:
    return Open(**who(request), team_id=account.partition("-")[2])


def granting(credits: int = 10, request: str = "request-1", **more: Any) -> GrantCredits:
    return GrantCredits(**who(request), transaction_id=f"grant-{next(_numbers)}", credits=credits, **more)


def spending(credits: int = 1, request: str = "request-1", **more: Any) -> AdjustCredits:
    return AdjustCredits(**who(request), transaction_id=f"spend-{next(_numbers)}", credits=-credits, **more)


def charging(job_id: str, request: str = "request-1") -> Charge:
    return Charge(**who(request), job_id=job_id)


async def open_with(ledger: Ledger, credits: int, account: str = ACCOUNT) -> Outcome:
    await ledger.carry_out(open_account, opening(account), account)
    return await ledger.carry_out(grant_credits, granting(credits), account)


@asynccontextmanager
async def a_ledger(dsn: str, **options: Any) -> AsyncIterator[Ledger]:
    """A started ledger, stopped at the end."""
    ledger = Ledger(lambda: postgres.connect(dsn, name="ledger"), **options)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.stop()


async def connected(dsn: str) -> Connection:
    return await postgres.connect(dsn, name="test")


async def waiting_for_the_lock(connection: Connection, writers: int) -> None:
    """Until so many others of this database wait for a lock."""

    async def are_waiting() -> bool:
        cursor = await connection.execute(
            "select from pg_locks where not granted and pid in (select pid from pg_locks where database ="
            " (select oid from pg_database where datname = current_database()))"
        )
        return cursor.rowcount >= writers

    await eventually(are_waiting)


async def everything(dsn: str) -> list[Recorded]:
    """The whole journal."""
    async with await connected(dsn) as connection:
        return [event async for page in journal.read_all(connection, 0) for event in page]


def a_draft(*events: tuple[str, Event], **read: int) -> Draft:
    """A draft of events, each with its stream; `read` maps streams to versions, with _ for the hyphen."""
    draft = Draft(read={stream.replace("_", "-"): version for stream, version in read.items()})
    for stream, event in events:
        draft.read.setdefault(stream, 0)
        draft.add(stream, type(event).__name__, journal.encode(event))
    return draft
