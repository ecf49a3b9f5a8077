"""Appends per second: our ledger, beside the eventsourcing library's own recorder and a bare insert by pgbench.

All three write events of the same size into the same freshly started server with fsync on, one after the other.

    python -m bench.append --seconds 5 --writers 1000 --accounts 100
"""

import argparse
import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import uvloop
from psycopg.conninfo import conninfo_to_dict

from domain.credit import Account, AccountOpened, GrantCredits, grant_credits
from domain.event import Command, Event
from infra import journal, postgres
from infra.embedded import EmbeddedServer, programs
from infra.ledger import Ledger
from infra.verify import verify


class Open(Command):
    team_id: str


def open_account(account: Account | None, command: Open) -> list[Event]:
    return [] if account else [AccountOpened(at=command.at, team_id=command.team_id, organization_id="bench")]


# -- the three ---------------------------------------------------------------------------------------------------------


async def by_ledger(dsn: str, *, seconds: float, writers: int, accounts: int) -> float:
    """Events per second of one process; each writer waits for the answer to its command before it sends the next."""
    ledger = Ledger(lambda: postgres.connect(dsn, name="bench"))
    await ledger.start()
    run = secrets.token_hex(4)
    streams = [f"credit-{run}-{number}" for number in range(accounts)]
    for stream in streams:
        opening = Open(at=datetime.now(UTC), by="bench", request=run, team_id=stream)
        await ledger.carry_out(open_account, opening, stream)
    written = 0
    end = time.perf_counter() + seconds

    async def write(number: int) -> None:
        nonlocal written
        stream = streams[number % accounts]
        while time.perf_counter() < end:
            await ledger.carry_out(grant_credits, _a_grant(), stream)
            written += 1

    started = time.perf_counter()
    await asyncio.gather(*(write(number) for number in range(writers)))
    elapsed = time.perf_counter() - started
    await ledger.stop()
    return written / elapsed


def _a_grant() -> GrantCredits:
    return GrantCredits(
        at=datetime.now(UTC),
        by="6f0c1a9e-2c1b-4f6e-9d3a-8f4f1a2b3c4d",
        request=secrets.token_hex(8),
        transaction_id=secrets.token_hex(16),
        credits=10,
        reason="bench",
    )


def by_library(dsn: str, state: bytes, *, seconds: float, writers: int) -> float:
    """Events per second of the library's recorder, one event an append, each writer a thread with a connection."""
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    where = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    datastore = PostgresDatastore(
        dbname=where["dbname"],
        host=where["host"],
        port=where.get("port", "5432"),
        user=where["user"],
        password=where.get("password", ""),
        pool_size=writers,
        originator_id_type="text",
        schema="public",
    )
    table = f"library_{secrets.token_hex(4)}"
    written = [0] * writers
    with datastore:
        recorder = PostgresApplicationRecorder(datastore, events_table_name=table)
        recorder.create_table()
        end = time.perf_counter() + seconds

        def write(number: int) -> None:
            stream = f"credit-{number}"
            while time.perf_counter() < end:
                written[number] += 1
                recorder.insert_events([StoredEvent(stream, written[number], "CreditsGranted", state)])

        threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(written) / (time.perf_counter() - started)


def by_pgbench(dsn: str, state: bytes, *, seconds: float, writers: int) -> float | None:
    """Rows per second of single inserts without lock, order, version check or chain; None without pgbench."""
    own = programs() / "pgbench"
    program = str(own) if own.exists() else shutil.which("pgbench")
    if program is None:
        return None
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table if not exists bare (id bigserial primary key, stream text, state bytea)")
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(f"insert into bare (stream, state) values ('credit-' || :client_id, '\\x{state.hex()}');\n")
        script.flush()
        command = [program, "-n", "-f", script.name, "-M", "prepared", "-c", str(writers), "-j", "2"]
        done = subprocess.run(
            [*command, "-T", str(max(1, round(seconds))), dsn],
            capture_output=True,
            text=True,
            check=True,
        )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("tps")]
    return float(line.split()[2])


# -- the run -----------------------------------------------------------------------------------------------------------


@contextmanager
def a_database() -> Iterator[str]:
    """A migrated database: DATABASE_URL, or a fresh embedded server that syncs every commit to the disk."""
    if given := os.environ.get("DATABASE_URL"):
        postgres.migrate(given)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="saas-bench-") as folder:
        server = EmbeddedServer(Path(folder))
        try:
            server.start()
            postgres.migrate(server.dsn)
            yield server.dsn
        finally:
            server.stop()


def an_event() -> bytes:
    [event] = grant_credits(Account(team_id="bench", organization_id="bench", updated_at=datetime.now(UTC)), _a_grant())
    return journal.encode(event)


def main() -> None:
    """Runs all and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--writers", type=int, default=1000, help="commands waiting for the ledger at once")
    parser.add_argument("--accounts", type=int, default=100, help="streams that they write to")
    parser.add_argument("--library-writers", type=int, default=8, help="threads of the library's recorder")
    parser.add_argument("--pgbench-writers", type=int, default=32, help="connections of pgbench")
    given = parser.parse_args()

    state = an_event()
    with a_database() as dsn:
        library = by_library(dsn, state, seconds=given.seconds, writers=given.library_writers)
        rows: list[tuple[str, float | None]] = [(f"library's recorder, {given.library_writers} threads", library)]
        for writers, accounts in ((1, 1), (32, given.accounts), (given.writers, given.accounts), (given.writers, 1)):
            used = min(writers, accounts)
            ours = uvloop.run(by_ledger(dsn, seconds=given.seconds, writers=writers, accounts=used))
            rows.append((f"ledger, {writers} commands at once on {used} accounts", ours))
        bare = by_pgbench(dsn, state, seconds=given.seconds, writers=given.pgbench_writers)
        rows.append((f"pgbench, bare insert, {given.pgbench_writers} connections", bare))
        with psycopg.connect(dsn, autocommit=True) as connection:
            verified = verify(connection)

    print(f"events of {len(state)} bytes, {given.seconds:g} s each, {os.cpu_count()} processors\n")
    print(f"{'':58} {'events/s':>10} {'x library':>10}")
    for name, rate in rows:
        print(f"{name:58} " + (f"{'-':>10}" if rate is None else f"{rate:10,.0f} {rate / library:10.1f}"))
    print(f"{'verify of what the ledger wrote':58} {verified.events / verified.seconds:10,.0f}")
    assert verified.first_break is None, verified.first_break


if __name__ == "__main__":
    main()
