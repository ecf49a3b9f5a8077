"""The one place where things are built and joined."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from litestar import Litestar, Request
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, ControllerRouterHandler

from api.access_groups import AccessGroupsController
from api.admin_audit_log import AdminAuditLogController
from api.admin_users import AdminUsersController
from api.audit import AuditController
from api.bodies import StrictBody
from api.caller import the_caller
from api.chat_completions import ChatCompletionsController, unrouted
from api.chores import chores
from api.create_and_call import CreateAndCallController
from api.credits import CreditsController
from api.edge import Edge
from api.health import HealthController, MetricsController
from api.house import House
from api.idempotency import Replay, replay
from api.jobs import JobsController, TeamJobsController
from api.keys import KeysController
from api.listing import DEPENDENCIES as LISTING
from api.llm_calls import LlmCallsController
from api.model_aliases import ModelAliasesController
from api.model_groups import ModelGroupsController
from api.openapi import document
from api.organizations import OrganizationsController
from api.pages import PagesController
from api.problems import HANDLERS
from api.provider_credentials import ProviderCredentialsController
from api.receipts import ReceiptsController
from api.reconciliation import ReconciliationController
from api.reports import ReportsController
from api.sessions import SessionsController
from api.statements import StatementsController
from api.stats import StatsController
from api.targets import Targets
from api.team_jobs import TeamJobRowsController
from api.teams import TeamsController
from api.usage import UsageController
from api.webhooks import WebhooksController
from infra import postgres
from infra.background import Background, cancelled
from infra.conversations import Conversations
from infra.embedded import EmbeddedServer
from infra.ledger import Ledger
from infra.limits import Limits
from infra.llm import Models
from infra.passwords import Passwords
from infra.presence import Presence
from infra.receipts import Notary
from infra.scheduler import Scheduler
from infra.secrets import KeyRing, SecretStore
from infra.settings import Settings
from infra.tokens import Tokens
from infra.webhooks import Sender
from projections.alias_usage import ALIAS_USAGE
from projections.audit_log import AUDIT_LOG
from projections.balances import BALANCES
from projections.calls import CALLS
from projections.credit_days import CREDIT_DAYS
from projections.due import DUE
from projections.engine import Engine, Progress, Stand, stand
from projections.group_teams import GROUP_TEAMS
from projections.jobs import JOBS
from projections.keys import KEYS
from projections.organizations import ORGANIZATIONS
from projections.projection import Projection
from projections.provider_credentials import PROVIDER_CREDENTIALS
from projections.provider_days import PROVIDER_DAYS
from projections.statements import STATEMENTS
from projections.teams import TEAMS
from projections.transactions import TRANSACTIONS
from projections.usage import USAGE
from projections.webhook_deliveries import webhook_deliveries

PROJECTIONS: Sequence[Projection] = (
    JOBS,
    CALLS,
    BALANCES,
    TEAMS,
    KEYS,
    TRANSACTIONS,
    DUE,
    CREDIT_DAYS,
    GROUP_TEAMS,
    ALIAS_USAGE,
    PROVIDER_CREDENTIALS,
    ORGANIZATIONS,
    USAGE,
    AUDIT_LOG,
    STATEMENTS,
    PROVIDER_DAYS,
)


def read_models(settings: Settings) -> Sequence[Projection]:
    """All read models; a batch is projected in this order."""
    return (*PROJECTIONS, webhook_deliveries(settings.credits_low_thresholds))


CONTROLLERS: Sequence[ControllerRouterHandler] = (
    HealthController,
    MetricsController,
    PagesController,
    CreditsController,
    StatsController,
    ReportsController,
    StatementsController,
    ReconciliationController,
    OrganizationsController,
    TeamsController,
    KeysController,
    UsageController,
    JobsController,
    TeamJobsController,
    TeamJobRowsController,
    CreateAndCallController,
    LlmCallsController,
    ChatCompletionsController,
    ModelAliasesController,
    AccessGroupsController,
    ModelGroupsController,
    ProviderCredentialsController,
    SessionsController,
    AdminUsersController,
    AdminAuditLogController,
    AuditController,
    ReceiptsController,
    WebhooksController,
)

EXPOSED_HEADERS = [
    "X-Request-Id",
    "X-Total-Count",
    "X-Job-Id",
    "X-Call-Id",
    "X-Ledger-Position",
    "X-Ledger-Lag",
    "Idempotent-Replayed",
    "Retry-After",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
]


def _the_house(request: Request[Any, Any, Any]) -> House:
    house: House = request.app.state.house
    return house


# What the controllers need around them, whether they are served or described.
SURROUNDINGS: dict[str, Any] = {
    "dependencies": {
        "house": Provide(_the_house, sync_to_thread=False),
        "caller": Provide(the_caller, sync_to_thread=False),
        **LISTING,
    },
    "dto": StrictBody,
    "return_dto": None,
}


def described() -> dict[str, Any]:
    """The OpenAPI document of everything that is served."""
    return document(CONTROLLERS, **SURROUNDINGS)


def create_app(
    settings: Settings, dsn: str, *, works: bool = True, opened: Callable[[House], None] = lambda house: None
) -> ASGIApp:
    """The application of one process.

    Args:
        settings: what to run with.
        dsn: the PostgreSQL to work on, migrated.
        works: whether it also does the background work, or leaves that to others.
        opened: called on the event loop before anybody is let in.
    """

    @asynccontextmanager
    async def living(app: Litestar) -> AsyncIterator[None]:
        async with open_house(settings, dsn, works=works) as house:
            app.state.house = house
            opened(house)
            yield

    app = Litestar(
        route_handlers=list(CONTROLLERS),
        lifespan=[living],
        exception_handlers={**HANDLERS, HTTPException: unrouted, Replay: replay},
        cors_config=CORSConfig(
            allow_origins=list(settings.cors_origins),
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        ),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # the edge measures bodies
        **SURROUNDINGS,
    )
    return Edge(app, settings.max_body_bytes)


FIRST_TABLES_SECONDS = 5.0
SETTLING_SECONDS = 5.0  # for what was broken off to be put on record


@asynccontextmanager
async def open_house(settings: Settings, dsn: str, *, works: bool = True) -> AsyncIterator[House]:
    """Opens the house, and closes it in the order in which nothing acknowledged can be lost.

    Args:
        works: whether it does the background work, too: projections and what else nobody asks for by HTTP.
    """
    connect = partial(postgres.connect, dsn)
    pool = await postgres.open_pool(dsn, size=settings.database_pool_size)

    projections = read_models(settings)

    async def ask() -> Stand:
        async with pool.connection() as connection:
            return await stand(connection, projections)

    progress = Progress(ask)
    engine = Engine(connect, projections, progress, projected=lambda position: sender.wake(position))
    ledger = Ledger(
        connect,
        queue_size=settings.ledger_queue_size,
        batch_size=settings.ledger_batch_size,
        appended=engine.wake,
    )
    key_ring = KeyRing(*settings.encryption_keys)
    secrets = SecretStore(pool, key_ring)
    sender = Sender(connect, ledger, secrets, allow_private=settings.webhook_allow_private)
    house = House(
        settings=settings,
        pool=pool,
        ledger=ledger,
        engine=engine,
        progress=progress,
        models=Models(settings.llm_timeout_seconds, settings.llm_transport),
        limits=Limits(settings.redis_url, workers=settings.workers),
        key_ring=key_ring,
        secrets=secrets,
        passwords=Passwords(),
        tokens=Tokens(settings.jwt_secret_key, timedelta(hours=settings.jwt_expiration_hours)),
        targets=Targets(ledger, secrets),
        sender=sender,
        conversations=Conversations(pool, key_ring),
        background=Background(),
        notary=Notary(pool, secrets),
        presence=Presence(connect),
    )
    watch = asyncio.create_task(EmbeddedServer(settings.data_dir).supervise()) if settings.embedded else None
    await ledger.start()
    await house.presence.start()
    await house.models.start()
    scheduler = Scheduler(connect, chores(house))
    if works:
        await engine.start()
        # On a new database the first requests, and the first chores, would come before the tables that they read.
        await progress.reach(0, timeout_s=FIRST_TABLES_SECONDS)
        await sender.start()
        await scheduler.start()
    try:
        yield house
    finally:
        await cancelled(watch)
        await scheduler.stop()
        patience = settings.shutdown_timeout_seconds
        await asyncio.gather(house.background.drain(patience), sender.stop(patience))
        house.models.cut()
        await house.background.drain(SETTLING_SECONDS)
        await house.models.close()
        await ledger.stop()
        await engine.stop()
        await house.limits.close()
        house.passwords.close()
        await house.presence.stop()
        await pool.close()
