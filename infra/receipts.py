"""Receipts: the journal as a Merkle tree, checkpoints of it signed with Ed25519, and proofs against them.

    leaf        hash of the event, and for a movement of credits also the hash of its statement
    statement   what its team may know of a movement, as JSON; so a customer can check its own entry against the tree
                and learns nothing about prices or about others
    checkpoint  "when the journal had so many events, this was its root": a C2SP signed note (tlog-checkpoint)

The tree is grown when somebody needs a checkpoint, never by an append: piece by piece, each committed by itself, so
that who is interrupted goes on where it was. What it keeps can be computed again from the journal at any time; what was
signed cannot be taken back, which is the point.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import Connection as BlockingConnection
from psycopg import errors
from psycopg.rows import class_row

from domain.event import UNREADABLE
from infra import merkle
from infra.journal import Connection
from infra.merkle import TILE, Frontier, Range, Run
from infra.postgres import Pool
from infra.secrets import SecretMissing, SecretStore

GROWN_AT_ONCE = 8 * TILE  # events; some milliseconds of work
KEY_ID = UUID("6a1d7c52-52d5-5c5b-9d52-0f6d0a5a7e11")  # of the one signing key in app.secrets
KEY_KIND = "checkpoint-key"
ED25519 = b"\x01"  # the type of signature, in the words of signed notes
SIGNATURE_SIZE = 4 + 64  # bytes: which key, and what it signed

# What a statement says, in which topics. Both are for ever: leaves that were signed rest on them.
MOVEMENTS = frozenset(
    {
        "CreditsGranted",
        "CreditsHeld",
        "HoldReleased",
        "CreditsCharged",
        "CreditsRefunded",
        "CreditsAdjusted",
        "CreditsExpired",
    }
)
STATED = (
    "transaction_id",
    "team_id",
    "organization_id",
    "job_id",
    "at",
    "by",
    "credits",
    "remaining_credits",
    "held_credits",
    "allocated_credits",
    "credits_from_hold",
    "client_cost_usd",
    "tokens",
    "kind",
    "source",
    "reason",
    "payment_amount_usd",
    "payment_reference",
    "expires_at",
    "grant_id",
)

_EVENTS = """
select notification_id, topic, coalesce(state, ''), coalesce(hash, '')
from journal.events
where notification_id > %b
order by notification_id
limit %b
"""
_LEAVES = """
select run.ordinal, event.notification_id, event.topic, event.state, event.hash
from unnest(%b::bigint[], %b::bigint[]) with ordinality as run (first, last, ordinal)
join journal.events as event on event.notification_id between run.first and run.last
order by run.ordinal, event.notification_id
"""
_NODES = """
select run.ordinal, node.number, node.hash
from unnest(%b::smallint[], %b::bigint[], %b::bigint[]) with ordinality as run (level, first, last, ordinal)
join app.merkle as node on node.level = run.level and node.number between run.first and run.last
order by run.ordinal, node.number
"""
_KEPT = "select coalesce(max(number) + 1, 0) from app.merkle where level = %b"
_KEEP = """
insert into app.merkle (level, number, hash)
select level, number, hash from unnest(%b::smallint[], %b::bigint[], %b::bytea[]) as node (level, number, hash)
on conflict do nothing
"""
_CHECKPOINT = "select size, root, note, created_at from app.checkpoints"
_LATEST = _CHECKPOINT + " order by size desc limit 1"
_OF_SIZE = _CHECKPOINT + " where size = %b"
_SIGN = "insert into app.checkpoints (size, root, note) values (%b, %b, %b) on conflict do nothing"
_HEAD = "select position from journal.head"


class HistoryRewritten(Exception):
    """The journal does not begin with what was signed before: nothing is signed on top of that."""


class Checkpoint(msgspec.Struct, frozen=True):
    size: int
    root: bytes
    note: str
    created_at: datetime


# -- leaves and notes --------------------------------------------------------------------------------------------------


def statement_of(topic: str, state: bytes) -> bytes | None:
    """What the team of a movement may know of it; None for other events."""
    if topic not in MOVEMENTS:
        return None
    try:
        event = msgspec.json.decode(state)
    except UNREADABLE:
        return None
    if not isinstance(event, dict):
        return None
    stated = {name: event[name] for name in STATED if event.get(name) is not None}
    return json.dumps({"type": topic, **stated}, sort_keys=True, separators=(",", ":")).encode()


def leaf_of(topic: str, state: bytes, event_hash: bytes) -> bytes:
    """The leaf of an event; a hash of 32 bytes, or two of them."""
    statement = statement_of(topic, state)
    return event_hash if statement is None else event_hash + sha256(statement).digest()


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs notes under a name that follows from its key."""

    key: Ed25519PrivateKey

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def name(self) -> str:
        return f"saas-litellm/{sha256(self.public_key).hexdigest()[:16]}"

    @property
    def key_hash(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public_key).digest()[:4]

    @property
    def verifier_key(self) -> str:
        """The public key as verifiers of signed notes want it."""
        return f"{self.name}+{self.key_hash.hex()}+{b64encode(ED25519 + self.public_key).decode()}"

    def note(self, size: int, root: bytes) -> str:
        text = f"{self.name}\n{size}\n{b64encode(root).decode()}\n"
        signature = b64encode(self.key_hash + self.key.sign(text.encode())).decode()
        return f"{text}\n\N{EM DASH} {self.name} {signature}\n"


# -- the notary --------------------------------------------------------------------------------------------------------


class Notary:
    """Grows the tree, signs checkpoints and proves what is in them.

    Args:
        pool: connections to the database.
        secrets: where the signing key is kept; it is made when it is needed first.
    """

    def __init__(self, pool: Pool, secrets: SecretStore) -> None:
        self._pool = pool
        self._secrets = secrets
        self._signer: Signer | None = None

    async def signer(self) -> Signer:
        if self._signer is None:
            try:
                secret = await self._secrets.get(KEY_ID)
            except SecretMissing:
                with suppress(errors.UniqueViolation):  # another process was faster
                    await self._secrets.put(KEY_ID, KEY_KIND, Ed25519PrivateKey.generate().private_bytes_raw())
                secret = await self._secrets.get(KEY_ID)
            self._signer = Signer(Ed25519PrivateKey.from_private_bytes(secret))
        return self._signer

    async def checkpoint(self, covering: int | None = None) -> Checkpoint | None:
        """The latest checkpoint, or one of the journal as it is now; None if that is empty.

        Args:
            covering: the latest one will do if it covers this position.

        Raises:
            HistoryRewritten: what was signed before is not how the journal begins.
        """
        async with self._pool.connection() as connection:
            latest = await _checkpoint(connection, _LATEST)
            if latest is not None and covering is not None and covering <= latest.size:
                return latest
            size = await _number(connection, _HEAD)
            if latest is not None and latest.size == size:
                return latest
        if not size and latest is None:
            return None
        signer = await self.signer()
        await self._grow(size)
        async with self._pool.connection() as connection:
            if latest is not None and await root(connection, latest.size) != latest.root:
                raise HistoryRewritten(f"the first {latest.size} events are not those that were signed")
            top = await root(connection, size)
            await connection.execute(_SIGN, (size, top, signer.note(size, top)))
            return await _checkpoint(connection, _OF_SIZE, size)

    async def latest(self) -> Checkpoint | None:
        """The latest checkpoint, however old it is."""
        async with self._pool.connection() as connection:
            return await _checkpoint(connection, _LATEST)

    async def of_size(self, size: int) -> Checkpoint | None:
        """The checkpoint of just this size, if one was signed."""
        async with self._pool.connection() as connection:
            return await _checkpoint(connection, _OF_SIZE, size)

    async def inclusion(self, position: int, leaf: bytes, checkpoint: Checkpoint) -> list[bytes]:
        """The proof that a leaf is at a position in the tree of a checkpoint.

        Raises:
            HistoryRewritten: it is not.
        """
        proof = await self._proof(merkle.inclusion_ranges(position - 1, checkpoint.size))
        if merkle.proven_root(merkle.leaf_hash(leaf), position - 1, checkpoint.size, proof) != checkpoint.root:
            raise HistoryRewritten(f"event {position} is not the one that was signed")
        return proof

    async def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of one size begins with that of another; both are covered by a checkpoint."""
        return await self._proof(merkle.consistency_ranges(old, new))

    async def root(self, size: int) -> bytes:
        """The root of a tree that is covered by a checkpoint.

        Raises:
            HistoryRewritten: another one was signed for this size.
        """
        async with self._pool.connection() as connection:
            top, signed = await root(connection, size), await _checkpoint(connection, _OF_SIZE, size)
        if signed is not None and signed.root != top:
            raise HistoryRewritten(f"the first {size} events are not those that were signed")
        return top

    async def _grow(self, size: int) -> None:
        """Leaves the connection to others between two pieces of work, which may be many."""
        grown = False
        while not grown:
            async with self._pool.connection() as connection:
                grown = await grow(connection, size)

    async def _proof(self, ranges: Sequence[Range]) -> list[bytes]:
        async with self._pool.connection() as connection:
            return await hashes(connection, ranges)


async def _checkpoint(connection: Connection, select: str, *parameters: object) -> Checkpoint | None:
    async with connection.cursor(row_factory=class_row(Checkpoint), binary=True) as cursor:
        await cursor.execute(select.encode(), parameters)
        return await cursor.fetchone()


# -- the tree ----------------------------------------------------------------------------------------------------------


async def grow(connection: Connection, size: int) -> bool:
    """Writes down some of the nodes that are complete in a tree of this size and have not been written yet.

    Returns:
        Whether there are no others.
    """
    level = 1
    while complete := size >> (level * merkle.STEP):
        kept = await _number(connection, _KEPT, level)
        until = min(complete, kept + GROWN_AT_ONCE // TILE)
        if kept < until:
            run = Run(level - 1, kept * TILE, (until - kept) * TILE)
            await _keep(connection, level, kept, (await _nodes(connection, [run]))[run])
            return False
        level += 1
    return True


async def _keep(connection: Connection, level: int, first: int, below: Sequence[bytes]) -> None:
    nodes = [merkle.root_of(below[start : start + TILE]) for start in range(0, len(below) - TILE + 1, TILE)]
    numbers = [first + offset for offset in range(len(nodes))]
    await connection.execute(_KEEP, ([level] * len(nodes), numbers, nodes))


async def root(connection: Connection, size: int) -> bytes:
    [top] = await hashes(connection, [(0, size)])
    return top


async def hashes(connection: Connection, ranges: Sequence[Range]) -> list[bytes]:
    """The hashes of some parts of the tree, in two queries."""
    nodes = await _nodes(connection, {run for part in ranges for run in merkle.runs_of(part)})
    return [merkle.range_hash(part, nodes.__getitem__) for part in ranges]


async def _nodes(connection: Connection, runs: Iterable[Run]) -> Mapping[Run, Sequence[bytes]]:
    found: dict[Run, list[bytes]] = {run: [] for run in runs}
    leaves, nodes = [run for run in found if not run.level], [run for run in found if run.level]
    if leaves:
        spans = [run.first + 1 for run in leaves], [run.first + run.width for run in leaves]
        cursor = await connection.execute(_LEAVES, spans, binary=True)
        leaf_rows: list[Any] = await cursor.fetchall()
        for ordinal, _, topic, state, event_hash in leaf_rows:
            found[leaves[ordinal - 1]].append(merkle.leaf_hash(leaf_of(topic, state, event_hash)))
    if nodes:
        levels = [run.level for run in nodes]
        spans = [run.first for run in nodes], [run.first + run.width - 1 for run in nodes]
        cursor = await connection.execute(_NODES, (levels, *spans), binary=True)
        node_rows: list[Any] = await cursor.fetchall()
        for ordinal, _, node in node_rows:
            found[nodes[ordinal - 1]].append(node)
    for run, given in found.items():
        if len(given) != run.width:
            raise HistoryRewritten(
                f"of the {run.width} nodes from {run.first} on level {run.level}, {len(given)} exist"
            )
    return found


async def _number(connection: Connection, select: str, *parameters: object) -> int:
    cursor = await connection.execute(select.encode(), parameters)
    row: Any = await cursor.fetchone()
    return int(row[0])


# -- looking again -----------------------------------------------------------------------------------------------------

_MISSING = """
select name from unnest(array['app.checkpoints', 'app.merkle']) as kept (name) where to_regclass(name) is null
"""
_ALL_NODES = "select level, number, hash from app.merkle"
_ALL_CHECKPOINTS = "select size, root, note from app.checkpoints order by size"


def verify_receipts(
    connection: BlockingConnection[Any], progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[tuple[int | None, str, str]]:
    """Computes the whole tree again; gives position, subject and detail of whatever was kept or signed otherwise."""
    if missing := connection.execute(_MISSING).fetchall():
        yield from ((None, name, "the table is missing") for (name,) in missing)
        return
    kept = {(level, number): node for level, number, node in connection.execute(_ALL_NODES, binary=True)}
    signed = connection.execute(_ALL_CHECKPOINTS, binary=True).fetchall()
    wrong: list[tuple[int | None, str, str]] = []
    while signed and signed[0][0] < 1:
        yield None, f"app.checkpoints {signed.pop(0)[0]}", "nothing of this size can be signed"

    ends = dict(sorted(kept))  # the last number of each level

    def compare(level: int, number: int, node: bytes) -> None:
        found = kept.pop((level, number), None)
        if found != node and number <= ends.get(level, -1):
            detail = "is missing" if found is None else "is not the hash of what is below it"
            wrong.append((_last(level, number), f"app.merkle {level}/{number}", detail))

    tree = Frontier(compare)
    until = max([size for size, _, _ in signed] + [_last(level, number) for level, number in kept] + [0])
    unseen = iter(signed)
    size, top, note = next(unseen, (0, b"", ""))
    reached = 0
    # As far as there are events: of what somebody else has written down there may be any number.
    while reached < until and (rows := connection.execute(_EVENTS, (reached, GROWN_AT_ONCE), binary=True).fetchall()):
        for position, topic, state, event_hash in rows:
            reached = position
            tree.add(merkle.leaf_hash(leaf_of(topic, state, event_hash)))
            while tree.size == size:
                if top != tree.root or not _says(note, size, top):
                    wrong.append((size, f"app.checkpoints {size}", "what was signed is not what the journal says"))
                size, top, note = next(unseen, (0, b"", ""))
        progress(min(reached, until), until)
        yield from wrong
        wrong.clear()
    while size:
        yield tree.size, f"app.checkpoints {size}", f"was signed, but the journal has {tree.size} events"
        size, top, note = next(unseen, (0, b"", ""))
    for level, number in kept:
        yield tree.size, f"app.merkle {level}/{number}", f"is kept, but the journal has {tree.size} events"


def _last(level: int, number: int) -> int:
    """The position of the last event below a node."""
    return (number + 1) << (level * merkle.STEP)


def _says(note: str, size: int, top: bytes) -> bool:
    """Whether this is a note of that size and root. Whether its signature is right, the public key tells."""
    name, _, said = note.partition("\n")
    text = f"{size}\n{b64encode(top).decode()}\n\n\N{EM DASH} {name} "
    try:
        signature = b64decode(said.removeprefix(text).removesuffix("\n"), validate=True)
    except ValueError:
        return False
    return said.startswith(text) and said.endswith("\n") and len(signature) == SIGNATURE_SIZE
