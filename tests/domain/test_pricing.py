"""Golden amounts, exact to the last digit, and the same amounts in plain fractions for all other numbers."""

from decimal import Decimal, localcontext
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain.pricing import CallCost, Price, Terms, add, call_cost, credits_for, subtract
from tests.domain.scene import eight_decimals

BY_JOB = Terms(
    mode="job_based",
    credits_per_dollar=Decimal(10),
    tokens_per_credit=10_000,
    markup_percentage=Decimal(0),
    charge_policy="all_calls_succeeded",
)
BY_DOLLARS = replace(BY_JOB, mode="consumption_usd")
BY_TOKENS = replace(BY_JOB, mode="consumption_tokens")

CALL_COSTS = """
    1000    + 500      2.50  / 10     0     0.0025     + 0.005       0.0075      0.0075      0
    1000    + 500      2.50  / 10     50    0.0025     + 0.005       0.0075      0.01125     0.00375
    10000   + 2000     2.50  / 10     0     0.025      + 0.02        0.045       0.045       0
    500     + 200      3     / 15     50    0.0015     + 0.003       0.0045      0.00675     0.00225
    1000    + 500      0.15  / 0.60   0     0.00015    + 0.0003      0.00045     0.00045     0
    1000000 + 0        0.075 / 0.30   0     0.075      + 0           0.075       0.075       0
    1       + 0        0.075 / 0.30   0     0.00000008 + 0           0.00000008  0.00000008  0
    1       + 0        0.005 / 0      0     0.00000001 + 0           0.00000001  0.00000001  0
    3       + 7        0.15  / 0.60   12.5  0.00000045 + 0.0000042   0.00000465  0.00000523  0.00000058
    2000000 + 1000000  30    / 60     50    60         + 60          120         180         60
    100     + 100      0     / 0      50    0          + 0           0           0           0
"""

tokens = st.integers(0, 10**9)
prices = st.decimals(0, 10_000, places=6)
markups = st.decimals(0, 1000, places=4)


def rows(table: str) -> list[list[str]]:
    return [[word for word in line.split() if word not in ("+", "/")] for line in table.strip().splitlines()]


@pytest.mark.parametrize("row", rows(CALL_COSTS), ids=" ".join)
def test_a_call_costs_what_the_golden_table_says(row: list[str]) -> None:
    prompt, completion, price_in, price_out, markup, cost_in, cost_out, provider, client, profit = map(Decimal, row)
    cost = call_cost(int(prompt), int(completion), Price(price_in, price_out), markup)
    assert CallCost(cost_in, cost_out, provider, client) == cost
    assert profit == subtract(cost.client_cost_usd, cost.provider_cost_usd)


@pytest.mark.parametrize(
    "dollars,credits_per_dollar,credits",
    [
        ("1.50", 10, 15),
        ("0.10", 10, 1),
        ("0.034", 10, 1),
        ("0.152", 10, 2),
        ("1.52", 10, 16),
        ("0", 10, 1),
        ("0.29", 100, 29),
        ("0.57", 100, 57),
        ("4.35", 100, 435),
        ("0.07", 100, 7),
        ("0.10000001", 10, 2),
    ],
)
def test_dollars_become_credits_as_the_golden_table_says(dollars: str, credits_per_dollar: int, credits: int) -> None:
    terms = replace(BY_DOLLARS, credits_per_dollar=Decimal(credits_per_dollar))
    assert credits == credits_for(terms, Decimal(dollars), 0)


def test_two_calls_of_a_tenth_and_two_tenths_of_a_dollar_are_three_credits_and_not_four() -> None:
    assert 3 == credits_for(BY_DOLLARS, add(Decimal("0.10"), Decimal("0.20")), 0)


@pytest.mark.parametrize(
    "tokens_used,tokens_per_credit,credits",
    [
        (50_000, 10_000, 5),
        (45_000, 10_000, 5),
        (15_000, 10_000, 2),
        (15_000, 5_000, 3),
        (8_500, 10_000, 1),
        (10_000, 10_000, 1),
        (10_001, 10_000, 2),
        (0, 10_000, 1),
    ],
)
def test_tokens_become_credits_as_the_golden_table_says(tokens_used: int, tokens_per_credit: int, credits: int) -> None:
    terms = replace(BY_TOKENS, tokens_per_credit=tokens_per_credit)
    assert credits == credits_for(terms, Decimal(0), tokens_used)


def test_a_job_is_one_credit_whatever_it_used() -> None:
    assert 1 == credits_for(BY_JOB, Decimal(1_000_000), 10**12)


def test_a_call_above_a_hundred_dollars_keeps_every_digit() -> None:
    cost = call_cost(123_456_789_012, 1, Price(Decimal("75.125"), Decimal(0)), Decimal(0))
    assert Decimal("9274691.27452650") == cost.client_cost_usd


@given(tokens, tokens, prices, prices, markups)
def test_costs_are_those_of_plain_fractions_rounded_half_up_to_eight_decimals(
    prompt: int, completion: int, price_in: Decimal, price_out: Decimal, markup: Decimal
) -> None:
    cost_in = eight_decimals(prompt * Fraction(price_in) / 1_000_000)
    cost_out = eight_decimals(completion * Fraction(price_out) / 1_000_000)
    client = eight_decimals((cost_in + cost_out) * (100 + Fraction(markup)) / 100)
    with localcontext(prec=3):  # whatever the surrounding thread has set
        cost = call_cost(prompt, completion, Price(price_in, price_out), markup)
    actual = (cost.input_cost_usd, cost.output_cost_usd, cost.provider_cost_usd, cost.client_cost_usd)
    assert (cost_in, cost_out, cost_in + cost_out, client) == tuple(map(Fraction, actual))


@given(st.decimals(0, 10**8, places=8), st.decimals("0.000001", 10**6, places=6))
def test_credits_are_those_of_plain_fractions_rounded_up(dollars: Decimal, credits_per_dollar: Decimal) -> None:
    terms = replace(BY_DOLLARS, credits_per_dollar=credits_per_dollar)
    with localcontext(prec=3):
        credits = credits_for(terms, dollars, 0)
    assert min(max(1, ceil(Fraction(dollars) * Fraction(credits_per_dollar))), 10**12) == credits


def test_no_rate_makes_more_credits_than_an_amount_may_have() -> None:
    assert 10**12 == credits_for(replace(BY_DOLLARS, credits_per_dollar=Decimal(10**12)), Decimal(10**25), 0)
    assert 10**12 == credits_for(replace(BY_TOKENS, tokens_per_credit=1), Decimal(0), 10**12 + 1)
