"""Reads the journal from its first event on and looks whether anybody has changed it: chain, positions, versions, head.

What it proves: the events are those that were appended, in their order, none missing, none added, none changed, as
long as the hash of the head is what it was. Who can rewrite everything behind an event can make a new chain; against
that an auditor notes down position and hash of the head from time to time and gives them to `verify` again.

It reads page by page and not in one long transaction, which would keep PostgreSQL from clearing away the old versions
of the head and so slow down every append. That is safe: what is behind the head never changes.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import msgspec
from psycopg import Connection

from domain.event import State
from domain.streams import CATEGORIES, decode

PAGE = 1000  # what fits into a processor's cache is hashed faster
STREAMS_IN_MEMORY = 200_000  # their versions; others are asked for, a page at a time
GENESIS = bytes(32)

Kind = Literal["missing", "added", "hash", "version", "unreadable", "head", "noted"]
Row = tuple[int, str, int, bytes, Any]  # the last one may be something else than bytes, if somebody altered a column

# What was hashed is put together by PostgreSQL, which has a processor of its own; by nothing but what is built into it,
# whatever the search path: who changes history may make functions, too.
_READ = """
select notification_id, originator_id, originator_version, hash,
       pg_catalog.convert_to(originator_id, 'UTF8') operator(pg_catalog.||) '\\x00'::pg_catalog.bytea
           operator(pg_catalog.||) pg_catalog.int8send(originator_version)
           operator(pg_catalog.||) pg_catalog.convert_to(topic, 'UTF8')
           operator(pg_catalog.||) '\\x00'::pg_catalog.bytea operator(pg_catalog.||) state
from journal.events
where notification_id between %b and %b
order by notification_id
"""

# As of one moment, since both move together.
_ENDS = """
select head.position, head.hash,
       (select min(notification_id) from journal.events where notification_id < 1 or notification_id > head.position)
from journal.head
"""

_LAST = "select coalesce(max(notification_id), 0) from journal.events"

_HASH = "select hash from journal.events where notification_id = %b"

_PRECEDED = """
select later.position
from unnest(%b::text[], %b::bigint[], %b::bigint[]) as later (stream, version, position)
join journal.events as event
    on event.originator_id = later.stream and event.originator_version = later.version - 1
where event.notification_id < later.position
"""

_SNAPSHOTS = """
select stream, version, category_version, state from journal.snapshots where stream > %b order by stream limit %b
"""

_STREAM = """
select originator_version, topic, state
from journal.events
where originator_id = %b and originator_version > %b and originator_version <= %b
order by originator_version
limit %b
"""


@dataclass(frozen=True, slots=True)
class Break:
    """Where the journal is not what it should be.

    `kind` says what is wrong at this position: the event is missing; one was added there; it does not fit its hash; it
    does not follow the version of its stream before it; nobody can read it; the head, or what an auditor noted down,
    says otherwise.
    """

    position: int
    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and the first thing that is wrong, if anything is.

    `hash` is that of the event at `to_position`, to be noted down.
    """

    from_position: int
    to_position: int
    hash: str
    first_break: Break | None
    events: int
    seconds: float


class _Broken(Exception):
    def __init__(self, position: int, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.found = Break(position, kind, detail)


def verify(
    connection: Connection[Any],
    from_position: int = 1,
    to_position: int | None = None,
    *,
    noted: Mapping[int, str] | None = None,
    readable: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Recomputes the chain and says the first break.

    Args:
        connection: in autocommit mode; nobody else may use it meanwhile.
        from_position: the event before it is trusted.
        to_position: the head, if not given.
        noted: hashes that were noted down earlier, by position; those outside of the range and the event before it are
            not looked at, unless the journal ends before them.
        readable: also decode every event, which takes twice as long.
        progress: called with the position reached, page by page.
    """
    started = time.perf_counter()
    head, head_hash, outside = _ends(connection)
    until = head if to_position is None else min(head, to_position)
    check = _Check(connection, from_position, noted or {}, readable=readable)
    found: Break | None = None
    try:
        check.begin()
        for rows, last in _pages(connection, from_position, until):
            check.page(rows, last)
            if progress is not None:
                progress(last)
        if until == head:
            check.end(head, head_hash, outside)
        check.require_nothing_lost(head)
    except _Broken as problem:
        found = problem.found
    return Verification(
        from_position=from_position,
        to_position=until,
        hash=check.hash.hex(),
        first_break=found,
        events=check.expected - from_position,
        seconds=time.perf_counter() - started,
    )


def _ends(connection: Connection[Any]) -> tuple[int, bytes | None, int | None]:
    """Position and hash of the head, and an event outside; without a head the last event, and no hash."""
    heads = connection.execute(_ENDS, binary=True).fetchall()
    if len(heads) == 1 and None not in heads[0][:2]:
        return _only(heads)  # type: ignore[no-any-return]
    return _only(connection.execute(_LAST, binary=True).fetchall())[0], None, None


def _pages(connection: Connection[Any], first: int, until: int) -> Iterable[tuple[list[Row], int]]:
    """Events page by page, with the last position of each page."""
    for start in range(first, until + 1, PAGE):
        last = min(start + PAGE - 1, until)
        yield connection.execute(_READ, (start, last), binary=True).fetchall(), last


class _Check:
    """How far we are: the position expected next, the hash so far, and the versions of the streams seen last."""

    def __init__(
        self, connection: Connection[Any], from_position: int, noted: Mapping[int, str], *, readable: bool
    ) -> None:
        self._connection = connection
        self._noted = noted
        self._readable = readable
        self._versions: dict[str, int] = {}
        self.expected = from_position
        self.hash = GENESIS

    def begin(self) -> None:
        if self.expected > 1:
            trusted = self._connection.execute(_HASH, (self.expected - 1,), binary=True).fetchall()
            if not trusted or trusted[0][0] is None:
                raise _Broken(self.expected - 1, "missing", "there is no event at this position")
            self.hash = _only(trusted)[0]
            if self.expected - 1 in self._noted:
                self._require_noted(self.expected - 1, self.hash)

    def page(self, rows: Iterable[Row], last: int) -> None:
        unknown: list[tuple[str, int, int]] = []
        try:
            self._follow(rows, unknown)
            if self.expected <= last:
                raise _Broken(self.expected, "missing", "there is no event at this position")
        finally:
            # Also when the page is broken: what is wrong with a version may be wrong before that.
            self._require_predecessors(unknown)
        if len(self._versions) > STREAMS_IN_MEMORY:
            self._versions.clear()

    def _follow(self, rows: Iterable[Row], unknown: list[tuple[str, int, int]]) -> None:
        digest, expected, versions = self.hash, self.expected, self._versions
        try:
            for position, stream, version, written, said in rows:
                if position != expected:
                    raise _strange(position, expected)
                computed = sha256(digest + said).digest() if isinstance(said, bytes) else b""
                if computed != written:
                    raise _Broken(position, "hash", f"event {version} of {stream} is not what was written")
                before = versions.get(stream)
                if before is None and version > 1:
                    unknown.append((stream, version, position))
                elif (before or 0) + 1 != version:
                    raise _Broken(position, "version", f"{stream} goes from version {before or 0} to {version}")
                versions[stream] = version
                if self._readable:
                    _require_readable(position, *_topic_and_state(stream, said))
                digest, expected = computed, expected + 1
                if position in self._noted:
                    self._require_noted(position, computed)
        finally:
            self.hash, self.expected = digest, expected

    def _require_predecessors(self, unknown: list[tuple[str, int, int]]) -> None:
        if not unknown:
            return
        streams, versions, positions = zip(*unknown, strict=True)
        arguments = (list(streams), list(versions), list(positions))
        preceded = {position for (position,) in self._connection.execute(_PRECEDED, arguments).fetchall()}
        for stream, version, position in unknown:
            if position not in preceded:
                raise _Broken(position, "version", f"{stream} has no version {version - 1} before this one")

    def _require_noted(self, position: int, computed: bytes) -> None:
        if computed.hex() != self._noted[position]:
            raise _Broken(position, "noted", f"the hash was {self._noted[position]}, it is {computed.hex()}")

    def end(self, head: int, head_hash: bytes | None, outside: int | None) -> None:
        if head_hash is None:
            raise _Broken(head, "head", "the head is not there, or not in one piece")
        if self.hash != head_hash and self.expected == head + 1:
            raise _Broken(head, "head", f"the head has the hash {bytes(head_hash).hex()}")
        if outside is not None:
            raise _Broken(outside, "added", f"this event is outside of the journal, which ends at {head}")

    def require_nothing_lost(self, head: int) -> None:
        lost = [position for position in self._noted if position > head]
        if lost:
            raise _Broken(
                min(lost), "noted", f"a hash was noted down for this position, but the journal ends at {head}"
            )


def _strange(position: int, expected: int) -> _Broken:
    if position > expected:
        return _Broken(expected, "missing", "there is no event at this position")
    return _Broken(position, "added", "there is more than one event at this position")


def _topic_and_state(stream: str, said: bytes) -> tuple[str, bytes]:
    topic, _, state = said[len(stream.encode()) + 1 + 8 :].partition(b"\0")
    return topic.decode(), state


def _require_readable(position: int, topic: str, state: bytes) -> None:
    try:
        decode(topic, state)
    except (KeyError, msgspec.DecodeError) as problem:
        raise _Broken(position, "unreadable", f"{topic} cannot be decoded: {problem!r}") from problem


def verify_snapshots(connection: Connection[Any]) -> list[str]:
    """Folds every stream that has a snapshot from its first event on, and names those whose snapshot says otherwise.

    Snapshots of another version of their category are not looked at: nobody reads them.
    """
    wrong: list[str] = []
    after = ""
    while rows := connection.execute(_SNAPSHOTS, (after, PAGE), binary=True).fetchall():
        wrong += [stream for stream, *saved in rows if not _is_right(connection, stream, *saved)]
        after = rows[-1][0]
    return wrong


def _is_right(connection: Connection[Any], stream: str, version: int, category_version: int, state: bytes) -> bool:
    category = CATEGORIES.get(stream.partition("-")[0])
    if category is None or category.version != category_version:
        return True
    try:
        return (version, msgspec.json.decode(state, type=category.state)) == _folded(connection, stream, version)
    except Exception:  # noqa: BLE001 what nobody can read or fold, that is not right either
        return False


def _folded(connection: Connection[Any], stream: str, until: int) -> tuple[int, State | None]:
    category = CATEGORIES[stream.partition("-")[0]]
    at: int = 0
    state: State | None = None
    while rows := connection.execute(_STREAM, (stream, at, until, PAGE), binary=True).fetchall():
        for version, topic, event in rows:
            at, state = version, category.evolve(state, decode(topic, event))
    return at, state


def _only(rows: list[Any]) -> Any:
    [row] = rows
    return row
