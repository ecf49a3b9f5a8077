"""Events off the wire, prices, names, token counts and secrets: what needs no provider to be proven."""

import asyncio
import importlib
import json
import warnings
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain.pricing import Price
from infra.llm import (
    ChatRequest,
    Models,
    ProviderFailure,
    Target,
    api_key_from_environment,
    counting,
    known_provider,
    prices,
    provider_and_model,
)
from infra.llm.openai_wire import proxy_for
from infra.llm.providers import DEMO, LEAN, NAMES
from infra.llm.shapes import Usage, failure, finish_reason, tokens_used, without_secrets
from infra.llm.sse import EventReader, TooLong
from tests.provider import ragged

# LiteLLM's dependencies warn as they like; none of it is ours.
pytestmark = pytest.mark.filterwarnings("ignore:::pydantic", "ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def litellm() -> Any:
    """LiteLLM as we load it, here to be compared with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(Models(transport="litellm").warm())
        return importlib.import_module("litellm")


# -- server-sent events --------------------------------------------------------------------------------------


def read(*pieces: bytes) -> list[bytes]:
    reader = EventReader(1 << 20)
    return [event for piece in pieces for event in reader.feed(piece)] + reader.end()


def test_an_event_is_its_data_without_the_first_space() -> None:
    assert [b"a", b"b", b" c"] == read(b"data: a\n\ndata:b\n\ndata:  c\n\n")


def test_lines_of_data_are_joined() -> None:
    assert [b"one\ntwo"] == read(b"data: one\ndata: two\n\n")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_ends_in_three_ways(end: bytes) -> None:
    assert [b"a", b"b"] == read(end.join([b"data: a", b"", b"data: b", b"", b""]))


def test_comments_and_other_fields_are_no_events() -> None:
    assert [b"a"] == read(b": ping\n\nevent: x\nid: 1\nretry: 5\n\ndata: a\n\n")


def test_the_last_event_may_lack_its_blank_line() -> None:
    assert [b"a"] == read(b"data: a")


def test_a_stream_may_be_cut_anywhere() -> None:
    stream = ragged()
    whole = read(stream)
    assert 5 == len(whole)
    for cut in range(len(stream) + 1):
        assert whole == read(stream[:cut], stream[cut:])
    for width in (1, 2, 3, 7, 64):
        cuts = [*range(0, len(stream), width), len(stream)]
        assert whole == read(*(stream[start:end] for start, end in pairwise(cuts)))


def test_an_event_is_handed_out_with_the_byte_that_ends_it() -> None:
    reader = EventReader(1 << 20)
    assert [] == reader.feed(b"data: a\n")
    assert [b"a"] == reader.feed(b"\n")


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 999, b"data: x\n" * 200, b": ping\n\n" * 200])
def test_what_never_ends_is_refused(endless: bytes) -> None:
    reader = EventReader(longest_stream=1000, longest_event=100)
    with pytest.raises(TooLong):
        reader.feed(endless)


# -- prices --------------------------------------------------------------------------------------------------


def test_a_price_is_per_million_tokens() -> None:
    assert Price(Decimal("2.5"), Decimal(10)) == prices.price("openai", "gpt-4o")


def test_a_price_keeps_all_its_decimals() -> None:
    """Each one equals the digits of the file, moved by six places."""
    file = prices.litellm_folder() / "model_prices_and_context_window_backup.json"
    written = json.loads(file.read_bytes(), parse_float=Decimal, parse_int=Decimal)
    compared = 0
    for name, entry in prices.cost_map().items():
        provider = entry.litellm_provider or ""
        price = prices.price(provider, name)
        if price is not None and prices.find(provider, name) is entry:
            assert written[name]["input_cost_per_token"].scaleb(6) == price.input_usd_per_million
            assert written[name]["output_cost_per_token"].scaleb(6) == price.output_usd_per_million
            assert "E" not in str(price.input_usd_per_million)
            compared += 1
    assert compared > 2000


@pytest.mark.parametrize(
    "provider, model",
    [
        ("openai", "gpt-4o-but-not-really"),
        ("openai", "my-gpt-4o"),
        ("openai", "gpt"),
        ("openai", "GPT-4o"),
        ("openai", "azure/gpt-4o"),
        ("groq", "gpt-4o"),
        ("hosted_vllm", "gpt-4o"),
        ("azure", "azure_ai/mistral-large"),
        ("demo", "echo"),
        ("", "sample_spec"),
        ("openai", ""),
    ],
)
def test_an_unknown_name_has_no_price(provider: str, model: str) -> None:
    assert prices.price(provider, model) is None


@pytest.mark.parametrize("provider, model", [("openai", "text-embedding-3-small"), ("openai", "tts-1")])
def test_what_is_no_chat_has_no_price(provider: str, model: str) -> None:
    assert prices.price(provider, model) is None


def test_zero_is_a_price() -> None:
    assert Price(Decimal(0), Decimal(0)) == prices.price("ollama", "llama2")


@pytest.mark.parametrize(
    "provider, model",
    [
        ("anthropic", "claude-sonnet-4-5"),
        ("gemini", "gemini-2.5-flash"),
        ("vertex_ai", "gemini-2.5-flash"),
        ("vertex_ai", "claude-sonnet-4-5"),
        ("groq", "openai/gpt-oss-120b"),
        ("deepseek", "deepseek-chat"),
        ("fireworks", "accounts/fireworks/models/deepseek-v3"),
    ],
)
def test_a_model_has_its_price_at_its_provider(provider: str, model: str) -> None:
    price = Models().price(Target(provider, model))
    assert price is not None
    assert price.input_usd_per_million > 0


# -- providers -----------------------------------------------------------------------------------------------


def test_every_provider_of_litellm_is_known_and_no_other(litellm: Any) -> None:
    folder = Path(litellm.__file__).parent
    by_file = json.loads((folder / "llms/openai_like/providers.json").read_bytes())
    assert {str(getattr(name, "value", name)) for name in litellm.provider_list} | set(by_file) == NAMES
    assert LEAN.keys() <= NAMES


def test_demo_and_the_short_name_of_fireworks_are_known() -> None:
    assert [True, True, True, False, False] == [
        known_provider(name) for name in ("demo", "fireworks", "fireworks_ai", "openais", "")
    ]


@pytest.mark.parametrize(
    "name, parts",
    [
        ("openai/gpt-4o", ("openai", "gpt-4o")),
        ("gpt-4o", ("openai", "gpt-4o")),
        ("fireworks/accounts/fireworks/models/x", ("fireworks_ai", "accounts/fireworks/models/x")),
        ("openrouter/openai/gpt-4o", ("openrouter", "openai/gpt-4o")),
        ("demo/echo", ("demo", "echo")),
        ("gpt-4o-or-so", None),
        ("nobody/gpt-4o", None),
        ("openai/", None),
        ("", None),
    ],
)
def test_a_model_string_names_its_provider(name: str, parts: tuple[str, str] | None) -> None:
    assert parts == provider_and_model(name)


@pytest.mark.parametrize(
    "provider, variable",
    [
        ("openai", "OPENAI_API_KEY"),
        ("anthropic", "ANTHROPIC_API_KEY"),
        ("fireworks", "FIREWORKS_API_KEY"),
        ("together_ai", "TOGETHERAI_API_KEY"),
        ("gemini", "GEMINI_API_KEY"),
        ("nano-gpt", "NANOGPT_API_KEY"),
        ("nvidia_nim", "NVIDIA_NIM_API_KEY"),
    ],
)
def test_a_key_is_in_the_providers_variable(monkeypatch: pytest.MonkeyPatch, provider: str, variable: str) -> None:
    monkeypatch.setenv(variable, "k")
    assert "k" == api_key_from_environment(provider)


def test_litellms_keys_are_found_where_it_looks(litellm: Any) -> None:
    """The JSON file of LiteLLM names the variable of each provider in it."""
    file = Path(litellm.__file__).parent / "llms/openai_like/providers.json"
    for name, provider in json.loads(file.read_bytes()).items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(provider["api_key_env"], "k")
            assert "k" == api_key_from_environment(name), name


def test_a_provider_that_lacks_credentials_is_not_configured(litellm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    target = Target("anthropic", "claude-sonnet-4-5", api_base="http://127.0.0.1:9")

    async def ask() -> None:
        models = Models(timeout_s=10)
        await models.start()
        try:
            await models.complete(target, ChatRequest([{"role": "user", "content": "hi"}]))
        finally:
            await models.close()

    with pytest.raises(ProviderFailure) as caught:
        asyncio.run(ask())
    assert ("not_configured", True) == (caught.value.outcome, caught.value.falls_back)


def test_a_fireworks_model_may_be_named_in_short() -> None:
    dialect = LEAN["fireworks_ai"].dialect_for("llama")
    for name in ("llama", "accounts/fireworks/models/llama"):
        assert "accounts/fireworks/models/llama" == dialect.body(Target("fireworks_ai", name), [], {})["model"]


def test_mistral_gets_its_own_words() -> None:
    messages = [
        {"role": "user", "name": "bo", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}]},
    ]
    body = LEAN["mistral"].dialect.body(Target("mistral", "m"), messages, {"seed": 1, "logprobs": True})
    assert {"model": "m", "messages": [{"role": "user", "content": "ab"}, messages[1]], "random_seed": 1} == body


@pytest.mark.parametrize(
    "url, proxy",
    [
        ("https://api.openai.com/v1", "http://proxy:3128"),
        ("http://plain.example/v1", None),
        ("https://spared.example/v1", None),
        ("https://localhost/v1", None),
        ("https://127.0.0.1:8000/v1", None),
        ("https://[::1]:8000/v1", None),
    ],
)
def test_the_environments_proxy_is_for_what_is_far(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "spared.example")
    proxy_for.cache_clear()
    assert proxy == proxy_for(url)
    proxy_for.cache_clear()


# -- tokens --------------------------------------------------------------------------------------------------

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short. <|endoftext|>"},
    {"role": "user", "name": "bo", "content": "Grüße aus 東京 🗼"},
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "done"},
]


def counted(target: Target, what: str | list[dict[str, Any]]) -> int:
    count = counting.count_text(target, what) if isinstance(what, str) else counting.count_messages(target, what)
    return asyncio.run(count)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4", "gpt-3.5-turbo", "gpt-4.1-mini"])
@pytest.mark.parametrize("talk", [TALK, TALK[:1], TALK[1:3]])
def test_openais_tokens_are_counted_as_litellm_does(
    litellm: Any, monkeypatch: pytest.MonkeyPatch, model: str, talk: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(litellm, "disable_token_counter", False)
    assert litellm.token_counter(model=model, messages=talk) == counted(Target("openai", model), talk)
    assert litellm.token_counter(model=model, text="Hello, world!") == counted(Target("openai", model), "Hello, world!")


@pytest.mark.parametrize("name", ["openrouter/openai/gpt-4o", "azure/gpt-4o", "groq/openai/gpt-oss-20b"])
def test_a_model_has_its_tokenizer_wherever_it_runs(name: str) -> None:
    provider, _, model = name.partition("/")
    assert "o200k_base" == counting.vocabulary_of(Target(provider, model))


@pytest.mark.parametrize("text, tokens", [("", 0), ("x", 1), ("xxxx", 1), ("xxxxx", 2), ("🗼" * 8, 2)])
def test_other_texts_have_a_token_for_four_characters(text: str, tokens: int) -> None:
    assert tokens == counted(Target("anthropic", "claude-sonnet-4-5"), text)


def test_other_messages_have_their_frames_beside() -> None:
    assert 3 + 3 + 1 + 2 == counted(Target("hosted_vllm", "m"), [{"role": "user", "content": "12345678"}])


def test_a_picture_has_a_fixed_count_however_long_its_address() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    assert 3 + 3 + 1 + 250 == counted(Target("hosted_vllm", "m"), [{"role": "user", "content": [picture]}])


def test_the_tail_of_a_huge_text_is_estimated() -> None:
    target = Target("openai", "gpt-4o")
    exact = counted(target, "word " * 80_000)
    assert counting.EXACT_CHARACTERS == len("word " * 80_000)
    assert exact + 1_000_000 == counted(target, "word " * 80_000 + "x" * 4_000_000)


def test_a_demo_is_counted_with_litellms_usual_vocabulary() -> None:
    assert "cl100k_base" == counting.vocabulary_of(Target(DEMO, "echo"))


# -- failures and secrets ------------------------------------------------------------------------------------


def test_a_target_does_not_show_its_key() -> None:
    target = Target("openai", "gpt-4o", "https://example.com", "sk-very-secret")
    assert "Target('openai', 'gpt-4o', api_base='https://example.com', api_key='[hidden]')" == repr(target)
    assert "openai/gpt-4o" == target.name


@pytest.mark.parametrize(
    "said, kept",
    [
        ("Incorrect API key provided: sk-abcd1234***wxyz.", "Incorrect API key provided: [hidden]"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [hidden]"),
        ('{"api_key": "whatever-it-is"}', '{"api_key": "[hidden]"}'),
        ("https://u:p@host/path?key=1&x=2 failed", "https://[hidden]@host/path?[hidden] failed"),
        ("AIzaSyD-1234567890 is blocked", "[hidden] is blocked"),
        ("key 0123456789abcdef0123456789abcdef is unknown", "key [hidden] is unknown"),
        ("known literal: swordfish", "known literal: [hidden]"),
        ("a NUL \0 and a half \ud800 character", "a NUL  and a half ? character"),
        ("The model `llama-3.3-70b-versatile` does not exist", "The model `llama-3.3-70b-versatile` does not exist"),
        ("This model's maximum context length is 8192 tokens.", "This model's maximum context length is 8192 tokens."),
    ],
)
def test_a_text_is_kept_without_its_secrets(said: str, kept: str) -> None:
    assert kept == without_secrets(said, "swordfish", None)


def test_a_secret_at_the_cut_is_not_half_shown() -> None:
    told = without_secrets("x" * 980 + " " + "sk-" + "a1b2" * 20)
    assert "sk-" not in told


def test_hiding_secrets_takes_no_longer_than_reading() -> None:
    """Patterns that backtrack would hang on what a hostile provider sends."""
    for hostile in ("a1" * 4000, "https://" * 1000, "api_key=" * 1000, "eyJ" * 3000, "bearer " * 1000, "a." * 4000):
        assert len(without_secrets(hostile)) <= 1000


@pytest.mark.parametrize("count", [None, -1, 1.5, "7", True, 10**9 + 1, 2**32 - 1, 2**64 - 1, 10**30])
def test_a_count_of_tokens_that_nobody_can_mean_is_none(count: Any) -> None:
    assert tokens_used(count, 1) is tokens_used(1, count) is None
    assert Usage(0, 10**9) == tokens_used(0, 10**9)


def test_an_unknown_reason_has_stopped_the_answer() -> None:
    assert ["stop", "length", None, None] == [finish_reason(said) for said in ("eos", "MAX_TOKENS", None, "")]


def test_a_failure_is_no_place_for_a_key() -> None:
    assert "cannot use [hidden]" == failure(500, "cannot use k3y", "k3y").text


def test_an_entry_of_the_price_list_is_read_from_its_digits() -> None:
    entry = msgspec.json.decode(b'{"input_cost_per_token": 7.5e-08}', type=prices.Entry)
    assert Decimal("0.000000075") == entry.input_cost_per_token
