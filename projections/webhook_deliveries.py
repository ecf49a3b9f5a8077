"""Webhooks, and what they have to be told: each event becomes the deliveries that were due when it happened.

Who listens, and how much each team had left, are read models like any other. The deliveries are not: an outbox outside
of the read models (sql/0003_webhooks.sql), written in the transaction that also moves the position, and only for events
beyond the horizon, which never goes back. So each event is told once, also if the read models are built again, and
whatever the thresholds are by then.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from domain.credit import CreditMovement
from domain.event import Event, JsonObject
from domain.job import CallStarted, JobCancelled, JobCompleted, JobCreated, JobExpired, JobFailed
from domain.team import BudgetSet, TeamPaused, TeamResumed, TeamSuspended
from domain.webhook import (
    CreditsRanOut,
    CreditWatch,
    Notice,
    RegisteredWebhookEvent,
    Webhook,
    WebhookChanged,
    WebhookDeleted,
    WebhookDisabled,
    WebhookEnabled,
    WebhookRegistered,
    WebhookSecretRotated,
    delivery_id,
    evolve,
    job_notice,
    team_notice,
    watch_credits,
)
from infra.journal import Connection, Recorded
from projections.balances import MOVEMENTS
from projections.projection import Batch, Projection, Question, Statement
from projections.reading import count, fetch_all, fetch_one

DDL = """
create table webhooks (
    webhook_id      uuid primary key,
    team_id         text not null,
    organization_id text not null,
    webhook_url     text not null,
    events          text[] not null,
    status          text not null,
    disabled_reason text,
    secret_id       uuid not null,
    old_secrets     jsonb not null,
    auth_header_id  uuid,
    created_at      timestamptz not null,
    updated_at      timestamptz not null
);
create index webhooks_by_team on webhooks (team_id, created_at desc, webhook_id desc) where status <> 'deleted';
create index webhooks_by_time on webhooks (created_at desc, webhook_id desc) where status <> 'deleted';

create table credit_watches (
    team_id           text primary key,
    allocated_credits bigint not null,
    remaining_credits bigint not null,
    held_credits      bigint not null,
    overdraft_credits bigint,
    told_exhausted    boolean not null
);
"""

_COLUMNS = """
select webhooks.webhook_id::text, webhooks.team_id, organization_id, webhook_url, events, status, disabled_reason,
       secret_id::text, old_secrets, auth_header_id::text, created_at, updated_at
"""

_LISTENING = (
    _COLUMNS
    + """
from json_to_recordset(%s) as asked (team_id text)
join webhooks on webhooks.team_id = asked.team_id
where status <> 'deleted'
"""
)

_WATCHES = """
select credit_watches.team_id, allocated_credits, remaining_credits, held_credits, overdraft_credits, told_exhausted
from json_to_recordset(%s) as asked (team_id text)
join credit_watches on credit_watches.team_id = asked.team_id
"""

_BEGINNINGS = """
select jobs.job_id::text, jobs.created_at
from json_to_recordset(%s) as asked (job_id uuid)
join jobs on jobs.job_id = asked.job_id
"""

_DELIVER = """
insert into app.webhook_deliveries (delivery_id, webhook_id, team_id, host, event, job_id, payload, next_attempt_at,
                                    created_at)
select delivery_id, webhook_id, team_id, host, event, job_id, payload, created_at, created_at
from json_to_recordset(%s) as row (
    delivery_id uuid, webhook_id uuid, team_id text, host text, event text, job_id uuid, payload json,
    created_at timestamptz, at_position bigint)
where at_position > (select position from app.webhook_horizon)
on conflict (delivery_id) do nothing
"""

_CHANGE = """
insert into webhooks (webhook_id, team_id, organization_id, webhook_url, events, status, disabled_reason, secret_id,
                      old_secrets, auth_header_id, created_at, updated_at)
select webhook_id, team_id, organization_id, webhook_url, events, status, disabled_reason, secret_id, old_secrets,
       auth_header_id, created_at, updated_at
from json_to_recordset(%s) as row (
    webhook_id uuid, team_id text, organization_id text, webhook_url text, events text[], status text,
    disabled_reason text, secret_id uuid, old_secrets jsonb, auth_header_id uuid, created_at timestamptz,
    updated_at timestamptz)
on conflict (webhook_id) do update
set webhook_url = excluded.webhook_url, events = excluded.events, status = excluded.status,
    disabled_reason = excluded.disabled_reason, secret_id = excluded.secret_id, old_secrets = excluded.old_secrets,
    auth_header_id = excluded.auth_header_id, updated_at = excluded.updated_at
"""

_WATCH = """
insert into credit_watches (team_id, allocated_credits, remaining_credits, held_credits, overdraft_credits,
                            told_exhausted)
select team_id, allocated_credits, remaining_credits, held_credits, overdraft_credits, told_exhausted
from json_to_recordset(%s) as row (
    team_id text, allocated_credits bigint, remaining_credits bigint, held_credits bigint, overdraft_credits bigint,
    told_exhausted boolean)
on conflict (team_id) do update
set allocated_credits = excluded.allocated_credits, remaining_credits = excluded.remaining_credits,
    held_credits = excluded.held_credits, overdraft_credits = excluded.overdraft_credits,
    told_exhausted = excluded.told_exhausted
"""

_MOVE_HORIZON = """
update app.webhook_horizon set position = reached.position
from json_to_recordset(%s) as reached (position bigint)
where app.webhook_horizon.position < reached.position
"""

_JOB_EVENTS = (JobCreated, CallStarted, JobCompleted, JobFailed, JobCancelled, JobExpired)
_TEAM_EVENTS = (TeamSuspended, TeamPaused, TeamResumed)
_CREDIT_EVENTS = (*MOVEMENTS, BudgetSet, CreditsRanOut)
_WEBHOOK_EVENTS = (
    WebhookRegistered,
    WebhookChanged,
    WebhookSecretRotated,
    WebhookDisabled,
    WebhookEnabled,
    WebhookDeleted,
)
_WATCHED = (*_JOB_EVENTS, *_TEAM_EVENTS, *_CREDIT_EVENTS, *_WEBHOOK_EVENTS)


class TeamWatch(CreditWatch):
    """The watch over one team's credits."""

    team_id: str


class AboutTeam(msgspec.Struct, frozen=True):
    team_id: str


class AboutJob(msgspec.Struct, frozen=True):
    job_id: str


class Beginning(msgspec.Struct):
    """When a job was created: its first call does not say."""

    job_id: str
    created_at: datetime


class DeliveryRow(msgspec.Struct):
    """A notice for one webhook, its payload as it will be sent at every attempt."""

    delivery_id: str
    webhook_id: str
    team_id: str
    host: str
    event: str
    job_id: str | None
    payload: JsonObject
    created_at: datetime
    at_position: int


class Reached(msgspec.Struct):
    position: int


def asks(batch: Batch) -> Iterable[Question]:
    """Who listens in the teams of the batch, what these teams had, and since when the jobs that start are there."""
    yield Question(_LISTENING, _teams(batch, *_WATCHED), Webhook)
    yield Question(_WATCHES, _teams(batch, *_CREDIT_EVENTS), TeamWatch)
    begun = {event.job_id for event in batch.of(JobCreated)}
    starts = {call.job_id for call in batch.of(CallStarted) if call.terms is not None} - begun
    yield Question(_BEGINNINGS, [AboutJob(job_id) for job_id in starts], Beginning)


def _teams(batch: Batch, *kinds: type[Event]) -> list[AboutTeam]:
    named: Iterable[Any] = (recorded.event for recorded in batch.recorded(*kinds))
    return list({AboutTeam(event.team_id) for event in named})


def project(
    batch: Batch,
    webhooks: Sequence[Webhook],
    watches: Sequence[TeamWatch],
    beginnings: Sequence[Beginning],
    *,
    thresholds: Sequence[int],
) -> Iterable[Statement]:
    known = {job.job_id: job.created_at for job in beginnings}
    told = _Told(webhooks, watches, known | {job.job_id: job.at for job in batch.of(JobCreated)}, thresholds)
    for recorded in batch.recorded(*_WATCHED):
        told.about(recorded)
    yield _DELIVER, told.deliveries
    yield _CHANGE, list(told.changed.values())
    yield _WATCH, list(told.watches.values())
    yield _MOVE_HORIZON, [Reached(batch.events[-1].position)]


def _project_tables(batch: Batch, *answers: Any) -> Iterable[Statement]:
    everything = project(batch, *answers, thresholds=())  # which say only who is told
    return [(statement, rows) for statement, rows in everything if statement in (_CHANGE, _WATCH)]


class _Told:
    """Goes through the events of a batch, with everything as each of them finds it."""

    def __init__(
        self,
        webhooks: Sequence[Webhook],
        watches: Sequence[TeamWatch],
        beginnings: Mapping[str, datetime],
        thresholds: Sequence[int],
    ) -> None:
        self.listening: dict[str, dict[str, Webhook]] = defaultdict(dict)
        for webhook in webhooks:
            self.listening[webhook.team_id][webhook.webhook_id] = webhook
        self.watches = {watch.team_id: watch for watch in watches}
        self.beginnings = beginnings
        self.thresholds = thresholds
        self.changed: dict[str, Webhook] = {}
        self.deliveries: list[DeliveryRow] = []

    def about(self, recorded: Recorded) -> None:
        event: Any = recorded.event
        webhooks = self.listening[event.team_id]
        if isinstance(event, RegisteredWebhookEvent):
            webhook = evolve(webhooks.get(event.webhook_id), event)
            webhooks[webhook.webhook_id] = self.changed[webhook.webhook_id] = webhook
        elif isinstance(event, _CREDIT_EVENTS):
            self._deliver(recorded, webhooks, self._watch(event))
        elif webhooks:
            notice = team_notice(event) or job_notice(event, self.beginnings.get(getattr(event, "job_id", "")))
            self._deliver(recorded, webhooks, [] if notice is None else [notice])

    def _watch(self, event: CreditMovement | BudgetSet | CreditsRanOut) -> list[Notice]:
        watch = self.watches.get(event.team_id) or TeamWatch(team_id=event.team_id)
        after, notices = watch_credits(watch, event, self.thresholds)
        assert isinstance(after, TeamWatch)
        self.watches[event.team_id] = after
        return notices

    def _deliver(self, recorded: Recorded, webhooks: Mapping[str, Webhook], notices: Sequence[Notice]) -> None:
        for number, notice in enumerate(notices):
            self.deliveries += (
                DeliveryRow(
                    delivery_id=delivery_id(webhook.webhook_id, recorded.position, number),
                    webhook_id=webhook.webhook_id,
                    team_id=notice.team_id,
                    host=_host(webhook.webhook_url),
                    event=notice.event,
                    job_id=notice.job_id,
                    payload=notice.body,
                    created_at=notice.at,
                    at_position=recorded.position,
                )
                for webhook in webhooks.values()
                if webhook.wants(notice.event)
            )


def _host(url: str) -> str:
    """Whom a delivery shares its receiver with. Only a hint for the sender: nothing here may stop the projections."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


# -- webhooks ----------------------------------------------------------------------------------------------------------

_LAST_TRIGGERED = """,
       (select max(delivery.created_at) from app.webhook_deliveries as delivery
        where delivery.webhook_id = webhooks.webhook_id) as last_triggered_at
"""
_OF_TEAM = "from webhooks where status <> 'deleted' and (%(team_id)s::text is null or team_id = %(team_id)s) "

_PAGE = (
    _COLUMNS
    + _LAST_TRIGGERED
    + _OF_TEAM
    + "order by created_at desc, webhook_id desc limit %(limit)s offset %(offset)s"
)
_COUNT = "select count(*) " + _OF_TEAM
_ONE = _COLUMNS + _LAST_TRIGGERED + "from webhooks where status <> 'deleted' and webhook_id = %(webhook_id)s"


_FORGET = """
delete from app.secrets
where secret_id in (
    select (old ->> 'secret_id')::uuid
    from webhooks, jsonb_array_elements(old_secrets) as old
    where status = 'deleted' or (old ->> 'valid_until')::timestamptz <= %s
    union all
    select unnest(array[secret_id, auth_header_id]) from webhooks where status = 'deleted')
"""


class WebhookRecord(Webhook):
    """A webhook as it is now."""

    last_triggered_at: datetime | None = None


async def page(connection: Connection, wanted: Mapping[str, Any]) -> tuple[list[WebhookRecord], int]:
    """A page of webhooks, the newest first, and how many there are.

    Args:
        wanted: team_id (None for all teams), limit, offset.
    """
    return await fetch_all(connection, WebhookRecord, _PAGE, wanted), await count(connection, _COUNT, wanted)


async def number_of(connection: Connection, team_id: str) -> int:
    """How many webhooks a team has."""
    return await count(connection, _COUNT, {"team_id": team_id})


async def forget_secrets(connection: Connection, at: datetime) -> int:
    """Deletes what signs no more: secrets whose overlap with the next one has ended, and all those of deleted webhooks.

    Returns:
        How many there were.
    """
    return (await connection.execute(_FORGET, (at,))).rowcount


async def one(connection: Connection, webhook_id: str) -> WebhookRecord | None:
    return await fetch_one(connection, WebhookRecord, _ONE, {"webhook_id": webhook_id})


# -- deliveries --------------------------------------------------------------------------------------------------------

_DELIVERY = """
select delivery_id::text, webhook_id::text, event, job_id::text, status, attempts, next_attempt_at, response_status,
       last_error, created_at, delivered_at, payload::text
"""
_WANTED = """
from app.webhook_deliveries
where webhook_id = %(webhook_id)s
  and (%(status)s::text is null or status = %(status)s)
  and (%(event)s::text is null or event = %(event)s)
"""
_DELIVERIES = _DELIVERY + _WANTED + "order by created_at desc, delivery_id desc limit %(limit)s offset %(offset)s"
_COUNT_DELIVERIES = "select count(*)" + _WANTED
_ONE_DELIVERY = _DELIVERY + "from app.webhook_deliveries where delivery_id = %(delivery_id)s"


DeliveryStatus = Literal["pending", "delivered", "failed"]


class DeliveryRecord(msgspec.Struct, kw_only=True):
    """A delivery as it is now; `payload` is the JSON that is sent."""

    delivery_id: str
    webhook_id: str
    event: str
    job_id: str | None
    status: DeliveryStatus
    attempts: int
    next_attempt_at: datetime | None
    response_status: int | None
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None
    payload: str


async def deliveries(connection: Connection, wanted: Mapping[str, Any]) -> tuple[list[DeliveryRecord], int]:
    """A page of deliveries to a webhook, the newest first, and how many there are.

    Args:
        wanted: webhook_id, status and event (None for any), limit, offset.
    """
    found = await fetch_all(connection, DeliveryRecord, _DELIVERIES, wanted)
    return found, await count(connection, _COUNT_DELIVERIES, wanted)


async def delivery(connection: Connection, delivery_id: str) -> DeliveryRecord | None:
    return await fetch_one(connection, DeliveryRecord, _ONE_DELIVERY, {"delivery_id": delivery_id})


WEBHOOKS = Projection(
    name="webhook_deliveries",
    version=2,
    tables=("webhooks", "credit_watches"),
    ddl=DDL,
    project=_project_tables,
    wants=_WATCHED,
    asks=asks,
    looks_up=("jobs",),
)
"""The tables alone: for who looks whether they are right, and must not tell anybody anything."""


def webhook_deliveries(thresholds: Sequence[int]) -> Projection:
    """The projection for these settings, deliveries included.

    Args:
        thresholds: CREDITS_LOW_THRESHOLDS: at which percentages of the allocated credits a team is told.
    """
    return replace(WEBHOOKS, project=partial(project, thresholds=thresholds))
