"""Job and call in one request: opened, answered, completed and charged, or failed and free."""

from collections.abc import Mapping
from typing import Any

from litestar import Controller, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.response import Stream

from api import calling
from api.answers import reply
from api.bodies import ID, Name100
from api.caller import Caller, limited_call
from api.calling import Call, CallBody, Finished, Question
from api.jobs import job_ended
from api.llm_calls import ChatCompletion, EventWriter, PlainAnswer, call_answer, event_stream
from api.problems import Trouble
from api.shapes import Costs, Timestamp, Uuid
from domain.errors import Refusal
from domain.event import Json, JsonObject
from domain.job import CreateJob, create_job, require_small
from domain.streams import JOB, TEAM
from infra.ids import new_id


class CreateAndCallBody(CallBody, kw_only=True):
    team_id: ID
    job_type: Name100
    user_id: ID | None = None
    external_task_id: ID | None = None
    job_metadata: JsonObject | None = None
    metadata: JsonObject | None = None


class CreateAndCallAnswer(ChatCompletion, kw_only=True):
    job_id: Uuid
    team_id: str
    call_id: Uuid
    status: str
    completed_at: Timestamp
    response: PlainAnswer
    metadata: Mapping[str, Json]
    costs: Costs
    credits_remaining: int


class CreateAndCallController(Controller):
    path = "/api/jobs"
    tags = ["LLM Calls"]
    before_request = limited_call

    @post("/create-and-call", status_code=200)
    async def create_and_call(
        self, caller: NamedDependency[Caller], data: JSONBody[CreateAndCallBody]
    ) -> Response[CreateAndCallAnswer]:
        """Open a job, call a model once, complete and charge the job."""
        call = await _started(caller, data, streaming=False)
        caller.answers_with(call.headers)
        try:
            finished = await calling.complete(call, _answer)
        except (Trouble, Refusal) as trouble:
            raise _about_job(trouble.code, trouble.facts, call.started.job_id) from None
        return reply(_answer(finished), headers=call.headers)

    @post("/create-and-call-stream", status_code=200, media_type="text/event-stream")
    async def create_and_call_stream(
        self, caller: NamedDependency[Caller], data: JSONBody[CreateAndCallBody]
    ) -> Stream:
        """Open a job and pass the answer of its one call on as it is written; the job is charged when all is out."""
        call = await _started(caller, data, streaming=True)
        return event_stream(call, EventWriter(call))


async def _started(caller: Caller, data: CreateAndCallBody, *, streaming: bool) -> Call:
    return await whole_job(
        caller,
        calling.question(data),
        streaming=streaming,
        team_id=caller.team_for(data.team_id),
        job_type=data.job_type,
        user_id=data.user_id,
        external_task_id=data.external_task_id,
        metadata=data.job_metadata or data.metadata or {},
    )


async def whole_job(
    caller: Caller, asked: Question, *, streaming: bool, team_id: str, metadata: JsonObject, **facts: Any
) -> Call:
    """A job of its own for a call, and the call on record; if that is refused, the job is failed with the reason.

    Args:
        facts: what else is to be known of the job.
    """
    require_small({**metadata, **asked.metadata})  # before there is a job
    job_id = new_id()
    command = CreateJob(**caller.signature(), job_id=job_id, team_id=team_id, metadata=metadata, **facts)
    await caller.decide(create_job, command, JOB.stream(job_id), TEAM.stream(team_id), new=JOB.stream(job_id))
    try:
        call = await calling.start(caller, job_id, asked, streaming=streaming)
    except Refusal as refusal:
        await calling.end_job(caller, job_id, team_id, refusal.code)
        raise _about_job(refusal.code, refusal.facts, job_id) from None
    call.ends_job = True
    return call


def _about_job(code: str, facts: Mapping[str, Any], job_id: str) -> Trouble:
    return Trouble(code, **facts, job_id=job_id)


def _answer(finished: Finished) -> CreateAndCallAnswer:
    assert finished.job is not None
    job = job_ended(finished.job, for_admin=finished.call.caller.is_admin)
    call = call_answer(finished)
    return CreateAndCallAnswer(
        job_id=job.job_id,
        team_id=job.team_id,
        call_id=call.call_id,
        status=job.status,
        completed_at=job.completed_at,
        response=call.response,
        metadata=job.metadata,
        costs=job.costs,
        credits_remaining=job.credits_remaining,
        id=call.id,
        created=call.created,
        model=call.model,
        choices=call.choices,
        usage=call.usage,
    )
