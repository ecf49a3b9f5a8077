"""Back from a dump, and back to a moment, with the commands of docs/operations.md as they are printed there."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from infra import postgres
from infra.embedded import MEMORY, _unprivileged_account, programs
from tests.api.conftest import TestTeam, make_team, running
from tests.waiting import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
START = 'pg_ctl start -l server.log -o "-c listen_addresses= -c unix_socket_directories=$PWD -c fsync=off"'


def block(name: str) -> str:
    """The commands of the page that stand below this mark."""
    found = re.search(rf"<!-- {name} -->\n```(?:bash|sql)\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@dataclass(frozen=True)
class Operator:
    """Somebody with a shell, who has the account of PostgreSQL and a folder of that account."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, commands: str, *, as_postgres: bool = True, **variables: str) -> str:
        """Runs what a page says, and gives what it printed."""
        account: dict[str, Any] = {}
        if as_postgres and os.geteuid() == 0:
            user, group = _unprivileged_account()
            account = {"user": user, "group": group, "extra_groups": []}
        path = f"{programs()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        log = self.home / "commands.log"
        with log.open("a+b") as out:  # a pipe would stay open for as long as the server runs that they start
            begin = out.seek(0, os.SEEK_END)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", commands],
                env={**self.environment, **variables, "PATH": path},
                cwd=self.home,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
                **account,
            )
            out.seek(begin)
            said = out.read().decode()
        logs = "".join(log.read_text() for log in self.home.glob("**/server.log"))
        assert done.returncode == 0, said + logs
        return said

    def address(self, folder: str, user: str) -> str:
        database = "postgres" if user == "postgres" else user
        return f"postgresql://{user}@/{database}?host={self.home / folder}"


@pytest.fixture
def operator() -> Iterator[Operator]:
    with tempfile.TemporaryDirectory(prefix="restore-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        home = Path(folder)
        if os.geteuid() == 0:
            os.chown(home, *_unprivileged_account())
        yield Operator(
            home,
            {
                "BACKUP": f"{home}/backup",
                "BASE": f"{home}/base",
                "DUMP": f"{home}/dump",
                "RESTORED": f"{home}/restored",
                "PGDATA": f"{home}/primary",
            },
        )


@contextmanager
def primary(operator: Operator, *, archives: bool) -> Iterator[str]:
    """A PostgreSQL as it comes, with the role and the database of the page, and archiving as the page says."""
    superuser = operator.address(".", "postgres")
    operator.run(f"initdb -U postgres --auth trust --encoding UTF8 --no-sync\n{START}")
    try:
        if archives:
            operator.run(f"{block('archive')}\npg_ctl stop\n{START}", SUPERUSER=superuser)
        tell(superuser, block("owner"))
        yield superuser
    finally:
        operator.run("pg_ctl stop")  # which sends the rest to the archive


def tell(dsn: str, statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in filter(str.strip, statements.split(";")):
            connection.execute(statement.encode())


def test_a_journal_is_loaded_from_a_dump_where_nothing_was_before(operator: Operator) -> None:
    dsn = operator.address(".", "saas_litellm")
    with primary(operator, archives=False):
        postgres.migrate(dsn)
        with running(dsn) as server, server.client() as admin:
            team = make_team(server, admin, credits=10)
            head = noted_down(admin)
            operator.run(block("dump"), DATABASE_URL=dsn)
            admin.post("/api/credits/add", json={"team_id": team.team_id, "amount": 1_000_000})
    operator.run('rm -r "$PGDATA"')

    with primary(operator, archives=False) as superuser:
        tell(superuser, block("roles"))
        operator.run(block("load"), RESTORED_URL=dsn)
        said = operator.run(block("verify"), as_postgres=False, RESTORED_URL=dsn, NOTED=head)
        assert said.endswith(f"to note down: {head}\n")
        assert "everything agrees" in said
        require_that_it_works(dsn, team, credits=10)


def test_a_journal_is_brought_back_to_a_moment_and_goes_on_from_there(operator: Operator) -> None:
    with primary(operator, archives=True) as superuser:
        dsn = operator.address(".", "saas_litellm")
        postgres.migrate(dsn)
        with running(dsn) as server, server.client() as admin:
            team = make_team(server, admin, credits=10)
            operator.run(block("base backup"), SUPERUSER=superuser)
            team.client.post(f"/api/jobs/{team.job()}/complete", json={"status": "completed"})
            assert 9 == team.client.get("/api/credits/balance").json()["credits_remaining"]
            head = noted_down(admin)
            moment = str(clock(dsn))
            admin.post("/api/credits/add", json={"team_id": team.team_id, "amount": 1_000_000})

    try:
        restored = operator.address("restored", "saas_litellm")
        operator.run(block("restore"), MOMENT=moment, RESTORED_URL=restored)
        said = operator.run(block("verify"), as_postgres=False, RESTORED_URL=restored, NOTED=head)
        assert said.endswith(f"to note down: {head}\n")
        assert "everything agrees" in said

        operator.run(block("promote"))
        until(lambda: not recovering(restored))
        require_that_it_works(restored, team, credits=9)
    finally:
        operator.run('test ! -f "$RESTORED/postmaster.pid" || pg_ctl stop --mode immediate -D "$RESTORED"')


def noted_down(admin: httpx.Client) -> str:
    """What an auditor notes down."""
    head = admin.get("/api/audit/head").json()
    return f"{head['position']}:{head['hash']}"


def require_that_it_works(dsn: str, team: TestTeam, credits: int) -> None:
    """A server on this database knows what the team has, and goes on from there."""
    with running(dsn) as server, server.client(team.key) as client:
        balance = "/api/credits/balance"
        assert credits == client.get(balance).json()["credits_remaining"]
        job = client.post("/api/jobs/create", json={"team_id": team.team_id, "job_type": "test"}).json()["job_id"]
        client.post(f"/api/jobs/{job}/complete", json={"status": "completed"})
        assert credits - 1 == client.get(balance).json()["credits_remaining"]


def clock(dsn: str) -> Any:
    """What time PostgreSQL says it is."""
    with psycopg.connect(dsn) as connection:
        [(now,)] = connection.execute("select clock_timestamp()").fetchall()
        return now


def recovering(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        [(recovering,)] = connection.execute("select pg_is_in_recovery()").fetchall()
        return bool(recovering)
