"""The outermost layer: what is true of every answer, also of those that no controller ever saw.

A request id, the two spellings of a path (`/api/v1/...`, trailing slash), the limit of a body, one log line.
"""

import asyncio
import re
import time
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Trouble
from infra import metrics
from infra.ids import new_id

SMALL_BODY = 65_536  # bytes: whoever has announced no more may take their time
BODY_SECONDS = 60.0  # for all others, who fill the memory while they are waited for
_REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,128}$")
_UNPRINTABLE = b"%EF%BF%BD"  # U+FFFD: no id has it, so what is asked for with a NUL in it is simply not found


class Edge:
    """Wraps the application.

    Args:
        app: what answers.
        max_body_bytes: larger bodies are answered 413, without being read to their end. One that breaks off, or takes
            too long, is answered 400.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._log = structlog.get_logger().bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        scope["path"] = _plain_path(scope["path"])
        scope["query_string"] = scope["query_string"].replace(b"%00", _UNPRINTABLE)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        method = scope["method"]
        started = time.perf_counter()
        status = 500

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_marks(scope["state"])]
            elif message["type"] == "http.response.body" and not message["more_body"]:
                await _tidy_up(scope["state"], status, message["body"])
            await send(message)

        if method != "GET":  # whose body nobody reads
            receive = self._bounded(headers, receive)
        try:
            await self._app(scope, receive, send_marked)
        finally:
            seconds = time.perf_counter() - started
            metrics.request_answered(method, str(scope.get("path_template", "none")), status, seconds)
            self._log.info(
                "request.answered",
                method=method,
                path=scope["path"],
                status=status,
                duration_ms=round(seconds * 1000, 1),
            )
            structlog.contextvars.unbind_contextvars("request_id")

    def _bounded(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        declared = headers.get(b"content-length", b"")
        size = int(declared) if declared.isdigit() else None
        deadline = None if size is not None and size <= SMALL_BODY else asyncio.get_running_loop().time() + BODY_SECONDS
        received = 0
        is_whole = False

        async def receive_bounded() -> Any:
            nonlocal received, is_whole
            if size is not None and size > self._max_body_bytes:
                raise Trouble("payload_too_large")
            message: MutableMapping[str, Any]
            try:
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()  # type: ignore[assignment]
            except TimeoutError:
                raise Trouble("malformed_json") from None
            if message["type"] == "http.disconnect" and not is_whole:
                raise Trouble("malformed_json")  # it broke off, which is no fault of ours
            is_whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise Trouble("payload_too_large")
            return message

        return receive_bounded


def _marks(state: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """The headers of every answer: which request it was, and for a GET how much of the journal it has seen."""
    marks = [(b"x-request-id", state["request_id"].encode())]
    if "position" in state:
        marks.append((b"x-ledger-position", str(state["position"]).encode()))
        if state["lag"]:
            marks.append((b"x-ledger-lag", str(state["lag"]).encode()))
    marks += [(name.encode(), value.encode()) for name, value in state.get("limits", {}).items()]
    return marks


async def _tidy_up(state: dict[str, Any], status: int, body: bytes) -> None:
    """What a request took and its controller has not settled: its idempotency key, the tokens of its limit."""
    claim, admission = state.get("claim"), state.get("admission")
    if claim is not None:
        await claim.end(status, body)
    if admission is not None and status >= HTTPStatus.BAD_REQUEST:
        await admission.give_back()


def _request_id(sent: bytes) -> str:
    return sent.decode() if _REQUEST_ID.match(sent) else new_id()


def _plain_path(path: str) -> str:
    if path.startswith("/api/v1/"):
        path = "/api/" + path.removeprefix("/api/v1/")
    return path.rstrip("/").replace("\x00", "\ufffd") or "/"
