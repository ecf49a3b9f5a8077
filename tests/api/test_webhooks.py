"""Webhooks over HTTP: registered, told, signed, tried again, and none of anybody else's business."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from standardwebhooks.webhooks import Webhook

from domain.webhook import MOST_WEBHOOKS_OF_A_TEAM
from tests.api.conftest import Server, TestTeam, make_alias, make_team, running
from tests.conftest import _database_on
from tests.provider import FakeProvider
from tests.receiver import Received, Receiver
from tests.waiting import until

FIELDS = {
    "webhook_id",
    "team_id",
    "webhook_url",
    "events",
    "is_active",
    "has_auth_header",
    "created_at",
    "updated_at",
    "last_triggered_at",
    "disabled_reason",
}
DELIVERY_FIELDS = {
    "delivery_id",
    "webhook_id",
    "event",
    "job_id",
    "status",
    "attempts",
    "next_attempt_at",
    "response_status",
    "last_error",
    "created_at",
    "delivered_at",
    "payload",
}
ALL = [
    "job.created",
    "job.started",
    "job.completed",
    "job.failed",
    "job.cancelled",
    "credits.low",
    "credits.exhausted",
    "team.suspended",
    "team.resumed",
]
AUTH_HEADER = "Bearer what-only-the-receiver-knows"


@pytest.fixture(scope="module")
def server(owner_dsn: str, template: str) -> Iterator[Server]:
    """A server that may send to this machine."""
    name = f"webhooks_{uuid4().hex[:8]}"
    with _database_on(owner_dsn, name, template) as dsn, running(dsn, webhook_allow_private=True) as server:
        yield server


@pytest.fixture(scope="module")
def strict(owner_dsn: str, template: str) -> Iterator[Server]:
    """A server as it is installed."""
    with _database_on(owner_dsn, f"strict_{uuid4().hex[:8]}", template) as dsn, running(dsn) as server:
        yield server


@pytest.fixture(scope="module")
def admin(server: Server) -> httpx.Client:
    return server.client()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def path() -> str:
    """A path that no other test uses."""
    return f"/ok/{uuid4().hex}"


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert status == answer.status_code, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (status, code) == (answer.status_code, answer.json().get("code")), answer.text
    body: dict[str, Any] = answer.json()
    return body


def invalid(answer: httpx.Response) -> list[tuple[list[str], str]]:
    return [(item["loc"], item["type"]) for item in refused(answer, 422, "validation_error")["detail"]]


def register(team: TestTeam, url: str, *events: str, client: httpx.Client | None = None, **fields: Any) -> Any:
    body = {"team_id": team.team_id, "webhook_url": url, "events": list(events) or ALL, **fields}
    return ok((client or team.client).post("/api/webhooks/register", json=body), 201)


def deliveries(team: TestTeam, webhook: Any, **query: Any) -> list[Any]:
    found: list[Any] = ok(team.client.get(f"/api/webhooks/{webhook['webhook_id']}/deliveries", params=query))
    return found


def verified(request: Received, webhook: Any) -> Any:
    """What a receiver reads, after the package that it would use has verified the signature."""
    return Webhook(webhook["secret"]).verify(request.body, request.headers)


# -- registering -------------------------------------------------------------------------------------------------------


def test_a_webhook_is_registered_and_its_secret_shown_once(team: TestTeam, receiver: Receiver, path: str) -> None:
    webhook = register(team, receiver.url + path, "job.completed", "job.failed", "job.completed")

    assert FIELDS | {"secret"} == set(webhook)
    assert webhook["secret"].startswith("whsec_")
    assert ["job.completed", "job.failed"] == webhook["events"]
    assert (True, False, None, None) == (
        webhook["is_active"],
        webhook["has_auth_header"],
        webhook["last_triggered_at"],
        webhook["disabled_reason"],
    )
    shown = ok(team.client.get(f"/api/webhooks/{webhook['webhook_id']}"))
    assert {name: value for name, value in webhook.items() if name != "secret"} == shown
    assert [shown] == ok(team.client.get("/api/webhooks"))


def test_secret_and_auth_header_are_stored_only_encrypted(
    server: Server, team: TestTeam, receiver: Receiver, path: str
) -> None:
    webhook = register(team, receiver.url + path, auth_header=AUTH_HEADER)
    key = {"Idempotency-Key": uuid4().hex}
    again = ok(team.client.post(f"/api/webhooks/{webhook['webhook_id']}/rotate-secret", headers=key))

    assert webhook["has_auth_header"]
    with psycopg.connect(server.dsn) as connection:
        tables = connection.execute(
            "select format('%I.%I', schemaname, tablename) from pg_tables"
            " where schemaname in ('journal', 'app', 'readmodel')"
        ).fetchall()
        for (table,) in tables:
            text = str(connection.execute(f"select each::text from {table} as each".encode()).fetchall())
            for secret in (webhook["secret"], again["secret"], AUTH_HEADER):
                assert secret not in text, table
                assert secret.encode().hex() not in text, table


@pytest.mark.parametrize(
    "change, place, kind",
    [
        ({"team_id": None}, "team_id", "value_error.missing"),
        ({"webhook_url": None}, "webhook_url", "value_error.missing"),
        ({"events": None}, "events", "value_error.missing"),
        ({"events": []}, "events", "value_error.length"),
        ({"events": "job.created"}, "events", "type_error.list"),
        ({"webhook_url": 7}, "webhook_url", "type_error.string"),
        ({"webhook_url": ""}, "webhook_url", "value_error.length"),
        ({"webhook_url": "http://a.example/".ljust(501, "x")}, "webhook_url", "value_error.length"),
        ({"webhook_url": "ftp://a.example/"}, "webhook_url", "value_error.format"),
        ({"webhook_url": "a.example"}, "webhook_url", "value_error.format"),
        ({"webhook_url": "http://user:word@a.example/"}, "webhook_url", "value_error.format"),
        ({"webhook_url": "http://a.example/ b"}, "webhook_url", "value_error.format"),
        ({"auth_header": "x" * 501}, "auth_header", "value_error.length"),
        ({"auth_header": "Basic x\r\nHost: elsewhere"}, "auth_header", "value_error.format"),
    ],
)
def test_a_bad_registration_is_refused_at_its_place(
    team: TestTeam, change: dict[str, Any], place: str, kind: str
) -> None:
    body = {"team_id": team.team_id, "webhook_url": "http://a.example/", "events": ["job.created"], **change}
    answer = team.client.post("/api/webhooks/register", json={k: v for k, v in body.items() if v is not None})

    assert [(["body", place], kind)] == invalid(answer)


def test_an_unknown_event_is_refused(team: TestTeam) -> None:
    body = {"team_id": team.team_id, "webhook_url": "http://a.example/", "events": ["job.created", "job.exploded"]}
    assert [(["body", "events", 1], "value_error.enum")] == invalid(
        team.client.post("/api/webhooks/register", json=body)
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:8003/health",
        "http://[::1]/",
        "http://10.1.2.3/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/",
        "http://0x7f.1/",
        "https://[::ffff:192.168.1.1]/",
        "http://no-such-host.invalid/",
    ],
)
def test_private_and_unresolvable_targets_are_refused(strict: Server, url: str) -> None:
    team = make_team(strict, strict.client())
    body = {"team_id": team.team_id, "webhook_url": url, "events": ["job.created"]}

    assert [(["body", "webhook_url"], "value_error.format")] == invalid(
        team.client.post("/api/webhooks/register", json=body)
    )
    assert [] == ok(team.client.get("/api/webhooks"))


def test_a_public_target_is_accepted_by_the_strictest_server(strict: Server) -> None:
    team = make_team(strict, strict.client())
    webhook = register(team, "https://93.184.215.14/hook", "job.created")
    change = {"webhook_url": "https://127.0.0.1/hook"}

    assert [(["body", "webhook_url"], "value_error.format")] == invalid(
        team.client.put(f"/api/webhooks/{webhook['webhook_id']}", json=change)
    )


def test_an_administrator_registers_for_any_team_that_there_is(admin: httpx.Client, team: TestTeam) -> None:
    webhook = register(team, "http://a.example/", "job.created", client=admin)
    body = {"team_id": "nobody", "webhook_url": "http://a.example/", "events": ["job.created"]}

    assert team.team_id == webhook["team_id"]
    assert "team" == refused(admin.post("/api/webhooks/register", json=body), 404, "not_found")["resource"]


def test_a_team_has_only_so_many_webhooks(admin: httpx.Client, server: Server) -> None:
    team, another = make_team(server, admin), make_team(server, admin)
    url = "https://93.184.216.34/told"
    webhooks = [register(team, url) for _ in range(MOST_WEBHOOKS_OF_A_TEAM)]
    body = {"team_id": team.team_id, "webhook_url": url, "events": ["job.created"]}
    for client in (team.client, admin):
        answer = refused(client.post("/api/webhooks/register", json=body), 400, "too_many_webhooks")
        assert MOST_WEBHOOKS_OF_A_TEAM == answer["limit"]
    register(another, url)
    ok(team.client.delete(f"/api/webhooks/{webhooks[0]['webhook_id']}"))
    register(team, url)


def test_a_registration_repeated_under_its_key_gets_the_same_secret(team: TestTeam) -> None:
    body = {"team_id": team.team_id, "webhook_url": "http://a.example/", "events": ["job.created"]}
    key = {"Idempotency-Key": uuid4().hex}
    first, second = (team.client.post("/api/webhooks/register", json=body, headers=key) for _ in range(2))

    assert ok(first, 201) == ok(second, 201)
    assert "true" == second.headers["Idempotent-Replayed"]
    assert 1 == len(ok(team.client.get("/api/webhooks")))


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_another_teams_webhook_is_nobodys_business(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    other = make_team(server, admin)
    webhook = register(other, "http://a.example/")
    address = f"/api/webhooks/{webhook['webhook_id']}"

    for answer in (
        team.client.get(address),
        team.client.put(address, json={"is_active": False}),
        team.client.delete(address),
        team.client.post(f"{address}/rotate-secret"),
        team.client.get(f"{address}/deliveries"),
        team.client.post(f"{address}/deliveries/{uuid4()}/redeliver"),
        team.client.get("/api/webhooks", params={"team_id": other.team_id}),
        team.client.post(
            "/api/webhooks/register",
            json={"team_id": other.team_id, "webhook_url": "http://a.example/", "events": ["job.created"]},
        ),
    ):
        refused(answer, 403, "forbidden")
    assert [] == ok(team.client.get("/api/webhooks"))
    assert webhook["is_active"] == ok(other.client.get(address))["is_active"]


@pytest.mark.parametrize("name", ["7f6b3a52-0000-4000-8000-000000000000", "not-a-uuid", "x" * 300])
def test_an_unknown_webhook_is_not_found(admin: httpx.Client, team: TestTeam, name: str) -> None:
    for client in (team.client, admin):
        for answer in (
            client.get(f"/api/webhooks/{name}"),
            client.put(f"/api/webhooks/{name}", json={}),
            client.delete(f"/api/webhooks/{name}"),
            client.post(f"/api/webhooks/{name}/rotate-secret"),
            client.get(f"/api/webhooks/{name}/deliveries"),
            client.post(f"/api/webhooks/{name}/deliveries/{uuid4()}/redeliver"),
        ):
            assert "webhook" == refused(answer, 404, "not_found")["resource"]


def test_webhooks_are_listed_newest_first_by_team_and_by_page(
    server: Server, admin: httpx.Client, team: TestTeam
) -> None:
    other = make_team(server, admin)
    mine = [register(team, f"http://a.example/{number}")["webhook_id"] for number in range(3)]
    register(other, "http://a.example/")

    def listed(client: httpx.Client, **query: Any) -> list[str]:
        return [webhook["webhook_id"] for webhook in ok(client.get("/api/webhooks", params=query))]

    assert mine[::-1] == listed(team.client) == listed(admin, team_id=team.team_id)
    assert mine[1::-1] == listed(team.client, limit=2, offset=1)
    assert [] == listed(admin, team_id="nobody")
    assert {*mine} < {*listed(admin, limit=1000)}
    answer = team.client.get("/api/webhooks", params={"limit": 1})
    assert "3" == answer.headers["X-Total-Count"]
    assert [(["query", "limit"], "value_error.range")] == invalid(team.client.get("/api/webhooks?limit=0"))


def test_a_suspended_team_reads_its_webhooks_and_changes_none(admin: httpx.Client, team: TestTeam) -> None:
    webhook = register(team, "http://a.example/")
    address = f"/api/webhooks/{webhook['webhook_id']}"
    ok(admin.post(f"/api/teams/{team.team_id}/suspend"))

    assert [webhook["webhook_id"]] == [each["webhook_id"] for each in ok(team.client.get("/api/webhooks"))]
    ok(team.client.get(f"{address}/deliveries"))
    body = {"team_id": team.team_id, "webhook_url": "http://a.example/", "events": ["job.created"]}
    for answer in (
        team.client.post("/api/webhooks/register", json=body),
        team.client.put(address, json={"is_active": False}),
        team.client.delete(address),
        team.client.post(f"{address}/rotate-secret"),
        team.client.post(f"{address}/deliveries/{uuid4()}/redeliver"),
    ):
        refused(answer, 403, "team_suspended")


# -- changing ----------------------------------------------------------------------------------------------------------


def test_what_a_change_does_not_speak_of_stays(team: TestTeam) -> None:
    webhook = register(team, "http://a.example/", "job.created", auth_header=AUTH_HEADER)
    address = f"/api/webhooks/{webhook['webhook_id']}"

    nothing = ok(team.client.put(address, json={"webhook_url": None, "events": None, "auth_header": None, "extra": 1}))
    assert {name: value for name, value in webhook.items() if name != "secret"} == nothing
    changed = ok(team.client.put(address, json={"webhook_url": "http://b.example/", "events": ["job.failed"]}))
    assert ("http://b.example/", ["job.failed"], True) == (
        changed["webhook_url"],
        changed["events"],
        changed["has_auth_header"],
    )
    assert not ok(team.client.put(address, json={"auth_header": ""}))["has_auth_header"]
    assert not ok(team.client.put(address, json={"is_active": False}))["is_active"]
    assert ok(team.client.put(address, json={"is_active": True}))["is_active"]
    assert changed["created_at"] == webhook["created_at"]
    assert [(["body", "events"], "value_error.length")] == invalid(team.client.put(address, json={"events": []}))


def test_a_deleted_webhook_is_gone_and_told_no_more(team: TestTeam, receiver: Receiver, path: str) -> None:
    webhook = register(team, receiver.url + path, "job.created")
    kept = register(team, f"{receiver.url}{path}-kept", "job.created")
    address = f"/api/webhooks/{webhook['webhook_id']}"

    assert {"webhook_id": webhook["webhook_id"]}.items() <= ok(team.client.delete(address)).items()
    ok(team.client.delete(address))
    refused(team.client.get(address), 404, "not_found")
    refused(team.client.put(address, json={"is_active": True}), 404, "not_found")
    refused(team.client.post(f"{address}/rotate-secret"), 404, "not_found")
    refused(team.client.get(f"{address}/deliveries"), 404, "not_found")
    assert [kept["webhook_id"]] == [each["webhook_id"] for each in ok(team.client.get("/api/webhooks"))]
    team.job()
    receiver.until(1, f"{path}-kept")
    assert [] == receiver.at(path)


def test_a_secret_can_be_rotated_again_and_again(team: TestTeam, receiver: Receiver, path: str) -> None:
    webhook = register(team, receiver.url + path, "job.created")
    for _ in range(3):
        latest = ok(team.client.post(f"/api/webhooks/{webhook['webhook_id']}/rotate-secret"))
        # The read models go on: what was rotated before is read back by them.
        assert "X-Ledger-Lag" not in team.client.get("/api/webhooks").headers
    team.job()

    [request] = receiver.until(1, path)
    assert "job.created" == verified(request, webhook)["event"]
    assert "job.created" == verified(request, latest)["event"]


def test_after_a_rotation_receivers_with_either_secret_are_content(
    team: TestTeam, receiver: Receiver, path: str
) -> None:
    webhook = register(team, receiver.url + path, "job.created")
    rotated = ok(team.client.post(f"/api/webhooks/{webhook['webhook_id']}/rotate-secret"))
    assert FIELDS | {"secret"} == set(rotated)
    assert webhook["secret"] != rotated["secret"]
    team.job()

    [request] = receiver.until(1, path)
    assert "job.created" == verified(request, webhook)["event"]
    assert "job.created" == verified(request, rotated)["event"]


# -- telling -----------------------------------------------------------------------------------------------------------


def test_a_jobs_life_is_told_signed_and_complete(
    admin: httpx.Client, provider: FakeProvider, team: TestTeam, receiver: Receiver, path: str
) -> None:
    webhook = register(team, receiver.url + path, auth_header=AUTH_HEADER)
    alias = make_alias(admin, provider)
    job = team.job()
    call = {"model": alias, "messages": [{"role": "user", "content": "hello"}]}
    ok(team.client.post(f"/api/jobs/{job}/llm-call", json=call))
    ended = ok(team.client.post(f"/api/jobs/{job}/complete", json={"status": "completed"}))

    told = {request.json["event"]: request for request in receiver.until(3, path)}
    assert {"job.created", "job.started", "job.completed"} == set(told)
    for event, request in told.items():
        body = verified(request, webhook)
        assert {"event", "type", "job_id", "team_id", "timestamp", "data"} == set(body)
        assert (event, event, job, team.team_id) == (body["event"], body["type"], body["job_id"], body["team_id"])
        assert AUTH_HEADER == request.headers["authorization"]
    body = told["job.completed"].json
    assert ended["completed_at"] == body["timestamp"]
    assert {"total_calls": 1, "status": "completed", "credits_charged": 1}.items() <= body["data"].items()
    assert isinstance(body["data"]["duration_seconds"], int)
    assert {"total_calls": 1, "status": "in_progress"}.items() <= told["job.started"].json["data"].items()
    assert {"total_calls": 0, "status": "pending"}.items() <= told["job.created"].json["data"].items()


def test_failed_and_cancelled_jobs_are_told(team: TestTeam, receiver: Receiver, path: str) -> None:
    register(team, receiver.url + path, "job.failed", "job.cancelled")
    failed, cancelled = team.job(), team.job()
    ok(team.client.post(f"/api/jobs/{failed}/complete", json={"status": "failed"}))
    ok(team.client.post(f"/api/jobs/{cancelled}/cancel"))
    ok(team.client.post(f"/api/jobs/{cancelled}/cancel"))

    told = {(request.json["event"], request.json["job_id"]) for request in receiver.until(2, path)}
    assert {("job.failed", failed), ("job.cancelled", cancelled)} == told


def test_a_suspension_is_told_when_something_has_changed(
    admin: httpx.Client, team: TestTeam, receiver: Receiver, path: str
) -> None:
    webhook = register(team, receiver.url + path, "team.suspended", "team.resumed")
    for step in ("resume", "suspend", "suspend", "resume", "resume", "pause"):
        ok(admin.post(f"/api/teams/{team.team_id}/{step}", json={"reason": "unpaid"}))

    receiver.until(3, path)
    told = [each["payload"] for each in deliveries(team, webhook)][::-1]
    assert ["team.suspended", "team.resumed", "team.suspended"] == [body["event"] for body in told]
    assert ["suspended", "active", "paused"] == [body["data"]["status"] for body in told]
    assert [None] * 3 == [body["job_id"] for body in told]
    assert {"status": "suspended", "reason": "unpaid"} == told[0]["data"]


def test_low_credits_are_told_once_a_threshold(
    server: Server, admin: httpx.Client, receiver: Receiver, path: str
) -> None:
    team = make_team(server, admin, credits=10)
    webhook = register(team, receiver.url + path, "credits.low", "credits.exhausted")
    for _ in range(10):
        ok(team.client.post(f"/api/jobs/{team.job()}/complete", json={"status": "completed"}))

    receiver.until(3, path)
    told = [each["payload"] for each in deliveries(team, webhook)][::-1]
    assert {"credits_remaining": 2, "credits_available": 2, "threshold_percent": 20} == told[0]["data"]
    assert {"credits.low": 5, "credits.exhausted": None} == {
        body["event"]: body["data"]["threshold_percent"] for body in told[1:]
    }
    assert {0} == {body["data"]["credits_available"] for body in told[1:]}


def test_a_team_refused_for_want_of_credits_is_told_so_once_until_credits_come_in(
    server: Server, admin: httpx.Client, provider: FakeProvider, receiver: Receiver, path: str
) -> None:
    team = make_team(server, admin, credits=0)
    webhook = register(team, receiver.url + path, "credits.exhausted")
    call = {"model": make_alias(admin, provider), "messages": [{"role": "user", "content": "hello"}]}

    def refuse() -> None:
        job = team.job()
        refused(team.client.post(f"/api/jobs/{job}/llm-call", json=call), 403, "insufficient_credits")
        answer = team.client.post(f"/api/jobs/{job}/complete", json={"status": "completed"})
        refused(answer, 403, "insufficient_credits")
        body = {**call, "team_id": team.team_id, "job_type": "test"}
        refused(team.client.post("/api/jobs/create-and-call", json=body), 403, "insufficient_credits")

    refuse()
    refuse()
    assert 1 == len(deliveries(team, webhook))
    ok(admin.post("/api/credits/add", json={"team_id": team.team_id, "amount": 1}))
    ok(team.client.post(f"/api/jobs/{team.job()}/complete", json={"status": "completed"}))
    refuse()
    assert 2 == len(deliveries(team, webhook))
    assert {None} == {each["payload"]["data"]["threshold_percent"] for each in deliveries(team, webhook)}
    receiver.until(2, path)


def test_only_the_team_it_happened_to_is_told(
    server: Server, admin: httpx.Client, team: TestTeam, receiver: Receiver, path: str
) -> None:
    other = make_team(server, admin)
    webhook = register(other, receiver.url + path)
    mine = register(team, f"{receiver.url}{path}-mine", "job.created")
    team.job()

    receiver.until(1, f"{path}-mine")
    assert 1 == len(deliveries(team, mine))
    assert [] == deliveries(other, webhook)


# -- deliveries --------------------------------------------------------------------------------------------------------


def test_a_delivery_is_on_record_as_soon_as_its_event(team: TestTeam, receiver: Receiver) -> None:
    webhook = register(team, f"{receiver.url}/dead/{uuid4().hex}", "job.created")
    job = team.job()

    [delivery] = deliveries(team, webhook)
    assert DELIVERY_FIELDS == set(delivery)
    assert ("pending", 0, job, "job.created", None, None) == (
        delivery["status"],
        delivery["attempts"],
        delivery["job_id"],
        delivery["event"],
        delivery["response_status"],
        delivery["delivered_at"],
    )
    assert delivery["next_attempt_at"] is not None
    assert job == delivery["payload"]["job_id"]


def test_deliveries_are_filtered_and_paged(team: TestTeam, receiver: Receiver, path: str) -> None:
    webhook = register(team, receiver.url + path, "job.created", "job.cancelled")
    jobs = [team.job() for _ in range(3)]
    ok(team.client.post(f"/api/jobs/{jobs[0]}/cancel"))
    until(lambda: 4 == len(deliveries(team, webhook, status="delivered")))

    assert ["job.cancelled", "job.created", "job.created", "job.created"] == [
        each["event"] for each in deliveries(team, webhook)
    ]
    assert jobs[::-1] == [each["job_id"] for each in deliveries(team, webhook, event="job.created")]
    assert jobs[1:2] == [each["job_id"] for each in deliveries(team, webhook, event="JOB.CREATED", limit=1, offset=1)]
    assert [] == deliveries(team, webhook, status="Failed")
    assert [] == deliveries(team, webhook, event="job.failed")
    address = f"/api/webhooks/{webhook['webhook_id']}/deliveries"
    assert "4" == team.client.get(address, params={"limit": 1}).headers["X-Total-Count"]
    assert "1" == team.client.get(address, params={"event": "job.cancelled"}).headers["X-Total-Count"]
    for query in ({"status": "sent"}, {"event": "job.exploded"}):
        assert [(["query", *query], "value_error.enum")] == invalid(team.client.get(address, params=query))
    shown = ok(team.client.get(f"/api/webhooks/{webhook['webhook_id']}"))
    assert deliveries(team, webhook)[0]["created_at"] == shown["last_triggered_at"]


def test_a_delivery_is_sent_again_on_demand_under_the_same_id(team: TestTeam, receiver: Receiver, path: str) -> None:
    webhook = register(team, receiver.url + path, "job.created")
    team.job()
    [delivered] = until(lambda: deliveries(team, webhook, status="delivered"))
    address = f"/api/webhooks/{webhook['webhook_id']}/deliveries"
    answer = ok(team.client.post(f"{address}/{delivered['delivery_id']}/redeliver"))

    assert DELIVERY_FIELDS == set(answer)
    assert ("pending", delivered["delivery_id"], None) == (
        answer["status"],
        answer["delivery_id"],
        answer["delivered_at"],
    )
    assert delivered["payload"] == answer["payload"]
    first, second = receiver.until(2, path)
    assert f"msg_{delivered['delivery_id']}" == first.message_id == second.message_id
    assert first.body == second.body
    other = register(team, receiver.url + path, "job.failed")
    for webhook_id, delivery_id in (
        (webhook["webhook_id"], uuid4()),
        (webhook["webhook_id"], "not-a-uuid"),
        (other["webhook_id"], delivered["delivery_id"]),
    ):
        answer = team.client.post(f"/api/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver")
        assert "delivery" == refused(answer, 404, "not_found")["resource"]


def test_a_receiver_that_is_gone_disables_its_webhook_until_the_team_says_otherwise(
    team: TestTeam, receiver: Receiver
) -> None:
    webhook = register(team, f"{receiver.url}/gone/{uuid4().hex}", "job.created")
    team.job()
    address = f"/api/webhooks/{webhook['webhook_id']}"

    disabled = until(lambda: (shown := ok(team.client.get(address))) and not shown["is_active"] and shown)
    assert "the receiver answered 410 Gone" == disabled["disabled_reason"]
    [delivery] = until(lambda: deliveries(team, webhook, status="failed"))
    assert (410, 1) == (delivery["response_status"], delivery["attempts"])
    team.job()
    assert 1 == len(deliveries(team, webhook))
    enabled = ok(team.client.put(address, json={"is_active": True, "webhook_url": f"{receiver.url}/ok/{uuid4().hex}"}))
    assert (True, None) == (enabled["is_active"], enabled["disabled_reason"])
    team.job()
    until(lambda: deliveries(team, webhook, status="delivered"))


def test_a_dead_receiver_keeps_nobody_else_waiting(
    server: Server, admin: httpx.Client, team: TestTeam, receiver: Receiver, path: str
) -> None:
    dead = make_team(server, admin)
    register(dead, f"{receiver.url}/dead{path}", "job.created")
    for _ in range(20):
        dead.job()
    receiver.until(1, f"/dead{path}")
    register(team, receiver.url + path, "job.created")
    team.job()

    receiver.until(1, path)


def test_deliveries_outlive_the_server(database: str, receiver: Receiver, path: str) -> None:
    with running(database, webhook_allow_private=True) as server:
        team = make_team(server, server.client())
        webhook = register(team, f"{receiver.url}/broken-1{path}", "job.created")
        team.job()
        until(lambda: 1 == deliveries(team, webhook)[0]["attempts"])
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("update app.webhook_deliveries set next_attempt_at = now()")  # five seconds are over
    with running(database, webhook_allow_private=True):
        first, second = receiver.until(2, f"/broken-1{path}")
    assert first.message_id == second.message_id
    verified(second, webhook)
