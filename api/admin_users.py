"""Administrators: who they are, what their role is, what they did (contract, section 13).

They are few, and all of them are one state: it is read at the ledger, and there is no table to wait for. Who comes in
and goes out is in sessions.py.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar, cast

import msgspec
from litestar import Controller, HttpMethod, Response, delete, get, post, put, route
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta

from api.admin_passwords import NewPassword, Replacing, TypedPassword, keeping, matched
from api.answers import reply, ts, ts_or_none
from api.bodies import EMAIL, Name200
from api.caller import Caller, account_keepers_only, keepers_only, person_only
from api.house import House
from api.jobs import uuid_of
from api.listing import Page, listed
from api.problems import Invalid
from api.shapes import Timestamp, Uuid
from domain.errors import InvalidValue, OutOfBounds, WrongPassword
from domain.event import Json, JsonObject
from domain.job import MAX_METADATA_BYTES
from domain.streams import THE_USERS
from domain.user import (
    NOBODY,
    SYSTEM,
    ChangePassword,
    ChangeUser,
    CreateUser,
    DeleteUser,
    ResetPassword,
    Role,
    SetUserActive,
    User,
    Users,
    change_password,
    change_user,
    create_user,
    delete_user,
    require_user,
    reset_password,
    set_user_active,
)
from infra.ids import new_id
from infra.ledger import Outcome

T = TypeVar("T")

Email = Annotated[str, Meta(max_length=254, pattern=EMAIL)]
RoleWord = Literal["owner", "admin", "user", "auditor", "viewer"]

POST_OR_PUT = [HttpMethod.POST, HttpMethod.PUT]


class NewUserBody(msgspec.Struct, kw_only=True):
    """`username` and `full_name` are what some clients call the e-mail and the display name."""

    email: Email | None = None
    username: Email | None = None
    display_name: Name200 | None = None
    full_name: Name200 | None = None
    password: NewPassword

    def names(self) -> tuple[str, str]:
        """The e-mail and the display name."""
        email = agreed("email", self.email, self.username)
        return email, agreed("display_name", self.display_name, self.full_name)


class CreateUserBody(NewUserBody, kw_only=True):
    role: RoleWord = "user"
    metadata: JsonObject | None = None


class ChangeUserBody(msgspec.Struct, kw_only=True):
    display_name: Name200 | None = None
    full_name: Name200 | None = None
    role: RoleWord | None = None
    is_active: bool | None = None
    metadata: JsonObject | None = None


class ChangePasswordBody(msgspec.Struct):
    current_password: TypedPassword
    new_password: NewPassword


class ResetPasswordBody(msgspec.Struct):
    new_password: NewPassword


class UserAnswer(msgspec.Struct, kw_only=True):
    """`username` and `full_name` are what some clients call the e-mail and the display name."""

    user_id: Uuid
    email: str
    username: str
    display_name: str
    full_name: str
    role: str
    is_active: bool
    created_at: Timestamp
    created_by: str | None
    last_login: Timestamp | None
    metadata: Mapping[str, Json]


class DeletedUser(msgspec.Struct):
    user_id: Uuid
    message: str


class Word(msgspec.Struct):
    """All that is to be said."""

    message: str


class AdminUsersController(Controller):
    path = "/api/admin-users"
    tags = ["Admin Users"]

    @get("", before_request=keepers_only)
    async def list_users(
        self, house: NamedDependency[House], page: NamedDependency[Page]
    ) -> Response[list[UserAnswer]]:
        """All administrators, the newest first."""
        users = [user for user in (await the_users(house)).users.values() if user.status != "deleted"]
        users.sort(key=lambda user: (user.created_at, user.user_id), reverse=True)
        return listed([user_answer(user) for user in page.of(users)], len(users))

    @post("", status_code=200, before_request=keepers_only)
    async def create(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[CreateUserBody]
    ) -> Response[UserAnswer]:
        """Make an administrator. An admin makes role user only."""
        email, display_name = data.names()
        _require_small(data.metadata)
        user_id = new_id()
        async with keeping(house, data.password) as password_id:
            command = CreateUser(
                **caller.signature(),
                user_id=user_id,
                email=email,
                display_name=display_name,
                password_id=password_id,
                role=_role(data.role),
                metadata=data.metadata or {},
            )
            return await caller.carry_out(create_user, command, THE_USERS, answer=_user_in(user_id))

    @get("/me", before_request=person_only)
    async def me(self, caller: NamedDependency[Caller], house: NamedDependency[House]) -> Response[UserAnswer]:
        """Whose session this is."""
        return reply(user_answer(require_user(await the_users(house), caller.actor)))

    @post("/me/change-password", status_code=200, before_request=person_only)
    async def change_own_password(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[ChangePasswordBody]
    ) -> Response[Word]:
        """Change one's own password. One's other sessions end."""
        return await _change_password(caller, house, data)

    @put(["/password", "/me/password"], before_request=person_only)
    async def put_own_password(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], data: JSONBody[ChangePasswordBody]
    ) -> Response[Word]:
        """Change one's own password. One's other sessions end."""
        return await _change_password(caller, house, data)

    @get("/{user_id:str}", before_request=keepers_only)
    async def details(self, house: NamedDependency[House], user_id: FromPath[str]) -> Response[UserAnswer]:
        """One administrator."""
        return reply(user_answer(require_user(await the_users(house), _id(user_id))))

    @put("/{user_id:str}", before_request=keepers_only)
    async def change(
        self, caller: NamedDependency[Caller], user_id: FromPath[str], data: JSONBody[ChangeUserBody]
    ) -> Response[UserAnswer]:
        """Change an administrator. What is not named stays."""
        user_id = _id(user_id)
        _require_small(data.metadata)
        display_name = _same("display_name", data.display_name, data.full_name)
        command = ChangeUser(
            **caller.signature(),
            user_id=user_id,
            display_name=UNSET if display_name is None else display_name,
            role=UNSET if data.role is None else _role(data.role),
            is_active=UNSET if data.is_active is None else data.is_active,
            metadata=UNSET if data.metadata is None else data.metadata,
        )
        return await caller.carry_out(change_user, command, THE_USERS, answer=_user_in(user_id))

    @delete("/{user_id:str}", status_code=200, before_request=keepers_only)
    async def remove(
        self, caller: NamedDependency[Caller], house: NamedDependency[House], user_id: FromPath[str]
    ) -> Response[DeletedUser]:
        """Delete an administrator, who is out at once. The e-mail may be registered again."""
        user_id = _id(user_id)
        deciding = Replacing(delete_user, user_id)
        answer = await caller.carry_out(
            deciding,
            DeleteUser(**caller.signature(), user_id=user_id),
            THE_USERS,
            answer=lambda _: DeletedUser(user_id, "The administrator has been deleted"),
        )
        await deciding.forget(house)
        return answer

    @route("/{user_id:str}/activate", http_method=POST_OR_PUT, status_code=200, before_request=account_keepers_only)
    async def activate(self, caller: NamedDependency[Caller], user_id: FromPath[str]) -> Response[UserAnswer]:
        """Let an administrator log in again."""
        return await _set_active(caller, _id(user_id), is_active=True)

    @route("/{user_id:str}/deactivate", http_method=POST_OR_PUT, status_code=200, before_request=account_keepers_only)
    async def deactivate(self, caller: NamedDependency[Caller], user_id: FromPath[str]) -> Response[UserAnswer]:
        """Lock an administrator out, at once and everywhere."""
        return await _set_active(caller, _id(user_id), is_active=False)

    @post("/{user_id:str}/change-password", status_code=200, before_request=account_keepers_only)
    async def change_password_of(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        user_id: FromPath[str],
        data: JSONBody[ResetPasswordBody],
    ) -> Response[Word]:
        """Give an administrator another password. All of its sessions end."""
        return await _reset_password(caller, house, _id(user_id), data.new_password)

    @put("/{user_id:str}/reset-password", before_request=account_keepers_only)
    async def reset_password_of(
        self,
        caller: NamedDependency[Caller],
        house: NamedDependency[House],
        user_id: FromPath[str],
        data: JSONBody[ResetPasswordBody],
    ) -> Response[Word]:
        """Give an administrator another password. All of its sessions end."""
        return await _reset_password(caller, house, _id(user_id), data.new_password)


async def add_user(house: House, *, email: str, display_name: str, password: str, role: Role = "owner") -> User:
    """Makes an administrator in the name of the operator at the command line, who may do all.

    Raises:
        AlreadyRegistered: another administrator has this e-mail.
        ValueError: the password is too short or too long.
    """
    user_id = new_id()
    async with keeping(house, password) as password_id:
        command = CreateUser(
            at=datetime.now(UTC),
            by=SYSTEM,
            request="",
            user_id=user_id,
            email=email,
            display_name=display_name,
            password_id=password_id,
            role=role,
        )
        outcome = await house.ledger.carry_out(create_user, command, THE_USERS)
    return cast("User", outcome.states[0].users[user_id])


async def the_users(house: House) -> Users:
    """Everybody there is, at this moment."""
    return (await house.ledger.read(THE_USERS)).states[0] or NOBODY


# -- what the methods have in common -----------------------------------------------------------------------------------


async def _set_active(caller: Caller, user_id: str, *, is_active: bool) -> Response[UserAnswer]:
    command = SetUserActive(**caller.signature(), user_id=user_id, is_active=is_active)
    return await caller.carry_out(set_user_active, command, THE_USERS, answer=_user_in(user_id))


async def _change_password(caller: Caller, house: House, body: ChangePasswordBody) -> Response[Word]:
    assert caller.session_id is not None
    user = (await the_users(house)).user(caller.actor)
    password_id = await matched(house, user, body.current_password)
    if password_id is None:
        raise WrongPassword
    deciding = Replacing(change_password, caller.actor)
    async with keeping(house, body.new_password) as new_password_id:
        command = ChangePassword(
            **caller.signature(),
            matched_password_id=password_id,
            password_id=new_password_id,
            session_id=caller.session_id,
        )
        answer = await caller.carry_out(
            deciding, command, THE_USERS, answer=lambda _: Word("The password has been changed")
        )
    await deciding.forget(house)
    return answer


async def _reset_password(caller: Caller, house: House, user_id: str, password: str) -> Response[Word]:
    require_user(await the_users(house), user_id)  # before a password is hashed for nothing
    deciding = Replacing(reset_password, user_id)
    async with keeping(house, password) as password_id:
        command = ResetPassword(**caller.signature(), user_id=user_id, password_id=password_id)
        answer = await caller.carry_out(
            deciding, command, THE_USERS, answer=lambda _: Word("The password has been changed")
        )
    await deciding.forget(house)
    return answer


# -- what a body says --------------------------------------------------------------------------------------------------


def agreed(field: str, one: T | None, other: T | None) -> T:
    """What was said under either of two names, and has to be.

    Raises:
        InvalidValue: they say different things.
        Invalid: neither says anything.
    """
    said = _same(field, one, other)
    if said is None:
        raise Invalid(["body", field], "field required", "value_error.missing")
    return said


def _same(field: str, one: T | None, other: T | None) -> T | None:
    if one is not None and other is not None and one != other:
        raise InvalidValue(field)
    return other if one is None else one


def _role(word: RoleWord) -> Role:
    return "user" if word == "viewer" else word


def _require_small(metadata: JsonObject | None) -> None:
    if metadata is not None and len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise OutOfBounds("metadata", f"metadata is larger than {MAX_METADATA_BYTES} bytes")


def _id(text: str) -> str:
    return uuid_of(text, "admin_user")


# -- answers -----------------------------------------------------------------------------------------------------------


def user_answer(user: User) -> UserAnswer:
    return UserAnswer(
        user_id=user.user_id,
        email=user.email,
        username=user.email,
        display_name=user.display_name,
        full_name=user.display_name,
        role=user.role,
        is_active=user.is_active,
        created_at=ts(user.created_at),
        created_by=user.created_by,
        last_login=ts_or_none(user.last_login_at),
        metadata=user.metadata,
    )


def _user_in(user_id: str) -> Callable[[Outcome], UserAnswer]:
    return lambda outcome: user_answer(outcome.states[0].users[user_id])
