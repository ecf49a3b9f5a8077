"""Organizations' own accounts at the providers of models (contract, section 11). A key goes in and never comes out."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Controller, HttpMethod, Response, delete, get, post, put, route
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Meta

from api.answers import reply, ts
from api.bodies import ID, NO_CONTROL, Name255
from api.caller import Caller, admin_only
from api.house import House
from api.jobs import uuid_of
from api.listing import Page, listed
from api.model_aliases import catch_up
from api.shapes import Timestamp, Uuid
from api.targets import Address, ApiKey, address
from domain.credential import (
    ActivateCredential,
    ChangeCredential,
    CreateCredential,
    Credential,
    Credentials,
    DeactivateCredential,
    DeleteCredential,
    activate_credential,
    change_credential,
    create_credential,
    deactivate_credential,
    delete_credential,
    require_credential,
)
from domain.errors import InvalidValue, NotFound
from domain.event import Event
from domain.streams import CREDENTIALS, ORGANIZATION
from infra.ids import new_id
from infra.ledger import Outcome
from infra.llm import known_provider
from projections import provider_credentials
from projections.provider_credentials import CredentialRecord

NewKey = Annotated[ApiKey, Meta(min_length=1)]
Person = Annotated[str, Meta(max_length=255, pattern=NO_CONTROL)]


class CreateCredentialBody(msgspec.Struct, kw_only=True):
    organization_id: ID
    provider: Name255
    credential_name: Name255
    api_key: NewKey
    api_base: Address | None = None
    created_by: Person | None = None


class ChangeCredentialBody(msgspec.Struct, kw_only=True):
    credential_name: Name255 | None = None
    api_key: ApiKey | None = None
    api_base: Address | None = None
    is_active: bool | None = None
    updated_by: Person | None = None


class CredentialAnswer(msgspec.Struct, kw_only=True):
    credential_id: Uuid
    organization_id: str
    provider: str
    credential_name: str
    api_base: str | None
    is_active: bool
    has_api_key: bool = True
    created_by: str | None
    updated_by: str | None
    created_at: Timestamp
    updated_at: Timestamp


class SwitchedCredential(CredentialAnswer, kw_only=True):
    message: str


class DeletedCredential(msgspec.Struct):
    credential_id: Uuid
    message: str


class ProviderCredentialsController(Controller):
    path = "/api/provider-credentials"
    tags = ["Provider Credentials"]
    before_request = admin_only

    @get("")
    async def list_credentials(
        self,
        house: NamedDependency[House],
        page: NamedDependency[Page],
        organization_id: FromQuery[str | None] = None,
        provider: FromQuery[str | None] = None,
        active_only: FromQuery[bool] = True,
    ) -> Response[list[CredentialAnswer]]:
        """Credentials by name; also those that are switched off with active_only=false."""
        return await _listed(house, page, organization_id, provider, active_only=active_only)

    @get("/organization/{org_id:str}")
    async def of_organization(
        self, house: NamedDependency[House], page: NamedDependency[Page], org_id: FromPath[str]
    ) -> Response[list[CredentialAnswer]]:
        """All credentials of an organization."""
        await _require_organization(house, org_id)
        return await _listed(house, page, org_id, None, active_only=False)

    @get("/organization/{org_id:str}/provider/{provider:str}")
    async def of_provider(
        self,
        house: NamedDependency[House],
        page: NamedDependency[Page],
        org_id: FromPath[str],
        provider: FromPath[str],
    ) -> Response[list[CredentialAnswer]]:
        """The active credentials of an organization for one provider."""
        await _require_organization(house, org_id)
        return await _listed(house, page, org_id, provider, active_only=True)

    @post("/create", status_code=201)
    async def create(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[CreateCredentialBody]
    ) -> Response[CredentialAnswer]:
        """Hand in a key. It is active, and so the one that calls of the organization use."""
        provider = data.provider.lower()
        if not known_provider(provider):
            raise InvalidValue("provider")
        api_base = None if data.api_base is None else address(data.api_base)
        credential_id = new_id()
        async with house.targets.keeping(data.api_key) as secret_id:
            assert secret_id is not None
            command = CreateCredential(
                **caller.signature(),
                credential_id=credential_id,
                provider=provider,
                credential_name=data.credential_name,
                secret_id=secret_id,
                api_base=api_base,
                created_by=data.created_by,
            )
            return await caller.carry_out(
                create_credential,
                command,
                CREDENTIALS.stream(data.organization_id),
                ORGANIZATION.stream(data.organization_id),
                answer=lambda outcome: _answer_of(outcome, credential_id),
                status=201,
            )

    @get("/{credential_id:str}")
    async def details(self, house: NamedDependency[House], credential_id: FromPath[str]) -> Response[CredentialAnswer]:
        """One credential, without its key."""
        return reply(CredentialAnswer(**_facts(await _one(house, credential_id))))

    @put("/{credential_id:str}")
    async def change(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        credential_id: FromPath[str],
        data: JSONBody[ChangeCredentialBody],
    ) -> Response[CredentialAnswer]:
        """Change a credential. An empty api_base means the provider's usual address, an empty key the one it has."""
        api_base = UNSET if data.api_base is None else address(data.api_base)
        found = await _existing(house, credential_id)
        deciding = _Noting(change_credential, found.credential_id)
        async with house.targets.keeping(data.api_key) as secret_id:
            command = ChangeCredential(
                **caller.signature(),
                credential_id=found.credential_id,
                credential_name=UNSET if data.credential_name is None else data.credential_name,
                secret_id=UNSET if secret_id is None else secret_id,
                api_base=api_base,
                is_active=UNSET if data.is_active is None else data.is_active,
                updated_by=data.updated_by,
            )
            answer = await caller.carry_out(
                deciding,
                command,
                CREDENTIALS.stream(found.organization_id),
                answer=lambda outcome: _answer_of(outcome, found.credential_id),
            )
        if secret_id is not None:
            await house.targets.forget(deciding.secret_id)
        return answer

    @route("/{credential_id:str}/activate", http_method=[HttpMethod.POST, HttpMethod.PUT], status_code=200)
    async def activate(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], credential_id: FromPath[str]
    ) -> Response[SwitchedCredential]:
        """Use this credential from now on."""
        found = await _existing(house, credential_id)
        command = ActivateCredential(**caller.signature(), credential_id=found.credential_id)
        return await _switched(caller, found, activate_credential, command, "The credential is active")

    @route("/{credential_id:str}/deactivate", http_method=[HttpMethod.POST, HttpMethod.PUT], status_code=200)
    async def deactivate(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], credential_id: FromPath[str]
    ) -> Response[SwitchedCredential]:
        """Use this credential no longer."""
        found = await _existing(house, credential_id)
        command = DeactivateCredential(**caller.signature(), credential_id=found.credential_id)
        return await _switched(caller, found, deactivate_credential, command, "The credential is inactive")

    @delete("/{credential_id:str}", status_code=200)
    async def remove(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], credential_id: FromPath[str]
    ) -> Response[DeletedCredential]:
        """Forget a credential and its key. Its name may be used again."""
        found = await _existing(house, credential_id)
        deciding = _Noting(delete_credential, found.credential_id)
        answer = await caller.carry_out(
            deciding,
            DeleteCredential(**caller.signature(), credential_id=found.credential_id),
            CREDENTIALS.stream(found.organization_id),
            answer=lambda _: DeletedCredential(found.credential_id, "The credential has been deleted"),
        )
        await house.targets.forget(deciding.secret_id)
        return answer


# -- what the methods have in common -----------------------------------------------------------------------------------


class _Noting:
    """A decision about a credential that notes which secret the credential had until then."""

    def __init__(self, decide: Callable[[Credentials | None, Any], Sequence[Event]], credential_id: str) -> None:
        self._decide = decide
        self._credential_id = credential_id
        self.secret_id: str | None = None

    def __call__(self, credentials: Credentials | None, command: Any) -> Sequence[Event]:
        self.secret_id = require_credential(credentials, self._credential_id)[1].secret_id
        return self._decide(credentials, command)


async def _listed(
    house: House, page: Page, organization_id: str | None, provider: str | None, *, active_only: bool
) -> Response[list[CredentialAnswer]]:
    async with house.pool.connection() as connection:
        found, total = await provider_credentials.page(
            connection,
            organization_id=organization_id,
            provider=None if provider is None else provider.lower(),
            active_only=active_only,
            limit=page.limit,
            offset=page.offset,
        )
    return listed([CredentialAnswer(**_facts(credential)) for credential in found], total)


async def _require_organization(house: House, organization_id: str) -> None:
    (organization,) = (await house.ledger.read(ORGANIZATION.stream(organization_id))).states
    if organization is None:
        raise NotFound("organization")


async def _existing(house: House, credential_id: str) -> CredentialRecord:
    """The credential that is to be changed. Whose it is never changes, so a read model may say that."""
    await catch_up(house)
    return await _one(house, credential_id)


async def _one(house: House, credential_id: str) -> CredentialRecord:
    async with house.pool.connection() as connection:
        found = await provider_credentials.one(connection, uuid_of(credential_id, "provider_credential"))
    if found is None:
        raise NotFound("provider_credential")
    return found


async def _switched(
    caller: Caller, found: CredentialRecord, decide: Callable[..., Any], command: Any, message: str
) -> Response[SwitchedCredential]:
    return await caller.carry_out(
        decide,
        command,
        CREDENTIALS.stream(found.organization_id),
        answer=lambda outcome: SwitchedCredential(**_facts(_record_of(outcome, found.credential_id)), message=message),
    )


def _record_of(outcome: Outcome, credential_id: str) -> CredentialRecord:
    credentials: Credentials = outcome.states[0]
    credential: Credential = credentials.credentials[credential_id]
    return CredentialRecord.of(credentials.organization_id, credential)


def _answer_of(outcome: Outcome, credential_id: str) -> CredentialAnswer:
    return CredentialAnswer(**_facts(_record_of(outcome, credential_id)))


def _facts(credential: CredentialRecord) -> dict[str, Any]:
    facts = msgspec.structs.asdict(credential)
    return {**facts, "created_at": ts(credential.created_at), "updated_at": ts(credential.updated_at)}
