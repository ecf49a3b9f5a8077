"""Writes the journal of a business that has been running for a year: teams, jobs, calls, credits, mixed as in life.

It is made up, but true: every event was decided by the domain, on the states that the events before it left behind, so
an auditor finds nothing in it. It is written with COPY as the owner, past the door, since nobody is there yet to be
kept from anything; so only into a journal without events.

    DATABASE_URL=... python -m bench.generate --events 10_000_000
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any
from uuid import UUID

import psycopg
from msgspec.structs import replace

from domain.catalog import AliasTerms, CreateAlias, create_alias
from domain.charging import (
    CancelJob,
    CompleteJob,
    ExpireJob,
    FailJob,
    RefundJob,
    StartCall,
    cancel_job,
    complete_job,
    expire_job,
    fail_job,
    refund_job,
    start_call,
)
from domain.credit import Account, ExpireCredits, GrantCredits, expire_credits, grant_credits
from domain.event import Command, Event, State
from domain.job import Attempt, CreateJob, FailCall, FinishCall, Job, create_job, fail_call, finish_call
from domain.onboarding import CreateTeam, create_team
from domain.organization import CreateOrganization, create_organization
from domain.streams import CREDIT, JOB, KEY, ORGANIZATION, TEAM, THE_CATALOG, category_of
from domain.team import Budget
from infra import journal, postgres
from infra.verify import GENESIS

SEED = 20260101
BEGINNING = datetime(2025, 1, 1, tzinfo=UTC)
YEAR = timedelta(days=365)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
TEAMS_PER_ORGANIZATION = 5
EVENTS_PER_TEAM = 2_000
JOBS_AT_ONCE = 200
ENOUGH_CREDITS = 3 * JOBS_AT_ONCE  # whoever has fewer buys a package before the next job
PACKAGE = 1_000
PACKAGE_LASTS = timedelta(days=90)
MOST_ANSWERED = 1_000  # tokens

MODELS = (
    ("fast", "openai", "gpt-4o-mini", "0.15", "0.60"),
    ("clever", "anthropic", "claude-sonnet-4-5", "3", "15"),
    ("own", "vllm", "llama-3.3-70b", "0", "0"),
)
BUDGETS = (
    Budget(),
    Budget(),
    Budget(mode="consumption_usd", markup_percentage=Decimal(20)),
    Budget(mode="consumption_tokens", charge_policy="any_call_succeeded"),
)
JOB_TYPES = ("chat", "document_analysis", "summary", "extraction")
PURPOSES = (None, "draft", "review", "classify")
CALLS = (1, 1, 2, 2, 3)

_COPY = """
copy journal.events (originator_id, originator_version, topic, state, notification_id, hash) from stdin (format binary)
"""

Decided = list[tuple[str, int, Event]]  # stream, version, and what happened
Row = tuple[str, int, str, bytes, int, bytes]


class Business:
    """Decides what happens, one wish after the other, without an end.

    Args:
        events: over how many of them a year goes by.
        teams: how many customers there are; they come one after the other in the beginning.
        seed: the same seed tells the same story.
    """

    def __init__(self, events: int, teams: int | None = None, seed: int = SEED) -> None:
        self._dice = random.Random(seed)
        self._step = YEAR / events
        self._at = BEGINNING
        self._teams = [f"team-{number}" for number in range(teams or max(5, events // EVENTS_PER_TEAM))]
        self._keys = [self._id() for _ in self._teams]
        self._versioned: dict[str, tuple[int, State]] = {}

    def happens(self) -> Iterator[Decided]:
        for model in MODELS:
            yield self._alias(*model)
        for number in range(len(self._teams)):
            if number % TEAMS_PER_ORGANIZATION == 0:
                yield self._organization(number)
            yield self._team(number)
        running: list[Iterator[Decided]] = []
        while True:
            if len(running) < JOBS_AT_ONCE:
                running.append(self._job())
            number = int(len(running) * self._dice.random())
            decided = next(running[number], None)
            if decided is None:
                running[number] = running[-1]
                running.pop()
            else:
                yield decided

    def exactly(self, events: int) -> Iterator[Decided]:
        """As many events as wanted: where those of a decision would be too many, jobs are opened instead."""
        for decided in self.happens():
            if len(decided) > events:
                break
            events -= len(decided)
            yield decided
        for _ in range(events):
            yield self._job_created(*self._somebody(), self._id())

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _decide(self, decision: Callable[..., Any], command: Command, *streams: str) -> Decided:
        """What the ledger does, without a journal."""
        answer = decision(*(self._state(stream) for stream in streams), command)
        lists = answer if isinstance(answer, tuple) else (answer,)
        decided = []
        for stream, events in zip(streams, lists, strict=True):
            for event in events:
                stamped = replace(event, by=command.by, request=command.request)
                version, state = self._versioned.get(stream, (0, None))
                self._versioned[stream] = version + 1, category_of(stream).evolve(state, stamped)
                decided.append((stream, version + 1, stamped))
        self._at += self._step * len(decided)
        return decided

    def _state(self, stream: str) -> Any:
        return self._versioned.get(stream, (0, None))[1]

    def _id(self) -> str:
        """A UUID of version 7, as the server makes them, of the time that it is in the story."""
        milliseconds, luck = (self._at - EPOCH) // MILLISECOND, self._dice.getrandbits
        return str(UUID(int=milliseconds << 80 | 7 << 76 | luck(12) << 64 | 2 << 62 | luck(62)))

    def _now(self, by: str) -> dict[str, Any]:
        return {"at": self._at, "by": by, "request": f"{self._dice.getrandbits(64):016x}"}

    # -- before the first job ------------------------------------------------------------------------------------------

    def _alias(self, name: str, provider: str, model: str, price_input: str, price_output: str) -> Decided:
        terms = AliasTerms(
            provider=provider,
            actual_model=model,
            display_name=name,
            pricing_input=Decimal(price_input),
            pricing_output=Decimal(price_output),
        )
        wish = CreateAlias(**self._now("master"), alias_id=self._id(), model_alias=name, terms=terms)
        return self._decide(create_alias, wish, THE_CATALOG)

    def _organization(self, number: int) -> Decided:
        name = _organization_of(number)
        wish = CreateOrganization(**self._now("master"), organization_id=name, name=name, metadata={})
        return self._decide(create_organization, wish, ORGANIZATION.stream(name))

    def _team(self, number: int) -> Decided:
        team_id, organization_id = self._teams[number], _organization_of(number)
        digest = sha256(self._keys[number].encode()).hexdigest()
        wish = CreateTeam(
            **self._now("master"),
            team_id=team_id,
            organization_id=organization_id,
            metadata={},
            budget=BUDGETS[number % len(BUDGETS)],
            key_id=self._keys[number],
            key_hash=digest,
            key_masked="sk-...abcd",
            transaction_id=self._id(),
        )
        streams = TEAM.stream(team_id), CREDIT.stream(team_id), KEY.stream(digest), ORGANIZATION.stream(organization_id)
        return self._decide(create_team, wish, *streams, THE_CATALOG)

    # -- a job ---------------------------------------------------------------------------------------------------------

    def _somebody(self) -> tuple[str, str]:
        """A team and its key; some are much busier than others."""
        number = int(len(self._teams) * self._dice.random() ** 2)
        return self._teams[number], self._keys[number]

    def _job(self) -> Iterator[Decided]:
        dice = self._dice
        team_id, by = self._somebody()
        job_id = self._id()
        job, account = JOB.stream(job_id), CREDIT.stream(team_id)
        yield self._topped_up(account)
        yield self._job_created(team_id, by, job_id)
        if dice.random() > 0.02:  # the others are forgotten
            for _ in range(dice.choice(CALLS)):
                yield from self._call(job, account, TEAM.stream(team_id), by)
        yield self._ended(job, account, TEAM.stream(team_id), by)
        ended: Job = self._state(job)
        if ended.credits_charged and dice.random() < 0.01:
            wish = RefundJob(**self._now("master"), transaction_id=self._id(), reason="goodwill")
            yield self._decide(refund_job, wish, job, account)
        del self._versioned[job]

    def _topped_up(self, stream: str) -> Decided:
        """Old credits go, new ones come, if it is time for that."""
        account: Account = self._state(stream)
        happened: Decided = []
        if account.expiring and account.expiring[0].expires_at <= self._at:
            happened += self._decide(expire_credits, ExpireCredits(**self._now("system")), stream)
            account = self._state(stream)
        if account.remaining - account.held < ENOUGH_CREDITS:
            wish = GrantCredits(
                **self._now("master"),
                transaction_id=self._id(),
                credits=PACKAGE,
                kind="subscription_payment",
                reason="package",
                payment_amount_usd=Decimal(100),
                expires_at=self._at + PACKAGE_LASTS,
            )
            happened += self._decide(grant_credits, wish, stream)
        return happened

    def _job_created(self, team_id: str, by: str, job_id: str) -> Decided:
        dice = self._dice
        wish = CreateJob(
            **self._now(by),
            job_id=job_id,
            team_id=team_id,
            job_type=dice.choice(JOB_TYPES),
            user_id=f"user-{dice.getrandbits(10)}" if dice.random() < 0.5 else None,
            metadata={"source": "api", "batch": dice.getrandbits(7)},
        )
        return self._decide(create_job, wish, JOB.stream(job_id), TEAM.stream(team_id))

    def _call(self, job: str, account: str, team: str, by: str) -> Iterator[Decided]:
        dice = self._dice
        call_id, prompt_tokens = self._id(), 10 + dice.getrandbits(11)
        wish = StartCall(
            **self._now(by),
            call_id=call_id,
            model=dice.choice(MODELS)[0],
            purpose=dice.choice(PURPOSES),
            streaming=dice.random() < 0.3,
            prompt_tokens=prompt_tokens,
            output_tokens=MOST_ANSWERED,
            open_aliases=True,
            longest_attempt=timedelta(minutes=10),
            request_sha256=f"{dice.getrandbits(256):064x}",
            request_bytes=prompt_tokens * 4,
            metadata={},
        )
        organization = ORGANIZATION.stream(self._state(team).organization_id)
        yield self._decide(start_call, wish, job, account, team, organization, THE_CATALOG)
        if dice.random() < 0.03:
            yield self._decide(fail_call, self._failure(call_id), job)
        else:
            yield self._decide(finish_call, self._answer(call_id, prompt_tokens, by), job)

    def _failure(self, call_id: str) -> FailCall:
        latency_ms = self._dice.randrange(10, 30_000)
        attempt = Attempt(
            target="primary",
            resolved_model="primary",
            outcome="error",
            http_status=503,
            error="overloaded",
            latency_ms=latency_ms,
        )
        return FailCall(
            **self._now("system"),
            call_id=call_id,
            error=self._dice.choice(("provider_error", "request_rejected", "timeout")),
            provider_error="overloaded",
            http_status=503,
            latency_ms=latency_ms,
            attempts=(attempt,),
        )

    def _answer(self, call_id: str, prompt_tokens: int, by: str) -> FinishCall:
        dice = self._dice
        completion_tokens = 1 + int(MOST_ANSWERED * dice.random())
        return FinishCall(
            **self._now(by),
            call_id=call_id,
            target=0,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            usage_estimated=False,
            latency_ms=100 + completion_tokens * 10,
            finish_reason="stop",
            response_sha256=f"{dice.getrandbits(256):064x}",
            response_bytes=completion_tokens * 5,
        )

    def _ended(self, job: str, account: str, team: str, by: str) -> Decided:
        """Who opened a job and called nobody has forgotten it; others end it, nearly always well."""
        opened: Job = self._state(job)
        ending: dict[str, Any] = {**self._now(by), "charge_id": self._id()}
        luck = self._dice.random()
        if not opened.total_calls or luck < 0.02:
            return self._decide(expire_job, ExpireJob(**ending, idle=timedelta()), job, account)
        if luck < 0.03:
            return self._decide(cancel_job, CancelJob(**ending), job, account)
        if luck < 0.06:
            return self._decide(fail_job, FailJob(**ending, metadata={}), job, account)
        return self._decide(complete_job, CompleteJob(**ending, metadata={}), job, account, team)


def _organization_of(number: int) -> str:
    return f"organization-{number // TEAMS_PER_ORGANIZATION}"


# -- writing -----------------------------------------------------------------------------------------------------------


def rows(decisions: Iterable[Decided]) -> Iterator[Row]:
    """Events as the table has them, each vouching for all before it."""
    digest, position = GENESIS, 0
    for decided in decisions:
        for stream, version, event in decided:
            topic, state = type(event).__name__, journal.encode(event)
            said = b"%b\0%b%b\0%b" % (stream.encode(), version.to_bytes(8), topic.encode(), state)
            digest, position = sha256(digest + said).digest(), position + 1
            yield stream, version, topic, state, position, digest


def generate(
    dsn: str, events: int, *, teams: int | None = None, seed: int = SEED, progress: Callable[[int], None] | None = None
) -> None:
    """Fills an empty journal.

    Args:
        dsn: of the role that owns it.
        events: how many there shall be; more than it takes to set up the teams.
        progress: called now and then with the position reached.
    """
    with psycopg.connect(dsn) as connection:
        [(head,)] = connection.execute("select position from journal.head for update").fetchall()
        if head:
            raise SystemExit(f"this journal has {head} events already")
        digest = GENESIS
        with connection.cursor().copy(_COPY) as copy:
            copy.set_types(["text", "int8", "text", "bytea", "int8", "bytea"])
            for row in rows(Business(events, teams, seed).exactly(events)):
                copy.write_row(row)
                *_, position, digest = row
                if progress is not None and position % 10_000 == 0:
                    progress(position)
        connection.execute("update journal.head set position = %s, hash = %s", (events, digest))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("vacuum analyze journal.events")


def main() -> None:
    """Generates as many events as asked for into the database of DATABASE_URL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--teams", type=int, default=None, help=f"default: one for {EVENTS_PER_TEAM} events")
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    dsn = os.environ["DATABASE_URL"]
    postgres.migrate(dsn)
    started = time.perf_counter()

    def tell(position: int) -> None:
        speed = position / (time.perf_counter() - started)
        print(f"\r{position:,} of {given.events:,} events, {speed:,.0f} a second", end="", file=sys.stderr, flush=True)

    generate(dsn, given.events, teams=given.teams, seed=given.seed, progress=tell)
    print(file=sys.stderr)


if __name__ == "__main__":
    main()
