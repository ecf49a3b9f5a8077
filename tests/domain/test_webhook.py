"""Whom a team wants to be told, what is told, and when it is tried again."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import pytest

from domain.charging import cancel_job, complete_job, expire_job, fail_job, start_call
from domain.credit import (
    CreditMovement,
    CreditsAdjusted,
    CreditsCharged,
    CreditsExpired,
    CreditsGranted,
    CreditsHeld,
    CreditsRefunded,
    HoldReleased,
)
from domain.errors import InsufficientCredits, NotFound
from domain.event import Event
from domain.job import finish_call
from domain.team import TeamDeleted, TeamPaused, TeamResumed, TeamSuspended
from domain.webhook import (
    RETRY_DELAYS,
    WEBHOOK_EVENTS,
    ChangeWebhook,
    CreditsRanOut,
    CreditWatch,
    DeleteWebhook,
    DisableWebhook,
    Notice,
    RegisterWebhook,
    ReportShortage,
    RotateWebhookSecret,
    Webhook,
    WebhookChanged,
    WebhookDeleted,
    WebhookDisabled,
    WebhookEnabled,
    WebhookRegistered,
    WebhookSecretRotated,
    change_webhook,
    delete_webhook,
    delivery_id,
    disable_webhook,
    job_notice,
    next_attempt,
    register_webhook,
    report_shortage,
    rotate_webhook_secret,
    team_notice,
    watch_credits,
)
from tests.domain.scene import (
    CHARGE,
    CREATED,
    GRANT,
    JOB,
    NOON,
    OPENED,
    RESEARCH,
    TEAM,
    TERMS,
    WHO,
    WHOSE,
    after,
    an_id,
    budget,
    cancel,
    complete,
    expire,
    fail_it,
    finish,
    granted,
    house,
    start,
    started,
)
from tests.spec import Story, given

WEBHOOK, OTHER_WEBHOOK = an_id(61), an_id(62)
URL = "https://hooks.example/jobs"
SECRET, NEW_SECRET, NEWEST_SECRET = an_id(71), an_id(72), an_id(73)
AUTH = an_id(74)
GONE = "the receiver answered 410"

REGISTERED = WebhookRegistered(
    at=NOON, webhook_id=WEBHOOK, **WHOSE, webhook_url=URL, events=("job.completed", "job.failed"), secret_id=SECRET
)
DISABLED = WebhookDisabled(at=NOON, webhook_id=WEBHOOK, team_id=RESEARCH, reason=GONE)
DELETED = WebhookDeleted(at=NOON, webhook_id=WEBHOOK, team_id=RESEARCH)


def register(**more: Any) -> RegisterWebhook:
    rest = {"webhook_url": URL, "events": ("job.completed", "job.failed"), "secret_id": SECRET}
    return RegisterWebhook(**WHO, webhook_id=WEBHOOK, **{**rest, **more})


def change(**what: Any) -> ChangeWebhook:
    return ChangeWebhook(**WHO, **what)


def rotate(secret_id: str = NEW_SECRET, at: datetime = NOON) -> RotateWebhookSecret:
    return RotateWebhookSecret(**{**WHO, "at": at}, secret_id=secret_id, old_valid_until=at + timedelta(hours=24))


def webhook(story: Story) -> Webhook:
    state = story.states[Webhook]
    assert isinstance(state, Webhook)
    return state


# -- the life of a webhook -----------------------------------------------------------------------------------


def test_a_team_registers_a_webhook() -> None:
    story = given(TEAM).when(register_webhook, register()).then(REGISTERED)
    story.leaving(Webhook, is_active=True, has_auth_header=False, disabled_reason=None)


def test_the_same_registration_again_is_answered() -> None:
    given(TEAM, REGISTERED).when(register_webhook, register()).then_nothing()


def test_an_event_named_twice_is_told_once() -> None:
    story = given(TEAM).when(register_webhook, register(events=("job.failed", "job.created", "job.failed")))
    story.leaving(Webhook, events=("job.failed", "job.created"))


def test_the_authorization_header_is_known_by_its_secret_only() -> None:
    given(TEAM).when(register_webhook, register(auth_header_id=AUTH)).leaving(Webhook, has_auth_header=True)


@pytest.mark.parametrize("history", [(), (TEAM, TeamDeleted(at=NOON, team_id=RESEARCH))])
def test_a_webhook_needs_a_team(history: Any) -> None:
    given(*history).when(register_webhook, register()).then_refused(NotFound, resource="team")


def test_a_change_touches_only_what_it_names() -> None:
    changed = WebhookChanged(
        at=NOON,
        webhook_id=WEBHOOK,
        team_id=RESEARCH,
        webhook_url="https://hooks.example/new",
        events=("job.completed", "job.failed"),
        auth_header_id=None,
    )
    story = given(REGISTERED).when(change_webhook, change(webhook_url="https://hooks.example/new")).then(changed)
    story.when(change_webhook, change(webhook_url="https://hooks.example/new")).then_nothing()


def test_the_header_comes_and_goes() -> None:
    story = given(REGISTERED).when(change_webhook, change(auth_header_id=AUTH)).leaving(Webhook, has_auth_header=True)
    story.when(change_webhook, change(events=("job.failed",))).leaving(Webhook, has_auth_header=True)
    story.when(change_webhook, change(auth_header_id=None)).leaving(Webhook, has_auth_header=False)


def test_a_webhook_is_switched_off_and_on() -> None:
    off = WebhookDisabled(at=NOON, webhook_id=WEBHOOK, team_id=RESEARCH)
    on = WebhookEnabled(at=NOON, webhook_id=WEBHOOK, team_id=RESEARCH)
    story = given(REGISTERED).when(change_webhook, change(is_active=False)).then(off).leaving(Webhook, is_active=False)
    story = story.when(change_webhook, change(is_active=False)).then_nothing()
    story.when(change_webhook, change(is_active=True)).then(on).leaving(Webhook, is_active=True)


def test_a_receiver_that_wants_no_more_is_left_alone_until_it_is_enabled() -> None:
    story = given(REGISTERED).when(disable_webhook, DisableWebhook(**WHO, reason=GONE)).then(DISABLED)
    story.leaving(Webhook, is_active=False, disabled_reason=GONE)
    story = story.when(disable_webhook, DisableWebhook(**WHO, reason=GONE)).then_nothing()
    story.when(change_webhook, change(is_active=True)).leaving(Webhook, is_active=True, disabled_reason=None)


@pytest.mark.parametrize("history", [(), (REGISTERED, DELETED)])
def test_a_late_no_from_a_receiver_of_a_deleted_webhook_is_no_news(history: Any) -> None:
    given(*history).when(disable_webhook, DisableWebhook(**WHO, reason=GONE)).then_nothing()


def test_a_webhook_is_deleted_once() -> None:
    story = given(REGISTERED).when(delete_webhook, DeleteWebhook(**WHO)).then(DELETED)
    story.when(delete_webhook, DeleteWebhook(**WHO)).then_nothing()


@pytest.mark.parametrize("history", [(), (REGISTERED, DELETED)])
@pytest.mark.parametrize("decide, command", [(change_webhook, change()), (rotate_webhook_secret, rotate())])
def test_what_is_not_there_is_not_changed(history: Any, decide: Any, command: Any) -> None:
    given(*history).when(decide, command).then_refused(NotFound, resource="webhook")


def test_an_unknown_webhook_is_not_deleted() -> None:
    given().when(delete_webhook, DeleteWebhook(**WHO)).then_refused(NotFound, resource="webhook")


def test_during_a_rotation_both_secrets_sign() -> None:
    rotated = WebhookSecretRotated(
        at=NOON,
        webhook_id=WEBHOOK,
        team_id=RESEARCH,
        secret_id=NEW_SECRET,
        old_secret_id=SECRET,
        old_valid_until=after(hours=24),
    )
    story = given(REGISTERED).when(rotate_webhook_secret, rotate()).then(rotated)
    story.when(rotate_webhook_secret, rotate()).then_nothing()
    assert (NEW_SECRET, SECRET) == webhook(story).signing_secrets(after(hours=23))
    assert (NEW_SECRET,) == webhook(story).signing_secrets(after(hours=24))


def test_old_secrets_are_forgotten_at_a_later_rotation() -> None:
    story = given(REGISTERED).when(rotate_webhook_secret, rotate())
    soon = story.when(rotate_webhook_secret, rotate(NEWEST_SECRET, after(hours=1)))
    assert (NEWEST_SECRET, NEW_SECRET, SECRET) == webhook(soon).signing_secrets(after(hours=2))
    later = story.when(rotate_webhook_secret, rotate(NEWEST_SECRET, after(hours=30)))
    assert [NEW_SECRET] == [old.secret_id for old in webhook(later).old_secrets]


def test_only_an_active_webhook_wants_its_events() -> None:
    active, disabled = webhook(given(REGISTERED)), webhook(given(REGISTERED, DISABLED))
    assert ["job.completed", "job.failed"] == [event for event in WEBHOOK_EVENTS if active.wants(event)]
    assert not any(disabled.wants(event) for event in WEBHOOK_EVENTS)


# -- what jobs tell ------------------------------------------------------------------------------------------


def job_told(event: str, at: datetime = NOON, **data: Any) -> Notice:
    rest = {"total_calls": 0, "duration_seconds": 0, "status": "pending", "credits_charged": 0}
    return Notice(event=event, team_id=RESEARCH, job_id=JOB, at=at, data={**rest, **data})  # type: ignore[arg-type]


def told_by(story: Story) -> list[Notice]:
    return [notice for event in story.decided if (notice := job_notice(event))]


def test_a_new_job_is_told() -> None:
    assert job_told("job.created") == job_notice(CREATED)


def test_a_job_starts_with_its_first_call() -> None:
    created_at = after(seconds=-7.9)
    assert job_told("job.started", total_calls=1, duration_seconds=7, status="in_progress") == job_notice(
        started(), created_at
    )
    assert job_notice(started(terms=None)) is None


def test_the_end_of_a_job_is_told_with_what_it_cost() -> None:
    called = house(CREATED).when(start_call, start()).when(finish_call, finish())
    done = called.when(complete_job, complete(at=after(seconds=45)))
    facts = {"total_calls": 1, "duration_seconds": 45, "status": "completed", "credits_charged": 1}
    assert [job_told("job.completed", after(seconds=45), **facts)] == told_by(done)


@pytest.mark.parametrize(
    "decide, command, event, status, hours",
    [
        (fail_job, fail_it(), "job.failed", "failed", 0),
        (cancel_job, cancel(), "job.cancelled", "cancelled", 0),
        (expire_job, expire(), "job.failed", "failed", 24),
    ],
)
def test_other_ends_are_told_too(decide: Any, command: Any, event: str, status: str, hours: int) -> None:
    story = house(CREATED).when(decide, command)
    expected = job_told(event, after(hours=hours), status=status, duration_seconds=hours * 3600)
    assert [expected] == told_by(story)


def test_the_body_is_what_the_contract_shows() -> None:
    assert {
        "event": "job.created",
        "type": "job.created",
        "job_id": JOB,
        "team_id": RESEARCH,
        "timestamp": "2026-03-04T12:00:00.000Z",
        "data": {"total_calls": 0, "duration_seconds": 0, "status": "pending", "credits_charged": 0},
    } == job_told("job.created").body


# -- what teams tell -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event, name, status",
    [
        (TeamSuspended(at=NOON, team_id=RESEARCH, reason="unpaid"), "team.suspended", "suspended"),
        (TeamPaused(at=NOON, team_id=RESEARCH, reason="unpaid"), "team.suspended", "paused"),
        (TeamResumed(at=NOON, team_id=RESEARCH, reason="unpaid"), "team.resumed", "active"),
    ],
)
def test_a_change_of_status_is_told(event: Event, name: Any, status: str) -> None:
    told = Notice(event=name, team_id=RESEARCH, at=NOON, data={"status": status, "reason": "unpaid"})
    assert told == team_notice(event)
    assert told.body["job_id"] is None


def test_nothing_else_is_told() -> None:
    quiet: list[Event] = [TEAM, OPENED, REGISTERED, granted(5)]
    assert [None] * 8 == [notice(event) for event in quiet for notice in (job_notice, team_notice)]
    watch = CreditWatch()
    assert (watch, []) == watch_credits(watch, TEAM, (20, 5))


# -- what credits tell ---------------------------------------------------------------------------------------

Movement = TypeVar("Movement", bound=CreditMovement)
FULL = CreditWatch(allocated_credits=100, remaining_credits=100)


def moved(movement: type[Movement], credits: int, remaining: int, held: int = 0, **more: Any) -> Movement:
    return movement(
        at=NOON,
        transaction_id=CHARGE,
        **WHOSE,
        credits=credits,
        remaining_credits=remaining,
        held_credits=held,
        **more,
    )


def held(credits: int, remaining: int, held: int) -> CreditsHeld:
    return moved(CreditsHeld, credits, remaining, held, job_id=JOB)


def released(credits: int, remaining: int, held: int) -> HoldReleased:
    return moved(HoldReleased, credits, remaining, held, job_id=JOB)


def charged(credits: int, remaining: int) -> CreditsCharged:
    what: dict[str, Any] = {
        "job_id": JOB,
        "credits_from_hold": 0,
        "terms": TERMS,
        "client_cost_usd": Decimal(0),
        "tokens": 0,
    }
    return moved(CreditsCharged, credits, remaining, **what)


def came(credits: int, remaining: int) -> CreditsAdjusted:
    return moved(CreditsAdjusted, credits, remaining)


def ran_out(allocated: int, used: int) -> CreditsRanOut:
    return CreditsRanOut(
        at=NOON,
        **WHOSE,
        needed_credits=5,
        available_credits=allocated - used,
        allocated_credits=allocated,
        used_credits=used,
    )


def told(watch: CreditWatch, *events: Event) -> list[tuple[Any, ...]]:
    """Each notice as (event, threshold, remaining, available)."""
    notices: list[Notice] = []
    for event in events:
        watch, new = watch_credits(watch, event, (5, 20))
        notices += new
    facts = ("threshold_percent", "credits_remaining", "credits_available")
    return [(notice.event, *(notice.data[fact] for fact in facts)) for notice in notices]


def times_exhausted(watch: CreditWatch, *events: Event) -> int:
    return [event for event, *_ in told(watch, *events)].count("credits.exhausted")


def test_low_credits_are_told_at_each_threshold_once() -> None:
    assert [("credits.low", 20, 20, 20), ("credits.low", 5, 5, 5)] == told(
        FULL, charged(79, 21), charged(1, 20), charged(1, 19), charged(13, 6), charged(1, 5), charged(1, 4)
    )


def test_one_charge_may_fall_through_both_thresholds() -> None:
    assert [("credits.low", 20, 3, 3), ("credits.low", 5, 3, 3)] == told(FULL, charged(97, 3))


def test_credits_that_came_in_arm_the_thresholds_again() -> None:
    assert [("credits.low", 20, 20, 20), ("credits.low", 20, 30, 30)] == told(
        FULL, charged(80, 20), came(100, 120), charged(90, 30)
    )


def test_expired_and_withdrawn_credits_count_as_a_fall() -> None:
    expired = moved(CreditsExpired, 40, 10, grant_id=GRANT)
    half = CreditWatch(allocated_credits=100, remaining_credits=50)
    assert [("credits.low", 20, 10, 10)] == told(half, expired)
    assert [("credits.low", 20, 10, 10)] == told(half, came(-40, 10))


def test_the_last_credit_being_held_means_exhausted() -> None:
    assert [("credits.exhausted", None, 1, 0)] == told(
        CreditWatch(allocated_credits=1, remaining_credits=1), held(1, 1, 1)
    )


def test_a_hold_released_and_taken_again_is_no_news() -> None:
    one = CreditWatch(allocated_credits=2, remaining_credits=1)
    assert 1 == len(told(one, held(1, 1, 1), released(1, 1, 0), held(1, 1, 1)))


@pytest.mark.parametrize(
    "income",
    [
        came(1, 2),
        moved(CreditsGranted, 1, 2, kind="allocation"),
        moved(CreditsRefunded, 1, 2, job_id=JOB),
    ],
)
def test_after_credits_came_in_exhaustion_is_told_again(income: Event) -> None:
    one = CreditWatch(allocated_credits=10, remaining_credits=1)
    assert 2 == times_exhausted(one, held(1, 1, 1), released(1, 1, 0), income, held(2, 2, 2))


def test_an_overdraft_puts_exhaustion_off() -> None:
    watch, _ = watch_credits(CreditWatch(allocated_credits=100, remaining_credits=50), budget(overdraft_credits=10), ())
    assert 0 == times_exhausted(watch, held(59, 50, 59))
    assert [("credits.exhausted", None, 50, 0)] == told(watch, held(60, 50, 60))


def test_without_a_limit_nothing_is_ever_exhausted() -> None:
    unlimited, _ = watch_credits(CreditWatch(), budget(overdraft_credits=None), ())
    assert [] == told(unlimited, charged(5, -5))
    assert [("credits.exhausted", None, -5, -5)] == told(unlimited, charged(5, -5), budget(overdraft_credits=0))


def test_a_raised_overdraft_counts_as_credits_coming_in() -> None:
    one = CreditWatch(allocated_credits=10, remaining_credits=1)
    assert 2 == times_exhausted(one, charged(1, 0), budget(overdraft_credits=1), charged(1, -1))


def test_a_new_team_without_credits_is_told_nothing() -> None:
    assert [] == told(CreditWatch(), budget(), OPENED, granted(10))


def test_a_refused_call_is_told_until_credits_come_in() -> None:
    three = CreditWatch(allocated_credits=10, remaining_credits=3)
    assert [("credits.exhausted", None, 3, 3)] == told(three, ran_out(10, 7), ran_out(10, 7))
    assert 1 == times_exhausted(three, ran_out(10, 7), charged(3, 0))
    assert 1 == times_exhausted(three, charged(3, 0), ran_out(10, 10))
    assert 2 == times_exhausted(three, ran_out(10, 7), came(1, 4), ran_out(11, 7))


# -- a refused call on record --------------------------------------------------------------------------------

SHORT = ReportShortage(**WHO, needed_credits=5, available_credits=3)


def test_the_first_of_the_refused_calls_is_on_record() -> None:
    poor = house(CREATED, credits=3, mode="consumption_usd", credits_per_dollar=Decimal(1000))
    poor = poor.when(start_call, start()).then_refused(InsufficientCredits, credits_needed=11, credits_available=3)
    poor.when(report_shortage, SHORT).then(ran_out(3, 0)).when(report_shortage, SHORT).then_nothing()


@pytest.mark.parametrize("income", [granted(1), moved(CreditsRefunded, 1, 1, job_id=JOB)])
def test_after_credits_came_in_a_refused_call_is_on_record_again(income: Event) -> None:
    story = given(OPENED, granted(3), ran_out(3, 0), income).when(report_shortage, SHORT)
    assert [CreditsRanOut] == [type(event) for event in story.decided]


def test_spending_what_is_left_is_no_income() -> None:
    given(OPENED, granted(3), ran_out(3, 0), charged(3, 0)).when(report_shortage, SHORT).then_nothing()


def test_nobody_without_an_account_runs_out() -> None:
    given().when(report_shortage, SHORT).then_refused(NotFound, resource="team")


# -- deliveries ----------------------------------------------------------------------------------------------


def test_a_delivery_has_the_same_name_however_often_it_is_worked_out() -> None:
    names = {delivery_id(each, position, 0) for each in (WEBHOOK, OTHER_WEBHOOK) for position in (1, 2)}
    assert 4 == len(names | {delivery_id(WEBHOOK, 1, 0)})
    assert delivery_id(WEBHOOK, 1, 0) != delivery_id(WEBHOOK, 1, 1)


def test_attempts_follow_the_schedule() -> None:
    waits = [next_attempt(attempts, NOON, jitter=0) for attempts in range(len(RETRY_DELAYS))]
    hours = timedelta(hours=1)
    assert [
        timedelta(0),
        timedelta(seconds=5),
        timedelta(minutes=5),
        timedelta(minutes=30),
        *(hours * each for each in (2, 5, 10, 14, 20, 24)),
    ] == [at - NOON for at in waits if at is not None]


def test_after_the_last_attempt_there_is_none() -> None:
    assert next_attempt(10, NOON, jitter=0.5) is None


def test_jitter_makes_a_wait_up_to_a_tenth_longer() -> None:
    assert after(minutes=5.5) == next_attempt(2, NOON, jitter=1)
    assert after(minutes=5.25) == next_attempt(2, NOON, jitter=0.5)
    assert NOON == next_attempt(0, NOON, jitter=1)


@pytest.mark.parametrize(
    "asked, waits",
    [
        (timedelta(seconds=1), timedelta(seconds=5)),
        (timedelta(hours=1), timedelta(hours=1)),
        (timedelta(days=400), timedelta(hours=24)),
    ],
)
def test_a_receiver_may_ask_for_later_but_not_for_never(asked: timedelta, waits: timedelta) -> None:
    assert NOON + waits == next_attempt(1, NOON, jitter=0, retry_after=asked)
