"""How a team comes and goes: team, account, key, organization and catalog change together or not at all."""

from domain import credit
from domain.catalog import EMPTY, Catalog, GroupsUsed
from domain.credit import Account, GrantCredits, SetAllocation, grant_credits, set_allocation
from domain.errors import AlreadyExists, NotFound, Protected, Refusal
from domain.event import Command, Event, JsonObject
from domain.organization import (
    CreateOrganization,
    Organization,
    OrganizationCreated,
    TeamJoined,
    TeamLeft,
    create_organization,
    require_organization,
)
from domain.organization import evolve as evolve_organization
from domain.team import (
    Budget,
    BudgetSet,
    ChangeBudget,
    ChangeTeam,
    KeyOwner,
    LimitsSet,
    ModelAccessAssigned,
    SetLimits,
    SetTeamStatus,
    Team,
    TeamCreated,
    TeamDeleted,
    VirtualKeyRevoked,
    change_budget,
    change_team,
    key_events,
    require_team,
    set_limits,
    set_team_status,
)

# -- commands ------------------------------------------------------------------------------------------------


class CreateTeam(Command):
    """`groups` are looked up among access groups and model groups; a name in both counts in both."""

    team_id: str
    organization_id: str
    team_alias: str | None = None
    metadata: JsonObject
    default_model: str | None = None
    keep_prompts: bool = False
    groups: tuple[str, ...] = ()
    budget: Budget = Budget()
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    key_id: str
    key_hash: str
    key_masked: str
    credits: int = 0
    transaction_id: str


class CreateOrganizationWithTeam(Command):
    """An organization and a first team in it; the organization comes to be even where the team cannot."""

    organization: CreateOrganization
    team: CreateTeam


class AssignGroups(Command):
    """None leaves a kind of group alone. A name of the other kind is filed under its true kind."""

    model_groups: tuple[str, ...] | None = None
    access_groups: tuple[str, ...] | None = None


class ReviseTeam(Command):
    """Everything that can be changed about a team, at once or not at all."""

    facts: ChangeTeam
    budget: ChangeBudget
    limits: SetLimits
    groups: AssignGroups
    status: SetTeamStatus | None = None
    allocation: SetAllocation | None = None


class DeleteTeam(Command):
    pass


# -- decisions -----------------------------------------------------------------------------------------------


def create_team(
    team: Team | None,
    account: Account | None,
    owner: KeyOwner | None,
    organization: Organization | None,
    catalog: Catalog | None,
    command: CreateTeam,
) -> tuple[list[Event], list[Event], list[Event], list[Event], list[Event]]:
    """A team with its first key and its opening credits.

    Raises:
        AlreadyExists: the id (also of a deleted team) or the key is taken.
        NotFound: no such organization or group.
    """
    organization = require_organization(organization)
    if team is not None:
        raise AlreadyExists("team")
    if owner is not None:
        raise AlreadyExists("virtual_key")
    model_groups, access_groups = _by_kind(catalog, command.groups)
    created: list[Event] = [
        TeamCreated(
            at=command.at,
            team_id=command.team_id,
            organization_id=organization.organization_id,
            team_alias=command.team_alias,
            metadata=command.metadata,
            default_model=command.default_model,
            keep_prompts=command.keep_prompts,
        ),
        BudgetSet(at=command.at, team_id=command.team_id, budget=command.budget),
    ]
    if command.rpm_limit is not None or command.tpm_limit is not None:
        limits = LimitsSet(
            at=command.at, team_id=command.team_id, rpm_limit=command.rpm_limit, tpm_limit=command.tpm_limit
        )
        created.append(limits)
    if model_groups or access_groups:
        created.append(
            ModelAccessAssigned(
                at=command.at,
                team_id=command.team_id,
                model_groups=model_groups,
                access_groups=access_groups,
            )
        )
    issued, claimed = key_events(
        at=command.at,
        team_id=command.team_id,
        organization_id=organization.organization_id,
        key_id=command.key_id,
        key_hash=command.key_hash,
        masked=command.key_masked,
    )
    joined = TeamJoined(at=command.at, organization_id=organization.organization_id, team_id=command.team_id)
    used = _groups_used(command, command.team_id, (), model_groups, (), access_groups)
    return [*created, *issued], _opening(account, command), claimed, [joined], used


def _opening(account: Account | None, command: CreateTeam) -> list[Event]:
    """The account, and the opening credits as a ledger entry like any other."""
    opened = credit.open_account(account, command.at, command.team_id, command.organization_id)
    if not command.credits:
        return opened
    account = Account(team_id=command.team_id, organization_id=command.organization_id, updated_at=command.at)
    grant = GrantCredits(
        at=command.at,
        by=command.by,
        request=command.request,
        transaction_id=command.transaction_id,
        credits=command.credits,
        source="allocation",
        reason="opening credits",
    )
    return [*opened, *grant_credits(account, grant)]


def create_organization_with_team(
    organization: Organization | None,
    team: Team | None,
    account: Account | None,
    owner: KeyOwner | None,
    catalog: Catalog | None,
    command: CreateOrganizationWithTeam,
) -> tuple[list[Event], list[Event], list[Event], list[Event], list[Event]]:
    """Raises AlreadyExists only for the organization: what refuses the team leaves just the organization."""
    created = create_organization(organization, command.organization)
    for event in created:
        assert isinstance(event, OrganizationCreated)
        organization = evolve_organization(organization, event)
    try:
        joining, opened, claimed, joined, used = create_team(team, account, owner, organization, catalog, command.team)
    except Refusal:
        return created, [], [], [], []
    return [*created, *joined], joining, opened, claimed, used


def revise_team(
    team: Team | None, account: Account | None, catalog: Catalog | None, command: ReviseTeam
) -> tuple[list[Event], list[Event], list[Event]]:
    team = require_team(team)
    assigned, used = assign_groups(team, catalog, command.groups)
    revised = [
        *change_team(team, command.facts),
        *change_budget(team, command.budget),
        *set_limits(team, command.limits),
        *assigned,
        *([] if command.status is None else set_team_status(team, command.status)),
    ]
    adjusted = [] if command.allocation is None else set_allocation(account, command.allocation)
    return revised, adjusted, used


def assign_groups(team: Team | None, catalog: Catalog | None, command: AssignGroups) -> tuple[list[Event], list[Event]]:
    team = require_team(team)
    named_models, named_access = _by_kind(catalog, (*(command.model_groups or ()), *(command.access_groups or ())))
    keeps_models = command.model_groups is None
    keeps_access = command.access_groups is None
    model_groups = tuple(dict.fromkeys((*(team.model_groups if keeps_models else ()), *named_models)))
    access_groups = tuple(dict.fromkeys((*(team.access_groups if keeps_access else ()), *named_access)))
    if (model_groups, access_groups) == (team.model_groups, team.access_groups):
        return [], []
    assigned = ModelAccessAssigned(
        at=command.at, team_id=team.team_id, model_groups=model_groups, access_groups=access_groups
    )
    used = _groups_used(command, team.team_id, team.model_groups, model_groups, team.access_groups, access_groups)
    return [assigned], used


def delete_team(
    team: Team | None, organization: Organization | None, catalog: Catalog | None, command: DeleteTeam
) -> tuple[list[Event], list[Event], list[Event]]:
    """Keys are revoked and groups given up; ledger and history stay, and so does the id."""
    if team is not None and team.status == "inactive":
        return [], [], []
    team = require_team(team)
    if team.team_id.endswith("_default"):
        raise Protected
    revoked = [
        VirtualKeyRevoked(at=command.at, team_id=team.team_id, key_id=key.key_id, ends_at=command.at)
        for key in team.keys
        if key.is_active(command.at)
    ]
    deleted = TeamDeleted(at=command.at, team_id=team.team_id)
    left = TeamLeft(at=command.at, organization_id=team.organization_id, team_id=team.team_id)
    used = _groups_used(command, team.team_id, team.model_groups, (), team.access_groups, ())
    return [*revoked, deleted], [left], used


def _by_kind(catalog: Catalog | None, names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files each name under its true kind: clients mix the two up.

    Raises:
        NotFound: it is neither a model group nor an access group.
    """
    catalog = catalog or EMPTY
    names = tuple(dict.fromkeys(names))
    model_groups = tuple(name for name in names if name in catalog.model_groups)
    access_groups = tuple(name for name in names if name in catalog.access_groups)
    if any(name not in model_groups and name not in access_groups for name in names):
        raise NotFound("group")
    return model_groups, access_groups


def _groups_used(
    command: Command,
    team_id: str,
    models_before: tuple[str, ...],
    models_after: tuple[str, ...],
    access_before: tuple[str, ...],
    access_after: tuple[str, ...],
) -> list[Event]:
    used = GroupsUsed(
        at=command.at,
        team_id=team_id,
        access_groups_added=_minus(access_after, access_before),
        access_groups_removed=_minus(access_before, access_after),
        model_groups_added=_minus(models_after, models_before),
        model_groups_removed=_minus(models_before, models_after),
    )
    unchanged = models_before == models_after and access_before == access_after
    return [] if unchanged else [used]


def _minus(names: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in others)
