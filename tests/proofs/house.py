"""A whole server to be hard on: a process of its own, its embedded database, and the means to kill all of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import psycopg

from infra.embedded import EmbeddedServer
from tests.waiting import PATIENCE_SECONDS, free_port


@dataclass
class House:
    """`saas-litellm serve` on a folder of its own, with the work in the background or without."""

    data_dir: Path
    workers: int = 1
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    api_only: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        return self.settings.get("DATABASE_URL") or EmbeddedServer(self.data_dir).dsn

    @property
    def master_key(self) -> str:
        return self.settings.get("MASTER_KEY") or (self.data_dir / "master-key").read_text().strip()

    @property
    def _options(self) -> list[str]:
        return ["--api-only"] if self.api_only else []

    def start(self) -> None:
        """Starts the server and waits until it is ready."""
        environment = {
            **os.environ,
            "DATA_DIR": str(self.data_dir),
            "PORT": str(self.port),
            "WORKERS": str(self.workers),
            "LOG_LEVEL": "warning",
            "DEFAULT_RPM": "0",
            "DEFAULT_TPM": "0",
            **self.settings,
        }
        for name in ("DATABASE_URL", "TEST_DATABASE_URL", "REDIS_URL"):
            if name not in self.settings:
                environment.pop(name, None)
        with (self.data_dir / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from api.cli import main; main()", "serve", *self._options],
                env=environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=2, verify=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, (self.data_dir / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self.data_dir / "server.log").read_text()[-3000:]
            time.sleep(0.05)

    def kill_everything(self) -> None:
        """SIGKILL to the server, its workers and its database, all at once."""
        assert self.process is not None
        victims = [psutil.Process(self.process.pid)]
        if "DATABASE_URL" not in self.settings:
            postmaster = EmbeddedServer(self.data_dir).pid
            if postmaster is not None and psutil.pid_exists(postmaster):
                victims.append(psutil.Process(postmaster))
        everyone = [*victims, *(child for victim in victims for child in victim.children(recursive=True))]
        for victim in everyone:
            try:
                victim.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.wait(10)

    def stop(self) -> None:
        """SIGTERM, and waits for the end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Asks the journal directly."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return list(connection.execute(statement.encode(), parameters or None).fetchall())

    def admin(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.master_key}"}, timeout=30)


@contextmanager
def a_house(data_dir: Path, *, workers: int = 1, **settings: str) -> Iterator[House]:
    """A running server, stopped at the end whatever happened to it."""
    house = House(data_dir, workers, settings)
    try:
        house.start()
        yield house
    finally:
        house.stop()
        server = EmbeddedServer(data_dir)
        if "DATABASE_URL" not in settings and server.alive():
            server.start()  # attached once more, so that the last one to leave stops it
            server.stop()


def make_team(house: House, *, credits: int, model: str = "chat", **fields: object) -> tuple[str, str]:
    """An organization, a model that needs no provider, and a team; gives the team's id and key."""
    with house.admin() as admin:
        name = f"team-{time.time_ns()}"
        for path, body in (
            ("/api/organizations/create", {"organization_id": f"org-{name}", "name": "Proof"}),
            (
                "/api/model-aliases/create",
                {"alias": model, "litellm_model": "demo/echo", "pricing_input": 2.5, "pricing_output": 10},
            ),
            (
                "/api/teams/create",
                {
                    "organization_id": f"org-{name}",
                    "team_id": name,
                    "credits_allocated": credits,
                    "default_model": model,
                    **fields,
                },
            ),
        ):
            answer = admin.post(path, json=body)
            assert answer.status_code == 200 or "already_exists" in answer.text, answer.text
        return name, answer.json()["virtual_key"]
