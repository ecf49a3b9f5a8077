"""The engine: every event once, all read models at one position, whoever leads and whatever breaks.

The journal is of a made-up business (bench/generate.py); what read models must say is folded from it by the domain.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from api.app import PROJECTIONS
from bench.generate import generate
from domain.credit import CreditsGranted, CreditsHeld, GrantCredits, grant_credits
from domain.event import Event
from domain.job import CallStarted, JobCreated
from domain.streams import CREDIT, DECODERS, category_of
from infra import journal, metrics, postgres
from infra.journal import Connection, Draft, Recorded
from infra.ledger import Ledger, Outcome
from projections import balances, engine, jobs
from projections.balances import BALANCES, BalanceRecord
from projections.engine import Engine, Progress, stand, tracked
from projections.jobs import JOBS, JobRecord
from projections.projection import Batch, Projection
from projections.rebuild import REBUILD_LOCK, rebuild, rebuild_all
from projections.standing import set_up
from projections.webhook_deliveries import webhook_deliveries
from tests.api.conftest import make_team, running
from tests.infra.accounts import ACCOUNT, a_ledger, everything, open_account, opening, who
from tests.waiting import eventually, until

Run = Callable[[Coroutine[Any, Any, None]], None]

ALL = (*PROJECTIONS, webhook_deliveries((50, 10)))
EVENTS = 1500
SEEDS = [1, 2, 3]
LEADERS = """
select pid from pg_locks where locktype = 'advisory' and objid = %s and granted
    and database = (select oid from pg_database where datname = current_database())
"""


@pytest.fixture(autouse=True)
def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    for pause in ("ELECTION_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(engine, pause, 0.01)


@asynccontextmanager
async def an_engine(
    dsn: str, read_models: Iterable[Projection] = ALL, connect: Callable[[], Awaitable[Connection]] | None = None
) -> AsyncIterator[Engine]:
    """A started engine with its own progress, stopped at the end."""
    connect = connect or partial(postgres.connect, dsn, name="engine")
    async with await postgres.connect(dsn) as asking:
        made = Engine(connect, tuple(read_models), Progress(partial(stand, asking, ALL)))
        await made.start()
        try:
            yield made
        finally:
            await made.stop()


def granting(credits: int) -> GrantCredits:
    return GrantCredits(**who(), transaction_id=str(uuid4()), credits=credits)


async def open_with(ledger: Ledger, credits: int) -> Outcome:
    await ledger.carry_out(open_account, opening(), ACCOUNT)
    return await ledger.carry_out(grant_credits, granting(credits), ACCOUNT)


async def reached(connection: Connection, position: int) -> None:
    async def is_there() -> bool:
        return await found_at(connection) == position

    await eventually(is_there)


async def found_at(connection: Connection) -> int:
    """Where the read models stand, also before anybody has made them."""
    try:
        return await tracked(connection)
    except psycopg.errors.UndefinedTable:
        return -1


async def has_gone_on(connection: Connection, before: int) -> bool:
    position = await found_at(connection)
    return position > before or position == EVENTS


async def leaders(connection: Connection, lock: int = engine.LEADER_LOCK) -> list[int]:
    cursor = await connection.execute(LEADERS, (lock,))
    return [int(str(pid)) for (pid,) in await cursor.fetchall()]


async def nobody_holds(connection: Connection, lock: int) -> bool:
    """PostgreSQL notices a moment later that a connection has gone."""
    return not await leaders(connection, lock)


class Killer:
    """The database's owner, who may end what others do."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)

    def kill(self, lock: int = engine.LEADER_LOCK) -> int:
        killed = self._connection.execute(f"select pg_terminate_backend(pid) from ({LEADERS}) as those", (lock,))
        return killed.rowcount

    def leaders(self) -> set[int]:
        return {pid for (pid,) in self._connection.execute(LEADERS, (engine.LEADER_LOCK,))}

    def listeners(self) -> int:
        listening = "datname = current_database() and query like 'listen%'"
        return self._connection.execute(f"select from pg_stat_activity where {listening}").rowcount

    def idle_leaders(self) -> set[int]:
        """Who has asked for events and been told that there are none."""
        idle = "select pid from pg_stat_activity where state = 'idle' and query like '%journal.events%'"
        return self.leaders() & {pid for (pid,) in self._connection.execute(idle)}

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def killer(database: str) -> Any:
    killer = Killer(database)
    yield killer
    killer.close()


async def require_what_a_replay_says(dsn: str) -> None:
    """Balances and jobs are what the domain makes of their streams, and all tables what one go makes of the journal."""
    states: dict[str, Any] = {}
    for each in await everything(dsn):
        states[each.stream] = category_of(each.stream).evolve(states.get(each.stream), each.event)
    async with await postgres.connect(dsn) as connection:
        for stream, state in states.items():
            if stream.startswith("credit-"):
                assert BalanceRecord.of(state) == await balances.one(connection, state.team_id)
            if stream.startswith("job-"):
                assert JobRecord.of(state) == await jobs.one(connection, state.job_id)
        assert 0 == (await rebuild_all(connection, ALL, lambda reached, until: None)).differing_rows


# -- exactly once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_an_engine_that_is_killed_at_any_moment_projects_each_event_once(
    database: str, killer: Killer, runner: Run, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    generate(database, EVENTS, teams=7, seed=seed)
    dice = random.Random(seed)

    async def story() -> None:
        async with await postgres.connect(database) as connection:
            killed = 0
            while True:
                monkeypatch.setattr(engine, "BATCH_EVENTS", dice.randrange(1, 300))
                async with an_engine(database):
                    await asyncio.sleep(dice.random() * 0.1)
                    killed += killer.kill()
                    # On a slow machine the end would never come if each round could end where it began.
                    await eventually(partial(has_gone_on, connection, await found_at(connection)))
                    await asyncio.sleep(dice.random() * 0.05)
                if killed and await tracked(connection) == EVENTS:
                    break
        await require_what_a_replay_says(database)

    runner(story())


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_an_engine_whose_connection_breaks_around_a_commit_projects_each_event_once(
    database: str, killer: Killer, runner: Run, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    generate(database, EVENTS, teams=7)
    monkeypatch.setattr(engine, "BATCH_EVENTS", 300)
    kills: list[int] = []

    def kill_at(position: int) -> None:
        if position > 300 * (len(kills) + 1):
            kills.append(killer.kill())

    def project(batch: Batch) -> list[Any]:
        if moment == "before the commit":
            kill_at(batch.events[-1].position)
        return []

    async def story() -> None:
        async with await postgres.connect(database) as connection:
            beside = Projection("beside", 1, (), "select 1", project)
            async with an_engine(database, (*ALL, beside)) as leader:
                if moment == "after the commit":
                    leader._projected = kill_at
                await reached(connection, EVENTS)
                assert [1] * len(kills) == kills
                assert len(kills) >= 3
        await require_what_a_replay_says(database)

    runner(story())


@pytest.mark.parametrize("broken", ["always", "after a while"])
def test_an_engine_that_cannot_read_ahead_projects_all_the_same(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    generate(database, EVENTS, teams=7)
    monkeypatch.setattr(engine, "BATCH_EVENTS", 300)
    another, opened = postgres.another, []

    async def breaking(connection: Connection) -> Connection:
        if broken == "always":
            raise psycopg.OperationalError("too many connections")
        opened.append(await another(connection))
        return opened[-1]

    async def close_after(position: int) -> None:
        if position > 900 and opened:
            await opened.pop().close()

    monkeypatch.setattr(postgres, "another", breaking)

    async def story() -> None:
        async with await postgres.connect(database) as connection, an_engine(database) as leader:
            closing: list[asyncio.Task[None]] = []
            leader._projected = lambda position: closing.append(asyncio.create_task(close_after(position)))
            await reached(connection, EVENTS)
            await asyncio.gather(*closing)
            assert leader.health.stopped_by is None
        monkeypatch.undo()
        await require_what_a_replay_says(database)

    runner(story())


def test_an_engine_that_reads_ahead_stops_before_an_event_that_nobody_can_read(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(database, EVENTS, teams=7)
    monkeypatch.setattr(engine, "BATCH_EVENTS", 300)

    async def story() -> None:
        async with await postgres.connect(database) as connection:
            assert EVENTS + 1 == await write_nonsense(connection)
            async with an_engine(database) as leader:
                await eventually(lambda: leader.health.stopped_by is not None)
                assert "SomethingStrange" in str(leader.health.stopped_by)
                assert EVENTS == await tracked(connection)

    runner(story())


def test_two_engines_that_both_believe_to_lead_project_each_event_once(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(database, EVENTS, teams=7)
    monkeypatch.setattr(engine, "BATCH_EVENTS", 50)

    async def always(connection: Connection) -> bool:
        return True

    monkeypatch.setattr(engine, "_is_elected", always)

    async def story() -> None:
        async with await postgres.connect(database) as connection:
            await set_up(connection, ALL)
            async with an_engine(database) as first, an_engine(database) as second:
                await reached(connection, EVENTS)
                assert (None, None) == (first.health.stopped_by, second.health.stopped_by)
        await require_what_a_replay_says(database)

    runner(story())


# -- one position ------------------------------------------------------------------------------------------------------


def test_all_read_models_stand_at_one_position_whenever_one_looks(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(database, EVENTS, teams=7)
    monkeypatch.setattr(engine, "BATCH_EVENTS", 40)
    look = """
        select (select position from tracking), (select count(*) from jobs), (select count(*) from calls),
               (select sum(credits_held) from balances),
               (select count(*) from transactions where transaction_type = 'hold'),
               (select sum(total_jobs) from usage_by_day)
    """

    async def story() -> None:
        seen: set[tuple[int, ...]] = set()
        async with an_engine(database) as leader, await postgres.connect(database) as connection:
            await eventually(lambda: leader.health.leading)
            while not seen or max(seen)[0] < EVENTS:
                row = await (await connection.execute(look)).fetchone()
                assert row is not None
                seen.add(tuple(int(str(number or 0)) for number in row))
        events = await everything(database)

        def those(kind: type[Event], position: int) -> int:
            return sum(isinstance(each.event, kind) for each in events[:position])

        assert len(seen) > 5
        for position, *counted in seen:
            created, holds = those(JobCreated, position), those(CreditsHeld, position)
            held: dict[str, int] = {}
            for each in events[:position]:
                if isinstance(each.event, CreditsHeld) or hasattr(each.event, "held_credits"):
                    held[each.stream] = getattr(each.event, "held_credits", 0)
            accounts = {stream: count for stream, count in held.items() if stream.startswith("credit-")}
            assert [created, those(CallStarted, position), sum(accounts.values()), holds, created] == counted

    runner(story())


# -- read your writes --------------------------------------------------------------------------------------------------


def test_what_one_server_wrote_the_other_shows_at_once(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody looks by itself, and events alone would gather for ever: only who waits and rings the bell is left.
    monkeypatch.setattr(engine, "IDLE_SECONDS", 3600)
    monkeypatch.setattr(engine, "PACE_SECONDS", 3600)

    def add(client: httpx.Client, team: str) -> None:
        assert client.post("/api/credits/add", json={"team_id": team, "amount": 1}).is_success

    with running(database) as first, running(database) as second:
        here, there = first.client(), second.client()
        team = make_team(first, here, credits=0).team_id
        for total in range(1, 41):
            writer, reader = (here, there) if total % 2 else (there, here)
            add(writer, team)
            answer = reader.get("/api/credits/balance", params={"team_id": team})
            assert total == answer.json()["credits_remaining"]
            assert "X-Ledger-Lag" not in answer.headers


def test_a_reader_who_waits_when_the_leader_is_lost_is_told_by_the_next(
    database: str, killer: Killer, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with an_engine(database) as first, an_engine(database) as second, a_ledger(database) as ledger:
            await eventually(lambda: first.health.leading or second.health.leading)
            for credits in range(1, 10):
                outcome = await ledger_write(ledger, credits)
                waiting = [asyncio.create_task(each._progress.reach(outcome, 30)) for each in (first, second)]
                await asyncio.sleep(0)
                killer.kill()
                assert [0, 0] == await asyncio.gather(*waiting)

    async def ledger_write(ledger: Ledger, credits: int) -> int:
        if credits == 1:
            return (await open_with(ledger, credits)).position
        return (await ledger.carry_out(grant_credits, granting(credits), ACCOUNT)).position

    runner(story())


# -- who leads ---------------------------------------------------------------------------------------------------------


def test_one_leads_and_the_next_takes_over_when_its_connection_is_gone(
    database: str, killer: Killer, runner: Run
) -> None:
    async def story() -> None:
        cut_off: list[bool] = []

        async def connect() -> Connection:
            if cut_off:
                raise OSError("the network is gone")
            return await postgres.connect(database)

        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(await postgres.connect(database))
            ledger = await stack.enter_async_context(a_ledger(database))
            first = await stack.enter_async_context(an_engine(database, connect=connect))
            await eventually(lambda: first.health.leading)
            others = [await stack.enter_async_context(an_engine(database)) for _ in range(2)]
            assert 1 == len(await leaders(connection))
            assert [False, False] == [other.health.leading for other in others]
            cut_off.append(True)
            killer.kill()
            position = (await open_with(ledger, 5)).position
            await reached(connection, position)
            assert 1 == len(await leaders(connection))
            await eventually(lambda: not first.health.leading)
            assert 1 == sum(other.health.leading for other in others)

    runner(story())


@pytest.mark.parametrize("moment", ["while it connects", "while it works"])
def test_nothing_ends_an_engine_for_good(database: str, killer: Killer, runner: Run, moment: str) -> None:
    generate(database, EVENTS, teams=7)
    trouble = [True]

    async def connect() -> Connection:
        if trouble and moment == "while it connects":
            raise psycopg.errors.InsufficientPrivilege("permission denied to set role")
        return await postgres.connect(database, name="engine")

    def project(batch: Batch) -> list[Any]:
        if trouble and moment == "while it works":
            killer.kill()  # the connection is lost, and that is not what is told
            raise ZeroDivisionError
        return []

    async def story() -> None:
        async with await postgres.connect(database) as connection:
            strange = Projection("strange", 1, (), "select 1", project)
            async with an_engine(database, (*ALL, strange), connect) as leader:
                await eventually(lambda: leader.health.stopped_by is not None)
                trouble.clear()
                await reached(connection, EVENTS)
                await eventually(lambda: leader.health.stopped_by is None)

    runner(story())


def test_nothing_makes_a_leader_deaf_for_good(database: str, killer: Killer, runner: Run) -> None:
    connections = count(1)

    async def connect() -> Connection:
        if next(connections) == 2:  # the one that would listen
            raise psycopg.errors.InsufficientPrivilege("permission denied to set role")
        return await postgres.connect(database, name="engine")

    async def story() -> None:
        async with an_engine(database, connect=connect):
            await eventually(killer.listeners)

    runner(story())


def test_a_leader_that_hangs_gives_the_lead_back(
    database: str, killer: Killer, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(engine, "IDLE_SECONDS", 0.01)

    async def story() -> None:
        connecting = await postgres.connect(database)
        async with connecting as connection, a_ledger(database) as ledger, an_engine(database):
            await reached(connection, (await open_with(ledger, 5)).position)
            hanging = await eventually(killer.idle_leaders)
            until(lambda: hanging.isdisjoint(killer.leaders()))  # nothing else happens on this event loop
            await reached(connection, (await ledger.carry_out(grant_credits, granting(2), ACCOUNT)).position)

    runner(story())


def test_a_leader_that_hangs_within_a_batch_gives_the_lead_back(
    database: str, killer: Killer, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database) as connection:
        if connection.info.server_version < engine.KNOWS_TRANSACTION_TIMEOUT:
            pytest.skip("this PostgreSQL has no time-out of transactions")
    monkeypatch.setattr(engine, "BATCH_SECONDS", 0.5)
    hung: list[set[int]] = []

    def hang_once(batch: Batch) -> list[Any]:
        if not hung:
            hung.append(killer.leaders())
            until(lambda: hung[0].isdisjoint(killer.leaders()))  # nothing else happens on this event loop
            monkeypatch.setattr(engine, "BATCH_SECONDS", 60)
        return []

    async def story() -> None:
        beside = Projection("beside", 1, (), "select 1", hang_once)
        async with await postgres.connect(database) as connection, a_ledger(database) as ledger:
            position = (await open_with(ledger, 5)).position
            async with an_engine(database, (*ALL, beside)):
                await reached(connection, position)
        assert [1] == [len(each) for each in hung]

    runner(story())


def test_who_follows_tells_of_no_lag_of_its_own(database: str, runner: Run) -> None:
    async def story() -> None:
        async with await postgres.connect(database) as connection:
            await connection.execute("select pg_advisory_lock(%s)", (engine.LEADER_LOCK,))
            metrics.projected(lag_events=7, lag_seconds=3.0)  # said while it led
            async with an_engine(database):
                await eventually(lambda: b"saas_projection_lag_events 0.0" in metrics.render())
                assert b"saas_projection_lag_seconds 0.0" in metrics.render()

    runner(story())


def test_while_leaders_are_killed_no_read_fails_and_none_goes_back_in_time(database: str, killer: Killer) -> None:
    done = threading.Event()

    def write(client: httpx.Client, team: str) -> int:
        written = 0
        while not done.is_set():
            assert client.post("/api/credits/add", json={"team_id": team, "amount": 1}).is_success
            written += 1
        return written

    def read(client: httpx.Client, team: str) -> int:
        last = 0
        while not done.is_set():
            before, last = last, remaining(client, team)
            assert before <= last
        return last

    with running(database) as first, running(database) as second, ThreadPoolExecutor(4) as people:
        team = make_team(first, first.client(), credits=0).team_id
        working = [people.submit(do, server.client(), team) for server in (first, second) for do in (write, read)]
        try:
            for _ in range(6):
                until(lambda: killer.kill() == 1)
                before = remaining(first.client(), team)
                until(lambda before=before: remaining(second.client(), team) > before)  # type: ignore[misc]
        finally:
            done.set()
        written, _, more, _ = (each.result() for each in working)
        assert written + more == remaining(first.client(), team)


def remaining(client: httpx.Client, team: str) -> int:
    answer = client.get("/api/credits/balance", params={"team_id": team})
    assert 200 == answer.status_code
    return int(answer.json()["credits_remaining"])


# -- poison ------------------------------------------------------------------------------------------------------------


async def write_nonsense(connection: Connection) -> int:
    draft = Draft(read={"job-strange": 0})
    draft.add("job-strange", "SomethingStrange", b'{"at":"2026-01-01T00:00:00Z"}')
    return (await journal.append(connection, draft)).position


def test_an_event_that_nobody_can_read_stops_the_read_models_before_it_until_it_can_be_read(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write() -> int:
        async with await postgres.connect(database) as connection:
            return await write_nonsense(connection)

    with running(database, reads_wait_s=0.1) as server, server.client() as admin:
        team = make_team(server, admin, credits=3)
        poison = asyncio.run(write())
        admin.post("/api/credits/add", json={"team_id": team.team_id, "amount": 4})
        wait_for(admin, 503, saying="SomethingStrange")
        # The figures are those of this process, in which the server of another test may be saying that it goes on.
        until(lambda: "saas_projection_stopped 1.0" in admin.get("/metrics").text)
        shown = admin.get("/api/credits/balance", params={"team_id": team.team_id})
        assert 3 == shown.json()["credits_remaining"]
        assert int(shown.headers["X-Ledger-Lag"]) >= 1
        with psycopg.connect(database) as connection:
            assert [(poison - 1,)] == connection.execute("select position from readmodel.tracking").fetchall()

        monkeypatch.setitem(DECODERS, "SomethingStrange", Understood())
        wait_for(admin, 200)
        until(lambda: remaining(admin, team.team_id) == 7)
        until(lambda: "saas_projection_stopped 0.0" in admin.get("/metrics").text)


class Understood:
    def decode(self, state: bytes) -> Event:
        return Event(at=Any)  # type: ignore[arg-type]


def wait_for(client: httpx.Client, status: int, saying: str = "") -> None:
    def is_told() -> bool:
        answer = client.get("/health/ready")
        return answer.status_code == status and saying in answer.text

    until(is_told)


def test_an_event_that_cannot_be_projected_is_never_skipped(database: str, runner: Run) -> None:
    generate(database, EVENTS, teams=7)
    bug = [True]

    def project(batch: Batch) -> list[Any]:
        if bug and any(each.position == 777 for each in batch.events):
            raise ZeroDivisionError
        return []

    async def story() -> None:
        async with await postgres.connect(database) as connection:
            buggy = Projection("buggy", 1, (), "select 1", project)
            async with an_engine(database, (*ALL, buggy)) as leader:
                await reached(connection, 776)
                await eventually(lambda: leader.health.stopped_by == "ZeroDivisionError: ")
                assert 776 == await tracked(connection)
                bug.clear()
                await reached(connection, EVENTS)
                await eventually(lambda: leader.health.stopped_by is None)
        await require_what_a_replay_says(database)

    runner(story())


# -- changed definitions -----------------------------------------------------------------------------------------------

OLD = (JOBS, BALANCES)
NEW = (JOBS, replace(BALANCES, version=2))


async def granted(connection: Connection) -> tuple[int, int]:
    """How many credits the balances know of, and how many the journal."""
    found = await (await connection.execute("select sum(credits_allocated) from balances")).fetchone()
    assert found is not None
    events = [event async for page in journal.read_all(connection, 0) for event in page]
    return int(str(found[0])), sum(each.event.credits for each in events if isinstance(each.event, CreditsGranted))


async def no_more_than_before(connection: Connection) -> int:
    return (await granted(connection))[0]


def test_a_changed_read_model_is_built_beside_while_the_others_go_on_and_the_old_one_answers(
    database: str, runner: Run
) -> None:
    async def story() -> None:
        async with await postgres.connect(database) as connection, a_ledger(database) as ledger:
            async with an_engine(database, OLD):
                await reached(connection, (await open_with(ledger, 5)).position)
            async with await postgres.connect(database) as busy:
                await busy.execute("select pg_advisory_lock(%s)", (REBUILD_LOCK,))
                async with an_engine(database, NEW) as leader:
                    await reached(connection, (await ledger.carry_out(grant_credits, granting(2), ACCOUNT)).position)
                    assert (("balances",), None) == (leader.health.building, leader.health.stopped_by)
                    assert (5, 7) == await granted(connection)
                    await busy.execute("select pg_advisory_unlock_all()")
                    await eventually(lambda: not leader.health.building)
                    assert (7, 7) == await granted(connection)
                    await reached(connection, (await ledger.carry_out(grant_credits, granting(3), ACCOUNT)).position)
                    assert (10, 10) == await granted(connection)

    runner(story())


def test_answers_say_how_far_a_read_model_is_behind_that_is_being_built_anew(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(database) as server, server.client() as admin:
        team = make_team(server, admin, credits=5).team_id
        assert (5, 0) == balance_and_lag(admin, team)
    changed = [replace(each, version=99) if each is BALANCES else each for each in PROJECTIONS]
    monkeypatch.setattr("api.app.PROJECTIONS", tuple(changed))
    with psycopg.connect(database, autocommit=True) as busy:
        busy.execute("select pg_advisory_lock(%s)", (REBUILD_LOCK,))
        with running(database) as leader, running(database) as follower:
            clients = leader.client(), follower.client()
            for client in clients:
                assert (5, 0) == balance_and_lag(client, team)
            for number in (1, 2):
                assert clients[0].post("/api/credits/add", json={"team_id": team, "amount": 1}).is_success
                for client in clients:
                    assert (5, number) == balance_and_lag(client, team)
            busy.execute("select pg_advisory_unlock_all()")
            for client in clients:
                until(lambda client=client: balance_and_lag(client, team) == (7, 0))  # type: ignore[misc]


def balance_and_lag(client: httpx.Client, team: str) -> tuple[int, int]:
    answer = client.get("/api/credits/balance", params={"team_id": team})
    return answer.json()["credits_remaining"], int(answer.headers.get("X-Ledger-Lag", 0))


def test_who_comes_back_with_an_older_definition_builds_anew_what_stood_still(database: str, runner: Run) -> None:
    async def story() -> None:
        async with await postgres.connect(database) as connection, a_ledger(database) as ledger:
            position = (await open_with(ledger, 1)).position
            for read_models in (OLD, NEW, OLD[:1], NEW, OLD):
                async with an_engine(database, read_models) as leader:
                    await reached(connection, position)
                    await eventually(lambda leader=leader: leader.health.leading)  # type: ignore[misc]
                    await eventually(lambda leader=leader: not leader.health.building)  # type: ignore[misc]
                    position = (await ledger.carry_out(grant_credits, granting(1), ACCOUNT)).position
                    await reached(connection, position)
                    if len(read_models) > 1:
                        known, written = await granted(connection)
                        assert written == known

    runner(story())


def test_who_looks_up_what_is_behind_is_built_anew_with_it(database: str, runner: Run) -> None:
    generate(database, EVENTS, teams=7)

    async def story() -> None:
        async with await postgres.connect(database) as connection:
            async with an_engine(database):
                await reached(connection, EVENTS)
            changed = tuple(replace(each, version=9) if each.name == "jobs" else each for each in ALL)
            async with an_engine(database, changed) as leader:
                await eventually(lambda: leader.health.leading)
                await eventually(lambda: not leader.health.building)
            await eventually(partial(nobody_holds, connection, REBUILD_LOCK))
            assert 0 == (await rebuild_all(connection, changed, lambda reached, until: None)).differing_rows

    runner(story())


def test_a_changed_definition_that_breaks_is_told_and_keeps_nobody_else(database: str, runner: Run) -> None:
    bug = [True]

    def project(batch: Batch) -> Any:
        if bug:
            raise ZeroDivisionError
        return BALANCES.project(batch)

    async def story() -> None:
        async with await postgres.connect(database) as connection, a_ledger(database) as ledger:
            async with an_engine(database, OLD):
                await reached(connection, (await open_with(ledger, 5)).position)
            async with an_engine(database, (JOBS, replace(BALANCES, version=2, project=project))) as leader:
                await eventually(lambda: leader.health.stopped_by == "ZeroDivisionError: ")
                await reached(connection, (await ledger.carry_out(grant_credits, granting(2), ACCOUNT)).position)
                assert leader.health.stopped_by is not None
                bug.clear()
                await eventually(lambda: leader.health.stopped_by is None)
                assert (7, 7) == await granted(connection)

    runner(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leader_killed_during_a_rebuild_leaves_it_to_the_next(
    database: str, killer: Killer, runner: Run, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    generate(database, EVENTS, teams=7, seed=seed)
    monkeypatch.setattr("projections.rebuild.BATCH_EVENTS", 100)
    monkeypatch.setattr("projections.rebuild.NEARLY", 10)
    dice = random.Random(seed)

    async def story() -> None:
        async with await postgres.connect(database) as connection:
            async with an_engine(database):
                await reached(connection, EVENTS)
            changed = tuple(replace(each, version=9) for each in ALL)
            async with an_engine(database, changed) as first, an_engine(database, changed) as second:
                for _ in range(6):
                    await asyncio.sleep(dice.random() * 0.2)
                    killer.kill(dice.choice([engine.LEADER_LOCK, REBUILD_LOCK]))
                    assert EVENTS == await tracked(connection)
                    await connection.execute("select count(*) from jobs")
                await eventually(
                    lambda: any(each.health.leading and not each.health.building for each in (first, second))
                )
            await eventually(partial(nobody_holds, connection, REBUILD_LOCK))
            assert 0 == (await rebuild_all(connection, changed, lambda reached, until: None)).differing_rows

    runner(story())


# -- rebuilding --------------------------------------------------------------------------------------------------------


def test_while_a_read_model_is_rebuilt_no_read_fails_and_none_goes_back_in_time(database: str, runner: Run) -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            pool = await postgres.open_pool(database, size=6)
            stack.push_async_callback(pool.close)
            leader = await stack.enter_async_context(an_engine(database))
            ledger = await stack.enter_async_context(a_ledger(database, appended=leader.wake))
            await leader._progress.reach((await open_with(ledger, 1)).position, 30)
            ends = asyncio.Event()
            reads = 0

            async def write() -> None:
                while not ends.is_set():
                    await ledger.carry_out(grant_credits, granting(1), ACCOUNT)

            async def read() -> None:
                nonlocal reads
                last = 0
                while not ends.is_set():
                    async with pool.connection() as connection:
                        found = await balances.one(connection, "research")
                    assert found is not None
                    assert found.credits_allocated >= last
                    last = found.credits_allocated
                    reads += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(write())
                    group.create_task(read())
                for _ in range(4):
                    before = reads
                    async with await postgres.connect(database) as connection:
                        assert 0 == (await rebuild(connection, BALANCES, lambda reached, until: None)).differing_rows
                    await eventually(lambda before=before: reads > before + 20)  # type: ignore[misc]
                ends.set()
        async with await postgres.connect(database) as connection:
            account: list[Recorded] = await journal.history(connection, ACCOUNT)
            state: Any = None
            for each in account:
                state = CREDIT.evolve(state, each.event)
            async with an_engine(database):
                await reached(connection, account[-1].position)
            assert BalanceRecord.of(state) == await balances.one(connection, "research")

    runner(story())


def test_a_rebuild_waits_for_a_long_read_and_keeps_no_other_reader_waiting(database: str, runner: Run) -> None:
    async def story() -> None:
        async with await postgres.connect(database) as connection, a_ledger(database) as ledger:
            async with an_engine(database):
                await reached(connection, (await open_with(ledger, 5)).position)
            async with await postgres.connect(database) as patient, await postgres.connect(database) as building:
                async with patient.transaction():
                    await balances.one(patient, "research")
                    rebuilding = asyncio.create_task(rebuild(building, BALANCES, lambda reached, until: None))
                    for _ in range(100):
                        assert await balances.one(connection, "research") is not None
                        await asyncio.sleep(0.01)
                    assert not rebuilding.done()
                assert 0 == (await rebuilding).differing_rows

    runner(story())
