"""Builds every read model from the first event on, in tables of its own, and names each row that is not what they say.

The tables are temporary: they belong to one connection and vanish with it, so this needs no right to change anything,
meets nobody who rebuilds a read model at the same time, and leaves nothing behind. Memory stays flat however long the
journal is; disk it takes about as much as the read models have. A replica allows no temporary tables.

While they grow, it is noted which transaction has projected which events. So the transaction that wrote a row last
tells from which event on the read model must say the same. If rows differ, all is built once more, event by event where
these were written, so that it is just one event.
"""

import json
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, LiteralString

from psycopg.sql import SQL, Composed, Identifier

from infra import journal
from infra.journal import Connection
from projections.audit import HEAD, MOST_FINDINGS, STAND_SOMEWHERE, VERSIONS, Report
from projections.projection import Batch, Projection, wanted
from projections.standing import project_rows, tracked

BATCH_EVENTS = 5000
MOST_SPANS = 10  # batches that are gone through event by event; the others are named by their last event
IS_MISSING, HAS_NO_EVENT = "the row is missing", "there is a row without an event"

Span = tuple[int, int]  # the first and the last position of a transaction's events
Progress = Callable[[int, int], None]

_HAS_READ_MODELS = """
select to_regclass('readmodel.tracking') is not null and to_regclass('readmodel.definitions') is not null
"""
_MAY_MAKE_TABLES = "select not pg_is_in_recovery() and has_database_privilege(current_database(), 'temporary')"
_ENTER: LiteralString = """
set temp_buffers = '64MB';
set search_path = pg_temp;
set statement_timeout = 0;
set plan_cache_mode = force_custom_plan;
"""
_TRANSACTION = "select mod(pg_current_xact_id_if_assigned()::text::numeric, 4294967296)::bigint"  # as xmin has it

_SHAPE = """
select attribute.attname, format_type(attribute.atttypid, attribute.atttypmod),
       coalesce(attribute.attnum = any (key.indkey), false)
from pg_attribute as attribute
left join pg_index as key on key.indrelid = attribute.attrelid and key.indisprimary
where attribute.attrelid = to_regclass(%s) and attribute.attnum > 0 and not attribute.attisdropped
order by attribute.attnum
"""
_KEEP = SQL("lock table readmodel.{table} in access share mode")
_DIFFERING = SQL("""
select to_jsonb(made)::text, to_jsonb(kept)::text, made.xmin::text::bigint
from pg_temp.{table} as made
full join readmodel.{table} as kept using ({key})
where made is distinct from kept
order by {key}
""")


class CannotBeBuilt(Exception):
    """Events that somebody forged may fit nowhere."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"the events from here on fit nowhere: {reason}")
        self.position = position


@dataclass(frozen=True, slots=True)
class Difference:
    """A row, or a whole table, that is not what the events say.

    Args:
        written: the events among which the last one is that the row rests on; None if it rests on none.
    """

    table: str
    key: str
    written: Span | None
    detail: str


async def compare_rows(
    connection: Connection, projections: Sequence[Projection], report: Report, progress: Progress
) -> None:
    """Adds to a report which rows of these read models are not what they should be, and from which position on.

    Args:
        connection: in autocommit mode; it may be of one who can change nothing. It is used up by this.
        projections: in the order in which a batch is projected. They write nothing but their tables.
        report: of an audit of the same database. Rows that it names already are not named again.
        progress: called with the position reached and the one to be reached.
    """
    if not (await _is_so(connection, _HAS_READ_MODELS) and await _is_so(connection, STAND_SOMEWHERE)):
        return
    if not await _is_so(connection, _MAY_MAKE_TABLES):
        report.skip("rows of read models, since no temporary tables can be made here")
        return
    try:
        found = await _Afresh(connection, projections, progress, report).differences()
        wide = sorted({each.written for each in found if each.written and each.written[0] < each.written[1]})
        if wide:
            found = await _Afresh(connection, projections, progress, report, wide[:MOST_SPANS]).differences()
    except CannotBeBuilt as problem:
        report.add("read_models", problem.position, "readmodel", str(problem))
        return
    finally:
        if not connection.closed:
            await _discard(connection)
    for each in found:
        report.add(each.table, each.written and each.written[1], each.key, each.detail)


class _Afresh:
    """The new tables, and how far they are.

    Args:
        slowly: where to go event by event.
    """

    def __init__(
        self,
        connection: Connection,
        projections: Sequence[Projection],
        progress: Progress,
        report: Report,
        slowly: Sequence[Span] = (),
    ) -> None:
        self._connection = connection
        self._projections = projections
        self._progress = progress
        self._report = report
        self._slowly = slowly
        self._position = 0
        self._tidied = BATCH_EVENTS
        self._written: dict[int, Span] = {}  # by transaction

    async def differences(self) -> list[Difference]:
        """What differs, table by table, each as of one moment, while the engine goes on."""
        await self._begin()
        await self._catch_up()
        found: list[Difference] = []
        for projection in self._projections:
            version = await self._version(projection)
            if version is None and await self._shape("readmodel", projection.tables[0]):
                detail = f"does not say of which version {projection.name} is"
                found.append(Difference(projection.name, "readmodel.definitions", None, detail))
            elif version != projection.version:
                self._report.skip_version(projection.name)
                continue
            for table in projection.tables:
                _note(self._report.checks, table)
                found += await self._compare(projection, table)
        return found

    async def _version(self, projection: Projection) -> int | None:
        versions = await _rows(self._connection, VERSIONS)
        return next((int(version) for name, version in versions if name == projection.name), None)

    async def _begin(self) -> None:
        await self._connection.execute(_ENTER)
        await _discard(self._connection)
        async with self._connection.transaction():
            await self._connection.execute("set transaction read write")
            for projection in self._projections:
                await self._connection.execute(projection.bare_ddl.encode())

    async def _catch_up(self) -> None:
        """Comes near to where the read models are, however far these move meanwhile."""
        until = BATCH_EVENTS
        while until - self._position >= BATCH_EVENTS:
            until = await self._until()
            while self._position < until:
                async with self._connection.pipeline(), self._connection.transaction():
                    await self._project(self._step(until))
                self._progress(self._position, until)
                if self._position >= 2 * self._tidied:
                    await self._tidy_up()
        await self._tidy_up()

    async def _tidy_up(self) -> None:
        """What PostgreSQL does by itself with other tables; without it every statement takes longer and longer."""
        self._tidied = self._position
        for projection in self._projections:
            for table in projection.tables:
                await self._connection.execute(SQL("vacuum analyze pg_temp.{}").format(Identifier(table)))

    def _step(self, until: int) -> int:
        """Up to where the next batch goes."""
        following = self._position + 1
        number = bisect_left(self._slowly, following, key=lambda span: span[1])
        if number == len(self._slowly):
            return min(self._position + BATCH_EVENTS, until)
        first, _ = self._slowly[number]
        return following if first <= following else min(self._position + BATCH_EVENTS, first - 1, until)

    async def _until(self) -> int:
        [(end,)] = await _rows(self._connection, HEAD)
        return min(await tracked(self._connection), int(end))

    async def _project(self, until: int) -> None:
        try:
            events = await journal.stretch(self._connection, self._position, until, wanted(self._projections))
            if events:
                await project_rows(self._connection, self._projections, Batch(events))
                [(transaction,)] = await _rows(self._connection, _TRANSACTION)
                first, _ = self._written.get(transaction, (self._position + 1, until))
                self._written[transaction] = first, until
        except Exception as problem:
            if self._connection.closed:
                raise
            raise CannotBeBuilt(self._position + 1, repr(problem)) from problem
        self._position = until

    async def _compare(self, projection: Projection, table: str) -> list[Difference]:
        if not await self._shape("readmodel", table):
            return [Difference(table, f"readmodel.{table}", None, "the table is missing")]
        async with self._connection.transaction():
            await self._connection.execute("set transaction isolation level repeatable read")
            # Kept from here on: in a table that takes its place, most rows would be younger than this moment.
            await self._connection.execute(_KEEP.format(table=Identifier(table)))
            if await self._version(projection) not in (None, projection.version):
                self._report.skip_version(projection.name)  # another version has left it behind meanwhile, or built it
                return []
            until = await self._until()
            while self._position < until:
                await self._project(min(self._position + BATCH_EVENTS, until))
            made, kept = await self._shape("pg_temp", table), await self._shape("readmodel", table)
            if made != kept:
                return [Difference(table, f"readmodel.{table}", None, f"has the columns {made}, not {kept}")]
            key = [name for name, _, is_key in made if is_key]
            columns = SQL(", ").join(map(Identifier, key))
            return await self._differing(table, key, _DIFFERING.format(table=Identifier(table), key=columns))

    async def _shape(self, schema: str, table: str) -> list[tuple[Any, ...]]:
        return await _rows(self._connection, _SHAPE, f"{schema}.{table}")

    async def _differing(self, table: str, key: Sequence[str], select: Composed) -> list[Difference]:
        found: list[Difference] = []
        said = self._said(table)
        async with self._connection.cursor("differing") as cursor:
            await cursor.execute(select)
            rows: AsyncIterator[tuple[Any, ...]] = aiter(cursor)
            async for made, kept, transaction in rows:
                expected, row = _decoded(made), _decoded(kept)
                subject = _key(key, expected or row)
                detail = _detail(expected, row, said.get(subject, ""))
                if detail and len(found) < MOST_FINDINGS:
                    found.append(Difference(table, subject, self._written[transaction] if made else None, detail))
        return found

    def _said(self, table: str) -> dict[str, str]:
        """What the report says of a table's rows already, by their keys; some are called by their position."""
        return {
            name: finding.detail
            for finding in self._report.findings
            if finding.check == table
            for name in (str(finding.position), finding.subject)
        }


def _key(names: Sequence[str], row: dict[str, Any]) -> str:
    """What a row is called; a key of one column stands for itself."""
    if len(names) == 1:
        return str(row[names[0]])
    return " ".join(f"{name}={row[name]}" for name in names)


def _detail(expected: dict[str, Any], row: dict[str, Any], said: str) -> str:
    """What is there and what should be, but for what is said already."""
    if expected and row:
        differing = [name for name in expected if expected[name] != row[name] and f"{name} is " not in said]
        return "; ".join(f"{name} is {row[name]}, replayed {expected[name]}" for name in differing)
    if said:
        return ""
    return f"{HAS_NO_EVENT}: {_facts(row)}" if row else f"{IS_MISSING}: {_facts(expected)}"


def _facts(row: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in row.items() if value is not None)


def _decoded(text: str | None) -> dict[str, Any]:
    return {} if text is None else dict(json.loads(text, parse_float=Decimal))


def _note(list_of: list[str], name: str) -> None:
    if name not in list_of:
        list_of.append(name)


async def _discard(connection: Connection) -> None:
    """Not left to the end of the connection, which somebody who drops its role would have to wait for."""
    async with connection.transaction():
        await connection.execute("set transaction read write")
        await connection.execute("discard temporary")


async def _is_so(connection: Connection, query: LiteralString) -> bool:
    return await _rows(connection, query) == [(True,)]


async def _rows(connection: Connection, query: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(query, parameters)
    return await cursor.fetchall()
