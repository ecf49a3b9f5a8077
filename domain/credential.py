"""An organization's own accounts at the providers of models.

    created -> (changed | activated | deactivated)* -> deleted

All credentials of an organization are one stream: names are unique among them, and which one a call uses depends on
which was activated last. An API key is known by the id of its secret only.
"""

from datetime import datetime

from msgspec import UNSET
from msgspec.structs import replace

from domain.errors import AlreadyExists, NotFound
from domain.event import Command, Event, Record, State, Unset, with_changes
from domain.organization import Organization, require_organization

_SYNONYMS = {"fireworks": "fireworks_ai"}

# -- events --------------------------------------------------------------------------------------------------


class CredentialCreated(Event):
    organization_id: str
    credential_id: str
    provider: str
    credential_name: str
    secret_id: str
    api_base: str | None = None
    created_by: str | None = None


class CredentialChanged(Event):
    """All three as they are from now on."""

    organization_id: str
    credential_id: str
    credential_name: str
    secret_id: str
    api_base: str | None
    updated_by: str | None = None


class CredentialActivated(Event):
    """From now on it is the one in use."""

    organization_id: str
    credential_id: str
    updated_by: str | None = None


class CredentialDeactivated(Event):
    organization_id: str
    credential_id: str
    updated_by: str | None = None


class CredentialDeleted(Event):
    """The name may be used again."""

    organization_id: str
    credential_id: str


CredentialEvent = (
    CredentialCreated | CredentialChanged | CredentialActivated | CredentialDeactivated | CredentialDeleted
)

# -- state ---------------------------------------------------------------------------------------------------


class Credential(Record):
    """`activation` counts up within the organization: the highest of a provider is the one in use."""

    credential_id: str
    provider: str
    credential_name: str
    secret_id: str
    api_base: str | None
    is_active: bool = True
    activation: int
    created_by: str | None
    updated_by: str | None = None
    created_at: datetime
    updated_at: datetime


class Credentials(State):
    organization_id: str
    credentials: dict[str, Credential] = {}
    activations: int = 0


def evolve(credentials: Credentials | None, event: CredentialEvent) -> Credentials:
    """What the organization's credentials are after this event, whatever the rules say today."""
    if isinstance(event, CredentialCreated):
        return _activated(credentials or Credentials(organization_id=event.organization_id), _created(event))
    assert credentials is not None, "the history of credentials starts with CredentialCreated"
    known = credentials.credentials.get(event.credential_id)
    if known is None:
        return credentials
    credential = replace(known, updated_at=event.at)
    match event:
        case CredentialChanged(credential_name=name, secret_id=secret_id, api_base=api_base, updated_by=updated_by):
            changed = replace(
                credential, credential_name=name, secret_id=secret_id, api_base=api_base, updated_by=updated_by
            )
            return _with(credentials, changed)
        case CredentialActivated(updated_by=updated_by):
            return _activated(credentials, replace(credential, is_active=True, updated_by=updated_by))
        case CredentialDeactivated(updated_by=updated_by):
            return _with(credentials, replace(credential, is_active=False, updated_by=updated_by))
        case CredentialDeleted(credential_id=credential_id):
            others = {key: each for key, each in credentials.credentials.items() if key != credential_id}
            return replace(credentials, credentials=others)


def _created(event: CredentialCreated) -> Credential:
    return Credential(
        credential_id=event.credential_id,
        provider=event.provider,
        credential_name=event.credential_name,
        secret_id=event.secret_id,
        api_base=event.api_base,
        activation=0,
        created_by=event.created_by,
        created_at=event.at,
        updated_at=event.at,
    )


def _activated(credentials: Credentials, credential: Credential) -> Credentials:
    activations = credentials.activations + 1
    return replace(_with(credentials, replace(credential, activation=activations)), activations=activations)


def _with(credentials: Credentials, credential: Credential) -> Credentials:
    return replace(credentials, credentials={**credentials.credentials, credential.credential_id: credential})


def canonical_provider(provider: str) -> str:
    """The one name of a provider that is known by several."""
    return _SYNONYMS.get(provider, provider)


def active_credential(credentials: Credentials | None, provider: str) -> Credential | None:
    """The credential that calls to a provider use: of its active ones, the one activated last."""
    candidates = (each for each in _of(credentials, provider) if each.is_active)
    return max(candidates, key=lambda each: each.activation, default=None)


def named_credential(credentials: Credentials | None, provider: str, name: str) -> Credential | None:
    """The credential of this name, active or not."""
    return next((each for each in _of(credentials, provider) if each.credential_name == name), None)


def _of(credentials: Credentials | None, provider: str) -> list[Credential]:
    wanted = canonical_provider(provider)
    known = () if credentials is None else credentials.credentials.values()
    return [each for each in known if canonical_provider(each.provider) == wanted]


# -- commands ------------------------------------------------------------------------------------------------


class CreateCredential(Command):
    credential_id: str
    provider: str
    credential_name: str
    secret_id: str
    api_base: str | None = None
    created_by: str | None = None


class ChangeCredential(Command):
    """What is not set stays; `secret_id` is a new API key's."""

    credential_id: str
    credential_name: str | Unset = UNSET
    secret_id: str | Unset = UNSET
    api_base: str | Unset | None = UNSET
    is_active: bool | Unset = UNSET
    updated_by: str | None = None


class ActivateCredential(Command):
    credential_id: str
    updated_by: str | None = None


class DeactivateCredential(Command):
    credential_id: str
    updated_by: str | None = None


class DeleteCredential(Command):
    credential_id: str


# -- decisions -----------------------------------------------------------------------------------------------


def create_credential(
    credentials: Credentials | None, organization: Organization | None, command: CreateCredential
) -> tuple[list[Event], list[Event]]:
    """A new credential is active, and so the one in use."""
    organization = require_organization(organization)
    if credentials is not None and command.credential_id in credentials.credentials:
        return [], []
    _require_free(credentials, command.provider, command.credential_name)
    created = CredentialCreated(
        at=command.at,
        organization_id=organization.organization_id,
        credential_id=command.credential_id,
        provider=command.provider,
        credential_name=command.credential_name,
        secret_id=command.secret_id,
        api_base=command.api_base,
        created_by=command.created_by,
    )
    return [created], []


def change_credential(credentials: Credentials | None, command: ChangeCredential) -> list[Event]:
    """An active credential that is said to be active keeps its place in the order of activations."""
    credentials, credential = require_credential(credentials, command.credential_id)
    changed = with_changes(credential, command, "credential_name", "secret_id", "api_base")
    if changed.credential_name != credential.credential_name:
        _require_free(credentials, credential.provider, changed.credential_name)
    events: list[Event] = []
    if changed != credential:
        events.append(
            CredentialChanged(
                at=command.at,
                organization_id=credentials.organization_id,
                credential_id=credential.credential_id,
                credential_name=changed.credential_name,
                secret_id=changed.secret_id,
                api_base=changed.api_base,
                updated_by=command.updated_by,
            )
        )
    if command.is_active is not UNSET and command.is_active != credential.is_active:
        kind = CredentialActivated if command.is_active else CredentialDeactivated
        events.append(_switched(kind, credentials, command))
    return events


def activate_credential(credentials: Credentials | None, command: ActivateCredential) -> list[Event]:
    """Makes it the one in use; nothing to do when it is that already."""
    credentials, credential = require_credential(credentials, command.credential_id)
    if active_credential(credentials, credential.provider) == credential:
        return []
    return [_switched(CredentialActivated, credentials, command)]


def deactivate_credential(credentials: Credentials | None, command: DeactivateCredential) -> list[Event]:
    credentials, credential = require_credential(credentials, command.credential_id)
    return [_switched(CredentialDeactivated, credentials, command)] if credential.is_active else []


def delete_credential(credentials: Credentials | None, command: DeleteCredential) -> list[Event]:
    credentials, credential = require_credential(credentials, command.credential_id)
    return [
        CredentialDeleted(
            at=command.at, organization_id=credentials.organization_id, credential_id=credential.credential_id
        )
    ]


def require_credential(credentials: Credentials | None, credential_id: str) -> tuple[Credentials, Credential]:
    credential = None if credentials is None else credentials.credentials.get(credential_id)
    if credentials is None or credential is None:
        raise NotFound("provider_credential")
    return credentials, credential


def _require_free(credentials: Credentials | None, provider: str, name: str) -> None:
    if named_credential(credentials, provider, name) is not None:
        raise AlreadyExists("provider_credential")


def _switched(
    kind: type[CredentialActivated | CredentialDeactivated],
    credentials: Credentials,
    command: ChangeCredential | ActivateCredential | DeactivateCredential,
) -> Event:
    return kind(
        at=command.at,
        organization_id=credentials.organization_id,
        credential_id=command.credential_id,
        updated_by=command.updated_by,
    )
