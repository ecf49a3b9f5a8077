"""Where credits came from and where they went: rows of several read models about the same jobs, side by side."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from infra.journal import Connection
from projections.calls import CallRecord
from projections.reading import fetch_all

_GIVEN = """
select position, transaction_id::text, transaction_type, credits_amount, credits_before, credits_after, reason,
       payment_reference, expires_at, actor, created_at, count(*) over () as total
from transactions
where team_id = %(team_id)s and transaction_type not in ('deduction', 'hold', 'release', 'refund')
order by position desc limit %(limit)s
"""

_OF_JOBS = """
select position, transaction_id::text, job_id::text, transaction_type, credits_amount, reason, created_at
from transactions
where job_id = any (%(job_ids)s::uuid[])
order by position
"""

_CALLS = """
select job_id::text, call_id::text, status, model, purpose, streaming, created_at, attempts, latency_ms, provider,
       resolved_model, alias, prompt_tokens, completion_tokens, usage_estimated, price_input_usd_per_million,
       price_output_usd_per_million, markup_percentage, input_cost_usd, output_cost_usd, provider_cost_usd,
       client_cost_usd, finish_reason, partial, error, provider_error
from (
    select calls.*, row_number() over (partition by calls.job_id order by calls.position) as ordinal
    from calls where calls.job_id = any (%(job_ids)s::uuid[])
) as numbered
where ordinal <= %(limit)s
order by job_id, ordinal
"""


class Given(msgspec.Struct, kw_only=True):
    """A movement that no job caused; each says how many there are of them."""

    position: int
    transaction_id: str
    transaction_type: str
    credits_amount: int
    credits_before: int
    credits_after: int
    reason: str | None
    payment_reference: str | None
    expires_at: datetime | None
    actor: str
    created_at: datetime
    total: int


class JobMovement(msgspec.Struct, kw_only=True):
    """A movement that a job caused."""

    position: int
    transaction_id: str
    job_id: str
    transaction_type: str
    credits_amount: int
    reason: str | None
    created_at: datetime


class CallOfJob(CallRecord, kw_only=True):
    job_id: str


async def given(connection: Connection, team_id: str, limit: int) -> list[Given]:
    """What a team was given and lost without a job, the newest first."""
    return await fetch_all(connection, Given, _GIVEN, {"team_id": team_id, "limit": limit})


async def movements_of(connection: Connection, job_ids: Sequence[str]) -> list[JobMovement]:
    """Holds, releases, charges and refunds of some jobs, in their order."""
    return await fetch_all(connection, JobMovement, _OF_JOBS, {"job_ids": list(job_ids)})


async def calls_of(connection: Connection, job_ids: Sequence[str], limit: int) -> list[CallOfJob]:
    """The first calls of some jobs."""
    return await fetch_all(connection, CallOfJob, _CALLS, {"job_ids": list(job_ids), "limit": limit})
