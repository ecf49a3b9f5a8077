"""Whatever happened is told, although everything is killed in the middle of telling it."""

import os
import random
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.proofs.house import House, a_house, make_team
from tests.receiver import Receiver

pytestmark = pytest.mark.proof

ROUNDS = 2 if os.environ.get("PROOFS") == "short" else 10
CUSTOMERS = 4
SEED = int(os.environ.get("SEED", time.time_ns() % 2**32))
PATIENCE_SECONDS = 180.0  # the leases of the killed, and the second attempts of what they had begun


def open_jobs(house: House, team_id: str, key: str, opened: list[str]) -> None:
    """Opens jobs until the server is gone."""
    with httpx.Client(base_url=house.url, headers={"Authorization": f"Bearer {key}"}, timeout=10) as client:
        while True:
            try:
                answer = client.post("/api/jobs/create", json={"team_id": team_id, "job_type": "proof"})
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                opened.append(answer.json()["job_id"])


def test_no_notification_is_lost_when_everything_is_killed(tmp_path: Path) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    opened: list[str] = []
    with Receiver() as receiver, a_house(tmp_path, WEBHOOK_ALLOW_PRIVATE="true") as house:
        team_id, key = make_team(house, credits=0)
        body = {"team_id": team_id, "webhook_url": f"{receiver.url}/slow-5/in", "events": ["job.created"]}
        with house.admin() as admin:
            assert admin.post("/api/webhooks/register", json=body).status_code == 201
        for _ in range(ROUNDS):
            customers = [
                threading.Thread(target=open_jobs, args=(house, team_id, key, opened)) for _ in range(CUSTOMERS)
            ]
            for customer in customers:
                customer.start()
            time.sleep(chance.uniform(0.2, 1.5))
            house.kill_everything()
            for customer in customers:
                customer.join()
            house.start()

        deadline = time.monotonic() + PATIENCE_SECONDS
        while missing := {*opened} - {request.json["job_id"] for request in receiver.requests}:
            assert time.monotonic() < deadline, f"{len(missing)} of {len(opened)} jobs were not told of"
            time.sleep(0.5)
        [(events,)] = house.query("select count(*) from journal.events where topic = 'JobCreated'")
        [counted] = house.query("select count(*), count(distinct job_id) from app.webhook_deliveries")
        assert (events, events) == counted
        ids: dict[str, set[str]] = {}
        for request in receiver.requests:
            ids.setdefault(request.json["job_id"], set()).add(request.message_id)
        assert {1} == {len(names) for names in ids.values()}, "a job was told of under two ids"
