"""Usage, added up: what jobs and their calls came to, by day, so that years of it are read in a moment.

    usage_by_day    one row for each day, team and job type: jobs by outcome, credits, and their calls' totals
    usage_by_model  one row for each day, team, job type, requested model, purpose, provider and provider's model:
                    their calls
    usage_by_month  one row for each month, team, requested model, provider and provider's model: their calls
    usage_of_house  one row for each day, job type, requested model, purpose, provider and provider's model: the calls
                    of all teams
    usage_by_team   one row a team: everything so far

Where teams are many and each does a little of everything, a day of a team is hardly fewer rows than its calls. So who
asks about all of them is answered by month, or by day without the teams.

Everything counts on the day, in UTC, on which its job was created, also a call or a refund of later days: so the parts
of a job are never in two periods. Figures are sums of whole numbers and of the calls' 8-decimal amounts, hence exact.
Users and external tasks are not in the grain, they are as many as jobs.

`jobs` and `calls` come first in each batch: days, types and models of what has ended are looked up there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from domain.job import (
    CallFailed,
    CallFinished,
    ChargeRefunded,
    JobCancelled,
    JobCompleted,
    JobCreated,
    JobEnd,
    JobExpired,
    JobFailed,
)
from domain.pricing import ZERO, add
from infra.journal import Connection
from projections import jobs
from projections.jobs import JobRecord
from projections.projection import Batch, Projection, Statement
from projections.reading import fetch_all, fetch_one

DDL = """
create table usage_by_day (
    team_id           text not null,
    day               date not null,
    job_type          text not null,
    organization_id   text not null,
    total_jobs        bigint not null,
    completed_jobs    bigint not null,
    failed_jobs       bigint not null,
    cancelled_jobs    bigint not null,
    credits_charged   bigint not null,
    credits_refunded  bigint not null,
    successful_calls  bigint not null,
    failed_calls      bigint not null,
    total_tokens      bigint not null,
    provider_cost_usd numeric not null,
    client_cost_usd   numeric not null,
    primary key (team_id, day, job_type)
);

create table usage_by_model (
    team_id           text not null,
    day               date not null,
    row_key           bytea not null, -- of all the names below, which together are too long for an index
    organization_id   text not null,
    job_type          text not null,
    model             text not null,
    purpose           text not null,
    provider          text not null,
    resolved_model    text not null,
    successful_calls  bigint not null,
    failed_calls      bigint not null,
    rejected_calls    bigint not null,
    prompt_tokens     bigint not null,
    completion_tokens bigint not null,
    latency_ms        bigint not null,
    latencies         bigint not null,
    provider_cost_usd numeric not null,
    client_cost_usd   numeric not null,
    primary key (team_id, day, row_key)
);
create index usage_by_model_of_day on usage_by_model (day);

create table usage_by_month (
    team_id           text not null,
    month             date not null,
    row_key           bytea not null,
    organization_id   text not null,
    model             text not null,
    provider          text not null,
    resolved_model    text not null,
    successful_calls  bigint not null,
    failed_calls      bigint not null,
    prompt_tokens     bigint not null,
    completion_tokens bigint not null,
    provider_cost_usd numeric not null,
    client_cost_usd   numeric not null,
    primary key (team_id, month, row_key)
);
create index usage_by_month_of_all on usage_by_month (month, team_id);

create table usage_of_house (
    day               date not null,
    row_key           bytea not null,
    job_type          text not null,
    model             text not null,
    purpose           text not null,
    provider          text not null,
    resolved_model    text not null,
    successful_calls  bigint not null,
    failed_calls      bigint not null,
    prompt_tokens     bigint not null,
    completion_tokens bigint not null,
    provider_cost_usd numeric not null,
    client_cost_usd   numeric not null,
    primary key (day, row_key)
);

create table usage_by_team (
    team_id           text primary key,
    organization_id   text not null,
    total_jobs        bigint not null,
    completed_jobs    bigint not null,
    failed_jobs       bigint not null,
    cancelled_jobs    bigint not null,
    credits_used      bigint not null,
    client_cost_usd   numeric not null
);
create index usage_by_team_of_organization on usage_by_team (organization_id);
"""

_COUNT_JOBS = """
with change as (
    select jobs.team_id, (jobs.created_at at time zone 'UTC')::date as day, jobs.job_type,
           max(jobs.organization_id) as organization_id, sum(row.total_jobs) as total_jobs,
           sum(row.completed_jobs) as completed_jobs, sum(row.failed_jobs) as failed_jobs,
           sum(row.cancelled_jobs) as cancelled_jobs, sum(row.credits_charged) as credits_charged,
           sum(row.credits_refunded) as credits_refunded,
           sum(row.successful_calls) as successful_calls, sum(row.failed_calls) as failed_calls,
           sum(row.total_tokens) as total_tokens, sum(row.provider_cost_usd) as provider_cost_usd,
           sum(row.client_cost_usd) as client_cost_usd
    from json_to_recordset(%s) as row (
        job_id uuid, total_jobs bigint, completed_jobs bigint, failed_jobs bigint, cancelled_jobs bigint,
        credits_charged bigint, credits_refunded bigint, successful_calls bigint, failed_calls bigint,
        total_tokens bigint, provider_cost_usd numeric, client_cost_usd numeric)
    join jobs using (job_id)
    group by jobs.team_id, day, jobs.job_type
), total as (
    insert into usage_by_team as usage (
        team_id, organization_id, total_jobs, completed_jobs, failed_jobs, cancelled_jobs, credits_used,
        client_cost_usd)
    select team_id, max(organization_id), sum(total_jobs), sum(completed_jobs), sum(failed_jobs), sum(cancelled_jobs),
           sum(credits_charged - credits_refunded), sum(client_cost_usd)
    from change
    group by team_id
    on conflict (team_id) do update
    set total_jobs = usage.total_jobs + excluded.total_jobs,
        completed_jobs = usage.completed_jobs + excluded.completed_jobs,
        failed_jobs = usage.failed_jobs + excluded.failed_jobs,
        cancelled_jobs = usage.cancelled_jobs + excluded.cancelled_jobs,
        credits_used = usage.credits_used + excluded.credits_used,
        client_cost_usd = usage.client_cost_usd + excluded.client_cost_usd
)
insert into usage_by_day as usage (
    team_id, day, job_type, organization_id, total_jobs, completed_jobs, failed_jobs, cancelled_jobs, credits_charged,
    credits_refunded, successful_calls, failed_calls, total_tokens, provider_cost_usd, client_cost_usd)
select team_id, day, job_type, organization_id, total_jobs, completed_jobs, failed_jobs, cancelled_jobs,
       credits_charged, credits_refunded, successful_calls, failed_calls, total_tokens, provider_cost_usd,
       client_cost_usd
from change
on conflict (team_id, day, job_type) do update
set total_jobs = usage.total_jobs + excluded.total_jobs,
    completed_jobs = usage.completed_jobs + excluded.completed_jobs,
    failed_jobs = usage.failed_jobs + excluded.failed_jobs,
    cancelled_jobs = usage.cancelled_jobs + excluded.cancelled_jobs,
    credits_charged = usage.credits_charged + excluded.credits_charged,
    credits_refunded = usage.credits_refunded + excluded.credits_refunded,
    successful_calls = usage.successful_calls + excluded.successful_calls,
    failed_calls = usage.failed_calls + excluded.failed_calls,
    total_tokens = usage.total_tokens + excluded.total_tokens,
    provider_cost_usd = usage.provider_cost_usd + excluded.provider_cost_usd,
    client_cost_usd = usage.client_cost_usd + excluded.client_cost_usd
"""

_COUNT_CALLS = """
with change as (
    select jobs.team_id, (jobs.created_at at time zone 'UTC')::date as day, jobs.job_type, calls.model,
           coalesce(calls.purpose, '') as purpose, coalesce(calls.provider, '') as provider,
           coalesce(calls.resolved_model, '') as resolved_model, max(jobs.organization_id) as organization_id,
           count(*) filter (where calls.error is null) as successful_calls,
           count(*) filter (where calls.error is not null) as failed_calls,
           count(*) filter (where calls.error = 'request_rejected') as rejected_calls,
           sum(calls.prompt_tokens) as prompt_tokens, sum(calls.completion_tokens) as completion_tokens,
           coalesce(sum(calls.latency_ms), 0) as latency_ms, count(calls.latency_ms) as latencies,
           sum(calls.provider_cost_usd) as provider_cost_usd, sum(calls.client_cost_usd) as client_cost_usd
    from json_to_recordset(%s) as row (call_id uuid)
    join calls using (call_id)
    join jobs using (job_id)
    group by 1, 2, 3, 4, 5, 6, 7
), by_month as (
    insert into usage_by_month as usage (
        team_id, month, row_key, organization_id, model, provider, resolved_model, successful_calls, failed_calls,
        prompt_tokens, completion_tokens, provider_cost_usd, client_cost_usd)
    select team_id, month, sha256(convert_to(json_build_array(model, provider, resolved_model)::text, 'UTF8')),
           max(organization_id), model, provider, resolved_model, sum(successful_calls), sum(failed_calls),
           sum(prompt_tokens), sum(completion_tokens), sum(provider_cost_usd), sum(client_cost_usd)
    from (select *, date_trunc('month', day::timestamp)::date as month from change) as change
    group by team_id, month, model, provider, resolved_model
    on conflict (team_id, month, row_key) do update
    set successful_calls = usage.successful_calls + excluded.successful_calls,
        failed_calls = usage.failed_calls + excluded.failed_calls,
        prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = usage.completion_tokens + excluded.completion_tokens,
        provider_cost_usd = usage.provider_cost_usd + excluded.provider_cost_usd,
        client_cost_usd = usage.client_cost_usd + excluded.client_cost_usd
), of_house as (
    insert into usage_of_house as usage (
        day, row_key, job_type, model, purpose, provider, resolved_model, successful_calls, failed_calls,
        prompt_tokens, completion_tokens, provider_cost_usd, client_cost_usd)
    select day, sha256(convert_to(json_build_array(job_type, model, purpose, provider, resolved_model)::text, 'UTF8')),
           job_type, model, purpose, provider, resolved_model, sum(successful_calls), sum(failed_calls),
           sum(prompt_tokens), sum(completion_tokens), sum(provider_cost_usd), sum(client_cost_usd)
    from change
    group by day, job_type, model, purpose, provider, resolved_model
    on conflict (day, row_key) do update
    set successful_calls = usage.successful_calls + excluded.successful_calls,
        failed_calls = usage.failed_calls + excluded.failed_calls,
        prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = usage.completion_tokens + excluded.completion_tokens,
        provider_cost_usd = usage.provider_cost_usd + excluded.provider_cost_usd,
        client_cost_usd = usage.client_cost_usd + excluded.client_cost_usd
)
insert into usage_by_model as usage (
    team_id, day, row_key, organization_id, job_type, model, purpose, provider, resolved_model, successful_calls,
    failed_calls, rejected_calls, prompt_tokens, completion_tokens, latency_ms, latencies, provider_cost_usd,
    client_cost_usd)
select team_id, day,
       sha256(convert_to(json_build_array(job_type, model, purpose, provider, resolved_model)::text, 'UTF8')),
       organization_id, job_type, model, purpose, provider, resolved_model, successful_calls, failed_calls,
       rejected_calls, prompt_tokens, completion_tokens, latency_ms, latencies, provider_cost_usd, client_cost_usd
from change
on conflict (team_id, day, row_key) do update
set successful_calls = usage.successful_calls + excluded.successful_calls,
    failed_calls = usage.failed_calls + excluded.failed_calls,
    rejected_calls = usage.rejected_calls + excluded.rejected_calls,
    prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = usage.completion_tokens + excluded.completion_tokens,
    latency_ms = usage.latency_ms + excluded.latency_ms,
    latencies = usage.latencies + excluded.latencies,
    provider_cost_usd = usage.provider_cost_usd + excluded.provider_cost_usd,
    client_cost_usd = usage.client_cost_usd + excluded.client_cost_usd
"""

# Whole days come from the sums; what a period has of its first and last day beside them, from the jobs themselves.
_OF_PERIOD = """
select team_id, job_type, sum(total_jobs)::bigint as total_jobs, sum(completed_jobs)::bigint as completed_jobs,
       sum(failed_jobs)::bigint as failed_jobs, sum(credits_used)::bigint as credits_used,
       sum(total_tokens)::bigint as total_tokens, sum(client_cost_usd) as client_cost_usd
from (
    select team_id, job_type, total_jobs, completed_jobs, failed_jobs,
           credits_charged - credits_refunded as credits_used, total_tokens, client_cost_usd
    from usage_by_day
    where {scope} and day >= %(first_day)s and day < %(end_day)s
    union all
    select team_id, job_type, 1, (status = 'completed')::integer, (status = 'failed')::integer,
           credits_charged - credits_refunded, total_tokens, client_cost_usd
    from jobs
    where {scope} and (created_at >= %(head_start)s and created_at < %(head_end)s
                       or created_at >= %(tail_start)s and created_at < %(tail_end)s)
) as usage
group by team_id, job_type
order by team_id, job_type
"""

_COSTS = """
select team_id, model, sum(provider_cost_usd) as provider_cost_usd, sum(client_cost_usd) as client_cost_usd
from (
    select team_id, model, provider_cost_usd, client_cost_usd
    from usage_by_model
    where {scope} and day >= %(first_day)s and day < %(end_day)s
    union all
    select team_id, model, calls.provider_cost_usd, calls.client_cost_usd
    from calls join (
        select job_id from jobs
        where {scope} and (created_at >= %(head_start)s and created_at < %(head_end)s
                           or created_at >= %(tail_start)s and created_at < %(tail_end)s)
    ) as edge using (job_id)
    where calls.status <> 'running'
) as usage
group by team_id, model
order by team_id, model
"""

_TOTALS = """
select coalesce(sum(total_jobs), 0)::bigint as total_jobs, coalesce(sum(credits_used), 0)::bigint as credits_used,
       coalesce(sum(client_cost_usd), 0) as client_cost_usd
from usage_by_team
where {scope}
"""

_JOBS = """
where team_id = %(team_id)s and created_at >= %(start)s and created_at < %(end)s
order by created_at desc, job_id
limit %(limit)s offset %(offset)s
"""

_OF_TEAM = "team_id = %(team_id)s"
# Indexes by organization would cost something at every call; those by team lead to its rows as well.
OF_ORGANIZATION = """
    team_id = any (array(select team_id from usage_by_team where organization_id = %(organization_id)s))
"""


class Totals(msgspec.Struct, kw_only=True):
    """All that was ever used."""

    total_jobs: int = 0
    credits_used: int = 0
    client_cost_usd: Decimal = ZERO


class UsageRecord(msgspec.Struct, kw_only=True):
    """What the jobs of one team and job type, created in a period, came to."""

    team_id: str
    job_type: str
    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    credits_used: int
    total_tokens: int
    client_cost_usd: Decimal


class CostRecord(msgspec.Struct, kw_only=True):
    """What one team's calls of one requested model cost, in the jobs created in a period."""

    team_id: str
    model: str
    provider_cost_usd: Decimal
    client_cost_usd: Decimal


class JobUsage(msgspec.Struct):
    """What a batch adds to the usage of one job."""

    job_id: str
    total_jobs: int = 0
    completed_jobs: int = 0
    failed_jobs: int = 0
    cancelled_jobs: int = 0
    credits_charged: int = 0
    credits_refunded: int = 0
    successful_calls: int = 0
    failed_calls: int = 0
    total_tokens: int = 0
    provider_cost_usd: Decimal = ZERO
    client_cost_usd: Decimal = ZERO


class EndedCall(msgspec.Struct):
    call_id: str


_COUNTED = (
    JobCreated,
    CallFinished,
    CallFailed,
    JobCompleted,
    JobFailed,
    JobCancelled,
    JobExpired,
    ChargeRefunded,
)


def project(batch: Batch) -> Iterable[Statement]:
    yield _COUNT_JOBS, _job_usage(batch)
    ended = {call.call_id for call in batch.of(CallFinished)} | {call.call_id for call in batch.of(CallFailed)}
    yield _COUNT_CALLS, [EndedCall(call_id) for call_id in ended]


def _job_usage(batch: Batch) -> list[JobUsage]:
    by_job: dict[str, JobUsage] = {}
    for recorded in batch.recorded(*_COUNTED):
        event = recorded.event
        assert isinstance(event, _COUNTED)
        usage = by_job.get(event.job_id)
        if usage is None:
            usage = by_job[event.job_id] = JobUsage(event.job_id)
        _count(usage, event)
    return list(by_job.values())


def _count(usage: JobUsage, event: JobCreated | CallFinished | CallFailed | JobEnd | ChargeRefunded) -> None:
    match event:
        case JobCreated():
            usage.total_jobs += 1
        case CallFinished():
            usage.successful_calls += 1
            usage.total_tokens += event.prompt_tokens + event.completion_tokens
            usage.provider_cost_usd = add(usage.provider_cost_usd, event.provider_cost_usd)
            usage.client_cost_usd = add(usage.client_cost_usd, event.client_cost_usd)
        case CallFailed():
            usage.failed_calls += 1
            usage.provider_cost_usd = add(usage.provider_cost_usd, event.provider_cost_usd)
        case ChargeRefunded():
            usage.credits_refunded += event.credits
        case JobEnd():
            usage.completed_jobs += isinstance(event, JobCompleted)
            usage.failed_jobs += isinstance(event, JobFailed | JobExpired)
            usage.cancelled_jobs += isinstance(event, JobCancelled)
            usage.credits_charged += event.credits_charged


# -- reading -----------------------------------------------------------------------------------------------------------

BEGINNING_OF_TIME = datetime.min.replace(tzinfo=UTC)
END_OF_TIME = datetime(9999, 1, 1, tzinfo=UTC)  # the last one before which all months are whole


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time from `start` until before `end`, as whole days and what is left of its first and last day."""

    start: datetime
    end: datetime

    @classmethod
    def of(cls, start: datetime | None, end: datetime | None) -> "Span":
        """None is open."""
        return cls(start or BEGINNING_OF_TIME, end or END_OF_TIME)

    @property
    def days(self) -> tuple[date, date]:
        """Its whole days: the first one, and the one behind the last; not behind it if there is none."""
        first_day = self.start.date()
        if self.start != _midnight(first_day) and first_day < date.max:
            first_day += timedelta(days=1)
        return first_day, self.end.date()

    @property
    def months(self) -> tuple[date, date]:
        """The first days of its first whole month and of the one behind the last; without one both are its end."""
        first_day, end_day = self.days
        first_month, end_month = _month_from(first_day), end_day.replace(day=1)
        return (first_month, end_month) if first_month <= end_month else (end_day, end_day)

    @property
    def is_of_days(self) -> bool:
        """Whether it begins and ends at midnight."""
        return self.start == _midnight(self.start.date()) and self.end == _midnight(self.end.date())

    @property
    def is_of_months(self) -> bool:
        """Whether it begins and ends with a month."""
        return self.is_of_days and self.days == self.months

    def parameters(self) -> dict[str, date | datetime]:
        first_day, end_day = self.days
        first_month, end_month = self.months
        first_midnight, end_midnight = _midnight(first_day), _midnight(end_day)
        if end_day < first_day:  # not a whole day in it
            first_midnight = end_midnight = self.end
        return {
            "first_day": first_day,
            "end_day": end_day,
            "first_month": first_month,
            "end_month": end_month,
            "head_start": self.start,
            "head_end": first_midnight,
            "tail_start": end_midnight,
            "tail_end": self.end,
        }


def _month_from(day: date) -> date:
    """The first day of a month that is not before this day; at the end of time, that day itself."""
    if day.day == 1 or day > date.max - timedelta(days=31):
        return day
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


async def totals_of_team(connection: Connection, team_id: str) -> Totals:
    return await _totals(connection, _OF_TEAM, {"team_id": team_id})


async def totals_of_organization(connection: Connection, organization_id: str) -> Totals:
    return await _totals(connection, "organization_id = %(organization_id)s", {"organization_id": organization_id})


async def _totals(connection: Connection, scope: str, whose: Mapping[str, Any]) -> Totals:
    return await fetch_one(connection, Totals, _TOTALS.format(scope=scope), whose) or Totals()


async def of_team(connection: Connection, team_id: str, span: Span) -> list[UsageRecord]:
    """What a team used, by job type."""
    wanted = {**span.parameters(), "team_id": team_id}
    return await fetch_all(connection, UsageRecord, _OF_PERIOD.format(scope=_OF_TEAM), wanted)


async def of_organization(connection: Connection, organization_id: str, span: Span) -> list[UsageRecord]:
    """What an organization used, by team and job type."""
    wanted = {**span.parameters(), "organization_id": organization_id}
    return await fetch_all(connection, UsageRecord, _OF_PERIOD.format(scope=OF_ORGANIZATION), wanted)


async def costs_of_organization(connection: Connection, organization_id: str, span: Span) -> list[CostRecord]:
    """What an organization's calls cost, by team and requested model."""
    wanted = {**span.parameters(), "organization_id": organization_id}
    return await fetch_all(connection, CostRecord, _COSTS.format(scope=OF_ORGANIZATION), wanted)


async def jobs_of_team(connection: Connection, team_id: str, span: Span, *, limit: int, offset: int) -> list[JobRecord]:
    """A page of the jobs that the usage is about, newest first; `of_team` says how many there are."""
    wanted = {"team_id": team_id, "start": span.start, "end": span.end, "limit": limit, "offset": offset}
    return await fetch_all(connection, JobRecord, jobs.SELECT + _JOBS, wanted)


USAGE = Projection(
    name="usage",
    version=3,
    tables=("usage_by_day", "usage_by_model", "usage_by_month", "usage_of_house", "usage_by_team"),
    ddl=DDL,
    project=project,
    wants=_COUNTED,
    looks_up=("jobs", "calls"),
)
