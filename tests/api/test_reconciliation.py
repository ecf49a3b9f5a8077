"""Bills of providers beside what is on record, over HTTP."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam
from tests.api.past import PastTeam
from tests.api.test_teams import ok, refused
from tests.api.test_usage import exactly

PROVIDER = "openai"
BASE = f"/api/reports/reconciliation/{PROVIDER}/bills"
COST = Decimal("0.0035")  # of each call of the past


@pytest.fixture
def model(server: Server) -> str:
    """A provider's model that was called twice on 1 June, once on 2 June and once on 4 June."""
    model = f"gpt-{uuid4().hex[:8]}"
    june = datetime(2026, 6, 1, 23, 59, 50, tzinfo=UTC)
    past = PastTeam(june)
    past.grant(june, 100)
    past.job(june, calls=2, resolved_model=f"openai/{model}")
    past.job(june + timedelta(days=1), resolved_model=f"openai/{model}")
    past.job(june + timedelta(days=2, seconds=8), resolved_model=f"openai/{model}")  # ends on the next day
    past.write(server.dsn)
    return model


def csv_of(*lines: tuple[str, str, int, str]) -> str:
    return "day,model,tokens,cost\n" + "".join(f"{day},{model},{tokens},{cost}\n" for day, model, tokens, cost in lines)


def import_bill(admin: httpx.Client, body: str | bytes, reference: str | None = None) -> httpx.Response:
    return admin.post(BASE, params={"reference": reference or f"bill-{uuid4().hex[:8]}"}, content=body)


@pytest.fixture
def bill(admin: httpx.Client, model: str) -> str:
    """A bill that agrees on the first day and asks more on the second; of the last day it knows nothing."""
    body = csv_of(
        ("2026-06-01", model, 2200, "0.007"),
        ("2026-06-02", model, 1000, "0.003"),
        ("2026-06-02", model, 300, "0.0012"),
        ("2026-06-04", "dearest", 5, "1.5"),
    )
    summary = exactly(import_bill(admin, body))
    assert (3, 0, Decimal("1.5112")) == (summary["lines"], summary["booked_lines"], summary["theirs_usd"])
    assert ("2026-06-01", "2026-06-04") == (summary["first_day"], summary["last_day"])
    return str(summary["reference"])


def rows_of(admin: httpx.Client, bill: str, *models: str, **query: Any) -> list[tuple[Any, ...]]:
    rows = exactly(admin.get(f"{BASE}/{bill}", params={"limit": 1000, **query}))["rows"]
    return [
        (row["day"], row["model"], row["ours_usd"], row["theirs_usd"], row["difference_usd"], row["status"])
        for row in rows
        if row["model"] in models
    ]


def book(admin: httpx.Client, bill: str, *lines: tuple[str, str], **more: Any) -> httpx.Response:
    body = {"lines": [{"day": day, "model": model} for day, model in lines], **more}
    return admin.post(f"{BASE}/{bill}/book", json=body)


def test_what_is_on_record_counts_on_the_day_on_which_the_call_ended(admin: httpx.Client, model: str) -> None:
    query = {"provider": PROVIDER, "start_date": "2026-06-01", "end_date": "2026-06-04"}
    body = exactly(admin.get("/api/reports/reconciliation", params={**query, "limit": 1000}))
    rows = [row for row in body["rows"] if row["model"] == model]
    assert [("2026-06-01", 2, 2200, 2 * COST), ("2026-06-02", 1, 1100, COST), ("2026-06-04", 1, 1100, COST)] == [
        (row["day"], row["calls"], row["total_tokens"], row["provider_cost_usd"]) for row in rows
    ]
    first_day = exactly(admin.get("/api/reports/reconciliation", params={**query, "end_date": "2026-06-01"}))
    assert {"2026-06-01"} == {row["day"] for row in first_day["rows"]}
    beyond = admin.get("/api/reports/reconciliation", params={**query, "offset": 900})
    assert ([], str(body["total"])) == (ok(beyond)["rows"], beyond.headers["X-Total-Count"])


def test_a_bill_is_compared_line_by_line(admin: httpx.Client, model: str, bill: str) -> None:
    expected = [
        ("2026-06-01", model, 2 * COST, Decimal("0.007"), 0, "agrees"),
        ("2026-06-02", model, COST, Decimal("0.0042"), Decimal("0.0007"), "differs"),
        ("2026-06-04", "dearest", 0, Decimal("1.5"), Decimal("1.5"), "differs"),
        ("2026-06-04", model, COST, 0, -COST, "differs"),
    ]
    assert expected == rows_of(admin, bill, model, "dearest")
    assert expected[1:] == rows_of(admin, bill, model, "dearest", differing=True)
    totals = exactly(admin.get(f"{BASE}/{bill}"))
    assert totals["theirs_usd"] - totals["ours_usd"] == totals["difference_usd"] == totals["open_usd"]


def test_agreed_differences_are_booked_once_with_their_reference(admin: httpx.Client, model: str, bill: str) -> None:
    lines = [("2026-06-01", model), ("2026-06-02", model), ("2026-06-04", model)]
    booking = exactly(book(admin, bill, *lines, note="Agreed with their support"))
    assert [("2026-06-02", Decimal("0.0007")), ("2026-06-04", -COST)] == [
        (line["day"], line["difference_usd"]) for line in booking["booked"]
    ], "where both agree there is nothing to book"
    assert Decimal("-0.0028") == booking["booked_usd"]
    assert [] == exactly(book(admin, bill, *lines))["booked"]
    assert ["agrees", "booked", "booked"] == [row[-1] for row in rows_of(admin, bill, model)]
    totals = exactly(admin.get(f"{BASE}/{bill}"))
    assert (Decimal("-0.0028"), 2) == (totals["booked_usd"], totals["booked_lines"])
    query = {"start_date": "2026-06-02", "end_date": "2026-06-02", "limit": 1000}
    recorded = exactly(admin.get("/api/reports/reconciliation", params=query))["rows"]
    [line] = [row for row in recorded if row["model"] == model]
    assert (COST, Decimal("0.0007")) == (line["provider_cost_usd"], line["booked_usd"])
    stream = {"stream": f"reconciliation-{PROVIDER}", "limit": 1000}
    events = [event["event"] for event in ok(admin.get("/api/audit/events", params=stream))["events"]]
    assert ["Agreed with their support"] * 2 == [event["note"] for event in events if event.get("note")]


def test_a_bill_that_comes_a_second_time_asks_nothing_more(admin: httpx.Client, model: str) -> None:
    unknown = f"{model}-unknown"
    lines = ("2026-06-02", model, 1300, "0.0042"), ("2026-06-04", unknown, 5, "1.5")
    first, again, corrected = (f"bill-{uuid4().hex[:8]}" for _ in range(3))
    ok(import_bill(admin, csv_of(*lines), first))
    agreed = [("2026-06-02", model), ("2026-06-04", model), ("2026-06-04", unknown)]
    assert 3 == len(exactly(book(admin, first, *agreed))["booked"])
    ok(import_bill(admin, csv_of(*lines), again))
    assert ["agrees"] * 3 == [row[-1] for row in rows_of(admin, again, model, unknown)]
    assert [] == exactly(book(admin, again, *agreed))["booked"]
    ok(import_bill(admin, csv_of(("2026-06-02", model, 1300, "0.0040"), ("2026-06-04", model, 1100, "0")), corrected))
    assert [
        ("2026-06-02", model, Decimal("0.0042"), Decimal("0.0040"), Decimal("-0.0002"), "differs"),
        ("2026-06-04", model, 0, 0, 0, "agrees"),
        ("2026-06-04", unknown, Decimal("1.5"), 0, Decimal("-1.5"), "differs"),
    ] == rows_of(admin, corrected, model, unknown)


def test_a_bill_says_nothing_of_days_before_and_after_it(admin: httpx.Client, model: str, bill: str) -> None:
    for day in ("2026-05-31", "2026-06-05"):
        assert "day" == refused(book(admin, bill, ("2026-06-02", model), (day, model)), 400, "invalid_value")["field"]
    assert [] == [row for row in rows_of(admin, bill, model) if row[-1] == "booked"]


def test_the_same_bill_again_is_answered_and_another_refused(admin: httpx.Client, model: str) -> None:
    reference, body = f"bill-{uuid4().hex[:8]}", csv_of(("2026-06-01", model, 1, "1"))
    first = ok(import_bill(admin, body, reference))
    assert first == ok(import_bill(admin, body, reference))
    refused(import_bill(admin, csv_of(("2026-06-01", model, 1, "2")), reference), 400, "already_exists")
    assert reference == ok(admin.get(BASE, params={"limit": 1}))["bills"][0]["reference"]


def test_a_bill_may_be_written_in_several_ways(admin: httpx.Client) -> None:
    line = {"day": "2026-06-01", "model": "m", "tokens": 12, "cost": "0.10000001"}
    summaries = [
        exactly(import_bill(admin, body))
        for body in (
            "day,model,tokens,cost\r\n2026-06-01,m,12,0.10000001\r\n",
            "day,model,tokens,cost,\n2026-06-01,m,12,0.10000001,,\n",
            "\ufeffDate;Model;Total_Tokens;Cost_USD\n2026-06-01T00:00:00Z;m;12;0.10000001\n",
            json.dumps(line),
            json.dumps(line) + "\n" + json.dumps({**line, "cost": 0}) + "\n",
            json.dumps([line]),
            json.dumps({"lines": [{**line, "cost": 0.10000001}]}),
            json.dumps({**line, "note": "two\u2028lines"}, ensure_ascii=False)
            + "\r\n"
            + json.dumps({**line, "cost": 0}),
        )
    ]
    shown = {
        tuple(value for name, value in each.items() if name not in ("reference", "imported_at")) for each in summaries
    }
    assert 1 == len(shown)
    assert [Decimal("0.10000001")] == [row[3] for row in rows_of(admin, summaries[-1]["reference"], "m")]


@pytest.mark.parametrize(
    "body, loc",
    [
        ("", ["body", "lines"]),
        ("day,model,tokens,cost\n", ["body", "lines"]),
        ("day,model,tokens\n2026-06-01,m,1\n", ["body", "lines", 1, "cost"]),
        ("day,model,tokens,cost\n2026-06-01,m,1,1\n2026-06-31,m,1,1\n", ["body", "lines", 2, "day"]),
        ("day,model,tokens,cost\n2026-06-01 or so,m,1,1\n", ["body", "lines", 1, "day"]),
        ("day,model,tokens,cost\n2026-06-01,m,1,1\n2026-06-01,m,1,1,234.56\n", ["body", "lines", 2]),
        ("day,model,tokens,cost,Cost \n2026-06-01,m,1,1,2\n", ["body"]),
        ("day,model,cost,amount\n2026-06-01,m,1,1\n2026-06-01,m,1,2\n", ["body", "lines", 2, "cost"]),
        ("day,model,tokens,cost\n2026-06-01,m,1.5,1\n", ["body", "lines", 1, "tokens"]),
        ("day,model,tokens,cost\n2026-06-01,m,-1,1\n", ["body", "lines", 1, "tokens"]),
        ("day,model,tokens,cost\n2026-06-01,m,1,NaN\n", ["body", "lines", 1, "cost"]),
        ("day,model,tokens,cost\n2026-06-01,m,1,1e999999\n", ["body", "lines", 1, "cost"]),
        ("day,model,tokens,cost\n2026-06-01,m,1,-1e1000000\n", ["body", "lines", 1, "cost"]),
        ('{"day": "2026-06-01", "model": "m", "cost": 1e1000000}', ["body", "lines", 1, "cost"]),
        ('{"day": "2026-06-01", "model": "m", "cost": 1e99999999999999999999}', ["body", "lines", 1, "cost"]),
        ('{"day": "2026-06-01", "model": "m", "cost": 1e-99999999999999999999}', ["body", "lines", 1, "cost"]),
        ("day,model,tokens,cost\n2026-06-01,m,1,1e-31\n", ["body", "lines", 1, "cost"]),
        ("day,model,tokens,cost\n2026-06-01,m,1,1e-20000\n", ["body", "lines", 1, "cost"]),
        ("day,model,tokens,cost\n2026-06-01,,1,1\n", ["body", "lines", 1, "model"]),
        ('{"day": "2026-06-01", "model": "m", "cost": 1}\n[]', ["body", "lines", 2]),
        (b"day,model,tokens,cost\n\xff", ["body"]),
    ],
)
def test_a_bill_that_makes_no_sense_is_refused_at_its_line(
    admin: httpx.Client, body: str | bytes, loc: list[Any]
) -> None:
    assert [loc] == [item["loc"] for item in refused(import_bill(admin, body), 422, "validation_error")["detail"]]


def test_broken_json_lines_are_broken_json(admin: httpx.Client) -> None:
    for broken in ('{"day": \n', "[" * 100_000, '{"lines": ' + "[" * 200 + "]" * 200 + "}"):
        refused(import_bill(admin, broken), 400, "malformed_json")


def test_differences_come_as_a_file(admin: httpx.Client, model: str, bill: str) -> None:
    answer = admin.get(f"{BASE}/{bill}", params={"format": "csv"})
    rows = [row for row in csv.DictReader(io.StringIO(answer.text)) if row["model"] == model]
    assert ["0", "0.0007", "-0.0035"] == [str(Decimal(row["difference_usd"]).normalize()) for row in rows]
    lines = admin.get(f"{BASE}/{bill}", headers={"Accept": "application/x-ndjson"}).text.splitlines()
    assert len(lines) == int(answer.headers["X-Total-Count"])
    recorded = admin.get("/api/reports/reconciliation", params={"format": "csv"})
    assert recorded.text.startswith("day,provider,model,calls,")


def test_bills_are_for_administrators_and_have_to_be_known(admin: httpx.Client, team: TestTeam, bill: str) -> None:
    refused(team.client.get(BASE), 403, "admin_required")
    refused(team.client.post(BASE, content="x"), 403, "admin_required")
    for answer in (admin.get(f"{BASE}/none-such"), book(admin, "none-such", ("2026-06-01", "m"))):
        assert "provider_bill" == refused(answer, 404, "not_found")["resource"]
    assert "provider" == refused(admin.get("/api/reports/reconciliation/a%20b/bills"), 404, "not_found")["resource"]
    assert [] == ok(admin.get("/api/reports/reconciliation/nobody/bills"))["bills"]
    for body in ({}, {"lines": []}, {"lines": [{"day": "x", "model": "m"}]}):
        refused(admin.post(f"{BASE}/{bill}/book", json=body), 422, "validation_error")
    refused(admin.post(BASE, params={"reference": "a/b"}, content="x"), 422, "validation_error")
    refused(admin.post(BASE, content="x"), 422, "validation_error")
