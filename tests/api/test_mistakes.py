"""Mistakes that other systems of this kind made, where no other test tells of them."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import structlog

from api.app import described
from api.openapi import Json, operations_of
from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.api.test_isolation import ask
from tests.api.world import World
from tests.provider import FakeProvider

ROOT = Path(__file__).parents[2]
OPERATIONS = list(operations_of(described()))
NO_LISTS = {"/api/organizations/{organization_id}/usage"}  # takes what the usage of a team takes, and shows sums
LISTS = [
    (path, operation)
    for method, path, operation in OPERATIONS
    if method == "GET"
    and path not in NO_LISTS
    and {"limit", "offset"} <= {each["name"] for each in operation.get("parameters", [])}
]
TIME = re.compile(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$")
DAYS_AND_NAMES = {"date", "day", "period", "start_date", "end_date"}
SECRET = re.compile(
    r"sk-(?!ant-)[A-Za-z0-9_-]{40,}|AKIA[0-9A-Z]{16}|whsec_[A-Za-z0-9+/]{40,}|-----BEGIN [A-Z ]*PRIVATE"
)


def test_every_way_of_calling_costs_the_same(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    team = make_team(server, admin, cost_markup_percentage=50)
    body = {"messages": [{"role": "user", "content": "Hello"}], "model": make_alias(admin, provider, "usage-1000-500")}
    whole = {**body, "team_id": team.team_id, "job_type": "test"}
    jobs = [team.job(), team.job()]
    assert team.client.post(f"/api/jobs/{jobs[0]}/llm-call", json=body).status_code == 200
    assert team.client.post(f"/api/jobs/{jobs[1]}/llm-call-stream", json=body).status_code == 200
    jobs.append(team.client.post("/api/jobs/create-and-call", json=whole).json()["job_id"])
    jobs.append(team.client.post("/api/jobs/create-and-call-stream", json=whole).headers["x-job-id"])
    seen = [admin.get(f"/api/jobs/{job_id}").json()["calls"][0] for job_id in jobs]
    money = [{name: value for name, value in call.items() if "usd" in name or "pric" in name} for call in seen]
    assert (0.0075, 0.01125) == (money[0]["provider_cost_usd"], money[0]["client_cost_usd"])
    assert money == [money[0]] * 4


def test_no_credential_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file.is_file():
            assert not SECRET.search(file.read_text(errors="replace")), name
    assert not any(Path(name).name in (".env", "master-key") for name in listed.stdout.split("\0"))


def test_a_bad_uuid_in_any_path_is_not_found(world: World) -> None:
    owner = world.server.client(world.callers["owner"])
    for method, path, operation in OPERATIONS:
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path" and parameter["schema"].get("format") == "uuid":
                broken = World(**{**vars(world), "ids": {**world.ids, parameter["name"]: "not-a-uuid"}})
                answer = ask(owner, broken, method, path, operation)
                assert answer.status_code == 404, f"{method} {path}: {answer.text}"


def test_a_long_error_is_cut_and_its_call_on_record(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias, job_id = make_alias(admin, provider, "long-error"), team.job()
    asked = {"messages": [{"role": "user", "content": "Hello"}], "model": alias}
    assert team.client.post(f"/api/jobs/{job_id}/llm-call", json=asked).json()["code"] == "provider_error"
    (call,) = admin.get(f"/api/jobs/{job_id}").json()["calls"]
    assert call["status"] == "failed"
    assert 100 < len(call["error"]) <= 2000


def test_every_list_has_pages_with_bounds_and_a_full_count(world: World) -> None:
    client = world.server.client(world.callers["owner"])
    for path, operation in LISTS:
        query = query_of(world, operation)
        answer = client.get(world.path(path), params={**query, "limit": 1000, "offset": 0})
        assert answer.status_code in ((200, 404) if "{" in path else (200,)), f"{path}: {answer.text}"
        if answer.status_code == 200:
            assert answer.headers.get("x-total-count", "").isdecimal(), path
        for bad in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"limit": "many"}):
            refused = client.get(world.path(path), params={**query, **bad})
            assert (422, "validation_error") == (refused.status_code, refused.json()["code"]), f"{path} {bad}"
            assert refused.json()["detail"][0]["loc"] == ["query", *bad], path


def test_all_times_have_one_format(world: World) -> None:
    owner = world.server.client(world.callers["owner"])
    seen = 0
    for method, path, operation in OPERATIONS:
        if method == "GET" and path.startswith("/api/"):
            answer = owner.get(world.path(path), params=query_of(world, operation))
            if answer.headers["content-type"] == "application/json" and answer.status_code == 200:
                for name, value in texts_in(answer.json()):
                    # Events are shown as they were written, or their hashes would not be right.
                    is_written = name == "at" and path.startswith("/api/audit/")
                    if re.match(r"^\d{4}-\d\d-\d\d", value) and name not in DAYS_AND_NAMES and not is_written:
                        seen += 1
                        assert TIME.match(value), f"{path} {name}: {value}"
    assert seen > 50


def test_a_list_takes_as_many_queries_however_long_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: Counter[str] = Counter()
    execute = psycopg.AsyncCursor.execute

    async def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        queries[str(structlog.contextvars.get_contextvars().get("request_id"))] += 1
        return await execute(self, *arguments, **options)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", counted)
    owner = world.server.client(world.callers["owner"])

    def taken() -> dict[str, int]:
        found = {}
        for path, operation in LISTS:
            answer = owner.get(world.path(path), params=query_of(world, operation))
            found[path] = queries[answer.headers["x-request-id"]]
        return found

    before = taken()
    assert sum(before.values()) >= len(LISTS) / 2
    for _ in range(5):
        world.team.job()
        make_team(world.server, world.admin)
    assert before == taken()


def query_of(world: World, operation: Json) -> dict[str, str]:
    """What has to be said for an answer."""
    names = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
    return {"team_id": world.team.team_id} if "team_id" in names else {}


def texts_in(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    match node:
        case dict():
            for key, value in node.items():
                yield from texts_in(value, key)
        case list():
            for value in node:
                yield from texts_in(value, name)
        case str():
            yield name, node
