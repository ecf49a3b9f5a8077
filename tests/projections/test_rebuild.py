"""Rebuilding reads just what it needs: the kinds of events that are wanted, up to where the read models stand."""

from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest

from api.app import PROJECTIONS
from bench.generate import Business, generate
from domain.event import Event
from infra import postgres
from infra.journal import Recorded
from projections import rebuild
from projections.engine import Progress
from projections.projection import Batch, E, Projection
from projections.standing import stand
from projections.webhook_deliveries import webhook_deliveries
from tests.projections.test_engine import an_engine

Run = Callable[[Coroutine[Any, Any, None]], None]

ALL = (*PROJECTIONS, webhook_deliveries((50, 10)))
EVENTS = 1500


class Watched(Batch):
    """Notes which kinds of events somebody looked at."""

    def __init__(self, events: list[Recorded]) -> None:
        super().__init__(events)
        self.kinds: set[type[Event]] = set()

    def of(self, kind: type[E]) -> Iterator[E]:
        self.kinds.add(kind)
        return super().of(kind)

    def recorded(self, *kinds: type[Event]) -> list[Recorded]:
        self.kinds.update(kinds)
        return super().recorded(*kinds)


@pytest.mark.parametrize("projection", [each for each in ALL if each.wants], ids=lambda each: each.name)
def test_a_projection_wants_just_the_events_that_it_looks_at(projection: Projection) -> None:
    decided = (each for events in Business(EVENTS, 7).exactly(EVENTS) for each in events)
    batch = Watched([Recorded(number, *each) for number, each in enumerate(decided, 1)])
    nothing_known: list[Any] = [[] for _ in projection.asks(batch)]
    list(projection.project(batch, *nothing_known))
    assert batch.kinds == set(projection.wants or ())


def test_each_read_model_alone_is_rebuilt_as_it_was(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "BATCH_EVENTS", 400)
    generate(database, EVENTS, teams=7)

    async def story() -> None:
        await catch_up(database)
        for projection in ALL:
            async with await postgres.connect(database) as connection:
                rebuilt = await rebuild.rebuild(connection, projection, lambda reached, until: None)
                assert (EVENTS, 0) == (rebuilt.position, rebuilt.differing_rows), projection.name

    runner(story())


def test_a_rebuild_reads_each_event_once_where_others_are_missing(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "BATCH_EVENTS", 100)
    monkeypatch.setattr(rebuild, "NEARLY", 10)
    generate(database, EVENTS, teams=7)
    with psycopg.connect(database) as owner:
        owner.execute("alter table journal.events disable trigger user")
        gone = owner.execute("delete from journal.events where topic like 'Call%' and notification_id < 1000")
        assert gone.rowcount > 100

    async def story() -> None:
        await catch_up(database)
        async with await postgres.connect(database) as connection:
            known = ("transactions", "balances", "keys")
            chosen = [each for each in ALL if each.name in known]
            rebuilt = await rebuild.rebuild_all(connection, chosen, lambda reached, until: None)
            assert (EVENTS, 0) == (rebuilt.position, rebuilt.differing_rows)

    runner(story())


async def catch_up(dsn: str) -> None:
    async with await postgres.connect(dsn) as asking, an_engine(dsn, ALL):
        assert 0 == await Progress(partial(stand, asking, ALL)).reach(EVENTS, timeout_s=60)
