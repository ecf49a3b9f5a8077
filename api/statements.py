"""Statements of a team's credits, month by month: a preview while they are open, unchangeable once they are closed."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from api.answers import encode, number_or_none, ts, ts_or_none, usd6
from api.caller import Caller, admin_only
from api.house import House
from api.listing import MOST_OFFSET, Page, one_of, wrapped
from api.shapes import Timestamp
from api.statement_page import Line, add_lines, page_of_statement
from api.tables import MEDIA_TYPES, Format, csv_lines, format_of, streamed
from domain.credit import CreditMovement
from domain.errors import NotFound
from domain.organization import Organization
from domain.statement import (
    NOTHING,
    CloseStatement,
    Statement,
    StatementClosed,
    Statements,
    Totals,
    close_statement,
    next_period,
    period_bounds,
    period_of,
    tally,
)
from domain.streams import CREDIT, ORGANIZATION, STATEMENT, TEAM, category_of, decode
from domain.team import Team
from infra import journal
from infra.ledger import Outcome
from projections import evidence, statements
from projections.evidence import Wanted
from projections.statements import Entry, JobTypeUsage, ModelUsage

PAGE = 1000
BEGINNING = datetime.min.replace(tzinfo=UTC)
FORMATS: tuple[Format, ...] = ("json", "csv", "ndjson", "html")

# -- answers -----------------------------------------------------------------------------------------------------------


class StatementTotals(msgspec.Struct, kw_only=True):
    """The entries added up by kind. `total_cost_usd` is that of the calls that the charges rest on."""

    entries: int
    granted_credits: int
    adjusted_credits: int
    charged_credits: int
    refunded_credits: int
    expired_credits: int
    total_cost_usd: Decimal


class StatementSummary(msgspec.Struct, kw_only=True):
    """It covers the journal after `after_position` up to `position`; where that ends in `head_hash`, once closed."""

    team_id: str
    organization_id: str
    period: str
    status: Literal["open", "closed"]
    opening_credits: int
    closing_credits: int
    totals: StatementTotals
    after_position: int
    position: int
    head_hash: str | None
    closed_at: Timestamp | None
    closed_by: str | None


class StatementEntry(msgspec.Struct, kw_only=True):
    """A movement: `credits` with its sign, `credits_after` is what remained."""

    position: int
    created_at: Timestamp
    type: str
    credits: int
    credits_after: int
    job_id: str | None
    transaction_id: str
    reason: str | None
    payment_reference: str | None
    payment_amount_usd: Decimal | None


class JobTypeLine(msgspec.Struct, kw_only=True):
    job_type: str
    jobs: int
    credits: int
    calls: int
    tokens: int
    cost_usd: Decimal


class ModelLine(msgspec.Struct, kw_only=True):
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal


class StatementUsage(msgspec.Struct, kw_only=True):
    """What the charges of the period rest on."""

    by_job_type: list[JobTypeLine]
    by_model: list[ModelLine]


class StatementAnswer(StatementSummary, kw_only=True):
    team_alias: str | None
    organization_name: str | None
    entries: list[StatementEntry]
    usage: StatementUsage
    total: int
    limit: int
    offset: int


class StatementList(msgspec.Struct, kw_only=True):
    """`next_period` is the one that can be closed next, when it has ended."""

    team_id: str
    statements: list[StatementSummary]
    next_period: str
    total: int
    limit: int
    offset: int


# -- endpoints ---------------------------------------------------------------------------------------------------------


class StatementsController(Controller):
    path = "/api/reports/statements"
    tags = ["Reports"]
    before_request = admin_only

    @get("/{team_id:str}")
    async def list_statements(
        self, house: NamedDependency[House], page: NamedDependency[Page], team_id: FromPath[str]
    ) -> Response[StatementList]:
        """The closed statements of a team, newest first, and which period is to be closed next."""
        team, closed = await _known(house, team_id)
        summaries = [_closed(team, each) for each in reversed(closed)]
        answer = StatementList(
            team_id=team_id,
            statements=page.of(summaries),
            next_period=_due(team, closed),
            total=len(summaries),
            limit=page.limit,
            offset=page.offset,
        )
        return wrapped(answer, len(summaries))

    @get("/{team_id:str}/{period:str}")
    async def statement(
        self,
        request: Request[Any, Any, Any],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        team_id: FromPath[str],
        period: FromPath[str],
        asked: Annotated[str | None, one_of(FORMATS, name="format", description="Or say so in Accept")] = None,
    ) -> Response[StatementAnswer]:
        """A team's statement (`YYYY-MM`): balances, entries and usage; a preview while it is open. Also as a page."""
        kind = format_of(request, asked, FORMATS)
        covered = await _covered(house, team_id, period)
        total = covered.summary.totals.entries
        if kind in ("csv", "ndjson"):
            pieces = _csv(house, covered) if kind == "csv" else _lines(house, covered)
            return streamed(pieces, kind, total, f"statement-{team_id}-{period}")
        if kind == "html":
            safe = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
            return Response[Any](await _html(house, covered), media_type=MEDIA_TYPES[kind], headers=safe)
        return wrapped(await _answer(house, covered, page), total)

    @post("/{team_id:str}/{period:str}/close", status_code=200)
    async def close(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        period: FromPath[str],
    ) -> Response[StatementSummary]:
        """Close a month that has ended, for good. What is corrected afterwards goes to the next one."""
        _, ends_at = period_bounds(period)
        _, closed = await _known(house, team_id)
        last = closed[-1] if closed else None
        found = await _found(house, team_id, last, ends_at)
        command = CloseStatement(
            **caller.signature(),
            period=period,
            after_position=last.position if last else 0,
            position=found.position,
            head_hash=found.head_hash,
            closing_credits=found.closing_credits,
            totals=found.totals,
        )

        def answer(outcome: Outcome) -> StatementSummary:
            statements, team = outcome.states
            assert isinstance(statements, Statements)
            assert isinstance(team, Team)
            statement = statements.statement(period)
            assert statement is not None
            return _closed(team, statement)

        streams = STATEMENT.stream(team_id), TEAM.stream(team_id)
        return await caller.carry_out(close_statement, command, *streams, answer=answer)


# -- what a statement covers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Covered:
    """A statement without its entries."""

    summary: StatementSummary
    team_alias: str | None
    organization_name: str | None
    starts_at: datetime
    ends_at: datetime


async def _known(house: House, team_id: str) -> tuple[Team, tuple[Statement, ...]]:
    team, closed = (await house.ledger.read(TEAM.stream(team_id), STATEMENT.stream(team_id))).states
    if not isinstance(team, Team):
        raise NotFound("team")
    return team, closed.closed if isinstance(closed, Statements) else ()


def _due(team: Team, closed: tuple[Statement, ...]) -> str:
    return next_period(closed[-1].period) if closed else period_of(team.created_at)


async def _covered(house: House, team_id: str, period: str) -> Covered:
    starts_at, ends_at = period_bounds(period)
    team, closed = await _known(house, team_id)
    statement = next((each for each in closed if each.period == period), None)
    if statement is None:
        if not _due(team, closed) <= period <= period_of(datetime.now(UTC)):
            raise NotFound("statement")
        summary, until = await _preview(house, team, closed, period), MOST_OFFSET
    else:
        summary, until = _closed(team, statement), await _position_of_close(house, team_id, period)
    team_then = await _as_it_was(house, TEAM.stream(team_id), until)
    organization = await _as_it_was(house, ORGANIZATION.stream(summary.organization_id), until)
    return Covered(
        summary,
        team_then.team_alias if isinstance(team_then, Team) else None,
        organization.name if isinstance(organization, Organization) else None,
        starts_at,
        ends_at,
    )


async def _preview(house: House, team: Team, closed: tuple[Statement, ...], period: str) -> StatementSummary:
    """What would be closed. The period that is due takes everything that came after the last one was closed."""
    starts_at, ends_at = period_bounds(period)
    after = closed[-1].position if closed else 0
    start = BEGINNING if period == _due(team, closed) else starts_at
    async with house.pool.connection() as connection:
        found = await statements.stretch(connection, team.team_id, after=after, start=start, end=ends_at)
        totals = await statements.totals(connection, team.team_id, found.after_position, found.position)
    return StatementSummary(
        team_id=team.team_id,
        organization_id=team.organization_id,
        period=period,
        status="open",
        opening_credits=found.opening_credits or 0,
        closing_credits=found.closing_credits or 0,
        totals=_totals(totals),
        after_position=found.after_position,
        position=found.position,
        head_hash=None,
        closed_at=None,
        closed_by=None,
    )


async def _position_of_close(house: House, team_id: str, period: str) -> int:
    async with house.pool.connection() as connection:
        closes = await journal.history(connection, STATEMENT.stream(team_id))
    return next(
        close.position for close in closes if isinstance(close.event, StatementClosed) and close.event.period == period
    )


async def _as_it_was(house: House, stream: str, until: int) -> object:
    """A state as it was at a position, so that a name which is changed later changes no statement of before. A moment
    would not do: clocks differ, and may stand still or go back."""
    state = None
    async with house.pool.connection() as connection:
        for recorded in await journal.history(connection, stream):
            if recorded.position <= until:
                state = category_of(stream).evolve(state, recorded.event)
    return state


# -- closing -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """What the journal itself says of a period, whatever the read models do."""

    position: int
    head_hash: str
    closing_credits: int
    totals: Totals = NOTHING


async def _found(house: House, team_id: str, last: Statement | None, ends_at: datetime) -> Found:
    """Reads on from where the last statement ended, up to the last movement before the end of the period."""
    found = Found(0, bytes(32).hex(), 0) if last is None else Found(last.position, last.head_hash, last.closing_credits)
    stream, after, running = Wanted(stream=CREDIT.stream(team_id)), found.position, NOTHING
    while True:
        async with house.pool.connection() as connection:
            events, _ = await evidence.page(connection, stream, after=after, until=MOST_OFFSET, limit=PAGE)
        for each in events:
            event = decode(each.topic, each.state)
            running = tally([event], running)
            if isinstance(event, CreditMovement) and event.at < ends_at:
                found = Found(each.position, each.hash.hex(), event.remaining_credits, running)
        if len(events) < PAGE:
            return found
        after = events[-1].position


# -- shapes ------------------------------------------------------------------------------------------------------------


def _closed(team: Team, statement: Statement) -> StatementSummary:
    return StatementSummary(
        team_id=team.team_id,
        organization_id=team.organization_id,
        period=statement.period,
        status="closed",
        opening_credits=statement.opening_credits,
        closing_credits=statement.closing_credits,
        totals=_totals(statement.totals),
        after_position=statement.after_position,
        position=statement.position,
        head_hash=statement.head_hash,
        closed_at=ts_or_none(statement.closed_at),
        closed_by=statement.closed_by,
    )


def _totals(totals: Totals) -> StatementTotals:
    return StatementTotals(
        entries=totals.entries,
        granted_credits=totals.granted_credits,
        adjusted_credits=totals.adjusted_credits,
        charged_credits=totals.charged_credits,
        refunded_credits=totals.refunded_credits,
        expired_credits=totals.expired_credits,
        total_cost_usd=usd6(totals.client_cost_usd),
    )


async def _answer(house: House, covered: Covered, page: Page) -> StatementAnswer:
    summary = covered.summary
    where = summary.team_id, summary.after_position, summary.position
    async with house.pool.connection() as connection:
        entries = await statements.entries(connection, *where, limit=page.limit, offset=page.offset)
        job_types = await statements.usage_by_job_type(connection, *where)
        models = await statements.usage_by_model(connection, *where)
    return StatementAnswer(
        **msgspec.structs.asdict(summary),
        team_alias=covered.team_alias,
        organization_name=covered.organization_name,
        entries=[_entry(entry) for entry in entries],
        usage=StatementUsage(
            by_job_type=[_job_type(line) for line in job_types], by_model=[_model(line) for line in models]
        ),
        total=summary.totals.entries,
        limit=page.limit,
        offset=page.offset,
    )


def _entry(entry: Entry) -> StatementEntry:
    return StatementEntry(
        position=entry.position,
        created_at=ts(entry.created_at),
        type=entry.transaction_type,
        credits=entry.credits,
        credits_after=entry.credits_after,
        job_id=entry.job_id,
        transaction_id=entry.transaction_id,
        reason=entry.reason,
        payment_reference=entry.payment_reference,
        payment_amount_usd=number_or_none(entry.payment_amount_usd),
    )


def _job_type(line: JobTypeUsage) -> JobTypeLine:
    return JobTypeLine(
        job_type=line.job_type,
        jobs=line.jobs,
        credits=line.credits,
        calls=line.calls,
        tokens=line.tokens,
        cost_usd=usd6(line.client_cost_usd),
    )


def _model(line: ModelUsage) -> ModelLine:
    return ModelLine(
        model=line.model,
        calls=line.calls,
        prompt_tokens=line.prompt_tokens,
        completion_tokens=line.completion_tokens,
        cost_usd=usd6(line.client_cost_usd),
    )


# -- files -------------------------------------------------------------------------------------------------------------

COLUMNS = StatementEntry.__struct_fields__


async def _every_entry(house: House, covered: Covered) -> AsyncIterator[list[StatementEntry]]:
    summary = covered.summary
    after = summary.after_position
    while True:
        async with house.pool.connection() as connection:
            found = await statements.entries(connection, summary.team_id, after, summary.position, limit=PAGE)
        yield [_entry(entry) for entry in found]
        if len(found) < PAGE:
            return
        after = found[-1].position


async def _csv(house: House, covered: Covered) -> AsyncIterator[str]:
    """The entries between the two balances."""
    summary = covered.summary
    yield csv_lines([COLUMNS, _balance("opening_balance", covered.starts_at, summary.opening_credits)])
    async for entries in _every_entry(house, covered):
        yield csv_lines([[getattr(entry, column) for column in COLUMNS] for entry in entries])
    yield csv_lines([_balance("closing_balance", covered.ends_at, summary.closing_credits)])


def _balance(name: str, at: datetime, credits: int) -> list[Any]:
    known = {"created_at": ts(at), "type": name, "credits_after": credits}
    return [known.get(column) for column in COLUMNS]


async def _html(house: House, covered: Covered) -> str:
    lines: list[Line] = []
    async for entries in _every_entry(house, covered):
        add_lines(lines, entries)
    answer = await _answer(house, covered, Page(limit=0))  # the lines are its entries
    return page_of_statement(answer, lines, covered.starts_at, covered.ends_at)


async def _lines(house: House, covered: Covered) -> AsyncIterator[bytes]:
    async for entries in _every_entry(house, covered):
        yield b"".join(encode(entry) + b"\n" for entry in entries)


async def statement_as(house: House, team_id: str, period: str, kind: Format) -> AsyncIterator[str]:
    """A whole statement in pieces, each as the endpoint would answer it, but JSON without pages.

    Args:
        kind: one of FORMATS.

    Raises:
        NotFound: there is no such team, or no statement of it for this period (yet).
        Invalid: the period is not a month, `YYYY-MM`.
    """
    covered = await _covered(house, team_id, period)
    match kind:
        case "csv":
            async for piece in _csv(house, covered):
                yield piece
        case "ndjson":
            async for lines in _lines(house, covered):
                yield lines.decode()
        case "html":
            yield await _html(house, covered)
        case "json":
            everything = Page(limit=covered.summary.totals.entries)
            yield encode(await _answer(house, covered, everything)).decode() + "\n"
