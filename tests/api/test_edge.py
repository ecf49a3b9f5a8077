"""What is true of every answer: the size of a body."""

import httpx

from tests.api.conftest import running

MB = 2**20


def padded(size: int) -> bytes:
    """A body of just this size; what fills it is a field that nobody knows."""
    body = b'{"organization_id": "o", "name": "O", "filling": ""}'
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


def test_a_body_may_be_as_large_as_the_setting_says_and_no_larger(database: str) -> None:
    for most in (10 * MB, 12 * MB):
        with running(database, max_body_bytes=most) as server, server.client() as admin:

            def asked(size: int, admin: httpx.Client = admin) -> int:
                return admin.post("/api/organizations/create", content=padded(size)).status_code

            assert asked(most) in (200, 400)  # the second time the organization already exists
            assert 413 == asked(most + 1)
