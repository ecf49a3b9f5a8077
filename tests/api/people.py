"""Administrators for tests: set up, created and logged in over HTTP."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

from tests.api.conftest import Server

PASSWORD = "correct horse"


@dataclass(frozen=True)
class Person:
    """An administrator in a session."""

    user_id: str
    email: str
    password: str
    token: str
    client: httpx.Client


def unused_email() -> str:
    return f"{uuid4().hex[:12]}@example.com"


def anybody(server: Server) -> httpx.Client:
    """A client without a credential."""
    client = server.client()
    del client.headers["Authorization"]
    return client


def set_up(server: Server, **fields: Any) -> Person:
    """Makes the first owner of a fresh house."""
    body = {"email": unused_email(), "display_name": "Olga", "password": PASSWORD, **fields}
    answer = anybody(server).post("/api/admin-users/setup", json=body)
    assert answer.status_code == 200, answer.text
    return person(server, answer, body["password"])


def add(owner: Person, server: Server, role: str = "user", **fields: Any) -> Person:
    """Makes an administrator and logs in as them."""
    body = {"email": unused_email(), "display_name": role.title(), "password": PASSWORD, "role": role, **fields}
    answer = owner.client.post("/api/admin-users", json=body)
    assert answer.status_code == 200, answer.text
    return enter(server, body["email"], body["password"])


def enter(server: Server, email: str, password: str = PASSWORD) -> Person:
    """Logs in."""
    answer = log_in(server, email, password)
    assert answer.status_code == 200, answer.text
    return person(server, answer, password)


def log_in(server: Server, email: str, password: str = PASSWORD) -> httpx.Response:
    return anybody(server).post("/api/admin-users/login", json={"email": email, "password": password})


def person(server: Server, answer: httpx.Response, password: str) -> Person:
    user, token = answer.json()["user"], answer.json()["access_token"]
    return Person(user["user_id"], user["email"], password, token, server.client(token))


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and error code of a refusal; under /v1 it is in the words of OpenAI."""
    refusal = answer.json()
    return answer.status_code, refusal.get("error", refusal)["code"]
