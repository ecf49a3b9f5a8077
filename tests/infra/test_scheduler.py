"""The scheduler: one process does the chores, one that fails keeps no other from being done."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest

from infra import postgres
from infra.ledger import Unavailable
from infra.scheduler import LEADER_LOCK, Chore, Scheduler, do
from tests.waiting import eventually, until

Run = Callable[[Coroutine[Any, Any, None]], None]

HERE = "database = (select oid from pg_database where datname = current_database())"
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


class Diary:
    """Which chores were done, and waiting for the next one."""

    def __init__(self) -> None:
        self.entries: asyncio.Queue[tuple[str, datetime]] = asyncio.Queue()

    def chore(self, name: str, problem: Exception | None = None, every_s: float = 0.0) -> Chore:
        """One that is due whenever somebody looks, however long anything takes; or else in so many seconds."""

        async def write(at: datetime) -> int:
            self.entries.put_nowait((name, at))
            if problem is not None:
                raise problem
            return 1

        return Chore(name, every_s, write)

    async def names(self, number: int) -> list[str]:
        return [(await self.entries.get())[0] for _ in range(number)]


def scheduler(dsn: str, *chores: Chore) -> Scheduler:
    return Scheduler(partial(postgres.connect, dsn), chores, clock=lambda: NOON, election_s=0.02)


def test_chores_are_done_in_their_order_again_and_again_by_the_clock_given(runner: Run, database: str) -> None:
    async def story() -> None:
        diary = Diary()
        alone = scheduler(database, diary.chore("first"), diary.chore("second"))
        await alone.start()
        assert ("first", NOON) == await diary.entries.get()
        assert ["second", "first", "second", "first"] == await diary.names(4)
        await alone.stop()

    runner(story())


def test_a_chore_that_fails_keeps_no_other_from_being_done(runner: Run, database: str) -> None:
    async def story() -> None:
        diary = Diary()
        problems = (ZeroDivisionError(), Unavailable("away"), psycopg.OperationalError("gone"), OSError("no"))
        broken = [diary.chore(f"broken-{number}", problem) for number, problem in enumerate(problems)]
        alone = scheduler(database, *broken, diary.chore("sound"))
        await alone.start()
        names = [chore.name for chore in broken] + ["sound"]
        assert names * 2 == await diary.names(10)
        await alone.stop()

    runner(story())


def test_chores_have_rhythms_of_their_own(runner: Run, database: str) -> None:
    async def story() -> None:
        diary = Diary()
        alone = scheduler(database, diary.chore("seldom", every_s=3600), diary.chore("often"))
        await alone.start()
        assert ["seldom", "often", "often", "often"] == await diary.names(4)
        await alone.stop()

    runner(story())


def test_one_process_leads_and_the_next_takes_over_when_it_is_gone(runner: Run, database: str) -> None:
    async def story() -> None:
        diary = Diary()
        first, second = (scheduler(database, diary.chore(name)) for name in ("first", "second"))
        await first.start()
        await diary.names(1)
        await second.start()
        assert ["first"] * 10 == await diary.names(10)
        assert (True, False) == (first.is_leading, second.is_leading)
        await first.stop()
        while "second" not in await diary.names(1):  # what the first had done before
            pass
        assert second.is_leading
        assert ["second"] * 3 == await diary.names(3)
        await second.stop()

    runner(story())


def test_a_leader_that_lost_its_connection_leads_no_more(runner: Run, database: str) -> None:
    async def story() -> None:
        diary = Diary()
        alone = scheduler(database, diary.chore("chore"))
        await alone.start()
        await diary.names(1)
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as owner:
            await owner.execute(
                f"select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and {HERE}"
            )
        await eventually(lambda: not alone.is_leading)
        await eventually(lambda: alone.is_leading)
        await alone.stop()

    runner(story())


def test_a_leader_that_hangs_gives_the_lead_back(runner: Run, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.scheduler.SILENT_SECONDS", 0.5)
    holders = f"select from pg_locks where locktype = 'advisory' and objid = {LEADER_LOCK} and granted and {HERE}"

    async def story() -> None:
        diary = Diary()
        with psycopg.connect(database, autocommit=True) as owner:

            async def hang(at: datetime) -> int:
                if diary.entries.empty():
                    until(lambda: owner.execute(holders).rowcount == 0)  # nothing else happens on this event loop
                return await diary.chore("hanging").do(at)

            alone = scheduler(database, Chore("hanging", 0, hang))
            await alone.start()
            await eventually(lambda: diary.entries.qsize() > 1)
            await alone.stop()

    runner(story())


def test_what_has_failed_is_left_to_the_next_time(runner: Run) -> None:
    async def story() -> None:
        diary = Diary()
        await do(diary.chore("broken", ZeroDivisionError()), NOON)
        assert 1 == diary.entries.qsize()

    runner(story())
