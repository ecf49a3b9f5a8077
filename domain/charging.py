"""Where jobs and credits meet: every decision that must be true of both at once.

    start_call   sets credits aside before a provider is contacted
    complete_job charges once, out of the hold, and releases the rest
    fail, cancel release the hold
    expire_job   releases the hold; in consumption modes what was used is charged
    refund_job   gives back at most what was charged

Each answers with one list of events a stream, job first, account second; both are written together or not at all.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from domain import credit
from domain.catalog import EMPTY, Catalog, resolve
from domain.credit import Account, require_account, require_available
from domain.errors import CallsInProgress, JobClosed, NotCharged, NotFound, RefundExceedsCharge
from domain.event import Command, Event, Json, JsonObject, derived_id
from domain.job import (
    RESULT,
    CallStarted,
    ChargeRefunded,
    Job,
    JobCancelled,
    JobCompleted,
    JobExpired,
    JobFailed,
    metadata_events,
    require_job,
    require_open,
)
from domain.organization import Organization
from domain.pricing import Terms, add, call_cost, credits_for
from domain.team import Team, require_active, require_team

SETTLE_MARGIN = timedelta(seconds=60)  # a call without an end so long after its last possible moment has none

TwoLists = tuple[list[Event], list[Event]]

# -- commands ------------------------------------------------------------------------------------------------


class StartCall(Command):
    """The wish to call a model. Token counts are estimates: the prompt's, and what the answer may be at most."""

    call_id: str
    model: str | None
    purpose: str | None
    streaming: bool
    prompt_tokens: int
    output_tokens: int
    open_aliases: bool
    longest_attempt: timedelta
    request_sha256: str
    request_bytes: int
    metadata: JsonObject


class EndJob(Command):
    """`charge_id` names the charge, should there be one."""

    charge_id: str
    metadata: JsonObject
    result: Json = None


class CompleteJob(EndJob):
    pass


class FailJob(EndJob):
    error_message: str | None = None


class CancelJob(Command):
    charge_id: str
    reason: str | None = None


class ExpireJob(Command):
    charge_id: str
    idle: timedelta


class RefundJob(Command):
    """`credits` of None gives back whatever is left of the charge."""

    transaction_id: str
    credits: int | None = None
    reason: str | None = None


# -- decisions -----------------------------------------------------------------------------------------------


def start_call(
    job: Job | None,
    account: Account | None,
    team: Team | None,
    organization: Organization | None,
    catalog: Catalog | None,
    command: StartCall,
) -> tuple[list[Event], list[Event], list[Event], list[Event], list[Event]]:
    """Checks in the contract's order (job, model, credits), then holds credits and puts the intent on record.

    A call that was started already is not started again.

    Raises:
        JobClosed, ModelNotAllowed, InsufficientCredits: and nothing is held.
    """
    job, account, team = require_job(job), require_account(account), require_team(team)
    if job.knows_call(command.call_id):
        return [], [], [], [], []
    require_active(team, organization)
    require_open(job)
    resolution = resolve(catalog or EMPTY, team, organization, command.model, open_aliases=command.open_aliases)
    labelled = metadata_events(job, command.at, command.metadata)
    terms = job.terms or team.budget.terms
    tokens = command.prompt_tokens + command.output_tokens
    cost = max(
        call_cost(command.prompt_tokens, command.output_tokens, target.price, terms.markup_percentage).client_cost_usd
        for target in resolution.targets
    )
    credits = _credits_to_hold(job, terms, tokens, cost)
    held = credit.hold(
        account,
        at=command.at,
        transaction_id=derived_id(command.call_id, "hold"),
        job_id=job.job_id,
        credits=credits,
        overdraft_credits=team.budget.overdraft_credits,
    )
    started = CallStarted(
        at=command.at,
        job_id=job.job_id,
        team_id=job.team_id,
        organization_id=job.organization_id,
        call_id=command.call_id,
        model=resolution.requested,
        targets=resolution.targets,
        purpose=command.purpose,
        streaming=command.streaming,
        estimated_tokens=tokens,
        estimated_cost_usd=cost,
        held_credits=credits,
        terms=None if job.terms else terms,
        deadline=command.at + command.longest_attempt * len(resolution.targets) + SETTLE_MARGIN,
        request_sha256=command.request_sha256,
        request_bytes=command.request_bytes,
    )
    return [*labelled, started], held, [], [], []


def _credits_to_hold(job: Job, terms: Terms, tokens: int, cost: Decimal) -> int:
    """How much the hold has to grow to cover what was used, what is running, and this call. It never shrinks."""
    for call in job.running.values():
        tokens += call.estimated_tokens
        cost = add(cost, call.estimated_cost_usd)
    needed = credits_for(terms, add(job.client_cost_usd, cost), job.tokens + tokens)
    return max(0, needed - job.held_credits)


def complete_job(
    job: Job | None, account: Account | None, team: Team | None, command: CompleteJob
) -> tuple[list[Event], list[Event], list[Event]]:
    """Ends a job well and charges it, if its charge policy says so. A repeat is answered, not refused.

    Raises:
        JobClosed: it ended with another status.
        CallsInProgress: what it used is not known yet.
        InsufficientCredits: it made no call, so nothing was held, and there is no credit to charge.
    """
    job, account = require_job(job), require_account(account)
    if job.status == "completed":
        return [], [], []
    require_open(job)
    if team is None or team.status == "inactive":
        raise JobClosed("cancelled")  # as all open jobs of a deleted team are about to be
    if job.running:
        raise CallsInProgress(len(job.running))
    terms = job.terms or team.budget.terms
    if not _is_due(job, terms):
        return *_end_uncharged(JobCompleted, job, account, command), []
    credits = credits_for(terms, job.client_cost_usd, job.tokens)
    if not job.total_calls:
        # Nothing was held for a job without a call, so here is where its credit is looked for.
        require_available(account, credits, team.budget.overdraft_credits)
    charged = _charge(job, account, command.at, command.charge_id, credits, terms)
    ended = JobCompleted(
        **_end(job, command.at, credit_applied=True, credits=credits, remaining=account.remaining - credits)
    )
    return [*_labels(job, command), ended], charged, []


def fail_job(job: Job | None, account: Account | None, command: FailJob) -> TwoLists:
    """Ends a job that went wrong: never charged."""
    job, account = require_job(job), require_account(account)
    if job.status == "failed":
        return [], []
    require_open(job)
    return _end_uncharged(JobFailed, job, account, command, error_message=command.error_message)


def cancel_job(job: Job | None, account: Account | None, command: CancelJob) -> TwoLists:
    """Ends a job that nobody wants any more: never charged. Calls still running are recorded when they end."""
    job, account = require_job(job), require_account(account)
    if job.status == "cancelled":
        return [], []
    require_open(job)
    return _end_uncharged(JobCancelled, job, account, command, reason=command.reason)


def expire_job(job: Job | None, account: Account | None, command: ExpireJob) -> TwoLists:
    """Ends a job that was left alone for too long. Consumption that is on record is paid for all the same."""
    job, account = require_job(job), require_account(account)
    if not job.is_open or job.running or command.at - job.active_at < command.idle:
        return [], []
    terms = job.terms
    if terms is None or terms.mode == "job_based" or not job.successful_calls:
        return _end_uncharged(JobExpired, job, account, command)
    credits = credits_for(terms, job.client_cost_usd, job.tokens)
    charged = _charge(job, account, command.at, command.charge_id, credits, terms)
    ended = JobExpired(
        **_end(job, command.at, credit_applied=True, credits=credits, remaining=account.remaining - credits)
    )
    return [ended], charged


def refund_job(job: Job | None, account: Account | None, command: RefundJob) -> TwoLists:
    """Gives back some or all of a charge.

    Raises:
        NotFound: the account's team has no such job.
        NotCharged: there is nothing to give back.
        RefundExceedsCharge: all refunds together would exceed the charge, or nothing is left of it.
    """
    job, account = require_job(job), require_account(account)
    if job.team_id != account.team_id:
        raise NotFound("job")
    refundable = job.credits_charged - job.credits_refunded
    credits = refundable if command.credits is None else command.credits
    if not job.credits_charged:
        raise NotCharged
    if credits > refundable or credits <= 0:
        raise RefundExceedsCharge(refundable)
    refunded = credit.refund(
        account,
        at=command.at,
        transaction_id=command.transaction_id,
        job_id=job.job_id,
        credits=credits,
        reason=command.reason,
    )
    return [
        ChargeRefunded(at=command.at, job_id=job.job_id, transaction_id=command.transaction_id, credits=credits)
    ], refunded


def _is_due(job: Job, terms: Terms) -> bool:
    """Whether the charge policy asks for a charge. A call that the provider refused as such waives nothing."""
    if terms.charge_policy == "any_call_succeeded":
        return job.successful_calls > 0 or not job.ended
    return job.failed_calls == job.rejected_calls


def _charge(job: Job, account: Account, at: datetime, charge_id: str, credits: int, terms: Terms) -> list[Event]:
    return credit.settle(
        account,
        at=at,
        transaction_id=charge_id,
        job_id=job.job_id,
        credits=credits,
        held_credits=job.held_credits,
        terms=terms,
        client_cost_usd=job.client_cost_usd,
        tokens=job.tokens,
    )


def _end_uncharged(
    kind: type[JobCompleted | JobFailed | JobCancelled | JobExpired],
    job: Job,
    account: Account,
    command: EndJob | CancelJob | ExpireJob,
    **why: Any,
) -> TwoLists:
    released = credit.release(
        account, at=command.at, charge_id=command.charge_id, job_id=job.job_id, credits=job.held_credits
    )
    ended = kind(**_end(job, command.at, credit_applied=False, credits=0, remaining=account.remaining), **why)
    return [*_labels(job, command), ended], released


def _end(job: Job, at: datetime, *, credit_applied: bool, credits: int, remaining: int) -> dict[str, Any]:
    return {
        "at": at,
        "job_id": job.job_id,
        "team_id": job.team_id,
        "organization_id": job.organization_id,
        "credit_applied": credit_applied,
        "credits_charged": credits,
        "credits_remaining": remaining,
        "total_calls": job.total_calls,
        "duration_seconds": int((at - job.created_at).total_seconds()),
    }


def _labels(job: Job, command: Command) -> list[Event]:
    """Metadata and result that came with the end of a job."""
    if not isinstance(command, EndJob):
        return []
    result = None if command.result in (None, "", [], {}) else {RESULT: command.result}
    return metadata_events(job, command.at, command.metadata, result)
