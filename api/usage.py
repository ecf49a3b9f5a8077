"""What teams and organizations used in a period (contract, sections 5 and 6). Jobs count when they were created."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Literal

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from api.answers import average6, reply, usd6
from api.caller import Caller, admin_only, team_or_admin
from api.house import House
from api.listing import EndDate, Page, Period, StartDate, Within, period_of, wrapped
from api.organizations import known, require_member
from api.shapes import JobAnswer, job_answer
from api.teams import known_team
from domain.pricing import ZERO, add, subtract
from projections import organizations, teams, usage
from projections.usage import CostRecord, Span, UsageRecord

# -- answers -----------------------------------------------------------------------------------------------------------


class TeamUsageSummary(msgspec.Struct, kw_only=True):
    total_jobs: int
    successful_jobs: int
    failed_jobs: int
    total_cost_usd: Decimal
    total_tokens: int
    avg_cost_per_job: Decimal
    credits_used: int


class JobsAndCost(msgspec.Struct, kw_only=True):
    count: int
    cost_usd: Decimal


class TeamUsage(msgspec.Struct, kw_only=True):
    team_id: str
    period: str
    summary: TeamUsageSummary
    job_types: dict[str, JobsAndCost]
    by_job_type: dict[str, int]
    total: int
    limit: int
    offset: int
    jobs: list[JobAnswer]


class OrganizationUsageSummary(msgspec.Struct, kw_only=True):
    total_jobs: int
    completed_jobs: int
    successful_jobs: int
    failed_jobs: int
    credits_used: int
    total_cost_usd: Decimal
    total_tokens: int


class TeamCredits(msgspec.Struct, kw_only=True):
    jobs: int
    credits_used: int


class TeamCost(msgspec.Struct, kw_only=True):
    jobs: int
    cost_usd: Decimal


class OrganizationUsage(msgspec.Struct, kw_only=True):
    organization_id: str
    period: str
    summary: OrganizationUsageSummary
    teams: dict[str, TeamCredits]
    by_team: dict[str, TeamCost]
    by_job_type: dict[str, JobsAndCost]


class OrganizationCosts(msgspec.Struct, kw_only=True):
    organization_id: str
    start_date: str | None
    end_date: str | None
    total_cost_usd: Decimal
    provider_cost_usd: Decimal
    profit_usd: Decimal
    by_team: dict[str, Decimal]
    by_model: dict[str, Decimal]


# -- endpoints ---------------------------------------------------------------------------------------------------------


class UsageController(Controller):
    path = "/api"
    dependencies = {"in_period": Provide(period_of, sync_to_thread=False)}

    @get("/teams/{team_id:str}/usage", tags=["Teams"], before_request=team_or_admin)
    async def of_team(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        in_period: NamedDependency[Within],
        within: NamedDependency[Within],
        team_id: FromPath[str],
        period: Period = None,
    ) -> Response[TeamUsage]:
        """What a team used in a period, and the jobs of that period, newest first."""
        team_id = caller.team_for(team_id)
        span = _span(in_period.and_within(within))
        async with house.pool.connection() as connection:
            known_team(await teams.one(connection, team_id))
            used = await usage.of_team(connection, team_id, span)
            jobs = await usage.jobs_of_team(connection, team_id, span, limit=page.limit, offset=page.offset)
        sums = Sums.of(used)
        answer = TeamUsage(
            team_id=team_id,
            period=period or "all",
            summary=TeamUsageSummary(
                total_jobs=sums.total_jobs,
                successful_jobs=sums.completed_jobs,
                failed_jobs=sums.failed_jobs,
                total_cost_usd=usd6(sums.client_cost_usd),
                total_tokens=sums.total_tokens,
                avg_cost_per_job=average6(sums.client_cost_usd, sums.total_jobs),
                credits_used=sums.credits_used,
            ),
            job_types=_job_types(used),
            by_job_type={job_type: those.total_jobs for job_type, those in _grouped(used, "job_type")},
            total=sums.total_jobs,
            limit=page.limit,
            offset=page.offset,
            jobs=[job_answer(job) for job in jobs],
        )
        return wrapped(answer, sums.total_jobs)

    @get("/organizations/{organization_id:str}/usage", tags=["Organizations"], before_request=team_or_admin)
    async def of_organization(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],  # clients send it, though there is no list in here
        in_period: NamedDependency[Within],
        within: NamedDependency[Within],
        organization_id: FromPath[str],
        period: Period = None,
    ) -> Response[OrganizationUsage]:
        """What an organization used in a period; for a key, its own team's share of that."""
        require_member(caller, organization_id)
        span = _span(in_period.and_within(within))
        async with house.pool.connection() as connection:
            known(await organizations.one(connection, organization_id))
            if caller.team_id is None:
                used = await usage.of_organization(connection, organization_id, span)
            else:
                used = await usage.of_team(connection, caller.team_id, span)
        sums, by_team = Sums.of(used), _grouped(used, "team_id")
        return reply(
            OrganizationUsage(
                organization_id=organization_id,
                period=period or "all",
                summary=OrganizationUsageSummary(
                    total_jobs=sums.total_jobs,
                    completed_jobs=sums.completed_jobs,
                    successful_jobs=sums.completed_jobs,
                    failed_jobs=sums.failed_jobs,
                    credits_used=sums.credits_used,
                    total_cost_usd=usd6(sums.client_cost_usd),
                    total_tokens=sums.total_tokens,
                ),
                teams={team: TeamCredits(jobs=its.total_jobs, credits_used=its.credits_used) for team, its in by_team},
                by_team={
                    team: TeamCost(jobs=its.total_jobs, cost_usd=usd6(its.client_cost_usd)) for team, its in by_team
                },
                by_job_type=_job_types(used),
            )
        )

    @get("/organizations/{organization_id:str}/costs", tags=["Organizations"], before_request=admin_only)
    async def costs_of_organization(
        self,
        house: NamedDependency[House],
        within: NamedDependency[Within],
        organization_id: FromPath[str],
        start_date: StartDate = None,
        end_date: EndDate = None,
    ) -> Response[OrganizationCosts]:
        """What an organization's calls cost it and us, by team and by requested model."""
        async with house.pool.connection() as connection:
            known(await organizations.one(connection, organization_id))
            costs = await usage.costs_of_organization(connection, organization_id, _span(within))
        total = _total(costs)
        provider = reduce(add, (cost.provider_cost_usd for cost in costs), ZERO)
        return reply(
            OrganizationCosts(
                organization_id=organization_id,
                start_date=start_date,
                end_date=end_date,
                total_cost_usd=usd6(total),
                provider_cost_usd=usd6(provider),
                profit_usd=usd6(subtract(total, provider)),
                by_team=_totals(costs, "team_id"),
                by_model=_totals(costs, "model"),
            )
        )


# -- sums --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """Some usage records together, exactly."""

    total_jobs: int = 0
    completed_jobs: int = 0
    failed_jobs: int = 0
    credits_used: int = 0
    total_tokens: int = 0
    client_cost_usd: Decimal = ZERO

    @classmethod
    def of(cls, used: Iterable[UsageRecord]) -> "Sums":
        sums = cls()
        for each in used:
            sums.total_jobs += each.total_jobs
            sums.completed_jobs += each.completed_jobs
            sums.failed_jobs += each.failed_jobs
            sums.credits_used += each.credits_used
            sums.total_tokens += each.total_tokens
            sums.client_cost_usd = add(sums.client_cost_usd, each.client_cost_usd)
        return sums


def _grouped(used: Iterable[UsageRecord], by: Literal["team_id", "job_type"]) -> list[tuple[str, Sums]]:
    groups: dict[str, list[UsageRecord]] = defaultdict(list)
    for each in used:
        groups[getattr(each, by)].append(each)
    return [(name, Sums.of(groups[name])) for name in sorted(groups)]


def _job_types(used: Iterable[UsageRecord]) -> dict[str, JobsAndCost]:
    return {
        job_type: JobsAndCost(count=those.total_jobs, cost_usd=usd6(those.client_cost_usd))
        for job_type, those in _grouped(used, "job_type")
    }


def _totals(costs: Iterable[CostRecord], by: Literal["team_id", "model"]) -> dict[str, Decimal]:
    groups: dict[str, list[CostRecord]] = defaultdict(list)
    for cost in costs:
        groups[getattr(cost, by)].append(cost)
    return {name: usd6(_total(groups[name])) for name in sorted(groups)}


def _total(costs: Iterable[CostRecord]) -> Decimal:
    return reduce(add, (cost.client_cost_usd for cost in costs), ZERO)


def _span(within: Within) -> Span:
    return Span.of(within.start, within.end)
