"""A running server over real HTTP, a provider to call, and a short way to a team with a key.

One server serves all tests of a session: each test makes organizations and teams of its own. A test that needs other
settings, or that hurts the server, starts one for itself with `running`.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
import uvicorn

from api.app import create_app
from infra.settings import Settings
from tests.api import recording
from tests.conftest import _database_on
from tests.provider import FakeProvider
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.api.world import World

MASTER_KEY = "test-master-key-of-the-suite"
MARGIN = timedelta(seconds=20)  # around midnight


def pytest_sessionfinish() -> None:
    if recording.is_wanted():
        recording.write()


def settings_for(dsn: str, **changes: Any) -> Settings:
    """What the test servers run with, unless a test says otherwise."""
    chosen: dict[str, Any] = {
        "database_url": dsn,
        "master_key": MASTER_KEY,
        "encryption_keys": ("test-encryption-key-of-the-suite",),
        "jwt_secret_key": "test-jwt-secret-key-of-the-suite-32",
        "default_rpm": 0,
        "default_tpm": 0,
        "log_level": "warning",
    }
    return Settings(**{**chosen, **changes})


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`."""

    url: str
    dsn: str
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, token: str | None = None, **headers: str) -> httpx.Client:
        """A client with this credential, the master key by default; closed with the server at the latest."""
        client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token or MASTER_KEY}", **headers},
            timeout=30,
            verify=False,  # nobody speaks TLS here, and reading all certificates takes a tenth of a second
        )
        self.clients.append(client)
        return client


@contextmanager
def running(
    dsn: str, *, works: bool = True, reads_wait_s: float = PATIENCE_SECONDS, **changes: Any
) -> Iterator[Server]:
    """A server of its own on a free port, for as long as the block.

    Args:
        works: whether it does background work.
        reads_wait_s: how long reads wait for the read models. On a busy machine these take longer than anybody would
            wait; and what a test has not seen in time it would take for lost.
    """
    app = create_app(settings_for(dsn, **changes), dsn, works=works)
    served = recording.recorded(app) if recording.is_wanted() else app
    config = uvicorn.Config(served, port=0, log_config=None, lifespan="on", loop="uvloop")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server did not start"
        app._app.state.house.progress.patience_s = reads_wait_s
        port = server.servers[0].sockets[0].getsockname()[1]
        started = Server(f"http://127.0.0.1:{port}", dsn)
        try:
            yield started
        finally:
            for client in started.clients:
                client.close()
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def server(owner_dsn: str, template: str) -> Iterator[Server]:
    """The server of the session."""
    with _database_on(owner_dsn, f"api_{uuid4().hex[:8]}", template) as dsn, running(dsn) as server:
        yield server


@pytest.fixture(scope="session")
def provider() -> Iterator[FakeProvider]:
    """An OpenAI-compatible provider on loopback; the model's name says how it answers."""
    with FakeProvider() as provider:
        yield provider


@pytest.fixture(scope="session")
def admin(server: Server) -> Iterator[httpx.Client]:
    """Whoever has the master key."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def world(owner_dsn: str, template: str) -> Iterator["World"]:
    """A server of its own with one of everything, for tests that walk through all operations and change nothing."""
    from tests.api.world import a_world  # which stands on what is here

    with a_world(owner_dsn, template) as world:
        yield world


@pytest.fixture
def today() -> date:
    """The day, well inside: a test that asks for it first does not see it end."""
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date(), datetime.min.time(), UTC)
    for since, pause in ((midnight, MARGIN), (midnight + timedelta(days=1) - MARGIN, 2 * MARGIN)):
        if since <= now < since + MARGIN:
            time.sleep((since + pause - now).total_seconds())
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class TestTeam:
    """A team of its own organization, with a key."""

    __test__ = False

    organization_id: str
    team_id: str
    key: str
    client: httpx.Client

    def job(self, **fields: Any) -> str:
        """Opens a job and gives its id."""
        answer = self.client.post("/api/jobs/create", json={"team_id": self.team_id, "job_type": "test", **fields})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["job_id"])


def make_team(server: Server, admin: httpx.Client, *, credits: int = 100, **fields: Any) -> TestTeam:
    """A new organization with a new team; `fields` go into POST /api/teams/create."""
    organization_id, team_id = f"org-{uuid4().hex[:8]}", f"team-{uuid4().hex[:8]}"
    answer = admin.post("/api/organizations/create", json={"organization_id": organization_id, "name": "Test"})
    assert answer.status_code == 200, answer.text
    body = {"organization_id": organization_id, "team_id": team_id, "credits_allocated": credits, **fields}
    answer = admin.post("/api/teams/create", json=body)
    assert answer.status_code == 200, answer.text
    key = answer.json()["virtual_key"]
    return TestTeam(organization_id, team_id, key, server.client(key))


def whole_list(client: httpx.Client, path: str, **query: Any) -> list[dict[str, Any]]:
    """All pages of a list: after a session's tests some have more than one."""
    rows: list[dict[str, Any]] = []
    while True:
        answer = client.get(path, params={**query, "limit": 1000, "offset": len(rows)})
        assert answer.status_code == 200, answer.text
        rows += answer.json()
        if not answer.json() or len(rows) == int(answer.headers["X-Total-Count"]):
            assert len(rows) == int(answer.headers["X-Total-Count"])
            return rows


@pytest.fixture
def team(server: Server, admin: httpx.Client) -> TestTeam:
    """A team with 100 credits, charged by the job."""
    return make_team(server, admin)


def make_alias(admin: httpx.Client, provider: FakeProvider, model: str = "gpt-ok", **fields: Any) -> str:
    """A new alias for a model of the fake provider, at 2.50 and 10 dollars per million tokens."""
    alias = f"alias-{uuid4().hex[:8]}"
    body = {
        "alias": alias,
        "provider": "openai",
        "actual_model": model,
        "api_base": provider.url,
        "api_key": "sk-provider-key-of-the-suite",
        "pricing_input": 2.5,
        "pricing_output": 10,
        **fields,
    }
    answer = admin.post("/api/model-aliases/create", json=body)
    assert answer.status_code == 200, answer.text
    return alias
