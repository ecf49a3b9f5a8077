"""A team: its status, budget, limits and keys."""

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from domain.errors import (
    AlreadyExists,
    Forbidden,
    InvalidValue,
    NotFound,
    PausedOrganization,
    PausedTeam,
    Refusal,
    SuspendedOrganization,
    SuspendedTeam,
    Unauthorized,
)
from domain.event import Event
from domain.organization import Organization, OrganizationPaused, OrganizationSuspended
from domain.pricing import Terms
from domain.team import (
    AutoRefill,
    AutoRefillSet,
    Budget,
    BudgetSet,
    ChangeBudget,
    ChangeTeam,
    IssueKey,
    KeyClaimed,
    KeyOwner,
    LimitsSet,
    RevokeKey,
    RotateKey,
    SetAutoRefill,
    SetLimits,
    SetTeamStatus,
    Team,
    TeamChanged,
    TeamDeleted,
    TeamPaused,
    TeamResumed,
    TeamSuspended,
    VirtualKeyIssued,
    VirtualKeyRevoked,
    change_budget,
    change_team,
    issue_key,
    require_active,
    require_own,
    require_valid_key,
    revoke_key,
    rotate_key,
    set_auto_refill,
    set_limits,
    set_team_status,
)
from tests.domain.scene import ACME, KEY, NEW_KEY, NOON, ORGANIZATION, RESEARCH, TEAM, WHO, WHOSE, after, an_id
from tests.spec import Decision, given

DELETED = TeamDeleted(at=NOON, team_id=RESEARCH)
ISSUED = VirtualKeyIssued(at=NOON, team_id=RESEARCH, key_id=KEY, key_hash="aa", masked="sk-aaaa...aaaa", name="laptop")
NEW: dict[str, Any] = {"key_id": NEW_KEY, "key_hash": "bb", "masked": "sk-bbbb...bbbb"}
CLAIMED = KeyClaimed(at=NOON, key_id=NEW_KEY, key_hash="bb", **WHOSE)


def status(wished: Any, reason: str | None = None) -> SetTeamStatus:
    return SetTeamStatus(**WHO, status=wished, reason=reason)


def rotate(replaces: str | None = None, old_ends_at: datetime = NOON) -> RotateKey:
    return RotateKey(**WHO, **NEW, replaces=replaces, old_ends_at=old_ends_at)


def revoke(key_id: str = KEY, at: datetime = NOON) -> RevokeKey:
    return RevokeKey(**{**WHO, "at": at}, key_id=key_id)


def revoked(ends_at: datetime = NOON, at: datetime = NOON) -> VirtualKeyRevoked:
    return VirtualKeyRevoked(at=at, team_id=RESEARCH, key_id=KEY, ends_at=ends_at)


def refill(enabled: bool = True, credits: int | None = None, period: Any = None) -> SetAutoRefill:
    return SetAutoRefill(**WHO, enabled=enabled, refill_credits=credits, refill_period=period)


@pytest.mark.parametrize(
    "decide,wish",
    [
        (change_team, ChangeTeam(**WHO, team_alias="x")),
        (set_team_status, status("paused")),
        (set_limits, SetLimits(**WHO, rpm_limit=1)),
        (change_budget, ChangeBudget(**WHO, mode="consumption_usd")),
        (issue_key, IssueKey(**WHO, **NEW)),
        (revoke_key, revoke()),
        (rotate_key, rotate(KEY)),
        (set_auto_refill, refill(credits=1, period="daily")),
    ],
)
def test_a_team_that_is_not_there_or_was_deleted_cannot_be_changed(decide: Decision, wish: Any) -> None:
    given().when(decide, wish).then_refused(NotFound, resource="team")
    given(TEAM, ISSUED, DELETED).when(decide, wish).then_refused(NotFound, resource="team")


# -- names, limits, budget -----------------------------------------------------------------------------------


def test_a_change_of_a_team_keeps_what_it_does_not_name() -> None:
    story = given(TEAM).when(change_team, ChangeTeam(**WHO, team_alias="Research", metadata={"floor": 3}))
    story.then(TeamChanged(at=NOON, team_id=RESEARCH, team_alias="Research", metadata={"floor": 3}, default_model=None))
    story = story.when(change_team, ChangeTeam(**WHO, default_model="chat"))
    story.leaving(Team, team_alias="Research", metadata={"floor": 3}, default_model="chat")
    story.when(change_team, ChangeTeam(**WHO, team_alias=None)).leaving(Team, team_alias=None, default_model="chat")


def test_a_change_to_what_is_so_already_is_no_change() -> None:
    given(TEAM).when(change_team, ChangeTeam(**WHO, team_alias=None, metadata={})).then_nothing()
    given(TEAM).when(set_limits, SetLimits(**WHO, rpm_limit=None)).then_nothing()
    given(TEAM).when(change_budget, ChangeBudget(**WHO, mode="job_based", overdraft_credits=0)).then_nothing()


def test_a_limit_can_be_none_for_the_default_and_zero_for_unlimited() -> None:
    story = given(TEAM).when(set_limits, SetLimits(**WHO, rpm_limit=0, tpm_limit=900))
    story.then(LimitsSet(at=NOON, team_id=RESEARCH, rpm_limit=0, tpm_limit=900))
    story.when(set_limits, SetLimits(**WHO, rpm_limit=None)).leaving(Team, rpm_limit=None, tpm_limit=900)


def test_of_two_changes_of_a_budget_neither_takes_back_the_other() -> None:
    story = given(TEAM).when(change_budget, ChangeBudget(**WHO, markup_percentage=Decimal(20)))
    story = story.when(change_budget, ChangeBudget(**WHO, mode="consumption_usd", credits_per_dollar=Decimal(4)))
    story = story.when(change_budget, ChangeBudget(**WHO, overdraft_credits=None))
    budget = Budget(
        mode="consumption_usd", credits_per_dollar=Decimal(4), markup_percentage=Decimal(20), overdraft_credits=None
    )
    story.then(BudgetSet(at=NOON, team_id=RESEARCH, budget=budget)).leaving(Team, budget=budget)


def test_rates_that_are_not_set_follow_the_defaults() -> None:
    terms = Terms(
        mode="job_based",
        credits_per_dollar=Decimal(10),
        tokens_per_credit=10_000,
        markup_percentage=Decimal(0),
        charge_policy="all_calls_succeeded",
    )
    assert terms == Budget().terms
    story = given(TEAM).when(change_budget, ChangeBudget(**WHO, credits_per_dollar=Decimal(4)))
    story = story.when(change_budget, ChangeBudget(**WHO, credits_per_dollar=None))
    assert terms == story.the(Team).budget.terms


# -- status --------------------------------------------------------------------------------------------------


def test_a_team_is_suspended_paused_and_resumed() -> None:
    story = given(TEAM).when(set_team_status, status("suspended", "unpaid"))
    story = story.then(TeamSuspended(at=NOON, team_id=RESEARCH, reason="unpaid")).leaving(Team, status="suspended")
    story = story.when(set_team_status, status("paused")).then(TeamPaused(at=NOON, team_id=RESEARCH))
    story = story.leaving(Team, status="paused").when(set_team_status, status("active"))
    story.then(TeamResumed(at=NOON, team_id=RESEARCH)).leaving(Team, status="active")


@pytest.mark.parametrize("wished", ["active", "suspended", "paused"])
def test_a_status_wished_twice_is_set_once(wished: str) -> None:
    given(TEAM).when(set_team_status, status(wished)).when(set_team_status, status(wished)).then_nothing()


@pytest.mark.parametrize(
    "events,refusal",
    [
        ([TeamSuspended(at=NOON, team_id=RESEARCH)], SuspendedTeam),
        ([TeamPaused(at=NOON, team_id=RESEARCH)], PausedTeam),
        ([DELETED], SuspendedTeam),
        ([OrganizationSuspended(at=NOON, organization_id=ACME)], SuspendedOrganization),
        (
            [TeamSuspended(at=NOON, team_id=RESEARCH), OrganizationPaused(at=NOON, organization_id=ACME)],
            PausedOrganization,
        ),
    ],
)
def test_who_may_not_act_is_told_why_its_organization_first(events: list[Event], refusal: type[Refusal]) -> None:
    story = given(ORGANIZATION, TEAM, *events)
    with pytest.raises(refusal):
        require_active(story.the(Team), story.the(Organization))


def test_an_active_team_of_an_active_organization_may_act() -> None:
    story = given(ORGANIZATION, TEAM)
    require_active(story.the(Team), story.the(Organization))


def test_a_team_may_not_touch_what_belongs_to_another() -> None:
    require_own(RESEARCH, RESEARCH)
    with pytest.raises(Forbidden) as refused:
        require_own("marketing", RESEARCH)
    assert {"team_id": "marketing"} == refused.value.facts


# -- keys ----------------------------------------------------------------------------------------------------


def test_a_key_is_issued_to_its_team_and_claimed_in_the_whole_house() -> None:
    story = given(TEAM).when(issue_key, IssueKey(**WHO, **NEW, name="server"))
    story.then(VirtualKeyIssued(at=NOON, team_id=RESEARCH, **NEW, name="server"), CLAIMED)
    story.leaving(KeyOwner, key_id=NEW_KEY, team_id=RESEARCH, organization_id=ACME)


def test_a_key_that_anyone_has_or_had_is_not_issued_again() -> None:
    given(TEAM, CLAIMED).when(issue_key, IssueKey(**WHO, **NEW)).then_refused(AlreadyExists, resource="virtual_key")
    given(TEAM, ISSUED, CLAIMED).when(rotate_key, rotate()).then_refused(AlreadyExists, resource="virtual_key")


def test_a_key_works_until_it_ends() -> None:
    story = given(TEAM, ISSUED)
    assert story.the(Team) == require_valid_key(story.the(Team), KEY, NOON)
    story = story.when(revoke_key, revoke()).then(revoked())
    with pytest.raises(Unauthorized):
        require_valid_key(story.the(Team), KEY, NOON)


def test_an_unknown_key_a_deleted_team_and_no_team_are_all_the_same() -> None:
    for somebody, key_id in [
        (given(TEAM, ISSUED).the(Team), NEW_KEY),
        (given(TEAM, ISSUED, DELETED).the(Team), KEY),
        (None, KEY),
    ]:
        with pytest.raises(Unauthorized):
            require_valid_key(somebody, key_id, NOON)


def test_a_key_is_revoked_once_and_an_unknown_one_not_at_all() -> None:
    story = given(TEAM, ISSUED).when(revoke_key, revoke())
    story.when(revoke_key, revoke(at=after(hours=1))).then_nothing()
    story.when(revoke_key, revoke(NEW_KEY)).then_refused(NotFound, resource="virtual_key")


def test_a_rotated_key_is_replaced_and_lives_on_through_its_grace() -> None:
    end = after(hours=1)
    story = given(TEAM, ISSUED).when(rotate_key, rotate(KEY, end))
    story.then(
        VirtualKeyIssued(at=NOON, team_id=RESEARCH, **NEW, name="laptop", replaces=KEY),
        revoked(ends_at=end),
        CLAIMED,
    )
    old, new = story.the(Team).keys
    assert [True, True] == [old.is_active(after(minutes=59)), new.is_active(end)]
    assert not old.is_active(end)


def test_without_a_name_the_oldest_active_key_is_rotated() -> None:
    other = VirtualKeyIssued(at=NOON, team_id=RESEARCH, key_id=an_id(33), key_hash="cc", masked="sk-cccc...cccc")
    story = given(TEAM, ISSUED, other, revoked()).when(rotate_key, rotate())
    issued = story.decided[0]
    assert isinstance(issued, VirtualKeyIssued)
    assert an_id(33) == issued.replaces


def test_there_must_be_a_key_to_rotate() -> None:
    given(TEAM).when(rotate_key, rotate()).then_refused(NotFound, resource="virtual_key")
    given(TEAM, ISSUED, revoked()).when(rotate_key, rotate()).then_refused(NotFound, resource="virtual_key")
    given(TEAM).when(rotate_key, rotate(KEY)).then_refused(NotFound, resource="virtual_key")


@pytest.mark.parametrize("old_ends_at", [NOON, after(hours=1), after(days=7)])
def test_the_end_of_a_key_is_never_put_off_by_rotating_it_again(old_ends_at: datetime) -> None:
    story = given(TEAM, ISSUED, revoked(ends_at=after(hours=1))).when(rotate_key, rotate(KEY, old_ends_at))
    assert min(old_ends_at, after(hours=1)) == story.the(Team).keys[0].ends_at


def test_a_key_in_its_grace_can_be_revoked_at_once() -> None:
    story = given(TEAM, ISSUED, revoked(ends_at=after(hours=1))).when(revoke_key, revoke(at=after(minutes=5)))
    story.then(revoked(ends_at=after(minutes=5), at=after(minutes=5)))


def test_the_oldest_active_key_is_the_one_that_is_shown() -> None:
    story = given(TEAM, ISSUED).when(issue_key, IssueKey(**WHO, **NEW))
    assert "sk-aaaa...aaaa" == story.the(Team).masked_key(NOON)
    assert "sk-bbbb...bbbb" == story.when(revoke_key, revoke()).the(Team).masked_key(NOON)
    assert given(TEAM).the(Team).masked_key(NOON) is None


# -- auto-refill ---------------------------------------------------------------------------------------------


def test_auto_refill_is_switched_on_with_amount_and_period() -> None:
    story = given(TEAM).when(set_auto_refill, refill(credits=50, period="weekly"))
    story.then(AutoRefillSet(at=NOON, team_id=RESEARCH, enabled=True, refill_credits=50, refill_period="weekly"))
    story.leaving(Team, auto_refill=AutoRefill(enabled=True, refill_credits=50, refill_period="weekly", set_at=NOON))
    story.when(set_auto_refill, refill(credits=50, period="weekly")).then_nothing()


@pytest.mark.parametrize(
    "credits,period,field",
    [(None, "daily", "refill_amount"), (5, None, "refill_period"), (None, None, "refill_amount")],
)
def test_auto_refill_is_not_switched_on_by_halves(credits: int | None, period: str | None, field: str) -> None:
    given(TEAM).when(set_auto_refill, refill(credits=credits, period=period)).then_refused(InvalidValue, field=field)


def test_switched_off_auto_refill_keeps_amount_and_period() -> None:
    story = given(TEAM).when(set_auto_refill, refill(credits=50, period="weekly"))
    story = story.when(set_auto_refill, refill(enabled=False))
    story.then(AutoRefillSet(at=NOON, team_id=RESEARCH, enabled=False, refill_credits=50, refill_period="weekly"))
    story.when(set_auto_refill, refill()).then(
        AutoRefillSet(at=NOON, team_id=RESEARCH, enabled=True, refill_credits=50, refill_period="weekly")
    )
    given(TEAM).when(set_auto_refill, refill(enabled=False)).then_nothing()
