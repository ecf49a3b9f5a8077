"""Something between us and PostgreSQL that fails in just the way a test asks for.

It looks at what the client sends. At the first bytes that contain a mark (an event's request id, say), it does once
what it was told; everything before and after passes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Failure(Enum):
    BEFORE = auto()
    """The connection breaks before the server has heard anything."""
    AFTER = auto()
    """The server has heard and answered, but the connection breaks before the answer is back."""
    LATE = auto()
    """The connection breaks; the server hears of it all the same, when `deliver` is called."""
    SILENCE = auto()
    """Nothing more comes from anywhere, and nobody says why."""


class Proxy:
    def __init__(self, dsn: str) -> None:
        self._server = conninfo_to_dict(dsn)
        self.dsn = dsn
        self.happened = asyncio.Event()
        self._failure: tuple[bytes, Failure] | None = None
        self._late: list[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def fail(self, mark: str, failure: Failure) -> None:
        """Fails once, when something with this mark is sent."""
        self.happened.clear()
        self._failure = (mark.encode(), failure)

    async def deliver(self) -> bytes:
        """Lets the server have what was held back, and waits for its answer."""
        data, reader, writer = self._late.pop()
        writer.write(data)
        await writer.drain()
        answer = await reader.read(1 << 16)
        writer.close()
        return answer

    async def serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            reader, writer = await self._connect()
        except OSError:
            client_writer.close()
            return
        answers = asyncio.create_task(_pass_on(reader, client_writer))
        is_late = False
        try:
            while data := await client_reader.read(1 << 22):
                failure = self._fails(data)
                if failure is None:
                    writer.write(data)
                    await writer.drain()
                    continue
                answers.cancel()
                await asyncio.wait([answers])
                if failure is Failure.AFTER:
                    writer.write(data)
                    await writer.drain()
                    await reader.read(1 << 16)
                elif failure is Failure.LATE:
                    self._late.append((data, reader, writer))
                    is_late = True
                self.happened.set()
                if failure is Failure.SILENCE:
                    await asyncio.Event().wait()
                return
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            answers.cancel()
            client_writer.close()
            if not is_late:
                writer.close()

    def _fails(self, data: bytes) -> Failure | None:
        if self._failure is None or self._failure[0] not in data:
            return None
        failure, self._failure = self._failure[1], None
        return failure

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = str(self._server["host"]), str(self._server.get("port", 5432))
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))

    async def end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for _, _, writer in self._late:
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def a_proxy(dsn: str) -> AsyncIterator[Proxy]:
    """A proxy in front of a database; its `dsn` leads through it."""
    proxy = Proxy(dsn)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy.dsn = make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
