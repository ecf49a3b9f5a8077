"""The virtual keys of teams (contract, section 5). A key is shown once; afterwards only its masked form is known."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from api.answers import ts, ts_or_none
from api.bodies import Name200
from api.caller import Caller, admin_only, team_or_admin
from api.house import House
from api.jobs import uuid_of
from api.listing import Page, listed
from api.shapes import Timestamp, Uuid
from api.teams import ChosenKey, fresh_key, known_team
from domain.streams import KEY, TEAM
from domain.team import (
    IssueKey,
    RevokeKey,
    RotateKey,
    VirtualKeyIssued,
    issue_key,
    require_team,
    revoke_key,
    rotate_key,
)
from infra.ids import new_id
from infra.ledger import Outcome
from infra.secrets import hash_key, mask_key
from projections import keys, teams
from projections.keys import KeyRecord

LONGEST_GRACE_SECONDS = 604_800  # a week

# -- bodies ------------------------------------------------------------------------------------------------------------


class IssueKeyBody(msgspec.Struct, kw_only=True, frozen=True):
    name: Name200 | None = None
    virtual_key: ChosenKey | None = None


class RotateKeyBody(msgspec.Struct, kw_only=True, frozen=True):
    """For how long the old key goes on being good."""

    grace_seconds: Annotated[int, Meta(ge=0, le=LONGEST_GRACE_SECONDS)] | None = None


ANY_KEY = IssueKeyBody()
AT_ONCE = RotateKeyBody()

# -- answers -----------------------------------------------------------------------------------------------------------


class KeyAnswer(msgspec.Struct, kw_only=True):
    """`revoked_at` may lie ahead: until then a key that was replaced is still good."""

    key_id: Uuid
    team_id: str
    name: str | None
    virtual_key: str
    is_active: bool
    created_at: Timestamp
    last_used_at: Timestamp | None
    revoked_at: Timestamp | None


class KeyReplaced(KeyAnswer, kw_only=True):
    """The new key, in the clear, this once; and which one it replaces."""

    replaces: Uuid


class KeyRevoked(KeyAnswer, kw_only=True):
    message: str


# -- endpoints ---------------------------------------------------------------------------------------------------------


class KeysController(Controller):
    path = "/api/teams/{team_id:str}"
    tags = ["Keys"]

    @post("/keys", status_code=200, before_request=admin_only)
    async def issue(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        data: JSONBody[IssueKeyBody] = ANY_KEY,
    ) -> Response[KeyAnswer]:
        """Give a team another key. It is shown this once."""
        key = fresh_key(house, data.virtual_key)
        command = IssueKey(**caller.signature(), **_facts(key), name=data.name)

        def issued(outcome: Outcome) -> KeyAnswer:
            return KeyAnswer(**{**_fields_of(outcome, command.key_id, command.at), "virtual_key": key})

        streams = TEAM.stream(team_id), KEY.stream(command.key_hash)
        return await caller.carry_out(issue_key, command, *streams, answer=issued, is_secret=True)

    @get("/keys", before_request=team_or_admin)
    async def list_keys(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        team_id: FromPath[str],
    ) -> Response[list[KeyAnswer]]:
        """A team's keys, oldest first, revoked ones included."""
        team_id = caller.team_for(team_id)
        async with house.pool.connection() as connection:
            known_team(await teams.one(connection, team_id))
            total, found = await keys.of_team(connection, team_id, limit=page.limit, offset=page.offset)
        now = datetime.now(UTC)
        return listed((KeyAnswer(**_fields(key, now)) for key in found), total)

    @delete("/keys/{key_id:str}", status_code=200, before_request=admin_only)
    async def remove(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        key_id: FromPath[str],
    ) -> Response[KeyRevoked]:
        """End a key, at once and everywhere."""
        return await _revoke(caller, house, team_id, key_id)

    @post("/keys/{key_id:str}/revoke", status_code=200, before_request=admin_only)
    async def revoke(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        key_id: FromPath[str],
    ) -> Response[KeyRevoked]:
        """End a key, at once and everywhere."""
        return await _revoke(caller, house, team_id, key_id)

    @post("/keys/{key_id:str}/rotate", status_code=200, before_request=admin_only)
    async def rotate(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        key_id: FromPath[str],
        data: JSONBody[RotateKeyBody] = AT_ONCE,
    ) -> Response[KeyReplaced]:
        """Replace a key by a new one, which is shown this once."""
        return await _rotate(caller, house, team_id, uuid_of(key_id, "virtual_key"), data)

    @post("/rotate-key", status_code=200, before_request=admin_only)
    async def rotate_oldest(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        data: JSONBody[RotateKeyBody] = AT_ONCE,
    ) -> Response[KeyReplaced]:
        """Replace the oldest active key by a new one, which is shown this once."""
        return await _rotate(caller, house, team_id, None, data)


# -- what the methods have in common -----------------------------------------------------------------------------------


def _facts(key: str) -> dict[str, Any]:
    """What may be kept of a new key."""
    return {"key_id": new_id(), "key_hash": hash_key(key), "masked": mask_key(key)}


async def _revoke(caller: Caller, house: House, team_id: str, key_id: str) -> Response[KeyRevoked]:
    command = RevokeKey(**caller.signature(), key_id=uuid_of(key_id, "virtual_key"))
    async with house.pool.connection() as connection:
        known = await keys.one(connection, command.key_id)
    last_used_at = None if known is None else ts_or_none(known.last_used_at)

    def revoked(outcome: Outcome) -> KeyRevoked:
        fields = {**_fields_of(outcome, command.key_id, command.at), "last_used_at": last_used_at}
        return KeyRevoked(**fields, message="The key is worth nothing any more")

    return await caller.carry_out(revoke_key, command, TEAM.stream(team_id), answer=revoked)


async def _rotate(
    caller: Caller, house: House, team_id: str, replaces: str | None, data: RotateKeyBody
) -> Response[KeyReplaced]:
    key = fresh_key(house, None)
    signature = caller.signature()
    old_ends_at = signature["at"] + timedelta(seconds=data.grace_seconds or 0)
    command = RotateKey(**signature, **_facts(key), replaces=replaces, old_ends_at=old_ends_at)

    def replaced(outcome: Outcome) -> KeyReplaced:
        issued = outcome.events[0]
        assert isinstance(issued, VirtualKeyIssued)
        assert issued.replaces is not None
        fields = {**_fields_of(outcome, command.key_id, command.at), "virtual_key": key}
        return KeyReplaced(**fields, replaces=issued.replaces)

    streams = TEAM.stream(team_id), KEY.stream(command.key_hash)
    return await caller.carry_out(rotate_key, command, *streams, answer=replaced, is_secret=True)


def _fields_of(outcome: Outcome, key_id: str, at: datetime) -> dict[str, Any]:
    team = require_team(outcome.states[0])
    key = team.key(key_id)
    assert key is not None
    return _fields(KeyRecord.of(team.team_id, key), at)


def _fields(key: KeyRecord, at: datetime) -> dict[str, Any]:
    """What every answer about a key says."""
    return {
        "key_id": key.key_id,
        "team_id": key.team_id,
        "name": key.name,
        "virtual_key": key.masked,
        "is_active": key.is_active(at),
        "created_at": ts(key.created_at),
        "last_used_at": ts_or_none(key.last_used_at),
        "revoked_at": ts_or_none(key.ends_at),
    }
