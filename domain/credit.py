"""A team's credit account.

    opened -> (granted | adjusted | held | hold released | charged | refunded | expired)*

    remaining = allocated - used        allocated = grants + adjustments - expirations,  used = charges - refunds
    available = remaining - held + overdraft

Every movement carries the allocated, remaining and held credits that it left behind: a line of the journal explains
itself, and an auditor's replay has something to disagree with. How much of the hold belongs to which job is the job's
own knowledge; the account needs only the sum, so it stays small however many jobs are open.

Credits that end are spent first, soonest end first, by charges and by corrections alike. So what is left of them is
always part of what remains, and a top-up is never eaten by a grant that ended long before it.
"""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Literal

import msgspec
from msgspec.structs import replace

from domain.errors import AlreadyExists, InsufficientCredits, InvalidValue, NotFound, OutOfBounds
from domain.event import Command, Event, State, derived_id
from domain.pricing import Terms
from domain.team import RefillPeriod, Team, require_team

GrantKind = Literal["allocation", "subscription_payment", "one_time_payment"]

# -- events --------------------------------------------------------------------------------------------------


class AccountOpened(Event):
    team_id: str
    organization_id: str


class CreditMovement(Event):
    """What every movement says: whose credits, how many, and what was left behind it."""

    transaction_id: str
    team_id: str
    organization_id: str
    credits: int
    remaining_credits: int
    held_credits: int
    allocated_credits: int = 0


class CreditsGranted(CreditMovement):
    """`refill_period` is the first day of the period that an automatic refill is for."""

    kind: GrantKind
    source: str | None = None
    reason: str | None = None
    payment_amount_usd: Decimal | None = None
    payment_reference: str | None = None
    expires_at: datetime | None = None
    refill_period: str | None = None


class CreditsHeld(CreditMovement):
    job_id: str


class HoldReleased(CreditMovement):
    job_id: str


class GrantShare(msgspec.Struct, frozen=True):
    """How much of a charge or a correction came out of an expiring grant."""

    grant_id: str
    credits: int


class CreditsCharged(CreditMovement):
    """The one charge of a job: its terms, its exact base, and where the credits came from."""

    job_id: str
    credits_from_hold: int
    terms: Terms
    client_cost_usd: Decimal
    tokens: int
    from_grants: tuple[GrantShare, ...] = ()


class CreditsRefunded(CreditMovement):
    job_id: str
    reason: str | None = None


class CreditsAdjusted(CreditMovement):
    """A correction; `credits` is signed."""

    reason: str | None = None
    reference: str | None = None
    from_grants: tuple[GrantShare, ...] = ()


class CreditsExpired(CreditMovement):
    grant_id: str


CreditEvent = (
    AccountOpened
    | CreditsGranted
    | CreditsHeld
    | HoldReleased
    | CreditsCharged
    | CreditsRefunded
    | CreditsAdjusted
    | CreditsExpired
)

# -- state ---------------------------------------------------------------------------------------------------


class ExpiringGrant(msgspec.Struct, frozen=True):
    grant_id: str
    credits_left: int
    expires_at: datetime


class Payment(msgspec.Struct, frozen=True):
    """What a payment notice brought, kept so that the same notice again gets the same answer."""

    transaction_id: str
    credits: int
    kind: GrantKind
    remaining_credits: int
    payment_amount_usd: Decimal | None
    reason: str | None
    expires_at: datetime | None
    at: datetime
    by: str


class Account(State):
    team_id: str
    organization_id: str
    allocated: int = 0
    used: int = 0
    held: int = 0
    expiring: tuple[ExpiringGrant, ...] = ()
    payments: dict[str, Payment] = {}
    last_refill_period: str | None = None
    last_refill_at: datetime | None = None
    updated_at: datetime

    @property
    def remaining(self) -> int:
        return self.allocated - self.used

    def available(self, overdraft_credits: int | None) -> int | None:
        """What may still be held or charged; None means no limit."""
        return None if overdraft_credits is None else self.remaining - self.held + overdraft_credits


def evolve(account: Account | None, event: CreditEvent) -> Account:
    """What the account holds after this event, whatever the rules say today."""
    if isinstance(event, AccountOpened):
        return Account(team_id=event.team_id, organization_id=event.organization_id, updated_at=event.at)
    assert account is not None, "an account's history starts with AccountOpened"
    match event:
        case CreditsHeld(credits=credits):
            return replace(account, held=account.held + credits, updated_at=event.at)
        case HoldReleased(credits=credits):
            return replace(account, held=account.held - credits, updated_at=event.at)
        case CreditsCharged(credits=credits):
            return replace(
                account,
                used=account.used + credits,
                held=account.held - event.credits_from_hold,
                expiring=_spend(account.expiring, event.from_grants),
                updated_at=event.at,
            )
        case CreditsGranted(credits=credits):
            return _granted(account, event)
        case CreditsRefunded(credits=credits):
            return replace(account, used=account.used - credits, updated_at=event.at)
        case CreditsAdjusted(credits=credits):
            return replace(
                account,
                allocated=account.allocated + credits,
                expiring=_spend(account.expiring, event.from_grants),
                updated_at=event.at,
            )
        case CreditsExpired(credits=credits, grant_id=grant_id):
            return replace(
                account,
                allocated=account.allocated - credits,
                expiring=_spend(account.expiring, (GrantShare(grant_id, credits),)),
                updated_at=event.at,
            )


def _granted(account: Account, event: CreditsGranted) -> Account:
    changed = replace(account, allocated=account.allocated + event.credits, updated_at=event.at)
    left = min(event.credits, changed.remaining)  # what pays an overdraft back is spent at once
    if event.expires_at is not None and left > 0:
        grant = ExpiringGrant(event.transaction_id, left, event.expires_at)
        soonest_first = sorted((*account.expiring, grant), key=lambda each: (each.expires_at, each.grant_id))
        changed = replace(changed, expiring=tuple(soonest_first))
    if event.payment_reference is not None:
        payment = Payment(
            transaction_id=event.transaction_id,
            credits=event.credits,
            kind=event.kind,
            remaining_credits=event.remaining_credits,
            payment_amount_usd=event.payment_amount_usd,
            reason=event.reason,
            expires_at=event.expires_at,
            at=event.at,
            by=event.by,
        )
        changed = replace(changed, payments={**account.payments, event.payment_reference: payment})
    if event.refill_period is not None:
        changed = replace(changed, last_refill_period=event.refill_period)
    if event.refill_period is not None or event.kind == "subscription_payment":
        changed = replace(changed, last_refill_at=event.at)
    return changed


def _spend(expiring: tuple[ExpiringGrant, ...], shares: tuple[GrantShare, ...]) -> tuple[ExpiringGrant, ...]:
    if not shares:
        return expiring
    spent = {share.grant_id: share.credits for share in shares}
    left = (
        ExpiringGrant(grant.grant_id, grant.credits_left - spent.get(grant.grant_id, 0), grant.expires_at)
        for grant in expiring
    )
    return tuple(grant for grant in left if grant.credits_left > 0)


# -- commands ------------------------------------------------------------------------------------------------


class GrantCredits(Command):
    """`refill_period` is the first day (ISO date) of the period that this grant refills: each is refilled once."""

    transaction_id: str
    credits: int
    kind: GrantKind = "allocation"
    source: str | None = None
    reason: str | None = None
    payment_amount_usd: Decimal | None = None
    payment_reference: str | None = None
    expires_at: datetime | None = None
    refill_period: str | None = None


class RefillCredits(Command):
    transaction_id: str


class AdjustCredits(Command):
    """`credits` is signed and is added to what was allocated."""

    transaction_id: str
    credits: int
    reason: str | None = None
    reference: str | None = None


class SetAllocation(Command):
    """Books the difference to `allocated_credits` as an adjustment; spent credits never come back by it."""

    transaction_id: str
    allocated_credits: int
    reason: str | None = None


class ExpireCredits(Command):
    pass


# -- decisions -----------------------------------------------------------------------------------------------


def open_account(account: Account | None, at: datetime, team_id: str, organization_id: str) -> list[Event]:
    if account is not None:
        raise AlreadyExists("team")
    return [AccountOpened(at=at, team_id=team_id, organization_id=organization_id)]


def grant_credits(account: Account | None, command: GrantCredits) -> list[Event]:
    """A payment notice or a refill that was already booked is answered, not booked again."""
    account = require_account(account)
    if command.credits <= 0:
        raise InvalidValue("credits")
    if command.payment_reference is not None and command.payment_reference in account.payments:
        return []
    if command.refill_period is not None and command.refill_period <= (account.last_refill_period or ""):
        return []
    if command.expires_at is not None and command.expires_at <= command.at:
        raise OutOfBounds("expires_at", "expected a moment that is still to come")
    return [
        CreditsGranted(
            at=command.at,
            transaction_id=command.transaction_id,
            team_id=account.team_id,
            organization_id=account.organization_id,
            credits=command.credits,
            remaining_credits=account.remaining + command.credits,
            held_credits=account.held,
            allocated_credits=account.allocated + command.credits,
            kind=command.kind,
            source=command.source,
            reason=command.reason,
            payment_amount_usd=command.payment_amount_usd,
            payment_reference=command.payment_reference,
            expires_at=command.expires_at,
            refill_period=command.refill_period,
        )
    ]


def grant_to_team(account: Account | None, team: Team | None, command: GrantCredits) -> tuple[list[Event], list[Event]]:
    """The same for a team that can use them; a notice that was booked before the team went is answered all the same."""
    granted = grant_credits(account, command)
    if granted:
        require_team(team)
    return granted, []


def refill_credits(
    account: Account | None, team: Team | None, command: RefillCredits
) -> tuple[list[Event], list[Event]]:
    """Grants what auto-refill promised for the current period, once, however many processes ask.

    Periods that began before it was switched on are not refilled, and periods slept through are not made up for.
    """
    refill = require_team(team).auto_refill
    if not refill.enabled or refill.refill_credits is None or refill.refill_period is None or refill.set_at is None:
        return [], []
    first_day = first_day_of(refill.refill_period, command.at)
    if datetime.combine(first_day, time(), UTC) < refill.set_at:
        return [], []
    grant = GrantCredits(
        at=command.at,
        by=command.by,
        request=command.request,
        transaction_id=command.transaction_id,
        credits=refill.refill_credits,
        source="refill",
        reason=f"{refill.refill_period} refill",
        refill_period=first_day.isoformat(),
    )
    return grant_credits(account, grant), []


def adjust_credits(account: Account | None, command: AdjustCredits) -> list[Event]:
    account = require_account(account)
    if command.credits == 0:
        return []
    return [
        CreditsAdjusted(
            at=command.at,
            transaction_id=command.transaction_id,
            team_id=account.team_id,
            organization_id=account.organization_id,
            credits=command.credits,
            remaining_credits=account.remaining + command.credits,
            held_credits=account.held,
            allocated_credits=account.allocated + command.credits,
            reason=command.reason,
            reference=command.reference,
            from_grants=_shares(account.expiring, -command.credits),
        )
    ]


def set_allocation(account: Account | None, command: SetAllocation) -> list[Event]:
    account = require_account(account)
    difference = AdjustCredits(
        at=command.at,
        by=command.by,
        request=command.request,
        transaction_id=command.transaction_id,
        credits=command.allocated_credits - account.allocated,
        reason=command.reason,
    )
    return adjust_credits(account, difference)


def expire_credits(account: Account | None, command: ExpireCredits) -> list[Event]:
    """What is unspent of grants past their end, and not set aside for an open job, is taken back.

    What open jobs hold counts as held from the credits that end soonest, since it will be charged to them.
    """
    account = require_account(account)
    held, remaining, allocated = account.held, account.remaining, account.allocated
    events: list[Event] = []
    for grant in account.expiring:
        kept = min(grant.credits_left, held)
        held -= kept
        credits = grant.credits_left - kept
        if grant.expires_at > command.at or not credits:
            continue
        remaining -= credits
        allocated -= credits
        events.append(
            CreditsExpired(
                at=command.at,
                transaction_id=derived_id(grant.grant_id, f"expiration-{grant.credits_left}"),
                team_id=account.team_id,
                organization_id=account.organization_id,
                credits=credits,
                remaining_credits=remaining,
                held_credits=account.held,
                allocated_credits=allocated,
                grant_id=grant.grant_id,
            )
        )
    return events


# -- movements that belong to a job: decided with the job, in charging.py ------------------------------------


def hold(
    account: Account,
    *,
    at: datetime,
    transaction_id: str,
    job_id: str,
    credits: int,
    overdraft_credits: int | None,
) -> list[Event]:
    """Sets credits aside for a job, or refuses: the check and the hold are one step."""
    if credits <= 0:
        return []
    require_available(account, credits, overdraft_credits)
    return [
        CreditsHeld(
            at=at,
            transaction_id=transaction_id,
            team_id=account.team_id,
            organization_id=account.organization_id,
            credits=credits,
            remaining_credits=account.remaining,
            held_credits=account.held + credits,
            allocated_credits=account.allocated,
            job_id=job_id,
        )
    ]


def settle(
    account: Account,
    *,
    at: datetime,
    transaction_id: str,
    job_id: str,
    credits: int,
    held_credits: int,
    terms: Terms,
    client_cost_usd: Decimal,
    tokens: int,
) -> list[Event]:
    """Charges a job, out of its hold first, and releases what is left of the hold."""
    from_hold = min(credits, held_credits)
    charged = CreditsCharged(
        at=at,
        transaction_id=transaction_id,
        team_id=account.team_id,
        organization_id=account.organization_id,
        credits=credits,
        remaining_credits=account.remaining - credits,
        held_credits=account.held - from_hold,
        allocated_credits=account.allocated,
        job_id=job_id,
        credits_from_hold=from_hold,
        terms=terms,
        client_cost_usd=client_cost_usd,
        tokens=tokens,
        from_grants=_shares(account.expiring, credits),
    )
    charged_account = evolve(account, charged)
    rest = held_credits - from_hold
    return [charged, *release(charged_account, at=at, charge_id=transaction_id, job_id=job_id, credits=rest)]


def release(account: Account, *, at: datetime, charge_id: str, job_id: str, credits: int) -> list[Event]:
    """Gives a job's hold back to the team."""
    if credits <= 0:
        return []
    return [
        HoldReleased(
            at=at,
            transaction_id=derived_id(charge_id, "release"),
            team_id=account.team_id,
            organization_id=account.organization_id,
            credits=credits,
            remaining_credits=account.remaining,
            held_credits=account.held - credits,
            allocated_credits=account.allocated,
            job_id=job_id,
        )
    ]


def refund(
    account: Account, *, at: datetime, transaction_id: str, job_id: str, credits: int, reason: str | None
) -> list[Event]:
    return [
        CreditsRefunded(
            at=at,
            transaction_id=transaction_id,
            team_id=account.team_id,
            organization_id=account.organization_id,
            credits=credits,
            remaining_credits=account.remaining + credits,
            held_credits=account.held,
            allocated_credits=account.allocated,
            job_id=job_id,
            reason=reason,
        )
    ]


def _shares(expiring: tuple[ExpiringGrant, ...], credits: int) -> tuple[GrantShare, ...]:
    """Credits that end soonest are spent first."""
    shares: list[GrantShare] = []
    for grant in expiring:
        if credits <= 0:
            break
        share = min(credits, grant.credits_left)
        shares.append(GrantShare(grant.grant_id, share))
        credits -= share
    return tuple(shares)


def first_day_of(period: RefillPeriod, at: datetime) -> date:
    """When the day, ISO week or month of this moment began, in UTC."""
    today = at.astimezone(UTC).date()
    match period:
        case "daily":
            return today
        case "weekly":
            return today - timedelta(days=today.weekday())
        case "monthly":
            return today.replace(day=1)


def require_account(account: Account | None) -> Account:
    if account is None:
        raise NotFound("team")
    return account


def require_available(account: Account, credits: int, overdraft_credits: int | None) -> None:
    available = account.available(overdraft_credits)
    if available is not None and credits > available:
        raise InsufficientCredits(credits_needed=credits, credits_available=available)
