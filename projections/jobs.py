"""Jobs with their running totals: one row a job, kept up to date by every event of its stream."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from domain.event import Json
from domain.job import (
    CallFailed,
    CallFinished,
    CallStarted,
    ChargeRefunded,
    Job,
    JobCancelled,
    JobCompleted,
    JobCreated,
    JobEnd,
    JobExpired,
    JobFailed,
    MetadataMerged,
)
from domain.pricing import ZERO, add
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import count, fetch_all, fetch_one

DDL = """
create table jobs (
    job_id             uuid primary key,
    team_id            text not null,
    organization_id    text not null,
    user_id            text,
    external_task_id   text,
    job_type           text not null,
    status             text not null,
    created_at         timestamptz not null,
    started_at         timestamptz,
    completed_at       timestamptz,
    active_at          timestamptz not null,
    error_message      text,
    models_used        text[] not null default '{}',
    metadata           jsonb not null,
    credit_applied     boolean not null default false,
    credits_charged    bigint not null default 0,
    credits_refunded   bigint not null default 0,
    running_calls      integer not null default 0,
    successful_calls   integer not null default 0,
    failed_calls       integer not null default 0,
    rejected_calls     integer not null default 0,
    total_tokens       bigint not null default 0,
    latency_ms         bigint not null default 0,
    latencies          integer not null default 0,
    provider_cost_usd  numeric not null default 0,
    client_cost_usd    numeric not null default 0
) with (fillfactor = 85); -- room for what happens next, on the same page: then no index hears of it
create index jobs_by_team on jobs (team_id, created_at desc, job_id desc);
create index jobs_by_organization on jobs (organization_id, created_at desc, job_id desc);
create index jobs_by_time on jobs (created_at desc, job_id desc);
create index jobs_open on jobs (created_at, job_id) where status in ('pending', 'in_progress');
create index jobs_open_by_team on jobs (team_id, created_at) where status in ('pending', 'in_progress');
create index jobs_by_user on jobs (user_id, created_at desc, job_id desc) where user_id is not null;
"""

_INSERT = """
insert into jobs (
    job_id, team_id, organization_id, user_id, external_task_id, job_type, status, created_at, started_at, completed_at,
    active_at, error_message, models_used, metadata, credit_applied, credits_charged, credits_refunded, running_calls,
    successful_calls, failed_calls, rejected_calls, total_tokens, latency_ms, latencies, provider_cost_usd,
    client_cost_usd)
select job_id, team_id, organization_id, user_id, external_task_id, job_type, status, created_at, started_at,
       completed_at, active_at, error_message, models_used, metadata, credit_applied, credits_charged, credits_refunded,
       running_calls, successful_calls, failed_calls, rejected_calls, total_tokens, latency_ms, latencies,
       provider_cost_usd, client_cost_usd
from json_to_recordset(%s) as row (
    job_id uuid, team_id text, organization_id text, user_id text, external_task_id text, job_type text, status text,
    created_at timestamptz, started_at timestamptz, completed_at timestamptz, active_at timestamptz,
    error_message text, models_used text[], metadata jsonb, credit_applied boolean, credits_charged bigint,
    credits_refunded bigint, running_calls integer, successful_calls integer, failed_calls integer,
    rejected_calls integer, total_tokens bigint, latency_ms bigint, latencies integer, provider_cost_usd numeric,
    client_cost_usd numeric)
"""

_UPDATE = """
update jobs
set status = coalesce(change.status, jobs.status),
    started_at = coalesce(jobs.started_at, change.started_at),
    completed_at = coalesce(jobs.completed_at, change.completed_at),
    active_at = coalesce(change.active_at, jobs.active_at),
    error_message = coalesce(change.error_message, jobs.error_message),
    models_used = jobs.models_used || array(
        select model from unnest(change.models_used) as model where model <> all (jobs.models_used)),
    metadata = jobs.metadata || change.metadata,
    credit_applied = jobs.credit_applied or change.credit_applied,
    credits_charged = jobs.credits_charged + change.credits_charged,
    credits_refunded = jobs.credits_refunded + change.credits_refunded,
    running_calls = jobs.running_calls + change.running_calls,
    successful_calls = jobs.successful_calls + change.successful_calls,
    failed_calls = jobs.failed_calls + change.failed_calls,
    rejected_calls = jobs.rejected_calls + change.rejected_calls,
    total_tokens = jobs.total_tokens + change.total_tokens,
    latency_ms = jobs.latency_ms + change.latency_ms,
    latencies = jobs.latencies + change.latencies,
    provider_cost_usd = jobs.provider_cost_usd + change.provider_cost_usd,
    client_cost_usd = jobs.client_cost_usd + change.client_cost_usd
from json_to_recordset(%s) as change (
    job_id uuid, status text, started_at timestamptz, completed_at timestamptz, active_at timestamptz,
    error_message text, models_used text[], metadata jsonb, credit_applied boolean, credits_charged bigint,
    credits_refunded bigint, running_calls integer, successful_calls integer, failed_calls integer,
    rejected_calls integer, total_tokens bigint, latency_ms bigint, latencies integer, provider_cost_usd numeric,
    client_cost_usd numeric)
where jobs.job_id = change.job_id
"""


SELECT = """
select job_id::text, team_id, organization_id, user_id, external_task_id, job_type, status, created_at, started_at,
       completed_at, error_message, models_used, metadata, credit_applied, credits_charged, credits_refunded,
       running_calls, successful_calls, failed_calls, rejected_calls, total_tokens, latency_ms, latencies,
       provider_cost_usd, client_cost_usd
from jobs
"""


_OPEN_OF_TEAM = """
select job_id from jobs where team_id = %s and status in ('pending', 'in_progress') order by created_at limit %s
"""


# No index knows when a job was last active, it would have to hear of every call; but nobody is active before being
# created, so those that are new need not be looked at.
_LEFT_ALONE = """
select job_id::text, team_id, created_at from jobs
where status in ('pending', 'in_progress') and running_calls = 0 and active_at <= %(since)s
  and created_at <= %(since)s and (created_at, job_id) > (%(created_at)s, %(job_id)s)
order by created_at, job_id limit %(limit)s
"""


class LeftAlone(msgspec.Struct):
    """An open job in which nothing happens; the default stands before all of them."""

    job_id: str = "00000000-0000-0000-0000-000000000000"
    team_id: str = ""
    created_at: datetime = datetime.min.replace(tzinfo=UTC)


class JobRecord(msgspec.Struct, kw_only=True):
    """A job as it is now."""

    job_id: str
    team_id: str
    organization_id: str
    user_id: str | None
    external_task_id: str | None
    job_type: str
    status: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error_message: str | None
    models_used: list[str]
    metadata: Mapping[str, Json]
    credit_applied: bool
    credits_charged: int
    credits_refunded: int
    running_calls: int
    successful_calls: int
    failed_calls: int
    rejected_calls: int
    total_tokens: int
    latency_ms: int
    latencies: int
    provider_cost_usd: Decimal
    client_cost_usd: Decimal

    @property
    def total_calls(self) -> int:
        return self.running_calls + self.successful_calls + self.failed_calls

    @classmethod
    def of(cls, job: Job) -> "JobRecord":
        """A job's state, as the table will have it."""
        return cls(
            job_id=job.job_id,
            team_id=job.team_id,
            organization_id=job.organization_id,
            user_id=job.user_id,
            external_task_id=job.external_task_id,
            job_type=job.job_type,
            status=job.status,
            created_at=job.created_at,
            started_at=job.started_at,
            completed_at=job.ended_at,
            error_message=job.error_message,
            models_used=list(job.models_used),
            metadata=job.metadata,
            credit_applied=job.credit_applied,
            credits_charged=job.credits_charged,
            credits_refunded=job.credits_refunded,
            running_calls=len(job.running),
            successful_calls=job.successful_calls,
            failed_calls=job.failed_calls,
            rejected_calls=job.rejected_calls,
            total_tokens=job.tokens,
            latency_ms=job.latency_ms,
            latencies=job.latencies,
            provider_cost_usd=job.provider_cost_usd,
            client_cost_usd=job.client_cost_usd,
        )


class JobChange(msgspec.Struct):
    """What a batch changes in one job. A refund is no activity: it leaves `active_at` alone."""

    job_id: str
    active_at: datetime | None = None
    status: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error_message: str | None = None
    models_used: list[str] = []
    metadata: dict[str, Json] = {}
    credit_applied: bool = False
    credits_charged: int = 0
    credits_refunded: int = 0
    running_calls: int = 0
    successful_calls: int = 0
    failed_calls: int = 0
    rejected_calls: int = 0
    total_tokens: int = 0
    latency_ms: int = 0
    latencies: int = 0
    provider_cost_usd: Decimal = ZERO
    client_cost_usd: Decimal = ZERO


class JobRow(JobChange, kw_only=True):
    """A job that the batch created, with all that the batch has changed in it since."""

    team_id: str
    organization_id: str
    user_id: str | None
    external_task_id: str | None
    job_type: str
    created_at: datetime


def project(batch: Batch) -> Iterable[Statement]:
    new = {event.job_id: _job_row(event) for event in batch.of(JobCreated)}
    changes = _changes(batch, new)
    yield _INSERT, list(new.values())
    yield _UPDATE, changes


def _job_row(event: JobCreated) -> JobRow:
    return JobRow(
        job_id=event.job_id,
        team_id=event.team_id,
        organization_id=event.organization_id,
        user_id=event.user_id,
        external_task_id=event.external_task_id,
        job_type=event.job_type,
        status="pending",
        created_at=event.at,
        active_at=event.at,
        metadata=dict(event.metadata),
    )


_CHANGING = (
    CallStarted,
    CallFinished,
    CallFailed,
    MetadataMerged,
    JobCompleted,
    JobFailed,
    JobCancelled,
    JobExpired,
    ChargeRefunded,
)


def _changes(batch: Batch, new: Mapping[str, JobRow]) -> list[JobChange]:
    """What happened to the new jobs goes into their rows; what happened to others is returned."""
    changes: dict[str, JobChange] = {}
    for recorded in batch.recorded(*_CHANGING):
        event = recorded.event
        assert isinstance(event, _CHANGING)
        change = new.get(event.job_id) or changes.get(event.job_id)
        if change is None:
            change = changes[event.job_id] = JobChange(event.job_id)
        if not isinstance(event, ChargeRefunded):
            change.active_at = event.at
        _change(change, event)
    return list(changes.values())


def _change(
    change: JobChange,
    event: CallStarted | CallFinished | CallFailed | MetadataMerged | JobEnd | ChargeRefunded,
) -> None:
    match event:
        case CallStarted():
            change.status = "in_progress"
            change.started_at = change.started_at or event.at
            change.running_calls += 1
            if event.model not in change.models_used:
                change.models_used.append(event.model)
        case CallFinished():
            change.running_calls -= 1
            change.successful_calls += 1
            change.total_tokens += event.prompt_tokens + event.completion_tokens
            change.latency_ms += event.latency_ms
            change.latencies += 1
            change.provider_cost_usd = add(change.provider_cost_usd, event.provider_cost_usd)
            change.client_cost_usd = add(change.client_cost_usd, event.client_cost_usd)
        case CallFailed():
            change.running_calls -= 1
            change.failed_calls += 1
            change.rejected_calls += event.error == "request_rejected"
            change.latency_ms += event.latency_ms or 0
            change.latencies += event.latency_ms is not None
            change.provider_cost_usd = add(change.provider_cost_usd, event.provider_cost_usd)
        case MetadataMerged():
            change.metadata.update(event.metadata)
        case ChargeRefunded():
            change.credits_refunded += event.credits
        case JobEnd():
            change.status, change.error_message = _end(event)
            change.completed_at = event.at
            change.credit_applied = event.credit_applied
            change.credits_charged = event.credits_charged


def _end(event: JobEnd) -> tuple[str, str | None]:
    match event:
        case JobFailed(error_message=error_message):
            return "failed", error_message
        case JobCancelled(reason=reason):
            return "cancelled", reason
        case JobExpired():
            return "failed", "expired"
        case _:
            return "completed", None


SORTS = ("created_at", "completed_at", "started_at", "status", "job_type")

_COUNT = "select count(*) from jobs"

# How many there are of a team, an organization or in all, without going through them: `usage` adds them up.
_ADDED_UP = "select coalesce(sum({}), 0)::bigint from usage_by_team"
_ADDED_UP_BY_STATUS = {
    None: "total_jobs",
    "completed": "completed_jobs",
    "failed": "failed_jobs",
    "cancelled": "cancelled_jobs",
}
_ADDED_UP_FOR = frozenset({"team_id", "organization_id", "status"})

# Only the conditions that are asked for stand in a select: PostgreSQL then plans it for just these.
_CONDITIONS = {
    "team_id": "team_id = %(team_id)s",
    "organization_id": "organization_id = %(organization_id)s",
    "user_id": "user_id = %(user_id)s",
    "status": "status = %(status)s",
    "job_type": "job_type = %(job_type)s",
    "part_of_id": "job_id::text like %(part_of_id)s",
    "start": "created_at >= %(start)s",
    "end": "created_at < %(end)s",
}


async def one(connection: Connection, job_id: str) -> JobRecord | None:
    return await fetch_one(connection, JobRecord, SELECT + "where job_id = %(job_id)s", {"job_id": job_id})


async def page(
    connection: Connection, wanted: Mapping[str, Any], *, sort_by: str = "created_at", descending: bool = True
) -> tuple[list[JobRecord], int]:
    """A page of jobs and how many there are in all.

    Args:
        wanted: limit, offset, and any of the conditions above; one that is None does not count.
        sort_by: one of SORTS; ties are broken by the id.
    """
    where = _where(name for name in _CONDITIONS if wanted.get(name) is not None)
    assert sort_by in SORTS
    direction = "desc" if descending else "asc"
    # Said only where there are nulls: an index of a column without any is not used for an order that speaks of them.
    nulls = "nulls last" if sort_by in ("completed_at", "started_at") else ""
    order = f" order by {sort_by} {direction} {nulls}, job_id {direction} limit %(limit)s offset %(offset)s"
    found = await fetch_all(connection, JobRecord, SELECT + where + order, wanted)
    return found, await _number(connection, wanted)


async def _number(connection: Connection, wanted: Mapping[str, Any]) -> int:
    asked = {name for name in _CONDITIONS if wanted.get(name) is not None}
    status = wanted.get("status")
    if asked <= _ADDED_UP_FOR and status in _ADDED_UP_BY_STATUS:
        added_up = _ADDED_UP.format(_ADDED_UP_BY_STATUS[status])
        return await count(connection, added_up + _where(asked - {"status"}), wanted)
    return await count(connection, _COUNT + _where(asked), wanted)


def _where(names: Iterable[str]) -> str:
    conditions = [_CONDITIONS[name] for name in names]
    return f" where {' and '.join(conditions)}" if conditions else ""


async def left_alone(
    connection: Connection, since: datetime, *, after: LeftAlone | None = None, limit: int
) -> list[LeftAlone]:
    """Open jobs without a running call in which nothing has happened since, the eldest first, behind `after`."""
    parameters = {**msgspec.structs.asdict(after or LeftAlone()), "since": since, "limit": limit}
    return await fetch_all(connection, LeftAlone, _LEFT_ALONE, parameters)


async def open_of_team(connection: Connection, team_id: str, limit: int = 1000) -> list[str]:
    """Ids of the team's jobs that have not ended."""
    cursor = await connection.execute(_OPEN_OF_TEAM, (team_id, limit))
    return [str(row[0]) for row in await cursor.fetchall()]


JOBS = Projection(name="jobs", version=3, tables=("jobs",), ddl=DDL, project=project, wants=(JobCreated, *_CHANGING))
