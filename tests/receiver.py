"""A receiver of webhooks for tests: real HTTP on loopback, good and bad at once.

How it answers is decided by the first part of the path, so that a test says what it wants in the URL that it registers:

    /ok/...                 204
    /slow-<ms>/...          204 after so long
    /held/...               204 once the test lets them all go
    /dead/...               nothing, until the client leaves
    /status-<code>/...      that status; a redirect points to /ok/redirected
    /gone/...               410
    /broken-<n>/...         500 so many times, then 204
    /later-<n>-<s>/...      503 so many times with `Retry-After: <s>`, then 204
    /chatter/...            200, and a body without an end
    /garbage/...            something that is not HTTP

    with Receiver() as receiver:                # a thread of its own
        ... receiver.url, receiver.at("/ok/a"), receiver.until(2, "/ok/a") ...
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any, Self

import msgspec
from aiohttp import web

from tests.waiting import PATIENCE_SECONDS, PAUSE_SECONDS, until


class Received(msgspec.Struct, frozen=True):
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Receiver:
    """Listen until stopped; `with` runs it in a thread, so that any kind of test can use it."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.at_once: Counter[str] = Counter()
        """How many requests to a path were open at the same time, at most."""
        self.url = ""
        self._open: Counter[str] = Counter()
        self._let_go: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run_thread, name="receiver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(PATIENCE_SECONDS):
            raise RuntimeError("the receiver did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run_thread(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._receive)
        # handler_cancellation makes aiohttp tell a handler that its client has left.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    # -- what tests ask ------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def at(self, path: str) -> list[Received]:
        """What has come to a path, or to any path below it."""
        return [request for request in self.requests if f"{request.path}/".startswith(f"{path}/")]

    def until(self, count: int, path: str) -> list[Received]:
        """Wait until so many requests have come to a path."""
        until(lambda: len(self.at(path)) >= count)
        return self.at(path)

    def let_go(self, path: str) -> None:
        """Answers what was held at a path, now and from now on."""
        self._let_go.add(path)

    # -- answering -----------------------------------------------------------------------------------------------------

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.path
        self.requests.append(Received(path, {name.lower(): value for name, value in request.headers.items()}, body))
        self._open[path] += 1
        self.at_once[path] = max(self.at_once[path], self._open[path])
        try:
            return await self._answer(request, [*path.split("/")[1].split("-"), ""])
        finally:
            self._open[path] -= 1

    async def _answer(self, request: web.Request, words: list[str]) -> web.StreamResponse:
        match words:
            case ["slow", milliseconds, *_]:
                await asyncio.sleep(int(milliseconds) / 1000)
            case ["held", *_]:
                while request.path not in self._let_go:  # noqa: ASYNC110 told by another thread
                    await asyncio.sleep(PAUSE_SECONDS)
            case ["dead", *_]:
                await asyncio.sleep(3600)
            case ["status", code, *_]:
                return web.Response(status=int(code), headers={"Location": f"{self.url}/ok/redirected"})
            case ["gone", *_]:
                return web.Response(status=410)
            case ["broken", times, *_] if len(self.at(request.path)) <= int(times):
                return web.Response(status=500, text="x" * 100_000)
            case ["later", times, seconds, *_] if len(self.at(request.path)) <= int(times):
                return web.Response(status=503, headers={"Retry-After": seconds})
            case ["chatter", *_]:
                return await self._chatter(request)
            case ["garbage", *_]:
                assert request.transport is not None
                request.transport.write(b"220 mail.example ESMTP\r\n")
                request.transport.close()
            case _:
                pass
        return web.Response(status=204)

    @staticmethod
    async def _chatter(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"and another thing, " * 1000)
