"""Model groups over HTTP: ordered members, who sees them under which name, and what a team would get."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_team, whole_list


def a_name(kind: str = "models") -> str:
    return f"{kind}-{uuid4().hex[:8]}"


def alias(admin: httpx.Client, **fields: Any) -> str:
    name = a_name("alias")
    answer = admin.post("/api/model-aliases/create", json={"alias": name, "litellm_model": "demo/echo", **fields})
    assert 200 == answer.status_code, answer.text
    return name


def group(admin: httpx.Client, *members: Any) -> str:
    name = a_name()
    answer = admin.post("/api/model-groups/create", json={"group_name": name, "models": members})
    assert 200 == answer.status_code, answer.text
    return name


def members(answer: httpx.Response) -> list[tuple[str, int]]:
    assert 200 == answer.status_code, answer.text
    return [(each["model_name"], each["priority"]) for each in answer.json()["models"]]


def test_a_group_gives_back_all_that_was_said_of_it(admin: httpx.Client) -> None:
    name = a_name()
    body = {
        "group_name": name,
        "display_name": "Smart",
        "description": "The best first",
        "models": [{"model_name": "openai/gpt-4o", "priority": 5}, {"model_name": "no-such-alias", "priority": 1}],
    }
    made = admin.post("/api/model-groups/create", json=body)
    assert [("no-such-alias", 1), ("openai/gpt-4o", 5)] == members(made)
    shown = made.json()
    assert (name, "Smart", "The best first", "active") == tuple(
        shown[field] for field in ("group_name", "display_name", "description", "status")
    )
    assert {shown["model_group_id"]} == {each["model_group_id"] for each in shown["models"]}
    assert all(each["is_active"] and each["created_at"] == shown["created_at"] for each in shown["models"])
    assert shown == admin.get(f"/api/model-groups/{name}").json()


def test_members_may_be_plain_names_in_their_order_or_none_at_all(admin: httpx.Client) -> None:
    name = group(admin, "b", "a", {"model_name": "c"})
    assert [("b", 0), ("a", 1), ("c", 2)] == members(admin.get(f"/api/model-groups/{name}"))
    empty = admin.post("/api/model-groups/create", json={"group_name": a_name()})
    assert [] == members(empty)
    assert empty.json()["group_name"] == empty.json()["display_name"]


def test_a_member_list_is_replaced_and_who_stays_is_the_same(admin: httpx.Client) -> None:
    name = group(admin, "a", "b")
    before = {each["model_name"]: each["id"] for each in admin.get(f"/api/model-groups/{name}").json()["models"]}
    url = f"/api/model-groups/{name}/models"
    replaced = admin.put(url, json=["c", "b"])
    assert [("c", 0), ("b", 1)] == members(replaced)
    assert {"group_name", "models"} == set(replaced.json())
    after = {each["model_name"]: each["id"] for each in replaced.json()["models"]}
    assert (before["b"], True) == (after["b"], after["c"] not in before.values())
    wrapped = admin.put(url, json={"models": [{"model_name": "a", "priority": 2}, {"model_name": "b", "priority": 1}]})
    assert [("b", 1), ("a", 2)] == members(wrapped)
    assert [] == members(admin.put(url, json=[]))


@pytest.mark.parametrize(
    "body,loc",
    [
        ({"group_name": "x" * 101}, ["body", "group_name"]),
        ({"group_name": "a/b"}, ["body", "group_name"]),
        ({"models": [{"priority": 1}]}, ["body", "models", 0, "model_name"]),
        ({"models": [{"model_name": "a", "priority": -1}]}, ["body", "models", 0, "priority"]),
        ({"models": ["a"] * 21}, ["body", "models"]),
    ],
)
def test_a_bad_value_is_answered_with_its_place(admin: httpx.Client, body: dict[str, Any], loc: list[Any]) -> None:
    answer = admin.post("/api/model-groups/create", json={"group_name": a_name(), **body})
    assert (422, loc) == (answer.status_code, answer.json()["detail"][0]["loc"])


def test_a_name_is_given_once(admin: httpx.Client) -> None:
    again = admin.post("/api/model-groups/create", json={"group_name": group(admin)})
    assert (400, "already_exists") == (again.status_code, again.json()["code"])


def test_an_unknown_group_is_not_found(admin: httpx.Client) -> None:
    url = f"/api/model-groups/{a_name()}"
    for method, path, body in (
        ("GET", url, None),
        ("PUT", url, {}),
        ("PUT", f"{url}/models", []),
        ("DELETE", url, None),
        ("GET", f"{url}/resolve?team_id=x", None),
    ):
        answer = admin.request(method, path, json=body)
        assert 404 == answer.status_code, path


def test_a_change_leaves_alone_what_it_does_not_speak_of(admin: httpx.Client) -> None:
    name = group(admin, "a")
    changed = admin.put(f"/api/model-groups/{name}", json={"display_name": "Smart", "status": "inactive"})
    assert [("a", 0)] == members(changed)
    assert ("Smart", None, "inactive") == tuple(
        changed.json()[field] for field in ("display_name", "description", "status")
    )
    assert 422 == admin.put(f"/api/model-groups/{name}", json={"status": "gone"}).status_code


def test_lists_show_the_active_ones_unless_asked_for_others(admin: httpx.Client) -> None:
    active, inactive = group(admin), group(admin)
    admin.put(f"/api/model-groups/{inactive}", json={"status": "inactive"})

    def listed(**query: str) -> tuple[bool, bool]:
        names = [each["group_name"] for each in whole_list(admin, "/api/model-groups", **query)]
        assert sorted(names) == names
        return active in names, inactive in names

    assert (True, False) == listed()
    assert (False, True) == listed(status="Inactive")
    assert (True, True) == listed(status="all")
    assert 422 == admin.get("/api/model-groups?status=gone").status_code


def test_a_group_in_use_stays_until_its_last_team_has_left(server: Server, admin: httpx.Client) -> None:
    name = group(admin, "demo/echo")
    team = make_team(server, admin, model_groups=[name])
    refused = admin.delete(f"/api/model-groups/{name}")
    assert (400, "in_use") == (refused.status_code, refused.json()["code"])
    admin.put(f"/api/teams/{team.team_id}/model-groups", json={"model_groups": []})
    deleted = admin.delete(f"/api/model-groups/{name}")
    assert (200, name) == (deleted.status_code, deleted.json()["group_name"])
    assert 404 == admin.get(f"/api/model-groups/{name}").status_code


# -- what a team sees --------------------------------------------------------------------------------------------------


def test_a_team_sees_its_own_groups_without_the_providers_names(server: Server, admin: httpx.Client) -> None:
    model = alias(admin)
    own, foreign = group(admin, model, "openai/gpt-4o"), group(admin, "demo/echo")
    team = make_team(server, admin, model_groups=[own])
    (seen,) = team.client.get("/api/model-groups").json()
    assert [(model, 0), (own, 1)] == members(team.client.get(f"/api/model-groups/{own}"))
    assert seen == team.client.get(f"/api/model-groups/{own}").json()
    refused = team.client.get(f"/api/model-groups/{foreign}")
    assert (403, "forbidden") == (refused.status_code, refused.json()["code"])
    assert 404 == team.client.get(f"/api/model-groups/{a_name()}").status_code
    assert 403 == team.client.put(f"/api/model-groups/{own}", json={}).status_code


def resolved(client: httpx.Client, name: str, team: TestTeam | None = None) -> dict[str, Any]:
    query = "" if team is None else f"?team_id={team.team_id}"
    answer = client.get(f"/api/model-groups/{name}/resolve{query}")
    assert 200 == answer.status_code, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_resolving_tells_what_would_be_tried_and_why_not_the_rest(server: Server, admin: httpx.Client) -> None:
    usable, off, closed = alias(admin), alias(admin, status="inactive"), alias(admin)
    admin.post("/api/model-access-groups/create", json={"group_name": a_name(), "model_aliases": [closed]})
    name = group(admin, off, "openai/gpt-4o", closed, "nobody/unpriced", usable)
    team = make_team(server, admin, model_groups=[name])
    assert {
        "group_name": name,
        "primary_model": "openai/gpt-4o",
        "fallback_models": [usable],
        "team_has_access": True,
        "error": None,
        "skipped": [
            {"model_name": off, "reason": "inactive"},
            {"model_name": closed, "reason": "not_allowed"},
            {"model_name": "nobody/unpriced", "reason": "no_price"},
        ],
    } == resolved(admin, name, team)
    assert (
        {
            "group_name": name,
            "primary_model": name,
            "fallback_models": [usable],
            "team_has_access": True,
            "error": None,
        }
        == resolved(team.client, name)
        == resolved(team.client, name, team)
    )


def test_resolving_without_access_is_an_answer(server: Server, admin: httpx.Client) -> None:
    assigned, foreign, hopeless = group(admin, "demo/echo"), group(admin, "demo/echo"), group(admin, "nobody/x")
    team = make_team(server, admin, model_groups=[assigned, hopeless])
    admin.put(f"/api/model-groups/{assigned}", json={"status": "inactive"})
    for name, has_access in ((assigned, False), (foreign, False), (hopeless, True)):
        found = resolved(team.client, name)
        assert (None, [], has_access) == (found["primary_model"], found["fallback_models"], found["team_has_access"])
        assert found["error"]
        assert "skipped" not in found


def test_resolving_is_about_a_team(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    name = group(admin)
    missing = admin.get(f"/api/model-groups/{name}/resolve")
    assert (422, ["query", "team_id"]) == (missing.status_code, missing.json()["detail"][0]["loc"])
    for unknown in ("no-such-team", "%00"):
        answer = admin.get(f"/api/model-groups/{name}/resolve?team_id={unknown}")
        assert (404, "team") == (answer.status_code, answer.json()["resource"])
    other = make_team(server, admin)
    refused = team.client.get(f"/api/model-groups/{name}/resolve?team_id={other.team_id}")
    assert (403, "forbidden") == (refused.status_code, refused.json()["code"])
