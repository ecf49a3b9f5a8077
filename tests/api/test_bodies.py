"""What JSON can spell and nobody can store: refused in ids and names, replaced in free text (contract, appendix F)."""

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.bodies import decode_body
from api.problems import Trouble
from tests.api.conftest import TestTeam

NAMES = {
    "/api/organizations/create": ("organization_id", "name", "default_model"),
    "/api/teams/create": ("team_id", "team_alias", "default_model"),
    "/api/jobs/create": ("job_type", "user_id", "external_task_id"),
    "/api/model-access-groups/create": ("group_name", "display_name"),
    "/api/model-groups/create": ("group_name", "display_name"),
    "/api/model-aliases/create": ("alias", "display_name"),
    "/api/provider-credentials/create": ("credential_name",),
}
UNPRINTABLE = ("a\x00b", "\x00", "a\ud800", "\udfff\ud800", "a\n")


def body_for(path: str, team: TestTeam) -> dict[str, Any]:
    """A body that is in order."""
    name = f"n-{uuid4().hex[:8]}"
    own, other = {"team_id": team.team_id}, {"organization_id": team.organization_id}
    bodies: dict[str, dict[str, Any]] = {
        "/api/organizations/create": {"organization_id": name, "name": name},
        "/api/teams/create": {**other, "team_id": name},
        "/api/jobs/create": {**own, "job_type": name},
        "/api/model-access-groups/create": {"group_name": name},
        "/api/model-groups/create": {"group_name": name},
        "/api/model-aliases/create": {"alias": name, "litellm_model": "demo/echo"},
        "/api/provider-credentials/create": {
            **other,
            "provider": "openai",
            "credential_name": name,
            "api_key": "sk-of-some-provider",
        },
    }
    return bodies[path]


def post(admin: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    return admin.post(path, content=json.dumps(body).encode())  # escaped, as httpx would not


@pytest.mark.parametrize("path", NAMES)
def test_a_name_that_cannot_be_printed_is_refused(admin: httpx.Client, team: TestTeam, path: str) -> None:
    assert post(admin, path, body_for(path, team)).is_success
    for field in NAMES[path]:
        for name in UNPRINTABLE:
            refused = post(admin, path, body_for(path, team) | {field: name})
            assert (422, ["body", field]) == (refused.status_code, refused.json()["detail"][0]["loc"]), (field, name)


def test_a_text_that_never_ends_is_soon_looked_through() -> None:
    """It would take hours if each of its quotes were taken for the beginning of another one."""
    with pytest.raises(Trouble, match="malformed_json"):
        decode_body(b"[" * 101 + b'"' + rb"\"" * 5_000_000, Any)
    with pytest.raises(Trouble, match="malformed_json"):
        decode_body(b'["' + b"[" * 101 + rb"\"" * 5_000_000, Any)


def test_a_complaint_tells_what_is_expected_in_words(admin: httpx.Client, team: TestTeam) -> None:
    def complaint(path: str, **fields: str) -> Any:
        return post(admin, path, body_for(path, team) | fields).json()["detail"][0]["msg"]

    without_slashes = "Expected text without slashes and control characters"
    assert without_slashes == complaint("/api/organizations/create", organization_id="a/b")
    assert without_slashes == complaint("/api/model-groups/create", group_name="a/b")
    assert "Expected text without control characters" == complaint("/api/jobs/create", job_type="a\n")
    for team_id in ("create", "a/b"):
        assert f"{without_slashes}, neither create nor verify" == complaint("/api/teams/create", team_id=team_id)
    for key in ("a key of ours", "schlüssel"):
        assert "Expected visible ASCII characters without spaces" == complaint("/api/teams/create", virtual_key=key)


def test_in_free_text_it_is_replaced(admin: httpx.Client, team: TestTeam) -> None:
    odd, kept = "a\x00b \ud800 \U0001f600", "a\ufffdb \ufffd \U0001f600"
    job = {"team_id": team.team_id, "job_type": "t", "metadata": {odd: [odd]}}
    job_id = post(admin, "/api/jobs/create", job).json()["job_id"]
    ended = post(admin, f"/api/jobs/{job_id}/complete", {"status": "failed", "error_message": odd, "result": odd})
    assert kept == ended.json()["error_message"]
    assert {kept: [kept], "result": kept} == ended.json()["metadata"]
    assert ended.json()["metadata"] == admin.get(f"/api/jobs/{job_id}").json()["metadata"]
    added = post(admin, "/api/credits/add", {"team_id": team.team_id, "amount": 1, "reason": odd})
    assert kept == added.json()["transaction"]["reason"]


def test_whole_numbers_come_with_or_without_a_point_and_never_as_text(admin: httpx.Client, team: TestTeam) -> None:
    def answered(amount: str) -> int:
        body = f'{{"team_id": "{team.team_id}", "amount": {amount}}}'
        return admin.post("/api/credits/add", content=body.encode()).status_code

    assert {200} == {answered(amount) for amount in ("100", "100.0", "1e2", "1000000000000")}
    assert {422} == {answered(amount) for amount in ('"100"', "true", "100.5", "1000000000001", "-0.0", "[1]")}
