"""Which test calls which endpoint, as the server sees it: `make papers` asks for it, docs/endpoints.md shows it."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send

RECORD = Path(__file__).parents[1] / "endpoints.json"
WALKS = (
    "test_isolation",
    "test_roles",
    "test_fuzz",
    "test_schemathesis",
    "test_mistakes",
    "test_examples",
    "test_demo",
)
MOST_TESTS = 2

_seen: dict[str, set[str]] = defaultdict(set)


def is_wanted() -> bool:
    return bool(os.environ.get("RECORD_ENDPOINTS"))


def recorded(app: ASGIApp) -> ASGIApp:
    """The same application; what it answers well is noted down for the test that is running."""

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def watching(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await app(scope, receive, watching)
        if 200 <= status < 300:
            test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0].partition("[")[0]
            found: Any = scope
            _seen[test].add(f"{found['method']} {found.get('path_template')}")

    return noting


def write() -> None:
    """For each endpoint the tests that speak of little else. What was not called this time stays as it was."""
    calls: dict[str, list[str]] = defaultdict(list)
    by_purpose = sorted(_seen, key=lambda test: (any(walk in test for walk in WALKS), len(_seen[test]), test))
    for test in by_purpose:
        for endpoint in _seen[test]:
            if "::" in test and len(calls[endpoint]) < MOST_TESTS:
                calls[endpoint].append(test.removeprefix("tests/"))
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    RECORD.write_text(json.dumps(dict(sorted({**known, **calls}.items())), indent=1) + "\n")
