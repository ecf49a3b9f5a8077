"""The server as a process: how it starts, answers, ends, and comes back."""

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.embedded import EmbeddedServer
from tests.api.conftest import TestTeam, make_alias, make_team
from tests.api.serving import Served, fresh_data_dir, run, serving, start
from tests.provider import FakeProvider
from tests.waiting import PATIENCE_SECONDS, until

QUESTION = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with fresh_data_dir() as data_dir:
        yield data_dir


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One server for the tests that leave it as they found it."""
    with fresh_data_dir() as data_dir, serving(data_dir) as served:
        yield served


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture
def team(served: Served, admin: httpx.Client) -> TestTeam:
    return make_team(served, admin)


def test_an_empty_folder_becomes_a_healthy_server(served: Served):
    assert get(served, "/health").json()["status"] == "healthy"


def test_keys_are_made_once_and_only_their_owner_can_read_them(served: Served):
    key_file = served.data_dir / "encryption-key"

    assert len(key_file.read_text()) > 16
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_a_setting_that_makes_no_sense_is_one_line_and_exit_code_2(data_dir: Path):
    done = run(data_dir, "serve", PORT="eighty")

    assert done.returncode == 2
    assert done.stderr.splitlines() == ["saas-litellm: PORT: expected `int`, got `str`"]


def test_an_address_that_is_taken_is_one_line_and_exit_code_2(data_dir: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run(data_dir, "serve", PORT=str(port))

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"saas-litellm: PORT: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


def test_a_database_that_does_not_answer_is_one_line_and_exit_code_2(data_dir: Path):
    keys = {"ENCRYPTION_KEY": "a-key-of-the-test-suite", "JWT_SECRET_KEY": "another-key-of-the-test-suite"}
    done = run(data_dir, "serve", DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing", **keys)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("saas-litellm: the database does not answer")


def test_a_stream_reaches_the_client_while_the_provider_is_still_sending(
    served: Served, admin: httpx.Client, team: TestTeam, provider: FakeProvider
):
    alias = make_alias(admin, provider, "hang-after-3")

    # The provider falls silent after its third chunk until we hang up: what is buffered anywhere never gets here.
    with stream(team, team.job(), alias) as answer:
        data = (line for line in answer.iter_lines() if line.startswith("data: "))
        arrived = [next(data), next(data)]

    assert all('"content":"' in line for line in arrived)


def test_a_client_that_hangs_up_in_mid_stream_is_settled_for_what_it_got(
    served: Served, admin: httpx.Client, team: TestTeam, provider: FakeProvider
):
    alias = make_alias(admin, provider, "hang-after-3")
    job_id = team.job()

    with stream(team, job_id, alias) as answer:
        next(line for line in answer.iter_lines() if line.startswith("data: "))
    (call,) = until(lambda: ended_calls(team, job_id))

    assert (call["status"], call["partial"], call["finish_reason"]) == ("completed", True, "cancelled")
    assert call["tokens"] > 0
    provider.until(lambda provider: provider.disconnects["hang-after-3"] > 0)


@pytest.mark.parametrize("body", [b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", b"Content-Length: 9\r\n\r\n{"])
def test_a_body_that_breaks_off_is_the_clients_fault(served: Served, body: bytes):
    def answered(status: str) -> float:
        return sum(
            sample.value
            for family in text_string_to_metric_families(get(served, "/metrics").text)
            for sample in family.samples
            if sample.name == "saas_http_request_seconds_count" and sample.labels["method"] == "POST"
            if (sample.labels["route"], sample.labels["status"]) == ("/api/admin-users/login", status)
        )

    before = answered("400")
    with socket.create_connection(("127.0.0.1", httpx.URL(served.url).port or 0), PATIENCE_SECONDS) as connection:
        connection.sendall(b"POST /api/admin-users/login HTTP/1.1\r\nHost: here\r\n" + body)
        connection.shutdown(socket.SHUT_WR)
        until(lambda: answered("400") + answered("500") > before)
    assert (before + 1, 0) == (answered("400"), answered("500"))


def test_sigterm_settles_the_call_in_flight_and_ends_with_0(data_dir: Path, provider: FakeProvider):
    with serving(data_dir) as served, served.client() as admin, ThreadPoolExecutor() as threads:
        team = make_team(served, admin)
        alias = make_alias(admin, provider, "slow-1500")
        job_id = team.job()
        asked = provider.calls["slow-1500"]
        answer = threads.submit(call, team, job_id, alias)
        provider.until(lambda provider: provider.calls["slow-1500"] > asked)

        assert served.stop() == 0
        assert answer.result().status_code == 200

    with serving(data_dir) as served:
        (settled,) = again(served, team).get(f"/api/jobs/{job_id}").json()["calls"]
    assert settled["status"] == "completed"


def test_sigterm_ends_calls_that_take_too_long_and_puts_their_end_on_record(data_dir: Path, provider: FakeProvider):
    with (
        serving(data_dir, SHUTDOWN_TIMEOUT_SECONDS="0.5") as served,
        served.client() as admin,
        ThreadPoolExecutor() as threads,
    ):
        team = make_team(served, admin)
        whole, pieces = make_alias(admin, provider, "hang"), make_alias(admin, provider, "hang-after-3")
        job_id = team.job()
        asked = provider.calls["hang"]
        answer = threads.submit(call, team, job_id, whole)
        provider.until(lambda provider: provider.calls["hang"] > asked)
        with stream(team, job_id, pieces) as streamed:
            lines = streamed.iter_lines()
            until(lambda: "content" in next(lines))
            assert served.stop() == 0
            told = list(lines)
        assert (500, "provider_error") == (answer.result().status_code, answer.result().json()["code"])
        assert "provider_error" in "".join(told)

    with serving(data_dir) as served:
        settled = again(served, team).get(f"/api/jobs/{job_id}").json()["calls"]
    assert [("failed", "provider_error")] * 2 == [(each["status"], each["error"]) for each in settled]


def test_workers_end_when_the_process_that_watches_over_them_is_killed(data_dir: Path):
    with serving(data_dir, WORKERS="2") as served:
        served.process.kill()
        served.process.wait(PATIENCE_SECONDS)
        until(lambda: not listens(served))
    with serving(data_dir) as again:
        assert get(again, "/health").json()["status"] == "healthy"


def listens(served: Served) -> bool:
    address = httpx.URL(served.url)
    with socket.socket() as client:
        return client.connect_ex((address.host, address.port)) == 0


def test_what_was_acknowledged_survives_a_sigkill_of_everything(data_dir: Path, provider: FakeProvider):
    with serving(data_dir) as served, served.client() as admin:
        team = make_team(served, admin, credits=10)
        alias = make_alias(admin, provider)
        job_id = team.job()
        assert call(team, job_id, alias).status_code == 200
        ended = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}).json()
        served.kill_everything()

    with serving(data_dir) as served:
        client = again(served, team)
        assert client.get(f"/api/credits/balance?team_id={team.team_id}").json()["credits_remaining"] == 9
        assert client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}).json() == ended
        verified = run(served.data_dir, "verify")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("kill", [Served.kill, Served.kill_everything])
def test_what_a_sigkill_broke_off_is_done_once_by_its_repeat(data_dir: Path, kill: Callable[[Served], None]):
    headers = {"Idempotency-Key": "once"}
    with serving(data_dir) as served, served.client() as admin, ThreadPoolExecutor() as threads:
        team = make_team(served, admin, credits=10)
        body = {"team_id": team.team_id, "amount": 5}
        # Nobody can write while the test holds the writer lock, so the request has its claim and nothing more.
        with suppress(psycopg.OperationalError), psycopg.connect(served.dsn) as writer:
            writer.execute("select from journal.head for update")
            asked = threads.submit(admin.post, "/api/credits/add", json=body, headers=headers)
            until(lambda: writer.execute("select from app.idempotency where state = 'claimed'").rowcount)
            kill(served)
        assert isinstance(asked.exception(), httpx.TransportError)

    with serving(data_dir) as served, served.client() as admin:
        assert admin.post("/api/credits/add", json=body, headers=headers).status_code == 200
        assert admin.get(f"/api/credits/balance?team_id={team.team_id}").json()["credits_allocated"] == 15


def test_figures_are_those_of_all_workers_and_begin_anew_with_the_server(data_dir: Path):
    def answered(served: Served) -> set[float]:
        """What the pages say of requests for /health; each comes from whichever worker was asked."""
        pages = [get(served, "/metrics").text for _ in range(10)]
        return {
            sum(
                sample.value
                for family in text_string_to_metric_families(page)
                for sample in family.samples
                if sample.name == "saas_http_request_seconds_count" and sample.labels["route"] == "/health"
            )
            for page in pages
        }

    with serving(data_dir, WORKERS="2") as served:
        for _ in range(20):
            assert get(served, "/health").status_code == 200
        # A request is counted in the moment after its answer.
        until(lambda: answered(served) == {20})

    with serving(data_dir, WORKERS="2") as served:
        assert answered(served) == {0}


def test_the_embedded_postgresql_comes_back_while_the_server_runs(served: Served, admin: httpx.Client, team: TestTeam):
    database = EmbeddedServer(served.data_dir)
    killed = database.pid
    assert killed is not None

    os.kill(killed, signal.SIGKILL)

    until(lambda: database.pid not in {killed, None} and database.alive())
    until(lambda: team.client.get(f"/api/teams/{team.team_id}").status_code == 200)
    assert team.job()


def test_background_work_can_be_left_to_another_process(data_dir: Path):
    worker = start(data_dir, "work")
    try:
        with serving(data_dir, "--api-only") as served, served.client() as admin:
            team = make_team(served, admin, credits=10)
            balance = f"/api/credits/balance?team_id={team.team_id}"
            # The figure is the worker's: the server itself projects nothing.
            assert admin.get(balance).json()["credits_remaining"] == 10

            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE_SECONDS) == 0
            admin.post("/api/credits/add", json={"team_id": team.team_id, "amount": 5})
            behind = admin.get(balance)
    finally:
        worker.kill()
        worker.wait()
    assert (behind.json()["credits_remaining"], behind.headers["X-Ledger-Lag"]) == (10, "1")


def test_a_get_at_any_server_shows_what_another_has_just_answered(served: Served, admin: httpx.Client, team: TestTeam):
    # They share the embedded PostgreSQL, and one of them leads the projections.
    with serving(served.data_dir) as other:
        elsewhere = again(other, team)
        for credits in range(101, 121):
            body = {"team_id": team.team_id, "amount": 1}
            assert admin.post("/api/credits/add", json=body).json()["credits_remaining"] == credits
            assert elsewhere.get("/api/credits/balance").json()["credits_remaining"] == credits


def stream(team: TestTeam, job_id: str, alias: str) -> Any:
    body = {"model": alias, "messages": QUESTION}
    return team.client.stream("POST", f"/api/jobs/{job_id}/llm-call-stream", json=body)


def call(team: TestTeam, job_id: str, alias: str) -> httpx.Response:
    return team.client.post(f"/api/jobs/{job_id}/llm-call", json={"model": alias, "messages": QUESTION})


def ended_calls(team: TestTeam, job_id: str) -> list[dict[str, Any]]:
    calls = team.client.get(f"/api/jobs/{job_id}").json()["calls"]
    return [call for call in calls if call["status"] != "running"]


def get(served: Served, path: str) -> httpx.Response:
    """Asks by a connection of its own, which any of the workers may take."""
    return httpx.get(served.url + path, verify=False)


def again(served: Served, team: TestTeam) -> httpx.Client:
    """The team's client for a server that has come back at another address."""
    return served.client(team.key)
