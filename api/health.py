"""Whether the process lives, and whether it can do its work."""

from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import msgspec
import psycopg
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from msgspec import UNSET, UnsetType

from api.answers import reply
from api.caller import admin_only
from api.house import House
from api.problems import problem
from infra import metrics
from infra.version import SERVICE, VERSION

POSTGRES_SECONDS = 2.0

_OLDEST = """
select event.state
from readmodel.tracking
join journal.events as event on event.notification_id = tracking.position + 1
"""


class _Written(msgspec.Struct):
    at: datetime


class Health(msgspec.Struct):
    status: str
    service: str
    version: str


class Check(msgspec.Struct):
    status: str
    lag_seconds: float | UnsetType = UNSET


class Readiness(msgspec.Struct):
    status: str
    checks: dict[str, Check]


HEALTHY = Health("healthy", SERVICE, VERSION)


class HealthController(Controller):
    tags = ["Health"]

    @get(["/health", "/api/health", "/api/health-check"])
    async def health(self) -> Response[Health]:
        """The process answers. Touches nothing else."""
        return reply(HEALTHY)

    @get(["/health/ready", "/health/db"])
    async def ready(self, house: NamedDependency[House]) -> Response[Any]:
        """The process can do its work: the database answers and the read models keep up."""
        try:
            lag = await _lag_seconds(house)
        except (psycopg.OperationalError, psycopg.InterfaceError, OSError):
            return problem("not_ready", {"reasons": ["postgres is out of reach"]})
        reasons = []
        if stopped_by := house.engine.health.stopped_by:
            reasons.append(f"projections stopped: {stopped_by}")
        if lag is None:
            reasons.append("projections have not begun")
        elif lag > house.settings.ready_max_lag_seconds:
            reasons.append(f"projections lag {lag:.0f} s behind")
        if lag is None or reasons:
            return problem("not_ready", {"reasons": reasons})
        checks = {
            "postgres": Check("ok"),
            "redis": Check(await house.limits.ping()),
            "projections": Check("ok", round(lag, 3)),
        }
        return reply(Readiness("ready", checks))


async def from_here_or_admin(request: Request[Any, Any, Any]) -> None:
    """Whoever asks from this machine, and administrators from anywhere."""
    if request.client is None or not _is_this_machine(request.client.host):
        await admin_only(request)


def _is_this_machine(host: str) -> bool:
    """Whether an address is of the machine itself; what a proxy forwards need not be an address (RFC 7239, 6)."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class MetricsController(Controller):
    tags = ["Health"]

    @get("/metrics", media_type="text/plain", before_request=from_here_or_admin)
    async def metrics(self) -> Response[bytes]:
        """What Prometheus collects."""
        return Response(metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})


async def _lag_seconds(house: House) -> float | None:
    """How long the oldest event that the read models do not show has been on record, whichever process projects;
    None if they have never been made."""
    async with house.pool.connection(timeout=POSTGRES_SECONDS) as connection:
        try:
            oldest = await (await connection.execute(_OLDEST)).fetchone()
        except psycopg.errors.UndefinedTable:
            return None
    if oldest is None:
        return 0.0
    written = msgspec.json.decode(oldest[0], type=_Written)
    return max(0.0, (datetime.now(UTC) - written.at).total_seconds())
