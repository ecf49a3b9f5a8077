"""Figures for administrators: the dashboard, utilization and trends of credits."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_team, running


def ok(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def use(admin: httpx.Client, team: TestTeam, credits: int) -> None:
    """Completes so many jobs without calls: one credit each."""
    for _ in range(credits):
        ok(team.client.post(f"/api/jobs/{team.job()}/complete", json={"status": "completed"}))


@pytest.fixture
def alone(database: str) -> Iterator[Server]:
    """A server on which nobody else counts."""
    with running(database) as server:
        yield server


def test_the_dashboard_counts_in_camel_case_what_was_not_deleted(alone: Server) -> None:
    with alone.client() as admin:
        before = ok(admin.get("/api/stats/dashboard"))
        assert [0] * 6 == list(before.values())
        team, deleted = make_team(alone, admin, credits=10), make_team(alone, admin, credits=7)
        ok(admin.post("/api/model-groups/create", json={"group_name": "chat", "models": []}))
        use(admin, team, 2)
        assert {
            "organizations": 2,
            "teams": 2,
            "modelGroups": 1,
            "totalCredits": 17,
            "creditsRemaining": 15,
            "creditsUsed": 2,
        } == ok(admin.get("/api/stats/dashboard"))
        ok(admin.delete(f"/api/teams/{deleted.team_id}"))
        ok(admin.delete(f"/api/organizations/{deleted.organization_id}"))
        after = ok(admin.get("/api/stats/dashboard"))
        assert (1, 1, 10, 8) == (
            after["organizations"],
            after["teams"],
            after["totalCredits"],
            after["creditsRemaining"],
        )


def test_utilization_says_who_will_soon_have_nothing_left(alone: Server) -> None:
    with alone.client() as admin:
        used = {5: 2, 10: 5, 4: 3, 6: 5, 0: 0}  # of so many credits: 60, 50, 25, 17 percent left, and nothing at all
        teams = {credits: make_team(alone, admin, credits=credits) for credits in used}
        for credits, team in teams.items():
            use(admin, team, used[credits])
        answer = admin.get("/api/credits/utilization")
        found = ok(answer)
        assert 5 == found["total_teams"]
        assert {"total_allocated": 25, "total_remaining": 10, "total_used": 15, "avg_utilization": 62.08} == found[
            "summary"
        ]
        assert {"healthy": 1, "warning": 2, "critical": 2} == found["by_status"]
        assert [
            (teams[0].team_id, 0, 0, 0, "critical"),
            (teams[6].team_id, 6, 1, 16.67, "critical"),
            (teams[4].team_id, 4, 1, 25, "warning"),
            (teams[10].team_id, 10, 5, 50, "warning"),
        ] == [tuple(team.values()) for team in found["teams_needing_attention"]]
        assert "4" == answer.headers["x-total-count"]
        second = ok(admin.get("/api/credits/utilization", params={"limit": 1, "offset": 1}))
        assert [found["teams_needing_attention"][1]] == second["teams_needing_attention"]


def test_without_teams_nothing_is_used(alone: Server) -> None:
    with alone.client() as admin:
        found = ok(admin.get("/api/credits/utilization"))
        assert {"total_allocated": 0, "total_remaining": 0, "total_used": 0, "avg_utilization": 0} == found["summary"]
        assert {(0, 0, 0)} == {
            (point["credits_added"], point["credits_used"], point["credits_remaining"])
            for point in ok(admin.get("/api/credits/trends"))["points"]
        }


def test_trends_have_every_day_and_add_up(server: Server, admin: httpx.Client) -> None:
    team = make_team(server, admin, credits=10)
    use(admin, team, 3)
    job_id = team.client.get("/api/credits/transactions", params={"limit": 1}).json()["transactions"][0]["job_id"]
    ok(admin.post(f"/api/credits/teams/{team.team_id}/refund", json={"job_id": job_id}))
    ok(admin.put(f"/api/teams/{team.team_id}", json={"credits_allocated": 8}))
    trends = ok(admin.get("/api/credits/trends", params={"team_id": team.team_id}))
    assert (team.team_id, 30, 30) == (trends["team_id"], trends["days"], len(trends["points"]))
    today = datetime.now(UTC).date()
    days = [datetime.fromisoformat(point["date"]).date() for point in trends["points"]]
    assert today - days[-1] <= timedelta(days=1)
    assert [days[0] + timedelta(days=number) for number in range(30)] == days
    assert {"credits_added": 8, "credits_used": 2, "credits_remaining": 6} == {
        name: sum(point[name] for point in trends["points"]) for name in ("credits_added", "credits_used")
    } | {"credits_remaining": trends["points"][-1]["credits_remaining"]}


@pytest.mark.usefixtures("today")
def test_trends_of_all_teams_are_those_of_each_together(alone: Server) -> None:
    with alone.client() as admin:
        teams = [make_team(alone, admin, credits=credits) for credits in (10, 20)]
        use(admin, teams[0], 1)
        everybody = ok(admin.get("/api/credits/trends", params={"days": 1}))
        assert (None, 1) == (everybody["team_id"], everybody["days"])
        [today] = everybody["points"]
        assert (30, 1, 29) == (today["credits_added"], today["credits_used"], today["credits_remaining"])


def test_figures_are_for_administrators_and_of_known_teams(admin: httpx.Client, team: TestTeam) -> None:
    for path in ("/api/stats/dashboard", "/api/credits/utilization", "/api/credits/trends"):
        assert (403, "admin_required") == (team.client.get(path).status_code, team.client.get(path).json()["code"])
    unknown = admin.get("/api/credits/trends", params={"team_id": f"team-{uuid4()}"})
    assert (404, "team") == (unknown.status_code, unknown.json()["resource"])
    for days in ("0", "366", "many"):
        answer = admin.get("/api/credits/trends", params={"days": days})
        assert (422, ["query", "days"]) == (answer.status_code, answer.json()["detail"][0]["loc"])
