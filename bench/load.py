"""A small, fast HTTP client for load: keep-alive connections that each send the next request when they are answered.

It parses no more than it has to, so that on a machine shared with the server it costs little of what it measures.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import uvloop

Request = Callable[[], bytes]


@dataclass
class Result:
    """What a load brought: answers by status, and how long each took."""

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def request(method: str, path: str, *, key: str | None = None, body: object = None) -> bytes:
    """A request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(content)}"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines.append("Content-Type: application/json")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class _Connection(asyncio.Protocol):
    def __init__(self, next_request: Callable[[], bytes | None], result: Result) -> None:
        self._next = next_request
        self._result = result
        self._buffer = b""
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        wanted = self._next()
        if wanted is None:
            self._transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(wanted)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        if at >= 0:
            end = lowered.find(b"\r", at)
            if len(body) < int(lowered[at + 15 : end if end >= 0 else None]):
                return
        elif not body.endswith(b"0\r\n\r\n"):
            return  # chunked, and not at its end
        self._result.latencies_ms.append((time.perf_counter() - self._sent) * 1000)
        self._result.statuses[int(head[9:12])] += 1
        self._buffer = b""
        self._send()

    def connection_lost(self, problem: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server hung up"))


async def _load(port: int, connections: int, requests: Iterator[bytes], seconds: float | None) -> Result:
    result = Result(0.0)
    ends = time.perf_counter() + seconds if seconds is not None else float("inf")

    def next_request() -> bytes | None:
        return next(requests, None) if time.perf_counter() < ends else None

    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Connection(next_request, result), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in made))
    result.seconds = time.perf_counter() - started
    return result


def load(port: int, requests: Iterator[bytes], *, connections: int, seconds: float | None = None) -> Result:
    """Sends requests over so many connections until there are no more, or the time is up."""
    return uvloop.run(_load(port, connections, requests, seconds))
