"""The keys of a team over HTTP."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import MASTER_KEY, Server, TestTeam, make_team, running
from tests.api.test_teams import invalid, ok, path, refused
from tests.waiting import until

KEY_FIELDS = {
    "key_id",
    "team_id",
    "name",
    "virtual_key",
    "is_active",
    "created_at",
    "last_used_at",
    "revoked_at",
}


def keys_of(client: httpx.Client, team: TestTeam) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = ok(client.get(path(team, "/keys")))
    return listed


def works(server: Server, key: str) -> bool:
    with server.client(key) as client:
        return client.get("/api/teams/verify").status_code == 200


def test_a_team_may_have_several_keys(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    issued = ok(admin.post(path(team, "/keys"), json={"name": "second"}))
    assert set(issued) == KEY_FIELDS
    assert ("second", True, None) == (issued["name"], issued["is_active"], issued["revoked_at"])
    key = issued["virtual_key"]
    assert works(server, key)
    assert works(server, team.key)
    first, second = keys_of(team.client, team)
    assert [None, "second"] == [first["name"], second["name"]]
    assert [f"{each[:7]}...{each[-4:]}" for each in (team.key, key)] == [first["virtual_key"], second["virtual_key"]]
    assert set(first) == KEY_FIELDS


def test_a_key_may_be_issued_without_a_body(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    assert works(server, ok(admin.post(path(team, "/keys")))["virtual_key"])


def test_a_chosen_key_is_not_given_twice(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    key = f"sk-{uuid4().hex}"
    issued = ok(admin.post(path(team, "/keys"), json={"virtual_key": key}))
    assert key == issued["virtual_key"]
    other = make_team(server, admin)
    for taken in (key, team.key):
        refused(admin.post(path(other, "/keys"), json={"virtual_key": taken}), 400, "already_exists")
    ok(admin.delete(path(team, f"/keys/{issued['key_id']}")))
    refused(admin.post(path(other, "/keys"), json={"virtual_key": key}), 400, "already_exists")


@pytest.mark.parametrize("key", ["short", "white space", MASTER_KEY])
def test_a_bad_choice_of_a_key_is_refused(admin: httpx.Client, team: TestTeam, key: str) -> None:
    invalid(admin.post(path(team, "/keys"), json={"virtual_key": key}), "body", "virtual_key")


@pytest.mark.parametrize("method,end", [("DELETE", ""), ("POST", "/revoke")])
def test_a_revoked_key_is_worth_nothing_at_once(
    server: Server, admin: httpx.Client, team: TestTeam, method: str, end: str
) -> None:
    issued = ok(admin.post(path(team, "/keys"), json={"name": "second"}))
    url = path(team, f"/keys/{issued['key_id']}{end}")
    revoked = ok(admin.request(method, url))
    assert {*KEY_FIELDS, "message"} == set(revoked)
    assert not revoked["is_active"]
    assert not works(server, issued["virtual_key"])
    assert works(server, team.key)
    again = ok(admin.request(method, url))
    assert again == revoked
    shown = keys_of(team.client, team)
    assert [True, False] == [each["is_active"] for each in shown]
    assert shown[1]["revoked_at"] == revoked["revoked_at"]


@pytest.mark.parametrize("key_id", ["nonsense", "7f6b3a52-0000-4000-8000-000000000000"])
def test_unknown_keys_are_not_found(admin: httpx.Client, team: TestTeam, key_id: str) -> None:
    for answer in (
        admin.delete(path(team, f"/keys/{key_id}")),
        admin.post(path(team, f"/keys/{key_id}/revoke")),
        admin.post(path(team, f"/keys/{key_id}/rotate")),
    ):
        assert "virtual_key" == refused(answer, 404, "not_found")["resource"]


def test_the_key_of_another_team_is_not_found(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    other = make_team(server, admin)
    (key,) = keys_of(admin, other)
    refused(admin.delete(path(team, f"/keys/{key['key_id']}")), 404, "not_found")
    assert works(server, other.key)


def test_keys_of_unknown_teams_are_not_found(admin: httpx.Client, team: TestTeam) -> None:
    refused(admin.get("/api/teams/no-such-team/keys"), 404, "not_found")
    refused(admin.post("/api/teams/no-such-team/keys"), 404, "not_found")
    refused(admin.post("/api/teams/no-such-team/rotate-key"), 404, "not_found")
    refused(team.client.get("/api/teams/no-such-team/keys"), 403, "forbidden")


def test_a_rotated_key_ends_at_once(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    (old,) = keys_of(admin, team)
    new = ok(admin.post(path(team, f"/keys/{old['key_id']}/rotate")))
    assert {*KEY_FIELDS, "replaces"} == set(new)
    assert old["key_id"] == new["replaces"]
    assert (False, True) == (works(server, team.key), works(server, new["virtual_key"]))
    masked = f"{new['virtual_key'][:7]}...{new['virtual_key'][-4:]}"
    assert masked == ok(admin.get(path(team)))["virtual_key"]


def test_a_rotated_key_may_have_a_time_of_grace(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    new = ok(admin.post(path(team, "/rotate-key"), json={"grace_seconds": 3600}))
    assert (True, True) == (works(server, team.key), works(server, new["virtual_key"]))
    old, _ = keys_of(admin, team)
    assert (old["key_id"], True) == (new["replaces"], old["is_active"])
    assert datetime.fromisoformat(old["revoked_at"]) > datetime.now(UTC)


def test_the_time_of_grace_passes(database: str) -> None:
    with running(database) as server, server.client() as admin:
        team = make_team(server, admin)
        new = ok(admin.post(path(team, "/rotate-key"), json={"grace_seconds": 1}))
        until(lambda: not works(server, team.key))
        assert works(server, new["virtual_key"])


@pytest.mark.parametrize("grace", [-1, 604801, 0.5, "1"])
def test_a_time_of_grace_has_bounds(admin: httpx.Client, team: TestTeam, grace: Any) -> None:
    invalid(admin.post(path(team, "/rotate-key"), json={"grace_seconds": grace}), "body", "grace_seconds")


def test_a_team_without_active_keys_has_none_to_rotate(admin: httpx.Client, team: TestTeam) -> None:
    (key,) = keys_of(admin, team)
    ok(admin.delete(path(team, f"/keys/{key['key_id']}")))
    refused(admin.post(path(team, "/rotate-key")), 404, "not_found")
    assert ok(admin.get(path(team)))["virtual_key"] is None


def test_a_key_tells_when_it_was_last_used(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    second = ok(admin.post(path(team, "/keys")))
    assert [None, None] == [key["last_used_at"] for key in keys_of(admin, team)]
    with server.client(second["virtual_key"]) as client:
        ok(client.post("/api/jobs/create", json={"team_id": team.team_id, "job_type": "test"}))
    first, used = keys_of(admin, team)
    assert first["last_used_at"] is None
    assert used["last_used_at"] >= used["created_at"]
    assert used["last_used_at"] == ok(admin.delete(path(team, f"/keys/{second['key_id']}")))["last_used_at"]


def test_teams_cannot_manage_keys(team: TestTeam) -> None:
    (key,) = keys_of(team.client, team)
    for url in ("/keys", f"/keys/{key['key_id']}/revoke", f"/keys/{key['key_id']}/rotate", "/rotate-key"):
        refused(team.client.post(path(team, url)), 403, "admin_required")
    refused(team.client.delete(path(team, f"/keys/{key['key_id']}")), 403, "admin_required")


def test_keys_are_paged(admin: httpx.Client, team: TestTeam) -> None:
    for number in range(3):
        ok(admin.post(path(team, "/keys"), json={"name": f"key {number}"}))
    page = admin.get(path(team, "/keys"), params={"limit": 2, "offset": 1})
    assert (["key 0", "key 1"], "4") == ([key["name"] for key in ok(page)], page.headers["X-Total-Count"])


def test_a_repeated_request_for_a_key_gives_the_same_key(admin: httpx.Client, team: TestTeam) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    first = ok(admin.post(path(team, "/keys"), json={}, headers=headers))
    assert first == ok(admin.post(path(team, "/keys"), json={}, headers=headers))
    assert 2 == len(keys_of(admin, team))
