"""Transactions: every movement of credits, one row each, never changed.

What a movement left behind is in its row. So the row before any moment is the balance as it was then, and a list of
rows is a statement that can be added up.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Literal, get_args

import msgspec

from domain.credit import (
    Account,
    CreditMovement,
    CreditsAdjusted,
    CreditsCharged,
    CreditsExpired,
    CreditsGranted,
    CreditsHeld,
    CreditsRefunded,
    HoldReleased,
)
from infra.journal import Connection
from projections.balances import MOVEMENTS, BalanceRecord
from projections.projection import Batch, Projection, Statement
from projections.reading import count, fetch_all, fetch_one

TransactionType = Literal[
    "allocation",
    "deduction",
    "refund",
    "adjustment",
    "expiration",
    "subscription_payment",
    "one_time_payment",
    "hold",
    "release",
]
TYPES: tuple[TransactionType, ...] = get_args(TransactionType)
HOLDS: frozenset[TransactionType] = frozenset({"hold", "release"})
FREQUENT = HOLDS | {"deduction"}

DDL = """
create table transactions (
    position           bigint primary key,
    transaction_id     uuid not null,
    team_id            text not null,
    organization_id    text not null,
    job_id             uuid,
    transaction_type   text not null,
    is_hold            boolean not null,
    source             text,
    credits_amount     bigint not null,
    credits_before     bigint not null,
    credits_after      bigint not null,
    held_after         bigint not null,
    allocated_after    bigint not null,
    reason             text,
    payment_amount_usd numeric,
    payment_reference  text,
    expires_at         timestamptz,
    refilled           boolean not null,
    actor              text not null,
    created_at         timestamptz not null
);
create index transactions_by_id on transactions (transaction_id);
create index transactions_by_team on transactions (team_id, position desc) include (created_at, transaction_type);
create index transactions_without_holds on transactions (team_id, position desc) include (created_at, transaction_type)
    where not is_hold;
create index transactions_rare on transactions (team_id, position desc) include (created_at, transaction_type)
    where transaction_type not in ('deduction', 'hold', 'release');
create index transactions_by_job on transactions (job_id, position desc);
create index transactions_refills on transactions (team_id, position desc) where refilled;

create table transaction_counts (
    team_id          text not null,
    transaction_type text not null,
    transactions     bigint not null,
    primary key (team_id, transaction_type)
);
"""

_INSERT = """
insert into transactions (
    position, transaction_id, team_id, organization_id, job_id, transaction_type, is_hold, source, credits_amount,
    credits_before, credits_after, held_after, allocated_after, reason, payment_amount_usd, payment_reference,
    expires_at, refilled, actor, created_at)
select position, transaction_id, team_id, organization_id, job_id, transaction_type, is_hold, source, credits_amount,
       credits_before, credits_after, held_after, allocated_after, reason, payment_amount_usd, payment_reference,
       expires_at, refilled, actor, created_at
from json_to_recordset(%s) as row (
    position bigint, transaction_id uuid, team_id text, organization_id text, job_id uuid, transaction_type text,
    is_hold boolean, source text, credits_amount bigint, credits_before bigint, credits_after bigint,
    held_after bigint, allocated_after bigint, reason text, payment_amount_usd numeric, payment_reference text,
    expires_at timestamptz, refilled boolean, actor text, created_at timestamptz)
"""

_COUNT = """
insert into transaction_counts as counted (team_id, transaction_type, transactions)
select team_id, transaction_type, transactions
from json_to_recordset(%s) as row (team_id text, transaction_type text, transactions bigint)
on conflict (team_id, transaction_type) do update
set transactions = counted.transactions + excluded.transactions
"""


class TransactionRecord(msgspec.Struct, kw_only=True):
    """One movement. Before and after are what remained; the amount is positive, whatever the direction."""

    transaction_id: str
    team_id: str
    organization_id: str
    job_id: str | None = None
    transaction_type: TransactionType
    source: str | None = None
    credits_amount: int
    credits_before: int
    credits_after: int
    reason: str | None = None
    payment_amount_usd: Decimal | None = None
    payment_reference: str | None = None
    expires_at: datetime | None = None
    actor: str
    created_at: datetime

    @classmethod
    def of(cls, event: CreditMovement) -> "TransactionRecord":
        """A movement as it was decided, as the table will have it."""
        record = cls(
            transaction_id=event.transaction_id,
            team_id=event.team_id,
            organization_id=event.organization_id,
            transaction_type="allocation",
            credits_amount=abs(event.credits),
            credits_before=event.remaining_credits - remaining_change(event),
            credits_after=event.remaining_credits,
            actor=event.by,
            created_at=event.at,
        )
        match event:
            case CreditsGranted():
                record.transaction_type, record.source, record.reason = event.kind, event.source, event.reason
                record.payment_amount_usd, record.payment_reference = event.payment_amount_usd, event.payment_reference
                record.expires_at = event.expires_at
            case CreditsHeld():
                record.transaction_type, record.job_id = "hold", event.job_id
            case HoldReleased():
                record.transaction_type, record.job_id = "release", event.job_id
            case CreditsCharged():
                record.transaction_type, record.job_id = "deduction", event.job_id
            case CreditsRefunded():
                record.transaction_type, record.job_id, record.reason = "refund", event.job_id, event.reason
            case CreditsAdjusted():
                record.transaction_type, record.reason = "adjustment", event.reason
            case CreditsExpired():
                record.transaction_type = "expiration"
        return record

    @classmethod
    def of_payment(cls, account: Account, reference: str, *, source: str) -> "TransactionRecord":
        """What a payment notice brought when it first came."""
        payment = account.payments[reference]
        return cls(
            transaction_id=payment.transaction_id,
            team_id=account.team_id,
            organization_id=account.organization_id,
            transaction_type=payment.kind,
            source=source,
            credits_amount=payment.credits,
            credits_before=payment.remaining_credits - payment.credits,
            credits_after=payment.remaining_credits,
            reason=payment.reason,
            payment_amount_usd=payment.payment_amount_usd,
            payment_reference=reference,
            expires_at=payment.expires_at,
            actor=payment.by,
            created_at=payment.at,
        )


class TransactionRow(TransactionRecord, kw_only=True):
    position: int
    is_hold: bool
    held_after: int
    allocated_after: int
    refilled: bool


class TransactionCount(msgspec.Struct):
    team_id: str
    transaction_type: TransactionType
    transactions: int


def remaining_change(event: CreditMovement) -> int:
    """By how much a movement changed what remains; holds do not."""
    match event:
        case CreditsGranted() | CreditsRefunded() | CreditsAdjusted():
            return event.credits
        case CreditsCharged() | CreditsExpired():
            return -event.credits
        case _:
            return 0


def project(batch: Batch) -> Iterable[Statement]:
    rows = [_row(recorded.position, recorded.event) for recorded in batch.recorded(*MOVEMENTS)]
    yield _INSERT, rows
    counts = Counter((row.team_id, row.transaction_type) for row in rows)
    yield _COUNT, [TransactionCount(*which, transactions) for which, transactions in counts.items()]


def _row(position: int, event: object) -> TransactionRow:
    assert isinstance(event, CreditMovement)
    record = TransactionRecord.of(event)
    return TransactionRow(
        **msgspec.structs.asdict(record),
        position=position,
        is_hold=record.transaction_type in HOLDS,
        held_after=event.held_credits,
        allocated_after=event.allocated_credits,
        refilled=isinstance(event, CreditsGranted)
        and (event.refill_period is not None or event.kind == "subscription_payment"),
    )


# -- selects -----------------------------------------------------------------------------------------------------------

_SELECT = """
select transaction_id::text, team_id, organization_id, job_id::text, transaction_type, source, credits_amount,
       credits_before, credits_after, reason, payment_amount_usd, payment_reference, expires_at, actor, created_at
from transactions
"""

# Filters are answered by the indexes alone, however much has to be skipped; rows are looked at when they are known.
_THESE = "where position = any (array(select position from transactions where "
_NEWEST_FIRST = " order by position desc limit %(limit)s offset %(offset)s)) order by position desc"

_CONDITIONS = {
    "transaction_type": "transaction_type = %(transaction_type)s",
    "job_id": "job_id = %(job_id)s",
    "start": "created_at >= %(start)s",
    "end": "created_at < %(end)s",
}

_IS_RARE = "transaction_type not in ('deduction', 'hold', 'release')"  # what the index of those few says

_COUNTED = """
select coalesce(sum(transactions), 0)::bigint from transaction_counts
where team_id = %(team_id)s and transaction_type = any (%(types)s)
"""
_COUNT_ROWS = "select count(*) from transactions where "


class Filter(msgspec.Struct, kw_only=True, frozen=True):
    """Which transactions of a team are wanted; `end` is the first moment that is not."""

    team_id: str
    transaction_type: str | None = None
    job_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    with_holds: bool = False

    @property
    def types(self) -> list[str]:
        """Who asks for holds by name means them."""
        if self.transaction_type is not None:
            return [self.transaction_type]
        return [each for each in TYPES if self.with_holds or each not in HOLDS]

    @property
    def where(self) -> str:
        conditions = ["team_id = %(team_id)s"]
        if not self.with_holds and self.transaction_type not in HOLDS:
            conditions.append("not is_hold")
        if self.transaction_type is not None and self.transaction_type not in FREQUENT:
            conditions.append(_IS_RARE)
        conditions += [text for name, text in _CONDITIONS.items() if getattr(self, name) is not None]
        return " and ".join(conditions)


async def page(connection: Connection, wanted: Filter, *, limit: int, offset: int) -> list[TransactionRecord]:
    """Some transactions, the newest first."""
    parameters = {**msgspec.structs.asdict(wanted), "limit": limit, "offset": offset}
    return await fetch_all(connection, TransactionRecord, _SELECT + _THESE + wanted.where + _NEWEST_FIRST, parameters)


async def total(connection: Connection, wanted: Filter) -> int:
    """How many there are; without a filter that is kept in a table, however many they have become."""
    if wanted.job_id is None and wanted.start is None and wanted.end is None:
        return await count(connection, _COUNTED, {"team_id": wanted.team_id, "types": wanted.types})
    return await count(connection, _COUNT_ROWS + wanted.where, msgspec.structs.asdict(wanted))


_BEFORE = """
select team_id, organization_id, allocated_after as credits_allocated,
       allocated_after - credits_after as credits_used, held_after as credits_held, created_at as updated_at,
       (select max(refill.created_at) from transactions as refill
        where refill.team_id = latest.team_id and refill.refilled and refill.position <= latest.position)
           as last_refill_at
from transactions as latest
where position = (select position from transactions where team_id = %(team_id)s and """
_LATEST = " order by position desc limit 1)"


async def balance_at(connection: Connection, team_id: str, until: datetime | int) -> BalanceRecord | None:
    """A team's balance after a position of the journal, or before a moment; None before the first movement."""
    last = "position <= %(until)s" if isinstance(until, int) else "created_at < %(until)s"
    return await fetch_one(connection, BalanceRecord, _BEFORE + last + _LATEST, {"team_id": team_id, "until": until})


TRANSACTIONS = Projection(
    name="transactions",
    version=1,
    tables=("transactions", "transaction_counts"),
    ddl=DDL,
    project=project,
    wants=MOVEMENTS,
)
