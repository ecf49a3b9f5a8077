"""How far the read models are behind what has been acknowledged, under a steady load.

The ledger and the engine of one process, as in the server; commands come at a fixed rate, whether they are answered or
not. An event's lag is the time from the answer to its command until the read models have passed it.

    python -m bench.lag --rate 1000 --seconds 20
"""

import argparse
import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from uuid import uuid4

import uvloop

from bench.append import a_database
from bench.generate import generate
from bench.projections import READ_MODELS
from domain.job import CreateJob, create_job
from domain.streams import JOB, TEAM
from infra import postgres
from infra.ledger import Ledger
from projections.engine import Engine, Progress, stand

EVENTS = 10_000  # that are there before, of some fifty teams


async def lags(dsn: str, *, rate: int, seconds: float) -> list[float]:
    """The lag of each command's event, in seconds."""
    waiting: list[tuple[int, float]] = []
    found: list[float] = []

    def projected(position: int) -> None:
        now = time.perf_counter()
        found.extend(now - answered for reached, answered in waiting if reached <= position)
        waiting[:] = [each for each in waiting if each[0] > position]

    connect = partial(postgres.connect, dsn)
    async with await postgres.connect(dsn) as asking:
        cursor = await asking.execute("select originator_id from journal.events where topic = 'TeamCreated'")
        teams = cycle([str(stream).removeprefix(TEAM.stream("")) for (stream,) in await cursor.fetchall()])
        progress = Progress(partial(stand, asking, READ_MODELS))
        engine = Engine(connect, READ_MODELS, progress, projected=projected)
        ledger = Ledger(connect, appended=engine.wake)

        async def command() -> None:
            job_id, team_id = str(uuid4()), next(teams)
            wish = CreateJob(
                at=datetime.now(UTC),
                by="bench",
                request="bench",
                job_id=job_id,
                team_id=team_id,
                job_type="bench",
                metadata={},
            )
            job = JOB.stream(job_id)
            outcome = await ledger.carry_out(create_job, wish, job, TEAM.stream(team_id), new=job)
            waiting.append((outcome.position, time.perf_counter()))

        await ledger.start()
        await engine.start()
        assert await progress.reach(EVENTS, timeout_s=60) == 0
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
                group.create_task(command())
        await progress.reach(waiting[-1][0] if waiting else 0, timeout_s=60)
        await engine.stop()
        await ledger.stop()
    return sorted(found)


def main() -> None:
    """Runs it and prints a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=1000, help="commands a second")
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    with a_database() as dsn:
        generate(dsn, EVENTS, teams=50)
        started = time.perf_counter()
        found = uvloop.run(lags(dsn, rate=given.rate, seconds=given.seconds))
        elapsed = time.perf_counter() - started
    middle, late = found[len(found) // 2], found[len(found) * 99 // 100]
    print(f"{len(found):,} commands in {elapsed:.1f} s: lag p50 {1000 * middle:.0f} ms, p99 {1000 * late:.0f} ms")


if __name__ == "__main__":
    main()
