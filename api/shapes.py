"""The shapes that several endpoints share, made from records of the read models or from states alike.

A field that only administrators may see is UNSET for a team: it is absent then, not null.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import number, number_or_none, percent, ts, ts_or_none, usd6, usd8
from domain.event import Json
from domain.job import EndedCall, Job, RunningCall
from domain.pricing import subtract
from infra.conversations import Conversation
from projections.balances import BalanceRecord
from projections.calls import CallRecord
from projections.jobs import JobRecord
from projections.teams import TeamRecord
from projections.transactions import TransactionRecord

Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]

ADDITIONS = frozenset({"allocation", "subscription_payment", "one_time_payment"})


class Balance(msgspec.Struct, kw_only=True):
    team_id: str
    organization_id: str
    credits_allocated: int
    credits_used: int
    credits_remaining: int
    credits_held: int
    credits_available: int | None
    overdraft_credits: int | None
    credit_limit: int | None
    percentage_used: Decimal
    status: str
    auto_refill: bool
    refill_amount: int | None
    refill_period: str | None
    last_refill_at: Timestamp | None
    budget_mode: str
    credits_per_dollar: Decimal
    tokens_per_credit: int
    cost_markup_percentage: Decimal | UnsetType = UNSET
    virtual_key: str | None
    created_at: Timestamp
    updated_at: Timestamp


class Transaction(msgspec.Struct, kw_only=True):
    """`type`, `amount`, `description`, `timestamp` and `balance_after` are what older clients call the same."""

    transaction_id: Uuid
    team_id: str
    organization_id: str
    job_id: Uuid | None
    transaction_type: str
    source: str | None
    credits_amount: int
    credits_before: int
    credits_after: int
    reason: str | None
    payment_amount_usd: Decimal | None
    payment_reference: str | None
    expires_at: Timestamp | None
    actor: str
    created_at: Timestamp
    type: str
    amount: int
    description: str | None
    timestamp: Timestamp
    balance_after: int


class JobTotals(msgspec.Struct):
    total_calls: int
    total_tokens: int
    total_cost_usd: Decimal
    credit_applied: bool


class JobAnswer(msgspec.Struct, kw_only=True):
    job_id: Uuid
    team_id: str
    organization_id: str
    user_id: str | None
    external_task_id: str | None
    job_type: str
    status: str
    created_at: Timestamp
    started_at: Timestamp | None
    completed_at: Timestamp | None
    error_message: str | None
    model_groups_used: list[str]
    credit_applied: bool
    credits_charged: int
    metadata: Mapping[str, Json]
    costs: JobTotals


class Costs(msgspec.Struct, kw_only=True):
    total_calls: int
    successful_calls: int
    failed_calls: int
    rejected_calls: int
    total_tokens: int
    avg_latency_ms: int
    total_cost_usd: Decimal
    credit_applied: bool
    credits_charged: int
    credits_remaining: int
    provider_cost_usd: Decimal | UnsetType = UNSET
    profit_usd: Decimal | UnsetType = UNSET


class AttemptAnswer(msgspec.Struct, kw_only=True):
    target: str
    resolved_model: str
    outcome: str
    http_status: int | None
    error: str | None
    latency_ms: int


class CallAnswer(msgspec.Struct, kw_only=True):
    call_id: Uuid
    status: str
    purpose: str | None
    model_group: str | None
    model: str | None
    tokens: int
    prompt_tokens: int
    completion_tokens: int
    latency_ms: int | None
    finish_reason: str | None
    error: str | None
    streaming: bool
    partial: bool
    created_at: Timestamp
    model_group_used: str | UnsetType | None = UNSET
    model_used: str | UnsetType | None = UNSET
    resolved_model: str | UnsetType | None = UNSET
    total_tokens: int | UnsetType = UNSET
    cost_usd: Decimal | UnsetType = UNSET
    input_cost_usd: Decimal | UnsetType = UNSET
    output_cost_usd: Decimal | UnsetType = UNSET
    provider_cost_usd: Decimal | UnsetType = UNSET
    client_cost_usd: Decimal | UnsetType = UNSET
    profit_usd: Decimal | UnsetType = UNSET
    model_pricing_input: Decimal | UnsetType | None = UNSET
    model_pricing_output: Decimal | UnsetType | None = UNSET
    cost_markup_percentage: Decimal | UnsetType = UNSET
    usage_estimated: bool | UnsetType = UNSET
    attempts: list[AttemptAnswer] | UnsetType = UNSET
    request_data: Mapping[str, Any] | UnsetType | None = UNSET
    response_data: Mapping[str, Any] | UnsetType | None = UNSET


def balance_answer(team: TeamRecord, balance: BalanceRecord, *, for_admin: bool) -> Balance:
    terms = team.budget.terms
    return Balance(
        team_id=team.team_id,
        organization_id=team.organization_id,
        credits_allocated=balance.credits_allocated,
        credits_used=balance.credits_used,
        credits_remaining=balance.credits_remaining,
        credits_held=balance.credits_held,
        credits_available=balance.credits_available(team.overdraft_credits),
        overdraft_credits=team.overdraft_credits,
        credit_limit=team.overdraft_credits,
        percentage_used=percent(balance.credits_used, balance.credits_allocated),
        status=team.status,
        auto_refill=team.auto_refill,
        refill_amount=team.refill_credits,
        refill_period=team.refill_period,
        last_refill_at=ts_or_none(balance.last_refill_at),
        budget_mode=team.mode,
        credits_per_dollar=number(terms.credits_per_dollar),
        tokens_per_credit=terms.tokens_per_credit,
        cost_markup_percentage=number(team.markup_percentage) if for_admin else UNSET,
        virtual_key=team.virtual_key,
        created_at=ts(team.created_at),
        updated_at=ts(max(team.updated_at, balance.updated_at)),
    )


def transaction_answer(transaction: TransactionRecord) -> Transaction:
    kind = transaction.transaction_type
    return Transaction(
        transaction_id=transaction.transaction_id,
        team_id=transaction.team_id,
        organization_id=transaction.organization_id,
        job_id=transaction.job_id,
        transaction_type=kind,
        source=transaction.source,
        credits_amount=transaction.credits_amount,
        credits_before=transaction.credits_before,
        credits_after=transaction.credits_after,
        reason=transaction.reason,
        payment_amount_usd=number_or_none(transaction.payment_amount_usd),
        payment_reference=transaction.payment_reference,
        expires_at=ts_or_none(transaction.expires_at),
        actor=transaction.actor,
        created_at=ts(transaction.created_at),
        type="addition" if kind in ADDITIONS else kind,
        amount=transaction.credits_amount,
        description=transaction.reason,
        timestamp=ts(transaction.created_at),
        balance_after=transaction.credits_after,
    )


def job_totals(job: JobRecord) -> JobTotals:
    return JobTotals(job.total_calls, job.total_tokens, usd6(job.client_cost_usd), job.credit_applied)


def job_answer(job: JobRecord) -> JobAnswer:
    return JobAnswer(**job_fields(job), costs=job_totals(job))


def job_fields(job: JobRecord) -> dict[str, Any]:
    """What every answer about a job says, its costs apart: they come in two sizes."""
    return {
        "job_id": job.job_id,
        "team_id": job.team_id,
        "organization_id": job.organization_id,
        "user_id": job.user_id,
        "external_task_id": job.external_task_id,
        "job_type": job.job_type,
        "status": job.status,
        "created_at": ts(job.created_at),
        "started_at": ts_or_none(job.started_at),
        "completed_at": ts_or_none(job.completed_at),
        "error_message": job.error_message,
        "model_groups_used": job.models_used,
        "credit_applied": job.credit_applied,
        "credits_charged": job.credits_charged,
        "metadata": job.metadata,
    }


def job_costs(job: JobRecord, credits_remaining: int, *, for_admin: bool) -> Costs:
    return Costs(
        total_calls=job.total_calls,
        successful_calls=job.successful_calls,
        failed_calls=job.failed_calls,
        rejected_calls=job.rejected_calls,
        total_tokens=job.total_tokens,
        avg_latency_ms=job.latency_ms // job.latencies if job.latencies else 0,
        total_cost_usd=usd6(job.client_cost_usd),
        credit_applied=job.credit_applied,
        credits_charged=job.credits_charged,
        credits_remaining=credits_remaining,
        provider_cost_usd=usd6(job.provider_cost_usd) if for_admin else UNSET,
        profit_usd=usd6(subtract(job.client_cost_usd, job.provider_cost_usd)) if for_admin else UNSET,
    )


def calls_of(job: Job) -> list[CallRecord]:
    """The calls of a job's state in the order in which they started."""
    calls: Iterable[RunningCall | EndedCall] = (*job.ended, *job.running.values())
    return [CallRecord.of(call) for call in sorted(calls, key=lambda call: call.created_at)]


def call_answer(call: CallRecord, said: Conversation | None = None, *, for_admin: bool) -> CallAnswer:
    """A call, for administrators with prices and targets and, if it is kept, with what was said."""
    tokens = call.prompt_tokens + call.completion_tokens
    answer = CallAnswer(
        call_id=call.call_id,
        status=call.status,
        purpose=call.purpose,
        model_group=call.model,
        model=call.model,
        tokens=tokens,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        latency_ms=call.latency_ms,
        finish_reason=call.finish_reason,
        error=call.error,
        streaming=call.streaming,
        partial=call.partial,
        created_at=ts(call.created_at),
    )
    if not for_admin:
        return answer
    pricing_input, pricing_output = call.price_input_usd_per_million, call.price_output_usd_per_million
    answer.model_group_used = call.model
    answer.model_used = call.alias or call.resolved_model
    answer.resolved_model = call.resolved_model
    answer.total_tokens = tokens
    answer.cost_usd = answer.client_cost_usd = usd8(call.client_cost_usd)
    answer.input_cost_usd = usd8(call.input_cost_usd)
    answer.output_cost_usd = usd8(call.output_cost_usd)
    answer.provider_cost_usd = usd8(call.provider_cost_usd)
    answer.profit_usd = usd8(subtract(call.client_cost_usd, call.provider_cost_usd))
    answer.model_pricing_input = None if pricing_input is None else number(pricing_input)
    answer.model_pricing_output = None if pricing_output is None else number(pricing_output)
    answer.cost_markup_percentage = number(call.markup_percentage)
    answer.usage_estimated = call.usage_estimated
    answer.error = call.provider_error or call.error
    answer.attempts = _attempts(call)
    answer.request_data = None if said is None else said.request
    answer.response_data = None if said is None else said.response
    return answer


def _attempts(call: CallRecord) -> list[AttemptAnswer]:
    """Every target that was asked, the one that answered last. A time-out is an error without a status."""
    attempts = [
        AttemptAnswer(**{**attempt, "outcome": "rejected" if attempt["outcome"] == "rejected" else "error"})
        for attempt in call.attempts
    ]
    if call.status == "completed" and call.resolved_model is not None:
        before = sum(attempt.latency_ms for attempt in attempts)
        answered = AttemptAnswer(
            target=call.alias or call.resolved_model,
            resolved_model=call.resolved_model,
            outcome="ok",
            http_status=None if call.resolved_model.startswith("demo/") else 200,
            error=None,
            latency_ms=max(0, (call.latency_ms or 0) - before),
        )
        attempts.append(answered)
    return attempts
