"""Teams, keys and organizations: the tables say what the states say, however the events arrive."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from domain import organization, team
from domain.event import Event
from domain.organization import (
    Organization,
    OrganizationChanged,
    OrganizationCreated,
    OrganizationDeleted,
    OrganizationPaused,
    OrganizationResumed,
    OrganizationSuspended,
    TeamJoined,
    TeamLeft,
)
from domain.team import (
    AutoRefillSet,
    Budget,
    BudgetSet,
    LimitsSet,
    ModelAccessAssigned,
    Team,
    TeamChanged,
    TeamCreated,
    TeamDeleted,
    TeamPaused,
    TeamResumed,
    TeamSuspended,
    VirtualKeyIssued,
    VirtualKeyRevoked,
)
from infra import postgres
from infra.journal import Connection, Recorded
from projections import keys, organizations, teams
from projections.engine import prepare, project
from projections.jobs import JOBS
from projections.keys import KEYS, KeyRecord
from projections.organizations import ORGANIZATIONS, OrganizationRecord
from projections.projection import Batch
from projections.teams import TEAMS, TeamRecord

T = TypeVar("T")

READ_MODELS = (JOBS, TEAMS, KEYS, ORGANIZATIONS)
START = datetime(2026, 1, 1, tzinfo=UTC)
SEED = 20260304


def a_past(events: int = 120) -> list[Event]:
    """Three teams of two organizations, to which all kinds of things happen."""
    choose = random.Random(SEED)
    created: list[Event] = [
        OrganizationCreated(at=START, organization_id=name, name=name, metadata={}) for name in ("acme", "zeta")
    ]
    for team_id in ("red", "blue", "green"):
        where = {"team_id": team_id, "organization_id": choose.choice(["acme", "zeta"])}
        created.append(TeamCreated(at=START, **where, metadata={"a": [1, None]}, team_alias="'; drop table teams; --"))
        created.append(TeamJoined(at=START, **where))
    return created + [_something(choose, number) for number in range(events)]


def _something(choose: random.Random, number: int) -> Event:
    at = START + timedelta(minutes=number + 1)
    who: dict[str, Any] = {"at": at, "team_id": choose.choice(["red", "blue", "green"]), "by": f"key-{number % 5}"}
    which: dict[str, Any] = {"at": at, "organization_id": choose.choice(["acme", "zeta"])}
    maybe = choose.choice
    possible: list[Callable[[], Event]] = [
        lambda: TeamChanged(
            **who,
            team_alias=maybe([None, "Ünï\\"]),
            metadata=maybe([{}, {"x": {"y": "ü"}}]),
            default_model=maybe([None, "m"]),
        ),
        lambda: TeamSuspended(**who),
        lambda: TeamPaused(**who),
        lambda: TeamResumed(**who),
        lambda: TeamDeleted(**who),
        lambda: ModelAccessAssigned(
            **who, model_groups=maybe([(), ("a",)]), access_groups=maybe([(), ("b, c", '"d"', "{e}")])
        ),
        lambda: LimitsSet(**who, rpm_limit=maybe([None, 0, 5]), tpm_limit=maybe([None, 7])),
        lambda: BudgetSet(
            **who,
            budget=Budget(
                mode=maybe(["job_based", "consumption_usd", "consumption_tokens"]),
                credits_per_dollar=maybe([None, Decimal("0.1000000000000000000001")]),
                tokens_per_credit=maybe([None, 3]),
                markup_percentage=maybe([Decimal(0), Decimal("33.333")]),
                overdraft_credits=maybe([None, 0, 9]),
                charge_policy=maybe(["all_calls_succeeded", "any_call_succeeded"]),
            ),
        ),
        lambda: VirtualKeyIssued(
            **who, key_id=f"key-{number % 7}-{who['team_id']}-{number}", key_hash=str(number), masked=f"sk-{number}..."
        ),
        lambda: AutoRefillSet(
            **who,
            enabled=maybe([True, False]),
            refill_credits=maybe([None, 5]),
            refill_period=maybe([None, "daily"]),
        ),
        lambda: OrganizationChanged(
            **which, name=maybe(["x", "y"]), metadata={"n": number}, default_model=maybe([None, "m"])
        ),
        lambda: OrganizationSuspended(**which),
        lambda: OrganizationPaused(**which),
        lambda: OrganizationResumed(**which),
        lambda: OrganizationDeleted(**which),
        lambda: TeamLeft(**which, team_id="nobody"),
    ]
    return maybe(possible)()


def with_revocations(events: Sequence[Event]) -> list[Event]:
    """Every other key ends, some of them only in a far future, some of them twice."""
    result = list(events)
    issued = [event for event in events if isinstance(event, VirtualKeyIssued)]
    for number, event in enumerate(issued[::2]):
        for _ in range(number % 3):
            at = START + timedelta(days=2)
            ends_at = at if number % 2 else at + timedelta(days=36500)
            result.append(VirtualKeyRevoked(at=at, team_id=event.team_id, key_id=event.key_id, ends_at=ends_at))
    return result


PAST = with_revocations(a_past())


def team_states() -> dict[str, Team]:
    states: dict[str, Team] = {}
    for event in PAST:
        if isinstance(event, team.TeamEvent):
            states[event.team_id] = team.evolve(states.get(event.team_id), event)
    return states


def organization_states() -> dict[str, Organization]:
    states: dict[str, Organization] = {}
    for event in PAST:
        if isinstance(event, organization.OrganizationEvent):
            name = event.organization_id
            states[name] = organization.evolve(states.get(name), event)
    return states


def on(dsn: str, events: Sequence[Event], ask: Callable[[Connection], Awaitable[T]], batch: int = 1000) -> T:
    async def asked() -> T:
        async with await postgres.connect(dsn) as connection:
            await prepare(connection, READ_MODELS)
            recorded = [Recorded(number, "", number, event) for number, event in enumerate(events, 1)]
            for first in range(0, len(recorded), batch):
                await project(connection, READ_MODELS, Batch(recorded[first : first + batch]))
            await connection.execute("set search_path = readmodel")
            return await ask(connection)

    return asyncio.run(asked())


@pytest.mark.parametrize("batch", [1, 9, 1000])
def test_the_tables_say_what_the_states_say(database: str, batch: int) -> None:
    async def ask(connection: Connection) -> None:
        now = datetime.now(UTC)
        for team_id, state in team_states().items():
            assert TeamRecord.of(state, now) == await teams.one(connection, team_id)
            expected = [KeyRecord.of(team_id, key) for key in state.keys]
            total, found = await keys.of_team(connection, team_id, limit=1000, offset=0)
            assert expected == [replace_use(key) for key in found]
            assert len(expected) == total
        for name, its_state in organization_states().items():
            assert OrganizationRecord.of(its_state) == await organizations.one(connection, name)

    on(database, PAST, ask, batch)


def replace_use(key: KeyRecord) -> KeyRecord:
    """Its last use is no part of a team's state."""
    return replace(key, last_used_at=None)


def test_a_key_was_last_used_when_it_last_did_something(database: str) -> None:
    issued = VirtualKeyIssued(at=START, team_id="red", key_id="key-1", key_hash="1", masked="sk-...")
    used = [
        LimitsSet(at=START + timedelta(hours=hour), by="key-1", team_id="red", rpm_limit=1, tpm_limit=1)
        for hour in (1, 2)
    ]
    others = [
        TeamPaused(at=START + timedelta(hours=9), by=by, team_id="red") for by in ("", "master", "system", "key-2")
    ]
    created = TeamCreated(at=START, team_id="red", organization_id="acme", metadata={})

    async def ask(connection: Connection) -> KeyRecord | None:
        return await keys.one(connection, "key-1")

    key = on(database, [created, issued, *used, *others], ask)
    assert key is not None
    assert START + timedelta(hours=2) == key.last_used_at


def test_the_key_that_is_shown_is_the_oldest_that_works(database: str) -> None:
    created = TeamCreated(at=START, team_id="red", organization_id="acme", metadata={})
    issued = [
        VirtualKeyIssued(at=START, team_id="red", key_id=f"key-{number}", key_hash=str(number), masked=f"sk-{number}")
        for number in range(3)
    ]
    ended = VirtualKeyRevoked(at=START, team_id="red", key_id="key-0", ends_at=START)
    ending = VirtualKeyRevoked(at=START, team_id="red", key_id="key-1", ends_at=START + timedelta(days=36500))

    async def ask(connection: Connection) -> TeamRecord | None:
        return await teams.one(connection, "red")

    found = on(database, [created, *issued, ended, ending], ask)
    assert found is not None
    assert "sk-1" == found.virtual_key
