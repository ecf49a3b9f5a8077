"""`saas-litellm serve` as anybody starts it: a process of its own, an embedded PostgreSQL, a free port."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import psutil

from infra.embedded import EmbeddedServer
from infra.settings import Settings
from tests.api.conftest import MASTER_KEY, Server
from tests.waiting import PATIENCE_SECONDS, free_port, until

SETTINGS = {setting.encode_name for setting in msgspec.structs.fields(Settings)}


@contextmanager
def fresh_data_dir() -> Iterator[Path]:
    """A DATA_DIR that is not there yet, outside of pytest's own folders: each pytest run of root closes these to
    everybody else, also to the PostgreSQL of another run."""
    with tempfile.TemporaryDirectory(prefix="saas-litellm-test-") as folder:
        yield Path(folder) / "data"


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """What a process of ours is started with; nothing of the settings that the tests themselves run with."""
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    chosen = {
        "DATA_DIR": str(data_dir),
        "MASTER_KEY": MASTER_KEY,
        "DEFAULT_RPM": "0",
        "DEFAULT_TPM": "0",
        "LOG_LEVEL": "warning",
    }
    return inherited | chosen | settings


def run(data_dir: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        env=environment(data_dir, **settings),
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True, kw_only=True)
class Served(Server):
    """A server with a process of its own."""

    process: subprocess.Popen[bytes]
    data_dir: Path

    def wait_until_healthy(self) -> None:
        def healthy() -> bool:
            assert self.process.poll() is None, "the server ended"
            try:
                return httpx.get(f"{self.url}/health/ready", verify=False).is_success
            except httpx.TransportError:
                return False

        until(healthy)

    def stop(self) -> int:
        """Ends it as an operator would; gives its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def kill_everything(self) -> None:
        """SIGKILL for the server, its workers and PostgreSQL, as a power cut would have it."""
        postmaster = EmbeddedServer(self.data_dir).pid
        assert postmaster is not None
        killed = [psutil.Process(postmaster), psutil.Process(self.process.pid)]
        killed += [child for process in killed for child in process.children(recursive=True)]
        for process in killed:
            process.kill()
        self.process.wait(PATIENCE_SECONDS)
        psutil.wait_procs(killed, PATIENCE_SECONDS)

    def kill(self) -> None:
        """SIGKILL for the server and its workers; PostgreSQL goes on."""
        postmaster = EmbeddedServer(self.data_dir).pid
        killed = [psutil.Process(self.process.pid)]
        killed += [
            child
            for child in killed[0].children(recursive=True)
            if postmaster not in (child.pid, *(parent.pid for parent in child.parents()))
        ]
        for process in killed:
            process.kill()
        self.process.wait(PATIENCE_SECONDS)
        psutil.wait_procs(killed, PATIENCE_SECONDS)


def start(data_dir: Path, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
    """Start a command that stays."""
    return subprocess.Popen([sys.executable, "-m", "api.cli", *arguments], env=environment(data_dir, **settings))


@contextmanager
def serving(data_dir: Path, *arguments: str, **settings: str) -> Iterator[Served]:
    """A healthy server for as long as the block, unless the block ends it."""
    port = free_port()
    process = start(data_dir, "serve", *arguments, PORT=str(port), **settings)
    served = Served(
        url=f"http://127.0.0.1:{port}", dsn=EmbeddedServer(data_dir).dsn, process=process, data_dir=data_dir
    )
    try:
        served.wait_until_healthy()
        yield served
    finally:
        for client in served.clients:
            client.close()
        if process.poll() is None:
            served.stop()
