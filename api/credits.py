"""Credits: what a team has, how it came by it, and where it went (contract, section 7)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

import msgspec
from litestar import Controller, Response, get, patch, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from api.answers import number, number_or_none, reply, ts_or_none
from api.bodies import (
    ID,
    BudgetModeName,
    Name255,
    PositiveCredits,
    RefillPeriodName,
    Text500,
    exact,
    in_utc,
    known_word,
    named,
)
from api.caller import Caller, admin_only, team_or_admin
from api.house import House
from api.listing import Page, Within, chosen, one_of, until, wrapped
from api.problems import PROBLEMS, Invalid
from api.shapes import Balance, Timestamp, Transaction, Uuid, balance_answer, transaction_answer
from domain.charging import RefundJob, refund_job
from domain.credit import Account, CreditMovement, GrantCredits, GrantKind, grant_to_team, require_account
from domain.errors import NotFound
from domain.event import Command, Event
from domain.pricing import MOST_CREDITS, BudgetMode
from domain.streams import CREDIT, JOB, TEAM
from domain.team import (
    ChangeBudget,
    RefillPeriod,
    SetAutoRefill,
    Team,
    change_budget,
    require_team,
    set_auto_refill,
)
from infra import journal
from infra.ids import new_id
from infra.ledger import Outcome
from projections import balances, teams, transactions
from projections.balances import BalanceRecord
from projections.teams import TeamRecord
from projections.transactions import TransactionRecord

PAYMENTS: dict[str, GrantKind] = {"subscription": "subscription_payment", "one_time": "one_time_payment"}
PAID = "purchase"  # where credits come from that were paid for

# An id from a path or query that cannot be one is simply not found.
_CAN_BE_AN_ID = re.compile(r"^[^/\x00-\x1f\x7f\ufffd]{1,255}$")

CreditsNeeded = Annotated[int, QueryParameter(ge=1, le=MOST_CREDITS, description="How many credits it takes")]
AsOf = Annotated[str | None, QueryParameter(description="A moment (ISO), or a position of the journal")]


# -- bodies ------------------------------------------------------------------------------------------------------------


class GrantBody(msgspec.Struct, kw_only=True):
    """The amount and the reason go by several names; they have to agree."""

    amount: PositiveCredits | None = None
    credits: PositiveCredits | None = None
    credits_amount: PositiveCredits | None = None
    description: Text500 | None = None
    reason: Text500 | None = None
    source: Literal["allocation", "promotional", "purchase"] | None = None
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class AddBody(GrantBody, kw_only=True):
    team_id: ID


class RatesBody(msgspec.Struct, kw_only=True):
    tokens_per_credit: PositiveCredits | UnsetType | None = UNSET
    credits_per_dollar: Decimal | UnsetType | None = UNSET


class BudgetModeBody(msgspec.Struct, kw_only=True):
    budget_mode: BudgetModeName
    tokens_per_credit: PositiveCredits | None = None
    credits_per_dollar: Decimal | None = None


class ReplenishBody(msgspec.Struct, kw_only=True):
    credits: PositiveCredits
    payment_type: Annotated[str, named(PAYMENTS)]
    payment_amount_usd: Decimal | None = None
    reason: Text500 | None = None
    payment_reference: Name255 | None = None
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class AutoRefillBody(msgspec.Struct, kw_only=True):
    enabled: bool
    refill_amount: PositiveCredits | None = None
    refill_period: RefillPeriodName | None = None


class RefundBody(msgspec.Struct, kw_only=True):
    job_id: UUID
    credits: PositiveCredits | None = None
    reason: Text500 | None = None


# -- answers -----------------------------------------------------------------------------------------------------------


class CreditsAdded(msgspec.Struct, kw_only=True):
    team_id: str
    credits_added: int
    credits_remaining: int
    transaction_id: Uuid
    transaction: Transaction


class CreditsAllocated(Transaction, kw_only=True):
    """The transaction itself, and what `add` says."""

    credits_added: int
    credits_remaining: int
    transaction: Transaction


class TransactionPage(msgspec.Struct, kw_only=True):
    team_id: str
    total: int
    limit: int
    offset: int
    transactions: list[Transaction]


class CreditsChecked(msgspec.Struct, kw_only=True):
    team_id: str
    has_credits: bool
    credits_needed: int
    credits_remaining: int
    credits_available: int | None
    error: str | None


class DefaultsUsed(msgspec.Struct, kw_only=True):
    tokens_per_credit: bool
    credits_per_dollar: bool


class ConversionRates(msgspec.Struct, kw_only=True):
    team_id: str
    tokens_per_credit: int
    credits_per_dollar: Decimal
    budget_mode: str
    using_defaults: DefaultsUsed


class RatesSet(msgspec.Struct, kw_only=True):
    team_id: str
    tokens_per_credit: int
    credits_per_dollar: Decimal
    message: str


class BudgetModeSet(RatesSet, kw_only=True):
    budget_mode: str


class Replenished(msgspec.Struct, kw_only=True):
    team_id: str
    credits_added: int
    credits_before: int
    credits_after: int
    payment_type: str
    payment_amount_usd: Decimal | None
    transaction: Transaction


class AutoRefillConfigured(msgspec.Struct, kw_only=True):
    team_id: str
    auto_refill_enabled: bool
    refill_amount: int | None
    refill_period: str | None
    last_refill_at: Timestamp | None
    message: str


class Refunded(msgspec.Struct, kw_only=True):
    team_id: str
    job_id: Uuid
    credits_refunded: int
    credits_remaining: int
    transaction: Transaction


INCLUDABLE = ("holds",)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which transactions a list shall have."""

    transaction_type: str | None
    job_id: str | None
    with_holds: bool


def wanted_of(
    kind: Annotated[str | None, one_of(transactions.TYPES, name="type")] = None,
    job_id: FromQuery[UUID | None] = None,
    include: Annotated[str | None, one_of(INCLUDABLE, description="Holds and releases, too")] = None,
) -> Wanted:
    return Wanted(
        transaction_type=chosen("type", kind, transactions.TYPES),
        job_id=None if job_id is None else str(job_id),
        with_holds=chosen("include", include, INCLUDABLE) is not None,
    )


WANTED = {"wanted": Provide(wanted_of, sync_to_thread=False)}


# -- endpoints ---------------------------------------------------------------------------------------------------------


class CreditsController(Controller):
    path = "/api"
    tags = ["Credits"]

    @get("/credits/balance", before_request=team_or_admin)
    async def balance(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromQuery[str | None] = None,
        as_of: AsOf = None,
    ) -> Response[Balance]:
        """What a team has; with `as_of`, what it had then."""
        return await _balance(caller, house, _team_asked_for(caller, team_id), as_of)

    @get(["/credits/teams/{team_id:str}/balance", "/teams/{team_id:str}/credits"], before_request=team_or_admin)
    async def balance_of_team(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        as_of: AsOf = None,
    ) -> Response[Balance]:
        """What a team has; with `as_of`, what it had then."""
        return await _balance(caller, house, _team_named(caller, team_id), as_of)

    @post("/credits/add", status_code=200, before_request=admin_only)
    async def add(self, caller: NamedDependency[Caller], data: JSONBody[AddBody]) -> Response[CreditsAdded]:
        """Grant credits to a team."""
        return await _grant(caller, data.team_id, data, answer=_added)

    @post("/credits/teams/{team_id:str}/add", status_code=200, before_request=admin_only)
    async def add_to_team(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[GrantBody]
    ) -> Response[CreditsAdded]:
        """Grant credits to a team."""
        return await _grant(caller, team_id, data, answer=_added)

    @post("/teams/{team_id:str}/credits/allocate", status_code=200, before_request=admin_only)
    async def allocate(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[GrantBody]
    ) -> Response[CreditsAllocated]:
        """Grant credits to a team; answers with the transaction."""
        return await _grant(caller, team_id, data, answer=_allocated)

    @get("/credits/transactions", before_request=team_or_admin, dependencies=WANTED)
    async def list_transactions(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        within: NamedDependency[Within],
        wanted: NamedDependency[Wanted],
        team_id: FromQuery[str | None] = None,
    ) -> Response[TransactionPage]:
        """Every movement of a team's credits, newest first."""
        team_id = _team_asked_for(caller, team_id)
        return await _transactions(house, team_id, page, within, wanted)

    @get(
        ["/credits/teams/{team_id:str}/transactions", "/teams/{team_id:str}/credits/transactions"],
        before_request=team_or_admin,
        dependencies=WANTED,
    )
    async def list_transactions_of_team(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        within: NamedDependency[Within],
        wanted: NamedDependency[Wanted],
        team_id: FromPath[str],
    ) -> Response[TransactionPage]:
        """Every movement of a team's credits, newest first."""
        return await _transactions(house, _team_named(caller, team_id), page, within, wanted)

    @post("/credits/teams/{team_id:str}/check", status_code=200, before_request=team_or_admin)
    async def check(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], credits_needed: CreditsNeeded = 1
    ) -> Response[CreditsChecked]:
        """Whether a team could pay so much now. Sets nothing aside."""
        team_id = _team_named(caller, team_id)
        look = Command(**caller.signature())
        return await caller.carry_out(
            _look,
            look,
            CREDIT.stream(team_id),
            TEAM.stream(team_id),
            answer=lambda outcome: _checked(outcome, credits_needed),
        )

    @get("/credits/teams/{team_id:str}/conversion-rates", before_request=team_or_admin)
    async def conversion_rates(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], team_id: FromPath[str]
    ) -> Response[ConversionRates]:
        """What a credit of this team is worth, in dollars and in tokens."""
        async with house.pool.connection() as connection:
            team = _known(await teams.one(connection, _team_named(caller, team_id)))
        terms = team.budget.terms
        return reply(
            ConversionRates(
                team_id=team.team_id,
                tokens_per_credit=terms.tokens_per_credit,
                credits_per_dollar=number(terms.credits_per_dollar),
                budget_mode=team.mode,
                using_defaults=DefaultsUsed(
                    tokens_per_credit=team.tokens_per_credit is None, credits_per_dollar=team.credits_per_dollar is None
                ),
            )
        )

    @patch("/credits/teams/{team_id:str}/conversion-rates", before_request=admin_only)
    async def set_conversion_rates(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[RatesBody]
    ) -> Response[RatesSet]:
        """Set what a credit is worth; null goes back to the default. Jobs that made a call keep their rates."""
        rate = data.credits_per_dollar
        command = ChangeBudget(
            **caller.signature(),
            tokens_per_credit=data.tokens_per_credit,
            credits_per_dollar=exact("credits_per_dollar", rate, above_zero=True)
            if isinstance(rate, Decimal)
            else rate,
        )
        team_id = _team_named(caller, team_id)
        return await caller.carry_out(change_budget, command, TEAM.stream(team_id), answer=_rates_set)

    @patch("/credits/teams/{team_id:str}/budget-mode", before_request=admin_only)
    async def set_budget_mode(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[BudgetModeBody]
    ) -> Response[BudgetModeSet]:
        """Set what a team's jobs are charged by. Jobs that made a call keep their mode."""
        rate = data.credits_per_dollar
        command = ChangeBudget(
            **caller.signature(),
            mode=known_word("budget_mode", data.budget_mode, get_args(BudgetMode)),
            tokens_per_credit=UNSET if data.tokens_per_credit is None else data.tokens_per_credit,
            credits_per_dollar=UNSET if rate is None else exact("credits_per_dollar", rate, above_zero=True),
        )
        team_id = _team_named(caller, team_id)
        return await caller.carry_out(change_budget, command, TEAM.stream(team_id), answer=_budget_mode_set)

    @post("/credits/teams/{team_id:str}/replenish", status_code=200, before_request=admin_only)
    async def replenish(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[ReplenishBody]
    ) -> Response[Replenished]:
        """Book a payment. The same `payment_reference` again is answered as it was the first time, and adds nothing."""
        kind = PAYMENTS[known_word("payment_type", data.payment_type, PAYMENTS)]
        amount = None if data.payment_amount_usd is None else exact("payment_amount_usd", data.payment_amount_usd)
        command = GrantCredits(
            **caller.signature(),
            transaction_id=new_id(),
            credits=data.credits,
            kind=kind,
            source=PAID,
            reason=_with_amount(data.reason, kind, amount),
            payment_amount_usd=amount,
            payment_reference=data.payment_reference,
            expires_at=in_utc("expires_at", data.expires_at),
        )
        team_id = _team_named(caller, team_id)
        return await caller.carry_out(
            grant_to_team,
            command,
            CREDIT.stream(team_id),
            TEAM.stream(team_id),
            answer=lambda outcome: _replenished(outcome, data.payment_reference),
        )

    @post("/credits/teams/{team_id:str}/configure-auto-refill", status_code=200, before_request=admin_only)
    async def configure_auto_refill(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[AutoRefillBody]
    ) -> Response[AutoRefillConfigured]:
        """Have credits granted at the start of each day, week or month, or no longer."""
        period = data.refill_period
        command = SetAutoRefill(
            **caller.signature(),
            enabled=data.enabled,
            refill_credits=data.refill_amount,
            refill_period=None if period is None else known_word("refill_period", period, get_args(RefillPeriod)),
        )
        team_id = _team_named(caller, team_id)
        return await caller.carry_out(
            _set_auto_refill, command, TEAM.stream(team_id), CREDIT.stream(team_id), answer=_auto_refill_configured
        )

    @post("/credits/teams/{team_id:str}/refund", status_code=200, before_request=admin_only)
    async def refund(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[RefundBody]
    ) -> Response[Refunded]:
        """Give back a job's charge, or some of it; never more than was charged."""
        job_id = str(data.job_id)
        command = RefundJob(**caller.signature(), transaction_id=new_id(), credits=data.credits, reason=data.reason)
        team_id = _team_named(caller, team_id)
        return await caller.carry_out(refund_job, command, JOB.stream(job_id), CREDIT.stream(team_id), answer=_refunded)


# -- which team --------------------------------------------------------------------------------------------------------


def _team_asked_for(caller: Caller, team_id: str | None) -> str:
    """The team of a query parameter: a key need not name its own, an administrator has to name one."""
    if team_id is None and caller.is_admin:
        raise Invalid(["query", "team_id"], "field required", "value_error.missing")
    return _team_named(caller, team_id)


def _team_named(caller: Caller, team_id: str | None) -> str:
    team_id = caller.team_for(team_id)
    if not _CAN_BE_AN_ID.match(team_id):
        raise NotFound("team")
    return team_id


def _known(team: TeamRecord | None) -> TeamRecord:
    if team is None:
        raise NotFound("team")
    return team


# -- reading -----------------------------------------------------------------------------------------------------------


async def _balance(caller: Caller, house: House, team_id: str, as_of: str | None) -> Response[Balance]:
    async with house.pool.connection() as connection:
        if as_of is not None:
            team, balance = await _as_it_was(connection, team_id, until("as_of", as_of))
        else:
            team = _known(await teams.one(connection, team_id))
            balance = await balances.one(connection, team_id) or _nothing_yet(team)
    return reply(balance_answer(team, balance, for_admin=caller.is_admin))


async def _as_it_was(
    connection: journal.Connection, team_id: str, then: int | datetime
) -> tuple[TeamRecord, BalanceRecord]:
    """A team and its balance after a position, or as they were before a moment."""
    state: Team | None = None
    for recorded in await journal.history(connection, TEAM.stream(team_id)):
        if (recorded.position > then) if isinstance(then, int) else (recorded.event.at >= then):
            break
        state = TEAM.evolve(state, recorded.event)  # type: ignore[assignment]
    if state is None:
        raise NotFound("team")
    team = TeamRecord.of(state, state.updated_at)
    return team, await transactions.balance_at(connection, team_id, then) or _nothing_yet(team)


def _nothing_yet(team: TeamRecord) -> BalanceRecord:
    return BalanceRecord(
        team_id=team.team_id,
        organization_id=team.organization_id,
        credits_allocated=0,
        credits_used=0,
        credits_held=0,
        last_refill_at=None,
        updated_at=team.created_at,
    )


async def _transactions(
    house: House, team_id: str, page: Page, within: Within, wanted: Wanted
) -> Response[TransactionPage]:
    those = transactions.Filter(
        team_id=team_id,
        transaction_type=wanted.transaction_type,
        job_id=wanted.job_id,
        start=within.start,
        end=within.end,
        with_holds=wanted.with_holds,
    )
    async with house.pool.connection() as connection:
        _known(await teams.one(connection, team_id))
        found = await transactions.page(connection, those, limit=page.limit, offset=page.offset)
        total = await transactions.total(connection, those)
    rows = [transaction_answer(each) for each in found]
    return wrapped(
        TransactionPage(team_id=team_id, total=total, limit=page.limit, offset=page.offset, transactions=rows), total
    )


# -- deciding and answering --------------------------------------------------------------------------------------------


async def _grant(
    caller: Caller, team_id: str, body: GrantBody, *, answer: Callable[[Outcome], CreditsAdded | CreditsAllocated]
) -> Response[Any]:
    credits = _agreed(body, "amount", "credits", "credits_amount")
    if credits is None:
        raise Invalid(["body", "amount"], "field required", "value_error.missing")
    command = GrantCredits(
        **caller.signature(),
        transaction_id=new_id(),
        credits=credits,
        source=body.source or "allocation",
        reason=_agreed(body, "reason", "description"),
        expires_at=in_utc("expires_at", body.expires_at),
    )
    team_id = _team_named(caller, team_id)
    return await caller.carry_out(grant_to_team, command, CREDIT.stream(team_id), TEAM.stream(team_id), answer=answer)


def _agreed(body: GrantBody, *names: str) -> Any:
    """What was said under any of these names.

    Raises:
        Invalid: two of them say different things.
    """
    said = {name: value for name in names if (value := getattr(body, name)) is not None}
    if len(set(said.values())) > 1:
        *_, last = said
        raise Invalid(["body", last], f"{' and '.join(said)} differ", "value_error.format")
    return next(iter(said.values()), None)


def _with_amount(reason: str | None, kind: GrantKind, amount: Decimal | None) -> str | None:
    """Whoever reads the ledger sees what was paid, also where only reasons are shown."""
    if amount is None:
        return reason
    shown = amount if -int(amount.as_tuple().exponent) >= 2 else amount.quantize(Decimal("0.01"))
    return f"{reason or kind.replace('_', ' ').capitalize()} (${shown:f})"


def _look(*states_and_command: object) -> tuple[list[Event], ...]:
    return tuple([] for _ in states_and_command[:-1])


def _set_auto_refill(
    team: Team | None, account: Account | None, command: SetAutoRefill
) -> tuple[list[Event], list[Event]]:
    """The account changes nothing and is asked for nothing; the answer says when it was refilled last."""
    return set_auto_refill(team, command), []


def _booked(outcome: Outcome) -> TransactionRecord:
    """The transaction of what was just decided."""
    return TransactionRecord.of(next(event for event in outcome.events if isinstance(event, CreditMovement)))


def _added(outcome: Outcome) -> CreditsAdded:
    granted = _booked(outcome)
    return CreditsAdded(
        team_id=granted.team_id,
        credits_added=granted.credits_amount,
        credits_remaining=granted.credits_after,
        transaction_id=granted.transaction_id,
        transaction=transaction_answer(granted),
    )


def _allocated(outcome: Outcome) -> CreditsAllocated:
    added = _added(outcome)
    return CreditsAllocated(
        **msgspec.structs.asdict(added.transaction),
        credits_added=added.credits_added,
        credits_remaining=added.credits_remaining,
        transaction=added.transaction,
    )


def _checked(outcome: Outcome, needed: int) -> CreditsChecked:
    account, team = require_account(outcome.states[0]), require_team(outcome.states[1])
    available = account.available(team.budget.overdraft_credits)
    has_credits = available is None or available >= needed
    return CreditsChecked(
        team_id=team.team_id,
        has_credits=has_credits,
        credits_needed=needed,
        credits_remaining=account.remaining,
        credits_available=available,
        error=None if has_credits else PROBLEMS["insufficient_credits"].detail,
    )


def _rates_set(outcome: Outcome) -> RatesSet:
    team = require_team(outcome.states[0])
    terms = team.budget.terms
    return RatesSet(
        team_id=team.team_id,
        tokens_per_credit=terms.tokens_per_credit,
        credits_per_dollar=number(terms.credits_per_dollar),
        message="Conversion rates set",
    )


def _budget_mode_set(outcome: Outcome) -> BudgetModeSet:
    rates = _rates_set(outcome)
    mode = require_team(outcome.states[0]).budget.mode
    return BudgetModeSet(
        team_id=rates.team_id,
        budget_mode=mode,
        tokens_per_credit=rates.tokens_per_credit,
        credits_per_dollar=rates.credits_per_dollar,
        message=f"Jobs are charged by {mode} from now on",
    )


def _replenished(outcome: Outcome, reference: str | None) -> Replenished:
    account = require_account(outcome.states[0])
    if outcome.events:
        paid = _booked(outcome)
    else:
        assert reference is not None
        paid = TransactionRecord.of_payment(account, reference, source=PAID)
    payment_type = next(word for word, kind in PAYMENTS.items() if kind == paid.transaction_type)
    return Replenished(
        team_id=paid.team_id,
        credits_added=paid.credits_amount,
        credits_before=paid.credits_before,
        credits_after=paid.credits_after,
        payment_type=payment_type,
        payment_amount_usd=number_or_none(paid.payment_amount_usd),
        transaction=transaction_answer(paid),
    )


def _auto_refill_configured(outcome: Outcome) -> AutoRefillConfigured:
    team, account = require_team(outcome.states[0]), require_account(outcome.states[1])
    refill = team.auto_refill
    return AutoRefillConfigured(
        team_id=team.team_id,
        auto_refill_enabled=refill.enabled,
        refill_amount=refill.refill_credits,
        refill_period=refill.refill_period,
        last_refill_at=ts_or_none(account.last_refill_at),
        message="Auto-refill enabled" if refill.enabled else "Auto-refill disabled",
    )


def _refunded(outcome: Outcome) -> Refunded:
    refund = _booked(outcome)
    assert refund.job_id is not None
    return Refunded(
        team_id=refund.team_id,
        job_id=refund.job_id,
        credits_refunded=refund.credits_amount,
        credits_remaining=refund.credits_after,
        transaction=transaction_answer(refund),
    )
