"""Organizations: names over teams (contract, section 6)."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

import msgspec
from litestar import Controller, Response, delete, get, post, put, route
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, UnsetType

from api.answers import reply, ts, usd6
from api.bodies import ID, NO_CONTROL, Credits, Name200, Text500
from api.caller import Caller, admin_only, team_or_admin
from api.house import House
from api.listing import Page, chosen, listed, one_of, wrapped
from api.problems import PROBLEMS, Invalid
from api.shapes import Timestamp
from api.teams import (
    NO_REASON,
    POST_OR_PUT,
    AllowedModels,
    Groups,
    ReasonBody,
    creation_streams,
    fresh_key,
    small,
)
from domain.errors import Forbidden, NotFound
from domain.event import Json, JsonObject
from domain.onboarding import CreateOrganizationWithTeam, CreateTeam, create_organization_with_team
from domain.organization import (
    ChangeOrganization,
    CreateOrganization,
    DeleteOrganization,
    Organization,
    SetOrganizationStatus,
    Status,
    change_organization,
    create_organization,
    delete_organization,
    require_organization,
    set_organization_status,
)
from domain.streams import ORGANIZATION
from domain.team import Team
from infra.ids import new_id
from infra.ledger import Outcome
from infra.secrets import hash_key, mask_key
from projections import balances, organizations, teams, usage
from projections.organizations import OrganizationRecord

DEFAULT_TEAM = "_default"  # the end of a default team's id, after that of its organization
MAX_ID = 255

Name500 = Annotated[str, Meta(min_length=1, max_length=500, pattern=NO_CONTROL)]

# -- bodies ------------------------------------------------------------------------------------------------------------


class CreateOrganizationBody(msgspec.Struct, kw_only=True):
    organization_id: ID
    name: Name500
    metadata: JsonObject | None = None
    default_model: Name200 | None = None
    create_default_team: bool | None = None
    default_team_name: Name200 | None = None
    default_team_model_groups: Groups | None = None
    default_team_access_groups: Groups | None = None
    default_team_credits: Credits | None = None


class ChangeOrganizationBody(msgspec.Struct, kw_only=True):
    name: Name500 | None = None
    metadata: JsonObject | None = None
    default_model: Name200 | None = None


class StatusBody(msgspec.Struct, kw_only=True):
    status: Literal["active", "suspended", "paused"]
    reason: Text500 | None = None


# -- answers -----------------------------------------------------------------------------------------------------------


class OrganizationAnswer(msgspec.Struct, kw_only=True):
    organization_id: str
    name: str
    status: str
    metadata: Mapping[str, Json]
    default_model: str | None
    created_at: Timestamp
    updated_at: Timestamp


class DefaultTeam(msgspec.Struct, kw_only=True):
    """The team, with `virtual_key` in the clear this once; or only `error`, when there could be none."""

    team_id: str | UnsetType = UNSET
    team_alias: str | UnsetType | None = UNSET
    virtual_key: str | UnsetType = UNSET
    model_groups: list[str] | UnsetType = UNSET
    access_groups: list[str] | UnsetType = UNSET
    allowed_model_aliases: list[str] | UnsetType = UNSET
    credits_allocated: int | UnsetType = UNSET
    error: str | UnsetType = UNSET


class OrganizationMade(OrganizationAnswer, kw_only=True):
    default_team: DefaultTeam | None


class OrganizationSummary(msgspec.Struct, kw_only=True):
    total_jobs: int
    total_cost_usd: Decimal
    credits_used: int


class OrganizationDetails(OrganizationAnswer, kw_only=True):
    teams: list[str]
    usage_summary: OrganizationSummary


class TeamLine(msgspec.Struct, kw_only=True):
    team_id: str
    team_alias: str | None
    status: str
    access_groups: list[str]
    model_groups: list[str]
    credits_allocated: int
    credits_remaining: int


class OrganizationTeams(msgspec.Struct, kw_only=True):
    organization_id: str
    team_count: int
    teams: list[str]
    team_details: list[TeamLine]
    total: int
    limit: int
    offset: int


class OrganizationStatus(msgspec.Struct, kw_only=True):
    organization_id: str
    status: str
    previous_status: str
    updated_at: Timestamp
    reason: str | None


class OrganizationGone(msgspec.Struct, kw_only=True):
    organization_id: str
    message: str


# -- endpoints ---------------------------------------------------------------------------------------------------------


class OrganizationsController(Controller):
    path = "/api/organizations"
    tags = ["Organizations"]

    @post("/create", status_code=200, before_request=admin_only)
    async def create(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[CreateOrganizationBody]
    ) -> Response[OrganizationMade]:
        """Create an organization, with a first team if that is asked for."""
        signature = caller.signature()
        created = CreateOrganization(
            **signature,
            organization_id=data.organization_id,
            name=data.name,
            metadata=small(data.metadata or {}),
            default_model=data.default_model,
        )
        stream = ORGANIZATION.stream(data.organization_id)
        if not data.create_default_team:
            return await caller.carry_out(
                create_organization,
                created,
                stream,
                answer=lambda outcome: OrganizationMade(**_fields_of(outcome.states[0]), default_team=None),
            )
        key = fresh_key(house, None)
        command = CreateOrganizationWithTeam(
            **signature, organization=created, team=_default_team(signature, data, key)
        )

        def made(outcome: Outcome) -> OrganizationMade:
            organization, team, _, _, catalog = outcome.states
            has_team = len(outcome.events) > 1
            first = _first_team(house, team, catalog, command.team, key) if has_team else _no_team(team)
            return OrganizationMade(**_fields_of(organization), default_team=first)

        team, account, owner, _, catalog = creation_streams(command.team)
        streams = stream, team, account, owner, catalog
        return await caller.carry_out(create_organization_with_team, command, *streams, answer=made, is_secret=True)

    @get("", before_request=admin_only)
    async def list_organizations(
        self,
        house: NamedDependency[House],
        page: NamedDependency[Page],
        status: Annotated[str | None, one_of(get_args(Status))] = None,
    ) -> Response[list[OrganizationAnswer]]:
        """Organizations by id; without a status, all that were not deleted."""
        status = chosen("status", status, get_args(Status))
        async with house.pool.connection() as connection:
            found, total = await organizations.page(
                connection, {"limit": page.limit, "offset": page.offset, "status": status}
            )
        return listed((_answer(organization) for organization in found), total)

    @get("/{organization_id:str}", before_request=team_or_admin)
    async def details(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], organization_id: FromPath[str]
    ) -> Response[OrganizationDetails]:
        """An organization with its teams and what they used so far; for a key, its own team's share of that."""
        require_member(caller, organization_id)
        async with house.pool.connection() as connection:
            organization = known(await organizations.one(connection, organization_id))
            if caller.team_id is None:
                team_ids = await teams.ids_of_organization(connection, organization_id)
                totals = await usage.totals_of_organization(connection, organization_id)
            else:
                team_ids = [caller.team_id]
                totals = await usage.totals_of_team(connection, caller.team_id)
        summary = OrganizationSummary(
            total_jobs=totals.total_jobs,
            total_cost_usd=usd6(totals.client_cost_usd),
            credits_used=totals.credits_used,
        )
        return reply(OrganizationDetails(**_fields(organization), teams=team_ids, usage_summary=summary))

    @get("/{organization_id:str}/teams", before_request=team_or_admin)
    async def list_teams(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        organization_id: FromPath[str],
    ) -> Response[OrganizationTeams]:
        """The teams of an organization that were not deleted, by id; for a key, its own."""
        require_member(caller, organization_id)
        async with house.pool.connection() as connection:
            known(await organizations.one(connection, organization_id))
            found, total = await teams.page(
                connection,
                limit=page.limit,
                offset=page.offset,
                organization_id=organization_id,
                team_id=caller.team_id,
            )
            accounts = await balances.of_teams(connection, [team.team_id for team in found])
        lines = [
            TeamLine(
                team_id=team.team_id,
                team_alias=team.team_alias,
                status=team.status,
                access_groups=team.access_groups,
                model_groups=team.model_groups,
                credits_allocated=accounts[team.team_id].credits_allocated,
                credits_remaining=accounts[team.team_id].credits_remaining,
            )
            for team in found
        ]
        answer = OrganizationTeams(
            organization_id=organization_id,
            team_count=total,
            teams=[team.team_id for team in found],
            team_details=lines,
            total=total,
            limit=page.limit,
            offset=page.offset,
        )
        return wrapped(answer, total)

    @put("/{organization_id:str}", before_request=admin_only)
    async def change(
        self,
        caller: NamedDependency[Caller],
        organization_id: FromPath[str],
        data: JSONBody[ChangeOrganizationBody],
    ) -> Response[OrganizationAnswer]:
        """Change an organization's name, metadata or default model."""
        command = ChangeOrganization(
            **caller.signature(),
            name=UNSET if data.name is None else data.name,
            metadata=UNSET if data.metadata is None else small(data.metadata),
            default_model=UNSET if data.default_model is None else data.default_model,
        )
        return await caller.carry_out(
            change_organization,
            command,
            ORGANIZATION.stream(organization_id),
            answer=lambda outcome: OrganizationAnswer(**_fields_of(outcome.states[0])),
        )

    @delete("/{organization_id:str}", status_code=200, before_request=admin_only)
    async def remove(
        self, caller: NamedDependency[Caller], organization_id: FromPath[str]
    ) -> Response[OrganizationGone]:
        """Delete an organization without teams. Its id stays taken."""
        return await caller.carry_out(
            delete_organization,
            DeleteOrganization(**caller.signature()),
            ORGANIZATION.stream(organization_id),
            answer=lambda _: OrganizationGone(
                organization_id=organization_id, message="The organization has been deleted"
            ),
        )

    @put("/{organization_id:str}/status", before_request=admin_only)
    async def set_status(
        self, caller: NamedDependency[Caller], organization_id: FromPath[str], data: JSONBody[StatusBody]
    ) -> Response[OrganizationStatus]:
        """Let all teams act, only read, or come back later."""
        return await _set_status(caller, organization_id, data.status, data.reason)

    @route("/{organization_id:str}/suspend", http_method=POST_OR_PUT, status_code=200, before_request=admin_only)
    async def suspend(
        self, caller: NamedDependency[Caller], organization_id: FromPath[str], data: JSONBody[ReasonBody] = NO_REASON
    ) -> Response[OrganizationStatus]:
        """Let all teams read and nothing else."""
        return await _set_status(caller, organization_id, "suspended", data.reason)

    @route("/{organization_id:str}/pause", http_method=POST_OR_PUT, status_code=200, before_request=admin_only)
    async def pause(
        self, caller: NamedDependency[Caller], organization_id: FromPath[str], data: JSONBody[ReasonBody] = NO_REASON
    ) -> Response[OrganizationStatus]:
        """Let all teams read, and tell them to come back later with anything else."""
        return await _set_status(caller, organization_id, "paused", data.reason)

    @route("/{organization_id:str}/resume", http_method=POST_OR_PUT, status_code=200, before_request=admin_only)
    async def resume(
        self, caller: NamedDependency[Caller], organization_id: FromPath[str], data: JSONBody[ReasonBody] = NO_REASON
    ) -> Response[OrganizationStatus]:
        """Lift a suspension or a pause."""
        return await _set_status(caller, organization_id, "active", data.reason)


# -- what the methods have in common -----------------------------------------------------------------------------------


def require_member(caller: Caller, organization_id: str) -> None:
    """Raises unless it is an administrator, or a key of a team of this organization."""
    if caller.team_id is not None and caller.organization_id != organization_id:
        raise Forbidden(caller.team_id)


def known(organization: OrganizationRecord | None) -> OrganizationRecord:
    if organization is None:
        raise NotFound("organization")
    return organization


def _default_team(signature: Mapping[str, Any], data: CreateOrganizationBody, key: str) -> CreateTeam:
    team_id = data.organization_id + DEFAULT_TEAM
    if len(team_id) > MAX_ID:
        raise Invalid(["body", "organization_id"], "too long to have a default team", "value_error.length")
    return CreateTeam(
        **signature,
        team_id=team_id,
        organization_id=data.organization_id,
        team_alias=data.default_team_name,
        metadata={},
        groups=(*(data.default_team_model_groups or ()), *(data.default_team_access_groups or ())),
        key_id=new_id(),
        key_hash=hash_key(key),
        key_masked=mask_key(key),
        credits=data.default_team_credits or 0,
        transaction_id=new_id(),
    )


def _first_team(house: House, team: Team, catalog: Any, command: CreateTeam, key: str) -> DefaultTeam:
    return DefaultTeam(
        team_id=team.team_id,
        team_alias=team.team_alias,
        virtual_key=key,
        model_groups=list(team.model_groups),
        access_groups=list(team.access_groups),
        allowed_model_aliases=AllowedModels(house, catalog).aliases(team),
        credits_allocated=command.credits,
    )


def _no_team(team: Team | None) -> DefaultTeam:
    """Either its id was taken, or one of its groups is unknown."""
    return DefaultTeam(error=PROBLEMS["not_found" if team is None else "already_exists"].detail)


async def _set_status(
    caller: Caller, organization_id: str, status: Literal["active", "suspended", "paused"], reason: str | None
) -> Response[OrganizationStatus]:
    command = SetOrganizationStatus(**caller.signature(), status=status, reason=reason)
    stream = ORGANIZATION.stream(organization_id)
    before = (await caller.house.ledger.read(stream)).states[0]

    def changed(outcome: Outcome) -> OrganizationStatus:
        organization = require_organization(outcome.states[0])
        return OrganizationStatus(
            organization_id=organization_id,
            status=organization.status,
            previous_status=before.status if isinstance(before, Organization) else organization.status,
            updated_at=ts(organization.updated_at),
            reason=reason,
        )

    return await caller.carry_out(set_organization_status, command, stream, answer=changed)


def _fields_of(organization: Organization | None) -> dict[str, Any]:
    return _fields(OrganizationRecord.of(require_organization(organization)))


def _fields(organization: OrganizationRecord) -> dict[str, Any]:
    """What every answer about an organization says."""
    return {
        "organization_id": organization.organization_id,
        "name": organization.name,
        "status": organization.status,
        "metadata": organization.metadata,
        "default_model": organization.default_model,
        "created_at": ts(organization.created_at),
        "updated_at": ts(organization.updated_at),
    }


def _answer(organization: OrganizationRecord) -> OrganizationAnswer:
    return OrganizationAnswer(**_fields(organization))
