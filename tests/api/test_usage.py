"""Usage and costs of teams and organizations over HTTP."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import msgspec
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.api.test_teams import invalid, make_group, ok, path, refused
from tests.provider import FakeProvider
from tests.waiting import until

SUMMARY = {
    "total_jobs",
    "successful_jobs",
    "failed_jobs",
    "total_cost_usd",
    "total_tokens",
    "avg_cost_per_job",
    "credits_used",
}


def exactly(answer: httpx.Response) -> Any:
    """JSON with its numbers as they were written."""
    ok(answer)
    return msgspec.json.Decoder(float_hook=Decimal).decode(answer.content)


def call(team: TestTeam, job_id: str, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return team.client.post(f"/api/jobs/{job_id}/llm-call", json=body)


def end(team: TestTeam, job_id: str, status: str = "completed") -> dict[str, Any]:
    body: dict[str, Any] = exactly(team.client.post(f"/api/jobs/{job_id}/complete", json={"status": status}))
    return body


def without_lag(answer: httpx.Response) -> httpx.Response | None:
    """An answer of read models that have seen everything; None while they are behind."""
    return None if "X-Ledger-Lag" in answer.headers else answer


def usage_of(client: httpx.Client, team: TestTeam, **query: Any) -> dict[str, Any]:
    body: dict[str, Any] = exactly(client.get(path(team, "/usage"), params=query))
    return body


def of(organization_id: str, rest: str) -> str:
    return f"/api/organizations/{organization_id}{rest}"


@pytest.fixture(scope="module")
def aliases(admin: httpx.Client, provider: FakeProvider) -> tuple[str, str]:
    """Two models: the first costs 5 x 2.50 + 7 x 10 dollars per million, the second a round sum."""
    return make_alias(admin, provider), make_alias(admin, provider, "usage-1000-100")


@pytest.fixture(scope="module")
def busy(server: Server, admin: httpx.Client, provider: FakeProvider, aliases: tuple[str, str]) -> TestTeam:
    """A team with four ended jobs and an open one, at a markup of half as much again."""
    cheap, dear = aliases
    failing = make_alias(admin, provider, "status-500")
    group = make_group(admin, cheap, dear, failing)
    team = make_team(server, admin, cost_markup_percentage=50, access_groups=[group])
    first, second, third, fourth = (team.job(job_type=kind) for kind in ("chat", "chat", "report", "report"))
    ok(call(team, first, cheap))
    ok(call(team, first, dear))
    end(team, first)
    ok(call(team, second, cheap))
    end(team, second, "failed")
    assert 500 == call(team, third, failing).status_code
    end(team, third)
    end(team, fourth)
    team.job(job_type="open")
    return team


# client cost: (5 x 2.5 + 7 x 10) / 10^6 x 1.5 = 0.00012375, and (1000 x 2.5 + 100 x 10) / 10^6 x 1.5 = 0.00525
CHAT_COST = Decimal("0.005498")  # 2 x 0.00012375 + 0.00525 = 0.0054975
TOKENS = 12 + 12 + 1100


def test_a_team_sees_what_it_used(busy: TestTeam) -> None:
    body = usage_of(busy.client, busy)
    assert {"team_id", "period", "summary", "job_types", "by_job_type", "total", "limit", "offset", "jobs"} == set(body)
    assert set(body["summary"]) == SUMMARY
    assert (busy.team_id, "all", 5, 100, 0) == (
        body["team_id"],
        body["period"],
        body["total"],
        body["limit"],
        body["offset"],
    )
    expected = {
        "total_jobs": 5,
        "successful_jobs": 3,
        "failed_jobs": 1,
        "total_cost_usd": CHAT_COST,
        "total_tokens": TOKENS,
        "avg_cost_per_job": Decimal("0.001100"),  # 0.0054975 / 5 = 0.0010995
        "credits_used": 2,  # the failed job and the one with a failed call are free
    }
    assert expected == body["summary"]
    assert {"chat": 2, "report": 2, "open": 1} == body["by_job_type"]
    assert {"count": 2, "cost_usd": CHAT_COST} == body["job_types"]["chat"]
    assert {"count": 2, "cost_usd": 0} == body["job_types"]["report"]


def test_the_same_total_is_shown_everywhere(admin: httpx.Client, busy: TestTeam) -> None:
    jobs = usage_of(admin, busy)["jobs"]
    parts = [exactly(admin.get(f"/api/jobs/{job['job_id']}/costs"))["costs"] for job in jobs]
    exact = sum(line["client_cost_usd"] for part in parts for line in part["breakdown"])
    rounded = exact.quantize(Decimal("0.000001"), "ROUND_HALF_UP")
    assert Decimal("0.0054975") == exact
    assert [rounded] * 4 == [
        usage_of(busy.client, busy)["summary"]["total_cost_usd"],
        exactly(admin.get(path(busy)))["usage_summary"]["total_cost_usd"],
        exactly(admin.get(of(busy.organization_id, "/usage")))["summary"]["total_cost_usd"],
        exactly(admin.get(of(busy.organization_id, "/costs")))["total_cost_usd"],
    ]


@pytest.mark.parametrize("tokens", ["4294967295-1", "1-4294967295", f"{2**63}-{2**64}"])
def test_a_count_that_no_provider_can_mean_is_estimated_and_leaves_the_read_models_going(
    server: Server, admin: httpx.Client, provider: FakeProvider, tokens: str
) -> None:
    nonsense = make_alias(admin, provider, f"usage-{tokens}")
    team = make_team(server, admin, access_groups=[make_group(admin, nonsense)])
    job_id = team.job()
    ok(call(team, job_id, nonsense))
    answer = until(lambda: without_lag(admin.get(f"/api/jobs/{job_id}")))
    [estimated] = exactly(answer)["calls"]
    assert (True, True) == (estimated["usage_estimated"], 0 < estimated["tokens"] < 100)


def test_rates_that_make_an_absurd_charge_leave_the_read_models_going(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    most = 10**12
    dearest = make_alias(admin, provider, pricing_input=most)
    rates = {"budget_mode": "consumption_usd", "credits_per_dollar": most, "cost_markup_percentage": most}
    groups = [make_group(admin, dearest)]
    team = make_team(server, admin, credits=0, overdraft_credits=None, access_groups=groups, **rates)
    job_id = team.job()
    ok(call(team, job_id, dearest))
    assert most == end(team, job_id)["costs"]["credits_charged"]
    answer = until(lambda: without_lag(admin.get(path(team, "/credits"))))
    assert -most == ok(answer)["credits_remaining"]


def test_jobs_of_a_period_come_in_pages_newest_first(busy: TestTeam) -> None:
    everything = usage_of(busy.client, busy)["jobs"]
    assert ["open", "report", "report", "chat", "chat"] == [job["job_type"] for job in everything]
    answer = busy.client.get(path(busy, "/usage"), params={"limit": 2, "offset": 1})
    body = exactly(answer)
    assert everything[1:3] == body["jobs"]
    assert (5, 2, 1, "5") == (body["total"], body["limit"], body["offset"], answer.headers["X-Total-Count"])
    assert 5 == body["summary"]["total_jobs"]
    assert everything[0] == exactly(busy.client.get("/api/jobs", params={"limit": 1}))["jobs"][0]


def test_periods_are_months_days_and_everything(busy: TestTeam) -> None:
    first, last = (
        datetime.fromisoformat(usage_of(busy.client, busy)["jobs"][index]["created_at"]) for index in (-1, 0)
    )
    days = {first.strftime("%Y-%m-%d"), last.strftime("%Y-%m-%d")}
    months = {day[:7] for day in days}
    for periods in (days, months, {"all"}, {"ALL"}):
        counted = [usage_of(busy.client, busy, period=period) for period in periods]
        assert periods == {body["period"] for body in counted}
        assert 5 == sum(body["summary"]["total_jobs"] for body in counted)
    for period in ("2001-01", "2001-01-31", "9999-12", "0001-01-01"):
        body = usage_of(busy.client, busy, period=period)
        assert (0, 0, [], {}) == (body["total"], body["summary"]["avg_cost_per_job"], body["jobs"], body["job_types"])


def test_dates_narrow_a_period_to_the_moment(busy: TestTeam) -> None:
    # times are kept in microseconds and shown cut to milliseconds, and two jobs can be of one millisecond
    times = [datetime.fromisoformat(job["created_at"]) for job in usage_of(busy.client, busy)["jobs"]]
    second, fourth = times[-2], times[-4]
    rest = timedelta(microseconds=999)

    def count(**query: Any) -> int:
        body = usage_of(busy.client, busy, **query)
        assert body["total"] == len(body["jobs"]) == sum(body["by_job_type"].values())
        return int(body["total"])

    for time in times:
        assert sum(other >= time for other in times) == count(start_date=time.isoformat())
        assert sum(other <= time for other in times) == count(end_date=(time + rest).isoformat())
    both = count(start_date=second.isoformat(), end_date=(fourth + rest).isoformat())
    assert sum(second <= time <= fourth for time in times) == both
    today = datetime.now(UTC).date()
    assert 5 == count(start_date=str(today - timedelta(days=1)), end_date=str(today))
    assert 0 == count(end_date=str(today - timedelta(days=2)))
    assert 0 == count(start_date=str(today), end_date=str(today - timedelta(days=7)))
    assert 0 == count(period="2001-01", start_date="2000-01-01")
    assert 5 == count(start_date="0001-01-01", end_date="9999-12-31")


@pytest.mark.parametrize(
    "query",
    [
        {"period": "yesterday"},
        {"period": "2024-13"},
        {"period": "2024-02-30"},
        {"period": ""},
        {"period": "2024"},
        {"period": "0000-01"},
        {"start_date": "soon"},
        {"end_date": "2024-10"},
        {"limit": 0},
        {"offset": "x"},
    ],
)
def test_bad_periods_are_refused(admin: httpx.Client, team: TestTeam, query: dict[str, str]) -> None:
    for url in (path(team, "/usage"), of(team.organization_id, "/usage")):
        invalid(admin.get(url, params=query), "query", *query)


def test_usage_of_others_is_not_shown(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    refused(team.client.get("/api/teams/another/usage"), 403, "forbidden")
    refused(admin.get("/api/teams/no-such-team/usage"), 404, "not_found")


def test_an_organization_sees_all_its_teams_and_a_team_its_share(
    admin: httpx.Client, server: Server, busy: TestTeam
) -> None:
    body = {"organization_id": busy.organization_id, "team_id": f"{busy.team_id}-2", "credits_allocated": 5}
    made = ok(admin.post("/api/teams/create", json=body))
    try:
        with server.client(made["virtual_key"]) as client:
            second = TestTeam(busy.organization_id, made["team_id"], made["virtual_key"], client)
            end(second, second.job(job_type="chat"))
            whole = exactly(admin.get(of(busy.organization_id, "/usage"), params={"limit": 1, "offset": 0}))
            share = exactly(client.get(of(busy.organization_id, "/usage")))
    finally:
        ok(admin.delete(f"/api/teams/{made['team_id']}"))
    assert {"organization_id", "period", "summary", "teams", "by_team", "by_job_type"} == set(whole)
    expected = {
        "total_jobs": 6,
        "completed_jobs": 4,
        "successful_jobs": 4,
        "failed_jobs": 1,
        "credits_used": 3,
        "total_cost_usd": CHAT_COST,
        "total_tokens": TOKENS,
    }
    assert expected == whole["summary"]
    assert {
        busy.team_id: {"jobs": 5, "credits_used": 2},
        second.team_id: {"jobs": 1, "credits_used": 1},
    } == whole["teams"]
    assert {
        busy.team_id: {"jobs": 5, "cost_usd": CHAT_COST},
        second.team_id: {"jobs": 1, "cost_usd": 0},
    } == whole["by_team"]
    assert {
        "chat": {"count": 3, "cost_usd": CHAT_COST},
        "open": {"count": 1, "cost_usd": 0},
        "report": {"count": 2, "cost_usd": 0},
    } == whole["by_job_type"]
    assert {second.team_id: {"jobs": 1, "credits_used": 1}} == share["teams"]
    assert 1 == share["summary"]["total_jobs"]


def test_refunds_count_against_the_credits_used(admin: httpx.Client, team: TestTeam) -> None:
    job_id = team.job()
    end(team, job_id)
    assert 1 == usage_of(team.client, team)["summary"]["credits_used"]
    ok(admin.post(f"/api/credits/teams/{team.team_id}/refund", json={"job_id": job_id}))
    assert 0 == usage_of(team.client, team)["summary"]["credits_used"]
    assert 0 == ok(admin.get(of(team.organization_id, "")))["usage_summary"]["credits_used"]


def test_costs_of_an_organization_add_up(admin: httpx.Client, busy: TestTeam, aliases: tuple[str, str]) -> None:
    body = exactly(admin.get(of(busy.organization_id, "/costs")))
    cheap, dear = aliases
    assert {
        "organization_id",
        "start_date",
        "end_date",
        "total_cost_usd",
        "provider_cost_usd",
        "profit_usd",
        "by_team",
        "by_model",
    } == set(body)
    assert (None, None, CHAT_COST) == (body["start_date"], body["end_date"], body["total_cost_usd"])
    assert Decimal("0.003665") == body["provider_cost_usd"]
    assert Decimal("0.001833") == body["profit_usd"]  # 0.0018325
    assert {busy.team_id: CHAT_COST} == body["by_team"]
    by_model = body["by_model"]
    assert (Decimal("0.000248"), Decimal("0.005250")) == (by_model[cheap], by_model[dear])
    today = datetime.now(UTC).date()
    query = {"start_date": str(today - timedelta(days=1)), "end_date": str(today)}
    narrowed = exactly(admin.get(of(busy.organization_id, "/costs"), params=query))
    assert {**body, **query} == narrowed
    *_, second, first = (job["created_at"] for job in usage_of(busy.client, busy)["jobs"])
    later = exactly(admin.get(of(busy.organization_id, "/costs"), params={"start_date": second}))
    if first == second:  # to the millisecond, which is what is asked for
        assert body == {**later, "start_date": None}
    else:
        assert Decimal("0.000124") == later["total_cost_usd"] == later["by_model"][cheap]
    nothing = exactly(admin.get(of(busy.organization_id, "/costs"), params={"end_date": "2001-01-01"}))
    assert (0, {}, {}) == (nothing["total_cost_usd"], nothing["by_team"], nothing["by_model"])
    invalid(admin.get(of(busy.organization_id, "/costs"), params={"start_date": "x"}), "query", "start_date")
