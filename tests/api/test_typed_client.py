"""The typed client against a running server."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from examples import typed_client
from examples.typed_client import (
    InsufficientCredits,
    Message,
    ModelNotAllowed,
    RateLimited,
    SaaSLLMClient,
    SaaSLLMError,
)
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


# -- answers that a test writes ----------------------------------------------------------------------------------------

CUT = None  # the connection breaks instead
JOB = {"job_id": "j1", "team_id": "t", "status": "pending", "created_at": "2026-03-04T12:00:00.000Z"}
CHUNK = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
STREAM = f"data: {json.dumps({**CHUNK, 'choices': [{'index': 0, 'delta': {'content': 'Hi'}}]})}\n\ndata: [DONE]\n\n"


@dataclass
class Scripted:
    """A server that gives its answers in their order, and notes what it was asked."""

    answers: list[tuple[int, dict[str, str], str] | None]
    keys: list[str] = field(default_factory=list)

    @contextmanager
    def serving(self) -> Iterator[SaaSLLMClient]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                script.keys.append(self.headers["Idempotency-Key"])
                answer = script.answers.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's word
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield SaaSLLMClient(f"http://127.0.0.1:{server.server_port}", "t", "sk-1234", max_retries=4)
            server.shutdown()
            thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client wanted to wait each time, which it does not."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(typed_client, "asyncio", SimpleNamespace(sleep=sleep))
    return waited


def refusal(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], str]:
    return status, headers, json.dumps({"detail": "no", "code": code})


async def opened(client: SaaSLLMClient) -> Any:
    async with client:
        return await client.create_job("test")


async def streamed(client: SaaSLLMClient) -> Any:
    async with client:
        return [chunk.choices[0].delta async for chunk in client.chat_stream("j1", ASK)]


@pytest.mark.parametrize(
    "work, good, expected",
    [(opened, json.dumps(JOB), "j1"), (streamed, STREAM, [{"content": "Hi"}])],
    ids=["post", "stream"],
)
def test_what_may_pass_is_asked_again_under_the_same_key_as_late_as_the_server_wishes(
    pauses: list[float], work: Any, good: str, expected: Any
) -> None:
    wishes = [refusal(429, "rate_limited", **{"Retry-After": "7"}), CUT, refusal(503, "unavailable"), refusal(409, "x")]
    script = Scripted([*wishes, (200, {}, good)])
    with script.serving() as client:
        assert expected == run(work(client))
    assert [7, 2, 4, 8] == pauses
    assert 5 == len(script.keys)
    assert 1 == len(set(script.keys))


@pytest.mark.parametrize("work", [opened, streamed])
def test_who_is_refused_to_the_last_hears_why(pauses: list[float], work: Any) -> None:
    with Scripted([refusal(429, "rate_limited")] * 5).serving() as client, pytest.raises(RateLimited) as refused:
        run(work(client))
    assert (429, "rate_limited", "no") == (refused.value.status_code, refused.value.code, refused.value.detail)
    assert [1, 2, 4, 8] == pauses


@pytest.mark.parametrize("work", [opened, streamed])
def test_a_connection_that_breaks_every_time_is_an_error(pauses: list[float], work: Any) -> None:
    with Scripted([CUT] * 5).serving() as client, pytest.raises(httpx.TransportError):
        run(work(client))


@pytest.mark.parametrize("work", [opened, streamed])
def test_what_will_not_change_is_not_asked_again(pauses: list[float], work: Any) -> None:
    script = Scripted([refusal(403, "insufficient_credits")])
    with script.serving() as client, pytest.raises(InsufficientCredits):
        run(work(client))
    assert [] == pauses


def test_each_wish_has_a_key_of_its_own(pauses: list[float]) -> None:
    script = Scripted([(200, {}, json.dumps(JOB))] * 2)

    async def twice(client: SaaSLLMClient) -> None:
        async with client:
            await client.create_job("test")
            await client.create_job("test")

    with script.serving() as client:
        run(twice(client))
    assert 2 == len(set(script.keys))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Oslo", "people": 700000}',
        'See [1] and {this}: ```json\n{"name": "Oslo", "people": 700000}\n``` [done]',
        '{"thoughts": {"name": "Rome"}} {"name": "Oslo", "people": 700000}',
    ],
)
def test_an_answer_of_a_shape_is_found_among_words(pauses: list[float], text: str) -> None:
    answer = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
    answered = {**answer, "choices": [{"index": 0, "message": {"content": text}}]}

    async def story(client: SaaSLLMClient) -> City:
        async with client:
            return await client.structured_output("j1", ASK, City)

    with Scripted([(200, {}, json.dumps(answered))]).serving() as client:
        assert City(name="Oslo", people=700_000) == run(story(client))


def test_an_answer_without_the_shape_is_an_error(pauses: list[float]) -> None:
    with pytest.raises(ValidationError):
        typed_client._read(City, "I do not know: {}")


# -- before anything is asked ------------------------------------------------------------------------------------------


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
