"""Who asks, and what that one may do: the first checks of every request, in the contract's order.

A virtual key is looked up in the journal: its stream says whose it is, its team whether it is still worth anything.
What is known here may be a moment old; so every command carries the same check along (`guard`), and the ledger
applies it to the latest state. A GET is checked at the ledger first thing, which also tells it how far the read
models have to be before it may answer: that is how everybody reads their own writes, and everybody else's.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import HTTPScope

from api import idempotency
from api.answers import encode, reply
from api.house import House
from api.throttle import Admission
from domain.errors import AdminRequired, Forbidden, Refusal, Unauthorized
from domain.organization import Organization
from domain.streams import KEY, ORGANIZATION, TEAM
from domain.team import KeyOwner, Team, require_active, require_valid_key
from infra.ledger import Guard, Outcome, Receipt
from infra.secrets import hash_key

Connection = ASGIConnection[Any, Any, Any, Any]
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(slots=True)
class Caller:
    """Whoever has been let in.

    Args:
        actor: what the journal says about who did it: key id, admin user id, `master`.
        team_id: the team of a virtual key; None for administrators.
        guard: the check that commands carry along.
        claim: the idempotency key of the request, if it has one.
        admission: that an LLM call was let through the rate limits.
    """

    house: House
    actor: str
    request_id: str
    team_id: str | None = None
    organization_id: str | None = None
    guard: Guard | None = None
    claim: idempotency.Claim | None = None
    admission: Admission | None = None

    @property
    def is_admin(self) -> bool:
        return self.team_id is None

    def signature(self) -> dict[str, Any]:
        """When, who and in which request: the part that all commands have in common."""
        return {"at": datetime.now(UTC), "by": self.actor, "request": self.request_id}

    def team_for(self, team_id: str | None) -> str:
        """The team that a request is about: the one named, which for a key can only be its own."""
        if self.team_id is None:
            assert team_id is not None
            return team_id
        if team_id is not None and team_id != self.team_id:
            raise Forbidden(team_id)
        return self.team_id

    async def decide(
        self,
        decide: Callable[..., Any],
        command: Any,
        *streams: str,
        new: str | None = None,
        receipt: Receipt | None = None,
    ) -> Outcome:
        """Carries out a command in this caller's name."""
        return await self.house.ledger.carry_out(decide, command, *streams, guard=self.guard, new=new, receipt=receipt)

    async def carry_out(
        self,
        decide: Callable[..., Any],
        command: Any,
        *streams: str,
        answer: Callable[[Outcome], Any],
        new: str | None = None,
        status: int = 200,
        is_secret: bool = False,
    ) -> Response[Any]:
        """Carries out a command in this caller's name and answers with what follows from it.

        Args:
            answer: makes the answer from the outcome; for a repeat of the request it is kept with the events.
            is_secret: the answer shows something that we keep only encrypted.
        """
        claim = self.claim
        receipt = None
        if claim is not None:
            receipt = claim.receipt(lambda outcome: encode(answer(outcome)), status=status, is_secret=is_secret)
        outcome = await self.decide(decide, command, *streams, new=new, receipt=receipt)
        if claim is not None:
            claim.is_settled = True
        return reply(answer(outcome), status=status, headers={"X-Ledger-Position": str(outcome.position)})


# -- guards of the routes ----------------------------------------------------------------------------------------------


async def team_or_admin(connection: Connection, _: BaseRouteHandler) -> None:
    """V·A: a team's key for its own team, or an administrator."""
    await _let_in(connection, admin_only=False)


async def admin_only(connection: Connection, _: BaseRouteHandler) -> None:
    """A: an administrator."""
    await _let_in(connection, admin_only=True)


def the_caller(request: Request[Any, Any, Any]) -> Caller:
    """The one whom the guards let in."""
    caller = cast("Caller", request.scope["state"]["caller"])
    caller.admission = request.scope["state"].get("admission")
    return caller


async def _let_in(connection: Connection, *, admin_only: bool) -> None:
    house: House = connection.app.state.house
    state: dict[str, Any] = connection.scope["state"]
    method = cast("HTTPScope", connection.scope)["method"]
    is_safe = method in SAFE_METHODS
    caller = _master(connection, house, state["request_id"])
    if caller is None:
        caller = await _team(connection, house, state["request_id"], is_safe=is_safe)
        if admin_only:
            raise AdminRequired
    if is_safe:
        position = (await house.ledger.read(guard=caller.guard)).position
        state["position"] = position
        state["lag"] = await house.progress.reach(position)
    elif method == "POST":
        caller.claim = state["claim"] = await idempotency.claim(connection, house, caller.actor)
    state["caller"] = caller


def _master(connection: Connection, house: House, request_id: str) -> Caller | None:
    """The master key, as X-Admin-Key (which then decides) or as Bearer."""
    given = connection.headers.get("x-admin-key")
    token = given if given is not None else _bearer(connection)
    if hmac.compare_digest(token.encode(), house.settings.master_key.encode()):
        return Caller(house, "master", request_id)
    if given is not None:
        raise Unauthorized
    return None


def _bearer(connection: Connection) -> str:
    words = connection.headers.get("authorization", "").split(" ")
    if len(words) != 2 or words[0].lower() != "bearer" or not words[1]:
        raise Unauthorized
    return words[1]


async def _team(connection: Connection, house: House, request_id: str, *, is_safe: bool) -> Caller:
    key_stream = KEY.stream(hash_key(_bearer(connection)))
    owner = house.ledger.glance(key_stream) or (await house.ledger.read(key_stream)).states[0]
    if not isinstance(owner, KeyOwner):
        raise Unauthorized
    guard = Guard(
        (TEAM.stream(owner.team_id), ORGANIZATION.stream(owner.organization_id)),
        _check_key(owner.key_id, may_only_read=is_safe),
    )
    if not is_safe:
        team, organization = (house.ledger.glance(stream) for stream in guard.streams)
        if team is None or organization is None:
            await house.ledger.read(guard=guard)
        else:
            try:
                guard.check(team, organization, datetime.now(UTC))
            except Refusal:
                # What is known here may be old: ask before saying no.
                await house.ledger.read(guard=guard)
    return Caller(house, owner.key_id, request_id, owner.team_id, owner.organization_id, guard)


def _check_key(key_id: str, *, may_only_read: bool) -> Callable[[Team | None, Organization | None, datetime], None]:
    def check(team: Team | None, organization: Organization | None, at: datetime) -> None:
        team = require_valid_key(team, key_id, at)
        if not may_only_read:
            require_active(team, organization)

    return check
