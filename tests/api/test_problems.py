"""The one table of everything that can be refused."""

from collections.abc import Iterator

import pytest

from api.problems import PROBLEMS
from domain.errors import Refusal


def kinds(of: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_refusal_has_a_status_and_a_sentence(kind: type[Refusal]) -> None:
    assert kind.code in PROBLEMS


def test_only_the_contracts_statuses_are_ever_answered() -> None:
    assert {400, 401, 403, 404, 405, 409, 413, 422, 429, 500, 503} == {each.status for each in PROBLEMS.values()}


def test_a_403_speaks_of_credit_only_when_credits_are_the_reason() -> None:
    spoken = {code for code, each in PROBLEMS.items() if each.status == 403 and "credit" in each.detail.lower()}
    assert {"insufficient_credits"} == spoken


def test_the_words_that_scripts_look_for_are_there() -> None:
    assert "already exists" in PROBLEMS["already_exists"].detail
    assert "already registered" in PROBLEMS["already_registered"].detail
