"""Calls with all that explains their price: one row a call, from its start to its end."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from psycopg.rows import class_row

from domain.job import Attempt, CallAttemptFailed, CallFailed, CallFinished, CallStarted, EndedCall, RunningCall
from domain.pricing import ZERO
from infra.journal import Connection
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
create index calls_by_team on calls (team_id, created_at desc, call_id);
create index calls_running on calls (deadline) where status = 'running';
"""

_INSERT = """
insert into calls (call_id, job_id, team_id, organization_id, position, model, purpose, streaming, created_at, deadline)
select call_id, job_id, team_id, organization_id, position, model, purpose, streaming, created_at, deadline
from json_to_recordset(%s) as row (
    call_id uuid, job_id uuid, team_id text, organization_id text, position bigint, model text, purpose text,
    streaming boolean, created_at timestamptz, deadline timestamptz)
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


class CallRow(msgspec.Struct):
    call_id: str
    job_id: str
    team_id: str
    organization_id: str
    position: int
    model: str
    purpose: str | None
    streaming: bool
    created_at: datetime
    deadline: datetime


class CallAttempts(msgspec.Struct):
    call_id: str
    attempts: list[Attempt]


class CallEnd(msgspec.Struct, kw_only=True):
    call_id: str
    status: str
    ended_at: datetime
    latency_ms: int | None
    provider: str | None
    resolved_model: str | None
    provider_cost_usd: Decimal
    alias: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_estimated: bool = False
    price_input_usd_per_million: Decimal | None = None
    price_output_usd_per_million: Decimal | None = None
    markup_percentage: Decimal = ZERO
    input_cost_usd: Decimal = ZERO
    output_cost_usd: Decimal = ZERO
    client_cost_usd: Decimal = ZERO
    finish_reason: str | None = None
    partial: bool = False
    error: str | None = None
    provider_error: str | None = None


def project(batch: Batch) -> Iterable[Statement]:
    yield _INSERT, [_row(recorded.position, recorded.event) for recorded in batch.recorded(CallStarted)]
    yield _ATTEMPTS, _attempts(batch)
    yield _END, [*map(_finished, batch.of(CallFinished)), *map(_failed, batch.of(CallFailed))]


def _row(position: int, event: Any) -> CallRow:
    return CallRow(
        call_id=event.call_id,
        job_id=event.job_id,
        team_id=event.team_id,
        organization_id=event.organization_id,
        position=position,
        model=event.model,
        purpose=event.purpose,
        streaming=event.streaming,
        created_at=event.at,
        deadline=event.deadline,
    )


def _attempts(batch: Batch) -> list[CallAttempts]:
    by_call: dict[str, CallAttempts] = {}
    for event in batch.of(CallAttemptFailed):
        by_call.setdefault(event.call_id, CallAttempts(event.call_id, [])).attempts.append(Attempt.of(event))
    return list(by_call.values())


def _finished(event: CallFinished) -> CallEnd:
    return CallEnd(
        call_id=event.call_id,
        status="completed",
        ended_at=event.at,
        latency_ms=event.latency_ms,
        provider=event.provider,
        resolved_model=event.resolved_model,
        alias=event.alias,
        prompt_tokens=event.prompt_tokens,
        completion_tokens=event.completion_tokens,
        usage_estimated=event.usage_estimated,
        price_input_usd_per_million=event.price_input_usd_per_million,
        price_output_usd_per_million=event.price_output_usd_per_million,
        markup_percentage=event.markup_percentage,
        input_cost_usd=event.input_cost_usd,
        output_cost_usd=event.output_cost_usd,
        provider_cost_usd=event.provider_cost_usd,
        client_cost_usd=event.client_cost_usd,
        finish_reason=event.finish_reason,
        partial=event.partial,
    )


def _failed(event: CallFailed) -> CallEnd:
    return CallEnd(
        call_id=event.call_id,
        status="failed",
        ended_at=event.at,
        latency_ms=event.latency_ms,
        provider=event.provider,
        resolved_model=event.resolved_model,
        provider_cost_usd=event.provider_cost_usd,
        error=event.error,
        provider_error=event.provider_error,
    )


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


CALLS = Projection(name="calls", version=1, tables=("calls",), ddl=DDL, project=project)
