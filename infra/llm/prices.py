"""Prices of LiteLLM's cost map, read without LiteLLM: 3 MB of JSON in 10 ms, each price exactly as it is written.

A model is found under its full name or not at all. There is no default and no guessing from parts of a name: an
unknown model has no price, and who wants to sell it must say one.
"""

from decimal import Context, Decimal
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from domain.pricing import Price

_MILLION: Final = Decimal(1_000_000)
_EXACT: Final = Context(prec=60)
_CHATS: Final = frozenset({"chat", "completion", "responses", None})


class Entry(msgspec.Struct, frozen=True):
    """The part of an entry that we read. msgspec makes Decimals from the digits, never through a float."""

    litellm_provider: str | None = None
    mode: str | None = None
    input_cost_per_token: Decimal | None = None
    output_cost_per_token: Decimal | None = None


def price(provider: str, model: str) -> Price | None:
    """What exactly this model costs, or None. Zero is a price."""
    entry = find(provider, model)
    if entry is None or entry.mode not in _CHATS:
        return None
    if entry.input_cost_per_token is None or entry.output_cost_per_token is None:
        return None
    return Price(_per_million(entry.input_cost_per_token), _per_million(entry.output_cost_per_token))


def find(provider: str, model: str) -> Entry | None:
    """The entry of this model at this provider."""
    entries = cost_map()
    for name in (f"{provider}/{model}", model):
        entry = entries.get(name)
        if entry is not None and _belongs(entry.litellm_provider, provider):
            return entry
    return None


def provider_of(model: str) -> str | None:
    """The provider of a model that is named without one, such as `gpt-4o`."""
    entry = cost_map().get(model)
    return entry.litellm_provider if entry is not None else None


@cache
def cost_map() -> dict[str, Entry]:
    """Every entry by its name. The first caller waits for the file; `Models.start` is that caller."""
    return msgspec.json.decode(
        (litellm_folder() / "model_prices_and_context_window_backup.json").read_bytes(), type=dict[str, Entry]
    )


@cache
def litellm_folder() -> Path:
    """Where the litellm package lies; finding it does not import it."""
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package litellm is not installed")
    return Path(spec.origin).parent


# Some providers' entries are filed under their departments, and those of Google under vertex_ai-anthropic_models etc.
_DEPARTMENTS: Final = {"azure": "azure_text", "bedrock": "bedrock_converse", "cohere": "cohere_chat"}


def _belongs(owner: str | None, provider: str) -> bool:
    if owner is None:
        return False
    return owner in {provider, _DEPARTMENTS.get(provider)} or owner.startswith(f"{provider}-")


def _per_million(per_token: Decimal) -> Decimal:
    """Exact, and without an exponent or trailing zeros: 2.5, not 2.50000; 10, not 1E+1."""
    return Decimal(format(_EXACT.normalize(_EXACT.multiply(per_token, _MILLION)), "f"))
