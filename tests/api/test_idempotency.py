"""Idempotency keys over HTTP: asked again, answered again, done once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString
from uuid import uuid4

import httpx
import psycopg
import pytest

from api import idempotency
from tests.api.conftest import Server, TestTeam, make_alias, make_team, running, settings_for
from tests.provider import FakeProvider
from tests.waiting import until

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
    before = provider.calls.total()

    def ask(_: int) -> httpx.Response:
        return team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias}, headers=headers)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    good = [answer for answer in answers if answer.status_code == 200]
    in_flight = [answer for answer in answers if answer.status_code == 409]
    assert len(good) + len(in_flight) == 64
    assert all(answer.headers["Retry-After"] for answer in in_flight)
    assert len({answer.text for answer in good}) == 1
    assert provider.calls.total() == before + 1
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


@pytest.mark.parametrize("path", ["llm-call", "llm-call-stream", "create-and-call", "create-and-call-stream"])
def test_a_repeat_of_a_call_names_the_same_job_and_call(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, path: str
) -> None:
    body = {**ASK, "model": make_alias(admin, provider), "team_id": team.team_id, "job_type": "test"}
    url = f"/api/jobs/{path}" if path.startswith("create") else f"/api/jobs/{team.job()}/{path}"
    headers = key()
    first, again = (team.client.post(url, json=body, headers=headers) for _ in range(2))
    assert again.headers["Idempotent-Replayed"] == "true"
    for name in ("X-Job-Id", "X-Call-Id", "Content-Type", "Cache-Control", "X-Accel-Buffering"):
        assert again.headers.get(name) == first.headers.get(name)
    assert first.headers["X-Job-Id"]
    assert first.headers["X-Call-Id"]


def test_a_kept_refusal_is_json_also_where_streams_are_answered(server: Server, admin: httpx.Client) -> None:
    poor, headers = make_team(server, admin, credits=0), key()
    body = {**ASK, "team_id": poor.team_id, "job_type": "test"}
    first, again = (poor.client.post("/api/jobs/create-and-call-stream", json=body, headers=headers) for _ in range(2))
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["Content-Type"] == "application/json"


# -- claims whose process is gone --------------------------------------------------------------------------------------

_BROKEN_OFF = """
update app.idempotency set state = 'claimed', status = null, body = null,
    process = case when %(is_gone)s then process - 1 else process end, has_written = %(has_written)s
where key = %(key)s
"""


def _execute(server: Server, statement: LiteralString, **parameters: Any) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(statement, parameters)


def _opened_again(server: Server, team: TestTeam, *, is_gone: bool, has_written: bool) -> httpx.Response:
    """What is said to a repeat of a request that was broken off."""
    headers, body = key(), {"team_id": team.team_id, "job_type": "test"}
    team.client.post("/api/jobs/create", json=body, headers=headers)
    _execute(server, _BROKEN_OFF, is_gone=is_gone, has_written=has_written, key=headers["Idempotency-Key"])
    return team.client.post("/api/jobs/create", json=body, headers=headers)


def test_a_claim_of_a_process_that_is_gone_is_free_at_once(server: Server, team: TestTeam) -> None:
    answer = _opened_again(server, team, is_gone=True, has_written=False)
    assert answer.status_code == 200
    assert "Idempotent-Replayed" not in answer.headers


def test_a_claim_of_a_process_that_lives_is_not_free(server: Server, team: TestTeam) -> None:
    assert _opened_again(server, team, is_gone=False, has_written=False).status_code == 409


def test_a_claim_that_may_have_come_to_something_ends_with_its_lease(server: Server, team: TestTeam) -> None:
    assert _opened_again(server, team, is_gone=True, has_written=True).status_code == 409


def test_no_provider_is_asked_under_a_claim_that_somebody_else_has(database: str, provider: FakeProvider) -> None:
    with running(database) as server, server.client() as admin:
        team = make_team(server, admin)
        body = {**ASK, "model": make_alias(admin, provider, "gpt-taken-over")}
        job_id = team.job()
        # As if another process had taken the key over in the moment before the call is put on record.
        _execute(
            server,
            """
            create function app.take_over() returns trigger language plpgsql as $$ begin return null; end $$;
            create trigger taken_over before update on app.idempotency
                for each row when (new.has_written) execute function app.take_over()
            """,
        )
        answer = team.client.post(f"/api/jobs/{job_id}/llm-call", json=body, headers=key())
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_flight")
        assert team.client.get(f"/api/jobs/{job_id}").json()["costs"]["total_calls"] == 0
    assert provider.calls["gpt-taken-over"] == 0


def test_an_answer_does_not_wait_for_a_claim_that_cannot_be_ended(database: str) -> None:
    with running(database) as server, server.client() as admin:
        headers = key()
        _execute(
            server,
            """
            create function app.shut_down() returns trigger language plpgsql
                as $$ begin raise 'the database shuts down' using errcode = 'admin_shutdown'; end $$;
            create trigger shut_down before delete on app.idempotency
                for each row execute function app.shut_down()
            """,
        )
        assert admin.post("/api/organizations/create", json={}, headers=headers).status_code == 422
        assert admin.post("/api/organizations/create", json={}, headers=headers).status_code == 409
        _execute(server, "drop trigger shut_down on app.idempotency")
        until(lambda: admin.post("/api/organizations/create", json={}, headers=headers).status_code == 422)


@pytest.mark.parametrize("path", ["create-and-call", "create-and-call-stream"])
def test_a_key_is_held_for_as_long_as_all_models_of_a_group_may_take(
    server: Server, admin: httpx.Client, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    name, held = f"group-{uuid4().hex[:8]}", f"held-{uuid4().hex}"
    members = [make_alias(admin, provider, held), make_alias(admin, provider)]
    admin.post("/api/model-groups/create", json={"group_name": name, "models": members})
    team, headers = make_team(server, admin, model_groups=[name]), key()
    body = {**ASK, "team_id": team.team_id, "job_type": "one", "model": name}

    def ask() -> httpx.Response:
        return team.client.post(f"/api/jobs/{path}", json=body, headers=headers)

    # As if the time of a single model were over already.
    monkeypatch.setattr(idempotency, "LEASE_MARGIN_SECONDS", -settings_for(server.dsn).llm_timeout_seconds)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(ask)
        try:
            until(lambda: provider.calls[held])
            again = ask()
        finally:
            provider.let_go(held)
        assert (409, "idempotency_in_flight") == (again.status_code, again.json()["code"])
        assert 200 == first.result().status_code
    assert "true" == ask().headers["Idempotent-Replayed"]
    assert 1 == provider.calls[held]
    assert 99 == team.client.get("/api/credits/balance").json()["credits_remaining"]
