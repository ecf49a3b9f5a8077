"""The generated pages of docs/: errors, endpoints and proofs. `make papers` writes them, a test compares.

Which test proves which endpoint is noted down by a run of the API tests (tests/api/recording.py) in endpoints.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from api.app import described
from api.openapi import operations_of
from api.problems import PROBLEMS, RETRY_AFTER_SECONDS
from tests.api.recording import RECORD
from tests.promises import HABITS, MISTAKES

ROOT = Path(__file__).parent.parent


# -- the pages ---------------------------------------------------------------------------------------------------------


def errors() -> str:
    """docs/errors.md"""
    rows = [
        f"| {entry.status} | `{code}` | {entry.detail} |"
        for code, entry in sorted(PROBLEMS.items(), key=lambda item: (item[1].status, item[0]))
    ]
    waits = ", ".join(f"{seconds} s for {status}" for status, seconds in RETRY_AFTER_SECONDS.items())
    return f"""# Errors

Every refusal is `{{"detail": ..., "code": ...}}` with the status of its code. `code` is stable: programs decide by it;
`detail` is for people. Facts, such as `credits_needed` or `resource`, are further fields beside them. For
`validation_error` the detail is a list of `{{"loc": [...], "msg": ..., "type": ...}}`: the first wrong place of a
body, or each wrong parameter.
Under `/v1` it is all said in OpenAI's words: `{{"error": {{"message": ..., "type": ..., "param": ..., "code": ...}}}}`.

409, 429 and 503 carry `Retry-After` in seconds: how long it really takes where that is known, otherwise {waits}.
401 carries `WWW-Authenticate: Bearer`. Worth a retry with the same `Idempotency-Key`: 409, 429, 500 and 503, and
connections that broke. Everything else stays as it is however often it is asked.

| Status | Code | Detail |
|---|---|---|
{chr(10).join(rows)}
"""


def endpoints() -> str:
    """docs/endpoints.md"""
    rows = []
    for method, path, operation in operations_of(described()):
        links = ", ".join(link(name) for name in recorded().get(f"{method} {path}", ()))
        rows.append(f"| {method} | `{path}` | {operation['x-caller']} | {links} |")
    return f"""# Endpoints

Every endpoint, who may call it, and tests that prove it. Beside these, all endpoints are walked through by
[isolation](../tests/api/test_isolation.py), [roles](../tests/api/test_roles.py),
[nonsense](../tests/api/test_fuzz.py) and [Schemathesis](../tests/api/test_schemathesis.py). `/api/v1/...` is the same
as `/api/...`. What each of them takes and answers: `/docs` and `/redoc` of a running server.

| Method | Path | Caller | Proven by |
|---|---|---|---|
{chr(10).join(rows)}
"""


def proofs() -> str:
    """docs/proofs.md"""
    return f"""# Proofs

What clients rely on, what systems of this kind get wrong, and the tests that prove it here. `make test` runs them;
those under `tests/proofs` are run by `make proofs`.

## Habits of clients

| # | Habit | Proven by |
|---|---|---|
{_promised(HABITS)}

## Mistakes of others

| # | Instead | Proven by |
|---|---|---|
{_promised(MISTAKES)}
"""


def _promised(promises: Mapping[int, tuple[str, tuple[str, ...]]]) -> str:
    return "\n".join(
        f"| {number} | {sentence} | {', '.join(link(name) for name in names)} |"
        for number, (sentence, names) in promises.items()
    )


def link(name: str) -> str:
    """`api/test_jobs.py::a_new_job_is_pending` as a link with a sentence."""
    place, _, test = name.partition("::")
    return f"[{test.removeprefix('test_').replace('_', ' ')}](../tests/{place})"


def recorded() -> dict[str, list[str]]:
    """The tests of each endpoint, by method and path."""
    found: dict[str, list[str]] = json.loads(RECORD.read_text())
    return found


def exists(name: str) -> bool:
    """Whether there is a test of this name, with or without its `test_`."""
    place, _, test = name.partition("::")
    file = ROOT / "tests" / place
    return file.is_file() and f"def test_{test.removeprefix('test_')}(" in file.read_text()


PAGES = {"errors.md": errors, "endpoints.md": endpoints, "proofs.md": proofs}

if __name__ == "__main__":
    for page, content in PAGES.items():
        (ROOT / "docs" / page).write_text(content())
