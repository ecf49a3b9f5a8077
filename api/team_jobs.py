"""The jobs of a team as administrators' panels read them: pages by number, figures in rows, calls with all details."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter

from api.answers import reply, ts, ts_or_none, usd6
from api.caller import admin_only
from api.house import House
from api.jobs import WANTED, Wanted, require_known_team, uuid_of
from api.listing import Page, Within, literal, parameters, wrapped
from api.shapes import CallAnswer, Timestamp, Uuid, call_answer
from domain.errors import NotFound
from domain.event import Json
from domain.pricing import subtract
from projections import calls, jobs
from projections.jobs import JobRecord


class JobRowAnswer(msgspec.Struct, kw_only=True):
    job_id: Uuid
    team_id: str
    user_id: str | None
    job_type: str
    status: str
    created_at: Timestamp
    completed_at: Timestamp | None
    total_calls: int
    successful_calls: int
    failed_calls: int
    retry_count: int
    total_tokens: int
    total_cost_usd: Decimal
    provider_cost_usd: Decimal
    profit_usd: Decimal
    avg_latency_ms: int
    credit_applied: bool
    credits_charged: int
    job_metadata: Mapping[str, Json] | None


class JobRowDetails(JobRowAnswer, kw_only=True):
    started_at: Timestamp | None
    error_message: str | None


class JobRows(msgspec.Struct):
    jobs: list[JobRowAnswer]
    total: int
    page: int
    page_size: int
    total_pages: int


class JobWithCalls(msgspec.Struct):
    job: JobRowDetails
    calls: list[CallAnswer]


class Numbered(msgspec.Struct, frozen=True):
    """A page by its number, which limit and offset override."""

    page: int
    page_size: int
    limit: int
    offset: int


def numbered_of(
    number: Annotated[int, QueryParameter(name="page", ge=1, le=10**9)] = 1,
    page_size: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    limit: Annotated[int | None, QueryParameter(ge=1, le=1000)] = None,
    offset: Annotated[int | None, QueryParameter(ge=0, le=2**53)] = None,
) -> Numbered:
    if limit is None and offset is None:
        return Numbered(number, page_size, page_size, (number - 1) * page_size)
    limit = limit or page_size
    offset = offset or 0
    return Numbered(offset // limit + 1, limit, limit, offset)


class TeamJobRowsController(Controller):
    path = "/api/jobs/teams/{team_id:str}"
    tags = ["Jobs"]
    before_request = admin_only

    @get("", dependencies={**WANTED, "numbered": Provide(numbered_of, sync_to_thread=False)})
    async def rows(
        self,
        house: NamedDependency[House],
        numbered: NamedDependency[Numbered],
        within: NamedDependency[Within],
        wanted: NamedDependency[Wanted],
        team_id: FromPath[str],
        job_id_filter: Annotated[str | None, QueryParameter(max_length=64)] = None,
    ) -> Response[JobRows]:
        """A team's jobs with their figures, newest first; jobs without calls are included."""
        await require_known_team(house, team_id)
        conditions = parameters(
            Page(numbered.limit, numbered.offset),
            within,
            team_id=team_id,
            status=wanted.status,
            job_type=wanted.job_type,
            user_id=wanted.user_id,
            part_of_id=None if job_id_filter is None else literal(job_id_filter.lower()),
        )
        async with house.pool.connection() as connection:
            found, total = await jobs.page(connection, conditions, sort_by=wanted.sort_by, descending=wanted.descending)
            retries = await calls.retries(connection, [job.job_id for job in found])
        rows = [JobRowAnswer(**_row(job, retries.get(job.job_id, 0))) for job in found]
        pages = -(-total // numbered.page_size)
        return wrapped(JobRows(rows, total, numbered.page, numbered.page_size, pages), total)

    @get("/{job_id:str}")
    async def details(
        self, house: NamedDependency[House], team_id: FromPath[str], job_id: FromPath[str]
    ) -> Response[JobWithCalls]:
        """One job of the team with all that is known of its calls."""
        async with house.pool.connection() as connection:
            job = await jobs.one(connection, uuid_of(job_id, "job"))
            if job is None or job.team_id != team_id:
                raise NotFound("job")
            its_calls = await calls.of_job(connection, job.job_id)
            retries = await calls.retries(connection, [job.job_id])
        said = await house.conversations.of([call.call_id for call in its_calls])
        details = JobRowDetails(
            **_row(job, retries.get(job.job_id, 0)),
            started_at=ts_or_none(job.started_at),
            error_message=job.error_message,
        )
        answers = [call_answer(call, said.get(call.call_id), for_admin=True) for call in its_calls]
        return reply(JobWithCalls(details, answers))


def _row(job: JobRecord, retries: int) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "team_id": job.team_id,
        "user_id": job.user_id,
        "job_type": job.job_type,
        "status": job.status,
        "created_at": ts(job.created_at),
        "completed_at": ts_or_none(job.completed_at),
        "total_calls": job.total_calls,
        "successful_calls": job.successful_calls,
        "failed_calls": job.failed_calls,
        "retry_count": retries,
        "total_tokens": job.total_tokens,
        "total_cost_usd": usd6(job.client_cost_usd),
        "provider_cost_usd": usd6(job.provider_cost_usd),
        "profit_usd": usd6(subtract(job.client_cost_usd, job.provider_cost_usd)),
        "avg_latency_ms": job.latency_ms // job.latencies if job.latencies else 0,
        "credit_applied": job.credit_applied,
        "credits_charged": job.credits_charged,
        "job_metadata": job.metadata,
    }
