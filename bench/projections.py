"""How fast read models catch up, are rebuilt and verified, and whether reads stay as fast while the journal grows.

Everything happens on a freshly started server, on a journal that bench.generate makes up.

    python -m bench.projections --events 200_000
"""

import argparse
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial

import psycopg
import uvloop

from api.app import PROJECTIONS
from bench.append import a_database
from bench.generate import generate
from infra import journal, postgres
from infra.journal import Connection
from infra.verify import verify
from projections import balances, jobs
from projections.engine import BATCH_EVENTS, Engine, Progress, stand
from projections.rebuild import rebuild_all
from projections.webhook_deliveries import webhook_deliveries

READ_MODELS = (*PROJECTIONS, webhook_deliveries((20, 10)))
FEW_EVENTS = 10_000
READS = 300

Row = tuple[str, str]


async def catch_up(dsn: str, events: int) -> float:
    """Events per second of the engine, as it runs in the server, from the first one to the last."""
    async with await postgres.connect(dsn) as asking:
        progress = Progress(partial(stand, asking, READ_MODELS))
        engine = Engine(partial(postgres.connect, dsn), READ_MODELS, progress)
        started = time.perf_counter()
        await engine.start()
        behind = await progress.reach(events, timeout_s=3600)
        elapsed = time.perf_counter() - started
        await engine.stop()
    assert (behind, engine.health.stopped_by) == (0, None)
    return events / elapsed


async def rebuilds(dsn: str, events: int, *names: str) -> float:
    """Events of the whole journal per second of building read models anew, comparison and exchange included."""
    chosen = [each for each in READ_MODELS if each.name in names]
    async with await postgres.connect(dsn) as connection:
        started = time.perf_counter()
        rebuilt = await rebuild_all(connection, chosen, lambda reached, until: None)
        assert rebuilt.differing_rows == 0
        return events / (time.perf_counter() - started)


async def reads(dsn: str) -> dict[str, float]:
    """Milliseconds of a read, the middle one of many."""
    async with await postgres.connect(dsn) as connection:
        cursor = await connection.execute("select job_id::text, team_id from jobs order by md5(job_id::text) limit 100")
        some = [(str(job_id), str(team_id)) for job_id, team_id in await cursor.fetchall()]
        kinds: dict[str, Callable[[Connection, str, str], Awaitable[object]]] = {
            "a balance": lambda connection, job_id, team_id: balances.one(connection, team_id),
            "a job": lambda connection, job_id, team_id: jobs.one(connection, job_id),
            "a page of a team's jobs": lambda connection, job_id, team_id: jobs.page(
                connection, {"team_id": team_id, "limit": 50, "offset": 0}
            ),
        }
        return {name: await _middle(connection, read, some) for name, read in kinds.items()}


async def _middle(
    connection: Connection, read: Callable[[Connection, str, str], Awaitable[object]], some: list[tuple[str, str]]
) -> float:
    taken = []
    for number in range(READS):
        started = time.perf_counter()
        await read(connection, *some[number % len(some)])
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken)


async def decoding(dsn: str) -> float:
    """Events per second of only reading them: what no projection can be faster than."""
    async with await postgres.connect(dsn) as connection:
        started = time.perf_counter()
        count = 0
        async for page in journal.read_all(connection, 0, BATCH_EVENTS):
            count += len(page)
        return count / (time.perf_counter() - started)


def main() -> None:
    """Runs all and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    given = parser.parse_args()

    with a_database() as dsn:
        generate(dsn, FEW_EVENTS)
        uvloop.run(catch_up(dsn, FEW_EVENTS))
        few = uvloop.run(reads(dsn))
    with a_database() as dsn:
        started = time.perf_counter()
        generate(dsn, given.events)
        speeds = {"generate": given.events / (time.perf_counter() - started)}
        speeds["read and decode"] = uvloop.run(decoding(dsn))
        speeds[f"catch up, {len(READ_MODELS)} read models"] = uvloop.run(catch_up(dsn, given.events))
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("vacuum analyze")
        for name in ("credit_days", "balances", "transactions", "jobs", "calls", "usage"):
            speeds[f"rebuild {name}"] = uvloop.run(rebuilds(dsn, given.events, name))
        everything = [each.name for each in READ_MODELS]
        speeds["rebuild all of them"] = uvloop.run(rebuilds(dsn, given.events, *everything))
        with psycopg.connect(dsn, autocommit=True) as connection:
            verified = verify(connection)
            assert verified.first_break is None
            speeds["verify"] = verified.events / verified.seconds
        many = uvloop.run(reads(dsn))

    print(f"{given.events:,} events, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n")
    print(f"{'':40} {'events/s':>10}")
    for name, speed in speeds.items():
        print(f"{name:40} {speed:10,.0f}")
    print(f"\n{'ms, the middle of ' + str(READS):40} {FEW_EVENTS:>10,} {given.events:>12,} {'ratio':>6}")
    for name, before in few.items():
        print(f"{name:40} {before:10.2f} {many[name]:12.2f} {many[name] / before:6.2f}")


if __name__ == "__main__":
    main()
