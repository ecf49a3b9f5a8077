"""A POST with an Idempotency-Key happens once; asked again, it is answered from what was kept (contract, 0.5).

A request first claims its key. The answer is then kept in the transaction of the events that it reports (see `Receipt`
in the ledger); answers that report no events are kept when they are sent. What may be tried again (a limit, an outage,
a bad body) gives its key back. If the process dies, the claim ends with its lease.
"""

from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import uuid4

import msgspec
from litestar import Request, Response
from litestar.connection import ASGIConnection

from api.bodies import printable
from api.house import House
from api.problems import Invalid, Trouble
from infra.journal import Answer
from infra.ledger import Receipt

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
MAX_KEY_LENGTH = 255
LEASE_MARGIN_SECONDS = 60.0
KEPT_FOR = timedelta(hours=24)

# What may be asked again with the same key; everything else below 500 is an answer and stays one.
_NOT_KEPT = frozenset({401, 409, 413, 422, 429})
_NOT_KEPT_CODE = b'"code":"calls_in_progress"'

_CLAIM = """
insert into app.idempotency as kept (scope, key, fingerprint, state, claim_id, lease_until, content_type)
values (%(scope)s, %(key)s, %(fingerprint)s, 'claimed', %(claim_id)s, now() + %(lease)s, %(content_type)s)
on conflict (scope, key) do update
set fingerprint = excluded.fingerprint, state = 'claimed', claim_id = excluded.claim_id,
    lease_until = excluded.lease_until, content_type = excluded.content_type, status = null, body = null,
    encrypted = false, created_at = now()
where (kept.state = 'claimed' and kept.lease_until < now()) or kept.created_at < now() - %(kept_for)s
returning claim_id
"""

_KEPT = """
select state, fingerprint, claim_id::text, status, body, encrypted, content_type
from app.idempotency
where scope = %s and key = %s
"""

_KEEP = """
update app.idempotency
set state = 'finished', status = %(status)s, body = %(body)s, encrypted = %(encrypted)s
where claim_id = %(claim_id)s and state = 'claimed'
"""

_RELEASE = "delete from app.idempotency where claim_id = %s and state = 'claimed'"


class Replay(Exception):
    """This request was answered before, and this was the answer."""

    def __init__(self, response: Response[Any]) -> None:
        super().__init__(HEADER)
        self.response = response


@dataclass(slots=True)
class Claim:
    """The right to carry out a request, until it is answered."""

    house: House
    claim_id: str
    is_settled: bool = False

    def receipt(self, answer: Any, *, status: int, is_secret: bool) -> Receipt:
        """Keeps the answer with the events. `answer` makes its body from the outcome."""

        def kept(outcome: Any) -> Answer:
            body = answer(outcome)
            return Answer(status, self._sealed(body) if is_secret else body, encrypted=is_secret)

        return Receipt(self.claim_id, kept)

    async def end(self, status: int, body: bytes) -> None:
        """Keeps an answer that reports no events, or gives the key back."""
        if self.is_settled:
            return
        self.is_settled = True
        is_kept = status < 500 and status not in _NOT_KEPT and _NOT_KEPT_CODE not in body
        async with self.house.pool.connection() as connection:
            if is_kept:
                # Whoever answered without events may have answered with a secret: nobody here can tell.
                sealed = self._sealed(body)
                row = {"status": status, "body": sealed, "encrypted": True, "claim_id": self.claim_id}
                await connection.execute(_KEEP, row)
            else:
                await connection.execute(_RELEASE, (self.claim_id,))

    def _sealed(self, body: bytes) -> bytes:
        return self.house.key_ring.encrypt(body, _context(self.claim_id))


async def claim(connection: ASGIConnection[Any, Any, Any, Any], house: House, actor: str) -> Claim | None:
    """Claims the key of a POST, if it has one.

    Args:
        actor: whose key it is: two callers may use the same one.

    Raises:
        Replay: the request was answered before.
        Invalid: the key is too long, or was used for another request.
        Trouble: the first request with this key is still running.
    """
    key = connection.headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise Invalid(["header", HEADER], f"a key has 1 to {MAX_KEY_LENGTH} characters", "value_error.length")
    assert isinstance(connection, Request)
    asked = _canonical(await connection.body()) + b"\n" + connection.url.query.encode()
    claim_id = str(uuid4())
    handler: Any = connection.route_handler
    row = {
        "scope": sha256(f"{actor}\nPOST\n{connection.scope['path']}".encode()).hexdigest(),
        "key": key,
        "fingerprint": house.key_ring.fingerprint(asked),
        "claim_id": claim_id,
        "lease": timedelta(seconds=house.settings.llm_timeout_seconds + LEASE_MARGIN_SECONDS),
        "content_type": str(handler.media_type),
        "kept_for": KEPT_FOR,
    }
    async with house.pool.connection() as database:
        while True:
            cursor = await database.execute(_CLAIM, row)
            if await cursor.fetchone():
                return Claim(house, claim_id)
            cursor = await database.execute(_KEPT, (row["scope"], key))
            if (kept := await cursor.fetchone()) is not None:
                raise _answered(house, kept, asked)
            # Given back between the two statements: it is free again.


def _answered(house: House, kept: Any, asked: bytes) -> Exception:
    state, fingerprint, claim_id, status, body, encrypted, content_type = kept
    if not house.key_ring.recognises(bytes(fingerprint), asked):
        return Invalid(["header", HEADER], "this key was used for another request", "value_error.idempotency")
    if state == "claimed":
        return Trouble("idempotency_in_flight")
    content = house.key_ring.decrypt(bytes(body), _context(claim_id)) if encrypted else bytes(body)
    media_type = content_type if status == 200 else "application/json"
    return Replay(Response(content, status_code=status, media_type=media_type, headers={REPLAYED: "true"}))


def replay(_: Request[Any, Any, Any], answered: Replay) -> Response[Any]:
    """The answer that was given before."""
    return answered.response


def _canonical(body: bytes) -> bytes:
    """The body without the order of its keys and its white space."""
    try:
        return msgspec.json.encode(msgspec.json.decode(printable(body)), order="deterministic")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body


def _context(claim_id: str) -> str:
    return f"idempotency:{claim_id}"
