"""The command line, beside a running server and without one."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from api import cli
from infra import log as logging
from infra import readable
from projections import evidence
from tests.api.conftest import MASTER_KEY, Server, TestTeam, make_team, running
from tests.api.serving import SETTINGS, fresh_data_dir, run
from tests.conftest import _database_on
from tests.waiting import PATIENCE_SECONDS

KEYS = {
    "ENCRYPTION_KEY": "test-encryption-key-of-the-suite",
    "JWT_SECRET_KEY": "test-jwt-secret-key-of-the-suite-32",
}
LOOKING = ["events", "verify", "checkpoint", "rebuild", "replay", "statement"]
COMMANDS = ["serve", "work", "migrate", "demo", "openapi", *LOOKING]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def town(owner_dsn: str, template: str) -> Iterator[Server]:
    """A server that keeps running beside the commands, in silence: what a command prints is captured."""
    logging.configure("error", "console")
    with _database_on(owner_dsn, f"cli_{uuid4().hex[:8]}", template) as dsn, running(dsn) as server:
        yield server


@pytest.fixture
def team(town: Server) -> TestTeam:
    """A team with 100 credits."""
    return make_team(town, town.client())


@pytest.fixture
def command(town: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `saas-litellm ...` beside the server, or on another database."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MASTER_KEY": MASTER_KEY, **KEYS}.items():
        monkeypatch.setenv(name, value)

    def run_command(*arguments: str, on: str = town.dsn) -> Done:
        monkeypatch.setenv("DATABASE_URL", as_url(on))
        monkeypatch.setattr(sys, "argv", ["saas-litellm", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        status = ended.value.code
        return Done(status if isinstance(status, int) else 0, *capsys.readouterr())

    return run_command


@pytest.mark.parametrize("name", [*COMMANDS, "credits grant", "keys issue", "users create"])
def test_every_command_says_how_it_is_used(command: Command, name: str):
    done = command(*name.split(), "--help")

    assert done.status == 0
    assert "Usage: saas-litellm" in done.out


def test_what_is_not_used_as_it_says_ends_with_2(command: Command):
    for wrong in (["dance"], ["replay"], ["credits", "grant", "acme", "none"], ["events", "--limit", "0"]):
        done = command(*wrong)
        assert (2, "") == (done.status, done.out)
        assert "Usage: saas-litellm" in done.err


def test_what_an_operator_can_mend_is_told_in_one_line(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_KEY", "short")

    assert command("events") == Done(2, "", "saas-litellm: MASTER_KEY: must have at least 16 characters\n")


def test_a_database_without_a_journal_is_told_in_one_line(command: Command, empty_database: str):
    done = command("events", on=empty_database)

    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "there is no journal in this database yet" in done.err


def test_migrate_says_what_it_did_and_does_it_once(command: Command, empty_database: str):
    first, second = command("migrate", on=empty_database), command("migrate", "--json", on=empty_database)

    assert first.lines[0] == "applied 0001_journal.sql"
    assert second.json == [{"applied": []}]


def test_events_are_printed_in_order_with_what_they_say(command: Command, team: TestTeam):
    done = command("events")

    positions = [int(line.split()[0]) for line in done.lines]
    assert positions == list(range(positions[0], positions[0] + len(positions)))
    (granted,) = (line for line in done.lines if f"credit-{team.team_id}  CreditsGranted" in line)
    assert "credits=100" in granted
    assert "by master" in granted


def test_events_without_a_position_are_the_latest(command: Command, team: TestTeam):
    newest = command("events", "--limit", "2", "--json").json
    oldest = command("events", "--after", "0", "--limit", "2", "--json").json

    assert [event["position"] for event in oldest] == [1, 2]
    assert newest[-1]["position"] > 2
    assert newest[0]["position"] == newest[1]["position"] - 1


def test_events_of_one_stream_are_its_own(command: Command, team: TestTeam):
    stream = f"credit-{team.team_id}"

    events = command("events", stream, "--json").json

    assert [(event["stream"], event["topic"]) for event in events] == [
        (stream, "AccountOpened"),
        (stream, "CreditsGranted"),
    ]
    assert [event["version"] for event in events] == [1, 2]


def test_long_journals_are_printed_page_by_page(command: Command, team: TestTeam, monkeypatch: pytest.MonkeyPatch):
    stream = f"credit-{team.team_id}"
    for _ in range(5):
        command("credits", "grant", team.team_id, "1")
    questions = [[], ["--after", "3"], [stream], [stream, "--limit", "4"], [stream, "--after", "0", "--limit", "4"]]
    whole = [command("events", *question, "--json").json for question in questions]
    assert [[1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7], [1, 2, 3, 4]] == [
        [event["version"] for event in events] for events in whole[2:]
    ]
    replayed = command("replay", team.team_id).out

    monkeypatch.setattr(readable, "PAGE", 3)
    monkeypatch.setattr(evidence, "PAGE", 3)
    assert whole == [command("events", *question, "--json").json for question in questions]
    assert replayed == command("replay", team.team_id).out


def test_behind_the_last_event_of_a_stream_there_is_nothing_yet(command: Command, team: TestTeam):
    assert Done(0, "", "") == command("events", f"credit-{team.team_id}", "--after", "1000000000")


def test_a_stream_that_does_not_exist_is_a_refusal(command: Command):
    assert command("events", "job-0") == Done(1, "", 'saas-litellm: not_found resource="stream job-0"\n')


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so would all that we start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_events_are_followed_as_they_are_written(command: Command, team: TestTeam):
    stream = f"credit-{team.team_id}"
    command("events", stream)  # which also leaves the settings for the follower in the environment
    follower = subprocess.Popen(
        [sys.executable, "-m", "api.cli", "events", stream, "--follow", "--json"],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    try:
        before = [json.loads(follower.stdout.readline())["topic"] for _ in range(2)]
        command("credits", "grant", team.team_id, "7")
        after = json.loads(follower.stdout.readline())
    finally:
        follower.send_signal(signal.SIGINT)
        follower.stdout.close()
        status = follower.wait(PATIENCE_SECONDS)

    assert before == ["AccountOpened", "CreditsGranted"]
    assert after["event"]["credits"] == 7
    assert status == 130


def test_credits_are_granted_beside_a_running_server(command: Command, team: TestTeam):
    done = command("credits", "grant", team.team_id, "5", "--reason", "a gift", "--json")

    assert done.json[0]["credits_remaining"] == 105
    newest, *_ = team.client.get("/api/credits/transactions").json()["transactions"]
    assert (newest["credits_after"], newest["reason"], newest["actor"]) == (105, "a gift", "master")


def test_credits_for_a_team_that_does_not_exist_are_refused(command: Command):
    assert command("credits", "grant", "nobody", "5") == Done(1, "", "saas-litellm: not_found resource=team\n")


def test_a_key_that_is_issued_opens_the_door_at_once(command: Command, team: TestTeam):
    key = command("keys", "issue", team.team_id, "--name", "laptop").out.strip()

    answer = team.client.get("/api/teams/verify", headers={"Authorization": f"Bearer {key}"})

    assert (answer.status_code, answer.json()["team_id"]) == (200, team.team_id)


def test_a_person_made_at_the_command_line_can_log_in(command: Command, town: Server, monkeypatch: pytest.MonkeyPatch):
    email = f"ada-{uuid4().hex[:8]}@example.com"
    monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
    made = command("users", "create", email, "--role", "auditor", "--password-stdin", "--json").json[0]

    answer = town.client().post("/api/admin-users/login", json={"email": email, "password": "correct horse"})

    assert (answer.status_code, answer.json()["user"]["user_id"]) == (200, made["user_id"])
    assert answer.json()["user"]["role"] == "auditor"


@pytest.mark.parametrize(
    "email, password, complaint",
    [
        ("ada", "correct horse", "ada is not an e-mail address"),
        ("ada@example.com", "short", "a password has 8 to 1024 characters"),
    ],
)
def test_a_person_who_could_not_log_in_is_not_made(
    command: Command, monkeypatch: pytest.MonkeyPatch, email: str, password: str, complaint: str
):
    monkeypatch.setattr(sys, "stdin", io.StringIO(password))

    assert command("users", "create", email, "--password-stdin") == Done(2, "", f"saas-litellm: {complaint}\n")


def test_replay_adds_up_what_a_team_has(command: Command, team: TestTeam):
    team.client.post(f"/api/jobs/{team.job()}/complete", json={"status": "completed"})

    done = command("replay", team.team_id)
    movements = command("replay", team.team_id, "--json").json

    assert done.lines[-1] == "100 given - 1 used = 99 remaining, 0 held; every event agrees"
    assert [(each["event"], each["credits"], each["held"]) for each in movements if each["credits"]] == [
        ("CreditsGranted", 100, 0),
        ("CreditsCharged", -1, 0),
    ]
    assert all(each["agrees"] for each in movements)


@pytest.mark.parametrize(
    "change,problem",
    [
        ("update journal.events set state = 'x' where topic = 'CreditsGranted'", "cannot be decoded: "),
        ("delete from journal.events where topic = 'AccountOpened'", "cannot follow here: "),
    ],
)
def test_a_replay_says_which_event_cannot_be_read(command: Command, database: str, change: str, problem: str):
    with running(database) as server, server.client() as admin:
        team_id = make_team(server, admin).team_id
    with psycopg.connect(database) as owner:
        owner.execute("alter table journal.events disable trigger user")
        owner.execute(change.encode())
        [[position]] = owner.execute(
            "select notification_id from journal.events where topic = 'CreditsGranted'"
        ).fetchall()

    done = command("replay", team_id, on=database)

    assert (1, problem.startswith("cannot be")) == (done.status, "AccountOpened" in done.out)
    assert done.err.startswith(f"saas-litellm: event {position} (CreditsGranted) {problem}")


@pytest.fixture
def this_month(today: date) -> str:
    return f"{today:%Y-%m}"


def test_a_statement_is_printed_for_people(command: Command, today: date, this_month: str, team: TestTeam):
    team.client.post(f"/api/jobs/{team.job()}/complete", json={"status": "completed"})

    title, *lines = command("statement", team.team_id, this_month).lines

    assert title == f"Test, {team.team_id}: {this_month}, a preview, not closed yet"
    amounts = [line.split()[:5] for line in lines if line]
    assert amounts[0] == ["opening", "balance", "0"]
    assert amounts[1] == [str(today), "Credits", "granted", "+100", "100"]
    assert amounts[2][:4] == [str(today), "Charge", "-1", "99"]
    assert amounts[3] == ["closing", "balance", "99"]
    assert lines[-1] == "calls behind the charges: 0.000000 USD"


@pytest.mark.parametrize("kind", ["json", "csv", "ndjson", "html"])
def test_a_statement_is_that_of_the_server_in_every_format(
    command: Command, town: Server, this_month: str, team: TestTeam, kind: str
):
    command("credits", "grant", team.team_id, "7")

    done = command("statement", team.team_id, this_month, "--format", kind)
    answer = town.client().get(f"/api/reports/statements/{team.team_id}/{this_month}", params={"format": kind})

    if kind == "json":
        assert [{**answer.json(), "limit": 2}] == done.json
        assert done == command("statement", team.team_id, this_month, "--json")
    else:
        assert answer.text.splitlines() == done.out.splitlines()


def test_a_statement_needs_no_server_to_be_up_to_date(command: Command, this_month: str, database: str):
    with running(database) as server, server.client() as admin:
        team = make_team(server, admin)
    command("credits", "grant", team.team_id, "7", on=database)

    (statement,) = command("statement", team.team_id, this_month, "--json", on=database).json

    assert statement["closing_credits"] == 107


def test_a_statement_that_cannot_be_is_refused(command: Command, this_month: str, team: TestTeam):
    for whose, period, refusal in (
        ("nobody", this_month, "not_found resource=team"),
        (team.team_id, "2020-01", "not_found resource=statement"),
        (team.team_id, "soon", "invalid_value field=period"),
    ):
        assert command("statement", whose, period) == Done(1, "", f"saas-litellm: {refusal}\n")


def test_a_journal_that_nobody_has_touched_is_verified(command: Command, team: TestTeam):
    done = command("verify", "--deep")
    note = done.lines[-1].removeprefix("to note down: ")

    assert done.status == 0
    assert "nothing changed" in done.out
    assert command("verify", "--noted", note).status == 0


def test_a_changed_event_is_found_and_named(command: Command, database: str):
    with running(database) as server, server.client() as admin:
        team = make_team(server, admin)
    with psycopg.connect(database) as owner:
        owner.execute("alter table journal.events disable trigger events_are_immutable")
        owner.execute(
            "update journal.events set state = replace(convert_from(state, 'UTF8'), '100', '900')::bytea"
            " where topic = 'CreditsGranted'"
        )

    done, as_json = command("verify", on=database), command("verify", "--json", on=database)

    assert (done.status, as_json.status) == (1, 1)
    assert done.out.startswith("BROKEN at position ")
    assert f"credit-{team.team_id}" in done.out
    assert as_json.json[0]["first_break"]["kind"] == "hash"


def test_a_journal_that_was_cut_off_is_found_with_what_was_noted_down(command: Command):
    done = command("verify", "--noted", f"1000000:{'ab' * 32}")

    assert done.status == 1
    assert "the journal ends at" in done.out


def test_a_visit_goes_on_from_what_was_noted_down_at_the_one_before(command: Command, team: TestTeam):
    position, _, digest = command("verify", "--quick").lines[-1].removeprefix("to note down: ").partition(":")
    command("credits", "grant", team.team_id, "1")

    assert command("verify", "--from", position, "--noted", f"{position}:{digest.upper()}").status == 0
    rewritten = command("verify", "--from", position, "--noted", f"{position}:{'ab' * 32}")
    assert (1, True) == (rewritten.status, f"BROKEN at position {position} (noted)" in rewritten.out)


def test_nothing_that_was_noted_down_is_passed_over(command: Command, team: TestTeam):
    for options in (["--from", "5"], ["--to", "3"]):
        done = command("verify", *options, "--noted", f"4:{'ab' * 32}")
        assert (2, "", True) == (done.status, done.out, "position 4 would not be looked at" in done.err)
    assert 2 == command("verify", "--noted", "4:beef").status


def test_a_read_model_is_rebuilt_and_is_the_same(command: Command, team: TestTeam):
    before = team.client.get("/api/credits/balance").json()

    (rebuilt,) = command("rebuild", "balances", "--json").json

    assert rebuilt["rows"] > 0
    assert rebuilt["differing_rows"] == 0
    assert team.client.get("/api/credits/balance").json() == before


def test_a_read_model_that_somebody_has_changed_is_right_again_after_its_rebuild(
    command: Command, team: TestTeam, town: Server
):
    balance = "/api/credits/balance"
    assert team.client.get(balance).json()["credits_remaining"] == 100
    with psycopg.connect(town.dsn) as owner:
        owner.execute("update readmodel.balances set credits_used = 40 where team_id = %s", (team.team_id,))

    done = command("rebuild", "balances")

    assert done.out.endswith("rows that differ from before: 2\n")  # the wrong one and the right one
    assert team.client.get(balance).json()["credits_remaining"] == 100
    team.client.post(f"/api/jobs/{team.job()}/complete", json={"status": "completed"})
    assert team.client.get(balance).json()["credits_remaining"] == 99


def test_a_read_model_that_does_not_exist_is_told_with_those_that_do(command: Command):
    done = command("rebuild", "weather")

    assert done.status == 2
    assert "balances" in done.err


def test_commands_work_without_a_server_and_stop_the_database_they_started():
    with fresh_data_dir() as data_dir:
        first, second = (run(data_dir, "migrate") for _ in range(2))
        still_there = (data_dir / "postgres" / "cluster" / "postmaster.pid").exists()

    assert first.stdout.startswith("applied 0001_journal.sql")
    assert second.stdout == "nothing to do\n"
    assert not still_there


def as_url(dsn: str) -> str:
    """An address in the form that DATABASE_URL has."""
    parts = conninfo_to_dict(dsn)
    return f"postgresql:///?{urlencode(parts)}"
