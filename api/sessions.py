"""How administrators come in and go out (contract, section 13): setup, login, logout.

A session is what the users' stream says of it; the access token only names it. So there is nothing here to look up and
nothing to clean up: whatever ends a session is an event.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Meta

from api.admin_passwords import TypedPassword, keeping, matched
from api.admin_users import NewUserBody, UserAnswer, Word, agreed, the_users, user_answer
from api.answers import reply
from api.caller import Caller, open_to_all, person_only
from api.house import House
from domain.errors import InvalidLogin, TooManyAttempts
from domain.streams import THE_USERS
from domain.user import LogIn, LogOut, Role, SetUpOwner, email_key, log_in, log_out, require_setup, set_up_owner
from infra.ids import new_id
from infra.ledger import Outcome
from infra.tokens import token_hash

TypedEmail = Annotated[str, Meta(max_length=254)]


class LoginBody(msgspec.Struct, kw_only=True):
    """`username` is what some clients call the e-mail."""

    email: TypedEmail | None = None
    username: TypedEmail | None = None
    password: TypedPassword


class SetupStatus(msgspec.Struct):
    needs_setup: bool
    has_users: bool


class SessionAnswer(msgspec.Struct):
    access_token: str
    token_type: str
    user: UserAnswer
    message: str


class SessionsController(Controller):
    path = "/api"
    tags = ["Admin Users"]

    @get("/admin-users/setup/status", before_request=open_to_all)
    async def setup_status(self, house: NamedDependency[House]) -> Response[SetupStatus]:
        """Whether the first owner is still to be set up."""
        users = await the_users(house)
        return reply(SetupStatus(users.needs_setup, users.has_users))

    @post("/admin-users/setup", status_code=200, before_request=open_to_all)
    async def set_up(
        self,
        request: Request[Any, Any, Any],
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        data: JSONBody[NewUserBody],
    ) -> Response[SessionAnswer]:
        """Make the first owner. Whoever comes first wins, and is logged in."""
        email, display_name = data.names()
        require_setup(await the_users(house))  # before a password is hashed for nothing
        caller.actor = user_id = new_id()
        session = Session(house, user_id, email, "owner")
        async with keeping(house, data.password) as password_id:
            command = SetUpOwner(
                **caller.signature(),
                user_id=user_id,
                email=email,
                display_name=display_name,
                password_id=password_id,
                session_id=session.session_id,
                expires_at=session.expires_at,
                ip_address=_address(request),
            )
            return await caller.carry_out(
                set_up_owner,
                command,
                THE_USERS,
                answer=lambda outcome: session.answer(outcome, "The first owner has been set up"),
                is_secret=True,
            )

    @post(["/admin-users/login", "/admin/login"], status_code=200, before_request=open_to_all)
    async def log_in(
        self,
        request: Request[Any, Any, Any],
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        data: JSONBody[LoginBody],
    ) -> Response[SessionAnswer]:
        """Log in. An unknown e-mail and a wrong password are answered alike."""
        email: str = agreed("email", data.email, data.username)
        attempt = f"{email_key(email)}\n{_address(request)}"
        allowance = await house.limits.attempt(attempt)
        if not allowance.allowed:
            raise TooManyAttempts(max(1, allowance.retry_after_s))
        try:
            user = (await the_users(house)).with_email(email)
            password_id = await matched(house, user, data.password)
        except Exception:
            # Nobody looked at the password, for want of a processor or of the database: it did not fail.
            await house.limits.withdraw(allowance.ticket)
            raise
        if user is None or password_id is None:
            raise InvalidLogin
        caller.actor = user.user_id
        session = Session(house, user.user_id, user.email, user.role)
        command = LogIn(
            **caller.signature(),
            email=email,
            matched_password_id=password_id,
            session_id=session.session_id,
            expires_at=session.expires_at,
            ip_address=_address(request),
        )
        answer = await caller.carry_out(
            log_in, command, THE_USERS, answer=lambda outcome: session.answer(outcome, "Logged in"), is_secret=True
        )
        await house.limits.forgive(attempt)
        return answer

    @post("/admin-users/logout", status_code=200, before_request=person_only)
    async def log_out(self, caller: NamedDependency[Caller]) -> Response[Word]:
        """End this session, at once and everywhere."""
        assert caller.session_id is not None
        command = LogOut(**caller.signature(), session_id=caller.session_id)
        return await caller.carry_out(log_out, command, THE_USERS, answer=lambda _: Word("Logged out"))


class Session:
    """A session that is about to begin, and its token."""

    def __init__(self, house: House, user_id: str, email: str, role: Role) -> None:
        self._token, claims = house.tokens.issue(user_id, email, role)
        self._user_id = user_id
        self.session_id = token_hash(self._token)
        self.expires_at = datetime.fromtimestamp(claims.exp, UTC)

    def answer(self, outcome: Outcome, message: str) -> SessionAnswer:
        user = outcome.states[0].users[self._user_id]
        return SessionAnswer(self._token, "bearer", user_answer(user), message)


def _address(request: Request[Any, Any, Any]) -> str | None:
    return request.client.host if request.client else None
