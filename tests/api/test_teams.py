"""Teams over HTTP."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from api.app import open_house
from api.teams import cancel_orphans, creation_streams
from domain.job import CreateJob, create_job
from domain.onboarding import CreateTeam, DeleteTeam, create_team, delete_team
from domain.organization import CreateOrganization, create_organization
from domain.streams import JOB, ORGANIZATION, TEAM, THE_CATALOG
from tests.api.conftest import MASTER_KEY, Server, TestTeam, make_alias, make_team, running, settings_for
from tests.provider import FakeProvider
from tests.waiting import PATIENCE_SECONDS

TEAM_FIELDS = {
    "team_id",
    "organization_id",
    "team_alias",
    "status",
    "virtual_key",
    "credits_allocated",
    "credits_used",
    "credits_remaining",
    "credits_held",
    "credits_available",
    "model_groups",
    "access_groups",
    "allowed_model_aliases",
    "allowed_models",
    "default_model",
    "keep_prompts",
    "budget_mode",
    "credits_per_dollar",
    "tokens_per_credit",
    "charge_policy",
    "overdraft_credits",
    "rpm_limit",
    "tpm_limit",
    "metadata",
    "created_at",
    "updated_at",
    "usage_summary",
    "credits",
}


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (status, code) == (answer.status_code, answer.json()["code"]), answer.text
    body: dict[str, Any] = answer.json()
    return body


def invalid(answer: httpx.Response, *loc: str) -> str:
    """The type of the complaint about just this place."""
    body = refused(answer, 422, "validation_error")
    assert [list(loc)] == [item["loc"] for item in body["detail"]]
    return str(body["detail"][0]["type"])


def path(team: TestTeam, rest: str = "") -> str:
    return f"/api/teams/{team.team_id}{rest}"


def read(admin: httpx.Client, team: TestTeam) -> dict[str, Any]:
    body: dict[str, Any] = ok(admin.get(path(team)))
    return body


def revise(admin: httpx.Client, team: TestTeam, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = ok(admin.put(path(team), json=fields))
    return body


def make_group(admin: httpx.Client, *aliases: str, kind: str = "model-access-groups") -> str:
    name = f"group-{uuid4().hex[:8]}"
    members = {"model_aliases": list(aliases)} if kind == "model-access-groups" else {"models": list(aliases)}
    ok(admin.post(f"/api/{kind}/create", json={"group_name": name, **members}))
    return name


def new_organization(admin: httpx.Client) -> str:
    organization_id = f"org-{uuid4().hex[:8]}"
    ok(admin.post("/api/organizations/create", json={"organization_id": organization_id, "name": "Test"}))
    return organization_id


# -- create ------------------------------------------------------------------------------------------------------------


def test_a_new_team_shows_its_key_once(admin: httpx.Client, server: Server) -> None:
    body = {"organization_id": new_organization(admin), "team_id": f"team-{uuid4().hex[:8]}"}
    created = ok(admin.post("/api/teams/create", json=body))
    assert {*TEAM_FIELDS, "cost_markup_percentage", "key_id", "message"} == set(created)
    key = created["virtual_key"]
    assert (True, 46) == (key.startswith("sk-"), len(key))
    shown = ok(admin.get(f"/api/teams/{body['team_id']}"))
    assert f"{key[:7]}...{key[-4:]}" == shown["virtual_key"] == shown["credits"]["virtual_key"]
    with server.client(key) as client:
        assert body["team_id"] == ok(client.get("/api/teams/verify"))["team_id"]


def test_a_team_has_the_defaults_of_the_house(admin: httpx.Client, team: TestTeam) -> None:
    shown = read(admin, team)
    expected: dict[str, Any] = {
        "status": "active",
        "team_alias": None,
        "budget_mode": "job_based",
        "credits_per_dollar": 10,
        "tokens_per_credit": 10000,
        "charge_policy": "all_calls_succeeded",
        "overdraft_credits": 0,
        "cost_markup_percentage": 0,
        "metadata": {},
        "model_groups": [],
        "access_groups": [],
        "default_model": None,
        "credits_allocated": 100,
        "credits_remaining": 100,
        "credits_available": 100,
        "credits_held": 0,
        "credits_used": 0,
        "usage_summary": {"total_jobs": 0, "total_cost_usd": 0},
    }
    assert expected == {name: shown[name] for name in expected}


def test_everything_given_is_stored_and_given_back(server: Server, admin: httpx.Client) -> None:
    given: dict[str, Any] = {
        "team_alias": "The A Team",
        "budget_mode": "consumption_usd",
        "credits_per_dollar": 12.5,
        "tokens_per_credit": 500,
        "cost_markup_percentage": 33.3,
        "charge_policy": "any_call_succeeded",
        "overdraft_credits": 7,
        "rpm_limit": 11,
        "tpm_limit": 0,
        "default_model": "gpt-4",
        "metadata": {"nested": {"a": [1, None, 2.5]}, "none": None},
    }
    team = make_team(server, admin, **given)
    shown = read(admin, team)
    assert given == {name: shown[name] for name in given}


def test_an_overdraft_of_null_is_unlimited(server: Server, admin: httpx.Client) -> None:
    shown = read(admin, make_team(server, admin, overdraft_credits=None))
    assert (None, None) == (shown["overdraft_credits"], shown["credits_available"])


def test_opening_credits_are_a_ledger_entry(admin: httpx.Client, team: TestTeam) -> None:
    listed = ok(team.client.get("/api/credits/transactions"))["transactions"]
    assert [("allocation", 100, 0, 100)] == [
        (each["transaction_type"], each["credits_amount"], each["credits_before"], each["credits_after"])
        for each in listed
    ]


def test_a_team_id_can_be_taken_only_once_also_after_deletion(admin: httpx.Client, team: TestTeam) -> None:
    body = {"organization_id": team.organization_id, "team_id": team.team_id}
    taken = refused(admin.post("/api/teams/create", json=body), 400, "already_exists")
    assert "already exists" in taken["detail"]
    ok(admin.delete(path(team)))
    refused(admin.post("/api/teams/create", json=body), 400, "already_exists")


def test_a_key_can_be_chosen(server: Server, admin: httpx.Client) -> None:
    key = f"sk-{uuid4().hex[:8]}"
    team = make_team(server, admin, virtual_key=key)
    assert (key, f"{key[:3]}...") == (team.key, read(admin, team)["virtual_key"])
    body = {"organization_id": team.organization_id, "team_id": "another-team", "virtual_key": key}
    refused(admin.post("/api/teams/create", json=body), 400, "already_exists")
    refused(admin.get("/api/teams/another-team"), 404, "not_found")


@pytest.mark.parametrize("key", ["short1", "with space", "täst-key", "x" * 256, "line-feed\n", MASTER_KEY])
def test_a_chosen_key_must_be_printable_and_not_the_master_key(admin: httpx.Client, key: str) -> None:
    body = {"organization_id": "any", "team_id": "any", "virtual_key": key}
    invalid(admin.post("/api/teams/create", json=body), "body", "virtual_key")


def test_groups_are_filed_under_their_true_kind(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    alias = make_alias(admin, provider)
    access, models = make_group(admin, alias), make_group(admin, alias, kind="model-groups")
    team = make_team(server, admin, access_groups=[models, access])
    shown = read(admin, team)
    assert ([models], [access]) == (shown["model_groups"], shown["access_groups"])
    assert alias in shown["allowed_model_aliases"]
    assert "openai/gpt-ok" in shown["allowed_models"]


def test_a_team_is_not_shown_what_its_models_are_and_what_we_add(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    group = make_group(admin, make_alias(admin, provider))
    team = make_team(server, admin, access_groups=[group], cost_markup_percentage=40)
    shown = ok(team.client.get(path(team)))
    assert set(shown) == TEAM_FIELDS
    assert shown["allowed_models"] == shown["allowed_model_aliases"]
    assert "cost_markup_percentage" not in shown["credits"]


@pytest.mark.parametrize(
    "field,value",
    [("organization_id", "no-such-organization"), ("access_groups", ["no-such-group"]), ("model_groups", ["nope"])],
)
def test_unknown_organizations_and_groups_are_not_found(
    admin: httpx.Client, team: TestTeam, field: str, value: Any
) -> None:
    body = {"organization_id": team.organization_id, "team_id": f"team-{uuid4().hex[:8]}", field: value}
    refused(admin.post("/api/teams/create", json=body), 404, "not_found")
    refused(admin.get(f"/api/teams/{body['team_id']}"), 404, "not_found")


@pytest.mark.parametrize("field", ["budget_mode", "charge_policy"])
def test_unknown_words_are_invalid_values(admin: httpx.Client, team: TestTeam, field: str) -> None:
    body = {"organization_id": team.organization_id, "team_id": f"team-{uuid4().hex[:8]}", field: "whatever"}
    assert field == refused(admin.post("/api/teams/create", json=body), 400, "invalid_value")["field"]
    assert field == refused(admin.put(path(team), json={field: "whatever"}), 400, "invalid_value")["field"]


@pytest.mark.parametrize(
    "field,value,kind",
    [
        ("team_id", "create", "value_error.format"),
        ("team_id", "verify", "value_error.format"),
        ("team_id", "a/b", "value_error.format"),
        ("team_id", "line\n", "value_error.format"),
        ("team_id", "", "value_error.length"),
        ("team_id", "x" * 256, "value_error.length"),
        ("team_id", "nul\x00", "value_error.format"),
        ("team_id", None, "value_error.missing"),
        ("team_id", 5, "type_error.string"),
        ("team_alias", "x" * 201, "value_error.length"),
        ("credits_allocated", -1, "value_error.range"),
        ("credits_allocated", 1.5, "type_error.integer"),
        ("credits_allocated", "100", "type_error.integer"),
        ("credits_allocated", 10**13, "value_error.range"),
        ("credits_per_dollar", 0, "value_error.range"),
        ("credits_per_dollar", -1, "value_error.range"),
        ("credits_per_dollar", "many", "value_error.format"),
        ("tokens_per_credit", 0, "value_error.range"),
        ("cost_markup_percentage", -0.1, "value_error.range"),
        ("overdraft_credits", -1, "value_error.range"),
        ("rpm_limit", -1, "value_error.range"),
        ("metadata", [], "type_error.object"),
        ("metadata", {"x": "y" * 10240}, "value_error.range"),
        ("model_groups", "not a list", "type_error.list"),
    ],
)
def test_bad_fields_are_named(admin: httpx.Client, team: TestTeam, field: str, value: Any, kind: str) -> None:
    body = {"organization_id": team.organization_id, "team_id": f"team-{uuid4().hex[:8]}", field: value}
    assert kind == invalid(admin.post("/api/teams/create", json=body), "body", field)


def test_whole_numbers_may_be_written_with_a_point(server: Server, admin: httpx.Client) -> None:
    team = make_team(server, admin, rpm_limit=5.0, overdraft_credits=None)
    shown = read(admin, team)
    assert (5, None) == (shown["rpm_limit"], shown["overdraft_credits"])


def test_creating_again_with_the_same_idempotency_key_shows_the_same_key(admin: httpx.Client) -> None:
    body = {"organization_id": new_organization(admin), "team_id": f"team-{uuid4().hex[:8]}"}
    headers = {"Idempotency-Key": uuid4().hex}
    first = admin.post("/api/teams/create", json=body, headers=headers)
    second = admin.post("/api/teams/create", json=body, headers=headers)
    assert (200, "true") == (second.status_code, second.headers["Idempotent-Replayed"])
    assert first.json() == second.json()


# -- read --------------------------------------------------------------------------------------------------------------


def test_teams_are_listed_by_id(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    names = [f"{team.team_id}-{letter}" for letter in "cab"]
    for name in names:
        body = {"organization_id": team.organization_id, "team_id": name}
        ok(admin.post("/api/teams/create", json=body))
    query: dict[str, Any] = {"organization_id": team.organization_id}
    everything = admin.get("/api/teams", params=query)
    assert [team.team_id, *sorted(names)] == [each["team_id"] for each in ok(everything)]
    assert "4" == everything.headers["X-Total-Count"]
    page = admin.get("/api/teams", params={**query, "limit": 2, "offset": 1})
    assert sorted(names)[:2] == [each["team_id"] for each in ok(page)]
    assert "4" == page.headers["X-Total-Count"]
    assert {*TEAM_FIELDS, "cost_markup_percentage"} - {"usage_summary"} == set(ok(page)[0])


def test_teams_are_filtered_by_status_in_any_letter_case(admin: httpx.Client, team: TestTeam) -> None:
    query = {"organization_id": team.organization_id}

    def statuses(**more: str) -> list[str]:
        return [each["status"] for each in ok(admin.get("/api/teams", params={**query, **more}))]

    assert [] == statuses(status="Paused")
    ok(admin.post(path(team, "/pause")))
    assert ["paused"] == statuses(status="PAUSED") == statuses()
    ok(admin.delete(path(team)))
    assert [] == statuses()
    assert ["inactive"] == statuses(status="inactive")
    assert "value_error.enum" == invalid(admin.get("/api/teams", params={"status": "gone"}), "query", "status")


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"limit": "many"}, {"offset": -1}])
def test_pages_have_bounds(admin: httpx.Client, query: dict[str, Any]) -> None:
    invalid(admin.get("/api/teams", params=query), "query", *query)


def test_only_administrators_list_and_change_teams(team: TestTeam) -> None:
    client = team.client
    body = {"organization_id": team.organization_id, "team_id": "mine"}
    for answer in (
        client.get("/api/teams"),
        client.post("/api/teams/create", json=body),
        client.put(path(team), json={"credits_allocated": 1000}),
        client.delete(path(team)),
        client.post(path(team, "/resume")),
        client.patch(path(team, "/markup"), json={"cost_markup_percentage": 0}),
        client.put(path(team, "/access-groups"), json=[]),
        client.put(path(team, "/model-groups"), json=[]),
    ):
        assert "credit" not in refused(answer, 403, "admin_required")["detail"]


def test_a_team_sees_itself_and_no_other(team: TestTeam) -> None:
    assert team.team_id == ok(team.client.get(path(team)))["team_id"]
    assert team.team_id == ok(team.client.get(f"/api/v1/teams/{team.team_id}/"))["team_id"]
    for other in ("no-such-team", "another"):
        refused(team.client.get(f"/api/teams/{other}"), 403, "forbidden")


@pytest.mark.parametrize("team_id", ["no-such-team", "x" * 300, "%00", "%C3%A4", "%FF"])
def test_unknown_teams_are_not_found(admin: httpx.Client, team_id: str) -> None:
    assert "team" == refused(admin.get(f"/api/teams/{team_id}"), 404, "not_found")["resource"]
    assert "team" == refused(admin.put(f"/api/teams/{team_id}", json={}), 404, "not_found")["resource"]


def test_verify_tells_a_key_whose_it_is(admin: httpx.Client, team: TestTeam) -> None:
    ok(admin.post(path(team, "/suspend")))
    shown = ok(team.client.get("/api/teams/verify"))
    expected = {
        "team_id": team.team_id,
        "organization_id": team.organization_id,
        "status": "suspended",
        "virtual_key": f"{team.key[:7]}...{team.key[-4:]}",
        "valid": True,
    }
    assert expected == {name: shown[name] for name in expected}
    refused(admin.get("/api/teams/verify"), 403, "forbidden")


def test_a_team_with_exotic_names_works(server: Server, admin: httpx.Client) -> None:
    team_id = f"Ünï cödé 100%_#?&{uuid4().hex[:4]}"
    organization_id = new_organization(admin)
    made = ok(admin.post("/api/teams/create", json={"organization_id": organization_id, "team_id": team_id}))
    with server.client(made["virtual_key"]) as client:
        assert team_id == ok(client.get("/api/teams/verify"))["team_id"]
        assert team_id == ok(client.get(f"/api/teams/{quote(team_id, safe='')}"))["team_id"]


# -- change ------------------------------------------------------------------------------------------------------------


def test_many_changes_are_one(admin: httpx.Client, team: TestTeam) -> None:
    before = int(admin.get(path(team)).headers["X-Ledger-Position"])
    changed = revise(
        admin,
        team,
        team_alias="New",
        metadata={"b": 2},
        credits_allocated=250,
        budget_mode="consumption_tokens",
        tokens_per_credit=100,
        cost_markup_percentage=12.5,
        overdraft_credits=5,
        rpm_limit=3,
        default_model="gpt-4",
        status="paused",
    )
    assert "message" in changed
    shown = read(admin, team)
    del changed["message"]
    assert shown == changed
    assert ("New", {"b": 2}, 250, "consumption_tokens", 100, 5, 3, "gpt-4", "paused") == (
        shown["team_alias"],
        shown["metadata"],
        shown["credits_allocated"],
        shown["budget_mode"],
        shown["tokens_per_credit"],
        shown["overdraft_credits"],
        shown["rpm_limit"],
        shown["default_model"],
        shown["status"],
    )
    # changed, budget, limits, paused, adjusted
    assert before + 5 == int(admin.get(path(team)).headers["X-Ledger-Position"])


def test_a_change_that_is_refused_in_part_is_refused_as_a_whole(admin: httpx.Client, team: TestTeam) -> None:
    before = read(admin, team)
    refused(admin.put(path(team), json={"team_alias": "New", "access_groups": ["nope"]}), 404, "not_found")
    assert before == read(admin, team)


def test_null_clears_texts_and_sets_rates_and_limits_back(server: Server, admin: httpx.Client) -> None:
    team = make_team(
        server,
        admin,
        team_alias="Old",
        default_model="gpt-4",
        credits_per_dollar=3,
        tokens_per_credit=7,
        rpm_limit=5,
        tpm_limit=5,
        metadata={"a": 1},
        budget_mode="consumption_usd",
        cost_markup_percentage=10,
    )
    names: tuple[str, ...] = (
        "team_alias",
        "default_model",
        "credits_per_dollar",
        "tokens_per_credit",
        "rpm_limit",
        "tpm_limit",
    )
    names += ("overdraft_credits", "metadata", "budget_mode", "cost_markup_percentage", "status", "model_groups")
    shown = revise(admin, team, **dict.fromkeys(names), credits_allocated=100.0)
    assert [None, None, 10, 10000, 0, 0, None, {"a": 1}, "consumption_usd", 10, "active", []] == [
        shown[name] for name in names
    ]
    assert shown["credits_available"] is None


def test_what_is_not_named_stays(server: Server, admin: httpx.Client) -> None:
    team = make_team(server, admin, team_alias="Old", rpm_limit=5, overdraft_credits=None, credits_per_dollar=3)
    before = read(admin, team)
    after = revise(admin, team, metadata={"x": 1})
    changed = {name for name in after if after[name] != before.get(name)}
    # The team may have been made in the same millisecond, and its credits speak of that moment, too.
    assert {"metadata", "message"} == changed - {"updated_at", "credits"}
    assert {**before["credits"], "updated_at": after["updated_at"]} == after["credits"]


def test_a_changed_allocation_is_an_adjustment_and_credits_used_is_no_setting(
    admin: httpx.Client, team: TestTeam
) -> None:
    job_id = team.job()
    ok(team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}))
    shown = revise(admin, team, credits_allocated=90, credits_used=0)
    assert (90, 1, 89) == (shown["credits_allocated"], shown["credits_used"], shown["credits_remaining"])
    shown = revise(admin, team, credits_allocated=90, credits_used=50)
    assert (90, 1, 89) == (shown["credits_allocated"], shown["credits_used"], shown["credits_remaining"])
    rows = ok(team.client.get("/api/credits/transactions"))["transactions"]
    assert [("adjustment", 99, 89), ("deduction", 100, 99), ("allocation", 0, 100)] == [
        (row["transaction_type"], row["credits_before"], row["credits_after"]) for row in rows
    ]


def test_a_status_that_nobody_can_set_is_refused(admin: httpx.Client, team: TestTeam) -> None:
    assert "value_error.enum" == invalid(admin.put(path(team), json={"status": "inactive"}), "body", "status")


def test_each_list_of_groups_is_replaced_alone(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    alias = make_alias(admin, provider)
    first, second = make_group(admin, alias), make_group(admin)
    models = make_group(admin, alias, kind="model-groups")
    team = make_team(server, admin, access_groups=[first, models])
    shown = revise(admin, team, access_groups=[second])
    assert ([models], [second]) == (shown["model_groups"], shown["access_groups"])
    assert alias not in shown["allowed_model_aliases"]
    shown = revise(admin, team, model_groups=[])
    assert ([], [second]) == (shown["model_groups"], shown["access_groups"])
    refused(admin.delete(f"/api/model-access-groups/{second}"), 400, "in_use")
    ok(admin.delete(f"/api/model-access-groups/{first}"))


def test_groups_can_be_put_as_a_bare_array_or_by_name(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    alias = make_alias(admin, provider)
    access, models = make_group(admin, alias), make_group(admin, alias, kind="model-groups")
    team = make_team(server, admin)
    for body in ([access], {"access_groups": [access]}):
        answer = ok(admin.put(path(team, "/access-groups"), json=body))
        assert {"team_id", "access_groups", "allowed_model_aliases", "message"} == set(answer)
        assert [access] == answer["access_groups"]
        assert alias in answer["allowed_model_aliases"]
    for body in ([models], {"model_groups": [models]}):
        answer = ok(admin.put(path(team, "/model-groups"), json=body))
        assert {"team_id", "model_groups", "message"} == set(answer)
        assert [models] == answer["model_groups"]
    shown = read(admin, team)
    assert ([models], [access]) == (shown["model_groups"], shown["access_groups"])
    refused(admin.put(path(team, "/access-groups"), json=["nope"]), 404, "not_found")
    assert "value_error.missing" == invalid(admin.put(path(team, "/access-groups"), json={}), "body", "access_groups")


def test_the_markup_can_be_changed_with_the_budget(admin: httpx.Client, team: TestTeam) -> None:
    body = {"cost_markup_percentage": 0.075, "budget_mode": "consumption_usd", "credits_per_dollar": 100}
    answer = admin.patch(path(team, "/markup"), json=body)
    shown = ok(answer)
    assert body == {name: shown[name] for name in body}
    assert '"cost_markup_percentage":0.075,' in answer.text
    shown = ok(admin.patch(path(team, "/markup"), json={"cost_markup_percentage": 20}))
    assert (20, "consumption_usd", 100) == tuple(shown[name] for name in body)
    invalid(admin.patch(path(team, "/markup"), json={}), "body", "cost_markup_percentage")


# -- status ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_status_changes_take_no_body_and_may_be_repeated(admin: httpx.Client, team: TestTeam, method: str) -> None:
    for action, status in (("suspend", "suspended"), ("pause", "paused"), ("resume", "active")):
        for body in (None, {}, {"reason": "because"}):
            answer = ok(admin.request(method, path(team, f"/{action}"), json=body))
            assert (team.team_id, status) == (answer["team_id"], answer["status"])
            assert status in answer["message"]
        assert status == read(admin, team)["status"]
    refused(admin.request(method, "/api/teams/nope/suspend"), 404, "not_found")


@pytest.mark.parametrize("action,status,code", [("suspend", 403, "team_suspended"), ("pause", 429, "team_paused")])
def test_a_team_that_may_not_act_may_read(
    admin: httpx.Client, team: TestTeam, action: str, status: int, code: str
) -> None:
    job_id = team.job()
    ok(admin.post(path(team, f"/{action}")))
    body = {"team_id": team.team_id, "job_type": "test"}
    answer = refused(team.client.post("/api/jobs/create", json=body), status, code)
    assert "credit" not in answer["detail"]
    for url in (path(team), path(team, "/usage"), path(team, "/keys"), path(team, "/jobs"), f"/api/jobs/{job_id}"):
        ok(team.client.get(url))
    ok(admin.post(path(team, "/resume")))
    team.job()


# -- delete ------------------------------------------------------------------------------------------------------------


def test_a_deleted_team_leaves_its_history(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    jobs = [team.job() for _ in range(3)]
    ok(team.client.post(f"/api/jobs/{jobs[0]}/complete", json={"status": "completed"}))
    answer = ok(admin.delete(path(team)))
    assert {"team_id", "message"} == set(answer)
    assert 401 == team.client.get(path(team)).status_code
    shown = read(admin, team)
    assert ("inactive", None, 99, 3) == (
        shown["status"],
        shown["virtual_key"],
        shown["credits_remaining"],
        shown["usage_summary"]["total_jobs"],
    )
    assert ["completed", "cancelled", "cancelled"] == [
        ok(admin.get(f"/api/jobs/{job_id}"))["status"] for job_id in jobs
    ]
    closed = refused(admin.post(f"/api/jobs/{jobs[1]}/complete", json={"status": "completed"}), 400, "job_closed")
    assert "cancelled" == closed["status"]
    ok(admin.delete(path(team)))  # a repeat is answered
    refused(admin.put(path(team), json={"team_alias": "x"}), 404, "not_found")
    refused(admin.post(path(team, "/resume")), 404, "not_found")


def test_more_open_jobs_than_one_page_are_cancelled_with_their_team(
    database: str, admin: httpx.Client, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.teams.ORPHANS_AT_ONCE", 2)
    with running(database) as server, server.client() as client:
        team = make_team(server, client)
        jobs = [team.job() for _ in range(7)]
        ok(client.delete(path(team)))
        assert {"cancelled"} == {ok(client.get(f"/api/jobs/{job_id}"))["status"] for job_id in jobs}


def test_jobs_that_a_deleted_team_left_open_are_found_later(
    database: str, runner: Callable[[Coroutine[Any, Any, list[str]]], list[str]]
) -> None:
    async def statuses() -> list[str]:
        async with open_house(settings_for(database), database) as house:
            who: dict[str, Any] = {"at": datetime.now(UTC), "by": "master", "request": "1"}
            organization = CreateOrganization(**who, organization_id="acme", name="Acme", metadata={})
            await house.ledger.carry_out(create_organization, organization, ORGANIZATION.stream("acme"))
            team = CreateTeam(
                **who,
                team_id="red",
                organization_id="acme",
                metadata={},
                key_id=str(uuid4()),
                key_hash="0" * 64,
                key_masked="sk-...",
                transaction_id=str(uuid4()),
            )
            await house.ledger.carry_out(create_team, team, *creation_streams(team))
            jobs = [str(uuid4()) for _ in range(3)]
            for job_id in jobs:
                job = CreateJob(**who, job_id=job_id, team_id="red", job_type="test", metadata={})
                await house.ledger.carry_out(create_job, job, JOB.stream(job_id), TEAM.stream("red"))
            # and here the process died, before it had cancelled the jobs
            streams = TEAM.stream("red"), ORGANIZATION.stream("acme"), THE_CATALOG
            deleted = await house.ledger.carry_out(delete_team, DeleteTeam(**who), *streams)
            await house.progress.reach(deleted.position, timeout_s=PATIENCE_SECONDS)
            await cancel_orphans(house)
            assert 0 == await cancel_orphans(house)
            return [job.status for job in (await house.ledger.read(*map(JOB.stream, jobs))).states]

    assert ["cancelled"] * 3 == runner(statuses())


def test_holds_of_a_deleted_team_are_released(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    alias = make_alias(admin, provider)
    team = make_team(server, admin)
    call = {"model": alias, "messages": [{"role": "user", "content": "hi"}]}
    ok(team.client.post(f"/api/jobs/{team.job()}/llm-call", json=call))
    assert 1 == read(admin, team)["credits_held"]
    ok(admin.delete(path(team)))
    shown = read(admin, team)
    assert (0, 100) == (shown["credits_held"], shown["credits_remaining"])


def test_a_default_team_cannot_be_deleted(admin: httpx.Client) -> None:
    organization_id = f"org-{uuid4().hex[:8]}"
    body = {"organization_id": organization_id, "name": "Test", "create_default_team": True}
    made = ok(admin.post("/api/organizations/create", json=body))
    refused(admin.delete(f"/api/teams/{made['default_team']['team_id']}"), 400, "protected")
    refused(admin.delete("/api/teams/no-such-team"), 404, "not_found")
