"""PostgreSQL: migrations, and connections that run as the right role.

The role in the DSN owns what is ours and migrates it; it is an ordinary one, whether the server is embedded or
somebody else's. Everything after that works on connections that have stepped down to `saas_ledger_app`, which the
journal's own rules bind.
"""

import hashlib
import re
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, Connection, errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from infra.embedded import DatabaseUnusable, EmbeddedServer, programs, throwaway_server
from infra.log import log

__all__ = [
    "DatabaseUnusable",
    "EmbeddedServer",
    "Pool",
    "another",
    "connect",
    "dump_schema",
    "migrate",
    "open_pool",
    "require_safe_role",
    "write_schema",
]

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

APP_ROLE = "saas_ledger_app"
AUDITOR_ROLE = "saas_ledger_auditor"
SQL = Path(__file__).parent / "sql"
OLDEST_VERSION = 15
MIGRATION_LOCK = 7_231_000_118  # any number will do as long as it never changes
BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS app;
CREATE TABLE IF NOT EXISTS app.migrations (
    name text PRIMARY KEY,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
# The locks of a machine that went away without a word would else be held for as long as the kernel waits: for hours.
STEP_DOWN = """
SELECT set_config('role', %s, false),
       set_config('statement_timeout', %s, false),
       set_config('idle_in_transaction_session_timeout', '60s', false),
       set_config('tcp_keepalives_idle', '15', false),
       set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false),
       set_config('tcp_user_timeout', '20000', false),
       set_config('search_path', 'readmodel', false)
"""
# What makes a connection over a network notice that the other side has gone without a word.
CONNECTION_OPTIONS = {
    "connect_timeout": "5",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


def require_safe_role(dsn: str, *, embedded: bool) -> None:
    """Refuse a role that no rule of the database binds, a server too old for us, and texts that are mere bytes.

    Raises:
        DatabaseUnusable: an external database would be used as superuser, is too old or not in UTF-8, or does not
            answer.
    """
    with _owner_connection(dsn) as connection:
        if connection.info.server_version < OLDEST_VERSION * 10_000:
            raise DatabaseUnusable(f"PostgreSQL {OLDEST_VERSION} or later is needed")
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise DatabaseUnusable(f"the database is in {encoding}; make one WITH ENCODING 'UTF8' TEMPLATE template0")
        if not embedded and _finds(connection, "SELECT FROM pg_roles WHERE rolname = current_user AND rolsuper"):
            raise DatabaseUnusable(
                "DATABASE_URL is a superuser's, who could rewrite the journal unseen; make an ordinary role: "
                "CREATE ROLE saas_litellm LOGIN CREATEROLE PASSWORD '...'; "
                "CREATE DATABASE saas_litellm OWNER saas_litellm;"
            )


def migrate(dsn: str, folder: Path = SQL) -> list[str]:
    """Bring the database to the state that the numbered files of a folder describe.

    Each file runs once, in a transaction of its own, and is remembered with its SHA-256. Any number of processes may
    do this at once: one does, the others wait and find nothing left to do.

    Args:
        dsn: of the role that owns, or will own, everything of ours in this database.
        folder: holds `NNNN_name.sql`.

    Returns:
        The names of the files that were applied now.

    Raises:
        DatabaseUnusable: a file fails, was changed after it had been applied, or is not known to this program.
    """
    files = {file.name: file for file in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))}
    with _owner_connection(dsn) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        _make_roles(connection)
        _make_place(connection)
        applied: dict[str, str] = dict(connection.execute("SELECT name, sha256 FROM app.migrations").fetchall())
        for name, digest in applied.items():
            if name not in files:
                raise DatabaseUnusable(f"the database is newer than this program: it has migration {name}")
            if digest != _digest(files[name]):
                raise DatabaseUnusable(f"migration {name} was changed after it had been applied")
        missing = [name for name in files if name not in applied]
        for name in missing:
            _apply(connection, files[name])
        return missing


def _make_roles(connection: Connection) -> None:
    """Make the two roles, which all databases of a server share, and let the owner step down to the first."""
    try:
        for role in (APP_ROLE, AUDITOR_ROLE):
            if not _finds(connection, "SELECT FROM pg_roles WHERE rolname = %s", role):
                with suppress(errors.DuplicateObject, errors.UniqueViolation):  # another database was faster
                    connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
        # Since 16, to be a member is one thing and to be allowed to SET ROLE another.
        privilege = "SET" if connection.info.server_version >= 160_000 else "MEMBER"
        if not _finds(connection, "SELECT WHERE pg_has_role(%s, %s)", APP_ROLE, privilege):
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(APP_ROLE)))
    except errors.InsufficientPrivilege as error:
        raise DatabaseUnusable(
            f"the role {connection.info.user} may not make our roles; as a superuser, run: CREATE ROLE {APP_ROLE} "
            f"NOLOGIN; CREATE ROLE {AUDITOR_ROLE} NOLOGIN; GRANT {APP_ROLE} TO {connection.info.user};"
        ) from error


def _make_place(connection: Connection) -> None:
    try:
        connection.execute(BOOTSTRAP)
    except errors.InsufficientPrivilege as error:
        raise DatabaseUnusable(
            f"the role {connection.info.user} may not make schemas; as the database's owner, run: "
            f"GRANT CREATE ON DATABASE {connection.info.dbname} TO {connection.info.user};"
        ) from error


def _apply(connection: Connection, file: Path) -> None:
    try:
        with connection.transaction():
            connection.execute(file.read_bytes())
            connection.execute("INSERT INTO app.migrations (name, sha256) VALUES (%s, %s)", [file.name, _digest(file)])
    except psycopg.Error as error:
        raise DatabaseUnusable(f"migration {file.name} failed: {_first_line(error)}") from error
    log.info("migration.applied", name=file.name)


@contextmanager
def _owner_connection(dsn: str) -> Iterator[Connection]:
    try:
        connection = psycopg.connect(_conninfo(dsn, "saas-litellm migrate"), autocommit=True)
    except psycopg.Error as error:
        raise DatabaseUnusable(f"the database does not answer: {_first_line(error)}") from error
    with connection:
        yield connection


def _finds(connection: Connection, query: LiteralString, *parameters: str) -> bool:
    return connection.execute(query, parameters).rowcount > 0


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().split("\n", 1)[0]


async def open_pool(
    dsn: str,
    *,
    size: int = 10,
    name: str = "saas-litellm",
    statement_timeout_ms: int = 30_000,
    wait_seconds: float = 3.0,
) -> Pool:
    """Open a pool of connections that work as `saas_ledger_app`; end it with `await pool.close()`.

    It opens without a database, too, and recovers by itself after one was away: dead connections are noticed before
    they are lent, and new ones are tried for as long as somebody asks.

    Args:
        size: connections at most.
        name: application_name in PostgreSQL, and the pool's name in the log.
        statement_timeout_ms: 0 for none.
        wait_seconds: how long a caller waits for a connection before `psycopg_pool.PoolTimeout`.
    """
    pool: Pool = AsyncConnectionPool(
        _conninfo(dsn, name),
        name=name,
        min_size=min(2, size),
        max_size=size,
        timeout=wait_seconds,
        # A failing attempt is dropped after this, and the next caller begins a fresh one. With the usual five
        # minutes, the pauses between attempts double until they are longer than a minute.
        reconnect_timeout=2.0,
        kwargs={"autocommit": True},
        configure=partial(_step_down, statement_timeout_ms=statement_timeout_ms),
        check=_require_open,
        open=False,
    )
    await pool.open()
    return pool


class _Kept(AsyncConnection[TupleRow]):
    """A connection that ends with its block, also if its task is cancelled again while it still rolls back."""

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, problem, trace)
        finally:
            await self.close()


async def connect(
    dsn: str, *, name: str = "saas-litellm", statement_timeout_ms: int = 30_000
) -> AsyncConnection[TupleRow]:
    """Open one connection that works as `saas_ledger_app`, for who keeps it: the ledger, the engine, a listener.

    Args:
        name: application_name in PostgreSQL.
        statement_timeout_ms: 0 for none.
    """
    connection = await _Kept.connect(_conninfo(dsn, name), autocommit=True)
    try:
        await _step_down(connection, statement_timeout_ms=statement_timeout_ms)
    except BaseException:
        await connection.close()
        raise
    return connection


async def another(connection: AsyncConnection[Any]) -> AsyncConnection[TupleRow]:
    """Open one more connection to where this one leads, for who writes on one and reads on from the other."""
    info = connection.info
    return await connect(make_conninfo("", **info.get_parameters(), password=info.password or None))


async def set_timeout(connection: AsyncConnection[Any], name: str, seconds: float) -> None:
    """Set one of PostgreSQL's time-outs, for as long as the connection lives."""
    await connection.execute("SELECT set_config(%s, %s, false)", [name, f"{seconds * 1000:.0f}ms"])


async def _step_down(connection: AsyncConnection[TupleRow], *, statement_timeout_ms: int) -> None:
    await connection.execute(STEP_DOWN, [APP_ROLE, str(statement_timeout_ms)])


async def _require_open(connection: AsyncConnection[TupleRow]) -> None:
    """Ask the server only if it has said something: to an idle connection it speaks only to end it."""
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    if watch.poll(0):
        await AsyncConnectionPool.check_connection(connection)


def _conninfo(dsn: str, name: str) -> str:
    """The DSN with our options, where it does not say otherwise itself."""
    return make_conninfo("", **(CONNECTION_OPTIONS | {"application_name": name} | conninfo_to_dict(dsn)))


def dump_schema(dsn: str) -> str:
    """The database's definition as SQL: the same text for the same definition."""
    done = subprocess.run(
        [programs() / "pg_dump", "--schema-only", "--no-owner", f"--dbname={dsn}"],
        capture_output=True,
        text=True,
        check=True,
    )
    # Versions, session settings and a random token (against forged dumps) are not the schema's.
    noise = re.compile(r"^(-- Dumped |SET |SELECT pg_catalog\.set_config|\\(un)?restrict ).*\n", re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", noise.sub("", done.stdout))


def write_schema(file: Path = SQL / "schema.sql") -> None:
    """Write what the migrations make of an empty database (`make schema`)."""
    with throwaway_server() as server:
        migrate(server.dsn)
        file.write_text(dump_schema(server.dsn))
