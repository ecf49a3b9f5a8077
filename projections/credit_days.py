"""Credits by day: what each team got and used, and what all of them did together.

    got  = grants + adjustments - expirations: by how much the credits allocated grew
    used = charges - refunds

What remained at the end of a day is the sum of all that was got until then, less all that was used. A day is a day of
UTC by the clock of the event; so the sums are right whatever the clocks of several machines say.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, timedelta
from decimal import Decimal
from typing import Literal

import msgspec

from domain.credit import (
    CreditMovement,
    CreditsAdjusted,
    CreditsCharged,
    CreditsExpired,
    CreditsGranted,
    CreditsRefunded,
)
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import fetch_all, fetch_one

Health = Literal["healthy", "warning", "critical"]

DDL = """
create table credit_days (
    team_id text not null,
    day     date not null,
    got     bigint not null,
    used    bigint not null,
    primary key (team_id, day)
);

create table credit_days_of_all (
    day  date primary key,
    got  bigint not null,
    used bigint not null
);
"""

_ADD = """
insert into credit_days as known (team_id, day, got, used)
select team_id, day, got, used from json_to_recordset(%s) as row (team_id text, day date, got bigint, used bigint)
on conflict (team_id, day) do update set got = known.got + excluded.got, used = known.used + excluded.used
"""

_ADD_TO_ALL = """
insert into credit_days_of_all as known (day, got, used)
select day, got, used from json_to_recordset(%s) as row (day date, got bigint, used bigint)
on conflict (day) do update set got = known.got + excluded.got, used = known.used + excluded.used
"""


class CreditDay(msgspec.Struct):
    """What a day brought."""

    day: date
    got: int = 0
    used: int = 0


class TeamDay(CreditDay):
    team_id: str = ""


MOVING = (CreditsGranted, CreditsAdjusted, CreditsExpired, CreditsCharged, CreditsRefunded)


def project(batch: Batch) -> Iterable[Statement]:
    teams: dict[tuple[str, date], TeamDay] = {}
    days: dict[date, CreditDay] = {}
    for recorded in batch.recorded(*MOVING):
        event = recorded.event
        assert isinstance(event, CreditMovement)
        day = event.at.astimezone(UTC).date()
        for sums in (
            teams.setdefault((event.team_id, day), TeamDay(day, team_id=event.team_id)),
            days.setdefault(day, CreditDay(day)),
        ):
            _add(sums, event)
    yield _ADD, list(teams.values())
    yield _ADD_TO_ALL, list(days.values())


def _add(day: CreditDay, event: CreditMovement) -> None:
    match event:
        case CreditsCharged():
            day.used += event.credits
        case CreditsRefunded():
            day.used -= event.credits
        case CreditsExpired():
            day.got -= event.credits
        case _:
            day.got += event.credits


# -- trends ------------------------------------------------------------------------------------------------------------

# All days before the first one that is wanted are summed up in the day before it.
_OF_TEAM = """
select greatest(day, %(before)s) as day, sum(got)::bigint as got, sum(used)::bigint as used
from credit_days where team_id = %(team_id)s and day <= %(last)s group by 1 order by 1
"""

_OF_ALL = """
select greatest(day, %(before)s) as day, sum(got)::bigint as got, sum(used)::bigint as used
from credit_days_of_all where day <= %(last)s group by 1 order by 1
"""


class Trend(msgspec.Struct):
    """A day, and what remained at its end."""

    day: date
    got: int
    used: int
    remaining: int


async def trends(connection: Connection, team_id: str | None, *, last: date, days: int) -> list[Trend]:
    """So many days in a row, of one team or of all together, each of them present."""
    before = last - timedelta(days=days)
    parameters = {"team_id": team_id, "before": before, "last": last}
    found = await fetch_all(connection, CreditDay, _OF_ALL if team_id is None else _OF_TEAM, parameters)
    moved = {day.day: day for day in found}
    points: list[Trend] = []
    remaining = 0
    for number in range(days + 1):
        today = moved.get(before + timedelta(days=number), CreditDay(before + timedelta(days=number)))
        remaining += today.got - today.used
        points.append(Trend(today.day, today.got, today.used, remaining))
    return points[1:]


# -- utilization -------------------------------------------------------------------------------------------------------

_LIVING = """
from balances join teams using (team_id)
cross join lateral (select credits_allocated - credits_used as credits_remaining) as left_over
cross join lateral (
    select case
        when credits_allocated > 0 and credits_remaining * 100 > credits_allocated * 50 then 'healthy'
        when credits_allocated > 0 and credits_remaining * 100 >= credits_allocated * 20 then 'warning'
        else 'critical' end as health
) as judged
where teams.status <> 'inactive'
"""

_UTILIZATION = (
    """
select count(*) as total_teams,
       coalesce(sum(credits_allocated), 0)::bigint as total_allocated,
       coalesce(sum(credits_used), 0)::bigint as total_used,
       coalesce(avg(100.0 * credits_used / credits_allocated) filter (where credits_allocated > 0), 0)
           as avg_utilization,
       count(*) filter (where health = 'healthy') as healthy,
       count(*) filter (where health = 'warning') as warning,
       count(*) filter (where health = 'critical') as critical
"""
    + _LIVING
)

_NEEDING_ATTENTION = (
    "select team_id, credits_allocated, credits_remaining, health"
    + _LIVING
    + """ and health <> 'healthy'
order by case when credits_allocated > 0 then credits_remaining::numeric / credits_allocated else 0 end, team_id
limit %(limit)s offset %(offset)s
"""
)


class Utilization(msgspec.Struct):
    """How far the credits of all teams that were not deleted have been used."""

    total_teams: int
    total_allocated: int
    total_used: int
    avg_utilization: Decimal
    healthy: int
    warning: int
    critical: int


class ShortOfCredits(msgspec.Struct):
    """A team that may soon have nothing left."""

    team_id: str
    credits_allocated: int
    credits_remaining: int
    health: Health


async def utilization(connection: Connection) -> Utilization:
    found = await fetch_one(connection, Utilization, _UTILIZATION, {})
    assert found is not None
    return found


async def needing_attention(connection: Connection, *, limit: int, offset: int) -> Sequence[ShortOfCredits]:
    """The teams that are not healthy, those with the least left first."""
    return await fetch_all(connection, ShortOfCredits, _NEEDING_ATTENTION, {"limit": limit, "offset": offset})


CREDIT_DAYS = Projection(
    name="credit_days", version=1, tables=("credit_days", "credit_days_of_all"), ddl=DDL, project=project, wants=MOVING
)
