"""How a team comes and goes: all of it, or nothing."""

from decimal import Decimal
from typing import Any

import pytest

from domain.catalog import (
    Catalog,
    DeleteAccessGroup,
    DeleteModelGroup,
    GroupsUsed,
    delete_access_group,
    delete_model_group,
)
from domain.credit import Account, AccountOpened, CreditsAdjusted, CreditsGranted, SetAllocation
from domain.errors import AlreadyExists, InUse, NotFound, Protected
from domain.event import Event
from domain.onboarding import (
    AssignGroups,
    CreateOrganizationWithTeam,
    CreateTeam,
    DeleteTeam,
    ReviseTeam,
    assign_groups,
    create_organization_with_team,
    create_team,
    delete_team,
    revise_team,
)
from domain.organization import CreateOrganization, Organization, OrganizationDeleted, TeamJoined, TeamLeft
from domain.team import (
    Budget,
    BudgetSet,
    ChangeBudget,
    ChangeTeam,
    KeyClaimed,
    KeyOwner,
    LimitsSet,
    ModelAccessAssigned,
    SetLimits,
    SetTeamStatus,
    Team,
    TeamChanged,
    TeamCreated,
    TeamDeleted,
    TeamSuspended,
    VirtualKeyIssued,
    VirtualKeyRevoked,
)
from tests.domain.scene import (
    ACME,
    GRANT,
    KEY,
    NEW_KEY,
    NOON,
    OPENED,
    ORGANIZATION,
    RESEARCH,
    TEAM,
    WHO,
    WHOSE,
    access_group,
    assigned,
    model_group,
)
from tests.spec import Story, given

CLAIMED = KeyClaimed(at=NOON, key_hash="aa", key_id=KEY, **WHOSE)
JOINED = TeamJoined(at=NOON, organization_id=ACME, team_id=RESEARCH)
DELETED = TeamDeleted(at=NOON, team_id=RESEARCH)
GROUPS = (access_group("basic"), access_group("pro"), model_group("smart"), model_group("pro"))
DELETE = DeleteTeam(**WHO)


def create(**more: Any) -> CreateTeam:
    key = {"key_id": KEY, "key_hash": "aa", "key_masked": "sk-aaaa...aaaa"}
    return CreateTeam(**{**WHO, **WHOSE, **key, "metadata": {}, "transaction_id": GRANT, **more})


def assign(**groups: Any) -> AssignGroups:
    return AssignGroups(**WHO, **groups)


def issued(key_id: str = KEY) -> VirtualKeyIssued:
    return VirtualKeyIssued(at=NOON, team_id=RESEARCH, key_id=key_id, key_hash="aa", masked="sk-aaaa...aaaa")


def revoked(key_id: str = KEY) -> VirtualKeyRevoked:
    return VirtualKeyRevoked(at=NOON, team_id=RESEARCH, key_id=key_id, ends_at=NOON)


def used(**groups: Any) -> GroupsUsed:
    return GroupsUsed(at=NOON, team_id=RESEARCH, **groups)


def teams_of_groups(story: Story) -> dict[str, int]:
    catalog = story.the(Catalog)
    access = {f"access {group.group_name}": group.teams for group in catalog.access_groups.values()}
    return access | {f"model {group.group_name}": group.teams for group in catalog.model_groups.values()}


def test_a_team_comes_with_account_key_and_membership() -> None:
    story = given(ORGANIZATION).when(create_team, create())
    story.then(TEAM, BudgetSet(at=NOON, team_id=RESEARCH, budget=Budget()), issued(), OPENED, CLAIMED, JOINED)
    story.leaving(Team, status="active").leaving(Account, remaining=0).leaving(Organization, teams=1)
    story.leaving(KeyOwner, team_id=RESEARCH)


def test_opening_credits_are_a_line_of_the_account_like_any_other() -> None:
    story = given(ORGANIZATION).when(create_team, create(credits=100)).leaving(Account, allocated=100, remaining=100)
    assert [
        AccountOpened(at=NOON, **WHOSE),
        CreditsGranted(
            at=NOON,
            transaction_id=GRANT,
            **WHOSE,
            credits=100,
            remaining_credits=100,
            held_credits=0,
            allocated_credits=100,
            kind="allocation",
            source="allocation",
            reason="opening credits",
        ),
    ] == [event for event in story.decided if isinstance(event, AccountOpened | CreditsGranted)]


def test_everything_that_is_said_about_a_new_team_is_kept() -> None:
    budget = Budget(mode="consumption_usd", markup_percentage=Decimal("12.5"), overdraft_credits=None)
    wish = create(
        team_alias="Research",
        metadata={"floor": 3},
        default_model="chat",
        groups=("basic", "smart"),
        budget=budget,
        rpm_limit=5,
    )
    story = given(ORGANIZATION, *GROUPS).when(create_team, wish)
    story.then(
        TeamCreated(at=NOON, **WHOSE, team_alias="Research", metadata={"floor": 3}, default_model="chat"),
        BudgetSet(at=NOON, team_id=RESEARCH, budget=budget),
        LimitsSet(at=NOON, team_id=RESEARCH, rpm_limit=5, tpm_limit=None),
        ModelAccessAssigned(at=NOON, team_id=RESEARCH, model_groups=("smart",), access_groups=("basic",)),
        issued(),
        OPENED,
        CLAIMED,
        JOINED,
        used(access_groups_added=("basic",), model_groups_added=("smart",)),
    )


def test_a_group_of_both_kinds_counts_in_both() -> None:
    story = given(ORGANIZATION, *GROUPS).when(create_team, create(groups=("pro", "pro")))
    story.leaving(Team, model_groups=("pro",), access_groups=("pro",))


@pytest.mark.parametrize("history", [(TEAM,), (TEAM, DELETED)])
def test_the_id_of_a_team_stays_taken_also_when_it_is_deleted(history: tuple[Event, ...]) -> None:
    story = given(ORGANIZATION, *history).when(create_team, create())
    story.then_refused(AlreadyExists, resource="team")


def test_a_new_team_needs_a_key_of_its_own() -> None:
    given(ORGANIZATION, CLAIMED).when(create_team, create()).then_refused(AlreadyExists, resource="virtual_key")


def test_a_new_team_needs_an_organization_and_groups_that_are_there() -> None:
    gone = OrganizationDeleted(at=NOON, organization_id=ACME)
    given().when(create_team, create()).then_refused(NotFound, resource="organization")
    given(ORGANIZATION, gone).when(create_team, create()).then_refused(NotFound, resource="organization")
    given(ORGANIZATION).when(create_team, create(groups=("nowhere",))).then_refused(NotFound, resource="group")


def founded(**team: Any) -> CreateOrganizationWithTeam:
    organization = CreateOrganization(**WHO, organization_id=ACME, name="Acme", metadata={})
    return CreateOrganizationWithTeam(**WHO, organization=organization, team=create(**team))


def test_an_organization_may_come_with_its_first_team() -> None:
    story = given().when(create_organization_with_team, founded(credits=5))
    story.leaving(Organization, teams=1).leaving(Team, organization_id=ACME).leaving(Account, remaining=5)


def test_an_organization_comes_to_be_even_where_its_team_cannot() -> None:
    given(CLAIMED).when(create_organization_with_team, founded()).then(ORGANIZATION).leaving(Organization, teams=0)
    given().when(create_organization_with_team, founded(groups=("nowhere",))).then(ORGANIZATION)
    given(ORGANIZATION).when(create_organization_with_team, founded()).then_refused(
        AlreadyExists, resource="organization"
    )


def revise(**what: Any) -> ReviseTeam:
    nothing = {
        "facts": ChangeTeam(**WHO),
        "budget": ChangeBudget(**WHO),
        "limits": SetLimits(**WHO),
        "groups": AssignGroups(**WHO),
    }
    return ReviseTeam(**{**WHO, **nothing, **what})


def test_a_revision_changes_everything_it_names_at_once() -> None:
    wish = revise(
        facts=ChangeTeam(**WHO, team_alias="Research"),
        budget=ChangeBudget(**WHO, overdraft_credits=None),
        limits=SetLimits(**WHO, rpm_limit=0),
        groups=AssignGroups(**WHO, access_groups=("basic",)),
        status=SetTeamStatus(**WHO, status="suspended"),
        allocation=SetAllocation(**WHO, transaction_id=GRANT, allocated_credits=7),
    )
    given(TEAM, OPENED, *GROUPS).when(revise_team, wish).then(
        TeamChanged(at=NOON, team_id=RESEARCH, team_alias="Research", metadata={}, default_model=None),
        BudgetSet(at=NOON, team_id=RESEARCH, budget=Budget(overdraft_credits=None)),
        LimitsSet(at=NOON, team_id=RESEARCH, rpm_limit=0, tpm_limit=None),
        assigned(access_groups=("basic",)),
        TeamSuspended(at=NOON, team_id=RESEARCH),
        CreditsAdjusted(
            at=NOON,
            transaction_id=GRANT,
            **WHOSE,
            credits=7,
            remaining_credits=7,
            held_credits=0,
            allocated_credits=7,
        ),
        used(access_groups_added=("basic",)),
    )


def test_a_revision_that_names_nothing_changes_nothing_and_half_of_one_is_never_made() -> None:
    story = given(TEAM, OPENED)
    story.when(revise_team, revise()).then_nothing()
    wish = revise(facts=ChangeTeam(**WHO, team_alias="x"), groups=AssignGroups(**WHO, access_groups=("nowhere",)))
    story.when(revise_team, wish).then_refused(NotFound, resource="group")
    given(OPENED).when(revise_team, revise()).then_refused(NotFound, resource="team")


def test_assigning_groups_replaces_one_kind_and_leaves_the_other() -> None:
    story = given(TEAM, *GROUPS).when(assign_groups, assign(access_groups=("basic",), model_groups=("smart",)))
    story.then(
        assigned(model_groups=("smart",), access_groups=("basic",)),
        used(access_groups_added=("basic",), model_groups_added=("smart",)),
    )
    story = story.when(assign_groups, assign(access_groups=()))
    story.then(assigned(model_groups=("smart",)), used(access_groups_removed=("basic",)))


def test_a_group_is_filed_under_its_true_kind_whatever_list_it_came_in() -> None:
    story = given(TEAM, *GROUPS).when(assign_groups, assign(access_groups=("smart",)))
    story.leaving(Team, model_groups=("smart",), access_groups=())


def test_assigning_what_is_assigned_already_changes_nothing() -> None:
    story = given(TEAM, *GROUPS, assigned(access_groups=("basic",)))
    story.when(assign_groups, assign(access_groups=("basic",))).then_nothing()
    story.when(assign_groups, assign()).then_nothing()


def test_unknown_groups_and_unknown_teams_are_not_assigned() -> None:
    given(TEAM, *GROUPS).when(assign_groups, assign(model_groups=("nowhere",))).then_refused(NotFound, resource="group")
    given(*GROUPS).when(assign_groups, assign()).then_refused(NotFound, resource="team")


def test_a_group_in_use_stays_until_the_last_team_gives_it_up() -> None:
    story = given(ORGANIZATION, *GROUPS).when(create_team, create(groups=("pro",)))
    assert {"access basic": 0, "access pro": 1, "model smart": 0, "model pro": 1} == teams_of_groups(story)
    story.when(delete_access_group, DeleteAccessGroup(**WHO, group_name="pro")).then_refused(InUse)
    story.when(delete_model_group, DeleteModelGroup(**WHO, group_name="pro")).then_refused(InUse)
    story = story.when(delete_team, DELETE)
    assert {"access basic": 0, "access pro": 0, "model smart": 0, "model pro": 0} == teams_of_groups(story)
    story.when(delete_access_group, DeleteAccessGroup(**WHO, group_name="pro"))


def test_a_deleted_team_loses_its_keys_and_groups_and_leaves_its_organization() -> None:
    story = given(ORGANIZATION, JOINED, *GROUPS, TEAM, issued(), revoked(), issued(NEW_KEY))
    story = story.meanwhile(assigned(access_groups=("basic",)), used(access_groups_added=("basic",)))
    story = story.when(delete_team, DELETE).then(
        revoked(NEW_KEY),
        DELETED,
        TeamLeft(at=NOON, organization_id=ACME, team_id=RESEARCH),
        used(access_groups_removed=("basic",)),
    )
    story.leaving(Team, status="inactive").leaving(Organization, teams=0)
    story.when(delete_team, DELETE).then_nothing()


def test_default_teams_are_protected_and_unknown_ones_not_found() -> None:
    default = TeamCreated(at=NOON, team_id="acme_default", organization_id=ACME, metadata={})
    given(ORGANIZATION, default).when(delete_team, DELETE).then_refused(Protected)
    given(ORGANIZATION).when(delete_team, DELETE).then_refused(NotFound, resource="team")
