"""Calls with all that explains their price: one row a call, from its start to its end."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from psycopg.rows import class_row

from domain.job import Attempt, CallAttemptFailed, CallFailed, CallFinished, CallStarted, EndedCall, RunningCall
from domain.pricing import ZERO
from infra.journal import Connection, Recorded
from projections.projection import Batch, Projection, Statement
from projections.reading import fetch_all

DDL = """
create table calls (
    call_id                      uuid primary key,
    job_id                       uuid not null,
    team_id                      text not null,
    organization_id              text not null,
    position                     bigint not null,
    status                       text not null default 'running',
    model                        text not null,
    purpose                      text,
    streaming                    boolean not null,
    created_at                   timestamptz not null,
    ended_at                     timestamptz,
    deadline                     timestamptz not null,
    attempts                     jsonb not null default '[]',
    latency_ms                   integer,
    provider                     text,
    resolved_model               text,
    alias                        text,
    prompt_tokens                integer not null default 0,
    completion_tokens            integer not null default 0,
    usage_estimated              boolean not null default false,
    price_input_usd_per_million  numeric,
    price_output_usd_per_million numeric,
    markup_percentage            numeric not null default 0,
    input_cost_usd               numeric not null default 0,
    output_cost_usd              numeric not null default 0,
    provider_cost_usd            numeric not null default 0,
    client_cost_usd              numeric not null default 0,
    finish_reason                text,
    partial                      boolean not null default false,
    error                        text,
    provider_error               text
);
create index calls_by_job on calls (job_id, position);
create index calls_running on calls (deadline) where status = 'running';
"""

_INSERT = """
insert into calls (
    call_id, job_id, team_id, organization_id, position, status, model, purpose, streaming, created_at, ended_at,
    deadline, attempts, latency_ms, provider, resolved_model, alias, prompt_tokens, completion_tokens, usage_estimated,
    price_input_usd_per_million, price_output_usd_per_million, markup_percentage, input_cost_usd, output_cost_usd,
    provider_cost_usd, client_cost_usd, finish_reason, partial, error, provider_error)
select call_id, job_id, team_id, organization_id, position, status, model, purpose, streaming, created_at, ended_at,
       deadline, attempts, latency_ms, provider, resolved_model, alias, prompt_tokens, completion_tokens,
       usage_estimated, price_input_usd_per_million, price_output_usd_per_million, markup_percentage, input_cost_usd,
       output_cost_usd, provider_cost_usd, client_cost_usd, finish_reason, partial, error, provider_error
from json_to_recordset(%s) as row (
    call_id uuid, job_id uuid, team_id text, organization_id text, position bigint, status text, model text,
    purpose text, streaming boolean, created_at timestamptz, ended_at timestamptz, deadline timestamptz, attempts jsonb,
    latency_ms integer, provider text, resolved_model text, alias text, prompt_tokens integer,
    completion_tokens integer, usage_estimated boolean, price_input_usd_per_million numeric,
    price_output_usd_per_million numeric, markup_percentage numeric, input_cost_usd numeric, output_cost_usd numeric,
    provider_cost_usd numeric, client_cost_usd numeric, finish_reason text, partial boolean, error text,
    provider_error text)
"""

_ATTEMPTS = """
update calls set attempts = calls.attempts || change.attempts
from json_to_recordset(%s) as change (call_id uuid, attempts jsonb)
where calls.call_id = change.call_id
"""

_END = """
update calls
set status = change.status, ended_at = change.ended_at, latency_ms = change.latency_ms, provider = change.provider,
    resolved_model = change.resolved_model, alias = change.alias, prompt_tokens = change.prompt_tokens,
    completion_tokens = change.completion_tokens, usage_estimated = change.usage_estimated,
    price_input_usd_per_million = change.price_input_usd_per_million,
    price_output_usd_per_million = change.price_output_usd_per_million,
    markup_percentage = change.markup_percentage, input_cost_usd = change.input_cost_usd,
    output_cost_usd = change.output_cost_usd, provider_cost_usd = change.provider_cost_usd,
    client_cost_usd = change.client_cost_usd, finish_reason = change.finish_reason, partial = change.partial,
    error = change.error, provider_error = change.provider_error
from json_to_recordset(%s) as change (
    call_id uuid, status text, ended_at timestamptz, latency_ms integer, provider text, resolved_model text, alias text,
    prompt_tokens integer, completion_tokens integer, usage_estimated boolean, price_input_usd_per_million numeric,
    price_output_usd_per_million numeric, markup_percentage numeric, input_cost_usd numeric, output_cost_usd numeric,
    provider_cost_usd numeric, client_cost_usd numeric, finish_reason text, partial boolean, error text,
    provider_error text)
where calls.call_id = change.call_id
"""

_OF_JOB = """
select call_id::text, status, model, purpose, streaming, created_at, attempts, latency_ms, provider, resolved_model,
       alias, prompt_tokens, completion_tokens, usage_estimated, price_input_usd_per_million,
       price_output_usd_per_million, markup_percentage, input_cost_usd, output_cost_usd, provider_cost_usd,
       client_cost_usd, finish_reason, partial, error, provider_error
from calls
where job_id = %s
order by position
"""


_RETRIES = """
select job_id::text, (sum(times) - count(*))::bigint
from (select job_id, purpose, count(*) as times from calls where job_id = any(%s::uuid[]) group by 1, 2) as by_purpose
group by job_id
"""


_OVERDUE = """
select call_id::text, job_id::text, deadline from calls
where status = 'running' and deadline < %(at)s and (deadline, call_id) > (%(deadline)s, %(call_id)s)
order by deadline, call_id limit %(limit)s
"""


class OverdueCall(msgspec.Struct):
    """A call that has not ended although it should have; the default stands before all of them."""

    call_id: str = "00000000-0000-0000-0000-000000000000"
    job_id: str = ""
    deadline: datetime = datetime.min.replace(tzinfo=UTC)


class CallRecord(msgspec.Struct, kw_only=True):
    """A call as it is now. A running call has no latency yet; a failed one no tokens and no cost for the team."""

    call_id: str
    status: str
    model: str
    purpose: str | None
    streaming: bool
    created_at: datetime
    attempts: list[dict[str, Any]]
    latency_ms: int | None = None
    provider: str | None = None
    resolved_model: str | None = None
    alias: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_estimated: bool = False
    price_input_usd_per_million: Decimal | None = None
    price_output_usd_per_million: Decimal | None = None
    markup_percentage: Decimal = ZERO
    input_cost_usd: Decimal = ZERO
    output_cost_usd: Decimal = ZERO
    provider_cost_usd: Decimal = ZERO
    client_cost_usd: Decimal = ZERO
    finish_reason: str | None = None
    partial: bool = False
    error: str | None = None
    provider_error: str | None = None

    @classmethod
    def of(cls, call: RunningCall | EndedCall) -> "CallRecord":
        """A call of a job's state, as the table will have it."""
        if isinstance(call, RunningCall):
            status = "running"
            facts = {name: getattr(call, name) for name in ("call_id", "model", "purpose", "streaming", "created_at")}
        else:
            status = "failed" if call.error else "completed"
            facts = msgspec.structs.asdict(call)
        attempts = [msgspec.structs.asdict(attempt) for attempt in call.attempts]
        return cls(**{**facts, "status": status, "attempts": attempts})


class CallAttempts(msgspec.Struct):
    call_id: str
    attempts: list[Attempt] = []


class CallEnd(msgspec.Struct):
    """How a call ended; fields are called as in the events."""

    call_id: str
    status: str = "running"
    ended_at: datetime | None = None
    latency_ms: int | None = None
    provider: str | None = None
    resolved_model: str | None = None
    alias: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_estimated: bool = False
    price_input_usd_per_million: Decimal | None = None
    price_output_usd_per_million: Decimal | None = None
    markup_percentage: Decimal = ZERO
    input_cost_usd: Decimal = ZERO
    output_cost_usd: Decimal = ZERO
    provider_cost_usd: Decimal = ZERO
    client_cost_usd: Decimal = ZERO
    finish_reason: str | None = None
    partial: bool = False
    error: str | None = None
    provider_error: str | None = None


class CallRow(CallEnd, kw_only=True):
    """A call that the batch started, and how it ended if it did."""

    job_id: str
    team_id: str
    organization_id: str
    position: int
    model: str
    purpose: str | None
    streaming: bool
    created_at: datetime
    deadline: datetime
    attempts: list[Attempt] = []


_WHEN_FINISHED, _WHEN_FAILED = (
    tuple(name for name in CallEnd.__struct_fields__ if name in event.__struct_fields__)
    for event in (CallFinished, CallFailed)
)


def project(batch: Batch) -> Iterable[Statement]:
    new = {row.call_id: row for row in map(_row, batch.recorded(CallStarted))}
    attempts, ends = _attempts(batch, new), _ends(batch, new)
    yield _INSERT, list(new.values())
    yield _ATTEMPTS, attempts
    yield _END, ends


def _row(recorded: Recorded) -> CallRow:
    event = recorded.event
    assert isinstance(event, CallStarted)
    return CallRow(
        call_id=event.call_id,
        job_id=event.job_id,
        team_id=event.team_id,
        organization_id=event.organization_id,
        position=recorded.position,
        model=event.model,
        purpose=event.purpose,
        streaming=event.streaming,
        created_at=event.at,
        deadline=event.deadline,
    )


# What happened to new calls goes into their rows; what happened to others is returned.


def _attempts(batch: Batch, new: Mapping[str, CallRow]) -> list[CallAttempts]:
    by_call: dict[str, CallAttempts] = {}
    for event in batch.of(CallAttemptFailed):
        call = new.get(event.call_id) or by_call.setdefault(event.call_id, CallAttempts(event.call_id))
        call.attempts.append(Attempt.of(event))
    return list(by_call.values())


def _ends(batch: Batch, new: Mapping[str, CallRow]) -> list[CallEnd]:
    ends: dict[str, CallEnd] = {}
    for recorded in batch.recorded(CallFinished, CallFailed):
        event = recorded.event
        assert isinstance(event, CallFinished | CallFailed)
        end = new.get(event.call_id) or ends.setdefault(event.call_id, CallEnd(event.call_id))
        is_finished = isinstance(event, CallFinished)
        end.status, end.ended_at = "completed" if is_finished else "failed", event.at
        for name in _WHEN_FINISHED if is_finished else _WHEN_FAILED:
            setattr(end, name, getattr(event, name))
    return list(ends.values())


async def of_job(connection: Connection, job_id: str) -> list[CallRecord]:
    """The calls of a job in the order in which they started."""
    async with connection.cursor(row_factory=class_row(CallRecord)) as cursor:
        await cursor.execute(_OF_JOB, (job_id,))
        return await cursor.fetchall()


async def retries(connection: Connection, job_ids: Sequence[str]) -> dict[str, int]:
    """For each of these jobs, how often a purpose was called again: calls beyond the first of each purpose, summed."""
    cursor = await connection.execute(_RETRIES, (list(job_ids),))
    return {str(job_id): int(number) for job_id, number in await cursor.fetchall()}  # type: ignore[call-overload]


async def overdue(
    connection: Connection, at: datetime, *, after: OverdueCall | None = None, limit: int
) -> list[OverdueCall]:
    """Running calls whose deadline has passed, the oldest first, behind `after`."""
    parameters = {**msgspec.structs.asdict(after or OverdueCall()), "at": at, "limit": limit}
    return await fetch_all(connection, OverdueCall, _OVERDUE, parameters)


CALLS = Projection(
    name="calls",
    version=2,
    tables=("calls",),
    ddl=DDL,
    project=project,
    wants=(CallStarted, CallAttemptFailed, CallFinished, CallFailed),
)
