"""Tables in the format that somebody asks for: JSON, CSV for spreadsheets, one JSON object a line for programs."""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from litestar import Request, Response
from litestar.response import Stream

from api.answers import encode
from api.listing import TOTAL, chosen, one_of

Format = Literal["json", "csv", "ndjson", "html"]
TABLE: tuple[Format, ...] = ("json", "csv", "ndjson")
MOST_ROWS = 100_000  # of a file

MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "html": "text/html",
    "json": "application/json",
}

AskedFormat = Annotated[str | None, one_of(TABLE, name="format", description="Or say so in Accept")]


def format_of(request: Request[Any, Any, Any], asked: str | None, offered: Sequence[Format] = TABLE) -> Format:
    """The format that the query names, or else the first one that the client accepts; JSON for everybody else.

    Raises:
        Invalid: there is no such format.
    """
    if asked is not None:
        return cast("Format", chosen("format", asked, offered))
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    for media_type in accepted:
        for each in offered:
            if MEDIA_TYPES[each] == media_type:
                return each
    return "json"


def csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV (RFC 4180). A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    written = io.StringIO()
    csv.writer(written).writerows([[_cell(value) for value in row] for row in rows])
    return written.getvalue()


def _cell(value: Any) -> Any:
    match value:
        case msgspec.Raw():  # a number that is written already
            return bytes(value).decode()
        case str() if value[:1] in ("=", "+", "-", "@", "\t", "\r"):
            return "'" + value
        case bool():
            return str(value).lower()
        case None | msgspec.UNSET:
            return ""
        case _:
            return value


def table(rows: Sequence[msgspec.Struct], kind: Format, columns: Sequence[str], total: int, name: str) -> Response[Any]:
    """Rows as a file with these columns, and how many there would be."""
    headers = {TOTAL: str(total)}
    if kind == "ndjson":
        return Response(b"".join(encode(row) + b"\n" for row in rows), media_type=MEDIA_TYPES[kind], headers=headers)
    lines = csv_lines([columns, *([getattr(row, column) for column in columns] for row in rows)])
    return Response(lines, media_type=MEDIA_TYPES[kind], headers=headers | attached(f"{name}.csv"))


def attached(name: str) -> dict[str, str]:
    """Makes browsers save an answer under a name, which has only plain characters then."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in name)
    return {"Content-Disposition": f'attachment; filename="{plain}"'}


def streamed(pieces: AsyncIterator[str | bytes], kind: Format, total: int, name: str) -> Response[Any]:
    """A file of any length, piece by piece."""
    headers = {TOTAL: str(total)} | (attached(f"{name}.csv") if kind == "csv" else {})
    return Stream(pieces, media_type=MEDIA_TYPES[kind], headers=headers)
