"""Costs in any grouping and period: roll-ups and single calls tell the same."""

import random
from datetime import timedelta
from itertools import pairwise
from typing import get_args

import pytest

from infra.journal import Connection
from projections.costs import DIMENSIONS, Dimension, Figures, Filter, Sorting, costs
from projections.usage import Span
from tests.projections.test_usage import NEW_YEAR, SEED, Past, on

EVERYTHING = Span.of(None, None)
MANY = 10_000


def sums(figures: Figures) -> tuple[object, ...]:
    return (figures.calls, figures.total_tokens, figures.provider_cost_usd, figures.client_cost_usd)


@pytest.mark.parametrize("wanted", [Filter(organization_id="acme"), Filter(), Filter(model="fast")])
def test_any_period_is_exact_in_any_grouping(database: str, wanted: Filter) -> None:
    choose = random.Random(SEED)
    moments = [NEW_YEAR + timedelta(seconds=choose.randrange(-86400, 100 * 86400)) for _ in range(30)]
    moments += [NEW_YEAR.replace(month=1 + number % 4) for number in range(1, 8)]
    spans = [EVERYTHING, *(Span(start, end) for start, end in pairwise(moments))]
    others = [each for each in DIMENSIONS if each != "user"]

    async def ask(connection: Connection) -> None:
        for number, span in enumerate(spans):
            by: list[Dimension] = choose.sample(others, number % 4)
            rolled_up = await costs(connection, by, wanted, span, limit=MANY)
            one_by_one = await costs(connection, [*by, "user"], wanted, span, limit=MANY)
            assert [sums(each) for each in one_by_one.groups] == [sums(each) for each in rolled_up.groups], (by, span)
            assert sums(one_by_one.totals) == sums(rolled_up.totals)

    on(database, Past().events, ask)


def test_pages_of_a_sorted_report_follow_one_another(database: str) -> None:
    async def ask(connection: Connection) -> None:
        by: list[Dimension] = ["day", "team", "model"]
        for sort_by in get_args(Sorting):
            whole = await costs(connection, by, Filter(), EVERYTHING, sort_by=sort_by, limit=MANY)
            pages = [
                await costs(connection, by, Filter(), EVERYTHING, sort_by=sort_by, limit=7, offset=offset)
                for offset in range(0, whole.number + 7, 7)
            ]
            assert whole.groups == [group for page in pages for group in page.groups]
            assert {whole.number} == {page.number for page in pages}

    on(database, Past().events, ask)
