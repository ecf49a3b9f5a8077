"""Tasks beside the one that answers: those that nobody may cancel, how to end one for certain, and reading ahead.

What has begun with a provider is settled, whoever hangs up; what merely runs on until the process ends is cancelled.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()
T = TypeVar("T")

ASK_AGAIN_SECONDS = 0.2


async def cancelled(task: asyncio.Task[Any] | None) -> None:
    """Cancels a task and returns when it has ended.

    A cancellation is a request that can be lost: Python 3.11's `wait_for` swallows one that comes in the moment of its
    result, a library may answer it with an error of its own. So it is repeated until it is heard.
    """
    if task is None:
        return
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=ASK_AGAIN_SECONDS)
    if not task.cancelled() and (problem := task.exception()) is not None:
        log.warning("task.failed", task=task.get_name(), exc_info=problem)


async def ahead(pages: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same pages, each on its way while somebody works on the one before; to be closed by who stops early."""
    following = asyncio.create_task(_next(pages), name="read ahead")
    try:
        while (page := await following) is not None:
            following = asyncio.create_task(_next(pages), name="read ahead")
            yield page
    finally:
        await cancelled(following)
        await pages.aclose()


async def _next(pages: AsyncGenerator[T, None]) -> T | None:
    return await anext(pages, None)


class Background:
    """Holds on to tasks until they are done, and waits for them when the process is to end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Starts work that outlives its request; an exception that nobody collects is logged."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.debug("background.ended", task=task.get_name(), problem=type(problem).__name__)

    async def drain(self, timeout_s: float) -> int:
        """Waits for what is running.

        Returns:
            How many tasks were not done in time.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        return len(self._tasks)
