"""A team with a past: events dated months ago, written into the journal of a running server as the ledger would."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from domain.credit import AccountOpened, CreditsAdjusted, CreditsCharged, CreditsGranted, CreditsHeld, CreditsRefunded
from domain.event import Event
from domain.job import CallFinished, CallStarted, JobCompleted, JobCreated, JobFailed
from domain.organization import OrganizationChanged, OrganizationCreated
from domain.streams import CREDIT, JOB, ORGANIZATION, TEAM
from domain.team import Budget, TeamCreated
from infra import journal
from tests.infra.accounts import a_draft, connected


@dataclass
class PastTeam:
    """What it remembers is told to the journal by `write`."""

    created_at: datetime
    name: str = "Acme Corporation"
    alias: str = "Research & <Development>"
    team_id: str = field(default_factory=lambda: f"past-{uuid4().hex[:8]}")
    organization_id: str = field(default_factory=lambda: f"org-{uuid4().hex[:8]}")
    remaining: int = 0
    allocated: int = 0
    events: list[tuple[str, Event]] = field(default_factory=list)
    written: int = 0

    def __post_init__(self) -> None:
        at = self.created_at
        acme = OrganizationCreated(at=at, organization_id=self.organization_id, name=self.name, metadata={})
        self._say(ORGANIZATION.stream(self.organization_id), acme)
        team = TeamCreated(at=at, **self.whose, team_alias=self.alias, metadata={})
        self._say(TEAM.stream(self.team_id), team)
        self._say(self._credit, AccountOpened(at=at, **self.whose))

    @property
    def whose(self) -> dict[str, Any]:
        return {"team_id": self.team_id, "organization_id": self.organization_id, "by": "master", "request": "past"}

    @property
    def _credit(self) -> str:
        return CREDIT.stream(self.team_id)

    def grant(self, at: datetime, credits: int, **more: Any) -> None:
        self._move(CreditsGranted, at, credits, credits, allocated=credits, **{"kind": "allocation", **more})

    def adjust(self, at: datetime, credits: int, reason: str) -> None:
        self._move(CreditsAdjusted, at, credits, credits, allocated=credits, reason=reason)

    def refund(self, at: datetime, job_id: str, credits: int, reason: str | None = None) -> None:
        self._move(CreditsRefunded, at, credits, credits, job_id=job_id, reason=reason)

    def job(self, at: datetime, credits: int = 1, calls: int = 1, job_type: str = "analysis", **call: Any) -> str:
        """A job with calls of 1000 + 100 tokens that cost 0.0035 dollars, and the team 0.00525."""
        job_id, whose = str(uuid4()), self.whose
        self._say(JOB.stream(job_id), JobCreated(at=at, job_id=job_id, **whose, job_type=job_type, metadata={}))
        self._move(CreditsHeld, at, credits, 0, held=credits, job_id=job_id)
        for _ in range(calls):
            self._call(at, job_id, **call)
        at += timedelta(seconds=5)
        self._move(
            CreditsCharged,
            at,
            credits,
            -credits,
            job_id=job_id,
            credits_from_hold=credits,
            terms=Budget().terms,
            client_cost_usd=Decimal("0.00525") * calls,
            tokens=1100 * calls,
        )
        end = JobCompleted(
            at=at,
            job_id=job_id,
            **whose,
            credit_applied=True,
            credits_charged=credits,
            credits_remaining=self.remaining,
            total_calls=calls,
            duration_seconds=5,
        )
        self._say(JOB.stream(job_id), end)
        return job_id

    def failed_job(self, at: datetime, calls: int = 1) -> None:
        """A job that nobody is charged for."""
        job_id, whose = str(uuid4()), self.whose
        self._say(JOB.stream(job_id), JobCreated(at=at, job_id=job_id, **whose, job_type="analysis", metadata={}))
        for _ in range(calls):
            self._call(at, job_id)
        end = JobFailed(
            at=at + timedelta(seconds=5),
            job_id=job_id,
            **whose,
            credit_applied=False,
            credits_charged=0,
            credits_remaining=self.remaining,
            total_calls=calls,
            duration_seconds=5,
        )
        self._say(JOB.stream(job_id), end)

    def rename(self, at: datetime, name: str) -> None:
        changed = OrganizationChanged(at=at, organization_id=self.organization_id, name=name, metadata={})
        self._say(ORGANIZATION.stream(self.organization_id), changed)

    def _call(self, at: datetime, job_id: str, model: str = "chat-fast", resolved_model: str = "gpt-4o") -> None:
        about = {"job_id": job_id, **self.whose, "call_id": str(uuid4())}
        started = CallStarted(
            at=at,
            **about,
            model=model,
            targets=(),
            purpose="draft",
            streaming=False,
            estimated_tokens=1,
            estimated_cost_usd=Decimal(0),
            held_credits=0,
            terms=None,
            deadline=at + timedelta(minutes=5),
            request_sha256="",
            request_bytes=0,
        )
        finished = CallFinished(
            at=at + timedelta(seconds=3),
            **about,
            target=model,
            alias=model,
            provider="openai",
            resolved_model=resolved_model,
            prompt_tokens=1000,
            completion_tokens=100,
            usage_estimated=False,
            price_input_usd_per_million=Decimal("2.5"),
            price_output_usd_per_million=Decimal(10),
            unpriced=False,
            markup_percentage=Decimal(50),
            input_cost_usd=Decimal("0.0025"),
            output_cost_usd=Decimal("0.001"),
            provider_cost_usd=Decimal("0.0035"),
            client_cost_usd=Decimal("0.00525"),
            latency_ms=3000,
            finish_reason="stop",
            partial=False,
            response_sha256=None,
            response_bytes=0,
        )
        for event in (started, finished):
            self._say(JOB.stream(job_id), event)

    def _move(
        self,
        movement: Callable[..., Event],
        at: datetime,
        credits: int,
        change: int,
        *,
        held: int = 0,
        allocated: int = 0,
        **more: Any,
    ) -> None:
        self.remaining += change
        self.allocated += allocated
        left = {
            "remaining_credits": self.remaining,
            "held_credits": held,
            "allocated_credits": self.allocated,
            "transaction_id": str(uuid4()),
        }
        self._say(self._credit, movement(at=at, **self.whose, **left, credits=credits, **more))

    def _say(self, stream: str, event: Event) -> None:
        self.events.append((stream, event))

    def write(self, dsn: str) -> None:
        """Appends what was not written yet."""
        asyncio.run(self._write(dsn))

    async def _write(self, dsn: str) -> None:
        new, self.written = self.events[self.written :], len(self.events)
        versions: dict[str, int] = {}
        for stream, _ in self.events[: len(self.events) - len(new)]:
            versions[stream] = versions.get(stream, 0) + 1
        draft = a_draft()
        for stream, event in new:
            draft.read.setdefault(stream, versions.get(stream, 0))
            draft.add(stream, type(event).__name__, journal.encode(event))
        async with await connected(dsn) as connection:
            appended = await journal.append(connection, draft)
            assert not appended.stale
