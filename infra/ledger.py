"""Carries out commands: gather, load, decide, append, answer. Everything that is ever decided goes through this loop.

One task a process takes whatever commands are waiting, decides them one after the other on the latest states it knows,
and appends all their events in one transaction, together with the version of every stream that any of the decisions
rested on. If one of these has moved on (another process was faster), nothing is written, the states are loaded again
and the whole batch is decided again. So

  - every decision of every process is made on the latest state: strict serializability;
  - a busy team is as fast as many teams: the queue is the serialization, and a batch costs one fsync;
  - what belongs together is in one decision, and there are no locks to order and no sagas to repair.

Nobody is told anything before it is certain. If the connection breaks during an append, its outcome is unknown: the
loop reconnects, waits for the writer lock and looks whether the first event of the batch is there.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog
from msgspec.structs import replace

from domain.errors import Refusal
from domain.event import Command, Event, State
from domain.streams import category_of
from infra import journal
from infra.journal import NOTHING, Answer, Appended, Connection, Draft, Versioned

log = structlog.get_logger()

SNAPSHOT_EVERY = 1000  # events of a stream; folding that many takes a few milliseconds
CONNECTION_LOST = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
RECONNECT_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # how long to try before everyone waiting is told to come back


class Unavailable(Exception):
    """Not now: the database is away, or too much is waiting. Nobody knows of anything written; asking again is safe."""

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class ClaimLost(Exception):
    """The same request is being carried out by somebody else, who took over after a time-out."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Who asks: checked on the latest states, in the same step as the decision."""

    streams: tuple[str, ...]
    check: Callable[..., None]  # called with the states of the streams and the moment of the command


@dataclass(frozen=True, slots=True)
class Receipt:
    """An idempotency claim, and how its answer follows from the outcome; kept in the transaction of the events."""

    claim_id: str
    answer: Callable[["Outcome"], Answer]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The states as the decision left them, its events, and a position at which both are on record."""

    states: tuple[Any, ...]
    events: tuple[Event, ...]
    position: int


Decide = Callable[..., Sequence[Event] | tuple[Sequence[Event], ...]]


@dataclass(slots=True, eq=False)
class _Wish:
    decide: Decide
    command: Command
    streams: tuple[str, ...]
    guard: Guard | None
    receipt: Receipt | None
    new: str | None
    answer: asyncio.Future[Outcome]

    @property
    def all_streams(self) -> tuple[str, ...]:
        return self.streams if self.guard is None else (*self.streams, *self.guard.streams)


@dataclass(frozen=True, slots=True)
class _Decided:
    states: tuple[Any, ...]
    events: tuple[Event, ...]


class _Proposal:
    """A batch as it is being decided: each wish on the states that the wishes before it left."""

    def __init__(self, known: dict[str, Versioned | Exception]) -> None:
        self.known = known
        self.draft = Draft()
        self.decided: list[tuple[_Wish, Exception | _Decided]] = []

    def decide(self, wish: _Wish) -> None:
        """Decides one wish. Whatever goes wrong is its own affair and leaves no trace on the others."""
        for stream in wish.all_streams:
            known = self.known[stream]
            if isinstance(known, Versioned):
                self.draft.read.setdefault(stream, known.version)
        try:
            decided, written = self._decide(wish)
        except Refusal as refusal:
            self.decided.append((wish, refusal))
        except Exception as problem:
            log.exception("decision.failed", command=type(wish.command).__name__)
            self.decided.append((wish, problem))
        else:
            for stream, event in written:
                self.draft.add(stream, event)
            self.decided.append((wish, decided))

    def _decide(self, wish: _Wish) -> tuple[_Decided, list[tuple[str, Event]]]:
        if wish.guard is not None:
            wish.guard.check(*(self._state(stream) for stream in wish.guard.streams), wish.command.at)
        outcome = wish.decide(*(self._state(stream) for stream in wish.streams), wish.command)
        lists = outcome if isinstance(outcome, tuple) else (outcome,)
        written: list[tuple[str, Event]] = []
        changed: dict[str, Versioned] = {}
        for stream, events in zip(wish.streams, lists, strict=True):
            versioned = self._versioned(stream)
            for event in events:
                stamped = replace(event, by=wish.command.by, request=wish.command.request)
                state = category_of(stream).evolve(versioned.state, stamped)
                versioned = Versioned(versioned.version + 1, state)
                written.append((stream, stamped))
            changed[stream] = versioned
        decided = _Decided(
            states=tuple(changed[stream].state for stream in wish.streams),
            events=tuple(event for _, event in written),
        )
        if wish.receipt is not None:
            # The position is not known before the append; an answer that is kept does not depend on it.
            self.draft.keep(wish.receipt.claim_id, wish.receipt.answer(Outcome(decided.states, decided.events, 0)))
        self.known.update(changed)
        return decided, written

    def _versioned(self, stream: str) -> Versioned:
        known = self.known[stream]
        if isinstance(known, Exception):
            raise known
        return known

    def _state(self, stream: str) -> State | None:
        return self._versioned(stream).state


def _only_look(*states_and_command: object) -> tuple[list[Event], ...]:
    return tuple([] for _ in states_and_command[:-1])


class Ledger:
    """The loop of one process.

    Args:
        connect: opens a connection to PostgreSQL.
        queue_size: commands that may wait before further ones are told to come back.
        batch_size: commands that are decided together at most.
        cache_size: states kept in memory; the least recently used go first.
        appended: called with the position of the head after each append.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        queue_size: int = 20_000,
        batch_size: int = 500,
        cache_size: int = 50_000,
        appended: Callable[[int], None] = lambda position: None,
    ) -> None:
        self._connect = connect
        self._queue: asyncio.Queue[_Wish | None] = asyncio.Queue(queue_size)
        self._batch_size = batch_size
        self._cache_size = cache_size
        self._cache: OrderedDict[str, Versioned] = OrderedDict()
        self._appended = appended
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._snapshots: dict[str, Versioned] = {}
        self._snapshot_task: asyncio.Task[None] | None = None
        self._closing = False

    # -- what the rest of the house calls ------------------------------------------------

    async def carry_out(
        self,
        decide: Decide,
        command: Command,
        *streams: str,
        guard: Guard | None = None,
        receipt: Receipt | None = None,
        new: str | None = None,
    ) -> Outcome:
        """Decides a command on the latest states of its streams and records what follows.

        Cancelling the caller does not cancel what is under way.

        Args:
            decide: called with the states of the streams (None for a stream without events), then the command.
                Answers a list of events, or for several streams a tuple of lists in the order of the streams.
            guard: checked first, on the latest states, before the decision.
            receipt: what to keep for a repeat of the same request.
            new: a stream that surely has no events yet, since its id was just made: it need not be looked for.

        Raises:
            Refusal: the decision said no.
            Unavailable: the database is away or the queue is full.
            ClaimLost: the idempotency claim ran out meanwhile and somebody else has it.
        """
        wish = _Wish(decide, command, streams, guard, receipt, new, asyncio.get_running_loop().create_future())
        if self._closing:
            raise Unavailable("the server is shutting down", retry_after_s=5)
        try:
            self._queue.put_nowait(wish)
        except asyncio.QueueFull:
            raise Unavailable("too many commands are waiting") from None
        return await asyncio.shield(wish.answer)

    async def read(self, *streams: str, guard: Guard | None = None) -> Outcome:
        """The states of the streams as they are now, and a position that is not older than this call."""
        look = Command(at=datetime.now(UTC), by="", request="")
        return await self.carry_out(_only_look, look, *streams, guard=guard)

    def glance(self, stream: str) -> State | None:
        """The state of a stream as this process last saw it: good for estimates, never for decisions."""
        known = self._cache.get(stream)
        return known.state if known else None

    @property
    def depth(self) -> int:
        """How many commands are waiting."""
        return self._queue.qsize()

    async def start(self) -> None:
        self._connection = await self._connect()
        self._task = asyncio.create_task(self._run(), name="ledger")

    async def stop(self) -> None:
        """Carries out what is waiting, takes nothing new, and lets go of the connection."""
        self._closing = True
        if self._task is not None:
            await self._queue.put(None)
            await self._task
        if self._snapshot_task is not None:
            await self._snapshot_task
        await self._disconnect()

    # -- the loop ------------------------------------------------

    async def _run(self) -> None:
        while batch := await self._gather():
            await self._carry_out_apart(batch)

    async def _carry_out_apart(self, batch: list[_Wish]) -> None:
        """Carries out a batch; if something in it breaks, each command alone, so that only the culprit suffers."""
        try:
            await self._carry_out(batch)
        except Unavailable as problem:
            log.warning("ledger.unavailable", commands=len(batch), reason=str(problem))
            _tell(batch, problem)
        except Exception as problem:
            log.exception("ledger.failed", commands=len(batch))
            await self._disconnect()
            self._cache.clear()
            if len(batch) == 1:
                _tell(batch, problem)
            else:
                for wish in batch:
                    await self._carry_out_apart([wish])

    async def _gather(self) -> list[_Wish]:
        """Waits for a command and takes all that are waiting with it; an empty batch ends the loop."""
        first = await self._queue.get()
        if first is None:
            return []
        batch = [first]
        while len(batch) < self._batch_size and not self._queue.empty():
            wish = self._queue.get_nowait()
            if wish is None:
                self._queue.put_nowait(None)
                break
            batch.append(wish)
        return batch

    async def _carry_out(self, batch: list[_Wish]) -> None:
        """Carries out a batch, through lost connections and lost races, and tells everyone in it."""
        attempts: list[_Proposal] = []  # sent, but with an outcome that nobody knows
        for pause_s in (0.0, *RECONNECT_SECONDS):
            await asyncio.sleep(pause_s)
            try:
                connection = await self._connected()
                proposal, position = await self._settle(connection, batch, attempts)
            except CONNECTION_LOST as problem:
                log.warning("ledger.connection_lost", reason=type(problem).__name__, uncertain=len(attempts))
                await self._disconnect()
            else:
                self._accept(proposal, position)
                return
        raise Unavailable("the database is out of reach", retry_after_s=2)

    async def _settle(
        self, connection: Connection, batch: list[_Wish], attempts: list[_Proposal]
    ) -> tuple[_Proposal, int]:
        """Finds out what became of earlier attempts, else makes one; the second time under the writer lock."""
        if written := await _written(connection, attempts):
            return written, await journal.position(connection)
        proposal = await self._propose(connection, batch, trust_new=True)
        result = await self._send(connection, proposal, attempts)
        if not result.stale:
            return proposal, result.position
        if written := await _written(connection, attempts[:-1]):
            # What made this attempt stale is our own earlier one, whose acknowledgement was lost.
            return written, result.position
        attempts.clear()
        async with connection.transaction():
            await journal.lock(connection)
            while result.stale:
                self._forget(result.stale)
                _drop_lost_claims(batch, result.stale)
                proposal = await self._propose(connection, batch, trust_new=False)
                result = await self._send(connection, proposal, attempts)
        return proposal, result.position

    async def _send(self, connection: Connection, proposal: _Proposal, attempts: list[_Proposal]) -> Appended:
        if not proposal.draft.writes:
            return await journal.check(connection, proposal.draft)
        attempts.append(proposal)
        return await journal.append(connection, proposal.draft)

    async def _propose(self, connection: Connection, batch: list[_Wish], *, trust_new: bool) -> _Proposal:
        """Loads what is not known yet and decides every wish of the batch, in their order."""
        known: dict[str, Versioned | Exception] = {}
        missing: dict[str, None] = {}
        for wish in batch:
            for stream in wish.all_streams:
                if stream in known or stream in missing:
                    continue
                if (cached := self._cache.get(stream)) is not None:
                    self._cache.move_to_end(stream)
                    known[stream] = cached
                elif trust_new and stream == wish.new:
                    known[stream] = NOTHING
                else:
                    missing[stream] = None
        if missing:
            known |= dict.fromkeys(missing, NOTHING) | await journal.load(connection, list(missing))
        proposal = _Proposal(known)
        for wish in batch:
            proposal.decide(wish)
        return proposal

    def _accept(self, proposal: _Proposal, position: int) -> None:
        """The batch is on record: keep its states, tell everyone."""
        for stream, versioned in proposal.known.items():
            if isinstance(versioned, Versioned) and versioned.version:
                self._cache[stream] = versioned
                self._note_for_snapshot(stream, versioned, proposal.draft.read.get(stream, 0))
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        if proposal.draft.writes:
            self._appended(position)
        for wish, decided in proposal.decided:
            if wish.answer.done():
                continue
            if isinstance(decided, Exception):
                wish.answer.set_exception(decided)
            else:
                wish.answer.set_result(Outcome(decided.states, decided.events, position))

    def _forget(self, streams: Sequence[str]) -> None:
        for stream in streams:
            self._cache.pop(stream, None)

    # -- snapshots: off the path, for streams that have become long ------------------------------------------------

    def _note_for_snapshot(self, stream: str, versioned: Versioned, read_version: int) -> None:
        if versioned.version // SNAPSHOT_EVERY == read_version // SNAPSHOT_EVERY:
            return
        self._snapshots[stream] = versioned
        if self._snapshot_task is None or self._snapshot_task.done():
            self._snapshot_task = asyncio.create_task(self._save_snapshots(), name="snapshots")

    async def _save_snapshots(self) -> None:
        try:
            connection = await self._connect()
        except CONNECTION_LOST:
            return
        async with connection:
            while self._snapshots:
                stream, versioned = self._snapshots.popitem()
                try:
                    await journal.save_snapshot(connection, stream, versioned)
                except psycopg.Error as problem:
                    log.warning("snapshot.failed", stream=stream, reason=type(problem).__name__)
                    return

    # -- the connection ------------------------------------------------

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await self._connect()
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()


async def _written(connection: Connection, attempts: Sequence[_Proposal]) -> _Proposal | None:
    """The attempt that reached the journal, if one did: they rest on the same versions, so at most one can."""
    for proposal in attempts:
        if proposal.draft.streams and await journal.contains(connection, proposal.draft):
            return proposal
    return None


def _drop_lost_claims(batch: list[_Wish], stale: Sequence[str]) -> None:
    """A claim whose lease ended belongs to somebody else now: this wish must not be carried out as well."""
    for wish in [wish for wish in batch if wish.receipt is not None and wish.receipt.claim_id in stale]:
        batch.remove(wish)
        _tell([wish], ClaimLost())


def _tell(batch: Sequence[_Wish], problem: Exception) -> None:
    for wish in batch:
        if not wish.answer.done():
            wish.answer.set_exception(problem)
