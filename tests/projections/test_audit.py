"""The independent auditor: an honest day passes, and whatever somebody changes behind its back is named and located."""

import asyncio
import json
import random
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from api import auditing, cli
from api.app import PROJECTIONS
from api.auditing import audited
from examples.verify_receipt import opened
from infra import postgres, readable
from infra.embedded import programs
from infra.verify import verify as chain
from projections.afresh import _Afresh
from projections.audit import Finding, Report, _Audit, audit
from projections.rebuild import rebuild_all
from projections.webhook_deliveries import WEBHOOKS
from tests.api.conftest import TestTeam, make_alias, make_team, running, settings_for
from tests.api.past import PastTeam
from tests.conftest import _database_on
from tests.provider import FakeProvider
from tests.receiver import Receiver
from tests.waiting import until

ASK = {"messages": [{"role": "user", "content": "Hello"}]}


@dataclass(frozen=True)
class Day:
    """A database after a busy day."""

    dsn: str
    team: TestTeam
    charged: str
    still_open: str


@pytest.fixture(scope="module")
def day(owner_dsn: str, template: str) -> Iterator[Day]:
    """A day with jobs that end in every way, a refund, and a job that is still open; the server has gone home."""
    name = f"day_{secrets.token_hex(4)}"
    with FakeProvider() as provider, _database_on(owner_dsn, name, template) as dsn:
        with running(dsn, webhook_allow_private=True) as server, server.client() as admin:
            alias, broken = make_alias(admin, provider, "usage-1000-2000"), make_alias(admin, provider, "status-500")
            team = make_team(server, admin, credits=1000, budget_mode="consumption_usd", credits_per_dollar=1000)
            other = make_team(server, admin)

            def job(team: TestTeam, *models: str) -> str:
                job_id = team.job()
                for model in models:
                    team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": model})
                return job_id

            def end(team: TestTeam, job_id: str, status: str) -> None:
                answer = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": status})
                assert answer.status_code == 200, answer.text

            charged = job(team, alias, alias)
            end(team, charged, "completed")
            end(team, job(team, alias, broken), "failed")
            end(other, job(other, alias), "completed")
            end(other, job(other), "completed")
            team.client.post(f"/api/jobs/{job(team, alias)}/cancel", json={})
            refund = admin.post(f"/api/credits/teams/{team.team_id}/refund", json={"job_id": charged, "credits": 1})
            assert refund.status_code == 200, refund.text
            ending = {"amount": 5, "expires_at": "2999-01-01T00:00:00Z"}
            refill = {"enabled": True, "refill_amount": 5, "refill_period": "monthly"}
            hook = {"team_id": team.team_id, "webhook_url": "http://127.0.0.1:9/", "events": ["job.failed"]}
            for path, wish in (
                (f"/api/credits/teams/{team.team_id}/add", ending),
                (f"/api/credits/teams/{other.team_id}/configure-auto-refill", refill),
                ("/api/webhooks/register", hook),
            ):
                answer = admin.post(path, json=wish)
                assert answer.is_success, answer.text
            still_open = job(team, alias)
            admin.get("/api/credits/balance", params={"team_id": team.team_id})  # waits for the read models
            assert admin.get("/api/audit/checkpoint").status_code == 200
        yield Day(dsn, team, charged, still_open)


@pytest.fixture
def database(owner_dsn: str, day: Day) -> Iterator[str]:
    """A copy of that day, for one who may put the triggers out of the way."""
    name = str(conninfo_to_dict(day.dsn)["dbname"])
    with _database_on(owner_dsn, f"copy_{secrets.token_hex(4)}", name) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("alter table journal.events disable trigger user")
            connection.execute("alter table journal.head disable trigger user")
            connection.execute("drop index journal.events_one_charge_per_job")
        yield dsn


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    return random.Random(seed)


def replayed(dsn: str) -> Report:
    """The same without building the read models, for what shows already then."""
    with readable.connect_blocking(dsn) as connection:
        return audit(connection)


def tampered(dsn: str, statement: str, *parameters: object, look: Callable[[str], Report] = replayed) -> list[Finding]:
    """What the auditor finds after somebody did this."""
    with psycopg.connect(dsn) as owner:
        done = owner.execute(statement.encode(), parameters)
        assert done.rowcount > 0, "nothing was changed"
    report = look(dsn)
    assert report.found == len(report.findings)
    return report.findings


def checks(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings}


def the(dsn: str, topic: str) -> tuple[int, str]:
    """Position and stream of the first event of a kind."""
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "select notification_id, originator_id from journal.events where topic = %s order by 1 limit 1", (topic,)
        ).fetchone()
    assert found is not None
    return found[0], found[1]


CHANGE = """
update journal.events
set state = regexp_replace(convert_from(state, 'UTF8'), %s, %s)::bytea
where notification_id = (select min(notification_id) from journal.events where topic = %s)
"""
REMOVE = """
delete from journal.events
where notification_id = (select max(notification_id) from journal.events where topic = %s)
"""
TABLES = {table for projection in (*PROJECTIONS, WEBHOOKS) for table in projection.tables}
ADDS_UP, FROM_HOLD = "recorded_credits_are_those_of_the_replay", "no_more_is_taken_from_a_hold_than_is_in_it"
CLOSED, BOOKED = "closed_statements", "booked_bills"
COSTS, PRICED = "a_charge_is_what_the_calls_cost", "a_call_costs_its_tokens_times_its_price"
AS_ENDED = "a_job_is_charged_as_its_end_says"


# -- nothing wrong -----------------------------------------------------------------------------------------------------


def test_an_honest_day_passes_every_check(database: str) -> None:
    report = audited(database)
    assert ([], [], 0) == (report.findings, report.skipped, report.found)
    assert {"snapshots", "receipts", *TABLES} <= set(report.checks)
    assert 6 == report.jobs
    assert report.events == report.position > 0


def test_an_auditor_who_may_only_read_can_audit(database: str, owner_dsn: str) -> None:
    role = f"auditor_{secrets.token_hex(4)}"
    with psycopg.connect(database, autocommit=True) as owner:
        login = sql.SQL("create role {} login password 'secret' in role saas_ledger_auditor")
        owner.execute(login.format(sql.Identifier(role)))
        try:
            login_dsn = make_conninfo(database, user=role, password="secret")
            report = audited(login_dsn)
            assert ([], []) == (report.findings, report.skipped)
            name = sql.Identifier(str(conninfo_to_dict(database)["dbname"]))
            owner.execute(sql.SQL("revoke temporary on database {} from public").format(name))
            without = audited(login_dsn)
            assert ([], ["rows of read models, since no temporary tables can be made here"]) == (
                without.findings,
                without.skipped,
            )
            assert "balances" in without.checks
        finally:
            owner.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_a_journal_without_read_models_is_audited_all_the_same(database: str) -> None:
    with psycopg.connect(database) as owner:
        owner.execute("drop schema readmodel cascade")
    report = audited(database)
    assert ([], False) == (report.findings, "balances" in report.checks)
    assert ["read models, of which there are none"] == report.skipped


def test_an_audit_of_a_busy_house_finds_nothing_either(owner_dsn: str, template: str) -> None:
    name = f"busy_{secrets.token_hex(4)}"
    with FakeProvider() as provider, _database_on(owner_dsn, name, template) as dsn, running(dsn) as server:
        admin, done = server.client(), threading.Event()
        alias = make_alias(admin, provider)
        teams = [make_team(server, admin, credits=100_000) for _ in range(3)]

        def work(team: TestTeam) -> int:
            jobs = 0
            while not (jobs and done.is_set()):
                job_id, jobs = team.job(), jobs + 1
                team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias})
                team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"})
            return jobs

        with ThreadPoolExecutor() as workers:
            working = [workers.submit(work, team) for team in teams]
            try:
                reports = [audited(dsn)]
                while len(reports) < 4 or reports[0].events == reports[-1].events:
                    reports.append(audited(dsn))
            finally:
                done.set()
        assert [[]] * len(reports) == [report.findings for report in reports]
        assert reports[0].events < reports[-1].events
        assert all(each.result() for each in working)


@pytest.mark.parametrize(
    "auditor,method,moment",
    [(_Audit, "_replay", 2), (_Audit, "_compare_some", 1), (_Afresh, "_shape", 2)],
    ids=["balances", "jobs", "rows"],
)
def test_an_audit_beside_a_rebuild_finds_nothing_either(
    database: str, monkeypatch: pytest.MonkeyPatch, auditor: type[Any], method: str, moment: int
) -> None:
    ordinary, calls = getattr(auditor, method), count(1)

    async def build() -> None:
        async with await postgres.connect(database) as connection:
            await rebuild_all(connection, PROJECTIONS, lambda reached, until: None)

    with ThreadPoolExecutor() as beside, psycopg.connect(database, autocommit=True) as looking:

        def rebuilt_or_waiting() -> bool:
            waiting = "select from pg_locks where not granted and relation is not null"
            return rebuilding.done() or looking.execute(waiting).rowcount > 0

        def at_that_moment(*arguments: Any, **options: Any) -> Any:
            nonlocal rebuilding
            if next(calls) == moment:
                rebuilding = beside.submit(asyncio.run, build())
                until(rebuilt_or_waiting)
            return ordinary(*arguments, **options)

        rebuilding: Future[None]
        monkeypatch.setattr(auditor, method, at_that_moment)
        report = audited(database)
        rebuilding.result()
    assert ([], []) == (report.findings, report.skipped)


@pytest.mark.parametrize(
    "auditor,method,left_behind",
    [
        (_Audit, "_compare_balances", "balances"),
        (_Audit, "_compare_balances", "jobs"),
        (_Audit, "_compare_jobs", "jobs"),
        (_Audit, "_look_at_receipts", "calls"),
        (_Afresh, "_compare", "teams"),
    ],
)
def test_an_audit_beside_a_deployment_compares_nothing_that_was_left_behind(
    database: str, monkeypatch: pytest.MonkeyPatch, auditor: type[Any], method: str, left_behind: str
) -> None:
    ordinary = getattr(auditor, method)

    def after_that(*arguments: Any, **options: Any) -> Any:
        with psycopg.connect(database) as leader:
            leader.execute("update readmodel.definitions set version = 0 where projection = %s", (left_behind,))
            leader.execute(f"truncate readmodel.{left_behind}".encode())  # it knows nothing of what came since
        return ordinary(*arguments, **options)

    monkeypatch.setattr(auditor, method, after_that)
    report = audited(database)
    assert ([], [f"{left_behind}, which another version of this program has built"]) == (
        report.findings,
        report.skipped,
    )


# -- the journal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "topic,pattern,replacement,check",
    [
        ("CreditsGranted", '"credits":1000', '"credits":9000', ADDS_UP),
        ("CreditsCharged", '"remaining_credits":\\d+', '"remaining_credits":999', ADDS_UP),
        ("CreditsCharged", '"credits":\\d+', '"credits":1', AS_ENDED),
        ("CreditsCharged", '"credits":\\d+', '"credits":1', COSTS),
        ("CreditsCharged", '"tokens":\\d+', '"tokens":1', COSTS),
        ("CreditsHeld", '"credits":\\d+', '"credits":99999', "a_hold_stays_within_the_overdraft"),
        ("CreditsCharged", '"credits_from_hold":\\d+', '"credits_from_hold":999', FROM_HOLD),
        ("CallFinished", '"client_cost_usd":"[0-9.]+"', '"client_cost_usd":"7"', PRICED),
        ("CallFinished", '"prompt_tokens":\\d+', '"prompt_tokens":7', PRICED),
        ("CallFinished", '"call_id":"[^"]+"', '"call_id":"another"', "a_call_ends_once"),
        ("JobCreated", '"job_type":"test"', '"job_type":7', "every_event_can_be_read"),
    ],
)  # fmt: skip
def test_an_event_that_somebody_changed_is_named_and_located(
    database: str, topic: str, pattern: str, replacement: str, check: str
) -> None:
    position, stream = the(database, topic)
    found = tampered(database, CHANGE, pattern, replacement, topic)
    assert (position, stream) in {(each.position, each.subject) for each in found if each.check == check}


@pytest.mark.parametrize(
    "topic,check",
    [
        ("CreditsCharged", "every_job_that_is_due_is_charged"),
        ("JobCompleted", "every_charge_is_that_of_an_ended_job"),
        ("HoldReleased", "holds_are_those_of_open_jobs"),
        ("CreditsHeld", "what_a_job_holds_is_held_by_its_account"),
        ("CallStarted", "a_call_ends_once"),
        ("AccountOpened", "every_history_adds_up"),
        ("CreditsGranted", "transactions"),
    ],
)
def test_an_event_that_somebody_removed_is_missed(database: str, topic: str, check: str) -> None:
    assert check in checks(tampered(database, REMOVE, topic))


def test_a_second_charge_of_a_job_is_found(database: str, day: Day) -> None:
    again = """
    insert into journal.events (originator_id, originator_version, topic, state, notification_id, hash)
    select originator_id,
           (select max(originator_version) + 1 from journal.events where originator_id = charge.originator_id),
           topic, state, (select max(notification_id) + 1 from journal.events), hash
    from journal.events as charge where topic = 'CreditsCharged' and position(%s::bytea in state) > 0
    """
    with psycopg.connect(database) as owner:
        owner.execute("update journal.head set position = position + 1")
    found = tampered(database, again, day.charged.encode())
    assert "a_job_is_charged_once" in checks(found)


def test_a_journal_that_was_cut_off_stands_behind_its_read_models(database: str) -> None:
    cut = "delete from journal.events where notification_id > (select position - 3 from journal.head)"
    with psycopg.connect(database) as owner:
        owner.execute(cut)
    found = tampered(database, "update journal.head set position = position - 3")
    assert "read_models" in checks(found)


# -- statements and bills ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed(owner_dsn: str, template: str) -> Iterator[str]:
    """Two months that are closed, a correction since then, and a bill with a difference that was booked."""
    march, april = datetime(2026, 3, 5, 12, tzinfo=UTC), datetime(2026, 4, 5, 12, tzinfo=UTC)
    with _database_on(owner_dsn, f"signed_{secrets.token_hex(4)}", template) as dsn:
        past, quiet = (PastTeam(march, team_id=team_id) for team_id in ("red", "blue"))
        past.grant(march, 100)
        past.job(march, calls=2)
        past.job(april)
        with running(dsn) as server, server.client() as admin:
            past.write(dsn)
            quiet.write(dsn)
            for team in (past, quiet):
                for period in ("2026-03", "2026-04"):
                    assert admin.post(f"/api/reports/statements/{team.team_id}/{period}/close").is_success
            bills = "/api/reports/reconciliation/openai/bills"
            bill = "day,model,tokens,cost\n2026-03-05,gpt-4o,2200,0.0115\n"
            assert admin.post(bills, params={"reference": "INV-7"}, content=bill).is_success
            line = {"day": "2026-03-05", "model": "gpt-4o"}
            assert admin.post(f"{bills}/INV-7/book", json={"lines": [line]}).is_success
            past.adjust(march, -7, "A mistake")
            past.write(dsn)
            assert admin.get("/api/credits/balance", params={"team_id": "red"}).is_success  # waits for the read models
        yield dsn


@pytest.fixture
def signed_off(owner_dsn: str, signed: str) -> Iterator[str]:
    """A copy of it, for one who may put the triggers out of the way."""
    name = str(conninfo_to_dict(signed)["dbname"])
    with _database_on(owner_dsn, f"copy_{secrets.token_hex(4)}", name) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("alter table journal.events disable trigger user")
        yield dsn


def test_what_was_signed_off_adds_up(signed_off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [] == replayed(signed_off).findings
    for size in ("PAGE", "STREAMS_AT_ONCE"):
        monkeypatch.setattr(f"projections.signed_off.{size}", 1)
    assert [] == replayed(signed_off).findings


@pytest.mark.parametrize(
    "topic,pattern,replacement,check,detail",
    [
        ("StatementClosed", '"closing_credits":\\d+', '"closing_credits":9', CLOSED, "closing_credits is 9"),
        ("StatementClosed", '"opening_credits":0', '"opening_credits":1', CLOSED, "opening_credits is 1, replayed 0"),
        ("StatementClosed", '"charged_credits":1', '"charged_credits":2', CLOSED, "totals is Totals(entries=2"),
        ("StatementClosed", '"head_hash":"..', '"head_hash":"??', CLOSED, "head_hash is ??"),
        ("StatementClosed", '"position":\\d+', '"position":3', CLOSED, "position is 3, replayed 0"),
        ("StatementClosed", '"after_position":0', '"after_position":1', CLOSED, "after_position is 1, replayed 0"),
        ("BillDifferenceBooked", '"difference_usd":"', '"difference_usd":"1', BOOKED, "computed 0.0045"),
        ("BillDifferenceBooked", '"theirs_usd":"', '"theirs_usd":"1', BOOKED, "the bill says 0.0115"),
        ("BillDifferenceBooked", "INV-7", "INV-8", BOOKED, "from a bill that nobody has imported"),
    ],
)  # fmt: skip
def test_what_was_signed_off_otherwise_is_named_and_located(
    signed_off: str, topic: str, pattern: str, replacement: str, check: str, detail: str
) -> None:
    place = the(signed_off, topic)
    found = [each for each in tampered(signed_off, CHANGE, pattern, replacement, topic) if each.check == check]
    assert place == (found[0].position, found[0].subject)
    assert any(detail in each.detail for each in found), found


def test_a_movement_that_was_changed_behind_a_closed_statement_shows_in_it(signed_off: str) -> None:
    found = tampered(signed_off, CHANGE, '"credits":100', '"credits":90', "CreditsGranted")
    first, second = (each.detail for each in found if each.check == CLOSED and "closing_credits" in each.detail)
    assert ("2026-03: closing_credits is 99, replayed 89", "2026-04: closing_credits is 98, replayed 88") == (
        first,
        second,
    )


def test_a_difference_that_was_booked_a_second_time_is_found(signed_off: str) -> None:
    again = """
    with added as (
        insert into journal.events (originator_id, originator_version, topic, state, notification_id, hash)
        select originator_id, originator_version + 1, topic, state, (select position + 1 from journal.head), hash
        from journal.events where topic = 'BillDifferenceBooked' returning notification_id)
    update journal.head set position = notification_id from added
    """
    with psycopg.connect(signed_off) as owner:
        owner.execute("alter table journal.head disable trigger user")
    assert "is booked a second time" in next(
        each.detail for each in tampered(signed_off, again) if each.check == BOOKED
    )


# -- read models and snapshots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement,table,detail",
    [
        ("update readmodel.balances set credits_used = 3 where team_id = %s", "balances", "credits_used is 3"),
        ("delete from readmodel.balances where team_id = %s", "balances", "missing"),
        ("insert into readmodel.balances select %s || '-2', 'o', 0, 0, 0, null, now()", "balances", "without an event"),
        ("update readmodel.transactions set credits_amount = 7 where team_id = %s", "transactions", "amount is 7"),
        ("delete from readmodel.transactions where team_id = %s", "transactions", "missing"),
        ("update readmodel.jobs set client_cost_usd = 7 where team_id = %s", "jobs", "client_cost_usd is 7"),
        ("update readmodel.jobs set metadata = '{\"a\": 1}' where team_id = %s", "jobs", "metadata"),
        ("delete from readmodel.jobs where team_id = %s", "jobs", "missing"),
        ("update readmodel.jobs set job_id = gen_random_uuid() where team_id = %s", "jobs", "without an event"),
        ("update readmodel.calls set completion_tokens = 7 where team_id = %s", "calls", "completion_tokens is 7"),
        ("update readmodel.calls set job_id = gen_random_uuid() where team_id = %s", "calls", "without an event"),
        ("delete from readmodel.calls where team_id = %s", "calls", "missing"),
    ],
)  # fmt: skip
def test_a_row_that_somebody_changed_is_named_and_located(
    database: str, day: Day, statement: str, table: str, detail: str
) -> None:
    found = tampered(database, statement, day.team.team_id, look=audited)
    assert {table} == checks(found)
    assert any(detail in finding.detail for finding in found)
    rows = {day.team.team_id, f"{day.team.team_id}-2"}
    if table == "balances":
        assert rows >= {finding.subject for finding in found}


@dataclass(frozen=True)
class Column:
    table: str
    name: str
    key: tuple[str, ...]
    other: str
    """SQL for a value of its type that is nowhere."""


OTHER_VALUES = {
    "text": "'another'",
    "text[]": "array['another']",
    "bigint": "777777",
    "integer": "777777",
    "smallint": "7777",
    "numeric": "7.77",
    "boolean": "not {name}",
    "uuid": "gen_random_uuid()",
    "jsonb": "'[777]'",
    "date": "'1999-12-31'",
    "timestamp with time zone": "'1999-12-31'",
    "bytea": "'another'",
}


def columns(connection: psycopg.Connection) -> list[Column]:
    """All columns of all tables that have rows."""
    found = connection.execute("""
        select attrelid::regclass::text, attname, format_type(atttypid, atttypmod), array(
            select attname from pg_attribute as part
            where part.attrelid = indrelid and part.attnum = any (indkey) order by part.attnum)::text[]
        from pg_attribute join pg_index on attrelid = indrelid and indisprimary
        where attrelid::regclass::text like 'readmodel.%' and attnum > 0 order by 1, attnum
    """)  # fmt: skip
    all_of_them = [
        Column(table.partition(".")[2], name, tuple(key), OTHER_VALUES[kind].format(name=name))
        for table, name, kind, key in found.fetchall()
    ]
    return [each for each in all_of_them if each.table in TABLES and rows_of(connection, each.table)]


def key_of(column: Column) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in column.key)


def rows_of(connection: psycopg.Connection, table: str) -> list[tuple[object, ...]]:
    select = sql.SQL("select ctid from readmodel.{}").format(sql.Identifier(table))
    return connection.execute(select).fetchall()


def named(finding: Finding, key: tuple[str, ...], values: tuple[object, ...]) -> bool:
    """Whether a finding is about just this row."""
    called = str(values[0]) if len(key) == 1 else " ".join(f"{k}={v}" for k, v in zip(key, values, strict=True))
    return called in (finding.subject, str(finding.position))


def test_any_column_of_any_read_model_that_somebody_changed_is_named_with_its_row(
    database: str, dice: random.Random
) -> None:
    changed = []
    with psycopg.connect(database) as owner:
        every = [column for column in columns(owner) if column.name not in column.key]
        for column in every:
            [ctid] = dice.choice(rows_of(owner, column.table))
            row = owner.execute(
                sql.SQL("update readmodel.{} set {} = {} where ctid = %s returning {}").format(
                    sql.Identifier(column.table),
                    sql.Identifier(column.name),
                    sql.SQL(column.other),
                    key_of(column),
                ),
                (ctid,),
            ).fetchone()
            assert row is not None
            changed.append((column, row))
    report = audited(database)
    missed = [
        (column, row)
        for column, row in changed
        if not any(
            finding.check == column.table and named(finding, column.key, row) and f"{column.name} is " in finding.detail
            for finding in report.findings
        )
    ]
    assert [] == missed
    assert len(changed) > 150
    assert [] == [each for each in report.findings if "replayed" in each.detail and each.position is None]


def test_a_row_that_somebody_moved_to_another_key_is_missed_and_does_not_belong_where_it_is(
    database: str, dice: random.Random
) -> None:
    gone, added = [], []
    with psycopg.connect(database) as owner:
        for column in {each.table: each for each in columns(owner) if each.name in each.key}.values():
            [ctid] = dice.choice(rows_of(owner, column.table))
            table, names = sql.Identifier(column.table), key_of(column)
            select = sql.SQL("select {} from readmodel.{} where ctid = %s").format(names, table)
            move = sql.SQL("update readmodel.{} set {} = {} where ctid = %s returning {}").format(
                table, sql.Identifier(column.name), sql.SQL(column.other), names
            )
            gone += [(column, row) for row in owner.execute(select, (ctid,)).fetchall()]
            added += [(column, row) for row in owner.execute(move, (ctid,)).fetchall()]
    findings = audited(database).findings
    missing = [each for each in findings if "is missing" in each.detail]
    without_event = [each for each in findings if "without an event" in each.detail]
    for rows, told in ((gone, missing), (added, without_event)):
        for column, row in rows:
            assert any(each.check == column.table and named(each, column.key, row) for each in told), (column, row)
    assert len(gone) == len(missing) == len(without_event) >= 15
    assert all(each.position is not None for each in missing)


def test_an_audit_goes_to_its_end_where_read_models_cannot_be_built(database: str) -> None:
    unreadable = tampered(database, CHANGE, '"job_type":"test"', '"job_type":7', "JobCreated", look=audited)
    assert "fit nowhere" in next(each.detail for each in unreadable if each.check == "read_models")


def test_rows_are_compared_also_where_the_journal_has_holes_and_no_end(database: str) -> None:
    with psycopg.connect(database) as owner:
        owner.execute("delete from journal.events where topic = 'CreditsGranted'")
        owner.execute("update journal.head set position = position - 3")
    found = tampered(database, "delete from journal.events where notification_id > (select position from journal.head)")
    rows = audited(database).findings
    assert checks(found) | {"credit_days", "credit_watches"} <= checks(rows)
    assert [] == [each for each in rows if "fit nowhere" in each.detail]


@pytest.mark.parametrize("table", ["balances", "usage_by_day", "webhooks"])
def test_a_read_model_that_somebody_dropped_or_altered_is_named(database: str, table: str) -> None:
    with psycopg.connect(database) as owner:
        owner.execute(f"alter table readmodel.{table} drop column organization_id cascade".encode())
    altered = audited(database).findings
    assert {(table, f"readmodel.{table}")} == {(each.check, each.subject) for each in altered}
    with psycopg.connect(database) as owner:
        owner.execute(f"drop table readmodel.{table} cascade".encode())
    dropped = audited(database).findings
    assert {(table, f"readmodel.{table}")} == {(each.check, each.subject) for each in dropped}


@pytest.mark.parametrize(
    "change,found",
    [
        ("delete from readmodel.tracking", {"read_models": "readmodel.tracking"}),
        ("drop table readmodel.tracking", {"read_models": "readmodel.tracking"}),
        (
            "alter table {0} drop constraint tracking_only_row_check; insert into {0} values (false, 3)",
            {"read_models": "readmodel.tracking"},
        ),
        (
            "alter table {0} alter position drop not null; update {0} set position = null",
            {"read_models": "readmodel.tracking"},
        ),
        ("drop table readmodel.definitions", {"read_models": "readmodel.definitions"}),
        (
            "delete from readmodel.definitions where projection = 'balances'; delete from readmodel.balances",
            {"balances": "readmodel.definitions"},
        ),
        ("alter table readmodel.transactions alter position type text", {"transactions": "readmodel.transactions"}),
    ],
)
def test_a_record_of_where_the_read_models_stand_is_missed(database: str, change: str, found: dict[str, str]) -> None:
    with psycopg.connect(database) as owner:
        owner.execute(change.format("readmodel.tracking").encode())
    report = audited(database)
    assert found.items() <= {(each.check, each.subject) for each in report.findings}
    assert [] == report.skipped


def test_functions_that_shadow_those_of_postgresql_hide_nothing(database: str) -> None:
    with psycopg.connect(database) as owner:
        owner.execute("update readmodel.balances set credits_used = 99")
        owner.execute("create schema forged")
        owner.execute("create function forged.to_regclass(text) returns regclass language sql as 'select null'")
        name = sql.Identifier(str(conninfo_to_dict(database)["dbname"]))
        owner.execute(sql.SQL("alter database {} set search_path = forged, pg_catalog").format(name))
    assert {"balances"} == checks(audited(database).findings)


def test_a_sum_that_somebody_changed_is_located_at_the_last_event_that_is_in_it(database: str, day: Day) -> None:
    lie = "update readmodel.usage_by_team set total_jobs = 77 where team_id = %s"
    [finding] = tampered(database, lie, day.team.team_id, look=audited)
    last = "select max(notification_id) from journal.events where originator_id = %s and topic = 'CallFinished'"
    with psycopg.connect(database) as connection:
        [[position]] = connection.execute(last, (f"job-{day.still_open}",)).fetchall()
    assert ("usage_by_team", position, day.team.team_id) == (finding.check, finding.position, finding.subject)
    assert "total_jobs is 77, replayed 4" == finding.detail


def test_a_snapshot_that_somebody_changed_is_named_and_located(database: str, day: Day) -> None:
    stream = f"credit-{day.team.team_id}"
    lie = """
    insert into journal.snapshots (stream, version, category_version, state)
    values (%s, 2, 1, '{"team_id":"t","organization_id":"o","allocated":1,"updated_at":"2026-01-01T00:00:00Z"}')
    """
    [finding] = tampered(database, lie, stream)
    with psycopg.connect(database) as connection:
        second = connection.execute(
            "select notification_id from journal.events where originator_id = %s and originator_version = 2", (stream,)
        ).fetchone()
    assert second is not None
    assert ("snapshots", second[0], stream) == (finding.check, finding.position, finding.subject)


def test_a_history_that_was_signed_cannot_be_rewritten_unseen(database: str) -> None:
    position, _ = the(database, "CreditsGranted")
    found = tampered(database, "update journal.events set hash = sha256(hash) where notification_id = %s", position)
    assert {"receipts"} == checks(found)
    assert {"what was signed is not what the journal says"} == {finding.detail for finding in found}


# -- backups -----------------------------------------------------------------------------------------------------------


def test_a_database_that_was_dumped_and_restored_is_whole(database: str, empty_database: str, tmp_path: Path) -> None:
    dump = tmp_path / "dump.sql"
    subprocess.run([programs() / "pg_dump", "-x", "-O", "-f", dump, database], check=True)
    # The programs are of 18; an older server, which the tests may be given, does not know this setting yet.
    dump.write_text(dump.read_text().replace("SET transaction_timeout = 0;\n", ""))
    restore = [programs() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, empty_database]
    subprocess.run(restore, check=True, stdout=subprocess.DEVNULL)
    before, after = audited(database), audited(empty_database)
    assert ([], before.events) == (after.findings, after.events)
    with readable.connect_blocking(database) as old, readable.connect_blocking(empty_database) as new:
        assert chain(old).hash == chain(new, noted={before.position: chain(old).hash}).hash


# -- the command -------------------------------------------------------------------------------------------------------

Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verify:
    """Runs `saas-litellm verify`; gives its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["saas-litellm", "verify", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capfd.readouterr().out

    return run


def test_the_command_passes_an_honest_database_that_it_has_no_settings_for(database: str, verify: Verify) -> None:
    status, said = verify("--database", database)
    assert 0 == status
    assert "nothing changed" in said
    assert "everything agrees" in said


def test_the_command_says_what_is_wrong_and_where(database: str, day: Day, verify: Verify) -> None:
    lie = "update readmodel.balances set credits_used = 3 where team_id = %s"
    assert tampered(database, lie, day.team.team_id)
    status, said = verify("--database", database)
    assert (1, True) == (status, f"{day.team.team_id} (balances): credits_used is 3" in said)
    status, said = verify("--database", database, "--json")
    [finding] = json.loads(said)["audit"]["findings"]
    assert (1, "balances", day.team.team_id) == (status, finding["check"], finding["subject"])


SWAP = """
update journal.events set notification_id = case notification_id when {p} then 1000000 else {p} end
where notification_id = {p};
update journal.events set notification_id = {p} where notification_id = {p} + 1;
update journal.events set notification_id = {p} + 1 where notification_id = 1000000
"""
INSERT = """
alter table journal.events drop constraint events_notification_id_check;
update journal.events set notification_id = -notification_id where notification_id >= {p};
update journal.events set notification_id = 1 - notification_id where notification_id < 0;
insert into journal.events values ('credit-forged', 1, 'AccountOpened', '{{}}', {p}, sha256(''));
update journal.head set position = position + 1
"""


@pytest.mark.parametrize(
    "statement,place,kind",
    [
        *(
            (f"update journal.events set {change} where notification_id = {{p}}", 0, kind)
            for change, kind in (
                ("originator_id = originator_id || 'x'", "hash"),
                ("originator_version = originator_version + 1000", "hash"),
                ("topic = topic || 'x'", "hash"),
                ("state = state || 'x'", "hash"),
                ("notification_id = notification_id + 1000000", "missing"),
                ("hash = sha256(hash)", "hash"),
            )
        ),
        ("delete from journal.events where notification_id = {p}", 0, "missing"),
        ("delete from journal.events where notification_id > {p}", 1, "missing"),
        (INSERT, 0, "hash"),
        (SWAP, 0, "hash"),
    ],
)
def test_the_command_says_at_which_position_the_journal_was_tampered_with(
    database: str, verify: Verify, dice: random.Random, statement: str, place: int, kind: str
) -> None:
    with psycopg.connect(database) as owner:
        [[head]] = owner.execute("select position from journal.head").fetchall()
        position = dice.randrange(1, head)
        owner.execute(statement.format(p=position).encode())
        owner.execute("alter table journal.events enable trigger user")
    status, said = verify("--database", database, "--quick")
    assert (1, True) == (status, f"BROKEN at position {position + place} ({kind})" in said)


@pytest.mark.parametrize(
    "statement,said",
    [
        ("update journal.head set hash = sha256(hash)", "(head)"),
        ("update journal.head set position = position - 1", "(head)"),
        ("insert into journal.snapshots values ('{account}', 2, 1, '{{}}')", "{account} (snapshots)"),
        ("delete from readmodel.credit_days where team_id = '{team}'", "team_id={team} day={today} (credit_days)"),
        ("drop table readmodel.audit_log", "readmodel.audit_log (audit_log): the table is missing"),
        ("drop table readmodel.transactions", "readmodel.transactions (transactions)"),
        ("insert into app.merkle values (1, 0, sha256('x'))", "app.merkle 1/0 (receipts): is kept, but"),
    ],
)
def test_the_command_names_what_else_was_tampered_with(
    database: str, day: Day, verify: Verify, statement: str, said: str
) -> None:
    with psycopg.connect(database) as owner:
        names = {"team": day.team.team_id, "account": f"credit-{day.team.team_id}"}
        [[names["today"]]] = owner.execute("select max(day)::text from readmodel.credit_days").fetchall()
        owner.execute(statement.format(**names).encode())
    status, told = verify("--database", database)
    assert (1, True) == (status, said.format(**names) in told), told


@pytest.mark.parametrize(
    "change",
    [
        "delete from journal.head",
        "alter table journal.head drop constraint head_only_row_check; insert into journal.head values (false, 3, '')",
        *(
            f"alter table journal.events drop constraint events_one_version_once, alter {column} drop not null;"
            f"update journal.events set {column} = null where notification_id = 5"
            for column in ("originator_id", "originator_version", "topic", "state", "hash", "notification_id")
        ),
    ],
)
def test_the_command_goes_to_its_end_where_parts_of_the_journal_are_gone(
    database: str, verify: Verify, change: str
) -> None:
    with psycopg.connect(database) as owner:
        owner.execute(change.encode())
    status, said = verify("--database", database)
    assert (1, True, True) == (status, said.startswith("BROKEN at position "), " events replayed, " in said)


def test_the_command_can_leave_it_at_the_chain(database: str, day: Day, verify: Verify) -> None:
    assert tampered(database, "delete from readmodel.balances where team_id = %s", day.team.team_id)
    status, said = verify("--database", database, "--quick")
    assert (0, False) == (status, "checks" in said)


def test_a_checkpoint_is_published_and_nothing_is_signed_on_top_of_a_rewritten_history(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(database)
    monkeypatch.setattr(auditing, "command_settings", lambda: settings)

    def publish(place: str = str(tmp_path / "note")) -> int:
        monkeypatch.setattr(sys, "argv", ["saas-litellm", "checkpoint", "--publish", place])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert 2 == publish("/nowhere/note")
    assert 2 == publish("http://127.0.0.1:9/note")
    assert 0 == publish()
    with Receiver() as receiver:
        assert [2, 2, 2] == [publish(f"{receiver.url}/{path}") for path in ("status-403", "status-302", "garbage")]
        assert 0 == publish(f"{receiver.url}/ok/checkpoint.txt")
        [received] = receiver.at("/ok")
        assert ((tmp_path / "note").read_bytes(), "text/plain") == (received.body, received.headers["content-type"])
    capfd.readouterr()
    assert 0 == publish()
    key = capfd.readouterr().out.rpartition("verifier key: ")[2]
    with psycopg.connect(database) as owner:
        [head] = owner.execute("select position from journal.head").fetchall()
        owner.execute("update journal.events set hash = sha256(hash) where notification_id = 3")
        owner.execute(
            "insert into journal.events select 'team-x', 1, topic, state, %s, hash from journal.events limit 1",
            (head[0] + 1,),
        )
        owner.execute("update journal.head set position = position + 1")
    assert head[0] == opened((tmp_path / "note").read_text(), key)[0]
    assert 2 == publish()
    assert "nothing is signed" in capfd.readouterr().err
