"""The API of OpenAI, for programs that were written for it (contract, section 4): another address and a key of ours,
and each chat completion is a job of one call; or one more call of the job that is named.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.params import FromPath, HeaderParameter, JSONBody
from litestar.types import ExceptionHandlersMap
from msgspec import Meta

from api import calling
from api.answers import encode, reply
from api.bodies import ID
from api.caller import Caller, key_only, limited_chat
from api.calling import Call, CallBody, Ended, Finished, Piece, Question
from api.create_and_call import whole_job
from api.house import House
from api.jobs import uuid_of
from api.llm_calls import (
    SSE,
    ChatCompletion,
    EventWriter,
    completion_fields,
    delta_of,
    ending,
    event_stream,
    usage_answer,
)
from api.model_aliases import look
from api.problems import HANDLERS, Invalid, Trouble
from domain.catalog import available_models
from domain.event import JsonObject

JOB_TYPE = "chat_completion"

# -- bodies and answers ------------------------------------------------------------------------------------------------


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ChatBody(CallBody, kw_only=True):
    """`max_completion_tokens` is what OpenAI calls `max_tokens` by now; `metadata` and `user` are the job's."""

    max_completion_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    user: ID | None = None
    metadata: JsonObject | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


OPTIONS = ("seed", "parallel_tool_calls", "reasoning_effort", "logit_bias", "logprobs", "top_logprobs")


class ModelAnswer(msgspec.Struct):
    id: str
    object: str
    created: int
    owned_by: str


class ModelList(msgspec.Struct):
    object: str
    data: list[ModelAnswer]


# -- errors ------------------------------------------------------------------------------------------------------------

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


def error_type(status: int, code: str) -> str:
    """OpenAI's word for a kind of error."""
    if code == "insufficient_credits":
        return "insufficient_quota"
    return "api_error" if status >= 500 else TYPES.get(status, "invalid_request_error")


def in_openai_words(refusal: Mapping[str, Any], status: int) -> dict[str, Any]:
    """An error of ours as OpenAI would say it."""
    message, param, code = refusal["detail"], None, refusal["code"]
    if code == "validation_error":
        first = message[0]
        param = ".".join(str(step) for step in first["loc"][1:]) or None
        message = f"{param}: {first['msg']}" if param else first["msg"]
    return {"error": {"message": message, "type": error_type(status, code), "param": param, "code": code}}


def _translated(handle: Callable[[Any, Any], Response[Any]]) -> Callable[[Request[Any, Any, Any], Any], Response[Any]]:
    def handled(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        answer = handle(request, error)
        answer.content = encode(in_openai_words(msgspec.json.decode(answer.content), answer.status_code or 500))
        return answer

    return handled


ERRORS: ExceptionHandlersMap = {kind: _translated(handle) for kind, handle in HANDLERS.items()}


def unrouted(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """What no controller answers, such as an endpoint of OpenAI's that is none of ours, in the words of who asks."""
    handlers = ERRORS if request.url.path.startswith("/v1/") else HANDLERS
    return handlers[HTTPException](request, error)


# -- endpoints ---------------------------------------------------------------------------------------------------------


class ChatCompletionsController(Controller):
    path = "/v1"
    tags = ["OpenAI"]
    exception_handlers = ERRORS

    @post("/chat/completions", status_code=200, before_request=limited_chat, opt={"also": [SSE]})
    async def complete(
        self,
        caller: NamedDependency[Caller],
        data: JSONBody[ChatBody],
        job_id: Annotated[str | None, HeaderParameter(name="X-Job-Id", description="A job to make the call in")] = None,
    ) -> Response[ChatCompletion]:
        """Complete a chat. Without `X-Job-Id` it is a whole job, which is charged; a job that is named stays open."""
        asked, streaming, metadata = _question(data), bool(data.stream), data.metadata or {}
        if job_id is None:
            facts: dict[str, Any] = {"job_type": JOB_TYPE, "user_id": data.user, "metadata": metadata}
            call = await whole_job(caller, asked, streaming=streaming, team_id=caller.own_team, **facts)
        else:
            labelled = replace(asked, metadata={**metadata, **asked.metadata})
            call = await calling.start(caller, uuid_of(job_id, "job"), labelled, streaming=streaming)
        if streaming:
            answer: Response[Any] = event_stream(call, OpenAIWriter(call, data.stream_options or StreamOptions()))
            return answer
        caller.answers_with(call.headers)
        return reply(_completion(await calling.complete(call, _completion)), headers=call.headers)

    @get("/models", before_request=key_only)
    async def models(self, caller: NamedDependency[Caller], house: NamedDependency[House]) -> Response[ModelList]:
        """The models that the team may use: aliases and groups."""
        return reply(ModelList("list", await _usable(caller, house)))

    @get("/models/{name:str}", before_request=key_only)
    async def model(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], name: FromPath[str]
    ) -> Response[ModelAnswer]:
        """A model that the team may use."""
        for model in await _usable(caller, house):
            if model.id == name:
                return reply(model)
        raise Trouble("not_found", resource="model")


class OpenAIWriter(EventWriter):
    """Writes chunks as OpenAI does: usage comes only when it is asked for, on a last chunk without choices."""

    def __init__(self, call: Call, options: StreamOptions) -> None:
        super().__init__(call)
        self._options = options

    def piece(self, piece: Piece, *, is_first: bool) -> bytes:
        return self.chunk(delta_of(piece, is_first=is_first))

    def end(self, ended: Ended) -> bytes:
        assert ended.usage is not None
        last = self.chunk(ending(ended))
        return last + self.chunk(usage=usage_answer(ended.usage)) if self._options.include_usage else last


def _completion(finished: Finished) -> ChatCompletion:
    return ChatCompletion(**completion_fields(finished))


def _question(body: ChatBody) -> Question:
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise Invalid(
            ["body", "max_completion_tokens"], "max_tokens and max_completion_tokens differ", "value_error.format"
        )
    body.max_tokens = body.max_tokens or body.max_completion_tokens
    return calling.question(body, also=OPTIONS, temperature=None)


async def _usable(caller: Caller, house: House) -> list[ModelAnswer]:
    catalog, team = await look(caller)
    assert team is not None
    made = {
        name: thing.created_at for things in (catalog.model_groups, catalog.aliases) for name, thing in things.items()
    }
    return [
        ModelAnswer(name, "model", int(made[name].timestamp()), team.organization_id)
        for name in available_models(catalog, team, house.settings.open_aliases)
    ]
