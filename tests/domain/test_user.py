"""Who runs the house, and who may do what to whom."""

from typing import Any

import pytest

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
from domain.event import Event
from domain.user import (
    MOST_SESSIONS,
    NOBODY,
    PERMISSIONS,
    SYSTEM,
    ChangePassword,
    ChangeUser,
    CreateUser,
    DeleteUser,
    LogIn,
    LogOut,
    OwnerSetUp,
    PasswordChanged,
    ResetPassword,
    Role,
    SetUpOwner,
    SetUserActive,
    UserActivated,
    UserChanged,
    UserCreated,
    UserDeactivated,
    UserDeleted,
    UserLoggedIn,
    UserLoggedOut,
    UserRoleChanged,
    Users,
    change_password,
    change_user,
    create_user,
    delete_user,
    evolve,
    log_in,
    log_out,
    require_permission,
    require_session,
    reset_password,
    set_up_owner,
    set_user_active,
)
from tests.domain.scene import NOON, after, an_id
from tests.spec import given

OLGA, OTTO, ADAM, URSULA, AUDREY, NEW = (an_id(number) for number in range(1, 7))
MASTER = "master"
SECRET, NEW_SECRET = "password-1", "password-2"
SESSION, OTHER_SESSION = "session-1", "session-2"
TOMORROW = after(hours=24)
ROLES: dict[str, Role] = {OLGA: "owner", OTTO: "owner", ADAM: "admin", URSULA: "user", AUDREY: "auditor"}


def who(user_id: str) -> dict[str, Any]:
    return {"at": NOON, "by": user_id, "request": "request-1"}


def person(user_id: str, role: Role, email: str | None = None) -> UserCreated:
    return UserCreated(
        at=NOON,
        user_id=user_id,
        email=email or f"{user_id}@example.com",
        display_name="Somebody",
        password_id=SECRET,
        role=role,
    )


SET_UP = OwnerSetUp(at=NOON, user_id=OLGA, email="Olga@example.com", display_name="Olga", password_id=SECRET)
SECOND_OWNER = person(OTTO, "owner")
ADMIN, USER, AUDITOR = person(ADAM, "admin"), person(URSULA, "user"), person(AUDREY, "auditor")
HOUSE = given(SET_UP, ADMIN, USER, AUDITOR)  # one owner
TWO_OWNERS = given(SET_UP, SECOND_OWNER, ADMIN, USER, AUDITOR)
INACTIVE = UserDeactivated(at=NOON, user_id=URSULA)


def creating(by: str, role: Role = "user", email: str = "new@example.com") -> CreateUser:
    return CreateUser(
        **who(by), user_id=NEW, email=email, display_name="New", password_id=SECRET, role=role, metadata={"desk": 4}
    )


def created(role: Role = "user") -> UserCreated:
    return UserCreated(
        at=NOON,
        user_id=NEW,
        email="new@example.com",
        display_name="New",
        password_id=SECRET,
        role=role,
        metadata={"desk": 4},
    )


# -- the first owner -----------------------------------------------------------------------------------------

FIRST = SetUpOwner(
    **who(OLGA),
    user_id=OLGA,
    email="Olga@example.com",
    display_name="Olga",
    password_id=SECRET,
    session_id=SESSION,
    expires_at=TOMORROW,
)
LOGGED_IN = UserLoggedIn(at=NOON, user_id=OLGA, session_id=SESSION, expires_at=TOMORROW)


def test_the_first_owner_is_set_up_and_let_in_by_whoever_comes_first() -> None:
    story = given().when(set_up_owner, FIRST).then(SET_UP, LOGGED_IN).leaving(Users, needs_setup=False, has_users=True)
    story.when(set_up_owner, FIRST).then_refused(SetupDone)


def test_setup_stays_closed_when_the_only_user_is_deleted() -> None:
    deleted = given(USER, UserDeleted(at=NOON, user_id=URSULA)).leaving(Users, needs_setup=False, has_users=False)
    deleted.when(set_up_owner, FIRST).then_refused(SetupDone)


def test_an_empty_house_needs_setup() -> None:
    assert (True, False) == (NOBODY.needs_setup, NOBODY.has_users)


# -- creating ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES.values())
def test_an_owner_creates_anybody(role: Role) -> None:
    HOUSE.when(create_user, creating(OLGA, role)).then(created(role))


def test_an_admin_creates_role_user() -> None:
    HOUSE.when(create_user, creating(ADAM)).then(created())


@pytest.mark.parametrize("role", ["owner", "admin", "auditor"])
def test_an_admin_creates_nobody_else(role: Role) -> None:
    HOUSE.when(create_user, creating(ADAM, role)).then_refused(RoleForbidden)


@pytest.mark.parametrize("actor", [URSULA, AUDREY])
def test_users_and_auditors_create_nobody(actor: str) -> None:
    HOUSE.when(create_user, creating(actor)).then_refused(RoleForbidden)


def test_the_operator_creates_anybody_even_first() -> None:
    given().when(create_user, creating(SYSTEM, "owner")).then(created("owner"))


@pytest.mark.parametrize("email", ["olga@EXAMPLE.com", " Olga@example.com "])
def test_an_email_is_registered_once_in_any_letter_case(email: str) -> None:
    HOUSE.when(create_user, creating(OLGA, email=email)).then_refused(AlreadyRegistered)


def test_the_email_of_a_deleted_user_may_be_registered_again() -> None:
    gone = given(SET_UP, person(URSULA, "user", "new@example.com"), UserDeleted(at=NOON, user_id=URSULA))
    gone.when(create_user, creating(OLGA)).then(created())


@pytest.mark.parametrize(
    "decide, command",
    [
        (create_user, creating(MASTER)),
        (change_user, ChangeUser(**who(MASTER), user_id=URSULA)),
        (set_user_active, SetUserActive(**who(MASTER), user_id=URSULA, is_active=False)),
        (delete_user, DeleteUser(**who(MASTER), user_id=URSULA)),
        (reset_password, ResetPassword(**who(MASTER), user_id=URSULA, password_id=NEW_SECRET)),
        (log_out, LogOut(**who(MASTER), session_id=SESSION)),
        (
            change_password,
            ChangePassword(**who(MASTER), matched_password_id=SECRET, password_id=NEW_SECRET, session_id=SESSION),
        ),
    ],
)
def test_the_master_key_is_nobody(decide: Any, command: Any) -> None:
    HOUSE.when(decide, command).then_refused(JwtRequired)


def test_who_was_deactivated_in_between_does_nothing_more() -> None:
    given(SET_UP, ADMIN, UserDeactivated(at=NOON, user_id=ADAM)).when(create_user, creating(ADAM)).then_refused(
        Unauthorized
    )


def test_of_two_owners_who_delete_each_other_one_stays() -> None:
    story = TWO_OWNERS.when(delete_user, DeleteUser(**who(OLGA), user_id=OTTO))
    story.when(delete_user, DeleteUser(**who(OTTO), user_id=OLGA)).then_refused(Unauthorized)


# -- changing ------------------------------------------------------------------------------------------------


def change(by: str, user_id: str, **what: Any) -> ChangeUser:
    return ChangeUser(**who(by), user_id=user_id, **what)


def test_only_what_is_named_changes() -> None:
    renamed = UserChanged(at=NOON, user_id=URSULA, display_name="Ursula", metadata={})
    story = HOUSE.when(change_user, change(ADAM, URSULA, display_name="Ursula")).then(renamed)
    moved = UserChanged(at=NOON, user_id=URSULA, display_name="Ursula", metadata={"desk": 5})
    story.when(change_user, change(ADAM, URSULA, metadata={"desk": 5})).then(moved)


def test_an_owner_changes_everything_at_once() -> None:
    HOUSE.when(change_user, change(OLGA, URSULA, display_name="Ursula", role="admin", is_active=False)).then(
        UserChanged(at=NOON, user_id=URSULA, display_name="Ursula", metadata={}),
        UserRoleChanged(at=NOON, user_id=URSULA, role="admin"),
        UserDeactivated(at=NOON, user_id=URSULA),
    )


def test_a_change_that_changes_nothing_leaves_no_trace() -> None:
    HOUSE.when(change_user, change(OLGA, URSULA, display_name="Somebody", role="user", is_active=True)).then_nothing()


@pytest.mark.parametrize("target", [OLGA, AUDREY])
def test_an_admin_touches_only_role_user(target: str) -> None:
    HOUSE.when(change_user, change(ADAM, target, display_name="Mine")).then_refused(RoleForbidden)


@pytest.mark.parametrize("role", ["owner", "admin", "auditor"])
def test_an_admin_raises_nobody(role: Role) -> None:
    HOUSE.when(change_user, change(ADAM, URSULA, role=role)).then_refused(RoleForbidden)


@pytest.mark.parametrize("what", [{"role": "owner"}, {"role": "user"}, {"is_active": False}])
def test_an_admin_changes_neither_its_own_role_nor_its_activation(what: Any) -> None:
    HOUSE.when(change_user, change(ADAM, ADAM, **what)).then_refused(SelfChange)


def test_an_admin_activates_and_deactivates_nobody() -> None:
    HOUSE.when(change_user, change(ADAM, URSULA, is_active=False)).then_refused(RoleForbidden)
    HOUSE.when(set_user_active, SetUserActive(**who(ADAM), user_id=URSULA, is_active=False)).then_refused(RoleForbidden)


@pytest.mark.parametrize("actor", [URSULA, AUDREY])
def test_users_and_auditors_change_nobody_themselves_included(actor: str) -> None:
    HOUSE.when(change_user, change(actor, actor, role="owner")).then_refused(RoleForbidden)
    HOUSE.when(change_user, change(actor, URSULA, display_name="Mine")).then_refused(RoleForbidden)


def test_an_owner_keeps_its_own_role() -> None:
    TWO_OWNERS.when(change_user, change(OLGA, OLGA, role="admin")).then_refused(SelfChange)
    TWO_OWNERS.when(change_user, change(OLGA, OLGA, is_active=False)).then_refused(SelfChange)


def test_an_owner_renames_itself() -> None:
    renamed = UserChanged(at=NOON, user_id=OLGA, display_name="Olga O.", metadata={})
    HOUSE.when(change_user, change(OLGA, OLGA, display_name="Olga O.", role="owner", is_active=True)).then(renamed)


def test_an_owner_demotes_another() -> None:
    demoted = UserRoleChanged(at=NOON, user_id=OTTO, role="admin")
    TWO_OWNERS.when(change_user, change(OLGA, OTTO, role="admin")).then(demoted).leaving(Users, active_owners=1)


@pytest.mark.parametrize("actor", [OLGA, SYSTEM])
@pytest.mark.parametrize(
    "decide, kind, what",
    [
        (change_user, ChangeUser, {"role": "admin"}),
        (change_user, ChangeUser, {"is_active": False}),
        (set_user_active, SetUserActive, {"is_active": False}),
        (delete_user, DeleteUser, {}),
    ],
)
def test_the_last_active_owner_stays(actor: str, decide: Any, kind: Any, what: Any) -> None:
    HOUSE.when(decide, kind(**who(actor), user_id=OLGA, **what)).then_refused(Protected)


def test_an_inactive_owner_does_not_count_as_the_last() -> None:
    story = TWO_OWNERS.when(set_user_active, SetUserActive(**who(OLGA), user_id=OTTO, is_active=False))
    story = story.when(delete_user, DeleteUser(**who(SYSTEM), user_id=OLGA)).then_refused(Protected)
    story.when(delete_user, DeleteUser(**who(OLGA), user_id=OTTO)).then(UserDeleted(at=NOON, user_id=OTTO))


# -- activation ----------------------------------------------------------------------------------------------


def active(by: str, user_id: str, is_active: bool) -> SetUserActive:
    return SetUserActive(**who(by), user_id=user_id, is_active=is_active)


def test_an_owner_deactivates_and_activates_once_each() -> None:
    story = HOUSE.when(set_user_active, active(OLGA, URSULA, False)).then(INACTIVE)
    story = story.when(set_user_active, active(OLGA, URSULA, False)).then_nothing()
    story = story.when(set_user_active, active(OLGA, URSULA, True)).then(UserActivated(at=NOON, user_id=URSULA))
    story.when(set_user_active, active(OLGA, URSULA, True)).then_nothing()


def test_an_owner_does_not_deactivate_itself() -> None:
    TWO_OWNERS.when(set_user_active, active(OLGA, OLGA, False)).then_refused(SelfChange)


# -- deletion ------------------------------------------------------------------------------------------------


def test_an_admin_deletes_role_user() -> None:
    story = HOUSE.when(delete_user, DeleteUser(**who(ADAM), user_id=URSULA)).then(UserDeleted(at=NOON, user_id=URSULA))
    story.when(delete_user, DeleteUser(**who(ADAM), user_id=URSULA)).then_nothing()


@pytest.mark.parametrize("target", [OLGA, AUDREY])
def test_an_admin_deletes_nobody_else(target: str) -> None:
    HOUSE.when(delete_user, DeleteUser(**who(ADAM), user_id=target)).then_refused(RoleForbidden)


@pytest.mark.parametrize("actor", [OLGA, ADAM])
def test_nobody_deletes_itself(actor: str) -> None:
    TWO_OWNERS.when(delete_user, DeleteUser(**who(actor), user_id=actor)).then_refused(SelfChange)


def test_users_and_auditors_delete_nobody() -> None:
    for actor in (URSULA, AUDREY):
        HOUSE.when(delete_user, DeleteUser(**who(actor), user_id=actor)).then_refused(RoleForbidden)


@pytest.mark.parametrize(
    "decide, command",
    [
        (change_user, ChangeUser(**who(OLGA), user_id=NEW)),
        (set_user_active, SetUserActive(**who(OLGA), user_id=NEW, is_active=False)),
        (delete_user, DeleteUser(**who(OLGA), user_id=NEW)),
        (reset_password, ResetPassword(**who(OLGA), user_id=NEW, password_id=NEW_SECRET)),
    ],
)
def test_nothing_is_done_to_a_stranger(decide: Any, command: Any) -> None:
    HOUSE.when(decide, command).then_refused(NotFound, resource="admin_user")


def test_the_deleted_are_not_found_any_more() -> None:
    gone = given(SET_UP, USER, UserDeleted(at=NOON, user_id=URSULA))
    gone.when(change_user, change(OLGA, URSULA, display_name="Ghost")).then_refused(NotFound, resource="admin_user")
    gone.when(set_user_active, active(OLGA, URSULA, True)).then_refused(NotFound, resource="admin_user")


# -- passwords -----------------------------------------------------------------------------------------------


def changing(by: str = URSULA, matched: str | None = SECRET) -> ChangePassword:
    return ChangePassword(**who(by), matched_password_id=matched, password_id=NEW_SECRET, session_id=SESSION)


def test_everybody_changes_its_own_password_and_keeps_the_session() -> None:
    changed = PasswordChanged(at=NOON, user_id=URSULA, password_id=NEW_SECRET, kept_session=SESSION)
    HOUSE.when(change_password, changing()).then(changed).when(change_password, changing()).then_nothing()


@pytest.mark.parametrize("matched", [None, "password-0"])
def test_a_password_is_not_changed_without_the_current_one(matched: str | None) -> None:
    HOUSE.when(change_password, changing(matched=matched)).then_refused(WrongPassword)


def test_an_owner_resets_the_password_of_others() -> None:
    reset = ResetPassword(**who(OLGA), user_id=ADAM, password_id=NEW_SECRET)
    changed = PasswordChanged(at=NOON, user_id=ADAM, password_id=NEW_SECRET)
    HOUSE.when(reset_password, reset).then(changed).when(reset_password, reset).then_nothing()


@pytest.mark.parametrize("actor", [ADAM, URSULA, AUDREY])
def test_nobody_else_resets_passwords(actor: str) -> None:
    reset = ResetPassword(**who(actor), user_id=URSULA, password_id=NEW_SECRET)
    HOUSE.when(reset_password, reset).then_refused(RoleForbidden)


# -- login ---------------------------------------------------------------------------------------------------


def login(email: str = "Olga@example.com", matched: str | None = SECRET) -> LogIn:
    return LogIn(**who(""), email=email, matched_password_id=matched, session_id=SESSION, ip_address="203.0.113.7")


@pytest.mark.parametrize("email", ["Olga@example.com", "OLGA@EXAMPLE.COM"])
def test_the_right_password_logs_in_whatever_the_letters_case(email: str) -> None:
    logged_in = UserLoggedIn(at=NOON, user_id=OLGA, session_id=SESSION, ip_address="203.0.113.7")
    HOUSE.when(log_in, login(email)).then(logged_in)


@pytest.mark.parametrize("command", [login("nobody@example.com", None), login(matched=None), login(matched="other")])
def test_unknown_email_and_wrong_password_look_alike(command: LogIn) -> None:
    HOUSE.when(log_in, command).then_refused(InvalidLogin)


def test_a_password_that_was_changed_in_between_does_not_log_in() -> None:
    given(SET_UP, PasswordChanged(at=NOON, user_id=OLGA, password_id=NEW_SECRET)).when(log_in, login()).then_refused(
        InvalidLogin
    )


def test_an_inactive_account_is_told_so_only_with_its_password() -> None:
    inactive = given(SET_UP, USER, INACTIVE)
    inactive.when(log_in, login(USER.email)).then_refused(AccountInactive)
    inactive.when(log_in, login(USER.email, None)).then_refused(InvalidLogin)


def test_the_deleted_do_not_log_in() -> None:
    given(SET_UP, USER, UserDeleted(at=NOON, user_id=URSULA)).when(log_in, login(USER.email)).then_refused(InvalidLogin)


def test_a_login_is_remembered() -> None:
    users = evolve(evolve(None, SET_UP), UserLoggedIn(at=after(hours=1), user_id=OLGA, session_id=SESSION))
    assert after(hours=1) == users.users[OLGA].last_login_at


def test_a_logout_ends_one_session() -> None:
    HOUSE.when(log_out, LogOut(**who(URSULA), session_id=SESSION)).then(
        UserLoggedOut(at=NOON, user_id=URSULA, session_id=SESSION)
    )


# -- what other pages ask ------------------------------------------------------------------------------------


TWO_SESSIONS = (
    UserLoggedIn(at=NOON, user_id=URSULA, session_id=SESSION, expires_at=TOMORROW),
    UserLoggedIn(at=NOON, user_id=URSULA, session_id=OTHER_SESSION, expires_at=TOMORROW),
)


@pytest.mark.parametrize(
    "event, left",
    [
        (UserLoggedOut(at=NOON, user_id=URSULA, session_id=SESSION), {OTHER_SESSION}),
        (UserRoleChanged(at=NOON, user_id=URSULA, role="admin"), set()),
        (UserDeactivated(at=NOON, user_id=URSULA), set()),
        (UserDeleted(at=NOON, user_id=URSULA), set()),
        (PasswordChanged(at=NOON, user_id=URSULA, password_id=NEW_SECRET), set()),
        (PasswordChanged(at=NOON, user_id=URSULA, password_id=NEW_SECRET, kept_session=SESSION), {SESSION}),
        (PasswordChanged(at=NOON, user_id=URSULA, password_id=NEW_SECRET, kept_session="of-nobody"), set()),
        (UserChanged(at=NOON, user_id=URSULA, display_name="U", metadata={}), {SESSION, OTHER_SESSION}),
        (UserRoleChanged(at=NOON, user_id=OLGA, role="user"), {SESSION, OTHER_SESSION}),
    ],
)
def test_sessions_end_with_what_they_rest_on(event: Event, left: set[str]) -> None:
    assert left == set(everybody(SET_UP, USER, *TWO_SESSIONS, event).users[URSULA].sessions)


def test_who_is_activated_again_has_to_log_in_again() -> None:
    back = everybody(SET_UP, USER, *TWO_SESSIONS, INACTIVE, UserActivated(at=NOON, user_id=URSULA))
    with pytest.raises(Unauthorized):
        require_session(back, URSULA, SESSION)


def test_a_login_clears_away_sessions_that_have_ended_by_themselves() -> None:
    later = UserLoggedIn(at=TOMORROW, user_id=URSULA, session_id="session-3", expires_at=after(hours=48))
    assert {"session-3"} == set(everybody(SET_UP, USER, *TWO_SESSIONS, later).users[URSULA].sessions)


def test_the_oldest_of_too_many_sessions_makes_room() -> None:
    logins = [UserLoggedIn(at=NOON, user_id=URSULA, session_id=f"s-{number}") for number in range(MOST_SESSIONS + 2)]
    sessions = everybody(SET_UP, USER, *logins).users[URSULA].sessions
    assert [f"s-{number}" for number in range(2, MOST_SESSIONS + 2)] == list(sessions)


def test_a_session_is_worth_something_to_its_user_only() -> None:
    users = everybody(SET_UP, USER, *TWO_SESSIONS)
    assert "user" == require_session(users, URSULA, SESSION).role
    for user_id, session_id in ((URSULA, "of-nobody"), (OLGA, SESSION), (NEW, SESSION)):
        with pytest.raises(Unauthorized):
            require_session(users, user_id, session_id)
    with pytest.raises(Unauthorized):
        require_session(None, URSULA, SESSION)


def everybody(*events: Any) -> Users:
    users = NOBODY
    for event in events:
        users = evolve(users, event)
    return users


def test_roles_may_what_the_contract_says() -> None:
    assert {
        "owner": {"write", "audit", "users", "accounts"},
        "admin": {"write", "audit", "users"},
        "auditor": {"audit"},
        "user": set(),
    } == PERMISSIONS
    with pytest.raises(RoleForbidden):
        require_permission("auditor", "write")
    require_permission("auditor", "audit")


def test_who_made_a_user_is_known_but_for_the_first() -> None:
    stamped = UserCreated(
        at=NOON, by=OLGA, user_id=NEW, email="n@x.org", display_name="N", password_id="p", role="user"
    )
    users = evolve(evolve(None, SET_UP), stamped)
    assert [None, OLGA] == [user.created_by for user in users.users.values()]
