"""What administrators did, read back: every write, by whom, about what, and nothing secret."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from domain.streams import CATEGORIES
from projections.audit_log import ACTIONS, CONSEQUENCES, ENTRIES
from tests.api.conftest import Server, make_team, running
from tests.api.people import PASSWORD, Person, add, code, enter, set_up, unused_email
from tests.conftest import _database_on
from tests.provider import FakeProvider

LOG = "/api/admin-users/audit-logs"
USERS = "/api/admin-users"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@dataclass(frozen=True)
class House:
    server: Server
    admin: httpx.Client
    owner: Person


@pytest.fixture(scope="module")
def house(owner_dsn: str, template: str) -> Iterator[House]:
    with (
        _database_on(owner_dsn, f"log_{uuid4().hex[:8]}", template) as dsn,
        running(dsn, webhook_allow_private=True) as server,
    ):
        yield House(server, server.client(), set_up(server))


def entries(house: House, **filters: Any) -> list[dict[str, Any]]:
    """The whole log, as the owner reads it."""
    answer = house.owner.client.get(LOG, params={"limit": 1000, **filters})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    assert len(found) == int(answer.headers["X-Total-Count"])
    return found


def told(house: House, request: httpx.Response) -> list[dict[str, Any]]:
    """What the log says about one request, in the order of the journal."""
    return [each for each in entries(house) if each["request_id"] == request.headers["X-Request-Id"]][::-1]


def a_name(kind: str) -> str:
    return f"{kind}-{uuid4().hex[:8]}"


# -- every write leaves an entry ---------------------------------------------------------------------------------------


def test_every_kind_of_event_is_an_entry_or_the_consequence_of_one() -> None:
    known = {event for category in CATEGORIES.values() for event in category.events}
    assert known == ENTRIES.keys() | CONSEQUENCES
    assert not ENTRIES.keys() & CONSEQUENCES


def test_every_write_of_an_administrator_leaves_an_entry_and_no_secret(house: House, provider: FakeProvider) -> None:
    person = add(house.owner, house.server, "admin")
    org, team, alias, access, group = map(a_name, ("org", "team", "alias", "access", "group"))
    key, api_key, auth = f"sk-chosen-{uuid4().hex}", f"sk-provider-{uuid4().hex}", f"Bearer {uuid4().hex}"
    ids: dict[str, str] = {}

    def write(method: str, path: str, body: Any, *expected: tuple[str, str, str]) -> Any:
        answer = person.client.request(method, path, json=body)
        assert answer.status_code in (200, 201), (path, answer.text)
        found = told(house, answer)
        assert list(expected) == [(each["action"], each["resource_type"], each["resource_id"]) for each in found], path
        for each in found:
            assert (person.user_id, person.user_id) == (each["user_id"], each["actor"])
            assert TIMESTAMP.fullmatch(each["created_at"])
            assert each["audit_id"]
            assert each["ip_address"] is None
        return answer.json()

    write("POST", "/api/organizations/create", {"organization_id": org, "name": "O"},
          ("created_organization", "organization", org))  # fmt: skip
    write("PUT", f"/api/organizations/{org}", {"name": "Oh"}, ("updated_organization", "organization", org))
    write("POST", f"/api/organizations/{org}/suspend", {}, ("suspended_organization", "organization", org))
    write("POST", f"/api/organizations/{org}/suspend", {})  # once more changes nothing, and so tells nothing
    write("PUT", f"/api/organizations/{org}/pause", {}, ("paused_organization", "organization", org))
    write("POST", f"/api/organizations/{org}/resume", {}, ("resumed_organization", "organization", org))
    prices = {"pricing_input": 0.075, "pricing_output": 1e-7}
    target = {"provider": "openai", "actual_model": "gpt-ok", "api_base": provider.url}
    write("POST", "/api/model-aliases/create", {"alias": alias, **target, "api_key": api_key, **prices},
          ("created_model_alias", "model_alias", alias))  # fmt: skip
    write("PUT", f"/api/models/{alias}", {"description": "Good"}, ("updated_model_alias", "model_alias", alias))
    write("POST", "/api/model-access-groups/create", {"group_name": access, "model_aliases": [alias]},
          ("created_access_group", "access_group", access))  # fmt: skip
    write("PUT", f"/api/model-access-groups/{access}", {"description": "All"},
          ("updated_access_group", "access_group", access))  # fmt: skip
    write("POST", "/api/model-groups/create", {"group_name": group, "models": [alias]},
          ("created_model_group", "model_group", group))  # fmt: skip
    write("PUT", f"/api/model-groups/{group}", {"description": "One"}, ("updated_model_group", "model_group", group))
    made = person.client.post(
        "/api/teams/create",
        json={"organization_id": org, "team_id": team, "credits_allocated": 50, "virtual_key": key, "rpm_limit": 9},
    )
    ids["key"] = made.json()["key_id"]
    actions = {each["action"]: each for each in told(house, made)}
    assert {"created_team", "created_key", "set_limits", "added_credits"} <= actions.keys()
    assert ("virtual_key", ids["key"]) == tuple(
        actions["created_key"][name] for name in ("resource_type", "resource_id")
    )
    assert 50 == actions["added_credits"]["details"]["credits"]
    write("PUT", f"/api/teams/{team}", {"team_alias": "T"}, ("updated_team", "team", team))
    write("PUT", f"/api/teams/{team}", {"rpm_limit": 5}, ("set_limits", "team", team))
    write("PUT", f"/api/teams/{team}", {"credits_allocated": 40}, ("adjusted_credits", "credits", team))
    write("PATCH", f"/api/teams/{team}/markup", {"cost_markup_percentage": 12.5}, ("set_budget", "team", team))
    write("PUT", f"/api/teams/{team}/access-groups", [access], ("assigned_models", "team", team))
    write("POST", f"/api/teams/{team}/suspend", {"reason": "late"}, ("suspended_team", "team", team))
    write("POST", f"/api/teams/{team}/resume", {}, ("resumed_team", "team", team))
    write("POST", f"/api/teams/{team}/pause", {}, ("paused_team", "team", team))
    write("POST", f"/api/teams/{team}/resume", {}, ("resumed_team", "team", team))
    write("POST", "/api/credits/add", {"team_id": team, "amount": 7}, ("added_credits", "credits", team))
    payment = {"credits": 5, "payment_type": "one_time", "payment_amount_usd": 9.9}
    write("POST", f"/api/credits/teams/{team}/replenish", payment, ("added_credits", "credits", team))
    refill = {"enabled": True, "refill_amount": 5, "refill_period": "daily"}
    write("POST", f"/api/credits/teams/{team}/configure-auto-refill", refill, ("set_auto_refill", "team", team))
    write("DELETE", f"/api/teams/{team}/keys/{ids['key']}", None, ("revoked_key", "virtual_key", ids["key"]))

    for path, body, action, resource, field in (
        ("/api/provider-credentials/create",
         {"organization_id": org, "provider": "openai", "credential_name": "main", "api_key": api_key},
         "created_credential", "provider_credential", "credential_id"),
        ("/api/webhooks/register",
         {"team_id": team, "webhook_url": provider.url, "events": ["job.completed"], "auth_header": auth},
         "created_webhook", "webhook", "webhook_id"),
    ):  # fmt: skip
        answer = person.client.post(path, json=body)
        assert answer.status_code == 201, answer.text
        ids[resource] = answer.json()[field]
        (entry,) = told(house, answer)
        assert (action, resource, ids[resource]) == (entry["action"], entry["resource_type"], entry["resource_id"])
    credential = f"/api/provider-credentials/{ids['provider_credential']}"
    for method, path, body, action in (
        ("PUT", credential, {"credential_name": "second", "api_key": api_key + "2"}, "updated_credential"),
        ("POST", f"{credential}/deactivate", {}, "deactivated_credential"),
        ("POST", f"{credential}/activate", {}, "activated_credential"),
        ("DELETE", credential, None, "deleted_credential"),
    ):
        write(method, path, body, (action, "provider_credential", ids["provider_credential"]))
    webhook = f"/api/webhooks/{ids['webhook']}"
    secret = write("POST", f"{webhook}/rotate-secret", {}, ("rotated_webhook_secret", "webhook", ids["webhook"]))[
        "secret"
    ]
    write("PUT", webhook, {"events": ["job.failed"]}, ("updated_webhook", "webhook", ids["webhook"]))
    write("PUT", webhook, {"is_active": False}, ("disabled_webhook", "webhook", ids["webhook"]))
    write("PUT", webhook, {"is_active": True}, ("enabled_webhook", "webhook", ids["webhook"]))
    write("DELETE", webhook, None, ("deleted_webhook", "webhook", ids["webhook"]))

    job = person.client.post("/api/jobs/create", json={"team_id": team, "job_type": "t"})
    ids["job"] = job.json()["job_id"]
    assert ["created_job"] == [each["action"] for each in told(house, job)]
    call = {"messages": [{"role": "user", "content": "a very private prompt"}], "model": alias}
    write("POST", f"/api/jobs/{ids['job']}/llm-call", call, ("called_model", "job", ids["job"]))
    write("PATCH", f"/api/jobs/{ids['job']}/metadata", {"metadata": {"a": 1}}, ("updated_job", "job", ids["job"]))
    write("POST", f"/api/jobs/{ids['job']}/complete", {"status": "completed"}, ("completed_job", "job", ids["job"]))
    write("POST", f"/api/credits/teams/{team}/refund", {"job_id": ids["job"]}, ("refunded_credits", "credits", team))
    for path, body, action in (("complete", {"status": "failed"}, "failed_job"), ("cancel", {}, "cancelled_job")):
        other = person.client.post("/api/jobs/create", json={"team_id": team, "job_type": "t"}).json()["job_id"]
        write("POST", f"/api/jobs/{other}/{path}", body, (action, "job", other))

    write("DELETE", f"/api/teams/{team}", None, ("deleted_team", "team", team))
    for path, action, resource, name in (
        ("model-groups", "deleted_model_group", "model_group", group),
        ("model-access-groups", "deleted_access_group", "access_group", access),
        ("model-aliases", "deleted_model_alias", "model_alias", alias),
        ("organizations", "deleted_organization", "organization", org),
    ):
        write("DELETE", f"/api/{path}/{name}", None, (action, resource, name))

    log = house.owner.client.get(LOG, params={"limit": 1000}).text
    for hidden in (key, api_key, auth, secret, PASSWORD, person.token, "private prompt"):
        assert hidden not in log
        assert hashlib.sha256(hidden.encode()).hexdigest() not in log
    for name in ("secret_id", "password_id", "session", "key_hash", "auth_header"):
        assert name not in log
    assert '"input_usd_per_million": 0.075' in log or '"pricing_input": 0.075' in log
    assert '"pricing_output": 0.0000001' in log


def test_what_administrators_do_to_each_other_leaves_entries(house: House) -> None:
    body = {"email": unused_email(), "display_name": "Ursula", "password": PASSWORD}
    user_id = house.owner.client.post(USERS, json=body).json()["user_id"]
    url = f"{USERS}/{user_id}"
    house.owner.client.put(url, json={"display_name": "Ulla", "role": "auditor"})
    house.owner.client.post(f"{url}/deactivate")
    house.owner.client.post(f"{url}/activate")
    user = enter(house.server, body["email"])
    user.client.post(f"{USERS}/me/change-password", json={"current_password": PASSWORD, "new_password": "new password"})
    user.client.post(f"{USERS}/logout")
    house.owner.client.put(f"{url}/reset-password", json={"new_password": "newer password"})
    house.owner.client.delete(url)
    found = [each for each in entries(house, resource_type="admin_user") if each["resource_id"] == user_id][::-1]
    owner, details = house.owner.user_id, [(each["action"], each["user_id"], each["details"]) for each in found]
    assert [
        ("created_user", owner, {"email": body["email"], "display_name": "Ursula", "metadata": {}, "role": "user"}),
        ("updated_user", owner, {"display_name": "Ulla", "metadata": {}}),
        ("updated_user", owner, {"role": "auditor"}),
        ("updated_user", owner, {"is_active": False}),
        ("updated_user", owner, {"is_active": True}),
        ("login", user_id, details[5][2]),
        ("changed_password", user_id, {}),
        ("logout", user_id, {}),
        ("changed_password", owner, {}),
        ("deleted_user", owner, {}),
    ] == details
    assert TIMESTAMP.fullmatch(details[5][2]["expires_at"])
    assert ["127.0.0.1"] == [each["ip_address"] for each in found if each["action"] == "login"]


def test_the_setup_of_the_first_owner_is_the_first_entry(house: House) -> None:
    first, second = entries(house)[:-3:-1]
    assert ("setup_owner", house.owner.user_id, house.owner.user_id, "127.0.0.1") == tuple(
        first[name] for name in ("action", "user_id", "resource_id", "ip_address")
    )
    assert "login" == second["action"]


def test_the_master_key_is_nobody_in_person(house: House) -> None:
    org = a_name("org")
    answer = house.admin.post("/api/organizations/create", json={"organization_id": org, "name": "O"})
    (entry,) = told(house, answer)
    assert (None, "master", org) == (entry["user_id"], entry["actor"], entry["resource_id"])


def test_what_teams_and_services_do_with_their_jobs_is_no_act_of_an_administrator(
    house: House, provider: FakeProvider
) -> None:
    team = make_team(house.server, house.admin)
    body = {"team_id": team.team_id, "webhook_url": provider.url, "events": ["job.completed"]}
    answers = [team.client.post("/api/webhooks/register", json=body)]
    for client in (team.client, house.admin):
        job = client.post("/api/jobs/create", json={"team_id": team.team_id, "job_type": "t"})
        ended = client.post(f"/api/jobs/{job.json()['job_id']}/complete", json={"status": "completed"})
        answers += [job, ended]
    assert [[]] * 5 == [told(house, answer) for answer in answers]


# -- reading it --------------------------------------------------------------------------------------------------------


def test_the_log_is_filtered_by_action_user_resource_and_time(house: House) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    person = add(house.owner, house.server, "admin")
    org = a_name("org")
    person.client.post("/api/organizations/create", json={"organization_id": org, "name": "O"})
    mine = entries(house, user_id=person.user_id)
    assert ["created_organization", "login"] == [each["action"] for each in mine]
    assert mine == entries(house, user_id=person.user_id.upper())
    assert mine[:1] == entries(house, user_id=person.user_id, action="CREATED_organization")
    assert mine[:1] == entries(house, user_id=person.user_id, resource_type="Organization")
    assert mine == entries(house, user_id=person.user_id, start_date=before.isoformat())
    assert [] == entries(house, user_id=person.user_id, end_date=before.isoformat())
    assert mine == entries(house, user_id=person.user_id, end_date=datetime.now(UTC).date().isoformat())
    assert [] == entries(house, user_id=str(uuid4()))
    assert {"login"} == {each["action"] for each in entries(house, action="login")}


@pytest.mark.parametrize(
    "query, kind",
    [
        ({"action": "danced"}, "value_error.enum"),
        ({"resource_type": "planet"}, "value_error.enum"),
        ({"user_id": "no-uuid"}, "value_error.format"),
        ({"start_date": "yesterday"}, "value_error.format"),
        ({"limit": 0}, "value_error.range"),
        ({"limit": 1001}, "value_error.range"),
        ({"offset": -1}, "value_error.range"),
    ],
)
def test_what_cannot_be_asked_is_said(house: House, query: dict[str, Any], kind: str) -> None:
    answer = house.owner.client.get(LOG, params=query)
    (item,) = answer.json()["detail"]
    assert (422, ["query", *query], kind) == (answer.status_code, item["loc"], item["type"])


def test_pages_are_full_and_neither_repeat_nor_skip(house: House) -> None:
    for _ in range(3):
        house.admin.post("/api/organizations/create", json={"organization_id": a_name("org"), "name": "O"})
    everything = entries(house)
    paged = []
    for offset in range(0, len(everything), 4):
        answer = house.owner.client.get(LOG, params={"limit": 4, "offset": offset})
        assert str(len(everything)) == answer.headers["X-Total-Count"]
        paged += answer.json()
    assert everything == paged
    moments = [each["created_at"] for each in everything]
    assert sorted(moments, reverse=True) == moments


def test_auditors_admins_and_owners_read_it_and_nobody_else(house: House) -> None:
    for role, status in (("owner", 200), ("admin", 200), ("auditor", 200), ("user", 403)):
        person = add(house.owner, house.server, role)
        assert status == person.client.get(LOG).status_code
    assert (403, "role_forbidden") == code(person.client.get(LOG))
    assert (403, "jwt_required") == code(house.admin.get(LOG))


def test_the_contracts_own_actions_are_among_the_known_ones() -> None:
    named = {"setup_owner", "login", "logout", "created_user", "updated_user", "deleted_user", "changed_password"}
    assert named <= set(ACTIONS)
