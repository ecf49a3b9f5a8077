"""Calls to language models inside a job: one for the whole answer, one for the answer as it is written."""

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Controller, Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from litestar.response import Stream

from api import calling
from api.answers import encode, reply
from api.caller import Caller, limited_call
from api.calling import Call, CallBody, Ended, Finished, Piece, Relay
from api.jobs import uuid_of
from api.problems import PROBLEMS, Trouble
from api.shapes import Uuid
from infra.llm import Usage


class UsageAnswer(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class MessageAnswer(msgspec.Struct, omit_defaults=True):
    role: str
    content: str
    tool_calls: list[dict[str, Any]] | None = None


class Choice(msgspec.Struct):
    index: int
    message: MessageAnswer
    finish_reason: str


class PlainAnswer(msgspec.Struct):
    """What clients of the older dialect read."""

    content: str
    finish_reason: str
    role: str = "assistant"


class CallFigures(msgspec.Struct):
    tokens_used: int
    latency_ms: int
    model_group: str
    model: str


class ChatCompletion(msgspec.Struct, kw_only=True):
    """An answer as OpenAI's clients read it."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: UsageAnswer


class LlmCallAnswer(ChatCompletion, kw_only=True):
    """Both dialects at once: `response` and `metadata`, and a chat completion."""

    call_id: Uuid
    job_id: Uuid
    response: PlainAnswer
    metadata: CallFigures


class LlmCallsController(Controller):
    path = "/api/jobs"
    tags = ["LLM Calls"]
    before_request = limited_call

    @post("/{job_id:str}/llm-call", status_code=200)
    async def call(
        self, caller: NamedDependency[Caller], job_id: FromPath[str], data: JSONBody[CallBody]
    ) -> Response[LlmCallAnswer]:
        """Call a model and wait for its whole answer."""
        asked = calling.question(data)
        call = await calling.start(caller, uuid_of(job_id, "job"), asked, streaming=False)
        caller.answers_with(call.headers)
        finished = await calling.complete(call, call_answer)
        return reply(call_answer(finished), headers=call.headers)

    @post("/{job_id:str}/llm-call-stream", status_code=200, media_type="text/event-stream")
    async def stream(self, caller: NamedDependency[Caller], job_id: FromPath[str], data: JSONBody[CallBody]) -> Stream:
        """Call a model and pass its answer on as it is written, as server-sent events."""
        asked = calling.question(data)
        call = await calling.start(caller, uuid_of(job_id, "job"), asked, streaming=True)
        return event_stream(call, events(call, relay(call)))


def call_answer(finished: Finished) -> LlmCallAnswer:
    started = finished.call.started
    return LlmCallAnswer(
        call_id=started.call_id,
        job_id=started.job_id,
        response=PlainAnswer(finished.content, finished.finish_reason),
        metadata=CallFigures(
            finished.usage.total_tokens, finished.latency_ms, model_group=started.model, model=started.model
        ),
        id=f"chatcmpl-{started.call_id}",
        created=int(started.at.timestamp()),
        model=started.model,
        choices=[Choice(0, MessageAnswer("assistant", finished.content, finished.tool_calls), finished.finish_reason)],
        usage=usage_answer(finished.usage),
    )


def usage_answer(usage: Usage) -> UsageAnswer:
    return UsageAnswer(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


# -- server-sent events (contract, appendix B) ------------------------------------------------

SSE_HEADERS = {"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still here\n\n"
NOTHING_SAID = Piece()


class Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    finish_reason: str | None


class ChunkAnswer(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    content: str | msgspec.UnsetType = msgspec.UNSET
    usage: UsageAnswer | msgspec.UnsetType = msgspec.UNSET


def relay(call: Call) -> Relay:
    """The stream of a call, and of what a repeat of its request gets."""

    def replayed(whole: Piece, ended: Ended) -> bytes:
        created = int(call.started.at.timestamp())
        said = b"" if whole == NOTHING_SAID else _event(_chunk(call, created, whole, is_first=True))
        return b": ok\n\n" + said + _end(call, created, ended) + DONE

    return Relay(call, replayed, drain=call.house.settings.stream_on_disconnect == "drain")


def event_stream(call: Call, body: AsyncIterator[bytes]) -> Stream:
    """The answer to the client; to be made before the call can have ended."""
    headers = {**SSE_HEADERS, **call.headers}
    call.caller.answers_with(headers)
    return Stream(body, media_type="text/event-stream", headers=headers)


async def events(call: Call, stream: Relay) -> AsyncIterator[bytes]:
    """The answer as events: first a comment, so that headers go out at once; each piece as it comes; always an end."""
    yield b": ok\n\n"
    created = int(time.time())
    is_first = True
    async for piece in stream.pieces():
        if piece is None:
            yield KEEP_ALIVE
            continue
        if isinstance(piece, Ended):
            yield _end(call, created, piece)
            yield DONE
            return
        yield _event(_chunk(call, created, piece, is_first=is_first))
        is_first = False


def _chunk(call: Call, created: int, piece: Piece, *, is_first: bool) -> ChunkAnswer:
    delta = Delta("assistant" if is_first else None, piece.content, piece.tool_calls)
    return ChunkAnswer(
        id=f"chatcmpl-{call.call_id}",
        created=created,
        model=call.started.model,
        choices=[ChunkChoice(0, delta, None)],
        content=msgspec.UNSET if piece.content is None else piece.content,
    )


def _end(call: Call, created: int, ended: Ended) -> bytes:
    if ended.trouble is not None:
        return _event({"error": error_of(ended.trouble)})
    assert ended.usage is not None
    return _event(
        ChunkAnswer(
            id=f"chatcmpl-{call.call_id}",
            created=created,
            model=call.started.model,
            choices=[ChunkChoice(0, Delta(), ended.finish_reason)],
            usage=usage_answer(ended.usage),
        )
    )


def error_of(trouble: Trouble) -> dict[str, str]:
    """What a client learns of a stream that failed: nothing of the provider's."""
    entry = PROBLEMS[trouble.code]
    kind = "invalid_request_error" if entry.status < 500 else "api_error"
    return {"message": entry.detail, "type": kind, "code": trouble.code}


def _event(content: Any) -> bytes:
    return b"data: " + encode(content) + b"\n\n"
