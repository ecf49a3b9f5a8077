"""Both transports, against a provider over real HTTP: what one does, the other does."""

import asyncio
import contextlib
import copy
import gc
import ipaddress
import json
import ssl
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.llm import ChatRequest, Chunk, Completion, Models, ProviderFailure, Target, Usage, openai_wire
from infra.llm.echo import last_words
from infra.llm.openai_wire import KEEPALIVE_S
from infra.llm.providers import LEAN
from tests.provider import HELLO, FakeProvider, event, pieces, whole
from tests.waiting import eventually

# LiteLLM's dependencies warn as they like; none of it is ours.
pytestmark = pytest.mark.filterwarnings("ignore:::pydantic", "ignore::DeprecationWarning", "ignore::ResourceWarning")

Transport = Literal["auto", "litellm"]
Answer = TypeVar("Answer")

HI = [{"role": "user", "content": "hi"}]
KEY = "sk-test-0123456789"
PATIENCE_S = 20.0


class Talk:
    """One process's Models on a loop of its own, and short ways to ask the fake provider something."""

    def __init__(self, provider: FakeProvider, transport: Transport, timeout_s: float = PATIENCE_S) -> None:
        self.provider = provider
        self.transport = transport
        self.runner = asyncio.Runner()
        self.models = Models(timeout_s, transport)
        self.run(self.models.start())
        if transport == "litellm":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.run(self.models.warm())

    def close(self) -> None:
        self.run(self.models.close())
        self.runner.close()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self.runner.run(work)

    def target(self, model: str) -> Target:
        return Target("openai", model, api_base=self.provider.url, api_key=KEY)

    def ask(self, model: str, messages: list[dict[str, Any]] = HI, **options: Any) -> Completion:
        return self.run(self.models.complete(self.target(model), ChatRequest(messages, options)))

    def open(self, model: str, messages: list[dict[str, Any]] = HI, **options: Any) -> AsyncGenerator[Chunk, None]:
        return self.models.stream(self.target(model), ChatRequest(messages, options))

    def stream(self, model: str, messages: list[dict[str, Any]] = HI, **options: Any) -> list[Chunk]:
        return self.run(collect(self.open(model, messages, **options)))

    def whole_failure(self, model: str) -> ProviderFailure:
        with pytest.raises(ProviderFailure) as caught:
            self.ask(model)
        return caught.value

    def stream_failure(self, model: str) -> tuple[str, ProviderFailure]:
        """The text that came before the failure, and the failure."""
        chunks: list[Chunk] = []
        with pytest.raises(ProviderFailure) as caught:
            self.run(collect(self.open(model), chunks))
        return text(chunks), caught.value


async def collect(stream: AsyncGenerator[Chunk, None], into: list[Chunk] | None = None) -> list[Chunk]:
    chunks = [] if into is None else into
    async for chunk in stream:
        chunks.append(chunk)
    return chunks


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.content or "" for chunk in chunks)


def usage(chunks: list[Chunk]) -> Usage | None:
    return next((chunk.usage for chunk in reversed(chunks) if chunk.usage is not None), None)


def reasons(chunks: list[Chunk]) -> list[str]:
    return [chunk.finish_reason for chunk in chunks if chunk.finish_reason is not None]


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture(scope="module", params=["auto", "litellm"])
def talk(provider: FakeProvider, request: pytest.FixtureRequest) -> Iterator[Talk]:
    talk = Talk(provider, request.param)
    yield talk
    talk.close()


@pytest.fixture
def hurried(talk: Talk) -> Iterator[Talk]:
    """The same transport with little patience."""
    hurried = Talk(talk.provider, talk.transport, timeout_s=0.6)
    yield hurried
    hurried.close()


@pytest.fixture(scope="module")
def lean(provider: FakeProvider) -> Iterator[Talk]:
    lean = Talk(provider, "auto")
    yield lean
    lean.close()


@pytest.fixture(scope="module")
def through_litellm(provider: FakeProvider) -> Iterator[Talk]:
    talk = Talk(provider, "litellm")
    yield talk
    talk.close()


# -- answers -------------------------------------------------------------------------------------------------


def test_an_answer_has_a_text_a_reason_and_its_tokens(talk: Talk) -> None:
    answer = talk.ask("gpt-ok")
    assert (HELLO, "stop", Usage(5, 7), None) == (
        answer.content,
        answer.finish_reason,
        answer.usage,
        answer.tool_calls,
    )


def test_a_stream_has_the_text_in_pieces_then_the_reason_then_the_tokens(talk: Talk) -> None:
    chunks = talk.stream("gpt-ok")
    assert ["Hello ", "from ", "the ", "fake ", "provider."] == [chunk.content for chunk in chunks if chunk.content]
    assert ["stop"] == reasons(chunks)
    assert Usage(5, 7) == chunks[-1].usage


def test_no_chunk_says_nothing(talk: Talk) -> None:
    assert Chunk() not in talk.stream("gpt-ok")


def test_a_stream_asks_for_usage(talk: Talk) -> None:
    talk.stream("gpt-ok")
    assert {"include_usage": True} == talk.provider.last.body["stream_options"]


def test_the_request_arrives_as_it_was_made(talk: Talk) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "short"},
        {"role": "user", "name": "bo", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "Grüße 🗼"},
        {"role": "user", "content": "three"},
    ]
    options = {
        "temperature": 0.7,
        "max_tokens": 10,
        "top_p": 0.5,
        "stop": ["x"],
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "seed": 3,
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "tool_choice": "auto",
    }
    talk.ask("gpt-ok", messages, **options)
    assert {"model": "gpt-ok", "messages": messages} | options == talk.provider.last.body
    assert f"Bearer {KEY}" == talk.provider.last.headers["Authorization"]


def test_what_is_no_option_is_not_sent(talk: Talk) -> None:
    talk.ask("gpt-ok", temperature=0.7, api_base="http://elsewhere", mock_response="x", stream=True, n=3)
    assert {"model", "messages", "temperature"} == talk.provider.last.body.keys()


def test_the_request_is_the_callers_to_keep(talk: Talk) -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": []}, *HI]
    before = copy.deepcopy(messages)
    talk.ask("gpt-ok", messages)
    assert before == messages


def test_tokens_are_the_providers(talk: Talk) -> None:
    assert Usage(1234, 5678) == talk.ask("usage-1234-5678").usage
    assert Usage(1234, 5678) == usage(talk.stream("usage-1234-5678"))


@pytest.mark.parametrize("model", ["no-usage", "null-usage", "partial-usage"])
def test_missing_usage_is_none(talk: Talk, model: str) -> None:
    assert talk.ask(model).usage is None
    assert usage(talk.stream(model)) is None


def test_zero_usage_is_zero(talk: Talk) -> None:
    assert Usage(0, 0) == talk.ask("zero-usage").usage
    assert Usage(0, 0) == usage(talk.stream("zero-usage"))


def test_null_content_is_an_empty_text(talk: Talk) -> None:
    assert talk.ask("null-content").content == ""
    chunks = talk.stream("null-content")
    assert ("", ["stop"]) == (text(chunks), reasons(chunks))


def test_tool_calls_come_beside_an_empty_text(talk: Talk) -> None:
    answer = talk.ask("tools")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    assert ("", [call], "tool_calls") == (answer.content, answer.tool_calls, answer.finish_reason)


def test_the_pieces_of_a_tool_call_add_up(talk: Talk) -> None:
    chunks = talk.stream("tools")
    calls = [call for chunk in chunks for call in chunk.tool_calls or []]
    assert ("call_1", "weather") == (calls[0]["id"], calls[0]["function"]["name"])
    assert '{"city": "Oslo"}' == "".join(call["function"].get("arguments", "") for call in calls)
    assert {0} == {call["index"] for call in calls}
    assert ["tool_calls"] == reasons(chunks)


@pytest.mark.parametrize(
    "said, meant",
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("eos", "stop"),
    ],
)
def test_an_answer_ends_for_one_of_four_reasons(talk: Talk, said: str, meant: str) -> None:
    assert meant == talk.ask(f"finish-{said}").finish_reason
    assert [meant] == reasons(talk.stream(f"finish-{said}"))


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, outcome, falls_back",
    [
        (400, "rejected", False),
        (401, "error", True),
        (402, "rejected", False),
        (403, "error", True),
        (404, "error", True),
        (408, "timeout", True),
        (409, "error", True),
        (413, "rejected", False),
        (422, "rejected", False),
        (429, "error", True),
        (500, "error", True),
        (502, "error", True),
        (503, "error", True),
        (504, "timeout", True),
    ],
)
def test_a_status_says_whether_another_target_may_answer(
    talk: Talk, status: int, outcome: str, falls_back: bool
) -> None:
    whole = talk.whole_failure(f"status-{status}")
    before, streamed = talk.stream_failure(f"status-{status}")
    expected = (outcome, status, falls_back)
    assert expected == (whole.outcome, whole.http_status, whole.falls_back)
    assert expected == (streamed.outcome, streamed.http_status, streamed.falls_back)
    assert before == ""


@pytest.mark.parametrize("model", ["status-500", "status-429", "break-after-1", "error-in-200"])
def test_a_failed_call_is_made_once(talk: Talk, model: str) -> None:
    before = talk.provider.calls[model]
    talk.whole_failure(model)
    assert before + 1 == talk.provider.calls[model]


def test_a_provider_that_keeps_silent_is_given_up(hurried: Talk) -> None:
    assert ("timeout", None, True) == verdict(hurried.whole_failure("hang"))
    assert ("timeout", None, True) == verdict(hurried.stream_failure("hang")[1])


def test_a_stream_that_falls_silent_is_given_up(hurried: Talk) -> None:
    before, failure = hurried.stream_failure("hang-after-2")
    assert "Hello ".startswith(before)
    assert ("timeout", None, True) == verdict(failure)


def test_a_stream_that_never_ends_is_given_up(hurried: Talk) -> None:
    """The time limit is for the attempt, not for each piece."""
    assert ("timeout", None, True) == verdict(hurried.stream_failure("stream-1000-20")[1])


def test_a_broken_connection_is_a_failure(talk: Talk) -> None:
    assert ("error", None, True) == verdict(talk.whole_failure("break-after-1"))


def test_a_stream_that_breaks_gives_what_it_had(talk: Talk) -> None:
    model = f"break-after-3-{talk.transport}"
    chunks: list[Chunk] = []

    async def read() -> None:
        async for chunk in talk.open(model):
            chunks.append(chunk)
            if text(chunks) == "Hello from ":
                talk.provider.let_go(model)

    with pytest.raises(ProviderFailure) as caught:
        talk.run(read())
    assert "Hello from " == text(chunks)
    assert ("error", None, True) == verdict(caught.value)


def test_a_stream_that_ends_without_a_reason_is_broken(talk: Talk) -> None:
    chunks: list[Chunk] = []
    with pytest.raises(ProviderFailure):
        talk.run(collect(talk.open("unannounced-end"), chunks))
    assert ("Hello from ", []) == (text(chunks), reasons(chunks))


def test_an_error_inside_a_stream_is_a_failure(talk: Talk) -> None:
    before, failure = talk.stream_failure("error-in-stream")
    assert ("Hello from ", "error", True) == (before, failure.outcome, failure.falls_back)
    assert "overloaded in mid-stream" in failure.text


def test_an_error_with_a_good_status_is_a_failure(talk: Talk) -> None:
    failure = talk.whole_failure("error-in-200")
    assert ("error", True) == (failure.outcome, failure.falls_back)
    assert "overloaded after all" in failure.text


@pytest.mark.parametrize("model", ["html", "garbage", "no-choices"])
def test_an_answer_that_is_none_is_a_failure(talk: Talk, model: str) -> None:
    assert ("error", None, True) == verdict(talk.whole_failure(model))


@pytest.mark.parametrize("model", ["html", "garbage"])
def test_a_stream_that_is_none_is_a_failure(talk: Talk, model: str) -> None:
    before, failure = talk.stream_failure(model)
    assert ("", "error", True) == (before, failure.outcome, failure.falls_back)


@pytest.mark.parametrize(
    "answer",
    [whole("gpt-ok", "").replace(b"Hello", b"Hell\xff"), b'{"a":' * 5000 + b"1" + b"}" * 5000],
    ids=["not UTF-8", "too deep"],
)
def test_an_answer_that_nobody_can_read_is_a_failure(talk: Talk, answer: bytes) -> None:
    model = talk.provider.says(answer)
    assert ("error", None, True) == verdict(talk.whole_failure(model))
    model = talk.provider.says(b"data: " + answer + b"\n\n")
    before, failure = talk.stream_failure(model)
    assert ("", "error", True) == (before, failure.outcome, failure.falls_back)


def test_a_letter_that_was_cut_in_two_is_replaced_and_the_others_stay(talk: Talk) -> None:
    model = talk.provider.says(whole("gpt-ok", "").replace(b"Hello", rb"\ud83d\ude00 \ud83d \\ud83d \u00fc"))
    assert HELLO.replace("Hello", "😀 \ufffd \\ud83d ü") == talk.ask(model).content
    model = talk.provider.says(whole("tools", "").replace(b"Oslo", rb"\ude00"))
    assert [{"city": "\ufffd"}] == [
        json.loads(tool["function"]["arguments"]) for tool in talk.ask(model).tool_calls or ()
    ]
    halves = (
        event("m", {"content": "?"}).replace(b"?", rb"\ud83d"),
        event("m", {"content": "?"}).replace(b"?", rb"\ude00"),
    )
    model = talk.provider.says(b"".join((*halves, *pieces("gpt-ok", "", True))))
    assert "\ufffd\ufffd" + HELLO == text(talk.stream(model))


def test_nobody_there_is_a_failure(talk: Talk) -> None:
    target = Target("openai", "gpt-ok", api_base="http://127.0.0.1:9/v1", api_key=KEY)
    with pytest.raises(ProviderFailure) as caught:
        talk.run(talk.models.complete(target, ChatRequest(HI)))
    assert ("error", None, True) == verdict(caught.value)


def test_a_failure_repeats_the_providers_words(talk: Talk) -> None:
    assert "status 404 from the fake provider" == talk.whole_failure("status-404").text


def test_a_long_failure_is_cut(talk: Talk) -> None:
    assert "x" * 1000 == talk.whole_failure("long-error").text


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_a_failure_gives_no_secret_away(talk: Talk, how: str) -> None:
    failure = talk.whole_failure("leaky-error") if how == "whole" else talk.stream_failure("leaky-error")[1]
    told = failure.text + str(failure) + repr(failure)
    for secret in (KEY, "hunter2", "AIzaSy", "sk-proj", "eyJ"):
        assert secret not in told
    assert failure.text.endswith("refused by replica 7")


# -- connections ---------------------------------------------------------------------------------------------


def test_the_first_text_is_here_before_the_last_is_written(talk: Talk) -> None:
    async def first() -> str | None:
        stream = talk.open("hang-after-2")
        try:
            return (await anext(stream)).content
        finally:
            await stream.aclose()

    assert "Hello " == talk.run(first())


@pytest.mark.parametrize("transport", ["auto", "litellm"])
def test_what_is_asked_when_the_server_has_to_end_fails_and_nothing_is_asked_any_more(
    provider: FakeProvider, transport: Transport
) -> None:
    with contextlib.closing(Talk(provider, transport)) as talk:
        chunks: list[Chunk] = []

        async def story() -> None:
            asked = provider.calls["hang"]
            whole = asyncio.create_task(talk.models.complete(talk.target("hang"), ChatRequest(HI)))
            left = asyncio.create_task(talk.models.complete(talk.target("hang"), ChatRequest(HI)))
            streamed = asyncio.create_task(collect(talk.open("hang-after-2"), chunks))
            await eventually(lambda: provider.calls["hang"] == asked + 2 and text(chunks) != "")
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            talk.models.cut()
            late = talk.models.complete(talk.target("gpt-ok"), ChatRequest(HI))
            for each in (whole, streamed, late, collect(talk.open("gpt-ok"))):
                with pytest.raises(ProviderFailure, match="the server is stopping"):
                    await each

        talk.run(story())


def test_closing_a_stream_hangs_up(talk: Talk) -> None:
    async def leave() -> None:
        stream = talk.open("hang-after-3")
        await anext(stream)
        await stream.aclose()

    before = talk.provider.disconnects["hang-after-3"]
    talk.run(leave())
    talk.provider.until(lambda provider: provider.disconnects["hang-after-3"] == before + 1)


def test_a_stream_that_nobody_read_is_closed_without_a_call(talk: Talk) -> None:
    before = talk.provider.calls["gpt-unread"]
    talk.run(talk.open("gpt-unread").aclose())
    assert before == talk.provider.calls["gpt-unread"]


def test_cancelling_a_call_hangs_up(talk: Talk) -> None:
    async def give_up() -> None:
        called = talk.provider.calls["slow-60000"]
        call = asyncio.create_task(talk.models.complete(talk.target("slow-60000"), ChatRequest(HI)))
        await asyncio.to_thread(talk.provider.until, lambda provider: provider.calls["slow-60000"] > called)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    before = talk.provider.disconnects["slow-60000"]
    talk.run(give_up())
    talk.provider.until(lambda provider: provider.disconnects["slow-60000"] == before + 1)


def test_calls_share_connections(lean: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_wire, "END_S", PATIENCE_S)
    for _ in range(2):
        lean.stream("gpt-ok")
        lean.ask("gpt-ok")
    last = list(lean.provider.requests)[-4:]
    assert 1 == len({seen.connection for seen in last})


@pytest.mark.parametrize("provider_name", ["openai", "azure"])
def test_all_keys_share_connections(talk: Talk, provider_name: str) -> None:
    for key in ("a", "b", "c"):
        talk.run(talk.models.complete(at_any_key(talk.provider, provider_name, key), ChatRequest(HI)))
    last = list(talk.provider.requests)[-3:]
    assert 3 == len({seen.headers.get("Authorization") or seen.headers["api-key"] for seen in last})
    assert 1 == len({seen.connection for seen in last})


@pytest.mark.parametrize("provider_name", ["openai", "azure"])
def test_nothing_stays_open_after_the_end(talk: Talk, provider_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM has a client for each key, and forgets the oldest if there are many."""
    talk.run(talk.models.warm())
    monkeypatch.setattr(sys.modules["litellm"].in_memory_llm_clients_cache, "max_size_in_memory", 3)
    with FakeProvider() as provider:
        ending = Talk(provider, talk.transport)
        for number in range(9):
            target = at_any_key(provider, provider_name, f"key-{number}")
            ending.run(ending.models.complete(target, ChatRequest(HI)))
        assert provider.connections > 0
        ending.close()
        provider.until(lambda provider: provider.connections == 0)


def at_any_key(provider: FakeProvider, name: str, key: str) -> Target:
    base = provider.url.removesuffix("/v1") if name == "azure" else provider.url
    return Target(name, "gpt-ok", api_base=base, api_key=key)


def test_litellm_leaves_idle_connections_as_soon_as_we_do(through_litellm: Talk) -> None:
    assert KEEPALIVE_S == sys.modules["litellm.constants"].AIOHTTP_KEEPALIVE_TIMEOUT


def test_no_cookie_is_kept(talk: Talk) -> None:
    """It would tell a provider about one organization what it knows of another."""
    talk.ask("cookie")
    talk.ask("gpt-ok")
    assert "Cookie" not in talk.provider.last.headers


def test_a_redirect_is_not_followed(lean: Talk) -> None:
    before = lean.provider.calls.total()
    assert ("error", 302) == verdict(lean.whole_failure("status-302"))[:2]
    assert before + 1 == lean.provider.calls.total()


def test_a_proxy_is_not_for_loopback(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "localhost,127.0.0.1,::1" if talk.transport == "litellm" else "")
    assert HELLO == talk.ask("gpt-ok").content


def test_an_unknown_certificate_is_refused(talk: Talk, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))

    async def ask() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        target = Target("openai", "gpt-ok", api_base=f"https://127.0.0.1:{port}/v1", api_key=KEY)
        try:
            await talk.models.complete(target, ChatRequest(HI))
        finally:
            server.close()
            await server.wait_closed()

    with pytest.raises(ProviderFailure) as caught:
        talk.run(ask())
    assert ("error", None, True) == verdict(caught.value)
    if talk.transport == "auto":
        assert "certificate verify failed" in caught.value.text


def self_signed(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


# -- what only the lean transport bears ----------------------------------------------------------------------


def test_a_ragged_stream_is_read(lean: Talk) -> None:
    chunks = lean.stream("ragged")
    assert ("Grüße aus 東京 🗼", ["stop"], Usage(3, 4)) == (text(chunks), reasons(chunks), usage(chunks))


def test_json_instead_of_a_stream_is_one_chunk(lean: Talk) -> None:
    assert [Chunk(content=HELLO, finish_reason="stop", usage=Usage(5, 7))] == lean.stream("not-a-stream")


def test_content_in_parts_is_joined(lean: Talk) -> None:
    assert HELLO == lean.ask("list-content").content


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_an_endless_answer_is_refused(lean: Talk, how: str) -> None:
    model = f"big-{40 << 20}"
    failure = lean.whole_failure(model) if how == "whole" else lean.stream_failure(model)[1]
    assert ("error", None, True) == verdict(failure)


def verdict(failure: ProviderFailure) -> tuple[str, int | None, bool]:
    return failure.outcome, failure.http_status, failure.falls_back


# -- what LiteLLM does besides -----------------------------------------------------------------------------------


def test_litellm_neither_prices_nor_logs_a_call(through_litellm: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as long as the call itself, and nobody reads it. No setting turns it off: a new version may turn it on."""
    done: list[str] = []
    books = sys.modules["litellm.litellm_core_utils.litellm_logging"]
    prices = sys.modules["litellm.cost_calculator"]
    for owner, name in [
        (books.Logging, "async_success_handler"),
        (books.Logging, "success_handler"),
        (books.Logging, "async_failure_handler"),
        (books.Logging, "failure_handler"),
        (prices, "completion_cost"),
    ]:
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: done.append(name))

    async def ask() -> None:
        await through_litellm.models.complete(through_litellm.target("gpt-ok"), ChatRequest(HI))
        with pytest.raises(ProviderFailure):
            await through_litellm.models.complete(through_litellm.target("status-500"), ChatRequest(HI))
        await asyncio.sleep(0)  # it would be done in a task of its own

    through_litellm.run(ask())
    assert [] == done


def test_litellm_keeps_no_vocabulary_that_nobody_reads(through_litellm: Talk) -> None:
    assert not hasattr(sys.modules["litellm.utils"], "json_data")


def test_litellm_reads_no_vocabulary_for_providers_that_need_none(
    through_litellm: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 MB, and 0.1 s on the event loop."""
    monkeypatch.setattr(sys.modules["litellm.main"], "_encoding_cache", None)
    monkeypatch.setitem(sys.modules, "litellm.litellm_core_utils.default_encoding", None)  # so it cannot be read
    target = Target("groq", "gpt-ok", api_base=through_litellm.provider.url, api_key=KEY)
    assert HELLO == through_litellm.run(through_litellm.models.complete(target, ChatRequest(HI))).content


def test_litellm_reads_a_vocabulary_for_those_that_do(through_litellm: Talk) -> None:
    litellm: Any = sys.modules["litellm"]
    assert "hi" == litellm.encoding.decode(litellm.main.encoding.encode("hi"))


def test_the_garbage_collection_passes_litellm_by(through_litellm: Talk) -> None:
    assert not any(found is sys.modules["litellm"].model_cost for found in gc.get_objects())


# -- keys and addresses --------------------------------------------------------------------------------------


def test_a_provider_without_a_key_is_not_asked(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    for target in (Target("openai", "gpt-4o"), Target("hosted_vllm", "anything")):
        with pytest.raises(ProviderFailure) as caught:
            talk.run(talk.models.complete(target, ChatRequest(HI)))
        assert ("not_configured", None, True) == verdict(caught.value)
        with pytest.raises(ProviderFailure) as caught:
            talk.run(collect(talk.models.stream(target, ChatRequest(HI))))
        assert ("not_configured", None, True) == verdict(caught.value)


def test_the_environment_has_the_key_and_the_address(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk_from_environment")
    monkeypatch.setenv("GROQ_API_BASE", talk.provider.url)
    talk.run(talk.models.complete(Target("groq", "gpt-ok"), ChatRequest(HI)))
    assert "Bearer gsk_from_environment" == talk.provider.last.headers["Authorization"]


def test_an_own_server_needs_no_key(lean: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOSTED_VLLM_API_KEY", raising=False)
    target = Target("hosted_vllm", "gpt-ok", api_base=lean.provider.url)
    assert HELLO == lean.run(lean.models.complete(target, ChatRequest(HI))).content
    assert "Authorization" not in lean.provider.last.headers


@pytest.mark.parametrize("base", ["{url}", "{url}/", "{url}/chat/completions"])
def test_an_address_may_be_written_in_three_ways(lean: Talk, base: str) -> None:
    target = Target("openai", "gpt-ok", api_base=base.format(url=lean.provider.url), api_key=KEY)
    assert HELLO == lean.run(lean.models.complete(target, ChatRequest(HI))).content


def test_ollama_is_reached_at_its_host(lean: Talk) -> None:
    target = Target("ollama", "gpt-ok", api_base=lean.provider.url.removesuffix("/v1"))
    assert HELLO == lean.run(lean.models.complete(target, ChatRequest(HI))).content


def test_an_address_that_is_none_is_not_asked(lean: Talk) -> None:
    for base in ("http://[::1", "nonsense"):
        with pytest.raises(ProviderFailure) as caught:
            lean.run(lean.models.complete(Target("ollama", "x", api_base=base), ChatRequest(HI)))
        assert caught.value.falls_back


# -- dialects ------------------------------------------------------------------------------------------------

# To the others LiteLLM speaks in another way: by a library of theirs, over another API, or not at all.
BOTH_SPEAK_TO = sorted(LEAN.keys() - {"vllm", "openai_like", "ollama", "ollama_chat"})
EVERYTHING = {
    "temperature": 0.5,
    "max_tokens": 10,
    "top_p": 0.9,
    "stop": ["x"],
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
    "seed": 3,
    "response_format": {"type": "json_object"},
    "tools": [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
        }
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "logit_bias": {"1": 1},
    "logprobs": True,
    "top_logprobs": 2,
}


@pytest.mark.parametrize("name", BOTH_SPEAK_TO)
@pytest.mark.parametrize("how", ["whole", "stream"])
def test_both_transports_send_the_same(lean: Talk, through_litellm: Talk, name: str, how: str) -> None:
    options = {"temperature": 0.5, "max_tokens": 10, "top_p": 0.9}
    ours, theirs = (sent(talk, name, "gpt-ok", how, options) for talk in (lean, through_litellm))
    assert theirs == ours


@pytest.mark.parametrize(
    "name, model, but",
    [
        *((name, "gpt-ok", "") for name in BOTH_SPEAK_TO),
        ("openai", "gpt-4o", ""),
        ("openai", "gpt-5", ""),
        ("openai", "gpt-5-mini", ""),
        ("openai", "gpt-5-chat-latest", ""),
        # What the providers' documentation excludes for these models.
        ("openai", "o4-mini", "stop logit_bias messages"),
        ("xai", "grok-4", "presence_penalty"),
        ("xai", "grok-3-mini", "presence_penalty frequency_penalty"),
        ("deepseek", "deepseek-chat", ""),
        ("mistral", "mistral-small-latest", ""),
        ("perplexity", "sonar", ""),
    ],
)
def test_no_option_is_lost_that_litellm_would_send(
    lean: Talk, through_litellm: Talk, name: str, model: str, but: str
) -> None:
    """It knows each provider's refusals; where it drops more than it must, our request may be the longer one."""
    ours, theirs = (sent(talk, name, model, "stream", EVERYTHING) for talk in (lean, through_litellm))
    expected = {option: value for option, value in theirs.items() if option not in but.split()}
    assert expected == {option: ours.get(option) for option in expected}


def sent(talk: Talk, name: str, model: str, how: str, options: dict[str, Any]) -> dict[str, Any]:
    """The body of a request as it arrived."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "short"},
        {"role": "user", "name": "bo", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    target = Target(name, model, api_base=talk.provider.url, api_key=KEY)
    if how == "whole":
        talk.run(talk.models.complete(target, ChatRequest(messages, options)))
    else:
        talk.run(collect(talk.models.stream(target, ChatRequest(messages, options))))
    return talk.provider.last.body


# -- demo/echo -----------------------------------------------------------------------------------------------

DEMO = Target("demo", "echo")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hello, world!"}],
        [{"role": "user", "content": "x"}],
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Grüße aus 東京 🗼", "name": "bo"},
            {"role": "assistant", "content": "Hm?"},
            {"role": "user", "content": [{"type": "text", "text": "Zwei "}, {"type": "text", "text": "Teile."}]},
        ],
        # Longer texts LiteLLM counts in slices, and the cuts cost it a token each.
        [{"role": "user", "content": "An answer that is long enough for many pieces. " * 20}],
    ],
)
def test_the_demo_answers_like_litellms_mock(
    lean: Talk, through_litellm: Talk, monkeypatch: pytest.MonkeyPatch, messages: list[dict[str, Any]]
) -> None:
    """With its own counter, which is switched off for every other call. A whole mock has a constant for usage."""
    litellm = sys.modules["litellm"]
    monkeypatch.setattr(litellm, "disable_token_counter", False)

    async def mock(**how: Any) -> Any:
        words = last_words(messages)
        return await litellm.acompletion("openai/echo", copy.deepcopy(messages), mock_response=words, **how)

    async def mock_stream() -> list[Any]:
        return [chunk async for chunk in await mock(stream=True, stream_options={"include_usage": True})]

    whole, pieces = through_litellm.run(mock()), through_litellm.run(mock_stream())
    ours = lean.run(lean.models.complete(DEMO, ChatRequest(messages)))
    streamed = lean.run(collect(lean.models.stream(DEMO, ChatRequest(messages))))

    counted = Usage(pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (ours.content, ours.finish_reason)
    assert counted == ours.usage == streamed[-1].usage
    theirs = [(piece.choices[0].delta.content, piece.choices[0].finish_reason) for piece in pieces[:-1]]
    assert theirs == [(chunk.content, chunk.finish_reason) for chunk in streamed[:-1]]


@pytest.mark.parametrize("words", ["litellm.RateLimitError", "Exception: mock_streaming_error"])
def test_the_demo_repeats_what_would_make_litellms_mock_fail(lean: Talk, words: str) -> None:
    request = ChatRequest([{"role": "user", "content": words}])
    assert words == lean.run(lean.models.complete(DEMO, request)).content
    assert words == text(lean.run(collect(lean.models.stream(DEMO, request))))


@pytest.mark.parametrize("messages", [[{"role": "system", "content": "x"}], [{"role": "user", "content": ""}]])
def test_the_demo_says_nothing_to_nothing(lean: Talk, messages: list[dict[str, Any]]) -> None:
    assert "" == lean.run(lean.models.complete(DEMO, ChatRequest(messages))).content
    assert "" == text(lean.run(collect(lean.models.stream(DEMO, ChatRequest(messages)))))


# -- what the process does besides -----------------------------------------------------------------------------

QUIET = """
import asyncio, json, os, sys
from infra.llm import ChatRequest, Models, Target

addresses = []
sys.addaudithook(lambda name, facts: addresses.append(str(facts[1])) if name == "socket.connect" else None)
sys.addaudithook(lambda name, facts: addresses.append(str(facts[0])) if name == "socket.getaddrinfo" else None)

async def main(url):
    models = Models()
    await models.start()
    request = ChatRequest([{"role": "user", "content": "hi"}])
    for target in (Target("demo", "echo"), Target("openai", "gpt-ok", url, "k")):
        await models.complete(target, request)
        await models.count_messages(target, request.messages)
    await models.count_text(Target("openai", "gpt-4o"), "hello")
    models.price(Target("openai", "gpt-4o"))
    early = "litellm" in sys.modules
    await models.warm()
    await models.close()
    forced = Models(transport="litellm")
    await forced.start()
    await forced.complete(Target("openai", "gpt-ok", url, "k"), request)
    await forced.close()
    elsewhere = [address for address in addresses if "127.0.0.1" not in address]
    print(json.dumps([early, elsewhere, os.environ.get("FROM_DOTENV")]))

asyncio.run(main(sys.argv[1]))
"""


def test_nothing_is_imported_early_fetched_or_read_that_is_not_the_call(provider: FakeProvider, tmp_path: Path) -> None:
    """LiteLLM, left alone, fetches price lists from the internet and reads a .env file into the environment."""
    (tmp_path / ".env").write_text("FROM_DOTENV=yes\n")
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", QUIET, provider.url],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [False, [], None] == json.loads(ran.stdout.splitlines()[-1])
