"""An organization: a name over teams, whose status binds them all."""

from typing import Any

import pytest

from domain.errors import AlreadyExists, InUse, NotFound, PausedOrganization, Refusal, SuspendedOrganization
from domain.event import Event
from domain.organization import (
    ChangeOrganization,
    CreateOrganization,
    DeleteOrganization,
    Organization,
    OrganizationChanged,
    OrganizationDeleted,
    OrganizationPaused,
    OrganizationResumed,
    OrganizationSuspended,
    SetOrganizationStatus,
    TeamJoined,
    TeamLeft,
    change_organization,
    create_organization,
    delete_organization,
    require_active_organization,
    set_organization_status,
)
from tests.domain.scene import ACME, NOON, ORGANIZATION, RESEARCH, WHO
from tests.spec import Decision, given

CREATE = CreateOrganization(**WHO, organization_id=ACME, name="Acme", metadata={})
DELETE = DeleteOrganization(**WHO)
DELETED = OrganizationDeleted(at=NOON, organization_id=ACME)
JOINED = TeamJoined(at=NOON, organization_id=ACME, team_id=RESEARCH)
LEFT = TeamLeft(at=NOON, organization_id=ACME, team_id=RESEARCH)


def change(**what: Any) -> ChangeOrganization:
    return ChangeOrganization(**WHO, **what)


def status(wished: Any, reason: str | None = None) -> SetOrganizationStatus:
    return SetOrganizationStatus(**WHO, status=wished, reason=reason)


def test_an_organization_begins_active_and_without_teams() -> None:
    story = given().when(create_organization, CREATE).then(ORGANIZATION)
    story.leaving(Organization, status="active", teams=0, default_model=None)


def test_the_id_of_an_organization_stays_taken_also_when_it_is_deleted() -> None:
    given(ORGANIZATION).when(create_organization, CREATE).then_refused(AlreadyExists, resource="organization")
    given(ORGANIZATION, DELETED).when(create_organization, CREATE).then_refused(AlreadyExists, resource="organization")


@pytest.mark.parametrize(
    "decide,wish",
    [
        (change_organization, change(name="x")),
        (set_organization_status, status("paused")),
    ],
)
def test_an_organization_that_is_not_there_or_was_deleted_cannot_be_changed(decide: Decision, wish: Any) -> None:
    given().when(decide, wish).then_refused(NotFound, resource="organization")
    given(ORGANIZATION, DELETED).when(decide, wish).then_refused(NotFound, resource="organization")


def test_a_change_keeps_what_it_does_not_name() -> None:
    story = given(ORGANIZATION).when(change_organization, change(name="Acme Ltd", metadata={"vat": "1"}))
    story.then(
        OrganizationChanged(at=NOON, organization_id=ACME, name="Acme Ltd", metadata={"vat": "1"}, default_model=None)
    )
    story = story.when(change_organization, change(default_model="chat"))
    story.leaving(Organization, name="Acme Ltd", metadata={"vat": "1"}, default_model="chat")
    story.when(change_organization, change(default_model="chat")).then_nothing()


def test_an_organization_is_suspended_paused_and_resumed() -> None:
    story = given(ORGANIZATION).when(set_organization_status, status("suspended", "unpaid"))
    story = story.then(OrganizationSuspended(at=NOON, organization_id=ACME, reason="unpaid"))
    story = story.leaving(Organization, status="suspended").when(set_organization_status, status("paused"))
    story = story.then(OrganizationPaused(at=NOON, organization_id=ACME)).leaving(Organization, status="paused")
    story = story.when(set_organization_status, status("active"))
    story.then(OrganizationResumed(at=NOON, organization_id=ACME)).leaving(Organization, status="active")


@pytest.mark.parametrize("wished", ["active", "suspended", "paused"])
def test_a_status_wished_twice_is_set_once(wished: str) -> None:
    story = given(ORGANIZATION).when(set_organization_status, status(wished))
    story.when(set_organization_status, status(wished)).then_nothing()


@pytest.mark.parametrize(
    "event,refusal",
    [
        (OrganizationSuspended(at=NOON, organization_id=ACME), SuspendedOrganization),
        (OrganizationPaused(at=NOON, organization_id=ACME), PausedOrganization),
        (DELETED, SuspendedOrganization),
    ],
)
def test_its_teams_act_only_while_it_is_active(event: Event, refusal: type[Refusal]) -> None:
    require_active_organization(given(ORGANIZATION).the(Organization))
    with pytest.raises(refusal):
        require_active_organization(given(ORGANIZATION, event).the(Organization))


def test_an_organization_with_teams_is_not_deleted() -> None:
    given(ORGANIZATION, JOINED).when(delete_organization, DELETE).then_refused(InUse)


def test_an_organization_whose_teams_have_all_left_is_deleted_once() -> None:
    story = given(ORGANIZATION, JOINED, LEFT).when(delete_organization, DELETE).then(DELETED)
    story.leaving(Organization, status="inactive").when(delete_organization, DELETE).then_nothing()
    given().when(delete_organization, DELETE).then_refused(NotFound, resource="organization")
