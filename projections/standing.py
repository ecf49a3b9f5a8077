"""Where the read models stand: their tables, the one position of all of them, and the one way to move it.

A definition with a version is in place for each read model whose tables stand at that position. Whoever moves the
position does it under a row lock, and moves all that are in place and that it knows. What it does not know, or knows in
another version, it marks as left behind: from then on these tables answer what they have, and are built anew before
they move again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import structlog
from psycopg import AsyncCursor
from psycopg.abc import PQGen
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier
from psycopg.waiting import Wait

from infra.journal import Connection
from projections.projection import Batch, Projection, Question, encode

log = structlog.get_logger()

LEFT_BEHIND = 0  # versions begin with 1
MANY_EVENTS = 500  # are worth new plans: old ones may go through all of a table that was small when they were made
SET_UP_LOCK = 0x5E70B  # any number, the same in every process

_SETUP = """
create table if not exists readmodel.tracking (
    only_row boolean primary key default true check (only_row),
    position bigint not null
);
insert into readmodel.tracking (position) values (0) on conflict do nothing;
create table if not exists readmodel.definitions (
    projection text primary key,
    version integer not null,
    position bigint -- where its tables stand, if they were left behind
);
grant usage on schema readmodel to saas_ledger_auditor;
alter default privileges in schema readmodel grant select on tables to saas_ledger_auditor;
"""

_DEFINE = """
insert into readmodel.definitions (projection, version) values (%s, %s)
on conflict (projection) do update set version = excluded.version, position = null
"""

# What has never been there stands before the first event; what was left behind already has not moved since.
_LEAVE_BEHIND = """
insert into readmodel.definitions (projection, version, position) values (%s, 0, 0)
on conflict (projection) do update set version = 0, position = coalesce(definitions.position, %s)
"""

# Rows and position go to the disk together, be it a moment later: what a crash takes back is projected again from the
# journal. So nobody who appends has to wait for one more flush.
_WORK = """
select set_config('search_path', 'readmodel', true), set_config('synchronous_commit', 'off', true),
       set_config('plan_cache_mode', %s, true)
"""
_DEFINITIONS = "select projection, version, position from readmodel.definitions"
_TRACKED = "select position from readmodel.tracking"
_STAND = """
select position, (select min(position) from readmodel.definitions where projection = any (%s)) from readmodel.tracking
"""
_LOCK = "select position from readmodel.tracking for update"


class Stand(NamedTuple):
    """Where the read models stand, and from where on those that were left behind know nothing, if there are any."""

    position: int
    left_behind: int | None = None

    @property
    def shown(self) -> int:
        """The position that all of them have reached."""
        return self.position if self.left_behind is None else min(self.position, self.left_behind)


class OutOfStep(Exception):
    """Somebody else has moved the position."""


async def set_up(connection: Connection, projections: Sequence[Projection]) -> list[Projection]:
    """Makes what is missing, so that projecting can begin.

    Returns:
        The projections whose tables have to be built beside, in their order; before anything has been projected none.
    """
    async with connection.transaction():
        # Two who grant or create the same thing at once would break each other's statements.
        await connection.execute("select pg_advisory_xact_lock(%s)", (SET_UP_LOCK,))
        await connection.execute(_SETUP)
        position = await lock_position(connection)
        ready = {projection.name for projection in await in_place(connection, projections)}
        behind = [projection for projection in projections if projection.name not in ready]
        for projection in behind:
            await connection.execute(_LEAVE_BEHIND, (projection.name, position))
        if position > 0:
            return behind
        await connection.execute("set local search_path = readmodel")
        for projection in behind:
            for table in projection.tables:
                await connection.execute(SQL("drop table if exists {}").format(Identifier(table)))
            await connection.execute(projection.ddl.encode())
            await define(connection, projection, projection.version)
        return []


async def tracked(connection: Connection) -> int:
    """The position at which all read models stand."""
    return _number(await (await connection.execute(_TRACKED)).fetchone())


async def stand(connection: Connection, projections: Iterable[Projection]) -> Stand:
    """The same, and what has become of these projections."""
    cursor = await connection.execute(_STAND, ([projection.name for projection in projections],))
    return Stand(*cast("tuple[int, int | None]", await cursor.fetchone()))


async def lock_position(connection: Connection) -> int:
    """The same, which nobody moves until the end of the transaction. To be taken before any lock of a table."""
    return _number(await (await connection.execute(_LOCK)).fetchone())


def _number(row: Any) -> int:
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


async def define(connection: Connection, projection: Projection, version: int) -> None:
    """Says which version of a read model is in place."""
    await connection.execute(_DEFINE, (projection.name, version))


async def in_place(connection: Connection, projections: Sequence[Projection]) -> list[Projection]:
    """Those of the projections whose tables are of their version and stand at the position."""
    return _in_place(_definitions(await (await connection.execute(_DEFINITIONS)).fetchall()), projections)


class _Definition(NamedTuple):
    version: int
    position: int | None


def _definitions(rows: Iterable[Any]) -> dict[str, _Definition]:
    return {name: _Definition(version, position) for name, version, position in rows}


def _in_place(definitions: Mapping[str, _Definition], projections: Sequence[Projection]) -> list[Projection]:
    """Who looks things up in tables that are behind would find too little there, so it is behind itself."""
    behind: set[str] = set()
    found = []
    for projection in projections:
        definition = definitions.get(projection.name)
        is_current = definition is not None and definition.version == projection.version
        if is_current and behind.isdisjoint(projection.looks_up):
            found.append(projection)
        else:
            behind.add(projection.name)
    return found


async def project(connection: Connection, projections: Sequence[Projection], batch: Batch) -> Stand:
    """Rows and position, together or not at all.

    Raises:
        OutOfStep: the tables do not stand where the batch begins.
    """
    async with connection.pipeline(), connection.transaction():
        locked = await connection.execute(_LOCK)
        defined = await connection.execute(_DEFINITIONS)  # beside the lock: one round trip
        position = _number(await locked.fetchone())
        if position != batch.events[0].position - 1:
            raise OutOfStep(f"the read models stand at {position}, the next event is {batch.events[0].position}")
        definitions = _definitions(await defined.fetchall())
        found = _in_place(definitions, projections)
        await _leave_behind(connection, definitions, found, position)
        await connection.execute(_WORK, ("force_custom_plan" if len(batch.events) >= MANY_EVENTS else "auto",))
        await project_rows(connection, found, batch)
        reached = batch.events[-1].position
        await connection.execute("update tracking set position = %s", (reached,))
    behind = {projection.name for projection in projections} - {projection.name for projection in found}
    stopped = [definition.position for name, definition in definitions.items() if name in behind]
    return Stand(reached, min((position if each is None else each for each in stopped), default=None))


async def _leave_behind(
    connection: Connection, definitions: Mapping[str, _Definition], projections: Sequence[Projection], position: int
) -> None:
    moving = {projection.name for projection in projections}
    for name, (version, _) in definitions.items():
        if name not in moving and version != LEFT_BEHIND:
            log.warning("projections.left_behind", projection=name, version=version)
            await connection.execute(_LEAVE_BEHIND, (name, position))


async def project_rows(connection: Connection, projections: Sequence[Projection], batch: Batch) -> None:
    """What the projections change, in the tables that the search path finds first."""
    # Everything is asked before anything is written, since in a pipeline every answer is waited for; what comes then
    # PostgreSQL does while the next rows are made.
    asked = [await _ask(connection, projection.asks(batch)) for projection in projections]
    answers = [await _answers(questions) for questions in asked]
    for projection, known in zip(projections, answers, strict=True):
        for statement, rows in projection.project(batch, *known):
            if rows:
                await connection.execute(statement.encode(), (encode(rows),))
                await connection.wait(_flush(connection))


def _flush(connection: Connection) -> PQGen[None]:
    """Sends all of it: what is larger than a socket's buffer, a pipeline keeps until its next statement."""
    while connection.pgconn.flush():
        yield Wait.W


Asked = list[tuple[type[Any], AsyncCursor[Any] | None]]


async def _ask(connection: Connection, questions: Iterable[Question]) -> Asked:
    """About nothing, nothing is asked."""
    asked: Asked = []
    for question in questions:
        cursor = connection.cursor(row_factory=dict_row) if question.rows else None
        if cursor is not None:
            await cursor.execute(question.select.encode(), (encode(question.rows),))
        asked.append((question.kind, cursor))
    return asked


async def _answers(asked: Asked) -> list[list[Any]]:
    """Converted, since what is kept as JSON in a column is to be a record, too."""
    return [
        [] if cursor is None else [msgspec.convert(row, kind) for row in await cursor.fetchall()]
        for kind, cursor in asked
    ]
