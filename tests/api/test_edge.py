"""What is true of every answer: how large a body may be, and which pages may read it."""

import socket

import httpx
import pytest

from tests.api.conftest import Server, running
from tests.api.people import code
from tests.waiting import PATIENCE_SECONDS

MB = 2**20


def padded(size: int) -> bytes:
    """A body of just this size; what fills it is a field that nobody knows."""
    body = b'{"organization_id": "o", "name": "O", "filling": ""}'
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


def test_a_body_may_be_as_large_as_the_setting_says_and_no_larger(database: str) -> None:
    for most in (10 * MB, 12 * MB):
        with running(database, max_body_bytes=most) as server, server.client() as admin:
            admin.post("/api/organizations/create", json={"organization_id": "o", "name": "O"})
            assert 200 == admin.put("/api/organizations/o", content=padded(most)).status_code
            refused = admin.put("/api/organizations/o", content=padded(most + 1))
            assert (413, "payload_too_large") == code(refused)


def test_a_body_that_nobody_reads_may_have_any_size(database: str) -> None:
    with running(database, max_body_bytes=1024) as server, server.client() as admin:
        admin.post("/api/organizations/create", json={"organization_id": "o", "name": "O"})
        for path in ("/api/jobs", "/api/audit/events"):
            asked = admin.request("GET", path, content=b"x" * 4096, headers={"Accept": "application/x-ndjson"})
            assert asked.is_success


@pytest.mark.parametrize("size", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_large_body_that_does_not_come_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setattr("api.edge.BODY_SECONDS", 0.1)
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 0), PATIENCE_SECONDS) as connection:
        connection.sendall(f"POST /api/admin-users/login HTTP/1.1\r\nHost: here\r\n{size}\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert (True, True) == (answer.startswith(b"HTTP/1.1 400 "), b'"code":"malformed_json"' in answer)


# -- pages of other origins --------------------------------------------------------------------------------------------

ORIGIN = "https://app.example"
FROM_A_PAGE = {"Origin": ORIGIN}
EXPOSED = {
    "x-request-id",
    "x-total-count",
    "x-job-id",
    "x-call-id",
    "idempotent-replayed",
    "retry-after",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
}


def test_pages_of_allowed_origins_may_ask_and_read_every_answer(database: str) -> None:
    with running(database, cors_origins=(ORIGIN, "https://other.example")) as server, server.client() as admin:
        wanted = {
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "authorization, x-admin-key",
        }
        asked = admin.options("/api/teams/t/markup", headers={**FROM_A_PAGE, **wanted})
        assert asked.is_success
        assert (ORIGIN, "true") == allowed(asked)
        assert {"authorization", "x-admin-key"} <= words(asked, "Allow-Headers")
        assert {"get", "post", "put", "patch", "delete"} <= words(asked, "Allow-Methods")
        for status, answer in {
            200: admin.get("/api/jobs", headers=FROM_A_PAGE),
            401: admin.get("/api/jobs", headers={**FROM_A_PAGE, "Authorization": "Bearer nobody"}),
            404: admin.get("/nowhere", headers=FROM_A_PAGE),
            405: admin.delete("/api/jobs", headers=FROM_A_PAGE),
            422: admin.post("/api/jobs/create", json={}, headers=FROM_A_PAGE),
        }.items():
            assert status == answer.status_code
            assert (ORIGIN, "true") == allowed(answer)
            assert EXPOSED <= words(answer, "Expose-Headers")


def test_pages_of_other_origins_may_not(database: str) -> None:
    for origins in ((), ("https://other.example",)):
        with running(database, cors_origins=origins) as server, server.client() as admin:
            assert allowed(admin.get("/api/jobs", headers=FROM_A_PAGE))[0] is None
            asked = admin.options("/api/jobs", headers={**FROM_A_PAGE, "Access-Control-Request-Method": "GET"})
            assert allowed(asked)[0] is None


def allowed(answer: httpx.Response) -> tuple[str | None, str | None]:
    """The origin that may read the answer, and whether it may send credentials."""
    return tuple(answer.headers.get(f"Access-Control-Allow-{what}") for what in ("Origin", "Credentials"))


def words(answer: httpx.Response, header: str) -> set[str]:
    return {word.strip().lower() for word in answer.headers[f"Access-Control-{header}"].split(",")}
