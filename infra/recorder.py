"""The eventsourcing library's door to the journal: its applications, notification logs and subscriptions work on it.

    PERSISTENCE_MODULE=infra.recorder DATABASE_URL=postgresql://...

What they write goes through journal.append like everything else. In a file of its own, and never imported by the
server: the import takes a third of a second, patches the dataclasses of the standard library and changes log levels.

The library's setting POSTGRES_ENABLE_DB_FUNCTIONS has no meaning here. Its own function inserts without a lock, so
readers that follow the log miss events for ever.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from eventsourcing import persistence, postgres
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import IntegrityError, NotSupportedError, StoredEvent
from eventsourcing.utils import Environment, EnvType
from psycopg import Connection
from psycopg.rows import dict_row

from domain.event import Event
from domain.streams import decode
from infra.journal import APPEND, Draft, encode
from infra.postgres import APP_ROLE, STEP_DOWN

POLL_SECONDS = 0.1
STATEMENT_TIMEOUT_MS = 30_000


class JournalDatastore(postgres.PostgresDatastore):
    """Connections that work as the application's role.

    Args:
        dsn: the database.
        size: connections at most.
    """

    def __init__(self, dsn: str, *, size: int = 5) -> None:
        super().__init__(
            dbname="",
            host="",
            port="",
            user="",
            password="",
            schema="journal",
            originator_id_type="text",
            pool_size=1,
            max_overflow=size - 1,
        )
        # The library knows five parts of an address; a DSN may say more, such as how to encrypt.
        self.pool.conninfo = dsn
        self.pool.kwargs = {"row_factory": dict_row}

    def after_connect_func(self) -> Callable[[Connection[Any]], None]:
        configure = super().after_connect_func()

        def step_down(connection: Connection[Any]) -> None:
            configure(connection)
            connection.execute(STEP_DOWN, [APP_ROLE, str(STATEMENT_TIMEOUT_MS)])

        return step_down


class JournalRecorder(postgres.PostgresApplicationRecorder):
    """Records through journal.append, and reads the table of the journal with the library's own statements."""

    def __init__(self, datastore: JournalDatastore) -> None:
        super().__init__(datastore, events_table_name="events")

    def create_table(self) -> None:
        """Does nothing: the migrations make the journal."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        """Appends events, all of them or none.

        A connection that breaks is not tried again, since the first attempt may have been written.

        Returns:
            Their positions.

        Raises:
            IntegrityError: a stream has moved on, or its versions do not follow one another.
            NotSupportedError: something else than events was to be recorded with them.
        """
        if any(value is not None for value in kwargs.values()):
            raise NotSupportedError(f"the journal records events only, not {', '.join(kwargs)}")
        draft = Draft()
        for event in stored_events:
            stream = str(event.originator_id)
            draft.read.setdefault(stream, event.originator_version - 1)
            draft.add(stream, event.topic, event.state)
        if draft.versions != [event.originator_version for event in stored_events]:
            raise IntegrityError("the versions of a stream must follow one another")
        with self.datastore.get_connection() as connection:
            row = connection.execute(APPEND, draft.arguments).fetchone()
        assert row is not None
        if row["stale"]:
            raise IntegrityError(f"these streams have moved on: {', '.join(row['stale'])}")
        head = row["head_position"]
        return list(range(head - len(stored_events) + 1, head + 1))

    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> persistence.Subscription[persistence.ApplicationRecorder]:
        return JournalSubscription(recorder=self, gt=gt, topics=topics)


class JournalSubscription(postgres.PostgresSubscription):
    """Looks for news by itself: an append notifies nobody, since NOTIFY takes a lock on the whole server at commit."""

    def _listen(self) -> None:
        while not self._has_been_stopped and self._thread_error is None:
            self._has_been_notified.set()
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Entry:
    """One of our events, with what the library wants to know about an event."""

    originator_id: str
    originator_version: int
    event: Event


class JournalMapper(persistence.Mapper[str]):
    """Maps entries to what the journal keeps of them: the name of the event and its JSON, neither packed nor sealed."""

    def __init__(
        self,
        transcoder: persistence.Transcoder,
        compressor: persistence.Compressor | None = None,
        cipher: persistence.Cipher | None = None,
    ) -> None:
        if compressor is not None or cipher is not None:
            raise NotSupportedError("events of the journal are plain JSON")
        super().__init__(transcoder)

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        entry = cast("Entry", domain_event)
        return StoredEvent(
            originator_id=entry.originator_id,
            originator_version=entry.originator_version,
            topic=type(entry.event).__name__,
            state=encode(entry.event),
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Entry:
        return Entry(
            originator_id=str(stored_event.originator_id),
            originator_version=stored_event.originator_version,
            event=decode(stored_event.topic, stored_event.state),
        )


class JournalFactory(persistence.InfrastructureFactory[persistence.TrackingRecorder]):
    """What `PERSISTENCE_MODULE=infra.recorder` finds.

    It keeps events only: who follows them keeps snapshots, and how far it is, elsewhere.
    """

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        dsn = self.env.get("DATABASE_URL")
        if not dsn:
            raise persistence.InfrastructureFactoryError("DATABASE_URL is not set")
        self.datastore = JournalDatastore(dsn)

    def mapper(
        self, transcoder: persistence.Transcoder | None = None, mapper_class: Any = None
    ) -> persistence.Mapper[Any]:
        """JournalMapper, unless the application or MAPPER_TOPIC names another."""
        if mapper_class is None and not self.env.get(self.MAPPER_TOPIC):
            mapper_class = JournalMapper
        return super().mapper(transcoder, mapper_class)

    def application_recorder(self) -> JournalRecorder:
        return JournalRecorder(self.datastore)

    def aggregate_recorder(self, purpose: str = "events") -> persistence.AggregateRecorder:
        raise NotSupportedError("the journal keeps no snapshots of others")

    def tracking_recorder(
        self, tracking_recorder_class: type[persistence.TrackingRecorder] | None = None
    ) -> persistence.TrackingRecorder:
        raise NotSupportedError("the journal keeps no tracking")

    def process_recorder(self) -> persistence.ProcessRecorder:
        raise NotSupportedError("the journal keeps no tracking")

    def close(self) -> None:
        self.datastore.close()
