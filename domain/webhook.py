"""A webhook: an address that a team wants to be told at.

    registered -> (changed | secret rotated | disabled | enabled)* -> deleted

Secret and authorization header are known by the ids of their secrets only. What is told follows from the journal:
`job_notice`, `team_notice` and `watch_credits` turn events into notices, the same ones at every replay. Deliveries of a
notice are no events; they have a schedule here and a table elsewhere.

One thing worth telling writes no event of its own: a call refused for want of credits. So a stream
`shortage-<team_id>` puts the first of such refusals on record, once until credits come in.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from msgspec import UNSET
from msgspec.structs import replace

from domain.credit import (
    Account,
    CreditMovement,
    CreditsAdjusted,
    CreditsExpired,
    CreditsGranted,
    CreditsRefunded,
    require_account,
)
from domain.errors import NotFound, TooManyWebhooks
from domain.event import Command, Event, JsonObject, Record, State, Unset, derived_id, with_changes
from domain.job import CallStarted, JobCancelled, JobCompleted, JobCreated, JobEnd, JobExpired, JobFailed
from domain.team import BudgetSet, Team, TeamPaused, TeamResumed, TeamSuspended, require_team

WebhookEvent = Literal[
    "job.created",
    "job.started",
    "job.completed",
    "job.failed",
    "job.cancelled",
    "credits.low",
    "credits.exhausted",
    "team.suspended",
    "team.resumed",
]
WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)

Status = Literal["active", "disabled", "deleted"]

MOST_WEBHOOKS_OF_A_TEAM = 50

# -- events --------------------------------------------------------------------------------------------------


class WebhookRegistered(Event):
    webhook_id: str
    team_id: str
    organization_id: str
    webhook_url: str
    events: tuple[WebhookEvent, ...]
    secret_id: str
    auth_header_id: str | None = None


class WebhookChanged(Event):
    """All three as they are from now on."""

    webhook_id: str
    team_id: str
    webhook_url: str
    events: tuple[WebhookEvent, ...]
    auth_header_id: str | None


class WebhookSecretRotated(Event):
    """The old secret signs beside the new one until `old_valid_until`."""

    webhook_id: str
    team_id: str
    secret_id: str
    old_secret_id: str
    old_valid_until: datetime


class WebhookDisabled(Event):
    webhook_id: str
    team_id: str
    reason: str | None = None


class WebhookEnabled(Event):
    webhook_id: str
    team_id: str


class WebhookDeleted(Event):
    webhook_id: str
    team_id: str


class CreditsRanOut(Event):
    """A call was refused for want of credits. What the account then said tells whether credits came in since."""

    team_id: str
    organization_id: str
    needed_credits: int
    available_credits: int
    allocated_credits: int
    used_credits: int


RegisteredWebhookEvent = (
    WebhookRegistered | WebhookChanged | WebhookSecretRotated | WebhookDisabled | WebhookEnabled | WebhookDeleted
)

# -- state ---------------------------------------------------------------------------------------------------


class OldSecret(Record):
    secret_id: str
    valid_until: datetime


class Webhook(State):
    webhook_id: str
    team_id: str
    organization_id: str
    webhook_url: str
    events: tuple[WebhookEvent, ...]
    status: Status = "active"
    disabled_reason: str | None = None
    secret_id: str
    old_secrets: tuple[OldSecret, ...] = ()
    auth_header_id: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def is_active(self) -> bool:
        return self.status == "active"

    @property
    def has_auth_header(self) -> bool:
        return self.auth_header_id is not None

    def wants(self, event: WebhookEvent) -> bool:
        return self.is_active and event in self.events

    def signing_secrets(self, at: datetime) -> tuple[str, ...]:
        """The ids of the secrets that sign at this moment, the newest first."""
        return (self.secret_id, *(old.secret_id for old in self.old_secrets if at < old.valid_until))


class Shortage(State):
    """What the account said when a call was last refused for want of credits."""

    allocated_credits: int
    used_credits: int


def evolve(webhook: Webhook | None, event: RegisteredWebhookEvent) -> Webhook:
    """What the webhook is after this event, whatever the rules say today."""
    if isinstance(event, WebhookRegistered):
        return Webhook(
            webhook_id=event.webhook_id,
            team_id=event.team_id,
            organization_id=event.organization_id,
            webhook_url=event.webhook_url,
            events=event.events,
            secret_id=event.secret_id,
            auth_header_id=event.auth_header_id,
            created_at=event.at,
            updated_at=event.at,
        )
    assert webhook is not None, "a webhook's history starts with WebhookRegistered"
    webhook = replace(webhook, updated_at=event.at)
    match event:
        case WebhookChanged(webhook_url=webhook_url, events=events, auth_header_id=auth_header_id):
            return replace(webhook, webhook_url=webhook_url, events=events, auth_header_id=auth_header_id)
        case WebhookSecretRotated(secret_id=secret_id):
            old = OldSecret(secret_id=event.old_secret_id, valid_until=event.old_valid_until)
            older = (each for each in webhook.old_secrets if event.at < each.valid_until)
            return replace(webhook, secret_id=secret_id, old_secrets=(old, *older))
        case WebhookDisabled(reason=reason):
            return replace(webhook, status="disabled", disabled_reason=reason)
        case WebhookEnabled():
            return replace(webhook, status="active", disabled_reason=None)
        case WebhookDeleted():
            return replace(webhook, status="deleted")


def evolve_shortage(shortage: Shortage | None, event: CreditsRanOut) -> Shortage:
    return Shortage(allocated_credits=event.allocated_credits, used_credits=event.used_credits)


# -- commands ------------------------------------------------------------------------------------------------


class RegisterWebhook(Command):
    """`so_far`: how many webhooks the team has. What is registered at the same moment is not among them."""

    webhook_id: str
    webhook_url: str
    events: tuple[WebhookEvent, ...]
    secret_id: str
    auth_header_id: str | None = None
    so_far: int = 0


class ChangeWebhook(Command):
    """What is not set stays."""

    webhook_url: str | Unset = UNSET
    events: tuple[WebhookEvent, ...] | Unset = UNSET
    auth_header_id: str | Unset | None = UNSET
    is_active: bool | Unset = UNSET


class RotateWebhookSecret(Command):
    secret_id: str
    old_valid_until: datetime


class DisableWebhook(Command):
    reason: str


class DeleteWebhook(Command):
    pass


class ReportShortage(Command):
    """A call was refused; both figures are those of the refusal."""

    needed_credits: int
    available_credits: int


# -- decisions -----------------------------------------------------------------------------------------------


def register_webhook(
    webhook: Webhook | None, team: Team | None, command: RegisterWebhook
) -> tuple[list[Event], list[Event]]:
    team = require_team(team)
    if webhook is not None:
        return [], []
    if command.so_far >= MOST_WEBHOOKS_OF_A_TEAM:
        raise TooManyWebhooks(MOST_WEBHOOKS_OF_A_TEAM)
    registered = WebhookRegistered(
        at=command.at,
        webhook_id=command.webhook_id,
        team_id=team.team_id,
        organization_id=team.organization_id,
        webhook_url=command.webhook_url,
        events=_each_once(command.events),
        secret_id=command.secret_id,
        auth_header_id=command.auth_header_id,
    )
    return [registered], []


def change_webhook(webhook: Webhook | None, command: ChangeWebhook) -> list[Event]:
    webhook = require_webhook(webhook)
    changed = with_changes(webhook, command, "webhook_url", "events", "auth_header_id")
    changed = replace(changed, events=_each_once(changed.events))
    events: list[Event] = []
    if changed != webhook:
        events.append(
            WebhookChanged(
                at=command.at,
                webhook_id=webhook.webhook_id,
                team_id=webhook.team_id,
                webhook_url=changed.webhook_url,
                events=changed.events,
                auth_header_id=changed.auth_header_id,
            )
        )
    if command.is_active is not UNSET and command.is_active != webhook.is_active:
        kind = WebhookEnabled if command.is_active else WebhookDisabled
        events.append(kind(at=command.at, webhook_id=webhook.webhook_id, team_id=webhook.team_id))
    return events


def rotate_webhook_secret(webhook: Webhook | None, command: RotateWebhookSecret) -> list[Event]:
    webhook = require_webhook(webhook)
    if webhook.secret_id == command.secret_id:
        return []
    return [
        WebhookSecretRotated(
            at=command.at,
            webhook_id=webhook.webhook_id,
            team_id=webhook.team_id,
            secret_id=command.secret_id,
            old_secret_id=webhook.secret_id,
            old_valid_until=command.old_valid_until,
        )
    ]


def disable_webhook(webhook: Webhook | None, command: DisableWebhook) -> list[Event]:
    """The receiver said that it wants no more; of a webhook that is gone or disabled already, that is no news."""
    if webhook is None or not webhook.is_active:
        return []
    return [
        WebhookDisabled(at=command.at, webhook_id=webhook.webhook_id, team_id=webhook.team_id, reason=command.reason)
    ]


def delete_webhook(webhook: Webhook | None, command: DeleteWebhook) -> list[Event]:
    if webhook is not None and webhook.status == "deleted":
        return []
    webhook = require_webhook(webhook)
    return [WebhookDeleted(at=command.at, webhook_id=webhook.webhook_id, team_id=webhook.team_id)]


def report_shortage(
    shortage: Shortage | None, account: Account | None, command: ReportShortage
) -> tuple[list[Event], list[Event]]:
    """Puts a refused call on record, unless one is there already and no credits came in since."""
    account = require_account(account)
    if shortage is not None and not _came_in(shortage, account):
        return [], []
    ran_out = CreditsRanOut(
        at=command.at,
        team_id=account.team_id,
        organization_id=account.organization_id,
        needed_credits=command.needed_credits,
        available_credits=command.available_credits,
        allocated_credits=account.allocated,
        used_credits=account.used,
    )
    return [ran_out], []


def require_webhook(webhook: Webhook | None) -> Webhook:
    """The webhook, if there is one that can still be changed."""
    if webhook is None or webhook.status == "deleted":
        raise NotFound("webhook")
    return webhook


def _each_once(events: tuple[WebhookEvent, ...]) -> tuple[WebhookEvent, ...]:
    return tuple(dict.fromkeys(events))


def _came_in(shortage: Shortage, account: Account) -> bool:
    return account.allocated > shortage.allocated_credits or account.used < shortage.used_credits


# -- notices: which events of the journal are told, and how --------------------------------------------------


class Notice(Record):
    """What webhooks of a team are told, whoever of them listens."""

    event: WebhookEvent
    team_id: str
    job_id: str | None = None
    at: datetime
    data: JsonObject

    @property
    def body(self) -> JsonObject:
        """The body of the request (contract, section 12)."""
        return {
            "event": self.event,
            "type": self.event,
            "job_id": self.job_id,
            "team_id": self.team_id,
            "timestamp": self.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": self.data,
        }


def delivery_id(webhook_id: str, position: int, notice: int) -> str:
    """Names the delivery of a notice to a webhook, the same one however often it is worked out.

    Args:
        webhook_id: who is told.
        position: of the event in the journal.
        notice: which of the notices of that event, counted from 0.
    """
    return derived_id(webhook_id, f"delivery-{position}-{notice}")


_ENDS: dict[type[JobEnd], tuple[WebhookEvent, str]] = {
    JobCompleted: ("job.completed", "completed"),
    JobFailed: ("job.failed", "failed"),
    JobCancelled: ("job.cancelled", "cancelled"),
    JobExpired: ("job.failed", "failed"),
}


def job_notice(event: Event, job_created_at: datetime | None = None) -> Notice | None:
    """What an event of a job tells, if anything. A job starts with its first call, the one that fixed its terms.

    Args:
        event: any event.
        job_created_at: needed of a first call only, which does not know how old its job is.
    """
    match event:
        case JobCreated():
            return _job_notice(event, "job.created", "pending")
        case CallStarted() if event.terms is not None:
            assert job_created_at is not None, "a first call is told with the age of its job"
            age = int((event.at - job_created_at).total_seconds())
            return _job_notice(event, "job.started", "in_progress", calls=1, seconds=age)
        case JobEnd():
            name, status = _ENDS[type(event)]
            calls, seconds, credits = event.total_calls, event.duration_seconds, event.credits_charged
            return _job_notice(event, name, status, calls=calls, seconds=seconds, credits=credits)
        case _:
            return None


def team_notice(event: Event) -> Notice | None:
    """What an event of a team tells, if anything. A pause is told as a suspension; the status tells them apart."""
    match event:
        case TeamSuspended():
            return _team_notice(event, "team.suspended", "suspended")
        case TeamPaused():
            return _team_notice(event, "team.suspended", "paused")
        case TeamResumed():
            return _team_notice(event, "team.resumed", "active")
        case _:
            return None


def _job_notice(
    event: JobCreated | CallStarted | JobEnd,
    name: WebhookEvent,
    status: str,
    *,
    calls: int = 0,
    seconds: int = 0,
    credits: int = 0,
) -> Notice:
    data = {"total_calls": calls, "duration_seconds": seconds, "status": status, "credits_charged": credits}
    return Notice(event=name, team_id=event.team_id, job_id=event.job_id, at=event.at, data=data)


def _team_notice(event: TeamSuspended | TeamPaused | TeamResumed, name: WebhookEvent, status: str) -> Notice:
    return Notice(event=name, team_id=event.team_id, at=event.at, data={"status": status, "reason": event.reason})


class CreditWatch(Record):
    """What a team has, as far as its notices need it, and whether it knows that it is out of credits."""

    allocated_credits: int = 0
    remaining_credits: int = 0
    held_credits: int = 0
    overdraft_credits: int | None = 0
    told_exhausted: bool = False

    @property
    def available_credits(self) -> int | None:
        if self.overdraft_credits is None:
            return None
        return self.remaining_credits - self.held_credits + self.overdraft_credits

    @property
    def can_spend(self) -> bool:
        available = self.available_credits
        return available is None or available > 0

    def is_above(self, percent: int) -> bool:
        return self.remaining_credits * 100 > self.allocated_credits * percent


def watch_credits(watch: CreditWatch, event: Event, thresholds: Sequence[int]) -> tuple[CreditWatch, list[Notice]]:
    """Goes with a team's credits from event to event, and says what there is to tell.

    `credits.low` is told at each fall to a threshold, `credits.exhausted` once until credits come in: a hold that is
    released and taken again is no news.

    Args:
        watch: where the events before this one have led.
        event: any event of the team.
        thresholds: percent of the allocated credits.
    """
    match event:
        case BudgetSet(budget=budget):
            after = replace(watch, overdraft_credits=budget.overdraft_credits)
            came_in = after.can_spend and not watch.can_spend
        case CreditMovement():
            after = replace(
                watch,
                allocated_credits=watch.allocated_credits + _allocated(event),
                remaining_credits=event.remaining_credits,
                held_credits=event.held_credits,
            )
            came_in = isinstance(event, CreditsRefunded) or _allocated(event) > 0
        case CreditsRanOut(available_credits=available):
            told = [] if watch.told_exhausted else [_credit_notice(event, "credits.exhausted", watch, available)]
            return replace(watch, told_exhausted=True), told
        case _:
            return watch, []
    low = [
        _credit_notice(event, "credits.low", after, after.available_credits, percent)
        for percent in sorted(thresholds, reverse=True)
        if watch.is_above(percent) and not after.is_above(percent)
    ]
    knows = watch.told_exhausted and not came_in
    if knows or after.can_spend or not watch.can_spend:
        return replace(after, told_exhausted=knows), low
    exhausted = _credit_notice(event, "credits.exhausted", after, after.available_credits)
    return replace(after, told_exhausted=True), [*low, exhausted]


def _allocated(event: CreditMovement) -> int:
    """What a movement adds to the credits allocated."""
    match event:
        case CreditsGranted(credits=credits) | CreditsAdjusted(credits=credits):
            return credits
        case CreditsExpired(credits=credits):
            return -credits
        case _:
            return 0


def _credit_notice(
    event: BudgetSet | CreditMovement | CreditsRanOut,
    name: WebhookEvent,
    watch: CreditWatch,
    available: int | None,
    threshold: int | None = None,
) -> Notice:
    data = {
        "credits_remaining": watch.remaining_credits,
        "credits_available": available,
        "threshold_percent": threshold,
    }
    return Notice(event=name, team_id=event.team_id, at=event.at, data=data)


# -- the schedule of a delivery (contract, section 12; Standard Webhooks) ------------------------------------

ROTATION_OVERLAP = timedelta(hours=24)
RETRY_DELAYS = (
    timedelta(0),
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""How long to wait before each attempt, since the one before."""

_STRETCH = 0.1  # receivers that failed together shall not be asked together again
_LONGEST = max(RETRY_DELAYS)


def next_attempt(
    attempts: int, last_at: datetime, *, jitter: float, retry_after: timedelta | None = None
) -> datetime | None:
    """When to try a delivery next; None when there was an attempt for each delay.

    Args:
        attempts: how many there were, 0 or more.
        last_at: when the last one was, or when there came something to deliver.
        jitter: from 0 to 1, makes the wait up to a tenth longer.
        retry_after: what the receiver asked for; it may put an attempt off by a day, not for ever.
    """
    if attempts >= len(RETRY_DELAYS):
        return None
    delay = RETRY_DELAYS[attempts] * (1 + _STRETCH * jitter)
    return last_at + max(delay, min(retry_after or timedelta(0), _LONGEST))
