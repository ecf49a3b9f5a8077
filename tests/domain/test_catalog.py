"""Names for models: what a team may call, at which price, and what happens when a target is out of reach."""

from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from domain.catalog import (
    AccessGroupChanged,
    AccessGroupDeleted,
    AliasChanged,
    AliasRetired,
    AliasTerms,
    Catalog,
    ChangeAccessGroup,
    ChangeAlias,
    ChangeModelGroup,
    CreateAccessGroup,
    CreateAlias,
    CreateModelGroup,
    DeleteAccessGroup,
    DeleteModelGroup,
    ModelGroupChanged,
    ModelGroupDeleted,
    Resolution,
    RetireAlias,
    Skipped,
    Target,
    available_models,
    change_access_group,
    change_alias,
    change_model_group,
    create_access_group,
    create_alias,
    create_model_group,
    delete_access_group,
    delete_model_group,
    group_targets,
    resolve,
    retire_alias,
    split_model,
)
from domain.errors import AlreadyExists, ModelNotAllowed, NotFound, OutOfBounds
from domain.event import Event
from domain.organization import Organization
from domain.pricing import Price
from domain.team import Team, TeamChanged
from tests.domain.scene import (
    CHAT,
    NOON,
    ORGANIZATION,
    RESEARCH,
    TEAM,
    WHO,
    access_group,
    alias,
    an_id,
    assigned,
    member,
    model_group,
)
from tests.spec import Story, given

OWN = AliasTerms(
    provider="openai",
    actual_model="chat-model",
    display_name="chat",
    pricing_input=Decimal("2.50"),
    pricing_output=Decimal(10),
)
LISTED = Price(Decimal(3), Decimal(15))
INACTIVE = replace(OWN, status="inactive")


def changed(name: str, terms: AliasTerms) -> AliasChanged:
    return AliasChanged(at=NOON, model_alias=name, terms=terms)


def group_changed(name: str, *aliases: str, status: Any = "active") -> AccessGroupChanged:
    return AccessGroupChanged(
        at=NOON, group_name=name, display_name=name, description=None, status=status, model_aliases=aliases
    )


def model_group_changed(name: str, *members: Any, status: Any = "active") -> ModelGroupChanged:
    return ModelGroupChanged(
        at=NOON, group_name=name, display_name=name, description=None, status=status, members=members
    )


def default_model(name: str) -> TeamChanged:
    return TeamChanged(at=NOON, team_id=RESEARCH, team_alias=None, metadata={}, default_model=name)


def house(*events: Event) -> tuple[Catalog, Team, Organization]:
    story = given(ORGANIZATION, TEAM, access_group("empty"), *events)
    return story.the(Catalog), story.the(Team), story.the(Organization)


def resolved(*events: Event, name: str | None = None, open_aliases: bool = True) -> Resolution:
    return resolve(*house(*events), name, open_aliases=open_aliases)


def refused(*events: Event, name: str | None = None, open_aliases: bool = True) -> list[str]:
    """The models that a refusal says are available."""
    with pytest.raises(ModelNotAllowed) as refusal:
        resolved(*events, name=name, open_aliases=open_aliases)
    assert name is None or name == refusal.value.model
    return refusal.value.available_models


def names(resolution: Resolution) -> list[str]:
    return [target.name for target in resolution.targets]


# -- rule 1: no model was named ------------------------------------------------------------------------------


def test_without_a_name_the_teams_default_is_meant_then_its_organizations_then_the_first_alias() -> None:
    aliases = alias("a"), alias("b"), alias("c")
    organization = replace(ORGANIZATION, default_model="b")
    assert "a" == resolved(*aliases).requested
    assert "b" == resolved(*aliases, organization).requested
    assert "c" == resolved(*aliases, organization, default_model("c")).requested


def test_the_first_alias_is_the_first_that_the_team_may_use() -> None:
    assert "b" == resolved(alias("a"), alias("b"), alias("c"), access_group("others", "a")).requested


def test_a_default_that_the_team_may_not_use_is_refused_and_not_replaced() -> None:
    with pytest.raises(ModelNotAllowed) as refusal:
        resolved(alias("a"), default_model("gone"))
    assert {"model": "gone", "available_models": ["a"]} == refusal.value.facts


def test_without_a_name_and_without_an_alias_there_is_nothing_to_call() -> None:
    smart = model_group("smart", member("groq/llama", price="1")), assigned(model_groups=("smart",))
    assert [] == refused()
    assert [] == refused(*smart)


# -- rule 2: aliases -----------------------------------------------------------------------------------------


def test_an_alias_in_no_group_is_open_to_all_or_to_nobody() -> None:
    assert Resolution("chat", (CHAT,)) == resolved(alias(), name="chat")
    assert [] == refused(alias(), name="chat", open_aliases=False)


def test_an_alias_in_groups_is_for_the_teams_that_share_one() -> None:
    history = alias(), access_group("basic", "chat"), access_group("pro", "chat"), access_group("other")
    for open_aliases in (True, False):
        assert names(resolved(*history, assigned(access_groups=("pro",)), name="chat", open_aliases=open_aliases))
        assert [] == refused(*history, name="chat", open_aliases=open_aliases)
        assert [] == refused(*history, assigned(access_groups=("other",)), name="chat", open_aliases=open_aliases)


def test_an_inactive_access_group_gives_no_access_and_does_not_open_its_aliases() -> None:
    history = alias(), access_group("basic", "chat"), assigned(access_groups=("basic",))
    assert ["chat"] == names(resolved(*history, name="chat"))
    assert [] == refused(*history, group_changed("basic", "chat", status="inactive"), name="chat")
    assert ["chat"] == names(resolved(*history, AccessGroupDeleted(at=NOON, group_name="basic"), name="chat"))


def test_a_deprecated_alias_works_and_an_inactive_one_is_passed_over() -> None:
    assert ["chat"] == names(resolved(alias(), changed("chat", replace(OWN, status="deprecated")), name="chat"))
    assert [] == refused(alias(), changed("chat", INACTIVE), name="chat")
    group = model_group("chat", member("groq/llama", price="1")), assigned(model_groups=("chat",))
    assert ["groq/llama"] == names(resolved(alias(), changed("chat", INACTIVE), *group, name="chat"))
    assert ["chat"] == names(resolved(alias(), *group, name="chat"))


# -- rule 3: model groups ------------------------------------------------------------------------------------


def test_a_model_group_is_tried_in_the_order_of_its_priorities() -> None:
    group = model_group("smart", member("c", 7), member("a", 1), member("b", 7), member("groq/llama", 3, price="1"))
    resolution = resolved(alias("a"), alias("b"), alias("c"), group, assigned(model_groups=("smart",)), name="smart")
    assert "smart" == resolution.requested
    assert ["a", "groq/llama", "c", "b"] == names(resolution)
    bare = Target(name="groq/llama", alias=None, provider="groq", model="llama", price=Price(Decimal(1), Decimal(1)))
    assert bare == resolution.targets[1]


def test_members_out_of_reach_are_skipped_and_it_is_said_why() -> None:
    group = model_group(
        "smart",
        member("closed", 1),
        member("off", 2),
        member("unknown/model", 3),
        member("a", 4, is_active=False),
        member("a", 5),
    )
    history = alias("a"), alias("closed"), alias("off"), access_group("others", "closed"), changed("off", INACTIVE)
    catalog, team, _ = house(*history, group, assigned(model_groups=("smart",)))
    targets, skipped = group_targets(catalog, catalog.model_groups["smart"], team, True)
    assert ["a"] == [target.name for target in targets]
    assert [
        Skipped("closed", "not_allowed"),
        Skipped("off", "inactive"),
        Skipped("unknown/model", "no_price"),
        Skipped("a", "inactive"),
    ] == skipped


def test_a_group_with_no_member_in_reach_is_not_allowed_and_not_offered() -> None:
    group = model_group("smart", member("unknown/model")), assigned(model_groups=("smart",))
    assert ["chat"] == refused(alias(), *group, name="smart")
    assert ["chat"] == refused(alias(), model_group("smart"), assigned(model_groups=("smart",)), name="smart")


def test_a_group_must_be_assigned_and_active() -> None:
    group = model_group("smart", member("chat"))
    assert ["chat"] == refused(alias(), group, name="smart")
    inactive = model_group_changed("smart", member("chat"), status="inactive")
    assert ["chat"] == refused(alias(), group, assigned(model_groups=("smart",)), inactive, name="smart")


# -- rule 4 --------------------------------------------------------------------------------------------------


def test_unknown_and_not_allowed_look_alike_and_name_what_is_available() -> None:
    history = (
        alias("b"),
        alias("a"),
        alias("secret"),
        access_group("others", "secret"),
        model_group("smart", member("a")),
        model_group("hidden", member("a")),
        assigned(model_groups=("smart",)),
    )
    for name in ("secret", "unknown", "hidden", "openai/gpt-4o"):
        assert ["a", "b", "smart"] == refused(*history, name=name)
    catalog, team, _ = house(*history)
    assert [] == available_models(catalog, team, open_aliases=False)


# -- prices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own_in,own_out,listed,price,source",
    [
        ("2.50", "10", None, ("2.50", "10"), "alias"),
        ("2.50", "10", LISTED, ("2.50", "10"), "alias"),
        (None, None, LISTED, ("3", "15"), "cost_map"),
        ("2.50", None, LISTED, ("2.50", "15"), "cost_map"),
        (None, "0", LISTED, ("3", "0"), "cost_map"),
        ("0", "0", LISTED, ("0", "0"), "alias"),
        ("0.075", None, None, None, "none"),
        (None, None, None, None, "none"),
    ],
)
def test_own_prices_win_and_the_list_fills_what_is_missing(
    own_in: str | None, own_out: str | None, listed: Price | None, price: tuple[str, str] | None, source: str
) -> None:
    terms = replace(
        OWN,
        pricing_input=None if own_in is None else Decimal(own_in),
        pricing_output=None if own_out is None else Decimal(own_out),
        list_price=listed,
    )
    assert (None if price is None else Price(*map(Decimal, price))) == terms.price
    assert source == terms.price_source


def test_an_alias_without_a_price_needs_to_be_told_that_this_is_meant() -> None:
    unpriced = replace(OWN, pricing_input=None, pricing_output=None)
    create = CreateAlias(**WHO, alias_id=an_id(41), model_alias="chat", terms=unpriced)
    message = "no price is known for this model; give one or set allow_unpriced"
    given().when(create_alias, create).then_refused(OutOfBounds, field="pricing_input", message=message)
    given(alias()).when(change_alias, ChangeAlias(**WHO, model_alias="chat", terms=unpriced)).then_refused(
        OutOfBounds, field="pricing_input", message=message
    )
    given().when(create_alias, replace(create, terms=replace(unpriced, allow_unpriced=True)))


@pytest.mark.parametrize("own_in,price", [(None, "0"), ("3", "3")])
def test_what_has_no_price_is_free_and_says_so(own_in: str | None, price: str) -> None:
    free = alias("free", own_in, None, allow_unpriced=True)
    target = resolved(free, name="free").targets[0]
    assert (Price(Decimal(price), Decimal(0)), True) == (target.price, target.unpriced)


def test_a_free_model_has_a_price_and_it_is_nothing() -> None:
    target = resolved(alias("free", "0", "0"), name="free").targets[0]
    assert (Price(Decimal(0), Decimal(0)), False) == (target.price, target.unpriced)


@pytest.mark.parametrize(
    "name,halves",
    [
        ("groq/llama", ("groq", "llama")),
        ("gpt-4o", ("openai", "gpt-4o")),
        ("openrouter/meta/llama", ("openrouter", "meta/llama")),
    ],
)
def test_a_provider_model_string_has_two_halves(name: str, halves: tuple[str, str]) -> None:
    assert halves == split_model(name)


# -- aliases come and go -------------------------------------------------------------------------------------


def create(name: str = "chat", **more: Any) -> CreateAlias:
    return CreateAlias(**WHO, alias_id=an_id(41), model_alias=name, terms=OWN, **more)


def groups_of(story: Story, name: str = "chat") -> tuple[str, ...]:
    return story.the(Catalog).aliases[name].access_groups


def test_an_alias_is_created_into_its_groups() -> None:
    story = given(access_group("pro"), access_group("basic"))
    story = story.when(create_alias, create(access_groups=("pro", "basic", "pro")))
    story.then(alias(), group_changed("pro", "chat"), group_changed("basic", "chat"))
    assert ("basic", "pro") == groups_of(story)


def test_a_name_is_given_once_and_groups_must_be_there() -> None:
    given(alias()).when(create_alias, create()).then_refused(AlreadyExists, resource="model_alias")
    given().when(create_alias, create(access_groups=("nowhere",))).then_refused(NotFound, resource="access_group")


def test_a_change_of_an_alias_says_the_whole_of_it() -> None:
    dearer = replace(OWN, pricing_input=Decimal(5))
    story = given(alias()).when(change_alias, ChangeAlias(**WHO, model_alias="chat", terms=dearer))
    story.then(changed("chat", dearer))
    story.when(change_alias, ChangeAlias(**WHO, model_alias="chat", terms=dearer)).then_nothing()


def test_an_alias_moves_between_groups() -> None:
    story = given(alias(), alias("b"), access_group("basic", "b", "chat"), access_group("pro"))
    move = ChangeAlias(**WHO, model_alias="chat", terms=OWN, access_groups=("pro",))
    story = story.when(change_alias, move).then(group_changed("basic", "b"), group_changed("pro", "chat"))
    assert ("pro",) == groups_of(story)
    story.when(change_alias, move).then_nothing()
    story.when(change_alias, replace(move, access_groups=("nowhere",))).then_refused(NotFound, resource="access_group")


def test_a_retired_alias_leaves_its_groups_and_its_name_is_free() -> None:
    retire = RetireAlias(**WHO, model_alias="chat")
    story = given(alias(), access_group("basic", "chat")).when(retire_alias, retire)
    story = story.then(AliasRetired(at=NOON, model_alias="chat"))
    story.when(retire_alias, retire).then_refused(NotFound, resource="model_alias")
    again = story.when(create_alias, create()).then(alias())
    assert () == groups_of(again)


def test_what_is_not_there_cannot_be_changed() -> None:
    given().when(change_alias, ChangeAlias(**WHO, model_alias="x", terms=OWN)).then_refused(
        NotFound, resource="model_alias"
    )
    given().when(retire_alias, RetireAlias(**WHO, model_alias="x")).then_refused(NotFound, resource="model_alias")
    given().when(change_access_group, ChangeAccessGroup(**WHO, group_name="x")).then_refused(
        NotFound, resource="access_group"
    )
    given().when(delete_access_group, DeleteAccessGroup(**WHO, group_name="x")).then_refused(
        NotFound, resource="access_group"
    )
    given().when(change_model_group, ChangeModelGroup(**WHO, group_name="x")).then_refused(
        NotFound, resource="model_group"
    )
    given().when(delete_model_group, DeleteModelGroup(**WHO, group_name="x")).then_refused(
        NotFound, resource="model_group"
    )


# -- access groups -------------------------------------------------------------------------------------------


def change_group(**what: Any) -> ChangeAccessGroup:
    return ChangeAccessGroup(**WHO, group_name="basic", **what)


def test_an_access_group_is_created_once_and_with_aliases_that_are_there() -> None:
    wish = CreateAccessGroup(**WHO, group_name="basic", display_name="basic", model_aliases=("chat", "chat"))
    story = given(alias()).when(create_access_group, wish).then(access_group("basic", "chat"))
    story.when(create_access_group, wish).then_refused(AlreadyExists, resource="access_group")
    given().when(create_access_group, wish).then_refused(NotFound, resource="model_alias")


def test_a_change_of_an_access_group_keeps_what_it_does_not_name() -> None:
    story = given(alias(), access_group("basic", "chat"))
    story = story.when(change_access_group, change_group(display_name="Basic", description="for all"))
    story.then(
        AccessGroupChanged(
            at=NOON,
            group_name="basic",
            display_name="Basic",
            description="for all",
            status="active",
            model_aliases=("chat",),
        )
    )
    story.when(change_access_group, change_group(display_name="Basic")).then_nothing()
    story.when(change_access_group, change_group(model_aliases=())).when(
        change_access_group, change_group(model_aliases=("nowhere",))
    ).then_refused(NotFound, resource="model_alias")


def test_aliases_are_added_and_removed_as_often_as_one_likes() -> None:
    story = given(alias("a"), alias("b"), access_group("basic", "a"))
    story = story.when(change_access_group, change_group(add_aliases=("b",))).then(group_changed("basic", "a", "b"))
    story.when(change_access_group, change_group(add_aliases=("b",))).then_nothing()
    story = story.when(change_access_group, change_group(remove_aliases=("a",))).then(group_changed("basic", "b"))
    story.when(change_access_group, change_group(remove_aliases=("a",))).then_nothing()


def test_an_access_group_that_no_team_uses_can_go() -> None:
    story = given(alias(), access_group("basic", "chat"))
    story = story.when(delete_access_group, DeleteAccessGroup(**WHO, group_name="basic"))
    story.then(AccessGroupDeleted(at=NOON, group_name="basic"))
    assert () == groups_of(story)


# -- model groups --------------------------------------------------------------------------------------------


def change_models(**what: Any) -> ChangeModelGroup:
    return ChangeModelGroup(**WHO, group_name="smart", **what)


def test_a_model_group_is_created_once_and_its_members_may_be_unknown() -> None:
    members = (member("nowhere"),)
    wish = CreateModelGroup(**WHO, group_id=an_id(50), group_name="smart", display_name="smart", members=members)
    story = given().when(create_model_group, wish).then(model_group("smart", *members))
    story.when(create_model_group, wish).then_refused(AlreadyExists, resource="model_group")


def test_a_change_of_a_model_group_keeps_what_it_does_not_name() -> None:
    story = given(model_group("smart", member("a"))).when(change_model_group, change_models(status="inactive"))
    story = story.then(model_group_changed("smart", member("a"), status="inactive"))
    story = story.when(change_model_group, change_models(members=(member("b"),)))
    story.then(model_group_changed("smart", member("b"), status="inactive"))
    story.when(change_model_group, change_models(members=(member("b"),))).then_nothing()


def test_a_model_group_has_few_enough_members_for_a_call_to_end() -> None:
    many = tuple(member(f"m{number}") for number in range(21))
    wish = CreateModelGroup(**WHO, group_id=an_id(50), group_name="smart", display_name="smart", members=many)
    story = given().when(create_model_group, wish)
    story.then_refused(OutOfBounds, field="models", message="a group has at most 20 models")
    story = given(model_group("smart")).when(change_model_group, change_models(members=many))
    story.then_refused(OutOfBounds, field="models", message="a group has at most 20 models")


def test_a_model_group_that_is_not_assigned_can_go() -> None:
    story = given(model_group("smart")).when(delete_model_group, DeleteModelGroup(**WHO, group_name="smart"))
    story.then(ModelGroupDeleted(at=NOON, group_name="smart")).leaving(Catalog, model_groups={})
