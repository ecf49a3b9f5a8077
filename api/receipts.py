"""Receipts: proofs that an entry is in the journal and that no history was rewritten, to be checked without us.

What is proven rests on signed checkpoints; `examples/verify_receipt.py` checks it with nothing but a public key. A
team gets the receipts of its own entries; what they say of others are hashes.
"""

from base64 import b64encode
from typing import Annotated

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from msgspec import UNSET, UnsetType

from api.answers import reply, ts
from api.caller import Caller, Door
from api.house import House
from api.jobs import uuid_of
from api.listing import MOST_OFFSET
from api.problems import Invalid
from api.shapes import Timestamp, Uuid
from domain.errors import Forbidden, NotFound
from infra.receipts import Checkpoint, HistoryRewritten, leaf_of, statement_of
from projections import evidence

receipts_door = Door(teams=True, reading="audit")

Size = Annotated[int | None, QueryParameter(ge=1, le=MOST_OFFSET, description="How many events it covers")]


class KeyAnswer(msgspec.Struct, kw_only=True):
    """The key that checkpoints are signed with. `verifier_key` is the same in the format of C2SP signed notes."""

    name: str
    algorithm: str
    public_key: str
    verifier_key: str


class CheckpointAnswer(msgspec.Struct, kw_only=True):
    """`note` is the signed text; the other fields only repeat it."""

    size: int
    root: str
    note: str
    created_at: Timestamp


class EventProven(msgspec.Struct, kw_only=True):
    """What `event_hash` is made of; for auditors, since it tells prices."""

    stream: str
    version: int
    type: str
    state: str
    previous_hash: str


class ReceiptAnswer(msgspec.Struct, kw_only=True):
    """The leaf at `position` is `event_hash` and the hash of `statement`; `proof` leads from it to the signed root."""

    transaction_id: Uuid
    position: int
    statement: str
    event_hash: str
    proof: list[str]
    checkpoint: str
    verifier_key: str
    event: EventProven | UnsetType = UNSET


class ConsistencyAnswer(msgspec.Struct, kw_only=True):
    """That the first `from_size` events are still the same at `to_size`. Checkpoints are null where none was signed."""

    from_size: int
    to_size: int
    from_root: str
    to_root: str
    proof: list[str]
    from_checkpoint: str | None
    to_checkpoint: str | None
    verifier_key: str


class ReceiptsController(Controller):
    path = "/api/audit"
    tags = ["Audit"]
    before_request = receipts_door

    @get("/key")
    async def key(self, house: NamedDependency[House]) -> Response[KeyAnswer]:
        """The public key with which checkpoints are verified: keep it somewhere else than here."""
        signer = await house.notary.signer()
        return reply(
            KeyAnswer(
                name=signer.name,
                algorithm="Ed25519",
                public_key=b64encode(signer.public_key).decode(),
                verifier_key=signer.verifier_key,
            )
        )

    @get("/checkpoint")
    async def checkpoint(self, house: NamedDependency[House], size: Size = None) -> Response[CheckpointAnswer]:
        """A signed checkpoint of the journal as it is now, or the one of a given size."""
        found = await _now(house) if size is None else await house.notary.of_size(size)
        if found is None:
            raise NotFound("checkpoint")
        return reply(
            CheckpointAnswer(size=found.size, root=found.root.hex(), note=found.note, created_at=ts(found.created_at))
        )

    @get("/receipts/{transaction_id:str}")
    async def receipt(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        transaction_id: FromPath[str],
        size: Size = None,
    ) -> Response[ReceiptAnswer]:
        """The proof that a transaction is in the journal, against the latest checkpoint or the one of a given size."""
        transaction_id = uuid_of(transaction_id, "transaction")
        async with house.pool.connection() as connection:
            place = await evidence.place_of_transaction(connection, transaction_id)
            if place is None:
                raise NotFound("transaction")
            if caller.team_id not in (None, place.team_id):
                raise Forbidden(caller.team_id)
            found = await evidence.at(connection, [place.position])
            previous = await evidence.hash_before(connection, place.position)
        statement = statement_of(found[0].topic, found[0].state) if found else None
        if statement is None or msgspec.json.decode(statement).get("transaction_id") != transaction_id:
            raise HistoryRewritten(f"event {place.position} is not this transaction")
        [event] = found
        checkpoint = await _covering(house, place.position, size)
        leaf = leaf_of(event.topic, event.state, event.hash)
        proof = await house.notary.inclusion(event.position, leaf, checkpoint)
        answer = ReceiptAnswer(
            transaction_id=transaction_id,
            position=event.position,
            statement=statement.decode(),
            event_hash=event.hash.hex(),
            proof=[node.hex() for node in proof],
            checkpoint=checkpoint.note,
            verifier_key=(await house.notary.signer()).verifier_key,
        )
        if caller.is_admin:
            answer.event = EventProven(
                stream=event.stream,
                version=event.version,
                type=event.topic,
                state=event.state.decode(),
                previous_hash=previous.hex(),
            )
        return reply(answer)

    @get("/consistency")
    async def consistency(
        self,
        house: NamedDependency[House],
        old: Annotated[int, QueryParameter(name="from", ge=1, le=MOST_OFFSET, description="The older size")],
        new: Annotated[
            int | None, QueryParameter(name="to", ge=1, le=MOST_OFFSET, description="The newer size; now without it")
        ] = None,
    ) -> Response[ConsistencyAnswer]:
        """The proof that the journal of one size begins with that of another: nothing was rewritten meanwhile."""
        notary = house.notary
        latest = await notary.checkpoint(new)
        to = latest.size if new is None and latest is not None else new
        if latest is None or to is None or to > latest.size:
            raise Invalid(["query", "to"], "the journal has not so many events", "value_error.range")
        if old > to:
            raise Invalid(["query", "from"], "expected at most `to`", "value_error.range")
        before, after = await notary.of_size(old), await notary.of_size(to)
        return reply(
            ConsistencyAnswer(
                from_size=old,
                to_size=to,
                from_root=(await notary.root(old)).hex(),
                to_root=(await notary.root(to)).hex(),
                proof=[node.hex() for node in await notary.consistency(old, to)],
                from_checkpoint=None if before is None else before.note,
                to_checkpoint=None if after is None else after.note,
                verifier_key=(await notary.signer()).verifier_key,
            )
        )


async def _now(house: House) -> Checkpoint:
    found = await house.notary.checkpoint()
    if found is None:
        raise NotFound("checkpoint")
    return found


async def _covering(house: House, position: int, size: int | None) -> Checkpoint:
    found = await house.notary.checkpoint(position) if size is None else await house.notary.of_size(size)
    if found is None:
        raise NotFound("checkpoint")
    if found.size < position:
        raise Invalid(["query", "size"], "this checkpoint is older than the transaction", "value_error.range")
    return found
