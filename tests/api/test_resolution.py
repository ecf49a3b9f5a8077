"""What a model's name comes to when it is called: which targets are asked, in which order, and at whose price."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team, running
from tests.provider import HELLO, FakeProvider, event

HI = [{"role": "user", "content": "hi"}]


def a_name(kind: str = "models") -> str:
    return f"{kind}-{uuid4().hex[:8]}"


def group(admin: httpx.Client, *members: str) -> str:
    name = a_name()
    answer = admin.post("/api/model-groups/create", json={"group_name": name, "models": members})
    assert 200 == answer.status_code, answer.text
    return name


def access_group(admin: httpx.Client, *aliases: str) -> str:
    name = a_name("access")
    answer = admin.post("/api/model-access-groups/create", json={"group_name": name, "model_aliases": aliases})
    assert 200 == answer.status_code, answer.text
    return name


def call(team: TestTeam, model: str | None, job: str | None = None) -> httpx.Response:
    return team.client.post(f"/api/jobs/{job or team.job()}/llm-call", json={"model": model, "messages": HI})


def refused(answer: httpx.Response, model: str | None) -> list[str]:
    """The models that a refusal says are available."""
    assert (403, "model_not_allowed") == (answer.status_code, answer.json()["code"]), answer.text
    assert model == answer.json()["model"]
    assert "credit" not in answer.json()["detail"].lower()
    available: list[str] = answer.json()["available_models"]
    assert sorted(available) == available
    return available


def recorded(admin: httpx.Client, job: str) -> dict[str, Any]:
    """The one call of a job, as administrators see it."""
    (found,) = admin.get(f"/api/jobs/{job}").json()["calls"]
    return dict(found)


@pytest.fixture
def closed(server: Server, admin: httpx.Client) -> TestTeam:
    """A team of which nothing is known to any group."""
    return make_team(server, admin)


# -- fallbacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble", [*(f"status-{code}" for code in (401, 403, 404, 408, 409, 429, 500, 502, 503)), "break-after-0", "html"]
)
def test_the_next_member_answers_when_one_cannot(
    server: Server, admin: httpx.Client, provider: FakeProvider, trouble: str
) -> None:
    bad, good = make_alias(admin, provider, trouble), make_alias(admin, provider, "gpt-ok")
    name = group(admin, bad, good)
    team = make_team(server, admin, model_groups=[name])
    before = provider.calls[trouble], provider.calls["gpt-ok"]
    job = team.job()
    answer = call(team, name, job)
    assert (200, HELLO, name) == (answer.status_code, answer.json()["response"]["content"], answer.json()["model"])
    assert (before[0] + 1, before[1] + 1) == (provider.calls[trouble], provider.calls["gpt-ok"])
    made = recorded(admin, job)
    assert ("completed", name, good, "openai/gpt-ok") == tuple(
        made[field] for field in ("status", "model_group_used", "model_used", "resolved_model")
    )
    first = made["attempts"][0]
    assert (bad, f"openai/{trouble}") == (first["target"], first["resolved_model"])
    assert first["outcome"] in ("error", "timeout")


def test_a_member_that_does_not_answer_in_time_is_left(database: str, provider: FakeProvider) -> None:
    with running(database, llm_timeout_seconds=2) as server:
        admin = server.client()
        name = group(admin, make_alias(admin, provider, "hang"), make_alias(admin, provider))
        team = make_team(server, admin, model_groups=[name])
        assert HELLO == call(team, name).json()["response"]["content"]


def test_members_are_asked_by_priority_and_each_once(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    models = [f"status-{500 + number}" for number in (7, 8, 9)]
    last, first, middle = (make_alias(admin, provider, model) for model in models)
    name = a_name()
    members = [{"model_name": model, "priority": rank} for model, rank in ((last, 9), (first, 1), (middle, 5))]
    admin.post("/api/model-groups/create", json={"group_name": name, "models": members})
    team = make_team(server, admin, model_groups=[name])
    before = dict(provider.calls)
    job = team.job()
    answer = call(team, name, job)
    assert (500, "provider_error") == (answer.status_code, answer.json()["code"])
    assert [1, 1, 1] == [provider.calls[model] - before.get(model, 0) for model in models]
    made = recorded(admin, job)
    assert [first, middle, last] == [each["target"] for each in made["attempts"]]
    assert ("failed", name, None) == (made["status"], made["model_group_used"], made["model_used"])
    costs = admin.get(f"/api/jobs/{job}").json()["costs"]
    assert (1, 1, 0, 0) == tuple(
        costs[field] for field in ("total_calls", "failed_calls", "rejected_calls", "total_cost_usd")
    )


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_request_that_is_itself_at_fault_is_not_tried_elsewhere(
    server: Server, admin: httpx.Client, provider: FakeProvider, status: int
) -> None:
    name = group(admin, make_alias(admin, provider, f"status-{status}"), make_alias(admin, provider))
    team = make_team(server, admin, model_groups=[name])
    before = provider.calls["gpt-ok"]
    job = team.job()
    answer = call(team, name, job)
    assert (400, "request_rejected") == (answer.status_code, answer.json()["code"])
    assert before == provider.calls["gpt-ok"]
    made = recorded(admin, job)
    assert ["rejected"] == [each["outcome"] for each in made["attempts"]]
    costs = admin.get(f"/api/jobs/{job}").json()["costs"]
    assert (1, 1, 1) == (costs["total_calls"], costs["failed_calls"], costs["rejected_calls"])


def test_a_stream_falls_back_until_its_first_text(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    good = make_alias(admin, provider)
    early, late = (
        group(admin, make_alias(admin, provider, "status-500"), good),
        group(admin, make_alias(admin, provider, breaks := f"break-after-3-{a_name()}"), good),
    )
    team = make_team(server, admin, model_groups=[early, late])
    texts = {}
    for name in (early, late):
        before = provider.calls["gpt-ok"]
        body = {"model": name, "messages": HI}
        with team.client.stream("POST", f"/api/jobs/{team.job()}/llm-call-stream", json=body) as answer:
            lines = []
            for line in answer.iter_lines():
                lines.append(line)
                if "Hello" in line:
                    provider.let_go(breaks)  # there is text, so there is no other way any more
        texts[name] = "\n".join(lines) + "\n", provider.calls["gpt-ok"] - before
    assert ('"error"' not in texts[early][0], 1) == (True, texts[early][1])
    assert ("provider_error" in texts[late][0], 0) == (True, texts[late][1])
    for text, _ in texts.values():
        assert text.endswith("data: [DONE]\n\n")
        assert "openai" not in text


def test_what_a_member_said_of_itself_before_it_broke_is_not_billed_for_the_next(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 999_999}
    breaks = make_alias(admin, provider, provider.says(event("m", None, usage=usage)))
    name = group(admin, breaks, make_alias(admin, provider, "no-usage"))
    team = make_team(server, admin, model_groups=[name])
    job = team.job()
    answer = team.client.post(f"/api/jobs/{job}/llm-call-stream", json={"model": name, "messages": HI})
    assert answer.text.endswith("data: [DONE]\n\n")
    made = recorded(admin, job)
    assert ("completed", ["error", "ok"], True) == (
        made["status"],
        [each["outcome"] for each in made["attempts"]],
        made["usage_estimated"],
    )
    assert 100 > made["tokens"]


def test_the_price_is_that_of_the_member_that_answered(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    dear = make_alias(admin, provider, "status-500", pricing_input=100, pricing_output=100)
    cheap = make_alias(admin, provider, "usage-1000-500", pricing_input=2.5, pricing_output=10)
    name = group(admin, dear, cheap)
    team = make_team(server, admin, model_groups=[name], cost_markup_percentage=50)
    job = team.job()
    assert 200 == call(team, name, job).status_code
    made = recorded(admin, job)
    assert (2.5, 10, 0.0025, 0.005, 0.0075, 0.01125, 0.00375) == tuple(
        made[field]
        for field in (
            "model_pricing_input",
            "model_pricing_output",
            "input_cost_usd",
            "output_cost_usd",
            "provider_cost_usd",
            "client_cost_usd",
            "profit_usd",
        )
    )


# -- members -----------------------------------------------------------------------------------------------------------


def test_a_member_that_is_no_alias_is_a_providers_model(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    name = group(admin, "nobody/without-price", "openai/gpt-4o")
    team = make_team(server, admin, model_groups=[name])
    body = {
        "organization_id": team.organization_id,
        "provider": "openai",
        "credential_name": "main",
        "api_key": "sk-of-the-organization",
        "api_base": provider.url,
    }
    assert 201 == admin.post("/api/provider-credentials/create", json=body).status_code
    job = team.job()
    assert 200 == call(team, name, job).status_code
    assert ("gpt-4o", "Bearer sk-of-the-organization") == (
        provider.last.body["model"],
        provider.last.headers["Authorization"],
    )
    made = recorded(admin, job)
    assert ("openai/gpt-4o", 2.5, 10) == tuple(
        made[field] for field in ("resolved_model", "model_pricing_input", "model_pricing_output")
    )
    assert "openai" not in team.client.get(f"/api/jobs/{job}").text


def test_the_built_in_model_needs_no_key(server: Server, admin: httpx.Client) -> None:
    name = group(admin, "demo/echo")
    team = make_team(server, admin, model_groups=[name])
    job = team.job()
    assert "hi" == call(team, name, job).json()["response"]["content"]
    assert (0, "completed") == tuple(recorded(admin, job)[field] for field in ("cost_usd", "status"))


def test_members_that_the_team_may_not_use_are_skipped(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    foreign, off, mine = (make_alias(admin, provider, model) for model in ("status-500", "status-501", "gpt-ok"))
    access_group(admin, foreign)
    admin.put(f"/api/models/{off}", json={"active": False})
    own = access_group(admin, mine)
    name = group(admin, foreign, off, mine)
    team = make_team(server, admin, model_groups=[name], access_groups=[own])
    job = team.job()
    assert 200 == call(team, name, job).status_code
    assert mine == recorded(admin, job)["model_used"]
    assert all(each["outcome"] == "ok" for each in recorded(admin, job)["attempts"])
    admin.put(f"/api/model-access-groups/{own}", json={"status": "inactive"})
    assert name not in refused(call(team, name), name)


# -- names -------------------------------------------------------------------------------------------------------------


def test_unknown_and_not_allowed_look_alike(
    server: Server, admin: httpx.Client, provider: FakeProvider, closed: TestTeam
) -> None:
    secret, open_to_all = make_alias(admin, provider), make_alias(admin, provider)
    access_group(admin, secret)
    foreign = group(admin, open_to_all)
    lists = [refused(call(closed, name), name) for name in (secret, foreign, a_name())]
    assert lists[0] == lists[1] == lists[2]
    assert (True, False, False) == tuple(name in lists[0] for name in (open_to_all, secret, foreign))


def test_a_group_counts_only_while_it_is_assigned_and_active(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    name = group(admin, make_alias(admin, provider))
    team = make_team(server, admin)
    assert name not in refused(call(team, name), name)
    assert 200 == admin.put(f"/api/teams/{team.team_id}", json={"model_groups": [name]}).status_code
    assert 200 == call(team, name).status_code
    admin.put(f"/api/model-groups/{name}", json={"status": "inactive"})
    assert name not in refused(call(team, name), name)
    admin.put(f"/api/model-groups/{name}", json={"status": "active"})
    assert 200 == call(team, name).status_code


def test_an_alias_comes_before_a_group_of_its_name_unless_it_is_inactive(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    name, member = make_alias(admin, provider, "usage-1-1"), make_alias(admin, provider, "usage-2-2")
    admin.post("/api/model-groups/create", json={"group_name": name, "models": [member]})
    team = make_team(server, admin, model_groups=[name])
    assert 2 == call(team, name).json()["metadata"]["tokens_used"]
    admin.put(f"/api/models/{name}", json={"status": "inactive"})
    assert 4 == call(team, name).json()["metadata"]["tokens_used"]
    admin.put(f"/api/models/{name}", json={"status": "deprecated"})
    assert 2 == call(team, name).json()["metadata"]["tokens_used"]


def test_an_alias_has_no_fallbacks(admin: httpx.Client, provider: FakeProvider, closed: TestTeam) -> None:
    before = provider.calls["status-503"]
    assert 500 == call(closed, make_alias(admin, provider, "status-503")).status_code
    assert before + 1 == provider.calls["status-503"]


def test_a_retired_alias_is_unknown(admin: httpx.Client, provider: FakeProvider, closed: TestTeam) -> None:
    name = make_alias(admin, provider)
    assert 200 == call(closed, name).status_code
    admin.delete(f"/api/models/{name}")
    assert name not in refused(call(closed, name), name)


def test_without_a_name_the_default_is_meant_or_the_first_usable_alias(database: str, provider: FakeProvider) -> None:
    with running(database) as server:
        admin = server.client()
        first, second = sorted(make_alias(admin, provider) for _ in range(2))
        team = make_team(server, admin)
        assert first == call(team, None).json()["model"]
        admin.put(f"/api/organizations/{team.organization_id}", json={"default_model": second})
        assert second == call(team, None).json()["model"]
        admin.put(f"/api/teams/{team.team_id}", json={"default_model": first})
        assert first == call(team, None).json()["model"]


def test_where_aliases_are_not_open_a_team_needs_a_group(database: str, provider: FakeProvider) -> None:
    with running(database, open_aliases=False) as server:
        admin = server.client()
        name = make_alias(admin, provider)
        team = make_team(server, admin)
        assert [] == refused(call(team, name), name)
        assert [] == refused(call(team, None), None)
        assert [] == team.client.get("/api/models").json()
        admin.put(f"/api/teams/{team.team_id}/access-groups", json=[access_group(admin, name)])
        assert 200 == call(team, name).status_code
        assert [name] == [each["alias"] for each in team.client.get("/api/models").json()]
