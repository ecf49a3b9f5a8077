"""A typed client for the SaaS LiteLLM API: one async class and the shapes it answers with.

    from examples.typed_client import SaaSLLMClient

    async with SaaSLLMClient(base_url="http://localhost:8003", team_id="acme-corp", virtual_key="sk-...") as client:
        await client.create_job("analysis")
        answer = await client.chat(messages=[{"role": "user", "content": "Hello"}])
        print(answer.choices[0].message["content"])
        await client.complete_job()

Needs Python 3.11, httpx and pydantic 2; the file stands alone and may be copied into your project. Every POST carries
an idempotency key and is repeated with it after network errors, 409, 429, 500 and 503: a repeat never charges twice.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

RETRIED = frozenset({409, 429, 500, 503})
LONGEST_PAUSE_SECONDS = 60.0

M = TypeVar("M", bound=BaseModel)


# -- what comes back ---------------------------------------------------------------------------------------------------


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Message(_Shape):
    role: str
    content: str | None = None
    name: str | None = None


class FunctionCall(_Shape):
    name: str
    arguments: str


class ToolCall(_Shape):
    id: str
    type: str = "function"
    function: FunctionCall


class ChatChoice(_Shape):
    index: int
    message: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None


class Usage(_Shape):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatCompletionResponse(_Shape):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    call_id: str | None = None
    response: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class StreamChunk(_Shape):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class JobResponse(_Shape):
    job_id: str
    team_id: str
    status: str
    created_at: str


class CompletionResult(_Shape):
    job_id: str
    status: str
    credits_remaining: int
    total_calls: int
    costs: dict[str, Any]
    calls: list[dict[str, Any]]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


class SaaSLLMError(Exception):
    """The server said no.

    Args:
        status_code: the HTTP status; 200 for an error inside a stream.
        code: the stable code of the error.
        detail: a sentence, or for 422 a list of the places that are wrong.
        facts: whatever else the answer says.
    """

    def __init__(self, status_code: int, code: str, detail: Any, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{status_code} {code}: {detail}")
        self.status_code = status_code
        self.code = code
        self.detail = detail
        self.facts = dict(facts or {})


class InsufficientCredits(SaaSLLMError):
    """The team has no credits left for this."""


class ModelNotAllowed(SaaSLLMError):
    """The team may not use this model; `facts["available_models"]` are those it may."""


class RateLimited(SaaSLLMError):
    """Too much in too short a time, also after all repeats."""


_KINDS = {
    "insufficient_credits": InsufficientCredits,
    "model_not_allowed": ModelNotAllowed,
    "rate_limited": RateLimited,
}


# -- the client --------------------------------------------------------------------------------------------------------


class SaaSLLMClient:
    """One team's way to the API.

    Args:
        base_url: where the server is; a trailing `/` or `/api` does not matter. `api_url` is another word for it.
        team_id: the team.
        virtual_key: its key.
        timeout: seconds that one request may take.
        max_retries: how often a POST is repeated.
    """

    def __init__(
        self,
        base_url: str | None = None,
        team_id: str | None = None,
        virtual_key: str | None = None,
        *,
        api_url: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 2,
    ) -> None:
        if base_url is not None and api_url is not None and base_url != api_url:
            raise ValueError("base_url and api_url differ")
        address = base_url or api_url
        if not address or not team_id or not virtual_key:
            raise ValueError("base_url, team_id and virtual_key are needed")
        self.team_id = team_id
        self.current_job_id: str | None = None
        self.max_retries = max_retries
        self._http = httpx.AsyncClient(
            base_url=address.rstrip("/").removesuffix("/api") + "/api",
            headers={"Authorization": f"Bearer {virtual_key}", "Content-Type": "application/json"},
            timeout=timeout,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def create_job(
        self, job_type: str, metadata: dict[str, Any] | None = None, user_id: str | None = None
    ) -> str:
        """Opens a job, which the following calls belong to; gives its id."""
        body = {"team_id": self.team_id, "job_type": job_type, "metadata": metadata, "user_id": user_id}
        job = JobResponse.model_validate(_object(await self._post("/jobs/create", _given(body))))
        self.current_job_id = job.job_id
        return job.job_id

    async def get_job(self, job_id: str | None = None) -> dict[str, Any]:
        """The job with its costs and calls."""
        return await self._get(f"/jobs/{self._job(job_id)}")

    async def get_costs(self, job_id: str | None = None) -> dict[str, Any]:
        """What the job cost, call by call."""
        return await self._get(f"/jobs/{self._job(job_id)}/costs")

    async def complete_job(
        self,
        job_id: str | None = None,
        status: str = "completed",
        metadata: dict[str, Any] | None = None,
        result: Any = None,
        error_message: str | None = None,
    ) -> CompletionResult:
        """Ends the job; `completed` charges it, once."""
        body = {"status": status, "metadata": metadata, "result": result, "error_message": error_message}
        response = await self._post(f"/jobs/{self._job(job_id)}/complete", _given(body))
        return CompletionResult.model_validate(_object(response))

    async def cancel_job(self, job_id: str | None = None) -> CompletionResult:
        """Ends a job that nobody wants any more; it is not charged."""
        response = await self._post(f"/jobs/{self._job(job_id)}/cancel", {})
        return CompletionResult.model_validate(_object(response))

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def chat(
        self,
        job_id: str | None = None,
        messages: Sequence[dict[str, Any] | Message] | None = None,
        *,
        model: str | None = None,
        model_group: str | None = None,
        temperature: float = 0.7,
        max_tokens: int | None = None,
        top_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        stop: str | list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: Any = None,
        purpose: str | None = None,
        call_metadata: dict[str, Any] | None = None,
    ) -> ChatCompletionResponse:
        """Calls a model and waits for the whole answer. Without a model, the team's default one answers."""
        body = {
            "messages": _plain(messages),
            "model": model or model_group,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "stop": stop,
            "response_format": response_format,
            "tools": tools,
            "tool_choice": tool_choice,
            "purpose": purpose,
            "call_metadata": call_metadata,
        }
        response = await self._post(f"/jobs/{self._job(job_id)}/llm-call", _given(body))
        return ChatCompletionResponse.model_validate(_object(response))

    async def chat_stream(
        self,
        job_id: str | None = None,
        messages: Sequence[dict[str, Any] | Message] | None = None,
        **options: Any,
    ) -> AsyncIterator[StreamChunk]:
        """Calls a model and gives each piece of the answer as it is written; takes all options of `chat`."""
        options.setdefault("temperature", 0.7)
        model = options.pop("model", None) or options.pop("model_group", None)
        options.pop("model_group", None)
        body = _given({"messages": _plain(messages), "model": model, **options})
        path = f"/jobs/{self._job(job_id)}/llm-call-stream"
        response = await self._post(path, body, stream=True)
        try:
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    error = chunk["error"]
                    raise SaaSLLMError(200, str(error.get("code")), error.get("message"), error)
                yield StreamChunk.model_validate(chunk)
        finally:
            await response.aclose()

    async def structured_output(
        self,
        job_id: str | None = None,
        messages: Sequence[dict[str, Any] | Message] | None = None,
        response_model: type[M] | None = None,
        **options: Any,
    ) -> M:
        """Asks for an answer of a shape, and gives an instance of it."""
        if response_model is None:
            raise ValueError("response_model is needed")
        answer = await self.chat(job_id, messages, response_format=_format(response_model), **options)
        message = answer.choices[0].message or {}
        return _read(response_model, str(message.get("content") or ""))

    async def structured_output_stream(
        self,
        job_id: str | None = None,
        messages: Sequence[dict[str, Any] | Message] | None = None,
        response_model: type[BaseModel] | None = None,
        **options: Any,
    ) -> AsyncIterator[str]:
        """The same as pieces of text; together they are the JSON."""
        if response_model is None:
            raise ValueError("response_model is needed")
        async for chunk in self.chat_stream(job_id, messages, response_format=_format(response_model), **options):
            for choice in chunk.choices:
                if text := (choice.delta or {}).get("content"):
                    yield text

    # -- the team ------------------------------------------------------------------------------------------------------

    async def get_balance(self) -> dict[str, Any]:
        """The team's credits."""
        return await self._get("/credits/balance", team_id=self.team_id)

    async def get_team(self) -> dict[str, Any]:
        """The team."""
        return await self._get(f"/teams/{self.team_id}")

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    def _job(self, job_id: str | None) -> str:
        chosen = job_id or self.current_job_id
        if chosen is None:
            raise ValueError("there is no job: create one, or name one by job_id")
        return chosen

    async def _get(self, path: str, **query: str) -> dict[str, Any]:
        response = await self._http.get(path, params=query)
        if response.status_code != 200:
            raise _error(response)
        return _object(response)

    async def _post(self, path: str, body: dict[str, Any], *, stream: bool = False) -> httpx.Response:
        """Posts until it is answered; each repeat has the key of the first, so that it happens once.

        Returns:
            The answer; of a stream only its beginning, and whoever asked for it closes it.
        """
        request = self._http.build_request("POST", path, json=body, headers={"Idempotency-Key": str(uuid4())})
        for attempt in range(self.max_retries):
            try:
                response = await self._http.send(request, stream=stream)
            except httpx.TransportError:
                await asyncio.sleep(_pause(None, attempt))
                continue
            if response.status_code not in RETRIED:
                return await _answered(response)
            await response.aclose()
            await asyncio.sleep(_pause(response, attempt))
        return await _answered(await self._http.send(request, stream=stream))


async def _answered(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    await response.aread()
    raise _error(response)


def _pause(response: httpx.Response | None, attempt: int) -> float:
    """As long as the server asks for, else 1, 2, 4, 8 seconds."""
    asked = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_PAUSE_SECONDS) if asked.isdigit() else float(2 ** min(attempt, 3))


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _plain(messages: Sequence[dict[str, Any] | Message] | None) -> list[dict[str, Any]]:
    if not messages:
        raise ValueError("messages are needed")
    return [message.model_dump() if isinstance(message, Message) else message for message in messages]


def _format(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"name": model.__name__, "schema": model.model_json_schema(), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _read(shape: type[M], text: str) -> M:
    """The first JSON in an answer that has the shape: models like to put words around it."""
    for found in _jsons_in(text):
        with suppress(ValidationError):
            return shape.model_validate_json(found)
    return shape.model_validate_json(text)  # which says what is wrong


def _jsons_in(text: str) -> Iterator[str]:
    decoder, position = json.JSONDecoder(), 0
    while start := re.compile(r"[{\[]").search(text, position):
        try:
            _, position = decoder.raw_decode(text, start.start())
        except ValueError:
            position = start.end()
        else:
            yield text[start.start() : position]


def _object(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()
    return found


def _error(response: httpx.Response) -> SaaSLLMError:
    try:
        body = response.json()
    except ValueError:
        body = {"detail": response.text[:200]}
    code = str(body.get("code", "unknown"))
    facts = {name: value for name, value in body.items() if name not in ("detail", "code")}
    return _KINDS.get(code, SaaSLLMError)(response.status_code, code, body.get("detail"), facts)
