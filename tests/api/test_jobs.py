"""Jobs over HTTP: opened, listed, ended, charged once."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.provider import FakeProvider

ASK = {"messages": [{"role": "user", "content": "Hello"}]}


def remaining(team: TestTeam) -> int:
    return int(team.client.get("/api/credits/balance").json()["credits_remaining"])


def complete(team: TestTeam, job_id: str, status: str = "completed", **fields: object) -> httpx.Response:
    return team.client.post(f"/api/jobs/{job_id}/complete", json={"status": status, **fields})


def test_a_new_job_is_pending_and_costs_nothing(team: TestTeam) -> None:
    answer = team.client.post(
        "/api/jobs/create",
        json={"team_id": team.team_id, "job_type": "analysis", "user_id": "u1", "metadata": {"a": None}, "extra": 1},
    )
    job = answer.json()
    assert answer.status_code == 200
    assert job["status"] == "pending"
    assert job["organization_id"] == team.organization_id
    assert job["metadata"] == {"a": None}
    assert job["costs"] == {"total_calls": 0, "total_tokens": 0, "total_cost_usd": 0.0, "credit_applied": False}
    assert team.client.get(f"/api/jobs/{job['job_id']}").json()["user_id"] == "u1"
    assert remaining(team) == 100


def test_completing_three_times_charges_once_and_answers_the_same(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    job_id = team.job()
    called = team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": make_alias(admin, provider)})
    assert called.status_code == 200
    first, second, third = (complete(team, job_id, metadata={"n": 1}) for _ in range(3))
    assert first.text == second.text == third.text
    assert first.json()["costs"]["credits_charged"] == 1
    assert remaining(team) == 99


def test_two_clients_completing_at_once_are_both_answered_and_one_charge_is_made(team: TestTeam) -> None:
    job_id = team.job()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: complete(team, job_id), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert remaining(team) == 99


def test_fifty_jobs_of_one_team_ending_together_change_the_balance_by_fifty(team: TestTeam) -> None:
    jobs = [team.job() for _ in range(50)]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda job_id: complete(team, job_id).status_code, jobs))
    assert set(statuses) == {200}
    assert remaining(team) == 50


def test_a_completed_job_does_not_fail_any_more(team: TestTeam) -> None:
    job_id = team.job()
    complete(team, job_id)
    refused = complete(team, job_id, "failed")
    assert (refused.status_code, refused.json()["code"], refused.json()["status"]) == (400, "job_closed", "completed")
    assert remaining(team) == 99


def test_a_failed_job_is_free_and_stays_failed(team: TestTeam) -> None:
    job_id = team.job()
    failed = complete(team, job_id, "failed", error_message="it broke")
    assert failed.json()["error_message"] == "it broke"
    assert failed.json()["credit_applied"] is False
    assert complete(team, job_id).json()["code"] == "job_closed"
    assert remaining(team) == 100


def test_a_job_without_credit_stays_open(server: Server, admin: httpx.Client) -> None:
    poor = make_team(server, admin, credits=0)
    job_id = poor.job()
    refused = complete(poor, job_id)
    assert refused.status_code == 403
    assert refused.json() == {
        "detail": "Insufficient credits",
        "code": "insufficient_credits",
        "credits_needed": 1,
        "credits_available": 0,
    }
    assert poor.client.get(f"/api/jobs/{job_id}").json()["status"] == "pending"


def test_a_cancelled_job_is_free_and_takes_no_calls(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    job_id, alias = team.job(), make_alias(admin, provider)
    team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias})
    first = team.client.post(f"/api/jobs/{job_id}/cancel")
    again = team.client.post(f"/api/jobs/{job_id}/cancel", json={"reason": "later"})
    assert first.json()["status"] == "cancelled"
    assert first.text == again.text
    assert remaining(team) == 100
    refused = team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias})
    assert (refused.status_code, refused.json()["code"]) == (400, "job_closed")


def test_metadata_is_merged_also_after_the_end(team: TestTeam) -> None:
    job_id = team.job(metadata={"a": 1, "b": 2})
    complete(team, job_id, metadata={"c": 3}, result={"text": "done"})
    merged = team.client.patch(f"/api/jobs/{job_id}/metadata", json={"metadata": {"a": None}})
    assert merged.json()["metadata"] == {"a": None, "b": 2, "c": 3, "result": {"text": "done"}}


def test_metadata_is_a_label_not_a_store(team: TestTeam) -> None:
    refused = team.client.patch(f"/api/jobs/{team.job()}/metadata", json={"metadata": {"a": "x" * 11_000}})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "metadata"]


def test_the_same_total_stands_everywhere(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    job_id, alias = team.job(), make_alias(admin, provider, "usage-1000-500")
    for _ in range(2):
        team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias})
    ended = complete(team, job_id)
    costs = team.client.get(f"/api/jobs/{job_id}/costs")
    details = team.client.get(f"/api/jobs/{job_id}")
    assert '"total_cost_usd":0.015000' in ended.text
    assert '"total_cost_usd":0.015000' in costs.text
    assert '"total_cost_usd":0.015000' in details.text
    assert [line["client_cost_usd"] for line in costs.json()["costs"]["breakdown"]] == [0.0075, 0.0075]
    assert "provider" not in costs.text
    for_admin = admin.get(f"/api/jobs/{job_id}/costs").json()["costs"]
    assert for_admin["provider_cost_usd"] == 0.015
    assert for_admin["breakdown"][0]["resolved_model"] == "openai/usage-1000-500"


def test_lists_filter_sort_and_page(team: TestTeam) -> None:
    for number in range(5):
        complete(team, team.job(job_type=f"type-{number}"), "failed" if number % 2 else "completed")
    found = team.client.get("/api/jobs", params={"status": "FAILED", "limit": 1})
    assert found.headers["X-Total-Count"] == "2"
    assert found.json()["total"] == 2
    assert [job["job_type"] for job in found.json()["jobs"]] == ["type-3"]
    by_type = team.client.get(f"/api/teams/{team.team_id}/jobs", params={"sort_by": "job_type", "order": "asc"})
    assert [job["job_type"] for job in by_type.json()["jobs"]] == [f"type-{number}" for number in range(5)]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "offset=-1", "sort_by=colour", "order=up", "status=odd", "start_date=soon"]
)
def test_a_bad_parameter_is_422_with_its_place(team: TestTeam, query: str) -> None:
    answer = team.client.get(f"/api/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", query.split("=", maxsplit=1)[0]]


def test_a_page_that_is_none_is_refused_by_the_name_it_was_asked_for(admin: httpx.Client, team: TestTeam) -> None:
    answer = admin.get(f"/api/jobs/teams/{team.team_id}", params={"page": 0})
    assert (422, ["query", "page"]) == (answer.status_code, answer.json()["detail"][0]["loc"])


def test_administrators_read_jobs_in_rows(admin: httpx.Client, provider: FakeProvider, team: TestTeam) -> None:
    job_id, alias = team.job(), make_alias(admin, provider)
    for _ in range(3):
        team.client.post(f"/api/jobs/{job_id}/llm-call", json={**ASK, "model": alias, "purpose": "draft"})
    rows = admin.get(f"/api/jobs/teams/{team.team_id}", params={"page_size": 1, "job_id_filter": job_id[:8]}).json()
    assert (rows["total"], rows["page"], rows["total_pages"]) == (1, 1, 1)
    assert rows["jobs"][0]["retry_count"] == 2
    one = admin.get(f"/api/jobs/teams/{team.team_id}/{job_id}").json()
    assert [call["resolved_model"] for call in one["calls"]] == ["openai/gpt-ok"] * 3
    assert team.client.get(f"/api/jobs/teams/{team.team_id}").status_code == 403


def test_another_teams_job_is_forbidden_and_an_unknown_one_not_found(
    server: Server, admin: httpx.Client, team: TestTeam
) -> None:
    other = make_team(server, admin)
    job_id, unknown = other.job(), str(uuid4())
    for method, path in (
        ("GET", "/api/jobs/{}"),
        ("GET", "/api/jobs/{}/costs"),
        ("POST", "/api/jobs/{}/complete"),
        ("POST", "/api/jobs/{}/cancel"),
        ("PATCH", "/api/jobs/{}/metadata"),
        ("POST", "/api/jobs/{}/llm-call"),
        ("POST", "/api/jobs/{}/llm-call-stream"),
    ):
        body = None if method == "GET" else {**ASK, "status": "completed", "metadata": {}}
        answers = [
            team.client.request(method, path.format(each), json=body) for each in (job_id, unknown, "not-a-uuid")
        ]
        assert [answer.status_code for answer in answers] == [403, 404, 404], path
        assert answers[0].json()["code"] == "forbidden"
        assert job_id not in answers[0].text


def test_every_path_answers_under_its_version_and_with_a_slash(team: TestTeam) -> None:
    job_id = team.job()
    plain = team.client.get(f"/api/jobs/{job_id}")
    assert team.client.get(f"/api/v1/jobs/{job_id}").json() == plain.json()
    assert team.client.get(f"/api/jobs/{job_id}/").json() == plain.json()
    assert team.client.get(f"/api/v2/jobs/{job_id}").status_code == 404


def test_a_body_is_json_whatever_its_content_type_says(team: TestTeam) -> None:
    body = f'{{"team_id": "{team.team_id}", "job_type": "t"}}'.encode()
    answer = team.client.post("/api/jobs/create", content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 200
    for broken in (b"{", b'{"team_id": NaN}', b"\xff"):
        answer = team.client.post("/api/jobs/create", content=broken)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")


def test_the_request_id_is_the_clients_if_it_is_sound(team: TestTeam) -> None:
    kept = team.client.get("/api/jobs", headers={"X-Request-Id": "mine-1.2_3"})
    assert kept.headers["X-Request-Id"] == "mine-1.2_3"
    replaced = team.client.get("/api/jobs", headers={"X-Request-Id": "not mine"})
    assert replaced.headers["X-Request-Id"] != "not mine"
