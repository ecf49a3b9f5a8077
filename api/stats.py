"""Figures for administrators: how many there are, how their credits go, and who will soon have none."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from api.answers import hundredths, percent, reply
from api.caller import admin_only
from api.house import House
from api.listing import Page, wrapped
from domain.catalog import EMPTY, Catalog
from domain.errors import NotFound
from domain.streams import THE_CATALOG
from projections import credit_days, organizations, teams
from projections.credit_days import ShortOfCredits, Trend

Days = Annotated[int, QueryParameter(ge=1, le=365, description="How many days, today being the last")]


class Dashboard(msgspec.Struct, kw_only=True, rename="camel"):
    organizations: int
    teams: int
    model_groups: int
    total_credits: int
    credits_remaining: int
    credits_used: int


class UtilizationSummary(msgspec.Struct, kw_only=True):
    total_allocated: int
    total_remaining: int
    total_used: int
    avg_utilization: Decimal


class TeamsByStatus(msgspec.Struct, kw_only=True):
    healthy: int
    warning: int
    critical: int


class TeamShortOfCredits(msgspec.Struct, kw_only=True):
    team_id: str
    credits_allocated: int
    credits_remaining: int
    percentage_remaining: Decimal
    status: str


class UtilizationAnswer(msgspec.Struct, kw_only=True):
    total_teams: int
    summary: UtilizationSummary
    by_status: TeamsByStatus
    teams_needing_attention: list[TeamShortOfCredits]


class TrendPoint(msgspec.Struct, kw_only=True):
    date: str
    credits_added: int
    credits_used: int
    credits_remaining: int


class Trends(msgspec.Struct, kw_only=True):
    team_id: str | None
    days: int
    points: list[TrendPoint]


class StatsController(Controller):
    path = "/api"
    tags = ["Reports"]
    before_request = admin_only

    @get("/stats/dashboard")
    async def dashboard(self, house: NamedDependency[House]) -> Response[Dashboard]:
        """How many of everything there are. Deleted organizations and teams do not count."""
        catalog: Catalog = (await house.ledger.read(THE_CATALOG)).states[0] or EMPTY
        async with house.pool.connection() as connection:
            _, number = await organizations.page(connection, {"status": None, "limit": 1, "offset": 0})
            found = await credit_days.utilization(connection)
        return reply(
            Dashboard(
                organizations=number,
                teams=found.total_teams,
                model_groups=len(catalog.model_groups),
                total_credits=found.total_allocated,
                credits_remaining=found.total_allocated - found.total_used,
                credits_used=found.total_used,
            )
        )

    @get("/credits/utilization")
    async def utilization(
        self, house: NamedDependency[House], page: NamedDependency[Page]
    ) -> Response[UtilizationAnswer]:
        """How far teams have used their credits, and which of them have 50 % or less left, the shortest first."""
        async with house.pool.connection() as connection:
            found = await credit_days.utilization(connection)
            short = await credit_days.needing_attention(connection, limit=page.limit, offset=page.offset)
        answer = UtilizationAnswer(
            total_teams=found.total_teams,
            summary=UtilizationSummary(
                total_allocated=found.total_allocated,
                total_remaining=found.total_allocated - found.total_used,
                total_used=found.total_used,
                avg_utilization=hundredths(found.avg_utilization),
            ),
            by_status=TeamsByStatus(healthy=found.healthy, warning=found.warning, critical=found.critical),
            teams_needing_attention=[_short(team) for team in short],
        )
        return wrapped(answer, found.warning + found.critical)

    @get("/credits/trends")
    async def trends(
        self, house: NamedDependency[House], team_id: FromQuery[str | None] = None, days: Days = 30
    ) -> Response[Trends]:
        """What came, went and remained, day by day up to today, of one team or of all."""
        today = datetime.now(UTC).date()
        async with house.pool.connection() as connection:
            if team_id is not None and await teams.one(connection, team_id) is None:
                raise NotFound("team")
            found = await credit_days.trends(connection, team_id, last=today, days=days)
        return reply(Trends(team_id=team_id, days=days, points=[_point(day) for day in found]))


def _short(team: ShortOfCredits) -> TeamShortOfCredits:
    return TeamShortOfCredits(
        team_id=team.team_id,
        credits_allocated=team.credits_allocated,
        credits_remaining=team.credits_remaining,
        percentage_remaining=percent(team.credits_remaining, team.credits_allocated),
        status=team.health,
    )


def _point(trend: Trend) -> TrendPoint:
    return TrendPoint(
        date=trend.day.isoformat(),
        credits_added=trend.got,
        credits_used=trend.used,
        credits_remaining=trend.remaining,
    )
