"""The customer: a name over teams.

    created -> (changed | suspended | paused | resumed | team joined | team left)* -> deleted

Its status binds all its teams without changing theirs.
"""

from datetime import datetime
from typing import Literal

from msgspec import UNSET
from msgspec.structs import replace

from domain.errors import AlreadyExists, InUse, NotFound, PausedOrganization, SuspendedOrganization
from domain.event import Command, Event, JsonObject, State, Unset, with_changes

Status = Literal["active", "suspended", "paused", "inactive"]

# -- events --------------------------------------------------------------------------------------------------


class OrganizationCreated(Event):
    organization_id: str
    name: str
    metadata: JsonObject
    default_model: str | None = None


class OrganizationChanged(Event):
    """All three as they are from now on."""

    organization_id: str
    name: str
    metadata: JsonObject
    default_model: str | None = None


class OrganizationSuspended(Event):
    organization_id: str
    reason: str | None = None


class OrganizationPaused(Event):
    organization_id: str
    reason: str | None = None


class OrganizationResumed(Event):
    organization_id: str
    reason: str | None = None


class OrganizationDeleted(Event):
    organization_id: str


class TeamJoined(Event):
    organization_id: str
    team_id: str


class TeamLeft(Event):
    organization_id: str
    team_id: str


OrganizationEvent = (
    OrganizationCreated
    | OrganizationChanged
    | OrganizationSuspended
    | OrganizationPaused
    | OrganizationResumed
    | OrganizationDeleted
    | TeamJoined
    | TeamLeft
)

_STATUS_AFTER: dict[type[OrganizationEvent], Status] = {
    OrganizationSuspended: "suspended",
    OrganizationPaused: "paused",
    OrganizationResumed: "active",
    OrganizationDeleted: "inactive",
}

# -- state ---------------------------------------------------------------------------------------------------


class Organization(State):
    organization_id: str
    name: str
    status: Status
    metadata: JsonObject
    default_model: str | None
    teams: int
    created_at: datetime
    updated_at: datetime


def evolve(organization: Organization | None, event: OrganizationEvent) -> Organization:
    """What the organization is after this event, whatever the rules say today."""
    if isinstance(event, OrganizationCreated):
        return Organization(
            organization_id=event.organization_id,
            name=event.name,
            status="active",
            metadata=event.metadata,
            default_model=event.default_model,
            teams=0,
            created_at=event.at,
            updated_at=event.at,
        )
    assert organization is not None, "an organization's history starts with OrganizationCreated"
    match event:
        case TeamJoined():
            return replace(organization, teams=organization.teams + 1)
        case TeamLeft():
            return replace(organization, teams=organization.teams - 1)
        case OrganizationChanged(name=name, metadata=metadata, default_model=default_model):
            return replace(organization, name=name, metadata=metadata, default_model=default_model, updated_at=event.at)
        case OrganizationSuspended() | OrganizationPaused() | OrganizationResumed() | OrganizationDeleted():
            return replace(organization, status=_STATUS_AFTER[type(event)], updated_at=event.at)


# -- commands ------------------------------------------------------------------------------------------------


class CreateOrganization(Command):
    organization_id: str
    name: str
    metadata: JsonObject
    default_model: str | None = None


class ChangeOrganization(Command):
    """What is not set stays."""

    name: str | Unset = UNSET
    metadata: JsonObject | Unset = UNSET
    default_model: str | Unset | None = UNSET


class SetOrganizationStatus(Command):
    status: Literal["active", "suspended", "paused"]
    reason: str | None = None


class DeleteOrganization(Command):
    pass


# -- decisions -----------------------------------------------------------------------------------------------


def create_organization(organization: Organization | None, command: CreateOrganization) -> list[Event]:
    if organization is not None:
        raise AlreadyExists("organization")
    return [
        OrganizationCreated(
            at=command.at,
            organization_id=command.organization_id,
            name=command.name,
            metadata=command.metadata,
            default_model=command.default_model,
        )
    ]


def change_organization(organization: Organization | None, command: ChangeOrganization) -> list[Event]:
    organization = require_organization(organization)
    changed = with_changes(organization, command, "name", "metadata", "default_model")
    if changed == organization:
        return []
    return [
        OrganizationChanged(
            at=command.at,
            organization_id=organization.organization_id,
            name=changed.name,
            metadata=changed.metadata,
            default_model=changed.default_model,
        )
    ]


def set_organization_status(organization: Organization | None, command: SetOrganizationStatus) -> list[Event]:
    organization = require_organization(organization)
    if organization.status == command.status:
        return []
    changed = {
        "active": OrganizationResumed,
        "suspended": OrganizationSuspended,
        "paused": OrganizationPaused,
    }[command.status]
    return [changed(at=command.at, organization_id=organization.organization_id, reason=command.reason)]


def delete_organization(organization: Organization | None, command: DeleteOrganization) -> list[Event]:
    if organization is not None and organization.status == "inactive":
        return []
    organization = require_organization(organization)
    if organization.teams:
        raise InUse
    return [OrganizationDeleted(at=command.at, organization_id=organization.organization_id)]


def require_organization(organization: Organization | None) -> Organization:
    """The organization, if there is one that can still be changed."""
    if organization is None or organization.status == "inactive":
        raise NotFound("organization")
    return organization


def require_active_organization(organization: Organization) -> None:
    """Raises unless the organization's teams may act."""
    match organization.status:
        case "suspended" | "inactive":
            raise SuspendedOrganization
        case "paused":
            raise PausedOrganization
        case "active":
            return
