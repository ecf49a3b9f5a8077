"""What tables say about credits is what a replay says: at every position, however the journal was cut into batches."""

import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from typing import Any, get_args

import pytest
from msgspec.structs import replace

from domain import credit
from domain.credit import (
    Account,
    AccountOpened,
    AdjustCredits,
    CreditMovement,
    ExpireCredits,
    GrantCredits,
    GrantKind,
    adjust_credits,
    expire_credits,
    grant_credits,
)
from domain.event import Event
from domain.pricing import ZERO
from domain.streams import CREDIT
from infra import postgres
from infra.journal import Connection, Recorded
from projections import balances, credit_days, due, transactions
from projections.balances import BALANCES, BalanceRecord
from projections.credit_days import CREDIT_DAYS
from projections.due import DUE
from projections.engine import prepare, project
from projections.projection import Batch
from projections.transactions import TRANSACTIONS, Filter, TransactionRecord
from tests.domain.scene import NOON, TERMS, an_id

Run = Callable[[Coroutine[Any, Any, None]], None]

ALL = (BALANCES, TRANSACTIONS, DUE, CREDIT_DAYS)
TEAMS = ("research", "sales", "support")
SEEDS = (1, 2, 3)


# -- a journal of accounts that do whatever they may -------------------------------------------------------------------


@dataclass
class Teller:
    """Moves the credits of one team at random, by the decisions of the domain."""

    team_id: str
    dice: random.Random
    ids: Iterator[int]
    account: Account

    def move(self, at: datetime) -> list[Event]:
        who: dict[str, Any] = {"at": at, "by": "master", "request": ""}
        name, account, credits = an_id(next(self.ids)), self.account, self.dice.randint(1, 9)
        held = self.dice.randint(0, account.held)
        match self.dice.choice(["grant", "grant", "adjust", "hold", "charge", "release", "refund", "expire"]):
            case "grant":
                ends = at + timedelta(hours=self.dice.randint(1, 30)) if self.dice.random() < 0.6 else None
                kind = self.dice.choice(get_args(GrantKind))
                grant = GrantCredits(**who, transaction_id=name, credits=credits, kind=kind, expires_at=ends)
                return grant_credits(account, grant)
            case "adjust":
                credits = self.dice.choice([-credits, credits])
                return adjust_credits(account, AdjustCredits(**who, transaction_id=name, credits=credits, reason="!"))
            case "hold":
                rest: dict[str, Any] = {"job_id": an_id(1), "credits": credits, "overdraft_credits": None}
                return credit.hold(account, at=at, transaction_id=name, **rest)
            case "charge":
                spent: dict[str, Any] = {"terms": TERMS, "client_cost_usd": ZERO, "tokens": 0}
                which: dict[str, Any] = {"transaction_id": name, "job_id": an_id(2)}
                return credit.settle(account, at=at, credits=credits, held_credits=held, **which, **spent)
            case "release":
                return credit.release(account, at=at, charge_id=name, job_id=an_id(1), credits=held)
            case "refund":
                credits = min(credits, account.used)
                if credits <= 0:
                    return []
                return credit.refund(account, at=at, transaction_id=name, job_id=an_id(2), credits=credits, reason=None)
            case _:
                return expire_credits(account, ExpireCredits(**who))


def a_journal(seed: int, moves: int = 120) -> list[Recorded]:
    """Accounts of several teams, opened and moved in turns over a few days."""
    dice, ids, positions = random.Random(seed), count(1000), count(1)
    recorded: list[Recorded] = []
    tellers = []
    for team_id in TEAMS:
        opened = AccountOpened(at=NOON, by="master", team_id=team_id, organization_id="acme")
        recorded.append(Recorded(next(positions), CREDIT.stream(team_id), 1, opened))
        tellers.append(Teller(team_id, dice, ids, credit.evolve(None, opened)))
    at = NOON
    for _ in range(moves):
        at += timedelta(minutes=dice.randint(1, 90))
        teller = dice.choice(tellers)
        for event in teller.move(at):
            event = replace(event, by="master")
            assert isinstance(event, CreditMovement)
            teller.account = credit.evolve(teller.account, event)  # type: ignore[arg-type]
            recorded.append(Recorded(next(positions), CREDIT.stream(teller.team_id), 0, event))
    return recorded


def replayed(events: Sequence[Recorded], team_id: str) -> Account | None:
    """The account after these events."""
    account: Account | None = None
    for recorded in events:
        if recorded.stream == CREDIT.stream(team_id):
            account = credit.evolve(account, recorded.event)  # type: ignore[arg-type]
    return account


def the_account(events: Sequence[Recorded], team_id: str) -> Account:
    account = replayed(events, team_id)
    assert account is not None
    return account


def movements(events: Sequence[Recorded], team_id: str) -> list[CreditMovement]:
    return [each.event for each in events if isinstance(each.event, CreditMovement) and each.event.team_id == team_id]


@asynccontextmanager
async def projected(dsn: str, seed: int) -> AsyncIterator[tuple[Connection, list[Recorded]]]:
    """The tables after a journal that came in batches of all sizes."""
    events, dice = a_journal(seed), random.Random(seed)
    async with await postgres.connect(dsn) as connection:
        await prepare(connection, ALL)
        rest = events
        while rest:
            size = dice.choice([1, 2, 7, 40])
            await project(connection, ALL, Batch(rest[:size]))
            rest = rest[size:]
        yield connection, events


# -- what must be true -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_balances_are_what_a_replay_adds_up_to(runner: Run, database: str, seed: int) -> None:
    async def story() -> None:
        async with projected(database, seed) as (connection, events):
            for team_id in TEAMS:
                assert BalanceRecord.of(the_account(events, team_id)) == await balances.one(connection, team_id)

    runner(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_every_movement_is_a_row_and_each_row_begins_where_the_one_before_ended(
    runner: Run, database: str, seed: int
) -> None:
    async def story() -> None:
        async with projected(database, seed) as (connection, events):
            for team_id in TEAMS:
                everything = Filter(team_id=team_id, with_holds=True)
                rows = await transactions.page(connection, everything, limit=1000, offset=0)
                assert [TransactionRecord.of(event) for event in reversed(movements(events, team_id))] == rows
                assert len(rows) == await transactions.total(connection, everything)
                assert all(newer.credits_before == older.credits_after for newer, older in pairwise(rows))
                assert all(row.credits_amount > 0 for row in rows)
                without = [row for row in rows if row.transaction_type not in transactions.HOLDS]
                default = Filter(team_id=team_id)
                assert without == await transactions.page(connection, default, limit=1000, offset=0)
                assert len(without) == await transactions.total(connection, default)

    runner(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_balance_as_it_was_is_that_of_the_prefix(runner: Run, database: str, seed: int) -> None:
    async def story() -> None:
        async with projected(database, seed) as (connection, events):
            for team_id in TEAMS:
                for number, recorded in enumerate(events, start=1):
                    prefix = events[:number]
                    account = replayed(prefix, team_id)
                    expected = BalanceRecord.of(account) if account and movements(prefix, team_id) else None
                    assert expected == await transactions.balance_at(connection, team_id, recorded.position)
                    if number == len(events) or events[number].event.at > recorded.event.at:
                        moment = recorded.event.at + timedelta(microseconds=1)
                        assert expected == await transactions.balance_at(connection, team_id, moment)

    runner(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_left_of_ending_grants_is_what_the_account_knows(runner: Run, database: str, seed: int) -> None:
    async def story() -> None:
        async with projected(database, seed) as (connection, events):
            cursor = await connection.execute("select team_id, grant_id::text, credits_left from ending_grants")
            expected = {
                (team_id, grant.grant_id, grant.credits_left)
                for team_id in TEAMS
                for grant in the_account(events, team_id).expiring
            }
            assert expected == set(await cursor.fetchall())
            late = NOON + timedelta(days=365)
            assert sorted({team_id for team_id, *_ in expected}) == await due.with_ended_grants(
                connection, late, limit=10
            )

    runner(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_days_add_up_to_what_remains(runner: Run, database: str, seed: int) -> None:
    async def story() -> None:
        async with projected(database, seed) as (connection, events):
            last = events[-1].event.at.date()
            for team_id in TEAMS:
                for days in (1, 3, 365):
                    points = await credit_days.trends(connection, team_id, last=last, days=days)
                    assert days == len(points)
                    for point in points[-3:]:
                        end = datetime.combine(point.day + timedelta(days=1), datetime.min.time(), UTC)
                        account = replayed([each for each in events if each.event.at < end], team_id)
                        assert (account.remaining if account else 0) == point.remaining
            together = await credit_days.trends(connection, None, last=last, days=7)
            assert sum(the_account(events, team_id).remaining for team_id in TEAMS) == together[-1].remaining

    runner(story())
