"""Ten credits, forty jobs, everybody at once, four processes: never more than ten charges, and no job twice."""

import asyncio
import os
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.proofs.books import check_books
from tests.proofs.house import a_house, make_team

pytestmark = pytest.mark.proof

CREDITS, JOBS, TIMES, CONNECTIONS, WORKERS = 10, 40, 3, 32, 4
ROUNDS = 1 if os.environ.get("PROOFS") == "short" else 5


async def race(url: str, team_id: str, key: str) -> Counter[int]:
    """Calls in forty jobs and completes each three times at once; counts the statuses of the answers."""
    statuses: Counter[int] = Counter()
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with httpx.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60, limits=limits
    ) as client:

        async def post(path: str, body: object) -> httpx.Response:
            answer = await client.post(path, json=body)
            statuses[answer.status_code] += 1
            return answer

        async def one_job() -> None:
            answer = await post("/api/jobs/create", {"team_id": team_id, "job_type": "race"})
            job_id = answer.json()["job_id"]
            asked = {"messages": [{"role": "user", "content": "Me first"}]}
            await post(f"/api/jobs/{job_id}/llm-call", asked)
            ends = [post(f"/api/jobs/{job_id}/complete", {"status": "completed"}) for _ in range(TIMES)]
            answers = await asyncio.gather(*ends)
            bodies = {answer.text for answer in answers}
            assert len(bodies) == 1, "the same job, completed three times at once, has one answer"

        await asyncio.gather(*(one_job() for _ in range(JOBS)))
    return statuses


@pytest.mark.timeout(600)
def test_ten_credits_pay_for_ten_jobs_however_many_ask(tmp_path: Path) -> None:
    with a_house(tmp_path, workers=WORKERS) as house:
        for _ in range(ROUNDS):
            team_id, key = make_team(house, credits=CREDITS)
            statuses = asyncio.run(race(house.url, team_id, key))
            print(f"statuses: {dict(statuses)}")
            assert not [status for status in statuses if status >= 500]
            with house.admin() as admin:
                balance = admin.get("/api/credits/balance", params={"team_id": team_id}).json()
            assert balance["credits_used"] == CREDITS
            assert balance["credits_remaining"] == 0
            assert balance["credits_held"] == 0
            charges = house.query(
                "select count(*), count(distinct journal.job_of(state)) from journal.events"
                " where topic = 'CreditsCharged' and originator_id = %s",
                f"credit-{team_id}",
            )
            assert charges == [(CREDITS, CREDITS)]
            check_books(house)
