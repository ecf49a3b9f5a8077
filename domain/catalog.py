"""Names for models: aliases, who may use them (access groups), ordered fallbacks under one name (model groups).

    alias: created -> changed* -> retired        group: created -> (changed | used | unused)* -> deleted

All of it is one stream, because one question needs all of it: "which models may this team call, and what do they
cost?" So a call is decided on exactly one version of the catalog, and names, memberships and prices can never
disagree. It stays small (names, not usage) and changes rarely.

Prices are copied into the catalog when an alias or a group is written, also those of the public price list: a
price changes by an event or not at all.
"""

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from domain.errors import AlreadyExists, InUse, ModelNotAllowed, NotFound, OutOfBounds
from domain.event import Command, Event, Record, State
from domain.organization import Organization
from domain.pricing import ZERO, Price
from domain.team import Team

AliasStatus = Literal["active", "inactive", "deprecated"]
GroupStatus = Literal["active", "inactive"]
MAX_MEMBERS = 20  # of a model group: each is tried once, and a call has to end some time

PriceSource = Literal["alias", "cost_map", "none"]

# -- what the events say -------------------------------------------------------------------------------------


class AliasTerms(Record):
    """All that can be chosen about an alias. Own prices, in dollars per million tokens, win over the list's."""

    provider: str
    actual_model: str
    display_name: str
    description: str | None = None
    status: AliasStatus = "active"
    pricing_input: Decimal | None = None
    pricing_output: Decimal | None = None
    list_price: Price | None = None
    allow_unpriced: bool = False
    credential_name: str | None = None
    api_base: str | None = None
    secret_id: str | None = None

    @property
    def price_source(self) -> PriceSource:
        if self.pricing_input is not None and self.pricing_output is not None:
            return "alias"
        return "cost_map" if self.list_price is not None else "none"

    @property
    def price(self) -> Price | None:
        """Own prices, what is missing of them from the list; None when that leaves a gap."""
        listed = self.list_price
        own_input, own_output = self.pricing_input, self.pricing_output
        if listed is not None:
            own_input = listed.input_usd_per_million if own_input is None else own_input
            own_output = listed.output_usd_per_million if own_output is None else own_output
        return None if own_input is None or own_output is None else Price(own_input, own_output)


class GroupMember(Record):
    """An alias or a provider model string; `list_price` is what the latter costs."""

    member_id: str
    model_name: str
    priority: int
    is_active: bool = True
    created_at: datetime
    list_price: Price | None = None


# -- events --------------------------------------------------------------------------------------------------


class AliasCreated(Event):
    alias_id: str
    model_alias: str
    terms: AliasTerms


class AliasChanged(Event):
    model_alias: str
    terms: AliasTerms


class AliasRetired(Event):
    """The alias leaves its access groups; its name may be used again."""

    model_alias: str


class AccessGroupCreated(Event):
    group_name: str
    display_name: str
    description: str | None
    model_aliases: tuple[str, ...]


class AccessGroupChanged(Event):
    """Everything as it is from now on."""

    group_name: str
    display_name: str
    description: str | None
    status: GroupStatus
    model_aliases: tuple[str, ...]


class AccessGroupDeleted(Event):
    group_name: str


class ModelGroupCreated(Event):
    group_id: str
    group_name: str
    display_name: str
    description: str | None
    members: tuple[GroupMember, ...]


class ModelGroupChanged(Event):
    """Everything as it is from now on."""

    group_name: str
    display_name: str
    description: str | None
    status: GroupStatus
    members: tuple[GroupMember, ...]


class ModelGroupDeleted(Event):
    group_name: str


class GroupsUsed(Event):
    """A team now uses these groups and no longer uses those: what is in use cannot be deleted."""

    team_id: str
    access_groups_added: tuple[str, ...] = ()
    access_groups_removed: tuple[str, ...] = ()
    model_groups_added: tuple[str, ...] = ()
    model_groups_removed: tuple[str, ...] = ()


CatalogEvent = (
    AliasCreated
    | AliasChanged
    | AliasRetired
    | AccessGroupCreated
    | AccessGroupChanged
    | AccessGroupDeleted
    | ModelGroupCreated
    | ModelGroupChanged
    | ModelGroupDeleted
    | GroupsUsed
)

# -- state ---------------------------------------------------------------------------------------------------


class Alias(Record):
    alias_id: str
    model_alias: str
    terms: AliasTerms
    access_groups: tuple[str, ...] = ()
    created_at: datetime
    updated_at: datetime


class AccessGroup(Record):
    group_name: str
    display_name: str
    description: str | None
    status: GroupStatus = "active"
    model_aliases: tuple[str, ...] = ()
    teams: int = 0
    created_at: datetime
    updated_at: datetime


class ModelGroup(Record):
    group_id: str
    group_name: str
    display_name: str
    description: str | None
    status: GroupStatus = "active"
    members: tuple[GroupMember, ...] = ()
    teams: int = 0
    created_at: datetime
    updated_at: datetime


class Catalog(State):
    aliases: dict[str, Alias] = {}
    access_groups: dict[str, AccessGroup] = {}
    model_groups: dict[str, ModelGroup] = {}


EMPTY = Catalog()
Group = TypeVar("Group", AccessGroup, ModelGroup)
Thing = TypeVar("Thing", Alias, AccessGroup, ModelGroup)


def evolve(catalog: Catalog | None, event: CatalogEvent) -> Catalog:
    """What the catalog is after this event, whatever the rules say today."""
    catalog = catalog or EMPTY
    match event:
        case AliasCreated(alias_id=alias_id, model_alias=name, terms=terms):
            alias = Alias(alias_id=alias_id, model_alias=name, terms=terms, created_at=event.at, updated_at=event.at)
            return replace(catalog, aliases={**catalog.aliases, name: alias})
        case AliasChanged(model_alias=name, terms=terms):
            return replace(catalog, aliases=_changed(catalog.aliases, name, terms=terms, updated_at=event.at))
        case AliasRetired(model_alias=name):
            aliases = {key: alias for key, alias in catalog.aliases.items() if key != name}
            groups = {
                key: replace(group, model_aliases=_without(group.model_aliases, name))
                for key, group in catalog.access_groups.items()
            }
            return replace(catalog, aliases=aliases, access_groups=groups)
        case AccessGroupCreated(group_name=name):
            group = AccessGroup(
                group_name=name,
                display_name=event.display_name,
                description=event.description,
                model_aliases=event.model_aliases,
                created_at=event.at,
                updated_at=event.at,
            )
            return _with_access_groups(catalog, {**catalog.access_groups, name: group})
        case AccessGroupChanged(group_name=name):
            groups = _changed(
                catalog.access_groups,
                name,
                display_name=event.display_name,
                description=event.description,
                status=event.status,
                model_aliases=event.model_aliases,
                updated_at=event.at,
            )
            return _with_access_groups(catalog, groups)
        case AccessGroupDeleted(group_name=name):
            groups = {key: group for key, group in catalog.access_groups.items() if key != name}
            return _with_access_groups(catalog, groups)
        case ModelGroupCreated(group_name=name):
            model_group = ModelGroup(
                group_id=event.group_id,
                group_name=name,
                display_name=event.display_name,
                description=event.description,
                members=event.members,
                created_at=event.at,
                updated_at=event.at,
            )
            return replace(catalog, model_groups={**catalog.model_groups, name: model_group})
        case ModelGroupChanged(group_name=name):
            model_groups = _changed(
                catalog.model_groups,
                name,
                display_name=event.display_name,
                description=event.description,
                status=event.status,
                members=event.members,
                updated_at=event.at,
            )
            return replace(catalog, model_groups=model_groups)
        case ModelGroupDeleted(group_name=name):
            model_groups = {key: group for key, group in catalog.model_groups.items() if key != name}
            return replace(catalog, model_groups=model_groups)
        case GroupsUsed():
            return replace(
                catalog,
                access_groups=_count(catalog.access_groups, event.access_groups_added, event.access_groups_removed),
                model_groups=_count(catalog.model_groups, event.model_groups_added, event.model_groups_removed),
            )


def _changed(things: dict[str, Thing], name: str, **fields: Any) -> dict[str, Thing]:
    """A change of what is gone says nothing any more."""
    thing = things.get(name)
    return things if thing is None else {**things, name: replace(thing, **fields)}


def _with_access_groups(catalog: Catalog, groups: dict[str, AccessGroup]) -> Catalog:
    """Each alias knows its groups, so that "may this team use it" is a look-up and not a search."""
    memberships: dict[str, list[str]] = {}
    for group in groups.values():
        for name in group.model_aliases:
            memberships.setdefault(name, []).append(group.group_name)
    aliases = {
        name: replace(alias, access_groups=tuple(sorted(memberships.get(name, ()))))
        for name, alias in catalog.aliases.items()
    }
    return replace(catalog, aliases=aliases, access_groups=groups)


def _count(groups: dict[str, Group], added: Iterable[str], removed: Iterable[str]) -> dict[str, Group]:
    counted = dict(groups)
    for names, difference in ((added, 1), (removed, -1)):
        for name in names:
            if name in counted:
                counted[name] = replace(counted[name], teams=counted[name].teams + difference)
    return counted


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(each for each in names if each != name)


# -- resolution: which models a team may call, at which price ------------------------------------------------


class Target(Record):
    """One provider model that could answer, with everything that is needed to reach it and to price the answer."""

    name: str
    alias: str | None
    provider: str
    model: str
    price: Price
    unpriced: bool = False
    credential_name: str | None = None
    api_base: str | None = None
    secret_id: str | None = None


class InAccessGroups(Protocol):
    """A team, as far as aliases are concerned."""

    @property
    def access_groups(self) -> Collection[str]: ...


class Skipped(msgspec.Struct, frozen=True):
    """A group member that this team cannot reach, and why."""

    model_name: str
    reason: Literal["inactive", "not_allowed", "no_price"]


class Resolution(msgspec.Struct, frozen=True):
    """The name that was asked for (or the default), and the targets in the order in which they are tried."""

    requested: str
    targets: tuple[Target, ...]


def resolve(
    catalog: Catalog,
    team: Team,
    organization: Organization | None,
    requested: str | None,
    *,
    open_aliases: bool,
) -> Resolution:
    """Finds what a model name means for a team.

    Args:
        requested: an alias, a model group, or None for the default of the team, else of its organization, else the
            first usable alias by name.
        open_aliases: whether an alias in no access group may be used by everyone.

    Raises:
        ModelNotAllowed: unknown, not allowed and without a usable member look alike. Who named no model and has
            no default is told of none.
    """
    found = find(catalog, team, organization, requested, open_aliases=open_aliases)
    if found is None:
        name = requested or _default_model(team, organization)
        available = available_models(catalog, team, open_aliases) if name else []
        raise ModelNotAllowed(model=name, available_models=available)
    return found


def find(
    catalog: Catalog,
    team: Team,
    organization: Organization | None,
    requested: str | None,
    *,
    open_aliases: bool,
) -> Resolution | None:
    """As `resolve`, with None for what is not allowed."""
    name = requested or _default_model(team, organization)
    if name is None:
        name = min((alias.model_alias for alias in usable_aliases(catalog, team, open_aliases)), default=None)
    if name is None:
        return None
    alias = catalog.aliases.get(name)
    if alias is not None and is_usable(catalog, alias, team, open_aliases):
        return Resolution(name, (_alias_target(alias),))
    group = catalog.model_groups.get(name)
    if group is not None and may_use_group(group, team):
        targets, _ = group_targets(catalog, group, team, open_aliases)
        return Resolution(name, tuple(targets)) if targets else None
    return None


def _default_model(team: Team, organization: Organization | None) -> str | None:
    return team.default_model or (organization.default_model if organization else None)


def group_targets(
    catalog: Catalog, group: ModelGroup, team: Team, open_aliases: bool
) -> tuple[list[Target], list[Skipped]]:
    """The members in the order of their priority, and those that this team has to do without."""
    targets: list[Target] = []
    skipped: list[Skipped] = []
    for member in sorted(group.members, key=lambda each: each.priority):
        alias = catalog.aliases.get(member.model_name)
        if not member.is_active or (alias is not None and alias.terms.status == "inactive"):
            skipped.append(Skipped(member.model_name, "inactive"))
        elif alias is not None:
            if is_usable(catalog, alias, team, open_aliases):
                targets.append(_alias_target(alias, name=member.model_name))
            else:
                skipped.append(Skipped(member.model_name, "not_allowed"))
        elif member.list_price is None:
            skipped.append(Skipped(member.model_name, "no_price"))
        else:
            provider, model = split_model(member.model_name)
            targets.append(
                Target(
                    name=member.model_name,
                    alias=None,
                    provider=provider,
                    model=model,
                    price=member.list_price,
                )
            )
    return targets, skipped


def is_usable(catalog: Catalog, alias: Alias, team: InAccessGroups, open_aliases: bool) -> bool:
    """An alias is usable through a shared active access group, or by all when it is in no group at all."""
    if alias.terms.status == "inactive":
        return False
    if not alias.access_groups:
        return open_aliases
    return any(
        name in team.access_groups and catalog.access_groups[name].status == "active" for name in alias.access_groups
    )


def usable_aliases(catalog: Catalog, team: InAccessGroups, open_aliases: bool) -> Iterator[Alias]:
    return (alias for alias in catalog.aliases.values() if is_usable(catalog, alias, team, open_aliases))


def may_use_group(group: ModelGroup, team: Team) -> bool:
    return group.status == "active" and group.group_name in team.model_groups


def available_models(catalog: Catalog, team: Team, open_aliases: bool) -> list[str]:
    """Names of the aliases and groups that the team may call, sorted; a group that reaches no model is no help."""
    aliases = {alias.model_alias for alias in usable_aliases(catalog, team, open_aliases)}
    groups = {
        name
        for name, group in catalog.model_groups.items()
        if may_use_group(group, team) and group_targets(catalog, group, team, open_aliases)[0]
    }
    return sorted(aliases | groups)


def split_model(name: str) -> tuple[str, str]:
    """`provider/model` into its halves; a bare model name is OpenAI's, as LiteLLM has it."""
    provider, slash, model = name.partition("/")
    return (provider, model) if slash else ("openai", name)


def _alias_target(alias: Alias, name: str | None = None) -> Target:
    terms = alias.terms
    return Target(
        name=name or alias.model_alias,
        alias=alias.model_alias,
        provider=terms.provider,
        model=terms.actual_model,
        price=terms.price or Price(terms.pricing_input or ZERO, terms.pricing_output or ZERO),
        unpriced=terms.price is None,
        credential_name=terms.credential_name,
        api_base=terms.api_base,
        secret_id=terms.secret_id,
    )


# -- commands ------------------------------------------------------------------------------------------------


class CreateAlias(Command):
    alias_id: str
    model_alias: str
    terms: AliasTerms
    access_groups: tuple[str, ...] = ()


class ChangeAlias(Command):
    """`access_groups` of None leaves the memberships alone."""

    model_alias: str
    terms: AliasTerms
    access_groups: tuple[str, ...] | None = None


class RetireAlias(Command):
    model_alias: str


class CreateAccessGroup(Command):
    group_name: str
    display_name: str
    description: str | None = None
    model_aliases: tuple[str, ...] = ()


class ChangeAccessGroup(Command):
    """Every field as it shall be; None leaves it alone."""

    group_name: str
    display_name: str | None = None
    description: str | None = None
    status: GroupStatus | None = None
    model_aliases: tuple[str, ...] | None = None
    add_aliases: tuple[str, ...] = ()
    remove_aliases: tuple[str, ...] = ()


class DeleteAccessGroup(Command):
    group_name: str


class CreateModelGroup(Command):
    group_id: str
    group_name: str
    display_name: str
    description: str | None = None
    members: tuple[GroupMember, ...] = ()


class ChangeModelGroup(Command):
    """None leaves a field alone."""

    group_name: str
    display_name: str | None = None
    description: str | None = None
    status: GroupStatus | None = None
    members: tuple[GroupMember, ...] | None = None


class DeleteModelGroup(Command):
    group_name: str


# -- decisions -----------------------------------------------------------------------------------------------


def create_alias(catalog: Catalog | None, command: CreateAlias) -> list[Event]:
    catalog = catalog or EMPTY
    if command.model_alias in catalog.aliases:
        raise AlreadyExists("model_alias")
    _require_price(command.terms)
    created = AliasCreated(
        at=command.at, alias_id=command.alias_id, model_alias=command.model_alias, terms=command.terms
    )
    memberships = _memberships(catalog, command.at, command.model_alias, (), command.access_groups)
    return [created, *memberships]


def change_alias(catalog: Catalog | None, command: ChangeAlias) -> list[Event]:
    catalog = catalog or EMPTY
    alias = catalog.aliases.get(command.model_alias)
    if alias is None:
        raise NotFound("model_alias")
    _require_price(command.terms)
    events: list[Event] = []
    if alias.terms != command.terms:
        events.append(AliasChanged(at=command.at, model_alias=alias.model_alias, terms=command.terms))
    if command.access_groups is not None:
        events += _memberships(catalog, command.at, alias.model_alias, alias.access_groups, command.access_groups)
    return events


def retire_alias(catalog: Catalog | None, command: RetireAlias) -> list[Event]:
    if command.model_alias not in (catalog or EMPTY).aliases:
        raise NotFound("model_alias")
    return [AliasRetired(at=command.at, model_alias=command.model_alias)]


def create_access_group(catalog: Catalog | None, command: CreateAccessGroup) -> list[Event]:
    catalog = catalog or EMPTY
    if command.group_name in catalog.access_groups:
        raise AlreadyExists("access_group")
    _require_aliases(catalog, command.model_aliases)
    return [
        AccessGroupCreated(
            at=command.at,
            group_name=command.group_name,
            display_name=command.display_name,
            description=command.description,
            model_aliases=_unique(command.model_aliases),
        )
    ]


def change_access_group(catalog: Catalog | None, command: ChangeAccessGroup) -> list[Event]:
    catalog = catalog or EMPTY
    group = catalog.access_groups.get(command.group_name)
    if group is None:
        raise NotFound("access_group")
    named = command.model_aliases if command.model_aliases is not None else group.model_aliases
    _require_aliases(catalog, (*(command.model_aliases or ()), *command.add_aliases))
    aliases = (name for name in (*named, *command.add_aliases) if name not in command.remove_aliases)
    changed = replace(
        group,
        display_name=group.display_name if command.display_name is None else command.display_name,
        description=group.description if command.description is None else command.description,
        status=command.status or group.status,
        model_aliases=_unique(aliases),
    )
    return [] if changed == group else [_access_group_changed(command.at, changed)]


def delete_access_group(catalog: Catalog | None, command: DeleteAccessGroup) -> list[Event]:
    group = (catalog or EMPTY).access_groups.get(command.group_name)
    if group is None:
        raise NotFound("access_group")
    if group.teams:
        raise InUse
    return [AccessGroupDeleted(at=command.at, group_name=group.group_name)]


def create_model_group(catalog: Catalog | None, command: CreateModelGroup) -> list[Event]:
    catalog = catalog or EMPTY
    if command.group_name in catalog.model_groups:
        raise AlreadyExists("model_group")
    _require_few(command.members)
    return [
        ModelGroupCreated(
            at=command.at,
            group_id=command.group_id,
            group_name=command.group_name,
            display_name=command.display_name,
            description=command.description,
            members=command.members,
        )
    ]


def change_model_group(catalog: Catalog | None, command: ChangeModelGroup) -> list[Event]:
    group = (catalog or EMPTY).model_groups.get(command.group_name)
    if group is None:
        raise NotFound("model_group")
    changed = replace(
        group,
        display_name=group.display_name if command.display_name is None else command.display_name,
        description=group.description if command.description is None else command.description,
        status=command.status or group.status,
        members=group.members if command.members is None else command.members,
    )
    if changed == group:
        return []
    _require_few(changed.members)
    return [
        ModelGroupChanged(
            at=command.at,
            group_name=changed.group_name,
            display_name=changed.display_name,
            description=changed.description,
            status=changed.status,
            members=changed.members,
        )
    ]


def delete_model_group(catalog: Catalog | None, command: DeleteModelGroup) -> list[Event]:
    group = (catalog or EMPTY).model_groups.get(command.group_name)
    if group is None:
        raise NotFound("model_group")
    if group.teams:
        raise InUse
    return [ModelGroupDeleted(at=command.at, group_name=group.group_name)]


def _require_price(terms: AliasTerms) -> None:
    if terms.price is None and not terms.allow_unpriced:
        raise OutOfBounds("pricing_input", "no price is known for this model; give one or set allow_unpriced")


def _require_few(members: tuple[GroupMember, ...]) -> None:
    if len(members) > MAX_MEMBERS:
        raise OutOfBounds("models", f"a group has at most {MAX_MEMBERS} models")


def _require_aliases(catalog: Catalog, names: Iterable[str]) -> None:
    if any(name not in catalog.aliases for name in names):
        raise NotFound("model_alias")


def _memberships(
    catalog: Catalog, at: datetime, alias: str, before: tuple[str, ...], after: tuple[str, ...]
) -> list[Event]:
    """The changes of access groups that put an alias into just these groups."""
    if any(name not in catalog.access_groups for name in after):
        raise NotFound("access_group")
    events: list[Event] = []
    for name in _unique((*before, *after)):
        group = catalog.access_groups[name]
        if name in before and name not in after:
            without = replace(group, model_aliases=_without(group.model_aliases, alias))
            events.append(_access_group_changed(at, without))
        elif name in after and alias not in group.model_aliases:
            including = replace(group, model_aliases=(*group.model_aliases, alias))
            events.append(_access_group_changed(at, including))
    return events


def _access_group_changed(at: datetime, group: AccessGroup) -> AccessGroupChanged:
    return AccessGroupChanged(
        at=at,
        group_name=group.group_name,
        display_name=group.display_name,
        description=group.description,
        status=group.status,
        model_aliases=group.model_aliases,
    )


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
