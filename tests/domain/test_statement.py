"""What is signed off: a team's months, and the bills of providers."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from domain.charging import complete_job, refund_job, start_call
from domain.credit import CreditsAdjusted, CreditsExpired
from domain.errors import (
    AlreadyExists,
    InvalidValue,
    NotFound,
    PeriodNotEnded,
    PeriodOutOfOrder,
    StatementUnbalanced,
)
from domain.event import Event
from domain.job import finish_call
from domain.statement import (
    AgreedLine,
    BillDifferenceBooked,
    BillLine,
    BookDifferences,
    CloseStatement,
    ImportBill,
    ProviderBillImported,
    Reconciliation,
    StatementClosed,
    Statements,
    Totals,
    book_differences,
    close_statement,
    evolve_reconciliation,
    import_bill,
    next_period,
    period_bounds,
    period_of,
    tally,
)
from domain.team import TeamDeleted
from tests.domain.scene import (
    CHARGE,
    CREATED,
    GRANT,
    NOON,
    OPENED,
    RESEARCH,
    TEAM,
    WHO,
    WHOSE,
    complete,
    finish,
    granted,
    house,
    refund,
    start,
)
from tests.spec import given

APRIL, MAY = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
BUSY = Totals(entries=3, granted_credits=10, charged_credits=2, refunded_credits=1, client_cost_usd=Decimal("0.15"))
MARCH_CLOSED = StatementClosed(
    at=APRIL,
    **WHOSE,
    period="2026-03",
    after_position=0,
    position=70,
    head_hash="c0ffee",
    opening_credits=0,
    closing_credits=9,
    totals=BUSY,
)


def close(period: str = "2026-03", at: datetime = APRIL, closing_credits: int = 9, **more: Any) -> CloseStatement:
    after = 0 if period == "2026-03" else 70
    rest = {"after_position": after, "position": 70, "head_hash": "c0ffee", "totals": BUSY}
    return CloseStatement(**{**WHO, "at": at}, period=period, closing_credits=closing_credits, **{**rest, **more})


# -- statements ----------------------------------------------------------------------------------------------


def test_a_month_is_closed_at_its_end() -> None:
    given(TEAM).when(close_statement, close()).then(MARCH_CLOSED)


def test_a_month_is_not_closed_while_more_may_happen_in_it() -> None:
    early = close(at=APRIL - timedelta(microseconds=1))
    given(TEAM).when(close_statement, early).then_refused(PeriodNotEnded, period="2026-03")


def test_a_closed_statement_never_changes() -> None:
    story = given(TEAM, MARCH_CLOSED)
    story.when(close_statement, close()).then_nothing()
    story.when(close_statement, close(closing_credits=8, totals=Totals(), position=99)).then_nothing()


def test_each_statement_opens_where_the_one_before_ended() -> None:
    quiet = close("2026-04", MAY, position=75, head_hash="decade", totals=Totals())
    closed = StatementClosed(
        at=MAY,
        **WHOSE,
        period="2026-04",
        after_position=70,
        position=75,
        head_hash="decade",
        opening_credits=9,
        closing_credits=9,
        totals=Totals(),
    )
    given(TEAM, MARCH_CLOSED).when(close_statement, quiet).then(closed)


@pytest.mark.parametrize(
    "history, period, due",
    [
        ((TEAM,), "2026-02", "2026-03"),
        ((TEAM,), "2026-04", "2026-03"),
        ((TEAM, MARCH_CLOSED), "2026-05", "2026-04"),
        ((TEAM, MARCH_CLOSED), "2026-02", "2026-04"),
    ],
)
def test_months_are_closed_one_after_the_other(history: Any, period: str, due: str) -> None:
    later = close(period, datetime(2027, 1, 1, tzinfo=UTC))
    given(*history).when(close_statement, later).then_refused(PeriodOutOfOrder, next_period=due)


def test_entries_of_a_month_that_was_closed_meanwhile_are_not_signed_a_second_time() -> None:
    all_since_the_beginning = close("2026-04", MAY, after_position=0, position=75)
    given(TEAM, MARCH_CLOSED).when(close_statement, all_since_the_beginning).then_refused(
        PeriodOutOfOrder, next_period="2026-04"
    )


def test_what_does_not_add_up_is_not_signed() -> None:
    given(TEAM).when(close_statement, close(closing_credits=8)).then_refused(
        StatementUnbalanced, credits_expected=9, credits_found=8
    )


def test_a_statement_needs_a_team() -> None:
    given().when(close_statement, close()).then_refused(NotFound, resource="team")


def test_a_deleted_team_still_gets_its_statement() -> None:
    given(TEAM, TeamDeleted(at=NOON, team_id=RESEARCH)).when(close_statement, close()).then(MARCH_CLOSED)


@pytest.mark.parametrize(
    "period", ["2026-13", "2026-00", "2026-3", "26-03", "2026-03-01", "all", "", "0000-01", "٢٠٢٦-03"]
)
def test_a_period_is_a_month(period: str) -> None:
    given(TEAM).when(close_statement, close(period)).then_refused(InvalidValue, field="period")


def test_statements_are_found_by_period() -> None:
    statements = given(MARCH_CLOSED).states[Statements]
    assert isinstance(statements, Statements)
    march = statements.statement("2026-03")
    assert march is not None
    assert (9, BUSY, APRIL) == (march.closing_credits, march.totals, march.closed_at)
    assert statements.statement("2026-04") is None


def test_a_year_ends_in_december() -> None:
    assert "2027-01" == next_period("2026-12")
    assert (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)) == period_bounds("2026-12")
    assert "2026-12" == period_of(datetime(2027, 1, 1, tzinfo=UTC) - timedelta(microseconds=1))


def test_a_tally_counts_what_moves_credits_and_no_holds() -> None:
    story = house(CREATED)
    events: list[Event] = [OPENED, granted(10)]
    for decide, command in (
        (start_call, start()),
        (finish_call, finish()),
        (complete_job, complete()),
        (refund_job, refund(1)),
    ):
        story = story.when(decide, command)
        events += story.decided
    whose: dict[str, Any] = {"transaction_id": CHARGE, **WHOSE, "held_credits": 0}
    events.append(CreditsAdjusted(at=NOON, **whose, credits=-3, remaining_credits=7))
    events.append(CreditsExpired(at=NOON, **whose, credits=2, remaining_credits=5, grant_id=GRANT))
    totals = tally(events)
    assert (
        Totals(
            entries=5,
            granted_credits=10,
            adjusted_credits=-3,
            charged_credits=1,
            refunded_credits=1,
            expired_credits=2,
            client_cost_usd=Decimal("0.00225"),
        )
        == totals
    )
    assert 5 == totals.net_credits


# -- bills ---------------------------------------------------------------------------------------------------

FIRST, SECOND = date(2026, 3, 1), date(2026, 3, 2)
BILL = "invoice-2026-03"


def line(day: date = FIRST, model: str = "gpt", theirs: str = "10.50", tokens: int = 1000) -> BillLine:
    return BillLine(day=day, model=model, tokens=tokens, theirs_usd=Decimal(theirs))


def bill(*lines: BillLine) -> ImportBill:
    return ImportBill(**WHO, provider="openai", reference=BILL, lines=lines)


def imported(*lines: BillLine) -> ProviderBillImported:
    return ProviderBillImported(at=NOON, provider="openai", reference=BILL, lines=lines)


def agreed(day: date = FIRST, model: str = "gpt", ours: str = "10") -> AgreedLine:
    return AgreedLine(day=day, model=model, ours_usd=Decimal(ours))


def book(*lines: AgreedLine) -> BookDifferences:
    return BookDifferences(**WHO, reference=BILL, lines=lines, note="batch of the 1st")


def booked(difference: str, *, model: str = "gpt", ours: str = "10", theirs: str = "10.50") -> BillDifferenceBooked:
    return BillDifferenceBooked(
        at=NOON,
        provider="openai",
        reference=BILL,
        day=FIRST,
        model=model,
        ours_usd=Decimal(ours),
        theirs_usd=Decimal(theirs),
        difference_usd=Decimal(difference),
        note="batch of the 1st",
    )


def test_a_bill_is_kept_summed_up_by_day_and_model() -> None:
    several = bill(line(SECOND), line(theirs="0.1", tokens=1), line(model="gpt-mini"), line(theirs="0.2", tokens=2))
    given().when(import_bill, several).then(
        imported(line(theirs="0.3", tokens=3), line(model="gpt-mini"), line(SECOND))
    )


def test_the_same_bill_again_is_answered() -> None:
    given(imported(line(), line(SECOND))).when(import_bill, bill(line(SECOND), line())).then_nothing()


def test_another_bill_under_the_same_reference_is_refused() -> None:
    given(imported(line())).when(import_bill, bill(line(theirs="11"))).then_refused(
        AlreadyExists, resource="provider_bill"
    )


def test_a_difference_is_what_they_ask_beyond_ours() -> None:
    given(imported(line())).when(book_differences, book(agreed())).then(booked("0.50"))


def test_a_difference_in_our_favour_is_negative() -> None:
    given(imported(line())).when(book_differences, book(agreed(ours="11"))).then(booked("-0.50", ours="11"))


def test_a_line_is_booked_once() -> None:
    story = given(imported(line())).when(book_differences, book(agreed(), agreed())).then(booked("0.50"))
    story = story.when(book_differences, book(agreed())).then_nothing()
    story.when(book_differences, book(agreed(ours="9"))).then_nothing()


def test_a_line_that_is_booked_copies_nothing_of_other_days() -> None:
    """Else a bill of many lines would be copied for each of them, and everybody would wait for that."""
    before = given(imported(line(), line(SECOND)), booked("0.50")).states[Reconciliation]
    assert isinstance(before, Reconciliation)
    after = evolve_reconciliation(before, replace(booked("0.25"), day=SECOND))
    one_day, both_days = (each.bills[BILL] for each in (before, after))
    assert one_day.booked[FIRST.isoformat()] is both_days.booked[FIRST.isoformat()]
    assert (1, 2) == (one_day.booked_lines, both_days.booked_lines)
    assert [True, False, True] == [
        one_day.is_booked(FIRST, "gpt"),
        one_day.is_booked(SECOND, "gpt"),
        both_days.is_booked(SECOND, "gpt"),
    ]


def test_lines_that_agree_leave_nothing_to_book() -> None:
    given(imported(line())).when(book_differences, book(agreed(ours="10.5"))).then_nothing()


def test_what_the_bill_does_not_name_is_asked_for_with_nothing() -> None:
    story = given(imported(line())).when(book_differences, book(agreed(model="gpt-mini", ours="2")))
    story.then(booked("-2", model="gpt-mini", ours="2", theirs="0"))


@pytest.mark.parametrize(
    "history", [(), (ProviderBillImported(at=NOON, provider="openai", reference="another", lines=()),)]
)
def test_nothing_is_booked_without_a_bill(history: Any) -> None:
    given(*history).when(book_differences, book(agreed())).then_refused(NotFound, resource="provider_bill")


def another(theirs: str) -> tuple[ImportBill, BookDifferences]:
    """A bill under another reference, and the wish to book its only line."""
    reference = "the same once more"
    bill = ImportBill(**WHO, provider="openai", reference=reference, lines=(line(theirs=theirs),))
    return bill, BookDifferences(**WHO, reference=reference, lines=(agreed(),))


def test_a_bill_that_comes_a_second_time_asks_nothing_more() -> None:
    bill, wish = another("10.50")
    story = given(imported(line())).when(book_differences, book(agreed())).when(import_bill, bill)
    story.when(book_differences, wish).then_nothing()


def test_a_corrected_bill_differs_from_what_was_booked() -> None:
    bill, wish = another("10.20")
    story = given(imported(line())).when(book_differences, book(agreed())).when(import_bill, bill)
    [event] = story.when(book_differences, wish).decided
    assert isinstance(event, BillDifferenceBooked)
    assert (Decimal("10.50"), Decimal("-0.30")) == (event.ours_usd, event.difference_usd)


@pytest.mark.parametrize("day", [FIRST - timedelta(days=1), SECOND + timedelta(days=1)])
def test_a_bill_says_nothing_of_days_before_and_after_it(day: date) -> None:
    wish = book(agreed(), agreed(day))
    given(imported(line(), line(SECOND))).when(book_differences, wish).then_refused(InvalidValue, field="day")


def test_a_difference_of_a_bill_that_nobody_knows_says_nothing() -> None:
    given(booked("0.50")).leaving(Reconciliation, bills={})
