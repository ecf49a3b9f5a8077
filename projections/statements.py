"""Statements: which are closed, and the entries and usage that a stretch of the journal has of a team.

A statement's entries are the transactions between two positions, holds left out. Its usage is what its charges rest
on: jobs that were charged have ended, and their calls with them, so that neither ever changes again.
"""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

import msgspec

from domain.pricing import ZERO
from domain.statement import StatementClosed, Totals
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import fetch_all, fetch_one
from projections.transactions import TransactionType

DDL = """
create table statements (
    team_id          text not null,
    period           text not null,
    organization_id  text not null,
    after_position   bigint not null,
    position         bigint not null,
    head_hash        text not null,
    opening_credits  bigint not null,
    closing_credits  bigint not null,
    entries          bigint not null,
    granted_credits  bigint not null,
    adjusted_credits bigint not null,
    charged_credits  bigint not null,
    refunded_credits bigint not null,
    expired_credits  bigint not null,
    client_cost_usd  numeric not null,
    closed_at        timestamptz not null,
    closed_by        text not null,
    primary key (team_id, period)
);
"""

_INSERT = """
insert into statements (
    team_id, period, organization_id, after_position, position, head_hash, opening_credits, closing_credits, entries,
    granted_credits, adjusted_credits, charged_credits, refunded_credits, expired_credits, client_cost_usd, closed_at,
    closed_by)
select team_id, period, organization_id, after_position, position, head_hash, opening_credits, closing_credits, entries,
       granted_credits, adjusted_credits, charged_credits, refunded_credits, expired_credits, client_cost_usd,
       closed_at, closed_by
from json_to_recordset(%s) as row (
    team_id text, period text, organization_id text, after_position bigint, position bigint, head_hash text,
    opening_credits bigint, closing_credits bigint, entries bigint, granted_credits bigint, adjusted_credits bigint,
    charged_credits bigint, refunded_credits bigint, expired_credits bigint, client_cost_usd numeric,
    closed_at timestamptz, closed_by text)
"""


class StatementRow(msgspec.Struct, kw_only=True):
    """A closed statement."""

    team_id: str
    period: str
    organization_id: str
    after_position: int
    position: int
    head_hash: str
    opening_credits: int
    closing_credits: int
    entries: int
    granted_credits: int
    adjusted_credits: int
    charged_credits: int
    refunded_credits: int
    expired_credits: int
    client_cost_usd: Decimal
    closed_at: datetime
    closed_by: str


def project(batch: Batch) -> Iterable[Statement]:
    yield _INSERT, [_row(event) for event in batch.of(StatementClosed)]


def _row(event: StatementClosed) -> StatementRow:
    facts = {
        name: getattr(event, name) for name in event.__struct_fields__ if name not in ("at", "by", "request", "totals")
    }
    return StatementRow(**facts, **msgspec.structs.asdict(event.totals), closed_at=event.at, closed_by=event.by)


# -- what a statement covers -------------------------------------------------------------------------------------------

# A period ends with the last movement that was dated before its end. What is dated in it but stands behind a movement
# of later date belongs there all the same: entries are never told in another order than that of the journal.
_STRETCH = """
with begun as (
    select coalesce(max(position), %(after)s) as after_position
    from transactions
    where team_id = %(team_id)s and position > %(after)s and created_at < %(start)s
), ended as (
    select after_position, coalesce(max(position), after_position) as position
    from begun left join transactions
        on team_id = %(team_id)s and position > after_position and created_at < %(end)s
    group by after_position
)
select after_position, position,
       (select credits_after from transactions as last
        where last.team_id = %(team_id)s and last.position <= ended.after_position
        order by last.position desc limit 1) as opening_credits,
       (select credits_after from transactions as last
        where last.team_id = %(team_id)s and last.position <= ended.position
        order by last.position desc limit 1) as closing_credits
from ended
"""

_RANGE = """
    transactions.team_id = %(team_id)s and not transactions.is_hold
    and transactions.position > %(after)s and transactions.position <= %(until)s
"""

_TOTALS = """
select count(*) as entries,
       coalesce(sum(credits_amount) filter (where transaction_type in (
           'allocation', 'subscription_payment', 'one_time_payment')), 0)::bigint as granted_credits,
       coalesce(sum(credits_after - credits_before) filter (where transaction_type = 'adjustment'), 0)::bigint
           as adjusted_credits,
       coalesce(sum(credits_amount) filter (where transaction_type = 'deduction'), 0)::bigint as charged_credits,
       coalesce(sum(credits_amount) filter (where transaction_type = 'refund'), 0)::bigint as refunded_credits,
       coalesce(sum(credits_amount) filter (where transaction_type = 'expiration'), 0)::bigint as expired_credits,
       coalesce(sum(jobs.client_cost_usd) filter (where transaction_type = 'deduction'), 0) as client_cost_usd
from transactions left join jobs using (job_id)
where {range}
"""

_ENTRIES = """
select position, transaction_id::text, job_id::text, transaction_type, credits_amount, credits_before, credits_after,
       reason, payment_reference, payment_amount_usd, created_at
from transactions
where {range}
order by position
limit %(limit)s offset %(offset)s
"""

_CHARGED = """
with charged as (
    select job_id, sum(credits_amount)::bigint as credits
    from transactions
    where {range} and transaction_type = 'deduction'
    group by job_id
)
"""
_BY_JOB_TYPE = (
    _CHARGED
    + """
select job_type, count(*) as jobs, sum(credits)::bigint as credits, sum(successful_calls)::bigint as calls,
       sum(total_tokens)::bigint as tokens, sum(client_cost_usd) as client_cost_usd
from charged join jobs using (job_id)
group by job_type
order by job_type
"""
)
_BY_MODEL = (
    _CHARGED
    + """
select model, count(*) as calls, sum(prompt_tokens)::bigint as prompt_tokens,
       sum(completion_tokens)::bigint as completion_tokens, sum(client_cost_usd) as client_cost_usd
from charged join calls using (job_id)
where calls.status = 'completed'
group by model
order by model
"""
)


class Stretch(msgspec.Struct, kw_only=True, frozen=True):
    """The part of the journal that a statement covers, and what a team had before and after it."""

    after_position: int
    position: int
    opening_credits: int | None
    closing_credits: int | None


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    """A movement of credits, and what remained after it."""

    position: int
    transaction_id: str
    job_id: str | None
    transaction_type: TransactionType
    credits_amount: int
    credits_before: int
    credits_after: int
    reason: str | None
    payment_reference: str | None
    payment_amount_usd: Decimal | None
    created_at: datetime

    @property
    def credits(self) -> int:
        """By how much it changed what remained."""
        return self.credits_after - self.credits_before


class JobTypeUsage(msgspec.Struct, kw_only=True, frozen=True):
    """The charged jobs of one type."""

    job_type: str
    jobs: int
    credits: int
    calls: int
    tokens: int
    client_cost_usd: Decimal


class ModelUsage(msgspec.Struct, kw_only=True, frozen=True):
    """The successful calls of charged jobs to one model."""

    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    client_cost_usd: Decimal = ZERO


async def stretch(connection: Connection, team_id: str, *, after: int, start: datetime, end: datetime) -> Stretch:
    """What a period covers that is not closed yet; `after` is where the last closed one ended."""
    found = await fetch_one(
        connection, Stretch, _STRETCH, {"team_id": team_id, "after": after, "start": start, "end": end}
    )
    assert found is not None
    return found


async def totals(connection: Connection, team_id: str, after: int, until: int) -> Totals:
    """The entries between two positions, added up by kind."""
    found = await fetch_one(
        connection, Totals, _TOTALS.format(range=_RANGE), {"team_id": team_id, "after": after, "until": until}
    )
    assert found is not None
    return found


async def entries(
    connection: Connection, team_id: str, after: int, until: int, *, limit: int, offset: int = 0
) -> list[Entry]:
    """The entries between two positions, in the order of the journal."""
    wanted = {"team_id": team_id, "after": after, "until": until, "limit": limit, "offset": offset}
    return await fetch_all(connection, Entry, _ENTRIES.format(range=_RANGE), wanted)


async def usage_by_job_type(connection: Connection, team_id: str, after: int, until: int) -> list[JobTypeUsage]:
    wanted = {"team_id": team_id, "after": after, "until": until}
    return await fetch_all(connection, JobTypeUsage, _BY_JOB_TYPE.format(range=_RANGE), wanted)


async def usage_by_model(connection: Connection, team_id: str, after: int, until: int) -> list[ModelUsage]:
    wanted = {"team_id": team_id, "after": after, "until": until}
    return await fetch_all(connection, ModelUsage, _BY_MODEL.format(range=_RANGE), wanted)


STATEMENTS = Projection(
    name="statements", version=1, tables=("statements",), ddl=DDL, project=project, wants=(StatementClosed,)
)
