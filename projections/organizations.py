"""Organizations: one row each, deleted ones included. Which teams they have is in `teams`."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from domain.event import Event, Json, JsonObject
from domain.organization import (
    Organization,
    OrganizationChanged,
    OrganizationCreated,
    OrganizationDeleted,
    OrganizationPaused,
    OrganizationResumed,
    OrganizationSuspended,
    Status,
)
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import count, fetch_all, fetch_one

DDL = """
create table organizations (
    organization_id text primary key,
    name            text not null,
    status          text not null default 'active',
    metadata        jsonb not null,
    default_model   text,
    created_at      timestamptz not null,
    updated_at      timestamptz not null
);
"""

_INSERT = """
insert into organizations (organization_id, name, metadata, default_model, created_at, updated_at)
select organization_id, name, metadata, default_model, created_at, created_at
from json_to_recordset(%s) as row (
    organization_id text, name text, metadata jsonb, default_model text, created_at timestamptz)
"""

# What a change does not speak of stays as it is in the row.
_UPDATE = """
update organizations
set (name, status, metadata, default_model, updated_at) = (
    select name, status, metadata, default_model, updated_at
    from json_populate_record(organizations, change.fields))
from json_array_elements(%s) as change (fields)
where organizations.organization_id = change.fields ->> 'organization_id'
"""

SELECT = """
select organization_id, name, status, metadata, default_model, created_at, updated_at
from organizations
"""

_WHERE = """
where case when %(status)s::text is null then status <> 'inactive' else status = %(status)s end
"""

_PAGE = SELECT + _WHERE + "order by organization_id limit %(limit)s offset %(offset)s"
_COUNT = "select count(*) from organizations" + _WHERE  # noqa: S608 two constants


class OrganizationRecord(msgspec.Struct, kw_only=True):
    """An organization as it is now."""

    organization_id: str
    name: str
    status: Status
    metadata: Mapping[str, Json]
    default_model: str | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, organization: Organization) -> "OrganizationRecord":
        """An organization's state, as the table will have it."""
        return cls(**{name: getattr(organization, name) for name in cls.__struct_fields__})


class OrganizationRow(msgspec.Struct):
    organization_id: str
    name: str
    metadata: JsonObject
    default_model: str | None
    created_at: datetime


class OrganizationChange(msgspec.Struct):
    """What a batch changes in one organization; what stays is left out."""

    organization_id: str
    updated_at: datetime
    status: Status | UnsetType = UNSET
    name: str | UnsetType = UNSET
    metadata: JsonObject | UnsetType = UNSET
    default_model: str | UnsetType | None = UNSET


_CHANGING = (
    OrganizationChanged,
    OrganizationSuspended,
    OrganizationPaused,
    OrganizationResumed,
    OrganizationDeleted,
)


def project(batch: Batch) -> Iterable[Statement]:
    yield _INSERT, [_row(event) for event in batch.of(OrganizationCreated)]
    yield _UPDATE, _changes(batch)


def _row(event: OrganizationCreated) -> OrganizationRow:
    return OrganizationRow(event.organization_id, event.name, event.metadata, event.default_model, event.at)


def _changes(batch: Batch) -> list[OrganizationChange]:
    changes: dict[str, OrganizationChange] = {}
    for recorded in batch.recorded(*_CHANGING):
        event = recorded.event
        assert isinstance(event, _CHANGING)
        change = changes.setdefault(event.organization_id, OrganizationChange(event.organization_id, event.at))
        change.updated_at = event.at
        _change(change, event)
    return list(changes.values())


def _change(change: OrganizationChange, event: Event) -> None:
    match event:
        case OrganizationChanged():
            change.name, change.metadata, change.default_model = event.name, event.metadata, event.default_model
        case OrganizationSuspended():
            change.status = "suspended"
        case OrganizationPaused():
            change.status = "paused"
        case OrganizationResumed():
            change.status = "active"
        case OrganizationDeleted():
            change.status = "inactive"


async def one(connection: Connection, organization_id: str) -> OrganizationRecord | None:
    select = SELECT + "where organization_id = %(organization_id)s"
    return await fetch_one(connection, OrganizationRecord, select, {"organization_id": organization_id})


async def page(connection: Connection, wanted: Mapping[str, Any]) -> tuple[list[OrganizationRecord], int]:
    """A page of organizations by id, and how many there are in all.

    Args:
        wanted: limit, offset, status (None: all that were not deleted).
    """
    found = await fetch_all(connection, OrganizationRecord, _PAGE, wanted)
    return found, await count(connection, _COUNT, wanted)


ORGANIZATIONS = Projection(
    name="organizations",
    version=1,
    tables=("organizations",),
    ddl=DDL,
    project=project,
    wants=(OrganizationCreated, *_CHANGING),
)
