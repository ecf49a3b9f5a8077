"""The generated pages are those of today, and each of their promises has its test."""

import pytest

from api.app import described
from api.openapi import operations_of
from tests import papers
from tests.promises import HABITS, MISTAKES


@pytest.mark.parametrize("page", papers.PAGES)
def test_a_page_is_that_of_today(page: str) -> None:
    """If this fails: `make papers`, and look at the diff."""
    assert papers.PAGES[page]() == (papers.ROOT / "docs" / page).read_text()


def test_every_endpoint_has_a_test() -> None:
    """If this fails: write one, then `make papers`."""
    known = papers.recorded()
    assert [] == [
        f"{method} {path}" for method, path, _ in operations_of(described()) if f"{method} {path}" not in known
    ]


def test_every_habit_and_every_mistake_has_a_test() -> None:
    assert list(range(1, 27)) == list(HABITS)
    assert list(range(1, 39)) == list(MISTAKES)
    assert all(names for _, names in [*HABITS.values(), *MISTAKES.values()])


def test_every_test_that_is_named_is_there() -> None:
    promised = [name for _, names in [*HABITS.values(), *MISTAKES.values()] for name in names]
    recorded = [name for names in papers.recorded().values() for name in names]
    assert [] == [name for name in [*promised, *recorded] if not papers.exists(name)]
