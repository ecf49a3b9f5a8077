"""Prompts and answers: kept for teams that want it, encrypted, for administrators, for a while; of nobody else."""

import io
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from api import chores
from api.app import open_house
from infra.conversations import LARGEST_BYTES, Conversation, Conversations
from infra.postgres import open_pool
from infra.secrets import KeyRing
from tests.api.conftest import Server, TestTeam, make_alias, make_team, settings_for
from tests.provider import HELLO, FakeProvider
from tests.waiting import until

Run = Callable[[Coroutine[Any, Any, None]], None]

SECRET = "the recipe of the house"
ASKED = [{"role": "user", "content": SECRET}]
ENDPOINTS = ("llm-call", "llm-call-stream")
DOORS = ("/api/jobs/create-and-call", "/api/jobs/create-and-call-stream")
TABLES = """
select table_schema || '.' || table_name from information_schema.tables
where table_type = 'BASE TABLE' and table_schema in ('app', 'journal', 'readmodel')
"""


@pytest.fixture
def keeper(server: Server, admin: httpx.Client) -> TestTeam:
    """A team that wants its prompts kept."""
    return make_team(server, admin, keep_prompts=True)


@pytest.fixture(scope="module")
def chat(admin: httpx.Client, provider: FakeProvider) -> str:
    return make_alias(admin, provider)


@pytest.fixture(scope="module")
def bad(admin: httpx.Client, provider: FakeProvider) -> str:
    return make_alias(admin, provider, "status-500")


def call(team: TestTeam, model: str, endpoint: str = "llm-call", **fields: Any) -> str:
    """Calls a model in a job of its own, and gives the job."""
    job_id = team.job()
    body = {"model": model, "messages": ASKED, **fields}
    answer = team.client.post(f"/api/jobs/{job_id}/{endpoint}", json=body)
    assert answer.status_code in (200, 500), answer.text
    return job_id


def the_call(client: httpx.Client, job_id: str) -> Any:
    [found] = client.get(f"/api/jobs/{job_id}").json()["calls"]
    return found


def rows(server: Server, select: str, *parameters: Any) -> list[Any]:
    with psycopg.connect(server.dsn) as connection:
        return connection.execute(select.encode(), parameters).fetchall()


def test_nothing_is_kept_of_a_team_that_did_not_ask_for_it(
    server: Server, admin: httpx.Client, team: TestTeam, chat: str
) -> None:
    assert admin.get(f"/api/teams/{team.team_id}").json()["keep_prompts"] is False
    found = the_call(admin, call(team, chat))
    assert (None, None) == (found["request_data"], found["response_data"])
    assert [] == rows(server, "select from app.conversations where team_id = %s", team.team_id)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_administrators_read_what_was_said_and_teams_do_not(
    admin: httpx.Client, keeper: TestTeam, chat: str, endpoint: str
) -> None:
    job_id = call(keeper, chat, endpoint, max_tokens=50)
    found = the_call(admin, job_id)
    assert {"messages": ASKED, "max_tokens": 50, "temperature": 0.7} == found["request_data"]
    assert {"content": HELLO, "tool_calls": None, "finish_reason": "stop"} == found["response_data"]
    as_listed = admin.get(f"/api/jobs/teams/{keeper.team_id}/{job_id}").json()["calls"]
    assert [found] == as_listed
    assert not {"request_data", "response_data"} & set(the_call(keeper.client, job_id))


@pytest.mark.parametrize("path", DOORS)
def test_it_is_the_same_through_every_door(admin: httpx.Client, keeper: TestTeam, chat: str, path: str) -> None:
    body = {"team_id": keeper.team_id, "job_type": "test", "model": chat, "messages": ASKED}
    answer = keeper.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found = the_call(admin, answer.headers["X-Job-Id"])
    assert (ASKED, HELLO) == (found["request_data"]["messages"], found["response_data"]["content"])


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_of_a_failed_call_the_question_is_kept(admin: httpx.Client, keeper: TestTeam, bad: str, endpoint: str) -> None:
    found = the_call(admin, call(keeper, bad, endpoint))
    assert ("failed", ASKED, None) == (found["status"], found["request_data"]["messages"], found["response_data"])


def test_of_a_stream_that_nobody_heard_to_its_end_the_beginning_is_kept(
    admin: httpx.Client, keeper: TestTeam, provider: FakeProvider
) -> None:
    job_id = keeper.job()
    body = {"model": make_alias(admin, provider, "stream-1000-20"), "messages": ASKED}
    path = f"/api/jobs/{job_id}/llm-call-stream"
    with keeper.client.stream("POST", path, json=body) as answer:
        next(line for line in answer.iter_lines() if "w1" in line)
    found = until(lambda: ended(the_call(admin, job_id)))
    assert (True, ASKED) == (found["partial"], found["request_data"]["messages"])
    said = found["response_data"]
    assert ("cancelled", True) == (said["finish_reason"], said["content"].startswith("w0"))


def ended(call: Any) -> Any:
    return None if call["status"] == "running" else call


def test_tool_calls_are_kept_too(admin: httpx.Client, keeper: TestTeam, provider: FakeProvider) -> None:
    found = the_call(admin, call(keeper, make_alias(admin, provider, "tools")))
    assert found["response_data"]["tool_calls"][0]["function"]["name"]


def test_a_team_can_begin_and_end_it_and_its_journal_says_when(
    server: Server, admin: httpx.Client, team: TestTeam, chat: str
) -> None:
    path = f"/api/teams/{team.team_id}"
    assert admin.put(path, json={"keep_prompts": True}).json()["keep_prompts"] is True
    assert admin.put(path, json={"team_alias": "Research"}).json()["keep_prompts"] is True
    kept = call(team, chat)
    assert admin.put(path, json={"keep_prompts": False}).json()["keep_prompts"] is False
    assert the_call(admin, kept)["request_data"] is not None
    assert the_call(admin, call(team, chat))["request_data"] is None
    select = "select convert_from(state, 'utf8')::json ->> 'keep_prompts' from journal.events where originator_id = %s"
    changes = rows(server, select + " and topic = 'TeamChanged' order by originator_version", f"team-{team.team_id}")
    assert ["true", "true", "false"] == [change for [change] in changes]
    assert team.client.put(path, json={"keep_prompts": True}).status_code == 403


def test_what_is_too_large_is_cut_and_says_so(admin: httpx.Client, keeper: TestTeam, chat: str) -> None:
    long = "ü" * LARGEST_BYTES
    found = the_call(admin, call(keeper, chat, messages=[{"role": "user", "content": long}]))["request_data"]
    assert found["truncated"] is True
    assert 2 * LARGEST_BYTES < found["total_bytes"]
    assert found["beginning"].startswith('{"messages":[{')
    assert LARGEST_BYTES - 4 < len(found["beginning"].encode()) <= LARGEST_BYTES


def test_nothing_that_was_said_is_in_the_database_in_the_clear(server: Server, keeper: TestTeam, chat: str) -> None:
    for endpoint in ENDPOINTS:
        call(keeper, chat, endpoint)
    assert 2 == len(rows(server, "select from app.conversations where team_id = %s", keeper.team_id))
    tables = rows(server, TABLES)
    with psycopg.connect(server.dsn) as connection:
        for [table] in tables:
            dump = io.BytesIO()
            with connection.cursor().copy(f"copy {table} to stdout".encode()) as copy:
                for block in copy:
                    dump.write(block)
            content = dump.getvalue()
            assert not any(text in content for text in (SECRET.encode(), SECRET.encode().hex().encode())), table


def test_after_a_month_it_is_forgotten(runner: Run, database: str) -> None:
    insert = "insert into app.conversations (call_id, team_id, ciphertext, created_at) values (%s, 'red', '', %s)"
    now = datetime(2026, 3, 4, tzinfo=UTC)

    async def story() -> None:
        async with open_house(settings_for(database), database, works=False) as house:
            async with house.pool.connection() as connection:
                for days in (40, 31, 29):
                    await connection.execute(insert, (uuid4(), now - timedelta(days=days)))
            assert 2 == await chores.purge_conversations(house, now)
            assert 0 == await chores.purge_conversations(house, now)

    runner(story())


def test_a_call_does_not_fail_because_it_cannot_be_kept(
    server: Server, admin: httpx.Client, keeper: TestTeam, chat: str
) -> None:
    with unwritable(server):
        job_id = call(keeper, chat)
        found = the_call(keeper.client, job_id)
    assert "completed" == found["status"]


@contextmanager
def unwritable(server: Server) -> Iterator[None]:
    """The table refuses whatever is written."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("alter table app.conversations add constraint broken check (false) not valid")
        try:
            yield
        finally:
            connection.execute("alter table app.conversations drop constraint broken")


def test_a_key_that_leaves_the_ring_takes_nothing_along_once_the_chore_is_done(runner: Run, database: str) -> None:
    old, new = "the-old-encryption-key", "the-new-encryption-key"
    call_id = str(uuid4())

    async def story() -> None:
        said = Conversation({"messages": ASKED}, {"content": HELLO})
        pool = await open_pool(database, size=2)
        try:
            await Conversations(pool, KeyRing(old)).keep(call_id, "red", said)
            assert 1 == await Conversations(pool, KeyRing(new, old)).rewrap()
            assert 0 == await Conversations(pool, KeyRing(new, old)).rewrap()
            assert {call_id: said} == await Conversations(pool, KeyRing(new)).of([call_id])
            assert {} == await Conversations(pool, KeyRing(old)).of([call_id])
        finally:
            await pool.close()

    runner(story())
