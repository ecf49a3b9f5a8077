"""A balance as a tree: what was given; and for each job what was held, which calls it made at which price, and how the
charge follows from that."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from api.answers import number, number_or_none, ts, ts_or_none, usd6, usd8
from api.listing import Page
from api.shapes import Timestamp, Uuid
from domain.credit import Account, CreditsCharged
from domain.pricing import Terms
from domain.streams import decode
from infra.journal import Connection
from projections import evidence, explain, jobs
from projections.calls import CallRecord
from projections.explain import CallOfJob, Given, JobMovement
from projections.jobs import JobRecord

MOST_GIVEN = 100
MOST_CALLS = 100  # of one job; the job's own story has them all


class Total(msgspec.Struct, kw_only=True):
    credits_allocated: int
    credits_used: int
    credits_remaining: int
    credits_held: int


class GivenAnswer(msgspec.Struct, kw_only=True):
    """A grant, payment, refill, correction or expiration; `credits` is signed, `credits_left` is of what can expire."""

    position: int
    transaction_id: Uuid
    transaction_type: str
    credits: int
    reason: str | None
    payment_reference: str | None
    expires_at: Timestamp | None
    credits_left: int | None
    actor: str
    created_at: Timestamp


class CallPrice(msgspec.Struct, kw_only=True):
    """tokens x price = cost, and the markup on it."""

    call_id: Uuid
    status: str
    model: str
    resolved_model: str | None
    prompt_tokens: int
    completion_tokens: int
    price_input_usd_per_million: Decimal | None
    price_output_usd_per_million: Decimal | None
    input_cost_usd: Decimal
    output_cost_usd: Decimal
    provider_cost_usd: Decimal
    markup_percentage: Decimal
    client_cost_usd: Decimal


class GrantShareAnswer(msgspec.Struct, kw_only=True):
    grant_id: Uuid
    credits: int


class ChargeAnswer(msgspec.Struct, kw_only=True):
    """Why a job cost just so many credits."""

    position: int
    transaction_id: Uuid
    credits: int
    credits_from_hold: int
    budget_mode: str
    client_cost_usd: Decimal
    tokens: int
    credits_per_dollar: Decimal
    tokens_per_credit: int
    because: str
    from_expiring_grants: list[GrantShareAnswer]
    created_at: Timestamp


class RefundAnswer(msgspec.Struct, kw_only=True):
    position: int
    transaction_id: Uuid
    credits: int
    reason: str | None
    created_at: Timestamp


class JobCredits(msgspec.Struct, kw_only=True):
    """Held = from the hold to the charge + released + still held."""

    credits_held: int
    credits_released: int
    credits_still_held: int
    charges: list[ChargeAnswer]
    refunds: list[RefundAnswer]
    credits_charged: int
    credits_refunded: int


class JobNode(msgspec.Struct, kw_only=True):
    job_id: Uuid
    job_type: str
    status: str
    created_at: Timestamp
    completed_at: Timestamp | None
    total_calls: int
    total_tokens: int
    client_cost_usd: Decimal
    credits: JobCredits
    calls: list[CallPrice]


class Explanation(msgspec.Struct, kw_only=True):
    """allocated = all that was given, used = charges - refunds of all jobs; the newest of both are shown."""

    team_id: str
    balance: Total
    given: list[GivenAnswer]
    total_given: int
    jobs: list[JobNode]
    total_jobs: int
    limit: int
    offset: int


async def explained(connection: Connection, account: Account, page: Page) -> Explanation:
    wanted = {"team_id": account.team_id, "limit": page.limit, "offset": page.offset}
    given = await explain.given(connection, account.team_id, MOST_GIVEN)
    found, total = await jobs.page(connection, wanted)
    job_ids = [job.job_id for job in found]
    credits = await credits_of_jobs(connection, job_ids)
    calls: dict[str, list[CallOfJob]] = defaultdict(list)
    for call in await explain.calls_of(connection, job_ids, MOST_CALLS):
        calls[call.job_id].append(call)
    left = {grant.grant_id: grant.credits_left for grant in account.expiring}
    return Explanation(
        team_id=account.team_id,
        balance=Total(
            credits_allocated=account.allocated,
            credits_used=account.used,
            credits_remaining=account.remaining,
            credits_held=account.held,
        ),
        given=[_given(each, left) for each in given],
        total_given=given[0].total if given else 0,
        jobs=[_job(job, credits[job.job_id], calls[job.job_id]) for job in found],
        total_jobs=total,
        limit=page.limit,
        offset=page.offset,
    )


async def credits_of_jobs(connection: Connection, job_ids: Sequence[str]) -> dict[str, JobCredits]:
    """What became of the credits of each of these jobs."""
    movements: dict[str, list[JobMovement]] = {job_id: [] for job_id in job_ids}
    for movement in await explain.movements_of(connection, job_ids):
        movements[movement.job_id].append(movement)
    positions = [each.position for of_job in movements.values() for each in of_job if _is(each, "deduction")]
    charges = {event.position: decode(event.topic, event.state) for event in await evidence.at(connection, positions)}
    return {job_id: _credits(of_job, charges) for job_id, of_job in movements.items()}


def _credits(movements: Iterable[JobMovement], events: dict[int, Any]) -> JobCredits:
    by_kind: dict[str, list[JobMovement]] = defaultdict(list)
    for movement in movements:
        by_kind[movement.transaction_type].append(movement)
    charges = [_charge(each.position, events[each.position]) for each in by_kind["deduction"]]
    refunds = [
        RefundAnswer(
            position=each.position,
            transaction_id=each.transaction_id,
            credits=each.credits_amount,
            reason=each.reason,
            created_at=ts(each.created_at),
        )
        for each in by_kind["refund"]
    ]
    held, released = (sum(each.credits_amount for each in by_kind[kind]) for kind in ("hold", "release"))
    return JobCredits(
        credits_held=held,
        credits_released=released,
        credits_still_held=held - released - sum(charge.credits_from_hold for charge in charges),
        charges=charges,
        refunds=refunds,
        credits_charged=sum(charge.credits for charge in charges),
        credits_refunded=sum(refund.credits for refund in refunds),
    )


def _is(movement: JobMovement, kind: str) -> bool:
    return movement.transaction_type == kind


def _charge(position: int, event: CreditsCharged) -> ChargeAnswer:
    terms = event.terms
    return ChargeAnswer(
        position=position,
        transaction_id=event.transaction_id,
        credits=event.credits,
        credits_from_hold=event.credits_from_hold,
        budget_mode=terms.mode,
        client_cost_usd=usd6(event.client_cost_usd),
        tokens=event.tokens,
        credits_per_dollar=number(terms.credits_per_dollar),
        tokens_per_credit=terms.tokens_per_credit,
        because=_because(terms, event),
        from_expiring_grants=[
            GrantShareAnswer(grant_id=share.grant_id, credits=share.credits) for share in event.from_grants
        ],
        created_at=ts(event.at),
    )


def _because(terms: Terms, event: CreditsCharged) -> str:
    match terms.mode:
        case "job_based":
            return "a job is 1 credit"
        case "consumption_usd":
            cost, rate = format(event.client_cost_usd, "f"), format(terms.credits_per_dollar, "f")
            return f"{cost} USD x {rate} credits per USD, rounded up, at least 1 = {event.credits}"
        case "consumption_tokens":
            rate = str(terms.tokens_per_credit)
            return f"{event.tokens} tokens / {rate} tokens per credit, rounded up, at least 1 = {event.credits}"


def _given(given: Given, left: dict[str, int]) -> GivenAnswer:
    return GivenAnswer(
        position=given.position,
        transaction_id=given.transaction_id,
        transaction_type=given.transaction_type,
        credits=given.credits_after - given.credits_before,
        reason=given.reason,
        payment_reference=given.payment_reference,
        expires_at=ts_or_none(given.expires_at),
        credits_left=None if given.expires_at is None else left.get(given.transaction_id, 0),
        actor=given.actor,
        created_at=ts(given.created_at),
    )


def _job(job: JobRecord, credits: JobCredits, calls: Iterable[CallRecord]) -> JobNode:
    return JobNode(
        job_id=job.job_id,
        job_type=job.job_type,
        status=job.status,
        created_at=ts(job.created_at),
        completed_at=ts_or_none(job.completed_at),
        total_calls=job.total_calls,
        total_tokens=job.total_tokens,
        client_cost_usd=usd6(job.client_cost_usd),
        credits=credits,
        calls=[_call(call) for call in calls],
    )


def _call(call: CallRecord) -> CallPrice:
    return CallPrice(
        call_id=call.call_id,
        status=call.status,
        model=call.model,
        resolved_model=call.resolved_model,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        price_input_usd_per_million=number_or_none(call.price_input_usd_per_million),
        price_output_usd_per_million=number_or_none(call.price_output_usd_per_million),
        input_cost_usd=usd8(call.input_cost_usd),
        output_cost_usd=usd8(call.output_cost_usd),
        provider_cost_usd=usd8(call.provider_cost_usd),
        markup_percentage=number(call.markup_percentage),
        client_cost_usd=usd8(call.client_cost_usd),
    )
