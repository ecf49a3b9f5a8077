"""LiteLLM: every provider that does not speak OpenAI's API, and all of them if LLM_TRANSPORT=litellm.

Importing it takes 4 seconds and 150 MB, so it is imported at the first call that needs it, in a thread. It then runs
with everything off that is not the call: its own retries (ours are the fallbacks of a model group), callbacks,
telemetry, prices and logs of its own, reading of `.env` files, and each of the lists that it would fetch from the
internet. Options that a target does not know are dropped by it silently.

Its types are poor, its exceptions many: nothing of them leaves this file.
"""

import asyncio
import contextlib
import copy
import gc
import importlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec

from infra.llm.openai_wire import KEEPALIVE_S
from infra.llm.providers import LEAN, api_base_from_environment, api_key_from_environment
from infra.llm.shapes import (
    OPTIONS,
    ChatRequest,
    Chunk,
    Completion,
    ProviderFailure,
    Target,
    Usage,
    broken,
    failure,
    finish_reason,
    speakable,
    text_of,
    tokens_used,
    without_secrets,
)

# These two are, to LiteLLM, a library to be loaded into this process and a name without a meaning.
_OTHER_NAMES: Final = {"vllm": "hosted_vllm", "openai_like": "custom_openai"}
_LOOPBACK: Final = "localhost,127.0.0.1,::1"
_ZERO: Final = Usage(0, 0)
_loading: Final = threading.Lock()


class ViaLiteLLM:
    """The transport that knows every provider.

    Args:
        timeout_s: for one attempt, from the first byte sent to the last one received.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._litellm: Any = None

    async def warm(self) -> None:
        """Import LiteLLM now, in a thread, so that the first call does not wait for it."""
        if self._litellm is None:
            self._litellm = await asyncio.to_thread(_load)

    async def _warm_for(self, provider: str) -> None:
        """Import what this provider needs, and that is OpenAI's package for everybody who speaks its API."""
        await self.warm()
        speaks_openai = provider in LEAN or provider in {"azure", *self._litellm.openai_compatible_providers}
        if speaks_openai and "openai.resources" not in sys.modules:
            await asyncio.to_thread(importlib.import_module, "openai.resources")

    async def close(self) -> None:
        """Close the connections that LiteLLM keeps, for the whole process."""
        if self._litellm is not None:
            pool = self._litellm.aclient_session
            _make_pool(self._litellm)
            await self._litellm.close_litellm_async_clients()
            self._litellm.in_memory_llm_clients_cache.flush_cache()  # or the next start would be given closed ones
            await pool.aclose()

    async def complete(self, target: Target, request: ChatRequest) -> Completion:
        await self._warm_for(target.provider)
        started = time.perf_counter()
        details: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._ask(
                    **self._arguments(target, request),
                    logger_fn=details.append,  # called with what it knows of the call, the provider's answer as well
                )
        except ProviderFailure:
            raise
        except Exception as error:  # whatever it raises, the provider has not answered
            raise self._failure(error, target) from error
        _require_answer(answer)
        if not answer.choices:
            raise broken("an answer without choices")
        choice = answer.choices[0]
        return Completion(
            content=speakable(text_of(choice.message.content)),
            tool_calls=_plain(choice.message.tool_calls),
            logprobs=_plain_one(getattr(choice, "logprobs", None)),
            finish_reason=finish_reason(choice.finish_reason) or "stop",
            usage=_reported(answer, details),
            latency_ms=round((time.perf_counter() - started) * 1000),
        )

    async def stream(self, target: Target, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        await self._warm_for(target.provider)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        stream: Any = None
        try:
            async with asyncio.timeout_at(deadline):
                stream = await self._ask(
                    **self._arguments(target, request), stream=True, stream_options={"include_usage": True}
                )
                _require_answer(stream)
            summed: Usage | None = None
            while True:
                async with asyncio.timeout_at(deadline):
                    answer = await anext(stream, None)
                if answer is None:
                    break
                summed = _usage(answer) or summed
                chunk = _chunk(answer)
                if chunk is None:
                    continue
                if chunk.finish_reason is not None:
                    _require_end(stream, target)
                yield chunk
            # Its last usage sums up what it was told, or is its own estimate if it was told nothing.
            if any(_usage(piece) is not None for piece in stream.chunks):
                yield Chunk(usage=summed)
        except ProviderFailure:
            raise
        except Exception as error:  # whatever it raises, the provider has not answered in full
            raise self._failure(error, target) from error
        finally:
            if stream is not None:
                await stream.aclose()

    async def _ask(self, **arguments: Any) -> Any:
        """A call inside of another one is what LiteLLM does not log. It has no other switch that spares the work."""
        inner = sys.modules["litellm._internal_context"].is_internal_call
        outside = inner.set(True)
        try:
            return await self._litellm.acompletion(**arguments)
        finally:
            inner.reset(outside)

    def _arguments(self, target: Target, request: ChatRequest) -> dict[str, Any]:
        """The arguments of `acompletion`. Only known options get in: it takes a hundred others, api_base among them."""
        arguments: dict[str, Any] = {name: request.options[name] for name in OPTIONS & request.options.keys()}
        arguments |= {
            "messages": copy.deepcopy(request.messages),  # it writes into them
            "timeout": self._timeout_s,
            "num_retries": 0,
            "max_retries": 0,
            "_skip_mcp_handler": True,  # else tools make it import the package mcp, which nobody else needs
        }
        key = target.api_key or api_key_from_environment(target.provider)
        base = target.api_base or api_base_from_environment(target.provider)
        lean = LEAN.get(target.provider)
        if lean is not None:
            if key is None and lean.needs_key and target.api_base is None:
                raise ProviderFailure("not_configured", f"no API key for {target.provider}")
            if (base or lean.api_base) is None:
                raise ProviderFailure("not_configured", f"no api_base for {target.provider}")
            key = key or "none"  # its client insists on one
        provider = _OTHER_NAMES.get(target.provider, target.provider)
        return arguments | {"model": f"{provider}/{target.model}", "api_key": key, "api_base": base}

    def _failure(self, error: Exception, target: Target) -> ProviderFailure:
        exceptions = self._litellm.exceptions
        # An error in mid-stream comes wrapped.
        cause = getattr(error, "original_exception", None)
        error = cause if isinstance(cause, Exception) else error
        key = target.api_key or api_key_from_environment(target.provider)
        text = without_secrets(_own_words(str(error)), key)
        status = _status(error)
        if isinstance(error, TimeoutError | exceptions.Timeout):
            return ProviderFailure("timeout", text or f"no answer within {self._timeout_s:g} s", http_status=status)
        if isinstance(error, exceptions.LiteLLMUnknownProvider):
            return ProviderFailure("not_configured", text)
        if status in {401, 403, None} and key is None and self._lacks_credentials(target):
            return ProviderFailure("not_configured", text)
        return broken(text) if status is None else failure(status, text)

    def _lacks_credentials(self, target: Target) -> bool:
        return bool(self._litellm.validate_environment(model=target.name)["missing_keys"])


def _load() -> Any:
    """Import LiteLLM and turn off everything but the call."""
    with _loading:
        for data in (
            "MODEL_COST_MAP",
            "ANTHROPIC_BETA_HEADERS",
            "BLOG_POSTS",
            "POLICY_TEMPLATES",
            "AUTOROUTER_PRESETS",
        ):
            os.environ[f"LITELLM_LOCAL_{data}"] = "True"
        os.environ["LITELLM_MODE"] = "PRODUCTION"  # in its other mode it reads a .env into our environment
        os.environ.setdefault("AIOHTTP_KEEPALIVE_TIMEOUT", f"{KEEPALIVE_S:.0f}")  # it has 120 s
        os.environ.setdefault("AIOHTTP_CONNECTOR_LIMIT_PER_HOST", "0")  # the limit for all of them, 1000, is enough
        _spare_loopback_the_proxy()
        litellm: Any = importlib.import_module("litellm")
        # 17 MB of objects, left over from making the text of a vocabulary of Claude's, which nothing reads.
        vars(sys.modules["litellm.utils"]).pop("json_data", None)
        litellm.telemetry = False
        litellm.suppress_debug_info = True
        litellm.drop_params = True
        litellm.num_retries = 0
        litellm.cache = None
        litellm.disable_streaming_logging = True
        litellm.disable_hf_tokenizer_download = True
        litellm.disable_token_counter = True  # it counts for cost estimates of its own, on the event loop
        litellm.response_cost_calculator = _no_price
        litellm.encoding = litellm.main.encoding = _Vocabulary()
        for callbacks in ("callbacks", "input_callback", "success_callback", "failure_callback", "service_callback"):
            setattr(litellm, callbacks, [])
        for name in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router"):
            # It writes to standard error by itself, for some providers a warning a call. Errors go where ours go.
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).setLevel(logging.ERROR)
        # Half of it is imported at the first call: here, and not on the event loop.
        litellm.completion(model="openai/echo", messages=[{"role": "user", "content": "hi"}], mock_response="hi")
        _make_pool(litellm)
        gc.freeze()  # what it brought stays for ever; each full collection would look through it for 0.1 s or more
        return litellm


def _make_pool(litellm: Any) -> None:
    """Let everybody that it reaches through OpenAI's package, Azure among them, share one pool of connections.

    Else each key has a client with connections of its own, and those of a client that it forgets stay open.
    """
    litellm.aclient_session = None  # or this one would be given back
    pool = sys.modules["litellm.llms.openai.common_utils"].BaseOpenAILLM.get_async_http_client()
    # What a provider remembers by a cookie about one organization is not for the next.
    pool.cookies = sys.modules["litellm.llms.custom_httpx.http_handler"].blocked_cookie_jar()
    litellm.aclient_session = pool


def _no_price(**_: Any) -> None:
    """It prices every answer, several times if it does not know the model. The prices that count are ours."""


class _Vocabulary:
    """OpenAI's, read when somebody looks into it.

    LiteLLM hands it to the code of each provider that it does not reach through OpenAI's package; a few of them count
    with it. Read for all of them it takes 40 MB, and 0.1 s on the event loop.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("litellm.litellm_core_utils.default_encoding").encoding, name)


def _spare_loopback_the_proxy() -> None:
    if any(os.environ.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
        for name in ("NO_PROXY", "no_proxy"):
            known = os.environ.get(name)
            os.environ[name] = f"{known},{_LOOPBACK}" if known else _LOOPBACK


def _require_end(stream: Any, target: Target) -> None:
    """A stream that just ends gets from LiteLLM a "stop" of its own making; for OpenAI's API that is a broken one."""
    if target.provider in LEAN and stream.received_finish_reason is None:
        raise broken("the stream ended before the answer did")


def _require_answer(answer: Any) -> None:
    """After a 422 LiteLLM asks again without the options that were complained of; after a second one it says None."""
    if answer is None:
        raise ProviderFailure("rejected", "the provider could not process the request", http_status=422)


def _status(error: BaseException) -> int | None:
    """What the provider answered with. LiteLLM calls its own troubles 500 too, but only an answer has a response."""
    link: BaseException | None = error
    while link is not None:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int) and not type(link).__module__.startswith("litellm"):
            return status
        link = link.__cause__ or link.__context__
    said = getattr(error, "status_code", None)
    return said if isinstance(said, int) and said not in {408, 500} else None


def _own_words(text: str) -> str:
    """The provider's words without the names of classes in front of them and the traceback behind."""
    return re.sub(r"\A.{0,120}?Exception - ", "", text).partition("Traceback (most recent call last)")[0].strip()


def _usage(answer: Any) -> Usage | None:
    usage = getattr(answer, "usage", None)
    if usage is None:
        return None
    tokens = tokens_used(getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
    # What is missing of an incomplete report becomes a zero in its hands, but for the total.
    return None if tokens == _ZERO and getattr(usage, "total_tokens", None) else tokens


def _reported(answer: Any, details: list[dict[str, Any]]) -> Usage | None:
    """The usage of a whole answer. LiteLLM makes zeros of a missing one: whether they are, the raw answer tells."""
    usage = _usage(answer)
    if usage == _ZERO and details:
        with contextlib.suppress(msgspec.DecodeError):
            raw = msgspec.json.decode(str(details[-1].get("original_response")))
            if isinstance(raw, dict) and not any(value for name, value in raw.items() if name.startswith("usage")):
                return None
    return usage


def _chunk(answer: Any) -> Chunk | None:
    if not answer.choices:
        return None
    choice = answer.choices[0]
    chunk = Chunk(
        content=speakable(text_of(choice.delta.content)) or None,
        tool_calls=_plain(choice.delta.tool_calls),
        logprobs=_plain_one(getattr(choice, "logprobs", None)),
        finish_reason=finish_reason(choice.finish_reason),
    )
    return chunk if chunk != Chunk() else None


def _plain(calls: Any) -> list[dict[str, Any]] | None:
    return [_plain_one(call) or {} for call in calls] if calls else None


def _plain_one(value: Any) -> dict[str, Any] | None:
    """A pydantic object as JSON would show it."""
    if value is None:
        return None
    plain: dict[str, Any] = speakable(value if isinstance(value, dict) else value.model_dump(exclude_none=True))
    return plain
