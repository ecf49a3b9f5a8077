"""A job: the unit of charge. It groups LLM calls and is charged at most once.

    created -> (call started -> attempt failed* -> call finished | call failed)* -> completed | failed | cancelled
    pending    in_progress                                                          | expired (which is failed)

Ended jobs never reopen, but what happened is recorded all the same: a provider's answer that comes after the end of
its job is still a fact. Decisions that also touch the credit account are in charging.py.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec
from msgspec.structs import replace

from domain.catalog import Target
from domain.errors import JobClosed, NotFound, OutOfBounds
from domain.event import Command, Event, JsonObject, Record, State
from domain.pricing import ZERO, CallCost, Terms, add, call_cost
from domain.team import Team, require_team

Status = Literal["pending", "in_progress", "completed", "failed", "cancelled"]
CallError = Literal["provider_error", "request_rejected", "timeout", "interrupted"]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "cancelled"]

MAX_METADATA_BYTES = 10 * 1024
RESULT = "result"  # the metadata key of what a completed job brought, which has a limit of its own at the door

# -- events --------------------------------------------------------------------------------------------------


class JobCreated(Event):
    job_id: str
    team_id: str
    organization_id: str
    job_type: str
    user_id: str | None = None
    external_task_id: str | None = None
    metadata: JsonObject


class CallStarted(Event):
    """The intent to call, on record before any provider is contacted. `terms` only on the job's first call."""

    job_id: str
    team_id: str
    organization_id: str
    call_id: str
    model: str
    targets: tuple[Target, ...]
    purpose: str | None
    streaming: bool
    estimated_tokens: int
    estimated_cost_usd: Decimal
    held_credits: int
    terms: Terms | None
    deadline: datetime
    request_sha256: str
    request_bytes: int


class CallAttemptFailed(Event):
    """One target could not answer; the next one is asked. `error` is the provider's own text, for admins only."""

    job_id: str
    call_id: str
    target: str
    resolved_model: str
    outcome: Literal["error", "rejected", "timeout"]
    http_status: int | None
    error: str
    latency_ms: int


class CallFinished(Event):
    job_id: str
    team_id: str
    organization_id: str
    call_id: str
    target: str
    alias: str | None
    provider: str
    resolved_model: str
    prompt_tokens: int
    completion_tokens: int
    usage_estimated: bool
    price_input_usd_per_million: Decimal
    price_output_usd_per_million: Decimal
    unpriced: bool
    markup_percentage: Decimal
    input_cost_usd: Decimal
    output_cost_usd: Decimal
    provider_cost_usd: Decimal
    client_cost_usd: Decimal
    latency_ms: int
    finish_reason: FinishReason
    partial: bool
    response_sha256: str | None
    response_bytes: int


class CallFailed(Event):
    """Free for the team; what the provider may charge for it all the same is estimated, for admins."""

    job_id: str
    team_id: str
    organization_id: str
    call_id: str
    error: CallError
    provider_error: str | None
    http_status: int | None
    latency_ms: int | None
    provider: str | None = None
    resolved_model: str | None = None
    provider_cost_usd: Decimal = ZERO


class MetadataMerged(Event):
    """Shallow: keys not named stay."""

    job_id: str
    metadata: JsonObject


class JobEnd(Event):
    """What every end says: what was charged, and what the team had left then."""

    job_id: str
    team_id: str
    organization_id: str
    credit_applied: bool
    credits_charged: int
    credits_remaining: int
    total_calls: int
    duration_seconds: int


class JobCompleted(JobEnd):
    pass


class JobFailed(JobEnd):
    error_message: str | None = None


class JobCancelled(JobEnd):
    reason: str | None = None


class JobExpired(JobEnd):
    pass


class ChargeRefunded(Event):
    """The job's side of a refund: together they never exceed the charge."""

    job_id: str
    transaction_id: str
    credits: int


JobEvent = (
    JobCreated
    | CallStarted
    | CallAttemptFailed
    | CallFinished
    | CallFailed
    | MetadataMerged
    | JobCompleted
    | JobFailed
    | JobCancelled
    | JobExpired
    | ChargeRefunded
)

# -- state ---------------------------------------------------------------------------------------------------


class Attempt(Record):
    """A target that was asked and did not answer."""

    target: str
    resolved_model: str
    outcome: Literal["error", "rejected", "timeout"]
    http_status: int | None
    error: str
    latency_ms: int

    @classmethod
    def of(cls, event: CallAttemptFailed) -> "Attempt":
        return cls(
            target=event.target,
            resolved_model=event.resolved_model,
            outcome=event.outcome,
            http_status=event.http_status,
            error=event.error,
            latency_ms=event.latency_ms,
        )


class RunningCall(Record):
    call_id: str
    model: str
    purpose: str | None
    streaming: bool
    targets: tuple[Target, ...]
    estimated_tokens: int
    estimated_cost_usd: Decimal
    deadline: datetime
    created_at: datetime
    attempts: tuple[Attempt, ...] = ()


class EndedCall(Record):
    """How a call ended, with all that explains its price; a failed call has no tokens and costs the team nothing."""

    call_id: str
    model: str
    purpose: str | None
    streaming: bool
    created_at: datetime
    attempts: tuple[Attempt, ...]
    latency_ms: int | None
    provider: str | None
    resolved_model: str | None
    alias: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_estimated: bool = False
    price_input_usd_per_million: Decimal | None = None
    price_output_usd_per_million: Decimal | None = None
    markup_percentage: Decimal = ZERO
    input_cost_usd: Decimal = ZERO
    output_cost_usd: Decimal = ZERO
    provider_cost_usd: Decimal = ZERO
    client_cost_usd: Decimal = ZERO
    finish_reason: FinishReason | None = None
    partial: bool = False
    error: CallError | None = None
    provider_error: str | None = None


class Job(State):
    job_id: str
    team_id: str
    organization_id: str
    job_type: str
    user_id: str | None
    external_task_id: str | None
    status: Status = "pending"
    metadata: JsonObject
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    active_at: datetime
    error_message: str | None = None
    models_used: tuple[str, ...] = ()

    terms: Terms | None = None
    held_credits: int = 0
    credit_applied: bool = False
    credits_charged: int = 0
    credits_refunded: int = 0
    credits_remaining: int | None = None

    running: dict[str, RunningCall] = {}
    ended: tuple[EndedCall, ...] = ()
    successful_calls: int = 0
    failed_calls: int = 0
    rejected_calls: int = 0
    tokens: int = 0
    latency_ms: int = 0
    latencies: int = 0
    provider_cost_usd: Decimal = ZERO
    client_cost_usd: Decimal = ZERO

    @property
    def is_open(self) -> bool:
        return self.status in ("pending", "in_progress")

    @property
    def total_calls(self) -> int:
        return len(self.running) + len(self.ended)

    def call(self, call_id: str) -> EndedCall | None:
        return next((call for call in self.ended if call.call_id == call_id), None)

    def knows_call(self, call_id: str) -> bool:
        return call_id in self.running or self.call(call_id) is not None


def evolve(job: Job | None, event: JobEvent) -> Job:
    """What the job is after this event, whatever the rules say today."""
    if isinstance(event, JobCreated):
        return Job(
            job_id=event.job_id,
            team_id=event.team_id,
            organization_id=event.organization_id,
            job_type=event.job_type,
            user_id=event.user_id,
            external_task_id=event.external_task_id,
            metadata=event.metadata,
            created_at=event.at,
            active_at=event.at,
        )
    assert job is not None, "a job's history starts with JobCreated"
    match event:
        case CallStarted():
            return _started(job, event)
        case CallFinished():
            return _finished(job, event)
        case CallFailed():
            return _failed(job, event)
        case CallAttemptFailed():
            return _attempted(job, event)
        case MetadataMerged(metadata=metadata):
            return replace(job, metadata={**job.metadata, **metadata}, active_at=event.at)
        case JobCompleted():
            return _ended(job, event, "completed", None)
        case JobFailed(error_message=error_message):
            return _ended(job, event, "failed", error_message)
        case JobCancelled(reason=reason):
            return _ended(job, event, "cancelled", reason)
        case JobExpired():
            return _ended(job, event, "failed", "expired")
        case ChargeRefunded(credits=credits):
            return replace(job, credits_refunded=job.credits_refunded + credits)


def _started(job: Job, event: CallStarted) -> Job:
    call = RunningCall(
        call_id=event.call_id,
        model=event.model,
        purpose=event.purpose,
        streaming=event.streaming,
        targets=event.targets,
        estimated_tokens=event.estimated_tokens,
        estimated_cost_usd=event.estimated_cost_usd,
        deadline=event.deadline,
        created_at=event.at,
    )
    models = job.models_used if event.model in job.models_used else (*job.models_used, event.model)
    return replace(
        job,
        status="in_progress",
        started_at=job.started_at or event.at,
        active_at=event.at,
        models_used=models,
        terms=job.terms or event.terms,
        held_credits=job.held_credits + event.held_credits,
        running={**job.running, event.call_id: call},
    )


def _attempted(job: Job, event: CallAttemptFailed) -> Job:
    call = job.running.get(event.call_id)
    if call is None:
        return job
    changed = replace(call, attempts=(*call.attempts, Attempt.of(event)))
    return replace(job, running={**job.running, event.call_id: changed})


def _finished(job: Job, event: CallFinished) -> Job:
    call = job.running.get(event.call_id)
    if call is None:
        return job  # a second end adds nothing; that it is there is the auditor's question
    tokens = event.prompt_tokens + event.completion_tokens
    ended = EndedCall(
        call_id=call.call_id,
        model=call.model,
        purpose=call.purpose,
        streaming=call.streaming,
        created_at=call.created_at,
        attempts=call.attempts,
        latency_ms=event.latency_ms,
        provider=event.provider,
        resolved_model=event.resolved_model,
        alias=event.alias,
        prompt_tokens=event.prompt_tokens,
        completion_tokens=event.completion_tokens,
        usage_estimated=event.usage_estimated,
        price_input_usd_per_million=event.price_input_usd_per_million,
        price_output_usd_per_million=event.price_output_usd_per_million,
        markup_percentage=event.markup_percentage,
        input_cost_usd=event.input_cost_usd,
        output_cost_usd=event.output_cost_usd,
        provider_cost_usd=event.provider_cost_usd,
        client_cost_usd=event.client_cost_usd,
        finish_reason=event.finish_reason,
        partial=event.partial,
    )
    return replace(
        job,
        active_at=event.at,
        running=_without(job.running, event.call_id),
        ended=(*job.ended, ended),
        successful_calls=job.successful_calls + 1,
        tokens=job.tokens + tokens,
        latency_ms=job.latency_ms + event.latency_ms,
        latencies=job.latencies + 1,
        provider_cost_usd=add(job.provider_cost_usd, event.provider_cost_usd),
        client_cost_usd=add(job.client_cost_usd, event.client_cost_usd),
    )


def _failed(job: Job, event: CallFailed) -> Job:
    call = job.running.get(event.call_id)
    if call is None:
        return job  # a second end adds nothing; that it is there is the auditor's question
    ended = EndedCall(
        call_id=call.call_id,
        model=call.model,
        purpose=call.purpose,
        streaming=call.streaming,
        created_at=call.created_at,
        attempts=call.attempts,
        latency_ms=event.latency_ms,
        provider=event.provider,
        resolved_model=event.resolved_model,
        provider_cost_usd=event.provider_cost_usd,
        error=event.error,
        provider_error=event.provider_error,
    )
    return replace(
        job,
        active_at=event.at,
        running=_without(job.running, event.call_id),
        ended=(*job.ended, ended),
        failed_calls=job.failed_calls + 1,
        rejected_calls=job.rejected_calls + (event.error == "request_rejected"),
        latency_ms=job.latency_ms + (event.latency_ms or 0),
        latencies=job.latencies + (event.latency_ms is not None),
        provider_cost_usd=add(job.provider_cost_usd, event.provider_cost_usd),
    )


def _ended(job: Job, event: JobEnd, status: Status, error_message: str | None) -> Job:
    return replace(
        job,
        status=status,
        ended_at=event.at,
        error_message=error_message,
        held_credits=0,
        credit_applied=event.credit_applied,
        credits_charged=event.credits_charged,
        credits_remaining=event.credits_remaining,
    )


def _without(running: Mapping[str, RunningCall], call_id: str) -> dict[str, RunningCall]:
    return {key: call for key, call in running.items() if key != call_id}


# -- commands ------------------------------------------------------------------------------------------------


class CreateJob(Command):
    job_id: str
    team_id: str
    job_type: str
    user_id: str | None = None
    external_task_id: str | None = None
    metadata: JsonObject


class MergeMetadata(Command):
    metadata: JsonObject


class FinishCall(Command):
    """A provider answered. `target` is the index among the targets of the call; `attempts` those that failed before."""

    call_id: str
    target: int
    prompt_tokens: int
    completion_tokens: int
    usage_estimated: bool
    latency_ms: int
    finish_reason: FinishReason
    partial: bool = False
    attempts: tuple[Attempt, ...] = ()
    response_sha256: str | None = None
    response_bytes: int = 0


class FailCall(Command):
    """No provider answered, or the answer broke off. Token counts are what a provider may bill us for."""

    call_id: str
    error: CallError
    provider_error: str | None = None
    http_status: int | None = None
    latency_ms: int | None = None
    target: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: tuple[Attempt, ...] = ()


# -- decisions -----------------------------------------------------------------------------------------------


def create_job(job: Job | None, team: Team | None, command: CreateJob) -> tuple[list[Event], list[Event]]:
    """Opens a job. No credits are looked at or moved."""
    if job is not None:
        return [], []
    team = require_team(team)
    require_small(command.metadata)
    created = JobCreated(
        at=command.at,
        job_id=command.job_id,
        team_id=team.team_id,
        organization_id=team.organization_id,
        job_type=command.job_type,
        user_id=command.user_id,
        external_task_id=command.external_task_id,
        metadata=command.metadata,
    )
    return [created], []


def finish_call(job: Job | None, command: FinishCall) -> list[Event]:
    """Records an answer and prices it as agreed when the call started.

    Recorded even if the job ended meanwhile: the provider has been paid.
    """
    job = require_job(job)
    call = job.running.get(command.call_id)
    if call is None:
        require_ended(job, command.call_id)
        return []
    target = call.targets[command.target]
    cost = price_call(job, target, command.prompt_tokens, command.completion_tokens)
    finished = CallFinished(
        at=command.at,
        job_id=job.job_id,
        team_id=job.team_id,
        organization_id=job.organization_id,
        call_id=call.call_id,
        target=target.name,
        alias=target.alias,
        provider=target.provider,
        resolved_model=f"{target.provider}/{target.model}",
        prompt_tokens=command.prompt_tokens,
        completion_tokens=command.completion_tokens,
        usage_estimated=command.usage_estimated,
        price_input_usd_per_million=target.price.input_usd_per_million,
        price_output_usd_per_million=target.price.output_usd_per_million,
        unpriced=target.unpriced,
        markup_percentage=require_terms(job).markup_percentage,
        input_cost_usd=cost.input_cost_usd,
        output_cost_usd=cost.output_cost_usd,
        provider_cost_usd=cost.provider_cost_usd,
        client_cost_usd=cost.client_cost_usd,
        latency_ms=command.latency_ms,
        finish_reason=command.finish_reason,
        partial=command.partial,
        response_sha256=command.response_sha256,
        response_bytes=command.response_bytes,
    )
    return [*_attempts(job, command.call_id, command.at, command.attempts), finished]


def fail_call(job: Job | None, command: FailCall) -> list[Event]:
    """Records that no answer came, whatever became of the job meanwhile."""
    job = require_job(job)
    call = job.running.get(command.call_id)
    if call is None:
        require_ended(job, command.call_id)
        return []
    target = call.targets[command.target] if command.target is not None else None
    cost = price_call(job, target, command.prompt_tokens, command.completion_tokens) if target else CallCost()
    failed = CallFailed(
        at=command.at,
        job_id=job.job_id,
        team_id=job.team_id,
        organization_id=job.organization_id,
        call_id=call.call_id,
        error=command.error,
        provider_error=command.provider_error,
        http_status=command.http_status,
        latency_ms=command.latency_ms,
        provider=target.provider if target else None,
        resolved_model=f"{target.provider}/{target.model}" if target else None,
        provider_cost_usd=cost.provider_cost_usd,
    )
    return [*_attempts(job, command.call_id, command.at, command.attempts), failed]


def merge_metadata(job: Job | None, command: MergeMetadata) -> list[Event]:
    """Works on ended jobs too."""
    job = require_job(job)
    return metadata_events(job, command.at, command.metadata)


def metadata_events(job: Job, at: datetime, metadata: JsonObject, result: JsonObject | None = None) -> list[Event]:
    """The event that merges this into the job's metadata, or nothing when there is nothing to merge.

    Only a `result` handed over as such may be large.
    """
    if not metadata and not result:
        return []
    require_small(metadata)
    require_small({key: value for key, value in {**job.metadata, **metadata}.items() if key != RESULT})
    return [MetadataMerged(at=at, job_id=job.job_id, metadata={**metadata, **(result or {})})]


def price_call(job: Job, target: Target, prompt_tokens: int, completion_tokens: int) -> CallCost:
    return call_cost(prompt_tokens, completion_tokens, target.price, require_terms(job).markup_percentage)


def require_job(job: Job | None) -> Job:
    if job is None:
        raise NotFound("job")
    return job


def require_open(job: Job) -> None:
    if not job.is_open:
        raise JobClosed(job.status)


def require_ended(job: Job, call_id: str) -> None:
    """An end that was already recorded is answered; a call that never was is not found."""
    if job.call(call_id) is None:
        raise NotFound("call")


def require_terms(job: Job) -> Terms:
    """A call that started has fixed the terms of its job."""
    assert job.terms is not None
    return job.terms


def require_small(metadata: JsonObject) -> None:
    """Metadata is a label, not a store: 10 KB as compact JSON."""
    if len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise OutOfBounds("metadata", f"metadata is larger than {MAX_METADATA_BYTES} bytes")


def _attempts(job: Job, call_id: str, at: datetime, attempts: tuple[Attempt, ...]) -> list[Event]:
    return [
        CallAttemptFailed(
            at=at,
            job_id=job.job_id,
            call_id=call_id,
            target=attempt.target,
            resolved_model=attempt.resolved_model,
            outcome=attempt.outcome,
            http_status=attempt.http_status,
            error=attempt.error,
            latency_ms=attempt.latency_ms,
        )
        for attempt in attempts
    ]
