"""Aliases over HTTP: what a name can stand for, who sees what of it, and what it costs."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team, whole_list
from tests.provider import FakeProvider

FAMILIES = ("/api/model-aliases", "/api/models")
ADMIN_ONLY = {
    "provider",
    "actual_model",
    "actual_model_name",
    "litellm_model",
    "litellm_model_id",
    "pricing_input",
    "pricing_output",
    "input_price_per_million",
    "output_price_per_million",
    "price_source",
    "credential_name",
    "api_base",
    "has_api_key",
    "access_groups",
    "teams_using",
    "teams_with_access",
    "usage_stats",
}


def a_name(kind: str = "alias") -> str:
    return f"{kind}-{uuid4().hex[:8]}"


def create(admin: httpx.Client, **body: Any) -> httpx.Response:
    return admin.post("/api/model-aliases/create", json={"alias": a_name(), **body})


def created(admin: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = create(admin, **body)
    assert 200 == answer.status_code, answer.text
    found: dict[str, Any] = answer.json()
    return found


def access_group(admin: httpx.Client, *aliases: str) -> str:
    name = a_name("group")
    body = {"group_name": name, "model_aliases": aliases}
    answer = admin.post("/api/model-access-groups/create", json=body)
    assert 200 == answer.status_code, answer.text
    return name


def secrets(server: Server) -> int:
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute("select count(*) from app.secrets").fetchone()
    assert row is not None
    return int(row[0])


# -- creating ----------------------------------------------------------------------------------------------------------


def test_an_alias_gives_back_all_that_was_said_of_it(admin: httpx.Client) -> None:
    name = a_name()
    alias = created(
        admin,
        alias=name,
        litellm_model="openai/my-model",
        display_name="Mine",
        description="A model of mine",
        pricing_input=0.075,
        pricing_output=0.3,
        api_base="http://127.0.0.1:9/v1",
        api_key="sk-something-secret",
        status="deprecated",
    )
    times = alias.pop("created_at"), alias.pop("updated_at")
    assert times[0] == times[1]
    assert alias.pop("id")
    assert {
        "model_alias": name,
        "alias": name,
        "display_name": "Mine",
        "description": "A model of mine",
        "status": "deprecated",
        "active": True,
        "is_active": True,
        "provider": "openai",
        "actual_model": "my-model",
        "actual_model_name": "my-model",
        "litellm_model": "openai/my-model",
        "litellm_model_id": None,
        "pricing_input": 0.075,
        "pricing_output": 0.3,
        "input_price_per_million": 0.075,
        "output_price_per_million": 0.3,
        "price_source": "alias",
        "credential_name": None,
        "api_base": "http://127.0.0.1:9/v1",
        "has_api_key": True,
        "access_groups": [],
        "teams_using": [],
        "teams_with_access": 0,
    } == alias
    shown = admin.get(f"/api/model-aliases/{name}").json()
    assert {"total_calls": 0, "total_cost_usd": 0, "avg_tokens_per_call": 0} == shown["usage_stats"]


@pytest.mark.parametrize("path", [*(f"{family}/create" for family in FAMILIES), "/api/models/aliases/create"])
def test_an_alias_can_be_made_under_every_path_and_every_vocabulary(admin: httpx.Client, path: str) -> None:
    name = a_name()
    body = {
        "model_alias": name,
        "provider": "OpenAI",
        "actual_model": "my-model",
        "input_price_per_million": 1,
        "output_price_per_million": 2,
        "leftover": "of a form",
    }
    answer = admin.post(path, json=body)
    assert 200 == answer.status_code, answer.text
    for family in FAMILIES:
        shown = admin.get(f"{family}/{name}").json()
        assert ("openai/my-model", 1, 2) == (shown["litellm_model"], shown["pricing_input"], shown["pricing_output"])


def test_a_name_is_given_once_and_again_when_it_is_free(admin: httpx.Client) -> None:
    name = created(admin, litellm_model="demo/echo")["alias"]
    again = create(admin, alias=name, litellm_model="demo/echo")
    assert (400, "already_exists") == (again.status_code, again.json()["code"])
    assert "already exists" in again.json()["detail"]
    gone = admin.delete(f"/api/model-aliases/{name}")
    assert (200, name) == (gone.status_code, gone.json()["model_alias"])
    assert 404 == admin.get(f"/api/model-aliases/{name}").status_code
    assert 404 == admin.delete(f"/api/models/{name}").status_code
    assert 200 == create(admin, alias=name, litellm_model="demo/echo").status_code


@pytest.mark.parametrize(
    "body,field,kind",
    [
        ({"alias": None}, "alias", "value_error.missing"),
        ({"litellm_model": None}, "litellm_model", "value_error.missing"),
        ({"litellm_model": None, "provider": "openai"}, "actual_model", "value_error.missing"),
        ({"litellm_model": None, "actual_model": "gpt-4o"}, "provider", "value_error.missing"),
        ({"alias": "a/b"}, "alias", "value_error.format"),
        ({"alias": ""}, "alias", "value_error.length"),
        ({"alias": "x" * 201}, "alias", "value_error.length"),
        ({"alias": "a\0b"}, "alias", "value_error.format"),
        ({"alias": "a\n"}, "alias", "value_error.format"),
        ({"description": "x" * 1001}, "description", "value_error.length"),
        ({"api_key": "x" * 4097}, "api_key", "value_error.length"),
        ({"api_key": "a\nb"}, "api_key", "value_error.format"),
        ({"api_base": "ftp://host/v1"}, "api_base", "value_error.format"),
        ({"api_base": "https://user:password@host/v1"}, "api_base", "value_error.format"),
        ({"api_base": "http://[::1/v1"}, "api_base", "value_error.format"),
        ({"status": "broken"}, "status", "value_error.enum"),
        ({"pricing_input": -1, "pricing_output": 1}, "pricing_input", "value_error.range"),
        ({"pricing_input": 1, "pricing_output": "NaN"}, "pricing_output", "value_error.range"),
        ({"litellm_model": "openai/nobody-knows-it"}, "pricing_input", "value_error.range"),
        ({"litellm_model": "openai/nobody-knows-it", "pricing_output": 1}, "pricing_input", "value_error.range"),
    ],
)
def test_a_bad_value_is_answered_with_its_place(
    server: Server, admin: httpx.Client, body: dict[str, Any], field: str, kind: str
) -> None:
    before = secrets(server)
    answer = create(admin, **{"litellm_model": "demo/echo", "api_key": "sk-never-kept", **body})
    assert 422 == answer.status_code, answer.text
    (item,) = answer.json()["detail"]
    assert (["body", field], kind) == (item["loc"], item["type"])
    assert before == secrets(server)


@pytest.mark.parametrize(
    "body,field",
    [
        ({"provider": "nobody", "actual_model": "x"}, "provider"),
        ({"litellm_model": "nobody/x"}, "provider"),
        ({"litellm_model": "a-model-without-provider"}, "provider"),
        ({"litellm_model": "openai/gpt-4o", "provider": "groq"}, "provider"),
        ({"litellm_model": "openai/gpt-4o", "actual_model": "gpt-4"}, "actual_model"),
        ({"litellm_model": "demo/echo", "alias": "one", "model_alias": "other"}, "alias"),
        ({"litellm_model": "demo/echo", "active": False, "status": "active"}, "status"),
        ({"litellm_model": "demo/echo", "pricing_input": 1, "input_price_per_million": 2}, "pricing_input"),
    ],
)
def test_unknown_providers_and_contradictions_are_invalid(
    admin: httpx.Client, body: dict[str, Any], field: str
) -> None:
    answer = create(admin, **body)
    assert (400, "invalid_value", field) == (answer.status_code, answer.json()["code"], answer.json()["field"])


def test_an_unknown_access_group_or_credential_is_not_found(server: Server, admin: httpx.Client) -> None:
    before = secrets(server)
    for field, value, resource in (
        ("access_groups", ["no-such-group"], "access_group"),
        ("credential_name", "no-such-credential", "provider_credential"),
    ):
        answer = create(admin, litellm_model="demo/echo", api_key="sk-never-kept", **{field: value})
        assert (404, resource) == (answer.status_code, answer.json()["resource"])
    assert before == secrets(server)


# -- prices ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body,prices",
    [
        ({"litellm_model": "openai/gpt-4o"}, (2.5, 10, "cost_map")),
        ({"litellm_model": "gpt-4o"}, (2.5, 10, "cost_map")),
        ({"litellm_model": "openai/gpt-4o", "pricing_input": 0, "pricing_output": 0}, (0, 0, "alias")),
        ({"litellm_model": "openai/gpt-4o", "pricing_input": 7}, (7, 10, "cost_map")),
        ({"litellm_model": "openai/my-gpt-4o", "allow_unpriced": True}, (None, None, "none")),
        ({"litellm_model": "demo/echo"}, (0, 0, "cost_map")),
        ({"litellm_model": "demo/echo", "pricing_input": 1, "pricing_output": 2}, (1, 2, "alias")),
    ],
)
def test_a_price_is_the_aliass_own_else_that_of_exactly_this_model(
    admin: httpx.Client, body: dict[str, Any], prices: tuple[Any, ...]
) -> None:
    alias = created(admin, **body)
    assert prices == (alias["pricing_input"], alias["pricing_output"], alias["price_source"])


def test_prices_keep_all_their_decimals(admin: httpx.Client) -> None:
    body = '{"alias": "%s", "litellm_model": "openai/x", "pricing_input": 0.000000000123, "pricing_output": 1e-7}'
    answer = admin.post("/api/model-aliases/create", content=body % a_name())
    assert '"pricing_input":0.000000000123,"pricing_output":0.0000001,' in answer.text


def test_a_changed_price_touches_later_calls_only(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    team = make_team(server, admin)
    name = make_alias(admin, provider, "usage-1000000-1000000")
    costs = []
    for price in (None, 0.075):
        if price is not None:
            answer = admin.put(f"/api/models/{name}", json={"pricing_input": price, "pricing_output": 0})
            assert (price, 0) == (answer.json()["pricing_input"], answer.json()["pricing_output"])
        job = team.job()
        call = team.client.post(
            f"/api/jobs/{job}/llm-call", json={"model": name, "messages": [{"role": "user", "content": "hi"}]}
        )
        assert 200 == call.status_code, call.text
        costs.append(job)
    shown = [admin.get(f"/api/jobs/{job}/costs").json()["costs"]["total_cost_usd"] for job in costs]
    assert [12.5, 0.075] == shown
    stats = admin.get(f"/api/models/{name}").json()["usage_stats"]
    assert {"total_calls": 2, "total_cost_usd": 12.575, "avg_tokens_per_call": 2000000} == stats


def test_a_name_given_anew_has_been_used_for_nothing(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    team = make_team(server, admin)
    name = make_alias(admin, provider)
    ask = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
    assert 200 == team.client.post(f"/api/jobs/{team.job()}/llm-call", json=ask).status_code
    assert 1 == admin.get(f"/api/models/{name}").json()["usage_stats"]["total_calls"]
    admin.delete(f"/api/models/{name}")
    created(admin, alias=name, litellm_model="demo/echo")
    assert 0 == admin.get(f"/api/models/{name}").json()["usage_stats"]["total_calls"]


def test_an_alias_without_price_says_so_and_costs_nothing(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    team = make_team(server, admin)
    name = make_alias(admin, provider, pricing_input=None, pricing_output=None, allow_unpriced=True)
    job = team.job()
    call = team.client.post(
        f"/api/jobs/{job}/llm-call", json={"model": name, "messages": [{"role": "user", "content": "hi"}]}
    )
    assert 200 == call.status_code
    (line,) = admin.get(f"/api/jobs/{job}/costs").json()["costs"]["breakdown"]
    assert (0, 0, 0) == (line["cost_usd"], line["model_pricing_input"], line["model_pricing_output"])


# -- changing ----------------------------------------------------------------------------------------------------------


def test_a_change_leaves_alone_what_it_does_not_speak_of(admin: httpx.Client) -> None:
    before = created(admin, litellm_model="openai/gpt-4o", description="first", api_base="http://127.0.0.1:9/v1")
    url = f"/api/model-aliases/{before['alias']}"
    after = admin.put(url, json={"display_name": "New", "description": None, "alias": before["alias"]}).json()
    assert {**before, "display_name": "New", "updated_at": after["updated_at"]} == after
    assert after["updated_at"] >= before["updated_at"]
    assert after == admin.put(url, json={"display_name": "New"}).json(), "a repeat changes nothing"


def test_another_model_brings_its_own_list_price(admin: httpx.Client) -> None:
    name = created(admin, litellm_model="openai/gpt-4o")["alias"]
    changed = admin.put(f"/api/models/{name}", json={"actual_model": "gpt-4o-mini"}).json()
    assert ("openai/gpt-4o-mini", 0.15, 0.6) == tuple(
        changed[field] for field in ("litellm_model", "pricing_input", "pricing_output")
    )
    refused = admin.put(f"/api/models/{name}", json={"actual_model": "nobody-knows-it"})
    assert (422, ["body", "pricing_input"]) == (refused.status_code, refused.json()["detail"][0]["loc"])


def test_an_empty_text_takes_an_address_away(admin: httpx.Client) -> None:
    name = created(admin, litellm_model="openai/gpt-4o", api_base="http://127.0.0.1:9/v1")["alias"]
    assert admin.put(f"/api/models/{name}", json={"api_base": ""}).json()["api_base"] is None


def test_an_alias_keeps_its_name(admin: httpx.Client) -> None:
    name = created(admin, litellm_model="demo/echo")["alias"]
    assert 422 == admin.put(f"/api/models/{name}", json={"alias": a_name()}).status_code
    assert 404 == admin.put(f"/api/models/{a_name()}", json={"display_name": "x"}).status_code


def test_memberships_are_replaced_and_left_at_the_end(admin: httpx.Client) -> None:
    one, other = access_group(admin), access_group(admin)
    alias = created(admin, litellm_model="demo/echo", access_groups=[one])
    assert [one] == alias["access_groups"]
    url = f"/api/model-aliases/{alias['alias']}"
    assert [other] == admin.put(url, json={"access_groups": [other]}).json()["access_groups"]
    assert [] == admin.get(f"/api/model-access-groups/{one}").json()["model_alias_names"]
    assert [alias["alias"]] == admin.get(f"/api/model-access-groups/{other}").json()["model_alias_names"]
    admin.delete(url)
    assert [] == admin.get(f"/api/model-access-groups/{other}").json()["model_alias_names"]


def test_two_changes_at_once_both_hold(admin: httpx.Client) -> None:
    name = created(admin, litellm_model="openai/gpt-4o")["alias"]
    changes = [{"display_name": "New"}, {"description": "new"}, {"pricing_input": 1}, {"pricing_output": 2}]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda change: admin.put(f"/api/models/{name}", json=change), changes))
    after = admin.get(f"/api/models/{name}").json()
    assert ("New", "new", 1, 2) == tuple(
        after[field] for field in ("display_name", "description", "pricing_input", "pricing_output")
    )


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_replaced_and_forgotten(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    before = secrets(server)
    team = make_team(server, admin)
    name = make_alias(admin, provider, api_key="sk-the-first")
    assert before + 1 == secrets(server)
    assert admin.put(f"/api/models/{name}", json={"api_key": "sk-the-second"}).json()["has_api_key"]
    assert before + 1 == secrets(server)
    ask = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
    assert 200 == team.client.post(f"/api/jobs/{team.job()}/llm-call", json=ask).status_code
    assert "Bearer sk-the-second" == provider.last.headers["Authorization"]
    assert admin.put(f"/api/models/{name}", json={"api_key": ""}).json()["has_api_key"], "a form left empty"
    admin.delete(f"/api/models/{name}")
    assert before == secrets(server)


def test_a_refused_alias_leaves_no_key_behind(server: Server, admin: httpx.Client) -> None:
    name = created(admin, litellm_model="demo/echo")["alias"]
    before = secrets(server)
    assert 400 == create(admin, alias=name, litellm_model="demo/echo", api_key="sk-x").status_code
    assert 404 == admin.put(f"/api/models/{a_name()}", json={"api_key": "sk-x"}).status_code
    assert 422 == admin.put(f"/api/models/{name}", json={"litellm_model": "openai/x", "api_key": "sk-x"}).status_code
    assert before == secrets(server)


def test_a_key_does_not_follow_its_alias_to_another_provider(admin: httpx.Client) -> None:
    name = created(admin, litellm_model="openai/gpt-4o", api_key="sk-x")["alias"]
    assert admin.put(f"/api/models/{name}", json={"actual_model": "gpt-4o-mini"}).json()["has_api_key"]
    moved = admin.put(f"/api/models/{name}", json={"litellm_model": "groq/x", "allow_unpriced": True}).json()
    assert not moved["has_api_key"]


# -- looking -----------------------------------------------------------------------------------------------------------


def listed(client: httpx.Client, query: str = "", family: str = "/api/model-aliases") -> list[str]:
    names = [each["alias"] for each in whole_list(client, family, **dict(parse_qsl(query)))]
    assert sorted(names) == names
    return names


def test_a_team_sees_names_and_nothing_of_the_provider(admin: httpx.Client, team: TestTeam) -> None:
    name = created(admin, litellm_model="openai/gpt-4o", description="Clever")["alias"]
    for family in FAMILIES:
        shown = team.client.get(f"{family}/{name}")
        assert (200, "Clever") == (shown.status_code, shown.json()["description"])
        assert not ADMIN_ONLY & set(shown.json())
        assert "gpt" not in shown.text
        (listed_one,) = [each for each in whole_list(team.client, family) if name == each["alias"]]
        assert shown.json() == listed_one
        assert ADMIN_ONLY <= set(admin.get(f"{family}/{name}").json())


def test_a_team_sees_what_it_may_use(server: Server, admin: httpx.Client) -> None:
    open_to_all, mine, foreign = (created(admin, litellm_model="demo/echo")["alias"] for _ in range(3))
    off = created(admin, litellm_model="demo/echo", active=False)["alias"]
    own, other = access_group(admin, mine), access_group(admin, foreign)
    team = make_team(server, admin, access_groups=[own])
    seen = listed(team.client)
    assert (True, True, False, False) == tuple(name in seen for name in (open_to_all, mine, foreign, off))
    assert [mine] == listed(team.client, f"&access_group={own}")
    assert [] == listed(team.client, f"&access_group={other}")
    for name in (foreign, off):
        refused = team.client.get(f"/api/models/{name}")
        assert (403, "model_not_allowed") == (refused.status_code, refused.json()["code"])
    missing = team.client.get(f"/api/models/{a_name()}")
    assert (404, "model_alias") == (missing.status_code, missing.json()["resource"])


def test_only_administrators_write(admin: httpx.Client, team: TestTeam) -> None:
    name = created(admin, litellm_model="demo/echo")["alias"]
    for method, path in (
        ("POST", "/api/model-aliases/create"),
        ("POST", "/api/models/aliases/create"),
        ("PUT", f"/api/models/{name}"),
        ("DELETE", f"/api/model-aliases/{name}"),
    ):
        answer = team.client.request(method, path, json={})
        assert (403, "admin_required") == (answer.status_code, answer.json()["code"])


def test_every_filter_works(admin: httpx.Client) -> None:
    fast, slow, off = (
        created(admin, **body)["alias"]
        for body in (
            {"litellm_model": "openai/gpt-4o"},
            {"provider": "fireworks", "actual_model": "x", "allow_unpriced": True, "status": "deprecated"},
            {"litellm_model": "openai/gpt-4o", "active": False},
        )
    )
    group = access_group(admin, fast, slow)

    def found(query: str) -> tuple[bool, ...]:
        names = listed(admin, query, "/api/models")
        return tuple(name in names for name in (fast, slow, off))

    assert (True, True, True) == found("")
    assert (True, False, True) == found("&provider=OpenAI")
    assert (False, True, False) == found("&provider=fireworks_ai")
    assert (False, False, False) == found("&provider=nobody")
    assert (True, False, False) == found("&status=Active")
    assert (False, True, False) == found("&status=deprecated")
    assert (True, True, False) == found(f"&access_group={group}")
    assert (True, False, False) == found(f"&access_group={group}&status=active&provider=openai")
    assert 422 == admin.get("/api/models?status=gone").status_code


def test_pages_are_full_and_neither_repeat_nor_skip(admin: httpx.Client) -> None:
    names = sorted(created(admin, litellm_model="demo/echo")["alias"] for _ in range(5))
    group = access_group(admin, *names)
    pages = []
    for offset in (0, 2, 4):
        answer = admin.get(f"/api/model-aliases?access_group={group}&limit=2&offset={offset}")
        assert "5" == answer.headers["X-Total-Count"]
        pages.append([each["alias"] for each in answer.json()])
    assert [names[:2], names[2:4], names[4:]] == pages
