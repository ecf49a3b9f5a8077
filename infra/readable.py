"""The journal as people read it: the view `journal.readable`, a page at a time.

It is read by connections that may change nothing, under whatever role the address names, so that it may be that of a
replica, of a restored backup or of an auditor.
"""

from datetime import datetime
from typing import Any, LiteralString

import msgspec
from psycopg import AsyncConnection
from psycopg import Connection as BlockingConnection
from psycopg.rows import class_row

from infra.journal import Connection

_READ_ONLY: Any = {"application_name": "saas-litellm reader", "options": "-c default_transaction_read_only=on"}
_NEXT: LiteralString = """
select * from journal.readable
where position > %(after)s
order by position
limit %(limit)s
"""
_LATEST: LiteralString = """
select * from (select * from journal.readable order by position desc limit %(limit)s) as latest
order by position
"""
# Within a stream by version: that is the order of an index that holds nothing else.
_NEXT_OF_STREAM: LiteralString = """
select * from journal.readable
where stream = %(stream)s and position > %(after)s
order by version
limit %(limit)s
"""
_LATEST_OF_STREAM: LiteralString = """
select * from (
    select * from journal.readable where stream = %(stream)s order by version desc limit %(limit)s
) as latest
order by version
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


async def connect(dsn: str) -> Connection:
    """A connection that can change nothing."""
    return await AsyncConnection.connect(dsn, autocommit=True, **_READ_ONLY)


def connect_blocking(dsn: str) -> BlockingConnection[Any]:
    """The same for who reads so much that nothing else goes on meanwhile."""
    return BlockingConnection.connect(dsn, autocommit=True, **_READ_ONLY)


async def lines(
    connection: Connection, *, stream: str | None = None, after: int | None = None, limit: int = 100
) -> list[Line]:
    """Events in the order of the journal.

    Args:
        stream: only this one's.
        after: the first ones behind this position; None for the latest there are.
        limit: how many at most.
    """
    if stream is None:
        select = _LATEST if after is None else _NEXT
    else:
        select = _LATEST_OF_STREAM if after is None else _NEXT_OF_STREAM
    async with connection.cursor(row_factory=class_row(Line)) as cursor:
        await cursor.execute(select, {"stream": stream, "after": after, "limit": limit})
        return await cursor.fetchall()


async def exists(connection: Connection) -> bool:
    """Whether there is a journal in this database."""
    cursor = await connection.execute("select to_regclass('journal.readable') is not null")
    row: tuple[Any, ...] | None = await cursor.fetchone()
    return row is not None and bool(row[0])
