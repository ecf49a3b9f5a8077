"""Access groups: which teams may use which aliases (contract, section 8)."""

from collections.abc import Iterable
from typing import Annotated, Any, get_args

import msgspec
from litestar import Controller, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from api.answers import reply, ts
from api.bodies import Name200, Text1000
from api.caller import Caller, admin_only, team_or_admin
from api.house import House
from api.listing import Page, chosen, listed, one_of
from api.model_aliases import AliasName, Teams, litellm_model, look, teams_using
from api.shapes import Timestamp
from domain.catalog import (
    AccessGroup,
    Alias,
    Catalog,
    ChangeAccessGroup,
    CreateAccessGroup,
    DeleteAccessGroup,
    GroupStatus,
    change_access_group,
    create_access_group,
    delete_access_group,
)
from domain.errors import Forbidden, NotFound
from domain.streams import THE_CATALOG
from infra.ledger import Outcome
from projections import group_teams

GroupName = AliasName


class CreateAccessGroupBody(msgspec.Struct):
    group_name: GroupName
    display_name: Name200 | None = None
    description: Text1000 | None = None
    model_aliases: list[Name200] | None = None


class ChangeAccessGroupBody(msgspec.Struct):
    display_name: Name200 | None = None
    description: Text1000 | None = None
    status: GroupStatus | None = None
    model_aliases: list[Name200] | None = None


class AliasNamesBody(msgspec.Struct):
    model_aliases: list[Name200]


class AliasInGroup(msgspec.Struct, kw_only=True):
    model_alias: str
    alias: str
    display_name: str
    description: str | None
    provider: str | UnsetType = UNSET
    actual_model: str | UnsetType = UNSET
    litellm_model: str | UnsetType = UNSET


class AccessGroupAnswer(msgspec.Struct, kw_only=True):
    group_name: str
    display_name: str
    description: str | None
    status: str
    model_aliases: list[AliasInGroup]
    model_alias_names: list[str]
    model_count: int
    team_count: int
    teams_using: list[str]
    teams_with_access: list[str]
    created_at: Timestamp
    updated_at: Timestamp


class AccessGroupDeletedAnswer(msgspec.Struct):
    group_name: str
    message: str


class AccessGroupsController(Controller):
    path = "/api/model-access-groups"
    tags = ["Model Access Groups"]

    @post("/create", status_code=200, before_request=admin_only)
    async def create(
        self, caller: NamedDependency[Caller], data: JSONBody[CreateAccessGroupBody]
    ) -> Response[AccessGroupAnswer]:
        """Make a group of aliases, for teams to be given access to."""
        command = CreateAccessGroup(
            **caller.signature(),
            group_name=data.group_name,
            display_name=data.display_name or data.group_name,
            description=data.description,
            model_aliases=tuple(data.model_aliases or ()),
        )
        return await caller.carry_out(
            create_access_group, command, THE_CATALOG, answer=lambda done: _answer_of(done, data.group_name, {})
        )

    @get("", before_request=team_or_admin)
    async def list_groups(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        status: Annotated[str | None, one_of(get_args(GroupStatus))] = None,
    ) -> Response[list[AccessGroupAnswer]]:
        """Access groups by name: the team's own, or all for an administrator."""
        wanted = chosen("status", status, get_args(GroupStatus))
        catalog, team = await look(caller)
        names = sorted(
            name
            for name, group in catalog.access_groups.items()
            if wanted in (None, group.status) and (team is None or name in team.access_groups)
        )
        shown = page.of(names)
        teams = await _teams(caller, house, shown)
        for_admin = caller.is_admin
        answers = (access_group_answer(catalog, catalog.access_groups[name], teams, for_admin) for name in shown)
        return listed(answers, len(names))

    @get("/{group_name:str}", before_request=team_or_admin)
    async def details(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], group_name: FromPath[str]
    ) -> Response[AccessGroupAnswer]:
        """One access group, if the caller is in it."""
        catalog, team = await look(caller)
        group = catalog.access_groups.get(group_name)
        if group is None:
            raise NotFound("access_group")
        if team is not None and group_name not in team.access_groups:
            raise Forbidden(team.team_id)
        teams = await _teams(caller, house, [group_name])
        return reply(access_group_answer(catalog, group, teams, caller.is_admin))

    @put("/{group_name:str}", before_request=admin_only)
    async def change(
        self,
        caller: NamedDependency[Caller],
        group_name: FromPath[str],
        data: JSONBody[ChangeAccessGroupBody],
    ) -> Response[AccessGroupAnswer]:
        """Change an access group. Teams in an inactive one have no access through it."""
        return await _change(
            caller,
            group_name,
            display_name=data.display_name,
            description=data.description,
            status=data.status,
            model_aliases=_names(data.model_aliases),
        )

    @put("/{group_name:str}/models", before_request=admin_only)
    async def replace_models(
        self,
        caller: NamedDependency[Caller],
        group_name: FromPath[str],
        data: JSONBody[list[Name200] | AliasNamesBody],
    ) -> Response[AccessGroupAnswer]:
        """Say anew which aliases are in the group."""
        aliases = data.model_aliases if isinstance(data, AliasNamesBody) else data
        return await _change(caller, group_name, model_aliases=tuple(aliases))

    @post("/{group_name:str}/add-models", status_code=200, before_request=admin_only)
    async def add_models(
        self, caller: NamedDependency[Caller], group_name: FromPath[str], data: JSONBody[AliasNamesBody]
    ) -> Response[AccessGroupAnswer]:
        """Put aliases into the group; those that are in it stay."""
        return await _change(caller, group_name, add_aliases=tuple(data.model_aliases))

    @post("/{group_name:str}/remove-models", status_code=200, before_request=admin_only)
    async def remove_models(
        self, caller: NamedDependency[Caller], group_name: FromPath[str], data: JSONBody[AliasNamesBody]
    ) -> Response[AccessGroupAnswer]:
        """Take aliases out of the group; those that are not in it stay outside."""
        return await _change(caller, group_name, remove_aliases=tuple(data.model_aliases))

    @delete("/{group_name:str}", status_code=200, before_request=admin_only)
    async def remove(
        self, caller: NamedDependency[Caller], group_name: FromPath[str]
    ) -> Response[AccessGroupDeletedAnswer]:
        """Delete an access group that no team uses."""
        return await caller.carry_out(
            delete_access_group,
            DeleteAccessGroup(**caller.signature(), group_name=group_name),
            THE_CATALOG,
            answer=lambda _: AccessGroupDeletedAnswer(group_name, "The access group has been deleted"),
        )


# -- what the methods have in common -----------------------------------------------------------------------------------


async def _change(caller: Caller, group_name: str, **changes: Any) -> Response[AccessGroupAnswer]:
    teams = await teams_using(caller.house, "access_group", [group_name])
    return await caller.carry_out(
        change_access_group,
        ChangeAccessGroup(**caller.signature(), group_name=group_name, **changes),
        THE_CATALOG,
        answer=lambda outcome: _answer_of(outcome, group_name, teams),
    )


async def _teams(caller: Caller, house: House, names: Iterable[str]) -> Teams:
    """The teams of each group, as far as the caller may know them."""
    if caller.team_id is not None:
        return {name: [caller.team_id] for name in names}
    async with house.pool.connection() as connection:
        return await group_teams.of_groups(connection, "access_group", names)


def _names(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _answer_of(outcome: Outcome, group_name: str, teams: Teams) -> AccessGroupAnswer:
    catalog: Catalog = outcome.states[0]
    return access_group_answer(catalog, catalog.access_groups[group_name], teams, for_admin=True)


def access_group_answer(catalog: Catalog, group: AccessGroup, teams: Teams, for_admin: bool) -> AccessGroupAnswer:
    """An access group as it is shown.

    Args:
        teams: those of each group that the caller may know of.
    """
    names = list(group.model_aliases)
    using = list(teams.get(group.group_name, ()))
    return AccessGroupAnswer(
        group_name=group.group_name,
        display_name=group.display_name,
        description=group.description,
        status=group.status,
        model_aliases=[_alias_in_group(catalog.aliases[name], for_admin=for_admin) for name in names],
        model_alias_names=names,
        model_count=len(names),
        team_count=len(using),
        teams_using=using,
        teams_with_access=using,
        created_at=ts(group.created_at),
        updated_at=ts(group.updated_at),
    )


def _alias_in_group(alias: Alias, *, for_admin: bool) -> AliasInGroup:
    terms = alias.terms
    answer = AliasInGroup(
        model_alias=alias.model_alias,
        alias=alias.model_alias,
        display_name=terms.display_name,
        description=terms.description,
    )
    if for_admin:
        answer.provider, answer.actual_model = terms.provider, terms.actual_model
        answer.litellm_model = litellm_model(alias)
    return answer
