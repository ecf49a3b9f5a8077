"""What the clock will bring: teams to be refilled, and grants that end with something left of them.

Jobs that are left alone and calls that never ended are found in their own tables.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time

import msgspec

from domain.credit import (
    CreditsAdjusted,
    CreditsCharged,
    CreditsExpired,
    CreditsGranted,
    GrantShare,
)
from domain.team import AutoRefillSet, RefillPeriod, TeamDeleted
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement

DDL = """
create table refills (
    team_id     text primary key,
    enabled     boolean not null default false,
    period      text,
    since       timestamptz,
    last_period date not null default '-infinity'
);
create index refills_due on refills (period, last_period) where enabled;

create table ending_grants (
    grant_id     uuid primary key,
    team_id      text not null,
    credits_left bigint not null,
    expires_at   timestamptz not null
);
create index ending_grants_by_end on ending_grants (expires_at);
"""

_NEW_REFILL = """
insert into refills (team_id)
select team_id from json_to_recordset(%s) as row (team_id text)
on conflict do nothing
"""

_SET_REFILL = """
update refills
set enabled = change.enabled, period = change.period,
    since = case
        when change.may_go_on and change.enabled and refills.enabled and refills.period = change.period
        then refills.since else change.since end
from json_to_recordset(%s) as change (
    team_id text, enabled boolean, period text, since timestamptz, may_go_on boolean)
where refills.team_id = change.team_id
"""

_REFILLED = """
update refills set last_period = greatest(refills.last_period, change.last_period)
from json_to_recordset(%s) as change (team_id text, last_period date)
where refills.team_id = change.team_id
"""

_NO_REFILL = """
delete from refills using json_to_recordset(%s) as gone (team_id text) where refills.team_id = gone.team_id
"""

_NEW_GRANT = """
insert into ending_grants (grant_id, team_id, credits_left, expires_at)
select grant_id, team_id, credits_left, expires_at
from json_to_recordset(%s) as row (grant_id uuid, team_id text, credits_left bigint, expires_at timestamptz)
"""

_SPEND = """
update ending_grants set credits_left = ending_grants.credits_left - spent.credits
from json_to_recordset(%s) as spent (grant_id uuid, credits bigint)
where ending_grants.grant_id = spent.grant_id
"""

_NO_GRANT = """
delete from ending_grants using json_to_recordset(%s) as spent (grant_id uuid)
where ending_grants.grant_id = spent.grant_id and ending_grants.credits_left <= 0
"""


class RefillChange(msgspec.Struct):
    """How a team's auto-refill stands at the end of a batch.

    It runs since `since`, unless it already ran in the same rhythm before the batch and `may_go_on`.
    """

    team_id: str
    enabled: bool
    period: RefillPeriod | None
    since: datetime
    may_go_on: bool = True


class Refilled(msgspec.Struct):
    team_id: str
    last_period: str


class Gone(msgspec.Struct):
    team_id: str


class EndingGrant(msgspec.Struct):
    grant_id: str
    team_id: str
    credits_left: int
    expires_at: datetime


def project(batch: Batch) -> Iterable[Statement]:
    changes = _refill_changes(batch)
    yield _NEW_REFILL, changes
    yield _SET_REFILL, changes
    yield _REFILLED, _refilled(batch)
    yield _NO_REFILL, [Gone(event.team_id) for event in batch.of(TeamDeleted)]
    yield _NEW_GRANT, _new_grants(batch)
    spent = _spent(batch)
    yield _SPEND, spent
    yield _NO_GRANT, spent


def _refill_changes(batch: Batch) -> list[RefillChange]:
    changes: dict[str, RefillChange] = {}
    for event in batch.of(AutoRefillSet):
        change = changes.get(event.team_id)
        if change is None:
            changes[event.team_id] = RefillChange(event.team_id, event.enabled, event.refill_period, event.at)
            continue
        if not (change.enabled and event.enabled and change.period == event.refill_period):
            change.since, change.may_go_on = event.at, False
        change.enabled, change.period = event.enabled, event.refill_period
    return list(changes.values())


def _refilled(batch: Batch) -> list[Refilled]:
    last = {event.team_id: event.refill_period for event in batch.of(CreditsGranted) if event.refill_period is not None}
    return [Refilled(team_id, period) for team_id, period in last.items()]


def _new_grants(batch: Batch) -> list[EndingGrant]:
    grants = []
    for event in batch.of(CreditsGranted):
        left = min(event.credits, event.remaining_credits)  # what paid an overdraft back is spent already
        if event.expires_at is not None and left > 0:
            grants.append(EndingGrant(event.transaction_id, event.team_id, left, event.expires_at))
    return grants


def _spent(batch: Batch) -> list[GrantShare]:
    shares = [share for event in batch.of(CreditsCharged) for share in event.from_grants]
    shares += [share for event in batch.of(CreditsAdjusted) for share in event.from_grants]
    shares += [GrantShare(event.grant_id, event.credits) for event in batch.of(CreditsExpired)]
    credits: dict[str, int] = {}
    for share in shares:
        credits[share.grant_id] = credits.get(share.grant_id, 0) + share.credits
    return [GrantShare(grant_id, spent) for grant_id, spent in credits.items()]


# -- selects -----------------------------------------------------------------------------------------------------------

_TO_REFILL = """
select team_id from refills
where enabled and period = %(period)s and last_period < %(first_day)s and since <= %(start)s and team_id > %(after)s
order by team_id limit %(limit)s
"""

_WITH_ENDED_GRANTS = """
select distinct team_id from ending_grants
where expires_at <= %(at)s and team_id > %(after)s
order by team_id limit %(limit)s
"""


async def to_refill(
    connection: Connection, period: RefillPeriod, first_day: date, *, after: str = "", limit: int
) -> list[str]:
    """Teams that have not been refilled for the period that began on this day, in their order behind `after`."""
    start = datetime.combine(first_day, time(), UTC)
    parameters = {"period": period, "first_day": first_day, "start": start, "after": after, "limit": limit}
    cursor = await connection.execute(_TO_REFILL, parameters)
    return [str(row[0]) for row in await cursor.fetchall()]


async def with_ended_grants(connection: Connection, at: datetime, *, after: str = "", limit: int) -> list[str]:
    """Teams with credits that should have ended, in their order behind `after`."""
    cursor = await connection.execute(_WITH_ENDED_GRANTS, {"at": at, "after": after, "limit": limit})
    return [str(row[0]) for row in await cursor.fetchall()]


DUE = Projection(
    name="due",
    version=1,
    tables=("refills", "ending_grants"),
    ddl=DDL,
    project=project,
    wants=(AutoRefillSet, TeamDeleted, CreditsGranted, CreditsCharged, CreditsAdjusted, CreditsExpired),
)
