"""What calls cost and brought in, over HTTP: an organization at a glance, and any grouping of costs."""

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import combinations
from typing import Any

import httpx
import psycopg
import pytest

from projections.costs import COLUMNS, DIMENSIONS
from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.api.test_teams import invalid, make_group, ok, refused
from tests.api.test_usage import call, end, exactly
from tests.provider import FakeProvider
from tests.waiting import until

FIGURES = {
    "calls",
    "successful_calls",
    "failed_calls",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "provider_cost_usd",
    "revenue_usd",
    "margin_usd",
    "margin_percent",
}


@pytest.fixture(scope="module")
def aliases(admin: httpx.Client, provider: FakeProvider) -> tuple[str, str, str]:
    """At cost: 0.0000825 dollars a call, 0.0035 dollars a call, and one that always fails."""
    return (
        make_alias(admin, provider),
        make_alias(admin, provider, "usage-1000-100"),
        make_alias(admin, provider, "status-500"),
    )


@pytest.fixture(scope="module")
def team(server: Server, admin: httpx.Client, aliases: tuple[str, str, str]) -> TestTeam:
    """Two jobs of two users with three calls that succeeded and one that failed, at half as much again."""
    cheap, dear, failing = aliases
    team = make_team(server, admin, cost_markup_percentage=50, access_groups=[make_group(admin, *aliases)])
    chat, report = team.job(job_type="chat", user_id="ann"), team.job(job_type="=report", user_id="bob")
    ok(call(team, chat, cheap))
    ok(call(team, chat, dear))
    end(team, chat)
    ok(call(team, report, dear))
    assert 500 == call(team, report, failing).status_code
    return team


def costs(client: httpx.Client, team: TestTeam, **query: Any) -> dict[str, Any]:
    answer = client.get("/api/reports/costs", params={"team_id": team.team_id, **query})
    body: dict[str, Any] = exactly(answer)
    assert str(body["total"]) == answer.headers["X-Total-Count"]
    return body


def test_costs_revenue_and_margin_come_by_job_type_and_model(
    admin: httpx.Client, team: TestTeam, aliases: tuple[str, str, str]
) -> None:
    cheap, dear, failing = aliases
    body = costs(admin, team, group_by="job_type,model")
    assert (["job_type", "model"], 4) == (body["group_by"], body["total"])
    rows = {(row["job_type"], row["model"]): row for row in body["rows"]}
    assert {"job_type", "model"} | FIGURES == set(body["rows"][0])
    assert {
        "job_type": "chat",
        "model": dear,
        "calls": 1,
        "successful_calls": 1,
        "failed_calls": 0,
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1100,
        "provider_cost_usd": Decimal("0.0035"),
        "revenue_usd": Decimal("0.00525"),
        "margin_usd": Decimal("0.00175"),
        "margin_percent": Decimal("33.33"),
    } == rows["chat", dear]
    # 0.0000825 and its half, rounded for display once
    assert (Decimal("0.000083"), Decimal("0.000124"), Decimal("0.000041")) == tuple(
        rows["chat", cheap][name] for name in ("provider_cost_usd", "revenue_usd", "margin_usd")
    )
    assert (0, 1, 0, None) == tuple(
        rows["=report", failing][name] for name in ("successful_calls", "failed_calls", "revenue_usd", "margin_percent")
    )
    assert FIGURES == set(body["totals"])
    assert (4, 2212, Decimal("0.010624")) == tuple(
        body["totals"][name] for name in ("calls", "total_tokens", "revenue_usd")
    )


def test_every_grouping_adds_up_to_the_same_totals(admin: httpx.Client, team: TestTeam) -> None:
    groupings = [",".join(some) for number in range(3) for some in combinations(DIMENSIONS, number)]
    expected = costs(admin, team)["totals"]
    assert "" in groupings
    for group_by in [*groupings, ",".join(DIMENSIONS)]:
        body = costs(admin, team, group_by=group_by)
        assert expected == body["totals"], group_by
        columns = {COLUMNS[each] for each in body["group_by"]}
        for row in body["rows"]:
            assert columns | FIGURES == set(row)
        assert expected["calls"] == sum(row["calls"] for row in body["rows"])
        assert body["total"] == len(body["rows"]) == len({tuple(row[name] for name in columns) for row in body["rows"]})


def test_users_are_known_where_an_index_leads_to_their_jobs(admin: httpx.Client, team: TestTeam) -> None:
    assert [("ann", 2), ("bob", 2)] == [
        (row["user_id"], row["calls"]) for row in costs(admin, team, group_by="user")["rows"]
    ]
    assert [("=report", 2)] == [
        (row["job_type"], row["calls"]) for row in costs(admin, team, group_by="job_type", user_id="bob")["rows"]
    ]
    refusal = admin.get("/api/reports/costs", params={"group_by": "user"})
    assert (422, ["query", "group_by"]) == (refusal.status_code, refusal.json()["detail"][0]["loc"])


def test_filters_narrow_a_report(admin: httpx.Client, team: TestTeam, aliases: tuple[str, str, str]) -> None:
    cheap, dear, _ = aliases
    for query, calls in (
        ({"job_type": "chat"}, 2),
        ({"model": dear}, 2),
        ({"model": cheap, "job_type": "=report"}, 0),
        ({"organization_id": team.organization_id}, 4),
        ({"provider": "openai"}, 3),
        ({"provider": "nobody"}, 0),
        ({"purpose": "none such"}, 0),
    ):
        assert calls == costs(admin, team, **query)["totals"]["calls"], query


def test_dates_narrow_a_report_to_the_moment(admin: httpx.Client, team: TestTeam) -> None:
    # times are kept in microseconds and shown cut to milliseconds, and both jobs can be of one millisecond
    jobs = team.client.get("/api/jobs").json()["jobs"]
    times = [datetime.fromisoformat(job["created_at"]) for job in jobs]
    first, last = min(times), max(times)
    today = datetime.now(UTC).date()
    for query, calls in (
        ({"start_date": last.isoformat()}, 2 * times.count(last)),
        ({"end_date": (first + timedelta(microseconds=999)).isoformat()}, 2 * times.count(first)),
        ({"start_date": str(today - timedelta(days=1)), "end_date": str(today)}, 4),
        ({"end_date": str(today - timedelta(days=2))}, 0),
    ):
        body = costs(admin, team, group_by="day", **query)
        assert calls == body["totals"]["calls"] == sum(row["calls"] for row in body["rows"]), query
        assert calls == costs(admin, team, group_by="user", **query)["totals"]["calls"], query
    month = costs(admin, team, group_by="month")["rows"][0]["month"]
    assert costs(admin, team, group_by="day")["rows"][0]["day"].startswith(month)


def test_a_sorted_report_with_a_limit_is_a_top_list(
    admin: httpx.Client, team: TestTeam, aliases: tuple[str, str, str]
) -> None:
    cheap, dear, failing = aliases
    top = costs(admin, team, group_by="model", sort_by="margin_usd", limit=2)
    assert ([dear, cheap], 3, 4) == ([row["model"] for row in top["rows"]], top["total"], top["totals"]["calls"])
    rest = costs(admin, team, group_by="model", sort_by="margin_usd", limit=2, offset=2)
    assert [failing] == [row["model"] for row in rest["rows"]]
    upwards = costs(admin, team, group_by="model", sort_by="revenue_usd", order="asc")
    assert [failing, cheap, dear] == [row["model"] for row in upwards["rows"]]


def test_a_report_comes_as_a_file_for_spreadsheets_and_programs(admin: httpx.Client, team: TestTeam) -> None:
    query = {"team_id": team.team_id, "group_by": "job_type,purpose", "sort_by": "calls"}
    expected = costs(admin, team, **query)["rows"]
    for ask in ({"params": {**query, "format": "csv"}}, {"params": query, "headers": {"Accept": "text/csv"}}):
        answer = admin.get("/api/reports/costs", **ask)  # type: ignore[arg-type]
        assert "text/csv" == answer.headers["Content-Type"].partition(";")[0]
        assert 'attachment; filename="costs.csv"' == answer.headers["Content-Disposition"]
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [str(row["revenue_usd"]) for row in expected] == [row["revenue_usd"] for row in rows]
        assert {"chat", "'=report"} == {row["job_type"] for row in rows}, "no spreadsheet computes it"
        assert {""} == {row["purpose"] for row in rows}
        assert [*expected[0]] == [*rows[0]]
    lines = admin.get("/api/reports/costs", params=query, headers={"Accept": "application/x-ndjson"})
    assert "application/x-ndjson" == lines.headers["Content-Type"].partition(";")[0]
    assert expected == [json.loads(line, parse_float=Decimal) for line in lines.text.splitlines()]


@pytest.mark.parametrize(
    "query",
    [
        {"group_by": "day,weather"},
        {"sort_by": "weather"},
        {"order": "sideways"},
        {"format": "pdf"},
        {"start_date": "yesterday"},
        {"limit": 0},
    ],
    ids=str,
)
def test_a_report_refuses_what_it_does_not_know(admin: httpx.Client, query: dict[str, Any]) -> None:
    answer = admin.get("/api/reports/costs", params=query)
    assert (422, ["query", next(iter(query))]) == (answer.status_code, answer.json()["detail"][0]["loc"])


def test_an_organization_has_its_stats(admin: httpx.Client, server: Server, team: TestTeam) -> None:
    body = exactly(admin.get(f"/api/jobs/organizations/{team.organization_id}/stats"))
    assert {
        "organization_id": team.organization_id,
        "organization_name": "Test",
        "total_jobs": 2,
        "completed_jobs": 1,
        "failed_jobs": 0,
        "in_progress_jobs": 1,
        "total_teams": 1,
        "total_llm_calls": 4,
        "successful_calls": 3,
        "failed_calls": 1,
        "total_tokens": 2212,
        "total_cost_usd": Decimal("0.010624"),
        "total_credits_used": 1,
        "top_teams": [{"team_id": team.team_id, "job_count": 2, "credits_used": 1}],
    } == body
    empty = exactly(admin.get(f"/api/jobs/organizations/{team.organization_id}/stats?end_date=2001-01-01"))
    assert (0, 0, 1, []) == (
        empty["total_jobs"],
        empty["in_progress_jobs"],
        empty["total_teams"],
        empty["top_teams"],
    )


def test_an_organization_has_its_analytics(admin: httpx.Client, team: TestTeam, aliases: tuple[str, str, str]) -> None:
    cheap, dear, failing = aliases
    body = exactly(admin.get(f"/api/jobs/organizations/{team.organization_id}/analytics"))
    days = body.pop("daily_spend")
    spend = {"spend": Decimal("0.010624"), "successful": 3, "failed": 1, "tokens": 2212}
    assert {
        "organization_id": team.organization_id,
        "organization_name": "Test",
        "total_spend": Decimal("0.010624"),
        "total_requests": 4,
        "successful_requests": 3,
        "failed_requests": 1,
        "total_tokens": 2212,
        "spend_per_team": [{"team_id": team.team_id, **spend}],
        "top_models": [
            {"model": dear, "spend": Decimal("0.0105"), "count": 2},
            {"model": cheap, "spend": Decimal("0.000124"), "count": 1},
            {"model": failing, "spend": 0, "count": 1},
        ],
        "provider_usage": [
            {"provider": "openai", **spend, "failed": 0},
            {"provider": "unknown", "spend": 0, "successful": 0, "failed": 1, "tokens": 0},
        ],
    } == body
    assert {"date", "spend"} == set(days[0])
    assert Decimal("0.010624") == sum(day["spend"] for day in days)


def test_reports_are_for_administrators_and_of_known_organizations(admin: httpx.Client, team: TestTeam) -> None:
    for path in ("stats", "analytics"):
        unknown = refused(admin.get(f"/api/jobs/organizations/none-such/{path}"), 404, "not_found")
        assert "organization" == unknown["resource"]
        refused(team.client.get(f"/api/jobs/organizations/{team.organization_id}/{path}"), 403, "admin_required")
        invalid(admin.get(f"/api/jobs/organizations/{team.organization_id}/{path}?start_date=x"), "query", "start_date")
    refused(team.client.get("/api/reports/costs"), 403, "admin_required")


# -- too much ----------------------------------------------------------------------------------------------------------

CANCEL = """
select pg_cancel_backend(pid) from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock' and query like '%usage_of_house%as page%'
"""


def test_a_report_that_postgresql_gives_up_on_says_so(server: Server, admin: httpx.Client) -> None:
    """It gives up after 30 seconds; here at once, since nobody wants to wait for that."""
    with psycopg.connect(server.dsn) as locking, psycopg.connect(server.dsn, autocommit=True) as owner:
        locking.execute("lock table readmodel.usage_of_house in access exclusive mode")
        with ThreadPoolExecutor(1) as somebody:
            answer = somebody.submit(admin.get, "/api/reports/costs", params={"group_by": "job_type"})
            until(lambda: owner.execute(CANCEL).fetchall() == [(True,)])
            refused(answer.result(), 503, "took_too_long")
    assert admin.get("/api/reports/costs", params={"group_by": "job_type"}).is_success
