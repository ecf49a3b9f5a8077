"""A POST with an Idempotency-Key happens once; asked again, it is answered from what was kept (contract, 0.5).

A request first claims its key. The answer is then kept in the transaction of the events that it reports (see `Receipt`
in the ledger); answers that report no events are kept when they are sent. What may be tried again (a limit, an outage,
a bad body) gives its key back.

If the process dies, the answer is there or nothing was written, and the next one who asks may claim the key at once;
the journal takes nothing of a claim that somebody else has by now. Only a request that writes in several steps (a call
to a model is on record before a provider hears of it) says so before the first one, and its key is free when the
lease ends: by then nobody can be carrying the call any more.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any, LiteralString

import msgspec
import psycopg
import structlog
from litestar import Request, Response

from api.bodies import printable
from api.house import House
from api.problems import Invalid, Trouble
from domain.event import UNREADABLE
from infra.ids import new_id
from infra.journal import Answer
from infra.ledger import ClaimLost, Receipt
from infra.presence import SPACE

log = structlog.get_logger()

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
CONTENT_TYPE = "Content-Type"  # kept where an answer may be of several kinds
MAX_KEY_LENGTH = 255
LEASE_MARGIN_SECONDS = 60.0
KEPT_FOR = timedelta(hours=24)
RETRY_SECONDS = 1.0
NONE: Mapping[str, str] = {}
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, OSError)

# What may be asked again with the same key; everything else below 500 is an answer and stays one.
_NOT_KEPT = frozenset({401, 409, 413, 422, 429})
_NOT_KEPT_CODE = b'"code":"calls_in_progress"'

_CLAIM = """
insert into app.idempotency as kept
    (scope, key, fingerprint, state, claim_id, process, has_written, lease_until, content_type, has_headers)
values (%(scope)s, %(key)s, %(fingerprint)s, 'claimed', %(claim_id)s, %(process)s, false, now() + %(lease)s,
        %(content_type)s, true)
on conflict (scope, key) do update
set fingerprint = excluded.fingerprint, state = 'claimed', claim_id = excluded.claim_id, process = excluded.process,
    has_written = false, lease_until = excluded.lease_until, content_type = excluded.content_type, has_headers = true,
    status = null, body = null, encrypted = false, created_at = now()
where kept.created_at < now() - %(kept_for)s
   or (kept.state = 'claimed' and kept.lease_until < now())
   or (kept.state = 'claimed' and not kept.has_written and not exists (
        select from pg_locks as present
        where present.locktype = 'advisory' and present.granted
          and present.classid = %(space)s and present.objid = kept.process::oid and present.objsubid = 2
          and present.database = (select oid from pg_database where datname = current_database())))
returning claim_id
"""

_KEPT = """
select state, fingerprint, claim_id::text, status, body, encrypted, content_type, has_headers
from app.idempotency
where scope = %s and key = %s
"""

_KEEP = """
update app.idempotency
set state = 'finished', status = %(status)s, body = %(body)s, encrypted = %(encrypted)s
where claim_id = %(claim_id)s and state = 'claimed'
"""

_BEGIN = "update app.idempotency set has_written = true where claim_id = %s and state = 'claimed'"

_EXTEND = """
update app.idempotency set lease_until = greatest(lease_until, now() + %s) where claim_id = %s and state = 'claimed'
"""

_RELEASE = "delete from app.idempotency where claim_id = %(claim_id)s and state = 'claimed'"


class Replay(Exception):
    """This request was answered before, and this was the answer."""

    def __init__(self, response: Response[Any]) -> None:
        super().__init__(HEADER)
        self.response = response


@dataclass(slots=True)
class Claim:
    """The right to carry out a request, until it is answered.

    Args:
        headers: what the answer says beside its body, for a repeat as well.
        is_settled: the answer is kept, or will be; nothing is to be done any more.
    """

    house: House
    claim_id: str
    headers: dict[str, str] = field(default_factory=dict)
    is_settled: bool = False
    has_begun: bool = False

    async def begin(self) -> None:
        """To be awaited before anything is written that the answer is not kept with.

        Raises:
            ClaimLost: somebody else has the claim by now; nothing may be written.
        """
        if self.is_settled or self.has_begun:
            return
        async with self.house.pool.connection() as connection:
            begun = await connection.execute(_BEGIN, (self.claim_id,))
        if not begun.rowcount:
            raise ClaimLost
        self.has_begun = True

    async def hold_for(self, longest: timedelta) -> None:
        """Keeps the key for a request that may take longer than others; if the database is away just now, as long as
        for these."""
        try:
            async with self.house.pool.connection() as connection:
                await connection.execute(_EXTEND, (longest, self.claim_id))
        except AWAY as problem:
            log.warning("claim.not_extended", reason=type(problem).__name__)

    def receipt(self, answer: Any, *, status: int, is_secret: bool) -> Receipt:
        """Keeps the answer with the events. `answer` makes its body from the outcome."""

        def kept(outcome: Any) -> Answer:
            content = _with_headers(self.headers, answer(outcome))
            return Answer(status, self._sealed(content) if is_secret else content, encrypted=is_secret)

        return Receipt(self.claim_id, kept)

    async def end(self, status: int, body: bytes, headers: Mapping[str, str] = NONE) -> None:
        """Keeps an answer that reports no events, or gives the key back. If the database is away, the answer need not
        wait for it."""
        if self.is_settled:
            return
        self.is_settled = True
        statement: LiteralString = _RELEASE
        row: dict[str, Any] = {"claim_id": self.claim_id}
        if status < 500 and status not in _NOT_KEPT and _NOT_KEPT_CODE not in body:
            # Whoever answered without events may have answered with a secret: nobody here can tell.
            row |= {"status": status, "body": self._sealed(_with_headers(headers, body)), "encrypted": True}
            statement = _KEEP
        try:
            await self._note(statement, row)
        except AWAY as problem:
            log.warning("claim.delayed", reason=type(problem).__name__)
            self.house.background.spawn(self._note_later(statement, row), name=f"claim {self.claim_id}")

    async def _note(self, statement: LiteralString, row: dict[str, Any]) -> None:
        async with self.house.pool.connection() as connection:
            await connection.execute(statement, row)

    async def _note_later(self, statement: LiteralString, row: dict[str, Any]) -> None:
        """Until it is noted, the key is neither answered nor free; at its lease, it is free."""
        async with asyncio.timeout(lease(self.house).total_seconds()):
            while True:
                await asyncio.sleep(RETRY_SECONDS)
                with suppress(*AWAY):
                    return await self._note(statement, row)

    def _sealed(self, content: bytes) -> bytes:
        return self.house.key_ring.encrypt(content, _context(self.claim_id))


async def claim(request: Request[Any, Any, Any], house: House, actor: str) -> Claim | None:
    """Claims the key of a POST, if it has one.

    Args:
        actor: whose key it is: two callers may use the same one.

    Raises:
        Replay: the request was answered before.
        Invalid: the key is too long, or was used for another request.
        Trouble: the first request with this key is still running.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise Invalid(["header", HEADER], f"a key has 1 to {MAX_KEY_LENGTH} characters", "value_error.length")
    asked = _canonical(await request.body()) + b"\n" + request.url.query.encode()
    claim_id = new_id()
    handler: Any = request.route_handler
    row = {
        "scope": sha256(f"{actor}\nPOST\n{request.scope['path']}".encode()).hexdigest(),
        "key": key,
        "fingerprint": house.key_ring.fingerprint(asked),
        "claim_id": claim_id,
        "process": house.presence.number,
        "space": SPACE,
        "lease": lease(house),
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


def lease(house: House) -> timedelta:
    """How long a request may take; afterwards nobody can be carrying it out. (One that may ask several models after
    each other says how much longer, when it knows.)"""
    return timedelta(seconds=house.settings.llm_timeout_seconds + LEASE_MARGIN_SECONDS)


def _answered(house: House, kept: Any, asked: bytes) -> Exception:
    state, fingerprint, claim_id, status, body, encrypted, content_type, has_headers = kept
    if not house.key_ring.recognises(bytes(fingerprint), asked):
        return Invalid(["header", HEADER], "this key was used for another request", "value_error.idempotency")
    if state == "claimed":
        return Trouble("idempotency_in_flight")
    content = house.key_ring.decrypt(bytes(body), _context(claim_id)) if encrypted else bytes(body)
    headers, content = _without_headers(content) if has_headers else ({}, content)
    media_type = headers.pop(CONTENT_TYPE, content_type if status == 200 else "application/json")
    return Replay(Response(content, status_code=status, media_type=media_type, headers={**headers, REPLAYED: "true"}))


def _with_headers(headers: Mapping[str, str], body: bytes) -> bytes:
    """An answer as it is kept: a line of headers, the body. One value, so that both are kept in one step."""
    return msgspec.json.encode(headers) + b"\n" + body


def _without_headers(content: bytes) -> tuple[dict[str, str], bytes]:
    headers, _, body = content.partition(b"\n")
    return msgspec.json.decode(headers, type=dict[str, str]), body


def replay(_: Request[Any, Any, Any], answered: Replay) -> Response[Any]:
    """The answer that was given before."""
    return answered.response


def _canonical(body: bytes) -> bytes:
    """The body without the order of its keys and its white space."""
    try:
        return msgspec.json.encode(msgspec.json.decode(printable(body)), order="deterministic")
    except UNREADABLE:
        return body


def _context(claim_id: str) -> str:
    return f"idempotency:{claim_id}"
