"""Builds read models anew from the first event on, beside those that are read meanwhile, and puts them in their place.

The new tables grow in a schema of their own, first without their indexes, while the engine goes on with the old ones.
When they have nearly caught up, old and new are compared as of one moment. At last the position is locked, so that the
engine waits for as long as the last events and the exchange take, all in one transaction; readers wait only for the
exchange itself. Whatever breaks on the way, the old tables are as they were.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import LiteralString

import psycopg
import structlog
from psycopg.sql import SQL, Composed, Identifier

from infra import journal, postgres
from infra.background import ahead
from infra.journal import Connection, Recorded
from projections.projection import Batch, Projection, wanted
from projections.standing import define, in_place, lock_position, project_rows, tracked

log = structlog.get_logger()

SHADOW = "readmodel_shadow"
LIVE = "readmodel"
REBUILD_LOCK = 0x2EB17D  # any number, the same in every process
BATCH_EVENTS = 10_000
NEARLY = 2_000  # events left, with which nobody is kept waiting
AGAIN_SECONDS = 0.5

_ENTER: LiteralString = """
set role saas_ledger_app;
set search_path = readmodel_shadow, readmodel;
set statement_timeout = 0;
set plan_cache_mode = force_custom_plan;
"""

_LEFT_OVER = "select tablename from pg_tables where schemaname = 'readmodel_shadow'"

# The sum of the rows' hashes does not depend on their order; it is the same in both only if the rows are.
_FINGERPRINT = SQL("""
select count(*), coalesce(sum(hash_record_extended(each, 1)), 0), coalesce(sum(hash_record_extended(each, 2)), 0)
from {table} as each
""")
_DIFFERING = SQL("""
select count(*) from (
    (select * from {shadow} except all select * from {live})
    union all
    (select * from {live} except all select * from {shadow})
) as differing
""")


Stretch = tuple[int, list[Recorded]]  # up to where, and what is wanted of it


class AlreadyRebuilding(Exception):
    """Somebody else is rebuilding a read model of this database."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it.

    Args:
        position: where in the journal the new tables took the place of the old ones.
        rows: how many the new tables had when they were compared.
        differing_rows: how many were only in the old or only in the new tables; None if the definition had changed.
    """

    position: int
    rows: int
    differing_rows: int | None


async def rebuild(connection: Connection, projection: Projection, progress: Callable[[int, int], None]) -> Rebuilt:
    """Builds the tables of a projection again.

    Args:
        connection: of a role that may become the application's, in autocommit mode. It is used up by this.
        progress: called with the position reached and the one to be reached.

    Raises:
        AlreadyRebuilding: only one at a time.
    """
    return await rebuild_all(connection, [projection], progress)


async def rebuild_all(
    connection: Connection, projections: Sequence[Projection], progress: Callable[[int, int], None]
) -> Rebuilt:
    """The same for several, which read the journal together and are exchanged together."""
    if not await _one(connection, "select pg_try_advisory_lock(%s)", REBUILD_LOCK):
        raise AlreadyRebuilding
    building = _Building(connection, projections, progress)
    await connection.execute(_ENTER)
    await building.begin()
    await building.catch_up()
    await building.add_indexes()
    compared = await building.compare()
    while True:
        await building.catch_up()
        try:
            await building.exchange()
            break
        except psycopg.errors.LockNotAvailable:
            log.info("rebuild.waits", reason="a table is being read for long")
            await asyncio.sleep(AGAIN_SECONDS)
    # The end of the connection would give the lock back as well, but PostgreSQL notices that a moment later.
    await _one(connection, "select pg_advisory_unlock(%s)", REBUILD_LOCK)
    return Rebuilt(building.position, *compared)


class _Building:
    """New tables, and how far they are."""

    def __init__(
        self, connection: Connection, projections: Sequence[Projection], progress: Callable[[int, int], None]
    ) -> None:
        self._connection = connection
        self._projections = projections
        self._progress = progress
        self._tables = [table for projection in projections for table in projection.tables]
        self.position = 0

    async def begin(self) -> None:
        """Makes the tables, in the place of what somebody who did not get to the end may have left there."""
        cursor = await self._connection.execute(_LEFT_OVER)
        for (table,) in await cursor.fetchall():
            await self._connection.execute(SQL("drop table {} cascade").format(Identifier(SHADOW, str(table))))
        for projection in self._projections:
            await self._connection.execute(projection.bare_ddl.encode())

    async def add_indexes(self) -> None:
        for projection in self._projections:
            for index in projection.indexes:
                await self._connection.execute(index.encode())
        for table in self._tables:
            await self._connection.execute(SQL("analyze {}").format(Identifier(SHADOW, table)))

    async def catch_up(self) -> None:
        """Comes near to where the live tables are, however far these move meanwhile."""
        async with await postgres.another(self._connection) as reading:
            while (until := await tracked(self._connection)) - self.position > NEARLY:
                async with aclosing(ahead(self._batches(reading, until))) as batches:
                    async for reached, events in batches:
                        async with self._connection.pipeline(), self._connection.transaction():
                            # Nobody sees these tables yet, and after a crash they are begun again.
                            await self._connection.execute("set local synchronous_commit = off")
                            await project_rows(self._connection, self._projections, Batch(events))
                        self.position = reached
                        self._progress(reached, until)

    async def _project_until(self, until: int) -> None:
        """The last events, in the transaction that is open."""
        async for _, events in self._batches(self._connection, until):
            await project_rows(self._connection, self._projections, Batch(events))

    async def _batches(self, connection: Connection, until: int) -> AsyncGenerator[Stretch, None]:
        for after in range(self.position, until, BATCH_EVENTS):
            reached = min(after + BATCH_EVENTS, until)
            yield reached, await journal.stretch(connection, after, reached, wanted(self._projections))

    async def compare(self) -> tuple[int, int | None]:
        """How many rows there are, and how many differ, as of one moment, while the engine goes on."""
        async with self._connection.transaction():
            await self._connection.execute("set transaction isolation level repeatable read")
            reached = await tracked(self._connection)
            await self._project_until(reached)
            comparable = len(await in_place(self._connection, self._projections)) == len(self._projections)
            rows, differing = 0, 0
            for table in self._tables:
                shadow, live = Identifier(SHADOW, table), Identifier(LIVE, table)
                new = await self._fingerprint(shadow)
                rows += new[0]
                if comparable and new != await self._fingerprint(live):
                    counted = await _one(self._connection, _DIFFERING.format(shadow=shadow, live=live))
                    assert isinstance(counted, int)
                    differing += counted
        self.position = reached
        return rows, differing if comparable else None

    async def _fingerprint(self, table: Identifier) -> tuple[int, ...]:
        cursor = await self._connection.execute(_FINGERPRINT.format(table=table))
        row = await cursor.fetchone()
        assert row is not None
        return tuple(int(str(number)) for number in row)

    async def exchange(self) -> None:
        """The last events, and old against new, together or not at all.

        Raises:
            psycopg.errors.LockNotAvailable: somebody reads an old table for long; others would have to wait behind us.
        """
        async with self._connection.transaction():
            until = await lock_position(self._connection)
            await self._project_until(until)
            # Less than PostgreSQL's deadlock_timeout: before it looks for a victim among the readers, we have gone.
            await self._connection.execute("set local lock_timeout = '200ms'")
            for table in self._tables:
                await self._connection.execute(SQL("drop table if exists {}").format(Identifier(LIVE, table)))
            for table in self._tables:
                new, moved = Identifier(SHADOW, table), Identifier(LIVE, table)
                await self._connection.execute(SQL("alter table {} set schema readmodel").format(new))
                await self._connection.execute(SQL("grant select on {} to saas_ledger_auditor").format(moved))
            for projection in self._projections:
                await define(self._connection, projection, projection.version)
        self.position = until
        self._progress(until, until)


async def _one(connection: Connection, query: LiteralString | Composed, *parameters: object) -> object:
    cursor = await connection.execute(query, parameters)
    row = await cursor.fetchone()
    return None if row is None else row[0]
