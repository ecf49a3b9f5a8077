"""Carries out commands: gather, load, decide, append, answer. Everything that is ever decided goes through this loop.

One task a process takes whatever commands are waiting, decides them one after the other on the latest states it knows,
and appends all their events in one transaction, together with the version of every stream that any of the decisions
rested on. If one of these has moved on (another process was faster), nothing is written, the states are loaded again
and the whole batch is decided again, this time under the writer lock. So

  - every decision of every process is made on the latest state: strict serializability;
  - a busy team is as fast as many teams: the queue is the serialization, and a batch costs one fsync;
  - what belongs together is in one decision, and there are no locks to order and no sagas to repair.

Nobody is told anything before it is certain. If the connection breaks during an append, that attempt may have been
written, may still be written by a server that has not noticed, or never will be. So the loop reconnects, takes the
writer lock and looks: if the attempt is there, that was it. If not, the batch is decided anew and written under the
same lock; from then on the earlier attempt is stale, whenever it may arrive: it read what this one has changed, or
what others have changed before.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog
from msgspec.structs import replace

from domain.errors import Refusal
from domain.event import Command, Event, State
from domain.streams import category_of, decode
from infra import journal, metrics
from infra.journal import NOTHING, Answer, Appended, Connection, Draft, PoisonEvent, Versioned

log = structlog.get_logger()

SNAPSHOT_EVERY = 1000  # events of a stream; folding that many takes a few milliseconds
APPEND_BYTES = 4 << 20  # of events and answers in one append, after which the rest of a batch waits for the next
SMALL_BYTES = 16 << 10  # states made of less than this are not worth measuring
RECONNECT_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)  # pauses between attempts; the last one repeats
OUT_OF_REACH = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,  # it has become a replica
    OSError,
    TimeoutError,
)
# These are OperationalErrors to psycopg, but the fault of what was sent.
TOO_MUCH = (psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)


class Unavailable(Exception):
    """Not now: the database is away, or too much is waiting.

    Nobody knows of anything written. It may have been, if the database went away at just that moment and did not come
    back in time; a repeat under the same idempotency claim is safe in any case.
    """

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

    @property
    def is_open(self) -> bool:
        return not self.answer.done()

    def is_among(self, known: Container[str]) -> bool:
        return all(stream in known for stream in self.all_streams)

    def tell(self, problem: Exception) -> None:
        if self.is_open:
            self.answer.set_exception(problem)


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

    @property
    def is_full(self) -> bool:
        return self.draft.size >= APPEND_BYTES

    def decide(self, wish: _Wish) -> None:
        """Decides one wish. Whatever goes wrong is its own affair and leaves no trace on the others."""
        for stream in wish.all_streams:
            known = self.known[stream]
            if isinstance(known, Versioned):
                self.draft.read.setdefault(stream, known.version)
        try:
            decided = self._decide(wish)
        except Refusal as refusal:
            self.decided.append((wish, refusal))
        except Exception as problem:
            log.exception("decision.failed", command=type(wish.command).__name__)
            self.decided.append((wish, problem))
        else:
            self.decided.append((wish, decided))

    def _decide(self, wish: _Wish) -> _Decided:
        if wish.guard is not None:
            wish.guard.check(*(self._versioned(stream).state for stream in wish.guard.streams), wish.command.at)
        outcome = wish.decide(*(self._versioned(stream).state for stream in wish.streams), wish.command)
        lists = outcome if isinstance(outcome, tuple) else (outcome,)
        changed: dict[str, Versioned] = {}
        events: list[Event] = []
        written: list[tuple[str, str, bytes]] = []
        for stream, decided in zip(wish.streams, lists, strict=True):
            for event in decided:
                stamped = replace(event, by=wish.command.by, request=wish.command.request)
                topic, state = type(event).__name__, journal.encode(stamped)
                events.append(_read_back(stream, topic, state))
                changed[stream] = _evolved(stream, changed.get(stream) or self._versioned(stream), events[-1], state)
                written.append((stream, topic, state))
        states = tuple((changed.get(stream) or self._versioned(stream)).state for stream in wish.streams)
        if wish.receipt is not None:
            # The position is not known before the append; an answer that is kept does not depend on it.
            self.draft.keep(wish.receipt.claim_id, wish.receipt.answer(Outcome(states, tuple(events), 0)))
        for each in written:
            self.draft.add(*each)
        self.known.update(changed)
        return _Decided(states, tuple(events))

    def _versioned(self, stream: str) -> Versioned:
        known = self.known[stream]
        if isinstance(known, Exception):
            raise PoisonEvent(f"{stream} cannot be read: {known!r}") from known
        return known


def _read_back(stream: str, topic: str, state: bytes) -> Event:
    """The event as everybody will read it from now on: what nobody could read is not written."""
    event = decode(topic, state)
    if type(event) not in category_of(stream).events:
        raise TypeError(f"{topic} is no event of {stream}")
    return event


def _evolved(stream: str, versioned: Versioned, event: Event, state: bytes) -> Versioned:
    return Versioned(
        versioned.version + 1,
        category_of(stream).evolve(versioned.state, event),
        versioned.size + len(state),
        versioned.unsaved + 1,
    )


def _only_look(*states_and_command: object) -> tuple[list[Event], ...]:
    return tuple([] for _ in states_and_command[:-1])


class _Cache:
    """The states used last, bounded by their number and by their size as JSON."""

    def __init__(self, states: int, size: int) -> None:
        self._most_states = states
        self._most_bytes = size
        self._states: OrderedDict[str, Versioned] = OrderedDict()
        self._bytes = 0

    def get(self, stream: str) -> Versioned | None:
        versioned = self._states.get(stream)
        if versioned is not None:
            self._states.move_to_end(stream)
        return versioned

    def put(self, stream: str, versioned: Versioned) -> None:
        if versioned.size > SMALL_BYTES:
            # History grows for ever, most states do not.
            versioned = versioned._replace(size=len(journal.encode(versioned.state)))
        self.forget(stream)
        self._states[stream] = versioned
        self._bytes += versioned.size
        while len(self._states) > self._most_states or self._bytes > self._most_bytes:
            _, oldest = self._states.popitem(last=False)
            self._bytes -= oldest.size

    def forget(self, stream: str) -> None:
        versioned = self._states.pop(stream, None)
        if versioned is not None:
            self._bytes -= versioned.size

    def __len__(self) -> int:
        return len(self._states)


class Ledger:
    """The loop of one process.

    Args:
        connect: opens a connection to PostgreSQL.
        queue_size: commands that may wait before further ones are told to come back.
        batch_size: commands that are decided together at most.
        cache_size: states kept in memory; the least recently used go first.
        cache_bytes: their size at most, as JSON; in memory they take two to three times as much.
        patience_s: how long commands wait for a database that is away, before they are told to come back. If it went
            away during their append, they wait three times as long for the truth.
        answer_s: how long PostgreSQL may take for one batch before its connection counts as lost.
        appended: called with the position of the head after each append.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        queue_size: int = 20_000,
        batch_size: int = 500,
        cache_size: int = 50_000,
        cache_bytes: int = 32 << 20,
        patience_s: float = 5.0,
        answer_s: float = 10.0,
        appended: Callable[[int], None] = lambda position: None,
    ) -> None:
        self._connect = connect
        self._queue: asyncio.Queue[_Wish | None] = asyncio.Queue(queue_size)
        self._batch_size = batch_size
        self._cache = _Cache(cache_size, cache_bytes)
        self._patience_s = patience_s
        self._answer_s = answer_s
        self._appended = appended
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._snapshots: dict[str, Versioned] = {}
        self._snapshot_task: asyncio.Task[None] | None = None
        self._is_away = False  # the database was out of reach when last looked for
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
        for stream in wish.all_streams:
            category_of(stream)  # here a misspelt name is one caller's error, later it would be a batch's
        if self._task is None or self._closing:
            raise Unavailable("the server is starting or shutting down", retry_after_s=5)
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
        """Raises: whatever the connection raises when the database is away."""
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
            metrics.queued(self.depth)
            uncertain: list[_Proposal] = []
            try:
                await self._carry_out_apart(batch, uncertain)
            except Unavailable as problem:
                self._refuse_all(batch, problem)
            except Exception as problem:  # nothing may end this loop while somebody is waiting for it
                log.exception("ledger.failed", commands=len(batch))
                for wish in batch:
                    wish.tell(RuntimeError(f"the ledger failed: {problem!r}"))

    async def _gather(self) -> list[_Wish]:
        """Waits for a command and takes all that are waiting with it; an empty batch ends the loop."""
        first = await self._queue.get()
        return [] if first is None else [first, *self._take(self._batch_size - 1)]

    def _take(self, most: int) -> Iterable[_Wish]:
        for _ in range(min(most, self._queue.qsize())):
            wish = self._queue.get_nowait()
            if wish is None:
                self._queue.put_nowait(None)  # nothing comes after the end
                return
            yield wish

    async def _carry_out_apart(self, batch: Sequence[_Wish], uncertain: list[_Proposal]) -> None:
        """Carries out a batch; if something in it breaks, its halves, so that only the culprit suffers."""
        while waiting := [wish for wish in batch if wish.is_open]:
            try:
                proposal, position = await self._carry_out(waiting, uncertain)
            except Unavailable:
                raise
            except Exception as problem:  # noqa: BLE001 it is told to whom it concerns
                await self._disconnect()
                for wish in waiting:
                    self._forget(wish.all_streams)
                log.warning("batch.failed", commands=len(waiting), reason=repr(problem))
                if len(waiting) == 1:
                    waiting[0].tell(problem)
                    return
                middle = len(waiting) // 2
                await self._carry_out_apart(waiting[:middle], uncertain)
                await self._carry_out_apart(waiting[middle:], uncertain)
                return
            if proposal in uncertain:
                uncertain.remove(proposal)
            self._accept(proposal, position)

    async def _carry_out(self, batch: list[_Wish], uncertain: list[_Proposal]) -> tuple[_Proposal, int]:
        """Carries out as much of a batch as goes into one append, through lost connections and lost races.

        Args:
            batch: those who lose their claim are told and leave it.
            uncertain: what was sent for this batch without an answer; grows.

        Raises:
            Unavailable: the database is out of reach, and patience is at its end.
        """
        failures, give_up = 0, 0.0
        while True:
            try:
                async with asyncio.timeout(self._answer_s):
                    settled = await self._settle(await self._connected(), batch, uncertain)
            except Exception as problem:
                if not _is_outage(problem):
                    raise
                log.warning("ledger.connection_lost", reason=type(problem).__name__, uncertain=len(uncertain))
                await self._disconnect()
                now = time.monotonic()
                give_up = give_up or now + (0.0 if self._is_away else self._patience_s)
                if now >= give_up + (2 * self._patience_s if uncertain else 0.0):
                    self._is_away = True
                    raise Unavailable("the database is out of reach", retry_after_s=2) from problem
                await asyncio.sleep(RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS) - 1)])
                failures += 1
            else:
                self._is_away = False
                return settled

    async def _settle(
        self, connection: Connection, batch: list[_Wish], uncertain: list[_Proposal]
    ) -> tuple[_Proposal, int]:
        """Finds out what became of earlier attempts, else makes one; under the writer lock if need be."""
        if not uncertain:
            # A look can be repeated: it need not take the lock from those who write.
            is_look = all(wish.decide is _only_look for wish in batch)
            for _ in range(3 if is_look else 1):
                proposal = await self._propose(connection, batch, trust_new=True)
                result = await self._send(connection, proposal, uncertain)
                if not result.stale:
                    return proposal, result.position
                _drop_lost_claims(batch, result.stale)
        async with connection.transaction():
            position = await journal.lock(connection)
            for attempt in uncertain:
                if await journal.was_appended(connection, attempt.draft):
                    return attempt, position
            await self._refresh(connection, batch)
            return await self._settle_locked(connection, batch, uncertain)

    async def _settle_locked(
        self, connection: Connection, batch: list[_Wish], uncertain: list[_Proposal]
    ) -> tuple[_Proposal, int]:
        """Decides and sends while nobody else can write: what is known now is the latest."""
        snapshots = True
        while True:
            proposal = await self._propose(connection, batch, snapshots=snapshots)
            result = await self._send(connection, proposal, uncertain)
            if not result.stale:
                return proposal, result.position
            # By now only a claim can be lost, or a snapshot speak of a version that does not exist.
            if not _drop_lost_claims(batch, result.stale) and not snapshots:
                raise RuntimeError(f"the journal contradicts itself about {result.stale}")
            snapshots = False

    async def _send(self, connection: Connection, proposal: _Proposal, uncertain: list[_Proposal]) -> Appended:
        draft = proposal.draft
        if not draft.writes:
            result = await journal.check(connection, draft.read)
        else:
            started = time.perf_counter()
            uncertain.append(proposal)
            try:
                result = await journal.append(connection, draft)
            except Exception as problem:
                if not _is_outage(problem):
                    uncertain.remove(proposal)  # PostgreSQL itself said no
                raise
            if result.stale:
                uncertain.remove(proposal)  # and that for ever: versions never come back
            else:
                seconds = time.perf_counter() - started
                metrics.appended(commands=len(proposal.decided), events=len(draft.streams), seconds=seconds)
        if result.stale:
            metrics.decided_again()
            self._forget(result.stale)
        return result

    async def _propose(
        self, connection: Connection, batch: Sequence[_Wish], *, trust_new: bool = False, snapshots: bool = True
    ) -> _Proposal:
        """Decides as many wishes of the batch, in their order, as go into one load and one append."""
        known: dict[str, Versioned | Exception] = {}
        missing: dict[str, None] = {}
        for wish in batch:
            for stream in wish.all_streams:
                if stream in known or stream in missing:
                    continue
                if (cached := self._cache.get(stream)) is not None:
                    known[stream] = cached
                elif trust_new and stream == wish.new:
                    known[stream] = NOTHING
                else:
                    missing[stream] = None
        while missing:
            known |= await journal.load(connection, list(missing), snapshots=snapshots)
            missing = {stream: None for stream in missing if stream not in known}
            if batch[0].is_among(known):
                break  # others may have to wait for the next round
        proposal = _Proposal(known)
        for wish in batch:
            if proposal.is_full or not wish.is_among(known):
                break
            proposal.decide(wish)
        return proposal

    async def _refresh(self, connection: Connection, batch: Sequence[_Wish]) -> None:
        """Forgets the states that are not the latest."""
        streams = (stream for wish in batch for stream in wish.all_streams)
        cached = {stream: known.version for stream in streams if (known := self._cache.get(stream)) is not None}
        self._forget((await journal.check(connection, cached)).stale)

    def _accept(self, proposal: _Proposal, position: int) -> None:
        """What was proposed is on record: keep its states, tell everyone."""
        for stream, versioned in proposal.known.items():
            if isinstance(versioned, Versioned) and versioned.version and versioned is not self._cache.get(stream):
                self._cache.put(stream, self._note_for_snapshot(stream, versioned))
        for wish, decided in proposal.decided:
            if isinstance(decided, Exception):
                wish.tell(decided)
            elif wish.is_open:
                wish.answer.set_result(Outcome(decided.states, decided.events, position))
        if proposal.draft.writes:
            self._appended(position)

    def _refuse_all(self, batch: Sequence[_Wish], problem: Unavailable) -> None:
        """While the database is away nobody need wait for the end of the queue to be told so."""
        refused = [*batch, *self._take(self._queue.qsize())]
        log.warning("ledger.unavailable", commands=len(refused), reason=str(problem))
        for wish in refused:
            wish.tell(Unavailable(str(problem), problem.retry_after_s))

    def _forget(self, streams: Iterable[str]) -> None:
        for stream in streams:
            self._cache.forget(stream)

    # -- snapshots: off the path, for streams that have become long ------------------------------------------------

    def _note_for_snapshot(self, stream: str, versioned: Versioned) -> Versioned:
        if versioned.unsaved < SNAPSHOT_EVERY:
            return versioned
        self._snapshots[stream] = versioned
        if self._snapshot_task is None or self._snapshot_task.done():
            self._snapshot_task = asyncio.create_task(self._save_snapshots(), name="snapshots")
        return versioned._replace(unsaved=0)

    async def _save_snapshots(self) -> None:
        """Nothing depends on it, so nothing that goes wrong here matters, and no disk is waited for."""
        try:
            async with await self._connect() as connection:
                await connection.execute("set synchronous_commit = off")
                while self._snapshots:
                    await journal.save_snapshot(connection, *self._snapshots.popitem())
        except Exception as problem:  # noqa: BLE001
            log.warning("snapshot.failed", reason=repr(problem))

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


def _is_outage(problem: Exception) -> bool:
    """Whether the database is to blame, and not what was sent to it."""
    return isinstance(problem, OUT_OF_REACH) and not isinstance(problem, TOO_MUCH)


def _drop_lost_claims(batch: list[_Wish], stale: Sequence[str]) -> bool:
    """A claim whose lease ended belongs to somebody else now: this wish must not be carried out as well."""
    lost = [wish for wish in batch if wish.receipt is not None and wish.receipt.claim_id in stale]
    for wish in lost:
        batch.remove(wish)
        wish.tell(ClaimLost())
    return bool(lost)
