"""The moments, names and things that the tests of the domain speak of."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any

from msgspec.structs import replace

from domain.catalog import (
    AccessGroupCreated,
    AliasCreated,
    AliasTerms,
    GroupMember,
    ModelGroupCreated,
    Target,
)
from domain.charging import CancelJob, CompleteJob, ExpireJob, FailJob, RefundJob, StartCall
from domain.credit import AccountOpened, CreditsGranted
from domain.event import Event
from domain.job import CallError, CallStarted, CreateJob, FailCall, FinishCall, JobCreated
from domain.organization import OrganizationCreated
from domain.pricing import Price, Terms
from domain.team import Budget, BudgetSet, ModelAccessAssigned, TeamCreated
from tests.spec import Story, given

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday
ACME, RESEARCH = "acme", "research"


def an_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def eight_decimals(dollars: Fraction) -> Fraction:
    """Rounded half up, as school teaches it."""
    return Fraction(floor(dollars * 10**8 + Fraction(1, 2)), 10**8)


def after(**duration: float) -> datetime:
    return NOON + timedelta(**duration)


JOB, OTHER_JOB = an_id(1), an_id(2)
CALL, SECOND_CALL, THIRD_CALL = an_id(11), an_id(12), an_id(13)
CHARGE, GRANT, SECOND_GRANT, REFUND = an_id(21), an_id(22), an_id(23), an_id(24)
KEY, NEW_KEY = an_id(31), an_id(32)
WHO: dict[str, Any] = {"at": NOON, "by": KEY, "request": "request-1"}
WHOSE: dict[str, Any] = {"team_id": RESEARCH, "organization_id": ACME}

# -- what happened -------------------------------------------------------------------------------------------

ORGANIZATION = OrganizationCreated(at=NOON, organization_id=ACME, name="Acme", metadata={})
TEAM = TeamCreated(at=NOON, **WHOSE, metadata={})
OPENED = AccountOpened(at=NOON, **WHOSE)
CREATED = JobCreated(at=NOON, job_id=JOB, **WHOSE, job_type="analysis", metadata={})


def granted(credits: int, grant_id: str = GRANT, **more: Any) -> CreditsGranted:
    return CreditsGranted(
        at=NOON,
        transaction_id=grant_id,
        **WHOSE,
        credits=credits,
        remaining_credits=credits,
        held_credits=0,
        **{"kind": "allocation", **more},
    )


def budget(**terms: Any) -> BudgetSet:
    return BudgetSet(at=NOON, team_id=RESEARCH, budget=Budget(**terms))


def alias(
    name: str = "chat", price_in: str | None = "2.50", price_out: str | None = "10", *, number: int = 41, **more: Any
) -> AliasCreated:
    terms = AliasTerms(
        provider="openai",
        actual_model=f"{name}-model",
        display_name=name,
        pricing_input=None if price_in is None else Decimal(price_in),
        pricing_output=None if price_out is None else Decimal(price_out),
        **more,
    )
    return AliasCreated(at=NOON, alias_id=an_id(number), model_alias=name, terms=terms)


def access_group(name: str, *aliases: str) -> AccessGroupCreated:
    return AccessGroupCreated(at=NOON, group_name=name, display_name=name, description=None, model_aliases=aliases)


def member(name: str, priority: int = 0, price: str | None = None, **more: Any) -> GroupMember:
    """A member of a model group; with a price it is a provider model, else an alias or nothing."""
    list_price = None if price is None else Price(Decimal(price), Decimal(price))
    return GroupMember(
        member_id=an_id(60), model_name=name, priority=priority, created_at=NOON, list_price=list_price, **more
    )


def model_group(name: str, *members: GroupMember) -> ModelGroupCreated:
    return ModelGroupCreated(
        at=NOON, group_id=an_id(50), group_name=name, display_name=name, description=None, members=members
    )


def assigned(*, model_groups: tuple[str, ...] = (), access_groups: tuple[str, ...] = ()) -> ModelAccessAssigned:
    return ModelAccessAssigned(at=NOON, team_id=RESEARCH, model_groups=model_groups, access_groups=access_groups)


TERMS = Budget().terms
BY_DOLLARS = replace(TERMS, mode="consumption_usd")
CHAT = Target(
    name="chat", alias="chat", provider="openai", model="chat-model", price=Price(Decimal("2.50"), Decimal(10))
)


def started(
    call_id: str = CALL, *, held_credits: int = 1, terms: Terms | None = TERMS, targets: tuple[Target, ...] = (CHAT,)
) -> CallStarted:
    return CallStarted(
        at=NOON,
        job_id=JOB,
        **WHOSE,
        call_id=call_id,
        model="chat",
        targets=targets,
        purpose=None,
        streaming=False,
        estimated_tokens=1100,
        estimated_cost_usd=Decimal("0.01025"),
        held_credits=held_credits,
        terms=terms,
        deadline=after(minutes=3),
        request_sha256="5e2a",
        request_bytes=64,
    )


# -- what is wished ------------------------------------------------------------------------------------------


def create(job_id: str = JOB, **more: Any) -> CreateJob:
    return CreateJob(**{**WHO, "job_id": job_id, "team_id": RESEARCH, "job_type": "analysis", "metadata": {}, **more})


def start(call_id: str = CALL, *, prompt_tokens: int = 100, output_tokens: int = 1000, **more: Any) -> StartCall:
    rest: dict[str, Any] = {
        **WHO,
        "model": "chat",
        "purpose": None,
        "streaming": False,
        "open_aliases": True,
        "longest_attempt": timedelta(minutes=2),
        "request_sha256": "5e2a",
        "request_bytes": 64,
        "metadata": {},
    }
    return StartCall(call_id=call_id, prompt_tokens=prompt_tokens, output_tokens=output_tokens, **{**rest, **more})


def finish(call_id: str = CALL, *, prompt_tokens: int = 100, completion_tokens: int = 200, **more: Any) -> FinishCall:
    rest: dict[str, Any] = {**WHO, "target": 0, "usage_estimated": False, "latency_ms": 800, "finish_reason": "stop"}
    return FinishCall(
        call_id=call_id, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, **{**rest, **more}
    )


def fail(call_id: str = CALL, error: CallError = "provider_error", **more: Any) -> FailCall:
    return FailCall(**{**WHO, "call_id": call_id, "error": error, **more})


def reject(call_id: str = CALL) -> FailCall:
    return fail(call_id, "request_rejected", http_status=400)


def complete(**more: Any) -> CompleteJob:
    return CompleteJob(**{**WHO, "charge_id": CHARGE, "metadata": {}, **more})


def fail_it(**more: Any) -> FailJob:
    return FailJob(**{**WHO, "charge_id": CHARGE, "metadata": {}, **more})


def cancel(**more: Any) -> CancelJob:
    return CancelJob(**{**WHO, "charge_id": CHARGE, **more})


def expire(at: datetime = NOON + timedelta(hours=24)) -> ExpireJob:
    return ExpireJob(**{**WHO, "at": at}, charge_id=CHARGE, idle=timedelta(hours=24))


def refund(credits: int | None = None, **more: Any) -> RefundJob:
    return RefundJob(**WHO, transaction_id=REFUND, credits=credits, **more)


# -- where stories begin -------------------------------------------------------------------------------------


def house(*events: Event, credits: int = 10, **terms: Any) -> Story:
    """A team with credits and an alias `chat`, charged by these terms."""
    account = (OPENED, granted(credits)) if credits else (OPENED,)
    return given(ORGANIZATION, TEAM, budget(**terms), alias(), *account, *events)
