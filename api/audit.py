"""The journal for auditors: every event with its hash, and every balance explained and added up again from nothing.

Long answers come in pages, or in one piece to whoever accepts `application/x-ndjson`: one event a line, page by page
in constant memory; a replay also as CSV. Both go on where they ended with `after`, the last position that was seen.
"""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, TypeVar, cast

import msgspec
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream
from msgspec import UNSET, UnsetType

from api.answers import encode, reply, ts, ts_or_none
from api.caller import audit_only
from api.explanation import Explanation, JobCredits, credits_of_jobs, explained
from api.house import House
from api.jobs import uuid_of
from api.listing import MOST_OFFSET, Page, chosen, one_of, until, wrapped
from api.problems import Invalid, Trouble
from api.shapes import CallAnswer, JobAnswer, Timestamp, call_answer, calls_of, job_answer
from api.tables import MEDIA_TYPES, AskedFormat, Format, attached, csv_lines, format_of
from domain.credit import Account, CreditMovement
from domain.errors import NotFound
from domain.event import JsonObject
from domain.job import Job
from domain.streams import CREDIT, DECODERS, JOB
from infra import metrics, readable
from infra.journal import PoisonEvent
from infra.verify import verify
from projections import evidence
from projections.evidence import Evidence, Wanted, signature_of
from projections.jobs import JobRecord

T = TypeVar("T")

NDJSON = MEDIA_TYPES["ndjson"]
PAGE = 1000
VERIFIED_AT_ONCE = 1_000_000  # events; some seconds of work
SECTION = 1000  # notifications

After = Annotated[int, QueryParameter(ge=0, le=MOST_OFFSET, description="The last position that was seen")]
Limit = Annotated[
    int | None,
    QueryParameter(ge=1, le=MOST_OFFSET, description="How many at most: 100, up to 1000; no limit in a file"),
]
Raw = Annotated[bool, QueryParameter(description="Also the bytes of each event, as `state`: they are what is hashed")]

# Recomputing hashes is work for a processor: one auditor at a time, so that customers keep theirs.
_verifying = asyncio.Semaphore(1)


# -- answers -----------------------------------------------------------------------------------------------------------


class HeadAnswer(msgspec.Struct, kw_only=True):
    """What an auditor notes down: the hash covers every event up to the position."""

    position: int
    hash: str
    at: Timestamp | None


class EventAnswer(msgspec.Struct, kw_only=True):
    """An event as it was written. `event` is null if it is not JSON any more; `state` is then shown in any case."""

    position: int
    stream: str
    version: int
    type: str
    at: Timestamp | None
    by: str | None
    request: str | None
    event: JsonObject | None
    hash: str
    state: str | UnsetType = UNSET


class EventPage(msgspec.Struct, kw_only=True):
    """`next_after` is where to go on; null at the end. There may be fewer events than asked for before that."""

    events: list[EventAnswer]
    next_after: int | None
    head_position: int


class BreakAnswer(msgspec.Struct, kw_only=True):
    position: int
    kind: str
    detail: str


class VerificationAnswer(msgspec.Struct, kw_only=True):
    """`hash` is that of the event at `to_position`. If `next_from` is not null, more follows there."""

    ok: bool
    from_position: int
    to_position: int
    head_position: int
    events: int
    hash: str
    first_break: BreakAnswer | None
    next_from: int | None


class Recorded(msgspec.Struct, kw_only=True):
    credits_remaining: int
    credits_held: int
    credits_allocated: int


class Movement(msgspec.Struct, kw_only=True):
    """What an event did to an account, added up from nothing, beside what was recorded then.

    An event that cannot follow here did nothing, and does not agree; nor does one that nobody can read any more, of
    which `at` and `by` are null.
    """

    position: int
    version: int
    at: Timestamp | None
    by: str | None
    type: str
    transaction_id: str | None
    job_id: str | None
    reason: str | None
    credits_change: int
    held_change: int
    credits_allocated: int
    credits_used: int
    credits_remaining: int
    credits_held: int
    recorded: Recorded | None
    agrees: bool
    hash: str


class ReplayPage(msgspec.Struct, kw_only=True):
    """`agrees` and the totals are about all events up to here, also those of earlier pages.

    `next_after` is where to go on; null at the end.
    """

    team_id: str
    movements: list[Movement]
    next_after: int | None
    events: int
    credits_allocated: int
    credits_used: int
    credits_remaining: int
    credits_held: int
    agrees: bool


class JobStory(msgspec.Struct, kw_only=True):
    job: JobAnswer
    credits: JobCredits
    calls: list[CallAnswer]
    events: list[EventAnswer]
    next_after: int | None


class NotificationAnswer(msgspec.Struct, kw_only=True):
    id: int
    originator_id: str
    originator_version: int
    topic: str
    state: str


class SectionAnswer(msgspec.Struct, kw_only=True):
    """A section of the notification log, as the library `eventsourcing` has them; `state` is base64."""

    id: str | None
    next_id: str | None
    items: list[NotificationAnswer]


# -- endpoints ---------------------------------------------------------------------------------------------------------


class AuditController(Controller):
    path = "/api/audit"
    tags = ["Audit"]
    before_request = audit_only

    @get("/head")
    async def head(self, house: NamedDependency[House]) -> Response[HeadAnswer]:
        """Where the journal ends: position, hash and time of its last event."""
        async with house.pool.connection() as connection:
            head = await evidence.head(connection)
        signed = None if head.state is None else signature_of(head.state)
        return reply(
            HeadAnswer(
                position=head.position, hash=head.hash.hex(), at=None if signed is None else ts_or_none(signed.at)
            )
        )

    @get("/events", opt={"also": [NDJSON]})
    async def events(
        self,
        request: Request[Any, Any, Any],
        house: NamedDependency[House],
        after: After = 0,
        limit: Limit = None,
        stream: Annotated[str | None, QueryParameter(description="For example job-<id> or credit-<team>")] = None,
        kind: Annotated[str | None, one_of(DECODERS, name="type")] = None,
        team_id: FromQuery[str | None] = None,
        raw: Raw = False,
    ) -> Response[EventPage]:
        """Events as they were written, with their hashes, in the order of the journal."""
        wanted = Wanted(stream=stream, topic=chosen("type", kind, DECODERS), team_id=team_id)
        last = await _head_position(house)
        if _wants_lines(request):
            return _streamed(_every_event(house, wanted, after, last, limit, raw=raw))
        async with house.pool.connection() as connection:
            found, looked_at = await evidence.page(connection, wanted, after=after, until=last, limit=_at_most(limit))
        return reply(
            EventPage(
                events=[event_answer(event, raw=raw) for event in found],
                next_after=looked_at if looked_at < last else None,
                head_position=last,
            )
        )

    @get("/verify")
    async def verify(
        self,
        house: NamedDependency[House],
        first: Annotated[int, QueryParameter(name="from", ge=1, le=MOST_OFFSET, description="First position")] = 1,
        last: Annotated[
            int | None, QueryParameter(name="to", ge=1, le=MOST_OFFSET, description="Last position")
        ] = None,
        noted: Annotated[
            str | None, QueryParameter(description="POSITION:HASH, as an earlier visit noted it down")
        ] = None,
    ) -> Response[VerificationAnswer]:
        """Compute the hash chain again and say the first break; a million events at most, then go on at `next_from`."""
        head = await _head_position(house)
        if first > head + 1:
            raise Invalid(["query", "from"], "the journal has not so many events", "value_error.range")
        if last is not None and last < first:
            raise Invalid(["query", "to"], "expected at least `from`", "value_error.range")
        until = min(head if last is None else last, first + VERIFIED_AT_ONCE - 1)
        async with _verifying:
            found = await asyncio.to_thread(_verified, str(house.pool.conninfo), first, until, _noted(noted))
        if found.first_break is not None:
            metrics.replay_disagreed(1)
        reached = found.to_position
        more = found.first_break is None and reached < min(head, last or head)
        return reply(
            VerificationAnswer(
                ok=found.first_break is None,
                from_position=found.from_position,
                to_position=reached,
                head_position=head,
                events=found.events,
                hash=found.hash,
                first_break=None if found.first_break is None else BreakAnswer(**asdict(found.first_break)),
                next_from=reached + 1 if more else None,
            )
        )

    @get("/teams/{team_id:str}/replay")
    async def replay(
        self,
        request: Request[Any, Any, Any],
        house: NamedDependency[House],
        team_id: FromPath[str],
        until_: Annotated[
            str | None, QueryParameter(name="until", description="A moment (ISO), or a position of the journal")
        ] = None,
        after: After = 0,
        limit: Limit = None,
        asked: AskedFormat = None,
    ) -> Response[ReplayPage]:
        """Add up a team's credits from nothing, event by event, and compare with what was recorded each time."""
        kind = format_of(request, asked)
        end = await _head_position(house) if until_ is None else until("until", until_)
        replayed = Replay(house, team_id, end)
        await replayed.begin()
        if kind == "csv":
            rows = _in_pages(replayed.movements(after), limit, _as_csv)
            return _streamed(_with_header(rows), kind, attached(f"replay-{team_id}.csv"))
        if kind == "ndjson":
            return _streamed(_in_pages(replayed.movements(after), limit, _as_lines))
        most, movements = _at_most(limit), list[Movement]()
        async for movement in replayed.movements(after):
            movements.append(movement)
            if len(movements) == most:
                return reply(replayed.page(movements, movement.position))
        return reply(replayed.page(movements, None))

    @get("/jobs/{job_id:str}")
    async def job(
        self,
        house: NamedDependency[House],
        job_id: FromPath[str],
        after: After = 0,
        limit: Limit = None,
        raw: Raw = False,
    ) -> Response[JobStory]:
        """A job's whole story: what happened, what was set aside and charged for it, at which prices, with hashes."""
        job_id, most = uuid_of(job_id, "job"), _at_most(limit)
        job = (await house.ledger.read(JOB.stream(job_id))).states[0]
        if not isinstance(job, Job):
            raise NotFound("job")
        async with house.pool.connection() as connection:
            found = await evidence.of_job(connection, job_id, after=after, limit=most)
            credits = await credits_of_jobs(connection, [job_id])
        return reply(
            JobStory(
                job=job_answer(JobRecord.of(job)),
                credits=credits[job_id],
                calls=[call_answer(call, for_admin=True) for call in calls_of(job)],
                events=[event_answer(event, raw=raw) for event in found],
                next_after=found[-1].position if len(found) == most else None,
            )
        )

    @get("/explain")
    async def explain(
        self,
        house: NamedDependency[House],
        page: NamedDependency[Page],
        team_id: Annotated[str, QueryParameter(description="Whose balance")],
    ) -> Response[Explanation]:
        """A balance as a tree: what was given, and for each job what was held, called, priced and charged."""
        account = (await house.ledger.read(CREDIT.stream(team_id))).states[0]
        if not isinstance(account, Account):
            raise NotFound("team")
        async with house.pool.connection() as connection:
            explanation = await explained(connection, account, page)
        return wrapped(explanation, explanation.total_jobs)

    @get("/notifications/{section:str}")
    async def notifications(self, house: NamedDependency[House], section: FromPath[str]) -> Response[SectionAnswer]:
        """A section such as `1,100` of the notification log, for applications of the library `eventsourcing`."""
        first, limit = _section(section)
        async with house.pool.connection() as connection:
            found = await evidence.beginning_with(connection, first, limit) if limit else []
        follows = f"{found[-1].position + 1},{found[-1].position + limit}" if found and len(found) == limit else None
        return reply(
            SectionAnswer(
                id=f"{found[0].position},{found[-1].position}" if found else None,
                next_id=follows,
                items=[
                    NotificationAnswer(
                        id=event.position,
                        originator_id=event.stream,
                        originator_version=event.version,
                        topic=event.topic,
                        state=b64encode(event.state).decode(),
                    )
                    for event in found
                ],
            )
        )


# -- events ------------------------------------------------------------------------------------------------------------


def event_answer(event: Evidence, *, raw: bool = False) -> EventAnswer:
    signed = signature_of(event.state)
    answer = EventAnswer(
        position=event.position,
        stream=event.stream,
        version=event.version,
        type=event.topic,
        at=None if signed is None else ts_or_none(signed.at),
        by=None if signed is None else signed.by,
        request=None if signed is None else signed.request,
        event=None if signed is None else cast("JsonObject", msgspec.Raw(event.state)),
        hash=event.hash.hex(),
    )
    if raw or signed is None:
        answer.state = event.state.decode(errors="replace")
    return answer


async def _every_event(
    house: House, wanted: Wanted, after: int, last: int, limit: int | None, *, raw: bool
) -> AsyncIterator[bytes]:
    left = MOST_OFFSET if limit is None else limit
    while after < last and left > 0:
        async with house.pool.connection() as connection:
            found, after = await evidence.page(connection, wanted, after=after, until=last, limit=min(PAGE, left))
        left -= len(found)
        yield _as_lines([event_answer(event, raw=raw) for event in found])


# -- replay ------------------------------------------------------------------------------------------------------------


class Replay:
    """A team's account, folded from its first event on.

    Args:
        end: the last position, or the first moment that does not count any more.
    """

    def __init__(self, house: House, team_id: str, end: int | datetime) -> None:
        self._house = house
        self._stream = CREDIT.stream(team_id)
        self._end = end
        self._first: list[Evidence] = []
        self.team_id = team_id
        self.account: Account | None = None
        self.events = 0
        self.agrees = True

    async def begin(self) -> None:
        """Raises NotFound if the team never had an account."""
        self._first = await self._events(0)
        if not self._first:
            raise NotFound("team")

    async def movements(self, after: int) -> AsyncIterator[Movement]:
        """What each event behind a position did; those before it are added up all the same."""
        events = self._first
        while events:
            for event in events:
                if not self._counts(event):
                    return
                movement = self._move(event)
                if event.position > after:
                    yield movement
            events = await self._events(events[-1].position) if len(events) == PAGE else []

    def page(self, movements: list[Movement], next_after: int | None) -> ReplayPage:
        account = self.account
        return ReplayPage(
            team_id=self.team_id,
            movements=movements,
            next_after=next_after,
            events=self.events,
            credits_allocated=account.allocated if account else 0,
            credits_used=account.used if account else 0,
            credits_remaining=account.remaining if account else 0,
            credits_held=account.held if account else 0,
            agrees=self.agrees,
        )

    async def _events(self, after: int) -> list[Evidence]:
        async with self._house.pool.connection() as connection:
            wanted = Wanted(stream=self._stream)
            found, _ = await evidence.page(connection, wanted, after=after, until=MOST_OFFSET, limit=PAGE)
        return found

    def _counts(self, event: Evidence) -> bool:
        if isinstance(self._end, int):
            return event.position <= self._end
        signed = signature_of(event.state)
        return signed is None or signed.at is None or signed.at < self._end

    def _move(self, written: Evidence) -> Movement:
        before, event, recorded = self.account, None, None
        follows = False
        with suppress(PoisonEvent):
            event = evidence.event_of(written)
            self.account = evidence.account_after(before, event, written)
            follows = True
        if isinstance(event, CreditMovement):
            recorded = Recorded(
                credits_remaining=event.remaining_credits,
                credits_held=event.held_credits,
                credits_allocated=event.allocated_credits,
            )
        now = self.account
        replayed = Recorded(
            credits_remaining=now.remaining if now else 0,
            credits_held=now.held if now else 0,
            credits_allocated=now.allocated if now else 0,
        )
        agrees = follows and recorded in (None, replayed)
        self.events += 1
        self.agrees &= agrees
        return Movement(
            position=written.position,
            version=written.version,
            at=None if event is None else ts(event.at),
            by=None if event is None else event.by,
            type=written.topic,
            transaction_id=getattr(event, "transaction_id", None),
            job_id=getattr(event, "job_id", None),
            reason=getattr(event, "reason", None),
            credits_change=replayed.credits_remaining - (before.remaining if before else 0),
            held_change=replayed.credits_held - (before.held if before else 0),
            credits_allocated=replayed.credits_allocated,
            credits_used=now.used if now else 0,
            credits_remaining=replayed.credits_remaining,
            credits_held=replayed.credits_held,
            recorded=recorded,
            agrees=agrees,
            hash=written.hash.hex(),
        )


# -- verify ------------------------------------------------------------------------------------------------------------


def _verified(dsn: str, first: int, last: int, noted: dict[int, str]) -> Any:
    with readable.connect_blocking(dsn) as connection:
        return verify(connection, first, last, noted=noted)


def _noted(text: str | None) -> dict[int, str]:
    if text is None:
        return {}
    found = readable.noted_down(text)
    if found is None:
        raise Invalid(["query", "noted"], "expected POSITION:HASH", "value_error.format")
    return dict([found])


# -- pages and lines ---------------------------------------------------------------------------------------------------


def _wants_lines(request: Request[Any, Any, Any]) -> bool:
    return NDJSON in request.headers.get("accept", "")


def _streamed(
    pieces: AsyncIterator[bytes], kind: Format = "ndjson", headers: dict[str, str] | None = None
) -> Response[Any]:
    return Stream(pieces, media_type=MEDIA_TYPES[kind], headers=headers)


async def _in_pages(
    items: AsyncIterator[T], limit: int | None, written: Callable[[list[T]], bytes]
) -> AsyncIterator[bytes]:
    """Lines in larger pieces, since each piece costs a system call or two."""
    page: list[T] = []
    left = MOST_OFFSET if limit is None else limit
    async for item in items:
        page.append(item)
        left -= 1
        if len(page) == PAGE or not left:
            yield written(page)
            page = []
        if not left:
            return
    yield written(page)


def _as_lines(items: list[Any]) -> bytes:
    return b"".join(encode(item) + b"\n" for item in items)


COLUMNS = tuple(name for name in Movement.__struct_fields__ if name != "recorded")  # `agrees` says what matters of it


def _as_csv(movements: list[Movement]) -> bytes:
    return csv_lines([getattr(movement, column) for column in COLUMNS] for movement in movements).encode()


async def _with_header(rows: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield csv_lines([COLUMNS]).encode()
    async for piece in rows:
        yield piece


def _at_most(limit: int | None) -> int:
    if limit is not None and limit > PAGE:
        raise Invalid(["query", "limit"], f"expected {PAGE} at most, or NDJSON", "value_error.range")
    return 100 if limit is None else limit


def _section(text: str) -> tuple[int, int]:
    """Where a section begins, and how many notifications it may have."""
    first, _, last = text.partition(",")
    if not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in (first, last)):
        raise Trouble("not_found", resource="section")
    start = max(1, int(first))
    return start, min(max(0, int(last) - start + 1), SECTION)


async def _head_position(house: House) -> int:
    async with house.pool.connection() as connection:
        return (await evidence.head(connection)).position
