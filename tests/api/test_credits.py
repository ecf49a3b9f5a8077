"""Credits over HTTP: what a team has, how it came by it, and where it went."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_alias, make_team
from tests.provider import FakeProvider

TRANSACTION_FIELDS = {
    "transaction_id",
    "team_id",
    "organization_id",
    "job_id",
    "transaction_type",
    "source",
    "credits_amount",
    "credits_before",
    "credits_after",
    "reason",
    "payment_amount_usd",
    "payment_reference",
    "expires_at",
    "actor",
    "created_at",
    "type",
    "amount",
    "description",
    "timestamp",
    "balance_after",
}


def ok(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def balance_of(team: TestTeam, **query: Any) -> dict[str, Any]:
    return ok(team.client.get("/api/credits/balance", params=query))


def transactions_of(team: TestTeam, **query: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ok(team.client.get("/api/credits/transactions", params=query))["transactions"]
    return rows


def of_team(team: TestTeam, action: str) -> str:
    return f"/api/credits/teams/{team.team_id}/{action}"


def add(admin: httpx.Client, team: TestTeam, credits: int, **more: Any) -> dict[str, Any]:
    return ok(admin.post("/api/credits/add", json={"team_id": team.team_id, "amount": credits, **more}))


def complete(team: TestTeam) -> str:
    """A job without calls, completed: one credit."""
    job_id = team.job()
    ok(team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}))
    return job_id


def refused(answer: httpx.Response, status: int, code: str, **facts: Any) -> None:
    assert (status, code) == (answer.status_code, answer.json()["code"]), answer.text
    assert facts == {name: answer.json()[name] for name in facts}


def invalid(answer: httpx.Response, *loc: str) -> str:
    """The type of the finding about one place."""
    assert (422, "validation_error") == (answer.status_code, answer.json()["code"]), answer.text
    [finding] = [each for each in answer.json()["detail"] if each["loc"] == list(loc)]
    return str(finding["type"])


# -- balance -----------------------------------------------------------------------------------------------------------


def test_a_new_team_has_what_it_was_given(team: TestTeam) -> None:
    balance = balance_of(team)
    assert (100, 0, 100, 0, 100) == tuple(
        balance[f"credits_{name}"] for name in ("allocated", "used", "remaining", "held", "available")
    )
    assert (team.team_id, team.organization_id) == (balance["team_id"], balance["organization_id"])
    assert ("active", "job_based", 10, 10_000) == (
        balance["status"],
        balance["budget_mode"],
        balance["credits_per_dollar"],
        balance["tokens_per_credit"],
    )
    assert (False, None, None, None) == (
        balance["auto_refill"],
        balance["refill_amount"],
        balance["refill_period"],
        balance["last_refill_at"],
    )
    assert (0, 0, 0) == (balance["percentage_used"], balance["overdraft_credits"], balance["credit_limit"])
    assert balance["virtual_key"] is not None
    assert team.key not in str(balance)


def test_a_balance_answers_alike_on_every_path_it_has(admin: httpx.Client, team: TestTeam) -> None:
    answers = [
        ok(client.get(path, params=query))
        for client in (team.client, admin)
        for path, query in (
            ("/api/credits/balance", {"team_id": team.team_id}),
            (of_team(team, "balance"), {}),
            (f"/api/teams/{team.team_id}/credits", {}),
            (f"/api/v1/teams/{team.team_id}/credits/", {}),
        )
    ]
    for answer in answers:
        answer.pop("cost_markup_percentage", None)
    assert answers == [answers[0]] * 8


def test_only_administrators_see_the_markup(server: Server, admin: httpx.Client) -> None:
    team = make_team(server, admin, cost_markup_percentage=12.5)
    assert "cost_markup_percentage" not in balance_of(team)
    assert 12.5 == ok(admin.get(of_team(team, "balance")))["cost_markup_percentage"]


def test_an_administrator_has_to_name_the_team(admin: httpx.Client) -> None:
    for path in ("/api/credits/balance", "/api/credits/transactions"):
        assert "value_error.missing" == invalid(admin.get(path), "query", "team_id")


@pytest.mark.parametrize("action", ["balance", "transactions", "conversion-rates"])
def test_an_unknown_team_is_not_found(admin: httpx.Client, action: str) -> None:
    for name in ("nobody", "%00", "x" * 300):
        refused(admin.get(f"/api/credits/teams/{name}/{action}"), 404, "not_found", resource="team")


@pytest.mark.parametrize("action", ["balance", "transactions", "conversion-rates"])
def test_another_teams_credits_are_forbidden_whether_it_exists_or_not(
    server: Server, admin: httpx.Client, team: TestTeam, action: str
) -> None:
    for name in (make_team(server, admin).team_id, "nobody"):
        answer = team.client.get(f"/api/credits/teams/{name}/{action}")
        refused(answer, 403, "forbidden", team_id=name)
        assert "credit" not in answer.json()["detail"].lower()
    refused(team.client.get("/api/credits/balance", params={"team_id": "nobody"}), 403, "forbidden")


def test_without_a_limit_what_is_available_is_null(server: Server, admin: httpx.Client) -> None:
    balance = balance_of(make_team(server, admin, overdraft_credits=None))
    assert (None, None, None) == (
        balance["credits_available"],
        balance["overdraft_credits"],
        balance["credit_limit"],
    )


def test_an_overdraft_is_available_and_does_not_remain(server: Server, admin: httpx.Client) -> None:
    balance = balance_of(make_team(server, admin, credits=3, overdraft_credits=5))
    assert (3, 8, 5) == (balance["credits_remaining"], balance["credits_available"], balance["credit_limit"])


def test_a_third_used_is_shown_with_two_decimals(server: Server, admin: httpx.Client) -> None:
    team = make_team(server, admin, credits=3)
    complete(team)
    assert 33.33 == balance_of(team)["percentage_used"]


def test_what_an_open_job_holds_is_not_available(admin: httpx.Client, team: TestTeam, provider: FakeProvider) -> None:
    job_id, alias = team.job(), make_alias(admin, provider)
    call = {"model": alias, "messages": [{"role": "user", "content": "Hello"}]}
    ok(team.client.post(f"/api/jobs/{job_id}/llm-call", json=call))
    balance = balance_of(team)
    assert (100, 1, 99) == (balance["credits_remaining"], balance["credits_held"], balance["credits_available"])
    ok(team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"}))
    balance = balance_of(team)
    assert (99, 0, 99) == (balance["credits_remaining"], balance["credits_held"], balance["credits_available"])


# -- the balance as it was ---------------------------------------------------------------------------------------------


def test_a_balance_can_be_asked_for_as_it_was_at_every_position(admin: httpx.Client, team: TestTeam) -> None:
    before = admin.get(of_team(team, "balance"))
    add(admin, team, 10)
    between = admin.get(of_team(team, "balance"))
    complete(team)
    for then in (before, between, admin.get(of_team(team, "balance"))):
        again = admin.get(of_team(team, "balance"), params={"as_of": then.headers["x-ledger-position"]})
        assert then.json() == ok(again)


def test_a_balance_can_be_asked_for_as_it_was_at_a_moment(today: date, admin: httpx.Client, team: TestTeam) -> None:
    moment = datetime.now(UTC)
    while datetime.now(UTC) - moment < timedelta(milliseconds=2):
        time.sleep(0.001)
    add(admin, team, 10)
    ok(admin.patch(of_team(team, "budget-mode"), json={"budget_mode": "consumption_usd"}))
    then = balance_of(team, as_of=moment.isoformat())
    assert (100, "job_based") == (then["credits_remaining"], then["budget_mode"])
    now = balance_of(team, as_of=datetime.now(UTC).isoformat())
    assert (110, "consumption_usd") == (now["credits_remaining"], now["budget_mode"])
    assert now == balance_of(team, as_of=str(today)) == balance_of(team)


def test_before_a_team_there_was_no_balance(team: TestTeam) -> None:
    refused(team.client.get("/api/credits/balance", params={"as_of": "0"}), 404, "not_found", resource="team")
    refused(team.client.get("/api/credits/balance", params={"as_of": "2020-01-01"}), 404, "not_found")


def test_a_moment_that_is_none_is_refused(team: TestTeam) -> None:
    for as_of in ("yesterday", "-1", "2026-13-01"):
        answer = team.client.get("/api/credits/balance", params={"as_of": as_of})
        assert "value_error.format" == invalid(answer, "query", "as_of")


# -- adding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", ["amount", "credits", "credits_amount"])
@pytest.mark.parametrize("reason", ["description", "reason"])
def test_credits_are_added_in_every_vocabulary(admin: httpx.Client, team: TestTeam, amount: str, reason: str) -> None:
    body = {"team_id": team.team_id, amount: 20, reason: "invoice 7"}
    answer = ok(admin.post("/api/credits/add", json=body))
    assert (team.team_id, 20, 120) == (answer["team_id"], answer["credits_added"], answer["credits_remaining"])
    transaction = answer["transaction"]
    assert set(transaction) == TRANSACTION_FIELDS
    assert answer["transaction_id"] == transaction["transaction_id"]
    assert ("allocation", "addition", "allocation", "invoice 7", "invoice 7", "master") == tuple(
        transaction[name] for name in ("transaction_type", "type", "source", "reason", "description", "actor")
    )
    assert (20, 20, 100, 120, 120) == tuple(
        transaction[name] for name in ("credits_amount", "amount", "credits_before", "credits_after", "balance_after")
    )
    assert transaction["timestamp"] == transaction["created_at"]
    assert transaction == transactions_of(team)[0]


def test_credits_are_added_on_every_path(admin: httpx.Client, team: TestTeam) -> None:
    assert 101 == ok(admin.post(of_team(team, "add"), json={"amount": 1}))["credits_remaining"]
    allocated = ok(admin.post(f"/api/teams/{team.team_id}/credits/allocate", json={"credits_amount": 2.0}))
    assert set(allocated) == TRANSACTION_FIELDS | {"credits_added", "credits_remaining", "transaction"}
    assert (2, 103, 103) == (allocated["credits_added"], allocated["credits_remaining"], allocated["balance_after"])
    assert {name: allocated[name] for name in TRANSACTION_FIELDS} == allocated["transaction"]


@pytest.mark.parametrize(
    "body",
    [
        {"amount": 0},
        {"amount": -5},
        {"amount": 1.5},
        {"amount": "10"},
        {"amount": True},
        {"amount": 10**13},
        {"amount": 1, "credits": 2},
        {"amount": 1, "reason": "one", "description": "other"},
        {"amount": 1, "reason": "x" * 501},
        {"amount": 1, "source": "thin air"},
        {"amount": 1, "expires_at": "soon"},
        {"amount": 1, "expires_at": "2999-01-01T00:00:00"},
        {"amount": 1, "expires_at": "2024-10-14T12:00:00Z"},
        {"amount": 1, "expires_at": "9999-12-31T23:59:59-05:00"},
        {"amount": 1, "expires_at": "0001-01-01T00:00:00+05:00"},
        {"amount": None},
        {},
    ],
)
def test_what_is_no_amount_adds_nothing(admin: httpx.Client, team: TestTeam, body: dict[str, Any]) -> None:
    for path, team_id in (("/api/credits/add", {"team_id": team.team_id}), (of_team(team, "add"), {})):
        answer = admin.post(path, json={**team_id, **body})
        assert (422, "validation_error") == (answer.status_code, answer.json()["code"])
        assert "body" == answer.json()["detail"][0]["loc"][0]
    assert 1 == len(transactions_of(team))


def test_every_moment_of_the_calendar_is_shown_in_the_one_format(admin: httpx.Client, team: TestTeam) -> None:
    for given, shown in (
        ("2941-03-17T11:54:05.0807Z", "2941-03-17T11:54:05.080Z"),
        ("2930-01-01T00:00:00+02:00", "2929-12-31T22:00:00.000Z"),
        ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
    ):
        body = {"credits": 1, "payment_type": "one_time", "expires_at": given}
        paid = admin.post(f"/api/credits/teams/{team.team_id}/replenish", json=body).json()
        assert shown == paid["transaction"]["expires_at"]
        assert shown == transactions_of(team)[0]["expires_at"]


def test_no_team_key_can_add_credits(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    for path in ("/api/credits/add", of_team(team, "add"), f"/api/teams/{team.team_id}/credits/allocate"):
        answer = team.client.post(path, json={"team_id": team.team_id, "amount": 10})
        refused(answer, 403, "admin_required")
        assert "credit" not in answer.json()["detail"].lower()
    assert 100 == balance_of(team)["credits_remaining"]


def test_adding_credits_to_an_unknown_team_creates_nothing(admin: httpx.Client) -> None:
    name = f"team-{uuid4().hex[:8]}"
    refused(admin.post("/api/credits/add", json={"team_id": name, "amount": 1}), 404, "not_found", resource="team")
    refused(admin.get("/api/credits/balance", params={"team_id": name}), 404, "not_found", resource="team")


def test_a_deleted_team_gets_no_credits_and_its_balance_is_still_there(admin: httpx.Client, team: TestTeam) -> None:
    paid = {"credits": 5, "payment_type": "one_time", "payment_reference": "pi_4"}
    first = ok(admin.post(of_team(team, "replenish"), json=paid))
    ok(admin.delete(f"/api/teams/{team.team_id}"))
    refused(admin.post(of_team(team, "add"), json={"amount": 1}), 404, "not_found", resource="team")
    assert first == ok(admin.post(of_team(team, "replenish"), json=paid))
    again = admin.post(of_team(team, "replenish"), json={**paid, "payment_reference": "pi_5"})
    refused(again, 404, "not_found", resource="team")
    balance = ok(admin.get(of_team(team, "balance")))
    assert ("inactive", 105, None) == (balance["status"], balance["credits_remaining"], balance["virtual_key"])


def test_adding_with_an_idempotency_key_adds_once(admin: httpx.Client, team: TestTeam) -> None:
    def once(_: int) -> httpx.Response:
        body = {"team_id": team.team_id, "amount": 5}
        return admin.post("/api/credits/add", json=body, headers={"Idempotency-Key": f"add-{team.team_id}"})

    first = once(0)
    assert first.json() == once(1).json()
    with ThreadPoolExecutor(4) as pool:
        assert {first.text} == {answer.text for answer in pool.map(once, range(8))}
    assert 105 == balance_of(team)["credits_remaining"]


def test_simultaneous_additions_all_count(admin: httpx.Client, team: TestTeam) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: add(admin, team, 1), range(40)))
    rows = transactions_of(team, limit=1000)
    assert 140 == balance_of(team)["credits_remaining"] == rows[0]["credits_after"]
    assert [row["credits_after"] for row in rows[1:]] == [row["credits_before"] for row in rows[:-1]]


# -- transactions ------------------------------------------------------------------------------------------------------


def test_transactions_come_newest_first_and_speak_of_what_remained(admin: httpx.Client, team: TestTeam) -> None:
    add(admin, team, 10, description="bonus", source="promotional")
    job_id = complete(team)
    ok(admin.post(of_team(team, "refund"), json={"job_id": job_id, "reason": "sorry"}))
    listed = ok(team.client.get("/api/credits/transactions"))
    assert (team.team_id, 4, 100, 0) == tuple(listed[name] for name in ("team_id", "total", "limit", "offset"))
    assert [
        ("refund", "refund", 1, 109, 110, job_id),
        ("deduction", "deduction", 1, 110, 109, job_id),
        ("allocation", "addition", 10, 100, 110, None),
        ("allocation", "addition", 100, 0, 100, None),
    ] == [
        tuple(row[name] for name in ("transaction_type", "type", "amount", "credits_before", "credits_after", "job_id"))
        for row in listed["transactions"]
    ]


def test_transactions_answer_alike_on_every_path_they_have(admin: httpx.Client, team: TestTeam) -> None:
    first = ok(team.client.get("/api/credits/transactions"))
    assert first == ok(admin.get("/api/credits/transactions", params={"team_id": team.team_id}))
    for client in (admin, team.client):
        assert first == ok(client.get(of_team(team, "transactions")))
        assert first == ok(client.get(f"/api/teams/{team.team_id}/credits/transactions"))


def test_holds_and_releases_are_shown_to_whoever_asks(
    admin: httpx.Client, team: TestTeam, provider: FakeProvider
) -> None:
    job_id, alias = team.job(), make_alias(admin, provider)
    call = {"model": alias, "messages": [{"role": "user", "content": "Hello"}]}
    ok(team.client.post(f"/api/jobs/{job_id}/llm-call", json=call))
    ok(team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "failed"}))
    assert ["allocation"] == [row["type"].replace("addition", "allocation") for row in transactions_of(team)]
    shown = ok(team.client.get("/api/credits/transactions", params={"include": "Holds"}))
    assert 3 == shown["total"]
    assert [("release", 1, 100, 100, job_id), ("hold", 1, 100, 100, job_id)] == [
        (row["type"], row["amount"], row["credits_before"], row["credits_after"], row["job_id"])
        for row in shown["transactions"][:2]
    ]
    assert ["hold"] == [row["type"] for row in transactions_of(team, type="HOLD")]


def test_transactions_are_filtered(today: date, admin: httpx.Client, team: TestTeam) -> None:
    jobs = [complete(team) for _ in range(3)]
    assert 3 == len(transactions_of(team, type="Deduction"))
    assert [jobs[1]] == [row["job_id"] for row in transactions_of(team, job_id=jobs[1])]
    assert [] == transactions_of(team, job_id=str(uuid4()))
    assert [] == transactions_of(team, type="expiration")
    tomorrow = today + timedelta(days=1)
    assert 4 == len(transactions_of(team, start_date=str(today), end_date=str(tomorrow)))
    assert [] == transactions_of(team, start_date=str(tomorrow + timedelta(days=1)))
    assert [] == transactions_of(team, end_date="2020-12-31")


def test_pages_neither_repeat_nor_skip_and_say_how_much_there_is(today: date, team: TestTeam) -> None:
    for _ in range(4):
        complete(team)
    whole = transactions_of(team)
    pages = [team.client.get("/api/credits/transactions", params={"limit": 2, "offset": n}) for n in (0, 2, 4, 6)]
    assert whole == [row for page in pages for row in page.json()["transactions"]]
    assert {("5", 5, 2)} == {(p.headers["x-total-count"], p.json()["total"], p.json()["limit"]) for p in pages}
    filtered = team.client.get("/api/credits/transactions", params={"limit": 1, "type": "deduction"})
    assert (4, "4") == (filtered.json()["total"], filtered.headers["x-total-count"])
    of_today = {"type": "deduction", "start_date": str(today)}
    assert 4 == ok(team.client.get("/api/credits/transactions", params=of_today))["total"]


@pytest.mark.parametrize(
    "name,value,kind",
    [
        ("type", "gift", "value_error.enum"),
        ("include", "everything", "value_error.enum"),
        ("job_id", "17", "value_error.format"),
        ("start_date", "soon", "value_error.format"),
        ("limit", "0", "value_error.range"),
        ("limit", "1001", "value_error.range"),
        ("offset", "-1", "value_error.range"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(team: TestTeam, name: str, value: str, kind: str) -> None:
    assert kind == invalid(team.client.get("/api/credits/transactions", params={name: value}), "query", name)


def test_a_suspended_team_still_sees_its_credits(admin: httpx.Client, team: TestTeam) -> None:
    ok(admin.post(f"/api/teams/{team.team_id}/suspend"))
    assert ("suspended", 100) == (balance_of(team)["status"], balance_of(team)["credits_remaining"])
    assert 1 == len(transactions_of(team))
    refused(team.client.post(of_team(team, "check")), 403, "team_suspended")
    refused(team.client.post(of_team(team, "add"), json={"amount": 1}), 403, "admin_required")
    add(admin, team, 1)


# -- check -------------------------------------------------------------------------------------------------------------


def test_a_check_says_whether_a_team_could_pay_now(server: Server, admin: httpx.Client) -> None:
    team = make_team(server, admin, credits=3, overdraft_credits=2)
    for client in (admin, team.client):
        assert {
            "team_id": team.team_id,
            "has_credits": True,
            "credits_needed": 5,
            "credits_remaining": 3,
            "credits_available": 5,
            "error": None,
        } == ok(client.post(of_team(team, "check"), params={"credits_needed": 5}))
    short = ok(team.client.post(of_team(team, "check"), params={"credits_needed": 6}))
    assert (False, "Insufficient credits") == (short["has_credits"], short["error"])
    assert 1 == ok(team.client.post(of_team(team, "check")))["credits_needed"]


def test_a_team_without_a_limit_can_always_pay(server: Server, admin: httpx.Client) -> None:
    team = make_team(server, admin, credits=0, overdraft_credits=None)
    checked = ok(team.client.post(of_team(team, "check"), params={"credits_needed": 10**12}))
    assert (True, None) == (checked["has_credits"], checked["credits_available"])


def test_a_check_of_nothing_or_of_nobody_is_refused(admin: httpx.Client, team: TestTeam) -> None:
    for needed in ("0", "-1", "one"):
        answer = team.client.post(of_team(team, "check"), params={"credits_needed": needed})
        assert invalid(answer, "query", "credits_needed") in {"value_error.range", "type_error.integer"}
    refused(admin.post("/api/credits/teams/nobody/check"), 404, "not_found", resource="team")
    refused(team.client.post("/api/credits/teams/nobody/check"), 403, "forbidden")


# -- rates and modes ---------------------------------------------------------------------------------------------------


def test_rates_are_the_defaults_until_they_are_set_and_again_after_null(admin: httpx.Client, team: TestTeam) -> None:
    path = of_team(team, "conversion-rates")
    assert {
        "team_id": team.team_id,
        "tokens_per_credit": 10_000,
        "credits_per_dollar": 10,
        "budget_mode": "job_based",
        "using_defaults": {"tokens_per_credit": True, "credits_per_dollar": True},
    } == ok(team.client.get(path))
    changed = ok(admin.patch(path, json={"credits_per_dollar": 12.5}))
    assert (team.team_id, 12.5, 10_000) == (
        changed["team_id"],
        changed["credits_per_dollar"],
        changed["tokens_per_credit"],
    )
    ok(admin.patch(path, json={"tokens_per_credit": 5000.0}))
    assert {"tokens_per_credit": False, "credits_per_dollar": False} == ok(admin.get(path))["using_defaults"]
    ok(admin.patch(path, json={"credits_per_dollar": None}))
    rates = ok(team.client.get(path))
    assert (10, 5000) == (rates["credits_per_dollar"], rates["tokens_per_credit"])
    assert {"tokens_per_credit": False, "credits_per_dollar": True} == rates["using_defaults"]


@pytest.mark.parametrize(
    "body",
    [
        {"tokens_per_credit": 0},
        {"tokens_per_credit": 1.5},
        {"credits_per_dollar": 0},
        {"credits_per_dollar": -1},
        {"credits_per_dollar": "many"},
        {"credits_per_dollar": 1e300},
    ],
)
def test_a_rate_is_a_positive_number(admin: httpx.Client, team: TestTeam, body: dict[str, Any]) -> None:
    [field] = body
    invalid(admin.patch(of_team(team, "conversion-rates"), json=body), "body", field)
    invalid(admin.patch(of_team(team, "budget-mode"), json={"budget_mode": "job_based", **body}), "body", field)


def test_the_budget_mode_is_set_alone_or_with_its_rates(admin: httpx.Client, team: TestTeam) -> None:
    path = of_team(team, "budget-mode")
    answer = ok(admin.patch(path, json={"budget_mode": "Consumption_Tokens", "tokens_per_credit": 500}))
    assert ("consumption_tokens", 500, 10) == (
        answer["budget_mode"],
        answer["tokens_per_credit"],
        answer["credits_per_dollar"],
    )
    answer = ok(admin.patch(path, json={"budget_mode": "consumption_usd"}))
    assert ("consumption_usd", 500) == (answer["budget_mode"], answer["tokens_per_credit"])
    assert "consumption_usd" == balance_of(team)["budget_mode"]


def test_an_unknown_budget_mode_is_refused(admin: httpx.Client, team: TestTeam) -> None:
    path = of_team(team, "budget-mode")
    refused(admin.patch(path, json={"budget_mode": "free"}), 400, "invalid_value", field="budget_mode")
    assert "value_error.missing" == invalid(admin.patch(path, json={}), "body", "budget_mode")


@pytest.mark.parametrize("action", ["conversion-rates", "budget-mode"])
def test_rates_and_modes_are_for_administrators_and_known_teams(
    admin: httpx.Client, team: TestTeam, action: str
) -> None:
    body = {"budget_mode": "job_based"}
    refused(team.client.patch(of_team(team, action), json=body), 403, "admin_required")
    refused(admin.patch(f"/api/credits/teams/nobody/{action}", json=body), 404, "not_found", resource="team")


# -- payments ----------------------------------------------------------------------------------------------------------


def test_a_payment_is_booked_with_its_amount_and_reference(admin: httpx.Client, team: TestTeam) -> None:
    body = {
        "credits": 50,
        "payment_type": "one_time",
        "payment_amount_usd": 49.9,
        "reason": "starter pack",
        "payment_reference": "pi_1",
    }
    answer = ok(admin.post(of_team(team, "replenish"), json=body))
    assert (team.team_id, 50, 100, 150, "one_time", 49.9) == tuple(
        answer[name]
        for name in (
            "team_id",
            "credits_added",
            "credits_before",
            "credits_after",
            "payment_type",
            "payment_amount_usd",
        )
    )
    transaction = answer["transaction"]
    assert ("one_time_payment", "addition", "starter pack ($49.90)", 49.9, "pi_1") == tuple(
        transaction[name] for name in ("transaction_type", "type", "reason", "payment_amount_usd", "payment_reference")
    )
    assert transaction == transactions_of(team, type="one_time_payment")[0]
    assert None is balance_of(team)["last_refill_at"]


def test_a_payment_notice_delivered_twice_adds_once_and_is_answered_as_before(
    admin: httpx.Client, team: TestTeam
) -> None:
    body = {
        "credits": 50,
        "payment_type": "subscription",
        "payment_amount_usd": 10,
        "payment_reference": "pi_2",
        "expires_at": "2099-01-01T00:00:00Z",
    }
    first = ok(admin.post(of_team(team, "replenish"), json=body))
    complete(team)
    assert first == ok(admin.post(of_team(team, "replenish"), json=body))
    different = {**body, "credits": 7, "payment_type": "one_time", "reason": "other"}
    assert first == ok(admin.post(of_team(team, "replenish"), json=different))
    with ThreadPoolExecutor(4) as pool:
        again = pool.map(lambda _: ok(admin.post(of_team(team, "replenish"), json=body)), range(8))
        assert [first] * 8 == list(again)
    assert 149 == balance_of(team)["credits_remaining"]
    assert "Subscription payment ($10.00)" == first["transaction"]["reason"]
    assert first["transaction"]["created_at"] == balance_of(team)["last_refill_at"]


def test_another_team_may_have_the_same_payment_reference(server: Server, admin: httpx.Client) -> None:
    body = {"credits": 5, "payment_type": "one_time", "payment_reference": "pi_3"}
    for team in (make_team(server, admin), make_team(server, admin)):
        answer = ok(admin.post(of_team(team, "replenish"), json=body))
        assert (105, None, None) == (
            answer["credits_after"],
            answer["payment_amount_usd"],
            answer["transaction"]["reason"],
        )


def test_a_payment_of_an_unknown_kind_is_refused(admin: httpx.Client, team: TestTeam) -> None:
    path = of_team(team, "replenish")
    body = {"credits": 1, "payment_type": "gift"}
    refused(admin.post(path, json=body), 400, "invalid_value", field="payment_type")
    refused(team.client.post(path, json=body), 403, "admin_required")
    nobody = admin.post("/api/credits/teams/nobody/replenish", json={"credits": 1, "payment_type": "one_time"})
    refused(nobody, 404, "not_found", resource="team")
    for field, value in (("credits", 0), ("credits", 1.5), ("payment_amount_usd", -1), ("payment_reference", "")):
        wrong = {"credits": 1, "payment_type": "one_time", field: value}
        invalid(admin.post(path, json=wrong), "body", field)


# -- auto-refill -------------------------------------------------------------------------------------------------------


def test_auto_refill_keeps_amount_and_period_while_it_is_off(admin: httpx.Client, team: TestTeam) -> None:
    path = of_team(team, "configure-auto-refill")
    on = ok(admin.post(path, json={"enabled": True, "refill_amount": 50, "refill_period": "Monthly"}))
    assert (True, 50, "monthly", None) == tuple(
        on[name] for name in ("auto_refill_enabled", "refill_amount", "refill_period", "last_refill_at")
    )
    off = ok(admin.post(path, json={"enabled": False}))
    assert (False, 50, "monthly") == tuple(
        off[name] for name in ("auto_refill_enabled", "refill_amount", "refill_period")
    )
    balance = balance_of(team)
    assert (False, 50, "monthly") == (balance["auto_refill"], balance["refill_amount"], balance["refill_period"])
    assert ok(admin.post(path, json={"enabled": True}))["auto_refill_enabled"]
    assert 100 == balance_of(team)["credits_remaining"]


def test_auto_refill_needs_an_amount_and_a_known_period(admin: httpx.Client, team: TestTeam) -> None:
    path = of_team(team, "configure-auto-refill")
    refused(admin.post(path, json={"enabled": True}), 400, "invalid_value", field="refill_amount")
    refused(admin.post(path, json={"enabled": True, "refill_amount": 5}), 400, "invalid_value", field="refill_period")
    hourly = {"enabled": True, "refill_amount": 5, "refill_period": "hourly"}
    refused(admin.post(path, json=hourly), 400, "invalid_value", field="refill_period")
    for wrong in ({"refill_amount": 0, "enabled": True}, {"enabled": "yes"}):
        invalid(admin.post(path, json=wrong), "body", next(iter(wrong)))
    refused(team.client.post(path, json={"enabled": False}), 403, "admin_required")
    nobody = admin.post("/api/credits/teams/nobody/configure-auto-refill", json={"enabled": False})
    refused(nobody, 404, "not_found", resource="team")


# -- refunds -----------------------------------------------------------------------------------------------------------


def test_a_refund_gives_back_what_is_left_of_the_charge(admin: httpx.Client, team: TestTeam) -> None:
    job_id = complete(team)
    answer = ok(admin.post(of_team(team, "refund"), json={"job_id": job_id, "reason": "sorry"}))
    assert (team.team_id, job_id, 1, 100) == tuple(
        answer[name] for name in ("team_id", "job_id", "credits_refunded", "credits_remaining")
    )
    assert ("refund", "sorry", 99, 100) == tuple(
        answer["transaction"][name] for name in ("transaction_type", "reason", "credits_before", "credits_after")
    )
    balance = balance_of(team)
    assert (100, 0, 100) == (balance["credits_allocated"], balance["credits_used"], balance["credits_remaining"])
    again = admin.post(of_team(team, "refund"), json={"job_id": job_id})
    refused(again, 400, "refund_exceeds_charge", credits_refundable=0)


def test_a_refund_never_exceeds_the_charge(admin: httpx.Client, team: TestTeam) -> None:
    job_id = complete(team)
    answer = admin.post(of_team(team, "refund"), json={"job_id": job_id, "credits": 2})
    refused(answer, 400, "refund_exceeds_charge", credits_refundable=1)
    assert 99 == balance_of(team)["credits_remaining"]


def test_what_was_not_charged_is_not_refunded(server: Server, admin: httpx.Client, team: TestTeam) -> None:
    path = of_team(team, "refund")
    refused(admin.post(path, json={"job_id": team.job()}), 400, "not_charged")
    refused(admin.post(path, json={"job_id": str(uuid4())}), 404, "not_found", resource="job")
    elsewhere = complete(make_team(server, admin))
    refused(admin.post(path, json={"job_id": elsewhere}), 404, "not_found", resource="job")
    invalid(admin.post(path, json={"job_id": "17"}), "body", "job_id")
    refused(team.client.post(path, json={"job_id": complete(team)}), 403, "admin_required")
