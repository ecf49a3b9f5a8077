"""Provider credentials over HTTP: kept encrypted, used for calls, and never shown again."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team, running
from tests.api.world import everything_in
from tests.provider import FakeProvider
from tests.waiting import until

URL = "/api/provider-credentials"


def a_name(kind: str = "credential") -> str:
    return f"{kind}-{uuid4().hex[:8]}"


@pytest.fixture
def organization(admin: httpx.Client) -> str:
    organization_id = a_name("org")
    answer = admin.post("/api/organizations/create", json={"organization_id": organization_id, "name": "Test"})
    assert 200 == answer.status_code, answer.text
    return organization_id


def create(admin: httpx.Client, organization_id: str, **body: Any) -> httpx.Response:
    chosen = {"provider": "openai", "credential_name": a_name(), "api_key": "sk-of-the-organization", **body}
    return admin.post(f"{URL}/create", json={"organization_id": organization_id, **chosen})


def created(admin: httpx.Client, organization_id: str, **body: Any) -> dict[str, Any]:
    answer = create(admin, organization_id, **body)
    assert 201 == answer.status_code, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(answer: httpx.Response) -> list[str]:
    assert 200 == answer.status_code, answer.text
    return [each["credential_id"] for each in answer.json()]


def key_used(team: TestTeam, model: str, provider: FakeProvider) -> str:
    """The key that a call of the team arrives with at the provider."""
    ask = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    answer = team.client.post(f"/api/jobs/{team.job()}/llm-call", json=ask)
    assert 200 == answer.status_code, answer.text
    return provider.last.headers["Authorization"].removeprefix("Bearer ")


# -- keeping them ------------------------------------------------------------------------------------------------------


def test_a_credential_gives_back_all_but_its_key(admin: httpx.Client, organization: str) -> None:
    name = a_name()
    body = {"credential_name": name, "api_base": "http://127.0.0.1:9/v1", "created_by": "ada"}
    made = created(admin, organization, **body)
    assert made == admin.get(f"{URL}/{made['credential_id']}").json()
    times = made.pop("created_at"), made.pop("updated_at")
    assert times[0] == times[1]
    assert made.pop("credential_id")
    assert {
        "organization_id": organization,
        "provider": "openai",
        "credential_name": name,
        "api_base": "http://127.0.0.1:9/v1",
        "is_active": True,
        "has_api_key": True,
        "created_by": "ada",
        "updated_by": None,
    } == made


@pytest.mark.parametrize("field", ["organization_id", "provider", "credential_name", "api_key"])
def test_what_a_credential_is_made_of_is_required(admin: httpx.Client, field: str) -> None:
    body = {"organization_id": "x", "provider": "openai", "credential_name": "x", "api_key": "x"}
    del body[field]
    answer = admin.post(f"{URL}/create", json=body)
    (item,) = answer.json()["detail"]
    assert (422, ["body", field], "value_error.missing") == (answer.status_code, item["loc"], item["type"])


@pytest.mark.parametrize(
    "body,loc",
    [
        ({"api_key": ""}, "api_key"),
        ({"api_key": "x" * 4097}, "api_key"),
        ({"api_base": "x" * 501}, "api_base"),
        ({"api_base": "file:///etc/passwd"}, "api_base"),
        ({"credential_name": "x" * 256}, "credential_name"),
    ],
)
def test_a_bad_value_is_answered_with_its_place_and_without_the_value(
    admin: httpx.Client, organization: str, body: dict[str, Any], loc: str
) -> None:
    answer = create(admin, organization, **body)
    assert (422, ["body", loc]) == (answer.status_code, answer.json()["detail"][0]["loc"])
    assert "xxxxx" not in answer.text


def test_a_name_is_taken_within_its_organization_and_provider(admin: httpx.Client, organization: str) -> None:
    name = created(admin, organization, provider="fireworks")["credential_name"]
    again = create(admin, organization, provider="fireworks_ai", credential_name=name)
    assert (400, "already_exists") == (again.status_code, again.json()["code"])
    created(admin, organization, provider="openai", credential_name=name)


def test_unknown_providers_and_organizations_are_refused(admin: httpx.Client, organization: str) -> None:
    answer = create(admin, organization, provider="nobody")
    assert (400, "invalid_value", "provider") == (answer.status_code, answer.json()["code"], answer.json()["field"])
    for request in (
        create(admin, a_name("org")),
        admin.get(f"{URL}/organization/{a_name('org')}"),
        admin.get(f"{URL}/organization/{a_name('org')}/provider/openai"),
        admin.get(f"{URL}/organization/%00"),
    ):
        assert (404, "organization") == (request.status_code, request.json()["resource"])


@pytest.mark.parametrize("credential_id", ["7f6b3a52-0000-4000-8000-000000000000", "no-uuid"])
def test_an_unknown_credential_is_not_found(admin: httpx.Client, credential_id: str) -> None:
    url = f"{URL}/{credential_id}"
    for method, path in (
        ("GET", url),
        ("PUT", url),
        ("DELETE", url),
        ("POST", f"{url}/activate"),
        ("PUT", f"{url}/deactivate"),
    ):
        answer = admin.request(method, path, json={} if method == "PUT" else None)
        assert (404, "provider_credential") == (answer.status_code, answer.json()["resource"])


def test_credentials_are_for_administrators(team: TestTeam, admin: httpx.Client) -> None:
    url = f"{URL}/{created(admin, team.organization_id)['credential_id']}"
    for method, path in (
        ("GET", URL),
        ("GET", url),
        ("GET", f"{URL}/organization/{team.organization_id}"),
        ("POST", f"{URL}/create"),
        ("PUT", url),
        ("POST", f"{url}/activate"),
        ("DELETE", url),
    ):
        answer = team.client.request(method, path, json={} if method != "GET" else None)
        assert (403, "admin_required") == (answer.status_code, answer.json()["code"])


def test_a_change_leaves_alone_what_it_does_not_speak_of(admin: httpx.Client, organization: str) -> None:
    before = created(admin, organization, api_base="http://127.0.0.1:9/v1")
    url = f"{URL}/{before['credential_id']}"
    name = a_name()
    after = admin.put(url, json={"credential_name": name, "api_key": None, "updated_by": "bob"}).json()
    expected = {"credential_name": name, "updated_by": "bob", "updated_at": after["updated_at"]}
    assert {**before, **expected} == after == admin.get(url).json()
    assert admin.put(url, json={"api_base": ""}).json()["api_base"] is None
    taken = created(admin, organization)["credential_name"]
    refused = admin.put(url, json={"credential_name": taken, "api_key": "sk-never-kept"})
    assert (400, "already_exists") == (refused.status_code, refused.json()["code"])
    assert not admin.put(url, json={"is_active": False}).json()["is_active"]


def test_switching_twice_is_switching_once(admin: httpx.Client, organization: str) -> None:
    made = created(admin, organization)
    url = f"{URL}/{made['credential_id']}"
    for method, switch, is_active in (
        ("POST", "deactivate", False),
        ("PUT", "deactivate", False),
        ("PUT", "activate", True),
        ("POST", "activate", True),
    ):
        answer = admin.request(method, f"{url}/{switch}")
        assert (200, is_active) == (answer.status_code, answer.json()["is_active"])
        assert answer.json().pop("message")
        assert is_active == admin.get(url).json()["is_active"]


def test_a_deleted_credential_is_gone_with_its_key(server: Server, admin: httpx.Client, organization: str) -> None:
    def kept() -> int:
        with psycopg.connect(server.dsn) as connection:
            return len(connection.execute("select from app.secrets").fetchall())

    before = kept()
    made = created(admin, organization)
    url = f"{URL}/{made['credential_id']}"
    assert 200 == admin.put(url, json={"api_key": "sk-another"}).status_code
    assert before + 1 == kept(), "a replaced key is forgotten"
    deleted = admin.delete(url)
    assert (200, made["credential_id"]) == (deleted.status_code, deleted.json()["credential_id"])
    assert before == kept()
    assert 404 == admin.get(url).status_code
    created(admin, organization, credential_name=made["credential_name"])


def test_every_filter_works_in_every_list(admin: httpx.Client, organization: str) -> None:
    names = sorted(a_name() for _ in range(3))
    one = created(admin, organization, credential_name=names[1], provider="fireworks")["credential_id"]
    two = created(admin, organization, credential_name=names[0], provider="groq")["credential_id"]
    off = created(admin, organization, credential_name=names[2], provider="fireworks_ai")["credential_id"]
    admin.post(f"{URL}/{off}/deactivate")
    mine = f"{URL}?organization_id={organization}"
    assert [two, one] == ids(admin.get(mine))
    assert [two, one, off] == ids(admin.get(f"{mine}&active_only=false"))
    assert [one, off] == ids(admin.get(f"{mine}&active_only=false&provider=Fireworks"))
    assert [one] == ids(admin.get(f"{mine}&provider=fireworks_ai"))
    assert [] == ids(admin.get(f"{mine}&provider=openai"))
    assert one in ids(admin.get(f"{URL}?provider=fireworks&limit=1000"))
    assert [two, one, off] == ids(admin.get(f"{URL}/organization/{organization}"))
    assert [one] == ids(admin.get(f"{URL}/organization/{organization}/provider/fireworks"))
    assert [] == ids(admin.get(f"{URL}/organization/{organization}/provider/nobody"))
    page = admin.get(f"{mine}&limit=1&offset=1")
    assert ([one], "2") == (ids(page), page.headers["X-Total-Count"])
    for query, name in (("active_only=maybe", "active_only"), ("limit=0", "limit")):
        refused = admin.get(f"{URL}?{query}")
        assert (422, ["query", name]) == (refused.status_code, refused.json()["detail"][0]["loc"])


def test_a_repeat_with_the_same_key_makes_one_credential(admin: httpx.Client, organization: str) -> None:
    body = {
        "organization_id": organization,
        "provider": "openai",
        "credential_name": a_name(),
        "api_key": "sk-once",
    }
    headers = {"Idempotency-Key": str(uuid4())}
    first, second = (admin.post(f"{URL}/create", json=body, headers=headers) for _ in range(2))
    assert (201, 201) == (first.status_code, second.status_code)
    assert first.json() == second.json()
    assert 1 == len(ids(admin.get(f"{URL}/organization/{organization}")))


# -- using them --------------------------------------------------------------------------------------------------------


def test_the_credential_activated_last_is_used(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    team = make_team(server, admin)
    model = make_alias(admin, provider, api_key=None)
    first = created(admin, team.organization_id, api_key="sk-first")["credential_id"]
    assert "sk-first" == key_used(team, model, provider)
    second = created(admin, team.organization_id, api_key="sk-second")["credential_id"]
    assert "sk-second" == key_used(team, model, provider)
    admin.post(f"{URL}/{first}/activate")
    assert "sk-first" == key_used(team, model, provider)
    admin.put(f"{URL}/{first}", json={"api_key": "sk-first-renewed"})
    assert "sk-first-renewed" == key_used(team, model, provider)
    admin.post(f"{URL}/{first}/deactivate")
    assert "sk-second" == key_used(team, model, provider)
    admin.delete(f"{URL}/{second}")
    created(admin, make_team(server, admin).organization_id, api_key="sk-foreign")
    assert "sk-foreign" not in call_headers(team, model, provider)


def call_headers(team: TestTeam, model: str, provider: FakeProvider) -> str:
    ask = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    team.client.post(f"/api/jobs/{team.job()}/llm-call", json=ask)
    return str(provider.last.headers)


def test_an_aliass_own_key_comes_before_the_credential_it_names_and_that_before_all_others(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    team = make_team(server, admin)
    named = created(admin, team.organization_id, api_key="sk-named")
    created(admin, team.organization_id, api_key="sk-newer")
    model = make_alias(admin, provider, api_key=None, credential_name=named["credential_name"])
    assert "sk-named" == key_used(team, model, provider)
    other = make_team(server, admin)
    created(admin, other.organization_id, api_key="sk-of-another-organization")
    assert "sk-of-another-organization" == key_used(other, model, provider)
    admin.post(f"{URL}/{named['credential_id']}/deactivate")
    assert "sk-newer" == key_used(team, model, provider)
    admin.put(f"/api/models/{model}", json={"api_key": "sk-own"})
    assert "sk-own" == key_used(team, model, provider)


def test_an_address_goes_with_its_key_and_a_key_to_no_other_address(
    server: Server, admin: httpx.Client, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    team = make_team(server, admin)
    created(admin, team.organization_id, api_key="sk-there", api_base=provider.url)
    assert "sk-there" == key_used(team, make_alias(admin, provider, api_key=None, api_base=None), provider)
    before = provider.calls.total()
    own = make_alias(admin, provider, api_key="sk-own", api_base=None)
    ask = {"model": own, "messages": [{"role": "user", "content": "hi"}]}
    assert 500 == team.client.post(f"/api/jobs/{team.job()}/llm-call", json=ask).status_code
    assert before == provider.calls.total()


def test_without_any_key_the_environments_is_used(
    server: Server, admin: httpx.Client, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = make_team(server, admin)
    model = make_alias(admin, provider, api_key=None, api_base=None)
    admin.put(f"/api/models/{model}", json={"provider": "openrouter"})
    for variable in ("OPENROUTER_API_KEY", "OR_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    ask = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    answer = team.client.post(f"/api/jobs/{team.job()}/llm-call", json=ask)
    assert (503, "provider_not_configured") == (answer.status_code, answer.json()["code"])
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-environment")
    monkeypatch.setenv("OPENROUTER_API_BASE", provider.url)
    assert "sk-environment" == key_used(team, model, provider)


def test_a_key_that_cannot_be_read_falls_back_to_the_next_model(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    broken, sound = make_alias(admin, provider, api_key="sk-broken"), make_alias(admin, provider, api_key="sk-sound")
    (secret_id,) = _secret_of(server, broken)
    with psycopg.connect(server.dsn) as connection:
        connection.execute("delete from app.secrets where secret_id = %s", [secret_id])
    group = a_name("models")
    admin.post("/api/model-groups/create", json={"group_name": group, "models": [broken, sound]})
    team = make_team(server, admin, model_groups=[group])
    assert "sk-sound" == key_used(team, group, provider)


def test_a_key_that_is_replaced_while_a_call_is_under_way_is_found(database: str, provider: FakeProvider) -> None:
    with running(database, llm_timeout_seconds=4) as server, ThreadPoolExecutor(1) as pool:
        admin = server.client()
        late = make_alias(admin, provider, api_key="sk-before")
        group = a_name("models")
        body = {"group_name": group, "models": [make_alias(admin, provider, "hang"), late]}
        assert 200 == admin.post("/api/model-groups/create", json=body).status_code
        team = make_team(server, admin, model_groups=[group])
        hanging = provider.calls["hang"]
        used = pool.submit(key_used, team, group, provider)
        provider.until(lambda seen: seen.calls["hang"] > hanging)
        assert 200 == admin.put(f"/api/models/{late}", json={"api_key": "sk-after"}).status_code
        assert "sk-after" == used.result()


def _secret_of(server: Server, alias: str) -> list[str]:
    with psycopg.connect(server.dsn) as connection:
        rows = connection.execute("select convert_from(state, 'utf8')::jsonb from journal.events").fetchall()
    return [
        row["terms"]["secret_id"] for (row,) in rows if row.get("model_alias") == alias and row.get("terms") is not None
    ]


def test_another_process_learns_of_a_rotation(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    team = make_team(server, admin, credits=100_000)  # a look costs one
    model = make_alias(admin, provider, api_key=None)
    first = created(admin, team.organization_id, api_key="sk-first")["credential_id"]
    with running(server.dsn) as other:
        there = TestTeam(team.organization_id, team.team_id, team.key, other.client(team.key))
        assert "sk-first" == key_used(there, model, provider)
        admin.put(f"{URL}/{first}", json={"api_key": "sk-renewed"})
        until(lambda: "sk-renewed" == key_used(there, model, provider))


# -- and never showing them --------------------------------------------------------------------------------------------

KEYS = ("sk-alias-secret-5f1c", "sk-alias-secret-9d2e", "sk-credential-secret-77aa", "sk-credential-secret-31bb")


def test_no_key_is_in_any_answer_log_or_table(
    database: str, provider: FakeProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = []

    def noted(answer: httpx.Response) -> httpx.Response:
        texts.append(f"{answer.text} {answer.headers}")
        return answer

    with running(database, log_level="debug") as server:
        admin = server.client()
        team = make_team(server, admin)
        alias = make_alias(admin, provider, "leaky-error", api_key=KEYS[0])
        answer = noted(create(admin, team.organization_id, api_key=KEYS[2], api_base=provider.url))
        credential = answer.json()["credential_id"]
        model = make_alias(admin, provider, "leaky-error", api_key=None)
        for name in (alias, model):
            job = team.job()
            ask = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
            noted(team.client.post(f"/api/jobs/{job}/llm-call", json=ask))
            noted(team.client.post(f"/api/jobs/{job}/llm-call-stream", json=ask))
            noted(team.client.get(f"/api/jobs/{job}"))
            noted(admin.get(f"/api/jobs/{job}"))
        noted(admin.put(f"/api/models/{alias}", json={"api_key": KEYS[1]}))
        noted(admin.put(f"{URL}/{credential}", json={"api_key": KEYS[3]}))
        noted(create(admin, team.organization_id, provider="nobody", api_key=KEYS[2]))
        noted(create(admin, team.organization_id, credential_name=5, api_key=KEYS[2]))
        noted(admin.post("/api/model-aliases/create", json={"alias": alias, "api_key": KEYS[0], "active": "yes"}))
        for path in (URL, f"{URL}/{credential}", f"{URL}?include=api_key&show_keys=true", "/api/models"):
            noted(admin.get(path))
        for path in ("activate", "deactivate"):
            noted(admin.post(f"{URL}/{credential}/{path}"))
        texts.append(everything_in(database))
    out, err = capfd.readouterr()
    assert "call.attempt_failed" in out + err
    for text in (*texts, out, err):
        for key in KEYS:
            assert key not in text
            assert key.encode().hex() not in text
