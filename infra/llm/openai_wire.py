"""OpenAI's chat API over one aiohttp session: what LiteLLM does for these providers in 4 ms, in a tenth of that.

Most of the traffic goes to providers that speak this API. So the wire is all there is to know about them, apart
from the dialects in providers.py. Everything that they are known to leave out, to add or to get wrong is taken as
it comes: null content, null or missing usage, usage on a chunk without choices, an error inside of a stream, JSON
where a stream was due. Answers are bounded in size and in time, and a stream that breaks off is a failure.
"""

import asyncio
import contextlib
import ipaddress
import json
import re
import ssl
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import certifi
import msgspec

from domain.event import UNREADABLE
from infra.llm.providers import LEAN, Dialect, api_base_from_environment, api_key_from_environment
from infra.llm.shapes import (
    ChatRequest,
    Chunk,
    Completion,
    ProviderFailure,
    Target,
    Usage,
    broken,
    failure,
    finish_reason,
    text_of,
    tokens_used,
)
from infra.llm.sse import EventReader, TooLong

LARGEST_ANSWER: Final = 32 << 20
LARGEST_ERROR: Final = 256 << 10
CONNECT_TIMEOUT_S: Final = 10.0
# Many servers (uvicorn, and so vLLM) close a connection after 5 idle seconds. Leaving first means that no request is
# written into one that is just being closed: a POST cannot be repeated without asking who has been billed.
KEEPALIVE_S: Final = 4.0
END_S = 0.2  # for the end of a body behind the end of its answer


class OpenAIWire:
    """The lean transport. Opens its connections in `start`, on the loop that will use them.

    Args:
        timeout_s: for one attempt, from the first byte sent to the last one received.
        connections: at most so many at once; more calls wait, and their time counts.
    """

    def __init__(self, timeout_s: float, connections: int) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_TIMEOUT_S, timeout_s))
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Make the session. TLS is always verified, against the system's authorities and certifi's."""
        connector = aiohttp.TCPConnector(
            ssl=await asyncio.to_thread(_tls),
            limit=self._connections,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=60,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "saas-litellm"},
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(self, target: Target, request: ChatRequest) -> Completion:
        started = time.perf_counter()
        dialect = LEAN[target.provider].dialect_for(target.model)
        body = dialect.body(target, request.messages, request.options)
        async with self._ask(target, body, stream=False) as (response, key):
            answer = _decode(await _read(response, LARGEST_ANSWER), key)
        choice = _only_choice(answer, key)
        message = choice.message or _Message()
        return Completion(
            content=text_of(message.content),
            tool_calls=message.tool_calls or None,
            logprobs=choice.logprobs,
            finish_reason=finish_reason(choice.finish_reason) or "stop",
            usage=answer.tokens,
            latency_ms=round((time.perf_counter() - started) * 1000),
        )

    async def stream(self, target: Target, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        dialect = LEAN[target.provider].dialect_for(target.model)
        body = dialect.body(target, request.messages, request.options) | _streaming(dialect)
        async with self._ask(target, body, stream=True) as (response, key):
            if response.content_type == "application/json":
                # Asked for a stream it answered in one piece, or with an error that it calls a success.
                yield _one_chunk(_decode(await _read(response, LARGEST_ANSWER), key), key)
                return
            reader = _ChunkReader(key)
            async for piece in response.content.iter_any():
                for chunk in reader.feed(piece):
                    yield chunk
                if reader.done:
                    await _read_end(response)
                    return
            for chunk in reader.end():
                yield chunk

    @contextlib.asynccontextmanager
    async def _ask(
        self, target: Target, body: dict[str, Any], *, stream: bool
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, str | None]]:
        """Send the request; every way in which that or reading the answer can go wrong leaves as ProviderFailure."""
        url, proxy = _route(target)
        key = target.api_key or api_key_from_environment(target.provider)
        if key is None and LEAN[target.provider].needs_key and target.api_base is None:
            raise ProviderFailure("not_configured", f"no API key for {target.provider}")
        if self._session is None:
            raise RuntimeError("start() has not been called")
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if stream:
            # Compression would collect text before it lets it go.
            headers |= {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        try:
            async with self._session.post(
                url,
                data=msgspec.json.encode(body),
                headers=headers,
                proxy=proxy,
                allow_redirects=False,  # a redirect would carry the prompt, and on one host the key, elsewhere
            ) as response:
                if response.status != 200:
                    raise failure(response.status, await _error_text(response), key)
                yield response, key
        except TimeoutError as error:
            text = str(error) or f"no answer within {self._timeout.total:g} s"
            raise ProviderFailure("timeout", text) from None
        except TooLong:
            raise broken("the stream is longer than an answer can be") from None
        except (aiohttp.ClientError, OSError) as error:
            raise broken(f"{type(error).__name__}: {error}", key) from error


def _route(target: Target) -> tuple[str, str | None]:
    """Where to send a call, and through which proxy.

    Raises:
        ProviderFailure: neither the alias, nor the environment, nor the table knows an address.
    """
    provider = LEAN[target.provider]
    base = target.api_base or api_base_from_environment(target.provider) or provider.api_base
    if base is None:
        raise ProviderFailure("not_configured", f"no api_base for {target.provider}")
    base = base.rstrip("/").removesuffix("/chat/completions")
    try:
        if provider.api_path and not urlsplit(base).path:
            base += provider.api_path
        return f"{base}/chat/completions", proxy_for(base)
    except ValueError:
        raise ProviderFailure("not_configured", f"the api_base of {target.provider} is no address") from None


@lru_cache(maxsize=1024)
def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address; loopback never takes one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "localhost" or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # slim images have no authorities of their own
    return context


def _streaming(dialect: Dialect) -> dict[str, Any]:
    if dialect.reports_usage_unasked:
        return {"stream": True}
    return {"stream": True, "stream_options": {"include_usage": True}}


# -- reading -------------------------------------------------------------------------------------------------


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body, unless it has more bytes than allowed (counted after decompression)."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise broken(f"the answer has more than {limit} bytes")
    return bytes(body)


async def _read_end(response: aiohttp.ClientResponse) -> None:
    """Read the end of the body after the end of the answer: only then can the connection be used again."""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(END_S):
            while await response.content.readany():
                pass


class _ChunkReader:
    """Turns pieces of the body into chunks, and knows whether the answer is whole."""

    def __init__(self, key: str | None) -> None:
        self._events = EventReader(LARGEST_ANSWER)
        self._key = key
        self._finished = False
        self.done = False

    def feed(self, piece: bytes) -> Iterator[Chunk]:
        return self._chunks(self._events.feed(piece))

    def end(self) -> Iterator[Chunk]:
        """The connection has ended without [DONE], which some forget; nobody forgets why the answer ended."""
        yield from self._chunks(self._events.end())
        if not self._finished and not self.done:
            raise broken("the stream ended before the answer did")

    def _chunks(self, events: list[bytes]) -> Iterator[Chunk]:
        for data in events:
            if data == b"[DONE]":
                self.done = True
                return
            chunk = _chunk(_decode(data, self._key))
            if chunk is not None:
                self._finished = self._finished or chunk.finish_reason is not None
                yield chunk


async def _error_text(response: aiohttp.ClientResponse) -> str:
    """The provider's own words: the message of an error in OpenAI's shape, or else the body as it is."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > LARGEST_ERROR:
            break
    try:
        said = msgspec.json.decode(bytes(body))
    except UNREADABLE:
        said = None
    return _words(said) or body.decode(errors="replace") or response.reason or "no explanation"


def _words(said: Any) -> str:
    """The message in whatever shape the error has."""
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict):
        for name in ("error", "message", "detail"):
            if said.get(name):
                return _words(said[name])
        return json.dumps(said)
    return said if isinstance(said, str) else ""


# -- the shapes on the wire; `Any` where providers disagree with OpenAI or with themselves ---------------------


class _Message(msgspec.Struct):
    content: Any = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: Any = None
    logprobs: dict[str, Any] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None

    @property
    def tokens(self) -> Usage | None:
        return tokens_used(self.usage.prompt_tokens, self.usage.completion_tokens) if self.usage else None


_ANSWER: Final = msgspec.json.Decoder(_Answer)

# Escapes; among them half of a surrogate pair, without its other half: a letter that somebody has cut in two.
_HALF_LETTERS: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?P<half>[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def _read_answer(data: bytes) -> _Answer:
    try:
        return _ANSWER.decode(data)
    except msgspec.DecodeError:
        if b"\\u" not in data:
            raise
        return _ANSWER.decode(_HALF_LETTERS.sub(_whole_letter, data))


def _whole_letter(escape: re.Match[bytes]) -> bytes:
    return escape[0] if escape["half"] is None else rb"\ufffd"


def _decode(data: bytes, key: str | None) -> _Answer:
    """A whole answer or one chunk.

    Raises:
        ProviderFailure: it is neither, or it is an error sent with status 200.
    """
    try:
        answer = _read_answer(data)
    except UNREADABLE as error:
        raise broken(f"not an answer ({error}): {data[:200].decode(errors='replace')}", key) from None
    if answer.error:
        code = answer.error.get("code") if isinstance(answer.error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        raise failure(status, _words({"error": answer.error}), key)
    return answer


def _only_choice(answer: _Answer, key: str | None) -> _Choice:
    if not answer.choices:
        raise broken("an answer without choices", key)
    return answer.choices[0]


def _chunk(answer: _Answer) -> Chunk | None:
    """What a chunk says, if anything: some carry only a role, or nothing at all."""
    usage = answer.tokens
    if not answer.choices:
        return Chunk(usage=usage) if usage is not None else None
    choice = answer.choices[0]
    delta = choice.delta or _Message()
    chunk = Chunk(
        content=text_of(delta.content) or None,
        tool_calls=delta.tool_calls or None,
        logprobs=choice.logprobs,
        finish_reason=finish_reason(choice.finish_reason),
        usage=usage,
    )
    return chunk if chunk != _NOTHING else None


_NOTHING: Final = Chunk()


def _one_chunk(answer: _Answer, key: str | None) -> Chunk:
    choice = _only_choice(answer, key)
    message = choice.message or _Message()
    return Chunk(
        content=text_of(message.content) or None,
        tool_calls=message.tool_calls or None,
        logprobs=choice.logprobs,
        finish_reason=finish_reason(choice.finish_reason) or "stop",
        usage=answer.tokens,
    )
