"""Virtual keys, known by their masked form: one row a key, revoked ones included."""

from collections.abc import Iterable
from datetime import datetime

import msgspec

from domain.event import Event
from domain.team import VirtualKey, VirtualKeyIssued, VirtualKeyRevoked
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import count, fetch_all, fetch_one

DDL = """
create table keys (
    key_id       text primary key,
    team_id      text not null,
    position     bigint not null,
    name         text,
    masked       text not null,
    created_at   timestamptz not null,
    ends_at      timestamptz,
    last_used_at timestamptz
);
create index keys_by_team on keys (team_id, position);
"""

_INSERT = """
insert into keys (key_id, team_id, position, name, masked, created_at)
select key_id, team_id, position, name, masked, created_at
from json_to_recordset(%s) as row (
    key_id text, team_id text, position bigint, name text, masked text, created_at timestamptz)
"""

_END = """
update keys set ends_at = change.ends_at
from json_to_recordset(%s) as change (key_id text, ends_at timestamptz)
where keys.key_id = change.key_id
"""

# What administrators and the server itself did names no key and finds no row here.
_USE = """
update keys set last_used_at = change.used_at
from json_to_recordset(%s) as change (key_id text, used_at timestamptz)
where keys.key_id = change.key_id
"""

_OF_TEAM = """
select key_id, team_id, name, masked, created_at, ends_at, last_used_at
from keys where team_id = %(team_id)s order by position limit %(limit)s offset %(offset)s
"""

_ONE = """
select key_id, team_id, name, masked, created_at, ends_at, last_used_at from keys where key_id = %(key_id)s
"""


_COUNT = "select count(*) from keys where team_id = %(team_id)s"


class KeyRecord(msgspec.Struct, kw_only=True):
    """A key as it is now: worth something until `ends_at`."""

    key_id: str
    team_id: str
    name: str | None
    masked: str
    created_at: datetime
    ends_at: datetime | None
    last_used_at: datetime | None = None

    def is_active(self, at: datetime) -> bool:
        return self.ends_at is None or at < self.ends_at

    @classmethod
    def of(cls, team_id: str, key: VirtualKey) -> "KeyRecord":
        """A key of a team's state; when it was last used is not in there."""
        return cls(
            key_id=key.key_id,
            team_id=team_id,
            name=key.name,
            masked=key.masked,
            created_at=key.created_at,
            ends_at=key.ends_at,
        )


class KeyRow(msgspec.Struct):
    key_id: str
    team_id: str
    position: int
    name: str | None
    masked: str
    created_at: datetime


class KeyEnd(msgspec.Struct):
    key_id: str
    ends_at: datetime


class KeyUse(msgspec.Struct):
    key_id: str
    used_at: datetime


NO_KEYS = frozenset({"", "master", "system"})


def project(batch: Batch) -> Iterable[Statement]:
    yield _INSERT, [_row(recorded.position, recorded.event) for recorded in batch.recorded(VirtualKeyIssued)]
    ends = {event.key_id: event.ends_at for event in batch.of(VirtualKeyRevoked)}
    yield _END, [KeyEnd(key_id, ends_at) for key_id, ends_at in ends.items()]
    uses = {recorded.event.by: recorded.event.at for recorded in batch.events if recorded.event.by not in NO_KEYS}
    yield _USE, [KeyUse(key_id, used_at) for key_id, used_at in uses.items()]


def _row(position: int, event: Event) -> KeyRow:
    assert isinstance(event, VirtualKeyIssued)
    return KeyRow(event.key_id, event.team_id, position, event.name, event.masked, event.at)


async def of_team(connection: Connection, team_id: str, *, limit: int, offset: int) -> tuple[int, list[KeyRecord]]:
    """The number of a team's keys, and a page of them, oldest first."""
    page = {"team_id": team_id, "limit": limit, "offset": offset}
    return await count(connection, _COUNT, page), await fetch_all(connection, KeyRecord, _OF_TEAM, page)


async def one(connection: Connection, key_id: str) -> KeyRecord | None:
    return await fetch_one(connection, KeyRecord, _ONE, {"key_id": key_id})


KEYS = Projection(name="keys", version=1, tables=("keys",), ddl=DDL, project=project)
