"""What happens when the journal grows: the work on all of it, reads beside those of a small one, memory.

    python -m bench.scale --events 10_000_000 --folder /somewhere/with/space

Work on the whole journal is done by a process each, so that its peak of memory is its own. Reads go over HTTP to a
server without background work, on warm tables that were vacuumed and analysed once, as autovacuum does in time.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from bench.generate import BEGINNING, YEAR, generate
from bench.projections import READ_MODELS, catch_up
from infra import postgres
from infra.embedded import EmbeddedServer
from infra.verify import verify
from projections.audit import audit
from projections.rebuild import rebuild_all
from tests.proofs.house import House

FEW_EVENTS = 10_000
READS = 60
LINES = {"Accept": "application/x-ndjson"}
SECTION = 1_000
PERIOD = f"start_date={BEGINNING.date()}&end_date={(BEGINNING + YEAR).date()}"

_BUSIEST = "select team_id, organization_id from readmodel.usage_by_team order by total_jobs desc, team_id limit 1"
_SOME_JOBS = "select job_id::text from readmodel.jobs order by md5(job_id::text) limit %s"

# -- work on the whole journal, a process each -------------------------------------------------------------------------


def catches_up(dsn: str, events: int) -> None:
    asyncio.run(catch_up(dsn, events))


def is_rebuilt(dsn: str, events: int) -> None:
    async def rebuild() -> None:
        async with await postgres.connect(dsn) as connection:
            rebuilt = await rebuild_all(connection, READ_MODELS, lambda reached, until: None)
            assert not rebuilt.differing_rows, rebuilt

    asyncio.run(rebuild())


def chain_is_verified(dsn: str, events: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = verify(connection)
    assert (found.first_break, found.events) == (None, events), found


def is_audited(dsn: str, events: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        report = audit(connection)
    assert (report.findings, report.events) == ([], events), report


def is_vacuumed(dsn: str, events: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("vacuum analyze")


WORK: dict[str, Callable[[str, int], None]] = {
    "generate": generate,
    f"catch up, {len(READ_MODELS)} read models": catches_up,
    "vacuum analyze": is_vacuumed,
    "rebuild all of them, compared": is_rebuilt,
    "verify the chain": chain_is_verified,
    "audit: replay, checks, read models": is_audited,
}
MAKING = ("generate", f"catch up, {len(READ_MODELS)} read models", "vacuum analyze")


def _measured(work: Callable[[str, int], None], dsn: str, events: int) -> tuple[float, float]:
    started = time.perf_counter()
    work(dsn, events)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(work: Callable[[str, int], None], dsn: str, events: int) -> tuple[float, float]:
    """Seconds, and the most memory in MB, of a process that does this and nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_measured, work, dsn, events).result()


# -- reads -------------------------------------------------------------------------------------------------------------


@contextmanager
def an_answering_house(folder: Path) -> Iterator[tuple[House, httpx.Client]]:
    house = House(folder, api_only=True)
    house.start()
    try:
        with house.admin() as admin:
            yield house, admin
    finally:
        house.stop()


def _paths(house: House) -> dict[str, Callable[[int], str]]:
    """What is asked for, each time anew."""
    [(team_id, organization_id)] = house.query(_BUSIEST)
    jobs = [job_id for (job_id,) in house.query(_SOME_JOBS, READS)]
    costs = f"/api/reports/costs?{PERIOD}&limit=1000&group_by="
    return {
        "balance of the busiest team": lambda turn: f"/api/credits/balance?team_id={team_id}",
        "a job": lambda turn: f"/api/jobs/{jobs[turn % len(jobs)]}",
        "costs of a job": lambda turn: f"/api/jobs/{jobs[turn % len(jobs)]}/costs",
        "50 jobs of the busiest team": lambda turn: f"/api/teams/{team_id}/jobs?limit=50",
        "50 failed jobs of everybody": lambda turn: "/api/jobs?limit=50&status=failed",
        "50 transactions of the busiest team": lambda turn: f"/api/credits/transactions?team_id={team_id}&limit=50",
        "100 events in the middle": lambda turn: f"/api/audit/events?after={FEW_EVENTS // 2}&limit=100",
        "costs of the year, by month": lambda turn: costs + "month",
        "costs of the year, by day": lambda turn: costs + "day",
        "costs of the year, by month, organization": lambda turn: costs + "month,organization",
        "costs of the year, by month, team, model": lambda turn: costs + "month,team,model",
        "costs of the year, by month, job type, purpose": lambda turn: costs + "month,job_type,purpose",
        "costs of its organization, by day, team": lambda turn: f"{costs}day,team&organization_id={organization_id}",
    }


def reads(house: House, admin: httpx.Client) -> dict[str, float]:
    """Milliseconds of each, the middle one of many."""
    return {what: _middle(admin, path) for what, path in _paths(house).items()}


def _middle(admin: httpx.Client, path: Callable[[int], str]) -> float:
    taken: list[float] = []
    for turn in range(READS):
        started = time.perf_counter()
        answer = admin.get(path(turn))
        taken.append(time.perf_counter() - started)
        assert answer.status_code == 200, answer.text
    return 1000 * statistics.median(taken[READS // 6 :])


# -- long answers ------------------------------------------------------------------------------------------------------


class Watch:
    """The memory of the server's worker, looked at all the time. MB."""

    def __init__(self, house: House) -> None:
        assert house.process is not None
        self._workers = psutil.Process(house.process.pid).children()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.before = self.most = self._now()

    def _now(self) -> float:
        resident: int = sum(worker.memory_info().rss for worker in self._workers)
        return resident / 2**20

    def _look(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, self._now())

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._done.set()
        self._thread.join()


def lines(admin: httpx.Client, path: str) -> int:
    """Reads a whole NDJSON answer, and says how many lines there were."""
    number = 0
    with admin.stream("GET", path, headers=LINES, timeout=600) as answer:
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            number += piece.count(b"\n")
    return number


def notifications(admin: httpx.Client, most: int) -> int:
    """Follows the notification log section by section."""
    number, section = 0, f"1,{SECTION}"
    while section and number < most:
        found: dict[str, Any] = admin.get(f"/api/audit/notifications/{section}").json()
        number += len(found["items"])
        section = found["next_id"]
    return number


def long_answers(house: House, admin: httpx.Client, exported: int) -> None:
    """Prints how fast long answers come, and what the server needs for them."""
    [(team_id, _)] = house.query(_BUSIEST)
    kinds: dict[str, Callable[[], int]] = {
        "replay of the busiest team, NDJSON": lambda: lines(admin, f"/api/audit/teams/{team_id}/replay"),
        "events, NDJSON": lambda: lines(admin, f"/api/audit/events?limit={exported}"),
        "notification log": lambda: notifications(admin, exported),
    }
    print(f"\n{'':44} {'lines':>12} {'seconds':>9} {'a second':>10} {'MB before':>10} {'MB most':>10}")
    for what, ask in kinds.items():
        with Watch(house) as watch:
            started = time.perf_counter()
            number = ask()
            seconds = time.perf_counter() - started
        speed = number / seconds
        print(
            f"{what:44} {number:12,} {seconds:9.1f} {speed:10,.0f} {watch.before:10.0f} {watch.most:10.0f}", flush=True
        )


# -- the run -----------------------------------------------------------------------------------------------------------


@contextmanager
def a_server(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    server = EmbeddedServer(folder)
    server.start()
    try:
        postgres.migrate(server.dsn)
        yield server.dsn
    finally:
        server.stop()


def few(folder: Path) -> dict[str, float]:
    """What reads take on a small journal."""
    with a_server(folder) as dsn:
        for what in MAKING:
            alone(WORK[what], dsn, FEW_EVENTS)
        with an_answering_house(folder) as (house, admin):
            return reads(house, admin)


def many(folder: Path, events: int, exported: int, before: dict[str, float]) -> None:
    with a_server(folder) as dsn:
        print(f"\n{'the whole journal':44} {'seconds':>12} {'events/s':>10} {'MB most':>10}")
        for what, work in WORK.items():
            seconds, memory = alone(work, dsn, events)
            print(f"{what:44} {seconds:12.1f} {events / seconds:10,.0f} {memory:10.0f}", flush=True)
        with an_answering_house(folder) as (house, admin):
            after = reads(house, admin)
            print(f"\n{f'ms over HTTP, the middle of {READS}':48} {FEW_EVENTS:>10,} {events:>12,} {'ratio':>6}")
            for what, taken in before.items():
                print(f"{what:48} {taken:10.2f} {after[what]:12.2f} {after[what] / taken:6.2f}", flush=True)
            long_answers(house, admin, exported)


def main() -> None:
    """Runs all and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--exported", type=int, default=10_000_000, help="events to export at most")
    parser.add_argument("--folder", type=Path, default=None, help="for the databases, 2 KB an event; removed after")
    given = parser.parse_args()
    print(f"{given.events:,} events, {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory(prefix="saas-scale-", dir=given.folder) as folder:
        many(Path(folder) / "many", given.events, given.exported, few(Path(folder) / "few"))


if __name__ == "__main__":
    main()
