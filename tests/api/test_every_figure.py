"""Every figure that finance is shown, through whichever door, is what plain arithmetic makes of the journal.

The history is a year of bench/generate.py in a house of its own: all budget modes, jobs that go on over midnights and
month ends, calls and refunds of later months, grants that end, corrections; then what somebody does over HTTP, and what
the clock does. It is added up here in fractions, from the JSON of the events and with nothing of ours, and laid beside
what is answered: for whole months and days, and for parts of days to the microsecond.

What is asked before a change lands is the same each time. The seed is printed; FIGURES_SEED repeats a run.
"""

import asyncio
import csv
import io
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from itertools import groupby, pairwise
from math import floor
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
from psycopg.rows import dict_row

from bench.generate import BEGINNING, YEAR, Business, Decided, rows
from domain.credit import AdjustCredits, adjust_credits
from domain.job import FailCall
from infra import journal
from tests.api.conftest import Server, running
from tests.api.test_teams import ok
from tests.api.test_usage import exactly
from tests.conftest import _database_on
from tests.infra.accounts import a_draft, connected
from tests.waiting import until

EVENTS, TEAMS = 2_500, 7
MICROSECOND = timedelta(microseconds=1)
MONTHS = [f"2025-{month:02}" for month in range(1, 13)]
ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))

Event = dict[str, Any]
Span = tuple[dict[str, str], datetime, datetime]  # as it is asked for; its first moment, and the first one after it
Amounts = Counter[str]


class Year(Business):
    """With what else may happen in one."""

    def _topped_up(self, stream: str) -> Decided:
        happened = super()._topped_up(stream)
        if self._dice.random() < 0.1:
            credits = self._dice.choice((-7, 5, 40))
            wish = AdjustCredits(**self._now("master"), transaction_id=self._id(), credits=credits, reason="a mistake")
            happened += self._decide(adjust_credits, wish, stream)
        return happened

    def _failure(self, call_id: str) -> FailCall:
        """The provider has answered something before it broke off, and will want to be paid."""
        wish = super()._failure(call_id)
        return msgspec.structs.replace(wish, target=0, prompt_tokens=333, completion_tokens=7)


async def write(dsn: str, year: Year) -> None:
    draft = a_draft()
    for stream, version, topic, state, *_ in rows(year.exactly(EVENTS)):
        draft.read.setdefault(stream, version - 1)
        draft.add(stream, topic, state)
    async with await connected(dsn) as connection:
        assert not (await journal.append(connection, draft)).stale


# -- the journal, added up ---------------------------------------------------------------------------------------------


@dataclass
class Job:
    created_at: datetime
    names: dict[str, str | None]
    status: str = "pending"
    charged: int = 0
    refunded: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)  # those that have ended

    def of(self, *figures: str) -> Fraction:
        return sum((call[each] for call in self.calls for each in figures), Fraction())


@dataclass
class Books:
    """What the events say."""

    jobs: dict[str, Job] = field(default_factory=dict)
    entries: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))  # of each team, without holds
    provider_days: dict[tuple[str, str, str], Amounts] = field(default_factory=lambda: defaultdict(Counter))

    def of(self, span: Span, **names: str) -> list[Job]:
        """The jobs that were created then, of whom the names say."""
        _, start, end = span
        wanted = names.items()
        return [job for job in self.jobs.values() if start <= job.created_at < end and wanted <= job.names.items()]


CHANGES = {"CreditsGranted": 1, "CreditsAdjusted": 1, "CreditsRefunded": 1, "CreditsCharged": -1, "CreditsExpired": -1}
ENDS = {"JobCompleted": "completed", "JobFailed": "failed", "JobExpired": "failed", "JobCancelled": "cancelled"}


def books_of(dsn: str) -> Books:
    books = Books()
    models: dict[str, Event] = {}
    with psycopg.connect(dsn) as connection:
        found = connection.execute("select topic, state, notification_id from journal.events order by 3").fetchall()
    for topic, state, position in found:
        event: Event = msgspec.json.decode(state)
        at = datetime.fromisoformat(event["at"])
        if topic in CHANGES:
            change = CHANGES[topic] * event["credits"]
            books.entries[event["team_id"]].append(
                {**event, "topic": topic, "at": at, "position": position, "change": change}
            )
        elif topic == "JobCreated":
            books.jobs[event["job_id"]] = Job(at, _names(at, event))
        elif topic == "CallStarted":
            models[event["call_id"]] = event
            books.jobs[event["job_id"]].status = "in_progress"
        elif topic in ("CallFinished", "CallFailed"):
            _end_call(books, models[event["call_id"]], event, at, answered=topic == "CallFinished")
        elif topic == "ChargeRefunded":
            books.jobs[event["job_id"]].refunded += event["credits"]
        elif topic in ENDS:
            job = books.jobs[event["job_id"]]
            job.status, job.charged = ENDS[topic], event["credits_charged"]
    return books


def _names(at: datetime, event: Event) -> dict[str, str | None]:
    names = {name: event[name] for name in ("organization_id", "team_id", "user_id", "job_type")}
    return {"day": str(at.date()), "month": f"{at:%Y-%m}", **names}


def _end_call(books: Books, started: Event, event: Event, at: datetime, *, answered: bool) -> None:
    call: dict[str, Any] = {
        "model": started["model"],
        "purpose": started["purpose"],
        "provider": event["provider"],
        "resolved_model": event["resolved_model"],
        "successful_calls": int(answered),
        "failed_calls": int(not answered),
        "prompt_tokens": event.get("prompt_tokens", 0),
        "completion_tokens": event.get("completion_tokens", 0),
        "provider_cost_usd": Fraction(event["provider_cost_usd"]),
        "revenue_usd": Fraction(event.get("client_cost_usd", 0)),
    }
    books.jobs[started["job_id"]].calls.append(call)
    if answered or call["provider_cost_usd"]:
        model = call["resolved_model"].removeprefix(f"{call['provider']}/")
        tokens = {"tokens": call["prompt_tokens"] + call["completion_tokens"]}
        books.provider_days[str(at.date()), call["provider"], model].update(
            calls=1, cost=call["provider_cost_usd"], **tokens
        )


def rounded(amount: Fraction, decimals: int = 6) -> Fraction:
    """Half up, which is away from nothing."""
    whole = floor(abs(amount) * 10**decimals + Fraction(1, 2))
    return Fraction(whole if amount >= 0 else -whole, 10**decimals)


def usd(answered: Decimal | int) -> Fraction:
    return Fraction(answered)


# -- the house ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    server: Server
    admin: httpx.Client
    books: Books
    spans: list[Span]
    seed: int

    @property
    def teams(self) -> list[str]:
        return sorted(self.books.entries)

    @property
    def dice(self) -> random.Random:
        return random.Random(self.seed)

    def get(self, path: str, **query: Any) -> Any:
        return exactly(self.admin.get(path, params=query))


@pytest.fixture(scope="module")
def house(owner_dsn: str, template: str) -> Iterator[House]:
    """As it is when all is done, also by the clock, and nothing happens any more."""
    seed = int(os.environ.get("FIGURES_SEED") or (1 if "CI" in os.environ else random.randrange(2**32)))
    print(f"FIGURES_SEED={seed}")
    with _database_on(owner_dsn, f"figures_{seed}", template) as dsn:
        asyncio.run(write(dsn, Year(EVENTS, TEAMS, seed)))
        with running(dsn, chore_seconds=0.1) as server, server.client() as admin:
            happened_later(admin)
            until(lambda: query(dsn, NOTHING_IS_DUE)[0]["quiet"])
        books = books_of(dsn)
        with running(dsn, works=False) as server, server.client() as admin:
            until(lambda: "X-Ledger-Lag" not in admin.get("/api/stats/dashboard").headers)
            yield House(server, admin, books, list(spans(books, random.Random(seed))), seed)


# Jobs that the year has left open expire, calls without an end are interrupted, and ended grants end but for what jobs
# that were interrupted still hold.
NOTHING_IS_DUE = """
select not exists (select from readmodel.calls where status = 'running')
   and not exists (select from readmodel.jobs
                   where completed_at is null and (active_at < '2026-01-01' or team_id = 'team-4'))
   and not exists (select from readmodel.ending_grants join readmodel.balances using (team_id)
                   where expires_at < now() group by team_id, credits_held having sum(credits_left) > credits_held)
           as quiet
"""


def query(dsn: str, select: str) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return connection.execute(select.encode()).fetchall()


def happened_later(admin: httpx.Client) -> None:
    """Months are closed; then something is given back of them, and corrected, and a team is deleted."""
    ok(admin.post("/api/jobs/create", json={"team_id": "team-0", "job_type": "chat"}))
    for team, months in (("team-0", MONTHS), ("team-1", MONTHS[:5]), ("team-2", MONTHS[:1])):
        for month in months:
            ok(admin.post(f"/api/reports/statements/{team}/{month}/close"))
        old = {"team_id": team, "type": "deduction", "end_date": "2025-11-30"}
        charged = ok(admin.get("/api/credits/transactions", params=old))
        for transaction in charged["transactions"][:2]:
            refund = {"job_id": transaction["job_id"], "credits": 1, "reason": "late"}
            answer = admin.post(f"/api/credits/teams/{team}/refund", json=refund)
            assert answer.is_success or answer.json()["code"] == "refund_exceeds_charge", answer.text
    ok(admin.put("/api/teams/team-1", json={"credits_allocated": 12_345}))
    ok(admin.post("/api/credits/add", json={"team_id": "team-3", "amount": 77}))
    ok(admin.delete("/api/teams/team-4"))


def spans(books: Books, dice: random.Random) -> Iterator[Span]:
    """All time, months, days, parts of a day, and any two moments, some just when a job was created."""
    yield {}, *ALWAYS
    for month in dice.sample(range(1, 12), 3):
        first, after = datetime(2025, month, 1, tzinfo=UTC), datetime(2025, month + 1, 1, tzinfo=UTC)
        yield {"start_date": str(first.date()), "end_date": str((after - MICROSECOND).date())}, first, after
    moments = [BEGINNING + YEAR * dice.random() for _ in range(8)]
    moments += [job.created_at for job in dice.sample([*books.jobs.values()], 8)]
    days = [moment.replace(hour=0, minute=0, second=0, microsecond=0) for moment in moments]
    for number, (start, end) in enumerate(sorted(dice.sample(moments + days, 2)) for _ in range(10)):
        zone = timezone(timedelta(hours=5, minutes=30)) if number % 2 else UTC
        asked = {"start_date": start.astimezone(zone).isoformat(), "end_date": end.astimezone(zone).isoformat()}
        yield asked, start, end + MICROSECOND
    for moment, day in zip(moments, days, strict=True):
        yield {"start_date": str(moment), "end_date": str(day.date())}, moment, day + timedelta(days=1)
    yield {"end_date": str(days[0].date())}, ALWAYS[0], days[0] + timedelta(days=1)
    yield {"start_date": moments[-1].isoformat()}, moments[-1], ALWAYS[1]


# -- costs -------------------------------------------------------------------------------------------------------------

OF_JOBS = {"day": "day", "month": "month", "organization": "organization_id", "team": "team_id", "user": "user_id"}
OF_JOBS |= {"job_type": "job_type"}
OF_CALLS = {name: name for name in ("model", "provider", "resolved_model", "purpose")}
COLUMNS = OF_JOBS | OF_CALLS
COUNTS = ("successful_calls", "failed_calls", "prompt_tokens", "completion_tokens")
FIGURES = (*COUNTS, "provider_cost_usd", "revenue_usd")


def costs_of(jobs: Iterable[Job], by: Iterable[str], wanted: dict[str, str]) -> dict[tuple[str | None, ...], Amounts]:
    groups: dict[tuple[str | None, ...], Amounts] = defaultdict(Counter)
    columns = [COLUMNS[each] for each in by]
    for job in jobs:
        for call in job.calls:
            names = job.names | {name: call[name] for name in OF_CALLS}
            if wanted.items() <= names.items():
                groups[tuple(names[column] for column in columns)].update({each: call[each] for each in FIGURES})
    return groups


def same_costs(expected: Amounts, row: dict[str, Any]) -> None:
    assert [expected[each] for each in COUNTS] == [row[each] for each in COUNTS]
    assert expected["successful_calls"] + expected["failed_calls"] == row["calls"]
    assert expected["prompt_tokens"] + expected["completion_tokens"] == row["total_tokens"]
    revenue, cost = Fraction(expected["revenue_usd"]), Fraction(expected["provider_cost_usd"])
    dollars = [row[each] for each in ("revenue_usd", "provider_cost_usd", "margin_usd")]
    assert [rounded(revenue), rounded(cost), rounded(revenue - cost)] == [usd(each) for each in dollars]
    percent = rounded((revenue - cost) * 100 / revenue, 2) if revenue else None
    assert percent == (None if row["margin_percent"] is None else usd(row["margin_percent"]))


def test_costs_in_any_grouping_of_any_period(house: House) -> None:
    dice = house.dice
    for number in range(80):
        span = dice.choice(house.spans)
        by = dice.sample([*COLUMNS], number % 4)
        wanted: dict[str, str] = {}
        for column in dice.sample(("organization_id", "team_id", "job_type", "model", "provider"), dice.randrange(3)):
            some_job = dice.choice([job for job in house.books.jobs.values() if job.calls])
            value = {**dice.choice(some_job.calls), **some_job.names}[column]
            wanted |= {column: value} if value is not None else {}
        if "user" in by:
            wanted |= {"organization_id": "organization-0"}
        query = {**span[0], **wanted, "group_by": ",".join(by)}
        expected = costs_of(house.books.of(span), by, wanted)
        answered = house.get("/api/reports/costs", **query, limit=1000)
        found = {tuple(row[COLUMNS[each]] for each in by): row for row in answered["rows"]}
        assert expected.keys() | ({()} if not by else set()) == found.keys(), query
        assert len(found) == len(answered["rows"]) == answered["total"]
        for names, row in found.items():
            same_costs(expected.get(names, Counter()), row)
        same_costs(sum(expected.values(), Counter()), answered["totals"])
        table = house.admin.get("/api/reports/costs", params={**query, "format": "csv"}).text
        lines = list(csv.DictReader(io.StringIO(table, newline="")))
        assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in lines] == [
            {name: "" if value is None else str(value) for name, value in row.items()} for row in answered["rows"]
        ]


# -- usage -------------------------------------------------------------------------------------------------------------


def used(jobs: Iterable[Job]) -> dict[str, Any]:
    jobs = list(jobs)
    return {
        "total_jobs": len(jobs),
        "completed": sum(job.status == "completed" for job in jobs),
        "failed": sum(job.status == "failed" for job in jobs),
        "credits_used": sum(job.charged - job.refunded for job in jobs),
        "total_tokens": sum(job.of("prompt_tokens", "completion_tokens") for job in jobs),
        "cost": sum((job.of("revenue_usd") for job in jobs), Fraction()),
    }


def by_name(jobs: Iterable[Job], name: str) -> dict[str, list[Job]]:
    def named(job: Job) -> str:
        return str(job.names[name])

    return {each: list(those) for each, those in groupby(sorted(jobs, key=named), named)}


def same_usage(expected: dict[str, Any], summary: dict[str, Any], completed: str = "successful_jobs") -> None:
    names = ("total_jobs", completed, "failed_jobs", "credits_used", "total_tokens")
    figures = [expected[each] for each in ("total_jobs", "completed", "failed", "credits_used", "total_tokens")]
    assert figures == [summary[each] for each in names]
    assert rounded(expected["cost"]) == usd(summary["total_cost_usd"])


def test_usage_of_teams_in_any_period(house: House) -> None:
    months = [({"period": month}, *_month(month)) for month in MONTHS]
    dice = house.dice
    for span in [*house.spans, *months]:
        for team_id in dice.sample(house.teams, 2):
            jobs = house.books.of(span, team_id=team_id)
            expected = used(jobs)
            answered = house.get(f"/api/teams/{team_id}/usage", **span[0], limit=1000)
            same_usage(expected, answered["summary"])
            average = rounded(expected["cost"] / len(jobs)) if jobs else 0
            assert average == usd(answered["summary"]["avg_cost_per_job"])
            assert len(jobs) == answered["total"] == len(answered["jobs"])
            for job_type, those in by_name(jobs, "job_type").items():
                line = answered["job_types"].pop(job_type)
                assert (len(those), rounded(used(those)["cost"])) == (line["count"], usd(line["cost_usd"]))
            assert {} == answered["job_types"]


def _month(month: str) -> tuple[datetime, datetime]:
    start = datetime.fromisoformat(f"{month}-01T00:00:00Z")
    return start, (start + timedelta(days=31)).replace(day=1)


def test_usage_costs_and_figures_of_organizations_in_any_period(house: House) -> None:
    dice = house.dice
    for span in house.spans:
        organization_id = dice.choice(("organization-0", "organization-1"))
        jobs = house.books.of(span, organization_id=organization_id)
        expected = used(jobs)
        teams = {team_id: used(those) for team_id, those in by_name(jobs, "team_id").items()}
        spent = {team_id: rounded(each["cost"]) for team_id, each in teams.items()}
        answered = house.get(f"/api/organizations/{organization_id}/usage", **span[0])
        same_usage(expected, answered["summary"])
        assert {team_id: each["credits_used"] for team_id, each in teams.items()} == {
            team_id: each["credits_used"] for team_id, each in answered["teams"].items()
        }
        assert spent == {team_id: usd(each["cost_usd"]) for team_id, each in answered["by_team"].items()}

        costs = house.get(f"/api/organizations/{organization_id}/costs", **span[0])
        provider = sum((job.of("provider_cost_usd") for job in jobs), Fraction())
        dollars = [costs[each] for each in ("total_cost_usd", "provider_cost_usd", "profit_usd")]
        assert [rounded(expected["cost"]), rounded(provider), rounded(expected["cost"] - provider)] == [
            usd(each) for each in dollars
        ]
        called = {team_id for team_id, those in by_name(jobs, "team_id").items() if any(job.calls for job in those)}
        assert {team_id: spent[team_id] for team_id in called} == {
            team_id: usd(cost) for team_id, cost in costs["by_team"].items()
        }
        models = costs_of(jobs, ["model"], {})
        assert {name: rounded(Fraction(each["revenue_usd"])) for (name,), each in models.items()} == {
            name: usd(cost) for name, cost in costs["by_model"].items()
        }

        stats = house.get(f"/api/jobs/organizations/{organization_id}/stats", **span[0])
        same_usage(expected, {**stats, "credits_used": stats["total_credits_used"]}, "completed_jobs")
        calls = sum(costs_of(jobs, [], {}).values(), Counter())
        assert [calls["successful_calls"], calls["failed_calls"]] == [stats["successful_calls"], stats["failed_calls"]]
        assert sum(job.status == "in_progress" for job in jobs) == stats["in_progress_jobs"]
        analytics = house.get(f"/api/jobs/organizations/{organization_id}/analytics", **span[0])
        assert rounded(expected["cost"]) == usd(analytics["total_spend"])
        days = costs_of(jobs, ["day"], {})
        assert {day: rounded(Fraction(each["revenue_usd"])) for (day,), each in days.items()} == {
            each["date"]: usd(each["spend"]) for each in analytics["daily_spend"]
        }


# -- credits -----------------------------------------------------------------------------------------------------------


def remaining(entries: Iterable[Event]) -> int:
    return sum(entry["change"] for entry in entries)


def test_balances_transactions_and_replays(house: House) -> None:
    for team_id in house.teams:
        entries = house.books.entries[team_id]
        allocated = sum(
            each["change"] for each in entries if each["topic"] not in ("CreditsCharged", "CreditsRefunded")
        )
        balance = house.get("/api/credits/balance", team_id=team_id)
        assert (allocated, allocated - remaining(entries)) == (balance["credits_allocated"], balance["credits_used"])
        assert house.get(f"/api/teams/{team_id}/usage", limit=1)["summary"]["credits_used"] == balance["credits_used"]
        shown: list[Any] = []
        while len(shown) < len(entries):
            page = house.get("/api/credits/transactions", team_id=team_id, limit=1000, offset=len(shown))
            assert len(entries) == page["total"]
            shown += page["transactions"]
        assert [(each["transaction_id"], each["change"]) for each in entries] == [
            (each["transaction_id"], each["credits_after"] - each["credits_before"]) for each in reversed(shown)
        ]
        for before, after in pairwise(reversed(shown)):
            assert before["credits_after"] == after["credits_before"]
        replay = house.get(f"/api/audit/teams/{team_id}/replay", limit=1)
        while replay["next_after"] is not None:
            replay = house.get(f"/api/audit/teams/{team_id}/replay", limit=1000, after=replay["next_after"])
        assert (True, remaining(entries)) == (replay["agrees"], replay["credits_remaining"])
        for entry in house.dice.sample(entries, min(5, len(entries))):
            then = house.get("/api/credits/balance", team_id=team_id, as_of=entry["position"])
            assert (
                remaining(each for each in entries if each["position"] <= entry["position"])
                == (then["credits_remaining"])
            )
            then = house.get("/api/credits/balance", team_id=team_id, as_of=entry["at"].isoformat())
            assert remaining(each for each in entries if each["at"] <= entry["at"]) == then["credits_remaining"]


def test_trends_of_a_team_and_of_all(house: House) -> None:
    for team_id in (None, *house.teams):
        entries = [each for team in house.teams if team_id in (None, team) for each in house.books.entries[team]]
        points = house.get("/api/credits/trends", days=365, **({} if team_id is None else {"team_id": team_id}))[
            "points"
        ]
        assert 365 == len(points)
        for point in points:
            day = date.fromisoformat(point["date"])
            those = [each for each in entries if each["at"].date() == day]
            credits_used = -remaining(each for each in those if each["topic"] in ("CreditsCharged", "CreditsRefunded"))
            assert (credits_used, remaining(those)) == (
                point["credits_used"],
                point["credits_added"] - point["credits_used"],
            )
            assert remaining(each for each in entries if each["at"].date() <= day) == point["credits_remaining"]


# -- what is signed off ------------------------------------------------------------------------------------------------

KINDS = {
    "granted_credits": "CreditsGranted",
    "adjusted_credits": "CreditsAdjusted",
    "charged_credits": "CreditsCharged",
    "refunded_credits": "CreditsRefunded",
    "expired_credits": "CreditsExpired",
}


def test_statements_from_balance_to_balance(house: House) -> None:
    for team_id in house.teams:
        opening, after = 0, 0
        later = {f"{each['at']:%Y-%m}" for each in house.books.entries[team_id]}
        for month in sorted({*MONTHS, "2026-01"} | later):
            statement = house.get(f"/api/reports/statements/{team_id}/{month}", limit=1000)
            _, end = _month(month)
            entries = [each for each in house.books.entries[team_id] if each["position"] > after and each["at"] < end]
            assert (opening, opening + remaining(entries)) == (
                statement["opening_credits"],
                statement["closing_credits"],
            ), (team_id, month)
            totals = {name: sum(each["credits"] for each in entries if each["topic"] == KINDS[name]) for name in KINDS}
            assert totals == {name: statement["totals"][name] for name in KINDS}
            assert [(each["transaction_id"], each["change"]) for each in entries] == [
                (each["transaction_id"], each["credits"]) for each in statement["entries"]
            ]
            _same_appendix(house, [each for each in entries if each["topic"] == "CreditsCharged"], statement)
            opening, after = opening + remaining(entries), max([after, *(each["position"] for each in entries)])


def _same_appendix(house: House, charges: list[Event], statement: dict[str, Any]) -> None:
    jobs = [house.books.jobs[each["job_id"]] for each in charges]
    cost = sum((job.of("revenue_usd") for job in jobs), Fraction())
    assert sum((Fraction(each["client_cost_usd"]) for each in charges), Fraction()) == cost
    assert rounded(cost) == usd(statement["totals"]["total_cost_usd"])
    usage = statement["usage"]
    assert {
        job_type: (len(those), sum(job.charged for job in those), rounded(used(those)["cost"]))
        for job_type, those in by_name(jobs, "job_type").items()
    } == {each["job_type"]: (each["jobs"], each["credits"], usd(each["cost_usd"])) for each in usage["by_job_type"]}
    models = {name: each for (name,), each in costs_of(jobs, ["model"], {}).items() if each["successful_calls"]}
    assert {
        name: (*(each[figure] for figure in COUNTS if figure != "failed_calls"), rounded(Fraction(each["revenue_usd"])))
        for name, each in models.items()
    } == {
        each["model"]: (each["calls"], each["prompt_tokens"], each["completion_tokens"], usd(each["cost_usd"]))
        for each in usage["by_model"]
    }


def test_what_we_owe_providers(house: House) -> None:
    found: dict[tuple[str, str, str], Amounts] = {}
    while len(found) < len(house.books.provider_days):
        page = house.get("/api/reports/reconciliation", limit=1000, offset=len(found))
        assert len(house.books.provider_days) == page["total"]
        for row in page["rows"]:
            cost = usd(row["provider_cost_usd"])
            amounts = Counter(calls=row["calls"], tokens=row["total_tokens"], cost=cost)
            found[row["day"], row["provider"], row["model"]] = amounts
    assert {
        names: {**amounts, "cost": rounded(Fraction(amounts["cost"]))}
        for names, amounts in house.books.provider_days.items()
    } == found


# -- for tools ---------------------------------------------------------------------------------------------------------


def test_views_of_the_schema_reporting(house: House) -> None:
    def same(select: str, expected: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> None:
        assert expected == {row.pop("name"): read(row) for row in query(house.server.dsn, select)}

    jobs = house.books.jobs
    same(
        """select job_id::text as name, credits_charged, credits_refunded, total_tokens, client_cost_usd,
                  provider_cost_usd from reporting.jobs""",
        {job_id: [job.charged, job.refunded, *(job.of(*each) for each in _OF_A_JOB)] for job_id, job in jobs.items()},
        lambda row: [Fraction(each) for each in row.values()],
    )
    same(
        """select team_id || day as name, sum(total_jobs) as jobs, sum(credits_charged - credits_refunded) as credits
           from reporting.daily_jobs group by 1""",
        {
            team_id + day: [len(those), used(those)["credits_used"]]
            for team_id, all_of_it in by_name(jobs.values(), "team_id").items()
            for day, those in by_name(all_of_it, "day").items()
        },
        lambda row: [int(each) for each in row.values()],
    )
    same(
        """select team_id || day || model || coalesce(purpose, '-') || coalesce(provider_model, '-') as name,
                  sum(client_cost_usd) as client, sum(margin_usd) as margin from reporting.daily_costs group by 1""",
        {
            "".join(name or "-" for name in names): [
                Fraction(each["revenue_usd"]),
                Fraction(each["revenue_usd"]) - Fraction(each["provider_cost_usd"]),
            ]
            for names, each in costs_of(
                jobs.values(), ["team", "day", "model", "purpose", "resolved_model"], {}
            ).items()
        },
        lambda row: [Fraction(each) for each in row.values()],
    )
    for select in (
        "select team_id as name, sum(credits)::bigint as credits from reporting.entries group by 1",
        "select team_id as name, credits_remaining as credits from reporting.balances",
    ):
        expected = {team_id: remaining(entries) for team_id, entries in house.books.entries.items()}
        same(select, expected, lambda row: row["credits"])


_OF_A_JOB = (("prompt_tokens", "completion_tokens"), ("revenue_usd",), ("provider_cost_usd",))
