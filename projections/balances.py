"""Balances: what each team was given, has used, and has set aside. One row an account."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from domain.credit import (
    Account,
    AccountOpened,
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
from projections.projection import Batch, Projection, Statement
from projections.reading import fetch_all, fetch_one

MOVEMENTS = (
    CreditsGranted,
    CreditsHeld,
    HoldReleased,
    CreditsCharged,
    CreditsRefunded,
    CreditsAdjusted,
    CreditsExpired,
)

DDL = """
create table balances (
    team_id           text primary key,
    organization_id   text not null,
    credits_allocated bigint not null default 0,
    credits_used      bigint not null default 0,
    credits_held      bigint not null default 0,
    last_refill_at    timestamptz,
    updated_at        timestamptz not null
);
create index balances_by_organization on balances (organization_id);
"""

_INSERT = """
insert into balances (team_id, organization_id, updated_at)
select team_id, organization_id, updated_at
from json_to_recordset(%s) as row (team_id text, organization_id text, updated_at timestamptz)
"""

_UPDATE = """
update balances
set credits_allocated = balances.credits_allocated + change.allocated,
    credits_used = balances.credits_used + change.used,
    credits_held = change.held,
    last_refill_at = coalesce(change.last_refill_at, balances.last_refill_at),
    updated_at = change.updated_at
from json_to_recordset(%s) as change (
    team_id text, allocated bigint, used bigint, held bigint, last_refill_at timestamptz, updated_at timestamptz)
where balances.team_id = change.team_id
"""

_SELECT = """
select team_id, organization_id, credits_allocated, credits_used, credits_held, last_refill_at, updated_at
from balances
"""


class BalanceRecord(msgspec.Struct, kw_only=True):
    """An account as it is now, in credits."""

    team_id: str
    organization_id: str
    credits_allocated: int
    credits_used: int
    credits_held: int
    last_refill_at: datetime | None
    updated_at: datetime

    @property
    def credits_remaining(self) -> int:
        return self.credits_allocated - self.credits_used

    def credits_available(self, overdraft_credits: int | None) -> int | None:
        """What may still be held or charged; None means no limit."""
        return None if overdraft_credits is None else self.credits_remaining - self.credits_held + overdraft_credits

    @classmethod
    def of(cls, account: Account) -> "BalanceRecord":
        """An account's state, as the table will have it."""
        return cls(
            team_id=account.team_id,
            organization_id=account.organization_id,
            credits_allocated=account.allocated,
            credits_used=account.used,
            credits_held=account.held,
            last_refill_at=account.last_refill_at,
            updated_at=account.updated_at,
        )


class BalanceRow(msgspec.Struct):
    team_id: str
    organization_id: str
    updated_at: datetime


class BalanceChange(msgspec.Struct):
    """What a batch changes in one account; `held` is what was held at the end of it."""

    team_id: str
    updated_at: datetime
    allocated: int = 0
    used: int = 0
    held: int = 0
    last_refill_at: datetime | None = None


def project(batch: Batch) -> Iterable[Statement]:
    yield _INSERT, [BalanceRow(each.team_id, each.organization_id, each.at) for each in batch.of(AccountOpened)]
    yield _UPDATE, _changes(batch)


def _changes(batch: Batch) -> list[BalanceChange]:
    changes: dict[str, BalanceChange] = {}
    for recorded in batch.recorded(*MOVEMENTS):
        event = recorded.event
        assert isinstance(event, CreditMovement)
        change = changes.setdefault(event.team_id, BalanceChange(event.team_id, event.at))
        change.updated_at = event.at
        change.held = event.held_credits
        match event:
            case CreditsGranted():
                change.allocated += event.credits
                if event.refill_period is not None or event.kind == "subscription_payment":
                    change.last_refill_at = event.at
            case CreditsAdjusted():
                change.allocated += event.credits
            case CreditsExpired():
                change.allocated -= event.credits
            case CreditsCharged():
                change.used += event.credits
            case CreditsRefunded():
                change.used -= event.credits
    return list(changes.values())


async def one(connection: Connection, team_id: str) -> BalanceRecord | None:
    return await fetch_one(connection, BalanceRecord, _SELECT + "where team_id = %(team_id)s", {"team_id": team_id})


async def of_teams(connection: Connection, team_ids: Sequence[str]) -> dict[str, BalanceRecord]:
    """The balances of some teams."""
    select = _SELECT + "where team_id = any (%(team_ids)s)"
    found = await fetch_all(connection, BalanceRecord, select, {"team_ids": team_ids})
    return {balance.team_id: balance for balance in found}


BALANCES = Projection(
    name="balances", version=1, tables=("balances",), ddl=DDL, project=project, wants=(AccountOpened, *MOVEMENTS)
)
