"""The eventsourcing library works on our journal: its own recorder tests, a notification log, a follower."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from eventsourcing import cryptography
from eventsourcing.application import Application, ProcessingEvent
from eventsourcing.compressor import ZlibCompressor
from eventsourcing.persistence import (
    IntegrityError,
    JSONTranscoder,
    NotSupportedError,
    ProgrammingError,
    StoredEvent,
)
from eventsourcing.system import ProcessApplication

from domain.credit import AccountOpened, CreditsGranted
from infra.recorder import Entry, JournalDatastore, JournalMapper, JournalRecorder
from infra.verify import verify
from tests.infra.accounts import (
    ACCOUNT,
    NOON,
    OTHER,
    a_ledger,
    everything,
    grant_credits,
    granting,
    open_with,
    spend,
    spending,
)

# The library's tests import a cipher that needs another package, for cases that are not ours; this is its twin.
sys.modules.setdefault("eventsourcing.cipher", cryptography)
library = importlib.import_module("eventsourcing.tests.persistence")

Run = Callable[[Coroutine[Any, Any, Any]], Any]

OPENED = AccountOpened(at=NOON, by="key-1", request="request-1", team_id="research", organization_id="acme")


class FromOne(JournalRecorder):
    """Two of the library's cases number their events from 0; a stream of ours begins with 1."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        shifted = [
            StoredEvent(each.originator_id, each.originator_version + 1, each.topic, each.state)
            for each in stored_events
        ]
        return super().insert_events(shifted, **kwargs)


class OurRecorder:
    """What a test case of the library needs to run on our journal."""

    recorder_class: type[JournalRecorder] = JournalRecorder

    @pytest.fixture(autouse=True)
    def _on(self, database: str) -> Iterator[None]:
        with JournalDatastore(database, size=12) as self.datastore:
            yield

    def create_recorder(self) -> JournalRecorder:
        return self.recorder_class(self.datastore)

    def new_originator_id(self) -> str:
        # Streams have names; the library's default is a bare uuid.
        return f"job-{uuid4()}"


class TestApplicationRecorder(OurRecorder, library.ApplicationRecorderTestCase):  # type: ignore[name-defined, misc]
    def test_concurrent_no_conflicts(self) -> None:
        self.recorder_class = FromOne
        super().test_concurrent_no_conflicts()

    def test_concurrent_throughput(self) -> None:
        self.recorder_class = FromOne
        super().test_concurrent_throughput()

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestNonInterleaving(OurRecorder, library.NonInterleavingNotificationIDsBaseCase):  # type: ignore[name-defined, misc]
    recorder_class = FromOne


@pytest.fixture
def recorder(database: str) -> Iterator[JournalRecorder]:
    with JournalDatastore(database) as datastore:
        yield JournalRecorder(datastore)


@pytest.fixture
def app(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application[str]]:
    """An application of the library, with the setting that must have no meaning here."""
    # The library lets the environment of the process win over what an application is given.
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("POSTGRES_ENABLE_DB_FUNCTIONS", "yes")
    application: Application[str] = Application(env={"PERSISTENCE_MODULE": "infra.recorder"})
    yield application
    application.close()


def stored(version: int, stream: str = ACCOUNT, state: bytes = b"{}") -> StoredEvent:
    return StoredEvent(stream, version, "AccountOpened", state)


# -- one door ----------------------------------------------------------------------------------------------------------


def test_what_the_library_records_is_part_of_the_chain(database: str, recorder: JournalRecorder) -> None:
    assert [1, 2, 3] == recorder.insert_events([stored(1), stored(1, OTHER), stored(2)])

    with psycopg.connect(database, autocommit=True) as connection:
        assert (None, 3) == ((found := verify(connection)).first_break, found.events)


@pytest.mark.parametrize("versions", [[2], [0], [1, 3], [1, 1], [2, 1], [-1]])
def test_versions_cannot_be_invented(recorder: JournalRecorder, versions: list[int]) -> None:
    with pytest.raises(IntegrityError):
        recorder.insert_events([stored(version) for version in versions])

    assert [] == recorder.select_notifications(None, 10)


def test_nothing_to_record_is_nothing(recorder: JournalRecorder) -> None:
    assert [] == recorder.insert_events([])
    assert recorder.max_notification_id() is None


def test_tracking_is_refused_rather_than_dropped(recorder: JournalRecorder) -> None:
    with pytest.raises(NotSupportedError, match="tracking"):
        recorder.insert_events([stored(1)], tracking=object())

    assert [] == recorder.select_events(ACCOUNT)


def test_the_library_cannot_write_past_the_door(recorder: JournalRecorder) -> None:
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        recorder.datastore.transaction(commit=True) as cursor,
    ):
        cursor.execute("insert into journal.events values ('job-1', 1, 'JobCreated', '{}', 1, sha256(''))")


def test_the_librarys_own_insert_function_is_neither_made_nor_used(database: str, app: Application[str]) -> None:
    """With POSTGRES_ENABLE_DB_FUNCTIONS it inserts without a lock: readers that follow miss events for ever."""
    recorder = app.recorder
    assert isinstance(recorder, JournalRecorder)
    recorder.insert_events([stored(1)])
    recorder.datastore.enable_db_functions = True
    recorder.insert_events([stored(2)])

    with psycopg.connect(database, autocommit=True) as connection:
        functions = connection.execute("select proname from pg_proc where proname like 'es_insert%'").fetchall()
        types = connection.execute("select typname from pg_type where typname like 'stored_event%'").fetchall()
        assert ([], []) == (functions, types)
        assert verify(connection).first_break is None


# -- applications ------------------------------------------------------------------------------------------------------


def test_an_application_reads_what_the_ledger_wrote(database: str, runner: Run, app: Application[str]) -> None:
    async def story() -> None:
        async with a_ledger(database) as ledger:
            await open_with(ledger, 5)
            await ledger.carry_out(spend, spending(), ACCOUNT)

    runner(story())
    recorded = runner(everything(database))

    section = app.notification_log["1,10"]
    assert ("1,3", None) == (section.id, section.next_id)
    assert [(1, ACCOUNT, 1), (2, ACCOUNT, 2), (3, ACCOUNT, 3)] == [
        (item.id, item.originator_id, item.originator_version) for item in section.items
    ]
    assert [event.event for event in recorded] == [app.mapper.to_domain_event(item).event for item in section.items]  # type: ignore[attr-defined]
    assert ["CreditsGranted"] == [each.topic for each in app.notification_log.select(1, 10, topics=["CreditsGranted"])]


def test_an_application_writes_what_the_ledger_reads(database: str, runner: Run, app: Application[str]) -> None:
    granted = CreditsGranted(
        at=NOON,
        by="key-1",
        request="request-2",
        transaction_id="grant-1",
        team_id="research",
        organization_id="acme",
        credits=7,
        remaining_credits=7,
        held_credits=0,
        kind="allocation",
    )
    recordings = app.events.put([Entry(ACCOUNT, 1, OPENED), Entry(ACCOUNT, 2, granted)])
    assert [1, 2] == [recording.notification.id for recording in recordings]
    assert [Entry(ACCOUNT, 1, OPENED), Entry(ACCOUNT, 2, granted)] == list(app.events.get(ACCOUNT))

    async def story() -> None:
        async with a_ledger(database) as ledger:
            assert 6 == (await ledger.carry_out(spend, spending(), ACCOUNT)).states[0].remaining

    runner(story())


class Bookkeeper(ProcessApplication[str]):
    """Adds up what was granted; its own events are kept elsewhere."""

    env = {"MAPPER_TOPIC": "infra.recorder:JournalMapper", "ORIGINATOR_ID_TYPE": "text"}
    granted = 0

    def policy(self, domain_event: Any, processing_event: ProcessingEvent[str]) -> None:
        if isinstance(domain_event.event, CreditsGranted):
            self.granted += domain_event.event.credits


def test_an_application_follows_and_takes_each_event_once(database: str, runner: Run, app: Application[str]) -> None:
    async def grant(credits: int) -> None:
        async with a_ledger(database) as ledger:
            await ledger.carry_out(grant_credits, granting(credits), ACCOUNT)

    async def story() -> None:
        async with a_ledger(database) as ledger:
            await open_with(ledger, 5)

    runner(story())
    with Bookkeeper() as bookkeeper:
        bookkeeper.follow("ledger", app.notification_log)
        for _ in range(2):
            bookkeeper.pull_and_process("ledger")
            assert 5 == bookkeeper.granted
        runner(grant(7))
        bookkeeper.pull_and_process("ledger")
        assert 12 == bookkeeper.granted


def test_a_follower_is_told_of_news_that_nobody_notifies(database: str, runner: Run, app: Application[str]) -> None:
    async def story() -> None:
        async with a_ledger(database) as ledger:
            await open_with(ledger, 5)

    with app.recorder.subscribe(gt=0) as subscription:
        runner(story())
        assert [1, 2] == [next(subscription).id, next(subscription).id]


def test_the_journal_keeps_nothing_else_for_the_library(app: Application[str]) -> None:
    for keep in (app.factory.aggregate_recorder, app.factory.tracking_recorder, app.factory.process_recorder):
        with pytest.raises(NotSupportedError):
            keep()


def test_events_of_the_journal_are_neither_packed_nor_sealed() -> None:
    with pytest.raises(NotSupportedError):
        JournalMapper(JSONTranscoder(), compressor=ZlibCompressor())


def test_the_server_starts_without_the_library() -> None:
    """Its import takes time and patches the standard library."""
    code = "import sys, infra.ledger, infra.verify, projections.engine; print('eventsourcing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "False" == done.stdout.strip()
