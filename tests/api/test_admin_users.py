"""Administrators over HTTP: the first owner, logins and what ends them, passwords, and who may do what to whom.

Two servers on one database answer here: what is ended by the one is ended for the other.
"""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import jwt
import msgspec
import psycopg
import pytest

from infra.passwords import Passwords, PasswordsBusy
from tests.api.conftest import Server, running, settings_for
from tests.api.people import PASSWORD, Person, add, anybody, code, enter, log_in, set_up, unused_email
from tests.conftest import _database_on
from tests.waiting import PATIENCE_SECONDS

USERS = "/api/admin-users"
ME = f"{USERS}/me"
NEW_PASSWORD = "battery staple"


@dataclass(frozen=True)
class Houses:
    """Two servers on one database, and its first owner, logged in at the first."""

    here: Server
    there: Server
    owner: Person


@pytest.fixture(scope="module")
def houses(owner_dsn: str, template: str) -> Iterator[Houses]:
    with (
        _database_on(owner_dsn, f"people_{uuid4().hex[:8]}", template) as dsn,
        running(dsn) as here,
        running(dsn) as there,
    ):
        yield Houses(here, there, set_up(here))


@pytest.fixture
def owner(houses: Houses) -> Person:
    return houses.owner


def me(person: Person, server: Server) -> httpx.Response:
    """Who that is, as this server sees it."""
    return server.client(person.token).get(ME)


def passwords_in(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return {str(row[0]) for row in connection.execute("select secret_id from app.secrets where kind = 'password'")}


# -- the first owner ---------------------------------------------------------------------------------------------------


def test_a_fresh_house_is_set_up_once(database: str) -> None:
    with running(database) as server:
        nobody = anybody(server)
        assert {"needs_setup": True, "has_users": False} == nobody.get(f"{USERS}/setup/status").json()
        body = {"email": "Olga@example.com", "display_name": "Olga", "password": PASSWORD}
        answer = nobody.post(f"{USERS}/setup", json=body)
        assert 200 == answer.status_code
        said = answer.json()
        assert {"access_token", "token_type", "user", "message"} == said.keys()
        assert ("bearer", "owner", "Olga", "Olga", "Olga@example.com", "Olga@example.com", True, None, {}) == (
            said["token_type"],
            *(said["user"][name] for name in ("role", "display_name", "full_name", "email", "username", "is_active")),
            said["user"]["created_by"],
            said["user"]["metadata"],
        )
        assert said["user"]["last_login"] == said["user"]["created_at"]
        assert said["user"] == server.client(said["access_token"]).get(ME).json()
        assert {"needs_setup": False, "has_users": True} == nobody.get(f"{USERS}/setup/status").json()
        assert (400, "setup_done") == code(nobody.post(f"{USERS}/setup", json={**body, "email": unused_email()}))
        assert 1 == len(passwords_in(database))


def test_of_simultaneous_setups_exactly_one_wins(database: str) -> None:
    with running(database) as here, running(database) as there, ThreadPoolExecutor(8) as threads:

        def attempt(number: int) -> httpx.Response:
            body = {"email": f"{number}@example.com", "display_name": "First", "password": PASSWORD}
            return anybody((here, there)[number % 2]).post(f"{USERS}/setup", json=body)

        answers = list(threads.map(attempt, range(8)))
        (won,) = [answer for answer in answers if answer.status_code == 200]
        assert {(400, "setup_done")} == {code(answer) for answer in answers if answer is not won}
        users = there.client(won.json()["access_token"]).get(USERS)
        assert [won.json()["user"]] == users.json()
        assert 1 == len(passwords_in(database))


def test_a_repeated_setup_gets_the_same_token_which_nobody_can_read_in_the_database(database: str) -> None:
    with running(database) as server:
        body = {"email": "olga@example.com", "display_name": "Olga", "password": PASSWORD}
        first, again = (
            anybody(server).post(f"{USERS}/setup", json=body, headers={"Idempotency-Key": "setup-1"}) for _ in range(2)
        )
        assert (200, 200, "true") == (first.status_code, again.status_code, again.headers["Idempotent-Replayed"])
        assert first.json() == again.json()
        token = first.json()["access_token"]
        with psycopg.connect(database) as connection:
            written = "select xmin::text from journal.events union select xmin::text from app.idempotency"
            assert 1 == len(connection.execute(written).fetchall())  # in one transaction
            kept = connection.execute("select encrypted, body from app.idempotency").fetchall()
            journal = connection.execute("select convert_from(state, 'UTF8') from journal.events").fetchall()
        ((encrypted, content),) = kept
        assert encrypted
        written = [bytes(content), *(row[0].encode() for row in journal)]
        assert not [text for text in written if token.encode() in text or PASSWORD.encode() in text]


@pytest.mark.parametrize(
    "changed, loc, kind",
    [
        ({"email": None}, ["body", "email"], "value_error.missing"),
        ({"display_name": None}, ["body", "display_name"], "value_error.missing"),
        ({"password": None}, ["body", "password"], "value_error.missing"),
        ({"password": "seven.."}, ["body", "password"], "value_error.length"),
        ({"password": "p" * 1025}, ["body", "password"], "value_error.length"),
        ({"email": "nobody"}, ["body", "email"], "value_error.format"),
        ({"email": "a@b\n"}, ["body", "email"], "value_error.format"),
        ({"email": "a" * 250 + "@b.org"}, ["body", "email"], "value_error.length"),
        ({"display_name": ""}, ["body", "display_name"], "value_error.length"),
        ({"display_name": "A\0"}, ["body", "display_name"], "value_error.format"),
        ({"email": 7}, ["body", "email"], "type_error.string"),
    ],
)
def test_a_setup_or_creation_that_says_too_little_or_too_much_is_invalid(
    houses: Houses, changed: dict[str, Any], loc: list[str], kind: str
) -> None:
    body = {"email": unused_email(), "display_name": "Somebody", "password": PASSWORD, **changed}
    for answer in (anybody(houses.here).post(f"{USERS}/setup", json=body), houses.owner.client.post(USERS, json=body)):
        assert (422, "validation_error") == code(answer)
        assert [(loc, kind)] == [(item["loc"], item["type"]) for item in answer.json()["detail"]]


# -- login and logout --------------------------------------------------------------------------------------------------


def test_somebody_logs_in_by_email_or_username_in_any_letter_case(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    for path in ("/api/admin-users/login", "/api/admin/login", "/api/v1/admin/login"):
        for name in ("email", "username"):
            answer = anybody(houses.here).post(path, json={name: user.email.upper(), "password": PASSWORD})
            assert (200, "bearer") == (answer.status_code, answer.json()["token_type"])
            token = answer.json()["access_token"]
            assert answer.json()["user"] == houses.here.client(token).get(ME).json()


def test_a_token_says_who_and_for_how_long(owner: Person, houses: Houses) -> None:
    claims = jwt.decode(owner.token, options={"verify_signature": False})
    assert {"user_id", "email", "role", "iat", "exp", "jti"} == claims.keys()
    assert (owner.user_id, owner.email, "owner") == (claims["user_id"], claims["email"], claims["role"])
    assert 24 * 3600 == claims["exp"] - claims["iat"]
    assert {"alg": "HS256", "typ": "JWT"} == jwt.get_unverified_header(owner.token)


def test_an_unknown_email_and_a_wrong_password_look_alike(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    answers = [
        log_in(houses.here, user.email, "wrong password"),
        log_in(houses.here, user.email, "short"),
        log_in(houses.here, user.email, ""),
        log_in(houses.here, unused_email()),
        log_in(houses.here, "no e-mail at all"),
    ]
    assert {(401, "invalid_login", "Bearer")} == {
        (*code(answer), answer.headers["WWW-Authenticate"]) for answer in answers
    }
    assert 1 == len({answer.text for answer in answers})


def test_an_inactive_account_is_told_so_only_with_its_password(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    houses.owner.client.post(f"{USERS}/{user.user_id}/deactivate")
    assert (401, "invalid_login") == code(log_in(houses.there, user.email, "wrong password"))
    assert (403, "account_inactive") == code(log_in(houses.there, user.email))


def test_the_eleventh_failure_has_to_wait_even_with_the_right_password(houses: Houses) -> None:
    user, other = add(houses.owner, houses.here), add(houses.owner, houses.here)
    for _ in range(10):
        assert (401, "invalid_login") == code(log_in(houses.here, user.email, "wrong password"))
    for password in ("wrong password", PASSWORD):
        refused = log_in(houses.here, user.email.upper(), password)
        assert (429, "too_many_attempts") == code(refused)
        assert 0 < int(refused.headers["Retry-After"]) <= 900
    assert 200 == log_in(houses.here, other.email).status_code


def test_a_login_that_succeeds_forgives_those_that_failed(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    for password in (*("wrong password",) * 9, PASSWORD) * 2:
        answer = log_in(houses.here, user.email, password)
    assert 200 == answer.status_code


def test_a_flood_of_logins_is_turned_away_and_not_queued_for_ever(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned_away, matches = threading.Event(), Passwords._matches

    def when_one_was_turned_away(self: Passwords, stored: str, password: str) -> bool:
        """However slowly the flood comes in: nobody is answered before it is one."""
        turned_away.wait(PATIENCE_SECONDS)
        return matches(self, stored, password)

    def guess(_: int) -> httpx.Response:
        answer = log_in(houses.here, unused_email())
        if answer.status_code == 503:
            turned_away.set()
        return answer

    monkeypatch.setattr(Passwords, "_matches", when_one_was_turned_away)
    with ThreadPoolExecutor(100) as threads:
        answers = list(threads.map(guess, range(100)))
    assert {(401, "invalid_login"), (503, "unavailable")} == {code(answer) for answer in answers}
    assert all(answer.headers["Retry-After"] for answer in answers if answer.status_code == 503)


def test_a_login_that_nobody_could_look_at_has_not_failed(houses: Houses, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many_are_waiting(*_: Any) -> None:
        raise PasswordsBusy

    user = add(houses.owner, houses.here)
    with monkeypatch.context() as during_a_flood:
        during_a_flood.setattr(Passwords, "verify", too_many_are_waiting)
        for _ in range(11):
            assert (503, "unavailable") == code(log_in(houses.here, user.email))
    assert 200 == log_in(houses.here, user.email).status_code


def test_a_password_counts_to_its_last_byte(houses: Houses) -> None:
    password = "p" * 1023
    user = add(houses.owner, houses.here, password=f"{password}1")
    assert 401 == log_in(houses.here, user.email, f"{password}2").status_code
    behind_a_nul = add(houses.owner, houses.here, password="12345678\0a")
    assert 401 == log_in(houses.here, behind_a_nul.email, "12345678\0b").status_code
    assert 200 == log_in(houses.here, behind_a_nul.email, "12345678\0a").status_code


def test_a_logout_ends_this_session_and_no_other(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    other = enter(houses.there, user.email)
    answer = user.client.post(f"{USERS}/logout")
    assert (200, {"message"}) == (answer.status_code, answer.json().keys())
    for server in (houses.here, houses.there):
        assert (401, "unauthorized") == code(me(user, server))
        assert 200 == me(other, server).status_code
    assert 401 == user.client.post(f"{USERS}/logout").status_code


# -- what ends sessions ------------------------------------------------------------------------------------------------

Ending = Callable[[httpx.Client, str], httpx.Response]

ENDINGS: dict[str, Ending] = {
    "deactivation": lambda owner, user: owner.post(f"{USERS}/{user}/deactivate"),
    "deactivation by PUT": lambda owner, user: owner.put(f"{USERS}/{user}", json={"is_active": False}),
    "deletion": lambda owner, user: owner.delete(f"{USERS}/{user}"),
    "another role": lambda owner, user: owner.put(f"{USERS}/{user}", json={"role": "auditor"}),
    "another password": lambda owner, user: owner.put(
        f"{USERS}/{user}/reset-password", json={"new_password": NEW_PASSWORD}
    ),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_sessions_end_at_once_on_every_server(houses: Houses, ending: Ending) -> None:
    user = add(houses.owner, houses.there, "admin")
    sessions = [user, enter(houses.here, user.email), enter(houses.there, user.email)]
    assert {200} == {me(session, server).status_code for session in sessions for server in (houses.here, houses.there)}
    assert 200 == ending(houses.owner.client, user.user_id).status_code
    for session in sessions:
        for server in (houses.there, houses.here):
            client = server.client(session.token)
            body = {"organization_id": uuid4().hex, "name": "Late"}
            assert (401, "unauthorized") == code(client.post("/api/organizations/create", json=body))
            assert (401, "unauthorized") == code(client.get("/api/organizations"))
            assert (401, "unauthorized") == code(client.get(ME))


def test_who_is_activated_again_has_to_log_in_again(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    for word in ("deactivate", "activate"):
        for method in ("POST", "PUT"):
            answer = houses.owner.client.request(method, f"{USERS}/{user.user_id}/{word}")
            assert (200, word == "activate") == (answer.status_code, answer.json()["is_active"])
    assert 401 == me(user, houses.here).status_code
    assert 200 == me(enter(houses.here, user.email), houses.there).status_code


def test_a_change_of_name_ends_nothing(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    houses.owner.client.put(f"{USERS}/{user.user_id}", json={"display_name": "Renamed", "role": "user"})
    assert "Renamed" == me(user, houses.there).json()["display_name"]


def test_no_write_succeeds_after_its_author_has_been_deleted(houses: Houses) -> None:
    """Commands carry the check along: what the other server believes does not help."""
    user = add(houses.owner, houses.there, "admin")
    client = houses.there.client(user.token)
    done: list[tuple[int, str]] = []

    def write(number: int) -> None:
        body = {"organization_id": f"{user.user_id}-{number}", "name": "Race"}
        done.append((client.post("/api/organizations/create", json=body).status_code, body["organization_id"]))

    with ThreadPoolExecutor(4) as threads:
        writes = [threads.submit(write, number) for number in range(40)]
        assert 200 == houses.owner.client.delete(f"{USERS}/{user.user_id}").status_code
        deleted_at = position(houses)
        for each in writes:
            each.result()
    assert {200, 401} >= {status for status, _ in done}
    made = {name for status, name in done if status == 200}
    with psycopg.connect(houses.here.dsn) as connection:
        rows = connection.execute(
            "select originator_id, notification_id from journal.events where topic = 'OrganizationCreated'"
            " and originator_id like %s",
            (f"organization-{user.user_id}-%",),
        ).fetchall()
    assert made == {name.removeprefix("organization-") for name, _ in rows}
    assert all(at < deleted_at for _, at in rows)


def position(houses: Houses) -> int:
    """Where the last deletion stands in the journal."""
    with psycopg.connect(houses.here.dsn) as connection:
        row = connection.execute(
            "select max(notification_id) from journal.events where topic = 'UserDeleted'"
        ).fetchone()
    assert row is not None
    return int(row[0])


# -- passwords ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, path", [("POST", f"{ME}/change-password"), ("PUT", f"{ME}/password"), ("PUT", f"{USERS}/password")]
)
def test_everybody_changes_its_own_password_and_keeps_this_session_only(houses: Houses, method: str, path: str) -> None:
    user = add(houses.owner, houses.here)
    other = enter(houses.there, user.email)
    before = passwords_in(houses.here.dsn)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert 200 == user.client.request(method, path, json=body).status_code
    assert (200, 401) == (me(user, houses.there).status_code, me(other, houses.there).status_code)
    assert 401 == log_in(houses.there, user.email, PASSWORD).status_code
    assert 200 == log_in(houses.there, user.email, NEW_PASSWORD).status_code
    after = passwords_in(houses.here.dsn)
    assert (1, 1) == (len(before - after), len(after - before)), "the old hash is gone, the new one is there"


@pytest.mark.parametrize("current", ["wrong password", "short", ""])
def test_a_password_is_not_changed_without_the_current_one(houses: Houses, current: str) -> None:
    user = add(houses.owner, houses.here)
    before = passwords_in(houses.here.dsn)
    body = {"current_password": current, "new_password": NEW_PASSWORD}
    assert (400, "wrong_password") == code(user.client.post(f"{ME}/change-password", json=body))
    assert 200 == log_in(houses.here, user.email, PASSWORD).status_code
    assert before == passwords_in(houses.here.dsn)


@pytest.mark.parametrize("method, path", [("POST", "change-password"), ("PUT", "reset-password")])
def test_an_owner_resets_the_password_of_others(houses: Houses, method: str, path: str) -> None:
    user = add(houses.owner, houses.here, "admin")
    before = passwords_in(houses.here.dsn)
    url = f"{USERS}/{user.user_id}/{path}"
    assert 200 == houses.owner.client.request(method, url, json={"new_password": NEW_PASSWORD}).status_code
    assert 401 == me(user, houses.here).status_code
    assert 200 == log_in(houses.here, user.email, NEW_PASSWORD).status_code
    assert len(before) == len(passwords_in(houses.here.dsn))
    strangers = f"{USERS}/{uuid4()}/{path}"
    assert (404, "not_found") == code(
        houses.owner.client.request(method, strangers, json={"new_password": NEW_PASSWORD})
    )
    assert (422, "validation_error") == code(houses.owner.client.request(method, url, json={"new_password": "short"}))


def test_the_hash_of_a_deleted_user_is_deleted_too(houses: Houses) -> None:
    before = passwords_in(houses.here.dsn)
    user = add(houses.owner, houses.here)
    houses.owner.client.delete(f"{USERS}/{user.user_id}")
    assert before == passwords_in(houses.here.dsn)


# -- administrators ----------------------------------------------------------------------------------------------------


def test_an_administrator_is_made_read_listed_changed_and_deleted(houses: Houses) -> None:
    client = houses.owner.client
    email = unused_email()
    body = {"email": email, "display_name": "Ursula", "password": PASSWORD, "metadata": {"desk": 4}}
    made = client.post(USERS, json=body)
    assert 200 == made.status_code
    user = made.json()
    assert {
        "email": email,
        "username": email,
        "display_name": "Ursula",
        "full_name": "Ursula",
        "role": "user",
        "is_active": True,
        "created_by": houses.owner.user_id,
        "last_login": None,
        "metadata": {"desk": 4},
    } == {name: value for name, value in user.items() if name not in ("user_id", "created_at")}
    url = f"{USERS}/{user['user_id']}"
    assert user == client.get(url).json() == client.get(url.upper().replace(USERS.upper(), USERS)).json()
    assert user == client.get(USERS, params={"limit": 1}).json()[0], "the newest stands first"

    changed = client.put(url, json={"full_name": "Ursula U.", "metadata": {"desk": 5}, "email": "ignored"})
    assert {**user, "display_name": "Ursula U.", "full_name": "Ursula U.", "metadata": {"desk": 5}} == changed.json()
    assert changed.json() == houses.there.client(houses.owner.token).get(url).json()
    assert changed.json() == client.put(url, json={}).json() == client.put(url, json={"role": None}).json()

    for _ in range(2):
        deleted = client.delete(url)
        assert (200, user["user_id"]) == (deleted.status_code, deleted.json()["user_id"])
    assert (404, "not_found") == code(client.get(url))
    assert user["user_id"] not in {each["user_id"] for each in client.get(USERS).json()}
    assert 200 == client.post(USERS, json=body).status_code, "the e-mail is free again"


def test_the_list_is_paged_and_says_how_many_there_are(houses: Houses) -> None:
    for _ in range(3):
        add(houses.owner, houses.here)
    client = houses.owner.client
    everybody = client.get(USERS)
    total = int(everybody.headers["X-Total-Count"])
    assert total == len(everybody.json())
    found = [client.get(USERS, params={"limit": 2, "offset": offset}).json() for offset in range(0, total, 2)]
    assert everybody.json() == [user for page in found for user in page]
    assert (422, "validation_error") == code(client.get(USERS, params={"limit": 0}))


def test_an_email_is_registered_once(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    body = {"email": user.email.title(), "display_name": "Twin", "password": PASSWORD}
    before = passwords_in(houses.here.dsn)
    refused = houses.owner.client.post(USERS, json=body)
    assert (400, "already_registered") == code(refused)
    assert "already registered" in refused.json()["detail"]
    assert before == passwords_in(houses.here.dsn), "the hash of a refused one is not kept"


def test_other_names_for_the_same_are_understood(houses: Houses) -> None:
    body = {"username": unused_email(), "full_name": "Vera", "password": PASSWORD, "role": "viewer", "extra": 1}
    user = houses.owner.client.post(USERS, json=body).json()
    assert ("user", "Vera", body["username"]) == (user["role"], user["display_name"], user["email"])
    same = {**body, "email": (name := unused_email()), "username": name, "display_name": "Vera"}
    assert 200 == houses.owner.client.post(USERS, json=same).status_code
    other = {**body, "email": unused_email()}
    assert (400, "invalid_value") == code(houses.owner.client.post(USERS, json=other))


def test_unknown_roles_and_metadata_without_end_are_invalid(houses: Houses) -> None:
    body = {"email": unused_email(), "display_name": "Somebody", "password": PASSWORD}
    client = houses.owner.client
    for changed, kind in (
        ({"role": "king"}, "value_error.enum"),
        ({"metadata": {"a": "b" * 10240}}, "value_error.range"),
    ):
        for answer in (client.post(USERS, json={**body, **changed}), client.put(f"{USERS}/{uuid4()}", json=changed)):
            assert (422, kind) == (answer.status_code, answer.json()["detail"][0]["type"])


@pytest.mark.parametrize("method, path, body", [
    ("GET", "", None),
    ("PUT", "", {"display_name": "Ghost"}),
    ("DELETE", "", None),
    ("POST", "/activate", None),
    ("PUT", "/deactivate", None),
    ("POST", "/change-password", {"new_password": NEW_PASSWORD}),
])  # fmt: skip
@pytest.mark.parametrize("who", ["00000000-0000-4000-8000-000000000000", "no-uuid", "nul%00"])
def test_strangers_are_not_found(houses: Houses, method: str, path: str, body: Any, who: str) -> None:
    answer = houses.owner.client.request(method, f"{USERS}/{who}{path}", json=body)
    assert (404, "not_found", "admin_user") == (*code(answer), answer.json()["resource"])


def test_a_repeat_of_a_creation_makes_nobody_else(houses: Houses) -> None:
    body = {"email": unused_email(), "display_name": "Once", "password": PASSWORD}
    key = {"Idempotency-Key": uuid4().hex}
    first, again = (houses.owner.client.post(USERS, json=body, headers=key) for _ in range(2))
    assert first.json() == again.json()
    assert "true" == again.headers["Idempotent-Replayed"]


# -- who may do what to whom -------------------------------------------------------------------------------------------


def test_nobody_changes_its_own_role_or_takes_away_its_own_account(houses: Houses) -> None:
    second, admin = add(houses.owner, houses.here, "owner"), add(houses.owner, houses.here, "admin")
    for person in (second, admin):
        url = f"{USERS}/{person.user_id}"
        for body in ({"role": "user"}, {"is_active": False}):
            assert (400, "self_change") == code(person.client.put(url, json=body))
        assert (400, "self_change") == code(person.client.delete(url))
    assert (400, "self_change") == code(second.client.post(f"{USERS}/{second.user_id}/deactivate"))
    assert 200 == houses.owner.client.delete(f"{USERS}/{second.user_id}").status_code


def test_the_last_active_owner_stays(database: str) -> None:
    with running(database) as server:
        owner = set_up(server)
        url = f"{USERS}/{owner.user_id}"
        for answer in (
            owner.client.put(url, json={"role": "admin"}),
            owner.client.put(url, json={"is_active": False}),
            owner.client.post(f"{url}/deactivate"),
            owner.client.delete(url),
        ):
            assert (400, "protected") == code(answer)
        second = add(owner, server, "owner")
        assert 200 == second.client.put(url, json={"role": "user"}).status_code
        assert (400, "protected") == code(second.client.delete(f"{USERS}/{second.user_id}"))


def test_of_two_owners_who_delete_each_other_at_once_one_stays(database: str) -> None:
    with running(database) as here, running(database) as there, ThreadPoolExecutor(2) as threads:
        first = set_up(here)
        second = add(first, there, "owner")
        one = threads.submit(first.client.delete, f"{USERS}/{second.user_id}")
        other = threads.submit(second.client.delete, f"{USERS}/{first.user_id}")
        assert [200, 401] == sorted(answer.result().status_code for answer in (one, other))


def test_an_admin_keeps_role_user_and_touches_nobody_else(houses: Houses) -> None:
    admin, user = add(houses.owner, houses.here, "admin"), add(houses.owner, houses.here)
    others = [houses.owner, add(houses.owner, houses.here, "admin"), add(houses.owner, houses.here, "auditor")]
    client = admin.client
    assert (200, 200) == (client.get(USERS).status_code, client.get(f"{USERS}/{houses.owner.user_id}").status_code)
    assert 200 == client.put(f"{USERS}/{user.user_id}", json={"display_name": "Ulla"}).status_code
    forbidden = [client.put(f"{USERS}/{user.user_id}", json={"role": role}) for role in ("admin", "owner", "auditor")]
    forbidden += [client.put(f"{USERS}/{user.user_id}", json={"is_active": False})]
    forbidden += [client.post(f"{USERS}/{user.user_id}/deactivate"), client.put(f"{USERS}/{user.user_id}/activate")]
    forbidden += [client.put(f"{USERS}/{user.user_id}/reset-password", json={"new_password": NEW_PASSWORD})]
    for other in others:
        forbidden += [
            client.put(f"{USERS}/{other.user_id}", json={"display_name": "Mine"}),
            client.delete(f"{USERS}/{other.user_id}"),
            client.post(f"{USERS}/{other.user_id}/change-password", json={"new_password": NEW_PASSWORD}),
        ]
    for role in ("owner", "admin", "auditor"):
        body = {"email": unused_email(), "display_name": "Mine", "password": PASSWORD, "role": role}
        forbidden.append(client.post(USERS, json=body))
    assert {(403, "role_forbidden")} == {code(answer) for answer in forbidden}
    assert 200 == client.delete(f"{USERS}/{user.user_id}").status_code


@pytest.mark.parametrize("role", ["user", "auditor"])
def test_users_and_auditors_keep_nobody_and_only_themselves(houses: Houses, role: str) -> None:
    person = add(houses.owner, houses.here, role)
    client, url = person.client, f"{USERS}/{person.user_id}"
    body = {"email": unused_email(), "display_name": "Mine", "password": PASSWORD}
    forbidden = [client.get(USERS), client.get(url), client.post(USERS, json=body), client.post(USERS, json={})]
    forbidden += [client.put(url, json={"display_name": "Me"}), client.delete(url), client.post(f"{url}/activate")]
    forbidden += [client.put(f"{url}/reset-password", json={"new_password": NEW_PASSWORD})]
    assert {(403, "role_forbidden")} == {code(answer) for answer in forbidden}
    assert role == client.get(ME).json()["role"]
    own = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert 200 == client.post(f"{ME}/change-password", json=own).status_code
    assert 200 == client.post(f"{USERS}/logout").status_code


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_only_our_own_tokens_with_a_session_are_worth_anything(houses: Houses) -> None:
    secret = settings_for(houses.here.dsn).jwt_secret_key
    claims = jwt.decode(houses.owner.token, options={"verify_signature": False})
    head, payload, signature = houses.owner.token.split(".")
    raised = base64.urlsafe_b64encode(
        msgspec.json.encode({**claims, "role": "owner", "exp": claims["exp"] + 9})
    ).decode()
    forged = {
        "another secret": jwt.encode(claims, "another-secret-of-thirty-two-bytes", algorithm="HS256"),
        "no algorithm": jwt.encode(claims, None, algorithm="none"),
        "another algorithm": jwt.encode(claims, hashlib.sha256(secret.encode()).hexdigest(), algorithm="HS512"),
        "our secret, another algorithm": jwt.encode(claims, secret.ljust(64, "\0"), algorithm="HS512"),
        "our secret, no session": jwt.encode({**claims, "jti": str(uuid4())}, secret, algorithm="HS256"),
        "expired": jwt.encode({**claims, "exp": claims["iat"] - 1}, secret, algorithm="HS256"),
        "another payload": f"{head}.{raised.rstrip('=')}.{signature}",
        "no signature": f"{head}.{payload}.",
        "garbage": "a.b.c",
    }
    for what, token in forged.items():
        for path in (ME, "/api/organizations", "/api/teams/t"):
            assert (401, "unauthorized") == code(houses.there.client(token).get(path)), what


def test_a_token_is_no_admin_key(houses: Houses) -> None:
    answer = anybody(houses.here).get(ME, headers={"X-Admin-Key": houses.owner.token})
    assert (401, "unauthorized") == code(answer)


def test_the_journal_holds_no_password_and_no_token(houses: Houses) -> None:
    user = add(houses.owner, houses.here)
    with psycopg.connect(houses.here.dsn) as connection:
        rows = connection.execute("select convert_from(state, 'UTF8') from journal.events").fetchall()
    journal = "\n".join(row[0] for row in rows)
    assert hashlib.sha256(user.token.encode()).hexdigest() in journal
    for secret in (PASSWORD, user.token, "argon2"):
        assert secret not in journal
