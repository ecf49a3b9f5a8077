"""Request bodies: strict, and complaining in the contract's words.

Litestar's own decoding is lax ("100" is taken for 100) and its complaints have another shape, so every body passes
through this one DTO, set once for the whole application.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, get_args

import msgspec
from litestar._openapi.schema_generation import SchemaCreator
from litestar.dto import AbstractDTO
from litestar.dto._backend import DTOBackend
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition
from msgspec import Meta

from api.problems import Invalid, Trouble, kind_of
from domain.errors import InvalidValue
from domain.pricing import MOST_CREDITS, BudgetMode, ChargePolicy
from domain.team import RefillPeriod

# Ids and names travel in paths, headers and logs: no slash in ids, nothing unprintable in either. (To Python, `$` alone
# is also true before a line feed at the end.)
NO_CONTROL = r"^[^\x00-\x1f\x7f\ufffd]*$(?!\n)"
NO_SLASH = r"^[^/\x00-\x1f\x7f\ufffd]*$(?!\n)"
# Two ids of teams would be hidden behind paths of their own.
TEAM_ID = r"^(?!(?:create|verify)$)[^/\x00-\x1f\x7f\ufffd]*$(?!\n)"
VISIBLE = r"^[\x21-\x7e]*$(?!\n)"
EMAIL = r"^[^@\s\x00-\x1f\x7f\ufffd]+@[^@\s\x00-\x1f\x7f\ufffd]+$(?!\n)"
# What a complaint says instead of the expression.
_IN_WORDS = {
    f"Expected `str` matching regex {pattern!r}": words
    for pattern, words in (
        (NO_CONTROL, "Expected text without control characters"),
        (NO_SLASH, "Expected text without slashes and control characters"),
        (TEAM_ID, "Expected text without slashes and control characters, neither create nor verify"),
        (VISIBLE, "Expected visible ASCII characters without spaces"),
        (EMAIL, "Expected an e-mail address"),
    )
}
ID = Annotated[str, Meta(min_length=1, max_length=255, pattern=NO_SLASH)]
Name200 = Annotated[str, Meta(min_length=1, max_length=200, pattern=NO_CONTROL)]
Name100 = Annotated[str, Meta(min_length=1, max_length=100, pattern=NO_CONTROL)]
Name255 = Annotated[str, Meta(min_length=1, max_length=255, pattern=NO_CONTROL)]
Text200 = Annotated[str, Meta(max_length=200)]
Text500 = Annotated[str, Meta(max_length=500)]
Text1000 = Annotated[str, Meta(max_length=1000)]
Credits = Annotated[int, Meta(ge=0, le=MOST_CREDITS)]
PositiveCredits = Annotated[int, Meta(ge=1, le=MOST_CREDITS)]


def named(words: Iterable[str]) -> Meta:
    """Says of a field which words it takes; `known_word` sees to it."""
    return Meta(extra_json_schema={"enum": list(words)})


BudgetModeName = Annotated[str, named(get_args(BudgetMode))]
ChargePolicyName = Annotated[str, named(get_args(ChargePolicy))]
RefillPeriodName = Annotated[str, named(get_args(RefillPeriod))]

MAX_AMOUNT = Decimal(1_000_000_000_000)
MAX_DIGITS = 30
MAX_DEPTH = 100

# What JSON can spell and PostgreSQL or UTF-8 cannot hold: an escaped NUL, half of a surrogate pair.
_ESCAPE = re.compile(
    rb"\\(?:u(?:(?P<pair>[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(?P<code>[0-9a-fA-F]{4}))|[^u])"
)
# One that does not end is a string, too: otherwise each quote in it would be tried anew, to the end of the body.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_OPENING = b"[{"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AT = re.compile(r" - at `(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")
_FIELD = re.compile(r"^Object missing required field `(?P<field>[^`]+)`")


class StrictBody(AbstractDTO[Any]):
    """Decodes the body into the type of the handler's `data`."""

    def decode_bytes(self, value: bytes) -> Any:
        field = self.asgi_connection.route_handler.parsed_data_field
        return decode_body(value, field.annotation)

    def decode_builtins(self, value: Any) -> Any:
        return convert(value, self.asgi_connection.route_handler.parsed_data_field.annotation)

    def data_to_encodable_type(self, data: Any) -> Any:
        return data

    @classmethod
    def is_supported_model_type_field(cls, field_definition: FieldDefinition) -> bool:
        return True

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: type[DTOBackend] | None = None
    ) -> None:
        """Nothing to prepare: the type itself says how it is decoded."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: SchemaCreator
    ) -> Reference | Schema:
        return schema_creator.for_field_definition(field_definition)


def decode_body(body: bytes, kind: Any) -> Any:
    """A body as what it has to be.

    Raises:
        Trouble: it is not JSON.
        Invalid: it is JSON of another shape.
    """
    body = printable(body)
    _require_shallow(body)
    try:
        return _decoder(kind).decode(body)
    except msgspec.ValidationError:
        # Once more, slowly: 100.0 is a whole number too, and null means absent where it means nothing else.
        return convert(parse(body), kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Trouble("malformed_json") from None


_ANY = msgspec.json.Decoder()


def parse(body: bytes, decoder: msgspec.json.Decoder[Any] = _ANY) -> Any:
    """Any JSON."""
    body = printable(body)
    _require_shallow(body)
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Trouble("malformed_json") from None


def convert(value: Any, kind: Any) -> Any:
    """Parsed JSON as what it has to be."""
    whole = _whole(value)
    try:
        return msgspec.convert(whole, kind, strict=True)
    except msgspec.ValidationError:
        pass
    try:
        return msgspec.convert(_without_nulls(whole), kind, strict=True)
    except msgspec.ValidationError as error:
        raise _complaint(str(error)) from None


def exact(field: str, value: Decimal, *, above_zero: bool = False) -> Decimal:
    """A price, rate or percentage of a body, if it is one that a ledger can live with.

    Raises:
        Invalid: negative, no number at all, or longer than anybody can mean.
    """
    digits = value.as_tuple().digits
    is_sane = value.is_finite() and len(digits) <= MAX_DIGITS and abs(value.adjusted()) <= MAX_DIGITS
    if not is_sane or value < 0 or value > MAX_AMOUNT or (above_zero and not value):
        least = "more than 0" if above_zero else "at least 0"
        raise Invalid(["body", field], f"expected {least} and at most {MAX_AMOUNT}", "value_error.range")
    return value


def in_utc(field: str, moment: datetime | None) -> datetime | None:
    """A moment of a body in UTC, in which it is stored and shown.

    Raises:
        Invalid: in UTC it is before the year 1 or after 9999, which no calendar here can tell.
    """
    if moment is None:
        return None
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise Invalid(["body", field], "expected a year from 1 to 9999 in UTC", "value_error.range") from None


def known_word(field: str, value: str, words: Iterable[str]) -> Any:
    """A field of a body that has to be one of some words, in any letter case.

    Raises:
        InvalidValue: it is another one.
    """
    if value.lower() not in words:
        raise InvalidValue(field)
    return value.lower()


def printable(body: bytes) -> bytes:
    """The body with what cannot be stored replaced by U+FFFD; ids and names with it are refused later."""
    return _ESCAPE.sub(_replace, body) if b"\\u" in body else body


def _require_shallow(body: bytes) -> None:
    """What nests deeper than anybody means would end in an overflow of the stack, here or at a provider's library."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for sign in _STRING.sub(b"", body).translate(None, delete=_NO_BRACKETS):
        depth += 1 if sign in _OPENING else -1
        if depth > MAX_DEPTH:
            raise Trouble("malformed_json")


def _replace(match: re.Match[bytes]) -> bytes:
    code = match["code"]
    if code is None:
        return match[0]
    return rb"\ufffd" if code == b"0000" or b"d800" <= code.lower() <= b"dfff" else match[0]


def _whole(value: Any) -> Any:
    """100.0 as 100; objects inside, such as metadata, are left as they came."""
    match value:
        case dict():
            return {key: _whole_field(each) for key, each in value.items()}
        case list():
            return [_whole(each) if isinstance(each, dict) else each for each in value]
        case _:
            return value


def _whole_field(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _whole(value) if isinstance(value, list) else value


def _without_nulls(value: Any) -> Any:
    """Fields that are null are absent, at the same depth."""
    match value:
        case dict():
            return {
                key: _without_nulls(each) if isinstance(each, list) else each
                for key, each in value.items()
                if each is not None
            }
        case list():
            return [_without_nulls(each) if isinstance(each, dict) else each for each in value]
        case _:
            return value


def _complaint(message: str) -> Invalid:
    at = _AT.search(message)
    text = message[: at.start()] if at else message
    loc: list[str | int] = ["body"]
    if at:
        steps = _STEP.finditer(at["path"])
        loc += [step["name"] or (int(step["index"]) if step["index"].isdigit() else step["index"]) for step in steps]
    if missing := _FIELD.match(text):
        return Invalid([*loc, missing["field"]], "field required", "value_error.missing")
    return Invalid(loc, _IN_WORDS.get(text, text), kind_of(text))


@lru_cache(maxsize=512)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, strict=True)
