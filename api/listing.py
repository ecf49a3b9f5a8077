"""What all lists have in common: pages, their full count, filters by time and by word, sorting.

Handlers take `page: NamedDependency[Page]` and `within: NamedDependency[Within]`; the query parameters come along.
"""

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, TypeVar

from litestar import Response
from litestar.di import Provide
from litestar.params import QueryParameter

from api.answers import reply
from api.problems import Invalid

T = TypeVar("T")


def one_of(words: Collection[str], *, name: str | None = None, description: str | None = None) -> QueryParameter:
    """Says of a query parameter which words it takes; `chosen` sees to it."""
    return QueryParameter(name=name, description=description, schema_extra={"enum": list(words)})


ORDERS = ("asc", "desc")

Order = Annotated[str | None, one_of(ORDERS)]
StartDate = Annotated[str | None, QueryParameter(description="YYYY-MM-DD or ISO datetime")]
EndDate = Annotated[str | None, QueryParameter(description="YYYY-MM-DD (the whole day) or ISO datetime")]
Period = Annotated[str | None, QueryParameter(description="YYYY-MM, YYYY-MM-DD or all")]

TOTAL = "X-Total-Count"
MOST_OFFSET = 2**63 - 1  # what PostgreSQL can count to
FOREVER = datetime.max.replace(tzinfo=UTC)

_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}$")
_MOMENT = re.compile(r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}")
_PLUS_LOST = re.compile(r"(?P<time>:\d\d(?:\.\d+)?) (?P<zone>\d\d:?\d\d)$")
_MONTH = re.compile(r"^\d{4}-\d{2}$")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted."""

    limit: int = 100
    offset: int = 0

    def of(self, items: list[T]) -> list[T]:
        """The page of a list that is whole already."""
        return items[self.offset : self.offset + self.limit]


@dataclass(frozen=True, slots=True)
class Within:
    """A stretch of time, from `start` until before `end`; None is open."""

    start: datetime | None = None
    end: datetime | None = None

    def and_within(self, other: "Within") -> "Within":
        """What both have in common."""
        starts = [each.start for each in (self, other) if each.start is not None]
        ends = [each.end for each in (self, other) if each.end is not None]
        return Within(max(starts, default=None), min(ends, default=None))


def page_of(
    limit: Annotated[int, QueryParameter(ge=1, le=1000, description="How many items at most")] = 100,
    offset: Annotated[int, QueryParameter(ge=0, le=MOST_OFFSET, description="How many items to skip")] = 0,
) -> Page:
    return Page(limit, offset)


def within_of(
    start_date: StartDate = None,
    end_date: EndDate = None,
) -> Within:
    return Within(
        None if start_date is None else _parsed("start_date", start_date)[0],
        None if end_date is None else _parsed("end_date", end_date)[1],
    )


def period_of(period: Period = None) -> Within:
    """`YYYY-MM`, `YYYY-MM-DD` or `all`, which is also meant when there is none."""
    if period is None or period.lower() == "all":
        return Within()
    with suppress(Invalid):
        if _MONTH.match(period):
            start, _ = _parsed("period", f"{period}-01")
            return Within(start, (start + timedelta(days=31)).replace(day=1) if start.year < 9999 else FOREVER)
        if _DATE.match(period):
            return Within(*_parsed("period", period))
    raise Invalid(["query", "period"], "expected YYYY-MM, YYYY-MM-DD or all", "value_error.format")


DEPENDENCIES = {
    "page": Provide(page_of, sync_to_thread=False),
    "within": Provide(within_of, sync_to_thread=False),
}


def until(name: str, text: str) -> int | datetime:
    """A query parameter that is a position of the journal, or a moment: then the first one after it.

    Raises:
        Invalid: it is neither.
    """
    if text.isascii() and text.isdecimal():
        return min(int(text), MOST_OFFSET)
    with suppress(Invalid):
        return _parsed(name, text)[1]
    raise Invalid(["query", name], "expected a position, YYYY-MM-DD or an ISO datetime", "value_error.format")


def chosen(name: str, value: str | None, words: Collection[str]) -> str | None:
    """A query parameter that has to be one of some words, in any letter case.

    Raises:
        Invalid: it is another word.
    """
    if value is None:
        return None
    for word in words:
        if word.lower() == value.lower():
            return word
    raise Invalid(["query", name], f"expected one of: {', '.join(words)}", "value_error.enum")


def descends(order: str | None) -> bool:
    """Whether `order` asks for the last ones first, which it does by default."""
    return chosen("order", order, ORDERS) != "asc"


def literal(text: str) -> str:
    """A text to be looked for inside others by LIKE, where `%` and `_` mean themselves."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


def listed(items: Iterable[T], total: int) -> Response[list[T]]:
    """A list as a bare array with its full count."""
    return reply(list(items), headers={TOTAL: str(total)})


def wrapped(answer: T, total: int) -> Response[T]:
    """An answer around a list, with the full count of that list."""
    return reply(answer, headers={TOTAL: str(total)})


def _parsed(name: str, text: str) -> tuple[datetime, datetime]:
    """The first moment that a date or moment means, and the first one after it."""
    try:
        if _DATE.match(text):
            start = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
            return start, _later(start, timedelta(days=1))
        if _MOMENT.match(text):
            # A plus that was not escaped arrives as a space.
            moment = datetime.fromisoformat(_PLUS_LOST.sub(r"\g<time>+\g<zone>", text))
            moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
            return moment, _later(moment, timedelta(microseconds=1))
    except (ValueError, OverflowError):
        pass
    raise Invalid(["query", name], "expected YYYY-MM-DD or an ISO datetime", "value_error.format")


def _later(moment: datetime, by: timedelta) -> datetime:
    return FOREVER if moment > FOREVER - by else moment + by


def parameters(page: Page, within: Within | None = None, **filters: Any) -> dict[str, Any]:
    """What a select of a page is called with."""
    times = {} if within is None else {"start": within.start, "end": within.end}
    return {"limit": page.limit, "offset": page.offset, **times, **filters}
