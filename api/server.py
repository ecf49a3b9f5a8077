"""Starts the house: database, then processes that answer.

The first process gets the database ready and then only watches over its workers; each worker builds the application
for itself (`worker`), from the same environment. `work` does in one process what nobody asks for by HTTP, beside
servers that only answer.
"""

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

import structlog
import uvloop
from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server import MPServer

from api.database import database
from infra import log as logging
from infra.embedded import EmbeddedServer
from infra.settings import Settings, SettingsError
from infra.version import VERSION

if TYPE_CHECKING:
    from litestar.types import ASGIApp

    from api.house import House

log = structlog.get_logger()

ENDING = signal.SIGUSR1  # tells a worker, before SIGTERM does, that its time has begun to run out


def serve(settings: Settings, *, api_only: bool = False) -> None:
    """Answers until SIGTERM or SIGINT; then takes nothing new, settles what is running, and returns.

    Args:
        api_only: leave the background work to a process that does `work`.

    Raises:
        SettingsError: nothing can be listened for at that address.
        DatabaseUnusable: and the text says why in one line.
    """
    _require_free_address(settings)
    for file in settings.key_files:
        log.info("key.in_file", path=str(file))
    with _database(settings):
        log.info("server.starting", address=f"http://{settings.host}:{settings.port}", version=VERSION)
        _Server(
            "api.server:answering_worker" if api_only else "api.server:worker",
            factory=True,
            address=settings.host,
            port=settings.port,
            interface=Interfaces.ASGI,
            loop=Loops.uvloop,
            workers=settings.workers,
            backlog=2048,
            websockets=False,
            respawn_failed_workers=True,
            # Granian counts in whole seconds; the worker itself stops waiting before that.
            workers_kill_timeout=int(settings.shutdown_timeout_seconds) + 10,
            # Only its troubles, and through our log: a worker that does not come up, one that died.
            log_level=LogLevels.warning,
            log_dictconfig={"loggers": {"_granian": {"propagate": True}}},
        ).serve()


class _Server(MPServer):
    """Granian lets requests end before a worker's application hears that it has to, however long they take."""

    def shutdown(self, exit_code: int = 0) -> None:
        for worker in self.wrks:
            if worker.inner.is_alive():
                os.kill(worker.inner.pid, ENDING)
        super().shutdown(exit_code)  # type: ignore[no-untyped-call]


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """Gives the address of the database; while it starts, the application is imported, which takes about as long."""
    imports = Thread(target=import_module, args=("api.app",), name="imports")
    imports.start()
    with database(settings) as dsn:
        imports.join()  # processes that are forked from this one need not import it again
        yield dsn


def _require_free_address(settings: Settings) -> None:
    """Found out here, since Granian tells it with 70 lines of its own insides."""
    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError as error:
        reason = (error.strerror or "").partition(" (")[0]
        raise SettingsError("PORT", f"cannot listen on {settings.host}:{settings.port}: {reason}") from error


def worker() -> "ASGIApp":
    """The application of one worker process."""
    return _application(works=True)


def answering_worker() -> "ASGIApp":
    """The same for a server that only answers."""
    return _application(works=False)


def _application(*, works: bool) -> "ASGIApp":
    from api.app import create_app

    settings = Settings.from_environment(os.environ)
    logging.configure(settings.log_level, settings.log_format)
    signal.signal(ENDING, signal.SIG_IGN)  # there is nothing to break off yet
    Thread(target=_end_with_the_first_process, name="watch", daemon=True).start()
    _collect_less_often()
    dsn = settings.database_url or EmbeddedServer(settings.data_dir).dsn
    return create_app(settings, dsn, works=works, opened=_break_off_in_time)


def _break_off_in_time(house: "House") -> None:
    """What is still asked of a model when the time for it is over is broken off, so that its end is put on record."""
    loop = asyncio.get_running_loop()
    patience = house.settings.shutdown_timeout_seconds
    loop.add_signal_handler(ENDING, lambda: loop.call_later(patience, house.models.cut))


def _end_with_the_first_process() -> None:
    """If that is killed, nobody else ends its workers: they would go on, and whoever starts it again is told that its
    port is taken."""
    first = multiprocessing.parent_process()
    assert first is not None
    first.join()
    for order in (ENDING, signal.SIGTERM):
        os.kill(os.getpid(), order)


def _collect_less_often() -> None:
    """What was imported stays for ever, and states are kept by the ten thousand: looking through them seldom pays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def work(settings: Settings) -> None:
    """Does the background work until SIGTERM or SIGINT."""
    with _database(settings) as dsn:
        uvloop.run(_work(settings, dsn))


async def _work(settings: Settings, dsn: str) -> None:
    from api.app import open_house

    told_to_end = asyncio.Event()
    for order in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(order, told_to_end.set)
    async with open_house(settings, dsn):
        log.info("work.started", version=VERSION)
        await told_to_end.wait()
