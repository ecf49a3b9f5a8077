"""Habits of clients that were written for another server, where no other test tells of them."""

from typing import Any

import httpx

from api.problems import PROBLEMS
from tests.api.conftest import MASTER_KEY, Server, TestTeam, make_alias, make_team
from tests.api.people import PASSWORD, anybody
from tests.api.world import World
from tests.provider import FakeProvider

ASK = [{"role": "user", "content": "Hello"}]
NAMED_THINGS = (
    "organizations",
    "teams",
    "model-access-groups",
    "model-aliases",
    "models",
    "model-groups",
    "provider-credentials",
    "webhooks",
)


def test_lists_of_named_things_are_bare_arrays(world: World) -> None:
    for noun in NAMED_THINGS:
        found = world.admin.get(f"/api/{noun}").json()
        assert isinstance(found, list), noun
        assert isinstance(found[0], dict), noun
    assert isinstance(world.server.client(world.callers["owner"]).get("/api/admin-users").json(), list)


def test_fields_that_nobody_knows_are_ignored(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    extra: dict[str, Any] = {"leftover": {"of": ["a form"]}, "id": None, "created_at": "yesterday"}
    job_id = team.job(**extra)
    asked = {"messages": ASK, "model": make_alias(admin, provider), "result": 1, **extra}
    assert team.client.post(f"/api/jobs/{job_id}/llm-call", json=asked).status_code == 200
    done = {"status": "completed", "model_groups": [], **extra}
    assert team.client.post(f"/api/jobs/{job_id}/complete", json=done).status_code == 200
    make_team(server, admin, model_groups=[], default_team_model_groups=["x"], **extra)


def test_a_401_means_a_bad_credential_only() -> None:
    assert {"unauthorized", "invalid_login"} == {code for code, problem in PROBLEMS.items() if problem.status == 401}


def test_a_wrong_current_password_logs_nobody_out(world: World) -> None:
    user = world.server.client(world.callers["user"])
    body = {"current_password": "not " + PASSWORD, "new_password": "another password"}
    assert user.post("/api/admin-users/me/change-password", json=body).status_code == 400
    assert user.get("/api/admin-users/me").status_code == 200


def test_a_model_has_two_names_and_needs_none(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    alias = make_alias(admin, provider)
    assert admin.put(f"/api/teams/{team.team_id}", json={"default_model": alias}).status_code == 200
    job_id = team.job()
    for selector in ({"model": alias}, {"model_group": alias}, {"model": alias, "model_group": alias}, {}):
        answer = team.client.post(f"/api/jobs/{job_id}/llm-call", json={"messages": ASK, **selector})
        assert answer.status_code == 200, answer.text
        assert (alias, alias) == (answer.json()["metadata"]["model"], answer.json()["metadata"]["model_group"])
    both = {"messages": ASK, "model": alias, "model_group": "another"}
    assert team.client.post(f"/api/jobs/{job_id}/llm-call", json=both).status_code == 422


def test_null_means_absent(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    job_id = team.job(user_id=None, metadata=None, external_task_id=None)
    asked = {
        "messages": [{"role": "user", "content": "Hello", "name": None}],
        "model": make_alias(admin, provider),
        "max_tokens": None,
        "purpose": None,
        "stop": None,
        "temperature": None,
        "response_format": None,
        "tools": None,
        "call_metadata": None,
    }
    assert team.client.post(f"/api/jobs/{job_id}/llm-call", json=asked).status_code == 200
    done = {"status": "completed", "error_message": None, "metadata": None, "result": None}
    assert team.client.post(f"/api/jobs/{job_id}/complete", json=done).status_code == 200


def test_a_job_is_read_as_clients_read_it(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    created = team.client.post("/api/jobs/create", json={"team_id": team.team_id, "job_type": "test"}).json()
    assert all(isinstance(created[name], str) for name in ("job_id", "team_id", "status", "created_at"))
    asked = {"messages": ASK, "model": make_alias(admin, provider)}
    assert team.client.post(f"/api/jobs/{created['job_id']}/llm-call", json=asked).status_code == 200
    ended = team.client.post(f"/api/jobs/{created['job_id']}/complete", json={"status": "completed"}).json()
    assert (99, 1) == (ended["credits_remaining"], ended["total_calls"])
    figures = {name: value for name, value in ended["costs"].items() if name != "credit_applied"}
    assert len(figures) >= 8
    assert all(isinstance(value, int | float) for value in figures.values()), figures
    assert ended["costs"]["credit_applied"] is True


def test_a_team_is_read_at_the_top_and_under_credits(admin: httpx.Client, team: TestTeam) -> None:
    assert admin.post(f"/api/teams/{team.team_id}/suspend").status_code == 200
    seen = team.client.get(f"/api/teams/{team.team_id}").json()
    assert ("suspended", 100, 100, []) == tuple(
        seen[name] for name in ("status", "credits_remaining", "credits_allocated", "model_groups")
    )
    assert (100, 100) == (seen["credits"]["credits_remaining"], seen["credits"]["credits_allocated"])


def test_the_master_key_comes_in_two_headers_and_a_short_key_is_a_key(world: World) -> None:
    nobody = anybody(world.server)
    for headers in ({"X-Admin-Key": MASTER_KEY}, {"Authorization": f"bearer {MASTER_KEY}"}):
        assert nobody.get("/api/teams", headers=headers).status_code == 200
    team = make_team(world.server, world.admin, virtual_key="sk-1234")
    assert team.key == "sk-1234"
    assert team.client.get(f"/api/teams/{team.team_id}").status_code == 200
