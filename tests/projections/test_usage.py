"""Usage, added up by day: exact whatever the period, and however the events arrive."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import product
from typing import Any, TypeVar
from uuid import UUID

import pytest

from domain.event import Event
from domain.job import (
    CallError,
    CallFailed,
    CallFinished,
    CallStarted,
    ChargeRefunded,
    JobCancelled,
    JobCompleted,
    JobCreated,
    JobExpired,
    JobFailed,
)
from infra import postgres
from infra.journal import Connection, Recorded
from projections import jobs, usage
from projections.calls import CALLS
from projections.engine import prepare, project
from projections.jobs import JOBS
from projections.projection import Batch
from projections.usage import USAGE, Span, UsageRecord

T = TypeVar("T")

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
READ_MODELS = (JOBS, CALLS, USAGE)
SEED = 20260101


class Past:
    """A past of random jobs of two organizations over three months."""

    def __init__(self, seed: int = SEED, jobs: int = 60) -> None:
        self._random = random.Random(seed)
        self.events: list[Event] = []
        for number in range(jobs):
            self._job(number)
        self.events.sort(key=lambda event: event.at)

    def _job(self, number: int) -> None:
        choose = self._random
        organization, team = choose.choice([("acme", "red"), ("acme", "blue"), ("zeta", "green")])
        at = NEW_YEAR + timedelta(seconds=choose.randrange(90 * 86400))
        facts: dict[str, Any] = {"team_id": team, "organization_id": organization}
        job_id = str(UUID(int=number))
        kind = choose.choice(["chat", "summary"])
        self.events.append(JobCreated(at=at, job_id=job_id, **facts, job_type=kind, metadata={}))
        for call in range(choose.randrange(4)):
            at += timedelta(hours=choose.randrange(1, 20))
            self._call(at, job_id, str(UUID(int=number * 10 + call)), facts)
        at += timedelta(hours=5)
        credits = choose.randrange(1, 9)
        end: dict[str, Any] = {
            "at": at,
            "job_id": job_id,
            **facts,
            "credits_remaining": 0,
            "total_calls": 0,
            "duration_seconds": 1,
        }
        unpaid: dict[str, Any] = {"credit_applied": False, "credits_charged": 0}
        match choose.randrange(5):
            case 0:
                self.events.append(JobFailed(**end, **unpaid))
            case 1:
                self.events.append(JobCancelled(**end, **unpaid))
            case 2:
                self.events.append(JobExpired(**end, credit_applied=True, credits_charged=credits))
            case 3:
                self.events.append(JobCompleted(**end, credit_applied=True, credits_charged=credits))
                later = at + timedelta(days=40)
                refund = ChargeRefunded(at=later, job_id=job_id, transaction_id=job_id, credits=1)
                self.events.append(refund)

    def _call(self, at: datetime, job_id: str, call_id: str, facts: dict[str, Any]) -> None:
        choose = self._random
        model = choose.choice(["fast", "clever"])
        self.events.append(
            CallStarted(
                at=at,
                job_id=job_id,
                **facts,
                call_id=call_id,
                model=model,
                targets=(),
                purpose=choose.choice([None, "draft"]),
                streaming=False,
                estimated_tokens=1,
                estimated_cost_usd=Decimal(0),
                held_credits=0,
                terms=None,
                deadline=at,
                request_sha256="",
                request_bytes=0,
            )
        )
        ended: dict[str, Any] = {"at": at + timedelta(seconds=3), "job_id": job_id, **facts, "call_id": call_id}
        cost = Decimal(choose.randrange(1, 10**9)).scaleb(-8)
        if choose.random() < 0.3:
            error: CallError = choose.choice(["provider_error", "request_rejected"])
            self.events.append(CallFailed(**ended, error=error, provider_error=None, http_status=None, latency_ms=None))
            return
        self.events.append(
            CallFinished(
                **ended,
                target=model,
                alias=model,
                provider="openai",
                resolved_model=f"openai/{model}",
                prompt_tokens=choose.randrange(1000),
                completion_tokens=choose.randrange(1000),
                usage_estimated=False,
                price_input_usd_per_million=Decimal(1),
                price_output_usd_per_million=Decimal(1),
                unpriced=False,
                markup_percentage=Decimal(0),
                input_cost_usd=cost,
                output_cost_usd=Decimal(0),
                provider_cost_usd=cost,
                client_cost_usd=cost * 2,
                latency_ms=choose.randrange(3000),
                finish_reason="stop",
                partial=False,
                response_sha256=None,
                response_bytes=0,
            )
        )


@asynccontextmanager
async def projected(dsn: str, events: Sequence[Event], batch: int = 1000) -> AsyncIterator[Connection]:
    """The read models after these events, which came in batches of this size."""
    async with await postgres.connect(dsn) as connection:
        await prepare(connection, READ_MODELS)
        recorded = [Recorded(number, "", number, event) for number, event in enumerate(events, 1)]
        for first in range(0, len(recorded), batch):
            await project(connection, READ_MODELS, Batch(recorded[first : first + batch]))
        await connection.execute("set search_path = readmodel")
        yield connection


def on(dsn: str, events: Sequence[Event], ask: Callable[[Connection], Awaitable[T]], batch: int = 1000) -> T:
    async def asked() -> T:
        async with projected(dsn, events, batch) as connection:
            return await ask(connection)

    return asyncio.run(asked())


async def rows(connection: Connection, select: str) -> list[Any]:
    return await (await connection.execute(select.encode())).fetchall()


_DAYS = """
    select team_id, day, job_type, organization_id, total_jobs, completed_jobs, failed_jobs, cancelled_jobs,
           credits_charged, credits_refunded, successful_calls, failed_calls, total_tokens, provider_cost_usd,
           client_cost_usd
    from usage_by_day order by 1, 2, 3
"""

_DAYS_OF_JOBS = """
    select team_id, (created_at at time zone 'UTC')::date as day, job_type, organization_id, count(*),
           count(*) filter (where status = 'completed'), count(*) filter (where status = 'failed'),
           count(*) filter (where status = 'cancelled'), sum(credits_charged), sum(credits_refunded),
           sum(successful_calls), sum(failed_calls), sum(total_tokens), sum(provider_cost_usd), sum(client_cost_usd)
    from jobs group by 1, 2, 3, 4 order by 1, 2, 3
"""

_MODELS = """
    select team_id, day, organization_id, job_type, model, purpose, provider, resolved_model, successful_calls,
           failed_calls, rejected_calls, prompt_tokens, completion_tokens, latency_ms, latencies, provider_cost_usd,
           client_cost_usd
    from usage_by_model order by 1, 2, 3, 4, 5, 6, 7, 8
"""

_MODELS_OF_CALLS = """
    select jobs.team_id, (jobs.created_at at time zone 'UTC')::date, jobs.organization_id, job_type, model,
           coalesce(purpose, ''), coalesce(provider, ''), coalesce(resolved_model, ''),
           count(*) filter (where calls.status = 'completed'), count(*) filter (where calls.status = 'failed'),
           count(*) filter (where calls.error = 'request_rejected'), sum(prompt_tokens), sum(completion_tokens),
           coalesce(sum(calls.latency_ms), 0), count(calls.latency_ms), sum(calls.provider_cost_usd),
           sum(calls.client_cost_usd)
    from calls join jobs using (job_id) where calls.status <> 'running'
    group by 1, 2, 3, 4, 5, 6, 7, 8 order by 1, 2, 3, 4, 5, 6, 7, 8
"""


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_sums_are_those_of_the_jobs_and_calls_however_events_arrive(database: str, batch: int) -> None:
    async def ask(connection: Connection) -> None:
        assert await rows(connection, _DAYS_OF_JOBS) == await rows(connection, _DAYS)
        assert await rows(connection, _MODELS_OF_CALLS) == await rows(connection, _MODELS)

    on(database, Past().events, ask, batch)


def test_totals_are_the_sum_of_all_days(database: str) -> None:
    async def ask(connection: Connection) -> None:
        everything = Span.of(None, None)
        for team in ("red", "blue", "green"):
            totals = await usage.totals_of_team(connection, team)
            records = await usage.of_team(connection, team, everything)
            assert totals.total_jobs == sum(record.total_jobs for record in records)
            assert totals.credits_used == sum(record.credits_used for record in records)
            assert totals.client_cost_usd == sum(record.client_cost_usd for record in records)
        acme = await usage.totals_of_organization(connection, "acme")
        red, blue = [await usage.totals_of_team(connection, team) for team in ("red", "blue")]
        assert acme.total_jobs == red.total_jobs + blue.total_jobs
        assert acme.client_cost_usd == red.client_cost_usd + blue.client_cost_usd
        assert 0 == (await usage.totals_of_team(connection, "nobody")).total_jobs

    on(database, Past().events, ask)


def test_a_list_says_how_many_jobs_it_has_in_all(database: str) -> None:
    some: dict[str, list[str | None]] = {
        "team_id": [None, "red", "nobody"],
        "organization_id": [None, "acme"],
        "status": [None, "pending", "in_progress", "completed", "failed", "cancelled"],
        "job_type": [None, "chat"],
    }

    async def ask(connection: Connection) -> None:
        for values in product(*some.values()):
            wanted = dict(zip(some, values, strict=True))
            found, total = await jobs.page(connection, {**wanted, "limit": 1000, "offset": 0})
            assert len(found) == total, wanted

    on(database, Past().events, ask)


def test_any_period_is_exact_to_the_microsecond(database: str) -> None:
    choose = random.Random(SEED)
    moments = [NEW_YEAR + timedelta(seconds=choose.randrange(-86400, 100 * 86400)) for _ in range(40)]
    moments += [moment.replace(hour=0, minute=0, second=0) for moment in moments]
    moments += [event.at for event in Past().events if isinstance(event, JobCreated)]
    spans = [Span(*sorted(choose.sample(moments, 2))) for _ in range(150)]
    spans += [Span(moment, moment) for moment in moments[:3]]

    async def ask(connection: Connection) -> None:
        for span in spans:
            expected = await rows_of_jobs(connection, span)
            found = await usage.of_organization(connection, "acme", span)
            assert expected == [summary_of(record) for record in found], span
            costs = await usage.costs_of_organization(connection, "acme", span)
            assert sum(each[-1] for each in expected) == sum(cost.client_cost_usd for cost in costs), span

    on(database, Past().events, ask)


def test_a_period_that_ends_before_it_begins_is_empty(database: str) -> None:
    async def ask(connection: Connection) -> list[UsageRecord]:
        return await usage.of_team(connection, "red", Span(NEW_YEAR + timedelta(days=50), NEW_YEAR))

    assert [] == on(database, Past().events, ask)


def test_jobs_of_a_period_are_as_many_as_it_says(database: str) -> None:
    span = Span(NEW_YEAR + timedelta(days=10, hours=5), NEW_YEAR + timedelta(days=60, hours=1))

    async def ask(connection: Connection) -> None:
        records = await usage.of_team(connection, "red", span)
        found = await usage.jobs_of_team(connection, "red", span, limit=1000, offset=0)
        assert len(found) == sum(record.total_jobs for record in records)
        moments = [job.created_at for job in found]
        assert moments == sorted(moments, reverse=True)
        pages = [
            job
            for offset in range(0, len(found), 3)
            for job in await usage.jobs_of_team(connection, "red", span, limit=3, offset=offset)
        ]
        assert found == pages

    on(database, Past().events, ask)


def test_names_too_long_for_an_index_are_counted_all_the_same(database: str) -> None:
    events = Past(jobs=12).events
    long = "".join(random.Random(SEED).choices([chr(code) for code in range(0x10000, 0x10FFF)], k=250))
    for number, event in enumerate(events):
        changes: dict[str, Any] = {}
        if hasattr(event, "team_id"):
            changes["team_id"] = long
        if isinstance(event, JobCreated):
            changes["job_type"] = long[:100]
        if isinstance(event, CallStarted):
            changes |= {"model": long[:200], "purpose": long[:200]}
        if isinstance(event, CallFinished):
            changes |= {"resolved_model": long, "provider": long}
        events[number] = type(event)(**{**{name: getattr(event, name) for name in event.__struct_fields__}, **changes})

    async def ask(connection: Connection) -> list[UsageRecord]:
        return await usage.of_team(connection, long, Span.of(None, None))

    assert [12] == [record.total_jobs for record in on(database, events, ask)]


def test_a_span_knows_its_whole_days_and_its_edges() -> None:
    def moment(day: int, hour: int = 0) -> datetime:
        return datetime(2026, 1, day, hour, tzinfo=UTC)

    span = Span(moment(1, 10), moment(4, 12)).parameters()
    assert (date(2026, 1, 2), date(2026, 1, 4)) == (span["first_day"], span["end_day"])
    assert (moment(1, 10), moment(2)) == (span["head_start"], span["head_end"])
    assert (moment(4), moment(4, 12)) == (span["tail_start"], span["tail_end"])
    same_day = Span(moment(1, 10), moment(1, 12)).parameters()
    assert same_day["first_day"] > same_day["end_day"]
    assert (moment(1, 10), moment(1, 12)) == (same_day["head_start"], same_day["head_end"])
    assert same_day["tail_start"] == same_day["tail_end"]


def summary_of(record: UsageRecord) -> tuple[Any, ...]:
    return (
        record.team_id,
        record.job_type,
        record.total_jobs,
        record.completed_jobs,
        record.failed_jobs,
        record.credits_used,
        record.total_tokens,
        record.client_cost_usd,
    )


async def rows_of_jobs(connection: Connection, span: Span) -> list[Any]:
    """The same, counted job by job."""
    cursor = await connection.execute(
        """
        select team_id, job_type, count(*), count(*) filter (where status = 'completed'),
               count(*) filter (where status = 'failed'), sum(credits_charged - credits_refunded)::bigint,
               sum(total_tokens)::bigint, sum(client_cost_usd)
        from jobs
        where organization_id = 'acme' and created_at >= %s and created_at < %s
        group by 1, 2 order by 1, 2
        """,
        (span.start, span.end),
    )
    return await cursor.fetchall()
