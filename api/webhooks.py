"""Webhooks: where a team wants to be told, and what became of each telling (contract, section 12)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, get_args
from uuid import UUID

import msgspec
from litestar import Controller, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Meta

from api.answers import reply, ts, ts_or_none
from api.bodies import ID, NO_CONTROL
from api.caller import Caller, team_or_admin
from api.house import House
from api.jobs import uuid_of
from api.keeping import keeping, keeping_if_given
from api.listing import Page, chosen, listed, one_of
from api.problems import Invalid
from api.shapes import Timestamp, Uuid
from domain.errors import Forbidden, NotFound
from domain.event import Json, Unset
from domain.streams import TEAM, WEBHOOK
from domain.webhook import (
    ROTATION_OVERLAP,
    WEBHOOK_EVENTS,
    ChangeWebhook,
    DeleteWebhook,
    RegisterWebhook,
    RotateWebhookSecret,
    Webhook,
    WebhookEvent,
    change_webhook,
    delete_webhook,
    register_webhook,
    require_webhook,
    rotate_webhook_secret,
)
from infra import webhooks as sending
from infra.addresses import BadTarget, Reason, check_url
from infra.ids import new_id
from infra.ledger import Outcome
from infra.secrets import new_webhook_secret
from infra.webhooks import AUTH_HEADER, SECRET
from projections import webhook_deliveries as read_model
from projections.webhook_deliveries import DeliveryRecord, DeliveryStatus

T = TypeVar("T")
W = TypeVar("W", bound=Webhook)

Url = Annotated[str, Meta(min_length=1, max_length=500)]
AuthHeader = Annotated[str, Meta(max_length=500, pattern=NO_CONTROL)]
Events = Annotated[list[WebhookEvent], Meta(min_length=1)]

_BAD_TARGETS: Mapping[Reason, str] = {
    "too_long": "a URL has at most 500 characters",
    "malformed": "this is not a URL",
    "scheme": "expected http or https",
    "credentials": "a URL may not contain a user or password; use auth_header",
    "unresolvable": "the host cannot be found",
    "private": "the address is not a public one",
}


class RegisterWebhookBody(msgspec.Struct, kw_only=True):
    """`auth_header` is sent as `Authorization`."""

    team_id: ID
    webhook_url: Url
    events: Events
    auth_header: AuthHeader | None = None


class ChangeWebhookBody(msgspec.Struct, kw_only=True):
    """What is absent stays; an empty `auth_header` takes it away."""

    webhook_url: Url | None = None
    events: Events | None = None
    is_active: bool | None = None
    auth_header: AuthHeader | None = None


class WebhookAnswer(msgspec.Struct, kw_only=True):
    webhook_id: Uuid
    team_id: str
    webhook_url: str
    events: list[str]
    is_active: bool
    has_auth_header: bool
    created_at: Timestamp
    updated_at: Timestamp
    last_triggered_at: Timestamp | None
    disabled_reason: str | None


class WebhookWithSecret(WebhookAnswer, kw_only=True):
    """`secret` is shown this once."""

    secret: str


class WebhookDeletedAnswer(msgspec.Struct):
    webhook_id: Uuid
    message: str


class DeliveryAnswer(msgspec.Struct, kw_only=True):
    """`payload` is what is sent, byte for byte."""

    delivery_id: Uuid
    webhook_id: Uuid
    event: str
    job_id: Uuid | None
    status: DeliveryStatus
    attempts: int
    next_attempt_at: Timestamp | None
    response_status: int | None
    last_error: str | None
    created_at: Timestamp
    delivered_at: Timestamp | None
    payload: Mapping[str, Json]


class WebhooksController(Controller):
    path = "/api/webhooks"
    tags = ["Webhooks"]
    before_request = team_or_admin

    @post("/register", status_code=201)
    async def register(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[RegisterWebhookBody]
    ) -> Response[WebhookWithSecret]:
        """Be told of events by HTTP requests to a public address.

        The secret that signs them is shown this once. A team has at most 50 webhooks.
        """
        await _require_good_target(house, data.webhook_url)
        team_id = caller.team_for(data.team_id)
        so_far = await _number_of(house, team_id)
        webhook_id, secret = new_id(), new_webhook_secret()
        async with (
            keeping(house.secrets, SECRET, secret) as secret_id,
            keeping_if_given(house.secrets, AUTH_HEADER, data.auth_header) as auth_header_id,
        ):
            command = RegisterWebhook(
                **caller.signature(),
                webhook_id=webhook_id,
                webhook_url=data.webhook_url,
                events=tuple(data.events),
                secret_id=secret_id,
                auth_header_id=auth_header_id,
                so_far=so_far,
            )
            stream = WEBHOOK.stream(webhook_id)
            return await caller.carry_out(
                register_webhook,
                command,
                stream,
                TEAM.stream(team_id),
                new=stream,
                answer=lambda done: _with_secret(done, secret, None),
                status=201,
                is_secret=True,
            )

    @get("")
    async def list_webhooks(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        team_id: FromQuery[str | None] = None,
    ) -> Response[list[WebhookAnswer]]:
        """A team's webhooks, newest first; everybody's for an administrator who names no team."""
        wanted = {
            "team_id": team_id if caller.is_admin else caller.team_for(team_id),
            "limit": page.limit,
            "offset": page.offset,
        }
        async with house.pool.connection() as connection:
            found, total = await read_model.page(connection, wanted)
        return listed((webhook_answer(webhook, webhook.last_triggered_at) for webhook in found), total)

    @get("/{webhook_id:str}")
    async def details(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], webhook_id: FromPath[str]
    ) -> Response[WebhookAnswer]:
        """One webhook."""
        async with house.pool.connection() as connection:
            webhook = _own(caller, await read_model.one(connection, uuid_of(webhook_id, "webhook")))
        return reply(webhook_answer(webhook, webhook.last_triggered_at))

    @put("/{webhook_id:str}")
    async def change(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        webhook_id: FromPath[str],
        data: JSONBody[ChangeWebhookBody],
    ) -> Response[WebhookAnswer]:
        """Change where and of what to be told, or switch a webhook off and on."""
        webhook_id = uuid_of(webhook_id, "webhook")
        if data.webhook_url is not None:
            await _require_good_target(house, data.webhook_url)
        before = _own(caller, await _state(caller, webhook_id))
        triggered = await _last_triggered(house, webhook_id)
        async with keeping_if_given(house.secrets, AUTH_HEADER, data.auth_header) as auth_header_id:
            command = ChangeWebhook(
                **caller.signature(),
                webhook_url=_or_unset(data.webhook_url),
                events=UNSET if data.events is None else tuple(data.events),
                auth_header_id=UNSET if data.auth_header is None else auth_header_id,
                is_active=_or_unset(data.is_active),
            )
            answered = await caller.carry_out(
                change_webhook,
                command,
                WEBHOOK.stream(webhook_id),
                answer=lambda done: webhook_answer(done.states[0], triggered),
            )
        if data.auth_header is not None:
            await _forget(house, before.auth_header_id)
        return answered

    @delete("/{webhook_id:str}", status_code=200)
    async def remove(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], webhook_id: FromPath[str]
    ) -> Response[WebhookDeletedAnswer]:
        """Be told no more."""
        webhook_id = uuid_of(webhook_id, "webhook")
        before = _own(caller, await _state(caller, webhook_id))
        command = DeleteWebhook(**caller.signature())
        answered = await caller.carry_out(
            delete_webhook,
            command,
            WEBHOOK.stream(webhook_id),
            answer=lambda _: WebhookDeletedAnswer(webhook_id, "Webhook deleted"),
        )
        await _forget(house, before.secret_id, *(old.secret_id for old in before.old_secrets), before.auth_header_id)
        return answered

    @post("/{webhook_id:str}/rotate-secret", status_code=200)
    async def rotate_secret(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], webhook_id: FromPath[str]
    ) -> Response[WebhookWithSecret]:
        """Get a new secret, shown this once. For 24 hours the old one signs as well."""
        webhook_id = uuid_of(webhook_id, "webhook")
        _own(caller, await _state(caller, webhook_id))
        triggered = await _last_triggered(house, webhook_id)
        secret, signature = new_webhook_secret(), caller.signature()
        async with keeping(house.secrets, SECRET, secret) as secret_id:
            command = RotateWebhookSecret(
                **signature, secret_id=secret_id, old_valid_until=signature["at"] + ROTATION_OVERLAP
            )
            return await caller.carry_out(
                rotate_webhook_secret,
                command,
                WEBHOOK.stream(webhook_id),
                answer=lambda done: _with_secret(done, secret, triggered),
                is_secret=True,
            )

    @get("/{webhook_id:str}/deliveries")
    async def list_deliveries(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        webhook_id: FromPath[str],
        status: Annotated[str | None, one_of(get_args(DeliveryStatus))] = None,
        event: Annotated[str | None, one_of(WEBHOOK_EVENTS)] = None,
    ) -> Response[list[DeliveryAnswer]]:
        """What a webhook was told of, newest first, and what became of it."""
        webhook_id = uuid_of(webhook_id, "webhook")
        wanted = {
            "webhook_id": webhook_id,
            "status": chosen("status", status, get_args(DeliveryStatus)),
            "event": chosen("event", event, WEBHOOK_EVENTS),
            "limit": page.limit,
            "offset": page.offset,
        }
        async with house.pool.connection() as connection:
            _own(caller, await read_model.one(connection, webhook_id))
            found, total = await read_model.deliveries(connection, wanted)
        return listed(map(delivery_answer, found), total)

    @post("/{webhook_id:str}/deliveries/{delivery_id:str}/redeliver", status_code=200)
    async def redeliver(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        webhook_id: FromPath[str],
        delivery_id: FromPath[str],
    ) -> Response[DeliveryAnswer]:
        """Have a delivery sent once more, under the same `webhook-id`."""
        webhook = require_webhook(_own(caller, await _state(caller, uuid_of(webhook_id, "webhook"))))
        delivery_id = uuid_of(delivery_id, "delivery")
        async with house.pool.connection() as connection:
            if not await sending.redeliver(connection, webhook.webhook_id, delivery_id, datetime.now(UTC)):
                raise NotFound("delivery")
            delivery = await read_model.delivery(connection, delivery_id)
        house.sender.wake()
        assert delivery is not None
        return reply(delivery_answer(delivery))


# -- what the methods have in common -----------------------------------------------------------------------------------


async def _state(caller: Caller, webhook_id: str) -> Webhook | None:
    """The webhook as it is now, asked by somebody who may still ask."""
    outcome = await caller.house.ledger.read(WEBHOOK.stream(webhook_id), guard=caller.guard)
    webhook: Webhook | None = outcome.states[0]
    return webhook


def _own(caller: Caller, webhook: W | None) -> W:
    """The webhook, deleted or not, if it is not another team's."""
    if webhook is None:
        raise NotFound("webhook")
    if caller.team_id is not None and webhook.team_id != caller.team_id:
        raise Forbidden(caller.team_id)
    return webhook


async def _number_of(house: House, team_id: str) -> int:
    """How many webhooks a team has: those of a moment ago at least, and all that were answered to anybody."""
    await house.progress.reach((await house.ledger.read()).position)
    async with house.pool.connection() as connection:
        return await read_model.number_of(connection, team_id)


async def _last_triggered(house: House, webhook_id: str) -> datetime | None:
    async with house.pool.connection() as connection:
        webhook = await read_model.one(connection, webhook_id)
    return None if webhook is None else webhook.last_triggered_at


async def _require_good_target(house: House, url: str) -> None:
    try:
        await check_url(url, house.settings.webhook_allow_private)
    except BadTarget as bad:
        kind = "value_error.length" if bad.reason == "too_long" else "value_error.format"
        raise Invalid(["body", "webhook_url"], _BAD_TARGETS[bad.reason], kind) from None


async def _forget(house: House, *secret_ids: str | None) -> None:
    for secret_id in secret_ids:
        if secret_id is not None:
            await house.secrets.delete(UUID(secret_id))


def _or_unset(value: T | None) -> T | Unset:
    return UNSET if value is None else value


def _with_secret(done: Outcome, secret: str, last_triggered_at: datetime | None) -> WebhookWithSecret:
    return WebhookWithSecret(**_fields(done.states[0], last_triggered_at), secret=secret)


def webhook_answer(webhook: Webhook, last_triggered_at: datetime | None) -> WebhookAnswer:
    return WebhookAnswer(**_fields(webhook, last_triggered_at))


def _fields(webhook: Webhook, last_triggered_at: datetime | None) -> dict[str, Any]:
    return {
        "webhook_id": webhook.webhook_id,
        "team_id": webhook.team_id,
        "webhook_url": webhook.webhook_url,
        "events": list(webhook.events),
        "is_active": webhook.is_active,
        "has_auth_header": webhook.has_auth_header,
        "created_at": ts(webhook.created_at),
        "updated_at": ts(webhook.updated_at),
        "last_triggered_at": ts_or_none(last_triggered_at),
        "disabled_reason": webhook.disabled_reason,
    }


def delivery_answer(delivery: DeliveryRecord) -> DeliveryAnswer:
    return DeliveryAnswer(
        delivery_id=delivery.delivery_id,
        webhook_id=delivery.webhook_id,
        event=delivery.event,
        job_id=delivery.job_id,
        status=delivery.status,
        attempts=delivery.attempts,
        next_attempt_at=ts_or_none(delivery.next_attempt_at),
        response_status=delivery.response_status,
        last_error=delivery.last_error,
        created_at=ts(delivery.created_at),
        delivered_at=ts_or_none(delivery.delivered_at),
        payload=msgspec.Raw(delivery.payload.encode()),  # type: ignore[arg-type]
    )
