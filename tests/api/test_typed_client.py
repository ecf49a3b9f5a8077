"""The typed client against a running server."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import httpx
import pytest
from pydantic import BaseModel

from examples.typed_client import InsufficientCredits, Message, ModelNotAllowed, SaaSLLMClient, SaaSLLMError
from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.provider import FakeProvider

T = TypeVar("T")
ASK = [{"role": "user", "content": "Hello"}]


class City(BaseModel):
    name: str
    people: int


def client_of(server: Server, team: TestTeam, **more: Any) -> SaaSLLMClient:
    return SaaSLLMClient(base_url=server.url, team_id=team.team_id, virtual_key=team.key, **more)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_a_job_from_its_opening_to_its_charge(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias = make_alias(admin, provider)

    async def story() -> tuple[Any, ...]:
        async with client_of(server, team) as client:
            job_id = await client.create_job("test", metadata={"a": 1})
            answer = await client.chat(messages=[Message(role="user", content="Hello")], model=alias)
            ended = await client.complete_job(result={"done": True})
            return job_id, answer, ended, await client.get_balance(), await client.get_team(), await client.get_job()

    job_id, answer, ended, balance, its_team, job = run(story())
    assert (ended.job_id, ended.status, ended.total_calls) == (job_id, "completed", 1)
    assert answer.choices[0].message["content"] == answer.response["content"]
    assert balance["credits_remaining"] == ended.credits_remaining == 99
    assert its_team["credits"]["credits_used"] == 1
    assert job["metadata"] == {"a": 1, "result": {"done": True}}


def test_a_stream_comes_in_pieces_and_ends_with_its_usage(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias = make_alias(admin, provider, "stream-5-1")

    async def story() -> list[Any]:
        async with client_of(server, team) as client:
            await client.create_job("test")
            return [chunk async for chunk in client.chat_stream(messages=ASK, model_group=alias)]

    chunks = run(story())
    assert len(chunks) > 2
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_what_the_server_refuses_is_a_typed_error(server: Server, admin: httpx.Client, provider: FakeProvider) -> None:
    alias = make_alias(admin, provider)
    poor = make_team(server, admin, credits=0)

    async def story() -> None:
        async with client_of(server, poor) as client:
            await client.create_job("test")
            with pytest.raises(InsufficientCredits) as refused:
                await client.chat(messages=ASK, model=alias)
            assert refused.value.facts == {"credits_needed": 1, "credits_available": 0}
            with pytest.raises(ModelNotAllowed):
                await client.chat(messages=ASK, model="no-such-model")
            with pytest.raises(SaaSLLMError) as unknown:
                await client.get_job("00000000-0000-0000-0000-000000000000")
            assert (unknown.value.status_code, unknown.value.code) == (404, "not_found")

    run(story())


def test_a_stream_that_breaks_raises(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias = make_alias(admin, provider, "break-after-2")

    async def story() -> list[Any]:
        async with client_of(server, team) as client:
            await client.create_job("test")
            return [chunk async for chunk in client.chat_stream(messages=ASK, model=alias)]

    with pytest.raises(SaaSLLMError) as broken:
        run(story())
    assert broken.value.code == "provider_error"


def test_without_a_job_nothing_is_asked(server: Server, team: TestTeam) -> None:
    async def story() -> None:
        async with client_of(server, team) as client:
            await client.chat(messages=ASK)

    with pytest.raises(ValueError, match="no job"):
        run(story())


def test_both_words_for_the_address_are_understood() -> None:
    for address in ("http://here:1", "http://here:1/", "http://here:1/api", "http://here:1/api/"):
        client = SaaSLLMClient(api_url=address, team_id="t", virtual_key="sk-1234567")
        assert str(client._http.base_url) == "http://here:1/api/"
        run(client.close())
    with pytest.raises(ValueError, match="differ"):
        SaaSLLMClient("http://here", "t", "sk-1234567", api_url="http://there")
