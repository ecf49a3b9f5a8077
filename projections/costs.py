"""What calls cost and brought in, grouped as somebody asks: finance's view of the roll-ups in `usage`.

Whole months and days come from the smallest roll-up that knows what is asked for; what a period has of its first and
last day beside them, from the calls themselves.
Users are as many as jobs, so no roll-up knows them: figures by user come from the calls of a team, an organization or
the user, which have an index each. Everything counts on the day, in UTC, on which its job was created.
"""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Literal, get_args

import msgspec

from domain.pricing import subtract
from infra.journal import Connection
from projections.reading import fetch_all, fetch_one
from projections.usage import OF_ORGANIZATION, Span

Dimension = Literal[
    "day", "month", "organization", "team", "user", "job_type", "model", "provider", "resolved_model", "purpose"
]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
Sorting = Literal["revenue_usd", "provider_cost_usd", "margin_usd", "total_tokens", "calls"]
SORTINGS: tuple[Sorting, ...] = get_args(Sorting)

# What a dimension is called in an answer, and in the sources.
COLUMNS: dict[Dimension, str] = {
    "day": "day",
    "month": "month",
    "organization": "organization_id",
    "team": "team_id",
    "user": "user_id",
    "job_type": "job_type",
    "model": "model",
    "provider": "provider",
    "resolved_model": "resolved_model",
    "purpose": "purpose",
}
_SHOWN: dict[Dimension, str] = {
    "day": "day",
    "month": "to_char(month, 'YYYY-MM') as month",
    "organization": "organization_id",
    "team": "team_id",
    "user": "nullif(user_id, '') as user_id",
    "job_type": "job_type",
    "model": "model",
    "provider": "nullif(provider, '') as provider",
    "resolved_model": "nullif(resolved_model, '') as resolved_model",
    "purpose": "nullif(purpose, '') as purpose",
}

_SUMS = """
       coalesce(sum(successful_calls), 0)::bigint as successful_calls,
       coalesce(sum(failed_calls), 0)::bigint as failed_calls,
       coalesce(sum(prompt_tokens), 0)::bigint as prompt_tokens,
       coalesce(sum(completion_tokens), 0)::bigint as completion_tokens,
       coalesce(sum(provider_cost_usd), 0) as provider_cost_usd,
       coalesce(sum(client_cost_usd), 0) as client_cost_usd
"""

_FIGURES = "successful_calls, failed_calls, prompt_tokens, completion_tokens, provider_cost_usd, client_cost_usd"

# The sources: what the roll-ups have of whole months and whole days, and calls one by one.
_OF_MONTHS = """
    select null::date as day, month, organization_id, team_id, null as job_type, model, provider, resolved_model,
           null as purpose, {figures}
    from usage_by_month
    where month >= %(first_month)s and month < %(end_month)s {conditions}
"""
_OF_HOUSE = """
    select day, date_trunc('month', day::timestamp)::date as month, null as organization_id, null as team_id, job_type,
           model, provider, resolved_model, purpose, {figures}
    from usage_of_house
    where day >= %(first_day)s and day < %(end_day)s {conditions}
"""
_OF_DAYS = """
    select day, date_trunc('month', day::timestamp)::date as month, organization_id, team_id, job_type, model, provider,
           resolved_model, purpose, {figures}
    from usage_by_model
    where {days} {conditions}
"""
_WHOLE_DAYS = "day >= %(first_day)s and day < %(end_day)s"
_DAYS_BESIDE_MONTHS = """
    (day >= %(first_day)s and day < %(first_month)s or day >= %(end_month)s and day < %(end_day)s)
"""
_KNOWN_BY_MONTH = frozenset({"month", "organization_id", "team_id", "model", "provider", "resolved_model"})
_KNOWN_OF_HOUSE = frozenset({"day", "month", "job_type", "model", "provider", "resolved_model", "purpose"})
_SINGLE = """
    select day, month, organization_id, team_id, job_type, model, provider, resolved_model, purpose, {figures}
"""
_CALLS = """
    from (
        select (jobs.created_at at time zone 'UTC')::date as day,
               date_trunc('month', jobs.created_at at time zone 'UTC')::date as month, jobs.organization_id,
               jobs.team_id, coalesce(jobs.user_id, '') as user_id, jobs.job_type, calls.model,
               coalesce(calls.provider, '') as provider, coalesce(calls.resolved_model, '') as resolved_model,
               coalesce(calls.purpose, '') as purpose, (calls.error is null)::integer as successful_calls,
               (calls.error is not null)::integer as failed_calls, calls.prompt_tokens, calls.completion_tokens,
               calls.provider_cost_usd, calls.client_cost_usd
        from jobs join calls using (job_id)
        where calls.status <> 'running' and {within}
    ) as single
    where true {conditions}
"""
_EDGES = """
    (jobs.created_at >= %(head_start)s and jobs.created_at < %(head_end)s
     or jobs.created_at >= %(tail_start)s and jobs.created_at < %(tail_end)s)
"""
_WHOLE_SPAN = "jobs.created_at >= %(start)s and jobs.created_at < %(end)s"

# In the order of an index, a page of groups is found without the others; these are counted, which takes less memory and
# time than adding them up. The sums of all come from where they are fewest.
_REPORT = """
select {shown} successful_calls, failed_calls, prompt_tokens, completion_tokens, provider_cost_usd, client_cost_usd,
       null::bigint as groups
from (
    select {columns} {sums} from ({source}) as usage {grouping} order by {order} limit %(limit)s offset %(offset)s
) as page
union all
select {nothing} {sums}, ({number}) from ({all_of_it}) as usage
"""
_NUMBER = "select count(*) from (select distinct {columns} from ({source}) as usage) as each"

_SORTED: dict[Sorting, str] = {
    "revenue_usd": "sum(client_cost_usd)",
    "provider_cost_usd": "sum(provider_cost_usd)",
    "margin_usd": "sum(client_cost_usd - provider_cost_usd)",
    "total_tokens": "sum(prompt_tokens + completion_tokens)",
    "calls": "sum(successful_calls + failed_calls)",
}
_CONDITIONS = {"organization_id": OF_ORGANIZATION}  # others are just equal


class Filter(msgspec.Struct, kw_only=True, frozen=True):
    """Which calls are meant; None is no condition."""

    organization_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    job_type: str | None = None
    model: str | None = None
    provider: str | None = None
    resolved_model: str | None = None
    purpose: str | None = None

    @property
    def given(self) -> list[str]:
        """The columns that have to be something."""
        return [name for name in self.__struct_fields__ if getattr(self, name) is not None]

    @property
    def conditions(self) -> str:
        return "".join(f" and {_CONDITIONS.get(name, f'{name} = %({name})s')}" for name in self.given)

    @property
    def has_index(self) -> bool:
        """Whether an index leads to the jobs that it is about."""
        return not (self.organization_id is None and self.team_id is None and self.user_id is None)


class Figures(msgspec.Struct, kw_only=True):
    """What some calls came to. Names of what they were not grouped by are None."""

    day: date | None = None
    month: str | None = None
    organization_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    job_type: str | None = None
    model: str | None = None
    provider: str | None = None
    resolved_model: str | None = None
    purpose: str | None = None
    successful_calls: int
    failed_calls: int
    prompt_tokens: int
    completion_tokens: int
    provider_cost_usd: Decimal
    client_cost_usd: Decimal
    groups: int | None = None

    @property
    def calls(self) -> int:
        return self.successful_calls + self.failed_calls

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def margin_usd(self) -> Decimal:
        return subtract(self.client_cost_usd, self.provider_cost_usd)


class Report(msgspec.Struct, frozen=True):
    """A page of groups, and all of them together."""

    groups: list[Figures]
    number: int
    totals: Figures


async def costs(
    connection: Connection,
    by: Sequence[Dimension],
    wanted: Filter,
    span: Span,
    *,
    sort_by: Sorting | None = None,
    descending: bool = True,
    limit: int,
    offset: int = 0,
) -> Report:
    """What calls came to, by some dimensions.

    Args:
        by: without any, everything is one group.
        sort_by: None is by the dimensions themselves, in their order.
        descending: of a figure only; names and days always ascend.
    """
    columns = [COLUMNS[each] for each in by]
    figure = [] if sort_by is None else [_SORTED[sort_by] + (" desc" if descending else "")]
    source = _source(by, wanted, span)
    names = ", ".join(columns)
    query = _REPORT.format(
        shown="".join(f"{_SHOWN[each]}, " for each in by),
        columns=names and f"{names},",
        sums=_SUMS,
        source=source,
        grouping=names and f"group by {names}",
        order=", ".join([*figure, *columns]) or "client_cost_usd",
        nothing="null, " * len(by),
        number=_NUMBER.format(columns=names, source=source) if names else "1",
        all_of_it=_source((), wanted, span),
    )
    times = {"start": span.start, "end": span.end, **span.parameters()}
    paging = {"limit": limit, "offset": offset}
    found = await fetch_all(connection, Figures, query, {**msgspec.structs.asdict(wanted), **times, **paging})
    totals = next(each for each in found if each.groups is not None)
    return Report([each for each in found if each.groups is None], totals.groups or 0, totals)


def _source(by: Sequence[Dimension], wanted: Filter, span: Span) -> str:
    """Where the figures are, in as few rows as know what is asked for; what is empty anyway is left out."""
    conditions = wanted.conditions
    asked = {COLUMNS[each] for each in by} | set(wanted.given)
    if "user_id" in asked:
        return "select *" + _CALLS.format(within=_WHOLE_SPAN, conditions=conditions)
    if asked <= _KNOWN_OF_HOUSE:
        sources, days = [_OF_HOUSE], ""
    elif not asked <= _KNOWN_BY_MONTH:
        sources, days = [_OF_DAYS], _WHOLE_DAYS
    elif span.is_of_months:
        sources, days = [_OF_MONTHS], ""
    else:
        sources, days = [_OF_MONTHS, _OF_DAYS], _DAYS_BESIDE_MONTHS
    if not span.is_of_days:
        sources.append(_SINGLE + _CALLS)
    return " union all ".join(sources).format(figures=_FIGURES, days=days, within=_EDGES, conditions=conditions)


# -- an organization ---------------------------------------------------------------------------------------------------

_BY_TEAM = """
select team_id, sum(total_jobs)::bigint as total_jobs, sum(completed_jobs)::bigint as completed_jobs,
       sum(failed_jobs)::bigint as failed_jobs, sum(successful_calls)::bigint as successful_calls,
       sum(failed_calls)::bigint as failed_calls, sum(total_tokens)::bigint as total_tokens,
       sum(client_cost_usd) as client_cost_usd, sum(credits_used)::bigint as credits_used
from (
    select team_id, total_jobs, completed_jobs, failed_jobs, successful_calls, failed_calls, total_tokens,
           client_cost_usd, credits_charged - credits_refunded as credits_used
    from usage_by_day
    where {scope} and day >= %(first_day)s and day < %(end_day)s
    union all
    select team_id, 1, (status = 'completed')::integer, (status = 'failed')::integer, successful_calls, failed_calls,
           total_tokens, client_cost_usd, credits_charged - credits_refunded
    from jobs
    where {scope}
      and (created_at >= %(head_start)s and created_at < %(head_end)s
           or created_at >= %(tail_start)s and created_at < %(tail_end)s)
) as usage
group by team_id
order by credits_used desc, total_jobs desc, team_id
"""

# Open jobs are few, and an index of their own leads to them.
_RUNNING = """
select (select count(*) from jobs
        where status = 'in_progress' and created_at >= %(start)s and created_at < %(end)s
          and team_id = any (array(select team_id from teams where organization_id = %(organization_id)s)))
           as in_progress_jobs,
       (select count(*) from teams where organization_id = %(organization_id)s and status <> 'inactive') as total_teams
"""


class TeamFigures(msgspec.Struct, kw_only=True):
    """What the jobs of one team, created in a period, came to."""

    team_id: str
    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    successful_calls: int
    failed_calls: int
    total_tokens: int
    client_cost_usd: Decimal
    credits_used: int


class Standing(msgspec.Struct, kw_only=True):
    """What an organization has at the moment."""

    in_progress_jobs: int
    total_teams: int


async def of_organization(connection: Connection, organization_id: str, span: Span) -> list[TeamFigures]:
    """What each team of an organization used, the one with the most credits first."""
    wanted = {**span.parameters(), "organization_id": organization_id}
    return await fetch_all(connection, TeamFigures, _BY_TEAM.format(scope=OF_ORGANIZATION), wanted)


async def standing(connection: Connection, organization_id: str, span: Span) -> Standing:
    """The teams of an organization, and which of the jobs created in a period are being worked on."""
    wanted = {"organization_id": organization_id, "start": span.start, "end": span.end}
    found = await fetch_one(connection, Standing, _RUNNING, wanted)
    assert found is not None
    return found
