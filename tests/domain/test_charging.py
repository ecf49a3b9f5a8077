"""Jobs and credits together: what is set aside, what is charged, and what is given back."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from domain.charging import (
    cancel_job,
    complete_job,
    expire_job,
    fail_job,
    refund_job,
    start_call,
)
from domain.credit import (
    Account,
    AdjustCredits,
    CreditsCharged,
    CreditsHeld,
    CreditsRefunded,
    HoldReleased,
    adjust_credits,
)
from domain.errors import (
    CallsInProgress,
    InsufficientCredits,
    JobClosed,
    ModelNotAllowed,
    NotCharged,
    NotFound,
    OutOfBounds,
    PausedOrganization,
    PausedTeam,
    RefundExceedsCharge,
    Refusal,
    SuspendedOrganization,
    SuspendedTeam,
)
from domain.event import Command, Event, derived_id
from domain.job import (
    ChargeRefunded,
    Job,
    JobCancelled,
    JobCompleted,
    JobExpired,
    JobFailed,
    MetadataMerged,
    create_job,
    fail_call,
    finish_call,
)
from domain.organization import OrganizationPaused, OrganizationSuspended
from domain.pricing import Terms
from domain.team import BudgetSet, ChangeBudget, TeamDeleted, TeamPaused, TeamSuspended, change_budget
from tests.domain.scene import (
    ACME,
    BY_DOLLARS,
    CALL,
    CHARGE,
    CREATED,
    JOB,
    NOON,
    OTHER_JOB,
    REFUND,
    RESEARCH,
    SECOND_CALL,
    TERMS,
    THIRD_CALL,
    WHO,
    WHOSE,
    after,
    alias,
    an_id,
    assigned,
    budget,
    cancel,
    complete,
    create,
    expire,
    fail,
    fail_it,
    finish,
    house,
    member,
    model_group,
    refund,
    reject,
    start,
    started,
)
from tests.spec import Decision, Story

DOLLAR = alias("dollar", "1", "0", number=42)  # a million prompt tokens cost one dollar
FREE = alias("free", "0", "0", number=43)


def held(credits: int, *, held_credits: int, remaining: int = 10, call_id: str = CALL) -> CreditsHeld:
    return CreditsHeld(
        at=NOON,
        transaction_id=derived_id(call_id, "hold"),
        **WHOSE,
        credits=credits,
        remaining_credits=remaining,
        held_credits=held_credits,
        allocated_credits=10,
        job_id=JOB,
    )


def released(credits: int, *, held_credits: int = 0, remaining: int = 10, **more: Any) -> HoldReleased:
    return HoldReleased(
        **{"at": NOON, **more},
        transaction_id=derived_id(CHARGE, "release"),
        **WHOSE,
        credits=credits,
        remaining_credits=remaining,
        held_credits=held_credits,
        allocated_credits=10,
        job_id=JOB,
    )


def charged(
    credits: int, *, from_hold: int, dollars: str, tokens: int, terms: Terms = TERMS, remaining: int, held: int = 0
) -> CreditsCharged:
    return CreditsCharged(
        at=NOON,
        transaction_id=CHARGE,
        **WHOSE,
        credits=credits,
        remaining_credits=remaining,
        held_credits=held,
        allocated_credits=10,
        job_id=JOB,
        credits_from_hold=from_hold,
        terms=terms,
        client_cost_usd=Decimal(dollars),
        tokens=tokens,
    )


def end(charged: int = 0, *, remaining: int = 10, calls: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "at": NOON,
        "job_id": JOB,
        **WHOSE,
        "credit_applied": charged > 0,
        "credits_charged": charged,
        "credits_remaining": remaining,
        "total_calls": calls,
        "duration_seconds": 0,
        **more,
    }


def used(dollars: str, story: Story, call_id: str = CALL) -> Story:
    """The story after a good call that cost just so much (before markup)."""
    tokens = int(Decimal(dollars) * 1_000_000)
    story = story.when(start_call, start(call_id, model="dollar", prompt_tokens=0, output_tokens=1))
    return story.when(finish_call, finish(call_id, prompt_tokens=tokens, completion_tokens=0))


# -- holds ---------------------------------------------------------------------------------------------------


def test_the_first_call_of_a_job_holds_one_credit_and_fixes_the_terms() -> None:
    story = house(CREATED).when(start_call, start())
    story.then(started(), held(1, held_credits=1))
    story.leaving(Account, remaining=10, held=1).leaving(Job, status="in_progress", held_credits=1, terms=TERMS)


def test_further_calls_of_a_job_based_job_hold_nothing() -> None:
    story = house(CREATED).when(start_call, start()).when(start_call, start(SECOND_CALL))
    story.then(started(SECOND_CALL, held_credits=0, terms=None)).leaving(Account, held=1)


def test_a_hold_grows_to_cover_what_was_used_what_is_running_and_the_next_call() -> None:
    story = house(CREATED, DOLLAR, credits=100, mode="consumption_usd")
    first = start(model="dollar", prompt_tokens=1_000_000, output_tokens=0)
    second = start(SECOND_CALL, model="dollar", prompt_tokens=500_000, output_tokens=0)
    third = start(THIRD_CALL, model="dollar", prompt_tokens=100_000, output_tokens=0)
    story = story.when(start_call, first).leaving(Job, held_credits=10)
    story = story.when(start_call, second).leaving(Job, held_credits=15)
    story = story.when(finish_call, finish(prompt_tokens=1_200_000, completion_tokens=0))
    story.when(start_call, third).leaving(Job, held_credits=18).leaving(Account, held=18, remaining=100)


def test_a_hold_never_shrinks_while_the_job_is_open() -> None:
    story = house(CREATED, DOLLAR, credits=100, mode="consumption_usd")
    story = story.when(start_call, start(model="dollar", prompt_tokens=1_000_000, output_tokens=0))
    story = story.when(finish_call, finish(prompt_tokens=100_000, completion_tokens=0)).leaving(Job, held_credits=10)
    story = story.when(start_call, start(SECOND_CALL, model="dollar", prompt_tokens=100_000, output_tokens=0))
    story.leaving(Job, held_credits=10).leaving(Account, held=10)


def test_tokens_are_held_by_the_prompt_and_the_longest_answer() -> None:
    story = house(CREATED, mode="consumption_tokens", tokens_per_credit=1000)
    story = story.when(start_call, start(prompt_tokens=1001, output_tokens=1000)).leaving(Job, held_credits=3)
    story.when(start_call, start(SECOND_CALL, prompt_tokens=0, output_tokens=1000)).leaving(Job, held_credits=4)


def test_the_dearest_target_decides_how_much_is_held() -> None:
    both = model_group("both", member("free", 0), member("dollar", 1))
    story = house(CREATED, DOLLAR, FREE, both, assigned(model_groups=("both",)), mode="consumption_usd")
    call = start(model="both", prompt_tokens=300_000, output_tokens=0)
    story.when(start_call, call).leaving(Job, held_credits=3, models_used=("both",))


def test_a_job_without_credit_makes_no_call_and_stays_as_it_is() -> None:
    story = house(CREATED, credits=0).when(start_call, start())
    story = story.then_refused(InsufficientCredits, credits_needed=1, credits_available=0)
    story.leaving(Job, status="pending", terms=None).leaving(Account, held=0)


def test_a_refused_call_leaves_the_hold_of_the_calls_before_it() -> None:
    story = house(CREATED, DOLLAR, credits=10, mode="consumption_usd")
    story = story.when(start_call, start(model="dollar", prompt_tokens=600_000, output_tokens=0))
    second = start(SECOND_CALL, model="dollar", prompt_tokens=600_000, output_tokens=0)
    story = story.when(start_call, second).then_refused(InsufficientCredits, credits_needed=6, credits_available=4)
    story.leaving(Account, held=6).leaving(Job, held_credits=6)


def test_a_team_with_unlimited_overdraft_always_has_credit() -> None:
    house(CREATED, credits=0, overdraft_credits=None).when(start_call, start()).leaving(Account, remaining=0, held=1)


def test_after_a_charge_above_the_hold_calls_are_refused_until_credits_come_in() -> None:
    story = house(CREATED, DOLLAR, credits=1, mode="consumption_usd")
    story = used("0.3", story).when(complete_job, complete()).leaving(Account, remaining=-2, held=0)
    story = story.another(Job).when(create_job, create(OTHER_JOB)).when(start_call, start(SECOND_CALL))
    story = story.then_refused(InsufficientCredits, credits_needed=1, credits_available=-2)
    story = story.when(adjust_credits, AdjustCredits(**WHO, transaction_id=an_id(25), credits=3))
    story.when(start_call, start(SECOND_CALL)).leaving(Account, remaining=1, held=1)


def test_a_call_that_was_started_is_not_started_again() -> None:
    story = house(CREATED).when(start_call, start())
    story.when(start_call, start()).then_nothing()
    story.when(finish_call, finish()).when(start_call, start()).then_nothing()


@pytest.mark.parametrize(
    "end_job,wish,status",
    [
        (complete_job, complete(), "completed"),
        (fail_job, fail_it(), "failed"),
        (cancel_job, cancel(), "cancelled"),
        (expire_job, expire(), "failed"),
    ],
)
def test_ended_jobs_take_no_further_calls(end_job: Decision, wish: Command, status: str) -> None:
    story = house(CREATED).when(end_job, wish)
    story.when(start_call, start()).then_refused(JobClosed, status=status)


@pytest.mark.parametrize(
    "event,refusal",
    [
        (TeamSuspended(at=NOON, team_id=RESEARCH), SuspendedTeam),
        (TeamPaused(at=NOON, team_id=RESEARCH), PausedTeam),
        (OrganizationSuspended(at=NOON, organization_id=ACME), SuspendedOrganization),
        (OrganizationPaused(at=NOON, organization_id=ACME), PausedOrganization),
    ],
)
def test_a_team_that_may_not_act_makes_no_calls(event: Event, refusal: type[Refusal]) -> None:
    house(CREATED, event).when(start_call, start()).then_refused(refusal)


def test_an_organization_that_may_not_act_speaks_before_its_team() -> None:
    suspended = TeamSuspended(at=NOON, team_id=RESEARCH), OrganizationPaused(at=NOON, organization_id=ACME)
    house(CREATED, *suspended).when(start_call, start()).then_refused(PausedOrganization)


def test_model_access_is_looked_at_before_credits() -> None:
    story = house(CREATED, credits=0).when(start_call, start(model="secret"))
    story.then_refused(ModelNotAllowed, model="secret", available_models=["chat"])


def test_a_call_is_given_up_a_minute_after_its_last_target_could_have_answered() -> None:
    both = model_group("both", member("free", 0), member("dollar", 1))
    story = house(CREATED, DOLLAR, FREE, both, assigned(model_groups=("both",)))
    one, two = (story.when(start_call, start(model=model)).the(Job) for model in ("free", "both"))
    assert [after(minutes=3), after(minutes=5)] == [job.running[CALL].deadline for job in (one, two)]


def test_labels_that_come_with_a_call_are_merged() -> None:
    story = house(CREATED).when(start_call, start(metadata={"stage": 1}))
    story.then(
        MetadataMerged(at=NOON, job_id=JOB, metadata={"stage": 1}),
        started(),
        held(1, held_credits=1),
    )


def test_nothing_is_called_or_charged_for_what_is_not_there() -> None:
    house().when(start_call, start()).then_refused(NotFound, resource="job")
    house().when(complete_job, complete()).then_refused(NotFound, resource="job")
    house().when(fail_job, fail_it()).then_refused(NotFound, resource="job")
    house().when(cancel_job, cancel()).then_refused(NotFound, resource="job")
    house().when(expire_job, expire()).then_refused(NotFound, resource="job")
    house().when(refund_job, refund()).then_refused(NotFound, resource="job")
    house(CREATED).another(Account).when(start_call, start()).then_refused(NotFound, resource="team")
    house(CREATED, TeamDeleted(at=NOON, team_id=RESEARCH)).when(start_call, start()).then_refused(
        NotFound, resource="team"
    )


# -- terms ---------------------------------------------------------------------------------------------------


def test_terms_are_those_of_the_first_call_whatever_the_team_agrees_to_later() -> None:
    story = used("0.10", house(CREATED, DOLLAR, mode="consumption_usd", markup_percentage=Decimal(50)))
    dearer = ChangeBudget(**WHO, credits_per_dollar=Decimal(1000), markup_percentage=Decimal(900), mode="job_based")
    story = used("0.10", story.when(change_budget, dearer), SECOND_CALL)
    story.leaving(Job, client_cost_usd=Decimal("0.30"), provider_cost_usd=Decimal("0.20"))
    story.when(complete_job, complete()).leaving(Job, credits_charged=3)


def test_a_job_without_calls_is_charged_by_the_terms_at_its_completion() -> None:
    story = house(CREATED, mode="job_based").when(change_budget, ChangeBudget(**WHO, mode="consumption_usd"))
    story = story.when(complete_job, complete())
    assert [BY_DOLLARS] == [event.terms for event in story.decided if isinstance(event, CreditsCharged)]


# -- ends ----------------------------------------------------------------------------------------------------


def test_a_completed_job_is_charged_out_of_its_hold() -> None:
    story = house(CREATED).when(start_call, start()).when(finish_call, finish())
    story = story.when(complete_job, complete(at=after(seconds=45)))
    story.then(
        JobCompleted(**end(1, remaining=9, at=after(seconds=45), duration_seconds=45)),
        replace(charged(1, from_hold=1, dollars="0.00225", tokens=300, remaining=9), at=after(seconds=45)),
    )
    story.leaving(Account, remaining=9, used=1, held=0)
    story.leaving(Job, status="completed", credit_applied=True, credits_charged=1, credits_remaining=9, held_credits=0)


def test_what_was_held_and_not_used_is_released_with_the_charge() -> None:
    story = house(CREATED, DOLLAR, mode="consumption_usd")
    story = story.when(start_call, start(model="dollar", prompt_tokens=500_000, output_tokens=0))
    story = story.when(finish_call, finish(prompt_tokens=152_000, completion_tokens=0))
    story.when(complete_job, complete()).then(
        JobCompleted(**end(2, remaining=8)),
        charged(2, from_hold=2, dollars="0.152", tokens=152_000, terms=BY_DOLLARS, remaining=8, held=3),
        released(3, remaining=8),
    ).leaving(Account, remaining=8, held=0)


def test_the_charge_is_the_real_amount_even_above_the_hold() -> None:
    story = used("0.152", house(CREATED, DOLLAR, mode="consumption_usd")).leaving(Account, held=1)
    story.when(complete_job, complete()).then(
        JobCompleted(**end(2, remaining=8)),
        charged(2, from_hold=1, dollars="0.152", tokens=152_000, terms=BY_DOLLARS, remaining=8),
    )


def test_a_job_completed_twice_is_charged_once_and_answered_the_same() -> None:
    story = house(CREATED).when(start_call, start()).when(finish_call, finish()).when(complete_job, complete())
    story.when(complete_job, complete(charge_id=an_id(99), metadata={"ignored": True})).then_nothing()


def test_a_job_with_a_running_call_cannot_be_completed_but_can_fail_or_be_cancelled() -> None:
    story = house(CREATED).when(start_call, start())
    story.when(complete_job, complete()).then_refused(CallsInProgress, running_calls=1)
    story.when(fail_job, fail_it()).then(JobFailed(**end()), released(1)).leaving(Account, held=0, remaining=10)
    story.when(cancel_job, cancel()).then(JobCancelled(**end()), released(1)).leaving(Account, held=0, remaining=10)


def test_a_failed_job_is_never_charged_and_says_why() -> None:
    story = used("0.5", house(CREATED, DOLLAR, mode="consumption_usd"))
    story = story.when(fail_job, fail_it(error_message="no good"))
    story.then(JobFailed(**end(), error_message="no good"), released(1))
    story.leaving(Account, remaining=10, held=0)
    story.leaving(Job, status="failed", error_message="no good", credit_applied=False, credits_charged=0)
    story.when(fail_job, fail_it(error_message="again")).then_nothing()


def test_a_cancelled_job_is_never_charged() -> None:
    story = used("0.5", house(CREATED, DOLLAR, mode="consumption_usd")).when(cancel_job, cancel(reason="enough"))
    story.then(JobCancelled(**end(), reason="enough"), released(1)).leaving(Account, remaining=10, held=0)
    story.when(cancel_job, cancel()).then_nothing()


def test_a_job_that_never_called_ends_without_touching_the_account() -> None:
    house(CREATED).when(cancel_job, cancel()).then(JobCancelled(**end(calls=0)))
    house(CREATED).when(fail_job, fail_it()).then(JobFailed(**end(calls=0)))


ENDS: dict[str, tuple[Decision, Command]] = {
    "completed": (complete_job, complete()),
    "failed": (fail_job, fail_it()),
    "cancelled": (cancel_job, cancel()),
}


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_ended_jobs_never_reopen(first: str, second: str) -> None:
    story = house(CREATED).when(*ENDS[first]).when(*ENDS[second])
    if first == second:
        story.then_nothing()
    else:
        story.then_refused(JobClosed, status=first)


def test_labels_and_result_that_come_with_the_end_are_merged_first() -> None:
    result = {"answer": "x" * 20_000}
    story = house(CREATED).when(complete_job, complete(metadata={"stage": 9}, result=result))
    assert MetadataMerged(at=NOON, job_id=JOB, metadata={"stage": 9, "result": result}) == story.decided[0]
    story.leaving(Job, status="completed", metadata={"stage": 9, "result": result})


@pytest.mark.parametrize("nothing", ["", [], {}, None])
def test_an_empty_result_is_not_kept(nothing: Any) -> None:
    house(CREATED).when(complete_job, complete(result=nothing)).leaving(Job, metadata={})


@pytest.mark.parametrize("something", [0, False, "text", [0]])
def test_a_result_may_be_any_json(something: Any) -> None:
    house(CREATED).when(complete_job, complete(result=something)).leaving(Job, metadata={"result": something})


def test_too_many_labels_stop_the_end() -> None:
    story = house(CREATED).when(complete_job, complete(metadata={"note": "x" * 10_240}))
    story = story.then_refused(OutOfBounds, field="metadata", message="metadata is larger than 10240 bytes")
    story.leaving(Job, status="pending")


def test_a_job_of_a_deleted_team_is_closed_even_before_it_is_cancelled() -> None:
    story = house(CREATED, TeamDeleted(at=NOON, team_id=RESEARCH))
    story.when(complete_job, complete()).then_refused(JobClosed, status="cancelled")
    story = story.when(cancel_job, cancel()).leaving(Job, status="cancelled")
    story.when(complete_job, complete()).then_refused(JobClosed, status="cancelled")


def test_a_job_completed_before_its_team_was_deleted_answers_as_before() -> None:
    story = house(CREATED).when(complete_job, complete()).meanwhile(TeamDeleted(at=NOON, team_id=RESEARCH))
    story.when(complete_job, complete()).then_nothing()


# -- expiry --------------------------------------------------------------------------------------------------


def test_a_job_left_alone_for_a_day_fails_and_its_hold_is_released() -> None:
    story = house(CREATED).when(start_call, start()).when(finish_call, finish())
    day = after(hours=24)
    story.when(expire_job, expire(day)).then(
        JobExpired(**end(at=day, duration_seconds=24 * 3600)), released(1, at=day)
    ).leaving(Job, status="failed", error_message="expired", credit_applied=False).leaving(Account, held=0)


def test_a_job_that_is_awake_busy_or_ended_does_not_expire() -> None:
    house(CREATED).when(expire_job, expire(after(hours=23))).then_nothing()
    house(CREATED).when(start_call, start()).when(expire_job, expire()).then_nothing()
    house(CREATED).when(cancel_job, cancel()).when(expire_job, expire()).then_nothing()
    called = house(CREATED).when(start_call, start(at=after(hours=1)))
    called.when(fail_call, fail(at=after(hours=1))).when(expire_job, expire()).then_nothing()


def test_what_an_expired_job_used_is_paid_for_in_consumption_modes() -> None:
    story = used("0.152", house(CREATED, DOLLAR, mode="consumption_usd")).when(expire_job, expire())
    story.leaving(Job, status="failed", error_message="expired", credit_applied=True, credits_charged=2)
    story.leaving(Account, remaining=8, held=0)
    story.when(fail_job, fail_it()).then_nothing()
    story.when(complete_job, complete()).then_refused(JobClosed, status="failed")


def test_an_expired_job_without_a_good_call_costs_nothing() -> None:
    house(CREATED, mode="consumption_usd").when(expire_job, expire()).leaving(Account, remaining=10)
    story = house(CREATED, mode="consumption_tokens").when(start_call, start()).when(fail_call, fail())
    story.when(expire_job, expire()).leaving(Account, remaining=10, held=0).leaving(Job, credit_applied=False)


# -- refunds -------------------------------------------------------------------------------------------------


def paid_job(dollars: str = "0.5") -> Story:
    return used(dollars, house(CREATED, DOLLAR, mode="consumption_usd")).when(complete_job, complete())


def test_a_refund_gives_back_the_whole_charge_and_names_its_job() -> None:
    story = paid_job().when(refund_job, refund(reason="sorry"))
    story.then(
        ChargeRefunded(at=NOON, job_id=JOB, transaction_id=REFUND, credits=5),
        CreditsRefunded(
            at=NOON,
            transaction_id=REFUND,
            **WHOSE,
            credits=5,
            remaining_credits=10,
            held_credits=0,
            allocated_credits=10,
            job_id=JOB,
            reason="sorry",
        ),
    )
    story.leaving(Account, remaining=10, used=0).leaving(Job, credits_charged=5, credits_refunded=5)


def test_refunds_of_a_job_never_exceed_its_charge() -> None:
    story = paid_job().when(refund_job, refund(3)).leaving(Account, remaining=8)
    story = story.when(refund_job, refund(3)).then_refused(RefundExceedsCharge, credits_refundable=2)
    story = story.when(refund_job, refund()).leaving(Account, remaining=10)
    story.when(refund_job, refund()).then_refused(RefundExceedsCharge, credits_refundable=0)
    story.when(refund_job, refund(1)).then_refused(RefundExceedsCharge, credits_refundable=0)


def test_a_job_that_was_not_charged_has_nothing_to_give_back() -> None:
    house(CREATED).when(refund_job, refund()).then_refused(NotCharged)
    house(CREATED).when(fail_job, fail_it()).when(refund_job, refund(1)).then_refused(NotCharged)


def test_a_job_is_refunded_to_its_own_team_only() -> None:
    stranger = replace(CREATED, team_id="marketing")
    house(stranger).when(refund_job, refund()).then_refused(NotFound, resource="job")


# -- scenarios of the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy,credits", [("all_calls_succeeded", 0), ("any_call_succeeded", 1)])
def test_a_good_call_and_one_that_failed_everywhere(policy: str, credits: int) -> None:
    story = house(CREATED, charge_policy=policy).when(start_call, start()).when(start_call, start(SECOND_CALL))
    story = story.when(finish_call, finish()).when(fail_call, fail(SECOND_CALL)).when(complete_job, complete())
    story.leaving(Job, credits_charged=credits, credit_applied=credits > 0, status="completed")
    story.leaving(Account, remaining=10 - credits, held=0)


@pytest.mark.parametrize("policy", ["all_calls_succeeded", "any_call_succeeded"])
def test_one_deliberately_bad_request_does_not_make_a_job_free(policy: str) -> None:
    story = house(CREATED, charge_policy=policy).when(start_call, start()).when(start_call, start(SECOND_CALL))
    story = story.when(finish_call, finish()).when(fail_call, reject(SECOND_CALL)).when(complete_job, complete())
    story.leaving(Job, credits_charged=1)


@pytest.mark.parametrize("policy,credits", [("all_calls_succeeded", 1), ("any_call_succeeded", 0)])
def test_only_a_rejected_call(policy: str, credits: int) -> None:
    story = house(CREATED, charge_policy=policy).when(start_call, start()).when(fail_call, reject())
    story.when(complete_job, complete()).leaving(Job, credits_charged=credits).leaving(
        Account, remaining=10 - credits, held=0
    )


@pytest.mark.parametrize("error", ["provider_error", "timeout", "interrupted"])
def test_a_call_that_never_ended_well_waives_the_charge(error: Any) -> None:
    story = house(CREATED).when(start_call, start()).when(fail_call, fail(error=error))
    story.when(complete_job, complete()).then(JobCompleted(**end()), released(1)).leaving(Account, remaining=10)


def test_a_waived_charge_is_waived_for_good() -> None:
    story = house(CREATED).when(start_call, start()).when(fail_call, fail()).when(complete_job, complete())
    story.when(complete_job, complete()).then_nothing()
    story.when(refund_job, refund()).then_refused(NotCharged)


@pytest.mark.parametrize("policy", ["all_calls_succeeded", "any_call_succeeded"])
def test_a_job_without_calls_is_charged_one_credit(policy: str) -> None:
    story = house(CREATED, charge_policy=policy).when(complete_job, complete())
    story.then(
        JobCompleted(**end(1, remaining=9, calls=0)),
        charged(
            1,
            from_hold=0,
            dollars="0",
            tokens=0,
            remaining=9,
            terms=replace(TERMS, charge_policy=policy),
        ),
    )


def test_a_job_without_calls_and_without_credit_stays_open() -> None:
    story = house(CREATED, credits=0).when(complete_job, complete())
    story = story.then_refused(InsufficientCredits, credits_needed=1, credits_available=0)
    story.leaving(Job, status="pending")


def test_with_a_balance_of_one_only_one_of_two_jobs_may_call() -> None:
    story = house(CREATED, credits=1).when(start_call, start())
    story = story.another(Job).when(create_job, create(OTHER_JOB)).when(start_call, start(SECOND_CALL))
    story.then_refused(InsufficientCredits, credits_needed=1, credits_available=0).leaving(Account, remaining=1)


def test_with_a_balance_of_none_and_an_overdraft_of_two_just_two_jobs_run() -> None:
    story = house(credits=0, overdraft_credits=2)
    for number in (1, 2):
        story = story.another(Job).when(create_job, create(an_id(number))).when(start_call, start(an_id(10 + number)))
        story = story.when(finish_call, finish(an_id(10 + number)))
        story = story.when(complete_job, complete(charge_id=an_id(20 + number)))
    story = story.leaving(Account, remaining=-2, held=0).another(Job).when(create_job, create(an_id(3)))
    story.when(start_call, start(THIRD_CALL)).then_refused(InsufficientCredits, credits_needed=1, credits_available=0)


def test_a_dollar_with_half_as_much_again_at_ten_credits_is_fifteen() -> None:
    story = used("1.00", house(CREATED, DOLLAR, credits=20, mode="consumption_usd", markup_percentage=Decimal(50)))
    story.when(complete_job, complete()).leaving(Job, credits_charged=15).leaving(Account, remaining=5)


def test_a_model_that_costs_nothing_still_costs_the_job_one_credit() -> None:
    story = house(CREATED, FREE, mode="consumption_usd").when(start_call, start(model="free"))
    story.when(finish_call, finish()).when(complete_job, complete()).leaving(Job, credits_charged=1)


def test_cents_are_added_exactly_before_they_are_rounded_up() -> None:
    story = house(CREATED, DOLLAR, mode="consumption_usd")
    story = used("0.20", used("0.10", story), SECOND_CALL)
    story.when(complete_job, complete()).leaving(Job, credits_charged=3)


@pytest.mark.parametrize("mode,credits", [("job_based", 0), ("consumption_usd", 2)])
def test_expired_with_good_calls_worth_fifteen_cents(mode: Any, credits: int) -> None:
    story = used("0.152", house(CREATED, DOLLAR, mode=mode)).when(expire_job, expire())
    story.leaving(Job, credits_charged=credits).leaving(Account, remaining=10 - credits, held=0)


def test_a_smaller_overdraft_stops_new_calls_and_no_old_ones() -> None:
    story = house(CREATED, credits=0, overdraft_credits=1).when(start_call, start())
    story = story.when(change_budget, ChangeBudget(**WHO, overdraft_credits=0))
    story = story.then(BudgetSet(at=NOON, team_id=RESEARCH, budget=budget().budget))
    story.when(finish_call, finish()).when(complete_job, complete()).leaving(Account, remaining=-1, held=0)


def test_a_job_idles_from_its_last_sign_of_life() -> None:
    story = house(CREATED).when(start_call, start(at=after(hours=5)))
    story = story.when(fail_call, fail(at=after(hours=6)))
    story.when(expire_job, expire(after(hours=30) - timedelta(microseconds=1))).then_nothing()
    story.when(expire_job, expire(after(hours=30))).leaving(Job, status="failed")
