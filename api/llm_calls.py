"""Calls to language models inside a job: one for the whole answer, one for the answer as it is written."""

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
from api.idempotency import CONTENT_TYPE
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
        return event_stream(call, EventWriter(call))


def call_answer(finished: Finished) -> LlmCallAnswer:
    started = finished.call.started
    return LlmCallAnswer(
        call_id=started.call_id,
        job_id=started.job_id,
        response=PlainAnswer(finished.content, finished.finish_reason),
        metadata=CallFigures(
            finished.usage.total_tokens, finished.latency_ms, model_group=started.model, model=started.model
        ),
        **completion_fields(finished),
    )


def completion_fields(finished: Finished) -> dict[str, Any]:
    """What OpenAI's clients read."""
    message = MessageAnswer("assistant", finished.content, finished.tool_calls)
    return {
        **_head(finished.call),
        "choices": [Choice(0, message, finished.finish_reason)],
        "usage": usage_answer(finished.usage),
    }


def _head(call: Call) -> dict[str, Any]:
    started = call.started
    return {"id": f"chatcmpl-{call.call_id}", "created": int(started.at.timestamp()), "model": started.model}


def usage_answer(usage: Usage) -> UsageAnswer:
    return UsageAnswer(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


# -- server-sent events (contract, appendix B) ------------------------------------------------

SSE = "text/event-stream"
SSE_HEADERS = {"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"}
BEGINNING = b": ok\n\n"
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


class EventWriter:
    """Writes an answer as server-sent events, each a chunk of a chat completion."""

    def __init__(self, call: Call) -> None:
        self._head = _head(call)

    def piece(self, piece: Piece, *, is_first: bool) -> bytes:
        content = msgspec.UNSET if piece.content is None else piece.content
        return self.chunk(delta_of(piece, is_first=is_first), content=content)

    def end(self, ended: Ended) -> bytes:
        """The last chunk of an answer that is whole."""
        assert ended.usage is not None
        return self.chunk(ending(ended), usage=usage_answer(ended.usage))

    def chunk(self, *choices: ChunkChoice, **more: Any) -> bytes:
        return _event(ChunkAnswer(**self._head, choices=list(choices), **more))

    def last_words(self, ended: Ended) -> bytes:
        """How every stream ends."""
        end = self.end(ended) if ended.trouble is None else _event({"error": error_of(ended.trouble)})
        return end + DONE

    def again(self, whole: Piece, ended: Ended) -> bytes:
        """The stream that a repeat of the request gets: all that was said, as if it had come at once."""
        said = b"" if whole == NOTHING_SAID else self.piece(whole, is_first=True)
        return BEGINNING + said + self.last_words(ended)


def delta_of(piece: Piece, *, is_first: bool) -> ChunkChoice:
    return ChunkChoice(0, Delta("assistant" if is_first else None, piece.content, piece.tool_calls), None)


def ending(ended: Ended) -> ChunkChoice:
    return ChunkChoice(0, Delta(), ended.finish_reason)


def event_stream(call: Call, writer: EventWriter) -> Stream:
    """The answer to the client; to be made before the call can have ended."""
    headers = {**SSE_HEADERS, **call.headers}
    call.caller.answers_with({**headers, CONTENT_TYPE: SSE})
    relay = Relay(call, writer.again, drain=call.house.settings.stream_on_disconnect == "drain")
    return Stream(_events(relay, writer), media_type=SSE, headers=headers)


async def _events(relay: Relay, writer: EventWriter) -> AsyncIterator[bytes]:
    """The answer as events: first a comment, so that headers go out at once; each piece as it comes; always an end."""
    yield BEGINNING
    is_first = True
    async for piece in relay.pieces():
        if piece is None:
            yield KEEP_ALIVE
            continue
        if isinstance(piece, Ended):
            yield writer.last_words(piece)
            return
        yield writer.piece(piece, is_first=is_first)
        is_first = False


def error_of(trouble: Trouble) -> dict[str, str]:
    """What a client learns of a stream that failed: nothing of the provider's."""
    entry = PROBLEMS[trouble.code]
    kind = "invalid_request_error" if entry.status < 500 else "api_error"
    return {"message": entry.detail, "type": kind, "code": trouble.code}


def _event(content: Any) -> bytes:
    return b"data: " + encode(content) + b"\n\n"
