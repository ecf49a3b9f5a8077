"""Access groups over HTTP: which teams may use which aliases, and who sees whom in there."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_team, whole_list


def a_name(kind: str = "group") -> str:
    return f"{kind}-{uuid4().hex[:8]}"


def alias(admin: httpx.Client, **fields: Any) -> str:
    name = a_name("alias")
    answer = admin.post("/api/model-aliases/create", json={"alias": name, "litellm_model": "demo/echo", **fields})
    assert 200 == answer.status_code, answer.text
    return name


def group(admin: httpx.Client, *aliases: str, **fields: Any) -> str:
    name = a_name()
    body = {"group_name": name, "model_aliases": aliases, **fields}
    answer = admin.post("/api/model-access-groups/create", json=body)
    assert 200 == answer.status_code, answer.text
    return name


def usable(team: TestTeam) -> list[str]:
    return [each["alias"] for each in whole_list(team.client, "/api/model-aliases")]


def test_a_group_shows_its_aliases_and_its_teams(server: Server, admin: httpx.Client) -> None:
    name, models = a_name(), [alias(admin), alias(admin)]
    body = {"group_name": name, "description": "For research", "model_aliases": models}
    made = admin.post("/api/model-access-groups/create", json=body)
    assert 200 == made.status_code, made.text
    assert made.json() == admin.get(f"/api/model-access-groups/{name}").json()
    team = make_team(server, admin, access_groups=[name])
    shown = admin.get(f"/api/model-access-groups/{name}").json()
    assert (name, name, "For research", "active") == tuple(
        shown[field] for field in ("group_name", "display_name", "description", "status")
    )
    assert (models, 2) == (shown["model_alias_names"], shown["model_count"])
    assert ([team.team_id], [team.team_id], 1) == (
        shown["teams_using"],
        shown["teams_with_access"],
        shown["team_count"],
    )
    assert {
        "model_alias": models[0],
        "alias": models[0],
        "display_name": models[0],
        "description": None,
        "provider": "demo",
        "actual_model": "echo",
        "litellm_model": "demo/echo",
    } == shown["model_aliases"][0]


def test_a_team_sees_its_own_groups_and_only_itself_in_them(server: Server, admin: httpx.Client) -> None:
    shared, foreign = group(admin, alias(admin)), group(admin)
    team, _ = make_team(server, admin, access_groups=[shared]), make_team(server, admin, access_groups=[shared])
    (seen,) = team.client.get("/api/model-access-groups").json()
    assert seen == team.client.get(f"/api/model-access-groups/{shared}").json()
    assert ([team.team_id], [team.team_id], 1) == (seen["teams_using"], seen["teams_with_access"], seen["team_count"])
    assert {"model_alias", "alias", "display_name", "description"} == set(seen["model_aliases"][0])
    assert 2 == admin.get(f"/api/model-access-groups/{shared}").json()["team_count"]
    refused = team.client.get(f"/api/model-access-groups/{foreign}")
    assert (403, "forbidden") == (refused.status_code, refused.json()["code"])
    assert 404 == team.client.get(f"/api/model-access-groups/{a_name()}").status_code


def test_only_administrators_write(team: TestTeam, admin: httpx.Client) -> None:
    name = group(admin)
    url = f"/api/model-access-groups/{name}"
    for method, path, body in (
        ("POST", "/api/model-access-groups/create", {"group_name": a_name()}),
        ("PUT", url, {"status": "inactive"}),
        ("PUT", f"{url}/models", []),
        ("POST", f"{url}/add-models", {"model_aliases": []}),
        ("POST", f"{url}/remove-models", {"model_aliases": []}),
        ("DELETE", url, None),
    ):
        answer = team.client.request(method, path, json=body)
        assert (403, "admin_required") == (answer.status_code, answer.json()["code"])


def test_a_name_is_given_once(admin: httpx.Client) -> None:
    again = admin.post("/api/model-access-groups/create", json={"group_name": group(admin)})
    assert (400, "already_exists") == (again.status_code, again.json()["code"])


def test_unknown_aliases_and_groups_are_not_found(admin: httpx.Client) -> None:
    body = {"group_name": a_name(), "model_aliases": [a_name()]}
    answer = admin.post("/api/model-access-groups/create", json=body)
    assert (404, "model_alias") == (answer.status_code, answer.json()["resource"])
    url = f"/api/model-access-groups/{group(admin)}"
    for method, path, sent in (
        ("PUT", url, {"model_aliases": [a_name()]}),
        ("PUT", f"{url}/models", [a_name()]),
        ("POST", f"{url}/add-models", {"model_aliases": [a_name()]}),
    ):
        answer = admin.request(method, path, json=sent)
        assert (404, "model_alias") == (answer.status_code, answer.json()["resource"])
    missing = f"/api/model-access-groups/{a_name()}"
    requests: list[tuple[str, str, Any]] = [
        ("GET", missing, None),
        ("PUT", missing, {}),
        ("PUT", f"{missing}/models", []),
        ("POST", f"{missing}/add-models", {"model_aliases": []}),
        ("POST", f"{missing}/remove-models", {"model_aliases": []}),
        ("DELETE", missing, None),
    ]
    for method, path, sent in requests:
        answer = admin.request(method, path, json=sent)
        assert (404, "access_group") == (answer.status_code, answer.json()["resource"])


@pytest.mark.parametrize("name", ["", "a/b", "x" * 201, "a\nb"])
def test_a_name_has_to_fit_into_a_path(admin: httpx.Client, name: str) -> None:
    answer = admin.post("/api/model-access-groups/create", json={"group_name": name})
    assert (422, ["body", "group_name"]) == (answer.status_code, answer.json()["detail"][0]["loc"])


def test_a_change_leaves_alone_what_it_does_not_speak_of(admin: httpx.Client) -> None:
    model = alias(admin)
    url = f"/api/model-access-groups/{group(admin, model, description='first')}"
    changed = admin.put(url, json={"display_name": "Research", "model_aliases": None, "status": None}).json()
    assert ("Research", "first", "active", [model]) == tuple(
        changed[field] for field in ("display_name", "description", "status", "model_alias_names")
    )
    assert [] == admin.put(url, json={"model_aliases": []}).json()["model_alias_names"]
    assert 422 == admin.put(url, json={"status": "paused"}).status_code


def test_aliases_come_and_go_and_repeats_change_nothing(admin: httpx.Client) -> None:
    one, other, third = alias(admin), alias(admin), alias(admin)
    url = f"/api/model-access-groups/{group(admin, one)}"
    for _ in range(2):
        answer = admin.post(f"{url}/add-models", json={"model_aliases": [other, one]})
        assert (200, [one, other]) == (answer.status_code, answer.json()["model_alias_names"])
    for _ in range(2):
        answer = admin.post(f"{url}/remove-models", json={"model_aliases": [one, third]})
        assert (200, [other]) == (answer.status_code, answer.json()["model_alias_names"])
    assert [third] == admin.put(f"{url}/models", json=[third]).json()["model_alias_names"]
    assert [one] == admin.put(f"{url}/models", json={"model_aliases": [one]}).json()["model_alias_names"]
    assert 422 == admin.put(f"{url}/models", json={}).status_code
    assert 422 == admin.put(f"{url}/models", json=[1]).status_code


def test_a_group_in_use_stays_until_its_last_team_has_left(server: Server, admin: httpx.Client) -> None:
    name = group(admin)
    team = make_team(server, admin, access_groups=[name])
    url = f"/api/model-access-groups/{name}"
    refused = admin.delete(url)
    assert (400, "in_use") == (refused.status_code, refused.json()["code"])
    admin.put(f"/api/teams/{team.team_id}/access-groups", json=[])
    assert [] == admin.get(url).json()["teams_using"]
    deleted = admin.delete(url)
    assert (200, name) == (deleted.status_code, deleted.json()["group_name"])
    assert 404 == admin.get(url).status_code


def test_a_deleted_team_uses_nothing(server: Server, admin: httpx.Client) -> None:
    name = group(admin)
    team = make_team(server, admin, access_groups=[name])
    assert 200 == admin.delete(f"/api/teams/{team.team_id}").status_code
    assert [] == admin.get(f"/api/model-access-groups/{name}").json()["teams_using"]
    assert 200 == admin.delete(f"/api/model-access-groups/{name}").status_code


def test_access_follows_membership_and_the_groups_status(server: Server, admin: httpx.Client) -> None:
    mine, others, for_all = alias(admin), alias(admin), alias(admin)
    name, _ = group(admin, mine), group(admin, others)
    team = make_team(server, admin, access_groups=[name])
    seen = usable(team)
    assert (True, False, True) == (mine in seen, others in seen, for_all in seen)
    assert 200 == team.client.get(f"/api/model-aliases/{mine}").status_code
    refused = team.client.get(f"/api/models/{others}")
    assert (403, "model_not_allowed", others) == (
        refused.status_code,
        refused.json()["code"],
        refused.json()["model"],
    )
    assert seen == [each for each in refused.json()["available_models"] if each in seen]
    admin.put(f"/api/model-access-groups/{name}", json={"status": "inactive"})
    assert mine not in usable(team)
    assert 403 == team.client.get(f"/api/model-aliases/{mine}").status_code


def test_an_alias_names_the_teams_that_its_active_groups_let_in(server: Server, admin: httpx.Client) -> None:
    model = alias(admin)
    one, other = group(admin, model), group(admin, model)
    teams = sorted(make_team(server, admin, access_groups=groups).team_id for groups in ([one], [one, other]))
    url = f"/api/model-aliases/{model}"
    for shown in (admin.get(url).json(), admin.put(url, json={"display_name": "x"}).json()):
        assert (teams, 2) == (shown["teams_using"], shown["teams_with_access"])
    admin.put(f"/api/model-access-groups/{one}", json={"status": "inactive"})
    (listed,) = admin.get(f"/api/models?access_group={other}").json()
    assert 1 == admin.get(url).json()["teams_with_access"] == listed["teams_with_access"]


def test_lists_are_by_name_in_pages_with_their_count(admin: httpx.Client) -> None:
    names = sorted(group(admin, status="ignored") for _ in range(3))
    admin.put(f"/api/model-access-groups/{names[1]}", json={"status": "inactive"})
    found = [each["group_name"] for each in whole_list(admin, "/api/model-access-groups")]
    assert sorted(found) == found
    assert {*names} <= {*found}
    page = admin.get("/api/model-access-groups?limit=1&offset=1")
    assert ([found[1]], str(len(found))) == (
        [each["group_name"] for each in page.json()],
        page.headers["X-Total-Count"],
    )
    inactive = [each["group_name"] for each in whole_list(admin, "/api/model-access-groups", status="INACTIVE")]
    assert (True, False) == (names[1] in inactive, names[0] in inactive)
    for query, name in (("status=on", "status"), ("limit=0", "limit"), ("offset=-1", "offset")):
        refused = admin.get(f"/api/model-access-groups?{query}")
        assert (422, ["query", name]) == (refused.status_code, refused.json()["detail"][0]["loc"])
