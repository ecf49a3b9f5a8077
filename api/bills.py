"""Providers' bills as they come: CSV with a header, one JSON object a line, or JSON with `lines`."""

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.bodies import MAX_AMOUNT, MAX_DIGITS, NO_CONTROL, convert, parse
from api.problems import Invalid, Trouble
from domain.statement import BillLine

MOST_LINES = 50_000
MOST_TOKENS = 10**15

# What others call the columns.
_NAMES = {
    "day": ("day", "date"),
    "model": ("model",),
    "tokens": ("tokens", "total_tokens"),
    "cost": ("cost", "cost_usd", "amount", "amount_usd"),
}
_COLUMNS = {name for names in _NAMES.values() for name in names}


def _as_written(number: str) -> Decimal:
    """An amount must not become a binary fraction on its way. One that no decimal can be is no number."""
    try:
        return Decimal(number)
    except InvalidOperation:
        return Decimal("NaN")


_JSON = msgspec.json.Decoder(float_hook=_as_written)


class Line(msgspec.Struct, kw_only=True):
    day: str
    model: Annotated[str, Meta(min_length=1, max_length=255, pattern=NO_CONTROL)]
    tokens: Annotated[int, Meta(ge=0, le=MOST_TOKENS)] = 0
    cost: Decimal


def bill_lines(body: bytes) -> tuple[BillLine, ...]:
    """The lines of a bill, whichever way they are written.

    Raises:
        Invalid: with the number of the first line that is not what it should be, from 1.
    """
    try:
        text = body.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Invalid(["body"], "expected UTF-8", "value_error.format") from None
    if not text:
        raise Invalid(["body", "lines"], "field required", "value_error.missing")
    rows = _json_rows(text) if text[0] in "{[" else _csv_rows(text)
    lines = tuple(_line(number, row) for number, row in enumerate(rows, 1))
    if not 1 <= len(lines) <= MOST_LINES:
        raise Invalid(["body", "lines"], f"expected 1 to {MOST_LINES} lines", "value_error.length")
    return lines


def _json_rows(text: str) -> Iterable[Mapping[str, Any]]:
    try:
        whole = parse(text.encode(), _JSON)
    except Trouble:
        # Lines as files have them: to Python, some signs that a text may have within end a line as well.
        return [
            _object(number, parse(row.encode(), _JSON))
            for number, row in enumerate(io.StringIO(text, newline=None), 1)
            if row.strip()
        ]
    if isinstance(whole, dict) and isinstance(whole.get("lines"), list):
        whole = whole["lines"]
    rows = whole if isinstance(whole, list) else [whole]
    return [_object(number, row) for number, row in enumerate(rows, 1)]


def _object(number: int, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise Invalid(["body", "lines", number], "expected an object", "type_error.object")
    return row


def _csv_rows(text: str) -> Iterable[Mapping[str, Any]]:
    header, _, _ = text.partition("\n")
    delimiter = max(",;\t", key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        rows = list(reader)
    except csv.Error as error:
        raise Invalid(["body"], str(error), "value_error.format") from None
    if twice := {name for name in names if name in _COLUMNS and names.count(name) > 1}:
        raise Invalid(["body"], f"two columns are called {min(twice)}", "value_error.format")
    for number, row in enumerate(rows, 1):
        # What stands beyond the last column, perhaps behind a comma within an amount, must not get lost.
        if any(field.strip() for field in row.pop(None, ())):
            raise Invalid(["body", "lines", number], "more fields than the header has names", "value_error.format")
    return [{name.strip().lower(): value for name, value in row.items()} for row in rows]


def _line(number: int, row: Mapping[str, Any]) -> BillLine:
    found: dict[str, Any] = {}
    for field, names in _NAMES.items():
        said = {name: row[name] for name in names if row.get(name) not in (None, "")}
        if len(set(map(str, said.values()))) > 1:
            raise Invalid(["body", "lines", number, field], f"{' and '.join(said)} differ", "value_error.format")
        for value in said.values():
            found[field] = _number(value) if field == "tokens" else str(value).strip()
    try:
        line: Line = convert(found, Line)
        day = datetime.fromisoformat(line.day).date()
    except Invalid as problem:
        item = problem.items[0]
        where = item["loc"]
        assert isinstance(where, list)
        raise Invalid(["body", "lines", number, *where[1:]], str(item["msg"]), str(item["type"])) from None
    except ValueError:
        raise Invalid(["body", "lines", number, "day"], "expected YYYY-MM-DD", "value_error.format") from None
    if not _is_amount(line.cost):
        raise Invalid(["body", "lines", number, "cost"], f"expected {MAX_AMOUNT} at most", "value_error.range")
    return BillLine(day=day, model=line.model, tokens=line.tokens, theirs_usd=line.cost)


def _is_amount(cost: Decimal) -> bool:
    """Whether its digits, and those of a sum with others, are so few that tables hold them; it may be negative."""
    if not cost.is_finite() or cost.copy_abs() > MAX_AMOUNT:  # abs() itself overflows
        return False
    return len(cost.as_tuple().digits) <= MAX_DIGITS and abs(cost.adjusted()) <= MAX_DIGITS


def _number(value: Any) -> Any:
    """Numbers of a CSV are texts; one that is no whole number is left for the complaint."""
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else value
