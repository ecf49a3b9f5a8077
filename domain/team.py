"""A team: who may act, with which keys, models, limits and budget.

    created -> (changed | suspended | paused | resumed | key issued | key revoked | ...)* -> deleted

Keys are known by their SHA-256 only. A stream `key-<hash>` says whose a key is: there a key is claimed once and for
ever, which makes keys unique in the whole house and authentication a look-up in the journal.
"""

from datetime import datetime
from decimal import Decimal
from typing import Literal

from msgspec import UNSET
from msgspec.structs import replace

from domain.errors import (
    AlreadyExists,
    Forbidden,
    InvalidValue,
    NotFound,
    PausedTeam,
    SuspendedTeam,
    Unauthorized,
)
from domain.event import Command, Event, JsonObject, Record, State, Unset, with_changes
from domain.organization import Organization, require_active_organization
from domain.pricing import ZERO, BudgetMode, ChargePolicy, Terms

Status = Literal["active", "suspended", "paused", "inactive"]
RefillPeriod = Literal["daily", "weekly", "monthly"]

DEFAULT_CREDITS_PER_DOLLAR = Decimal(10)
DEFAULT_TOKENS_PER_CREDIT = 10_000


class Budget(Record):
    """How the team's jobs are charged. A rate of None follows the default; an overdraft of None is unlimited."""

    mode: BudgetMode = "job_based"
    credits_per_dollar: Decimal | None = None
    tokens_per_credit: int | None = None
    markup_percentage: Decimal = ZERO
    overdraft_credits: int | None = 0
    charge_policy: ChargePolicy = "all_calls_succeeded"

    @property
    def terms(self) -> Terms:
        return Terms(
            mode=self.mode,
            credits_per_dollar=self.credits_per_dollar or DEFAULT_CREDITS_PER_DOLLAR,
            tokens_per_credit=self.tokens_per_credit or DEFAULT_TOKENS_PER_CREDIT,
            markup_percentage=self.markup_percentage,
            charge_policy=self.charge_policy,
        )


# -- events --------------------------------------------------------------------------------------------------


class TeamCreated(Event):
    team_id: str
    organization_id: str
    team_alias: str | None = None
    metadata: JsonObject
    default_model: str | None = None
    keep_prompts: bool = False


class TeamChanged(Event):
    """All four as they are from now on."""

    team_id: str
    team_alias: str | None
    metadata: JsonObject
    default_model: str | None
    keep_prompts: bool = False


class TeamSuspended(Event):
    team_id: str
    reason: str | None = None


class TeamPaused(Event):
    team_id: str
    reason: str | None = None


class TeamResumed(Event):
    team_id: str
    reason: str | None = None


class TeamDeleted(Event):
    team_id: str


class ModelAccessAssigned(Event):
    """Both lists as they are from now on."""

    team_id: str
    model_groups: tuple[str, ...]
    access_groups: tuple[str, ...]


class LimitsSet(Event):
    """Per minute; None follows the default, 0 is unlimited."""

    team_id: str
    rpm_limit: int | None
    tpm_limit: int | None


class BudgetSet(Event):
    team_id: str
    budget: Budget


class VirtualKeyIssued(Event):
    team_id: str
    key_id: str
    key_hash: str
    masked: str
    name: str | None = None
    replaces: str | None = None


class VirtualKeyRevoked(Event):
    """The key is worth nothing from `ends_at` on."""

    team_id: str
    key_id: str
    ends_at: datetime


class AutoRefillSet(Event):
    team_id: str
    enabled: bool
    refill_credits: int | None
    refill_period: RefillPeriod | None


class KeyClaimed(Event):
    """The one event of a stream `key-<hash>`."""

    key_hash: str
    key_id: str
    team_id: str
    organization_id: str


TeamEvent = (
    TeamCreated
    | TeamChanged
    | TeamSuspended
    | TeamPaused
    | TeamResumed
    | TeamDeleted
    | ModelAccessAssigned
    | LimitsSet
    | BudgetSet
    | VirtualKeyIssued
    | VirtualKeyRevoked
    | AutoRefillSet
)

_STATUS_AFTER: dict[type[TeamEvent], Status] = {
    TeamSuspended: "suspended",
    TeamPaused: "paused",
    TeamResumed: "active",
    TeamDeleted: "inactive",
}

# -- state ---------------------------------------------------------------------------------------------------


class VirtualKey(Record):
    key_id: str
    key_hash: str
    masked: str
    name: str | None
    created_at: datetime
    ends_at: datetime | None = None

    def is_active(self, at: datetime) -> bool:
        return self.ends_at is None or at < self.ends_at


class AutoRefill(Record):
    """`set_at` is since when it has been running in this rhythm; another amount does not begin it anew."""

    enabled: bool = False
    refill_credits: int | None = None
    refill_period: RefillPeriod | None = None
    set_at: datetime | None = None


class Team(State):
    """`keep_prompts`: what is asked and answered in its calls is kept for administrators to read."""

    team_id: str
    organization_id: str
    team_alias: str | None
    status: Status
    metadata: JsonObject
    default_model: str | None
    keep_prompts: bool = False
    budget: Budget = Budget()
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    model_groups: tuple[str, ...] = ()
    access_groups: tuple[str, ...] = ()
    keys: tuple[VirtualKey, ...] = ()
    auto_refill: AutoRefill = AutoRefill()
    created_at: datetime
    updated_at: datetime

    def key(self, key_id: str) -> VirtualKey | None:
        return next((key for key in self.keys if key.key_id == key_id), None)

    def masked_key(self, at: datetime) -> str | None:
        """The oldest active key, masked: what older clients show as *the* key."""
        return next((key.masked for key in self.keys if key.is_active(at)), None)


class KeyOwner(State):
    """Whose a virtual key is. Never changes; whether it is still worth anything is in the team."""

    key_id: str
    team_id: str
    organization_id: str


def evolve(team: Team | None, event: TeamEvent) -> Team:
    """What the team is after this event, whatever the rules say today."""
    if isinstance(event, TeamCreated):
        return Team(
            team_id=event.team_id,
            organization_id=event.organization_id,
            team_alias=event.team_alias,
            status="active",
            metadata=event.metadata,
            default_model=event.default_model,
            keep_prompts=event.keep_prompts,
            created_at=event.at,
            updated_at=event.at,
        )
    assert team is not None, "a team's history starts with TeamCreated"
    team = replace(team, updated_at=event.at)
    match event:
        case TeamSuspended() | TeamPaused() | TeamResumed() | TeamDeleted():
            return replace(team, status=_STATUS_AFTER[type(event)])
        case TeamChanged(team_alias=team_alias, metadata=metadata, default_model=default_model):
            team = replace(team, keep_prompts=event.keep_prompts)
            return replace(team, team_alias=team_alias, metadata=metadata, default_model=default_model)
        case ModelAccessAssigned(model_groups=model_groups, access_groups=access_groups):
            return replace(team, model_groups=model_groups, access_groups=access_groups)
        case LimitsSet(rpm_limit=rpm_limit, tpm_limit=tpm_limit):
            return replace(team, rpm_limit=rpm_limit, tpm_limit=tpm_limit)
        case BudgetSet(budget=budget):
            return replace(team, budget=budget)
        case VirtualKeyIssued(key_id=key_id, key_hash=key_hash, masked=masked, name=name):
            key = VirtualKey(key_id=key_id, key_hash=key_hash, masked=masked, name=name, created_at=event.at)
            return replace(team, keys=(*team.keys, key))
        case VirtualKeyRevoked(key_id=key_id, ends_at=ends_at):
            ended = (replace(key, ends_at=ends_at) if key.key_id == key_id else key for key in team.keys)
            return replace(team, keys=tuple(ended))
        case AutoRefillSet(enabled=enabled, refill_credits=refill_credits, refill_period=refill_period):
            now = team.auto_refill
            goes_on = enabled and now.enabled and now.refill_period == refill_period
            refill = AutoRefill(
                enabled=enabled,
                refill_credits=refill_credits,
                refill_period=refill_period,
                set_at=now.set_at if goes_on else event.at,
            )
            return replace(team, auto_refill=refill)


def evolve_key(owner: KeyOwner | None, event: KeyClaimed) -> KeyOwner:
    return KeyOwner(key_id=event.key_id, team_id=event.team_id, organization_id=event.organization_id)


# -- commands ------------------------------------------------------------------------------------------------


class ChangeTeam(Command):
    """What is not set stays."""

    team_alias: str | Unset | None = UNSET
    metadata: JsonObject | Unset = UNSET
    default_model: str | Unset | None = UNSET
    keep_prompts: bool | Unset = UNSET


class SetTeamStatus(Command):
    status: Literal["active", "suspended", "paused"]
    reason: str | None = None


class SetLimits(Command):
    """What is not set stays; None follows the default."""

    rpm_limit: int | Unset | None = UNSET
    tpm_limit: int | Unset | None = UNSET


class ChangeBudget(Command):
    """What is not set stays; None means in each field what it means in a `Budget`."""

    mode: BudgetMode | Unset = UNSET
    credits_per_dollar: Decimal | Unset | None = UNSET
    tokens_per_credit: int | Unset | None = UNSET
    markup_percentage: Decimal | Unset = UNSET
    overdraft_credits: int | Unset | None = UNSET
    charge_policy: ChargePolicy | Unset = UNSET


class IssueKey(Command):
    key_id: str
    key_hash: str
    masked: str
    name: str | None = None


class RevokeKey(Command):
    key_id: str


class RotateKey(Command):
    """Replaces a key, or the oldest active one when `replaces` is None; the old one ends at `old_ends_at`."""

    key_id: str
    key_hash: str
    masked: str
    replaces: str | None
    old_ends_at: datetime


class SetAutoRefill(Command):
    enabled: bool
    refill_credits: int | None = None
    refill_period: RefillPeriod | None = None


# -- decisions -----------------------------------------------------------------------------------------------


def change_team(team: Team | None, command: ChangeTeam) -> list[Event]:
    team = require_team(team)
    changed = with_changes(team, command, "team_alias", "metadata", "default_model", "keep_prompts")
    if changed == team:
        return []
    return [
        TeamChanged(
            at=command.at,
            team_id=team.team_id,
            team_alias=changed.team_alias,
            metadata=changed.metadata,
            default_model=changed.default_model,
            keep_prompts=changed.keep_prompts,
        )
    ]


def set_team_status(team: Team | None, command: SetTeamStatus) -> list[Event]:
    team = require_team(team)
    if team.status == command.status:
        return []
    changed = {"active": TeamResumed, "suspended": TeamSuspended, "paused": TeamPaused}[command.status]
    return [changed(at=command.at, team_id=team.team_id, reason=command.reason)]


def set_limits(team: Team | None, command: SetLimits) -> list[Event]:
    team = require_team(team)
    changed = with_changes(team, command, "rpm_limit", "tpm_limit")
    if changed == team:
        return []
    return [LimitsSet(at=command.at, team_id=team.team_id, rpm_limit=changed.rpm_limit, tpm_limit=changed.tpm_limit)]


def change_budget(team: Team | None, command: ChangeBudget) -> list[Event]:
    """Binds jobs whose first call comes later; running jobs keep their terms."""
    team = require_team(team)
    budget = with_changes(team.budget, command, *Budget.__struct_fields__)
    return [] if budget == team.budget else [BudgetSet(at=command.at, team_id=team.team_id, budget=budget)]


def issue_key(team: Team | None, owner: KeyOwner | None, command: IssueKey) -> tuple[list[Event], list[Event]]:
    team = require_team(team)
    if owner is not None:
        raise AlreadyExists("virtual_key")
    return key_events(
        at=command.at,
        team_id=team.team_id,
        organization_id=team.organization_id,
        key_id=command.key_id,
        key_hash=command.key_hash,
        masked=command.masked,
        name=command.name,
    )


def revoke_key(team: Team | None, command: RevokeKey) -> list[Event]:
    team = require_team(team)
    key = team.key(command.key_id)
    if key is None:
        raise NotFound("virtual_key")
    if not key.is_active(command.at):
        return []
    return [VirtualKeyRevoked(at=command.at, team_id=team.team_id, key_id=key.key_id, ends_at=command.at)]


def rotate_key(team: Team | None, owner: KeyOwner | None, command: RotateKey) -> tuple[list[Event], list[Event]]:
    team = require_team(team)
    if command.replaces is None:
        old = next((key for key in team.keys if key.is_active(command.at)), None)
    else:
        old = team.key(command.replaces)
    if old is None:
        raise NotFound("virtual_key")
    if owner is not None:
        raise AlreadyExists("virtual_key")
    issued, claimed = key_events(
        at=command.at,
        team_id=team.team_id,
        organization_id=team.organization_id,
        key_id=command.key_id,
        key_hash=command.key_hash,
        masked=command.masked,
        name=old.name,
        replaces=old.key_id,
    )
    if old.ends_at is None or command.old_ends_at < old.ends_at:  # an end that was set is never put off
        ended = VirtualKeyRevoked(at=command.at, team_id=team.team_id, key_id=old.key_id, ends_at=command.old_ends_at)
        issued.append(ended)
    return issued, claimed


def set_auto_refill(team: Team | None, command: SetAutoRefill) -> list[Event]:
    """Disabling keeps amount and period, so that enabling again needs no one's memory."""
    team = require_team(team)
    now = team.auto_refill
    credits = command.refill_credits or now.refill_credits
    period = command.refill_period or now.refill_period
    if command.enabled and (credits is None or period is None):
        raise InvalidValue("refill_amount" if credits is None else "refill_period")
    if (now.enabled, now.refill_credits, now.refill_period) == (command.enabled, credits, period):
        return []
    return [
        AutoRefillSet(
            at=command.at,
            team_id=team.team_id,
            enabled=command.enabled,
            refill_credits=credits,
            refill_period=period,
        )
    ]


def key_events(
    *,
    at: datetime,
    team_id: str,
    organization_id: str,
    key_id: str,
    key_hash: str,
    masked: str,
    name: str | None = None,
    replaces: str | None = None,
) -> tuple[list[Event], list[Event]]:
    """What issuing a key means to the team and to the stream of the key itself."""
    issued = VirtualKeyIssued(
        at=at, team_id=team_id, key_id=key_id, key_hash=key_hash, masked=masked, name=name, replaces=replaces
    )
    claimed = KeyClaimed(at=at, key_hash=key_hash, key_id=key_id, team_id=team_id, organization_id=organization_id)
    return [issued], [claimed]


def require_team(team: Team | None) -> Team:
    """The team, if there is one that can still be changed."""
    if team is None or team.status == "inactive":
        raise NotFound("team")
    return team


def require_valid_key(team: Team | None, key_id: str, at: datetime) -> Team:
    """The key's team, if the key is worth anything at this moment."""
    key = team.key(key_id) if team is not None and team.status != "inactive" else None
    if team is None or key is None or not key.is_active(at):
        raise Unauthorized
    return team


def require_active(team: Team, organization: Organization | None) -> None:
    """Raises unless the team may act; its organization is asked first."""
    if organization is not None:
        require_active_organization(organization)
    match team.status:
        case "suspended" | "inactive":
            raise SuspendedTeam
        case "paused":
            raise PausedTeam
        case "active":
            return


def require_own(team_id: str, owner_team_id: str) -> None:
    """Raises unless a thing belongs to the team that asks for it."""
    if team_id != owner_team_id:
        raise Forbidden(team_id)
