"""A provider of language models for tests, benches and the demo: real HTTP on loopback, no model.

What it answers is decided by the name of the model in the request, so that a test says what it
wants in the place where it calls:

    gpt-ok (and any other name)   "Hello from the fake provider.", 5 + 7 tokens
    echo                          the last user message; one token a word
    usage-<in>-<out>              gpt-ok, reporting exactly these tokens
    no-usage, null-usage, zero-usage, partial-usage, null-content, no-choices, list-content
    finish-<reason>               gpt-ok, ended for that reason
    tools                         one tool call, in pieces when streamed
    cookie                        gpt-ok, with a cookie
    agent                         a tool call first, gpt-ok when it is told what the tool said
    slow-<ms>                     gpt-ok after so long
    stream-<n>-<delay ms>         n chunks "w0 w1 ...", so far apart
    ragged                        a stream with comments, CRLF, split UTF-8, data over several lines
    unannounced-end               a stream that ends cleanly, but without finish_reason and [DONE]
    not-a-stream                  JSON, although a stream was asked for
    break-after-<n>               n chunks (or half of the JSON), then the connection is cut
    break-after-<n>-<name>        the same, but cut when the test calls let_go("break-after-<n>-<name>")
    hang, hang-after-<n>          silence at once, or after n chunks, until the client leaves
    held-<name>                   gpt-ok when the test calls let_go("held-<name>"); of a stream, half of it at once
    status-<code>                 that status, with an error in OpenAI's shape
    error-in-200, error-in-stream an error where an answer was due
    html, garbage, big-<bytes>    an answer that is none, or too long
    raw-<number>                  just the bytes that the test has given to `says`, whatever they are
    long-error, leaky-error       500 with 100,000 characters; 500 with keys and addresses in it

Like the real ones it sends usage with a stream only if `stream_options.include_usage` asks for it.

    with FakeProvider() as provider:            # a thread of its own
        ... provider.url, provider.requests ...

    python -m tests.provider --port 9000        # a process of its own, prints its URL
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Self

import msgspec
from aiohttp import web

from tests.waiting import PATIENCE_SECONDS, PAUSE_SECONDS, until

HELLO = "Hello from the fake provider."
DONE = b"data: [DONE]\n\n"


class Ask(msgspec.Struct):
    model: str
    messages: list[dict[str, Any]] = []
    stream: bool = False
    stream_options: dict[str, Any] = {}

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options.get("include_usage"))


class Seen(msgspec.Struct):
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    connection: int
    """The client's port: equal for two requests over one connection."""


class FakeProvider:
    """Serve until stopped; `with` runs it in a thread, so that any kind of test can use it.

    Args:
        port: 0 takes a free one.
        keep: how many requests to remember in full; 0 when speed matters.
    """

    def __init__(self, port: int = 0, keep: int = 1000) -> None:
        self.requests: deque[Seen] = deque(maxlen=keep)
        self.calls: Counter[str] = Counter()
        self.disconnects: Counter[str] = Counter()
        self._said: list[bytes] = []
        self.url = ""
        self._port = port
        self._keep = keep
        self._loop = asyncio.new_event_loop()
        self._let_go: set[str] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run_thread, name="fake-provider", daemon=True)
        self._runner: web.AppRunner | None = None

    # -- running --------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(PATIENCE_SECONDS):
            raise RuntimeError("the fake provider did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run_thread(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self.stop())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def start(self) -> None:
        # handler_cancellation makes aiohttp tell a handler that its client has left.
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/openai/deployments/{model}/chat/completions", self._answer)  # Azure's
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def last(self) -> Seen:
        return self.requests[-1]

    @property
    def connections(self) -> int:
        """How many are open."""
        server = self._runner.server if self._runner is not None else None
        return len(server.connections) if server is not None else 0

    def until(self, happened: Callable[[FakeProvider], bool]) -> None:
        """Wait for something that the provider notices later than the client, such as its leaving."""
        until(lambda: happened(self))

    def let_go(self, model: str) -> None:
        """Goes on with what is held, now and from now on."""
        self._let_go.add(model)

    def says(self, answer: bytes) -> str:
        """The model that answers with just these bytes."""
        self._said.append(answer)
        return f"raw-{len(self._said) - 1}"

    # -- answering ------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        ask = msgspec.json.decode(raw, type=Ask)
        self.calls[ask.model] += 1
        if self._keep:
            port = request.transport.get_extra_info("peername")[1] if request.transport else 0
            self.requests.append(Seen(request.path, dict(request.headers), msgspec.json.decode(raw), port))
        if ask.model == "agent":
            ask.model = "gpt-ok" if any(message.get("role") == "tool" for message in ask.messages) else "tools"
        try:
            return await self._act(request, ask)
        except (asyncio.CancelledError, ConnectionResetError):
            self.disconnects[ask.model] += 1
            raise

    async def _act(self, request: web.Request, ask: Ask) -> web.StreamResponse:
        match parts(ask.model):
            case ["slow", int(milliseconds)]:
                await asyncio.sleep(milliseconds / 1000)
            case ["hang"]:
                await asyncio.sleep(3600)
            case ["held", *_] if not ask.stream:
                await self._until_let_go(ask.model)
            case ["break", "after", int(count), *told]:
                return await self._break(request, ask, count, when_told=bool(told))
            case _:
                bad = self._bad_answer(request, ask)
                if bad is not None:
                    return bad
        if ask.stream and ask.model != "not-a-stream":
            return await self._stream(request, ask)
        headers = {"Set-Cookie": "who=you; Path=/"} if ask.model == "cookie" else None
        return web.Response(body=whole(ask.model, last_words(ask)), content_type="application/json", headers=headers)

    def _bad_answer(self, request: web.Request, ask: Ask) -> web.Response | None:
        match parts(ask.model):
            case ["status", 302]:
                return web.Response(status=302, headers={"Location": f"{self.url}/elsewhere"})
            case ["status", int(status)]:
                return failed(status, f"status {status} from the fake provider")
            case ["long", "error"]:
                return failed(500, "x" * 100_000)
            case ["leaky", "error"]:
                return failed(500, leak(request.headers.get("Authorization", "")))
            case ["error", "in", 200]:
                return web.json_response({"error": {"message": "overloaded after all", "code": 503}})
            case ["html"]:
                return web.Response(text="<html>maintenance</html>", content_type="text/html")
            case ["garbage"]:
                text = 'data: {"choices": [\n\n' if ask.stream else '{"choices": ['
                return web.Response(text=text, content_type=kind(ask))
            case ["raw", int(number)]:
                return web.Response(body=self._said[number], content_type=kind(ask))
            case ["big", int(size)]:
                return web.Response(body=b" " * size, content_type=kind(ask))
            case _:
                return None

    async def _stream(self, request: web.Request, ask: Ask) -> web.StreamResponse:
        response = await self._begin_stream(request)
        pause = 0.0
        match parts(ask.model):
            case ["stream", int(), int(milliseconds)]:
                pause = milliseconds / 1000
            case ["ragged"]:
                for byte in ragged():
                    await response.write(bytes([byte]))
                return response
            case ["hang", "after", int(count)]:
                await self._give(response, *pieces("gpt-ok", "", False)[:count])
                await asyncio.sleep(3600)
            case ["held", *_]:
                given = pieces("gpt-ok", "", ask.wants_usage)
                await self._give(response, *given[:3])
                await self._until_let_go(ask.model)
                await self._give(response, *given[3:])
                return response
            case ["unannounced", "end"]:
                await self._give(response, *pieces("gpt-ok", "", False)[:3])
                return response
            case ["error", "in", "stream"]:
                await self._give(response, *pieces("gpt-ok", "", False)[:3])
                await response.write(b'data: {"error":{"message":"overloaded in mid-stream","code":503}}\n\n')
                return response
            case _:
                pass
        for piece in pieces(ask.model, last_words(ask), ask.wants_usage):
            await response.write(piece)
            if pause:
                await asyncio.sleep(pause)
        await response.write_eof()
        return response

    async def _begin_stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        return response

    @staticmethod
    async def _give(response: web.StreamResponse, *given: bytes) -> None:
        for piece in given:
            await response.write(piece)

    async def _until_let_go(self, model: str) -> None:
        while model not in self._let_go:  # noqa: ASYNC110 told by another thread
            await asyncio.sleep(PAUSE_SECONDS)

    async def _break(self, request: web.Request, ask: Ask, count: int, *, when_told: bool) -> web.StreamResponse:
        if ask.stream:
            response = await self._begin_stream(request)
            await self._give(response, *pieces("gpt-ok", "", False)[:count])
        else:
            body = whole("gpt-ok", "")
            response = web.StreamResponse(headers={"Content-Length": str(len(body))})
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
        # A client that has not read all of it when the connection breaks may lose what it has not read.
        await (self._until_let_go(ask.model) if when_told else asyncio.sleep(0.05))
        if request.transport is not None:
            request.transport.close()
        return response


def parts(model: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in model.split("-")]


def kind(ask: Ask) -> str:
    return "text/event-stream" if ask.stream else "application/json"


def failed(status: int, text: str) -> web.Response:
    error = {"message": text, "type": "fake_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=status)


def leak(authorization: str) -> str:
    return (
        f"call to https://user:hunter2@internal.example:8443/v1/chat?key=AIzaSyA-1234567890abcdefghijklmnopqrstu"
        f" with header Authorization: {authorization}, api_key='sk-proj-abcdefghijklmnop1234567890'"
        f" and token=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl refused by replica 7"
    )


def last_words(ask: Ask) -> str:
    """The last user message: the only part of a request that an answer depends on."""
    if ask.model != "echo":
        return ""
    said = [message.get("content") for message in ask.messages if message.get("role") == "user"]
    return said[-1] if said and isinstance(said[-1], str) else ""


def usage_of(model: str, words: str) -> dict[str, Any] | None:
    match parts(model):
        case ["no" | "null", "usage"]:
            return None
        case ["zero", "usage"]:
            counts = (0, 0)
        case ["partial", "usage"]:
            return {"total_tokens": 12}
        case ["usage", int(tokens_in), int(tokens_out)]:
            counts = (tokens_in, tokens_out)
        case ["echo"]:
            counts = (len(words.split()), len(words.split()))
        case ["stream", int(count), int()]:
            counts = (5, count)
        case _:
            counts = (5, 7)
    return {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}


def finish_of(model: str) -> str:
    name, _, reason = model.partition("-")
    return reason if name == "finish" else "tool_calls" if model == "tools" else "stop"


def text_of(model: str, words: str) -> str:
    match parts(model):
        case ["echo"]:
            return words
        case ["stream", int(count), int()]:
            return "".join(f"w{number} " for number in range(count))
        case _:
            return HELLO


WEATHER = {"name": "weather", "arguments": '{"city": "Oslo"}'}


@lru_cache(maxsize=512)
def whole(model: str, words: str) -> bytes:
    """The JSON answer. Made once: the bench must measure its client, not this file."""
    content: Any = text_of(model, words)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if model == "null-content":
        message["content"] = None
    elif model == "list-content":
        message["content"] = [{"type": "text", "text": content[:5]}, {"type": "text", "text": content[5:]}]
    elif model == "tools":
        message["content"] = None
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": WEATHER}]
    choice = {"index": 0, "message": message, "finish_reason": finish_of(model)}
    body: dict[str, Any] = {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1728907200,
        "model": model,
        "service_tier": "default",  # LiteLLM takes no answer of Groq without it
        "choices": [] if model == "no-choices" else [choice],
    }
    if model != "no-usage":
        body["usage"] = usage_of(model, words)
    return msgspec.json.encode(body)


def event(model: str, delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    """One server-sent event; a delta of None makes the choices empty."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1728907200}
    return b"data: " + msgspec.json.encode(chunk | {"model": model, "choices": choices} | more) + b"\n\n"


def deltas(model: str, words: str) -> Iterator[dict[str, Any]]:
    if model == "tools":
        call = {"index": 0, "id": "call_1", "type": "function"}
        yield {
            "role": "assistant",
            "content": None,
            "tool_calls": [call | {"function": {"name": "weather", "arguments": ""}}],
        }
        for piece in (WEATHER["arguments"][:8], WEATHER["arguments"][8:]):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        return
    yield {"role": "assistant", "content": ""}
    if model == "null-content":
        yield {"content": None}
        return
    for word in text_of(model, words).split(" "):
        if word:
            yield {"content": word if word == HELLO.split(" ")[-1] else word + " "}


@lru_cache(maxsize=512)
def pieces(model: str, words: str, wants_usage: bool) -> list[bytes]:
    """The events of a stream, as real providers cut it: role, words, end, usage, [DONE]."""
    events = [event(model, delta) for delta in deltas(model, words)]
    events.append(event(model, {}, finish_of(model), **({"usage": None} if model == "null-usage" else {})))
    if wants_usage and model != "no-usage":
        events.append(event(model, None, usage=usage_of(model, words)))
    return [*events, DONE]


def ragged() -> bytes:
    """Everything that the event-stream format allows and that parsers trip over, one byte at a time."""
    return (
        ": a comment\r\n\r\n"
        "event: message\r\nid: 7\r\nretry: 10\r\n"
        'data: {"choices":[{"index":0,\r\ndata: "delta":{"role":"assistant","content":"Grüße "}}]}\r\n\r\n'
        'data:{"choices":[{"index":0,"delta":{"content":"aus 東京 🗼"},"finish_reason":null}],"usage":null}\n\n'
        ": ping\n\n"
        'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
        "data: [DONE]\n\n"
    ).encode()


async def serve(port: int) -> None:
    provider = FakeProvider(port, keep=0)
    await provider.start()
    print(provider.url, flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await provider.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible provider on loopback.")
    parser.add_argument("--port", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args().port))
