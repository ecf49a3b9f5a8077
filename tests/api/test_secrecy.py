"""No secret in the journal, in another table, in the log or in an answer, after everything has been done once."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from api.app import described
from api.openapi import operations_of
from tests.api.conftest import MASTER_KEY, make_alias, settings_for
from tests.api.people import anybody
from tests.api.world import World, a_world, everything_in
from tests.provider import FakeProvider
from tests.receiver import Receiver

MEDIA_TYPES = ("application/json", "application/x-ndjson", "text/csv", "text/html")
PROMPT = "what nobody else may read 4b1d"


@dataclass
class Notes:
    """What must stay hidden, and every answer in which it could show itself."""

    secrets: dict[str, str] = field(default_factory=dict)
    answers: list[tuple[str, str]] = field(default_factory=list)

    def of(self, client: httpx.Client) -> httpx.Client:
        """Reads along with what this client is answered."""
        client.event_hooks["response"].append(self._note)
        return client

    def _note(self, answer: httpx.Response) -> None:
        answer.read()
        request = f"{answer.request.method} {answer.request.url.path}"
        self.answers.append((request, f"{answer.headers}\n{answer.text}"))

    def told(self, secret: str) -> Counter[str]:
        """The requests whose answers tell it, and how many of them do."""
        return Counter(request for request, answer in self.answers if secret in answer)


def test_no_secret_is_in_the_journal_the_log_or_an_answer_that_did_not_make_it(
    owner_dsn: str, template: str, provider: FakeProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    notes = Notes()
    with Receiver() as receiver, a_world(owner_dsn, template, log_level="debug") as world:
        live(world, notes, provider, receiver)
        look_everywhere(world, notes)
        tables = everything_in(world.server.dsn)
        settings = settings_for(world.server.dsn)
        notes.secrets |= {
            "master key": MASTER_KEY,
            "encryption key": settings.encryption_keys[0],
            "JWT secret": settings.jwt_secret_key,
        }
    out, err = capfd.readouterr()
    assert "call.attempt_failed" in out + err

    for name, secret in notes.secrets.items():
        for place, text in (("a table", tables), ("the log", out + err)):
            assert secret not in text, f"{name} in {place}"
            assert secret.encode().hex() not in text, f"{name} in {place}, in hex"
    told = {name: notes.told(secret) for name, secret in notes.secrets.items()}
    once = {
        "a key that we made": "POST /api/teams/create",
        "a chosen key": "POST /api/teams/create",
        "a further key": f"POST /api/teams/{world.team.team_id}/keys",
        "a webhook's secret": "POST /api/webhooks/register",
        "its next secret": f"POST /api/webhooks/{world.ids['webhook_id']}/rotate-secret",
    }
    assert {name: {request: 1} for name, request in once.items()} == {
        name: dict(requests) for name, requests in told.items() if requests and name not in ("prompt", "a token")
    }
    # The model repeats what it was asked, and tells it to whoever asked.
    assert all(request.rpartition("/")[2].startswith("llm-call") for request in told["prompt"])
    assert set(told["a token"]) <= {"POST /api/admin-users/login"}


def live(world: World, notes: Notes, provider: FakeProvider, receiver: Receiver) -> None:
    """Does everything that brings a secret in or makes one, also what is refused because something else is wrong."""
    server, team = world.server, world.team
    admin, member = notes.of(server.client()), notes.of(server.client(team.key))
    owner = notes.of(server.client(world.callers["owner"]))
    known = notes.secrets
    known |= {"key of a team": team.key, "a session": world.callers["owner"]}

    def post(path: str, body: Any, *, client: httpx.Client = admin, refused: int | None = None) -> Any:
        answer = client.post(path, json=body)
        assert answer.is_success if refused is None else refused == answer.status_code, (path, answer.text)
        return answer.json()

    body = {"organization_id": team.organization_id, "team_id": "quiet", "credits_allocated": 5}
    known["a key that we made"] = post("/api/teams/create", body)["virtual_key"]
    known["a further key"] = post(f"/api/teams/{team.team_id}/keys", {"name": "more"})["virtual_key"]
    known["a chosen key"] = "sk-chosen-by-somebody-90ab"
    post("/api/teams/create", {**body, "team_id": "loud", "virtual_key": known["a chosen key"]})
    post("/api/teams/create", {**body, "team_id": 5, "virtual_key": known["a chosen key"]}, refused=422)

    known["an alias's key"], known["a credential's key"] = "sk-alias-secret-5f1c", "sk-credential-secret-77aa"
    alias = make_alias(admin, provider, "leaky-error", api_key=known["an alias's key"])
    credential = f"/api/provider-credentials/{world.ids['credential_id']}"
    assert admin.put(credential, json={"api_key": known["a credential's key"]}).is_success
    assert 422 == admin.put(credential, json={"api_key": known["a credential's key"], "api_base": 5}).status_code

    known["a header of a webhook"] = "Bearer what-only-the-receiver-knows"
    hook = {
        "team_id": team.team_id,
        "webhook_url": f"{receiver.url}/ok/a",
        "auth_header": known["a header of a webhook"],
    }
    known["a webhook's secret"] = post(
        "/api/webhooks/register", {**hook, "events": ["job.created"]}, client=member, refused=201
    )["secret"]
    rotate = f"/api/webhooks/{world.ids['webhook_id']}/rotate-secret"
    known["its next secret"] = post(rotate, {}, client=member)["secret"]

    known["a new password"], known["a wrong password"] = "staple battery 7c", "guessed by somebody 3e"
    post("/api/admin-users", {"email": "eve@example.com", "display_name": "Eve", "role": "user",
                              "password": known["a new password"]}, client=owner)  # fmt: skip
    visitor = notes.of(anybody(server))
    login = {"email": "eve@example.com", "password": known["a new password"]}
    known["a token"] = post("/api/admin-users/login", login, client=visitor)["access_token"]
    post("/api/admin-users/login", {**login, "password": known["a wrong password"]}, client=visitor, refused=401)

    known["prompt"] = PROMPT
    ask = {"messages": [{"role": "user", "content": PROMPT}]}
    job = team.job()
    for model in (world.ids["alias_name"], alias):
        for path in ("llm-call", "llm-call-stream"):
            once = {"Idempotency-Key": f"{path} {model}"}
            member.post(f"/api/jobs/{job}/{path}", json={**ask, "model": model}, headers=once)
    member.post(f"/api/jobs/{job}/llm-call", json={**ask, "temperature": "hot"})
    post(f"/api/jobs/{job}/complete", {"status": "completed"}, client=member)
    receiver.until(1, "/ok/a")


def look_everywhere(world: World, notes: Notes) -> None:
    """Reads all that can be read, as who may see most and as who may see least, in every format."""
    for caller in ("master", "auditor", "team"):
        client = notes.of(world.server.client(world.callers[caller]))
        for method, path, _ in operations_of(described()):
            if method.upper() == "GET":
                for media_type in MEDIA_TYPES if caller == "master" else MEDIA_TYPES[:1]:
                    client.get(world.path(path), headers={"Accept": media_type})
