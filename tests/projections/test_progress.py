"""Who waits for the read models of a new database waits in silence: nothing is wrong, they are being made."""

from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest

from projections import engine
from projections.engine import Progress, Stand
from tests.hearing import heard

Runner = Callable[[Coroutine[Any, Any, int]], int]


def waited_for(runner: Runner, *answers: Stand | Exception) -> list[str]:
    """What is logged while somebody waits for tables that answer so, one after the other, until they are at 0."""
    answering = iter(answers)

    async def ask() -> Stand:
        answer = next(answering)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with heard() as logged:
        assert 0 == runner(Progress(ask).reach(0, timeout_s=30))
    return [entry["event"] for entry in logged]


def test_tables_that_are_being_made_are_waited_for_in_silence(runner: Runner) -> None:
    missing = psycopg.errors.UndefinedTable('relation "readmodel.tracking" does not exist')
    assert [] == waited_for(runner, missing, missing, Stand(0))


def test_a_database_that_is_away_is_spoken_of(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "RETRY_SECONDS", 0.01)
    assert ["progress.unknown"] == waited_for(runner, psycopg.OperationalError("away"), Stand(0))
