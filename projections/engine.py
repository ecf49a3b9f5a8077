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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import psycopg
import structlog
from psycopg.sql import SQL, Identifier, Literal

from infra import journal, metrics, postgres
from infra.background import ahead, cancelled
from infra.journal import Connection, Recorded
from projections.projection import Batch, Projection
from projections.rebuild import AlreadyRebuilding, rebuild_all
from projections.standing import OutOfStep, Stand, project, set_up, stand, tracked

__all__ = ["Bell", "Engine", "Health", "Progress", "Stand", "prepare", "project", "stand", "tracked"]

log = structlog.get_logger()

LEADER_LOCK = 0x1ED6E4  # any number, the same in every process
BATCH_EVENTS = 5000
ELECTION_SECONDS = 1.0
IDLE_SECONDS = 1.0
RETRY_SECONDS = 3.0
SILENT_SECONDS = 30.0  # after which PostgreSQL takes the lead from a process that hangs; a leader asks every second
BATCH_SECONDS = 120.0  # the same for one that hangs within a batch, of which none takes more than a second or two
KNOWS_TRANSACTION_TIMEOUT = 17_00_00  # the first version of PostgreSQL that does, in its own numbering
FOLLOW_SECONDS = 0.003
RING_SECONDS = 0.003
PACE_SECONDS = 0.04  # between two batches that nobody waits for; larger batches cost less an event
CHANNEL = "journal"
HURRY = "hurry"  # the notice of who waits; of new events alone there is none
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, OSError)


class Progress:
    """How far the read models are, for readers who want to see what has been written.

    In the process of the leader this is told by the engine; elsewhere it is asked for while somebody waits.
    """

    def __init__(self, ask: Callable[[], Awaitable[Stand]]) -> None:
        self.patience_s = 2.0  # then readers get what there is
        self.position = -1  # not even the tables are there for certain
        self.hurry: Callable[[], None] = lambda: None  # tells the leader, wherever it is, that somebody waits
        self._left_behind: int | None = None
        self._ask = ask
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._follower: asyncio.Task[None] | None = None
        self._is_told = False
        self._wanted = asyncio.Event()

    def leads(self, leading: bool) -> None:
        """Whether the engine of this process tells every move from now on."""
        self._is_told = leading
        self._look()

    def moved(self, stand: Stand) -> None:
        """Wakes those whose position has been reached."""
        self.position = max(self.position, stand.position)
        self._left_behind = stand.left_behind
        waiting, self._waiting = self._waiting, []
        for wanted, reached in waiting:
            if reached.done():
                continue  # nobody waits for it any more
            if wanted > self.position:
                self._waiting.append((wanted, reached))
            else:
                reached.set_result(None)

    async def reach(self, position: int, timeout_s: float | None = None) -> int:
        """Waits until the read models have passed a position; for one that is being built anew nobody waits.

        Args:
            timeout_s: how long, if not as long as readers do.

        Returns:
            How many events the last of them is still behind it when the time is up; 0 if all have passed it.
        """
        if self._left_behind is None and self.position >= position:
            return 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience_s if timeout_s is None else timeout_s):
                if self._left_behind is not None:
                    await self._inquire()  # it may be in place by now, without any new event
                if self.position < position:
                    await self._passed(position)
        return max(0, position - Stand(self.position, self._left_behind).shown)

    async def _passed(self, position: int) -> None:
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((position, reached))
        self._wanted.set()
        self._look()
        await reached

    def attend(self) -> None:
        """To be said before events are read: whoever has waited until now is about to be served."""
        self._wanted.clear()

    def want(self) -> None:
        """Somebody waits for the read models, in whatever process."""
        self._wanted.set()

    async def wanted(self, timeout_s: float) -> None:
        """Returns as soon as somebody waits for the read models, or when the time is up."""
        if not self._waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wanted.wait()

    def _look(self) -> None:
        if self._waiting and not self._is_told and (self._follower is None or self._follower.done()):
            self._follower = asyncio.create_task(self._follow(), name="progress")

    async def _follow(self) -> None:
        """Asks until nobody waits any more; the leader is told once for each position that is newly waited for."""
        hurried = -1
        while self._waiting and not self._is_told:
            await self._inquire()
            farthest = max((position for position, _ in self._waiting), default=hurried)
            if farthest > hurried:
                self.hurry()
                hurried = farthest
            await asyncio.sleep(FOLLOW_SECONDS)
            self._waiting = [(wanted, reached) for wanted, reached in self._waiting if not reached.done()]

    async def _inquire(self) -> None:
        try:
            self.moved(await self._ask())
        except psycopg.errors.UndefinedTable:
            await asyncio.sleep(PACE_SECONDS)  # a new database: whoever leads is making the tables
        except (psycopg.Error, OSError) as problem:
            log.warning("progress.unknown", reason=type(problem).__name__)
            await asyncio.sleep(RETRY_SECONDS)


@dataclass(slots=True)
class Health:
    """What readiness and metrics say about the engine of this process."""

    leading: bool = False
    stopped_by: str | None = None
    building: tuple[str, ...] = ()  # read models that are new or changed, and not in place yet
    behind_since: float | None = None  # monotonic seconds

    @property
    def lag_seconds(self) -> float:
        return 0.0 if self.behind_since is None else time.monotonic() - self.behind_since


class Bell:
    """Tells the leader in another process that there are events, or that somebody waits for them to be shown.

    Rings of one moment become one notification. Events alone may wait for others to come; who waits may not.

    It is rung beside the append, never in it: a notification takes a lock of the whole database until its commit.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._rung = asyncio.Event()
        self._hurries = False
        self._task: asyncio.Task[None] | None = None

    def hurry(self) -> None:
        """Somebody waits."""
        self._hurries = True
        self.ring()

    def ring(self) -> None:
        """There are events."""
        self._rung.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._notify(), name="bell")

    async def _notify(self) -> None:
        try:
            async with await self._connect() as connection:
                while True:
                    await self._rung.wait()
                    self._rung.clear()
                    notice, self._hurries = HURRY if self._hurries else "", False
                    await connection.execute(SQL("notify {}, {}").format(Identifier(CHANNEL), Literal(notice)))
                    await asyncio.sleep(RING_SECONDS)
        except AWAY as problem:
            # The leader looks by itself every second.
            log.warning("bell.silent", reason=type(problem).__name__)

    async def stop(self) -> None:
        await cancelled(self._task)


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
        progress.hurry = self._bell.hurry
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
        await cancelled(self._task)
        await self._bell.stop()

    # -- leading ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                async with await self._connect() as connection:
                    await self._work_on(connection)
            except AWAY as problem:
                log.warning("projections.connection_lost", reason=type(problem).__name__)
            except Exception as problem:  # noqa: BLE001 nothing may end this loop: the next attempt may well succeed
                self._stopped(problem)
            await asyncio.sleep(RETRY_SECONDS if self.health.stopped_by else ELECTION_SECONDS)

    async def _work_on(self, connection: Connection) -> None:
        try:
            await self._lead(connection)
        except OutOfStep as problem:
            log.warning("projections.out_of_step", reason=str(problem))
        except Exception as problem:
            if connection.closed:
                raise
            self._stopped(problem)
        finally:
            self.health.leading = False
            self.health.building = ()  # what is left of it is the next leader's
            self._progress.leads(False)

    def _stopped(self, problem: Exception) -> None:
        self.health.stopped_by = f"{type(problem).__name__}: {problem}"
        metrics.projections_stopped(True)
        log.error("projections.stopped", reason=self.health.stopped_by)

    def _goes_on(self) -> None:
        if self.health.stopped_by is not None:
            log.info("projections.go_on", stopped_by=self.health.stopped_by)
            self.health.stopped_by = None
        metrics.projections_stopped(False)

    def _follows(self) -> None:
        """Whatever stopped us, and how far we were behind, is the leader's trouble now."""
        self.health.behind_since = None
        metrics.projected(lag_events=0, lag_seconds=0.0)
        if self.health.stopped_by is not None:
            self._goes_on()

    async def _lead(self, connection: Connection) -> None:
        """Waits to be elected, makes the tables, then projects until the connection or an event breaks."""
        await postgres.set_timeout(connection, "idle_session_timeout", SILENT_SECONDS)
        if connection.info.server_version >= KNOWS_TRANSACTION_TIMEOUT:
            await postgres.set_timeout(connection, "transaction_timeout", BATCH_SECONDS)
        while not await _is_elected(connection):
            self._follows()
            await asyncio.sleep(ELECTION_SECONDS)
        behind = await set_up(connection, self._projections)
        beside = [asyncio.create_task(self._listen(), name="ears")]
        self.health.building = tuple(projection.name for projection in behind)
        if behind:
            beside.append(asyncio.create_task(self._build(behind), name="rebuild"))
        try:
            await self._project_on(connection)
        finally:
            for task in beside:
                await cancelled(task)

    async def _listen(self) -> None:
        """Hears the bells of other processes."""
        while True:
            try:
                async with await self._connect() as connection:
                    await connection.execute(SQL("listen {}").format(Identifier(CHANNEL)))
                    self._news.set()  # whatever was rung before
                    async for heard in connection.notifies():
                        self._news.set()
                        if heard.payload == HURRY:
                            self._progress.want()
            except Exception as problem:  # noqa: BLE001 without it, readers elsewhere wait until the leader looks by itself
                log.warning("projections.deaf", reason=type(problem).__name__)
            await asyncio.sleep(ELECTION_SECONDS)

    async def _build(self, behind: Sequence[Projection]) -> None:
        """Builds what is new or changed, while the others go on and the old tables answer what they have."""
        names = self.health.building
        log.info("rebuild.begins", projections=names)
        while self.health.building:
            try:
                async with await self._connect() as connection:
                    rebuilt = await rebuild_all(connection, behind, lambda reached, until: None)
                log.info("rebuild.ends", projections=names, position=rebuilt.position, rows=rebuilt.rows)
                self.health.building = ()
            except (AlreadyRebuilding, *AWAY) as problem:
                log.warning("rebuild.waits", reason=type(problem).__name__)
                await asyncio.sleep(ELECTION_SECONDS)
            except Exception as problem:  # noqa: BLE001 whatever it is, somebody has to look at it
                self._stopped(problem)
                await asyncio.sleep(RETRY_SECONDS)

    async def _project_on(self, connection: Connection) -> None:
        position, _ = standing = await stand(connection, self._projections)
        self._progress.moved(standing)
        self.health.leading = True
        self._progress.leads(True)
        log.info("projections.leading", position=position)
        while True:
            self._news.clear()
            self._progress.attend()
            events = await self._read(connection, position, BATCH_EVENTS)
            if events:
                self.health.behind_since = self.health.behind_since or time.monotonic()
                position = events[-1].position
                self._projected(position)
            if not self.health.building:
                self._goes_on()
            if len(events) == BATCH_EVENTS:
                position = await self._catch_up(connection, position)
                continue
            self.health.behind_since = None
            metrics.projected(lag_events=0, lag_seconds=0.0)
            if not events:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._news.wait()
            await self._progress.wanted(PACE_SECONDS)

    async def _catch_up(self, connection: Connection, position: int) -> int:
        """Projects batch by batch what is there, each read and decoded while PostgreSQL works on the one before.

        Returns:
            The position reached, in whatever way that ended: what breaks here breaks again where it is dealt with.
        """
        try:
            async with (
                await postgres.another(connection) as reading,
                contextlib.aclosing(ahead(journal.read_all(reading, position, BATCH_EVENTS))) as batches,
            ):
                async for events in batches:
                    self._progress.moved(await project(connection, self._projections, Batch(events)))
                    position = events[-1].position
                    self._projected(position)
                    lag = await journal.position(connection) - position
                    metrics.projected(lag_events=lag, lag_seconds=self.health.lag_seconds)
                    if len(events) < BATCH_EVENTS:
                        break
        except OutOfStep:
            raise
        except Exception as problem:
            if connection.closed:
                raise
            log.warning("projections.slow", reason=type(problem).__name__)
        return position

    async def _read(self, connection: Connection, position: int, limit: int) -> Sequence[Recorded]:
        """Reads and projects the next events; fewer if need be, so that all before the one that stops us are shown."""
        try:
            events = await journal.read(connection, position, limit)
            if events:
                self._progress.moved(await project(connection, self._projections, Batch(events)))
        except OutOfStep:
            raise
        except Exception:
            if connection.closed or limit == 1:
                raise
            return await self._read(connection, position, max(1, limit // 10))
        return events


async def _is_elected(connection: Connection) -> bool:
    cursor = await connection.execute("select pg_try_advisory_lock(%b)", (LEADER_LOCK,))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def prepare(connection: Connection, projections: Sequence[Projection]) -> None:
    """Makes the tables of all these projections, and builds what is new or changed from the first event on."""
    behind = await set_up(connection, projections)
    if behind:
        await rebuild_all(connection, behind, lambda reached, until: None)
