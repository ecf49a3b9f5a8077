"""The views for finance: documented to the last column, answering, and there after a rebuild."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from api.app import PROJECTIONS
from infra import postgres
from projections.projection import Projection
from projections.rebuild import rebuild
from tests.api.conftest import Server, running
from tests.api.past import PastTeam
from tests.api.test_teams import ok
from tests.conftest import _database_on

PAGE = (Path(__file__).parents[2] / "docs" / "finance.md").read_text()
QUESTIONS = dict(re.findall(r"^### (\d+)\. .*?```sql\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
MARCH, APRIL = datetime(2026, 3, 5, 12, tzinfo=UTC), datetime(2026, 4, 5, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def house(owner_dsn: str, template: str) -> Iterator[Server]:
    with _database_on(owner_dsn, "reporting", template) as dsn, running(dsn) as server:
        yield server


@pytest.fixture(scope="module")
def told(house: Server) -> Server:
    """Two customers in March and April: paid, charged, corrected, closed; a job that failed; a bill that differed."""
    for name, team_id, calls in (("Acme", "red", 2), ("Zeta", "blue", 1)):
        past = PastTeam(MARCH, name=name, team_id=team_id, organization_id=name.lower())
        past.grant(MARCH, 100, kind="one_time_payment", payment_amount_usd=Decimal(50))
        job_id = past.job(MARCH + timedelta(hours=1), 4, calls=calls)
        past.job(APRIL, 2, model="chat-careful")
        past.refund(APRIL + timedelta(hours=1), job_id, 1, "Courtesy")
        past.failed_job(APRIL + timedelta(hours=2), calls=calls)
        past.write(house.dsn)
    with house.client() as admin:
        for team_id in ("red", "blue"):
            for period in ("2026-03", "2026-04"):
                ok(admin.post(f"/api/reports/statements/{team_id}/{period}/close"))
        _book(admin)
    return house


def _book(admin: httpx.Client) -> None:
    bills = "/api/reports/reconciliation/openai/bills"
    body = "day,model,tokens,cost\n2026-03-05,gpt-4o,3300,0.0115\n"
    ok(admin.post(bills, params={"reference": "INV-7"}, content=body))
    ok(admin.post(f"{bills}/INV-7/book", json={"lines": [{"day": "2026-03-05", "model": "gpt-4o"}]}))
    ok(admin.get(bills))  # has waited until the read models show it


@contextmanager
def auditor(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Whoever has a login of the auditor's role."""
    with psycopg.connect(dsn) as connection:
        connection.execute("grant saas_ledger_auditor to current_user")
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(postgres.AUDITOR_ROLE)))
        yield connection
        connection.rollback()


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with auditor(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


COST, REVENUE, MARGIN = Decimal("0.0035"), Decimal("0.00525"), Decimal("0.00175")
ANSWERS: dict[str, list[tuple[Any, ...]]] = {
    "1": [
        ("Acme", "2026-03", 2 * REVENUE, 2 * COST, 2 * MARGIN, Decimal("33.33")),
        ("Acme", "2026-04", 3 * REVENUE, 3 * COST, 3 * MARGIN, Decimal("33.33")),
        ("Zeta", "2026-03", REVENUE, COST, MARGIN, Decimal("33.33")),
        ("Zeta", "2026-04", 2 * REVENUE, 2 * COST, 2 * MARGIN, Decimal("33.33")),
    ],
    "2": [("red", 5 * REVENUE, 5 * MARGIN), ("blue", 3 * REVENUE, 3 * MARGIN)],
    "3": [("chat-fast", 6, 6 * MARGIN, Decimal("3.18")), ("chat-careful", 2, 2 * MARGIN, Decimal("3.18"))],
    "4": [
        ("openai", "2026-03", 3 * COST, Decimal("0.001"), Decimal("0.0115")),
        ("openai", "2026-04", 5 * COST, 0, 5 * COST),
    ],
    "5": [("acme", 95, 0), ("zeta", 95, 0)],
    "6": [("2026-03", "one_time_payment", 2, 200, 100)],
    "7": [("blue", 96), ("red", 96)],
    "8": [("2026-04", "refund", "Courtesy", 2, 2)],
    "9": [("red", "failed", 1, 2 * COST), ("blue", "failed", 1, COST)],
    "10": [],
}


@pytest.mark.parametrize("question", [str(number) for number in range(1, 11)])
def test_ten_questions_of_finance_have_their_answers(told: Server, question: str) -> None:
    assert ANSWERS[question] == rows(told.dsn, QUESTIONS[question])


def test_every_view_and_column_says_what_it_is(told: Server) -> None:
    silent = """
        select relname, attname from pg_class join pg_attribute on attrelid = pg_class.oid and attnum > 0
        where relnamespace = 'reporting'::regnamespace
          and (col_description(pg_class.oid, attnum) is null or obj_description(pg_class.oid, 'pg_class') is null)
    """
    assert [] == rows(told.dsn, silent)
    assert 11 == len(_views(told.dsn))


def _views(dsn: str) -> list[str]:
    return [str(name) for (name,) in rows(dsn, "select viewname from pg_views where schemaname = 'reporting'")]


def test_every_view_answers_auditors_and_nobody_else(told: Server) -> None:
    for view in _views(told.dsn):
        assert rows(told.dsn, f"select * from reporting.{view}"), view
    with auditor(told.dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("create view reporting.mine as select 1 as one")
    public = "select count(*) from pg_namespace where nspname = 'reporting' and nspacl::text ~ '[{,]=[^,]*U'"
    assert [(0,)] == rows(told.dsn, public)


WRITABLE = """
select oid::regclass::text from pg_class
where relnamespace in (select oid from pg_namespace where nspname in ('journal', 'app', 'readmodel', 'reporting'))
  and relkind in ('r', 'v') and has_table_privilege(oid, 'insert, update, delete, truncate')
union all
select oid::regprocedure::text from pg_proc
where pronamespace::regnamespace::text in ('journal', 'app', 'reporting')
  and (prosecdef or provolatile = 'v') and prorettype <> 'trigger'::regtype and has_function_privilege(oid, 'execute')
union all
select nspname from pg_namespace where nspname !~ '^pg_temp' and has_schema_privilege(oid, 'create')
"""


def test_a_login_for_a_tool_reads_and_changes_nothing(told: Server) -> None:
    [commands] = re.findall(r"A login for a tool:\n\n```sql\n(.*?)```", PAGE, re.DOTALL)
    role = f"tool_{uuid4().hex[:8]}"
    with psycopg.connect(told.dsn, autocommit=True) as owner:
        owner.execute(commands.replace("metabase", role).replace("...", "secret").encode())
        try:
            with psycopg.connect(make_conninfo(told.dsn, user=role, password="secret"), autocommit=True) as tool:
                assert 6 == len(tool.execute("select from reporting.daily_costs").fetchall())
                assert [] == tool.execute(WRITABLE).fetchall()
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    tool.execute("create temporary table theirs (one integer)")
        finally:
            owner.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_views_of_finance_on_ours_survive_a_rebuild_of_all_read_models(told: Server) -> None:
    questions = [QUESTIONS[number] for number in ANSWERS]
    before = [rows(told.dsn, query) for query in questions]
    with psycopg.connect(told.dsn, autocommit=True) as connection:
        connection.execute("create view public.theirs as select day, margin_usd from reporting.daily_costs")
        for projection in PROJECTIONS:
            asyncio.run(_rebuilt(told.dsn, projection))
        assert 6 == len(connection.execute("select from public.theirs").fetchall())
        connection.execute("drop view public.theirs")
    assert before == [rows(told.dsn, query) for query in questions]


async def _rebuilt(dsn: str, projection: Projection) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        assert 0 == (await rebuild(connection, projection, lambda reached, until: None)).differing_rows


def test_the_planner_looks_into_the_views(told: Server) -> None:
    query = "explain select team_id from reporting.jobs where team_id = 'red'"
    plan = "\n".join(line for (line,) in rows(told.dsn, query))
    assert " on jobs " in plan
    assert "Function Scan" not in plan
