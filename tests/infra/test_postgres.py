"""Migrations, roles, and connections that survive their database."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra import postgres
from infra.embedded import THROWAWAY_SETTINGS, EmbeddedServer, throwaway_server
from infra.postgres import DatabaseUnusable, connect, dump_schema, migrate, open_pool, require_safe_role
from tests.waiting import eventually

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server of this file's own, which a test may stop and start."""
    with throwaway_server() as server:
        migrate(server.dsn)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small migrations."""
    (tmp_path / "0001_first.sql").write_text("CREATE SCHEMA shop; CREATE TABLE shop.orders (id int);")
    (tmp_path / "0002_second.sql").write_text("ALTER TABLE shop.orders ADD COLUMN price numeric;")
    (tmp_path / "schema.sql").write_text("this is no migration")
    return tmp_path


def ask(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


@contextmanager
def plain_role(owner_dsn: str) -> Iterator[str]:
    """A role that may log in and nothing else."""
    name = f"plain_{uuid4().hex[:8]}"
    with psycopg.connect(owner_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'plain'").format(sql.Identifier(name)))
        try:
            yield name
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


# -- Migrations ------------------------------------------------------------------------------------------------------


def test_migrations_are_applied_in_order_and_only_once(empty_database: str, folder: Path):
    assert migrate(empty_database, folder) == ["0001_first.sql", "0002_second.sql"]
    assert migrate(empty_database, folder) == []

    ask(empty_database, "SELECT id, price FROM shop.orders")


def test_a_later_migration_is_applied_alone(empty_database: str, folder: Path):
    migrate(empty_database, folder)
    (folder / "0003_third.sql").write_text("CREATE INDEX ON shop.orders (id)")

    assert migrate(empty_database, folder) == ["0003_third.sql"]


def test_processes_that_migrate_at_once_apply_each_file_once(empty_database: str, folder: Path):
    with ThreadPoolExecutor(6) as threads:
        applied = list(threads.map(lambda _: migrate(empty_database, folder), range(6)))

    assert sorted(map(len, applied)) == [0, 0, 0, 0, 0, 2]


def test_a_migration_that_was_changed_afterwards_stops_the_start(empty_database: str, folder: Path):
    migrate(empty_database, folder)
    (folder / "0001_first.sql").write_text("CREATE SCHEMA shop;")

    with pytest.raises(DatabaseUnusable, match=r"0001_first\.sql was changed"):
        migrate(empty_database, folder)


def test_a_database_of_a_newer_program_is_not_touched(empty_database: str, folder: Path):
    migrate(empty_database, folder)
    (folder / "0002_second.sql").unlink()

    with pytest.raises(DatabaseUnusable, match=r"newer than this program: it has migration 0002_second\.sql"):
        migrate(empty_database, folder)


def test_a_migration_that_fails_leaves_nothing_behind(empty_database: str, folder: Path):
    (folder / "0002_second.sql").write_text("CREATE TABLE shop.half (id int); SELECT 1 / 0;")

    with pytest.raises(DatabaseUnusable, match=r"0002_second\.sql failed: division by zero"):
        migrate(empty_database, folder)

    assert ask(empty_database, "SELECT to_regclass('shop.half')") == [(None,)]
    assert ask(empty_database, "SELECT name FROM app.migrations") == [("0001_first.sql",)]


def test_our_own_migrations_can_be_repeated(database: str):
    assert migrate(database) == []


def test_a_role_that_may_not_make_ours_is_told_what_to_have_run(owner_dsn: str, empty_database: str, folder: Path):
    with plain_role(owner_dsn) as name:
        dsn = make_conninfo(empty_database, user=name, password="plain")
        with pytest.raises(DatabaseUnusable, match=rf"GRANT saas_ledger_app TO {name};$"):
            migrate(dsn, folder)


def test_a_role_that_may_not_make_schemas_is_told_what_to_have_run(owner_dsn: str, empty_database: str, folder: Path):
    database = conninfo_to_dict(empty_database)["dbname"]
    with plain_role(owner_dsn) as name, psycopg.connect(owner_dsn, autocommit=True) as owner:
        owner.execute(sql.SQL("GRANT saas_ledger_app TO {}").format(sql.Identifier(name)))
        dsn = make_conninfo(empty_database, user=name, password="plain")
        with pytest.raises(DatabaseUnusable, match=rf"GRANT CREATE ON DATABASE {database} TO {name};$"):
            migrate(dsn, folder)


def test_a_database_that_does_not_answer_is_said_in_one_line(tmp_path: Path):
    with pytest.raises(DatabaseUnusable, match="does not answer") as refusal:
        migrate(f"postgresql://nobody:hunter2@/nothing?host={tmp_path}")

    assert "\n" not in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


# -- Roles -----------------------------------------------------------------------------------------------------------


def test_the_first_migration_of_a_server_makes_both_roles_without_login(server: EmbeddedServer):
    assert ask(
        server.dsn,
        "SELECT rolname, rolcanlogin, rolsuper FROM pg_roles WHERE rolname LIKE 'saas_ledger%' ORDER BY 1",
    ) == [("saas_ledger_app", False, False), ("saas_ledger_auditor", False, False)]


def test_a_superuser_is_refused_on_an_external_database(server: EmbeddedServer):
    with pytest.raises(DatabaseUnusable, match="superuser"):
        require_safe_role(server.superuser_dsn, embedded=False)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_keep_every_letter_is_refused(owner_dsn: str, encoding: str):
    name = f"{encoding.lower()}_{uuid4().hex[:8]}"
    create = f"create database {name} encoding '{encoding}' locale 'C' locale_provider libc template template0"
    with psycopg.connect(owner_dsn, autocommit=True) as owner:
        owner.execute(create.encode())
        try:
            with pytest.raises(DatabaseUnusable, match=f"in {encoding}; make one WITH ENCODING 'UTF8'"):
                require_safe_role(make_conninfo(owner_dsn, dbname=name), embedded=False)
        finally:
            owner.execute(f"drop database {name}".encode())


def test_an_ordinary_role_is_accepted_everywhere(server: EmbeddedServer, database: str):
    require_safe_role(server.dsn, embedded=True)
    require_safe_role(database, embedded=False)


# -- Connections -----------------------------------------------------------------------------------------------------


def test_lent_connections_work_as_the_application_and_commit_each_statement(database: str, runner: Run):
    async def story() -> None:
        pool = await open_pool(database, name="tested", statement_timeout_ms=1234)
        async with pool, pool.connection() as connection:
            assert connection.autocommit
            answer = await connection.execute(
                "SELECT current_user, current_setting('application_name'), current_setting('statement_timeout')"
            )
            assert await answer.fetchone() == ("saas_ledger_app", "tested", "1234ms")

    runner(story())


def test_postgresql_looks_whether_a_machine_that_went_silent_is_still_there(database: str, runner: Run):
    async def story() -> None:
        async with await connect(database) as connection:
            cursor = await connection.execute(
                "SELECT name FROM pg_settings WHERE source = 'session' AND name ~ '^tcp_' ORDER BY name"
            )
            assert await cursor.fetchall() == [
                ("tcp_keepalives_count",), ("tcp_keepalives_idle",), ("tcp_keepalives_interval",), ("tcp_user_timeout",)
            ]  # fmt: skip

    runner(story())


def test_the_application_makes_nothing_of_its_own_beside_the_journal(database: str, runner: Run):
    async def story() -> None:
        async with await connect(database) as connection:
            with pytest.raises(errors.InsufficientPrivilege):
                await connection.execute("CREATE TABLE journal.loot (id int)")

    runner(story())


def test_a_statement_that_takes_too_long_is_ended(database: str, runner: Run):
    async def story() -> None:
        async with await connect(database, statement_timeout_ms=20) as connection:
            with pytest.raises(errors.QueryCanceled):
                await connection.execute("SELECT pg_sleep(30)")

    runner(story())


def test_a_connection_that_died_idle_is_not_lent(database: str, runner: Run):
    async def story() -> None:
        async with await open_pool(database, name="mortal", size=1) as pool:
            async with pool.connection() as connection:
                victim = connection.info.backend_pid
            async with await psycopg.AsyncConnection.connect(database, autocommit=True) as owner:
                await owner.execute("SELECT pg_terminate_backend(%s, 5000)", [victim])
            async with pool.connection() as connection:
                assert connection.info.backend_pid != victim

    runner(story())


def test_a_connection_ends_with_its_block_however_often_that_is_cancelled(database: str, runner: Run):
    async def story() -> None:
        kept: list[psycopg.AsyncConnection[Any]] = []

        async def keep() -> None:
            async with await connect(database) as connection:
                kept.append(connection)
                await asyncio.Event().wait()

        keeping = asyncio.create_task(keep())
        await eventually(lambda: kept)
        [connection] = kept
        async with connection.lock:  # as if the rollback took its time
            keeping.cancel()
            await asyncio.sleep(0)
            keeping.cancel()
            await asyncio.wait([keeping])
        assert connection.closed

    runner(story())


def test_a_pool_opens_without_its_database_and_recovers_by_itself(tmp_path: Path, runner: Run):
    server = EmbeddedServer(tmp_path, THROWAWAY_SETTINGS)

    async def works(pool: postgres.Pool) -> bool:
        try:
            async with pool.connection(timeout=0.5) as connection:
                await connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    async def story() -> None:
        async with await open_pool(server.dsn) as pool:
            assert not await works(pool)
            for _ in range(2):
                server.start()
                migrate(server.dsn)
                await eventually(partial(works, pool))
                server.stop()
                assert not await works(pool)

    try:
        runner(story())
    finally:
        server.stop()


# -- The schema as a document ----------------------------------------------------------------------------------------


def test_the_schema_is_written_down_the_same_way_each_time(server: EmbeddedServer):
    once, again = dump_schema(server.dsn), dump_schema(server.dsn)

    assert once == again
    assert "CREATE TABLE app.migrations" in once
    assert "restrict" not in once
    assert "Dumped" not in once
