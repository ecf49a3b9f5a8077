"""What the server says to the journal in PostgreSQL: load streams, check them, append through the one door, read on.

All statements about schema `journal` stand here; the tables and the door itself are in sql/0001_journal.sql.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import msgspec
from psycopg import AsyncConnection

from domain.event import Event, State
from domain.streams import Category, category_of, decode

Connection = AsyncConnection[tuple[object, ...]]

_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Versioned:
    """A state, and the version of its stream that it stands for; version 0 is a stream without events."""

    version: int
    state: State | None


NOTHING = Versioned(0, None)


@dataclass(frozen=True, slots=True)
class Recorded:
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

    def add(self, stream: str, event: Event) -> None:
        self.streams.append(stream)
        self.topics.append(type(event).__name__)
        self.states.append(_ENCODER.encode(event))

    def keep(self, claim_id: str, answer: Answer) -> None:
        self.claims.append(claim_id)
        self.answer_statuses.append(answer.status)
        self.answer_bodies.append(answer.body)
        self.answer_encrypted.append(answer.encrypted)

    @property
    def writes(self) -> bool:
        return bool(self.streams or self.claims)


@dataclass(frozen=True, slots=True)
class Appended:
    """Where the head is now, and what was stale; if anything was, nothing has been written."""

    position: int
    stale: tuple[str, ...]


_APPEND = """
select head_position, stale
from journal.append(%b::text[], %b::bigint[], %b::integer[], %b::text[], %b::bytea[],
                    %b::uuid[], %b::smallint[], %b::bytea[], %b::boolean[])
"""

_CHECK = """
select (select position from journal.head), journal.stale(%b::text[], %b::bigint[])
"""

_LOAD = """
select wanted.stream, snapshot.version, snapshot.state, event.originator_version, event.topic, event.state
from unnest(%b::text[], %b::integer[]) as wanted (stream, category_version)
left join journal.snapshots as snapshot
    on snapshot.stream = wanted.stream and snapshot.category_version = wanted.category_version
left join journal.events as event
    on event.originator_id = wanted.stream and event.originator_version > coalesce(snapshot.version, 0)
order by wanted.stream, event.originator_version
"""

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

_CONTAINS = """
select exists (
    select from journal.events
    where originator_id = %b and originator_version = %b and topic = %b and state = %b)
"""


async def append(connection: Connection, draft: Draft) -> Appended:
    """Writes the draft, all of it or nothing, in one round trip."""
    read = list(draft.read)
    index = {stream: number for number, stream in enumerate(read, start=1)}
    arguments = (
        read,
        list(draft.read.values()),
        [index[stream] for stream in draft.streams],
        draft.topics,
        draft.states,
        draft.claims,
        draft.answer_statuses,
        draft.answer_bodies,
        draft.answer_encrypted,
    )
    return await _appended(connection, _APPEND, arguments)


async def check(connection: Connection, draft: Draft) -> Appended:
    """Says whether what the draft rests on is what the journal says now, without writing or locking anything."""
    return await _appended(connection, _CHECK, (list(draft.read), list(draft.read.values())))


async def _appended(connection: Connection, statement: str, arguments: Sequence[object]) -> Appended:
    cursor = await connection.execute(statement, arguments)
    row = await cursor.fetchone()
    assert row is not None
    position, stale = row
    assert isinstance(position, int)
    assert isinstance(stale, list)
    return Appended(position, tuple(stale))


async def lock(connection: Connection) -> None:
    """Takes the writer lock until the end of the transaction: nothing is appended by anybody else meanwhile."""
    await connection.execute("select journal.lock_head()")


async def load(connection: Connection, streams: Sequence[str]) -> dict[str, Versioned | Exception]:
    """States of the streams, from snapshot and tail, in one query.

    Returns:
        For each stream its state, or the exception that one of its events raised: one broken stream must not keep
        the others from being served.
    """
    versions = [category_of(stream).version for stream in streams]
    cursor = await connection.execute(_LOAD, (list(streams), versions))
    loaded: dict[str, Versioned | Exception] = {}
    for stream, snapshot_version, snapshot, version, topic, state in await cursor.fetchall():
        category = category_of(stream)  # type: ignore[arg-type]
        known = loaded.get(stream)  # type: ignore[call-overload]
        if isinstance(known, Exception):
            continue
        try:
            if known is None:
                known = _from_snapshot(category, snapshot_version, snapshot)
            if version is not None:
                known = Versioned(version, category.evolve(known.state, decode(topic, state)))  # type: ignore[arg-type]
            loaded[stream] = known  # type: ignore[index]
        except Exception as problem:  # noqa: BLE001 whatever is wrong with this stream is answered to who asks for it
            loaded[stream] = problem  # type: ignore[index]
    return loaded


def _from_snapshot(category: Category, version: object, state: object) -> Versioned:
    if not isinstance(version, int) or not isinstance(state, bytes):
        return NOTHING
    return Versioned(version, msgspec.json.decode(state, type=category.state))


async def save_snapshot(connection: Connection, stream: str, versioned: Versioned) -> None:
    state = _ENCODER.encode(versioned.state)
    await connection.execute(_SNAPSHOT, (stream, versioned.version, category_of(stream).version, state))


async def contains(connection: Connection, draft: Draft) -> bool:
    """Whether this draft was written, told by its first event. An append in flight is waited for."""
    stream, topic, state = draft.streams[0], draft.topics[0], draft.states[0]
    async with connection.transaction():
        await lock(connection)
        cursor = await connection.execute(_CONTAINS, (stream, draft.read[stream] + 1, topic, state))
        row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def position(connection: Connection) -> int:
    """Where the head of the journal is."""
    cursor = await connection.execute("select position from journal.head")
    row = await cursor.fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


async def read(connection: Connection, after: int, limit: int) -> list[Recorded]:
    """The next events behind a position, in the order of the journal.

    Raises:
        PoisonEvent: one of them cannot be decoded.
    """
    cursor = await connection.execute(_READ, (after, limit))
    return [_recorded(*row) for row in await cursor.fetchall()]


def _recorded(position: object, stream: object, version: object, topic: object, state: object) -> Recorded:
    try:
        return Recorded(position, stream, version, decode(topic, state))  # type: ignore[arg-type]
    except (KeyError, msgspec.DecodeError) as problem:
        raise PoisonEvent(f"event {position} ({topic}) cannot be decoded: {problem}") from problem


class PoisonEvent(Exception):
    """An event that nobody can read: somebody has to look at it, nothing may step over it."""


async def read_all(connection: Connection, after: int, page: int = 2000) -> AsyncIterator[list[Recorded]]:
    """All events behind a position, page by page, up to where the head is when it gets there."""
    while events := await read(connection, after, page):
        yield events
        after = events[-1].position
