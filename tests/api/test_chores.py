"""What is done by the clock, told by a clock that the tests hold in their hands."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
import pytest

from api import chores
from api.app import open_house
from api.house import House
from domain.charging import complete_job, start_call
from domain.credit import Account, GrantCredits, grant_credits
from domain.event import Command, Event
from domain.job import Job, create_job, finish_call
from domain.onboarding import DeleteTeam, delete_team
from domain.streams import CREDIT, JOB, ORGANIZATION, TEAM, THE_CATALOG, WEBHOOK
from domain.team import RefillPeriod, SetAutoRefill, set_auto_refill
from domain.webhook import WebhookDeleted, WebhookRegistered, WebhookSecretRotated
from infra.journal import Connection
from projections import due, jobs
from tests.api.conftest import make_team, running, settings_for
from tests.domain import scene
from tests.domain.scene import ACME, NOON, RESEARCH, WHO, an_id
from tests.domain.scene import ORGANIZATION as ACME_CREATED
from tests.waiting import PATIENCE_SECONDS, until

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

ACCOUNT, THE_TEAM, THE_JOB = CREDIT.stream(RESEARCH), TEAM.stream(RESEARCH), JOB.stream(scene.JOB)
MIDNIGHT = datetime(2026, 3, 5, tzinfo=UTC)  # after NOON, which is a Wednesday
MONDAY = datetime(2026, 3, 9, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
SOON = timedelta(seconds=20)


# -- houses, and what has happened in them -----------------------------------------------------------------------------


@asynccontextmanager
async def houses(dsn: str, number: int = 1) -> AsyncIterator[list[House]]:
    """Houses on one database, as if each was a process of its own; the first one projects."""
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_house(settings_for(dsn), dsn, works=False)) for _ in range(number)
        ]
        await opened[0].engine.start()
        yield opened


async def play(house: House, stream: str, *events: Event) -> None:
    """Lets things happen to one stream."""
    await house.ledger.carry_out(lambda state, command: list(events), Command(**WHO), stream)


async def a_team(house: House, *, credits: int = 10, **terms: Any) -> None:
    """A team with credits and an alias `chat`, at noon."""
    await play(house, ORGANIZATION.stream(ACME), ACME_CREATED)
    await play(house, THE_TEAM, scene.TEAM, scene.budget(**terms))
    await play(house, THE_CATALOG, scene.alias())
    await play(house, ACCOUNT, scene.OPENED, *([scene.granted(credits)] if credits else []))


async def wish(house: House, decide: Any, command: Command, *streams: str) -> None:
    await house.ledger.carry_out(decide, command, *streams)


async def refilled_every(house: House, period: RefillPeriod, credits: int = 50, at: datetime = NOON) -> None:
    command = SetAutoRefill(**{**WHO, "at": at}, enabled=True, refill_credits=credits, refill_period=period)
    await wish(house, set_auto_refill, command, THE_TEAM)


async def given_until(house: House, credits: int, ends: datetime, number: int = 27) -> None:
    command = GrantCredits(**WHO, transaction_id=an_id(number), credits=credits, expires_at=ends)
    await wish(house, grant_credits, command, ACCOUNT)


async def a_call(house: House, *, ends: bool = True, **started: Any) -> None:
    """A job with a call, at noon."""
    await wish(house, create_job, scene.create(), THE_JOB, THE_TEAM)
    streams = (THE_JOB, ACCOUNT, THE_TEAM, ORGANIZATION.stream(ACME), THE_CATALOG)
    await wish(house, start_call, scene.start(**started), *streams)
    if ends:
        await wish(house, finish_call, scene.finish(), THE_JOB)


async def do(chore: Callable[[House, datetime], Coroutine[Any, Any, int]], house: House, at: datetime) -> int:
    """Does a chore when the read models have seen everything."""
    position = (await house.ledger.read()).position
    assert 0 == await house.progress.reach(position, timeout_s=PATIENCE_SECONDS)
    return await chore(house, at)


async def account(house: House) -> Account:
    found = (await house.ledger.read(ACCOUNT)).states[0]
    assert isinstance(found, Account)
    return found


async def the_job(house: House) -> Job:
    found = (await house.ledger.read(THE_JOB)).states[0]
    assert isinstance(found, Job)
    return found


# -- refills -----------------------------------------------------------------------------------------------------------


def test_a_refill_comes_once_a_period_however_many_processes_ask(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database, 3) as all_houses:
            house = all_houses[0]
            await a_team(house, credits=10)
            await refilled_every(house, "daily")
            assert 0 == await do(chores.refill, house, MIDNIGHT - timedelta(seconds=1))
            refilled = await asyncio.gather(*(do(chores.refill, each, MIDNIGHT) for each in all_houses * 3))
            assert 1 == sum(refilled)
            assert 0 == await do(chores.refill, all_houses[1], MIDNIGHT + timedelta(hours=23))
            assert (60, "2026-03-05") == ((await account(house)).remaining, (await account(house)).last_refill_period)
            assert [1, 0] == [await do(chores.refill, house, MIDNIGHT + timedelta(days=1)) for _ in range(2)]
            assert 110 == (await account(house)).remaining

    runner(story())


@pytest.mark.parametrize("period,first", [("daily", MIDNIGHT), ("weekly", MONDAY), ("monthly", APRIL)])
def test_the_first_refill_comes_when_the_next_day_week_or_month_begins(
    runner: Run[None], database: str, period: RefillPeriod, first: datetime
) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house, credits=0)
            await refilled_every(house, period)
            moments = (NOON, first - timedelta(microseconds=1), first, first + SOON)
            assert [0, 0, 1, 0] == [await do(chores.refill, house, at) for at in moments]
            assert (50, first) == ((await account(house)).remaining, (await account(house)).last_refill_at)

    runner(story())


def test_after_downtime_only_the_current_period_is_refilled(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house, credits=0)
            await refilled_every(house, "daily")
            assert [1, 0] == [await do(chores.refill, house, MIDNIGHT + timedelta(days=9)) for _ in range(2)]
            assert 50 == (await account(house)).remaining

    runner(story())


def test_another_amount_does_not_put_a_refill_off_and_another_rhythm_does(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house, credits=0)
            await refilled_every(house, "daily")
            await do(chores.refill, house, NOON)  # the changes below come in other batches of the projections
            await refilled_every(house, "daily", 70, at=MIDNIGHT + SOON)
            assert 1 == await do(chores.refill, house, MIDNIGHT + 2 * SOON)
            assert 70 == (await account(house)).remaining
            await refilled_every(house, "weekly", 70, at=MONDAY + SOON)
            await refilled_every(house, "weekly", 80, at=MONDAY + 2 * SOON)
            assert 0 == await do(chores.refill, house, MONDAY + 3 * SOON)
            assert 1 == await do(chores.refill, house, MONDAY + timedelta(days=7))
            assert 150 == (await account(house)).remaining

    runner(story())


def test_switched_off_or_deleted_is_not_refilled(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house, credits=0)
            await refilled_every(house, "daily")
            off = SetAutoRefill(**WHO, enabled=False)
            await wish(house, set_auto_refill, off, THE_TEAM)
            assert 0 == await do(chores.refill, house, MIDNIGHT)
            await refilled_every(house, "daily", at=MIDNIGHT)
            await wish(house, delete_team, DeleteTeam(**WHO), THE_TEAM, ORGANIZATION.stream(ACME), THE_CATALOG)
            assert 0 == await do(chores.refill, house, MIDNIGHT + timedelta(days=1))
            assert 0 == (await account(house)).remaining

    runner(story())


# -- grants that end ---------------------------------------------------------------------------------------------------


def test_what_was_not_spent_of_a_grant_ends_once(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database, 2) as all_houses:
            house = all_houses[0]
            await a_team(house, credits=10)
            await given_until(house, 5, MIDNIGHT)
            assert 0 == await do(chores.expire_grants, house, MIDNIGHT - timedelta(microseconds=1))
            ended = await asyncio.gather(*(do(chores.expire_grants, each, MIDNIGHT) for each in all_houses * 3))
            assert 1 == sum(ended)
            assert (10, 10, ()) == (
                (await account(house)).remaining,
                (await account(house)).allocated,
                (await account(house)).expiring,
            )

    runner(story())


def test_what_a_job_holds_ends_when_the_job_has_let_go_of_it(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house, credits=0)
            await given_until(house, 5, MIDNIGHT)
            await a_call(house)
            assert [1, 0] == [await do(chores.expire_grants, house, MIDNIGHT) for _ in range(2)]
            assert (1, 1) == ((await account(house)).remaining, (await account(house)).held)
            assert 1 == await do(chores.expire_jobs, house, NOON + timedelta(hours=24))
            assert 1 == await do(chores.expire_grants, house, MIDNIGHT + timedelta(days=1))
            assert (0, 0) == ((await account(house)).remaining, (await account(house)).held)

    runner(story())


def test_a_grant_that_was_spent_is_nobodys_business_any_more(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house, credits=10)
            await given_until(house, 1, MIDNIGHT)
            await a_call(house)
            await wish(house, complete_job, scene.complete(), THE_JOB, ACCOUNT, THE_TEAM)
            assert 0 == await do(chores.expire_grants, house, MIDNIGHT)
            async with house.pool.connection() as connection:
                assert [] == await due.with_ended_grants(connection, APRIL, limit=10)
            assert 10 == (await account(house)).remaining

    runner(story())


# -- jobs and calls ----------------------------------------------------------------------------------------------------


def test_a_job_left_alone_for_a_day_fails_and_its_hold_is_released(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database, 2) as all_houses:
            house = all_houses[0]
            await a_team(house)
            await a_call(house)
            day = timedelta(hours=24)
            assert 0 == await do(chores.expire_jobs, house, NOON + day - timedelta(microseconds=1))
            expired = await asyncio.gather(*(do(chores.expire_jobs, each, NOON + day) for each in all_houses * 2))
            assert 1 == sum(expired)
            job = await the_job(house)
            assert ("failed", "expired", 0) == (job.status, job.error_message, job.credits_charged)
            assert (10, 0) == ((await account(house)).remaining, (await account(house)).held)

    runner(story())


def test_what_an_abandoned_job_has_used_is_paid_for_in_consumption_modes(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house, mode="consumption_tokens", tokens_per_credit=100)
            await a_call(house, output_tokens=500)
            assert 1 == await do(chores.expire_jobs, house, NOON + timedelta(hours=24))
            job = await the_job(house)
            assert ("failed", True, 3) == (job.status, job.credit_applied, job.credits_charged)
            assert (7, 0) == ((await account(house)).remaining, (await account(house)).held)

    runner(story())


def test_a_call_that_nobody_carries_any_more_is_interrupted_and_its_job_expires_a_day_later(
    runner: Run[None], database: str
) -> None:
    async def story() -> None:
        async with houses(database, 2) as all_houses:
            house = all_houses[0]
            await a_team(house)
            await a_call(house, ends=False)
            deadline = (await the_job(house)).running[scene.CALL].deadline
            assert 0 == await do(chores.interrupt_calls, house, deadline)
            assert 0 == await do(chores.expire_jobs, house, NOON + timedelta(days=3))
            later = NOON + timedelta(days=3)
            ended = await asyncio.gather(*(do(chores.interrupt_calls, each, later) for each in all_houses * 2))
            assert 1 == sum(ended)
            [call] = (await the_job(house)).ended
            assert ("interrupted", None) == (call.error, call.latency_ms)
            assert 0 == await do(chores.expire_jobs, house, later + timedelta(hours=23))
            assert 1 == await do(chores.expire_jobs, house, later + timedelta(hours=24))
            assert (10, 0) == ((await account(house)).remaining, (await account(house)).held)

    runner(story())


def test_an_answer_that_comes_after_the_interruption_changes_nothing(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house)
            await a_call(house, ends=False)
            assert 1 == await do(chores.interrupt_calls, house, NOON + timedelta(days=1))
            await wish(house, finish_call, scene.finish(), THE_JOB)
            assert ["interrupted"] == [call.error for call in (await the_job(house)).ended]

    runner(story())


def test_open_jobs_of_deleted_teams_are_cancelled(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house)
            await a_call(house)
            assert 0 == await do(chores.cancel_orphaned, house, NOON)
            await wish(house, delete_team, DeleteTeam(**WHO), THE_TEAM, ORGANIZATION.stream(ACME), THE_CATALOG)
            assert [1, 0] == [await do(chores.cancel_orphaned, house, NOON) for _ in range(2)]
            assert ("cancelled", 0) == ((await the_job(house)).status, (await account(house)).held)

    runner(story())


# -- receipts and sessions ---------------------------------------------------------------------------------------------


def test_answers_kept_for_repeats_are_forgotten_after_a_day(runner: Run[None], database: str) -> None:
    insert = """
        insert into app.idempotency (scope, key, fingerprint, state, claim_id, lease_until, status, body, created_at)
        values ('scope', %s, '', 'finished', %s, now(), 200, 'secret', %s)"""

    async def story() -> None:
        async with houses(database) as [house]:
            async with house.pool.connection() as connection:
                for hours in (25, 24, 23):
                    await connection.execute(insert, (f"key-{hours}", uuid4(), NOON - timedelta(hours=hours)))
            assert 1 == await chores.purge_receipts(house, NOON)
            assert 1 == await chores.purge_receipts(house, NOON + SOON)
            assert ["key-23"] == await column(house, "select key from app.idempotency")

    runner(story())


def test_old_deliveries_are_forgotten_but_for_the_last_of_each_webhook(runner: Run[None], database: str) -> None:
    insert = """
        insert into app.webhook_deliveries (delivery_id, webhook_id, team_id, host, event, payload, status, created_at)
        values (%s, %s, 'red', 'acme.example', 'job.created', '{}', 'delivered', %s)"""

    async def story() -> None:
        async with houses(database) as [house]:
            for webhook in (an_id(1), an_id(2)):
                async with house.pool.connection() as connection:
                    for days in (33, 32, 31):
                        await connection.execute(insert, (uuid4(), webhook, NOON - timedelta(days=days)))
            assert 4 == await chores.purge_deliveries(house, NOON)
            assert 0 == await chores.purge_deliveries(house, NOON)
            last = await column(house, "select created_at from app.webhook_deliveries")
            assert [NOON - timedelta(days=31)] * 2 == last

    runner(story())


def test_a_replaced_webhook_secret_is_forgotten_when_its_overlap_has_ended(runner: Run[None], database: str) -> None:
    old, new, last = an_id(31), an_id(32), an_id(33)
    day = timedelta(days=1)

    async def rotate(house: House, old: str, new: str, at: datetime) -> None:
        facts = {"webhook_id": an_id(30), "team_id": RESEARCH}
        secrets = {"secret_id": new, "old_secret_id": old, "old_valid_until": at + day}
        await play(house, WEBHOOK.stream(an_id(30)), WebhookSecretRotated(at=at, **facts, **secrets))

    async def story() -> None:
        async with houses(database) as [house]:
            for secret_id in (old, new, last):
                await house.secrets.put(UUID(secret_id), "webhook_secret", b"whsec_")
            await play(house, WEBHOOK.stream(an_id(30)), a_webhook(secret_id=old))
            await rotate(house, old, new, NOON)
            await rotate(house, new, last, NOON + SOON)
            assert 0 == await do(chores.forget_webhook_secrets, house, NOON + day - SOON)
            assert 1 == await do(chores.forget_webhook_secrets, house, NOON + day)
            assert {new, last} == await kept(house)
            assert 1 == await do(chores.forget_webhook_secrets, house, NOON + day + SOON)
            assert 0 == await do(chores.forget_webhook_secrets, house, NOON + 2 * day)
            assert {last} == await kept(house)

    runner(story())


def test_what_a_deleted_webhook_leaves_behind_is_forgotten(runner: Run[None], database: str) -> None:
    """Whoever deletes a webhook forgets its secrets, if nothing happens in between."""
    secret, header, anothers = an_id(31), an_id(32), an_id(33)

    async def story() -> None:
        async with houses(database) as [house]:
            for secret_id in (secret, header, anothers):
                await house.secrets.put(UUID(secret_id), "webhook_secret", b"whsec_")
            stream = WEBHOOK.stream(an_id(30))
            await play(house, stream, a_webhook(secret_id=secret, auth_header_id=header))
            await play(house, WEBHOOK.stream(an_id(40)), a_webhook(webhook_id=an_id(40), secret_id=anothers))
            assert 0 == await do(chores.forget_webhook_secrets, house, NOON)
            await play(house, stream, WebhookDeleted(at=NOON, webhook_id=an_id(30), team_id=RESEARCH))
            assert 2 == await do(chores.forget_webhook_secrets, house, NOON)
            assert {anothers} == await kept(house)

    runner(story())


def a_webhook(**facts: Any) -> WebhookRegistered:
    whose = {"webhook_id": an_id(30), "team_id": RESEARCH, "organization_id": ACME}
    where = {"webhook_url": "https://acme.example/told", "events": ("job.created",)}
    return WebhookRegistered(at=NOON, **{**whose, **where, **facts})


async def kept(house: House) -> set[str]:
    """The ids of the secrets of webhooks that are still there."""
    return {
        str(each) for each in await column(house, "select secret_id from app.secrets where kind = 'webhook_secret'")
    }


async def column(house: House, select: str) -> list[object]:
    async with house.pool.connection() as connection:
        cursor = await connection.execute(select.encode())
        return [row[0] for row in await cursor.fetchall()]


# -- what chores have in common ----------------------------------------------------------------------------------------


def test_a_candidate_that_cannot_be_dealt_with_keeps_no_other_waiting(runner: Run[None], database: str) -> None:
    count, broken = 2 * chores.PAGE + 1, {0, chores.PAGE - 1, chores.PAGE}
    met: list[int] = []

    async def some(_: Connection, after: int | None) -> list[int]:
        first = 0 if after is None else after + 1
        return list(range(first, min(first + chores.PAGE, count)))

    async def one(candidate: int) -> bool:
        met.append(candidate)
        if candidate in broken:
            raise ZeroDivisionError
        return candidate % 2 == 1

    async def story() -> None:
        async with houses(database) as [house]:
            assert count // 2 - 1 == await chores.sweep(house, some, one)
            assert list(range(count)) == met

    runner(story())


def test_what_a_read_model_still_shows_and_the_journal_does_not_know_is_passed_over(
    runner: Run[None], database: str
) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house)
            await a_call(house)
            await do(chores.expire_jobs, house, NOON)
            async with house.pool.connection() as connection:
                await connection.execute(
                    "insert into jobs (job_id, team_id, organization_id, job_type, status, created_at, active_at,"
                    " metadata) select gen_random_uuid(), team_id, organization_id, job_type, status, created_at,"
                    " active_at, metadata from jobs, generate_series(1, 5)"
                )
            assert 1 == await do(chores.expire_jobs, house, NOON + timedelta(days=1))
            assert "failed" == (await the_job(house)).status

    runner(story())


def test_candidates_are_found_page_by_page(runner: Run[None], database: str) -> None:
    async def story() -> None:
        async with houses(database) as [house]:
            await a_team(house)
            for _ in range(5):
                job_id = str(uuid4())
                await wish(house, create_job, scene.create(job_id), JOB.stream(job_id), THE_TEAM)
            await do(chores.expire_jobs, house, NOON)
            found: list[jobs.LeftAlone] = []
            async with house.pool.connection() as connection:
                while page := await jobs.left_alone(connection, NOON, after=found[-1] if found else None, limit=2):
                    found += page
            assert 5 == len({job.job_id for job in found}) == len(found)

    runner(story())


def test_a_running_server_does_its_chores(database: str) -> None:
    with running(database, chore_seconds=0.05) as server, server.client() as admin:
        team = make_team(server, admin, credits=10)
        path = f"/api/credits/teams/{team.team_id}"

        def given_for_a_moment() -> httpx.Response | None:
            """None if the moment was over before the server had looked at it."""
            ending = {"amount": 5, "expires_at": (datetime.now(UTC) + timedelta(seconds=2)).isoformat()}
            answer = admin.post(f"{path}/add", json=ending)
            return answer if answer.status_code == 200 else None

        assert 15 == until(given_for_a_moment).json()["credits_remaining"]
        expired = {"type": "expiration"}
        [expiration] = until(lambda: admin.get(f"{path}/transactions", params=expired).json()["transactions"])
        assert ("expiration", 5, 15, 10, "system") == tuple(
            expiration[name] for name in ("type", "amount", "credits_before", "credits_after", "actor")
        )
