"""How the selects of read models come back: as typed records, in a fixed number of queries."""

from collections.abc import Mapping
from typing import Any, TypeVar

from psycopg.rows import class_row

from infra.journal import Connection

R = TypeVar("R")


async def fetch_all(connection: Connection, kind: type[R], select: str, parameters: Mapping[str, Any]) -> list[R]:
    """The rows of a select, each as a record of this kind."""
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(select.encode(), parameters)
        return await cursor.fetchall()


async def fetch_one(connection: Connection, kind: type[R], select: str, parameters: Mapping[str, Any]) -> R | None:
    """The first row of a select, if it has any."""
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(select.encode(), parameters)
        return await cursor.fetchone()


async def count(connection: Connection, select: str, parameters: Mapping[str, Any]) -> int:
    """The number that a `select count(*)` answers."""
    cursor = await connection.execute(select.encode(), parameters)
    row = await cursor.fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]
