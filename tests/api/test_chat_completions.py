"""The API of OpenAI: its own client works with it, and each chat completion is a call of a job like any other."""

import json
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from api.problems import PROBLEMS
from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.provider import HELLO, FakeProvider

CHAT = "/v1/chat/completions"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


def chat(team: TestTeam, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return team.client.post(CHAT, json={"messages": ASK, **fields}, headers=headers)


def chunks(answer: httpx.Response) -> list[Any]:
    """The data lines: objects and the closing word."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def job_of(team: TestTeam, answer: httpx.Response) -> Any:
    return team.client.get(f"/api/jobs/{answer.headers['X-Job-Id']}").json()


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} == error.keys()
    assert ["error"] == list(answer.json())
    return answer.status_code, error["type"], error["code"]


@pytest.fixture
def client(server: Server, team: TestTeam) -> openai.OpenAI:
    """The client that OpenAI gives away."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=team.key, max_retries=0)


# -- with OpenAI's own client ------------------------------------------------------------------------------------------


def test_openais_own_client_gets_an_answer_and_a_stream(
    admin: httpx.Client, provider: FakeProvider, client: openai.OpenAI, team: TestTeam
) -> None:
    model = make_alias(admin, provider)
    whole = client.chat.completions.create(model=model, messages=ASK)
    assert (HELLO, "stop", 12) == (
        whole.choices[0].message.content,
        whole.choices[0].finish_reason,
        whole.usage.total_tokens if whole.usage else None,
    )
    with client.chat.completions.create(
        model=model, messages=ASK, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *said, last = stream
    assert HELLO == "".join(chunk.choices[0].delta.content or "" for chunk in said)
    assert ([], 12) == (last.choices, last.usage.total_tokens if last.usage else None)
    assert [1, 1] == [job["credits_charged"] for job in team.client.get("/api/jobs").json()["jobs"]]


def test_openais_own_client_lists_the_models_of_the_team(
    admin: httpx.Client, provider: FakeProvider, client: openai.OpenAI, team: TestTeam
) -> None:
    alias, group = make_alias(admin, provider), f"group-{uuid4().hex[:8]}"
    assert admin.post("/api/model-groups/create", json={"group_name": group, "models": [alias]}).is_success
    assert admin.put(f"/api/teams/{team.team_id}/model-groups", json={"model_groups": [group]}).is_success
    assert {alias, group} <= {model.id for model in client.models.list()}
    found = client.models.retrieve(group)
    assert (group, "model", team.organization_id) == (found.id, found.object, found.owned_by)
    assert found.created > 1_700_000_000
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-ok")


def test_openais_own_client_raises_what_it_raises_elsewhere(
    server: Server, admin: httpx.Client, provider: FakeProvider, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.PermissionDeniedError) as denied:
        client.chat.completions.create(model="nobody", messages=ASK)
    assert ("model_not_allowed", "permission_error") == (denied.value.code, denied.value.type)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-of-nobody", max_retries=0).models.list()
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=make_alias(admin, provider, "status-503"), messages=ASK)


# -- what a completion is ----------------------------------------------------------------------------------------------


def test_a_completion_is_a_whole_job(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    answer = chat(team, model=make_alias(admin, provider), user="user-17", metadata={"a": 1}, purpose="why")
    assert ["id", "object", "created", "model", "choices", "usage"] == list(answer.json())
    job = job_of(team, answer)
    assert ("chat_completion", "completed", "user-17", {"a": 1}, 1) == tuple(
        job[name] for name in ("job_type", "status", "user_id", "metadata", "credits_charged")
    )
    assert (answer.headers["X-Call-Id"], "why") == (job["calls"][0]["call_id"], job["calls"][0]["purpose"])


def test_a_named_job_gets_one_more_call_and_stays_open(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    model, job_id = make_alias(admin, provider), team.job(metadata={"kept": True})
    for stream in (False, True):
        answer = chat(team, {"X-Job-Id": job_id}, model=model, stream=stream, metadata={"stream": stream})
        assert (200, job_id) == (answer.status_code, answer.headers["X-Job-Id"])
    job = job_of(team, answer)
    assert ("in_progress", 2, {"kept": True, "stream": True}) == (
        job["status"],
        job["costs"]["total_calls"],
        job["metadata"],
    )
    stranger = make_team(server, admin)
    assert (403, "permission_error", "forbidden") == error_of(chat(stranger, {"X-Job-Id": job_id}, model=model))
    for unknown in (str(uuid4()), "no-uuid"):
        assert (404, "not_found_error", "not_found") == error_of(chat(team, {"X-Job-Id": unknown}, model=model))
    assert team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}).is_success
    assert (400, "invalid_request_error", "job_closed") == error_of(chat(team, {"X-Job-Id": job_id}, model=model))


def test_options_reach_the_provider_and_none_is_made_up(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    model = make_alias(admin, provider)
    options = {
        "seed": 7,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "logit_bias": {"50256": -100.0},
        "logprobs": True,
        "top_logprobs": 2,
        "top_p": 0.5,
        "stop": ["a"],
    }
    assert chat(team, model=model, max_completion_tokens=9, n=1, **options).status_code == 200
    sent = provider.last.body
    assert options == {name: sent.get(name) for name in options}
    assert 9 == sent["max_tokens"]
    assert not {"temperature", "user", "metadata", "n"} & sent.keys()


def test_without_a_model_the_default_of_the_team_is_meant(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    model = make_alias(admin, provider)
    team = make_team(server, admin, default_model=model)
    assert model == chat(team).json()["model"]


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, {}, {"include_usage": False}])
def test_a_stream_has_openais_shape_and_usage_only_when_it_is_asked_for(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, asked: dict[str, bool] | None
) -> None:
    model = make_alias(admin, provider)
    answer = chat(team, model=model, stream=True, **({} if asked is None else {"stream_options": asked}))
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    *said, end, done = chunks(answer)
    assert ({}, "stop", "[DONE]") == (end["choices"][0]["delta"], end["choices"][0]["finish_reason"], done)
    assert all(["id", "object", "created", "model", "choices"] == list(chunk) for chunk in [*said, end])
    assert {model} == {chunk["model"] for chunk in said}
    assert "completed" == job_of(team, answer)["status"]


def test_a_stream_is_replayed_as_a_stream(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    asked = {"model": make_alias(admin, provider), "stream": True, "stream_options": {"include_usage": True}}
    headers = {"Idempotency-Key": str(uuid4())}
    first, again = (chat(team, headers, **asked) for _ in range(2))
    assert "true" == again.headers["Idempotent-Replayed"]
    for name in ("Content-Type", "X-Job-Id", "X-Call-Id"):
        assert first.headers[name] == again.headers[name]
    assert chunks(first)[-3:] == chunks(again)[-3:]
    assert 1 == team.client.get("/api/jobs").json()["total"]


def test_a_stream_that_breaks_ends_with_an_error_and_fails_its_job(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    answer = chat(team, model=make_alias(admin, provider, "error-in-stream"), stream=True)
    *_, trouble, done = chunks(answer)
    assert ("provider_error", "[DONE]") == (trouble["error"]["code"], done)
    job = job_of(team, answer)
    assert ("failed", "provider_error", 0) == (job["status"], job["error_message"], job["credits_charged"])


# -- errors ------------------------------------------------------------------------------------------------------------


def test_every_refusal_is_told_in_openais_words(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    model, poor = make_alias(admin, provider), make_team(server, admin, credits=0)
    slow = make_team(server, admin, rpm_limit=1)
    assert (403, "insufficient_quota", "insufficient_credits") == error_of(chat(poor, model=model))
    assert (400, "invalid_request_error", "request_rejected") == error_of(
        chat(team, model=make_alias(admin, provider, "status-400"))
    )
    assert (500, "api_error", "provider_error") == error_of(chat(team, model=make_alias(admin, provider, "status-500")))
    assert (400, "invalid_request_error", "malformed_json") == error_of(team.client.post(CHAT, content=b"{"))
    chat(slow, model=model)
    limited = chat(slow, model=model)
    assert (429, "rate_limit_error", "rate_limited") == error_of(limited)
    assert int(limited.headers["Retry-After"]) > 0
    assert "0" == limited.headers["x-ratelimit-remaining-requests"]
    assert (403, "permission_error", "forbidden") == error_of(admin.post(CHAT, json={"messages": ASK}))
    assert (403, "permission_error", "forbidden") == error_of(admin.get("/v1/models"))
    assert all(job["status"] == "failed" for job in poor.client.get("/api/jobs").json()["jobs"])


def test_what_is_not_there_is_told_in_openais_words_too(team: TestTeam) -> None:
    assert (404, "not_found_error", "not_found") == error_of(team.client.post("/v1/embeddings", json={}))
    unknown = team.client.get("/v1/chat/completions")
    assert (405, "invalid_request_error", "method_not_allowed") == error_of(unknown)
    assert "POST" in unknown.headers["Allow"]
    assert "not_found" == team.client.get("/api/embeddings").json()["code"]


@pytest.mark.parametrize(
    "body,param",
    [
        ({}, "messages"),
        ({"messages": ASK, "n": 2}, "n"),
        ({"messages": ASK, "max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": ASK, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": ASK, "stream": "yes"}, "stream"),
    ],
)
def test_a_wrong_body_is_told_where(team: TestTeam, body: dict[str, Any], param: str) -> None:
    answer = team.client.post(CHAT, json=body)
    assert (422, "invalid_request_error", "validation_error") == error_of(answer)
    assert param == answer.json()["error"]["param"]
    assert answer.json()["error"]["message"].startswith(f"{param}: ")
    assert 0 == team.client.get("/api/jobs").json()["total"]


def test_a_kept_refusal_is_replayed_in_openais_words(team: TestTeam) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first, again = (chat(team, headers, model="nobody", stream=True) for _ in range(2))
    assert (403, "permission_error", "model_not_allowed") == error_of(first) == error_of(again)
    assert "true" == again.headers["Idempotent-Replayed"]


def test_a_suspended_team_reads_its_models_and_chats_no_more(admin: httpx.Client, team: TestTeam) -> None:
    assert admin.post(f"/api/teams/{team.team_id}/suspend").is_success
    assert team.client.get("/v1/models").is_success
    assert (403, "permission_error", "team_suspended") == error_of(chat(team))


def test_the_words_of_openai_cover_every_status() -> None:
    from api.chat_completions import TYPES, error_type

    types = {error_type(problem.status, code) for code, problem in PROBLEMS.items()}
    assert {*TYPES.values(), "invalid_request_error", "api_error", "insufficient_quota"} == types
