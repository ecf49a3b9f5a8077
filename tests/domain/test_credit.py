"""The credit account: what comes in, what ends, and what each line of it says."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from domain.charging import complete_job, refund_job, start_call
from domain.credit import (
    Account,
    AdjustCredits,
    CreditsAdjusted,
    CreditsCharged,
    CreditsExpired,
    CreditsGranted,
    ExpireCredits,
    GrantCredits,
    GrantShare,
    RefillCredits,
    SetAllocation,
    adjust_credits,
    expire_credits,
    grant_credits,
    grant_to_team,
    refill_credits,
    set_allocation,
)
from domain.errors import InvalidValue, NotFound, OutOfBounds
from domain.event import derived_id
from domain.job import Job, finish_call
from domain.team import AutoRefillSet, TeamDeleted
from tests.domain.scene import (
    CREATED,
    GRANT,
    NOON,
    OPENED,
    RESEARCH,
    SECOND_GRANT,
    TEAM,
    WHO,
    WHOSE,
    after,
    alias,
    an_id,
    complete,
    finish,
    granted,
    house,
    refund,
    start,
)
from tests.spec import Story, given

TOMORROW, IN_A_WEEK = after(days=1), after(days=7)
DOLLAR = alias("dollar", "1", "0", number=42)


def grant(credits: int, transaction_id: str = GRANT, **more: Any) -> GrantCredits:
    return GrantCredits(**WHO, transaction_id=transaction_id, credits=credits, **more)


def adjust(credits: int, **more: Any) -> AdjustCredits:
    return AdjustCredits(**WHO, transaction_id=an_id(25), credits=credits, **more)


def allocate(credits: int) -> SetAllocation:
    return SetAllocation(**WHO, transaction_id=an_id(25), allocated_credits=credits)


def sweep(at: datetime = TOMORROW) -> ExpireCredits:
    return ExpireCredits(**{**WHO, "at": at})


def refill(at: datetime = NOON, number: int = 26) -> RefillCredits:
    return RefillCredits(**{**WHO, "at": at}, transaction_id=an_id(number))


def spent(credits: int, story: Story) -> Story:
    """The story after a job that was charged just so much."""
    story = story.when(start_call, start(model="dollar", prompt_tokens=credits * 100_000, output_tokens=0))
    story = story.when(finish_call, finish(prompt_tokens=credits * 100_000, completion_tokens=0))
    return story.when(complete_job, complete())


# -- grants --------------------------------------------------------------------------------------------------


def test_a_grant_says_what_it_left_behind() -> None:
    story = given(OPENED, granted(5)).when(grant_credits, grant(10, source="purchase", reason="invoice 7"))
    story.then(
        CreditsGranted(
            at=NOON,
            transaction_id=GRANT,
            **WHOSE,
            credits=10,
            remaining_credits=15,
            held_credits=0,
            allocated_credits=15,
            kind="allocation",
            source="purchase",
            reason="invoice 7",
        )
    ).leaving(Account, allocated=15, used=0, remaining=15)


@pytest.mark.parametrize("credits", [0, -1])
def test_a_grant_of_nothing_is_no_grant(credits: int) -> None:
    given(OPENED).when(grant_credits, grant(credits)).then_refused(InvalidValue, field="credits")


@pytest.mark.parametrize("ends", [NOON, after(hours=-1)])
def test_a_grant_that_has_ended_already_is_refused(ends: datetime) -> None:
    said = "expected a moment that is still to come"
    given(OPENED).when(grant_credits, grant(1, expires_at=ends)).then_refused(
        OutOfBounds, field="expires_at", message=said
    )


def test_credits_for_an_unknown_team_are_refused_and_create_nothing() -> None:
    given().when(grant_credits, grant(1)).then_refused(NotFound, resource="team")
    given().when(adjust_credits, adjust(1)).then_refused(NotFound, resource="team")
    given().when(set_allocation, allocate(1)).then_refused(NotFound, resource="team")
    given().when(expire_credits, sweep()).then_refused(NotFound, resource="team")
    given(OPENED).when(refill_credits, refill()).then_refused(NotFound, resource="team")


def test_a_payment_notice_delivered_twice_adds_once_and_is_answered_the_same() -> None:
    payment: dict[str, Any] = {
        "kind": "one_time_payment",
        "payment_reference": "pay-1",
        "payment_amount_usd": Decimal("9.99"),
    }
    story = given(OPENED).when(grant_credits, grant(10, **payment)).leaving(Account, remaining=10)
    story = story.when(grant_credits, grant(99, SECOND_GRANT, **payment)).then_nothing()
    kept = story.the(Account).payments["pay-1"]
    assert (GRANT, 10, 10, Decimal("9.99")) == (
        kept.transaction_id,
        kept.credits,
        kept.remaining_credits,
        kept.payment_amount_usd,
    )


def test_a_deleted_team_gets_nothing_more_but_is_still_told_what_it_got() -> None:
    payment: dict[str, Any] = {"kind": "one_time_payment", "payment_reference": "pay-1"}
    story = given(TEAM, OPENED).when(grant_to_team, grant(10, **payment)).leaving(Account, remaining=10)
    story = story.meanwhile(TeamDeleted(at=NOON, team_id=RESEARCH))
    story.when(grant_to_team, grant(10, **payment)).then_nothing()
    story.when(grant_to_team, grant(10)).then_refused(NotFound, resource="team")


def test_payments_without_a_reference_are_all_different() -> None:
    story = given(OPENED).when(grant_credits, grant(10)).when(grant_credits, grant(10, SECOND_GRANT))
    story.leaving(Account, remaining=20, payments={})


def test_a_subscription_payment_is_a_refill_and_a_one_time_payment_is_none() -> None:
    given(OPENED).when(grant_credits, grant(1, kind="subscription_payment")).leaving(Account, last_refill_at=NOON)
    given(OPENED).when(grant_credits, grant(1, kind="one_time_payment")).leaving(Account, last_refill_at=None)


# -- adjustments ---------------------------------------------------------------------------------------------


def test_an_adjustment_is_signed_and_moves_what_was_allocated() -> None:
    story = given(OPENED, granted(10)).when(adjust_credits, adjust(-4, reason="typo", reference="ticket 12"))
    story.then(
        CreditsAdjusted(
            at=NOON,
            transaction_id=an_id(25),
            **WHOSE,
            credits=-4,
            remaining_credits=6,
            held_credits=0,
            allocated_credits=6,
            reason="typo",
            reference="ticket 12",
        )
    ).leaving(Account, allocated=6, used=0)


def test_an_adjustment_by_nothing_is_nothing() -> None:
    given(OPENED).when(adjust_credits, adjust(0)).then_nothing()


def test_a_changed_allocation_books_the_difference_and_restores_no_spent_credits() -> None:
    story = spent(4, house(CREATED, DOLLAR, mode="consumption_usd")).leaving(Account, remaining=6)
    story = story.when(set_allocation, allocate(12)).leaving(Account, allocated=12, used=4, remaining=8)
    story.when(set_allocation, allocate(12)).then_nothing()
    story.when(set_allocation, allocate(0)).leaving(Account, allocated=0, used=4, remaining=-4)


# -- refills -------------------------------------------------------------------------------------------------


def refilled(period: str, since: datetime = datetime(2026, 1, 1, tzinfo=UTC), *, enabled: bool = True) -> Story:
    terms: dict[str, Any] = {"enabled": enabled, "refill_credits": 50, "refill_period": period}
    return given(TEAM, AutoRefillSet(at=since, team_id=RESEARCH, **terms), OPENED)


@pytest.mark.parametrize(
    "period,first_day", [("daily", "2026-03-04"), ("weekly", "2026-03-02"), ("monthly", "2026-03-01")]
)
def test_a_refill_is_for_the_day_week_or_month_and_happens_once(period: str, first_day: str) -> None:
    story = refilled(period).when(refill_credits, refill())
    story.then(
        CreditsGranted(
            at=NOON,
            transaction_id=an_id(26),
            **WHOSE,
            credits=50,
            remaining_credits=50,
            held_credits=0,
            allocated_credits=50,
            kind="allocation",
            source="refill",
            reason=f"{period} refill",
            refill_period=first_day,
        )
    ).leaving(Account, last_refill_at=NOON)
    story.when(refill_credits, refill(after(minutes=1), 27)).then_nothing()


def test_every_period_is_refilled_and_those_slept_through_are_not_made_up_for() -> None:
    story = refilled("daily").when(refill_credits, refill())
    story = story.when(refill_credits, refill(after(days=3), 27)).leaving(Account, remaining=100)
    story.when(refill_credits, refill(after(days=4), 28)).leaving(Account, remaining=150)


def test_a_process_whose_clock_is_behind_does_not_refill_yesterday() -> None:
    story = refilled("daily").when(refill_credits, refill())
    story.when(refill_credits, refill(after(days=-1), 27)).then_nothing()


def test_the_first_refill_comes_with_the_first_period_that_begins_after_it_was_switched_on() -> None:
    story = refilled("daily", since=after(hours=-1)).when(refill_credits, refill()).then_nothing()
    midnight = datetime(2026, 3, 5, tzinfo=UTC)
    story.when(refill_credits, refill(midnight)).leaving(Account, remaining=50)


def test_a_changed_amount_does_not_postpone_a_refill_but_a_changed_period_does() -> None:
    more = AutoRefillSet(at=after(hours=-1), team_id=RESEARCH, enabled=True, refill_credits=70, refill_period="daily")
    refilled("daily").meanwhile(more).when(refill_credits, refill()).leaving(Account, remaining=70)
    refilled("weekly").meanwhile(more).when(refill_credits, refill()).then_nothing()


def test_without_auto_refill_nothing_is_refilled() -> None:
    given(TEAM, OPENED).when(refill_credits, refill()).then_nothing()
    refilled("daily", enabled=False).when(refill_credits, refill()).then_nothing()


def test_a_period_that_was_granted_is_not_granted_again() -> None:
    story = given(OPENED).when(grant_credits, grant(5, refill_period="2026-03-04"))
    story = story.when(grant_credits, grant(5, SECOND_GRANT, refill_period="2026-03-04")).then_nothing()
    story.when(grant_credits, grant(5, SECOND_GRANT, refill_period="2026-03-03")).then_nothing()


# -- credits that end ----------------------------------------------------------------------------------------


def expired(credits: int, left: int, *, remaining: int, held: int = 0, used: int = 0) -> CreditsExpired:
    return CreditsExpired(
        at=TOMORROW,
        transaction_id=derived_id(GRANT, f"expiration-{left}"),
        **WHOSE,
        credits=credits,
        remaining_credits=remaining,
        held_credits=held,
        allocated_credits=remaining + used,
        grant_id=GRANT,
    )


def ending(*, forever: int = 0, tomorrow: int = 0, in_a_week: int = 0, **terms: Any) -> Story:
    """A team with a job, and credits that end at different times."""
    story = house(CREATED, DOLLAR, credits=forever, mode="consumption_usd", **terms)
    if in_a_week:
        story = story.when(grant_credits, grant(in_a_week, SECOND_GRANT, expires_at=IN_A_WEEK))
    if tomorrow:
        story = story.when(grant_credits, grant(tomorrow, GRANT, expires_at=TOMORROW))
    return story


def shares(story: Story) -> list[tuple[GrantShare, ...]]:
    return [event.from_grants for event in story.decided if isinstance(event, CreditsCharged | CreditsAdjusted)]


def test_credits_that_end_soonest_are_spent_first() -> None:
    story = ending(forever=10, tomorrow=3, in_a_week=4)
    assert [(GrantShare(GRANT, 2),)] == shares(spent(2, story))
    assert [(GrantShare(GRANT, 3), GrantShare(SECOND_GRANT, 2))] == shares(spent(5, story))
    assert [(GrantShare(GRANT, 3), GrantShare(SECOND_GRANT, 4))] == shares(spent(9, story))


def test_what_was_not_spent_ends_and_what_does_not_end_stays() -> None:
    story = spent(2, ending(forever=10, tomorrow=3, in_a_week=4)).when(expire_credits, sweep())
    story.then(expired(1, left=1, remaining=14, used=2)).leaving(Account, remaining=14, allocated=16, used=2)
    story.when(expire_credits, sweep()).then_nothing()
    story.when(expire_credits, sweep(IN_A_WEEK)).leaving(Account, remaining=10, expiring=())


def test_nothing_ends_before_its_time() -> None:
    ending(tomorrow=3).when(expire_credits, sweep(after(hours=23))).then_nothing()


def test_several_grants_may_end_in_one_sweep() -> None:
    story = ending(forever=1, tomorrow=3, in_a_week=4).when(expire_credits, sweep(IN_A_WEEK))
    assert [(3, 5), (4, 1)] == [
        (event.credits, event.remaining_credits) for event in story.decided if isinstance(event, CreditsExpired)
    ]
    story.leaving(Account, remaining=1, expiring=())


def test_what_an_open_job_holds_does_not_end_under_it() -> None:
    story = ending(forever=10, tomorrow=5)
    story = story.when(start_call, start(model="dollar", prompt_tokens=300_000, output_tokens=0))
    story = story.when(expire_credits, sweep()).then(expired(2, left=5, remaining=13, held=3))
    paid = story.when(finish_call, finish(prompt_tokens=200_000, completion_tokens=0)).when(complete_job, complete())
    paid = paid.leaving(Account, remaining=11, held=0)
    assert [(GrantShare(GRANT, 2),)] == shares(paid)
    paid.when(expire_credits, sweep()).then(expired(1, left=1, remaining=10, used=2)).leaving(Account, expiring=())


def test_what_is_held_counts_against_what_ends_soonest() -> None:
    story = ending(tomorrow=2, in_a_week=5)
    story = story.when(start_call, start(model="dollar", prompt_tokens=400_000, output_tokens=0))
    story = story.when(expire_credits, sweep()).then_nothing()
    story = story.when(expire_credits, sweep(IN_A_WEEK))
    assert [3] == [event.credits for event in story.decided if isinstance(event, CreditsExpired)]
    story.leaving(Account, remaining=4, held=4)


def test_what_pays_an_overdraft_back_does_not_end_again() -> None:
    story = spent(4, ending(overdraft_credits=10)).leaving(Account, remaining=-4)
    story = story.when(grant_credits, grant(10, expires_at=TOMORROW)).leaving(Account, remaining=6)
    story = story.when(grant_credits, grant(100, SECOND_GRANT)).when(expire_credits, sweep())
    story.then(expired(6, left=6, remaining=100, used=4)).leaving(Account, expiring=())


def test_a_grant_that_only_pays_an_overdraft_back_has_nothing_left_to_end() -> None:
    story = spent(4, ending(overdraft_credits=10)).when(grant_credits, grant(3, expires_at=TOMORROW))
    story.leaving(Account, remaining=-1, expiring=())


def test_a_correction_takes_what_ends_soonest_and_a_later_grant_does_not_pay_for_it() -> None:
    story = ending(forever=1, tomorrow=5).when(adjust_credits, adjust(-4))
    assert [(GrantShare(GRANT, 4),)] == shares(story)
    story = story.when(grant_credits, grant(100, SECOND_GRANT)).when(expire_credits, sweep())
    story.then(expired(1, left=1, remaining=101))


def test_refunded_credits_do_not_end() -> None:
    story = spent(3, ending(tomorrow=3)).when(refund_job, refund()).leaving(Job, credits_refunded=3)
    story.when(expire_credits, sweep()).then_nothing().leaving(Account, remaining=3)


def test_an_account_without_a_limit_says_so() -> None:
    account = given(OPENED, granted(5)).the(Account)
    assert account.available(None) is None
    assert 5 == account.available(0)
    assert 12 == account.available(7)
