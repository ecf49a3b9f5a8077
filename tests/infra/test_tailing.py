"""A reader that follows the journal sees every committed event, in order, and never one too early."""

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from infra import journal
from infra.journal import Connection, Recorded
from tests.infra.accounts import (
    ACCOUNT,
    OTHER,
    a_draft,
    a_ledger,
    connected,
    grant_credits,
    granting,
    open_with,
    waiting_for_the_lock,
)
from tests.infra.writers import SHARED

Run = Callable[[Coroutine[Any, Any, Any]], Any]

PROCESSES, WRITERS, COMMANDS = 4, 2, 100


async def follow(connection: Connection, seen: list[Recorded]) -> None:
    """Reads on from what was seen last, as long as there is anything."""
    while events := await journal.read(connection, seen[-1].position if seen else 0, 50):
        seen += events


def test_eight_writers_in_four_processes_and_nothing_is_missed(database: str, runner: Run) -> None:
    def start(number: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.infra.writers", database, f"w{number}-", str(WRITERS), str(COMMANDS)]
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)

    async def story() -> tuple[list[str], list[Recorded]]:
        seen: list[Recorded] = []
        running = [start(number) for number in range(PROCESSES)]
        try:
            endings = asyncio.gather(*(asyncio.to_thread(process.communicate) for process in running))
            async with await connected(database) as connection:
                while not endings.done():
                    await follow(connection, seen)
                await follow(connection, seen)
            said = [output for output, _ in await endings]
        finally:
            for process in running:
                process.kill()
                process.wait()
        assert [0] * PROCESSES == [process.returncode for process in running]
        return "".join(said).split(), seen

    acknowledged, seen = runner(story())

    assert list(range(1, len(seen) + 1)) == [event.position for event in seen]
    granted = [event for event in seen if type(event.event).__name__ == "CreditsGranted"]
    assert PROCESSES * WRITERS * COMMANDS == len(acknowledged)
    assert sorted(acknowledged) == sorted(event.event.request for event in granted)
    versions: dict[str, list[int]] = defaultdict(list)
    for event in seen:
        versions[event.stream].append(event.version)
    assert PROCESSES * WRITERS + 1 == len(versions)
    assert all(list(range(1, len(each) + 1)) == each for each in versions.values())
    shared = [event.event for event in granted if event.stream == SHARED]
    assert list(range(1, len(shared) + 1)) == [event.remaining_credits for event in shared]


def test_a_writer_that_dawdles_makes_others_wait_and_readers_see_no_gap(database: str, runner: Run) -> None:
    """Held open between insert and commit: whoever numbered events without a lock would leave a gap here."""

    async def story() -> None:
        async with (
            a_ledger(database) as one,
            a_ledger(database) as two,
            await connected(database) as slow,
            await connected(database) as reading,
        ):
            await open_with(one, 1)
            await open_with(two, 1, OTHER)
            seen: list[Recorded] = []
            async with slow.transaction():
                [opened] = [event.event for event in await journal.read(reading, 0, 1)]
                await journal.append(slow, a_draft(("credit-slow", opened)))
                wishes = [
                    asyncio.create_task(ledger.carry_out(grant_credits, granting(1), account))
                    for ledger, account in ((one, ACCOUNT), (two, OTHER), (one, ACCOUNT), (two, OTHER))
                ]
                await waiting_for_the_lock(slow, 2)
                await follow(reading, seen)
                assert [1, 2, 3, 4] == [event.position for event in seen]
                assert not any(wish.done() for wish in wishes)
            outcomes = await asyncio.gather(*wishes)
            await follow(reading, seen)
            assert [1, 2, 3, 4, 5, 6, 7, 8, 9] == [event.position for event in seen]
            assert "credit-slow" == seen[4].stream
            assert all(outcome.position > 5 for outcome in outcomes)

    runner(story())


def test_an_answer_is_never_ahead_of_what_can_be_read(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as ledger, await connected(database) as reading:
            await open_with(ledger, 1)
            for _ in range(50):
                outcome = await ledger.carry_out(grant_credits, granting(1), ACCOUNT)
                [event] = await journal.read(reading, outcome.position - 1, 10)
                assert outcome.events == (event.event,)
                assert outcome.position <= await journal.position(reading)

    runner(story())
