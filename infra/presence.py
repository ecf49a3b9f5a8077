"""Whether a process lives, as the others can tell: it keeps a number of its own locked in PostgreSQL.

The lock belongs to a connection, so it ends with the process, however that ends. It can also be lost before, with the
connection, and is then taken again. So whoever finds a number free may take over what its process was about to do only
where PostgreSQL refuses that process from then on, should it still be there.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import psycopg
import structlog

from infra.background import cancelled
from infra.journal import Connection

log = structlog.get_logger()

SPACE = 0x1ED6E7  # any number, the same in every process: locks with two numbers whose first is this one are processes
LOOK_SECONDS = 1.0
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, OSError)


class Presence:
    """This process, as long as it lives.

    Args:
        connect: opens a connection to PostgreSQL; it stays open.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.number = secrets.randbelow(2**31)
        self._connect = connect
        self._is_here = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when everybody can see that the process lives."""
        self._task = asyncio.create_task(self._stay(), name="presence")
        await self._is_here.wait()

    async def stop(self) -> None:
        """From now on the process counts as gone."""
        await cancelled(self._task)

    async def _stay(self) -> None:
        while True:
            try:
                async with await self._connect() as connection:
                    await connection.execute("select pg_advisory_lock(%b, %b)", (SPACE, self.number))
                    self._is_here.set()
                    while True:
                        await asyncio.sleep(LOOK_SECONDS)
                        await connection.execute("select 1")  # raises when the lock is lost with its connection
            except AWAY as problem:
                log.warning("presence.lost", reason=type(problem).__name__)
            await asyncio.sleep(LOOK_SECONDS)
