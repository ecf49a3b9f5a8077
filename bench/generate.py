"""Writes the journal of a business that has been running for a while: teams, jobs, calls, credits, mixed as in life.

It is made up, but true in itself: every movement says what it left behind, holds become charges or are released, each
job is charged once, and the chain is whole. It is written with COPY as the owner, past the door, since nobody is there
yet to be kept from anything; so only into a journal without events.

    DATABASE_URL=... python -m bench.generate --events 10_000_000
"""

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg

from domain.credit import AccountOpened, CreditsCharged, CreditsGranted, CreditsHeld, HoldReleased
from domain.event import Event
from domain.job import CallAttemptFailed, CallFailed, CallFinished, CallStarted, JobCompleted, JobCreated, JobFailed
from domain.organization import OrganizationCreated
from domain.pricing import ZERO
from domain.team import Budget, KeyClaimed, TeamCreated, VirtualKeyIssued
from infra import journal, postgres
from infra.verify import GENESIS

SEED = 20260101
BEGINNING = datetime(2025, 1, 1, tzinfo=UTC)
TEAMS_PER_ORGANIZATION = 5
EVENTS_PER_TEAM = 2_000
JOBS_AT_ONCE = 200
MODELS = (("fast", "openai", "gpt-4o-mini", 15, 60), ("clever", "anthropic", "claude-sonnet-4-5", 300, 1500))
JOB_TYPES = ("chat", "document_analysis", "summary", "extraction")
PURPOSES = (None, "draft", "review", "classify")
TERMS = Budget().terms

_COPY = """
copy journal.events (originator_id, originator_version, topic, state, notification_id, hash) from stdin (format binary)
"""

Told = tuple[str, Event]  # the stream, and what happened in it
Row = tuple[str, int, str, bytes, int, bytes]


@dataclass(slots=True)
class Team:
    """One customer, and how its account stands."""

    team_id: str
    organization_id: str
    key_id: str
    is_first: bool  # of its organization
    allocated: int = 0
    used: int = 0
    held: int = 0

    @property
    def whose(self) -> dict[str, Any]:
        return {"team_id": self.team_id, "organization_id": self.organization_id}

    @property
    def left(self) -> dict[str, Any]:
        return {
            "allocated_credits": self.allocated,
            "remaining_credits": self.allocated - self.used,
            "held_credits": self.held,
        }


class Business:
    """Tells what happens, one event after the other, without an end.

    Args:
        events: over how many of them a year goes by.
        teams: how many customers there are; they come one after the other in the beginning.
        seed: the same seed tells the same story.
    """

    def __init__(self, events: int, teams: int | None = None, seed: int = SEED) -> None:
        self._dice = random.Random(seed)
        self._teams = [self._team(number) for number in range(teams or max(5, events // EVENTS_PER_TEAM))]
        self._step = timedelta(days=365) / events
        self._at = BEGINNING

    def _id(self) -> str:
        return str(UUID(int=self._dice.getrandbits(128), version=4))

    def _team(self, number: int) -> Team:
        organization, place = divmod(number, TEAMS_PER_ORGANIZATION)
        return Team(f"team-{number}", f"organization-{organization}", self._id(), is_first=place == 0)

    def _now(self, by: str) -> dict[str, Any]:
        self._at += self._step
        return {"at": self._at, "by": by, "request": f"{self._dice.getrandbits(64):016x}"}

    def happens(self) -> Iterator[Told]:
        for team in self._teams:
            yield from self._arrives(team)
        running: list[Iterator[Told]] = []
        while True:
            if len(running) < JOBS_AT_ONCE:
                running.append(self._job())
            number = self._dice.randrange(len(running))
            told = next(running[number], None)
            if told is None:
                running[number] = running[-1]
                running.pop()
            else:
                yield told

    def _arrives(self, team: Team) -> Iterator[Told]:
        if team.is_first:
            created = OrganizationCreated(
                **self._now("master"), organization_id=team.organization_id, name=team.organization_id, metadata={}
            )
            yield f"organization-{team.organization_id}", created
        yield f"team-{team.team_id}", TeamCreated(**self._now("master"), **team.whose, metadata={})
        digest = sha256(team.key_id.encode()).hexdigest()
        yield (
            f"team-{team.team_id}",
            VirtualKeyIssued(
                **self._now("master"), team_id=team.team_id, key_id=team.key_id, key_hash=digest, masked="sk-...abcd"
            ),
        )
        yield f"key-{digest}", KeyClaimed(**self._now("master"), **team.whose, key_hash=digest, key_id=team.key_id)
        yield f"credit-{team.team_id}", AccountOpened(**self._now("master"), **team.whose)

    def _job(self) -> Iterator[Told]:
        dice = self._dice
        team = self._teams[int(len(self._teams) * dice.random() ** 2)]  # some are much busier than others
        job_id, by = self._id(), team.key_id
        job, account = f"job-{job_id}", f"credit-{team.team_id}"
        if team.allocated - team.used - team.held < 10:
            yield account, self._granted(team)
        created = JobCreated(
            **self._now(by),
            **team.whose,
            job_id=job_id,
            job_type=dice.choice(JOB_TYPES),
            user_id=f"user-{dice.randrange(1000)}" if dice.random() < 0.5 else None,
            metadata={"source": "api", "batch": dice.randrange(100)},
        )
        yield job, created
        calls = dice.choice((1, 1, 2, 2, 3, 5))
        tokens, cost, failed = 0, ZERO, False
        for number in range(calls):
            if number == 0:
                team.held += 1
                yield account, self._moved(CreditsHeld, team, by, job_id=job_id)
            started = self._started(team, job_id, first=number == 0)
            yield job, started
            if dice.random() < 0.03:
                yield job, self._attempt_failed(job_id, started.call_id)
            failed = dice.random() < 0.03
            if failed:
                yield job, self._call_failed(team, job_id, started.call_id)
                break
            finished = self._finished(team, job_id, started.call_id, started.model)
            tokens += finished.prompt_tokens + finished.completion_tokens
            cost += finished.client_cost_usd
            yield job, finished
        team.held -= 1
        if failed:
            yield account, self._moved(HoldReleased, team, by, job_id=job_id)
        else:
            team.used += 1
            charged: dict[str, Any] = {
                "credits_from_hold": 1,
                "terms": TERMS,
                "client_cost_usd": cost,
                "tokens": tokens,
            }
            yield account, self._moved(CreditsCharged, team, by, job_id=job_id, **charged)
        ended: type[JobCompleted | JobFailed] = JobFailed if failed else JobCompleted
        end = ended(
            **self._now(by),
            **team.whose,
            job_id=job_id,
            credit_applied=not failed,
            credits_charged=int(not failed),
            credits_remaining=team.allocated - team.used,
            total_calls=calls,
            duration_seconds=dice.randrange(1, 100),
        )
        yield job, end

    def _granted(self, team: Team) -> Event:
        team.allocated += 1000
        granted: dict[str, Any] = {"kind": "allocation", "reason": "monthly package", "credits": 1000}
        return self._moved(CreditsGranted, team, "master", **granted)

    def _moved(self, kind: Callable[..., Event], team: Team, by: str, /, *, credits: int = 1, **more: Any) -> Event:
        return kind(**self._now(by), transaction_id=self._id(), **team.whose, credits=credits, **team.left, **more)

    def _started(self, team: Team, job_id: str, *, first: bool) -> CallStarted:
        now = self._now(team.key_id)
        return CallStarted(
            **now,
            **team.whose,
            job_id=job_id,
            call_id=self._id(),
            model=self._dice.choice(MODELS)[0],
            targets=(),
            purpose=self._dice.choice(PURPOSES),
            streaming=self._dice.random() < 0.3,
            estimated_tokens=1000,
            estimated_cost_usd=Decimal("0.00100000"),
            held_credits=int(first),
            terms=TERMS if first else None,
            deadline=now["at"] + timedelta(minutes=10),
            request_sha256=f"{self._dice.getrandbits(256):064x}",
            request_bytes=self._dice.randrange(100, 10_000),
        )

    def _attempt_failed(self, job_id: str, call_id: str) -> CallAttemptFailed:
        return CallAttemptFailed(
            **self._now("system"),
            job_id=job_id,
            call_id=call_id,
            target="primary",
            resolved_model="gpt-4o-mini",
            outcome="error",
            http_status=503,
            error="overloaded",
            latency_ms=self._dice.randrange(10, 1000),
        )

    def _call_failed(self, team: Team, job_id: str, call_id: str) -> CallFailed:
        return CallFailed(
            **self._now("system"),
            **team.whose,
            job_id=job_id,
            call_id=call_id,
            error=self._dice.choice(("provider_error", "request_rejected", "timeout")),
            provider_error="overloaded",
            http_status=503,
            latency_ms=self._dice.randrange(10, 30_000),
        )

    def _finished(self, team: Team, job_id: str, call_id: str, model: str) -> CallFinished:
        dice = self._dice
        alias, provider, resolved, price_in, price_out = next(each for each in MODELS if each[0] == model)
        prompt, completion = dice.randrange(10, 4000), dice.randrange(1, 1000)
        costs = [Decimal(prompt * price_in).scaleb(-8), Decimal(completion * price_out).scaleb(-8)]
        return CallFinished(
            **self._now(team.key_id),
            **team.whose,
            job_id=job_id,
            call_id=call_id,
            target=alias,
            alias=alias,
            provider=provider,
            resolved_model=resolved,
            prompt_tokens=prompt,
            completion_tokens=completion,
            usage_estimated=False,
            price_input_usd_per_million=Decimal(price_in) / 100,
            price_output_usd_per_million=Decimal(price_out) / 100,
            unpriced=False,
            markup_percentage=ZERO,
            input_cost_usd=costs[0],
            output_cost_usd=costs[1],
            provider_cost_usd=sum(costs, ZERO),
            client_cost_usd=sum(costs, ZERO),
            latency_ms=dice.randrange(100, 20_000),
            finish_reason="stop",
            partial=False,
            response_sha256=f"{dice.getrandbits(256):064x}",
            response_bytes=completion * 5,
        )


def rows(told: Iterable[Told]) -> Iterator[Row]:
    """Events as the table has them, each vouching for all before it."""
    versions: Counter[str] = Counter()
    digest = GENESIS
    for position, (stream, event) in enumerate(told, start=1):
        versions[stream] += 1
        version, topic, state = versions[stream], type(event).__name__, journal.encode(event)
        said = b"%b\0%b%b\0%b" % (stream.encode(), version.to_bytes(8), topic.encode(), state)
        digest = sha256(digest + said).digest()
        if isinstance(event, JobCompleted | JobFailed):
            del versions[stream]  # it ends here
        yield stream, version, topic, state, position, digest


def generate(
    dsn: str, events: int, *, teams: int | None = None, seed: int = SEED, progress: Callable[[int], None] | None = None
) -> None:
    """Fills an empty journal.

    Args:
        dsn: of the role that owns it.
        progress: called now and then with the position reached.
    """
    with psycopg.connect(dsn) as connection:
        [(head,)] = connection.execute("select position from journal.head for update").fetchall()
        if head:
            raise SystemExit(f"this journal has {head} events already")
        digest = GENESIS
        with connection.cursor().copy(_COPY) as copy:
            copy.set_types(["text", "int8", "text", "bytea", "int8", "bytea"])
            for row in rows(islice(Business(events, teams, seed).happens(), events)):
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
