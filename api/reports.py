"""What calls cost and brought in: an organization at a glance, and any grouping that finance asks for."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Annotated, Any, cast

import msgspec
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import UNSET, UnsetType

from api.answers import hundredths, reply, usd6
from api.caller import admin_only
from api.house import House
from api.listing import EndDate, Order, Page, StartDate, Within, chosen, descends, one_of, wrapped
from api.organizations import known
from api.problems import Invalid
from api.tables import MOST_ROWS, AskedFormat, format_of, table
from domain.pricing import ZERO, add
from projections import costs, organizations
from projections.costs import COLUMNS, DIMENSIONS, SORTINGS, Dimension, Figures, Filter, Report, Sorting
from projections.usage import Span

MOST_ON_TOP = 10
NOBODY = "unknown"  # the provider of a call that failed before one was found

GroupBy = Annotated[str, QueryParameter(description=f"Some of {', '.join(DIMENSIONS)}, with commas between them")]
SortBy = Annotated[str | None, one_of(SORTINGS, description="By the names otherwise")]

# -- answers -----------------------------------------------------------------------------------------------------------


class TopTeam(msgspec.Struct, kw_only=True):
    team_id: str
    job_count: int
    credits_used: int


class OrganizationStats(msgspec.Struct, kw_only=True):
    organization_id: str
    organization_name: str | None
    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    in_progress_jobs: int
    total_teams: int
    total_llm_calls: int
    successful_calls: int
    failed_calls: int
    total_tokens: int
    total_cost_usd: Decimal
    total_credits_used: int
    top_teams: list[TopTeam]


class DaySpend(msgspec.Struct, kw_only=True):
    date: str
    spend: Decimal


class TeamSpend(msgspec.Struct, kw_only=True):
    team_id: str
    spend: Decimal
    successful: int
    failed: int
    tokens: int


class ModelSpend(msgspec.Struct, kw_only=True):
    model: str
    spend: Decimal
    count: int


class ProviderSpend(msgspec.Struct, kw_only=True):
    provider: str
    spend: Decimal
    successful: int
    failed: int
    tokens: int


class OrganizationAnalytics(msgspec.Struct, kw_only=True):
    organization_id: str
    organization_name: str | None
    total_spend: Decimal
    total_requests: int
    successful_requests: int
    failed_requests: int
    total_tokens: int
    daily_spend: list[DaySpend]
    spend_per_team: list[TeamSpend]
    top_models: list[ModelSpend]
    provider_usage: list[ProviderSpend]


class CostRow(msgspec.Struct, kw_only=True):
    """One group. Revenue is what the calls cost the teams, with markup; margin is what of it is not the provider's."""

    day: str | UnsetType = UNSET
    month: str | UnsetType = UNSET
    organization_id: str | UnsetType = UNSET
    team_id: str | UnsetType = UNSET
    user_id: str | UnsetType | None = UNSET
    job_type: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    provider: str | UnsetType | None = UNSET
    resolved_model: str | UnsetType | None = UNSET
    purpose: str | UnsetType | None = UNSET
    calls: int
    successful_calls: int
    failed_calls: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    provider_cost_usd: Decimal
    revenue_usd: Decimal
    margin_usd: Decimal
    margin_percent: Decimal | None


class CostReport(msgspec.Struct, kw_only=True):
    """`totals` are those of all groups, also of those on other pages."""

    group_by: list[str]
    start_date: str | None
    end_date: str | None
    rows: list[CostRow]
    totals: CostRow
    total: int
    limit: int
    offset: int


FIGURES = tuple(name for name in CostRow.__struct_fields__ if name not in COLUMNS.values())

# -- endpoints ---------------------------------------------------------------------------------------------------------


class ReportsController(Controller):
    path = "/api"
    tags = ["Reports"]
    before_request = admin_only

    @get("/jobs/organizations/{organization_id:str}/stats")
    async def stats(
        self, house: NamedDependency[House], within: NamedDependency[Within], organization_id: FromPath[str]
    ) -> Response[OrganizationStats]:
        """How many jobs and calls an organization had, what became of them, and which teams used most credits."""
        span = Span.of(within.start, within.end)
        async with house.pool.connection() as connection:
            organization = known(await organizations.one(connection, organization_id))
            teams = await costs.of_organization(connection, organization_id, span)
            standing = await costs.standing(connection, organization_id, span)
        successful, failed = sum(team.successful_calls for team in teams), sum(team.failed_calls for team in teams)
        return reply(
            OrganizationStats(
                organization_id=organization_id,
                organization_name=organization.name,
                total_jobs=sum(team.total_jobs for team in teams),
                completed_jobs=sum(team.completed_jobs for team in teams),
                failed_jobs=sum(team.failed_jobs for team in teams),
                in_progress_jobs=standing.in_progress_jobs,
                total_teams=standing.total_teams,
                total_llm_calls=successful + failed,
                successful_calls=successful,
                failed_calls=failed,
                total_tokens=sum(team.total_tokens for team in teams),
                total_cost_usd=usd6(_sum(team.client_cost_usd for team in teams)),
                total_credits_used=sum(team.credits_used for team in teams),
                top_teams=[
                    TopTeam(team_id=team.team_id, job_count=team.total_jobs, credits_used=team.credits_used)
                    for team in teams[:MOST_ON_TOP]
                ],
            )
        )

    @get("/jobs/organizations/{organization_id:str}/analytics")
    async def analytics(
        self, house: NamedDependency[House], within: NamedDependency[Within], organization_id: FromPath[str]
    ) -> Response[OrganizationAnalytics]:
        """What an organization spent: by day, by team, by model and by provider."""
        span, mine = Span.of(within.start, within.end), Filter(organization_id=organization_id)

        async with house.pool.connection() as connection:
            organization = known(await organizations.one(connection, organization_id))

            async def top(by: Dimension, most: int = MOST_ON_TOP) -> Report:
                return await costs.costs(connection, [by], mine, span, sort_by="revenue_usd", limit=most)

            days = await costs.costs(connection, ["day"], mine, span, limit=MOST_ROWS)
            teams, models, providers = await top("team"), await top("model"), await top("provider", MOST_ROWS)
        return reply(
            OrganizationAnalytics(
                organization_id=organization_id,
                organization_name=organization.name,
                total_spend=usd6(days.totals.client_cost_usd),
                total_requests=days.totals.calls,
                successful_requests=days.totals.successful_calls,
                failed_requests=days.totals.failed_calls,
                total_tokens=days.totals.total_tokens,
                daily_spend=[DaySpend(date=str(day.day), spend=usd6(day.client_cost_usd)) for day in days.groups],
                spend_per_team=[TeamSpend(team_id=str(team.team_id), **_spend(team)) for team in teams.groups],
                top_models=[
                    ModelSpend(model=str(model.model), spend=usd6(model.client_cost_usd), count=model.calls)
                    for model in models.groups
                ],
                provider_usage=[
                    ProviderSpend(provider=provider.provider or NOBODY, **_spend(provider))
                    for provider in providers.groups
                ],
            )
        )

    @get("/reports/costs")
    async def costs(
        self,
        request: Request[Any, Any, Any],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        within: NamedDependency[Within],
        start_date: StartDate = None,
        end_date: EndDate = None,
        group_by: GroupBy = "day",
        organization_id: FromQuery[str | None] = None,
        team_id: FromQuery[str | None] = None,
        user_id: FromQuery[str | None] = None,
        job_type: FromQuery[str | None] = None,
        model: FromQuery[str | None] = None,
        provider: FromQuery[str | None] = None,
        resolved_model: FromQuery[str | None] = None,
        purpose: FromQuery[str | None] = None,
        sort_by: SortBy = None,
        order: Order = None,
        asked: AskedFormat = None,
    ) -> Response[CostReport]:
        """What calls cost us and the teams, in any grouping; `sort_by` with `limit` makes a top list of it."""
        by = dimensions_of(group_by)
        wanted = Filter(
            organization_id=organization_id,
            team_id=team_id,
            user_id=user_id,
            job_type=job_type,
            model=model,
            provider=provider,
            resolved_model=resolved_model,
            purpose=purpose,
        )
        _require_an_index(by, wanted)
        kind = format_of(request, asked)
        limit = page.limit if kind == "json" or "limit" in request.query_params else MOST_ROWS
        async with house.pool.connection() as connection:
            report = await costs.costs(
                connection,
                by,
                wanted,
                Span.of(within.start, within.end),
                sort_by=cast("Sorting | None", chosen("sort_by", sort_by, SORTINGS)),
                descending=descends(order),
                limit=limit,
                offset=page.offset,
            )
        rows = [_row(group, by) for group in report.groups]
        if kind != "json":
            return table(rows, kind, [*(COLUMNS[each] for each in by), *FIGURES], report.number, "costs")
        answer = CostReport(
            group_by=list(by),
            start_date=start_date,
            end_date=end_date,
            rows=rows,
            totals=_row(report.totals, ()),
            total=report.number,
            limit=limit,
            offset=page.offset,
        )
        return wrapped(answer, report.number)


# -- figures -----------------------------------------------------------------------------------------------------------


def dimensions_of(group_by: str) -> list[Dimension]:
    """What a report is grouped by, each once, in the order in which it was asked for."""
    words = [word.strip() for word in group_by.split(",") if word.strip()]
    return [cast("Dimension", chosen("group_by", word, DIMENSIONS)) for word in dict.fromkeys(words)]


def _require_an_index(by: Sequence[Dimension], wanted: Filter) -> None:
    if "user" in by and not wanted.has_index:
        raise Invalid(
            ["query", "group_by"], "by user only with organization_id, team_id or user_id", "value_error.range"
        )


def _row(figures: Figures, by: Sequence[Dimension]) -> CostRow:
    names: dict[str, Any] = {COLUMNS[each]: getattr(figures, COLUMNS[each]) for each in by}
    if "day" in names:
        names["day"] = figures.day.isoformat() if figures.day else UNSET
    revenue = figures.client_cost_usd
    return CostRow(
        **names,
        calls=figures.calls,
        successful_calls=figures.successful_calls,
        failed_calls=figures.failed_calls,
        prompt_tokens=figures.prompt_tokens,
        completion_tokens=figures.completion_tokens,
        total_tokens=figures.total_tokens,
        provider_cost_usd=usd6(figures.provider_cost_usd),
        revenue_usd=usd6(revenue),
        margin_usd=usd6(figures.margin_usd),
        margin_percent=hundredths(figures.margin_usd * 100 / revenue) if revenue else None,
    )


def _spend(figures: Figures) -> dict[str, Any]:
    return {
        "spend": usd6(figures.client_cost_usd),
        "successful": figures.successful_calls,
        "failed": figures.failed_calls,
        "tokens": figures.total_tokens,
    }


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    total = ZERO
    for amount in amounts:
        total = add(total, amount)
    return total
