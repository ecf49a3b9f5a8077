"""What is signed off: a team's months, and what providers say we owe them.

    statement-<team_id>         closed*                                     one calendar month after the other
    reconciliation-<provider>   (bill imported -> difference booked*)*

A statement covers a stretch of the journal: every entry of the team after the position at which the one before ended,
up to its own. So each entry is in exactly one statement, whatever clocks say; one that is written after the close
goes to the next, and a closed statement never changes.

A bill is kept as it came, summed up per day and model. A difference is what the provider asks beyond what we have on
record: what the calls came to, and what was booked on top of it. Booking a difference says that we agree. So a bill
that comes a second time, under whatever reference, asks nothing more.
"""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal

from msgspec.structs import replace

from domain.credit import (
    CreditsAdjusted,
    CreditsCharged,
    CreditsExpired,
    CreditsGranted,
    CreditsRefunded,
)
from domain.errors import (
    AlreadyExists,
    InvalidValue,
    NotFound,
    PeriodNotEnded,
    PeriodOutOfOrder,
    StatementUnbalanced,
)
from domain.event import Command, Event, Record, State
from domain.pricing import ZERO, add, subtract
from domain.team import Team

# -- what the events say -------------------------------------------------------------------------------------


class Totals(Record):
    """The entries of a period by kind, in credits; holds are none. `client_cost_usd` is what the charges rest on."""

    entries: int = 0
    granted_credits: int = 0
    adjusted_credits: int = 0
    charged_credits: int = 0
    refunded_credits: int = 0
    expired_credits: int = 0
    client_cost_usd: Decimal = ZERO

    @property
    def net_credits(self) -> int:
        came = self.granted_credits + self.adjusted_credits + self.refunded_credits
        return came - self.charged_credits - self.expired_credits


NOTHING = Totals()


class BillLine(Record):
    """What a provider asks for a model on a day."""

    day: date
    model: str
    tokens: int
    theirs_usd: Decimal


# -- events --------------------------------------------------------------------------------------------------


class StatementClosed(Event):
    """Covers the journal after `after_position` up to `position`, where the chain has `head_hash` (hex)."""

    team_id: str
    organization_id: str
    period: str
    after_position: int
    position: int
    head_hash: str
    opening_credits: int
    closing_credits: int
    totals: Totals


class ProviderBillImported(Event):
    provider: str
    reference: str
    lines: tuple[BillLine, ...]


class BillDifferenceBooked(Event):
    """`difference_usd` is theirs minus ours: what our provider cost grows by."""

    provider: str
    reference: str
    day: date
    model: str
    ours_usd: Decimal
    theirs_usd: Decimal
    difference_usd: Decimal
    note: str | None = None


ReconciliationEvent = ProviderBillImported | BillDifferenceBooked

# -- state ---------------------------------------------------------------------------------------------------


class Statement(Record):
    period: str
    after_position: int
    position: int
    head_hash: str
    opening_credits: int
    closing_credits: int
    totals: Totals
    closed_at: datetime
    closed_by: str


class Statements(State):
    """A team's closed statements, oldest first."""

    team_id: str
    closed: tuple[Statement, ...] = ()

    def statement(self, period: str) -> Statement | None:
        return next((each for each in self.closed if each.period == period), None)


class Bill(Record):
    """`lines` by `line_key`; the differences that were booked by day and model, so that the next one copies a day of
    them and not the bill."""

    reference: str
    lines: dict[str, BillLine]
    booked: dict[str, dict[str, Decimal]] = {}
    imported_at: datetime

    @property
    def days(self) -> tuple[date, date]:
        """The first and the last one that it speaks of."""
        days = [line.day for line in self.lines.values()]
        return min(days), max(days)

    @property
    def booked_lines(self) -> int:
        return sum(map(len, self.booked.values()))

    def is_booked(self, day: date, model: str) -> bool:
        return model in self.booked.get(day.isoformat(), ())

    def theirs_usd(self, day: date, model: str) -> Decimal:
        """What the provider asks, which is nothing for what it does not name."""
        line = self.lines.get(line_key(day, model))
        return ZERO if line is None else line.theirs_usd


class Reconciliation(State):
    provider: str
    bills: dict[str, Bill] = {}

    def booked_usd(self) -> dict[str, Decimal]:
        """What was booked on top of what the calls came to, by `line_key`, whichever bill asked for it."""
        booked: dict[str, Decimal] = {}
        for bill in self.bills.values():
            for day, models in bill.booked.items():
                for model, difference in models.items():
                    key = f"{day} {model}"
                    booked[key] = add(booked.get(key, ZERO), difference)
        return booked


def evolve(statements: Statements | None, event: StatementClosed) -> Statements:
    """Which statements are closed after this event, whatever the rules say today."""
    statements = statements or Statements(team_id=event.team_id)
    statement = Statement(
        period=event.period,
        after_position=event.after_position,
        position=event.position,
        head_hash=event.head_hash,
        opening_credits=event.opening_credits,
        closing_credits=event.closing_credits,
        totals=event.totals,
        closed_at=event.at,
        closed_by=event.by,
    )
    return replace(statements, closed=(*statements.closed, statement))


def evolve_reconciliation(reconciliation: Reconciliation | None, event: ReconciliationEvent) -> Reconciliation:
    """What is known of a provider's bills after this event, whatever the rules say today."""
    reconciliation = reconciliation or Reconciliation(provider=event.provider)
    if isinstance(event, ProviderBillImported):
        lines = {line_key(line.day, line.model): line for line in event.lines}
        bill = Bill(reference=event.reference, lines=lines, imported_at=event.at)
    else:
        known = reconciliation.bills.get(event.reference)
        if known is None:
            return reconciliation
        day = event.day.isoformat()
        models = {**known.booked.get(day, {}), event.model: event.difference_usd}
        bill = replace(known, booked={**known.booked, day: models})
    return replace(reconciliation, bills={**reconciliation.bills, event.reference: bill})


def line_key(day: date, model: str) -> str:
    return f"{day.isoformat()} {model}"


# -- periods -------------------------------------------------------------------------------------------------

_PERIOD = re.compile(r"([12][0-9]{3})-(0[1-9]|1[0-2])")


def period_of(at: datetime) -> str:
    """The calendar month in UTC, as `YYYY-MM`."""
    return at.astimezone(UTC).strftime("%Y-%m")


def period_bounds(period: str) -> tuple[datetime, datetime]:
    """When a period starts, and when the next one does.

    Raises:
        InvalidValue: it is not a month written as `YYYY-MM`.
    """
    found = _PERIOD.fullmatch(period)
    if found is None:
        raise InvalidValue("period")
    year, month = int(found[1]), int(found[2])
    start = datetime(year, month, 1, tzinfo=UTC)
    return start, start.replace(year=year + month // 12, month=month % 12 + 1)


def next_period(period: str) -> str:
    return period_of(period_bounds(period)[1])


def tally(events: Iterable[Event], totals: Totals = NOTHING) -> Totals:
    """Adds up the entries among a team's events, to what was added up before."""
    for event in events:
        match event:
            case CreditsGranted(credits=credits):
                totals = replace(totals, granted_credits=totals.granted_credits + credits)
            case CreditsAdjusted(credits=credits):
                totals = replace(totals, adjusted_credits=totals.adjusted_credits + credits)
            case CreditsRefunded(credits=credits):
                totals = replace(totals, refunded_credits=totals.refunded_credits + credits)
            case CreditsExpired(credits=credits):
                totals = replace(totals, expired_credits=totals.expired_credits + credits)
            case CreditsCharged(credits=credits, client_cost_usd=cost):
                charged = totals.charged_credits + credits
                totals = replace(totals, charged_credits=charged, client_cost_usd=add(totals.client_cost_usd, cost))
            case _:
                continue
        totals = replace(totals, entries=totals.entries + 1)
    return totals


# -- commands ------------------------------------------------------------------------------------------------


class CloseStatement(Command):
    """`position` is the last one of the journal that the period covers; totals and closing credits as found there.

    What was added up stands after `after_position`, where the statement before had ended when somebody looked.
    """

    period: str
    after_position: int
    position: int
    head_hash: str
    closing_credits: int
    totals: Totals


class ImportBill(Command):
    provider: str
    reference: str
    lines: tuple[BillLine, ...]


class AgreedLine(Record):
    """A day and model whose difference shall be booked, and what the calls of that day came to."""

    day: date
    model: str
    ours_usd: Decimal


class BookDifferences(Command):
    reference: str
    lines: tuple[AgreedLine, ...]
    note: str | None = None


# -- decisions -----------------------------------------------------------------------------------------------


def close_statement(
    statements: Statements | None, team: Team | None, command: CloseStatement
) -> tuple[list[Event], list[Event]]:
    """Closes a team's month, the first being that of its creation. A month that is closed stays as it is.

    Raises:
        PeriodNotEnded: more may happen in it.
        PeriodOutOfOrder: another month has to be closed first, or was while the entries were being added up.
        StatementUnbalanced: what was found does not add up; that is for an auditor, not for a signature.
    """
    if team is None:
        raise NotFound("team")
    _, ends_at = period_bounds(command.period)
    if statements is not None and statements.statement(command.period) is not None:
        return [], []
    if command.at < ends_at:
        raise PeriodNotEnded(command.period)
    last = statements.closed[-1] if statements is not None else None
    due = period_of(team.created_at) if last is None else next_period(last.period)
    opening, after = (0, 0) if last is None else (last.closing_credits, last.position)
    if command.period != due or command.after_position != after:
        raise PeriodOutOfOrder(due)
    assert command.position >= after, "the journal only grows"
    expected = opening + command.totals.net_credits
    if command.closing_credits != expected:
        raise StatementUnbalanced(credits_expected=expected, credits_found=command.closing_credits)
    closed = StatementClosed(
        at=command.at,
        team_id=team.team_id,
        organization_id=team.organization_id,
        period=command.period,
        after_position=after,
        position=command.position,
        head_hash=command.head_hash,
        opening_credits=opening,
        closing_credits=command.closing_credits,
        totals=command.totals,
    )
    return [closed], []


def import_bill(reconciliation: Reconciliation | None, command: ImportBill) -> list[Event]:
    """Keeps a bill. The same bill again is answered; other lines under its reference are refused."""
    lines = _summed(command.lines)
    if reconciliation is not None and command.reference in reconciliation.bills:
        known = reconciliation.bills[command.reference]
        if tuple(known.lines.values()) != lines:
            raise AlreadyExists("provider_bill")
        return []
    return [ProviderBillImported(at=command.at, provider=command.provider, reference=command.reference, lines=lines)]


def book_differences(reconciliation: Reconciliation | None, command: BookDifferences) -> list[Event]:
    """Books the differences of these lines, each line of a bill once. Lines that agree leave nothing to book.

    Raises:
        NotFound: nobody has imported the bill.
        InvalidValue: a line is of a day before or after those of the bill, of which it says nothing.
    """
    bill = None if reconciliation is None else reconciliation.bills.get(command.reference)
    if reconciliation is None or bill is None:
        raise NotFound("provider_bill")
    first, last = bill.days
    if not all(first <= line.day <= last for line in command.lines):
        raise InvalidValue("day")
    on_top = reconciliation.booked_usd()
    agreed = {line_key(line.day, line.model): line for line in command.lines}
    events: list[Event] = []
    for key, line in agreed.items():
        theirs, ours = bill.theirs_usd(line.day, line.model), add(line.ours_usd, on_top.get(key, ZERO))
        if bill.is_booked(line.day, line.model) or theirs == ours:
            continue
        events.append(
            BillDifferenceBooked(
                at=command.at,
                provider=reconciliation.provider,
                reference=bill.reference,
                day=line.day,
                model=line.model,
                ours_usd=ours,
                theirs_usd=theirs,
                difference_usd=subtract(theirs, ours),
                note=command.note,
            )
        )
    return events


def _summed(lines: Iterable[BillLine]) -> tuple[BillLine, ...]:
    """One line a day and model, in that order: bills have several, one for each key or kind of token."""
    summed: dict[str, BillLine] = {}
    for line in lines:
        key = line_key(line.day, line.model)
        known = summed.get(key)
        summed[key] = (
            line
            if known is None
            else replace(known, tokens=known.tokens + line.tokens, theirs_usd=add(known.theirs_usd, line.theirs_usd))
        )
    return tuple(summed[key] for key in sorted(summed))
