"""The journal as evidence: events as they were written, byte for byte, with their hashes, a page at a time.

Nothing here holds a connection longer than a page takes, and no page is larger than it was asked for: who reads ten
million events needs no more memory for it than who reads a hundred.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from psycopg.rows import class_row

from domain.credit import Account
from domain.event import UNREADABLE, Event
from domain.streams import CREDIT, JOB, SHORTAGE, STATEMENT, TEAM, decode
from infra.journal import Connection, PoisonEvent
from projections.reading import fetch_one

PAGE = 1000
EVER = 2**63 - 1  # behind every position there will be
WINDOW = 20_000  # positions that one statement looks through for what is wanted
MOST_LOOKED_AT = 200_000  # ... and one page, after which it answers with what it has found

_COLUMNS = """
select notification_id as position, originator_id as stream, originator_version as version, topic, state, hash
"""

# Most events name their team; the others belong to a job of which the read model knows whose it is. What only looks
# as if it named the team (somebody's metadata may) is sorted out afterwards.
_IS_OF_TEAM = """
    (originator_id = any (%(team_streams)s) or case when originator_id ~ %(job_pattern)s then exists (
        select from jobs where job_id = substr(originator_id, 5)::uuid and team_id = %(team_id)s) else false end)
"""
_MAY_BE_OF_TEAM = f"({_IS_OF_TEAM} or position(%(team_mark)s::bytea in state) > 0)"

_FROM = "from journal.events where "
_WITHIN = "notification_id > %(after)s and notification_id <= %(until)s"
_IN_ORDER = " order by notification_id limit %(limit)s"

# Within a stream by version, which is the order of its index; who goes on where a page ended skips what was before.
_OF_STREAM = """
originator_id = %(stream)s and notification_id > %(after)s and originator_version > coalesce((
    select last.originator_version from journal.events as last
    where last.notification_id = %(after)s and last.originator_id = %(stream)s), 0)
"""
_IN_ORDER_OF_STREAM = " order by originator_version limit %(limit)s"

_HEAD = """
select head.position, head.hash, event.state
from journal.head as head
left join journal.events as event on event.notification_id = head.position
"""

_AT = _COLUMNS + _FROM + "notification_id = any (%(positions)s) order by notification_id"
_BETWEEN = _COLUMNS + _FROM + "notification_id >= %(first)s order by notification_id limit %(limit)s"

# A job's own events, and the movements of credits that it caused: each by its own index.
_OF_JOB = """
select * from (
    (select notification_id as position, originator_id as stream, originator_version as version, topic, state, hash
     from journal.events
     where originator_id = %(stream)s and notification_id > %(after)s
     order by originator_version limit %(limit)s)
    union all
    (select notification_id as position, originator_id as stream, originator_version as version, topic, state, hash
     from journal.events
     where notification_id = any (array(
         select position from transactions where job_id = %(job_id)s and position > %(after)s
         order by position limit %(limit)s)))
) as story
order by position
limit %(limit)s
"""
_HASH_BEFORE = "select hash from journal.events where notification_id = %(position)s - 1"


class Evidence(msgspec.Struct, kw_only=True, frozen=True):
    """An event as it was written."""

    position: int
    stream: str
    version: int
    topic: str
    state: bytes
    hash: bytes
    certain: bool = True


class Signature(msgspec.Struct, frozen=True):
    """What every event says besides what happened; and its team, if it names one."""

    at: datetime | None = None
    by: str = ""
    request: str = ""
    team_id: Any = None


class Head(msgspec.Struct, frozen=True):
    position: int
    hash: bytes
    state: bytes | None


class Wanted(msgspec.Struct, kw_only=True, frozen=True):
    """Which events are meant; None is no condition."""

    stream: str | None = None
    topic: str | None = None
    team_id: str | None = None

    @property
    def everything(self) -> bool:
        return self == _EVERYTHING


_EVERYTHING = Wanted()


def signature_of(state: bytes) -> Signature | None:
    """When, who and in which request; None if that cannot be read."""
    try:
        state.decode()  # which is not asked of what is skipped
        return msgspec.json.decode(state, type=Signature)
    except UNREADABLE:
        return None


def event_of(written: Evidence) -> Event:
    """What an event says.

    Raises:
        PoisonEvent: that cannot be read.
    """
    try:
        return decode(written.topic, written.state)
    except (KeyError, msgspec.DecodeError) as problem:
        raise PoisonEvent(f"event {written.position} ({written.topic}) cannot be decoded: {problem}") from problem


def account_after(account: Account | None, event: Event, written: Evidence) -> Account:
    """What an event makes of an account.

    Raises:
        PoisonEvent: it cannot follow here, since somebody has removed or changed what was before it.
    """
    try:
        after = CREDIT.evolve(account, event)
        assert isinstance(after, Account), "it is not an account's"
    except Exception as problem:
        raise PoisonEvent(f"event {written.position} ({written.topic}) cannot follow here: {problem}") from problem
    return after


async def head(connection: Connection) -> Head:
    """Where the journal ends."""
    async with connection.cursor(row_factory=class_row(Head), binary=True) as cursor:
        await cursor.execute(_HEAD)
        found = await cursor.fetchone()
    assert found is not None
    return found


async def page(
    connection: Connection, wanted: Wanted, *, after: int, until: int, limit: int
) -> tuple[list[Evidence], int]:
    """The next events behind a position.

    Args:
        until: the last position that is looked at.
        limit: how many events at most. There may be fewer although more follow: where events are rare, a page ends
            when enough of the journal has been looked at.

    Returns:
        The events, and the position up to which that is all there is.
    """
    if wanted.stream is not None:
        return await _page_of_stream(connection, wanted, after=after, until=until, limit=limit)
    found: list[Evidence] = []
    window = limit if wanted.everything else WINDOW
    looked_at, last = after, min(until, after + MOST_LOOKED_AT)
    while looked_at < last and len(found) < limit:
        within = {"after": looked_at, "until": min(last, looked_at + window), "limit": limit - len(found)}
        events = await _select(connection, wanted, _WITHIN, _IN_ORDER, within)
        looked_at = events[-1].position if len(events) == within["limit"] else within["until"]
        found += _sorted_out(events, wanted.team_id)
    return found, looked_at


async def _page_of_stream(
    connection: Connection, wanted: Wanted, *, after: int, until: int, limit: int
) -> tuple[list[Evidence], int]:
    events = await _select(connection, wanted, _OF_STREAM, _IN_ORDER_OF_STREAM, {"after": after, "limit": limit})
    looked_at = events[-1].position if len(events) == limit else until
    within = [event for event in events if event.position <= until]
    return _sorted_out(within, wanted.team_id), min(looked_at, until)


async def _select(
    connection: Connection, wanted: Wanted, where: str, order: str, parameters: dict[str, Any]
) -> list[Evidence]:
    columns = _COLUMNS
    if wanted.topic is not None:
        where += " and topic = %(topic)s"
    if wanted.team_id is not None:
        columns += f", {_IS_OF_TEAM} as certain "
        where += f" and {_MAY_BE_OF_TEAM}"
    return await _fetch(connection, columns + _FROM + where + order, {**_named(wanted), **parameters})


def _named(wanted: Wanted) -> dict[str, Any]:
    team_id = wanted.team_id
    if team_id is None:
        return {"stream": wanted.stream, "topic": wanted.topic}
    return {
        "stream": wanted.stream,
        "topic": wanted.topic,
        "team_id": team_id,
        "team_streams": [category.stream(team_id) for category in (CREDIT, TEAM, SHORTAGE, STATEMENT)],
        "team_mark": b'"team_id":' + msgspec.json.encode(team_id),
        "job_pattern": f"^{JOB.name}-[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$",
    }


def _sorted_out(events: Iterable[Evidence], team_id: str | None) -> list[Evidence]:
    if team_id is None:
        return list(events)
    return [
        event
        for event in events
        if event.certain or ((signed := signature_of(event.state)) is not None and signed.team_id == team_id)
    ]


async def of_stream(connection: Connection, stream: str) -> AsyncIterator[Evidence]:
    """All events of a stream, however many."""
    after, wanted = 0, Wanted(stream=stream)
    while after < EVER:
        found, after = await page(connection, wanted, after=after, until=EVER, limit=PAGE)
        for event in found:
            yield event


async def at(connection: Connection, positions: Sequence[int]) -> list[Evidence]:
    """The events at some positions."""
    return await _fetch(connection, _AT, {"positions": list(positions)})


async def beginning_with(connection: Connection, first: int, limit: int) -> list[Evidence]:
    """The events from a position on."""
    return await _fetch(connection, _BETWEEN, {"first": first, "limit": limit})


async def of_job(connection: Connection, job_id: str, *, after: int, limit: int) -> list[Evidence]:
    """A job's story: its own events and those of its team's account that it caused, in the order of the journal."""
    wanted = {"job_id": job_id, "stream": JOB.stream(job_id), "after": after, "limit": limit}
    return await _fetch(connection, _OF_JOB, wanted)


async def hash_before(connection: Connection, position: int) -> bytes:
    """What the hash of an event is chained to."""
    cursor = await connection.execute(_HASH_BEFORE, {"position": position}, binary=True)
    row: tuple[Any, ...] | None = await cursor.fetchone()
    return bytes(32) if row is None else bytes(row[0])


async def _fetch(connection: Connection, select: str, parameters: dict[str, Any]) -> list[Evidence]:
    async with connection.cursor(row_factory=class_row(Evidence), binary=True) as cursor:
        await cursor.execute(select.encode(), parameters)
        return await cursor.fetchall()


_PLACE = """
select position, team_id from transactions where transaction_id = %(transaction_id)s order by position limit 1
"""


class Place(msgspec.Struct, frozen=True):
    position: int
    team_id: str


async def place_of_transaction(connection: Connection, transaction_id: str) -> Place | None:
    """Where a movement of credits stands, and whose it is."""
    return await fetch_one(connection, Place, _PLACE, {"transaction_id": transaction_id})
