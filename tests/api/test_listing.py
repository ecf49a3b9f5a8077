"""What all lists have in common."""

from datetime import UTC, datetime

import pytest

from api.listing import FOREVER, Page, Within, chosen, descends, literal, period_of, within_of
from api.problems import Invalid


def on(*moment: int) -> datetime:
    return datetime(*moment, tzinfo=UTC)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    "text,start",
    [
        ("2024-10-01", on(2024, 10, 1)),
        ("2024-10-01T12:30:00Z", on(2024, 10, 1, 12, 30)),
        ("2024-10-01T12:30:00", on(2024, 10, 1, 12, 30)),
        ("2024-10-01 12:30", on(2024, 10, 1, 12, 30)),
        ("2024-10-01T12:30:00.123Z", on(2024, 10, 1, 12, 30, 0, 123000)),
        ("2024-10-01T12:30:00+02:00", on(2024, 10, 1, 10, 30)),
        ("2024-10-01T12:30:00 02:00", on(2024, 10, 1, 10, 30)),  # a plus that was not escaped
        ("2024-10-01T12:30:00.5 0200", on(2024, 10, 1, 10, 30, 0, 500000)),
        ("2024-02-29", on(2024, 2, 29)),
        ("0001-01-01", on(1, 1, 1)),
    ],
)
def test_a_start_is_a_day_or_a_moment(text: str, start: datetime) -> None:
    assert Within(start, None) == within_of(start_date=text)


@pytest.mark.parametrize(
    "text,end",
    [
        ("2024-10-31", on(2024, 11, 1)),
        ("2024-12-31", on(2025, 1, 1)),
        ("9999-12-31", FOREVER),
        ("9999-12-31T23:59:59.999999Z", FOREVER),
        ("2024-10-01T12:30:00Z", on(2024, 10, 1, 12, 30, 0, 1)),
    ],
)
def test_an_end_means_all_of_its_day_or_its_moment(text: str, end: datetime) -> None:
    assert Within(None, end) == within_of(end_date=text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2024",
        "2024-10",
        "2024-13-01",
        "2023-02-29",
        "2024-10-01T25:00:00Z",
        "20241001",
        "2024-W40-1",
        "0000-01-01",
        "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:59:59-05:00",
        "٢٠٢٤-10-01",
        "2024-10-01\n",
        "2024-10-01T12:30:00Z and more",
    ],
)
def test_what_is_no_date_is_refused_where_it_stands(text: str) -> None:
    for name in ("start_date", "end_date"):
        with pytest.raises(Invalid) as refused:
            within_of(**{name: text})
        assert ["query", name] == refused.value.items[0]["loc"]


@pytest.mark.parametrize(
    "period,within",
    [
        (None, Within()),
        ("all", Within()),
        ("All", Within()),
        ("2024-02", Within(on(2024, 2, 1), on(2024, 3, 1))),
        ("2024-12", Within(on(2024, 12, 1), on(2025, 1, 1))),
        ("9999-12", Within(on(9999, 12, 1), FOREVER)),
        ("2024-02-29", Within(on(2024, 2, 29), on(2024, 3, 1))),
    ],
)
def test_a_period_is_a_month_a_day_or_everything(period: str | None, within: Within) -> None:
    assert within == period_of(period)


@pytest.mark.parametrize("period", ["", "2024", "2024-00", "2024-13", "2024-02-30", "month", "2024-02-01T00:00:00Z"])
def test_other_periods_are_refused(period: str) -> None:
    with pytest.raises(Invalid) as refused:
        period_of(period)
    assert "expected YYYY-MM, YYYY-MM-DD or all" == refused.value.items[0]["msg"]


def test_two_stretches_of_time_have_their_overlap_in_common() -> None:
    october = Within(on(2024, 10, 1), on(2024, 11, 1))
    assert october == october.and_within(Within())
    assert Within(on(2024, 10, 5), on(2024, 11, 1)) == october.and_within(Within(on(2024, 10, 5), None))
    assert Within(on(2024, 10, 1), on(2024, 10, 5)) == Within(None, on(2024, 10, 5)).and_within(october)


def test_words_come_in_any_letter_case() -> None:
    assert "active" == chosen("status", "ACTIVE", ("active", "paused"))
    assert chosen("status", None, ("active",)) is None
    with pytest.raises(Invalid):
        chosen("status", "gone", ("active",))
    assert [True, True, False] == [descends(order) for order in (None, "DESC", "Asc")]


def test_wildcards_mean_themselves() -> None:
    assert r"%50\%\_\\%" == literal("50%_\\")


def test_a_page_of_a_whole_list_is_a_slice_of_it() -> None:
    assert [3, 4] == Page(limit=2, offset=2).of([1, 2, 3, 4, 5])
