"""One call to a language model: started on record, answered by the first target that can, settled whatever happens.

The intent is in the journal, and the credits are set aside, before a provider hears of it. From then on the call is
carried by a task of its own, which no client can cancel by hanging up: a provider that has worked has to be paid, so
the end of every call is recorded, also when its job ended meanwhile, also when nobody listens any more.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Annotated, Any, Literal

import msgspec
import structlog
from msgspec import Meta

from api.answers import encode
from api.bodies import Name200, Text200
from api.caller import Caller
from api.house import House
from api.problems import PROBLEMS, Invalid, Trouble
from api.throttle import Admission
from domain import catalog as names
from domain.charging import CompleteJob, FailJob, StartCall, complete_job, fail_job, start_call
from domain.errors import Refusal
from domain.event import Command, Event, JsonObject
from domain.job import Attempt, CallError, CallStarted, FailCall, FinishCall, Job, fail_call, finish_call, require_job
from domain.streams import CREDIT, JOB, ORGANIZATION, TEAM, THE_CATALOG
from domain.team import require_team
from infra import metrics
from infra.conversations import Conversation
from infra.ids import new_id
from infra.ledger import ClaimLost, Outcome, Unavailable
from infra.llm import ChatRequest, Chunk, Completion, ProviderFailure, Target, Usage

log = structlog.get_logger()

SETTLE_RETRY_SECONDS = 1.0
SETTLE_RETRIES = 600
KEEP_ALIVE_SECONDS = 15.0


# -- the request -------------------------------------------------------------------------------------------------------


class Message(msgspec.Struct, omit_defaults=True):
    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is needed unless there are tool_calls")


class CallBody(msgspec.Struct, kw_only=True):
    """What every endpoint that calls a model takes."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    model: Name200 | None = None
    model_group: Name200 | None = None
    purpose: Text200 | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    call_metadata: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, independent of the endpoint that it came through."""

    request: ChatRequest
    model: str | None
    purpose: str | None = None
    metadata: JsonObject = field(default_factory=dict)


PASSED_ON = (
    "max_tokens",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "response_format",
    "tools",
    "tool_choice",
)
DEFAULT_TEMPERATURE = 0.7


def question(body: CallBody, *, also: Sequence[str] = (), temperature: float | None = DEFAULT_TEMPERATURE) -> Question:
    """The question in a body.

    Args:
        also: further fields of the body that are options.
        temperature: if the body says none; None leaves it to the provider.

    Raises:
        Invalid: model and model_group, which mean the same, say different things.
    """
    if body.model and body.model_group and body.model != body.model_group:
        raise Invalid(["body", "model_group"], "model and model_group differ", "value_error.format")
    options = {name: value for name in (*PASSED_ON, *also) if (value := getattr(body, name)) is not None}
    if (chosen := temperature if body.temperature is None else body.temperature) is not None:
        options["temperature"] = chosen
    return Question(
        request=ChatRequest(msgspec.to_builtins(body.messages), options),
        model=body.model or body.model_group,
        purpose=body.purpose,
        metadata=body.call_metadata or {},
    )


# -- the start ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Call:
    """A call that is on record and has not ended yet."""

    house: House
    caller: Caller
    started: CallStarted
    request: ChatRequest
    admission: Admission
    keeps_prompts: bool = False
    began: float = field(default_factory=time.perf_counter)
    ends_job: bool = False  # one job, one call: the job ends with it, whether or not anybody still listens
    attempts: list[Attempt] = field(default_factory=list)
    not_configured: bool = False

    @property
    def call_id(self) -> str:
        return self.started.call_id

    @property
    def prompt_tokens(self) -> int:
        """An estimate, for providers that do not say."""
        return self.admission.prompt_tokens

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Job-Id": self.started.job_id, "X-Call-Id": self.call_id}

    @property
    def latency_ms(self) -> int:
        return round((time.perf_counter() - self.began) * 1000)

    def target(self, index: int) -> names.Target:
        return self.started.targets[index]


async def start(caller: Caller, job_id: str, asked: Question, *, streaming: bool) -> Call:
    """Puts the intent to call on record and sets the credits for it aside.

    Raises:
        NotFound, Forbidden, JobClosed, ModelNotAllowed, InsufficientCredits: and no provider hears of it.
    """
    house = caller.house
    job = await caller.job(job_id)
    request_body = msgspec.json.encode(asked.request)
    admission = caller.admission
    assert admission is not None, "every endpoint that calls a model is limited"
    settings = house.settings
    command = StartCall(
        **caller.signature(),
        call_id=new_id(),
        model=asked.model,
        purpose=asked.purpose,
        streaming=streaming,
        prompt_tokens=admission.prompt_tokens,
        output_tokens=asked.request.options.get("max_tokens", settings.default_output_tokens),
        open_aliases=settings.open_aliases,
        longest_attempt=timedelta(seconds=settings.llm_timeout_seconds),
        request_sha256=hashlib.sha256(request_body).hexdigest(),
        request_bytes=len(request_body),
        metadata=asked.metadata,
    )
    outcome = await caller.decide(
        start_call,
        command,
        JOB.stream(job_id),
        CREDIT.stream(job.team_id),
        TEAM.stream(job.team_id),
        ORGANIZATION.stream(job.organization_id),
        THE_CATALOG,
    )
    started = next(event for event in outcome.events if isinstance(event, CallStarted))
    if caller.claim is not None and len(started.targets) > 1:
        await caller.claim.hold_for(started.deadline - started.at)
    return Call(house, caller, started, asked.request, admission, require_team(outcome.states[2]).keep_prompts)


# -- whole answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """A call that was answered."""

    call: Call
    content: str
    tool_calls: list[dict[str, Any]] | None
    finish_reason: str
    usage: Usage
    latency_ms: int
    job: Job | None = None
    """As it ended, if it ended with the call."""


async def complete(call: Call, answer: Callable[[Finished], Any]) -> Finished:
    """Asks the targets in their order until one answers, and records how it ended.

    Args:
        answer: makes the answer to the client, which is kept with the end of the call for a repeat of the request.

    Raises:
        Trouble: the provider refused the request, every target failed, or none is configured.
    """
    return await asyncio.shield(call.house.background.spawn(_complete(call, answer), name=f"call {call.call_id}"))


async def _complete(call: Call, answer: Callable[[Finished], Any]) -> Finished:
    for index in range(len(call.started.targets)):
        try:
            completion = await call.house.models.complete(await _reach(call, index), call.request)
        except ProviderFailure as failure:
            _note(call, index, failure)
            if not failure.falls_back:
                break
        except Exception as problem:
            # Our own mistake, but the call has to end all the same.
            log.exception("call.crashed", call_id=call.call_id)
            _note(call, index, ProviderFailure("error", type(problem).__name__))
        else:
            return await _finish(call, index, completion, answer)
    raise await _fail(call)


async def _finish(call: Call, index: int, completion: Completion, answer: Callable[[Finished], Any]) -> Finished:
    usage, estimated = completion.usage, False
    if usage is None:
        target = _plain_target(call.target(index))
        answered = completion.content + "".join(str(each) for each in completion.tool_calls or ())
        usage, estimated = Usage(call.prompt_tokens, await call.house.models.count_text(target, answered)), True
    metrics.provider_answered(call.target(index).provider, "ok", completion.latency_ms / 1000)
    metrics.call_overhead((call.latency_ms - completion.latency_ms) / 1000)
    text = completion.content.encode()
    finished = Finished(
        call, completion.content, completion.tool_calls, completion.finish_reason, usage, call.latency_ms
    )
    command = FinishCall(
        **call.caller.signature(),
        call_id=call.call_id,
        target=index,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        usage_estimated=estimated,
        latency_ms=finished.latency_ms,
        finish_reason=completion.finish_reason,
        attempts=tuple(call.attempts),
        response_sha256=hashlib.sha256(text).hexdigest(),
        response_bytes=len(text),
    )
    await _keep(call, completion.content, completion.tool_calls, completion.finish_reason)
    kept = _Kept(lambda job: encode(answer(replace(finished, job=job))))
    return replace(finished, job=await _settle(call, finish_call, command, tokens=usage.total_tokens, kept=kept))


def _note(call: Call, index: int, failure: ProviderFailure) -> None:
    """A target that did not answer; what it said is for administrators."""
    target = call.target(index)
    so_far = sum(attempt.latency_ms for attempt in call.attempts)
    outcome: Literal["error", "rejected", "timeout"] = (
        "error" if failure.outcome == "not_configured" else failure.outcome
    )
    call.attempts.append(
        Attempt(
            target=target.name,
            resolved_model=f"{target.provider}/{target.model}",
            outcome=outcome,
            http_status=failure.http_status,
            error=failure.text,
            latency_ms=max(0, call.latency_ms - so_far),
        )
    )
    metrics.provider_answered(target.provider, outcome, call.attempts[-1].latency_ms / 1000)
    log.warning(
        "call.attempt_failed",
        call_id=call.call_id,
        provider=target.provider,
        outcome=failure.outcome,
        http_status=failure.http_status,
    )
    call.not_configured = failure.outcome == "not_configured"


async def _fail(call: Call, *, target: int | None = None, answered: str = "") -> Trouble:
    """Records that no target answered, and says what the client is told about it."""
    last = call.attempts[-1]
    errors: dict[str, CallError] = {"rejected": "request_rejected", "timeout": "timeout", "error": "provider_error"}
    completion_tokens = 0
    if target is not None:
        completion_tokens = await call.house.models.count_text(_plain_target(call.target(target)), answered)
    command = FailCall(
        **call.caller.signature(),
        call_id=call.call_id,
        error=errors[last.outcome],
        provider_error=last.error,
        http_status=last.http_status,
        latency_ms=call.latency_ms,
        target=target,
        prompt_tokens=call.prompt_tokens if target is not None else 0,
        completion_tokens=completion_tokens,
        attempts=tuple(call.attempts),
    )
    await _keep(call, answered, None, None)
    code = "provider_not_configured" if call.not_configured else "provider_error"
    code = "request_rejected" if last.outcome == "rejected" else code
    await _settle(call, fail_call, command, tokens=0, failed_with=code)
    return Trouble(code)


async def _keep(call: Call, content: str, tool_calls: Any, finish_reason: str | None) -> None:
    """Keeps what was said, if the team wants that: before the end is on record, so that whoever sees that sees this."""
    if not call.keeps_prompts:
        return
    asked = {"messages": call.request.messages, **call.request.options}
    answered = {"content": content, "tool_calls": tool_calls or None, "finish_reason": finish_reason}
    said = Conversation(asked, answered if content or tool_calls or finish_reason else None)
    await call.house.conversations.keep(call.call_id, call.started.team_id, said)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Makes the answer that a repeat of the request gets, given the job if it ended with the call."""

    body: Callable[[Job | None], bytes]


async def _settle(
    call: Call,
    decide: Callable[..., Sequence[Event]],
    command: Command,
    *,
    tokens: int,
    kept: _Kept | None = None,
    failed_with: str | None = None,
) -> Job | None:
    """Records how a call ended, and ends its job if that was to end with it.

    Args:
        tokens: what the call really used.
        kept: without it, the idempotency key of the request is given back.
        failed_with: the code to end the job with, if it ends with the call and the call failed.
    """
    await call.admission.settle(tokens)
    if not call.ends_job:
        await _record(call, decide, command, JOB.stream(call.started.job_id), kept=kept)
        return None
    if await _record(call, decide, command, JOB.stream(call.started.job_id), kept=None) is None:
        return None
    return await end_job(call.caller, call.started.job_id, call.started.team_id, failed_with, kept)


async def end_job(
    caller: Caller, job_id: str, team_id: str, failed_with: str | None, kept: _Kept | None = None
) -> Job | None:
    """Completes a job that was made for one call, or fails it with the code of what went wrong."""
    job, account, team = JOB.stream(job_id), CREDIT.stream(team_id), TEAM.stream(team_id)
    end: dict[str, Any] = {**caller.signature(), "charge_id": new_id(), "metadata": {}}
    if failed_with is not None:
        outcome = await _record(caller, fail_job, FailJob(**end, error_message=failed_with), job, account, kept=None)
    else:
        outcome = await _record(caller, complete_job, CompleteJob(**end), job, account, team, kept=kept)
    return None if outcome is None else require_job(outcome.states[0])


async def _record(
    by: Call | Caller, decide: Callable[..., Any], command: Command, *streams: str, kept: _Kept | None
) -> Outcome | None:
    """Records a fact: it waits for a database that is away, and is never dropped because of it."""
    caller = by.caller if isinstance(by, Call) else by
    claim = caller.claim if kept is not None else None
    receipt = None
    if claim is not None and kept is not None:
        body = kept.body
        receipt = claim.receipt(lambda outcome: body(_job_in(outcome)), status=200, is_secret=True)
    for _ in range(SETTLE_RETRIES):
        try:
            outcome = await caller.house.ledger.carry_out(decide, command, *streams, receipt=receipt)
        except ClaimLost:
            receipt = None
        except Unavailable:
            log.warning("fact.delayed", command=type(command).__name__)
            await asyncio.sleep(SETTLE_RETRY_SECONDS)
        else:
            if claim is not None:
                claim.is_settled = True
            return outcome
    log.error("fact.unrecorded", command=type(command).__name__)
    return None


def _job_in(outcome: Outcome) -> Job:
    return require_job(outcome.states[0])


async def _reach(call: Call, index: int) -> Target:
    return await call.house.targets.reach(call.target(index), call.started.organization_id)


def _plain_target(target: names.Target) -> Target:
    return Target(target.provider, target.model)


# -- streams -----------------------------------------------------------------------------------------------------------


class Piece(msgspec.Struct, omit_defaults=True):
    """What of an answer has come: passed on as it is, except that the end is held back until usage is known."""

    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


@dataclass(slots=True)
class Ended:
    """The last thing in the queue of a relay: how the call ended, already on record."""

    finish_reason: str = "stop"
    usage: Usage | None = None
    trouble: Trouble | None = None


class Relay:
    """A stream from provider to client, carried by a task that survives the client.

    Args:
        call: on record already.
        replayed: makes the stream that a repeat of the request gets, from the whole answer and its end.
        drain: whether a provider is heard to its end when the client has left, or stopped at once.
    """

    def __init__(self, call: Call, replayed: Callable[[Piece, "Ended"], bytes], *, drain: bool) -> None:
        self.call = call
        self._replayed = replayed
        self._drain = drain
        # Without a limit: a provider that is held back runs into its time-out, and a slow client would have its answer
        # for nothing. What waits here is kept below all the same.
        self._queue: asyncio.Queue[Piece | Ended] = asyncio.Queue()
        self._client_left = False
        self._texts: list[str] = []
        self._tool_calls: list[dict[str, Any]] = []
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._target = 0
        self._pump: asyncio.Task[bool] | None = None
        self.ended: asyncio.Task[Ended] = call.house.background.spawn(self._carry(), name=f"stream {call.call_id}")

    async def pieces(self) -> AsyncIterator[Piece | Ended | None]:
        """The answer as it comes; None after KEEP_ALIVE_SECONDS of silence; an `Ended` is the last."""
        try:
            while True:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        piece = await self._queue.get()
                except TimeoutError:
                    yield None
                    continue
                yield piece
                if isinstance(piece, Ended):
                    return
        finally:
            self._leave()

    def _leave(self) -> None:
        self._client_left = True
        while not self._queue.empty():
            self._queue.get_nowait()
        if self._pump is not None and not self._drain:
            self._pump.cancel()

    async def _carry(self) -> Ended:
        """Runs the call to its end and records it, whoever listens."""
        try:
            ended = await self._run()
        except Refusal as refusal:
            # The call is on record, but its job has ended in another way meanwhile, and that stays so.
            ended = Ended(trouble=Trouble(refusal.code))
        except Exception:
            log.exception("call.crashed", call_id=self.call.call_id)
            ended = Ended(trouble=Trouble("internal_error"))
        await self._end_claim(ended)
        if not self._client_left:
            self._queue.put_nowait(ended)
        return ended

    async def _run(self) -> Ended:
        self._pump = asyncio.create_task(self._ask_targets(), name=f"pump {self.call.call_id}")
        await asyncio.wait({self._pump})
        was_cancelled = self._pump.cancelled()
        if not was_cancelled and (problem := self._pump.exception()) is not None:
            log.error("call.crashed", call_id=self.call.call_id, exc_info=problem)
            _note(self.call, self._target, ProviderFailure("error", type(problem).__name__))
        if was_cancelled or (self._pump.exception() is None and self._pump.result()):
            return await self._finish(partial=was_cancelled)
        return Ended(trouble=await self._fail())

    async def _end_claim(self, ended: Ended) -> None:
        """Settles an idempotency key that was not settled with the end of the call: a refusal is replayed as it was
        streamed; after anything else, such as an end that could not be recorded, the key is free."""
        claim = self.call.caller.claim
        if claim is None:
            return
        if ended.trouble is not None and PROBLEMS[ended.trouble.code].status < 500:
            await claim.end(200, self._replayed(self._whole(), ended), claim.headers)
        else:
            await claim.end(503, b"")

    async def _ask_targets(self) -> bool:
        """Asks the targets until one answers to its end. Once text has reached the client there is no other."""
        for index in range(len(self.call.started.targets)):
            self._target = index
            self._usage = self._finish_reason = None  # what the one before said of itself, it said of no answer
            try:
                chunks = self.call.house.models.stream(await _reach(self.call, index), self.call.request)
                async with contextlib.aclosing(chunks):
                    async for chunk in chunks:
                        self._pass_on(chunk)
            except ProviderFailure as failure:
                _note(self.call, index, failure)
                if self._texts or not failure.falls_back:
                    return False
            else:
                return True
        return False

    def _pass_on(self, chunk: Chunk) -> None:
        self._usage = chunk.usage or self._usage
        self._finish_reason = chunk.finish_reason or self._finish_reason
        if not chunk.content and not chunk.tool_calls:
            return
        self._texts.append(chunk.content or "")
        self._tool_calls += chunk.tool_calls or ()
        if not self._client_left:
            self._queue.put_nowait(Piece(chunk.content or None, chunk.tool_calls))

    async def _finish(self, *, partial: bool) -> Ended:
        call = self.call
        text = self._all_text()
        usage, estimated = self._usage, False
        if usage is None:
            target = _plain_target(call.target(self._target))
            usage, estimated = Usage(call.prompt_tokens, await call.house.models.count_text(target, text)), True
        finish_reason: Any = "cancelled" if partial else (self._finish_reason or "stop")
        command = FinishCall(
            **call.caller.signature(),
            call_id=call.call_id,
            target=self._target,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            usage_estimated=estimated,
            latency_ms=call.latency_ms,
            finish_reason=finish_reason,
            partial=partial,
            attempts=tuple(call.attempts),
            response_sha256=hashlib.sha256(text.encode()).hexdigest(),
            response_bytes=len(text.encode()),
        )
        await _keep(call, "".join(self._texts), self._tool_calls, finish_reason)
        ended = Ended(finish_reason, usage)
        kept = _Kept(lambda _: self._replayed(self._whole(), ended))
        await _settle(call, finish_call, command, tokens=usage.total_tokens, kept=kept)
        return ended

    def _whole(self) -> Piece:
        """All that was said, as if it had come at once."""
        return Piece("".join(self._texts) or None, self._tool_calls or None)

    async def _fail(self) -> Trouble:
        broken = bool(self._texts)
        return await _fail(self.call, target=self._target if broken else None, answered=self._all_text())

    def _all_text(self) -> str:
        calls = msgspec.json.encode(self._tool_calls).decode() if self._tool_calls else ""
        return "".join(self._texts) + calls
