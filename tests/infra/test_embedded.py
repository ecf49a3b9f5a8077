"""The embedded server: shared, private, and back after every SIGKILL."""

import asyncio
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from infra.embedded import LONGEST_SOCKET_PATH, THROWAWAY_SETTINGS, DatabaseUnusable, EmbeddedServer
from tests.waiting import until

START_AND_WAIT = """
import sys
from pathlib import Path
from infra.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
server.start()
print(server.pid, server.dsn, flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """A server with its everyday settings; its cluster is made once for this file."""
    server = EmbeddedServer(data_dir)
    server.start()
    yield server
    server.stop()


def kill(server: EmbeddedServer) -> None:
    """SIGKILL the postmaster and wait until it is gone, or a zombie."""
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    postmaster.send_signal(signal.SIGKILL)
    with suppress(psutil.NoSuchProcess):
        until(lambda: postmaster.status() == psutil.STATUS_ZOMBIE)


def kill_and_wait_for_another(server: EmbeddedServer) -> None:
    killed = server.pid
    kill(server)
    until(lambda: server.pid != killed and server.alive())


def ask(server: EmbeddedServer, query: str) -> Any:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        answer = connection.execute(query.encode())
        return answer.fetchone()[0] if answer.description else None


def test_it_is_postgresql_18_with_settings_that_lose_nothing(server: EmbeddedServer):
    assert ask(server, "SHOW server_version_num").startswith("18")
    assert ask(server, "SHOW fsync") == "on"
    assert ask(server, "SHOW synchronous_commit") == "on"
    assert ask(server, "SHOW full_page_writes") == "on"
    assert ask(server, "SHOW data_checksums") == "on"


def test_it_is_reached_as_an_ordinary_role_that_owns_its_database(server: EmbeddedServer):
    assert ask(server, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    assert ask(server, "SELECT rolcreaterole FROM pg_roles WHERE rolname = current_user") is True
    assert (
        ask(server, "SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()")
        == "saas_litellm"
    )


def test_it_is_reached_through_a_socket_in_a_folder_that_only_its_owner_enters(server: EmbeddedServer):
    assert ask(server, "SHOW listen_addresses") == ""
    assert stat.S_IMODE(server.home.stat().st_mode) == 0o700


def test_its_address_stands_in_a_file(server: EmbeddedServer):
    assert (server.home / "dsn").read_text().strip() == server.dsn


def test_it_comes_back_after_a_sigkill_with_all_that_was_committed(server: EmbeddedServer):
    ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    before = server.dsn

    kill(server)
    assert not server.alive()
    server.start()

    assert server.dsn == before
    assert ask(server, "SELECT answer FROM kept") == 42
    ask(server, "DROP TABLE kept")


def test_it_is_started_again_while_it_is_supervised(server: EmbeddedServer, runner: Callable[..., Any]):
    async def story() -> None:
        watch = asyncio.create_task(server.supervise(every_seconds=0.02))
        for _ in range(2):
            await asyncio.to_thread(kill_and_wait_for_another, server)
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch

    runner(story())

    assert ask(server, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["postmaster.pid", ".s.PGSQL.5432.lock"])
def test_the_lock_file_of_a_zombie_does_not_keep_it_from_starting(server: EmbeddedServer, name: str):
    server.stop()
    zombie = subprocess.Popen(["true"])
    until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE)
    left = server.home / ("cluster" if name == "postmaster.pid" else ".") / name
    left.write_text(f"{zombie.pid}\n{server.home / 'cluster'}\n0\n5432\n{server.home}\n\n")

    server.start()

    assert server.alive()
    assert zombie.wait() == 0


def test_a_process_that_got_the_number_of_a_dead_postmaster_is_not_taken_for_it(server: EmbeddedServer):
    server.stop()
    (server.home / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n{server.home}\n0\n5432\n\n\n")

    server.start()

    assert server.alive()


def test_a_postmaster_that_has_just_been_born_is_not_taken_for_a_dead_one(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
):
    server.stop()
    looks, tell = count(), psutil.Process.cmdline
    # Where the kernel exchanges one program for the next, the command line is empty for a moment.
    monkeypatch.setattr(psutil.Process, "cmdline", lambda process: tell(process) if next(looks) > 2 else [])

    server.start()

    assert server.alive()


def test_the_last_one_to_leave_stops_it(server: EmbeddedServer, data_dir: Path):
    other = EmbeddedServer(data_dir)
    other.start()
    assert other.pid == server.pid

    server.stop()
    assert other.alive()

    other.stop()
    assert not other.alive()


def test_processes_that_start_at_once_share_one_server(data_dir: Path):
    command = [sys.executable, "-c", START_AND_WAIT, str(data_dir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    starters = [subprocess.Popen(command, **pipes) for _ in range(3)]
    try:
        told = {starter.stdout.readline() for starter in starters}
        assert len(told) == 1

        starters[0].kill()
        starters[1].communicate()
        assert EmbeddedServer(data_dir).alive()

        starters[2].communicate()
        assert not EmbeddedServer(data_dir).alive()
    finally:
        for starter in starters:
            starter.kill()
            starter.communicate()


def test_a_server_that_outlived_its_starter_is_found_and_stopped(data_dir: Path):
    command = [sys.executable, "-c", START_AND_WAIT, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        pid = int(starter.stdout.readline().split()[0])
        starter.kill()

    heir = EmbeddedServer(data_dir)
    heir.start()
    assert heir.pid == pid

    heir.stop()
    assert not heir.alive()


def test_a_folder_whose_path_is_too_long_for_a_socket_is_no_obstacle(tmp_path: Path):
    deep = tmp_path / ("deep" * 30)
    server = EmbeddedServer(deep, THROWAWAY_SETTINGS)
    server.start()
    try:
        socket_dir = Path(conninfo_to_dict(server.dsn)["host"])
        assert len(str(socket_dir / ".s.PGSQL.5432")) < LONGEST_SOCKET_PATH
        assert ask(EmbeddedServer(deep), "SELECT 1") == 1
    finally:
        server.stop()
    assert not socket_dir.exists()


def test_an_initialisation_that_died_half_way_is_done_again(tmp_path: Path):
    server = EmbeddedServer(tmp_path, THROWAWAY_SETTINGS)
    half_made = server.home / "cluster.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")

    server.start()
    server.stop()

    assert not half_made.exists()


def test_a_server_that_cannot_start_says_why_in_one_line(data_dir: Path):
    broken = EmbeddedServer(data_dir, {"shared_buffers": "a lot"})

    with pytest.raises(DatabaseUnusable, match="shared_buffers") as refusal:
        broken.start()

    assert "\n" not in str(refusal.value)
    broken.stop()


@pytest.mark.proof
def test_no_commit_is_lost_over_many_sigkills(server: EmbeddedServer):
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    chance = random.Random(seed)
    rounds = 5 if os.environ.get("PROOFS") == "short" else 20
    print(f"seed {seed}, {rounds} rounds")
    ask(server, "CREATE TABLE acknowledged (n int)")
    acknowledged = 0

    for _ in range(rounds):
        deadline = time.monotonic() + chance.uniform(0.01, 0.3)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            while time.monotonic() < deadline:
                connection.execute("INSERT INTO acknowledged VALUES (%s)", [acknowledged])
                acknowledged += 1
            kill(server)
        server.start()
        assert ask(server, "SELECT count(*) FROM acknowledged") == acknowledged

    ask(server, "DROP TABLE acknowledged")
