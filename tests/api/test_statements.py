"""Statements of a team, month by month, over HTTP."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from domain.statement import period_bounds, period_of
from tests.api.conftest import Server, TestTeam
from tests.api.past import PastTeam
from tests.api.test_teams import ok, refused

MARCH = datetime(2026, 3, 5, 12, tzinfo=UTC)
APRIL, MAY = MARCH + timedelta(days=31), MARCH + timedelta(days=61)


@pytest.fixture
def past(server: Server) -> PastTeam:
    """Opened in March with 100 credits; two jobs of 4 and 1 credits, then a refund of one in April."""
    past = PastTeam(MARCH)
    past.grant(MARCH, 100, kind="one_time_payment", payment_reference="INV-1", reason="First order")
    first = past.job(MARCH + timedelta(hours=1), 4, calls=2)
    past.job(MARCH + timedelta(hours=2), 1, job_type="chat")
    past.adjust(MARCH + timedelta(days=1), -5, "A mistake")
    past.job(APRIL, 2)
    past.refund(APRIL + timedelta(days=1), first, 1, "Courtesy")
    past.write(server.dsn)
    return past


def path(past: PastTeam, period: str, rest: str = "") -> str:
    return f"/api/reports/statements/{past.team_id}/{period}{rest}"


def statement(admin: httpx.Client, past: PastTeam, period: str, **query: Any) -> dict[str, Any]:
    body: dict[str, Any] = ok(admin.get(path(past, period), params=query))
    return body


def close(admin: httpx.Client, past: PastTeam, period: str) -> httpx.Response:
    return admin.post(path(past, period, "/close"))


def test_a_statement_goes_from_balance_to_balance(admin: httpx.Client, past: PastTeam) -> None:
    body = statement(admin, past, "2026-03")
    assert ("open", 0, 90, None) == tuple(
        body[name] for name in ("status", "opening_credits", "closing_credits", "head_hash")
    )
    assert {
        "entries": 4,
        "granted_credits": 100,
        "adjusted_credits": -5,
        "charged_credits": 5,
        "refunded_credits": 0,
        "expired_credits": 0,
        "total_cost_usd": 0.01575,
    } == body["totals"]
    assert [
        ("one_time_payment", 100, 100, "INV-1"),
        ("deduction", -4, 96, None),
        ("deduction", -1, 95, None),
        ("adjustment", -5, 90, None),
    ] == [
        (entry["type"], entry["credits"], entry["credits_after"], entry["payment_reference"])
        for entry in body["entries"]
    ]
    line = {"jobs": 1, "credits": 4, "calls": 2, "tokens": 2200, "cost_usd": 0.0105}
    assert {"job_type": "analysis", **line} == body["usage"]["by_job_type"][0]
    assert [
        {"model": "chat-fast", "calls": 3, "prompt_tokens": 3000, "completion_tokens": 300, "cost_usd": 0.01575}
    ] == (body["usage"]["by_model"])
    assert ("Acme Corporation", "Research & <Development>") == (body["organization_name"], body["team_alias"])


def test_the_next_statement_opens_with_what_the_one_before_left(admin: httpx.Client, past: PastTeam) -> None:
    march, april, may = (statement(admin, past, period) for period in ("2026-03", "2026-04", "2026-05"))
    assert (march["closing_credits"], march["position"]) == (april["opening_credits"], april["after_position"])
    assert (90, 89, 2) == (april["opening_credits"], april["closing_credits"], april["totals"]["entries"])
    assert (89, 89, 0) == (may["opening_credits"], may["closing_credits"], may["totals"]["entries"])


def test_what_is_closed_is_what_the_preview_showed(admin: httpx.Client, past: PastTeam) -> None:
    preview = statement(admin, past, "2026-03")
    summary = ok(close(admin, past, "2026-03"))
    closed = statement(admin, past, "2026-03")
    assert {"status", "head_hash", "closed_at", "closed_by"} == {
        name for name, value in closed.items() if preview[name] != value
    }
    assert {name: closed[name] for name in summary} == summary
    assert ("closed", "master") == (closed["status"], closed["closed_by"])
    events = ok(admin.get("/api/audit/events", params={"after": closed["position"] - 1, "limit": 1}))["events"]
    assert (closed["head_hash"], f"credit-{past.team_id}") == (events[0]["hash"], events[0]["stream"])


def test_a_closed_statement_never_changes_and_corrections_go_to_the_next(
    admin: httpx.Client, server: Server, past: PastTeam
) -> None:
    ok(close(admin, past, "2026-03"))
    closed = admin.get(path(past, "2026-03")).content
    past.adjust(MARCH + timedelta(days=2), 5, "No mistake after all")  # dated in March, written after its close
    past.write(server.dsn)
    ok(admin.put(f"/api/organizations/{past.organization_id}", json={"name": "Renamed"}))
    ok(close(admin, past, "2026-03"))
    assert closed == admin.get(path(past, "2026-03")).content
    april = statement(admin, past, "2026-04")
    assert (3, 5, 94) == (
        april["totals"]["entries"],
        april["totals"]["adjusted_credits"],
        april["closing_credits"],
    )
    assert "Renamed" == april["organization_name"]
    assert april["totals"] == ok(close(admin, past, "2026-04"))["totals"]


def test_a_name_given_after_the_close_is_not_shown_by_it_whatever_the_clocks_say(
    admin: httpx.Client, server: Server, past: PastTeam
) -> None:
    """Of two servers the one that renames may be behind the one that has closed."""
    ok(close(admin, past, "2026-03"))
    past.rename(MARCH, "Renamed")
    past.write(server.dsn)
    closed, april = (statement(admin, past, period) for period in ("2026-03", "2026-04"))
    assert ("Acme Corporation", "Renamed") == (closed["organization_name"], april["organization_name"])


def test_months_are_closed_one_after_the_other(admin: httpx.Client, past: PastTeam) -> None:
    early = refused(close(admin, past, "2026-04"), 400, "period_out_of_order")
    assert "2026-03" == early["next_period"]
    for period in ("2026-03", "2026-04"):
        ok(close(admin, past, period))
    listed = admin.get(f"/api/reports/statements/{past.team_id}", params={"limit": 1})
    body = ok(listed)
    assert (["2026-04"], "2026-05", "2") == (
        [each["period"] for each in body["statements"]],
        body["next_period"],
        listed.headers["X-Total-Count"],
    )


@pytest.mark.usefixtures("today")
def test_a_month_that_goes_on_is_not_closed(admin: httpx.Client, server: Server) -> None:
    past = PastTeam(datetime.now(UTC) - timedelta(seconds=1))
    past.write(server.dsn)
    period = period_of(past.created_at)
    refused(close(admin, past, period_of(period_bounds(period)[1])), 400, "period_not_ended")
    assert "open" == statement(admin, past, period)["status"]


def test_a_team_without_movements_has_empty_statements(admin: httpx.Client, server: Server) -> None:
    past = PastTeam(MARCH)
    past.write(server.dsn)
    body = ok(close(admin, past, "2026-03"))
    assert (0, 0, 0, 0) == (body["opening_credits"], body["closing_credits"], body["position"], body["after_position"])
    assert [] == statement(admin, past, "2026-03")["entries"]


def test_a_repeat_with_the_same_key_is_answered_as_before(admin: httpx.Client, past: PastTeam) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    first, again = (admin.post(path(past, "2026-03", "/close"), headers=key) for _ in range(2))
    assert ok(first) == ok(again)
    assert "true" == again.headers["Idempotent-Replayed"]


def test_entries_come_in_pages_and_files(admin: httpx.Client, past: PastTeam) -> None:
    whole = statement(admin, past, "2026-03")["entries"]
    page = admin.get(path(past, "2026-03"), params={"limit": 2, "offset": 1})
    assert (whole[1:3], "4") == (ok(page)["entries"], page.headers["X-Total-Count"])
    lines = admin.get(path(past, "2026-03"), headers={"Accept": "application/x-ndjson"})
    assert whole == [json.loads(line) for line in lines.text.splitlines()]
    table = admin.get(path(past, "2026-03"), params={"format": "csv"})
    assert "text/csv; charset=utf-8" == table.headers["Content-Type"]
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert ["opening_balance", *(entry["type"] for entry in whole), "closing_balance"] == [row["type"] for row in rows]
    assert ["0", "100", "96", "95", "90", "90"] == [row["credits_after"] for row in rows]
    assert f'filename="statement-{past.team_id}-2026-03.csv"' in table.headers["Content-Disposition"]


def test_the_printable_page_says_it_all_and_runs_nothing(admin: httpx.Client, past: PastTeam) -> None:
    preview = admin.get(path(past, "2026-03"), headers={"Accept": "text/html"})
    assert "text/html; charset=utf-8" == preview.headers["Content-Type"]
    assert "default-src 'none'; style-src 'unsafe-inline'" == preview.headers["Content-Security-Policy"]
    assert "Preview, not closed yet" in preview.text
    summary = ok(close(admin, past, "2026-03"))
    page = admin.get(path(past, "2026-03"), params={"format": "html"}).text
    for text in (
        "Acme Corporation",
        "March 2026",
        "Charge for 2 jobs",
        "INV-1",
        "0.010500",
        "\u22125",
        summary["head_hash"],
    ):
        assert text in page
    assert "Research &amp; &lt;Development&gt;" in page
    assert "<script" not in page
    assert "<Development>" not in page


def test_the_printable_page_sums_up_what_was_refunded_under_a_name_that_says_so(
    admin: httpx.Client, past: PastTeam
) -> None:
    """95 here: 100 granted, 5 corrected."""
    page = admin.get(path(past, "2026-03"), headers={"Accept": "text/html"}).text
    assert "<small>Granted and corrected</small><b>+95</b>" in page


def test_a_team_without_another_name_is_named_once(admin: httpx.Client, team: TestTeam) -> None:
    period = admin.get(f"/api/reports/statements/{team.team_id}").json()["next_period"]
    page = admin.get(f"/api/reports/statements/{team.team_id}/{period}", headers={"Accept": "text/html"}).text
    assert 1 == page.count(f">{team.team_id}<")


def test_only_periods_that_the_team_has_seen_have_statements(
    admin: httpx.Client, past: PastTeam, team: TestTeam
) -> None:
    for period in ("2026-02", "2199-01"):
        assert "statement" == refused(admin.get(path(past, period)), 404, "not_found")["resource"]
    for period in ("2026-13", "March", "2026-3"):
        refused(admin.get(path(past, period)), 400, "invalid_value")
        refused(close(admin, past, period), 400, "invalid_value")
    for answer in (
        admin.get("/api/reports/statements/none-such"),
        admin.get("/api/reports/statements/none-such/2026-03"),
        admin.post("/api/reports/statements/none-such/2026-03/close"),
    ):
        assert "team" == refused(answer, 404, "not_found")["resource"]
    refused(team.client.get(path(past, "2026-03")), 403, "admin_required")
    refused(team.client.post(path(past, "2026-03", "/close")), 403, "admin_required")
