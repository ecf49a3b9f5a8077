"""What becomes of events that webhooks want to be told of: one delivery each, once, whatever happens to the tables."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace as changed
from psycopg import AsyncConnection

from domain.credit import CreditsCharged, CreditsGranted, CreditsHeld
from domain.event import Event
from domain.job import JobCancelled, JobCompleted, JobExpired, JobFailed
from domain.pricing import ZERO
from domain.streams import CATEGORIES
from domain.team import TeamPaused, TeamResumed, TeamSuspended
from domain.webhook import (
    WEBHOOK_EVENTS,
    CreditsRanOut,
    WebhookChanged,
    WebhookDeleted,
    WebhookDisabled,
    WebhookEnabled,
    WebhookEvent,
    WebhookRegistered,
    WebhookSecretRotated,
)
from infra import journal, postgres
from infra.journal import Connection, Draft
from projections import engine
from projections import webhook_deliveries as read_model
from projections.engine import Engine, Progress, prepare, project, stand, tracked
from projections.jobs import JOBS
from projections.projection import Batch, Projection
from projections.rebuild import rebuild
from projections.webhook_deliveries import webhook_deliveries
from tests.domain.scene import ACME, CREATED, JOB, NOON, RESEARCH, TERMS, WHOSE, after, an_id, budget, granted, started
from tests.waiting import eventually

Run = Callable[[Coroutine[Any, Any, None]], None]

HOOK, OTHER_HOOK = an_id(101), an_id(102)
DELIVERIES = webhook_deliveries((20, 5))
READ_MODELS = (JOBS, DELIVERIES)

END: dict[str, Any] = {
    "at": after(seconds=90),
    "job_id": JOB,
    **WHOSE,
    "credit_applied": True,
    "credits_charged": 3,
    "credits_remaining": 7,
    "total_calls": 2,
    "duration_seconds": 90,
}


def registered(
    *events: WebhookEvent, webhook_id: str = HOOK, team_id: str = RESEARCH, url: str = "https://hooks.example/in"
) -> WebhookRegistered:
    return WebhookRegistered(
        at=NOON,
        webhook_id=webhook_id,
        team_id=team_id,
        organization_id=ACME,
        webhook_url=url,
        events=events or WEBHOOK_EVENTS,
        secret_id=an_id(111),
    )


def movement(remaining: int, held: int = 0, *, credits: int = 1) -> dict[str, Any]:
    return {
        "at": NOON,
        "transaction_id": an_id(200),
        **WHOSE,
        "credits": credits,
        "remaining_credits": remaining,
        "held_credits": held,
    }


def charged(remaining: int) -> CreditsCharged:
    return CreditsCharged(
        **movement(remaining), job_id=str(uuid4()), credits_from_hold=0, terms=TERMS, client_cost_usd=ZERO, tokens=0
    )


def held(remaining: int, held: int) -> CreditsHeld:
    return CreditsHeld(**movement(remaining, held), job_id=JOB)


def stream_of(event: Any) -> str:
    """The stream that such an event belongs to."""
    [category] = [each for each in CATEGORIES.values() if type(event) in each.events]
    return category.stream(getattr(event, {"webhook": "webhook_id", "job": "job_id"}.get(category.name, "team_id")))


class Past:
    """A journal that is projected as it is written."""

    def __init__(self, connection: Connection, read_models: Iterable[Projection] = READ_MODELS) -> None:
        self.connection = connection
        self.read_models = tuple(read_models)
        self.position = 0
        self._versions: Counter[str] = Counter()

    async def happens(self, *events: Event, at_once: bool = True, projected: bool = True) -> None:
        """Records events and projects them, in one batch or in one batch each."""
        draft = Draft()
        for event in events:
            stream = stream_of(event)
            draft.read.setdefault(stream, self._versions[stream])
            draft.add(stream, type(event).__name__, journal.encode(event))
        assert not (await journal.append(self.connection, draft)).stale
        self._versions.update(draft.streams)
        if projected:
            await self.catch_up(batch_size=len(events) if at_once else 1)

    async def catch_up(self, batch_size: int = 100) -> None:
        while events := await journal.read(self.connection, self.position, batch_size):
            await project(self.connection, self.read_models, Batch(events))
            self.position = events[-1].position

    async def rows(self) -> list[tuple[Any, ...]]:
        cursor = await self.connection.execute(
            "select webhook_id::text, event, payload from app.webhook_deliveries order by created_at, delivery_id"
        )
        return list(await cursor.fetchall())

    async def told(self, webhook_id: str = HOOK) -> list[str]:
        """What a webhook is told of, in alphabetical order."""
        return sorted(event for hook, event, _ in await self.rows() if hook == webhook_id)

    async def payload(self, event: str) -> dict[str, Any]:
        [found] = [payload for _, each, payload in await self.rows() if each == event]
        assert isinstance(found, dict)
        return found


@asynccontextmanager
async def a_past(dsn: str, *read_models: Projection) -> AsyncIterator[Past]:
    async with await postgres.connect(dsn) as connection:
        past = Past(connection, read_models or READ_MODELS)
        await prepare(connection, past.read_models)
        yield past


# -- who is told what --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
def test_an_event_is_delivered_to_each_webhook_that_wants_it_at_that_moment(
    database: str, runner: Run, at_once: bool
) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(
                TeamSuspended(at=NOON, team_id=RESEARCH),  # nobody listens yet
                registered("team.suspended", "team.resumed"),
                registered("team.resumed", webhook_id=OTHER_HOOK),
                registered(webhook_id=an_id(103), team_id="sales"),
                TeamResumed(at=NOON, team_id=RESEARCH),
                TeamSuspended(at=NOON, team_id=RESEARCH),
                WebhookDisabled(at=NOON, webhook_id=HOOK, team_id=RESEARCH),
                TeamResumed(at=NOON, team_id=RESEARCH),
                WebhookEnabled(at=NOON, webhook_id=HOOK, team_id=RESEARCH),
                WebhookDeleted(at=NOON, webhook_id=OTHER_HOOK, team_id=RESEARCH),
                TeamPaused(at=NOON, team_id=RESEARCH),
                TeamResumed(at=NOON, team_id=RESEARCH),
                at_once=at_once,
            )
            assert ["team.resumed", "team.resumed", "team.suspended", "team.suspended"] == await past.told()
            assert ["team.resumed", "team.resumed"] == await past.told(OTHER_HOOK)
            assert [] == await past.told(an_id(103))

    runner(story())


@pytest.mark.parametrize("at_once", [True, False])
def test_a_job_is_told_of_when_it_is_created_when_it_starts_and_when_it_ends(
    database: str, runner: Run, at_once: bool
) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            first = changed(started(), at=after(seconds=7))
            second = started(call_id=an_id(12), terms=None)
            await past.happens(registered(), CREATED, first, second, JobCompleted(**END), at_once=at_once)
            assert ["job.completed", "job.created", "job.started"] == await past.told()
            assert {
                "event": "job.completed",
                "type": "job.completed",
                "job_id": JOB,
                "team_id": RESEARCH,
                "timestamp": "2026-03-04T12:01:30.000Z",
                "data": {"total_calls": 2, "duration_seconds": 90, "status": "completed", "credits_charged": 3},
            } == await past.payload("job.completed")
            data = (await past.payload("job.started"))["data"]
            assert {"total_calls": 1, "duration_seconds": 7, "status": "in_progress", "credits_charged": 0} == data
            data = (await past.payload("job.created"))["data"]
            assert {"total_calls": 0, "duration_seconds": 0, "status": "pending", "credits_charged": 0} == data

    runner(story())


@pytest.mark.parametrize(
    "end, event, status",
    [
        (JobFailed(**END), "job.failed", "failed"),
        (JobExpired(**END), "job.failed", "failed"),
        (JobCancelled(**END), "job.cancelled", "cancelled"),
    ],
)
def test_every_end_of_a_job_has_its_word(database: str, runner: Run, end: Event, event: str, status: str) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered(), CREATED, end)
            assert status == (await past.payload(event))["data"]["status"]

    runner(story())


@pytest.mark.parametrize("at_once", [True, False])
def test_low_and_exhausted_credits_are_told_once_a_crossing(database: str, runner: Run, at_once: bool) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered("credits.low", "credits.exhausted"), granted(100), at_once=at_once)
            await past.happens(charged(21), charged(20), charged(19), charged(5), charged(4), at_once=at_once)
            rows = await past.rows()
            assert [20, 5] == sorted((payload["data"]["threshold_percent"] for *_, payload in rows), reverse=True)
            await past.happens(held(4, 4), held(4, 3), held(4, 4), at_once=at_once)
            assert ["credits.exhausted", "credits.low", "credits.low"] == await past.told()
            assert {"credits_remaining": 4, "credits_available": 0, "threshold_percent": None} == (
                await past.payload("credits.exhausted")
            )["data"]
            again = CreditsGranted(**movement(104, 4, credits=100), kind="allocation")
            await past.happens(again, charged(40), charged(39), at_once=at_once)
            assert 4 == len(await past.told())

    runner(story())


def test_credits_that_ran_out_before_anybody_listened_are_no_news_later(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(granted(100), charged(4))
            await past.happens(registered("credits.low", "credits.exhausted"), charged(3))
            assert [] == await past.told()

    runner(story())


def test_a_call_refused_for_want_of_credits_exhausts_a_team_with_credits_left(database: str, runner: Run) -> None:
    async def story() -> None:
        ran_out = CreditsRanOut(
            at=NOON, **WHOSE, needed_credits=50, available_credits=10, allocated_credits=100, used_credits=90
        )
        async with a_past(database) as past:
            await past.happens(registered("credits.exhausted"), granted(100), charged(10), ran_out, charged(0))
            assert ["credits.exhausted"] == await past.told()
            assert 10 == (await past.payload("credits.exhausted"))["data"]["credits_available"]

    runner(story())


def test_an_unlimited_team_is_never_exhausted(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(budget(overdraft_credits=None), registered("credits.exhausted"), granted(5))
            await past.happens(charged(0), charged(-5))
            assert [] == await past.told()

    runner(story())


def test_an_address_that_nobody_can_read_does_not_stop_the_projections(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered("team.resumed", url="http://[::1"), TeamResumed(at=NOON, team_id=RESEARCH))
            assert ["team.resumed"] == await past.told()

    runner(story())


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_webhook_is_read_as_it_was_changed_last(database: str, runner: Run) -> None:
    async def story() -> None:
        change = WebhookChanged(
            at=after(minutes=1),
            webhook_id=HOOK,
            team_id=RESEARCH,
            webhook_url="https://elsewhere.example",
            events=("job.failed",),
            auth_header_id=an_id(113),
        )
        rotated = WebhookSecretRotated(
            at=after(minutes=2),
            webhook_id=HOOK,
            team_id=RESEARCH,
            secret_id=an_id(112),
            old_secret_id=an_id(111),
            old_valid_until=after(hours=24),
        )
        off = WebhookDisabled(at=after(minutes=3), webhook_id=HOOK, team_id=RESEARCH, reason="410")
        async with a_past(database) as past:
            await past.happens(registered())
            await past.happens(change, rotated, off, at_once=False)
            webhook = await read_model.one(past.connection, HOOK)
            assert webhook is not None
            assert "https://elsewhere.example" == webhook.webhook_url
            assert ["job.failed"] == list(webhook.events)
            assert (an_id(112), an_id(113)) == (webhook.secret_id, webhook.auth_header_id)
            assert (False, "410", after(minutes=3)) == (webhook.is_active, webhook.disabled_reason, webhook.updated_at)
            assert webhook.last_triggered_at is None

    runner(story())


def test_a_webhook_was_last_triggered_by_the_last_event_it_was_told_of(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered("job.completed"), CREATED, JobCompleted(**END))
            webhook = await read_model.one(past.connection, HOOK)
            assert webhook is not None
            assert END["at"] == webhook.last_triggered_at

    runner(story())


# -- once --------------------------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


def fail(batch: Batch) -> list[Any]:
    raise Broken


def test_a_batch_that_breaks_leaves_no_delivery_and_comes_again_whole(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered())
            past.read_models = (DELIVERIES, replace(JOBS, project=fail))
            with pytest.raises(Broken):
                await past.happens(CREATED)
            assert [] == await past.told()
            past.read_models = READ_MODELS
            await past.catch_up()
            assert ["job.created"] == await past.told()

    runner(story())


def test_an_engine_that_is_stopped_again_and_again_delivers_each_event_once(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BATCH_EVENTS", 7)
    jobs = [changed(CREATED, job_id=an_id(1000 + number)) for number in range(300)]

    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered("job.created"), *jobs, projected=False)
            for pause in count():
                position = await tracked(past.connection)

                async def has_gone_on(before: int = position) -> bool:
                    return before < await tracked(past.connection)

                leader = Engine(
                    partial(postgres.connect, database),
                    READ_MODELS,
                    Progress(partial(stand, past.connection, READ_MODELS)),
                )
                await leader.start()
                await asyncio.sleep(0.002 * pause)
                # On a slow machine the end would never come if each round could end where it began.
                await eventually(has_gone_on)
                await leader.stop()
                if await tracked(past.connection) == len(jobs) + 1:
                    break
            assert len(jobs) == len(await past.told())
            assert {job.job_id for job in jobs} == {payload["job_id"] for *_, payload in await past.rows()}

    runner(story())


def test_events_that_are_projected_again_are_not_delivered_again_even_if_forgotten(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered(), CREATED, JobCompleted(**END), granted(100), charged(20))
            assert ["credits.low", "job.completed", "job.created"] == await past.told()
            await past.connection.execute("delete from app.webhook_deliveries where event = 'job.created'")
            past.read_models = (JOBS, replace(webhook_deliveries((90, 50, 20)), version=DELIVERIES.version + 1))
            await prepare(past.connection, past.read_models)
            assert ["credits.low", "job.completed"] == await past.told()
            await past.happens(charged(19), TeamSuspended(at=NOON, team_id=RESEARCH))
            assert ["credits.low", "job.completed", "team.suspended"] == await past.told()

    runner(story())


def test_a_delivery_keeps_its_name_however_often_it_is_made(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered(), CREATED)
            names = "select delivery_id from app.webhook_deliveries"
            before = await (await past.connection.execute(names)).fetchall()
            await past.connection.execute("update app.webhook_horizon set position = 0")
            await past.connection.execute("delete from app.webhook_deliveries")
            await prepare(past.connection, [replace(DELIVERIES, version=DELIVERIES.version + 1)])
            assert before == await (await past.connection.execute(names)).fetchall()

    runner(story())


def test_a_rebuild_beside_the_living_one_finds_the_same_and_delivers_nothing(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            await past.happens(registered(), CREATED, granted(100))
            await past.connection.execute("delete from app.webhook_deliveries")
            async with await AsyncConnection.connect(database, autocommit=True) as owner:
                rebuilt = await rebuild(owner, DELIVERIES, lambda reached, until: None)
            assert (3, 2, 0) == (rebuilt.position, rebuilt.rows, rebuilt.differing_rows)
            assert [] == await past.rows()

    runner(story())


def test_a_team_that_nobody_listens_to_costs_no_delivery(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_past(database) as past:
            day = timedelta(days=1)
            await past.happens(CREATED, changed(started(), at=NOON + day), JobCompleted(**END), granted(10), charged(0))
            assert [] == await past.rows()

    runner(story())
