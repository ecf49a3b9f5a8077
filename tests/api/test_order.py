"""Several things are wrong with a request: which of them is said is the same for everybody (contract, 0.7)."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.api.people import code
from tests.provider import FakeProvider


@dataclass
class Wrong:
    """A call with which everything is wrong; `mended` is what the one who asks has mended so far."""

    team: TestTeam
    client: httpx.Client
    url: str
    content: bytes | None = b"x"
    json: Any = None
    headers: dict[str, str] | None = None

    def ask(self) -> tuple[int, str]:
        body: dict[str, Any] = {"content": self.content} if self.json is None else {"json": self.json}
        return code(self.client.post(self.url, headers=self.headers, **body))


def test_the_first_check_that_fails_answers(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    poor = make_team(server, admin, credits=0, rpm_limit=1)
    model, job, ended = make_alias(admin, provider), poor.job(), poor.job()
    organization = f"/api/organizations/{poor.organization_id}"
    assert poor.client.post(f"/api/jobs/{ended}/cancel").is_success
    for path in (f"/api/teams/{poor.team_id}/suspend", f"{organization}/suspend"):
        assert admin.post(path).is_success
    # What stands below the credential is hidden from whoever has none.
    wrong = Wrong(poor, server.client("sk-of-nobody"), f"/api/jobs/{uuid4()}/llm-call")
    wrong.headers = {"Idempotency-Key": "k" * 256}
    assert (401, "unauthorized") == wrong.ask()
    wrong.client = poor.client
    assert (403, "organization_suspended") == wrong.ask()
    assert admin.post(f"{organization}/pause").is_success
    assert (429, "organization_paused") == wrong.ask()
    assert admin.post(f"{organization}/resume").is_success
    assert (403, "team_suspended") == wrong.ask()
    assert admin.post(f"/api/teams/{poor.team_id}/pause").is_success
    assert (429, "team_paused") == wrong.ask()
    assert admin.post(f"/api/teams/{poor.team_id}/resume").is_success
    assert (422, "validation_error") == wrong.ask()  # the key
    wrong.headers = None
    assert (400, "malformed_json") == wrong.ask()  # and the one call of this minute is taken
    assert (429, "rate_limited") == wrong.ask()
    assert admin.put(f"/api/teams/{poor.team_id}", json={"rpm_limit": 0}).is_success
    wrong.json = {"messages": [], "model": "nobody"}
    assert (422, "validation_error") == wrong.ask()
    wrong.json = {"messages": [{"role": "user", "content": "Hello"}], "model": "nobody"}
    assert (404, "not_found") == wrong.ask()
    wrong.url = f"/api/jobs/{team.job()}/llm-call"
    assert (403, "forbidden") == wrong.ask()
    wrong.url = f"/api/jobs/{ended}/llm-call"
    assert (400, "job_closed") == wrong.ask()
    wrong.url = f"/api/jobs/{job}/llm-call"
    assert (403, "model_not_allowed") == wrong.ask()
    wrong.json = {**wrong.json, "model": model}
    assert (403, "insufficient_credits") == wrong.ask()
    assert admin.post("/api/credits/add", json={"team_id": poor.team_id, "amount": 1}).is_success
    assert poor.client.post(wrong.url, json=wrong.json).is_success


def test_what_is_refused_later_counts_as_a_request_and_its_tokens_come_back(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    team = make_team(server, admin, rpm_limit=10, tpm_limit=1000)
    job, ask = team.job(), {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 400}

    def left(url: str, **body: Any) -> tuple[int, str, bool]:
        answer = team.client.post(url, **body)
        tokens = int(answer.headers["x-ratelimit-remaining-tokens"])
        return answer.status_code, answer.headers["x-ratelimit-remaining-requests"], 500 < tokens < 600

    url = f"/api/jobs/{job}/llm-call"
    assert (403, "9", True) == left(url, json={**ask, "model": "nobody"})
    assert (404, "8", True) == left(f"/api/jobs/{uuid4()}/llm-call", json=ask)
    assert (422, "7", True) == left(url, json={**ask, "top_p": 2})
    assert (200, "6", True) == left(url, json={**ask, "model": make_alias(admin, provider)})


def test_tokens_are_taken_before_the_call_however_their_number_is_written(
    server: Server, admin: httpx.Client, provider: FakeProvider
) -> None:
    for number in (400, 400.0):
        team = make_team(server, admin, tpm_limit=1000)
        ask = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": number}
        answer = team.client.post(
            f"/api/jobs/{team.job()}/llm-call", json={**ask, "model": make_alias(admin, provider)}
        )
        assert 500 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 600


@pytest.mark.parametrize("status", ["suspend", "pause"])
def test_an_administrator_ends_the_jobs_of_a_team_that_may_not_act(
    admin: httpx.Client, team: TestTeam, status: str
) -> None:
    first, second = team.job(), team.job()
    assert admin.post(f"/api/teams/{team.team_id}/{status}").is_success
    assert admin.post(f"/api/jobs/{first}/complete", json={"status": "completed"}).is_success
    assert admin.post(f"/api/jobs/{second}/cancel").is_success
