"""Teams: who may act, with which models, limits and budget (contract, section 5). Their keys are in keys.py."""

import asyncio
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

import msgspec
from litestar import Controller, HttpMethod, Response, delete, get, patch, post, put, route
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import UNSET, Meta, UnsetType

from api.answers import number, reply, ts, usd6
from api.bodies import (
    ID,
    TEAM_ID,
    VISIBLE,
    BudgetModeName,
    ChargePolicyName,
    Credits,
    Name200,
    PositiveCredits,
    Text500,
    exact,
    known_word,
)
from api.caller import Caller, admin_only, key_only, team_or_admin
from api.house import House
from api.listing import Page, chosen, listed, one_of
from api.problems import Invalid
from api.shapes import Balance, Timestamp, Uuid, balance_answer
from domain.catalog import EMPTY, Alias, Catalog, InAccessGroups, usable_aliases
from domain.charging import CancelJob, cancel_job
from domain.credit import Account, SetAllocation, require_account
from domain.errors import JobClosed, NotFound, OutOfBounds
from domain.event import Json, JsonObject
from domain.job import MAX_METADATA_BYTES
from domain.onboarding import (
    AssignGroups,
    CreateTeam,
    DeleteTeam,
    ReviseTeam,
    assign_groups,
    create_team,
    delete_team,
    revise_team,
)
from domain.pricing import ZERO, BudgetMode, ChargePolicy
from domain.streams import CREDIT, JOB, KEY, ORGANIZATION, TEAM, THE_CATALOG
from domain.team import (
    Budget,
    ChangeBudget,
    ChangeTeam,
    SetLimits,
    SetTeamStatus,
    Status,
    Team,
    require_team,
    set_team_status,
)
from infra.ids import new_id
from infra.ledger import Outcome
from infra.secrets import hash_key, mask_key, new_virtual_key
from projections import balances, keys, teams, usage
from projections.balances import BalanceRecord
from projections.teams import TeamRecord
from projections.usage import Totals

ORPHANS_AT_ONCE = 100
POST_OR_PUT = (HttpMethod.POST, HttpMethod.PUT)

TeamId = Annotated[str, Meta(min_length=1, max_length=255, pattern=TEAM_ID)]
ChosenKey = Annotated[str, Meta(min_length=7, max_length=255, pattern=VISIBLE)]
PerMinute = Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
Groups = Annotated[list[Name200], Meta(max_length=1000)]

# -- bodies ------------------------------------------------------------------------------------------------------------


class CreateTeamBody(msgspec.Struct, kw_only=True):
    """An overdraft of null is unlimited. `keep_prompts`: what is asked and answered is kept for administrators."""

    organization_id: ID
    team_id: TeamId
    team_alias: Name200 | None = None
    model_groups: Groups | None = None
    access_groups: Groups | None = None
    credits_allocated: Credits | None = None
    budget_mode: BudgetModeName | None = None
    credits_per_dollar: Decimal | None = None
    tokens_per_credit: PositiveCredits | None = None
    cost_markup_percentage: Decimal | None = None
    charge_policy: ChargePolicyName | None = None
    overdraft_credits: Credits | None = 0
    rpm_limit: PerMinute | None = None
    tpm_limit: PerMinute | None = None
    default_model: Name200 | None = None
    keep_prompts: bool | None = None
    metadata: JsonObject | None = None
    virtual_key: ChosenKey | None = None


class ReviseTeamBody(msgspec.Struct, kw_only=True):
    """Null clears a text, sets a rate or limit back to its default, and lifts the limit of the overdraft."""

    team_alias: Name200 | UnsetType | None = UNSET
    model_groups: Groups | None = None
    access_groups: Groups | None = None
    metadata: JsonObject | None = None
    credits_allocated: Credits | None = None
    budget_mode: BudgetModeName | None = None
    credits_per_dollar: Decimal | UnsetType | None = UNSET
    tokens_per_credit: PositiveCredits | UnsetType | None = UNSET
    cost_markup_percentage: Decimal | None = None
    charge_policy: ChargePolicyName | None = None
    overdraft_credits: Credits | UnsetType | None = UNSET
    rpm_limit: PerMinute | UnsetType | None = UNSET
    tpm_limit: PerMinute | UnsetType | None = UNSET
    default_model: Name200 | UnsetType | None = UNSET
    keep_prompts: bool | None = None
    status: Literal["active", "suspended", "paused"] | None = None


class ReasonBody(msgspec.Struct, kw_only=True, frozen=True):
    reason: Text500 | None = None


class ModelGroupsBody(msgspec.Struct, kw_only=True):
    model_groups: Groups


class AccessGroupsBody(msgspec.Struct, kw_only=True):
    access_groups: Groups


class MarkupBody(msgspec.Struct, kw_only=True):
    cost_markup_percentage: Decimal
    budget_mode: BudgetModeName | None = None
    credits_per_dollar: Decimal | None = None


NO_REASON = ReasonBody()

# -- answers -----------------------------------------------------------------------------------------------------------


class UsageSummary(msgspec.Struct, kw_only=True):
    total_jobs: int
    total_cost_usd: Decimal


class TeamAnswer(msgspec.Struct, kw_only=True):
    team_id: str
    organization_id: str
    team_alias: str | None
    status: str
    virtual_key: str | None
    credits_allocated: int
    credits_used: int
    credits_remaining: int
    credits_held: int
    credits_available: int | None
    model_groups: list[str]
    access_groups: list[str]
    allowed_model_aliases: list[str]
    allowed_models: list[str]
    default_model: str | None
    keep_prompts: bool
    budget_mode: str
    credits_per_dollar: Decimal
    tokens_per_credit: int
    charge_policy: str
    overdraft_credits: int | None
    rpm_limit: int
    tpm_limit: int
    cost_markup_percentage: Decimal | UnsetType = UNSET
    metadata: Mapping[str, Json]
    created_at: Timestamp
    updated_at: Timestamp
    credits: Balance


class TeamDetails(TeamAnswer, kw_only=True):
    usage_summary: UsageSummary


class TeamRevised(TeamDetails, kw_only=True):
    message: str


class TeamMade(TeamRevised, kw_only=True):
    """`virtual_key` is in the clear, this once."""

    key_id: Uuid


class TeamVerified(msgspec.Struct, kw_only=True):
    team_id: str
    organization_id: str
    status: str
    key_id: Uuid
    virtual_key: str
    valid: bool


class TeamStatus(msgspec.Struct, kw_only=True):
    team_id: str
    status: str
    message: str


class TeamGone(msgspec.Struct, kw_only=True):
    team_id: str
    message: str


class ModelGroupsSet(msgspec.Struct, kw_only=True):
    team_id: str
    model_groups: list[str]
    message: str


class AccessGroupsSet(msgspec.Struct, kw_only=True):
    team_id: str
    access_groups: list[str]
    allowed_model_aliases: list[str]
    message: str


# -- endpoints ---------------------------------------------------------------------------------------------------------


class TeamsController(Controller):
    path = "/api/teams"
    tags = ["Teams"]

    @post("/create", status_code=200, before_request=admin_only)
    async def create(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[CreateTeamBody]
    ) -> Response[TeamMade]:
        """Create a team with its first key and its opening credits. The key is shown this once."""
        key = fresh_key(house, data.virtual_key)
        command = CreateTeam(
            **caller.signature(),
            team_id=data.team_id,
            organization_id=data.organization_id,
            team_alias=data.team_alias,
            metadata=small(data.metadata or {}),
            default_model=data.default_model,
            keep_prompts=bool(data.keep_prompts),
            groups=(*(data.model_groups or ()), *(data.access_groups or ())),
            budget=_budget(data),
            rpm_limit=data.rpm_limit,
            tpm_limit=data.tpm_limit,
            key_id=new_id(),
            key_hash=hash_key(key),
            key_masked=mask_key(key),
            credits=data.credits_allocated or 0,
            transaction_id=new_id(),
        )

        def made(outcome: Outcome) -> TeamMade:
            team, account, _, _, catalog = outcome.states
            fields = _fields_of_states(house, team, account, catalog, command.at)
            return TeamMade(
                **{**fields, "virtual_key": key},
                usage_summary=_summary(Totals()),
                key_id=command.key_id,
                message="The team has been created; keep its key, it is not shown again",
            )

        streams = creation_streams(command)
        return await caller.carry_out(create_team, command, *streams, answer=made, is_secret=True)

    @get("", before_request=admin_only)
    async def list_teams(
        self,
        house: NamedDependency[House],
        page: NamedDependency[Page],
        organization_id: FromQuery[str | None] = None,
        status: Annotated[str | None, one_of(get_args(Status))] = None,
    ) -> Response[list[TeamAnswer]]:
        """Teams by id; without a status, all that were not deleted."""
        status = chosen("status", status, get_args(Status))
        models = AllowedModels(house, await the_catalog(house))
        async with house.pool.connection() as connection:
            found, total = await teams.page(
                connection, limit=page.limit, offset=page.offset, organization_id=organization_id, status=status
            )
            accounts = await balances.of_teams(connection, [team.team_id for team in found])
        answers = (TeamAnswer(**_fields(house, team, accounts[team.team_id], models, for_admin=True)) for team in found)
        return listed(answers, total)

    @get("/verify", before_request=key_only)
    async def verify(self, caller: NamedDependency[Caller], house: NamedDependency[House]) -> Response[TeamVerified]:
        """What a key is good for."""
        async with house.pool.connection() as connection:
            team = known_team(await teams.one(connection, caller.own_team))
            key = await keys.one(connection, caller.actor)
        assert key is not None
        return reply(
            TeamVerified(
                team_id=team.team_id,
                organization_id=team.organization_id,
                status=team.status,
                key_id=key.key_id,
                virtual_key=key.masked,
                valid=True,
            )
        )

    @get("/{team_id:str}", before_request=team_or_admin)
    async def details(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], team_id: FromPath[str]
    ) -> Response[TeamDetails]:
        """A team with its balance and what it used so far."""
        team_id = caller.team_for(team_id)
        models = AllowedModels(house, await the_catalog(house))
        async with house.pool.connection() as connection:
            team = known_team(await teams.one(connection, team_id))
            balance = await balances.one(connection, team_id)
            totals = await usage.totals_of_team(connection, team_id)
        assert balance is not None
        fields = _fields(house, team, balance, models, for_admin=caller.is_admin)
        return reply(TeamDetails(**fields, usage_summary=_summary(totals)))

    @put("/{team_id:str}", before_request=admin_only)
    async def revise(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        data: JSONBody[ReviseTeamBody],
    ) -> Response[TeamRevised]:
        """Change any of a team's settings; all of them, or none. `credits_used` is not a setting and is ignored."""
        signature = caller.signature()
        command = ReviseTeam(
            **signature,
            facts=ChangeTeam(
                **signature,
                team_alias=data.team_alias,
                metadata=UNSET if data.metadata is None else small(data.metadata),
                default_model=data.default_model,
                keep_prompts=UNSET if data.keep_prompts is None else data.keep_prompts,
            ),
            budget=_budget_change(signature, data),
            limits=SetLimits(**signature, rpm_limit=data.rpm_limit, tpm_limit=data.tpm_limit),
            groups=AssignGroups(
                **signature,
                model_groups=None if data.model_groups is None else tuple(data.model_groups),
                access_groups=None if data.access_groups is None else tuple(data.access_groups),
            ),
            status=None if data.status is None else SetTeamStatus(**signature, status=data.status),
            allocation=_allocation(signature, data.credits_allocated),
        )
        return await _revise(caller, house, team_id, command)

    @patch("/{team_id:str}/markup", before_request=admin_only)
    async def set_markup(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        data: JSONBody[MarkupBody],
    ) -> Response[TeamRevised]:
        """Change what the team pays on top of the provider's price, and how its jobs are charged."""
        signature = caller.signature()
        revised = ReviseTeamBody(
            cost_markup_percentage=data.cost_markup_percentage,
            budget_mode=data.budget_mode,
            credits_per_dollar=UNSET if data.credits_per_dollar is None else data.credits_per_dollar,
        )
        command = ReviseTeam(
            **signature,
            facts=ChangeTeam(**signature),
            budget=_budget_change(signature, revised),
            limits=SetLimits(**signature),
            groups=AssignGroups(**signature),
        )
        return await _revise(caller, house, team_id, command)

    @route("/{team_id:str}/suspend", http_method=POST_OR_PUT, status_code=200, before_request=admin_only)
    async def suspend(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[ReasonBody] = NO_REASON
    ) -> Response[TeamStatus]:
        """Let the team read and nothing else."""
        return await _set_status(caller, team_id, "suspended", data.reason)

    @route("/{team_id:str}/pause", http_method=POST_OR_PUT, status_code=200, before_request=admin_only)
    async def pause(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[ReasonBody] = NO_REASON
    ) -> Response[TeamStatus]:
        """Let the team read, and tell it to come back later with anything else."""
        return await _set_status(caller, team_id, "paused", data.reason)

    @route("/{team_id:str}/resume", http_method=POST_OR_PUT, status_code=200, before_request=admin_only)
    async def resume(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[ReasonBody] = NO_REASON
    ) -> Response[TeamStatus]:
        """Lift a suspension or a pause."""
        return await _set_status(caller, team_id, "active", data.reason)

    @put("/{team_id:str}/model-groups", before_request=admin_only)
    async def set_model_groups(
        self, caller: NamedDependency[Caller], team_id: FromPath[str], data: JSONBody[list[Name200] | ModelGroupsBody]
    ) -> Response[ModelGroupsSet]:
        """Replace the team's model groups."""
        named = data if isinstance(data, list) else data.model_groups
        command = AssignGroups(**caller.signature(), model_groups=tuple(named))

        def assigned(outcome: Outcome) -> ModelGroupsSet:
            team = require_team(outcome.states[0])
            return ModelGroupsSet(
                team_id=team_id, model_groups=list(team.model_groups), message="The model groups have been set"
            )

        return await caller.carry_out(assign_groups, command, TEAM.stream(team_id), THE_CATALOG, answer=assigned)

    @put("/{team_id:str}/access-groups", before_request=admin_only)
    async def set_access_groups(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        team_id: FromPath[str],
        data: JSONBody[list[Name200] | AccessGroupsBody],
    ) -> Response[AccessGroupsSet]:
        """Replace the team's access groups."""
        named = data if isinstance(data, list) else data.access_groups
        command = AssignGroups(**caller.signature(), access_groups=tuple(named))

        def assigned(outcome: Outcome) -> AccessGroupsSet:
            team = require_team(outcome.states[0])
            return AccessGroupsSet(
                team_id=team_id,
                access_groups=list(team.access_groups),
                allowed_model_aliases=AllowedModels(house, outcome.states[1]).aliases(team),
                message="The access groups have been set",
            )

        return await caller.carry_out(assign_groups, command, TEAM.stream(team_id), THE_CATALOG, answer=assigned)

    @delete("/{team_id:str}", status_code=200, before_request=admin_only)
    async def remove(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], team_id: FromPath[str]
    ) -> Response[TeamGone]:
        """Revoke the team's keys and cancel its open jobs. Its ledger and history stay, and so does its id."""
        command = DeleteTeam(**caller.signature())
        team = TEAM.stream(team_id)
        organization = await _organization_of(house, team_id)
        outcome = await caller.decide(delete_team, command, team, organization, THE_CATALOG)
        await house.progress.reach(outcome.position)
        await cancel_orphans(house, team_id=team_id, by=caller.actor, request=caller.request_id)
        return reply(TeamGone(team_id=team_id, message="The team has been deleted"))


# -- open jobs of deleted teams ----------------------------------------------------------------------------------------


async def cancel_orphans(house: House, *, team_id: str | None = None, by: str = "system", request: str = "") -> int:
    """Cancels the open jobs of deleted teams: of one just deleted, or of all, should something have come in between.

    Nobody can open further ones, so whatever a call of this leaves behind the next one finds.

    Returns:
        How many jobs were cancelled.
    """
    cancelled = 0
    while True:
        async with house.pool.connection() as connection:
            orphans = await teams.orphans(connection, team_id=team_id, limit=ORPHANS_AT_ONCE)
        outcomes = await asyncio.gather(*(_cancel(house, *orphan, by, request) for orphan in orphans))
        cancelled += sum(bool(outcome.events) for outcome in outcomes if outcome is not None)
        if len(orphans) < ORPHANS_AT_ONCE:
            return cancelled
        # These are to be out of the read model before the next ones are looked for.
        position = max((outcome.position for outcome in outcomes if outcome is not None), default=0)
        if not position or await house.progress.reach(position):
            return cancelled


async def _cancel(house: House, job_id: str, team_id: str, by: str, request: str) -> Outcome | None:
    command = CancelJob(at=datetime.now(UTC), by=by, request=request, charge_id=new_id(), reason="the team was deleted")
    try:
        return await house.ledger.carry_out(cancel_job, command, JOB.stream(job_id), CREDIT.stream(team_id))
    except JobClosed:
        return None  # it ended by itself in the meantime


# -- what the methods have in common -----------------------------------------------------------------------------------


class AllowedModels:
    """Which aliases teams may use, worked out once for teams with the same access groups."""

    def __init__(self, house: House, catalog: Catalog | None) -> None:
        self._catalog = catalog or EMPTY
        self._is_open = house.settings.open_aliases
        self._known: dict[tuple[str, ...], list[Alias]] = {}

    def aliases(self, team: InAccessGroups) -> list[str]:
        """Their names, sorted."""
        return sorted(alias.model_alias for alias in self._usable(team))

    def models(self, team: InAccessGroups) -> list[str]:
        """What is behind them: provider and model, for administrators only."""
        return sorted({f"{alias.terms.provider}/{alias.terms.actual_model}" for alias in self._usable(team)})

    def _usable(self, team: InAccessGroups) -> list[Alias]:
        groups = tuple(team.access_groups)
        if groups not in self._known:
            self._known[groups] = list(usable_aliases(self._catalog, team, self._is_open))
        return self._known[groups]


async def the_catalog(house: House) -> Catalog:
    """The catalog as it is now."""
    catalog = (await house.ledger.read(THE_CATALOG)).states[0]
    return catalog if isinstance(catalog, Catalog) else EMPTY


def known_team(team: TeamRecord | None) -> TeamRecord:
    if team is None:
        raise NotFound("team")
    return team


def creation_streams(command: CreateTeam) -> tuple[str, ...]:
    """What the decision to create a team rests on, in its order."""
    return (
        TEAM.stream(command.team_id),
        CREDIT.stream(command.team_id),
        KEY.stream(command.key_hash),
        ORGANIZATION.stream(command.organization_id),
        THE_CATALOG,
    )


def fresh_key(house: House, chosen_key: str | None) -> str:
    """The key that was chosen, or a new one.

    Raises:
        Invalid: whoever had this key would be an administrator.
    """
    if chosen_key is None:
        return new_virtual_key()
    if hmac.compare_digest(chosen_key.encode(), house.settings.master_key.encode()):
        raise Invalid(["body", "virtual_key"], "this cannot be a team's key", "value_error.format")
    return chosen_key


def small(metadata: JsonObject) -> JsonObject:
    """Metadata that is not too long to keep.

    Raises:
        OutOfBounds: as compact JSON it is.
    """
    if len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise OutOfBounds("metadata", f"metadata is larger than {MAX_METADATA_BYTES} bytes")
    return metadata


def _rate(value: Decimal | UnsetType | None) -> Decimal | UnsetType | None:
    return exact("credits_per_dollar", value, above_zero=True) if isinstance(value, Decimal) else value


def _budget(data: CreateTeamBody) -> Budget:
    rate = _rate(data.credits_per_dollar)
    assert rate is not UNSET
    return Budget(
        mode=known_word("budget_mode", data.budget_mode or "job_based", get_args(BudgetMode)),
        credits_per_dollar=rate,
        tokens_per_credit=data.tokens_per_credit,
        markup_percentage=exact("cost_markup_percentage", data.cost_markup_percentage or ZERO),
        overdraft_credits=data.overdraft_credits,
        charge_policy=known_word("charge_policy", data.charge_policy or "all_calls_succeeded", get_args(ChargePolicy)),
    )


def _budget_change(signature: Mapping[str, Any], data: ReviseTeamBody) -> ChangeBudget:
    mode, policy, markup = data.budget_mode, data.charge_policy, data.cost_markup_percentage
    return ChangeBudget(
        **signature,
        mode=UNSET if mode is None else known_word("budget_mode", mode, get_args(BudgetMode)),
        credits_per_dollar=_rate(data.credits_per_dollar),
        tokens_per_credit=data.tokens_per_credit,
        markup_percentage=UNSET if markup is None else exact("cost_markup_percentage", markup),
        overdraft_credits=data.overdraft_credits,
        charge_policy=UNSET if policy is None else known_word("charge_policy", policy, get_args(ChargePolicy)),
    )


def _allocation(signature: Mapping[str, Any], credits: int | None) -> SetAllocation | None:
    if credits is None:
        return None
    return SetAllocation(**signature, transaction_id=new_id(), allocated_credits=credits, reason="allocation changed")


async def _revise(caller: Caller, house: House, team_id: str, command: ReviseTeam) -> Response[TeamRevised]:
    async with house.pool.connection() as connection:
        totals = await usage.totals_of_team(connection, team_id)

    def revised(outcome: Outcome) -> TeamRevised:
        team, account, catalog = outcome.states
        fields = _fields_of_states(house, team, account, catalog, command.at)
        return TeamRevised(**fields, usage_summary=_summary(totals), message="The team has been changed")

    streams = TEAM.stream(team_id), CREDIT.stream(team_id), THE_CATALOG
    return await caller.carry_out(revise_team, command, *streams, answer=revised)


async def _set_status(
    caller: Caller, team_id: str, status: Literal["active", "suspended", "paused"], reason: str | None
) -> Response[TeamStatus]:
    command = SetTeamStatus(**caller.signature(), status=status, reason=reason)
    answer = TeamStatus(team_id=team_id, status=status, message=f"The team is {status}")
    return await caller.carry_out(set_team_status, command, TEAM.stream(team_id), answer=lambda _: answer)


async def _organization_of(house: House, team_id: str) -> str:
    """The stream of a team's organization, in which it stays for life."""
    team = (await house.ledger.read(TEAM.stream(team_id))).states[0]
    if not isinstance(team, Team):
        raise NotFound("team")
    return ORGANIZATION.stream(team.organization_id)


def _fields_of_states(
    house: House, team: Team | None, account: Account | None, catalog: Catalog | None, at: datetime
) -> dict[str, Any]:
    record = TeamRecord.of(require_team(team), at)
    balance = BalanceRecord.of(require_account(account))
    return _fields(house, record, balance, AllowedModels(house, catalog), for_admin=True)


def _fields(
    house: House, team: TeamRecord, balance: BalanceRecord, models: AllowedModels, *, for_admin: bool
) -> dict[str, Any]:
    """What every answer about a team says."""
    terms, settings = team.budget.terms, house.settings
    aliases = models.aliases(team)
    return {
        "team_id": team.team_id,
        "organization_id": team.organization_id,
        "team_alias": team.team_alias,
        "status": team.status,
        "virtual_key": team.virtual_key,
        "credits_allocated": balance.credits_allocated,
        "credits_used": balance.credits_used,
        "credits_remaining": balance.credits_remaining,
        "credits_held": balance.credits_held,
        "credits_available": balance.credits_available(team.overdraft_credits),
        "model_groups": team.model_groups,
        "access_groups": team.access_groups,
        "allowed_model_aliases": aliases,
        "allowed_models": models.models(team) if for_admin else aliases,
        "default_model": team.default_model,
        "keep_prompts": team.keep_prompts,
        "budget_mode": team.mode,
        "credits_per_dollar": number(terms.credits_per_dollar),
        "tokens_per_credit": terms.tokens_per_credit,
        "charge_policy": team.charge_policy,
        "overdraft_credits": team.overdraft_credits,
        "rpm_limit": settings.default_rpm if team.rpm_limit is None else team.rpm_limit,
        "tpm_limit": settings.default_tpm if team.tpm_limit is None else team.tpm_limit,
        "cost_markup_percentage": number(team.markup_percentage) if for_admin else UNSET,
        "metadata": team.metadata,
        "created_at": ts(team.created_at),
        "updated_at": ts(team.updated_at),
        "credits": balance_answer(team, balance, for_admin=for_admin),
    }


def _summary(totals: Totals) -> UsageSummary:
    return UsageSummary(total_jobs=totals.total_jobs, total_cost_usd=usd6(totals.client_cost_usd))
