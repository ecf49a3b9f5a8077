"""Whether the server lives and can work, what it counts, and the client that it hands out."""

from pathlib import Path

import httpx
import pytest

from infra.version import VERSION
from tests.api.conftest import Server, make_team, running
from tests.api.people import anybody
from tests.waiting import until

CLIENT = Path(__file__).parents[2] / "examples" / "typed_client.py"


@pytest.mark.parametrize("path", ["/health", "/api/health", "/api/health-check", "/api/v1/health"])
def test_the_process_says_that_it_lives(server: Server, path: str) -> None:
    answer = anybody(server).get(path)
    assert answer.status_code == 200
    assert {"status": "healthy", "service": "saas-llm-api", "version": VERSION} == answer.json()


@pytest.mark.parametrize("path", ["/health/ready", "/health/db"])
def test_a_server_that_can_work_is_ready(server: Server, path: str) -> None:
    answer = anybody(server).get(path)
    assert answer.status_code == 200
    assert answer.json()["status"] == "ready"
    assert {"postgres", "redis", "projections"} == answer.json()["checks"].keys()


def test_figures_are_open_from_this_machine(server: Server) -> None:
    answer = anybody(server).get("/metrics")
    assert "text/plain; version=0.0.4; charset=utf-8" == answer.headers["content-type"]
    assert "# TYPE" in answer.text


def test_the_typed_client_is_handed_out(server: Server) -> None:
    answer = anybody(server).get("/examples/typed_client.py")
    assert answer.headers["content-type"].startswith("text/x-python")
    assert CLIENT.read_text() == answer.text


def test_an_unknown_path_and_a_wrong_method_are_told_apart(admin: httpx.Client) -> None:
    assert (404, "not_found") == _code(admin.get("/api/v2/jobs"))
    wrong = admin.delete("/health")
    assert (405, "method_not_allowed") == _code(wrong)
    assert "GET" in wrong.headers["allow"]


def _code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# -- a server that only answers ----------------------------------------------------------------------------------------


def test_without_a_worker_a_new_server_is_not_ready_and_its_lists_say_so(database: str) -> None:
    with running(database, works=False, reads_wait_s=0.1) as server, server.client() as admin:
        ready = anybody(server).get("/health/ready")
        assert (503, "not_ready") == _code(ready)
        assert ["projections have not begun"] == ready.json()["reasons"]
        jobs = admin.get("/api/jobs")
        assert (503, "not_ready") == _code(jobs)
        assert int(jobs.headers["Retry-After"]) > 0
        with running(database):
            until(lambda: anybody(server).get("/health/ready").status_code == 200)
            until(lambda: admin.get("/api/jobs").status_code == 200)


def test_a_server_whose_worker_is_gone_is_not_ready_when_something_has_been_waiting_too_long(database: str) -> None:
    with running(database, works=False, ready_max_lag_seconds=0.001) as server, server.client() as admin:
        with running(database):
            until(lambda: anybody(server).get("/health/ready").status_code == 200)
        make_team(server, admin)
        until(lambda: anybody(server).get("/health/ready").status_code == 503)
        ready = anybody(server).get("/health/ready")
        assert (503, "not_ready") == _code(ready)
        assert ready.json()["reasons"][0].startswith("projections lag")


@pytest.mark.parametrize("host", ["unknown", "_hidden", "203.0.113.7", "2001:db8::1"])
def test_figures_are_not_for_whoever_comes_from_elsewhere(server: Server, host: str) -> None:
    forwarded = {"X-Forwarded-For": host}
    assert 401 == anybody(server).get("/metrics", headers=forwarded).status_code
    assert 200 == server.client().get("/metrics", headers=forwarded).status_code
    assert 200 == anybody(server).get("/metrics").status_code
