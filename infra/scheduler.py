"""Does what is to be done by the clock: each chore in its own rhythm, in one process at a time.

Every process has a scheduler, and the one that holds the advisory lock does the chores. That saves work and is no part
of what makes them right: a chore done twice at once has to come to the same, since a leader that lost its connection
may not have noticed yet.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
import structlog

from infra import metrics, postgres
from infra.background import cancelled
from infra.journal import Connection
from infra.ledger import Unavailable

log = structlog.get_logger()

LEADER_LOCK = 0x1ED6E5  # any number, the same in every process; the projections have the one before
ELECTION_SECONDS = 5.0
OUT_OF_REACH = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.UndefinedTable,  # the read models are just being made
    OSError,
)
LONGEST_NAP_SECONDS = 5.0  # between two looks at whether the lock is still ours
SILENT_SECONDS = 600.0  # after which PostgreSQL takes the lock from a process that hangs; no chore takes as long


@dataclass(frozen=True)
class Chore:
    """Something to be done again and again.

    Args:
        name: what logs and metrics call it.
        every_s: how long to wait from one start to the next.
        do: does whatever there is to do at this moment, and says how much that was.
    """

    name: str
    every_s: float
    do: Callable[[datetime], Awaitable[int]]


class Scheduler:
    """The chores of one process.

    Args:
        connect: opens a connection to PostgreSQL; it stays open.
        chores: done in this order when several are due.
        clock: what time it is.
        election_s: how long to wait before asking for the lock again.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        chores: Sequence[Chore],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        election_s: float = ELECTION_SECONDS,
    ) -> None:
        self._connect = connect
        self._chores = chores
        self._clock = clock
        self._election_s = election_s
        self._task: asyncio.Task[None] | None = None
        self.is_leading = False

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="scheduler")

    async def stop(self) -> None:
        """Breaks off; what the ledger has been asked for is carried out all the same."""
        await cancelled(self._task)

    async def _run(self) -> None:
        while True:
            try:
                async with await self._connect() as connection:
                    await self._lead(connection)
            except (psycopg.Error, OSError) as problem:
                log.warning("scheduler.connection_lost", reason=type(problem).__name__)
            finally:
                self.is_leading = False
            await asyncio.sleep(self._election_s)

    async def _lead(self, connection: Connection) -> None:
        await postgres.set_timeout(connection, "idle_session_timeout", SILENT_SECONDS)
        while not await _is_elected(connection):  # noqa: ASYNC110 the database cannot wake us
            await asyncio.sleep(self._election_s)
        self.is_leading = True
        log.info("scheduler.leading")
        due = {chore.name: time.monotonic() for chore in self._chores}
        while True:
            await connection.execute("select 1")  # raises when the lock is lost with its connection
            for chore in self._chores:
                if due[chore.name] <= time.monotonic():
                    due[chore.name] = time.monotonic() + chore.every_s
                    await do(chore, self._clock())
            nap = min(due.values(), default=0.0) - time.monotonic()
            await asyncio.sleep(min(max(nap, 0.0), LONGEST_NAP_SECONDS))


async def do(chore: Chore, at: datetime) -> None:
    """Does a chore once. Whatever goes wrong is logged and left to the next time: the others have to be done, too."""
    started = time.perf_counter()
    try:
        done = await chore.do(at)
    except (*OUT_OF_REACH, Unavailable) as problem:
        log.warning("chore.put_off", chore=chore.name, reason=type(problem).__name__)
        metrics.chore_ended(chore.name, "put_off", time.perf_counter() - started)
    except Exception:
        log.exception("chore.failed", chore=chore.name)
        metrics.chore_ended(chore.name, "failed", time.perf_counter() - started)
    else:
        if done:
            log.info("chore.done", chore=chore.name, things=done)
        metrics.chore_ended(chore.name, "done", time.perf_counter() - started, things=done)


async def _is_elected(connection: Connection) -> bool:
    cursor = await connection.execute("select pg_try_advisory_lock(%b)", (LEADER_LOCK,))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])
