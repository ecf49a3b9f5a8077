"""What the server says to the journal in PostgreSQL: load streams, check them, append through the one door, read on.

All statements about schema `journal` stand here; the tables and the door itself are in sql/0001_journal.sql.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
from psycopg import AsyncConnection

from domain.event import Event, State
from domain.streams import category_of, decode

Connection = AsyncConnection[tuple[object, ...]]

LOAD_BYTES = 16 << 20  # how much history one query brings into memory, but for one long stream

encode = msgspec.json.Encoder().encode


class Versioned(NamedTuple):
    """A state, and the version of its stream that it stands for; version 0 is a stream without events."""

    version: int
    state: State | None
    size: int = 0  # bytes of the events and the snapshot it was made from
    unsaved: int = 0  # events since the last snapshot


NOTHING = Versioned(0, None)


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An event as the journal has it."""

    position: int
    stream: str
    version: int
    event: Event


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that is kept for a repeat of the same request."""

    status: int
    body: bytes
    encrypted: bool = False


@dataclass(slots=True)
class Draft:
    """What one append carries: the versions it rests on, the events, and the answers kept for repeats."""

    read: dict[str, int] = field(default_factory=dict)
    streams: list[str] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)
    claims: list[str] = field(default_factory=list)
    answer_statuses: list[int] = field(default_factory=list)
    answer_bodies: list[bytes] = field(default_factory=list)
    answer_encrypted: list[bool] = field(default_factory=list)
    size: int = 0  # bytes of events and answers

    def add(self, stream: str, topic: str, state: bytes) -> None:
        self.streams.append(stream)
        self.topics.append(topic)
        self.states.append(state)
        self.size += len(state)

    def keep(self, claim_id: str, answer: Answer) -> None:
        self.claims.append(claim_id)
        self.answer_statuses.append(answer.status)
        self.answer_bodies.append(answer.body)
        self.answer_encrypted.append(answer.encrypted)
        self.size += len(answer.body)

    @property
    def writes(self) -> bool:
        return bool(self.streams or self.claims)

    @property
    def arguments(self) -> tuple[object, ...]:
        """The arguments of journal.append, in their order."""
        index = {stream: number for number, stream in enumerate(self.read, start=1)}
        return (
            list(self.read),
            list(self.read.values()),
            [index[stream] for stream in self.streams],
            self.topics,
            self.states,
            self.claims,
            self.answer_statuses,
            self.answer_bodies,
            self.answer_encrypted,
        )

    @property
    def versions(self) -> list[int]:
        """The version that each event gets."""
        latest = dict(self.read)
        versions = []
        for stream in self.streams:
            latest[stream] += 1
            versions.append(latest[stream])
        return versions


@dataclass(frozen=True, slots=True)
class Appended:
    """Where the head is now, and what was stale; if anything was, nothing has been written."""

    position: int
    stale: tuple[str, ...]


APPEND = """
select head_position, stale
from journal.append(%b::text[], %b::bigint[], %b::integer[], %b::text[], %b::bytea[],
                    %b::uuid[], %b::smallint[], %b::bytea[], %b::boolean[])
"""

_CHECK = """
select (select position from journal.head), journal.stale(%b::text[], %b::bigint[])
"""

# The lateral parts keep the planner from reading the whole journal, whatever it believes about the number of streams.
# What counts towards the limit is what stands before a stream, so that the first one always comes.
_LOAD = """
select stream, snapshot_version, snapshot_state, version, topic, state
from (
    select wanted.stream, wanted.ordinal, snapshot.version as snapshot_version, snapshot.state as snapshot_state,
           event.version, event.topic, event.state,
           sum(octet_length(event.state)) over (
               order by wanted.ordinal range between unbounded preceding and 1 preceding) as bytes_before
    from unnest(%b::text[], %b::integer[]) with ordinality as wanted (stream, category_version, ordinal)
    left join lateral (
        select kept.version, kept.state
        from journal.snapshots as kept
        where kept.stream = wanted.stream and kept.category_version = wanted.category_version
    ) as snapshot on true
    left join lateral (
        select each.originator_version as version, each.topic, each.state
        from journal.events as each
        where each.originator_id = wanted.stream and each.originator_version > coalesce(snapshot.version, 0)
        order by each.originator_version
    ) as event on true
) as loaded
where coalesce(bytes_before, 0) < %b
order by ordinal, version
"""

_NO_SNAPSHOT = 0  # category versions begin with 1

_SNAPSHOT = """
insert into journal.snapshots as kept (stream, version, category_version, state)
values (%b, %b, %b, %b)
on conflict (stream) do update
set version = excluded.version, category_version = excluded.category_version, state = excluded.state
where kept.category_version <> excluded.category_version or kept.version < excluded.version
"""

_READ = """
select notification_id, originator_id, originator_version, topic, state
from journal.events
where notification_id > %b
order by notification_id
limit %b
"""

_STRETCH = """
select notification_id, originator_id, originator_version, topic, state
from journal.events
where notification_id > %b and notification_id <= %b and (%b::text[] is null or topic = any (%b))
order by notification_id
"""

_HISTORY = """
select notification_id, originator_id, originator_version, topic, state
from journal.events
where originator_id = %b
order by originator_version
"""

# The events stand one after the other as they were sent, and when the first was written, every stream that they
# rest on was where it had been read.
_WAS_APPENDED = """
with first as (
    select notification_id as position
    from journal.events
    where originator_id = (%(streams)b::text[])[1] and originator_version = (%(versions)b::bigint[])[1]
)
select cardinality(%(streams)b::text[]) = (
    select count(*)
    from unnest(%(streams)b::text[], %(versions)b::bigint[], %(topics)b::text[], %(states)b::bytea[])
        with ordinality as sent (stream, version, topic, state, ordinal)
    join journal.events as event
        on event.originator_id = sent.stream and event.originator_version = sent.version
    where event.topic = sent.topic and event.state = sent.state
        and event.notification_id = first.position + sent.ordinal - 1
) and not exists (
    select
    from unnest(%(read)b::text[], %(read_versions)b::bigint[]) as read (stream, version)
    join journal.events as event
        on event.originator_id = read.stream and event.originator_version in (read.version, read.version + 1)
    where (event.notification_id < first.position) <> (event.originator_version = read.version)
)
from first
"""

_WAS_ANSWERED = """
select exists (select from app.idempotency where claim_id = %b::uuid and state = 'finished')
"""


async def append(connection: Connection, draft: Draft) -> Appended:
    """Writes the draft, all of it or nothing, in one round trip."""
    return await _appended(connection, APPEND, draft.arguments)


async def check(connection: Connection, read: dict[str, int]) -> Appended:
    """Says which of these streams have moved on, as of one moment, without writing or locking anything."""
    return await _appended(connection, _CHECK, (list(read), list(read.values())))


async def _appended(connection: Connection, statement: str, arguments: Sequence[object]) -> Appended:
    cursor = await connection.execute(statement, arguments)
    row = await cursor.fetchone()
    assert row is not None
    position, stale = row
    assert isinstance(position, int)
    assert isinstance(stale, list)
    return Appended(position, tuple(stale))


async def lock(connection: Connection) -> int:
    """Takes the writer lock until the end of the transaction, and says where the head is.

    Nothing is appended by anybody else meanwhile, and what somebody was appending is there or never will be.
    """
    return await _number(connection, "select journal.lock_head()")


async def was_appended(connection: Connection, draft: Draft) -> bool:
    """Whether just this draft was written; to be asked under the writer lock.

    Attempts at one batch may differ in what they rest on and have their first events in common, so it is not enough
    to look for these.
    """
    if not draft.streams:
        cursor = await connection.execute(_WAS_ANSWERED, (draft.claims[0],))
    else:
        sent = {
            "streams": draft.streams,
            "versions": draft.versions,
            "topics": draft.topics,
            "states": draft.states,
            "read": list(draft.read),
            "read_versions": list(draft.read.values()),
        }
        cursor = await connection.execute(_WAS_APPENDED, sent)
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def load(
    connection: Connection, streams: Sequence[str], *, snapshots: bool = True
) -> dict[str, Versioned | Exception]:
    """States of the streams, from snapshot and tail, in one query.

    Args:
        snapshots: False folds from the first event on.

    Returns:
        For each stream its state, or the exception that one of its events raised: one broken stream must not keep
        the others from being served. Streams at the end are left out if it would be too much at once.
    """
    versions = [category_of(stream).version if snapshots else _NO_SNAPSHOT for stream in streams]
    cursor = await connection.execute(_LOAD, (list(streams), versions, LOAD_BYTES), binary=True)
    loaded: dict[str, Versioned | Exception] = {}
    suspect: list[str] = []
    for stream, rows in groupby(await cursor.fetchall(), itemgetter(0)):
        history = list(rows)
        try:
            loaded[stream] = _fold(stream, history)
        except Exception as problem:  # noqa: BLE001 whatever is wrong with this stream is answered to who asks for it
            if history[0][1] is None:
                loaded[stream] = problem
            else:
                suspect.append(stream)
    if suspect:
        # A snapshot that nobody understands must cost time, never the stream.
        loaded |= await load(connection, suspect, snapshots=False)
    return loaded


def _fold(stream: str, history: Sequence[tuple[Any, ...]]) -> Versioned:
    category = category_of(stream)
    _, version, snapshot, *_ = history[0]
    state, size, unsaved = None, 0, 0
    if version is not None:
        state, size = msgspec.json.decode(snapshot, type=category.state), len(snapshot)
    for _, _, _, event_version, topic, event in history:
        if event_version is not None:
            state = category.evolve(state, decode(topic, event))
            version, size, unsaved = event_version, size + len(event), unsaved + 1
    return Versioned(version or 0, state, size, unsaved)


async def history(connection: Connection, stream: str) -> list[Recorded]:
    """All events of a stream that is known to be short.

    Raises:
        PoisonEvent: one of them cannot be decoded.
    """
    cursor = await connection.execute(_HISTORY, (stream,), binary=True)
    return [_recorded(*row) for row in await cursor.fetchall()]


async def save_snapshot(connection: Connection, stream: str, versioned: Versioned) -> None:
    state = encode(versioned.state)
    await connection.execute(_SNAPSHOT, (stream, versioned.version, category_of(stream).version, state))


async def position(connection: Connection) -> int:
    """Where the head of the journal is."""
    return await _number(connection, "select position from journal.head")


async def _number(connection: Connection, statement: str) -> int:
    cursor = await connection.execute(statement.encode())
    row = await cursor.fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


async def read(connection: Connection, after: int, limit: int) -> list[Recorded]:
    """The next events behind a position, in the order of the journal.

    Raises:
        PoisonEvent: one of them cannot be decoded.
    """
    cursor = await connection.execute(_READ, (after, limit), binary=True)
    return [_recorded(*row) for row in await cursor.fetchall()]


async def stretch(
    connection: Connection, after: int, until: int, kinds: Iterable[type[Event]] | None = None
) -> list[Recorded]:
    """The events behind a position up to another one, of some kinds or all; where some are missing, fewer.

    Raises:
        PoisonEvent: one of them cannot be decoded.
    """
    topics = None if kinds is None else [kind.__name__ for kind in kinds]
    cursor = await connection.execute(_STRETCH, (after, until, topics, topics), binary=True)
    return [_recorded(*row) for row in await cursor.fetchall()]


def _recorded(position: object, stream: object, version: object, topic: object, state: object) -> Recorded:
    try:
        return Recorded(position, stream, version, decode(topic, state))  # type: ignore[arg-type]
    except (KeyError, msgspec.DecodeError) as problem:
        raise PoisonEvent(f"event {position} ({topic}) cannot be decoded: {problem}") from problem


class PoisonEvent(Exception):
    """An event that nobody can read: somebody has to look at it, nothing may step over it."""


async def read_all(connection: Connection, after: int, page: int = 2000) -> AsyncGenerator[list[Recorded], None]:
    """All events behind a position, page by page, up to where the head is when it gets there."""
    while events := await read(connection, after, page):
        yield events
        after = events[-1].position
