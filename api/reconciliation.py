"""Reconciliation: what providers ask for beside what is on record, and the differences that were agreed upon."""

import re
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta

from api.answers import number, ts, usd6
from api.bills import bill_lines
from api.bodies import NO_CONTROL, Text500
from api.caller import Caller, admin_only
from api.house import House
from api.listing import Page, Within, wrapped
from api.problems import Invalid, Trouble
from api.shapes import Timestamp
from api.tables import MOST_ROWS, AskedFormat, format_of, table
from domain.errors import NotFound
from domain.pricing import ZERO, add, subtract
from domain.statement import (
    AgreedLine,
    Bill,
    BillDifferenceBooked,
    BookDifferences,
    ImportBill,
    Reconciliation,
    book_differences,
    import_bill,
    line_key,
)
from domain.streams import RECONCILIATION
from infra.ledger import Outcome, Unavailable
from projections import provider_days
from projections.provider_days import BookedRow, ProviderDay, RecordedDay

Status = Literal["agrees", "differs", "booked"]
Reference = Annotated[
    str, QueryParameter(min_length=1, max_length=255, description="The number of the bill, or how else it is known")
]
Differing = Annotated[bool, QueryParameter(description="Only lines with a difference that is not booked")]

_REFERENCE = re.compile(r"[^/\x00-\x1f\x7f\ufffd]+")  # it travels in paths
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9_.\-]{0,99}")

# -- bodies and answers ------------------------------------------------------------------------------------------------


class Agreed(msgspec.Struct, kw_only=True):
    day: date
    model: Annotated[str, Meta(min_length=1, max_length=255, pattern=NO_CONTROL)]


class BookBody(msgspec.Struct, kw_only=True):
    """The lines whose difference is agreed upon."""

    lines: Annotated[list[Agreed], Meta(min_length=1, max_length=10_000)]
    note: Text500 | None = None


class RecordedLine(msgspec.Struct, kw_only=True):
    """What is on record for a day; `booked_usd` is what was booked on top of it."""

    day: str
    provider: str
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    provider_cost_usd: Decimal
    booked_usd: Decimal


class RecordedLines(msgspec.Struct, kw_only=True):
    rows: list[RecordedLine]
    total: int
    limit: int
    offset: int


class BillSummary(msgspec.Struct, kw_only=True):
    provider: str
    reference: str
    first_day: str
    last_day: str
    lines: int
    booked_lines: int
    theirs_usd: Decimal
    imported_at: Timestamp


class BillList(msgspec.Struct, kw_only=True):
    bills: list[BillSummary]
    total: int
    limit: int
    offset: int


class Difference(msgspec.Struct, kw_only=True):
    """`difference_usd` is theirs minus ours. What was booked shows the figures that were agreed upon.

    Ours is what the calls came to, and what other bills have booked on top of it.
    """

    day: str
    model: str
    calls: int
    ours_tokens: int
    theirs_tokens: int
    ours_usd: Decimal
    theirs_usd: Decimal
    difference_usd: Decimal
    status: Status


class Differences(BillSummary, kw_only=True):
    """`open_usd` and `booked_usd` are the differences of all lines, whichever are shown."""

    ours_usd: Decimal
    difference_usd: Decimal
    booked_usd: Decimal
    open_usd: Decimal
    rows: list[Difference]
    total: int
    limit: int
    offset: int


class BookedLine(msgspec.Struct, kw_only=True):
    day: str
    model: str
    ours_usd: Decimal
    theirs_usd: Decimal
    difference_usd: Decimal


class Booking(msgspec.Struct, kw_only=True):
    """What this request booked; lines that agree, or were booked before, are not among it."""

    provider: str
    reference: str
    booked: list[BookedLine]
    booked_usd: Decimal


# -- endpoints ---------------------------------------------------------------------------------------------------------


class ReconciliationController(Controller):
    path = "/api/reports/reconciliation"
    tags = ["Reports"]
    before_request = admin_only

    @get("")
    async def on_record(
        self,
        request: Request[Any, Any, Any],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        within: NamedDependency[Within],
        provider: FromQuery[str | None] = None,
        asked: AskedFormat = None,
    ) -> Response[RecordedLines]:
        """What we owe providers by day and model: whole days, in UTC, on which the calls ended."""
        kind = format_of(request, asked)
        limit = page.limit if kind == "json" or "limit" in request.query_params else MOST_ROWS
        first = date.min if within.start is None else within.start.date()
        last = date.max if within.end is None else (within.end - timedelta(microseconds=1)).date()
        async with house.pool.connection() as connection:
            found = await provider_days.recorded(connection, provider, first, last, limit=limit, offset=page.offset)
            beyond = [] if found else await provider_days.recorded(connection, provider, first, last, limit=1, offset=0)
        total = next((each.total for each in (*found, *beyond)), 0)
        rows = [_recorded(each) for each in found]
        if kind != "json":
            return table(rows, kind, RecordedLine.__struct_fields__, total, "provider-costs")
        return wrapped(RecordedLines(rows=rows, total=total, limit=limit, offset=page.offset), total)

    @get("/{provider:str}/bills")
    async def bills(
        self, house: NamedDependency[House], page: NamedDependency[Page], provider: FromPath[str]
    ) -> Response[BillList]:
        """The bills of a provider that were imported, newest first."""
        known = await _known(house, _provider(provider))
        bills = sorted(known.bills.values(), key=lambda bill: (bill.imported_at, bill.reference), reverse=True)
        summaries = [BillSummary(**_summary(known.provider, bill)) for bill in page.of(bills)]
        total = len(bills)
        return wrapped(BillList(bills=summaries, total=total, limit=page.limit, offset=page.offset), total)

    @post("/{provider:str}/bills", status_code=200)
    async def import_(
        self,
        request: Request[Any, Any, Any],
        caller: NamedDependency[Caller],
        provider: FromPath[str],
        reference: Reference,
    ) -> Response[BillSummary]:
        """Import a bill: CSV with the columns day, model, tokens and cost, or such objects as JSON lines."""
        name = _provider(provider)
        if _REFERENCE.fullmatch(reference) is None:
            raise Invalid(["query", "reference"], "expected printable characters and no slash", "value_error.format")
        lines = bill_lines(await request.body())
        command = ImportBill(**caller.signature(), provider=name, reference=reference, lines=lines)

        def answer(outcome: Outcome) -> BillSummary:
            known = outcome.states[0]
            assert isinstance(known, Reconciliation)
            return BillSummary(**_summary(name, known.bills[reference]))

        return await caller.carry_out(import_bill, command, RECONCILIATION.stream(name), answer=answer)

    @get("/{provider:str}/bills/{reference:str}")
    async def differences(
        self,
        request: Request[Any, Any, Any],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        provider: FromPath[str],
        reference: FromPath[str],
        differing: Differing = False,
        asked: AskedFormat = None,
    ) -> Response[Differences]:
        """A bill beside what is on record for its days, line by line, also lines that only one side has."""
        kind = format_of(request, asked)
        known = await _known(house, _provider(provider))
        bill = _bill(known, reference)
        first, last = bill.days
        async with house.pool.connection() as connection:
            ours = await provider_days.of_provider(connection, known.provider, first, last)
            booked = await provider_days.booked(connection, known.provider, reference)
        every = _compared(bill, ours, booked, known.booked_usd())
        rows = [row for row in every if row.status == "differs"] if differing else every
        if kind != "json":
            columns = Difference.__struct_fields__
            return table([_shown(row) for row in rows], kind, columns, len(rows), f"bill-{reference}")
        ours_usd = _sum(row.ours_usd for row in every)
        theirs_usd = _sum(row.theirs_usd for row in every)
        answer = Differences(
            **_summary(known.provider, bill),
            ours_usd=usd6(ours_usd),
            difference_usd=usd6(subtract(theirs_usd, ours_usd)),
            booked_usd=usd6(_sum(row.difference_usd for row in every if row.status == "booked")),
            open_usd=usd6(_sum(row.difference_usd for row in every if row.status == "differs")),
            rows=[_shown(row) for row in page.of(rows)],
            total=len(rows),
            limit=page.limit,
            offset=page.offset,
        )
        return wrapped(answer, len(rows))

    @post("/{provider:str}/bills/{reference:str}/book", status_code=200)
    async def book(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        provider: FromPath[str],
        reference: FromPath[str],
        data: JSONBody[BookBody],
    ) -> Response[Booking]:
        """Book the differences of the lines that were agreed upon, each once; our cost grows by them."""
        name = _provider(provider)
        ours = await _on_record(house, name, data.lines)
        lines = tuple(
            AgreedLine(day=line.day, model=line.model, ours_usd=ours.get(line_key(line.day, line.model), ZERO))
            for line in data.lines
        )
        command = BookDifferences(**caller.signature(), reference=reference, lines=lines, note=data.note)

        def answer(outcome: Outcome) -> Booking:
            events = [event for event in outcome.events if isinstance(event, BillDifferenceBooked)]
            return Booking(
                provider=name,
                reference=reference,
                booked=[_booked(event) for event in events],
                booked_usd=usd6(_sum(event.difference_usd for event in events)),
            )

        return await caller.carry_out(book_differences, command, RECONCILIATION.stream(name), answer=answer)


# -- what is known -----------------------------------------------------------------------------------------------------


def _provider(name: str) -> str:
    if _PROVIDER.fullmatch(name.lower()) is None:
        raise Trouble("not_found", resource="provider")
    return name.lower()


async def _known(house: House, provider: str) -> Reconciliation:
    known = (await house.ledger.read(RECONCILIATION.stream(provider))).states[0]
    return known if isinstance(known, Reconciliation) else Reconciliation(provider=provider)


def _bill(known: Reconciliation, reference: str) -> Bill:
    if reference not in known.bills:
        raise NotFound("provider_bill")
    return known.bills[reference]


async def _on_record(house: House, provider: str, lines: list[Agreed]) -> dict[str, Decimal]:
    """What the calls of these lines came to: a fact for the decision, as of the end of the journal at this moment."""
    lag = await house.progress.reach((await house.ledger.read()).position)
    if lag:
        raise Unavailable("the read models are behind")
    days = [line.day for line in lines]
    async with house.pool.connection() as connection:
        found = await provider_days.of_provider(connection, provider, min(days), max(days))
    return {line_key(each.day, each.model): each.provider_cost_usd for each in found}


def _compared(
    bill: Bill, ours: Iterable[ProviderDay], booked: Iterable[BookedRow], on_top: Mapping[str, Decimal]
) -> list[Difference]:
    """All lines that either side has, by day and model, with exact amounts."""
    first, last = (day.isoformat() for day in bill.days)
    known = {line_key(each.day, each.model): each for each in ours}
    agreed = {line_key(each.day, each.model): each for each in booked}
    within = {key for key in on_top if first <= key.partition(" ")[0] <= last}
    rows = []
    for key in sorted(known.keys() | agreed.keys() | bill.lines.keys() | within):
        mine, line, booking = known.get(key), bill.lines.get(key), agreed.get(key)
        recorded_usd = add(mine.provider_cost_usd if mine else ZERO, on_top.get(key, ZERO))
        ours_usd = booking.ours_usd if booking else recorded_usd
        theirs_usd = line.theirs_usd if line else ZERO
        status: Status = "booked" if booking else "agrees" if ours_usd == theirs_usd else "differs"
        day, _, model = key.partition(" ")
        row = Difference(
            day=day,
            model=model,
            calls=mine.calls if mine else 0,
            ours_tokens=mine.prompt_tokens + mine.completion_tokens if mine else 0,
            theirs_tokens=line.tokens if line else 0,
            ours_usd=ours_usd,
            theirs_usd=theirs_usd,
            difference_usd=subtract(theirs_usd, ours_usd),
            status=status,
        )
        rows.append(row)
    return rows


# -- shapes ------------------------------------------------------------------------------------------------------------


def _recorded(row: RecordedDay) -> RecordedLine:
    return RecordedLine(
        day=row.day.isoformat(),
        provider=row.provider,
        model=row.model,
        calls=row.calls,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        total_tokens=row.prompt_tokens + row.completion_tokens,
        provider_cost_usd=usd6(row.provider_cost_usd),
        booked_usd=usd6(row.booked_usd),
    )


def _summary(provider: str, bill: Bill) -> dict[str, Any]:
    first, last = bill.days
    return {
        "provider": provider,
        "reference": bill.reference,
        "first_day": first.isoformat(),
        "last_day": last.isoformat(),
        "lines": len(bill.lines),
        "booked_lines": bill.booked_lines,
        "theirs_usd": usd6(_sum(line.theirs_usd for line in bill.lines.values())),
        "imported_at": ts(bill.imported_at),
    }


def _shown(row: Difference) -> Difference:
    """With amounts digit for digit: a difference may be smaller than six decimals show."""
    return msgspec.structs.replace(
        row,
        ours_usd=number(row.ours_usd),
        theirs_usd=number(row.theirs_usd),
        difference_usd=number(row.difference_usd),
    )


def _booked(event: BillDifferenceBooked) -> BookedLine:
    return BookedLine(
        day=event.day.isoformat(),
        model=event.model,
        ours_usd=number(event.ours_usd),
        theirs_usd=number(event.theirs_usd),
        difference_usd=number(event.difference_usd),
    )


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    total = ZERO
    for amount in amounts:
        total = add(total, amount)
    return total
