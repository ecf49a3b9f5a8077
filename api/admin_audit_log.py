"""What administrators did, as they may read it themselves. The journal is the proof; this is the short form."""

from typing import Annotated, cast
from uuid import UUID

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from api.answers import ts
from api.caller import log_readers_only
from api.house import House
from api.listing import Page, Within, chosen, listed, one_of
from api.shapes import Timestamp
from domain.event import JsonObject
from projections import audit_log
from projections.audit_log import ACTIONS, RESOURCE_TYPES, AuditRecord, Filter


class AuditAnswer(msgspec.Struct, kw_only=True):
    """`audit_id` is the position of its event in the journal; `actor` is `master` or `system` where it was nobody."""

    audit_id: str
    user_id: str | None
    actor: str
    action: str
    resource_type: str | None
    resource_id: str | None
    details: JsonObject
    ip_address: str | None
    request_id: str
    created_at: Timestamp


class AdminAuditLogController(Controller):
    path = "/api/admin-users"
    tags = ["Admin Users"]

    @get("/audit-logs", before_request=log_readers_only)
    async def list_entries(
        self,
        house: NamedDependency[House],
        page: NamedDependency[Page],
        within: NamedDependency[Within],
        action: Annotated[str | None, one_of(ACTIONS)] = None,
        user_id: FromQuery[UUID | None] = None,
        resource_type: Annotated[str | None, one_of(RESOURCE_TYPES)] = None,
    ) -> Response[list[AuditAnswer]]:
        """What administrators did, the newest first."""
        wanted = Filter(
            action=chosen("action", action, ACTIONS),
            user_id=None if user_id is None else str(user_id),
            resource_type=chosen("resource_type", resource_type, RESOURCE_TYPES),
            start=within.start,
            end=within.end,
        )
        async with house.pool.connection() as connection:
            total, found = await audit_log.page(connection, wanted, limit=page.limit, offset=page.offset)
        return listed([_answer(entry) for entry in found], total)


def _answer(entry: AuditRecord) -> AuditAnswer:
    return AuditAnswer(
        audit_id=str(entry.position),
        user_id=entry.user_id,
        actor=entry.actor,
        action=entry.action,
        resource_type=entry.resource_type,
        resource_id=entry.resource_id,
        details=cast("JsonObject", msgspec.Raw(entry.details.encode())),
        ip_address=entry.ip_address,
        request_id=entry.request_id,
        created_at=ts(entry.created_at),
    )
