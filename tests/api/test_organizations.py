"""Organizations over HTTP."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team, whole_list
from tests.api.test_teams import invalid, make_group, ok, refused
from tests.provider import FakeProvider

FIELDS = {"organization_id", "name", "status", "metadata", "default_model", "created_at", "updated_at"}


def new_id() -> str:
    return f"org-{uuid4().hex[:8]}"


def create(admin: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"organization_id": new_id(), "name": "Acme", **fields}
    made: dict[str, Any] = ok(admin.post("/api/organizations/create", json=body))
    return made


def of(organization_id: str, rest: str = "") -> str:
    return f"/api/organizations/{organization_id}{rest}"


# -- create ------------------------------------------------------------------------------------------------------------


def test_an_organization_is_created_and_shown(admin: httpx.Client) -> None:
    given = {"name": "Acme", "metadata": {"a": {"b": None}}, "default_model": "gpt-4"}
    made = create(admin, **given)
    assert {*FIELDS, "default_team"} == set(made)
    assert made["default_team"] is None
    shown = ok(admin.get(of(made["organization_id"])))
    assert {*FIELDS, "teams", "usage_summary"} == set(shown)
    assert given == {name: shown[name] for name in given}
    assert ("active", []) == (shown["status"], shown["teams"])
    assert {"total_jobs": 0, "total_cost_usd": 0, "credits_used": 0} == shown["usage_summary"]


def test_an_organization_id_is_taken_for_ever(admin: httpx.Client) -> None:
    organization_id = create(admin)["organization_id"]
    body = {"organization_id": organization_id, "name": "Other"}
    for _ in range(2):
        assert (
            "already exists"
            in refused(admin.post("/api/organizations/create", json=body), 400, "already_exists")["detail"]
        )
        ok(admin.delete(of(organization_id)))


def test_a_default_team_comes_with_its_key_and_credits(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    alias = make_alias(admin, provider)
    access, models = make_group(admin, alias), make_group(admin, alias, kind="model-groups")
    made = create(
        admin,
        create_default_team=True,
        default_team_name="First",
        default_team_model_groups=[models],
        default_team_access_groups=[access],
        default_team_credits=50,
    )
    team = made["default_team"]
    expected = {
        "team_id": f"{made['organization_id']}_default",
        "team_alias": "First",
        "model_groups": [models],
        "access_groups": [access],
        "credits_allocated": 50,
    }
    assert expected == {name: team[name] for name in expected}
    assert alias in team["allowed_model_aliases"]
    with server.client(team["virtual_key"]) as client:
        assert 50 == ok(client.get("/api/credits/balance"))["credits_remaining"]
        assert [team["team_id"]] == ok(client.get(of(made["organization_id"])))["teams"]


def test_an_organization_stays_when_its_default_team_cannot_be(admin: httpx.Client) -> None:
    made = create(admin, create_default_team=True, default_team_access_groups=["no-such-group"])
    assert {"error"} == set(made["default_team"])
    assert [] == ok(admin.get(of(made["organization_id"])))["teams"]


def test_an_organization_stays_when_the_id_of_its_default_team_is_taken(admin: httpx.Client, team: TestTeam) -> None:
    organization_id = new_id()
    body = {"organization_id": team.organization_id, "team_id": f"{organization_id}_default"}
    ok(admin.post("/api/teams/create", json=body))
    made = create(admin, organization_id=organization_id, create_default_team=True)
    assert "already exists" in made["default_team"]["error"]
    assert [] == ok(admin.get(of(organization_id)))["teams"]


@pytest.mark.parametrize(
    "field,value",
    [
        ("organization_id", "a/b"),
        ("organization_id", ""),
        ("organization_id", "x" * 256),
        ("organization_id", None),
        ("name", ""),
        ("name", "x" * 501),
        ("name", 1),
        ("metadata", {"x": "y" * 10240}),
        ("default_team_credits", -1),
        ("create_default_team", "yes"),
    ],
)
def test_bad_fields_are_named(admin: httpx.Client, field: str, value: Any) -> None:
    body = {"organization_id": new_id(), "name": "Acme", field: value}
    invalid(admin.post("/api/organizations/create", json=body), "body", field)


# -- read --------------------------------------------------------------------------------------------------------------


def test_a_member_sees_its_own_share(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    other = ok(
        admin.post("/api/teams/create", json={"organization_id": team.organization_id, "team_id": f"{team.team_id}-2"})
    )
    ok(team.client.post(f"/api/jobs/{team.job()}/complete", json={"status": "completed"}))
    both = [team.team_id, other["team_id"]]
    with server.client(other["virtual_key"]) as client:
        for asks, teams, jobs, credits in (
            (admin, both, 1, 1),
            (team.client, both[:1], 1, 1),
            (client, both[1:], 0, 0),
        ):
            shown = ok(asks.get(of(team.organization_id)))
            assert teams == shown["teams"]
            assert (jobs, credits) == (shown["usage_summary"]["total_jobs"], shown["usage_summary"]["credits_used"])
            listed = asks.get(of(team.organization_id, "/teams"))
            assert teams == ok(listed)["teams"]
            assert len(teams) == ok(listed)["team_count"] == int(listed.headers["X-Total-Count"])


def test_the_teams_of_an_organization_are_listed_in_pages(admin: httpx.Client, team: TestTeam) -> None:
    for number in range(3):
        body = {"organization_id": team.organization_id, "team_id": f"{team.team_id}-{number}"}
        ok(admin.post("/api/teams/create", json={**body, "credits_allocated": number}))
    ok(admin.delete(f"/api/teams/{team.team_id}-2"))
    page = ok(admin.get(of(team.organization_id, "/teams"), params={"limit": 2, "offset": 1}))
    line: dict[str, Any] = {"team_alias": None, "status": "active", "access_groups": [], "model_groups": []}
    expected = {
        "organization_id": team.organization_id,
        "team_count": 3,
        "total": 3,
        "limit": 2,
        "offset": 1,
        "teams": [f"{team.team_id}-0", f"{team.team_id}-1"],
        "team_details": [
            {**line, "team_id": f"{team.team_id}-0", "credits_allocated": 0, "credits_remaining": 0},
            {**line, "team_id": f"{team.team_id}-1", "credits_allocated": 1, "credits_remaining": 1},
        ],
    }
    assert expected == page


def test_organizations_are_listed_by_id_without_the_deleted_ones(admin: httpx.Client) -> None:
    ids = sorted(create(admin)["organization_id"] for _ in range(3))
    ok(admin.delete(of(ids[0])))
    ok(admin.post(of(ids[1], "/pause")))

    def listed(**query: Any) -> list[str]:
        found = whole_list(admin, "/api/organizations", **query)
        assert all(set(each) == FIELDS for each in found)
        return [each["organization_id"] for each in found if each["organization_id"] in ids]

    assert ids[1:] == listed()
    assert ids[:1] == listed(status="Inactive")
    assert ids[1:2] == listed(status="paused")
    assert ids[2:] == listed(status="ACTIVE")
    invalid(admin.get("/api/organizations", params={"status": "x"}), "query", "status")


def test_strangers_see_nothing(admin: httpx.Client, team: TestTeam) -> None:
    other = create(admin)["organization_id"]
    for organization_id in (other, "no-such-organization"):
        for rest in ("", "/teams", "/usage"):
            refused(team.client.get(of(organization_id, rest)), 403, "forbidden")
        refused(team.client.get(of(organization_id, "/costs")), 403, "admin_required")
    refused(team.client.get("/api/organizations"), 403, "admin_required")
    refused(team.client.put(of(team.organization_id), json={"name": "Mine"}), 403, "admin_required")
    refused(team.client.post(of(team.organization_id, "/resume")), 403, "admin_required")
    refused(team.client.delete(of(team.organization_id)), 403, "admin_required")
    body = {"organization_id": new_id(), "name": "Mine"}
    refused(team.client.post("/api/organizations/create", json=body), 403, "admin_required")


@pytest.mark.parametrize("rest", ["", "/teams", "/usage", "/costs"])
def test_unknown_organizations_are_not_found(admin: httpx.Client, rest: str) -> None:
    for organization_id in ("no-such-organization", "x" * 300, "%00"):
        answer = refused(admin.get(of(organization_id, rest)), 404, "not_found")
        assert "organization" == answer["resource"]
    refused(admin.put(of("no-such-organization"), json={}), 404, "not_found")
    refused(admin.put(of("no-such-organization", "/status"), json={"status": "active"}), 404, "not_found")
    refused(admin.post(of("no-such-organization", "/suspend")), 404, "not_found")
    refused(admin.delete(of("no-such-organization")), 404, "not_found")


# -- change ------------------------------------------------------------------------------------------------------------


def test_what_is_not_named_stays(admin: httpx.Client) -> None:
    organization_id = create(admin, metadata={"a": 1}, default_model="gpt-4")["organization_id"]
    shown = ok(admin.put(of(organization_id), json={"name": "New", "metadata": None}))
    assert set(shown) == FIELDS
    assert ("New", {"a": 1}, "gpt-4") == (shown["name"], shown["metadata"], shown["default_model"])
    shown = ok(admin.put(of(organization_id), json={"metadata": {"b": 2}, "default_model": "other"}))
    assert ("New", {"b": 2}, "other") == (shown["name"], shown["metadata"], shown["default_model"])
    read = ok(admin.get(of(organization_id)))
    assert shown == {name: read[name] for name in FIELDS}


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_status_says_what_it_was_before(admin: httpx.Client, method: str) -> None:
    organization_id = create(admin)["organization_id"]
    before = "active"
    for action, status in (("suspend", "suspended"), ("pause", "paused"), ("resume", "active")):
        for was, body in ((before, None), (status, {"reason": "because"})):
            answer = ok(admin.request(method, of(organization_id, f"/{action}"), json=body))
            assert {"organization_id", "status", "previous_status", "updated_at", "reason"} == set(answer)
            assert (status, was) == (answer["status"], answer["previous_status"])
        before = status
    answer = ok(admin.put(of(organization_id, "/status"), json={"status": "paused", "reason": "holiday"}))
    assert ("paused", "active", "holiday") == (answer["status"], answer["previous_status"], answer["reason"])
    assert "paused" == ok(admin.get(of(organization_id)))["status"]
    invalid(admin.put(of(organization_id, "/status"), json={"status": "inactive"}), "body", "status")


@pytest.mark.parametrize(
    "action,status,code",
    [("suspend", 403, "organization_suspended"), ("pause", 429, "organization_paused")],
)
def test_the_status_of_an_organization_binds_its_teams(
    admin: httpx.Client, team: TestTeam, action: str, status: int, code: str
) -> None:
    ok(admin.post(of(team.organization_id, f"/{action}")))
    body = {"team_id": team.team_id, "job_type": "test"}
    refused(team.client.post("/api/jobs/create", json=body), status, code)
    assert "active" == ok(team.client.get(f"/api/teams/{team.team_id}"))["status"]
    ok(admin.put(of(team.organization_id, "/resume")))
    team.job()


def test_an_organization_with_teams_cannot_be_deleted(admin: httpx.Client, team: TestTeam) -> None:
    refused(admin.delete(of(team.organization_id)), 400, "in_use")
    ok(admin.delete(f"/api/teams/{team.team_id}"))
    for _ in range(2):
        answer = ok(admin.delete(of(team.organization_id)))
        assert {"organization_id", "message"} == set(answer)
    assert "inactive" == ok(admin.get(of(team.organization_id)))["status"]
    refused(admin.post(of(team.organization_id, "/resume")), 404, "not_found")
    body = {"organization_id": team.organization_id, "team_id": "late"}
    refused(admin.post("/api/teams/create", json=body), 404, "not_found")


def test_a_suspended_organization_can_get_new_teams(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    ok(admin.post(of(team.organization_id, "/suspend")))
    body = {"organization_id": team.organization_id, "team_id": f"{team.team_id}-2"}
    ok(admin.post("/api/teams/create", json=body))
    assert make_team(server, admin).job()
