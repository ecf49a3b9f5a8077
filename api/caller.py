"""Who asks, and what that one may do: the first checks of every request, in the contract's order.

Three credentials open doors. A virtual key is looked up in the journal: its stream says whose it is, its team whether
it is still worth anything. An access token (a JWT that we have signed) belongs to a session of an administrator; the
users' stream says whether that goes on, and which role the administrator has by now. The master key is nobody's and
opens everything but the doors of persons.

What is known here may be a moment old; so every command carries the same check along (`guard`), and the ledger applies
it to the latest state. A GET is checked at the ledger first thing, which also tells it how far the read models have to
be before it may answer: that is how everybody reads their own writes, and everybody else's.
"""

import hmac
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from litestar import Request, Response

from api import idempotency
from api.answers import encode, reply
from api.house import House
from api.problems import Trouble
from api.throttle import Admission, limited
from domain.errors import AdminRequired, Forbidden, InsufficientCredits, JwtRequired, NotFound, Refusal, Unauthorized
from domain.job import Job
from domain.organization import Organization
from domain.streams import CREDIT, JOB, KEY, ORGANIZATION, SHORTAGE, TEAM, THE_USERS, category_of
from domain.team import KeyOwner, Team, require_active, require_valid_key
from domain.user import MASTER, Permission, Users, require_permission, require_session
from domain.webhook import ReportShortage, report_shortage
from infra.ledger import Guard, Outcome, Receipt, Unavailable
from infra.secrets import hash_key
from infra.tokens import TokenRefused, token_hash

Kind = Literal["team", "person", "master", "anybody"]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ANYBODY = "none"


@dataclass(slots=True)
class Caller:
    """Whoever has been let in.

    Args:
        kind: what let them in: a virtual key, an access token, the master key, or an open door.
        actor: what the journal says about who did it: key id, admin user id, `master`.
        team_id: the team of a virtual key; None for administrators.
        session_id: the session of a person.
        guard: the check that commands carry along.
        claim: the idempotency key of the request, if it has one.
        admission: that an LLM call was let through the rate limits.
    """

    house: House
    request_id: str
    kind: Kind
    actor: str
    team_id: str | None = None
    organization_id: str | None = None
    session_id: str | None = None
    guard: Guard | None = None
    claim: idempotency.Claim | None = None
    admission: Admission | None = None

    @property
    def is_admin(self) -> bool:
        return self.kind in ("person", "master")

    @property
    def own_team(self) -> str:
        """The team of a virtual key, behind a door that lets in nobody else."""
        assert self.team_id is not None
        return self.team_id

    def signature(self) -> dict[str, Any]:
        """When, who and in which request: the part that all commands have in common."""
        return {"at": datetime.now(UTC), "by": self.actor, "request": self.request_id}

    def answers_with(self, headers: Mapping[str, str]) -> None:
        """What the answer will say beside its body, so that a repeat of the request is told as well."""
        if self.claim is not None:
            self.claim.headers |= headers

    def team_for(self, team_id: str | None) -> str:
        """The team that a request is about: the one named, which for a key can only be its own."""
        if self.team_id is None:
            assert team_id is not None
            return team_id
        if team_id is not None and team_id != self.team_id:
            raise Forbidden(team_id)
        return self.team_id

    async def job(self, job_id: str) -> Job:
        """The job as it was last seen here: enough to know whose it is, which never changes.

        Raises:
            NotFound, Forbidden: there is none, or it is another team's.
        """
        stream = JOB.stream(job_id)
        job = self.house.ledger.glance(stream) or (await self.house.ledger.read(stream)).states[0]
        if not isinstance(job, Job):
            raise NotFound("job")
        if self.team_id is not None and job.team_id != self.team_id:
            raise Forbidden(self.team_id)
        return job

    async def decide(
        self,
        decide: Callable[..., Any],
        command: Any,
        *streams: str,
        new: str | None = None,
        receipt: Receipt | None = None,
    ) -> Outcome:
        """Carries out a command in this caller's name."""
        ledger = self.house.ledger
        if self.claim is not None and receipt is None:
            await self.claim.begin()
        try:
            return await ledger.carry_out(decide, command, *streams, guard=self.guard, new=new, receipt=receipt)
        except InsufficientCredits as refusal:
            await self._report_shortage(refusal, *streams)
            raise

    async def _report_shortage(self, refusal: InsufficientCredits, *streams: str) -> None:
        """Puts on record that a team ran out of credits, since its webhooks want to know. The answer is the same."""
        account = next(stream for stream in streams if category_of(stream) is CREDIT)
        command = ReportShortage(
            **self.signature(),
            needed_credits=refusal.credits_needed,
            available_credits=refusal.credits_available,
        )
        with suppress(Unavailable):
            shortage = SHORTAGE.stream(account.removeprefix(CREDIT.stream("")))
            await self.house.ledger.carry_out(report_shortage, command, shortage, account)

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


# -- the doors of the routes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Door:
    """What a route asks of whoever comes: the `before_request` of its controller or its own.

    (Litestar's guards would do as well, but it copies the whole handler for each of them, at every request.)

    Args:
        teams: whether a virtual key opens it.
        admins: whether administrators do, too.
        master: whether the master key does, or persons only.
        reading: what the role of a person has to allow.
        writing: the same for any method but GET.
        is_limited: whether it counts as an LLM call against the limits of its team.
    """

    teams: bool = False
    admins: bool = True
    master: bool = True
    reading: Permission | None = None
    writing: Permission | None = "write"
    is_limited: bool = False

    async def __call__(self, request: Request[Any, Any, Any]) -> None:
        house: House = request.app.state.house
        state: dict[str, Any] = request.scope["state"]
        is_safe = request.method in SAFE_METHODS
        needed = self.reading if is_safe else self.writing
        caller = await _recognised(request, house, state["request_id"], needed, is_safe=is_safe)
        if caller.kind == "master" and not self.master:
            raise JwtRequired
        if caller.kind == "team" and not self.teams:
            # A key that is worth nothing any more is no credential at all.
            await house.ledger.read(guard=_key_guard(caller, may_only_read=True))
            raise AdminRequired
        if is_safe:
            position = (await house.ledger.read(guard=caller.guard)).position
            state["position"] = position
            state["lag"] = await house.progress.reach(position)
        else:
            await _check_early(caller)
        if caller.is_admin and not self.admins:
            raise Trouble("forbidden", team_id=None)  # an administrator's credential is no team's
        await _let_in(request, caller)
        if self.is_limited:
            await limited(request)


team_or_admin = Door(teams=True)
"""V·A: a team's key for its own team, or an administrator."""
limited_call = Door(teams=True, is_limited=True)
"""V·A: the same for a call to a model."""
key_only = Door(teams=True, admins=False)
"""V: a team's key."""
limited_chat = Door(teams=True, admins=False, is_limited=True)
"""V: the same for a call to a model."""
admin_only = Door()
"""A: an administrator; whoever has a role that may only read, may only read."""
audit_only = Door(reading="audit")
"""The audit endpoints: whose role allows that, or the master key."""
person_only = Door(master=False, writing=None)
"""J: any administrator about itself."""
keepers_only = Door(master=False, reading="users", writing="users")
"""J: who keeps the administrators."""
account_keepers_only = Door(master=False, reading="accounts", writing="accounts")
"""J: who keeps their passwords and activation, too."""
log_readers_only = Door(master=False, reading="audit")
"""J: who may read what administrators did."""


async def open_to_all(request: Request[Any, Any, Any]) -> None:
    """O: no credential is asked for, and none is looked at."""
    state: dict[str, Any] = request.scope["state"]
    await _let_in(request, Caller(request.app.state.house, state["request_id"], "anybody", ANYBODY))


def the_caller(request: Request[Any, Any, Any]) -> Caller:
    """The one whom the door let in."""
    caller = cast("Caller", request.scope["state"]["caller"])
    caller.admission = request.scope["state"].get("admission")
    return caller


async def _let_in(request: Request[Any, Any, Any], caller: Caller) -> None:
    state: dict[str, Any] = request.scope["state"]
    if request.method == "POST":
        caller.claim = state["claim"] = await idempotency.claim(request, caller.house, caller.actor)
    state["caller"] = caller


# -- credentials -------------------------------------------------------------------------------------------------------


async def _recognised(
    request: Request[Any, Any, Any], house: House, request_id: str, needed: Permission | None, *, is_safe: bool
) -> Caller:
    """Whose credential this is; whether it is still worth anything is for its guard to say."""
    admin_key = request.headers.get("x-admin-key")
    token = _bearer(request) if admin_key is None else admin_key
    if hmac.compare_digest(token.encode(), house.settings.master_key.encode()):
        return Caller(house, request_id, "master", MASTER)
    if admin_key is not None:
        raise Unauthorized
    return _person(house, request_id, token, needed) or await _team(house, request_id, token, is_safe=is_safe)


def _bearer(request: Request[Any, Any, Any]) -> str:
    words = request.headers.get("authorization", "").split(" ")
    if len(words) != 2 or words[0].lower() != "bearer" or not words[1]:
        raise Unauthorized
    return words[1]


def _person(house: House, request_id: str, token: str, needed: Permission | None) -> Caller | None:
    """The administrator to whom we gave this token; None if it is none of ours, whatever it looks like."""
    if token.count(".") != 2:
        return None
    try:
        user_id = house.tokens.read(token).user_id
    except TokenRefused:
        return None
    session_id = token_hash(token)

    def check(users: Users | None, _: datetime) -> None:
        role = require_session(users, user_id, session_id).role
        if needed is not None:
            require_permission(role, needed)

    guard = Guard((THE_USERS,), check)
    return Caller(house, request_id, "person", user_id, session_id=session_id, guard=guard)


async def _team(house: House, request_id: str, key: str, *, is_safe: bool) -> Caller:
    key_stream = KEY.stream(hash_key(key))
    owner = house.ledger.glance(key_stream) or (await house.ledger.read(key_stream)).states[0]
    if not isinstance(owner, KeyOwner):
        raise Unauthorized
    caller = Caller(house, request_id, "team", owner.key_id, owner.team_id, owner.organization_id)
    caller.guard = _key_guard(caller, may_only_read=is_safe)
    return caller


def _key_guard(caller: Caller, *, may_only_read: bool) -> Guard:
    key_id = caller.actor

    def check(team: Team | None, organization: Organization | None, at: datetime) -> None:
        team = require_valid_key(team, key_id, at)
        if not may_only_read:
            require_active(team, organization)

    return Guard((TEAM.stream(str(caller.team_id)), ORGANIZATION.stream(str(caller.organization_id))), check)


async def _check_early(caller: Caller) -> None:
    """Applies the guard before anything is done.

    Keys are checked on what this process knows, for speed: their commands are checked again. Persons come rarely, and
    some of what they ask for is no command.
    """
    ledger, guard = caller.house.ledger, caller.guard
    if guard is None:
        return
    states = [ledger.glance(stream) for stream in guard.streams]
    if caller.kind == "team" and None not in states:
        try:
            guard.check(*states, datetime.now(UTC))
        except Refusal:
            pass  # what is known here may be old: ask before saying no
        else:
            return
    await ledger.read(guard=guard)
