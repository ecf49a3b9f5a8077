"""Model groups: ordered fallbacks under one name (contract, section 10)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal, get_args

import msgspec
from litestar import Controller, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Meta, UnsetType

from api.answers import reply, ts
from api.bodies import NO_SLASH, Name200, Name255, Text1000
from api.caller import Caller, admin_only, team_or_admin
from api.house import House
from api.listing import Page, chosen, listed, one_of
from api.model_aliases import list_price, look
from api.problems import Invalid
from api.shapes import Timestamp, Uuid
from domain.catalog import (
    EMPTY,
    Catalog,
    ChangeModelGroup,
    CreateModelGroup,
    DeleteModelGroup,
    GroupMember,
    GroupStatus,
    ModelGroup,
    change_model_group,
    create_model_group,
    delete_model_group,
    group_targets,
    may_use_group,
    split_model,
)
from domain.errors import Forbidden, NotFound
from domain.event import Event
from domain.streams import TEAM, THE_CATALOG
from domain.team import Team
from infra.ids import new_id
from infra.ledger import Outcome
from infra.llm import Models

GroupName = Annotated[str, Meta(min_length=1, max_length=100, pattern=NO_SLASH)]
Priority = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class GroupMemberBody(msgspec.Struct):
    model_name: Name255
    priority: Priority | None = None


Members = list[GroupMemberBody | Name255]


class CreateModelGroupBody(msgspec.Struct):
    group_name: GroupName
    display_name: Name200 | None = None
    description: Text1000 | None = None
    models: Members | None = None


class ChangeModelGroupBody(msgspec.Struct):
    display_name: Name200 | None = None
    description: Text1000 | None = None
    status: GroupStatus | None = None


class GroupMembersBody(msgspec.Struct):
    models: Members


class GroupMemberAnswer(msgspec.Struct):
    id: Uuid
    model_group_id: Uuid
    model_name: str
    priority: int
    is_active: bool
    created_at: Timestamp


class ModelGroupAnswer(msgspec.Struct):
    model_group_id: Uuid
    group_name: str
    display_name: str
    description: str | None
    status: str
    models: list[GroupMemberAnswer]
    created_at: Timestamp
    updated_at: Timestamp


class ModelGroupMembersAnswer(msgspec.Struct):
    group_name: str
    models: list[GroupMemberAnswer]


class ModelGroupDeletedAnswer(msgspec.Struct):
    group_name: str
    message: str


class SkippedAnswer(msgspec.Struct):
    model_name: str
    reason: Literal["inactive", "not_allowed", "no_price"]


class ResolutionAnswer(msgspec.Struct, kw_only=True):
    group_name: str
    primary_model: str | None = None
    fallback_models: list[str] = []
    team_has_access: bool
    error: str | None = None
    skipped: list[SkippedAnswer] | UnsetType = UNSET


STATUSES = (*get_args(GroupStatus), "all")


class ModelGroupsController(Controller):
    path = "/api/model-groups"
    tags = ["Model Groups"]

    @post("/create", status_code=200, before_request=admin_only)
    async def create(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[CreateModelGroupBody]
    ) -> Response[ModelGroupAnswer]:
        """Put models under one name, the first to be asked first."""
        signature = caller.signature()
        command = CreateModelGroup(
            **signature,
            group_id=new_id(),
            group_name=data.group_name,
            display_name=data.display_name or data.group_name,
            description=data.description,
            members=_members(data.models or (), house.models, signature["at"]),
        )
        return await caller.carry_out(
            create_model_group,
            command,
            THE_CATALOG,
            answer=lambda outcome: model_group_answer(*_group_of(outcome, data.group_name), for_admin=True),
        )

    @get("", before_request=team_or_admin)
    async def list_groups(
        self,
        caller: NamedDependency[Caller],
        page: NamedDependency[Page],
        status: Annotated[str | None, one_of(STATUSES)] = None,
    ) -> Response[list[ModelGroupAnswer]]:
        """Model groups by name, the team's own or all: the active ones, unless `status` asks for others or `all`."""
        wanted = chosen("status", status, STATUSES) or "active"
        catalog, team = await look(caller)
        names = sorted(
            name
            for name, group in catalog.model_groups.items()
            if wanted in ("all", group.status) and (team is None or name in team.model_groups)
        )
        groups = (catalog.model_groups[name] for name in page.of(names))
        return listed([model_group_answer(catalog, group, for_admin=caller.is_admin) for group in groups], len(names))

    @get("/{group_name:str}", before_request=team_or_admin)
    async def details(self, caller: NamedDependency[Caller], group_name: FromPath[str]) -> Response[ModelGroupAnswer]:
        """One model group, if it is assigned to the caller."""
        catalog, team = await look(caller)
        group = _find(catalog, group_name)
        if team is not None and group_name not in team.model_groups:
            raise Forbidden(team.team_id)
        return reply(model_group_answer(catalog, group, for_admin=caller.is_admin))

    @put("/{group_name:str}/models", before_request=admin_only)
    async def replace_members(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        group_name: FromPath[str],
        data: JSONBody[Members | GroupMembersBody],
    ) -> Response[ModelGroupMembersAnswer]:
        """Say anew which models are in the group, and in which order."""
        signature = caller.signature()
        members = _members(data.models if isinstance(data, GroupMembersBody) else data, house.models, signature["at"])
        command = ChangeModelGroup(**signature, group_name=group_name, members=members)
        return await caller.carry_out(
            _keep_members,
            command,
            THE_CATALOG,
            answer=lambda outcome: ModelGroupMembersAnswer(
                group_name, _member_answers(*_group_of(outcome, group_name), for_admin=True)
            ),
        )

    @put("/{group_name:str}", before_request=admin_only)
    async def change(
        self, caller: NamedDependency[Caller], group_name: FromPath[str], data: JSONBody[ChangeModelGroupBody]
    ) -> Response[ModelGroupAnswer]:
        """Change a model group. An inactive one cannot be called."""
        command = ChangeModelGroup(
            **caller.signature(),
            group_name=group_name,
            display_name=data.display_name,
            description=data.description,
            status=data.status,
        )
        return await caller.carry_out(
            change_model_group,
            command,
            THE_CATALOG,
            answer=lambda outcome: model_group_answer(*_group_of(outcome, group_name), for_admin=True),
        )

    @delete("/{group_name:str}", status_code=200, before_request=admin_only)
    async def remove(
        self, caller: NamedDependency[Caller], group_name: FromPath[str]
    ) -> Response[ModelGroupDeletedAnswer]:
        """Delete a model group that is assigned to no team."""
        return await caller.carry_out(
            delete_model_group,
            DeleteModelGroup(**caller.signature(), group_name=group_name),
            THE_CATALOG,
            answer=lambda _: ModelGroupDeletedAnswer(group_name, "The model group has been deleted"),
        )

    @get("/{group_name:str}/resolve", before_request=team_or_admin)
    async def resolve(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        group_name: FromPath[str],
        team_id: FromQuery[str | None] = None,
    ) -> Response[ResolutionAnswer]:
        """Which models a call of a team would try, in their order, and which ones it would have to do without."""
        if caller.is_admin and team_id is None:
            raise Invalid(["query", "team_id"], "field required", "value_error.missing")
        catalog, team = await _look_at(house, caller.team_for(team_id))
        group = _find(catalog, group_name)
        return reply(_resolution(catalog, group, team, house.settings.open_aliases, for_admin=caller.is_admin))


# -- what the methods have in common -----------------------------------------------------------------------------------


def _members(models: Sequence[GroupMemberBody | str], house_models: Models, at: datetime) -> tuple[GroupMember, ...]:
    """The members that a body names, each with what it costs by the public price list today."""
    members = [GroupMemberBody(each) if isinstance(each, str) else each for each in models]
    return tuple(
        GroupMember(
            member_id=new_id(),
            model_name=member.model_name,
            priority=position if member.priority is None else member.priority,
            created_at=at,
            list_price=list_price(house_models, *split_model(member.model_name)),
        )
        for position, member in enumerate(members)
    )


def _keep_members(catalog: Catalog | None, command: ChangeModelGroup) -> list[Event]:
    """Replaces the members; one that was there already stays the one it was."""
    group = _find(catalog or EMPTY, command.group_name)
    before = {member.model_name: member for member in group.members}
    members = tuple(
        msgspec.structs.replace(member, member_id=known.member_id, created_at=known.created_at)
        if (known := before.pop(member.model_name, None))
        else member
        for member in command.members or ()
    )
    return change_model_group(catalog, msgspec.structs.replace(command, members=members))


async def _look_at(house: House, team_id: str) -> tuple[Catalog, Team]:
    catalog, team = (await house.ledger.read(THE_CATALOG, TEAM.stream(team_id))).states
    if team is None:
        raise NotFound("team")
    return catalog or EMPTY, team


def _find(catalog: Catalog, group_name: str) -> ModelGroup:
    group = catalog.model_groups.get(group_name)
    if group is None:
        raise NotFound("model_group")
    return group


def _group_of(outcome: Outcome, group_name: str) -> tuple[Catalog, ModelGroup]:
    catalog: Catalog = outcome.states[0]
    return catalog, catalog.model_groups[group_name]


# -- answers -----------------------------------------------------------------------------------------------------------


def model_group_answer(catalog: Catalog, group: ModelGroup, *, for_admin: bool) -> ModelGroupAnswer:
    """A model group as it is shown."""
    return ModelGroupAnswer(
        model_group_id=group.group_id,
        group_name=group.group_name,
        display_name=group.display_name,
        description=group.description,
        status=group.status,
        models=_member_answers(catalog, group, for_admin=for_admin),
        created_at=ts(group.created_at),
        updated_at=ts(group.updated_at),
    )


def _member_answers(catalog: Catalog, group: ModelGroup, *, for_admin: bool) -> list[GroupMemberAnswer]:
    return [
        GroupMemberAnswer(
            id=member.member_id,
            model_group_id=group.group_id,
            model_name=_shown(catalog, group, member.model_name, for_admin=for_admin),
            priority=member.priority,
            is_active=member.is_active,
            created_at=ts(member.created_at),
        )
        for member in sorted(group.members, key=lambda each: each.priority)
    ]


def _shown(catalog: Catalog, group: ModelGroup, model_name: str, *, for_admin: bool) -> str:
    """A member's name; what a provider calls its models is nothing that teams are told."""
    return model_name if for_admin or model_name in catalog.aliases else group.group_name


def _resolution(
    catalog: Catalog, group: ModelGroup, team: Team, open_aliases: bool, *, for_admin: bool
) -> ResolutionAnswer:
    if not may_use_group(group, team):
        is_assigned = group.group_name in team.model_groups
        error = "The model group is not active" if is_assigned else "The model group is not assigned to the team"
        return ResolutionAnswer(
            group_name=group.group_name, team_has_access=False, error=error, skipped=[] if for_admin else UNSET
        )
    targets, skipped = group_targets(catalog, group, team, open_aliases)
    names = [_shown(catalog, group, target.name, for_admin=for_admin) for target in targets]
    return ResolutionAnswer(
        group_name=group.group_name,
        primary_model=names[0] if names else None,
        fallback_models=names[1:],
        team_has_access=True,
        error=None if names else "None of the group's models can be used",
        skipped=[SkippedAnswer(each.model_name, each.reason) for each in skipped] if for_admin else UNSET,
    )
