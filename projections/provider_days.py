"""What we owe providers, by day: to be laid beside their bills.

    provider_days       one row for each day, provider and provider's model: calls, tokens, and what we think they cost
    booked_differences  what a bill asked beyond that, and was agreed to: one row a line of a bill

A call counts on the day, in UTC, on which it ended: that is when a provider counts it, give or take its own clock.
(What customers see counts on the day of the job.) A call that failed is here if the provider is thought to charge it.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal

import msgspec

from domain.job import CallFailed, CallFinished
from domain.pricing import ZERO, add
from domain.statement import BillDifferenceBooked
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import fetch_all

DDL = """
create table provider_days (
    provider          text not null,
    model             text not null,
    day               date not null,
    calls             bigint not null,
    prompt_tokens     bigint not null,
    completion_tokens bigint not null,
    provider_cost_usd numeric not null,
    primary key (provider, day, model)
);

create table booked_differences (
    position       bigint primary key,
    provider       text not null,
    reference      text not null,
    day            date not null,
    model          text not null,
    ours_usd       numeric not null,
    theirs_usd     numeric not null,
    difference_usd numeric not null,
    note           text,
    booked_at      timestamptz not null,
    booked_by      text not null
);
create index booked_differences_by_day on booked_differences (provider, day);
"""

_ADD = """
insert into provider_days as known (
    provider, model, day, calls, prompt_tokens, completion_tokens, provider_cost_usd)
select provider, model, day, calls, prompt_tokens, completion_tokens, provider_cost_usd
from json_to_recordset(%s) as row (
    provider text, model text, day date, calls bigint, prompt_tokens bigint, completion_tokens bigint,
    provider_cost_usd numeric)
on conflict (provider, day, model) do update
set calls = known.calls + excluded.calls,
    prompt_tokens = known.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = known.completion_tokens + excluded.completion_tokens,
    provider_cost_usd = known.provider_cost_usd + excluded.provider_cost_usd
"""

_BOOK = """
insert into booked_differences (
    position, provider, reference, day, model, ours_usd, theirs_usd, difference_usd, note, booked_at, booked_by)
select position, provider, reference, day, model, ours_usd, theirs_usd, difference_usd, note, booked_at, booked_by
from json_to_recordset(%s) as row (
    position bigint, provider text, reference text, day date, model text, ours_usd numeric, theirs_usd numeric,
    difference_usd numeric, note text, booked_at timestamptz, booked_by text)
"""


class ProviderDay(msgspec.Struct):
    """What a batch adds to a day of a provider's model."""

    provider: str
    model: str
    day: date
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    provider_cost_usd: Decimal = ZERO


class BookedRow(msgspec.Struct, kw_only=True):
    position: int
    provider: str
    reference: str
    day: date
    model: str
    ours_usd: Decimal
    theirs_usd: Decimal
    difference_usd: Decimal
    note: str | None
    booked_at: datetime
    booked_by: str


def project(batch: Batch) -> Iterable[Statement]:
    days: dict[tuple[str, str, date], ProviderDay] = {}
    for finished in batch.of(CallFinished):
        day = _day(days, finished.provider, finished.resolved_model, finished.at)
        _count(day, finished.provider_cost_usd, finished.prompt_tokens, finished.completion_tokens)
    for failed in batch.of(CallFailed):
        if failed.provider is not None and failed.resolved_model is not None and failed.provider_cost_usd:
            _count(_day(days, failed.provider, failed.resolved_model, failed.at), failed.provider_cost_usd)
    yield _ADD, list(days.values())
    yield _BOOK, [_booked(recorded.position, recorded.event) for recorded in batch.recorded(BillDifferenceBooked)]


def _day(
    days: dict[tuple[str, str, date], ProviderDay], provider: str, resolved_model: str, at: datetime
) -> ProviderDay:
    """A provider's bill calls its models without its own name before them."""
    model, day = resolved_model.removeprefix(f"{provider}/"), at.astimezone(UTC).date()
    return days.setdefault((provider, model, day), ProviderDay(provider, model, day))


def _count(day: ProviderDay, cost: Decimal, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
    day.calls += 1
    day.prompt_tokens += prompt_tokens
    day.completion_tokens += completion_tokens
    day.provider_cost_usd = add(day.provider_cost_usd, cost)


def _booked(position: int, event: object) -> BookedRow:
    assert isinstance(event, BillDifferenceBooked)
    return BookedRow(
        position=position,
        provider=event.provider,
        reference=event.reference,
        day=event.day,
        model=event.model,
        ours_usd=event.ours_usd,
        theirs_usd=event.theirs_usd,
        difference_usd=event.difference_usd,
        note=event.note,
        booked_at=event.at,
        booked_by=event.by,
    )


# -- reading -----------------------------------------------------------------------------------------------------------

_OF_PROVIDER = """
select provider, model, day, calls, prompt_tokens, completion_tokens, provider_cost_usd
from provider_days
where provider = %(provider)s and day between %(first)s and %(last)s
order by day, model
"""

_BOOKED = """
select position, provider, reference, day, model, ours_usd, theirs_usd, difference_usd, note, booked_at, booked_by
from booked_differences
where provider = %(provider)s and reference = %(reference)s
order by position
"""

_BESIDE = """
with recorded as (
    select coalesce(ours.day, booked.day) as day, coalesce(ours.provider, booked.provider) as provider,
           coalesce(ours.model, booked.model) as model, coalesce(calls, 0) as calls,
           coalesce(prompt_tokens, 0) as prompt_tokens, coalesce(completion_tokens, 0) as completion_tokens,
           coalesce(provider_cost_usd, 0) as provider_cost_usd, coalesce(booked_usd, 0) as booked_usd
    from (select * from provider_days
          where day between %(first)s and %(last)s and (%(provider)s::text is null or provider = %(provider)s)) as ours
    full join (select provider, day, model, sum(difference_usd) as booked_usd from booked_differences
               where day between %(first)s and %(last)s and (%(provider)s::text is null or provider = %(provider)s)
               group by provider, day, model) as booked using (provider, day, model)
)
select *, count(*) over () as total from recorded
order by day, provider, model
limit %(limit)s offset %(offset)s
"""


class RecordedDay(msgspec.Struct, kw_only=True):
    """What is on record for a day of a provider's model, and which differences to that were booked."""

    day: date
    provider: str
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    provider_cost_usd: Decimal
    booked_usd: Decimal
    total: int


async def of_provider(connection: Connection, provider: str, first: date, last: date) -> list[ProviderDay]:
    """What a provider's models came to, from the first day to the last, both included."""
    wanted = {"provider": provider, "first": first, "last": last}
    return await fetch_all(connection, ProviderDay, _OF_PROVIDER, wanted)


async def booked(connection: Connection, provider: str, reference: str) -> list[BookedRow]:
    """The differences of a bill that were booked, in that order."""
    return await fetch_all(connection, BookedRow, _BOOKED, {"provider": provider, "reference": reference})


async def recorded(
    connection: Connection, provider: str | None, first: date, last: date, *, limit: int, offset: int
) -> list[RecordedDay]:
    """What we owe, by day, provider and model; each row says how many there are of them."""
    wanted = {"provider": provider, "first": first, "last": last, "limit": limit, "offset": offset}
    return await fetch_all(connection, RecordedDay, _BESIDE, wanted)


PROVIDER_DAYS = Projection(
    name="provider_days",
    version=1,
    tables=("provider_days", "booked_differences"),
    ddl=DDL,
    project=project,
    wants=(CallFinished, CallFailed, BillDifferenceBooked),
)
