"""Builds one read model anew from the first event on, beside the one that is read meanwhile, and puts it in its place.

The new tables grow in a schema of their own. Only for the last events the old ones are closed to the engine, so that
both stand at the same position: then they are compared, and exchanged in one transaction. Readers wait for nothing but
the exchange itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg.sql import SQL, Composed, Identifier

from infra import journal
from infra.journal import Connection
from projections.engine import BATCH_EVENTS, project_rows, tracked
from projections.projection import Batch, Projection

SHADOW = "readmodel_shadow"
REBUILD_LOCK = 0x2EB17D  # any number, the same in every process

_MAKE_PLACE: LiteralString = """
drop schema if exists readmodel_shadow cascade;
create schema readmodel_shadow authorization saas_ledger_app;
set role saas_ledger_app;
set search_path = readmodel_shadow, readmodel;
set statement_timeout = 0;
"""

_ROWS = SQL("select count(*) from {shadow}")
_DIFFERING = SQL("""
select count(*) from (
    (select * from {shadow} except all select * from {live})
    union all
    (select * from {live} except all select * from {shadow})
) as differing
""")


class AlreadyRebuilding(Exception):
    """Somebody else is rebuilding a read model of this database."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it.

    Args:
        position: where in the journal old and new were compared.
        rows: how many the new tables have.
        differing_rows: how many are only in the old or only in the new tables; None if the definition had changed.
    """

    position: int
    rows: int
    differing_rows: int | None


async def rebuild(connection: Connection, projection: Projection, progress: Callable[[int, int], None]) -> Rebuilt:
    """Builds the tables of a projection again.

    Args:
        connection: of the role that owns the database's objects, in autocommit mode. It is used up by this.
        progress: called with the position reached and the one to be reached.

    Raises:
        AlreadyRebuilding: only one at a time.
    """
    if not await _one(connection, "select pg_try_advisory_lock(%s)", REBUILD_LOCK):
        raise AlreadyRebuilding
    await connection.execute(_MAKE_PLACE)
    await connection.execute(projection.ddl.encode())
    reached = await _project(connection, projection, 0, await tracked(connection), progress)
    async with connection.transaction():
        # Readers go on; the engine waits, so the tables stay where `tracked` says that they are.
        live = SQL(", ").join(Identifier("readmodel", table) for table in projection.tables)
        await connection.execute(SQL("lock table {} in exclusive mode").format(live))
        until = await tracked(connection)
        await _project(connection, projection, reached, until, progress)
        known = await _one(connection, "select version from definitions where projection = %s", projection.name)
        rows = await _count(connection, _ROWS, projection.tables)
        differing = await _count(connection, _DIFFERING, projection.tables) if known == projection.version else None
        for table in projection.tables:
            await connection.execute(SQL("drop table {}").format(Identifier("readmodel", table)))
            await connection.execute(SQL("alter table {} set schema readmodel").format(Identifier(SHADOW, table)))
            await connection.execute(
                SQL("grant select on {} to saas_ledger_auditor").format(Identifier("readmodel", table))
            )
        await connection.execute(
            "update definitions set version = %s where projection = %s", (projection.version, projection.name)
        )
    await connection.execute("drop schema readmodel_shadow")
    return Rebuilt(until, rows, differing)


async def _project(
    connection: Connection, projection: Projection, after: int, until: int, progress: Callable[[int, int], None]
) -> int:
    progress(after, until)
    while after < until:
        events = await journal.read(connection, after, min(BATCH_EVENTS, until - after))
        async with connection.transaction():
            await project_rows(connection, [projection], Batch(events))
        after = events[-1].position
        progress(after, until)
    return after


async def _count(connection: Connection, query: SQL, tables: Sequence[str]) -> int:
    """The sum of what a query counts in each of the tables; it knows them as `shadow` and `live`."""
    total = 0
    for table in tables:
        named = query.format(shadow=Identifier(SHADOW, table), live=Identifier("readmodel", table))
        counted = await _one(connection, named)
        assert isinstance(counted, int)
        total += counted
    return total


async def _one(connection: Connection, query: LiteralString | Composed, *parameters: object) -> object:
    cursor = await connection.execute(query, parameters)
    row = await cursor.fetchone()
    return None if row is None else row[0]
