"""What others depend on is stopped and started again: nothing is wrong in between, and all is well afterwards."""

import httpx
import pytest

from infra import postgres
from infra.embedded import throwaway_server
from infra.limits import Limits
from tests.api.conftest import make_alias, make_team, running
from tests.api.people import anybody
from tests.provider import FakeProvider
from tests.redis_server import RedisServer
from tests.waiting import PATIENCE_SECONDS, until


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


def test_postgresql_is_stopped_and_started_again_and_nothing_is_lost_or_done_twice() -> None:
    with throwaway_server() as database:
        postgres.migrate(database.dsn)
        with running(database.dsn) as server, server.client() as admin:
            team = make_team(server, admin, credits=10)
            job, add = team.job(), {"team_id": team.team_id, "amount": 5}
            once, login = {"Idempotency-Key": "once"}, {"email": "a@b.example", "password": "12345678"}
            database.stop()

            refused = [
                admin.get("/api/jobs"),
                admin.post("/api/organizations/create", json={"organization_id": "o", "name": "O"}),
                admin.post("/api/credits/add", json=add, headers=once),
                team.client.post(f"/api/jobs/{job}/complete", json={"status": "completed"}),
                anybody(server).post("/api/admin-users/login", json=login),
                anybody(server).get("/api/admin-users/setup/status"),
            ]
            assert [(503, "unavailable")] * len(refused) == [code(answer) for answer in refused]
            assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
            assert (503, "not_ready") == code(anybody(server).get("/health/ready"))
            assert 200 == anybody(server).get("/health").status_code

            database.start()
            until(lambda: anybody(server).get("/health/ready").status_code == 200)
            for _ in range(2):
                until(lambda: admin.post("/api/credits/add", json=add, headers=once).status_code == 200)
                done = team.client.post(f"/api/jobs/{job}/complete", json={"status": "completed"})
                assert 200 == done.status_code
            balance = team.client.get("/api/credits/balance").json()
            assert (15, 14) == (balance["credits_allocated"], balance["credits_remaining"])


def test_redis_is_killed_and_started_again_and_limits_hold_all_the_time(
    database: str, own_redis: RedisServer, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Redis that is killed says so at once; one that is only slow is another story.
    monkeypatch.setitem(Limits.__init__.__kwdefaults__, "timeout_s", PATIENCE_SECONDS)
    with running(database, redis_url=own_redis.url) as server, server.client() as admin:
        model = make_alias(admin, provider)

        def answers(rpm: int, calls: int) -> list[int]:
            """How calls of a new team with this limit are answered, within the minute that all of them share."""
            team = make_team(server, admin, rpm_limit=rpm)
            ask = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
            job = team.job()
            return [team.client.post(f"/api/jobs/{job}/llm-call", json=ask).status_code for _ in range(calls)]

        def limits() -> tuple[int, str]:
            ready = anybody(server).get("/health/ready")
            return ready.status_code, ready.json()["checks"]["redis"]["status"]

        assert ([200, 200, 429], (200, "ok")) == (answers(2, 3), limits())
        own_redis.kill()
        assert ([200, 200, 429], (200, "degraded")) == (answers(2, 3), limits())
        own_redis.start()
        until(lambda: limits() == (200, "ok"))
        assert [200, 200, 429] == answers(2, 3)
