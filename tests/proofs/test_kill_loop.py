"""Whatever was acknowledged survives SIGKILL of everything, and nothing is charged twice."""

import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.proofs.books import check_books
from tests.proofs.house import House, a_house, make_team

pytestmark = pytest.mark.proof

ROUNDS = 3 if os.environ.get("PROOFS") == "short" else 20
CONNECTIONS = 32
SEED = int(os.environ.get("SEED", time.time_ns() % 2**32))


@dataclass
class Acknowledged:
    """What the server said it had done, and what it was asked to do without saying so."""

    jobs: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    opening: set[str] = field(default_factory=set)
    calls: dict[str, int] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    completing: dict[str, str] = field(default_factory=dict)
    credits_added: int = 0
    credits_maybe_added: list[tuple[str, int]] = field(default_factory=list)


class Gone(Exception):
    """The server has been killed, or is just being."""


async def customer(
    client: httpx.AsyncClient, admin: dict[str, str], team_id: str, seen: Acknowledged, chance: random.Random
) -> None:
    """Opens jobs, calls, completes and pays until the server is gone."""

    async def post(path: str, body: object, **headers: str) -> dict[str, Any]:
        try:
            answer = await client.post(path, json=body, headers=headers)
        except httpx.TransportError:
            raise Gone from None
        if answer.status_code == 503:
            raise Gone
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    while True:
        try:
            task = str(uuid4())
            seen.tasks.add(task)
            seen.opening.add(task)
            job_id = (await post("/api/jobs/create", job_for(team_id, task), **{"Idempotency-Key": task}))["job_id"]
            seen.opening.remove(task)
            seen.jobs.add(job_id)
            for _ in range(chance.randint(0, 2)):
                asked = {"messages": [{"role": "user", "content": "Are you there?"}]}
                await post(f"/api/jobs/{job_id}/llm-call", asked)
                seen.calls[job_id] = seen.calls.get(job_id, 0) + 1
            if chance.random() < 0.2:
                reference, credits = str(uuid4()), chance.randint(1, 9)
                seen.credits_maybe_added.append((reference, credits))
                payment = {"credits": credits, "payment_type": "one_time", "payment_reference": reference}
                await post(f"/api/credits/teams/{team_id}/replenish", payment, **admin)
                seen.credits_maybe_added.remove((reference, credits))
                seen.credits_added += credits
            seen.completing[job_id] = str(uuid4())
            completed = {"status": "completed"}
            await post(f"/api/jobs/{job_id}/complete", completed, **{"Idempotency-Key": seen.completing[job_id]})
            seen.completed.add(job_id)
            del seen.completing[job_id]
        except Gone:
            return


def job_for(team_id: str, task: str) -> dict[str, str]:
    return {"team_id": team_id, "job_type": "proof", "external_task_id": task}


async def load(house: House, team_id: str, key: str, seen: Acknowledged, chance: random.Random) -> None:
    admin = {"Authorization": f"Bearer {house.master_key}"}
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with httpx.AsyncClient(
        base_url=house.url, headers={"Authorization": f"Bearer {key}"}, timeout=30, limits=limits
    ) as client:
        customers = [
            asyncio.create_task(customer(client, admin, team_id, seen, random.Random(chance.random())))
            for _ in range(CONNECTIONS)
        ]
        await asyncio.sleep(chance.uniform(0.3, 2.0))
        await asyncio.to_thread(house.kill_everything)
        await asyncio.gather(*customers)


def repeat_what_nobody_answered(house: House, team_id: str, key: str, seen: Acknowledged) -> None:
    """Clients ask again, with the same keys and references; nobody has to wait for a process that is gone."""
    with httpx.Client(base_url=house.url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        for task in seen.opening:
            answer = client.post("/api/jobs/create", json=job_for(team_id, task), headers={"Idempotency-Key": task})
            assert answer.status_code == 200, answer.text
            seen.jobs.add(answer.json()["job_id"])
        seen.opening.clear()
        for job_id, idempotency_key in seen.completing.items():
            answer = client.post(
                f"/api/jobs/{job_id}/complete",
                json={"status": "completed"},
                headers={"Idempotency-Key": idempotency_key},
            )
            assert answer.status_code == 200, answer.text
            seen.completed.add(job_id)
        seen.completing.clear()


def check_no_task_has_two_jobs(house: House, seen: Acknowledged) -> None:
    opened = [
        row[0]
        for row in house.query(
            "select convert_from(state, 'UTF8')::jsonb ->> 'external_task_id' "
            "from journal.events where topic = 'JobCreated'"
        )
    ]
    assert sorted(seen.tasks) == sorted(str(task) for task in opened)


def check_nothing_is_lost(house: House, team_id: str, seen: Acknowledged, granted: int) -> None:
    created = {
        row[0] for row in house.query("select journal.job_of(state) from journal.events where topic = 'JobCreated'")
    }
    assert seen.jobs - created == set()
    charged = {
        row[0] for row in house.query("select journal.job_of(state) from journal.events where topic = 'CreditsCharged'")
    }
    assert seen.completed - charged == set()
    finished = dict(
        house.query(
            "select journal.job_of(state), count(*) from journal.events where topic = 'CallFinished' group by 1"
        )
    )
    assert {job: n for job, n in seen.calls.items() if finished.get(job, 0) < n} == {}  # type: ignore[operator]
    with house.admin() as admin:
        balance = admin.get("/api/credits/balance", params={"team_id": team_id}).json()
    assert balance["credits_used"] == len(charged)
    maybe = sum(credits for _, credits in seen.credits_maybe_added)
    assert granted + seen.credits_added <= balance["credits_allocated"] <= granted + seen.credits_added + maybe


@pytest.mark.timeout(1800)
def test_what_was_acknowledged_survives_a_kill_of_everything(tmp_path: Path) -> None:
    print(f"seed {SEED}: SEED={SEED} repeats this run")
    chance = random.Random(SEED)
    seen = Acknowledged()
    granted = 1_000_000
    with a_house(tmp_path) as house:
        team_id, key = make_team(house, credits=granted)
        for number in range(1, ROUNDS + 1):
            asyncio.run(load(house, team_id, key, seen, chance))
            house.start()
            check_nothing_is_lost(house, team_id, seen, granted)
            repeat_what_nobody_answered(house, team_id, key, seen)
            check_no_task_has_two_jobs(house, seen)
            check_nothing_is_lost(house, team_id, seen, granted)
            check_books(house)
            assert seen.completed, "the load came to nothing"
            print(
                f"round {number}: {len(seen.jobs)} jobs, {sum(seen.calls.values())} calls, "
                f"{len(seen.completed)} completions acknowledged; lost 0, charged twice 0"
            )
