"""Idempotency keys over HTTP: asked again, answered again, done once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx

from tests.api.conftest import Server, TestTeam, make_alias, make_team, running
from tests.provider import FakeProvider

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


def test_a_repeat_gets_the_first_answer_and_makes_nothing(team: TestTeam) -> None:
    headers, body = key(), {"team_id": team.team_id, "job_type": "test"}
    first = team.client.post("/api/jobs/create", json=body, headers=headers)
    again = team.client.post("/api/jobs/create", json=dict(reversed(body.items())), headers=headers)
    assert again.text == first.text
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert team.client.get("/api/jobs").json()["total"] == 1


def test_the_same_key_for_another_body_or_query_is_refused(team: TestTeam) -> None:
    headers, body = key(), {"team_id": team.team_id, "job_type": "test"}
    team.client.post("/api/jobs/create", json=body, headers=headers)
    for path, other in (("/api/jobs/create", {**body, "job_type": "other"}), ("/api/jobs/create?a=1", body)):
        refused = team.client.post(path, json=other, headers=headers)
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]
        assert refused.json()["detail"][0]["type"] == "value_error.idempotency"


def test_a_key_belongs_to_its_credential_and_path(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    headers, other = key(), make_team(server, admin)
    mine = team.client.post("/api/jobs/create", json={"team_id": team.team_id, "job_type": "a"}, headers=headers)
    theirs = other.client.post("/api/jobs/create", json={"team_id": other.team_id, "job_type": "b"}, headers=headers)
    assert mine.json()["job_id"] != theirs.json()["job_id"]
    path = f"/api/jobs/{mine.json()['job_id']}/complete"
    assert team.client.post(path, json={"status": "completed"}, headers=headers).status_code == 200


def test_sixty_four_duplicates_at_once_call_the_provider_once(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias, job_id, headers = make_alias(admin, provider, "slow-300"), team.job(), key()
    before = len(provider.requests)

    def ask(_: int) -> httpx.Response:
        return team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias}, headers=headers)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    good = [answer for answer in answers if answer.status_code == 200]
    in_flight = [answer for answer in answers if answer.status_code == 409]
    assert len(good) + len(in_flight) == 64
    assert all(answer.headers["Retry-After"] for answer in in_flight)
    assert len({answer.text for answer in good}) == 1
    assert len(provider.requests) == before + 1
    assert team.client.get(f"/api/jobs/{job_id}").json()["costs"]["total_calls"] == 1


def test_a_stream_is_replayed_from_the_record_and_bills_nothing(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias, job_id, headers = make_alias(admin, provider, "stream-3-0"), team.job(), key()
    path, body = f"/api/jobs/{job_id}/llm-call-stream", {**ASK, "model": alias}
    first = team.client.post(path, json=body, headers=headers)
    again = team.client.post(path, json=body, headers=headers)
    assert again.headers["content-type"].startswith("text/event-stream")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.text.rstrip().endswith("data: [DONE]")
    assert _text(again) == _text(first)
    assert team.client.get(f"/api/jobs/{job_id}").json()["costs"]["total_calls"] == 1


def _text(answer: httpx.Response) -> str:
    return "".join(part.split('"', 1)[0] for part in answer.text.split('}],"content":"')[1:])


def test_a_refusal_is_kept_and_a_bad_body_is_not(server: Server, admin: httpx.Client) -> None:
    poor = make_team(server, admin, credits=0)
    job_id, headers = poor.job(), key()
    path = f"/api/jobs/{job_id}/complete"
    assert poor.client.post(path, json={"status": "odd"}, headers=headers).status_code == 422
    assert poor.client.post(path, json={"status": "completed"}, headers=headers).status_code == 403
    admin.post("/api/credits/add", json={"team_id": poor.team_id, "amount": 5})
    assert poor.client.post(path, json={"status": "completed"}, headers=headers).status_code == 403
    assert poor.client.post(path, json={"status": "completed"}, headers=key()).status_code == 200


def test_a_provider_that_fails_gives_the_key_back(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    alias, job_id, headers = make_alias(admin, provider, "status-503"), team.job(), key()
    for calls in (1, 2):
        answer = team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias}, headers=headers)
        assert answer.status_code == 500
        assert team.client.get(f"/api/jobs/{job_id}").json()["costs"]["total_calls"] == calls


def test_a_key_that_is_too_long_is_refused(team: TestTeam) -> None:
    body = {"team_id": team.team_id, "job_type": "test"}
    refused = team.client.post("/api/jobs/create", json=body, headers={"Idempotency-Key": "x" * 256})
    assert refused.status_code == 422
    assert team.client.post("/api/jobs/create", json=body, headers={"Idempotency-Key": "x" * 255}).status_code == 200


def test_a_fresh_key_is_replayed_and_stored_only_encrypted(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    headers = key()
    body = {"organization_id": team.organization_id, "team_id": f"t-{uuid4().hex[:8]}"}
    first = admin.post("/api/teams/create", json=body, headers=headers)
    again = admin.post("/api/teams/create", json=body, headers=headers)
    assert again.json()["virtual_key"] == first.json()["virtual_key"]


def test_keys_survive_a_restart(database: str) -> None:
    headers = key()
    body = {"organization_id": "o", "name": "O"}
    with running(database) as server, server.client() as admin:
        first = admin.post("/api/organizations/create", json=body, headers=headers)
    with running(database) as server, server.client() as admin:
        again = admin.post("/api/organizations/create", json=body, headers=headers)
    assert (again.status_code, again.text) == (200, first.text)
    assert again.headers["Idempotent-Replayed"] == "true"
