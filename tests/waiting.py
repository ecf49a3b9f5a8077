"""Waiting for something that happens elsewhere: until it has happened, and never for a number of tries.

How fast a machine is must not decide whether a test passes: the patience is generous, and only a fault uses it up.
"""

import asyncio
import inspect
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE_SECONDS = 60.0
PAUSE_SECONDS = 0.005


def until(happened: Callable[[], Any]) -> Any:
    """Waits for something to be true, and gives it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := happened()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(PAUSE_SECONDS)
    return answer


async def eventually(happened: Callable[[], Awaitable[Any] | Any]) -> Any:
    """The same on an event loop; what is asked may have to be awaited."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = happened()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(PAUSE_SECONDS)


def free_port() -> int:
    """A port for a program that is about to start: none that the kernel hands out to somebody else meanwhile."""
    for port in random.sample(range(20_000, 32_000), 100):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise OSError("no port is free")
