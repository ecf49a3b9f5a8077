"""How values look in an answer: exact money, one format of time, JSON written once."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any, TypeVar, cast

import msgspec
from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder(decimal_format="number")
_EXACT = Context(prec=120, rounding=ROUND_HALF_UP)


def usd6(amount: Decimal) -> Decimal:
    """A total in dollars: 6 decimals, rounded half up, once, here."""
    return number(_EXACT.quantize(amount, Decimal("0.000001")))


def average6(total: Decimal, count: int) -> Decimal:
    """An average in dollars: 6 decimals, rounded once; 0 of nothing."""
    return usd6(_EXACT.divide(total, Decimal(count)) if count else Decimal(0))


def usd8(amount: Decimal) -> Decimal:
    """An amount of one call in dollars: its 8 decimals."""
    return number(_EXACT.quantize(amount, Decimal("0.00000001")))


def number(value: Decimal) -> Decimal:
    """A JSON number in plain notation, digit for digit.

    What comes back is the text of the number, ready to be written; to the type checker and the OpenAPI document it is
    the decimal that it shows. (Left to itself, a small Decimal would be written with an exponent.)
    """
    return cast("Decimal", msgspec.Raw(format(value, "f").encode()))


def number_or_none(value: Decimal | None) -> Decimal | None:
    return None if value is None else number(value)


def percent(part: int, whole: int) -> Decimal:
    """How much of the whole a part is, in percent with 2 decimals; 0 of nothing."""
    return hundredths(_EXACT.divide(Decimal(part * 100), Decimal(whole)) if whole > 0 else Decimal(0))


def hundredths(value: Decimal) -> Decimal:
    """A number with 2 decimals, rounded half up."""
    return number(_EXACT.quantize(value, Decimal("0.01")))


def ts(moment: datetime) -> str:
    """UTC, ISO 8601, exactly three decimals and Z."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def ts_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else ts(moment)


def encode(content: Any) -> bytes:
    return _ENCODER.encode(content)


class _Ready(Response[T]):
    """A JSON answer that goes out as it is: nobody on its way has anything to add."""

    def to_asgi_response(self, *_: object, **__: object) -> ASGIResponse:
        return cast("ASGIResponse", self._send)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = cast("bytes", self.content)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), str(value).encode("latin-1")) for name, value in self.headers.items()]
        assert self.status_code is not None
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def reply(content: T, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response[T]:
    """An answer with a JSON body."""
    return _Ready(cast("T", encode(content)), status_code=status, headers=headers)
