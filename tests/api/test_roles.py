"""Who may open which door: every registered route, walked with every kind of credential."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.app import create_app
from api.caller import Door, audit_only, open_to_all, person_only
from domain.user import PERMISSIONS
from tests.api.conftest import MASTER_KEY, Server, TestTeam, make_alias, make_team, running, settings_for
from tests.api.people import Person, add, anybody, code, enter, set_up
from tests.conftest import _database_on
from tests.provider import FakeProvider

OPEN = {
    ("GET", "/health"),
    ("GET", "/api/health"),
    ("GET", "/api/health-check"),
    ("GET", "/health/ready"),
    ("GET", "/health/db"),
    ("GET", "/metrics"),  # from loopback
    ("GET", "/docs"),
    ("GET", "/docs/assets/{name}"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/examples/typed_client.py"),
    ("GET", "/api/admin-users/setup/status"),
    ("POST", "/api/admin-users/setup"),
    ("POST", "/api/admin-users/login"),
    ("POST", "/api/admin/login"),
}


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    door: Door | None

    @property
    def needed(self) -> Any:
        """What the role of a person has to allow."""
        assert self.door is not None
        return self.door.reading if self.method == "GET" else self.door.writing

    def ask(self, client: httpx.Client) -> httpx.Response:
        """Asks for it, about things that nobody knows."""
        return client.request(self.method, re.sub(r"\{\w+\}", "none-such", self.path))


def _routes() -> list[Route]:
    app: Any = create_app(settings_for("postgresql://nowhere"), "postgresql://nowhere")
    handlers = [(route.path_format, handler) for route in app._app.routes for handler in route.route_handlers]
    found = {}
    for path, handler in handlers:
        door = handler.resolve_before_request()
        for method in handler.http_methods - {"OPTIONS", "HEAD"}:
            found[method, path] = Route(method, path, door if isinstance(door, Door) else None)
    return [found[key] for key in sorted(found)]


ROUTES = _routes()
CLOSED = [route for route in ROUTES if route.door is not None]


@dataclass(frozen=True)
class House:
    server: Server
    admin: httpx.Client
    owner: Person
    team: TestTeam


@pytest.fixture(scope="module")
def house(owner_dsn: str, template: str) -> Iterator[House]:
    with _database_on(owner_dsn, f"roles_{uuid4().hex[:8]}", template) as dsn, running(dsn) as server:
        admin = server.client()
        yield House(server, admin, set_up(server), make_team(server, admin))


@pytest.fixture
def owner(house: House) -> Person:
    return house.owner


# -- walking all routes ------------------------------------------------------------------------------------------------


def test_nothing_is_open_but_what_the_contract_opens() -> None:
    assert OPEN >= {(route.method, route.path) for route in ROUTES if route.door is None}
    assert len(CLOSED) > 100


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer sk-unknown-key"},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": f"Basic {MASTER_KEY}"},
        {"Authorization": f"Bearer {MASTER_KEY} twice"},
        {"Authorization": MASTER_KEY},
        {"X-Admin-Key": "sk-wrong"},
        {"X-Admin-Key": "", "Authorization": f"Bearer {MASTER_KEY}"},
    ],
    ids=lambda headers: repr(headers).replace(MASTER_KEY, "MASTER"),
)
def test_every_other_endpoint_asks_for_a_credential(house: House, headers: dict[str, str]) -> None:
    client = anybody(house.server)
    client.headers.update(headers)
    routes = CLOSED if not headers else CLOSED[::10]
    for route in routes:
        answer = route.ask(client)
        assert (401, "unauthorized") == code(answer), route
        assert "Bearer" == answer.headers["WWW-Authenticate"]


def test_a_virtual_key_opens_no_door_of_administrators(house: House) -> None:
    for route in CLOSED:
        assert route.door is not None
        if not route.door.teams:
            answer = route.ask(house.team.client)
            assert (403, "admin_required") == code(answer), route
            assert "credit" not in answer.json()["detail"]


def test_the_master_key_opens_every_door_but_those_of_persons(house: House) -> None:
    for route in CLOSED:
        assert route.door is not None
        if route.door.master:
            continue
        for client in (house.admin, anybody(house.server)):
            client.headers.update({"X-Admin-Key": MASTER_KEY})
            assert (403, "jwt_required") == code(route.ask(client)), route


@pytest.mark.parametrize("role", ["user", "auditor", "admin", "owner"])
def test_a_role_opens_what_the_contract_says(house: House, role: Any) -> None:
    person = add(house.owner, house.server, role)
    for route in CLOSED:
        if route.door == person_only:
            continue  # everybody's own affairs; a logout among them
        refused = route.needed is not None and route.needed not in PERMISSIONS[role]
        if refused:
            assert (403, "role_forbidden") == code(route.ask(person.client)), route
        elif route.method == "GET":
            answer = route.ask(person.client)
            allowed = (200, 400, 404, 422) if route.door is not None and route.door.admins else (403,)
            assert answer.status_code in allowed, (route, answer.text)
    assert 200 == person.client.get("/api/admin-users/me").status_code


def test_the_doors_are_those_of_the_contract() -> None:
    """The walk above believes the doors; so here is who may what, once more by hand."""
    doors = {(route.method, route.path): route.door for route in CLOSED}
    readers = {"user", "auditor", "admin", "owner"}
    expected = {
        ("GET", "/api/organizations"): readers,
        ("GET", "/api/teams/{team_id}"): readers,
        ("POST", "/api/teams/create"): {"admin", "owner"},
        ("DELETE", "/api/teams/{team_id}"): {"admin", "owner"},
        ("POST", "/api/jobs/create"): {"admin", "owner"},
        ("POST", "/api/credits/add"): {"admin", "owner"},
        ("GET", "/api/admin-users"): {"admin", "owner"},
        ("POST", "/api/admin-users"): {"admin", "owner"},
        ("PUT", "/api/admin-users/{user_id}"): {"admin", "owner"},
        ("GET", "/api/admin-users/audit-logs"): {"auditor", "admin", "owner"},
        ("PUT", "/api/admin-users/{user_id}/reset-password"): {"owner"},
        ("POST", "/api/admin-users/{user_id}/deactivate"): {"owner"},
        ("GET", "/api/admin-users/me"): readers,
        ("POST", "/api/admin-users/logout"): readers,
    }
    for key, roles in expected.items():
        needed = Route(*key, doors[key]).needed
        assert roles == {role for role, allowed in PERMISSIONS.items() if needed is None or needed in allowed}, key


def test_the_audit_endpoints_are_for_auditors_admins_owners_and_the_master_key() -> None:
    assert audit_only.master
    assert not audit_only.teams
    assert {"auditor", "admin", "owner"} == {
        role for role, allowed in PERMISSIONS.items() if audit_only.reading in allowed
    }


def test_every_open_endpoint_that_writes_keeps_its_answer_for_a_repeat() -> None:
    app: Any = create_app(settings_for("postgresql://nowhere"), "postgresql://nowhere")
    for route in app._app.routes:
        for handler in route.route_handlers:
            if "POST" in handler.http_methods and ("POST", route.path_format) in OPEN:
                assert open_to_all is handler.resolve_before_request()


# -- credentials -------------------------------------------------------------------------------------------------------


def test_a_key_that_was_revoked_is_no_credential_at_any_door(house: House) -> None:
    team = make_team(house.server, house.admin)
    for key in house.admin.get(f"/api/teams/{team.team_id}/keys").json():
        house.admin.delete(f"/api/teams/{team.team_id}/keys/{key['key_id']}")
    for method, path in (("GET", "/api/organizations"), ("POST", "/api/teams/create"), ("GET", "/api/admin-users/me")):
        assert (401, "unauthorized") == code(team.client.request(method, path, json={}))


def test_the_role_is_checked_before_the_status_of_the_team(house: House) -> None:
    team = make_team(house.server, house.admin)
    house.admin.post(f"/api/teams/{team.team_id}/suspend")
    assert (403, "admin_required") == code(team.client.post("/api/organizations/create", json={}))
    assert (403, "team_suspended") == code(team.client.post("/api/jobs/create", json={}))


def test_a_virtual_key_may_look_like_a_token(house: House, owner: Person) -> None:
    looks = f"eyJhbGciOiJIUzI1NiJ9.{uuid4().hex}.{uuid4().hex}"
    team = make_team(house.server, house.admin, virtual_key=looks)
    assert team.team_id == team.client.get(f"/api/teams/{team.team_id}").json()["team_id"]
    assert 403 == team.client.get("/api/organizations").status_code


def test_a_wrong_admin_key_decides_whatever_else_is_sent(house: House, owner: Person) -> None:
    for token in (MASTER_KEY, owner.token, house.team.key):
        client = house.server.client(token, **{"X-Admin-Key": "sk-wrong"})
        assert (401, "unauthorized") == code(client.get("/api/organizations"))


def test_the_role_is_read_from_the_user_and_not_from_the_token(house: House) -> None:
    person = add(house.owner, house.server, "user")
    assert (403, "role_forbidden") == code(person.client.post("/api/organizations/create", json={}))
    house.owner.client.put(f"/api/admin-users/{person.user_id}", json={"role": "admin"})
    raised = enter(house.server, person.email)
    assert (422, "validation_error") == code(raised.client.post("/api/organizations/create", json={}))
    house.owner.client.put(f"/api/admin-users/{person.user_id}", json={"role": "user"})
    assert (401, "unauthorized") == code(raised.client.post("/api/organizations/create", json={}))


def test_the_credential_is_checked_before_the_body_and_the_idempotency_key(house: House) -> None:
    person = add(house.owner, house.server, "user")
    long_key = {"Idempotency-Key": "k" * 300}
    for client, status in ((person.client, 403), (house.server.client("sk-unknown"), 401), (house.admin, 422)):
        assert status == client.post("/api/organizations/create", content=b"{", headers=long_key).status_code


def test_an_administrator_works_for_any_team_and_the_ledger_says_who_it_was(
    house: House, provider: FakeProvider
) -> None:
    person = add(house.owner, house.server, "admin")
    team = make_team(house.server, house.admin)
    alias = make_alias(house.admin, provider)
    job = person.client.post("/api/jobs/create", json={"team_id": team.team_id, "job_type": "by hand"}).json()
    body = {"messages": [{"role": "user", "content": "Hi"}], "model": alias}
    assert 200 == person.client.post(f"/api/jobs/{job['job_id']}/llm-call", json=body).status_code
    done = person.client.post(f"/api/jobs/{job['job_id']}/complete", json={"status": "completed"})
    assert 200 == done.status_code
    assert "provider_cost_usd" in done.json()["costs"], "administrators see what it cost"
    rows = team.client.get("/api/credits/transactions").json()["transactions"]
    assert person.user_id == rows[0]["actor"]


def test_two_administrators_may_use_the_same_idempotency_key(house: House) -> None:
    people = [house.owner, add(house.owner, house.server, "admin")]
    key = {"Idempotency-Key": uuid4().hex}
    for person in people:
        body = {"organization_id": uuid4().hex, "name": "Mine"}
        first, again = (person.client.post("/api/organizations/create", json=body, headers=key) for _ in range(2))
        assert (200, body["organization_id"]) == (first.status_code, first.json()["organization_id"])
        assert "true" == again.headers["Idempotent-Replayed"]


def test_a_stored_answer_is_not_for_who_was_demoted_meanwhile(house: House) -> None:
    person = add(house.owner, house.server, "admin")
    body, key = {"organization_id": uuid4().hex, "name": "Mine"}, {"Idempotency-Key": uuid4().hex}
    assert 200 == person.client.post("/api/organizations/create", json=body, headers=key).status_code
    house.owner.client.put(f"/api/admin-users/{person.user_id}", json={"role": "user"})
    again = enter(house.server, person.email).client.post("/api/organizations/create", json=body, headers=key)
    assert (403, "role_forbidden") == code(again)
