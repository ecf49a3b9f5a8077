"""The words in which the rest of the house speaks about models, whoever answers."""

import re
from collections.abc import AsyncGenerator
from typing import Any, Final, Literal, Protocol

import msgspec

Outcome = Literal["error", "rejected", "timeout", "not_configured"]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]

LONGEST_FAILURE_TEXT: Final = 1000
MOST_TOKENS: Final = 1_000_000_000  # of one call, in or out; a count beyond is -1 in 32 bits, or other nonsense


def words(text: str) -> frozenset[str]:
    """A set of words, as a table is easiest to read."""
    return frozenset(text.split())


OPTIONS: Final = words(
    """
    temperature max_tokens top_p stop response_format tools tool_choice parallel_tool_calls frequency_penalty
    presence_penalty seed logit_bias logprobs top_logprobs reasoning_effort
    """
)
"""The options of a ChatRequest; others are ignored."""

# Caused by the request itself, so another provider would say the same. Credentials, unknown models, time-outs,
# conflicts and limits are the target's own trouble: the next one may well answer.
_FALLS_BACK_4XX: Final = frozenset({401, 403, 404, 408, 409, 429})


class Target(msgspec.Struct, frozen=True):
    """A model where it can be reached.

    Args:
        provider: a provider's name as LiteLLM spells it.
        model: the provider's own name for the model.
        api_base: where to send the calls; None is the provider's usual address.
        api_key: None takes the provider's environment variable.
    """

    provider: str
    model: str
    api_base: str | None = None
    api_key: str | None = None

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}"

    def __repr__(self) -> str:
        key = "None" if self.api_key is None else "'[hidden]'"
        return f"Target({self.provider!r}, {self.model!r}, api_base={self.api_base!r}, api_key={key})"


class ChatRequest(msgspec.Struct, frozen=True):
    """What the client asks, in OpenAI's words.

    Args:
        messages: as received.
        options: temperature, max_tokens, tools, ...; without the absent ones.
    """

    messages: list[dict[str, Any]]
    options: dict[str, Any] = {}


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider counted them. Zero is zero; who was told nothing has no Usage."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. `content` is "" beside tool calls; `usage` is None if the provider sent none."""

    content: str
    finish_reason: FinishReason
    latency_ms: int
    usage: Usage | None = None
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: dict[str, Any] | None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer; at least one field says something.

    Usage may come several times (some providers count as they go): the last one is right.
    """

    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class ProviderFailure(Exception):
    """The provider did not answer, or did not answer in full.

    Args:
        outcome: `rejected` is the request's own fault; `not_configured` means that nothing was sent.
        text: the provider's words without secrets, at most 1000 characters; for admins only.
        http_status: what the provider answered with, if it did.
        falls_back: whether the next target may be tried (contract, section 3).
    """

    def __init__(self, outcome: Outcome, text: str, *, http_status: int | None = None) -> None:
        super().__init__(f"{outcome} {http_status or ''}: {text}")
        self.outcome: Outcome = outcome
        self.text = text
        self.http_status = http_status
        self.falls_back = outcome != "rejected"


class Transport(Protocol):
    """A way to reach models. Both raise ProviderFailure and nothing else of their own."""

    async def complete(self, target: Target, request: ChatRequest) -> Completion:
        """Ask and wait for the whole answer."""

    def stream(self, target: Target, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """Ask and hand out each piece as it comes; closing the generator closes the connection."""

    async def close(self) -> None:
        """Close every connection."""


def failure(status: int, text: str, *secrets: str | None) -> ProviderFailure:
    """What an HTTP status of a provider means for the call.

    Args:
        status: the provider's.
        text: its words as they came.
        secrets: what must not be repeated, beside everything that looks like a secret.
    """
    harmless = without_secrets(text, *secrets)
    if status in {408, 504}:
        return ProviderFailure("timeout", harmless, http_status=status)
    rejected = 400 <= status < 500 and status not in _FALLS_BACK_4XX
    return ProviderFailure("rejected" if rejected else "error", harmless, http_status=status)


def broken(text: str, *secrets: str | None) -> ProviderFailure:
    """A connection that broke, or an answer that is none."""
    return ProviderFailure("error", without_secrets(text, *secrets))


_FINISH: Final[dict[str, FinishReason]] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "content_filter",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}


def finish_reason(said: Any) -> FinishReason | None:
    """One of the four words; whatever else ended an answer (eos, end_turn, ...) has stopped it."""
    return _FINISH.get(str(said).lower(), "stop") if said else None


def text_of(content: Any) -> str:
    """The text of a message's content: a string, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def speakable(said: Any) -> Any:
    """What a provider said, strings within objects as well, as UTF-8 can write it: half of a surrogate pair (a letter
    cut in two, somewhere between UTF-16 and us) is U+FFFD."""
    match said:
        case str():
            return said if said.isascii() else said.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [speakable(each) for each in said]
        case dict():
            return {speakable(name): speakable(each) for name, each in said.items()}
        case _:
            return said


def tokens_used(prompt_tokens: Any, completion_tokens: Any) -> Usage | None:
    """Both counts, or None when the provider left one out or sent nonsense: then we count ourselves."""
    if _is_count(prompt_tokens) and _is_count(completion_tokens):
        return Usage(prompt_tokens, completion_tokens)
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


_ADDRESSES: Final = re.compile(
    r"""(\b[a-z][a-z0-9+.\-]{1,15}://)([^\s/@'"<>]*@)?([^\s?'"<>]*)(\?[^\s'"<>]+)?""", re.IGNORECASE
)
_SECRETS: Final = re.compile(
    r"""
      (?P<before> \b (?: bearer | basic ) \s+ ) [^\s'",;]+
    | (?P<name> (?: api[-_ ]?key | authorization | access[-_]?token | token | secret | password | passwd ) ["']? \s*
        (?: [:=] | \bis\b ) \s* ["']? (?: bearer \s+ )? ) [^\s'",;&]+
    | \b (?: sk | rk | pk | gsk | xai | hf | r8 | pplx | fw | key | nvapi | csk | ghp ) [-_] [\w\-*.]{6,}
    | \b (?: AIza | AKIA | ya29\. ) [\w\-]{8,}
    | \b eyJ [\w\-]+ \. [\w\-]+ (?: \. [\w\-]+ )?
    | \b (?= \w* \d ) (?= \w* [a-z] ) \w{32,} \b
    """,
    re.VERBOSE | re.IGNORECASE,
)


def without_secrets(text: str, *secrets: str | None) -> str:
    """The text as it may be kept: no key, token, password or query of an address, no NUL, 1000 characters.

    Args:
        text: what a provider said.
        secrets: known ones, removed literally whatever they look like.
    """
    text = text[: 8 * LONGEST_FAILURE_TEXT].replace("\0", "")
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[hidden]")
    text = _ADDRESSES.sub(_hide_in_address, text)
    text = _SECRETS.sub(_hide, text)
    return text.encode(errors="replace").decode()[:LONGEST_FAILURE_TEXT]


def _hide_in_address(match: re.Match[str]) -> str:
    scheme, user, path, query = match.groups()
    return f"{scheme}{'[hidden]@' if user else ''}{path}{'?[hidden]' if query else ''}"


def _hide(match: re.Match[str]) -> str:
    return f"{match['before'] or match['name'] or ''}[hidden]"
