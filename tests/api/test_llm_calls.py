"""LLM calls over HTTP against a provider over HTTP: whole answers, streams, failures, and what is left of them."""

import json
import threading
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.provider import FakeProvider
from tests.waiting import until

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def call(team: TestTeam, job_id: str, alias: str, **fields: Any) -> httpx.Response:
    return team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias, **fields})


def stream(team: TestTeam, job_id: str, alias: str) -> tuple[httpx.Response, list[Any]]:
    """The answer, and its data lines: objects and the closing word."""
    answer = team.client.post(f"/api/jobs/{job_id}/llm-call-stream", json={**ASK, "model": alias})
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return answer, [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_an_answer_speaks_both_dialects(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    job_id, alias = team.job(), make_alias(admin, provider)
    answer = call(team, job_id, alias)
    said = answer.json()
    assert said["response"]["content"] == said["choices"][0]["message"]["content"] != ""
    assert said["metadata"]["tokens_used"] == said["usage"]["total_tokens"]
    assert said["model"] == said["metadata"]["model_group"] == alias
    assert answer.headers["X-Job-Id"] == job_id
    assert answer.headers["X-Call-Id"] == said["call_id"]
    assert "gpt-ok" not in answer.text


def test_the_default_temperature_and_all_options_reach_the_provider(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias, shape = make_alias(admin, provider), {"type": "json_object"}
    call(
        team,
        team.job(),
        alias,
        max_tokens=5,
        stop=["a"],
        response_format=shape,
        messages=[{"role": "user", "content": "Hi", "name": None}],
    )
    sent = provider.last.body
    assert (sent["temperature"], sent["max_tokens"], sent["stop"], sent["response_format"]) == (0.7, 5, ["a"], shape)


@pytest.mark.parametrize("model,tokens", [("usage-10-20", 30), ("zero-usage", 0)])
def test_reported_usage_is_taken_as_it_is(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, model: str, tokens: int
) -> None:
    said = call(team, team.job(), make_alias(admin, provider, model)).json()
    assert said["usage"]["total_tokens"] == tokens


@pytest.mark.parametrize("model", ["no-usage", "null-usage"])
def test_missing_usage_is_counted_and_says_so_to_administrators(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, model: str
) -> None:
    job_id = team.job()
    said = call(team, job_id, make_alias(admin, provider, model)).json()
    assert said["usage"]["prompt_tokens"] > 0
    assert admin.get(f"/api/jobs/{job_id}").json()["calls"][0]["usage_estimated"] is True


def test_null_content_is_an_empty_text(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    assert call(team, team.job(), make_alias(admin, provider, "null-content")).json()["response"]["content"] == ""


def test_a_provider_that_fails_costs_the_team_nothing_and_tells_it_nothing(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    job_id = team.job()
    answer = call(team, job_id, make_alias(admin, provider, "leaky-error"))
    assert answer.status_code in (400, 500)
    assert set(answer.json()) == {"detail", "code"}
    ended = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"})
    assert ended.json()["calls"][0]["error"] in ("provider_error", "request_rejected")
    for text in (answer.text, ended.text):
        assert "sk-" not in text
        assert "http" not in text
    for_admin = admin.get(f"/api/jobs/{job_id}").text
    assert "sk-provider-key-of-the-suite" not in for_admin


def test_a_failed_call_waives_the_charge_and_a_rejected_one_does_not(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    good = make_alias(admin, provider)
    for model, status, code, charged in (
        ("status-503", 500, "provider_error", 0),
        ("status-400", 400, "request_rejected", 1),
    ):
        job_id = team.job()
        assert call(team, job_id, good).status_code == 200
        failed = call(team, job_id, make_alias(admin, provider, model))
        assert (failed.status_code, failed.json()["code"]) == (status, code)
        ended = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}).json()
        assert ended["costs"]["credits_charged"] == charged, model


def test_credits_are_held_before_the_provider_is_asked(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    poor, alias = make_team(server, admin, credits=1), make_alias(admin, provider, "gpt-ok-held")
    assert call(poor, poor.job(), alias).status_code == 200
    asked = provider.calls.total()
    refused = call(poor, poor.job(), alias)
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_credits")
    assert provider.calls.total() == asked


def test_markup_is_paid_and_never_shown_to_teams(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    team = make_team(server, admin, cost_markup_percentage=50, budget_mode="consumption_usd")
    job_id = team.job()
    answer = call(team, job_id, make_alias(admin, provider, "usage-1000-500"))
    ended = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"})
    assert '"total_cost_usd":0.011250' in ended.text
    assert "markup" not in answer.text + ended.text
    seen = admin.get(f"/api/jobs/{job_id}").json()["calls"][0]
    assert (seen["provider_cost_usd"], seen["client_cost_usd"], seen["profit_usd"]) == (0.0075, 0.01125, 0.00375)


def test_a_stream_has_the_shape_that_clients_check(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    job_id, alias = team.job(), make_alias(admin, provider, "stream-4-0")
    answer, events = stream(team, job_id, alias)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.text.startswith(":")
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert all({"id", "object", "created", "model", "choices"} <= set(chunk) for chunk in chunks)
    assert all("error" not in chunk and chunk["model"] == alias for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    *pieces, last = chunks
    assert all(chunk["content"] == chunk["choices"][0]["delta"]["content"] for chunk in pieces)
    assert all("usage" not in chunk for chunk in pieces)
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert last["usage"]["total_tokens"] > 0
    assert team.client.get(f"/api/jobs/{job_id}").json()["calls"][0]["streaming"] is True


def test_the_first_text_arrives_while_the_provider_is_still_writing(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    job_id, alias = team.job(), make_alias(admin, provider, "held-for-a-look")
    with team.client.stream("POST", f"/api/jobs/{job_id}/llm-call-stream", json={**ASK, "model": alias}) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        running = admin.get(f"/api/jobs/{job_id}").json()["calls"][0]
        assert "content" in first
        assert running["status"] == "running"
        provider.let_go("held-for-a-look")
        assert list(lines)[-2] == "data: [DONE]"


def test_a_stream_that_breaks_ends_with_an_error_and_is_free(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    job_id = team.job()
    answer, events = stream(team, job_id, make_alias(admin, provider, "break-after-2"))
    assert answer.status_code == 200
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "provider_error"
    ended = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}).json()
    assert ended["calls"][0]["error"] == "provider_error"
    assert ended["costs"]["credits_charged"] == 0


def test_a_client_that_hangs_up_pays_for_what_was_said(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    job_id, alias = team.job(), make_alias(admin, provider, "hang-after-3")
    with team.client.stream("POST", f"/api/jobs/{job_id}/llm-call-stream", json={**ASK, "model": alias}) as answer:
        next(line for line in answer.iter_lines() if line.startswith("data: "))
    ended = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}).json()
    (seen,) = ended["calls"]
    assert (seen["status"], seen["partial"], seen["finish_reason"]) == ("completed", True, "cancelled")
    assert seen["completion_tokens"] > 0
    assert ended["costs"]["credits_charged"] == 1


def test_an_answer_that_comes_after_the_end_of_its_job_is_recorded_and_free(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    job_id, alias = team.job(), make_alias(admin, provider, model := f"held-{uuid4().hex}")
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(call(team, job_id, alias)))
    caller.start()
    try:
        until(lambda: team.client.get(f"/api/jobs/{job_id}").json()["calls"])
        assert team.client.post(f"/api/jobs/{job_id}/cancel").status_code == 200
    finally:
        provider.let_go(model)
    caller.join()
    assert answers[0].status_code == 200
    job = team.client.get(f"/api/jobs/{job_id}").json()
    assert job["status"] == "cancelled"
    assert job["calls"][0]["status"] == "completed"
    assert team.client.get("/api/credits/balance").json()["credits_remaining"] == 100


def test_create_and_call_is_a_whole_job(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    alias = make_alias(admin, provider)
    body = {**ASK, "team_id": team.team_id, "job_type": "one", "model": alias, "job_metadata": {"k": 1}}
    said = team.client.post("/api/jobs/create-and-call", json=body).json()
    assert said["status"] == "completed"
    assert said["credits_remaining"] == 99
    assert said["metadata"] == {"k": 1}
    assert said["choices"][0]["message"]["content"] == said["response"]["content"]
    streamed = team.client.post("/api/jobs/create-and-call-stream", json=body)
    assert streamed.text.rstrip().endswith("data: [DONE]")
    job = team.client.get(f"/api/jobs/{streamed.headers['X-Job-Id']}").json()
    assert (job["status"], job["credits_charged"]) == ("completed", 1)


@pytest.mark.parametrize("path", ["create-and-call", "create-and-call-stream"])
def test_create_and_call_that_fails_leaves_a_failed_job_that_is_free(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, path: str
) -> None:
    body = {**ASK, "team_id": team.team_id, "job_type": "one"}
    denied = team.client.post(f"/api/jobs/{path}", json={**body, "model": "nobody"})
    assert (denied.status_code, denied.json()["code"]) == (403, "model_not_allowed")
    job = team.client.get(f"/api/jobs/{denied.json()['job_id']}").json()
    assert (job["status"], job["error_message"]) == ("failed", "model_not_allowed")
    before = team.client.get("/api/jobs").json()["total"]
    assert team.client.post(f"/api/jobs/{path}", json={"team_id": team.team_id, "job_type": "x"}).status_code == 422
    failing = team.client.post(f"/api/jobs/{path}", json={**body, "model": make_alias(admin, provider, "status-500")})
    job_id = failing.json()["job_id"] if path == "create-and-call" else failing.headers["X-Job-Id"]
    job = team.client.get(f"/api/jobs/{job_id}").json()
    assert (job["status"], job["error_message"], job["credits_charged"]) == ("failed", "provider_error", 0)
    assert team.client.get("/api/jobs").json()["total"] == before + 1


@pytest.mark.parametrize(
    "body,loc,kind",
    [
        ({}, ["body", "messages"], "value_error.missing"),
        ({"messages": []}, ["body", "messages"], "value_error.length"),
        ({"messages": [{"role": "king", "content": "x"}]}, ["body", "messages", 0, "role"], "value_error.enum"),
        ({**ASK, "temperature": 3}, ["body", "temperature"], "value_error.range"),
        ({**ASK, "max_tokens": "5"}, ["body", "max_tokens"], "type_error.integer"),
        ({**ASK, "model": "a", "model_group": "b"}, ["body", "model_group"], "value_error.format"),
    ],
)
def test_a_body_that_is_wrong_is_told_where(team: TestTeam, body: dict[str, Any], loc: list[Any], kind: str) -> None:
    answer = team.client.post(f"/api/jobs/{team.job()}/llm-call", json=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "validation_error"
    (item,) = answer.json()["detail"]
    assert (item["loc"], item["type"]) == (loc, kind)


def test_limits_count_calls_and_say_how_much_is_left(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    team, alias = make_team(server, admin, rpm_limit=2, tpm_limit=0), make_alias(admin, provider)
    job_id = team.job()
    first, second, third = (call(team, job_id, alias) for _ in range(3))
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert third.json()["limit"] == "requests"
    assert int(third.headers["Retry-After"]) > 0
    assert team.client.get(f"/api/jobs/{job_id}").status_code == 200
