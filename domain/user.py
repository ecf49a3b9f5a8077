"""The people who run the house.

    first owner set up | created
        -> (changed | role changed | password changed | logged in | logged out | deactivated | activated)* -> deleted

All of them are one stream, because its rules need all of them: an e-mail is registered once, the first owner is made
once, and the last active owner stays. They are few and change rarely.

Passwords are known by the id of their secret only. A password that was typed in is compared outside, and the decision
is told the id that it matched: were the password changed in between, the ids differ and the answer is no.

Sessions are part of the same state, known by the digest of their access token. So whatever ends a session ends it in
the transaction in which it is recorded, and in every process at once.
"""

from datetime import datetime
from typing import Literal

from msgspec import UNSET
from msgspec.structs import replace

from domain.errors import (
    AccountInactive,
    AlreadyRegistered,
    InvalidLogin,
    JwtRequired,
    NotFound,
    Protected,
    RoleForbidden,
    SelfChange,
    SetupDone,
    Unauthorized,
    WrongPassword,
)
from domain.event import Command, Event, JsonObject, Record, State, Unset, with_changes

Role = Literal["owner", "admin", "user", "auditor"]
Permission = Literal["write", "audit", "users", "accounts"]
Status = Literal["active", "inactive", "deleted"]

MASTER = "master"
"""Whoever has the master key: nobody in person."""
SYSTEM = "system"
"""The house itself, which is to say its operator at the command line."""

MOST_SESSIONS = 1000
"""Of one user at once; the oldest one makes room."""

PERMISSIONS: dict[Role, frozenset[Permission]] = {
    "owner": frozenset({"write", "audit", "users", "accounts"}),
    "admin": frozenset({"write", "audit", "users"}),
    "auditor": frozenset({"audit"}),
    "user": frozenset(),
}
"""Reading is everybody's. `users`: see and keep administrators; `accounts`: their passwords and activation."""

# -- events --------------------------------------------------------------------------------------------------


class UserAdded(Event):
    """What every beginning says."""

    user_id: str
    email: str
    display_name: str
    password_id: str
    metadata: JsonObject = {}


class OwnerSetUp(UserAdded):
    """The first of all."""

    ip_address: str | None = None


class UserCreated(UserAdded):
    role: Role


class UserChanged(Event):
    """Both as they are from now on."""

    user_id: str
    display_name: str
    metadata: JsonObject


class UserRoleChanged(Event):
    user_id: str
    role: Role


class UserActivated(Event):
    user_id: str


class UserDeactivated(Event):
    user_id: str


class UserDeleted(Event):
    """The e-mail may be registered again."""

    user_id: str


class PasswordChanged(Event):
    """All sessions of the user end, except the one in which this was asked for."""

    user_id: str
    password_id: str
    kept_session: str | None = None


class UserLoggedIn(Event):
    """A session begins; without an end of its own it lasts as long as its token."""

    user_id: str
    session_id: str
    ip_address: str | None = None
    expires_at: datetime | None = None


class UserLoggedOut(Event):
    user_id: str
    session_id: str


UserEvent = (
    OwnerSetUp
    | UserCreated
    | UserChanged
    | UserRoleChanged
    | UserActivated
    | UserDeactivated
    | UserDeleted
    | PasswordChanged
    | UserLoggedIn
    | UserLoggedOut
)

# -- state ---------------------------------------------------------------------------------------------------


class User(Record):
    user_id: str
    email: str
    display_name: str
    role: Role
    status: Status = "active"
    password_id: str
    metadata: JsonObject
    created_at: datetime
    created_by: str | None
    last_login_at: datetime | None = None
    sessions: dict[str, datetime | None] = {}
    """Those that have not been ended, the oldest first, each with the moment when it ends by itself."""

    @property
    def is_active(self) -> bool:
        return self.status == "active"


class Users(State):
    """Everybody there ever was, and who answers to which e-mail now."""

    users: dict[str, User] = {}
    by_email: dict[str, str] = {}

    @property
    def needs_setup(self) -> bool:
        return not self.users

    @property
    def has_users(self) -> bool:
        return bool(self.by_email)

    @property
    def active_owners(self) -> int:
        return sum(user.role == "owner" and user.is_active for user in self.users.values())

    def user(self, user_id: str) -> User | None:
        """Somebody who was not deleted."""
        user = self.users.get(user_id)
        return None if user is None or user.status == "deleted" else user

    def with_email(self, email: str) -> User | None:
        user_id = self.by_email.get(email_key(email))
        return None if user_id is None else self.users[user_id]


NOBODY = Users()


def evolve(users: Users | None, event: UserEvent) -> Users:
    """Who there is after this event, whatever the rules say today."""
    users = users or NOBODY
    if isinstance(event, OwnerSetUp | UserCreated):
        return _added(users, event)
    user = users.users.get(event.user_id)
    if user is None:
        return users
    match event:
        case UserChanged(display_name=display_name, metadata=metadata):
            user = replace(user, display_name=display_name, metadata=metadata)
        case UserRoleChanged(role=role):
            user = replace(user, role=role, sessions={})
        case UserActivated():
            user = replace(user, status="active")
        case UserDeactivated():
            user = replace(user, status="inactive", sessions={})
        case UserDeleted():
            user = replace(user, status="deleted", sessions={})
            by_email = {email: user_id for email, user_id in users.by_email.items() if user_id != user.user_id}
            users = replace(users, by_email=by_email)
        case PasswordChanged(password_id=password_id, kept_session=kept_session):
            kept = {session: ends for session, ends in user.sessions.items() if session == kept_session}
            user = replace(user, password_id=password_id, sessions=kept)
        case UserLoggedIn():
            user = replace(user, last_login_at=event.at, sessions=_sessions_with(user, event))
        case UserLoggedOut(session_id=session_id):
            others = {session: ends for session, ends in user.sessions.items() if session != session_id}
            user = replace(user, sessions=others)
    return replace(users, users={**users.users, user.user_id: user})


def _added(users: Users, event: OwnerSetUp | UserCreated) -> Users:
    is_first = isinstance(event, OwnerSetUp)
    user = User(
        user_id=event.user_id,
        email=event.email,
        display_name=event.display_name,
        role="owner" if isinstance(event, OwnerSetUp) else event.role,
        password_id=event.password_id,
        metadata=event.metadata,
        created_at=event.at,
        created_by=None if is_first else event.by or None,
    )
    return replace(
        users,
        users={**users.users, user.user_id: user},
        by_email={**users.by_email, email_key(user.email): user.user_id},
    )


def _sessions_with(user: User, event: UserLoggedIn) -> dict[str, datetime | None]:
    """The sessions of a user beside a new one, without those that have ended by themselves."""
    running = {session: ends for session, ends in user.sessions.items() if ends is None or ends > event.at}
    kept = list(running.items())[-(MOST_SESSIONS - 1) :]
    return {**dict(kept), event.session_id: event.expires_at}


def email_key(email: str) -> str:
    """What makes two e-mails the same, whatever their letters' case."""
    return email.strip().casefold()


# -- commands: `by` is the id of the user who wishes ---------------------------------------------------------


class SetUpOwner(Command):
    """Whoever does it is logged in as well."""

    user_id: str
    email: str
    display_name: str
    password_id: str
    session_id: str
    expires_at: datetime | None = None
    ip_address: str | None = None


class CreateUser(Command):
    user_id: str
    email: str
    display_name: str
    password_id: str
    role: Role = "user"
    metadata: JsonObject = {}


class ChangeUser(Command):
    """What is not set stays."""

    user_id: str
    display_name: str | Unset = UNSET
    role: Role | Unset = UNSET
    is_active: bool | Unset = UNSET
    metadata: JsonObject | Unset = UNSET


class SetUserActive(Command):
    user_id: str
    is_active: bool


class DeleteUser(Command):
    user_id: str


class ChangePassword(Command):
    """One's own. `matched_password_id` is the password that the current one, typed in, turned out to be."""

    matched_password_id: str | None
    password_id: str
    session_id: str


class ResetPassword(Command):
    """Anybody's, by an owner."""

    user_id: str
    password_id: str


class LogIn(Command):
    """`matched_password_id` is the password that was typed in; None when it was none of ours."""

    email: str
    matched_password_id: str | None
    session_id: str
    expires_at: datetime | None = None
    ip_address: str | None = None


class LogOut(Command):
    session_id: str


# -- decisions -----------------------------------------------------------------------------------------------


def set_up_owner(users: Users | None, command: SetUpOwner) -> list[Event]:
    """Makes the first owner. Open to all until somebody is there, so it is closed by any user, deleted ones too."""
    require_setup(users)
    return [
        OwnerSetUp(
            at=command.at,
            user_id=command.user_id,
            email=command.email,
            display_name=command.display_name,
            password_id=command.password_id,
            ip_address=command.ip_address,
        ),
        _logged_in(command, command.user_id),
    ]


def create_user(users: Users | None, command: CreateUser) -> list[Event]:
    users = users or NOBODY
    actor = _actor(users, command, "users")
    _require_touchable(actor, command.role)
    if users.with_email(command.email) is not None:
        raise AlreadyRegistered
    return [
        UserCreated(
            at=command.at,
            user_id=command.user_id,
            email=command.email,
            display_name=command.display_name,
            password_id=command.password_id,
            role=command.role,
            metadata=command.metadata,
        )
    ]


def change_user(users: Users | None, command: ChangeUser) -> list[Event]:
    """Changes a user's record.

    Raises:
        SelfChange: own role or own deactivation.
        Protected: of the last active owner, even its own.
        RoleForbidden: an admin who touches anybody but role user, makes anybody more than that, or (de)activates.
    """
    users = users or NOBODY
    actor = _actor(users, command, "users")
    user = require_user(users, command.user_id)
    changed = with_changes(user, command, "display_name", "role", "metadata")
    is_active = user.is_active if command.is_active is UNSET else command.is_active
    if actor is user and (changed.role != user.role or not is_active):
        _refuse_self_change(users, user)
    _require_touchable(actor, user.role, changed.role)
    if changed.role != "owner" or not is_active:
        _require_another_owner(users, user)
    events: list[Event] = []
    if (changed.display_name, changed.metadata) != (user.display_name, user.metadata):
        events.append(
            UserChanged(
                at=command.at, user_id=user.user_id, display_name=changed.display_name, metadata=changed.metadata
            )
        )
    if changed.role != user.role:
        events.append(UserRoleChanged(at=command.at, user_id=user.user_id, role=changed.role))
    if is_active != user.is_active:
        _require(actor, "accounts")
        events.append(_active_event(user, command.at, is_active=is_active))
    return events


def set_user_active(users: Users | None, command: SetUserActive) -> list[Event]:
    users = users or NOBODY
    actor = _actor(users, command, "accounts")
    user = require_user(users, command.user_id)
    if user.is_active == command.is_active:
        return []
    if actor is user:
        _refuse_self_change(users, user)
    if not command.is_active:
        _require_another_owner(users, user)
    return [_active_event(user, command.at, is_active=command.is_active)]


def delete_user(users: Users | None, command: DeleteUser) -> list[Event]:
    users = users or NOBODY
    actor = _actor(users, command, "users")
    user = users.users.get(command.user_id)
    if user is None:
        raise NotFound("admin_user")
    if actor is user:
        _refuse_self_change(users, user)
    _require_touchable(actor, user.role)
    if user.status == "deleted":
        return []
    _require_another_owner(users, user)
    return [UserDeleted(at=command.at, user_id=user.user_id)]


def change_password(users: Users | None, command: ChangePassword) -> list[Event]:
    user = _person(users or NOBODY, command)
    if user.password_id == command.password_id:
        return []
    if user.password_id != command.matched_password_id:
        raise WrongPassword
    return [
        PasswordChanged(
            at=command.at,
            user_id=user.user_id,
            password_id=command.password_id,
            kept_session=command.session_id,
        )
    ]


def reset_password(users: Users | None, command: ResetPassword) -> list[Event]:
    users = users or NOBODY
    _actor(users, command, "accounts")
    user = require_user(users, command.user_id)
    if user.password_id == command.password_id:
        return []
    return [PasswordChanged(at=command.at, user_id=user.user_id, password_id=command.password_id)]


def log_in(users: Users | None, command: LogIn) -> list[Event]:
    """Lets somebody in.

    Raises:
        InvalidLogin: no such user, or not its password.
        AccountInactive: told only to whoever knows the password.
    """
    user = (users or NOBODY).with_email(command.email)
    if user is None or user.password_id != command.matched_password_id:
        raise InvalidLogin
    if not user.is_active:
        raise AccountInactive
    return [_logged_in(command, user.user_id)]


def log_out(users: Users | None, command: LogOut) -> list[Event]:
    user = _person(users or NOBODY, command)
    return [UserLoggedOut(at=command.at, user_id=user.user_id, session_id=command.session_id)]


def require_setup(users: Users | None) -> None:
    if not (users or NOBODY).needs_setup:
        raise SetupDone


def require_user(users: Users, user_id: str) -> User:
    """Somebody who was not deleted."""
    user = users.user(user_id)
    if user is None:
        raise NotFound("admin_user")
    return user


def require_active_user(users: Users | None, user_id: str) -> User:
    user = (users or NOBODY).user(user_id)
    if user is None or not user.is_active:
        raise Unauthorized
    return user


def require_session(users: Users | None, user_id: str, session_id: str) -> User:
    """Whose session this is, if nothing has ended it; the role is read from here, not from the token."""
    user = require_active_user(users, user_id)
    if session_id not in user.sessions:
        raise Unauthorized
    return user


def require_permission(role: Role, permission: Permission) -> None:
    if permission not in PERMISSIONS[role]:
        raise RoleForbidden


def _actor(users: Users, command: Command, permission: Permission) -> User | None:
    """Who wishes this, allowed to do things of this kind; None is the house itself, which may do all."""
    if command.by == SYSTEM:
        return None
    person = _person(users, command)
    require_permission(person.role, permission)
    return person


def _person(users: Users, command: Command) -> User:
    """Who wishes this. Whoever is no user (the master key) cannot."""
    if command.by not in users.users:
        raise JwtRequired
    return require_active_user(users, command.by)


def _require(actor: User | None, permission: Permission) -> None:
    if actor is not None:
        require_permission(actor.role, permission)


def _require_touchable(actor: User | None, *roles: Role) -> None:
    """An owner may touch everybody, an admin only role user."""
    if actor is not None and actor.role != "owner" and any(role != "user" for role in roles):
        raise RoleForbidden


def _refuse_self_change(users: Users, user: User) -> None:
    _require_another_owner(users, user)
    raise SelfChange


def _require_another_owner(users: Users, user: User) -> None:
    """Without an owner nobody could make one again."""
    if user.role == "owner" and user.is_active and users.active_owners == 1:
        raise Protected


def _logged_in(command: SetUpOwner | LogIn, user_id: str) -> UserLoggedIn:
    return UserLoggedIn(
        at=command.at,
        user_id=user_id,
        session_id=command.session_id,
        expires_at=command.expires_at,
        ip_address=command.ip_address,
    )


def _active_event(user: User, at: datetime, *, is_active: bool) -> Event:
    return (UserActivated if is_active else UserDeactivated)(at=at, user_id=user.user_id)
