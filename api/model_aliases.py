"""Aliases: public names for providers' models, with their prices (contract, section 9)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from litestar import Controller, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from api.answers import number_or_none, reply, ts, usd6
from api.bodies import NO_CONTROL, NO_SLASH, Name200, Name255, Text1000, exact
from api.caller import Caller, admin_only, team_or_admin
from api.house import House
from api.listing import Page, chosen, listed, one_of
from api.problems import Invalid
from api.shapes import Timestamp, Uuid
from api.targets import Address, ApiKey, address
from domain.catalog import (
    EMPTY,
    Alias,
    AliasStatus,
    AliasTerms,
    Catalog,
    ChangeAlias,
    CreateAlias,
    RetireAlias,
    available_models,
    change_alias,
    create_alias,
    is_usable,
    retire_alias,
    usable_aliases,
)
from domain.credential import canonical_provider
from domain.errors import InvalidValue, ModelNotAllowed, NotFound
from domain.event import Command, Event
from domain.pricing import ZERO, Price
from domain.streams import TEAM, THE_CATALOG
from domain.team import Team
from infra.ids import new_id
from infra.ledger import Outcome
from infra.llm import Models, Target, known_provider, provider_and_model
from infra.llm.providers import DEMO
from projections import alias_usage, group_teams, provider_credentials
from projections.alias_usage import AliasUsage
from projections.group_teams import Kind

T = TypeVar("T")

# Names travel in paths.
AliasName = Annotated[str, Meta(min_length=1, max_length=200, pattern=NO_SLASH)]
Text255 = Annotated[str, Meta(max_length=255, pattern=NO_CONTROL)]
Teams = Mapping[str, Iterable[str]]
"""The teams that use each group."""


class AliasBody(msgspec.Struct, kw_only=True):
    """Everything that can be said about an alias; clients know some of it under two names."""

    alias: AliasName | None = None
    model_alias: AliasName | None = None
    litellm_model: Name255 | None = None
    provider: Name255 | None = None
    actual_model: Name255 | None = None
    display_name: Name200 | None = None
    description: Text1000 | None = None
    pricing_input: Decimal | None = None
    pricing_output: Decimal | None = None
    input_price_per_million: Decimal | None = None
    output_price_per_million: Decimal | None = None
    access_groups: list[Name200] | None = None
    active: bool | None = None
    status: AliasStatus | None = None
    credential_name: Text255 | None = None
    api_base: Address | None = None
    api_key: ApiKey | None = None
    allow_unpriced: bool | None = None


class UsageStats(msgspec.Struct):
    total_calls: int
    total_cost_usd: Decimal
    avg_tokens_per_call: Decimal


class AliasAnswer(msgspec.Struct, kw_only=True):
    id: Uuid
    model_alias: str
    alias: str
    display_name: str
    description: str | None
    status: str
    active: bool
    is_active: bool
    created_at: Timestamp
    updated_at: Timestamp
    provider: str | UnsetType = UNSET
    actual_model: str | UnsetType = UNSET
    actual_model_name: str | UnsetType = UNSET
    litellm_model: str | UnsetType = UNSET
    litellm_model_id: str | UnsetType | None = UNSET
    pricing_input: Decimal | UnsetType | None = UNSET
    pricing_output: Decimal | UnsetType | None = UNSET
    input_price_per_million: Decimal | UnsetType | None = UNSET
    output_price_per_million: Decimal | UnsetType | None = UNSET
    price_source: str | UnsetType = UNSET
    credential_name: str | UnsetType | None = UNSET
    api_base: str | UnsetType | None = UNSET
    has_api_key: bool | UnsetType = UNSET
    access_groups: list[str] | UnsetType = UNSET
    teams_using: list[str] | UnsetType = UNSET
    teams_with_access: int | UnsetType = UNSET
    usage_stats: UsageStats | UnsetType = UNSET


class AliasRetiredAnswer(msgspec.Struct):
    model_alias: str
    message: str


class ModelAliasesController(Controller):
    path = "/api"
    tags = ["Model Aliases"]

    @post(
        ["/model-aliases/create", "/models/create", "/models/aliases/create"],
        status_code=200,
        before_request=admin_only,
    )
    async def create(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[AliasBody]
    ) -> Response[AliasAnswer]:
        """Give a provider's model a public name and a price."""
        name = _name_of(data)
        terms = _new_terms(name, _said(data), house.models)
        await _require_credential(house, terms)
        groups = tuple(data.access_groups or ())
        teams = await teams_using(house, "access_group", groups)
        async with house.targets.keeping(data.api_key) as secret_id:
            command = CreateAlias(
                **caller.signature(),
                alias_id=new_id(),
                model_alias=name,
                terms=replace(terms, secret_id=secret_id),
                access_groups=groups,
            )
            return await caller.carry_out(
                create_alias,
                command,
                THE_CATALOG,
                answer=lambda outcome: _answer_of(outcome, name, teams),
            )

    @get(["/model-aliases", "/models"], before_request=team_or_admin)
    async def list_aliases(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        page: NamedDependency[Page],
        provider: FromQuery[str | None] = None,
        status: Annotated[str | None, one_of(get_args(AliasStatus))] = None,
        access_group: FromQuery[str | None] = None,
    ) -> Response[list[AliasAnswer]]:
        """Aliases by name: those that the team may use, or all for an administrator.

        Who provides a model, and other teams' groups, are nothing that a team could filter by.
        """
        wanted = chosen("status", status, get_args(AliasStatus))
        catalog, team = await look(caller)
        if team is None:
            found: Iterable[Alias] = catalog.aliases.values()
            if provider is not None:
                named = canonical_provider(provider.lower())
                found = (alias for alias in found if canonical_provider(alias.terms.provider) == named)
        else:
            found = usable_aliases(catalog, team, house.settings.open_aliases)
            access_group = access_group if access_group is None or access_group in team.access_groups else ""
        names = sorted(
            alias.model_alias
            for alias in found
            if wanted in (None, alias.terms.status) and (access_group is None or access_group in alias.access_groups)
        )
        aliases = [catalog.aliases[name] for name in page.of(names)]
        teams = None if team else await teams_using(house, "access_group", _active_groups(catalog, *aliases))
        return listed([alias_answer(catalog, alias, teams) for alias in aliases], len(names))

    @get(["/model-aliases/{alias_name:str}", "/models/{alias_name:str}"], before_request=team_or_admin)
    async def details(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], alias_name: FromPath[str]
    ) -> Response[AliasAnswer]:
        """One alias, if the caller may use it."""
        catalog, team = await look(caller)
        alias = _find(catalog, alias_name)
        if team is not None:
            is_open = house.settings.open_aliases
            if not is_usable(catalog, alias, team, is_open):
                raise ModelNotAllowed(alias_name, available_models(catalog, team, is_open))
            return reply(alias_answer(catalog, alias, None))
        async with house.pool.connection() as connection:
            teams = await group_teams.of_groups(connection, "access_group", _active_groups(catalog, alias))
            usage = await alias_usage.one(connection, alias_name)
        return reply(alias_answer(catalog, alias, teams, usage))

    @put(["/model-aliases/{alias_name:str}", "/models/{alias_name:str}"], before_request=admin_only)
    async def change(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        alias_name: FromPath[str],
        data: JSONBody[AliasBody],
    ) -> Response[AliasAnswer]:
        """Change an alias. New prices apply to later calls only."""
        if _either("alias", data.alias, data.model_alias) not in (None, alias_name):
            raise Invalid(["body", "alias"], "an alias keeps its name", "value_error.format")
        groups = None if data.access_groups is None else tuple(data.access_groups)
        change = _Change(alias_name, _said(data), groups, house.models)
        catalog, _ = await look(caller)
        alias = _find(catalog, alias_name)
        await _require_credential(house, change.terms_after(alias.terms))
        teams = await teams_using(house, "access_group", {*(groups or ()), *alias.access_groups})
        async with house.targets.keeping(data.api_key) as change.secret_id:
            answer = await caller.carry_out(
                change.decide,
                Command(**caller.signature()),
                THE_CATALOG,
                answer=lambda outcome: _answer_of(outcome, alias_name, teams),
            )
        await house.targets.forget(change.replaced)
        return answer

    @delete(["/model-aliases/{alias_name:str}", "/models/{alias_name:str}"], status_code=200, before_request=admin_only)
    async def retire(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], alias_name: FromPath[str]
    ) -> Response[AliasRetiredAnswer]:
        """Take an alias out of use and out of its access groups. Its name may be used again."""
        retired: list[Alias] = []

        def retire(catalog: Catalog | None, command: RetireAlias) -> list[Event]:
            retired[:] = [_find(catalog, alias_name)]
            return retire_alias(catalog, command)

        answer = await caller.carry_out(
            retire,
            RetireAlias(**caller.signature(), model_alias=alias_name),
            THE_CATALOG,
            answer=lambda _: AliasRetiredAnswer(alias_name, "The alias has been deleted"),
        )
        await house.targets.forget(retired[0].terms.secret_id)
        return answer


# -- what the house knows ----------------------------------------------------------------------------------------------


async def look(caller: Caller) -> tuple[Catalog, Team | None]:
    """The catalog as it is now, and the team that asks; None for an administrator."""
    streams = (THE_CATALOG,) if caller.team_id is None else (THE_CATALOG, TEAM.stream(caller.team_id))
    catalog, *teams = (await caller.house.ledger.read(*streams)).states
    return catalog or EMPTY, teams[0] if teams else None


async def catch_up(house: House) -> None:
    """Waits until the read models know what has been answered so far, as every GET does."""
    await house.progress.reach((await house.ledger.read()).position)


async def teams_using(house: House, kind: Kind, names: Iterable[str]) -> dict[str, list[str]]:
    """The teams that use each of these groups."""
    wanted = list(names)
    if not wanted:
        return {}
    await catch_up(house)
    async with house.pool.connection() as connection:
        return await group_teams.of_groups(connection, kind, wanted)


async def _require_credential(house: House, terms: AliasTerms) -> None:
    """Raises unless some organization has the credential that an alias names: which one, each call decides."""
    if terms.credential_name is None:
        return
    await catch_up(house)
    async with house.pool.connection() as connection:
        if not await provider_credentials.is_known(connection, terms.provider, terms.credential_name):
            raise NotFound("provider_credential")


def _find(catalog: Catalog | None, name: str) -> Alias:
    alias = (catalog or EMPTY).aliases.get(name)
    if alias is None:
        raise NotFound("model_alias")
    return alias


def _active_groups(catalog: Catalog, *aliases: Alias) -> set[str]:
    """The access groups that make these aliases usable."""
    groups = {name for alias in aliases for name in alias.access_groups}
    return {name for name in groups if catalog.access_groups[name].status == "active"}


# -- what a body says --------------------------------------------------------------------------------------------------


def _name_of(body: AliasBody) -> str:
    name = _either("alias", body.alias, body.model_alias)
    if name is None:
        raise Invalid(["body", "alias"], "field required", "value_error.missing")
    return name


def _either(field: str, one: T | None, other: T | None) -> T | None:
    """What was said under either of two names.

    Raises:
        InvalidValue: both were used for different things.
    """
    if one is not None and other is not None and one != other:
        raise InvalidValue(field)
    return other if one is None else one


def _said(body: AliasBody) -> dict[str, Any]:
    """The terms that a body speaks of. An empty text takes a name or an address away."""
    provider, model = _target_of(body)
    said: dict[str, Any] = {
        "provider": provider,
        "actual_model": model,
        "display_name": body.display_name,
        "description": body.description,
        "status": _status_of(body),
        "pricing_input": _price_of("pricing_input", body.pricing_input, body.input_price_per_million),
        "pricing_output": _price_of("pricing_output", body.pricing_output, body.output_price_per_million),
        "allow_unpriced": body.allow_unpriced,
    }
    said = {field: value for field, value in said.items() if value is not None}
    if body.credential_name is not None:
        said["credential_name"] = body.credential_name or None
    if body.api_base is not None:
        said["api_base"] = address(body.api_base)
    return said


def _new_terms(name: str, said: dict[str, Any], models: Models) -> AliasTerms:
    if "actual_model" not in said:
        missing = "actual_model" if "provider" in said else "litellm_model"
        raise Invalid(["body", missing], "field required", "value_error.missing")
    if "provider" not in said:
        raise Invalid(["body", "provider"], "field required", "value_error.missing")
    listed_at = list_price(models, said["provider"], said["actual_model"])
    return AliasTerms(**{"display_name": name, "list_price": listed_at, **said})


def _target_of(body: AliasBody) -> tuple[str | None, str | None]:
    """The provider and its model, as far as they are said."""
    provider = None if body.provider is None else body.provider.lower()
    if provider is not None and not known_provider(provider):
        raise InvalidValue("provider")
    if body.litellm_model is None:
        return provider, body.actual_model
    named = provider_and_model(body.litellm_model)
    if named is None:
        if provider is None:
            raise InvalidValue("provider")
        named = provider, body.litellm_model  # a name with a slash of its own, such as meta-llama/llama-3
    if provider is not None and canonical_provider(provider) != canonical_provider(named[0]):
        raise InvalidValue("provider")
    return named[0], _either("actual_model", body.actual_model, named[1])


def _status_of(body: AliasBody) -> AliasStatus | None:
    if body.active is None:
        return body.status
    if body.status is not None and body.active != (body.status != "inactive"):
        raise InvalidValue("status")
    return body.status or ("active" if body.active else "inactive")


def _price_of(field: str, one: Decimal | None, other: Decimal | None) -> Decimal | None:
    price = _either(field, one, other)
    return None if price is None else exact(field, price)


def list_price(models: Models, provider: str, model: str) -> Price | None:
    """What a model costs by the public price list; the built-in provider is free."""
    return Price(ZERO, ZERO) if provider == DEMO else models.price(Target(provider, model))


@dataclass(slots=True)
class _Change:
    """A change of an alias, laid over what the alias is when it is decided: of two at once, neither undoes the other.

    Args:
        said: the terms that shall change.
        groups: the access groups it shall be in; None leaves them alone.
        secret_id: of a new key of its own.
        replaced: the secret that this change made useless.
    """

    name: str
    said: dict[str, Any]
    groups: tuple[str, ...] | None
    models: Models
    secret_id: str | None = None
    replaced: str | None = None

    def decide(self, catalog: Catalog | None, command: Command) -> list[Event]:
        before = _find(catalog, self.name).terms
        after = self.terms_after(before)
        self.replaced = before.secret_id if before.secret_id != after.secret_id else None
        change = ChangeAlias(
            at=command.at,
            by=command.by,
            request=command.request,
            model_alias=self.name,
            terms=after,
            access_groups=self.groups,
        )
        return change_alias(catalog, change)

    def terms_after(self, before: AliasTerms) -> AliasTerms:
        after = replace(before, **self.said)
        if (after.provider, after.actual_model) != (before.provider, before.actual_model):
            after = replace(after, list_price=list_price(self.models, after.provider, after.actual_model))
        if self.secret_id is not None:
            return replace(after, secret_id=self.secret_id)
        # A key is worth something at its own provider only, and no other one shall see it.
        is_same = canonical_provider(after.provider) == canonical_provider(before.provider)
        return after if is_same else replace(after, secret_id=None)


# -- answers -----------------------------------------------------------------------------------------------------------


def alias_answer(catalog: Catalog, alias: Alias, teams: Teams | None, usage: AliasUsage | None = None) -> AliasAnswer:
    """An alias as it is shown.

    Args:
        teams: those that use its access groups, for administrators; None shows what a team may see.
        usage: what was called through it, where that is told.
    """
    terms = alias.terms
    answer = AliasAnswer(
        id=alias.alias_id,
        model_alias=alias.model_alias,
        alias=alias.model_alias,
        display_name=terms.display_name,
        description=terms.description,
        status=terms.status,
        active=terms.status != "inactive",
        is_active=terms.status != "inactive",
        created_at=ts(alias.created_at),
        updated_at=ts(alias.updated_at),
    )
    if teams is None:
        return answer
    price = terms.price
    pricing_input = terms.pricing_input if price is None else price.input_usd_per_million
    pricing_output = terms.pricing_output if price is None else price.output_usd_per_million
    answer.provider = terms.provider
    answer.actual_model = answer.actual_model_name = terms.actual_model
    answer.litellm_model = litellm_model(alias)
    answer.litellm_model_id = None
    answer.pricing_input = answer.input_price_per_million = number_or_none(pricing_input)
    answer.pricing_output = answer.output_price_per_million = number_or_none(pricing_output)
    answer.price_source = terms.price_source
    answer.credential_name = terms.credential_name
    answer.api_base = terms.api_base
    answer.has_api_key = terms.secret_id is not None
    answer.access_groups = list(alias.access_groups)
    answer.teams_using = sorted({team for group in _active_groups(catalog, alias) for team in teams.get(group, ())})
    answer.teams_with_access = len(answer.teams_using)
    if usage is not None:
        average = Decimal(usage.tokens) / usage.calls if usage.calls else ZERO
        answer.usage_stats = UsageStats(usage.calls, usd6(usage.client_cost_usd), usd6(average))
    return answer


def _answer_of(outcome: Outcome, name: str, teams: Teams) -> AliasAnswer:
    catalog: Catalog = outcome.states[0]
    return alias_answer(catalog, catalog.aliases[name], teams)


def litellm_model(alias: Alias) -> str:
    return f"{alias.terms.provider}/{alias.terms.actual_model}"
