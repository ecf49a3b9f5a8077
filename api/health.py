"""Whether the process lives, and whether it can do its work."""

from ipaddress import ip_address
from typing import Any

import msgspec
import psycopg
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from msgspec import UNSET, UnsetType
from psycopg_pool import PoolTimeout

from api.answers import reply
from api.caller import Connection, admin_only
from api.house import House
from api.problems import problem
from infra import metrics
from infra.version import SERVICE, VERSION


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
        health = house.engine.health
        reasons = []
        if not await _postgres_answers(house):
            reasons.append("postgres is out of reach")
        if health.stopped_by:
            reasons.append(f"projections stopped: {health.stopped_by}")
        if health.lag_seconds > house.settings.ready_max_lag_seconds:
            reasons.append(f"projections lag {health.lag_seconds:.0f} s behind")
        if reasons:
            return problem("not_ready", {"reasons": reasons})
        checks = {
            "postgres": Check("ok"),
            "redis": Check(await house.limits.ping()),
            "projections": Check("ok", round(health.lag_seconds, 3)),
        }
        return reply(Readiness("ready", checks))


async def from_here_or_admin(connection: Connection, handler: BaseRouteHandler) -> None:
    """Whoever asks from this machine, and administrators from anywhere."""
    if connection.client is None or not ip_address(connection.client.host).is_loopback:
        await admin_only(connection, handler)


class MetricsController(Controller):
    tags = ["Health"]
    guards = [from_here_or_admin]

    @get("/metrics", media_type="text/plain")
    async def metrics(self) -> Response[bytes]:
        """What Prometheus collects."""
        return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)


async def _postgres_answers(house: House) -> bool:
    try:
        async with house.pool.connection(timeout=2) as connection:
            await connection.execute("select 1")
    except (psycopg.Error, PoolTimeout, OSError):
        return False
    return True
