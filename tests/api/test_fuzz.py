"""Thousands of requests that make no sense: none ends in a crash, and what is refused writes nothing.

What is asked before a change lands is the same each time. The seed is printed; FUZZ_SEED repeats a run, FUZZ_REQUESTS
says how much is asked of one world.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest

from api.app import described
from api.openapi import Json, operations_of
from api.request_examples import EXAMPLES
from tests.api.world import World, a_world, head_of

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1000"))
MANY_REQUESTS = 2500 if os.environ.get("PROOFS") == "short" else 50_000
OPERATIONS = list(operations_of(described()))
MB = 2**20

TEXTS = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "\ufffd",
    "\u202e\u0000",
    "\U0001f4a9" * 90,
    "../../etc/passwd",
    "%",
    "%00",
    "_",
    "'; drop table journal.events; --",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "null",
    "NaN",
    "-1",
    "1e309",
    "2024-02-30",
    "9999-12-31T23:59:59.999999+14:00",
    "0001-01-01",
    "00000000-0000-0000-0000-000000000000",
    "x" * 256,
    "x" * 5000,
    "\r\nX-Injected: 1",
    "Ünïcödé ✓ 漢字",
)
NUMBERS = (0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**12, 10**12 + 1, 10**40, 10**400, 0.1, -0.5)
RAW_NUMBERS = (
    "1e400",
    "-1e400",
    "1E-400",
    "NaN",
    "Infinity",
    "-0",
    "-0.0",
    "100.0",
    "1" * 5000,
    "0." + "1" * 400,
    "01",
)
BROKEN = (
    b"",
    b"{",
    b"}",
    b"[[[[",
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b'{"metadata": ' + b'{"a": [' * 49 + b"]}" * 49 + b"}",
    b'{"metadata": ' + b'{"a": [' * 300 + b"]}" * 300 + b"}",
    b'{"a": 1,}',
    b"{'a': 1}",
    b'{"a": "\xff\xfe"}',
    b'{"a": "\\ud800"}',
    b'"\\u0000"',
    b"\xef\xbb\xbf{}",
    b"\x00",
    b"null",
    b"true",
    b"0",
    b'"text"',
    b"[]",
    b"[null]",
    b"{}",
    b'{"": null}',
    b"{} {}",
    b'{"team_id": "a", "team_id": 1}',
)
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"Content-Type", b"text/plain"),
    (b"Content-Type", b"multipart/form-data; boundary=x"),
    (b"Content-Type", b"application/x-www-form-urlencoded"),
    (b"Content-Type", b"application/json; charset=utf-7"),
    (b"Content-Type", b"\xff"),
    (b"Accept", b"application/xml;q=nope"),
    (b"Accept-Encoding", b"\xe4"),
    (b"Idempotency-Key", b"\xe4\xf6\xfc"),
    (b"Idempotency-Key", b"k" * 256),
    (b"Idempotency-Key", b"k" * 255),
    (b"Idempotency-Key", b""),
    (b"X-Request-Id", b"\xff" * 300),
    (b"X-Request-Id", b"../.."),
    (b"X-Admin-Key", b"\xff"),
    (b"X-Admin-Key", b""),
    (b"Authorization", b"Bearer"),
    (b"Authorization", b"Bearer \xff\xfe"),
    (b"Authorization", b"Bearer a.b.c"),
    (b"Authorization", b"Bearer " + b"x" * 8000),
    (b"Cookie", b"a=b; c"),
    (b"Range", b"bytes=0-"),
    (b"If-None-Match", b"*"),
    (b"Origin", b"null"),
    (b"X-Forwarded-For", b"1.2.3.4, unknown"),
    (b"X-HTTP-Method-Override", b"DELETE"),
)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW")

# What ends sessions, teams and keys comes rarely, or there would soon be nobody left to ask.
FAREWELLS = ("logout", "password", "deactivate", "suspend", "pause", "revoke", "rotate", "status")

# What these statuses say no to has not happened at all. (A 403 may be on record: that a team ran out of credits.)
NOTHING_HAPPENED = {400, 401, 404, 405, 413, 422}


ODD_MESSAGES: tuple[Any, ...] = (
    [{"role": "user", "content": [[1], "x", None, {"text": 1}]}],
    [{"role": "assistant", "content": None, "tool_calls": "x"}],
    [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [1, None, {"function": "x"}, {"function": {"arguments": []}}],
        }
    ],
    [{"role": "user", "content": "x", "name": {}}],
    [{"role": "user"}, []],
    [[]],
    {"role": "user", "content": "x"},
)


class Nonsense:
    """Makes requests that were never meant."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)

    def request(self) -> dict[str, Any]:
        method, path, operation = self.random.choice(OPERATIONS)
        if self.random.random() < 0.9 and (method == "DELETE" or any(word in path for word in FAREWELLS)):
            method, path, operation = self.random.choice(OPERATIONS)
        if self.random.random() < 0.1:
            method = self.random.choice(METHODS)
        headers: dict[bytes, bytes] = {}
        caller = self.random.choice([*self.world.callers.values(), None])
        if caller is not None:
            headers[b"Authorization"] = f"Bearer {caller}".encode()
        if self.random.random() < 0.2:
            headers.update([self.random.choice(HEADERS)])
        return {
            "method": method,
            "url": self.address(path, operation),
            "headers": list(headers.items()),
            "content": self.body(operation) if method not in ("GET", "HEAD") or self.random.random() < 0.1 else None,
        }

    def address(self, path: str, operation: Json) -> str:
        for name in self.names(operation, "path"):
            real = self.random.random() < 0.5
            value = self.world.ids.get(name, "x") if real else self.random.choice(TEXTS)
            path = path.replace("{" + name + "}", _quoted(value))
        asked = [name for name in self.names(operation, "query") if self.random.random() < 0.3]
        query = "&".join(f"{name}={_quoted(str(self.scalar()))}" for name in asked)
        return f"{path}?{query}" if query else path

    def body(self, operation: Json) -> bytes:
        if self.random.random() < 0.3:
            return self.random.choice(BROKEN)
        schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        example = EXAMPLES.get(str(schema.get("$ref", "")).rpartition("/")[2], {"reason": "x"})
        odd = {name: self.value() if self.random.random() < 0.4 else value for name, value in example.items()}
        if "messages" in odd and self.random.random() < 0.6:
            odd["messages"] = self.random.choice(ODD_MESSAGES)
        if "team_id" in odd and self.random.random() < 0.5:
            odd["team_id"] = self.world.team.team_id
        if self.random.random() < 0.2:
            odd[self.random.choice(TEXTS)] = self.value()
        text = json.dumps(odd)
        if self.random.random() < 0.1:
            text = text.replace(": ", f': {self.random.choice(RAW_NUMBERS)}, "x": ', 1)
        return text.encode()

    def value(self, depth: int = 0) -> Any:
        makers: list[Callable[[], Any]] = [self.scalar] * 5
        if depth < 3:
            makers.append(lambda: [self.value(depth + 1) for _ in range(self.random.randrange(4))])
            makers.append(lambda: {str(self.scalar())[:50]: self.value(depth + 1) for _ in range(3)})
        if self.random.random() < 0.01:
            makers = [lambda: "x" * MB, lambda: ["x"] * 100_000]
        return self.random.choice(makers)()

    def scalar(self) -> Any:
        numbers = [number for number in NUMBERS if abs(number) < 10**300]
        return self.random.choice([self.random.choice(TEXTS), self.random.choice(numbers), None, True, False])

    def names(self, operation: Json, place: str) -> list[str]:
        return [str(each["name"]) for each in operation.get("parameters", []) if each["in"] == place]


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(REQUESTS, marks=pytest.mark.timeout(180)),
        pytest.param(MANY_REQUESTS, marks=[pytest.mark.proof, pytest.mark.timeout(3600)]),
    ],
)
def test_nonsense_is_refused_and_leaves_no_trace(owner_dsn: str, template: str, requests: int) -> None:
    seed = int(os.environ.get("FUZZ_SEED") or (0 if "CI" in os.environ else random.randrange(2**32)))
    print(f"FUZZ_SEED={seed}")
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    # Some nonsense ends sessions and keys: a world where hardly anybody is let in any more is not worth asking.
    for number, begun in enumerate(range(0, requests, REQUESTS)):
        with a_world(owner_dsn, template) as world:
            wrong += ask(world, Nonsense(world, seed + number), min(REQUESTS, requests - begun), statuses)
    print(f"statuses: {dict(sorted(statuses.items()))}")
    assert not wrong, "\n".join(wrong)


def ask(world: World, nonsense: Nonsense, requests: int, statuses: Counter[int]) -> list[str]:
    """Asks, counts the answers, and tells what is wrong with them."""
    wrong = []
    with (
        psycopg.connect(world.server.dsn, autocommit=True) as connection,
        httpx.Client(base_url=world.server.url, timeout=30, verify=False) as client,
    ):
        before = head_of(connection)
        for _ in range(requests):
            request = nonsense.request()
            try:
                answer = client.request(**request)
            except httpx.LocalProtocolError:
                continue  # httpx would not even send it
            statuses[answer.status_code] += 1
            after = head_of(connection)
            told = (
                f"{request['method']} {request['url'][:200]} {request['headers']} {(request['content'] or b'')[:300]!r}"
            )
            if answer.status_code >= 500:
                wrong.append(f"{answer.status_code}: {told}")
            if answer.status_code in NOTHING_HAPPENED and after != before:
                wrong.append(f"written although {answer.status_code}: {told}")
            if answer.status_code >= 400 and request["method"] != "HEAD" and not _is_ours(answer):
                wrong.append(f"{answer.status_code} {answer.text[:200]}: {told}")
            before = after
    return wrong


def _is_ours(answer: httpx.Response) -> bool:
    """Every refusal has a code and a detail, and says nothing of what is inside."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text.startswith(("Invalid HTTP request", "Disallowed CORS"))
    said = {"detail", "code"} <= body.keys() or {"message", "code"} <= body.get("error", {}).keys()
    return said and "Traceback" not in answer.text
