"""Language models: one question, any provider.

    Models            chooses the transport, knows prices and counts tokens; all that the rest of the house needs
    shapes.py         Target, ChatRequest, Completion, Chunk, Usage, ProviderFailure
    openai_wire.py    OpenAI's API over aiohttp (with sse.py), for the bulk of the traffic
    via_litellm.py    LiteLLM, for everybody else
    echo.py           demo/echo, the model that needs no key
    providers.py      names, addresses, keys and dialects
    prices.py         LiteLLM's price list, exact
    counting.py       tokens, for providers that do not say

Nothing here retries: each target is tried once, and the caller's fallbacks are the retries.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Literal

from domain.pricing import Price
from infra.llm import counting, prices
from infra.llm.echo import Echo
from infra.llm.openai_wire import OpenAIWire
from infra.llm.providers import (
    DEMO,
    LEAN,
    api_base_from_environment,
    api_key_from_environment,
    canonical,
    known_provider,
)
from infra.llm.shapes import (
    OPTIONS,
    ChatRequest,
    Chunk,
    Completion,
    FinishReason,
    Outcome,
    ProviderFailure,
    Target,
    Transport,
    Usage,
    without_secrets,
)
from infra.llm.via_litellm import ViaLiteLLM

__all__ = [
    "OPTIONS",
    "ChatRequest",
    "Chunk",
    "Completion",
    "FinishReason",
    "Models",
    "Outcome",
    "Price",
    "ProviderFailure",
    "Target",
    "Usage",
    "api_base_from_environment",
    "api_key_from_environment",
    "canonical",
    "known_provider",
    "provider_and_model",
    "without_secrets",
]


class Models:
    """Every model there is, behind two methods.

    Args:
        timeout_s: for one attempt, streams included, from the first byte sent to the last one received.
        transport: `auto` speaks to OpenAI-compatible providers directly; `litellm` leaves them to LiteLLM too.
        connections: of the lean transport, at most so many at once.
    """

    def __init__(
        self,
        timeout_s: float = 120,
        transport: Literal["auto", "litellm"] = "auto",
        connections: int = 1000,
    ) -> None:
        self._forced = transport == "litellm"
        self._echo = Echo()
        self._wire = OpenAIWire(timeout_s, connections)
        self._litellm = ViaLiteLLM(timeout_s)
        self._asking: set[asyncio.Task[Any]] = set()
        self._is_cut = asyncio.Event()

    async def start(self) -> None:
        """Open what the event loop needs and read the price list. Takes 50 ms; does not import LiteLLM."""
        await asyncio.gather(self._wire.start(), asyncio.to_thread(prices.cost_map))

    async def warm(self) -> None:
        """Import LiteLLM, in a thread, for whoever knows that it will be needed."""
        await self._litellm.warm()

    def cut(self) -> None:
        """Break off what is being asked and ask nobody any more, since the process has to end: each call fails as if
        its provider had gone."""
        self._is_cut.set()
        for task in self._asking:
            task.cancel()

    async def close(self) -> None:
        """Close every connection."""
        await self._wire.close()
        await self._litellm.close()

    async def complete(self, target: Target, request: ChatRequest) -> Completion:
        """Ask a model and wait for the whole answer.

        Raises:
            ProviderFailure: there was none; `falls_back` says whether another target may be asked.
        """
        target = _spelled(target)
        with self._until_cut():
            return await self._transport(target).complete(target, request)

    async def stream(self, target: Target, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Ask a model and hand out each piece as it comes. `aclose()` of the generator hangs up.

        Raises:
            ProviderFailure: at the first `anext` if there is no answer, later if it broke off.
        """
        target = _spelled(target)
        with self._until_cut():
            async with aclosing(self._transport(target).stream(target, request)) as chunks:
                async for chunk in chunks:
                    yield chunk

    @contextmanager
    def _until_cut(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        if self._is_cut.is_set():
            raise ProviderFailure("error", "the server is stopping")
        self._asking.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_cut.is_set():
                raise
            task.uncancel()
            raise ProviderFailure("error", "the server is stopping") from None
        finally:
            self._asking.discard(task)

    def _transport(self, target: Target) -> Transport:
        if target.provider == DEMO:
            return self._echo
        return self._wire if not self._forced and _speaks_openai(target) else self._litellm

    def price(self, target: Target) -> Price | None:
        """What exactly this model costs by LiteLLM's price list; None if it is not on it."""
        target = _spelled(target)
        return prices.price(target.provider, target.model)

    async def count_messages(self, target: Target, messages: list[dict[str, Any]]) -> int:
        """How many tokens the model sees in a conversation, counted or estimated here (counting.py)."""
        return await counting.count_messages(_spelled(target), messages)

    async def count_text(self, target: Target, text: str) -> int:
        """How many tokens the model sees in a text, counted or estimated here (counting.py)."""
        return await counting.count_text(_spelled(target), text)


def provider_and_model(name: str) -> tuple[str, str] | None:
    """The two parts of a provider model string, such as `groq/llama3`; None if it names no known provider.

    Without a provider it is a name that the price list knows exactly, such as `gpt-4o`.
    """
    provider, _, model = name.partition("/")
    if model and known_provider(provider):
        return canonical(provider), model
    owner = prices.provider_of(name)
    return (owner, name) if owner is not None and known_provider(owner) else None


def _spelled(target: Target) -> Target:
    provider = canonical(target.provider)
    if provider == target.provider:
        return target
    return Target(provider, target.model, target.api_base, target.api_key)


def _speaks_openai(target: Target) -> bool:
    """Whether the lean transport will do: some models have only OpenAI's other API, to which LiteLLM translates."""
    if target.provider not in LEAN:
        return False
    entry = prices.find(target.provider, target.model)
    return entry is None or entry.mode != "responses"
