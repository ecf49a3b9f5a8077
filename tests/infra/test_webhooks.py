"""The sender of webhooks, against receivers of every kind over real HTTP. The clock is in the tests' hands."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as StandardWebhook

from domain.event import Command, Event
from domain.streams import WEBHOOK
from domain.webhook import (
    RETRY_DELAYS,
    WEBHOOK_EVENTS,
    Webhook,
    WebhookDeleted,
    WebhookDisabled,
    WebhookRegistered,
    WebhookSecretRotated,
)
from infra import postgres, webhooks
from infra.ledger import Ledger
from infra.secrets import KeyRing, SecretStore, new_webhook_secret
from infra.webhooks import (
    AT_ONCE_BY_HOST,
    AT_ONCE_BY_TEAM,
    AT_ONCE_BY_WEBHOOK,
    AUTH_HEADER,
    LEASE,
    SECRET,
    Sender,
    redeliver,
    wait_asked_for,
)
from tests.infra.accounts import a_ledger
from tests.receiver import Receiver
from tests.waiting import eventually

Run = Callable[[Coroutine[Any, Any, None]], None]

MOMENT = timedelta(microseconds=1)
PAYLOAD = '{"event":"job.completed","data":{"n":1.0,  "text":"\\u00e9é"}}'


class Clock:
    """Tells the time that the test says it is. It begins now, since receivers look at the time of a signature."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


class House:
    """What a sender needs, and an outbox to put something into."""

    def __init__(self, dsn: str, ledger: Ledger, pool: postgres.Pool) -> None:
        self.dsn = dsn
        self.ledger = ledger
        self.pool = pool
        self.secrets = SecretStore(pool, KeyRing("a key ring of the tests"))
        self.clock = Clock()
        self.senders: list[Sender] = []

    def forward(self, by: timedelta) -> None:
        """Lets time pass."""
        self.clock.now += by
        self.wake()

    def wake(self) -> None:
        for sender in self.senders:
            sender.wake()

    async def play(self, webhook_id: str, event: Event) -> None:
        command = Command(at=self.clock(), by="tests", request="tests")
        await self.ledger.carry_out(lambda state, command: [event], command, WEBHOOK.stream(webhook_id))

    async def register(self, url: str, *, auth_header: str | None = None) -> "Registered":
        """A webhook of the team `research`."""
        webhook_id, secret_id, auth_header_id = uuid4(), uuid4(), uuid4() if auth_header else None
        secret = new_webhook_secret()
        await self.secrets.put(secret_id, SECRET, secret.encode())
        if auth_header_id is not None and auth_header is not None:
            await self.secrets.put(auth_header_id, AUTH_HEADER, auth_header.encode())
        event = WebhookRegistered(
            at=self.clock(),
            webhook_id=str(webhook_id),
            team_id="research",
            organization_id="acme",
            webhook_url=url,
            events=WEBHOOK_EVENTS,
            secret_id=str(secret_id),
            auth_header_id=None if auth_header_id is None else str(auth_header_id),
        )
        await self.play(str(webhook_id), event)
        return Registered(str(webhook_id), secret, str(secret_id), url)

    async def look(self, receiver: Receiver) -> None:
        """Waits until something that nothing holds up was sent: so all else that could be taken has been taken."""
        marker = await self.register(f"{receiver.url}/ok/{uuid4().hex}")
        [delivery] = await self.put(marker, team_id="marker", host="marker")
        await self.until(delivery, status="delivered")

    async def put(
        self, webhook: "Registered", number: int = 1, *, team_id: str = "research", host: str = "127.0.0.1"
    ) -> list[str]:
        """Deliveries that are due, in the outbox."""
        names = [str(uuid4()) for _ in range(number)]
        async with self.pool.connection() as connection:
            await connection.execute(
                """
                insert into app.webhook_deliveries
                    (delivery_id, webhook_id, team_id, host, event, payload, next_attempt_at, created_at)
                select name, %s, %s, %s, 'job.completed', %s, %s, %s from unnest(%s::uuid[]) as name
                """,
                (webhook.webhook_id, team_id, host, PAYLOAD, self.clock(), self.clock(), names),
            )
        self.wake()
        return names

    async def state(self, delivery_id: str) -> dict[str, Any]:
        async with self.pool.connection() as connection, connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            await cursor.execute("select * from app.webhook_deliveries where delivery_id = %s", (delivery_id,))
            found = await cursor.fetchone()
            assert found is not None
            return found

    async def until(self, delivery_id: str, **wanted: Any) -> dict[str, Any]:
        """Waits until a delivery is as wanted."""

        async def as_wanted() -> dict[str, Any] | None:
            found = await self.state(delivery_id)
            return found if all(found[name] == value for name, value in wanted.items()) else None

        found: dict[str, Any] = await eventually(as_wanted)
        return found

    def sender(self, **options: Any) -> Sender:
        chosen = {"allow_private": True, "now": self.clock, "jitter": lambda: 0.0, **options}
        sender = Sender(partial(postgres.connect, self.dsn, name="sender"), self.ledger, self.secrets, **chosen)
        self.senders.append(sender)
        return sender

    @asynccontextmanager
    async def sending(self, **options: Any) -> AsyncIterator[Sender]:
        sender = self.sender(**options)
        await sender.start()
        try:
            yield sender
        finally:
            await sender.stop()


class Registered(msgspec.Struct):
    webhook_id: str
    secret: str
    secret_id: str
    url: str


@asynccontextmanager
async def a_house(dsn: str) -> AsyncIterator[House]:
    pool = await postgres.open_pool(dsn)
    try:
        async with a_ledger(dsn) as ledger:
            yield House(dsn, ledger, pool)
    finally:
        await pool.close()


async def kill(sender: Sender) -> None:
    """Ends a sender as SIGKILL would: at once, and nothing is written down any more."""
    assert sender._task is not None
    assert sender._session is not None
    tasks = [sender._task, *sender._attempts]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await sender._session.close()


async def came(receiver: Receiver, number: int, path: str) -> list[Any]:
    return await asyncio.to_thread(receiver.until, number, path)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def path() -> str:
    """The last part of a path that no other test uses."""
    return uuid4().hex


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_a_delivery_is_signed_as_standard_webhooks_demands(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            webhook = await house.register(f"{receiver.url}/ok/{path}?a=b", auth_header="Basic dGVzdA==")
            [delivery] = await house.put(webhook)
            await house.until(delivery, status="delivered")
            [request] = receiver.at(f"/ok/{path}")
            StandardWebhook(webhook.secret).verify(request.body, request.headers)
            assert PAYLOAD.encode() == request.body
            assert f"msg_{delivery}" == request.message_id
            assert "Basic dGVzdA==" == request.headers["authorization"]
            assert "application/json" == request.headers["content-type"]
            assert str(int(house.clock().timestamp())) == request.headers["webhook-timestamp"]

    runner(story())


def test_a_delivery_that_arrived_is_written_down(database: str, runner: Run, receiver: Receiver, path: str) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            [delivery] = await house.put(await house.register(f"{receiver.url}/ok/{path}"))
            done = await house.until(delivery, status="delivered")
            assert (1, 204, None, None) == (
                done["attempts"],
                done["response_status"],
                done["last_error"],
                done["next_attempt_at"],
            )
            assert house.clock() == done["delivered_at"]
            assert done["leased_until"] is None

    runner(story())


def test_for_a_day_after_a_rotation_both_secrets_sign(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            webhook = await house.register(f"{receiver.url}/ok/{path}")
            new_id, new_secret = uuid4(), new_webhook_secret()
            await house.secrets.put(new_id, SECRET, new_secret.encode())
            rotated = WebhookSecretRotated(
                at=house.clock(),
                webhook_id=webhook.webhook_id,
                team_id="research",
                secret_id=str(new_id),
                old_secret_id=webhook.secret_id,
                old_valid_until=house.clock() + timedelta(hours=24),
            )
            await house.play(webhook.webhook_id, rotated)
            await house.until((await house.put(webhook))[0], status="delivered")
            [first] = receiver.at(f"/ok/{path}")
            assert 2 == len(first.headers["webhook-signature"].split(" "))
            for secret in (webhook.secret, new_secret):
                StandardWebhook(secret).verify(first.body, first.headers)

            house.forward(timedelta(hours=24))
            await house.until((await house.put(webhook))[0], status="delivered")
            [_, second] = receiver.at(f"/ok/{path}")
            assert 1 == len(second.headers["webhook-signature"].split(" "))

    runner(story())


# -- what is tried again -----------------------------------------------------------------------------------------------


def test_a_delivery_that_failed_is_tried_again_under_the_same_id_when_its_time_has_come(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            webhook = await house.register(f"{receiver.url}/broken-1/{path}")
            [delivery] = await house.put(webhook)
            failed = await house.until(delivery, attempts=1)
            assert ("pending", 500, "answered 500") == (
                failed["status"],
                failed["response_status"],
                failed["last_error"],
            )
            assert house.clock() + timedelta(seconds=5) == failed["next_attempt_at"]

            house.forward(timedelta(seconds=5) - MOMENT)
            await house.look(receiver)
            assert 1 == len(receiver.at(f"/broken-1/{path}"))

            house.forward(MOMENT)
            await house.until(delivery, status="delivered", attempts=2)
            [first, second] = receiver.at(f"/broken-1/{path}")
            assert first.message_id == second.message_id
            assert first.body == second.body
            StandardWebhook(webhook.secret).verify(second.body, second.headers)

    runner(story())


def test_a_delivery_has_failed_when_the_whole_schedule_is_over(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            [delivery] = await house.put(await house.register(f"{receiver.url}/status-503/{path}"))
            for attempts, delay in enumerate([*RETRY_DELAYS[1:], None], start=1):
                failed = await house.until(delivery, attempts=attempts)
                if delay is not None:
                    assert house.clock() + delay == failed["next_attempt_at"]
                    house.forward(delay)
            last = await house.until(delivery, status="failed")
            assert (10, 503, None) == (last["attempts"], last["response_status"], last["next_attempt_at"])
            assert 10 == len(receiver.at(f"/status-503/{path}"))
            assert 1 == len({request.message_id for request in receiver.at(f"/status-503/{path}")})

    runner(story())


def test_jitter_makes_the_wait_up_to_a_tenth_longer(database: str, runner: Run, receiver: Receiver, path: str) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending(jitter=lambda: 1.0):
            [delivery] = await house.put(await house.register(f"{receiver.url}/status-500/{path}"))
            failed = await house.until(delivery, attempts=1)
            assert house.clock() + timedelta(seconds=5.5) == failed["next_attempt_at"]

    runner(story())


def test_a_receiver_that_asks_for_time_gets_it(database: str, runner: Run, receiver: Receiver, path: str) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            [delivery] = await house.put(await house.register(f"{receiver.url}/later-1-120/{path}"))
            asked = await house.until(delivery, attempts=1)
            assert house.clock() + timedelta(seconds=120) == asked["next_attempt_at"]
            house.forward(timedelta(seconds=120))
            await house.until(delivery, status="delivered")

    runner(story())


def test_a_wait_is_asked_for_in_seconds_or_by_a_date() -> None:
    noon = datetime(2026, 3, 4, 12, tzinfo=UTC)
    later = format_datetime(noon + timedelta(minutes=5), usegmt=True)

    assert timedelta(seconds=30) == wait_asked_for("30", noon)
    assert timedelta(minutes=5) == wait_asked_for(later, noon)
    assert timedelta(0) == wait_asked_for(format_datetime(noon - timedelta(days=1), usegmt=True), noon)


@given(st.text(max_size=40))
def test_no_text_in_retry_after_is_an_accident(text: str) -> None:
    asked = wait_asked_for(text, datetime(2026, 3, 4, 12, tzinfo=UTC))
    assert asked is None or asked >= timedelta(0)


def test_a_delivery_sent_again_on_demand_keeps_its_id_and_gets_its_whole_schedule(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending() as sender:
            [delivery] = await house.put(webhook := await house.register(f"{receiver.url}/ok/{path}"))
            await house.until(delivery, status="delivered")
            async with house.pool.connection() as connection:
                assert await redeliver(connection, webhook.webhook_id, delivery, house.clock())
                assert not await redeliver(connection, str(uuid4()), delivery, house.clock())
            sender.wake()
            [first, second] = await came(receiver, 2, f"/ok/{path}")
            assert first.message_id == second.message_id
            await house.until(delivery, status="delivered", attempts=1)

    runner(story())


def test_who_wants_a_delivery_again_while_it_is_on_its_way_gets_it_twice(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending() as sender:
            [delivery] = await house.put(webhook := await house.register(f"{receiver.url}/held/{path}"))
            await came(receiver, 1, f"/held/{path}")
            async with house.pool.connection() as connection:
                await redeliver(connection, webhook.webhook_id, delivery, house.clock())
            receiver.let_go(f"/held/{path}")
            sender.wake()
            await came(receiver, 2, f"/held/{path}")
            await house.until(delivery, status="delivered", attempts=1)

    runner(story())


# -- who wants no more -------------------------------------------------------------------------------------------------


def test_a_receiver_that_is_gone_disables_its_webhook(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            webhook = await house.register(f"{receiver.url}/gone/{path}")
            [delivery] = await house.put(webhook)
            over = await house.until(delivery, status="failed")
            assert (1, 410, None) == (over["attempts"], over["response_status"], over["next_attempt_at"])
            state: Webhook = (await house.ledger.read(WEBHOOK.stream(webhook.webhook_id))).states[0]
            assert (False, "the receiver answered 410 Gone") == (state.is_active, state.disabled_reason)

            [later] = await house.put(webhook)
            unsent = await house.until(later, status="failed")
            assert (0, "the webhook is disabled") == (unsent["attempts"], unsent["last_error"])
            assert 1 == len(receiver.at(f"/gone/{path}"))

    runner(story())


@pytest.mark.parametrize("end, why", [(WebhookDeleted, "deleted"), (WebhookDisabled, "disabled")])
def test_nothing_is_sent_to_a_webhook_that_is_no_more(
    database: str, runner: Run, receiver: Receiver, path: str, end: Any, why: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house:
            webhook = await house.register(f"{receiver.url}/ok/{path}")
            [delivery] = await house.put(webhook)
            await house.play(
                webhook.webhook_id, end(at=house.clock(), webhook_id=webhook.webhook_id, team_id="research")
            )
            async with house.sending():
                over = await house.until(delivery, status="failed")
            assert f"the webhook is {why}" == over["last_error"]
            assert [] == receiver.at(f"/ok/{path}")

    runner(story())


# -- receivers that are not what they should be ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_is_not_followed(
    database: str, runner: Run, receiver: Receiver, path: str, status: int
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            [delivery] = await house.put(await house.register(f"{receiver.url}/status-{status}/{path}"))
            failed = await house.until(delivery, attempts=1)
            assert ("pending", status) == (failed["status"], failed["response_status"])
            assert [] == receiver.at("/ok/redirected")

    runner(story())


@pytest.mark.parametrize("status", [199, 300, 304, 400, 401, 404, 429, 500, 999])
def test_only_200_to_299_is_success(database: str, runner: Run, receiver: Receiver, path: str, status: int) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending(attempt_s=2.0):
            [delivery] = await house.put(await house.register(f"{receiver.url}/status-{status}/{path}"))
            assert "pending" == (await house.until(delivery, attempts=1))["status"]

    runner(story())


def test_a_receiver_that_says_nothing_is_given_up(database: str, runner: Run, receiver: Receiver, path: str) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending(attempt_s=0.2):
            [delivery] = await house.put(await house.register(f"{receiver.url}/dead/{path}"))
            failed = await house.until(delivery, attempts=1)
            assert ("pending", None, "no answer in time") == (
                failed["status"],
                failed["response_status"],
                failed["last_error"],
            )

    runner(story())


def test_a_receiver_that_never_stops_talking_is_not_listened_to(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            [delivery] = await house.put(await house.register(f"{receiver.url}/chatter/{path}"))
            await house.until(delivery, status="delivered")

    runner(story())


def test_what_is_not_http_is_a_failure(database: str, runner: Run, receiver: Receiver, path: str) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            [delivery] = await house.put(await house.register(f"{receiver.url}/garbage/{path}"))
            failed = await house.until(delivery, attempts=1)
            assert ("pending", "the answer is not HTTP") == (failed["status"], failed["last_error"])

    runner(story())


def test_where_nobody_listens_is_a_failure(database: str, runner: Run) -> None:
    async def story(url: str) -> None:
        async with a_house(database) as house, house.sending():
            [delivery] = await house.put(await house.register(url))
            failed = await house.until(delivery, attempts=1)
            assert ("pending", "no connection") == (failed["status"], failed["last_error"])

    with socket.socket() as taken:  # so that nobody else comes to listen there
        taken.bind(("127.0.0.1", 0))
        runner(story(f"http://127.0.0.1:{taken.getsockname()[1]}/"))


def test_a_secret_that_cannot_be_read_is_a_failure_and_keeps_nobody_waiting(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            webhook = await house.register(f"{receiver.url}/ok/{path}")
            await house.secrets.delete(UUID(webhook.secret_id))
            [delivery] = await house.put(webhook)
            failed = await house.until(delivery, attempts=1)
            assert "the webhook's secret cannot be read" == failed["last_error"]
            assert [] == receiver.at(f"/ok/{path}")

    runner(story())


# -- addresses that are nobody's business ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_a_private_address_is_refused_before_anything_is_connected(
    database: str, runner: Run, receiver: Receiver, path: str, host: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending(allow_private=False):
            webhook = await house.register(f"http://{host}:{receiver.port}/ok/{path}")
            [delivery] = await house.put(webhook)
            failed = await house.until(delivery, attempts=1)
            assert ("pending", "the address is not public") == (failed["status"], failed["last_error"])
            assert [] == receiver.at(f"/ok/{path}")

    runner(story())


@contextmanager
def rebinding(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Iterator[None]:
    """A name server that gives another address each time that `rebind.example` is asked for."""
    real, remaining = socket.getaddrinfo, list(answers)

    def look_up(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        if host != "rebind.example":
            return real(host, port, *more, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (remaining.pop(0), port))]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", look_up)
        yield


def test_a_name_that_has_moved_to_a_private_address_is_refused_at_the_attempt(
    database: str, runner: Run, receiver: Receiver, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.addresses import check_url

    async def story() -> None:
        url = f"http://rebind.example:{receiver.port}/ok/{path}"
        with rebinding(monkeypatch, "93.184.215.14", "127.0.0.1", "169.254.169.254"):
            await check_url(url)
            async with a_house(database) as house, house.sending(allow_private=False):
                [delivery] = await house.put(await house.register(url))
                first = await house.until(delivery, attempts=1)
                assert "the address is not public" == first["last_error"]
                house.forward(timedelta(seconds=6))
                second = await house.until(delivery, attempts=2)
                assert "the address is not public" == second["last_error"]
        assert [] == receiver.at(f"/ok/{path}")

    runner(story())


# -- nobody is harmed by somebody else's receiver ----------------------------------------------------------------------


def test_a_dead_receiver_holds_up_only_itself(database: str, runner: Run, receiver: Receiver, path: str) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending(attempt_s=60.0) as sender:
            dead = await house.register(f"{receiver.url}/dead/{path}")
            healthy = await house.register(f"{receiver.url}/ok/{path}")
            await house.put(dead, 500)
            await came(receiver, AT_ONCE_BY_WEBHOOK, f"/dead/{path}")
            deliveries = await house.put(healthy, 20)
            for delivery in deliveries:
                await house.until(delivery, status="delivered")
            assert AT_ONCE_BY_WEBHOOK == receiver.at_once[f"/dead/{path}"] == len(receiver.at(f"/dead/{path}"))
            await kill(sender)

    runner(story())


def test_a_team_with_many_dead_receivers_holds_up_only_itself(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending(attempt_s=60.0) as sender:
            for number in range(10):
                await house.put(await house.register(f"{receiver.url}/dead/{path}/{number}"), 10, team_id="unlucky")
            await came(receiver, AT_ONCE_BY_TEAM, f"/dead/{path}")
            [delivery] = await house.put(await house.register(f"{receiver.url}/ok/{path}"), team_id="lucky")
            await house.until(delivery, status="delivered")
            assert AT_ONCE_BY_TEAM == len(receiver.at(f"/dead/{path}"))
            await kill(sender)

    runner(story())


def test_a_dead_host_of_many_teams_takes_no_more_than_its_share(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending(attempt_s=60.0) as sender:
            for number in range(AT_ONCE_BY_HOST):
                webhook = await house.register(f"{receiver.url}/dead/{path}/{number}")
                await house.put(webhook, 2, team_id=f"team-{number}")
            await came(receiver, AT_ONCE_BY_HOST, f"/dead/{path}")
            await house.look(receiver)
            assert AT_ONCE_BY_HOST == len(receiver.at(f"/dead/{path}"))
            await kill(sender)

    runner(story())


def test_a_backlog_of_one_webhook_lets_the_first_of_another_pass(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house:
            busy = await house.register(f"{receiver.url}/slow-20/{path}")
            quiet = await house.register(f"{receiver.url}/ok/{path}")
            await house.put(busy, 1000, team_id="busy")
            house.forward(timedelta(seconds=1))
            [delivery] = await house.put(quiet, team_id="quiet")
            async with house.sending() as sender:
                await house.until(delivery, status="delivered")
                came_in = [request.path for request in receiver.requests if request.path.endswith(path)]
                assert AT_ONCE_BY_WEBHOOK >= came_in.index(f"/ok/{path}")
                await kill(sender)

    runner(story())


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_what_a_killed_sender_had_begun_is_sent_again_by_another_one(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house:
            [delivery] = await house.put(webhook := await house.register(f"{receiver.url}/held/{path}"))
            victim = house.sender()
            await victim.start()
            await came(receiver, 1, f"/held/{path}")
            await kill(victim)
            receiver.let_go(f"/held/{path}")
            async with house.sending():
                await house.look(receiver)
                assert 1 == len(receiver.at(f"/held/{path}"))
                house.forward(LEASE)
                await house.until(delivery, status="delivered", attempts=1)
                [first, second] = receiver.at(f"/held/{path}")
                assert first.message_id == second.message_id
                StandardWebhook(webhook.secret).verify(second.body, second.headers)

    runner(story())


def test_a_sender_that_stops_finishes_what_it_has_begun(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house:
            webhook = await house.register(f"{receiver.url}/held/{path}")
            deliveries = await house.put(webhook, AT_ONCE_BY_WEBHOOK + 1)
            sender = house.sender()
            await sender.start()
            await came(receiver, AT_ONCE_BY_WEBHOOK, f"/held/{path}")
            stopping = asyncio.create_task(sender.stop())
            await eventually(lambda: sender._closing)
            receiver.let_go(f"/held/{path}")
            await stopping
            states = sorted([(await house.state(delivery))["status"] for delivery in deliveries])
            assert ["delivered"] * AT_ONCE_BY_WEBHOOK + ["pending"] == states

    runner(story())


def test_a_sender_does_not_wait_for_ever_when_it_stops(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house:
            [delivery] = await house.put(await house.register(f"{receiver.url}/dead/{path}"))
            sender = house.sender(attempt_s=3600.0)
            await sender.start()
            await came(receiver, 1, f"/dead/{path}")
            await sender.stop(0.1)
            state = await house.state(delivery)
            assert ("pending", 0) == (state["status"], state["attempts"])

    runner(story())


def test_several_senders_send_each_delivery_once(database: str, runner: Run, receiver: Receiver, path: str) -> None:
    async def story() -> None:
        async with a_house(database) as house:
            webhook = await house.register(f"{receiver.url}/ok/{path}")
            deliveries = await house.put(webhook, 200)
            async with house.sending(), house.sending(), house.sending():
                for delivery in deliveries:
                    await house.until(delivery, status="delivered")
            assert {f"msg_{each}" for each in deliveries} == {each.message_id for each in receiver.at(f"/ok/{path}")}
            assert 200 == len(receiver.at(f"/ok/{path}"))

    runner(story())


def test_a_sender_whose_connection_breaks_goes_on(database: str, runner: Run, receiver: Receiver, path: str) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending():
            webhook = await house.register(f"{receiver.url}/held/{path}")
            [delivery] = await house.put(webhook)
            await came(receiver, 1, f"/held/{path}")
            with psycopg.connect(database, autocommit=True) as owner:
                owner.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and application_name = 'sender'"
                )
            receiver.let_go(f"/held/{path}")
            await house.until(delivery, status="delivered", attempts=1)
            assert 1 == len(receiver.at(f"/held/{path}"))
            [another] = await house.put(webhook)
            await house.until(another, status="delivered")

    runner(story())


def test_a_new_delivery_is_sent_at_once_when_the_sender_is_told(
    database: str, runner: Run, receiver: Receiver, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "IDLE_SECONDS", 3600.0)

    async def story() -> None:
        async with a_house(database) as house, house.sending():
            webhook = await house.register(f"{receiver.url}/ok/{path}")
            for _ in range(3):
                [delivery] = await house.put(webhook)
                await house.until(delivery, status="delivered")

    runner(story())


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_what_is_over_is_forgotten_after_a_month_but_for_the_last_of_each_webhook(
    database: str, runner: Run, receiver: Receiver, path: str
) -> None:
    async def story() -> None:
        async with a_house(database) as house, house.sending() as sender:
            webhook = await house.register(f"{receiver.url}/ok/{path}")
            [old] = await house.put(webhook)
            await house.until(old, status="delivered")
            house.forward(MOMENT)
            [last] = await house.put(webhook)
            await house.until(last, status="delivered")
            await sender.stop()
            [waiting] = await house.put(webhook)
            async with house.pool.connection() as connection:
                for expected in (1, 0):
                    cursor = await connection.execute(webhooks.PURGE, (house.clock() + MOMENT, 100))
                    assert expected == cursor.rowcount
            assert "delivered" == (await house.state(last))["status"]
            assert "pending" == (await house.state(waiting))["status"]

    runner(story())
