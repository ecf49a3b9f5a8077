"""How a call ends for whoever listens, when something else has ended before it or went wrong at the end."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api import calling, jobs
from tests.api.conftest import Server, TestTeam, make_alias
from tests.api.people import code
from tests.provider import FakeProvider
from tests.waiting import until

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


def whole_job(team: TestTeam, alias: str) -> dict[str, Any]:
    return {**ASK, "team_id": team.team_id, "job_type": "one", "model": alias}


@contextmanager
def streaming(team: TestTeam, alias: str, headers: dict[str, str]) -> Iterator[tuple[str, Iterator[str]]]:
    """A job of one call whose answer has begun: the job, and the data lines that are still to come."""
    body = whole_job(team, alias)
    with team.client.stream("POST", "/api/jobs/create-and-call-stream", json=body, headers=headers) as answer:
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
        next(lines)
        yield answer.headers["X-Job-Id"], lines


def held() -> str:
    """A model that goes on when it is told to: what happens meanwhile does so however slow the machine is."""
    return f"held-{uuid4().hex}"


def is_cancelled(team: TestTeam, job_id: str) -> bool:
    return team.client.post(f"/api/jobs/{job_id}/cancel").is_success


def test_a_stream_whose_job_was_cancelled_meanwhile_ends_and_says_so(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias, headers = make_alias(admin, provider, model := held()), key()
    with streaming(team, alias, headers) as (job_id, lines):
        assert is_cancelled(team, job_id)
        provider.let_go(model)
        *_, trouble, done = lines
    assert ("job_closed", "[DONE]") == (json.loads(trouble)["error"]["code"], done)
    job = team.client.get(f"/api/jobs/{job_id}").json()
    assert ("cancelled", "completed", 7) == (
        job["status"],
        job["calls"][0]["status"],
        job["calls"][0]["completion_tokens"],
    )
    assert 100 == team.client.get("/api/credits/balance").json()["credits_remaining"]
    again = team.client.post("/api/jobs/create-and-call-stream", json=whole_job(team, alias), headers=headers)
    assert "true" == again.headers["Idempotent-Replayed"]
    assert job_id == again.headers["X-Job-Id"]
    assert again.text.endswith(f"data: {trouble}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/api/jobs/create-and-call-stream", "/v1/chat/completions"])
def test_a_client_that_hangs_up_has_its_job_completed_and_charged(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, path: str
) -> None:
    body = {**whole_job(team, make_alias(admin, provider, "hang-after-3")), "stream": True}
    with team.client.stream("POST", path, json=body) as answer:
        next(line for line in answer.iter_lines() if line.startswith("data: "))
        job = f"/api/jobs/{answer.headers['X-Job-Id']}"
    until(lambda: team.client.get(job).json()["status"] == "completed")
    ended = team.client.get(job).json()
    assert (1, True, "cancelled") == (
        ended["credits_charged"],
        ended["calls"][0]["partial"],
        ended["calls"][0]["finish_reason"],
    )


def test_a_client_that_reads_nothing_holds_back_no_provider_and_pays(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    words = 30_000  # more than all that lies between us and a client that does not read
    body = json.dumps({**whole_job(team, make_alias(admin, provider, f"stream-{words}-0"))}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((httpx.URL(server.url).host, httpx.URL(server.url).port))
        head = f"POST /api/jobs/create-and-call-stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {team.key}\r\n"
        client.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        ended = until(lambda: team.client.get("/api/jobs", params={"status": "completed"}).json()["jobs"])
        with client.makefile("rb") as answer:
            said = answer.read()
    assert (1, words + 5) == (ended[0]["credits_charged"], ended[0]["costs"]["total_tokens"])
    assert words == said.count(b'"content":"w') / 2  # beside the choices, and in them
    assert b"data: [DONE]" in said


def test_a_call_that_runs_while_its_team_is_suspended_is_finished_and_charged(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    with streaming(team, make_alias(admin, provider, model := held()), {}) as (job_id, lines):
        assert admin.post(f"/api/teams/{team.team_id}/suspend").is_success
        provider.let_go(model)
        *_, end, done = lines
    assert ("stop", "[DONE]") == (json.loads(end)["choices"][0]["finish_reason"], done)
    job = team.client.get(f"/api/jobs/{job_id}").json()
    assert ("completed", 1) == (job["status"], job["credits_charged"])


def test_a_silent_stream_is_kept_alive(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "KEEP_ALIVE_SECONDS", 0.02)
    body = {**ASK, "model": make_alias(admin, provider, model := held())}
    with team.client.stream("POST", f"/api/jobs/{team.job()}/llm-call-stream", json=body) as answer:
        comments = (line for line in answer.iter_lines() if line.startswith(":"))
        assert [": ok", ": still here"] == [next(comments), next(comments)]
        provider.let_go(model)
        assert {": still here"} >= set(comments)


def test_a_stream_whose_team_was_deleted_meanwhile_ends(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    with streaming(team, make_alias(admin, provider, model := held()), {}) as (_, lines):
        assert admin.delete(f"/api/teams/{team.team_id}").is_success
        provider.let_go(model)
        assert "[DONE]" == list(lines)[-1]


def test_a_stream_that_the_provider_rejects_is_replayed_as_it_was(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias, job_id, headers = make_alias(admin, provider, "status-400"), team.job(), key()
    first, again = (
        team.client.post(f"/api/jobs/{job_id}/llm-call-stream", json={**ASK, "model": alias}, headers=headers)
        for _ in range(2)
    )
    assert "request_rejected" in first.text
    assert (200, first.text) == (again.status_code, again.text)
    for name in ("Content-Type", "X-Job-Id", "X-Call-Id"):
        assert first.headers[name] == again.headers[name]
    assert "true" == again.headers["Idempotent-Replayed"]
    assert 1 == team.client.get(f"/api/jobs/{job_id}").json()["costs"]["rejected_calls"]


@pytest.mark.parametrize("path", ["llm-call-stream", "create-and-call-stream"])
def test_a_stream_whose_end_could_not_be_recorded_gives_its_key_back(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    body, headers = whole_job(team, make_alias(admin, provider)), key()
    url = f"/api/jobs/{path}" if path.startswith("create") else f"/api/jobs/{team.job()}/{path}"
    with monkeypatch.context() as broken:
        broken.setattr(calling, "SETTLE_RETRIES", 0)
        first = team.client.post(url, json=body, headers=headers)
    again = team.client.post(url, json=body, headers=headers)
    assert "Idempotent-Replayed" not in again.headers
    for answer in (first, again):
        assert answer.text.endswith("data: [DONE]\n\n")
    assert first.headers["X-Call-Id"] != again.headers["X-Call-Id"]


def test_a_job_of_one_call_with_too_much_metadata_is_never_opened(team: TestTeam) -> None:
    for metadata in (
        {"call_metadata": {"a": "x" * 11_000}},
        {"metadata": {"a": "x" * 6000}, "call_metadata": {"b": "x" * 6000}},
    ):
        for path in ("create-and-call", "create-and-call-stream"):
            refused = team.client.post(f"/api/jobs/{path}", json={**whole_job(team, "any"), **metadata})
            assert (422, ["body", "metadata"]) == (refused.status_code, refused.json()["detail"][0]["loc"])
    assert 0 == team.client.get("/api/jobs").json()["total"]


def test_a_job_id_may_be_written_in_capitals_and_in_no_other_way(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    job_id, body = team.job(), {**ASK, "model": make_alias(admin, provider)}
    for client in (admin, team.client):
        answer = client.post(f"/api/jobs/{job_id.upper()}/llm-call", json=body)
        assert (200, job_id) == (answer.status_code, answer.headers["X-Job-Id"])
        for other in (job_id.replace("-", ""), f"{{{job_id}}}", f"urn:uuid:{job_id}"):
            assert 404 == client.post(f"/api/jobs/{other}/llm-call", json=body).status_code
            assert 404 == client.get(f"/api/jobs/{other}").status_code


# -- ending a job whose call is still running --------------------------------------------------------------------------


@contextmanager
def calling_slowly(admin: httpx.Client, provider: FakeProvider, team: TestTeam, model: str) -> Iterator[str]:
    """A job whose call is running; one that is held runs until the block has ended."""
    job_id, body = team.job(), {**ASK, "model": make_alias(admin, provider, model)}
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(team.client.post, f"/api/jobs/{job_id}/llm-call", json=body)
        try:
            until(lambda: team.client.get(f"/api/jobs/{job_id}").json()["calls"])
            yield job_id
        finally:
            provider.let_go(model)
        assert 200 == answer.result().status_code


def test_completing_waits_for_a_call_that_is_about_to_end(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    with calling_slowly(admin, provider, team, "slow-500") as job_id:
        ended = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}).json()
        assert ("completed", 1, "completed") == (ended["status"], ended["total_calls"], ended["calls"][0]["status"])


def test_completing_does_not_wait_for_ever_and_may_be_repeated_with_its_key(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CALLS_GRACE_SECONDS", 0.1)
    headers, done = key(), {"status": "completed"}
    with calling_slowly(admin, provider, team, held()) as job_id:
        refused = team.client.post(f"/api/jobs/{job_id}/complete", json=done, headers=headers)
        assert (400, "calls_in_progress") == code(refused)
        assert 1 == refused.json()["running_calls"]
    again = team.client.post(f"/api/jobs/{job_id}/complete", json=done, headers=headers)
    assert (200, "completed", 1) == (
        again.status_code,
        again.json()["status"],
        again.json()["costs"]["credits_charged"],
    )
    assert "Idempotent-Replayed" not in again.headers


def test_failing_waits_for_nothing_and_what_comes_later_is_recorded(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    with calling_slowly(admin, provider, team, held()) as job_id:
        failed = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "failed"}).json()
        assert ("failed", "running") == (failed["status"], failed["calls"][0]["status"])
    job = team.client.get(f"/api/jobs/{job_id}").json()
    assert ("failed", "completed", 0) == (job["status"], job["calls"][0]["status"], job["credits_charged"])
