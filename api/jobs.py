"""Jobs: opened, looked at, ended. One job is one charge."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

import msgspec
from litestar import Controller, Response, get, patch, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, UnsetType

from api.answers import number, reply, ts, usd8
from api.bodies import ID, Name100, Text500, Text1000
from api.caller import Caller, team_or_admin
from api.house import House
from api.listing import Order, Page, Within, chosen, descends, one_of, parameters, wrapped
from api.problems import Trouble
from api.shapes import (
    CallAnswer,
    Costs,
    JobAnswer,
    Timestamp,
    Uuid,
    call_answer,
    calls_of,
    job_answer,
    job_costs,
    job_fields,
)
from domain.charging import CancelJob, CompleteJob, FailJob, cancel_job, complete_job, fail_job
from domain.errors import CallsInProgress, Forbidden, NotFound, OutOfBounds
from domain.event import Json, JsonObject
from domain.job import CreateJob, Job, MergeMetadata, Status, create_job, merge_metadata, require_job
from domain.streams import CREDIT, JOB, TEAM
from infra.ids import new_id
from infra.ledger import Outcome
from projections import balances, calls, jobs, teams
from projections.calls import CallRecord
from projections.jobs import JobRecord

CALLS_GRACE_SECONDS = 5.0  # how long complete waits for calls that are still running
MAX_RESULT_BYTES = 1024 * 1024


class CreateJobBody(msgspec.Struct):
    team_id: ID
    job_type: Name100
    user_id: ID | None = None
    external_task_id: ID | None = None
    metadata: JsonObject | None = None


class CompleteJobBody(msgspec.Struct):
    status: Literal["completed", "failed"]
    metadata: JsonObject | None = None
    error_message: Text1000 | None = None
    result: Any = None


class CancelJobBody(msgspec.Struct):
    reason: Text500 | None = None


class MetadataBody(msgspec.Struct):
    metadata: JsonObject


class JobPage(msgspec.Struct):
    total: int
    limit: int
    offset: int
    jobs: list[JobAnswer]


class TeamJobPage(JobPage):
    team_id: str


class MetadataAnswer(msgspec.Struct):
    job_id: Uuid
    metadata: Mapping[str, Json]
    updated_at: Timestamp


class JobDetails(JobAnswer, kw_only=True):
    costs: Costs  # type: ignore[assignment]
    calls: list[CallAnswer]


class JobEnded(msgspec.Struct, kw_only=True):
    job_id: Uuid
    team_id: str
    status: str
    completed_at: Timestamp
    error_message: str | None
    costs: Costs
    calls: list[CallAnswer]
    credits_remaining: int
    total_calls: int
    credit_applied: bool
    metadata: Mapping[str, Json]


class CostLine(msgspec.Struct, kw_only=True):
    call_id: Uuid
    model: str | None
    purpose: str | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal
    client_cost_usd: Decimal
    created_at: Timestamp
    resolved_model: str | UnsetType | None = UNSET
    input_cost_usd: Decimal | UnsetType = UNSET
    output_cost_usd: Decimal | UnsetType = UNSET
    provider_cost_usd: Decimal | UnsetType = UNSET
    model_pricing_input: Decimal | UnsetType | None = UNSET
    model_pricing_output: Decimal | UnsetType | None = UNSET


class CostBreakdown(msgspec.Struct, kw_only=True):
    total_cost_usd: Decimal
    credits_charged: int
    breakdown: list[CostLine]
    provider_cost_usd: Decimal | UnsetType = UNSET
    profit_usd: Decimal | UnsetType = UNSET


class JobCosts(msgspec.Struct, kw_only=True):
    job_id: Uuid
    team_id: str
    job_type: str
    status: str
    costs: CostBreakdown


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs a list shall have, and in which order."""

    status: str | None
    job_type: str | None
    user_id: str | None
    sort_by: str
    descending: bool


def wanted_of(
    status: Annotated[str | None, one_of(get_args(Status))] = None,
    job_type: FromQuery[str | None] = None,
    user_id: FromQuery[str | None] = None,
    sort_by: Annotated[str | None, one_of(jobs.SORTS)] = None,
    order: Order = None,
) -> Wanted:
    return Wanted(
        status=chosen("status", status, get_args(Status)),
        job_type=job_type,
        user_id=user_id,
        sort_by=chosen("sort_by", sort_by, jobs.SORTS) or "created_at",
        descending=descends(order),
    )


WANTED = {"wanted": Provide(wanted_of, sync_to_thread=False)}


class JobsController(Controller):
    path = "/api/jobs"
    tags = ["Jobs"]
    before_request = team_or_admin

    @post("/create", status_code=200)
    async def create(self, caller: NamedDependency[Caller], data: JSONBody[CreateJobBody]) -> Response[JobAnswer]:
        """Open a job. No credits are looked at or moved."""
        job_id = new_id()
        team_id = caller.team_for(data.team_id)
        command = CreateJob(
            **caller.signature(),
            job_id=job_id,
            team_id=team_id,
            job_type=data.job_type,
            user_id=data.user_id,
            external_task_id=data.external_task_id,
            metadata=data.metadata or {},
        )
        job = JOB.stream(job_id)
        return await caller.carry_out(
            create_job, command, job, TEAM.stream(team_id), new=job, answer=lambda done: _created(done.states[0])
        )

    @get("", dependencies=WANTED)
    async def list_jobs(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        within: NamedDependency[Within],
        wanted: NamedDependency[Wanted],
        team_id: FromQuery[str | None] = None,
        organization_id: FromQuery[str | None] = None,
    ) -> Response[JobPage]:
        """Jobs, newest first: a team's own, or everybody's for an administrator."""
        if caller.team_id is not None:
            team_id, organization_id = caller.team_for(team_id), None
        found, total = await _page(house, page, within, wanted, team_id=team_id, organization_id=organization_id)
        return wrapped(JobPage(total, page.limit, page.offset, [job_answer(job) for job in found]), total)

    @get("/{job_id:str}")
    async def details(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], job_id: FromPath[str]
    ) -> Response[JobDetails]:
        """A job with its costs and calls."""
        async with house.pool.connection() as connection:
            job = await _own_job(caller, await jobs.one(connection, uuid_of(job_id, "job")))
            its_calls = await calls.of_job(connection, job.job_id)
            balance = await balances.one(connection, job.team_id)
        said = await house.conversations.of([call.call_id for call in its_calls]) if caller.is_admin else {}
        remaining = balance.credits_remaining if balance else 0
        return reply(
            JobDetails(
                **job_fields(job),
                costs=job_costs(job, remaining, for_admin=caller.is_admin),
                calls=[call_answer(call, said.get(call.call_id), for_admin=caller.is_admin) for call in its_calls],
            )
        )

    @post("/{job_id:str}/complete", status_code=200)
    async def complete(
        self, caller: NamedDependency[Caller], job_id: FromPath[str], data: JSONBody[CompleteJobBody]
    ) -> Response[JobEnded]:
        """End a job; `completed` charges it once."""
        job, account, team = await streams_of(caller, uuid_of(job_id, "job"))
        end: dict[str, Any] = {
            **caller.signature(),
            "charge_id": new_id(),
            "metadata": data.metadata or {},
            "result": _small_enough(data.result),
        }
        ended = _ended_for(caller)
        if data.status == "failed":
            failed = FailJob(**end, error_message=data.error_message)
            return await caller.carry_out(fail_job, failed, job, account, answer=ended)
        completed = CompleteJob(**end)
        for _ in range(int(CALLS_GRACE_SECONDS / 0.1)):
            try:
                return await caller.carry_out(complete_job, completed, job, account, team, answer=ended)
            except CallsInProgress:
                await asyncio.sleep(0.1)
        return await caller.carry_out(complete_job, completed, job, account, team, answer=ended)

    @post("/{job_id:str}/cancel", status_code=200)
    async def cancel(
        self,
        caller: NamedDependency[Caller],
        job_id: FromPath[str],
        data: JSONBody[CancelJobBody | None] = None,
    ) -> Response[JobEnded]:
        """End a job that nobody wants any more. It is not charged; calls still running are recorded when they end."""
        job, account, _ = await streams_of(caller, uuid_of(job_id, "job"))
        command = CancelJob(**caller.signature(), charge_id=new_id(), reason=data.reason if data is not None else None)
        return await caller.carry_out(cancel_job, command, job, account, answer=_ended_for(caller))

    @patch("/{job_id:str}/metadata")
    async def change_metadata(
        self, caller: NamedDependency[Caller], job_id: FromPath[str], data: JSONBody[MetadataBody]
    ) -> Response[MetadataAnswer]:
        """Merge into a job's metadata, also of an ended one: keys not named survive, null is stored as null."""
        job, *_ = await streams_of(caller, uuid_of(job_id, "job"))
        command = MergeMetadata(**caller.signature(), metadata=data.metadata)
        return await caller.carry_out(merge_metadata, command, job, answer=lambda done: _metadata(done.states[0]))

    @get("/{job_id:str}/costs")
    async def costs(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], job_id: FromPath[str]
    ) -> Response[JobCosts]:
        """What a job cost, call by call."""
        async with house.pool.connection() as connection:
            job = await _own_job(caller, await jobs.one(connection, uuid_of(job_id, "job")))
            its_calls = await calls.of_job(connection, job.job_id)
        whole = job_costs(job, 0, for_admin=caller.is_admin)
        breakdown = CostBreakdown(
            total_cost_usd=whole.total_cost_usd,
            credits_charged=job.credits_charged,
            breakdown=[_cost_line(call, for_admin=caller.is_admin) for call in its_calls],
            provider_cost_usd=whole.provider_cost_usd,
            profit_usd=whole.profit_usd,
        )
        return reply(
            JobCosts(job_id=job.job_id, team_id=job.team_id, job_type=job.job_type, status=job.status, costs=breakdown)
        )


class TeamJobsController(Controller):
    path = "/api/teams/{team_id:str}/jobs"
    tags = ["Jobs"]
    before_request = team_or_admin

    @get("", dependencies=WANTED)
    async def list_jobs(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        within: NamedDependency[Within],
        wanted: NamedDependency[Wanted],
        team_id: FromPath[str],
    ) -> Response[TeamJobPage]:
        """The jobs of one team, newest first."""
        team_id = caller.team_for(team_id)
        await require_known_team(house, team_id)
        found, total = await _page(house, page, within, wanted, team_id=team_id)
        answers = [job_answer(job) for job in found]
        return wrapped(TeamJobPage(total, page.limit, page.offset, answers, team_id), total)


# -- what the methods have in common -----------------------------------------------------------------------------------


def uuid_of(text: str, resource: str) -> str:
    """A uuid from a path, in any letter case; whatever is none cannot be found."""
    with suppress(ValueError):
        if str(UUID(text)) == text.lower():
            return text.lower()
    raise Trouble("not_found", resource=resource)


async def streams_of(caller: Caller, job_id: str) -> tuple[str, str, str]:
    """The streams of a job, of its team's account and of its team.

    Raises:
        NotFound, Forbidden: there is no such job, or it is another team's.
    """
    job = await caller.job(job_id)
    return JOB.stream(job_id), CREDIT.stream(job.team_id), TEAM.stream(job.team_id)


async def require_known_team(house: House, team_id: str) -> None:
    """Raises unless there is such a team, or was one."""
    async with house.pool.connection() as connection:
        if await teams.one(connection, team_id) is None:
            raise NotFound("team")


async def _page(
    house: House, page: Page, within: Within, wanted: Wanted, **owner: str | None
) -> tuple[list[JobRecord], int]:
    conditions = parameters(
        page, within, status=wanted.status, job_type=wanted.job_type, user_id=wanted.user_id, **owner
    )
    async with house.pool.connection() as connection:
        return await jobs.page(connection, conditions, sort_by=wanted.sort_by, descending=wanted.descending)


async def _own_job(caller: Caller, job: JobRecord | None) -> JobRecord:
    if job is None:
        raise NotFound("job")
    if caller.team_id is not None and job.team_id != caller.team_id:
        raise Forbidden(caller.team_id)
    return job


def _small_enough(result: Json) -> Json:
    if result is not None and len(msgspec.json.encode(result)) > MAX_RESULT_BYTES:
        raise OutOfBounds("result", f"result is larger than {MAX_RESULT_BYTES} bytes")
    return result


def _metadata(job: Job) -> MetadataAnswer:
    return MetadataAnswer(job.job_id, job.metadata, ts(job.active_at))


def _created(job: Job) -> JobAnswer:
    return job_answer(JobRecord.of(job))


def _ended_for(caller: Caller) -> Any:
    def ended(outcome: Outcome) -> JobEnded:
        return job_ended(require_job(outcome.states[0]), for_admin=caller.is_admin)

    return ended


def job_ended(job: Job, *, for_admin: bool) -> JobEnded:
    """The answer to the end of a job, the same for every repeat."""
    assert job.ended_at is not None
    assert job.credits_remaining is not None
    record = JobRecord.of(job)
    return JobEnded(
        job_id=job.job_id,
        team_id=job.team_id,
        status=job.status,
        completed_at=ts(job.ended_at),
        error_message=job.error_message,
        costs=job_costs(record, job.credits_remaining, for_admin=for_admin),
        calls=[call_answer(call, for_admin=for_admin) for call in calls_of(job)],
        credits_remaining=job.credits_remaining,
        total_calls=job.total_calls,
        credit_applied=job.credit_applied,
        metadata=job.metadata,
    )


def _cost_line(call: CallRecord, *, for_admin: bool) -> CostLine:
    cost = usd8(call.client_cost_usd)
    line = CostLine(
        call_id=call.call_id,
        model=None if call.status == "failed" else call.model,
        purpose=call.purpose,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        cost_usd=cost,
        client_cost_usd=cost,
        created_at=ts(call.created_at),
    )
    if for_admin:
        pricing_input, pricing_output = call.price_input_usd_per_million, call.price_output_usd_per_million
        line.resolved_model = call.resolved_model
        line.input_cost_usd = usd8(call.input_cost_usd)
        line.output_cost_usd = usd8(call.output_cost_usd)
        line.provider_cost_usd = usd8(call.provider_cost_usd)
        line.model_pricing_input = None if pricing_input is None else number(pricing_input)
        line.model_pricing_output = None if pricing_output is None else number(pricing_output)
    return line
