"""The journal as people read it: the view `journal.readable`, a page at a time.

It is read by connections that may change nothing, under whatever role the address names, so that it may be that of a
replica, of a restored backup or of an auditor.
"""

import re
from datetime import datetime
from typing import Any, LiteralString

import msgspec
from psycopg import AsyncConnection
from psycopg import Connection as BlockingConnection
from psycopg.rows import class_row

from infra.journal import Connection

PAGE = 1000

# Whatever is set for the database or the role: who changes history may also make functions and have them found first.
_OPTIONS = "-c default_transaction_read_only=on -c search_path=pg_catalog"
_READ_ONLY: Any = {"application_name": "saas-litellm reader", "options": _OPTIONS}
_NOTED = re.compile(r"(?P<position>[0-9]{1,18}):(?P<hash>[0-9a-fA-F]{64})")

_NEXT: LiteralString = """
select * from journal.readable
where position > %(after)s
order by position
limit %(limit)s
"""
_BEFORE_LATEST: LiteralString = """
select notification_id from journal.events order by notification_id desc offset %(number)s limit 1
"""
# Within a stream by version: that is the order of an index that holds nothing else.
_NEXT_OF_STREAM: LiteralString = """
select * from journal.readable
where stream = %(stream)s and position > %(after)s and version > coalesce((
    select last.version from journal.readable as last
    where last.position = %(after)s and last.stream = %(stream)s), 0)
order by version
limit %(limit)s
"""
_BEFORE_LATEST_OF_STREAM: LiteralString = """
select notification_id from journal.events where originator_id = %(stream)s
order by originator_version desc offset %(number)s limit 1
"""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the journal."""

    position: int
    stream: str
    version: int
    topic: str
    at: datetime
    by: str
    request: str
    event: dict[str, Any]
    """What the event says besides when, who and in which request."""
    hash: str


def noted_down(text: str) -> tuple[int, str] | None:
    """A position and its hash, as auditors note them down (`POSITION:HASH`); None if it is something else."""
    found = _NOTED.fullmatch(text)
    return None if found is None else (int(found["position"]), found["hash"].lower())


async def connect(dsn: str) -> Connection:
    """A connection that can change nothing."""
    return await AsyncConnection.connect(dsn, autocommit=True, **_READ_ONLY)


def connect_blocking(dsn: str) -> BlockingConnection[Any]:
    """The same for who reads so much that nothing else goes on meanwhile."""
    return BlockingConnection.connect(dsn, autocommit=True, **_READ_ONLY)


async def lines(connection: Connection, *, stream: str | None = None, after: int = 0, limit: int = PAGE) -> list[Line]:
    """The first events behind a position, in the order of the journal.

    Args:
        stream: only this one's.
        limit: how many at most.
    """
    select = _NEXT if stream is None else _NEXT_OF_STREAM
    async with connection.cursor(row_factory=class_row(Line)) as cursor:
        await cursor.execute(select, {"stream": stream, "after": after, "limit": limit})
        return await cursor.fetchall()


async def before_latest(connection: Connection, number: int, *, stream: str | None = None) -> int:
    """The position behind which there are just so many events, or all there are if there are fewer."""
    select = _BEFORE_LATEST if stream is None else _BEFORE_LATEST_OF_STREAM
    cursor = await connection.execute(select, {"stream": stream, "number": number})
    row: tuple[Any, ...] | None = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def exists(connection: Connection) -> bool:
    """Whether there is a journal in this database."""
    cursor = await connection.execute("select to_regclass('journal.readable') is not null")
    row: tuple[Any, ...] | None = await cursor.fetchone()
    return row is not None and bool(row[0])
