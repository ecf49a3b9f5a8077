"""What tests stand on: a real PostgreSQL, one migrated template, and a fresh clone of it for each test.

TEST_DATABASE_URL (or DATABASE_URL) names a server to use instead of the embedded one: as a superuser, who makes an
ordinary role first, or as a role that may CREATEDB. REDIS_URL names a Redis.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import psycopg
import pytest
import structlog
import uvloop
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra import postgres
from infra.embedded import throwaway_server
from tests.redis_server import RedisServer

T = TypeVar("T")

# How fast the machine is proves nothing; and what is asked before a change lands is the same each time.
hypothesis.settings.register_profile(
    "house",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    print_blob=True,
)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def _log_as_ever() -> Iterator[None]:
    """What a test makes of the log, by running a command for example, is over with it."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def runner() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine to its end on an event loop of its own."""
    return lambda story: uvloop.run(_in_time(story))


async def _in_time(story: Coroutine[Any, Any, T]) -> T:
    """Where uvloop waits, it takes pytest's time-out for somebody else's problem: it is this task's."""
    task = asyncio.current_task()
    assert task is not None

    def told(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(problem := context.get("exception"), pytest.fail.Exception):
            task.cancel(str(problem))
        else:
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(told)
    return await story


@pytest.fixture(scope="session")
def redis_url() -> str | None:
    """A real Redis, or None: then the in-process store is meant."""
    return os.environ.get("REDIS_URL") or None


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server here")
    server = RedisServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def owner_dsn() -> Iterator[str]:
    """An ordinary role that may make roles and databases, on the server that the tests use."""
    given = os.environ.get("TEST_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if given:
        with _owner_on(given) as dsn:
            yield dsn
        return
    with throwaway_server() as server, _owner_on(server.superuser_dsn) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def template(owner_dsn: str) -> Iterator[str]:
    """The name of a migrated database that nobody connects to, to be cloned."""
    with _database_on(owner_dsn, f"template_{secrets.token_hex(4)}") as dsn:
        postgres.migrate(dsn)
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def database(owner_dsn: str, template: str) -> Iterator[str]:
    """The DSN of a fresh, migrated database, as its owner."""
    with _database_on(owner_dsn, f"test_{next(_numbers)}_{secrets.token_hex(4)}", template) as dsn:
        yield dsn


@pytest.fixture
def empty_database(owner_dsn: str) -> Iterator[str]:
    """The DSN of a database without anything of ours in it."""
    with _database_on(owner_dsn, f"empty_{next(_numbers)}_{secrets.token_hex(4)}") as dsn:
        yield dsn


_numbers = count(1)


@contextmanager
def _database_on(owner_dsn: str, name: str, template: str = "template1") -> Iterator[str]:
    with psycopg.connect(owner_dsn, autocommit=True) as connection:
        # Copied through the log, page by page, so that nobody waits for a checkpoint.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY wal_log")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield make_conninfo(owner_dsn, dbname=name)
    finally:
        with psycopg.connect(owner_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def _owner_on(dsn: str) -> Iterator[str]:
    """Make an ordinary role for this run if the given one is a superuser."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_roles WHERE rolname = current_user AND rolsuper").rowcount:
            yield dsn
            return
        name, password = f"test_owner_{secrets.token_hex(4)}", secrets.token_hex(16)
        owner = sql.Identifier(name)
        # Two processes that change the same roles at once would be in each other's way.
        connection.execute("SELECT pg_advisory_lock(hashtext('the roles of the tests'))")
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD {}").format(owner, sql.Literal(password))
        )
        # The two roles belong to the whole server: an earlier run, of another owner, may have made them.
        for role in (postgres.APP_ROLE, postgres.AUDITOR_ROLE):
            shared = sql.Identifier(role)
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount:
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(shared))
            connection.execute(sql.SQL("GRANT {} TO {} WITH ADMIN OPTION").format(shared, owner))
        # A database is dropped under the hands of an autovacuum, too, if one may end that.
        connection.execute(sql.SQL("GRANT pg_signal_backend TO {}").format(owner))
        connection.execute("SELECT pg_advisory_unlock_all()")
        try:
            yield make_conninfo(dsn, user=name, password=password, dbname="postgres")
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(owner))
