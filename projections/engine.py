"""Keeps all read models at one position of the journal, exactly once, and tells readers how far that is.

One process leads at a time: who holds the advisory lock. The lock, the reading and the writing share one connection, so
a leader that lost its connection cannot write any more, and the lock is free for the next.

A batch of events becomes a few set-based statements; rows and position are committed together. An event that cannot be
read or projected stops everything, loudly: stepping over it would make balances wrong in silence. The engine tries it
again every few seconds, so a fixed version of the code simply goes on.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog
from psycopg import AsyncCursor
from psycopg.rows import class_row
from psycopg.sql import SQL, Identifier

from infra import journal, metrics
from infra.journal import Connection, PoisonEvent
from projections.projection import Batch, Projection, Question, encode

log = structlog.get_logger()

LEADER_LOCK = 0x1ED6E4  # any number, the same in every process
BATCH_EVENTS = 2000
ELECTION_SECONDS = 1.0
IDLE_SECONDS = 1.0
RETRY_SECONDS = 3.0
FOLLOW_SECONDS = 0.003
RING_SECONDS = 0.003
CHANNEL = "journal"

_SETUP = """
create table if not exists readmodel.tracking (
    only_row boolean primary key default true check (only_row),
    position bigint not null
);
insert into readmodel.tracking (position) values (0) on conflict do nothing;
create table if not exists readmodel.definitions (projection text primary key, version integer not null);
grant usage on schema readmodel to saas_ledger_auditor;
alter default privileges in schema readmodel grant select on tables to saas_ledger_auditor;
"""


class Progress:
    """How far the read models are, for readers who want to see what has been written.

    In the process of the leader this is told by the engine; elsewhere it is asked for while somebody waits.
    """

    def __init__(self, ask: Callable[[], Awaitable[int]]) -> None:
        self.position = -1  # not even the tables are there for certain
        self._ask = ask
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._follower: asyncio.Task[None] | None = None
        self.is_leading = False

    def moved(self, position: int) -> None:
        """Wakes those whose position has been reached."""
        self.position = max(self.position, position)
        waiting, self._waiting = self._waiting, []
        for wanted, reached in waiting:
            if wanted > self.position:
                self._waiting.append((wanted, reached))
            elif not reached.done():
                reached.set_result(None)

    async def reach(self, position: int, timeout_s: float = 2.0) -> int:
        """Waits until the read models have passed a position.

        Returns:
            How many events they are still behind it when the time is up; 0 if they have passed it.
        """
        if self.position >= position:
            return 0
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((position, reached))
        if not self.is_leading and (self._follower is None or self._follower.done()):
            self._follower = asyncio.create_task(self._follow(), name="progress")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reached, timeout_s)
        return max(0, position - self.position)

    async def _follow(self) -> None:
        while self._waiting and not self.is_leading:
            try:
                self.moved(await self._ask())
            except (psycopg.Error, OSError) as problem:
                log.warning("progress.unknown", reason=type(problem).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(FOLLOW_SECONDS)
            self._waiting = [(wanted, reached) for wanted, reached in self._waiting if not reached.done()]


@dataclass(slots=True)
class Health:
    """What readiness and metrics say about the engine of this process."""

    leading: bool = False
    stopped_by: str | None = None
    behind_since: float | None = None  # monotonic seconds

    @property
    def lag_seconds(self) -> float:
        return 0.0 if self.behind_since is None else time.monotonic() - self.behind_since


class Bell:
    """Tells the leader in another process that there are events. Rings of one moment become one notification.

    It is rung beside the append, never in it: a notification takes a lock of the whole database until its commit.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._rung = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ring(self) -> None:
        self._rung.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._notify(), name="bell")

    async def _notify(self) -> None:
        try:
            async with await self._connect() as connection:
                while True:
                    await self._rung.wait()
                    self._rung.clear()
                    await connection.execute(SQL("notify {}").format(Identifier(CHANNEL)))
                    await asyncio.sleep(RING_SECONDS)
        except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as problem:
            # The leader looks by itself every second.
            log.warning("bell.silent", reason=type(problem).__name__)

    async def stop(self) -> None:
        await _cancelled(self._task)


class Engine:
    """The projections of one process; at most one process leads.

    Args:
        connect: opens a connection as the application's role.
        projections: the read models, in the order in which they are written.
        progress: told about every batch.
        projected: called after every batch with the position that is reached.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        projections: Sequence[Projection],
        progress: Progress,
        projected: Callable[[int], None] = lambda position: None,
    ) -> None:
        self._connect = connect
        self._projections = projections
        self._progress = progress
        self._projected = projected
        self._news = asyncio.Event()
        self._bell = Bell(connect)
        self._task: asyncio.Task[None] | None = None
        self.health = Health()

    def wake(self, position: int = 0) -> None:
        """There may be events to project, here or wherever the leader is."""
        if self.health.leading:
            self._news.set()
        else:
            self._bell.ring()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="projections")

    async def stop(self) -> None:
        await _cancelled(self._task)
        await self._bell.stop()

    # -- leading ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                async with await self._connect() as connection:
                    await self._lead(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as problem:
                log.warning("projections.connection_lost", reason=type(problem).__name__)
            except PoisonEvent as problem:
                self._stopped(str(problem))
            except Exception as problem:
                log.exception("projections.failed")
                self._stopped(f"{type(problem).__name__}: {problem}")
            finally:
                self.health.leading = False
                self._progress.is_leading = False
            await asyncio.sleep(RETRY_SECONDS if self.health.stopped_by else ELECTION_SECONDS)

    def _stopped(self, reason: str) -> None:
        self.health.stopped_by = reason
        metrics.projections_stopped(True)
        log.error("projections.stopped", reason=reason)

    async def _lead(self, connection: Connection) -> None:
        """Waits to be elected, makes the tables, then projects until the connection or an event breaks."""
        while not await _is_elected(connection):
            self.health.stopped_by = None  # whatever stopped us is the leader's trouble now
            await asyncio.sleep(ELECTION_SECONDS)
        ears = asyncio.create_task(self._listen(), name="ears")
        try:
            await self._project_on(connection)
        finally:
            await _cancelled(ears)

    async def _listen(self) -> None:
        """Hears the bells of other processes."""
        while True:
            try:
                async with await self._connect() as connection:
                    await connection.execute(SQL("listen {}").format(Identifier(CHANNEL)))
                    async for _ in connection.notifies():
                        self._news.set()
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as problem:
                log.warning("projections.deaf", reason=type(problem).__name__)
            await asyncio.sleep(ELECTION_SECONDS)

    async def _project_on(self, connection: Connection) -> None:
        await prepare(connection, self._projections)
        position = await tracked(connection)
        self._progress.moved(position)
        self.health.leading = True
        self._progress.is_leading = True
        log.info("projections.leading", position=position)
        while True:
            self._news.clear()
            events = await journal.read(connection, position, BATCH_EVENTS)
            if events:
                self.health.behind_since = self.health.behind_since or time.monotonic()
                await project(connection, self._projections, Batch(events))
                position = events[-1].position
                self._progress.moved(position)
                self._projected(position)
                self.health.stopped_by = None
                metrics.projections_stopped(False)
                metrics.projected(lag_events=len(events), lag_seconds=self.health.lag_seconds)
            if len(events) < BATCH_EVENTS:
                self.health.behind_since = None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), IDLE_SECONDS)


async def _cancelled(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _is_elected(connection: Connection) -> bool:
    cursor = await connection.execute("select pg_try_advisory_lock(%b)", (LEADER_LOCK,))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def prepare(connection: Connection, projections: Sequence[Projection]) -> None:
    """Makes what is missing; a read model whose definition is new is built from the beginning of the journal."""
    async with connection.transaction():
        await connection.execute(_SETUP)
        await connection.execute("set local search_path = readmodel")
        cursor = await connection.execute("select projection, version from definitions")
        known = {str(name): version for name, version in await cursor.fetchall()}
        behind = [each for each in projections if known.get(each.name) != each.version]
        for projection in behind:
            for table in projection.tables:
                await connection.execute(SQL("drop table if exists {}").format(Identifier(table)))
            await connection.execute(projection.ddl.encode())
            await connection.execute(
                "insert into definitions (projection, version) values (%s, %s)"
                " on conflict (projection) do update set version = excluded.version",
                (projection.name, projection.version),
            )
        if behind:
            await _catch_up(connection, behind, await tracked(connection))


async def _catch_up(connection: Connection, projections: Sequence[Projection], until: int) -> None:
    position = 0
    while position < until:
        events = await journal.read(connection, position, min(BATCH_EVENTS, until - position))
        await project_rows(connection, projections, Batch(events))
        position = events[-1].position


async def tracked(connection: Connection) -> int:
    """The position at which all read models stand."""
    cursor = await connection.execute("select position from readmodel.tracking")
    row = await cursor.fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


async def project(connection: Connection, projections: Sequence[Projection], batch: Batch) -> None:
    """Rows and position, together or not at all."""
    async with connection.pipeline(), connection.transaction():
        await connection.execute("set local search_path = readmodel")
        await project_rows(connection, projections, batch)
        await connection.execute("update tracking set position = %s", (batch.events[-1].position,))


async def project_rows(connection: Connection, projections: Sequence[Projection], batch: Batch) -> None:
    for projection in projections:
        answers = await _answers(connection, projection.asks(batch))
        for statement, rows in projection.project(batch, *answers):
            if rows:
                await connection.execute(statement.encode(), (encode(rows),))


async def _answers(connection: Connection, questions: Iterable[Question]) -> list[list[Any]]:
    """Asks everything before it waits for anything; about nothing, nothing is asked."""
    asked: list[AsyncCursor[Any] | None] = []
    for question in questions:
        cursor = connection.cursor(row_factory=class_row(question.kind)) if question.rows else None
        if cursor is not None:
            await cursor.execute(question.select.encode(), (encode(question.rows),))
        asked.append(cursor)
    return [[] if cursor is None else await cursor.fetchall() for cursor in asked]
