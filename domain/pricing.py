"""What a call costs and how many credits that is, in exact decimals. All rounding happens here.

An amount of one call has 8 decimals, rounded half up. Totals add those amounts exactly. Credits are whole and
rounded up, at least one.
"""

from decimal import ROUND_CEILING, ROUND_HALF_UP, Context, Decimal
from typing import Literal

import msgspec

from domain.event import Record

BudgetMode = Literal["job_based", "consumption_usd", "consumption_tokens"]
ChargePolicy = Literal["all_calls_succeeded", "any_call_succeeded"]

_EXACT = Context(prec=120, rounding=ROUND_HALF_UP)  # wide enough that only `quantize` ever rounds
_EIGHT = Decimal("0.00000001")
_MILLION = Decimal(1_000_000)
_HUNDRED = Decimal(100)
ZERO = Decimal(0)
MOST_CREDITS = 1_000_000_000_000  # of one grant, hold, charge or whatever else says how many


class Price(msgspec.Struct, frozen=True):
    """Dollars per million tokens, with all the decimals the price list has. Zero is a price."""

    input_usd_per_million: Decimal
    output_usd_per_million: Decimal


class CallCost(msgspec.Struct, frozen=True):
    """One call's amounts in dollars, 8 decimals each. The team pays `client`, we pay `provider`."""

    input_cost_usd: Decimal = ZERO
    output_cost_usd: Decimal = ZERO
    provider_cost_usd: Decimal = ZERO
    client_cost_usd: Decimal = ZERO


class Terms(Record):
    """How a job is charged, fixed at its first call so that a later change of rates never touches it."""

    mode: BudgetMode
    credits_per_dollar: Decimal
    tokens_per_credit: int
    markup_percentage: Decimal
    charge_policy: ChargePolicy


def add(left: Decimal, right: Decimal) -> Decimal:
    """The exact sum, however large."""
    return _EXACT.add(left, right)


def subtract(left: Decimal, right: Decimal) -> Decimal:
    """The exact difference, however large."""
    return _EXACT.subtract(left, right)


def call_cost(prompt_tokens: int, completion_tokens: int, price: Price, markup_percentage: Decimal) -> CallCost:
    """The cost of a call at a price.

    Args:
        prompt_tokens: tokens sent, 0 or more.
        completion_tokens: tokens received, 0 or more.
        price: dollars per million tokens.
        markup_percentage: what the team pays on top of the provider's cost; 50 means half as much again.
    """
    input_cost = _tokens_cost(prompt_tokens, price.input_usd_per_million)
    output_cost = _tokens_cost(completion_tokens, price.output_usd_per_million)
    provider = add(input_cost, output_cost)
    factor = _EXACT.divide(_EXACT.add(_HUNDRED, markup_percentage), _HUNDRED)
    client = _rounded(_EXACT.multiply(provider, factor))
    return CallCost(input_cost, output_cost, provider, client)


def credits_for(terms: Terms, client_cost_usd: Decimal, tokens: int) -> int:
    """Credits due for what a job used: 1, or the usage divided by its rate, rounded up, never under 1.

    Nor more than any amount of credits may be (contract, section 0.1): rates and prices that are each allowed make
    together an amount that no table can hold.
    """
    return min(max(1, _due(terms, client_cost_usd, tokens)), MOST_CREDITS)


def _due(terms: Terms, client_cost_usd: Decimal, tokens: int) -> int:
    match terms.mode:
        case "job_based":
            return 1
        case "consumption_usd":
            due = _EXACT.multiply(client_cost_usd, terms.credits_per_dollar)
            return int(due.to_integral_value(rounding=ROUND_CEILING))
        case "consumption_tokens":
            return -(-tokens // terms.tokens_per_credit)


def _tokens_cost(tokens: int, price_usd_per_million: Decimal) -> Decimal:
    return _rounded(_EXACT.divide(_EXACT.multiply(Decimal(tokens), price_usd_per_million), _MILLION))


def _rounded(amount: Decimal) -> Decimal:
    """An amount of one call. Nothing is written 0 in the journal, not 0E-8."""
    return _EXACT.quantize(amount, _EIGHT) or ZERO
