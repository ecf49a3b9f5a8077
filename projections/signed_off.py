"""What was signed off, looked at again: closed statements beside the movements that they cover, and what was booked
from bills beside the bills.

It reads the streams themselves and nothing that was derived from them; each movement once, a page at a time.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from psycopg import Connection

from domain.credit import CreditMovement
from domain.event import Event
from domain.pricing import subtract
from domain.statement import (
    NOTHING,
    BillDifferenceBooked,
    Reconciliation,
    StatementClosed,
    Totals,
    evolve_reconciliation,
    tally,
)
from domain.streams import CREDIT, RECONCILIATION, STATEMENT, Category, decode
from infra.verify import GENESIS

Finding = tuple[int, str, str]  # position, stream, detail

PAGE = 5000
STREAMS_AT_ONCE = 500

_STREAMS = """
select originator_id
from journal.events
where originator_id > %b and originator_id < %b and originator_version = 1
order by originator_id
limit %b
"""
_EVENTS = """
select originator_version, notification_id, hash, topic, state
from journal.events
where originator_id = %b and originator_version > %b
order by originator_version
limit %b
"""


class Written(msgspec.Struct, frozen=True):
    """An event, and where it stands."""

    position: int
    hash: bytes
    event: Event


class Covered(msgspec.Struct, frozen=True):
    """What a statement says of its stretch of the journal."""

    after_position: int
    position: int
    head_hash: str
    opening_credits: int
    closing_credits: int
    totals: Totals


def verify_statements(connection: Connection[Any]) -> Iterator[Finding]:
    """Adds up again what closed statements say."""
    for stream in _streams(connection, STATEMENT):
        movements = (
            each
            for each in _events(connection, CREDIT.stream(stream.partition("-")[2]))
            if isinstance(each.event, CreditMovement)
        )
        next_one = next(movements, None)
        before = Covered(0, 0, GENESIS.hex(), 0, 0, NOTHING)
        for written in _events(connection, stream):
            closed = written.event
            if not isinstance(closed, StatementClosed):
                continue
            position, head_hash, totals = before.position, before.head_hash, NOTHING
            while next_one is not None and next_one.position <= closed.position:
                position, head_hash = next_one.position, next_one.hash.hex()
                totals = tally([next_one.event], totals)
                next_one = next(movements, None)
            opening = before.closing_credits
            before = Covered(before.position, position, head_hash, opening, opening + totals.net_credits, totals)
            for detail in _differences(closed, before):
                yield written.position, stream, f"{closed.period}: {detail}"


def _differences(closed: StatementClosed, replayed: Covered) -> Iterator[str]:
    for name in replayed.__struct_fields__:
        there, should_be = getattr(closed, name), getattr(replayed, name)
        if there != should_be:
            yield f"{name} is {there}, replayed {should_be}"


def verify_bills(connection: Connection[Any]) -> Iterator[Finding]:
    """Looks whether what was booked is what a bill asks beyond ours, once a line."""
    for stream in _streams(connection, RECONCILIATION):
        known: Reconciliation | None = None
        for written in _events(connection, stream):
            event: Any = written.event
            if isinstance(event, BillDifferenceBooked):
                for detail in _wrongly_booked(known, event):
                    yield written.position, stream, f"{event.reference}, {event.day} {event.model}: {detail}"
            known = evolve_reconciliation(known, event)


def _wrongly_booked(known: Reconciliation | None, booked: BillDifferenceBooked) -> Iterator[str]:
    bill = None if known is None else known.bills.get(booked.reference)
    if bill is None:
        yield "is booked from a bill that nobody has imported"
        return
    if bill.is_booked(booked.day, booked.model):
        yield "is booked a second time"
    asked = bill.theirs_usd(booked.day, booked.model)
    if booked.theirs_usd != asked:
        yield f"theirs_usd is {booked.theirs_usd}, the bill says {asked}"
    difference = subtract(booked.theirs_usd, booked.ours_usd)
    if booked.difference_usd != difference:
        yield f"difference_usd is {booked.difference_usd}, computed {difference}"


def _streams(connection: Connection[Any], category: Category) -> Iterator[str]:
    after, end = f"{category.name}-", f"{category.name}."  # a full stop comes after a hyphen
    while found := connection.execute(_STREAMS, (after, end, STREAMS_AT_ONCE)).fetchall():
        for (stream,) in found:
            yield stream
        after = found[-1][0]


def _events(connection: Connection[Any], stream: str) -> Iterator[Written]:
    """The events of a stream; of those that nobody can read the auditor tells anyway."""
    after = 0
    while rows := connection.execute(_EVENTS, (stream, after, PAGE), binary=True).fetchall():
        for version, position, digest, topic, state in rows:
            after = version
            try:
                yield Written(position, digest, decode(topic, state))
            except (KeyError, TypeError, msgspec.DecodeError):
                continue
