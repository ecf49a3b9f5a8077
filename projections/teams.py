"""Teams with everything that was ever set about them: one row a team, deleted ones included."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal

import msgspec
from msgspec import UNSET, UnsetType

from domain.event import Event, Json, JsonObject
from domain.pricing import BudgetMode, ChargePolicy
from domain.team import (
    AutoRefillSet,
    Budget,
    BudgetSet,
    LimitsSet,
    ModelAccessAssigned,
    RefillPeriod,
    Status,
    Team,
    TeamChanged,
    TeamCreated,
    TeamDeleted,
    TeamPaused,
    TeamResumed,
    TeamSuspended,
    VirtualKeyIssued,
    VirtualKeyRevoked,
)
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import count, fetch_all, fetch_one

DDL = """
create table teams (
    team_id            text primary key,
    organization_id    text not null,
    team_alias         text,
    status             text not null default 'active',
    metadata           jsonb not null,
    default_model      text,
    keep_prompts       boolean not null,
    mode               text not null default 'job_based',
    credits_per_dollar numeric,
    tokens_per_credit  bigint,
    markup_percentage  numeric not null default 0,
    overdraft_credits  bigint default 0,
    charge_policy      text not null default 'all_calls_succeeded',
    rpm_limit          bigint,
    tpm_limit          bigint,
    model_groups       text[] not null default '{}',
    access_groups      text[] not null default '{}',
    auto_refill        boolean not null default false,
    refill_credits     bigint,
    refill_period      text,
    created_at         timestamptz not null,
    updated_at         timestamptz not null
);
create index teams_by_organization on teams (organization_id, team_id);
"""

_INSERT = """
insert into teams (team_id, organization_id, team_alias, metadata, default_model, keep_prompts, created_at, updated_at)
select team_id, organization_id, team_alias, metadata, default_model, keep_prompts, created_at, created_at
from json_to_recordset(%s) as row (
    team_id text, organization_id text, team_alias text, metadata jsonb, default_model text, keep_prompts boolean,
    created_at timestamptz)
"""

# What a change does not speak of stays as it is in the row.
_UPDATE = """
update teams
set (status, team_alias, metadata, default_model, keep_prompts, mode, credits_per_dollar, tokens_per_credit,
     markup_percentage, overdraft_credits, charge_policy, rpm_limit, tpm_limit, model_groups, access_groups,
     auto_refill, refill_credits, refill_period, updated_at) = (
    select status, team_alias, metadata, default_model, keep_prompts, mode, credits_per_dollar, tokens_per_credit,
           markup_percentage, overdraft_credits, charge_policy, rpm_limit, tpm_limit, model_groups, access_groups,
           auto_refill, refill_credits, refill_period, updated_at
    from json_populate_record(teams, change.fields))
from json_array_elements(%s) as change (fields)
where teams.team_id = change.fields ->> 'team_id'
"""

SELECT = """
select team_id, organization_id, team_alias, status, metadata, default_model, keep_prompts, mode, credits_per_dollar,
       tokens_per_credit, markup_percentage, overdraft_credits, charge_policy, rpm_limit, tpm_limit, model_groups,
       access_groups, auto_refill, refill_credits, refill_period, created_at, updated_at,
       (select masked from keys
        where keys.team_id = teams.team_id and (ends_at is null or ends_at > now())
        order by position limit 1) as virtual_key
from teams
"""

_WHERE = """
where (%(organization_id)s::text is null or organization_id = %(organization_id)s)
  and case when %(status)s::text is null then status <> 'inactive' else status = %(status)s end
  and (%(team_id)s::text is null or team_id = %(team_id)s)
"""
_PAGE = SELECT + _WHERE + "order by team_id limit %(limit)s offset %(offset)s"
_COUNT = "select count(*) from teams" + _WHERE  # noqa: S608 two constants

_IDS = """
select team_id from teams where organization_id = %s and status <> 'inactive' order by team_id
"""

_ORPHANS = """
select jobs.job_id::text, jobs.team_id
from teams join jobs using (team_id)
where teams.status = 'inactive' and jobs.status in ('pending', 'in_progress')
  and (%(team_id)s::text is null or teams.team_id = %(team_id)s)
order by jobs.job_id
limit %(limit)s
"""


class TeamRecord(msgspec.Struct, kw_only=True):
    """A team as it is now. A rate or limit of None follows the default, an overdraft of None is unlimited."""

    team_id: str
    organization_id: str
    team_alias: str | None
    status: Status
    metadata: Mapping[str, Json]
    default_model: str | None
    keep_prompts: bool
    mode: BudgetMode
    credits_per_dollar: Decimal | None
    tokens_per_credit: int | None
    markup_percentage: Decimal
    overdraft_credits: int | None
    charge_policy: ChargePolicy
    rpm_limit: int | None
    tpm_limit: int | None
    model_groups: list[str]
    access_groups: list[str]
    auto_refill: bool
    refill_credits: int | None
    refill_period: RefillPeriod | None
    virtual_key: str | None
    """The oldest active key, masked."""
    created_at: datetime
    updated_at: datetime

    @property
    def budget(self) -> Budget:
        return Budget(
            mode=self.mode,
            credits_per_dollar=self.credits_per_dollar,
            tokens_per_credit=self.tokens_per_credit,
            markup_percentage=self.markup_percentage,
            overdraft_credits=self.overdraft_credits,
            charge_policy=self.charge_policy,
        )

    @classmethod
    def of(cls, team: Team, at: datetime) -> "TeamRecord":
        """A team's state at this moment, as the table will have it."""
        budget, refill = team.budget, team.auto_refill
        return cls(
            team_id=team.team_id,
            organization_id=team.organization_id,
            team_alias=team.team_alias,
            status=team.status,
            metadata=team.metadata,
            default_model=team.default_model,
            keep_prompts=team.keep_prompts,
            mode=budget.mode,
            credits_per_dollar=budget.credits_per_dollar,
            tokens_per_credit=budget.tokens_per_credit,
            markup_percentage=budget.markup_percentage,
            overdraft_credits=budget.overdraft_credits,
            charge_policy=budget.charge_policy,
            rpm_limit=team.rpm_limit,
            tpm_limit=team.tpm_limit,
            model_groups=list(team.model_groups),
            access_groups=list(team.access_groups),
            auto_refill=refill.enabled,
            refill_credits=refill.refill_credits,
            refill_period=refill.refill_period,
            virtual_key=team.masked_key(at),
            created_at=team.created_at,
            updated_at=team.updated_at,
        )


class TeamRow(msgspec.Struct):
    team_id: str
    organization_id: str
    team_alias: str | None
    metadata: JsonObject
    default_model: str | None
    keep_prompts: bool
    created_at: datetime


class TeamChange(msgspec.Struct):
    """What a batch changes in one team; null is a value here, so what stays is left out."""

    team_id: str
    updated_at: datetime
    status: Status | UnsetType = UNSET
    team_alias: str | UnsetType | None = UNSET
    metadata: JsonObject | UnsetType = UNSET
    default_model: str | UnsetType | None = UNSET
    keep_prompts: bool | UnsetType = UNSET
    mode: BudgetMode | UnsetType = UNSET
    credits_per_dollar: Decimal | UnsetType | None = UNSET
    tokens_per_credit: int | UnsetType | None = UNSET
    markup_percentage: Decimal | UnsetType = UNSET
    overdraft_credits: int | UnsetType | None = UNSET
    charge_policy: ChargePolicy | UnsetType = UNSET
    rpm_limit: int | UnsetType | None = UNSET
    tpm_limit: int | UnsetType | None = UNSET
    model_groups: tuple[str, ...] | UnsetType = UNSET
    access_groups: tuple[str, ...] | UnsetType = UNSET
    auto_refill: bool | UnsetType = UNSET
    refill_credits: int | UnsetType | None = UNSET
    refill_period: RefillPeriod | UnsetType | None = UNSET


_CHANGING = (
    TeamChanged,
    TeamSuspended,
    TeamPaused,
    TeamResumed,
    TeamDeleted,
    ModelAccessAssigned,
    LimitsSet,
    BudgetSet,
    VirtualKeyIssued,
    VirtualKeyRevoked,
    AutoRefillSet,
)


def project(batch: Batch) -> Iterable[Statement]:
    yield _INSERT, [_row(event) for event in batch.of(TeamCreated)]
    yield _UPDATE, _changes(batch)


def _row(event: TeamCreated) -> TeamRow:
    return TeamRow(
        team_id=event.team_id,
        organization_id=event.organization_id,
        team_alias=event.team_alias,
        metadata=event.metadata,
        default_model=event.default_model,
        keep_prompts=event.keep_prompts,
        created_at=event.at,
    )


def _changes(batch: Batch) -> list[TeamChange]:
    changes: dict[str, TeamChange] = {}
    for recorded in batch.recorded(*_CHANGING):
        event = recorded.event
        assert isinstance(event, _CHANGING)
        change = changes.setdefault(event.team_id, TeamChange(event.team_id, event.at))
        change.updated_at = event.at
        _change(change, event)
    return list(changes.values())


def _change(change: TeamChange, event: Event) -> None:
    match event:
        case TeamSuspended():
            change.status = "suspended"
        case TeamPaused():
            change.status = "paused"
        case TeamResumed():
            change.status = "active"
        case TeamDeleted():
            change.status = "inactive"
        case TeamChanged():
            change.team_alias, change.metadata = event.team_alias, event.metadata
            change.default_model, change.keep_prompts = event.default_model, event.keep_prompts
        case ModelAccessAssigned():
            change.model_groups, change.access_groups = event.model_groups, event.access_groups
        case LimitsSet():
            change.rpm_limit, change.tpm_limit = event.rpm_limit, event.tpm_limit
        case BudgetSet(budget=budget):
            for field in Budget.__struct_fields__:
                setattr(change, field, getattr(budget, field))
        case AutoRefillSet():
            change.auto_refill, change.refill_credits = event.enabled, event.refill_credits
            change.refill_period = event.refill_period


async def one(connection: Connection, team_id: str) -> TeamRecord | None:
    return await fetch_one(connection, TeamRecord, SELECT + "where team_id = %(team_id)s", {"team_id": team_id})


async def page(
    connection: Connection,
    *,
    limit: int,
    offset: int,
    organization_id: str | None = None,
    status: str | None = None,
    team_id: str | None = None,
) -> tuple[list[TeamRecord], int]:
    """A page of teams by id, and how many there are in all; without a status, all that were not deleted."""
    wanted = {
        "limit": limit,
        "offset": offset,
        "organization_id": organization_id,
        "status": status,
        "team_id": team_id,
    }
    return await fetch_all(connection, TeamRecord, _PAGE, wanted), await count(connection, _COUNT, wanted)


async def ids_of_organization(connection: Connection, organization_id: str) -> list[str]:
    """The teams of an organization that were not deleted."""
    cursor = await connection.execute(_IDS, (organization_id,))
    return [str(row[0]) for row in await cursor.fetchall()]


async def orphans(connection: Connection, *, team_id: str | None = None, limit: int = 500) -> list[tuple[str, str]]:
    """Jobs that are open although their team was deleted, each with its team."""
    cursor = await connection.execute(_ORPHANS, {"team_id": team_id, "limit": limit})
    return [(str(job_id), str(team_id)) for job_id, team_id in await cursor.fetchall()]


TEAMS = Projection(
    name="teams", version=2, tables=("teams",), ddl=DDL, project=project, wants=(TeamCreated, *_CHANGING)
)
