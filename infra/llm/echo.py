"""demo/echo: says what it was told, so that a newcomer's first job runs without a key.

It is LiteLLM's mock_response with LiteLLM's token counts, but made here: importing LiteLLM would let the first call
of a first look wait for 4 seconds. A test holds both answers side by side. Where they differ, ours is meant: LiteLLM
raises errors at texts like "litellm.RateLimitError", and at an empty one it calls OpenAI instead.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from infra.llm import counting
from infra.llm.shapes import ChatRequest, Chunk, Completion, Target, Usage, text_of

CHARACTERS_PER_CHUNK: Final = 3  # LiteLLM's
MOST_CHUNKS: Final = 2000


class Echo:
    """The transport of the built-in provider."""

    async def complete(self, target: Target, request: ChatRequest) -> Completion:
        started = time.perf_counter()
        text = last_words(request.messages)
        usage = await _usage(target, request, text)
        latency_ms = round((time.perf_counter() - started) * 1000)
        return Completion(content=text, finish_reason="stop", usage=usage, latency_ms=latency_ms)

    async def stream(self, target: Target, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        text = last_words(request.messages)
        step = max(CHARACTERS_PER_CHUNK, -(-len(text) // MOST_CHUNKS))
        for start in range(0, len(text), step):
            yield Chunk(content=text[start : start + step])
            await asyncio.sleep(0)  # nothing here waits for a network, so others would
        yield Chunk(finish_reason="stop")
        yield Chunk(usage=await _usage(target, request, text))

    async def close(self) -> None:
        """There is nothing to close."""


async def _usage(target: Target, request: ChatRequest, text: str) -> Usage:
    return Usage(await counting.count_messages(target, request.messages), await counting.count_text(target, text))


def last_words(messages: list[dict[str, Any]]) -> str:
    """The text of the last user message, "" if there is none."""
    said = [message for message in messages if message.get("role") == "user"]
    return text_of(said[-1].get("content")) if said else ""
