"""What was asked and answered, for teams that want it kept: encrypted, bounded, purged, and never in the journal.

It is kept for people to look at, so a call does not fail for it: if it cannot be written, the log says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
import structlog
from psycopg_pool import PoolTimeout

from infra.postgres import Pool
from infra.secrets import KeyRing, Undecryptable, rewrap

log = structlog.get_logger()

LARGEST_BYTES: Final = 262_144
"""Of a request or an answer as JSON; of a larger one the beginning is kept."""
PATIENCE_SECONDS: Final = 5.0
"""How long a call waits for a connection for this; what it cost is still to be recorded."""

_INSERT = """
insert into app.conversations (call_id, team_id, ciphertext, created_at) values (%s, %s, %s, now())
on conflict (call_id) do nothing
"""
_SELECT = "select call_id::text, ciphertext from app.conversations where call_id = any (%s::uuid[])"
_PAGE = """
select call_id, ciphertext from app.conversations
where call_id > %s and substring(ciphertext for 5) <> %s order by call_id limit 50 for update
"""
_REWRAP = "update app.conversations set ciphertext = %s where call_id = %s"

PURGE: Final = """
delete from app.conversations where ctid = any (array(
    select ctid from app.conversations where created_at < %s limit %s))
"""


class Conversation(msgspec.Struct, frozen=True):
    """One call. There is no answer where none came."""

    request: Mapping[str, Any]
    response: Mapping[str, Any] | None = None


class Conversations:
    """Conversations in `app.conversations`.

    Args:
        pool: connections to the database.
        ring: the keys.
    """

    def __init__(self, pool: Pool, ring: KeyRing) -> None:
        self._pool = pool
        self._ring = ring

    async def keep(self, call_id: str, team_id: str, said: Conversation) -> None:
        """Keeps what was said in a call, once; what is too large is cut."""
        response = None if said.response is None else _bounded(said.response)
        plaintext = msgspec.json.encode(Conversation(_bounded(said.request), response))
        ciphertext = self._ring.encrypt(plaintext, _context(call_id))
        try:
            async with self._pool.connection(PATIENCE_SECONDS) as connection:
                await connection.execute(_INSERT, (call_id, team_id, ciphertext))
        except (psycopg.Error, PoolTimeout, OSError) as problem:
            log.warning("conversation.not_kept", call_id=call_id, reason=type(problem).__name__)

    async def of(self, call_ids: Sequence[str]) -> dict[str, Conversation]:
        """What is kept of these calls, by call."""
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(_SELECT, (list(call_ids),))).fetchall()
        found = {}
        for call_id, ciphertext in rows:
            try:
                plaintext = self._ring.decrypt(ciphertext, _context(call_id))
            except Undecryptable:
                log.warning("conversation.unreadable", call_id=call_id)
            else:
                found[call_id] = msgspec.json.decode(plaintext, type=Conversation)
        return found

    async def rewrap(self) -> int:
        """Encrypt with the newest key whatever an older one wrote, and return how many that were."""
        return await rewrap(self._pool, self._ring, _PAGE, _REWRAP, _context)


def _context(call_id: UUID | str) -> str:
    return f"conversation/{call_id}"


def _bounded(data: Mapping[str, Any]) -> Mapping[str, Any]:
    encoded = msgspec.json.encode(data)
    if len(encoded) <= LARGEST_BYTES:
        return data
    beginning = encoded[:LARGEST_BYTES].decode(errors="ignore")
    return {"truncated": True, "total_bytes": len(encoded), "beginning": beginning}
