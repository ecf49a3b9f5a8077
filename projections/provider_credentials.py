"""Organizations' credentials at the providers of models: one row a credential, without its key."""

from collections.abc import Iterable
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from domain.credential import (
    Credential,
    CredentialActivated,
    CredentialChanged,
    CredentialCreated,
    CredentialDeactivated,
    CredentialDeleted,
    canonical_provider,
)
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import count, fetch_all, fetch_one

# `canonical` is the provider's one name, by which it is found under all of its names.
DDL = """
create table provider_credentials (
    credential_id   uuid primary key,
    organization_id text not null,
    provider        text not null,
    canonical       text not null,
    credential_name text not null,
    api_base        text,
    is_active       boolean not null default true,
    created_by      text,
    updated_by      text,
    created_at      timestamptz not null,
    updated_at      timestamptz not null
);
create index provider_credentials_by_organization on provider_credentials (organization_id, canonical);
create index provider_credentials_by_name on provider_credentials (credential_name, credential_id);
"""

_INSERT = """
insert into provider_credentials (credential_id, organization_id, provider, canonical, credential_name, api_base,
                                  created_by, created_at, updated_at)
select credential_id, organization_id, provider, canonical, credential_name, api_base, created_by, created_at,
       created_at
from json_to_recordset(%s) as row (
    credential_id uuid, organization_id text, provider text, canonical text, credential_name text, api_base text,
    created_by text, created_at timestamptz)
"""

# What a change does not speak of stays as it is in the row.
_UPDATE = """
update provider_credentials
set (credential_name, api_base, is_active, updated_by, updated_at) = (
    select credential_name, api_base, is_active, updated_by, updated_at
    from json_populate_record(provider_credentials, change.fields))
from json_array_elements(%s) as change (fields)
where provider_credentials.credential_id = (change.fields ->> 'credential_id')::uuid
"""

_DELETE = """
delete from provider_credentials using json_to_recordset(%s) as deleted (credential_id uuid)
where provider_credentials.credential_id = deleted.credential_id
"""

_WHERE = """
from provider_credentials
where (%(organization_id)s::text is null or organization_id = %(organization_id)s)
  and (%(canonical)s::text is null or canonical = %(canonical)s)
  and (is_active or not %(active_only)s)
"""

_COLUMNS = """
select credential_id::text, organization_id, provider, credential_name, api_base, is_active, created_by, updated_by,
       created_at, updated_at
"""

_PAGE = _COLUMNS + _WHERE + "order by credential_name, credential_id limit %(limit)s offset %(offset)s"
_COUNT = "select count(*)" + _WHERE
_ONE = _COLUMNS + "from provider_credentials where credential_id = %(credential_id)s"
_NAMED = """
select count(*) from provider_credentials where credential_name = %(credential_name)s and canonical = %(canonical)s
"""


class CredentialRecord(msgspec.Struct, kw_only=True):
    """A credential as it is now."""

    credential_id: str
    organization_id: str
    provider: str
    credential_name: str
    api_base: str | None
    is_active: bool
    created_by: str | None
    updated_by: str | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, organization_id: str, credential: Credential) -> "CredentialRecord":
        """A credential of an organization's state, as the table will have it."""
        return cls(
            credential_id=credential.credential_id,
            organization_id=organization_id,
            provider=credential.provider,
            credential_name=credential.credential_name,
            api_base=credential.api_base,
            is_active=credential.is_active,
            created_by=credential.created_by,
            updated_by=credential.updated_by,
            created_at=credential.created_at,
            updated_at=credential.updated_at,
        )


class CredentialRow(msgspec.Struct):
    credential_id: str
    organization_id: str
    provider: str
    canonical: str
    credential_name: str
    api_base: str | None
    created_by: str | None
    created_at: datetime


class CredentialChange(msgspec.Struct):
    """What a batch changes in one credential; null is a value here, so what stays is left out."""

    credential_id: str
    updated_at: datetime
    updated_by: str | None
    credential_name: str | UnsetType = UNSET
    api_base: str | UnsetType | None = UNSET
    is_active: bool | UnsetType = UNSET


class CredentialId(msgspec.Struct):
    credential_id: str


def project(batch: Batch) -> Iterable[Statement]:
    yield _INSERT, [_row(event) for event in batch.of(CredentialCreated)]
    yield _UPDATE, _changes(batch)
    yield _DELETE, [CredentialId(event.credential_id) for event in batch.of(CredentialDeleted)]


def _row(event: CredentialCreated) -> CredentialRow:
    return CredentialRow(
        credential_id=event.credential_id,
        organization_id=event.organization_id,
        provider=event.provider,
        canonical=canonical_provider(event.provider),
        credential_name=event.credential_name,
        api_base=event.api_base,
        created_by=event.created_by,
        created_at=event.at,
    )


def _changes(batch: Batch) -> list[CredentialChange]:
    changes: dict[str, CredentialChange] = {}
    for recorded in batch.recorded(CredentialChanged, CredentialActivated, CredentialDeactivated):
        event = recorded.event
        assert isinstance(event, CredentialChanged | CredentialActivated | CredentialDeactivated)
        change = changes.setdefault(event.credential_id, CredentialChange(event.credential_id, event.at, None))
        change.updated_at, change.updated_by = event.at, event.updated_by
        if isinstance(event, CredentialChanged):
            change.credential_name, change.api_base = event.credential_name, event.api_base
        else:
            change.is_active = isinstance(event, CredentialActivated)
    return list(changes.values())


async def page(
    connection: Connection,
    *,
    organization_id: str | None = None,
    provider: str | None = None,
    active_only: bool,
    limit: int,
    offset: int,
) -> tuple[list[CredentialRecord], int]:
    """A page of credentials by name, and how many there are."""
    wanted = {
        "organization_id": organization_id,
        "canonical": None if provider is None else canonical_provider(provider),
        "active_only": active_only,
    }
    found = await fetch_all(connection, CredentialRecord, _PAGE, {**wanted, "limit": limit, "offset": offset})
    return found, await count(connection, _COUNT, wanted)


async def one(connection: Connection, credential_id: str) -> CredentialRecord | None:
    return await fetch_one(connection, CredentialRecord, _ONE, {"credential_id": credential_id})


async def is_known(connection: Connection, provider: str, credential_name: str) -> bool:
    """Whether any organization has a credential of this name at a provider."""
    named = {"canonical": canonical_provider(provider), "credential_name": credential_name}
    return await count(connection, _NAMED, named) > 0


PROVIDER_CREDENTIALS = Projection(
    name="provider_credentials",
    version=1,
    tables=("provider_credentials",),
    ddl=DDL,
    project=project,
    wants=(CredentialCreated, CredentialChanged, CredentialActivated, CredentialDeactivated, CredentialDeleted),
)
