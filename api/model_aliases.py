"""Aliases: public names for providers' models, with their prices (contract, section 9)."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, TypeVar
from uuid import uuid4

import msgspec
from litestar import Controller, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import UNSET, Meta, UnsetType

from api.answers import number, ts
from api.bodies import Name200, Name255, Text1000
from api.caller import Caller, admin_only
from api.house import House
from api.problems import Invalid
from api.shapes import Timestamp, Uuid
from domain.catalog import (
    Alias,
    AliasStatus,
    AliasTerms,
    CreateAlias,
    create_alias,
    split_model,
)
from domain.errors import InvalidValue
from domain.pricing import ZERO, Price
from domain.streams import THE_CATALOG
from infra.llm import Models, Target, known_provider
from infra.llm.providers import DEMO

T = TypeVar("T")

NO_SLASH = r"^[^/\x00-\x1f\x7f\ufffd]*$"
AliasName = Annotated[str, Meta(min_length=1, max_length=200, pattern=NO_SLASH)]
Text255 = Annotated[str, Meta(max_length=255)]
Address = Annotated[str, Meta(max_length=500)]
ApiKey = Annotated[str, Meta(max_length=4096)]

DEAREST_USD = Decimal(10**12)  # per million tokens
MOST_DECIMALS = 30


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
    access_groups: list[str] | None = None
    active: bool | None = None
    status: AliasStatus | None = None
    credential_name: Text255 | None = None
    api_base: Address | None = None
    api_key: ApiKey | None = None
    allow_unpriced: bool | None = None


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


class ModelAliasesController(Controller):
    path = "/api"
    tags = ["Model Aliases"]

    @post(["/model-aliases/create", "/models/create", "/models/aliases/create"], status_code=200, guards=[admin_only])
    async def create(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[AliasBody]
    ) -> Response[AliasAnswer]:
        """Give a provider's model a public name and a price."""
        name = _name_of(data)
        terms = _new_terms(name, data, house.models)
        async with house.targets.keeping(data.api_key) as secret_id:
            command = CreateAlias(
                **caller.signature(),
                alias_id=str(uuid4()),
                model_alias=name,
                terms=msgspec.structs.replace(terms, secret_id=secret_id),
                access_groups=tuple(data.access_groups or ()),
            )
            return await caller.carry_out(
                create_alias,
                command,
                THE_CATALOG,
                answer=lambda outcome: alias_answer(outcome.states[0].aliases[name], {}),
            )


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


def _new_terms(name: str, body: AliasBody, models: Models) -> AliasTerms:
    provider, model = _target_of(body)
    if provider is None or model is None:
        missing = "litellm_model" if provider is None and model is None else "provider" if model else "actual_model"
        raise Invalid(["body", missing], "field required", "value_error.missing")
    return AliasTerms(
        provider=provider,
        actual_model=model,
        display_name=body.display_name or name,
        description=body.description,
        status=_status_of(body) or "active",
        pricing_input=_price_of("pricing_input", body.pricing_input, body.input_price_per_million),
        pricing_output=_price_of("pricing_output", body.pricing_output, body.output_price_per_million),
        list_price=list_price(models, provider, model),
        allow_unpriced=bool(body.allow_unpriced),
        credential_name=body.credential_name or None,
        api_base=_address(body.api_base),
    )


def _target_of(body: AliasBody) -> tuple[str | None, str | None]:
    """The provider and its model, as far as they are said."""
    provider = None if body.provider is None else body.provider.lower()
    model = body.actual_model
    if body.litellm_model is not None:
        named_provider, named_model = split_model(body.litellm_model)
        provider = _either("provider", named_provider.lower(), provider)
        model = _either("litellm_model", named_model, model)
    if provider is not None and not known_provider(provider):
        raise InvalidValue("provider")
    return provider, model


def _status_of(body: AliasBody) -> AliasStatus | None:
    if body.active is None:
        return body.status
    if body.status is not None and body.active != (body.status != "inactive"):
        raise InvalidValue("status")
    return body.status or ("active" if body.active else "inactive")


def _price_of(field: str, one: Decimal | None, other: Decimal | None) -> Decimal | None:
    price = _either(field, one, other)
    if price is None:
        return None
    digits = price.as_tuple().exponent if price.is_finite() else None
    if not isinstance(digits, int) or not 0 <= price <= DEAREST_USD or digits < -MOST_DECIMALS:
        raise Invalid(["body", field], f"expected 0 to {DEAREST_USD} dollars", "value_error.range")
    return abs(price)  # -0 is 0


def _address(text: str | None) -> str | None:
    if not text:
        return None
    if not text.lower().startswith(("http://", "https://")):
        raise Invalid(["body", "api_base"], "expected an address with http or https", "value_error.format")
    return text


def list_price(models: Models, provider: str, model: str) -> Price | None:
    """What a model costs by the public price list; the built-in provider is free."""
    return Price(ZERO, ZERO) if provider == DEMO else models.price(Target(provider, model))


# -- answers -----------------------------------------------------------------------------------------------------------


def alias_answer(alias: Alias, teams: Mapping[str, Iterable[str]] | None) -> AliasAnswer:
    """An alias as it is shown.

    Args:
        teams: those of each access group, for administrators; None shows what a team may see.
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
    answer.provider = terms.provider
    answer.actual_model = answer.actual_model_name = terms.actual_model
    answer.litellm_model = f"{terms.provider}/{terms.actual_model}"
    answer.litellm_model_id = None
    answer.pricing_input = answer.input_price_per_million = _shown(
        price.input_usd_per_million if price else terms.pricing_input
    )
    answer.pricing_output = answer.output_price_per_million = _shown(
        price.output_usd_per_million if price else terms.pricing_output
    )
    answer.price_source = terms.price_source
    answer.credential_name = terms.credential_name
    answer.api_base = terms.api_base
    answer.has_api_key = terms.secret_id is not None
    answer.access_groups = list(alias.access_groups)
    answer.teams_using = sorted({team for group in alias.access_groups for team in teams.get(group, ())})
    answer.teams_with_access = len(answer.teams_using)
    return answer


def _shown(price: Decimal | None) -> Decimal | None:
    return None if price is None else number(price)
