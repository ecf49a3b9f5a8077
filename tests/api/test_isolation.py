"""Who gets nothing: nobody, other teams, keys where an administrator is needed, roles that may only read.

Each test walks the OpenAPI document, so that an endpoint that is new tomorrow is covered tomorrow.
"""

from collections.abc import Iterator

import httpx
import jwt
import pytest

from api.app import described
from api.openapi import Json, operations_of
from api.request_examples import EXAMPLES
from tests.api.people import anybody, code
from tests.api.world import World

OPERATIONS = list(operations_of(described()))
CLOSED = [each for each in OPERATIONS if each[2]["x-caller"] != "anybody"]
ADMINS_ONLY = [each for each in CLOSED if each[2]["x-caller"] not in ("team", "key")]
OWN = [each for each in CLOSED if each[2]["x-caller"] in ("team", "key")]
KEYS_ONLY = [each for each in CLOSED if each[2]["x-caller"] == "key"]
OF_ONESELF = ("/me", "/logout", "/password")


@pytest.fixture(autouse=True)
def nothing_is_written(world: World) -> Iterator[None]:
    """Whoever is refused leaves no trace in the journal."""
    before = world.head()
    yield
    assert before == world.head()


def ask(client: httpx.Client, world: World, method: str, path: str, operation: Json) -> httpx.Response:
    """A request in which everything is right, except for whoever asks; all that it names is the first team's."""
    names = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
    query = {"team_id": world.team.team_id} if "team_id" in names else {}
    return client.request(method, world.path(path), params=query, json=body_of(world, operation))


def body_of(world: World, operation: Json) -> Json | None:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    options = [content["schema"], *(each for key in ("oneOf", "anyOf") for each in content["schema"].get(key, []))]
    name = next(each["$ref"] for each in options if "$ref" in each).rpartition("/")[2]
    ours = {"team_id": world.team.team_id} if "team_id" in EXAMPLES[name] else {}
    return {**EXAMPLES[name], **ours}


def names_the_first_team(operation: Json, path: str) -> bool:
    in_query = any(each["name"] == "team_id" for each in operation.get("parameters", []) if each["in"] == "query")
    return "{" in path or in_query or "team_id" in str(operation.get("requestBody", {}).get("content", {}))


def test_without_a_credential_there_is_nothing(world: World) -> None:
    nobody = anybody(world.server)
    for method, path, operation in CLOSED:
        answer = ask(nobody, world, method, path, operation)
        assert (401, "unauthorized") == code(answer), f"{method} {path}"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("forgery", ["an unknown key", "another secret", "no algorithm", "two keys", "another scheme"])
def test_a_wrong_credential_is_none(world: World, forgery: str) -> None:
    token, claims = world.callers["owner"], jwt.decode(world.callers["owner"], options={"verify_signature": False})
    header = {
        "an unknown key": "Bearer sk-unknown-key-of-nobody-at-all",
        "another secret": "Bearer " + jwt.encode(claims, "another-secret-of-thirty-two-bytes!", algorithm="HS256"),
        "no algorithm": "Bearer " + jwt.encode(claims, None, algorithm="none"),
        "two keys": f"Bearer {token} {token}",
        "another scheme": f"Basic {token}",
    }[forgery]
    client = anybody(world.server)
    for method, path, _ in CLOSED:
        answer = client.request(method, world.path(path), headers={"Authorization": header})
        assert (401, "unauthorized") == code(answer), f"{method} {path}"


def test_a_key_does_nothing_that_is_for_administrators(world: World) -> None:
    for method, path, operation in ADMINS_ONLY:
        answer = ask(world.team.client, world, method, path, operation)
        assert (403, "admin_required") == code(answer), f"{method} {path}"
        assert "credit" not in answer.json()["detail"]


def test_another_teams_key_gets_nothing(world: World) -> None:
    walked = 0
    for method, path, operation in OWN:
        if names_the_first_team(operation, path):
            walked += 1
            answer = ask(world.stranger.client, world, method, path, operation)
            assert answer.status_code in (403, 404), f"{method} {path}: {answer.text}"
            learns_nothing(world, answer)
    assert walked > 25


def test_lists_show_a_key_its_own_only(world: World) -> None:
    for method, path, operation in OWN:
        has_to_say = any(each["required"] for each in operation.get("parameters", []))
        if method == "GET" and not has_to_say:
            answer = world.stranger.client.get(path)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            learns_nothing(world, answer)


@pytest.mark.parametrize("role", ["user", "auditor"])
def test_who_may_only_read_writes_nothing(world: World, role: str) -> None:
    reader = world.server.client(world.callers[role])
    for method, path, operation in CLOSED:
        if method != "GET" and not any(word in path for word in OF_ONESELF):
            answer = ask(reader, world, method, path, operation)
            assert (403, "role_forbidden") == code(answer), f"{method} {path}"


def test_a_user_sees_neither_administrators_nor_audits(world: World) -> None:
    user = world.server.client(world.callers["user"])
    for method, path, operation in CLOSED:
        is_private = operation["x-caller"] == "auditor" or path == "/api/admin-users"
        if method == "GET" and is_private:
            assert (403, "role_forbidden") == code(ask(user, world, method, path, operation)), path


def test_the_master_key_is_nobodys_session(world: World) -> None:
    for method, path, operation in CLOSED:
        if operation.get("security") == [{"bearerAuth": []}]:
            assert (403, "jwt_required") == code(ask(world.admin, world, method, path, operation)), path


def test_what_tells_a_key_of_itself_tells_an_administrator_nothing(world: World) -> None:
    assert len(KEYS_ONLY) == 4
    for method, path, operation in KEYS_ONLY:
        for caller in ("master", "owner"):
            answer = ask(world.server.client(world.callers[caller]), world, method, path, operation)
            assert (403, "forbidden") == code(answer), path


def learns_nothing(world: World, answer: httpx.Response) -> None:
    """Of what the first team has, the answer says no more than the request did."""
    asked = str(answer.request.url) + answer.request.content.decode()
    for name, value in world.ids.items():
        if name not in ("provider", "section", "period") and value not in asked:
            assert value not in answer.text, name
    assert "of-the-first" not in answer.text or "of-the-first" in asked
