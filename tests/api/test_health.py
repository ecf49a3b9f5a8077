"""Whether the server lives and can work, what it counts, and the client that it hands out."""

from pathlib import Path

import httpx
import pytest

from infra.version import VERSION
from tests.api.conftest import Server
from tests.api.people import anybody

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
    assert answer.headers["content-type"].startswith("text/plain")
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
