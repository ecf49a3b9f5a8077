"""Whatever happens, and wherever one stops: the replay, the read models and a model of plain numbers say the same.

The histories are those of tests/domain/test_accounting.py, wished for through the real ledger. They are projected in
batches of any size; wherever a batch ends, every table is compared. What a balance was is asked for every position and
for every moment of the history.
"""

import asyncio
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Coroutine
from contextlib import AsyncExitStack, ExitStack
from copy import deepcopy
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import cycle
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import pytest
import uvloop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from psycopg.rows import dict_row

from api.app import PROJECTIONS
from api.auditing import audited
from domain import streams
from domain.credit import Account, CreditMovement
from domain.errors import Refusal
from domain.event import Command, Event, State
from domain.job import Job
from domain.statement import CloseStatement, close_statement, next_period, period_bounds, period_of, tally
from domain.team import SetTeamStatus, set_team_status
from infra import journal
from infra.journal import Connection, Recorded
from projections.balances import BalanceRecord
from projections.calls import CallRecord
from projections.jobs import JobRecord
from projections.projection import Batch
from projections.standing import project, set_up
from projections.transactions import TransactionRecord, balance_at
from projections.webhook_deliveries import webhook_deliveries
from tests.conftest import _database_on
from tests.domain.scene import NOON, RESEARCH
from tests.domain.test_accounting import ACCOUNT, THE_TEAM, Accounting
from tests.infra.accounts import a_ledger, connected
from tests.spec import Decision

T = TypeVar("T")
Row = dict[str, Any]

ALL = (*PROJECTIONS, webhook_deliveries((50, 10)))
STATEMENTS = streams.STATEMENT.stream(RESEARCH)
MOMENT = timedelta(microseconds=1)


class History(Accounting):
    """The team of the model over a real ledger, in a database of its own."""

    def __init__(self, owner_dsn: str, template: str) -> None:
        self.things = ExitStack()
        name = f"history_{secrets.token_hex(4)}"
        self.dsn = self.things.enter_context(_database_on(owner_dsn, name, template))
        self.runner = self.things.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        self.sizes = [1]
        self.written: list[Recorded] = []
        self.sums: list[tuple[int, int, int]] = []  # allocated, used and held after each event, as the auditor adds up
        self.models: dict[int, tuple[Row, dict[str, Row]]] = {}  # account and jobs, where a command has ended
        self.months: list[Row] = []
        self.run(self.open())
        super().__init__()

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(doing)

    async def open(self) -> None:
        self.connections = AsyncExitStack()
        self.ledger = await self.connections.enter_async_context(a_ledger(self.dsn))
        self.connection: Connection = await self.connections.enter_async_context(await connected(self.dsn))

    # -- the ledger ------------------------------------------------------------------------------------------

    def append(self, stream: str, event: Event) -> None:
        assert self.carry_out(lambda state, wish: [event], Command(**self.who()), stream) == 1

    def carry_out(self, decide: Decision, command: Command, *names: str) -> Refusal | int:
        try:
            outcome = self.run(self.ledger.carry_out(decide, command, *names))
        except Refusal as refusal:
            return refusal
        new = self.run(journal.read(self.connection, len(self.written), 100))
        for recorded in new:
            super().append(recorded.stream, recorded.event)
            self.written.append(recorded)
            held = sum(self.audit.held_by.values())
            self.sums.append((self.audit.allocated, self.audit.used, held))
        assert tuple(map(self.states.get, names)) == outcome.states
        assert len(new) == len(outcome.events)
        return len(new)

    # -- what else happens -----------------------------------------------------------------------------------

    @initialize(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
    def batches_have_any_size(self, sizes: list[int]) -> None:
        self.sizes = sizes

    @rule(status=st.sampled_from(["suspended", "paused"]))
    def the_team_is_stopped_for_a_while(self, status: Any) -> None:
        assert self.carry_out(set_team_status, SetTeamStatus(**self.who(), status=status), THE_TEAM) == 1
        assert self.carry_out(set_team_status, SetTeamStatus(**self.who(), status="active"), THE_TEAM) == 1

    @rule()
    def a_month_is_closed(self) -> None:
        last = self.months[-1] if self.months else {"period": None, "closing_credits": 0, "position": 0}
        period = period_of(NOON) if last["period"] is None else next_period(last["period"])
        _, ends_at = period_bounds(period)
        if self.now < ends_at:
            self.time_passes_and_credits_end(hours=(ends_at - self.now) // timedelta(hours=1) + 1)
        covered = [
            each
            for each in self.written[last["position"] :]
            if isinstance(each.event, CreditMovement) and each.event.at < ends_at
        ]
        position = covered[-1].position if covered else last["position"]
        allocated, used, _ = self.sums[position - 1]
        wish = CloseStatement(
            **self.who(),
            period=period,
            after_position=last["position"],
            position=position,
            head_hash=self.run(self.hash_at(position)),
            closing_credits=allocated - used,
            totals=tally(each.event for each in covered),
        )
        assert self.carry_out(close_statement, wish, STATEMENTS, THE_TEAM) == 1
        self.months.append(
            {
                "at": len(self.written),
                "period": period,
                "position": position,
                "opening_credits": last["closing_credits"],
                "closing_credits": allocated - used,
            }
        )

    async def hash_at(self, position: int) -> str:
        found = await self.connection.execute("select hash from journal.events where notification_id = %s", [position])
        [digest] = await found.fetchone() or [bytes(32)]
        return bytes(digest).hex()

    @invariant()
    def the_model_is_remembered(self) -> None:
        self.models[len(self.written)] = deepcopy((self.account, self.job))

    # -- what everybody says of it ---------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            super().teardown()
            self.run(self.look_back())
            assert [] == audited(self.dsn).findings
        finally:
            self.run(self.connections.aclose())
            self.things.close()

    async def look_back(self) -> None:
        await set_up(self.connection, ALL)
        states: dict[str, State] = {}
        position = 0
        for size in cycle(self.sizes):
            batch = self.written[position : position + size]
            if not batch:
                break
            await project(self.connection, ALL, Batch(batch))
            states |= {stream: state for stream, _, _, state in self.journal[position : position + size]}
            position += len(batch)
            await self.compare(position, states)
        await self.compare_what_was()

    async def compare(self, position: int, states: dict[str, State]) -> None:
        """Every table beside the replay, and the amounts also beside the plain numbers."""
        account = states.get(ACCOUNT)
        jobs = {state.job_id: state for state in states.values() if isinstance(state, Job)}
        calls = [call for job in jobs.values() for call in (*job.ended, *job.running.values())]
        entries = [each for each in self.written[:position] if isinstance(each.event, CreditMovement)]
        balances = await self.rows("balances")
        assert same([] if account is None else [BalanceRecord.of(account)], balances)  # type: ignore[arg-type]
        assert same([JobRecord.of(job) for job in jobs.values()], await self.rows("jobs"))
        assert same([CallRecord.of(call) for call in calls], await self.rows("calls"))
        assert same([TransactionRecord.of(each.event) for each in entries], await self.rows("transactions"))  # type: ignore[arg-type]
        counted = {row["transaction_type"]: row["transactions"] for row in await self.rows("transaction_counts")}
        assert Counter(TransactionRecord.of(each.event).transaction_type for each in entries) == counted  # type: ignore[arg-type]
        for row in balances:
            assert self.sums[position - 1] == (row["credits_allocated"], row["credits_used"], row["credits_held"])
        await self.compare_sums(jobs)
        await self.compare_days(position)
        await self.compare_months(position)
        if position in self.models:
            await self.compare_with_the_model(*self.models[position])

    async def compare_with_the_model(self, account: Row, jobs: dict[str, Row]) -> None:
        [balance] = await self.rows("balances")
        held = sum(job["held"] for job in jobs.values())
        assert (account["allocated"], account["used"], held) == (
            balance["credits_allocated"],
            balance["credits_used"],
            balance["credits_held"],
        )
        expected = {
            job_id: (job["status"], job["charged"], job["refunded"], job["tokens"], job["cost"])
            for job_id, job in jobs.items()
        }
        assert expected == {
            row["job_id"]: (
                row["status"],
                row["credits_charged"],
                row["credits_refunded"],
                row["total_tokens"],
                Fraction(row["client_cost_usd"]),
            )
            for row in await self.rows("jobs")
        }

    async def compare_sums(self, jobs: dict[str, Job]) -> None:
        """Usage and costs are what the jobs and their calls add up to, however they are grouped."""
        days: dict[tuple[date, str], Counter[str]] = defaultdict(Counter)
        models: dict[tuple[date, str, str | None], Counter[str]] = defaultdict(Counter)
        for job in jobs.values():
            day = job.created_at.date()
            days[day, job.job_type] += tallied(
                total_jobs=1,
                completed_jobs=job.status == "completed",
                failed_jobs=job.status == "failed",
                cancelled_jobs=job.status == "cancelled",
                credits_charged=job.credits_charged,
                credits_refunded=job.credits_refunded,
                successful_calls=job.successful_calls,
                failed_calls=job.failed_calls,
                total_tokens=job.tokens,
                client_cost_usd=job.client_cost_usd,
                provider_cost_usd=job.provider_cost_usd,
            )
            for call in map(CallRecord.of, job.ended):
                models[day, job.job_type, call.model] += tallied(
                    successful_calls=call.error is None,
                    failed_calls=call.error is not None,
                    prompt_tokens=call.prompt_tokens,
                    completion_tokens=call.completion_tokens,
                    client_cost_usd=call.client_cost_usd,
                    provider_cost_usd=call.provider_cost_usd,
                )
        by_day = await self.rows("usage_by_day")
        assert days == summed(by_day, ("day", "job_type"), days)
        by_model = await self.rows("usage_by_model")
        assert models == summed(by_model, ("day", "job_type", "model"), models)
        [total] = await self.rows("usage_by_team") or [tallied()]
        whole = sum(days.values(), Counter())
        assert whole["total_jobs"] == total["total_jobs"]
        assert whole["client_cost_usd"] == total["client_cost_usd"]
        assert whole["credits_charged"] - whole["credits_refunded"] == total["credits_used"]

    async def compare_days(self, position: int) -> None:
        """What a day brought is by how much allocated and used credits are others after it than before."""
        days: dict[date, tuple[int, int]] = {}
        allocated_before, used_before = 0, 0
        for recorded, (allocated, used, _) in zip(self.written[:position], self.sums, strict=False):
            if (allocated, used) != (allocated_before, used_before):
                got, spent = days.get(recorded.event.at.date(), (0, 0))
                days[recorded.event.at.date()] = got + allocated - allocated_before, spent + used - used_before
            allocated_before, used_before = allocated, used
        for table in ("credit_days", "credit_days_of_all"):
            rows = {row["day"]: (row["got"], row["used"]) for row in await self.rows(table)}
            assert days == rows

    async def compare_months(self, position: int) -> None:
        closed = [month for month in self.months if month["at"] <= position]
        rows = sorted(await self.rows("statements"), key=lambda row: str(row["period"]))
        assert len(closed) == len(rows)
        for month, row in zip(closed, rows, strict=True):
            assert {**month, **row} == {**row, "at": month["at"]}

    async def compare_what_was(self) -> None:
        """A balance as of any position and any moment is the one that was recorded then."""
        by_position: dict[int, Account] = {}
        by_moment: dict[datetime, Account | None] = {}
        account: Account | None = None
        for recorded, (stream, _, _, state) in zip(self.written, self.journal, strict=True):
            by_moment.setdefault(recorded.event.at, account)
            if stream == ACCOUNT and isinstance(recorded.event, CreditMovement):
                assert isinstance(state, Account)
                account = state
            if account is not None:
                by_position[recorded.position] = account
            by_moment[recorded.event.at + MOMENT] = account
        for position in range(len(self.written) + 2):
            then = by_position.get(position, account if position > len(self.written) else None)
            await self.compare_as_of(position, then)
        for moment, then in by_moment.items():
            await self.compare_as_of(moment, then)

    async def compare_as_of(self, then: int | datetime, account: Account | None) -> None:
        expected = None if account is None else BalanceRecord.of(account)
        async with self.connection.transaction():
            await self.connection.execute("set local search_path = readmodel")
            assert expected == await balance_at(self.connection, RESEARCH, then)

    async def rows(self, table: str) -> list[Row]:
        async with self.connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(f"select * from readmodel.{table}".encode())
            rows = await cursor.fetchall()
        return [{name: str(each) if isinstance(each, UUID) else each for name, each in row.items()} for row in rows]


def same(expected: list[Any], rows: list[Row]) -> bool:
    """Whether there is a row for each record, with all that it says."""
    records = [msgspec.structs.asdict(record) for record in expected]
    found = [{name: row[name] for name in record} for record in records[:1] for row in rows]
    assert sorted(map(repr, normal(records))) == sorted(map(repr, normal(found)))
    return len(records) == len(rows)


def normal(rows: list[Row]) -> list[Row]:
    return [{name: _normal(each) for name, each in row.items()} for row in rows]


def _normal(value: Any) -> Any:
    """Equal amounts and moments, however they are written."""
    if isinstance(value, datetime):
        return value.timestamp()
    return Fraction(value) if isinstance(value, Decimal) else value


def tallied(**amounts: Any) -> Counter[str]:
    return Counter(amounts)


def summed(rows: list[Row], key: tuple[str, ...], like: dict[Any, Counter[str]]) -> dict[Any, Counter[str]]:
    """Rows by their key, with the amounts that the others have."""
    names = {name for amounts in like.values() for name in amounts}
    found: dict[Any, Counter[str]] = defaultdict(Counter)
    for row in rows:
        found[tuple(row[name] for name in key)] += Counter({name: row[name] for name in names})
    return found


def look_at_histories(owner_dsn: str, template: str, examples: int, steps: int) -> None:
    few = settings(max_examples=examples, stateful_step_count=steps, derandomize="CI" in os.environ)
    run_state_machine_as_test(lambda: History(owner_dsn, template), settings=few)  # type: ignore[no-untyped-call]


@pytest.mark.timeout(300)
def test_replay_read_models_and_a_plain_model_agree_at_every_prefix(owner_dsn: str, template: str) -> None:
    look_at_histories(owner_dsn, template, examples=8, steps=20)


@pytest.mark.proof
def test_they_agree_at_every_prefix_of_long_histories(owner_dsn: str, template: str) -> None:
    look_at_histories(owner_dsn, template, examples=15 if os.environ.get("PROOFS") == "short" else 150, steps=50)
