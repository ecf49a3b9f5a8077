"""Jobs and credits of one team under any interleaving, beside a model of plain dictionaries and fractions.

Whatever Hypothesis thinks of (calls that end in any order, jobs that end twice, budgets that change in between, credits
that end), the decisions must answer as the model does, and after every single event an auditor who knows no state, only
the lines of the journal, must agree with what they say.
"""

import os
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import count
from math import ceil
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from domain import streams
from domain.charging import (
    CancelJob,
    CompleteJob,
    ExpireJob,
    FailJob,
    RefundJob,
    cancel_job,
    complete_job,
    expire_job,
    fail_job,
    refund_job,
    start_call,
)
from domain.credit import (
    Account,
    AdjustCredits,
    CreditMovement,
    CreditsAdjusted,
    CreditsCharged,
    CreditsExpired,
    CreditsGranted,
    CreditsHeld,
    CreditsRefunded,
    ExpireCredits,
    GrantCredits,
    HoldReleased,
    SetAllocation,
    adjust_credits,
    expire_credits,
    grant_credits,
    set_allocation,
)
from domain.errors import (
    CallsInProgress,
    InsufficientCredits,
    JobClosed,
    NotCharged,
    OutOfBounds,
    RefundExceedsCharge,
    Refusal,
)
from domain.event import Command, Event, State
from domain.job import CallFailed, CallFinished, Job, create_job, fail_call, finish_call
from domain.team import Budget, ChangeBudget, change_budget
from tests.domain.scene import (
    NOON,
    OPENED,
    ORGANIZATION,
    RESEARCH,
    TEAM,
    alias,
    an_id,
    assigned,
    create,
    eight_decimals,
    fail,
    finish,
    member,
    model_group,
    start,
)
from tests.spec import Decision

ACCOUNT, THE_TEAM = streams.CREDIT.stream(RESEARCH), streams.TEAM.stream(RESEARCH)
ORGANIZATIONS = streams.ORGANIZATION.stream(ORGANIZATION.organization_id)
PRICES = {"cheap": ("0.15", "0.60"), "dear": ("2.5", "10"), "free": ("0", "0")}
TARGETS = {"cheap": ["cheap"], "dear": ["dear"], "free": ["free"], "both": ["cheap", "dear"]}
BEGINNING = [
    (ORGANIZATIONS, ORGANIZATION),
    (THE_TEAM, TEAM),
    (THE_TEAM, assigned(model_groups=("both",))),
    (ACCOUNT, OPENED),
    *((streams.THE_CATALOG, alias(name, *price)) for name, price in PRICES.items()),
    (streams.THE_CATALOG, model_group("both", member("cheap", 0), member("dear", 1))),
]
DAY = timedelta(days=1)

tokens = st.integers(0, 60_000)
budgets = st.builds(
    Budget,
    mode=st.sampled_from(["job_based", "consumption_usd", "consumption_tokens"]),
    credits_per_dollar=st.sampled_from([None, Decimal(1), Decimal("33.3"), Decimal(100)]),
    tokens_per_credit=st.sampled_from([None, 1, 7777]),
    markup_percentage=st.sampled_from([Decimal(0), Decimal("12.5"), Decimal(150)]),
    overdraft_credits=st.sampled_from([0, 0, 3, 50, None]),
    charge_policy=st.sampled_from(["all_calls_succeeded", "any_call_succeeded"]),
)


class Accounting(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = NOON
        self.numbers = count(1)
        self.journal: list[tuple[str, str, bytes, State]] = []  # stream, topic, JSON, and the state after it
        self.states: dict[str, State] = {}
        self.audit = Audit()
        self.budget = Budget()
        self.account: dict[str, Any] = {"allocated": 0, "used": 0, "expiring": [], "payments": set()}
        self.job: dict[str, dict[str, Any]] = {}
        self.available_before: int | None = 0
        self.may_fall: int | None = 0
        for stream, event in BEGINNING:
            self.append(stream, event)

    # -- the ledger, as small as can be ----------------------------------------------------------------------

    def append(self, stream: str, event: Event) -> None:
        topic, written = type(event).__name__, msgspec.json.encode(event)
        state = streams.category_of(stream).evolve(self.states.get(stream), streams.decode(topic, written))
        self.states[stream] = state
        self.journal.append((stream, topic, written, state))
        self.audit.read(event)

    def carry_out(self, decide: Decision, command: Command, *names: str) -> Refusal | int:
        """How many events were written, or why none."""
        try:
            answer = decide(*map(self.states.get, names), command)
        except Refusal as refusal:
            return refusal
        lists = answer if isinstance(answer, tuple) else (answer,)
        for stream, events in zip(names, lists, strict=True):
            for event in events:
                self.append(stream, event)
        return sum(map(len, lists))

    def charging(self, decide: Decision, command: Command, job_id: str, *others: str) -> Refusal | int:
        return self.carry_out(decide, command, f"job-{job_id}", ACCOUNT, *others)

    def who(self) -> dict[str, Any]:
        return {"at": self.now, "by": "somebody", "request": "some request"}

    def an_id(self) -> str:
        return an_id(next(self.numbers))

    # -- the model: what must be so --------------------------------------------------------------------------

    @property
    def remaining(self) -> int:
        return int(self.account["allocated"] - self.account["used"])

    @property
    def held(self) -> int:
        return sum(job["held"] for job in self.job.values())

    @property
    def available(self) -> int | None:
        overdraft = self.budget.overdraft_credits
        return None if overdraft is None else self.remaining - self.held + overdraft

    def lacks(self, credits: int) -> bool:
        return self.available is not None and credits > self.available

    def spend(self, credits: int) -> None:
        """Takes credits that end from the grants, soonest end first."""
        for grant in sorted(self.account["expiring"], key=lambda each: (each["ends"], each["id"])):
            taken = max(0, min(credits, grant["left"]))
            grant["left"] -= taken
            credits -= taken

    def charge(self, job: dict[str, Any], credits: int) -> None:
        self.may_fall = max(0, credits - job["held"]) if job["calls"] else credits
        self.account["used"] += credits
        self.spend(credits)
        job |= {"charged": credits, "held": 0}

    def is_due(self, job: dict[str, Any], terms: Budget) -> bool:
        ends = [call["end"] for call in job["calls"].values()]
        if terms.charge_policy == "any_call_succeeded":
            return "good" in ends or not ends
        return "bad" not in ends

    # -- jobs and calls --------------------------------------------------------------------------------------

    @initialize(budget=budgets, credits=st.integers(1, 40))
    def a_team_begins(self, budget: Budget, credits: int) -> None:
        self.set_budget(budget)
        self.grant(credits, None, None)
        self.a_job_is_created()
        self.a_job_is_created()

    def any_job(self, data: st.DataObject, *likely: str) -> str:
        """Mostly one in a status that makes things happen."""
        preferred = [job_id for job_id, job in self.job.items() if job["status"] in likely]
        return data.draw(st.sampled_from([*preferred * 4, *self.job]), label="job")

    @precondition(lambda self: len(self.job) < 9)
    @rule()
    def a_job_is_created(self) -> None:
        job_id = self.an_id()
        wish = create(job_id, at=self.now)
        assert self.carry_out(create_job, wish, f"job-{job_id}", THE_TEAM) == 1
        assert self.carry_out(create_job, wish, f"job-{job_id}", THE_TEAM) == 0
        nothing = {"held": 0, "charged": 0, "refunded": 0, "cost": Fraction(0), "tokens": 0}
        self.job[job_id] = {"status": "pending", "terms": None, "calls": {}, "active": self.now, **nothing}

    @rule(data=st.data(), model=st.sampled_from(sorted(TARGETS)), prompt=tokens, output=tokens, ends=st.booleans())
    def a_call_is_started(self, data: st.DataObject, model: str, prompt: int, output: int, ends: bool) -> None:
        job_id = self.any_job(data, "pending", "in_progress")
        call_id = self.an_id()
        self.start(job_id, call_id, model, prompt, output)
        if ends and call_id in self.job[job_id]["calls"]:
            self.end(data, job_id, call_id)

    def start(self, job_id: str, call_id: str, model: str, prompt: int, output: int) -> None:
        job = self.job[job_id]
        wish = start(call_id, model=model, prompt_tokens=prompt, output_tokens=output, at=self.now)
        answer = self.charging(start_call, wish, job_id, THE_TEAM, ORGANIZATIONS, streams.THE_CATALOG)
        if job["status"] not in ("pending", "in_progress"):
            refused(answer, JobClosed, status=job["status"])
            return
        terms = job["terms"] or self.budget
        cost = max(client_cost(target, prompt, output, terms) for target in TARGETS[model])
        running = [call for call in job["calls"].values() if call["end"] is None]
        needed = due(
            terms,
            job["cost"] + cost + sum(call["estimate"] for call in running),
            job["tokens"] + prompt + output + sum(call["tokens"] for call in running),
        )
        grown = max(0, needed - job["held"])
        if grown and self.lacks(grown):
            refused(answer, InsufficientCredits, credits_needed=grown, credits_available=self.available)
            return
        assert answer == (2 if grown else 1)
        job["calls"][call_id] = {"end": None, "model": model, "estimate": cost, "tokens": prompt + output}
        job |= {"status": "in_progress", "terms": terms, "held": job["held"] + grown, "active": self.now}

    def running(self) -> list[tuple[str, str]]:
        return [
            (job_id, call_id)
            for job_id, job in self.job.items()
            for call_id, call in job["calls"].items()
            if call["end"] is None
        ]

    @precondition(lambda self: bool(self.running()))
    @rule(data=st.data())
    def a_call_ends(self, data: st.DataObject) -> None:
        self.end(data, *data.draw(st.sampled_from(self.running()), label="call"))

    def end(self, data: st.DataObject, job_id: str, call_id: str) -> None:
        job = self.job[job_id]
        call = job["calls"][call_id]
        ends = data.draw(st.sampled_from(["good", "good", "good", "bad", "rejected"]), label="end")
        prompt, completion = data.draw(tokens, label="prompt"), data.draw(tokens, label="completion")
        number = data.draw(st.integers(0, len(TARGETS[call["model"]]) - 1), label="target")
        used: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion, "target": number}
        answers: dict[str, tuple[Decision, Command]] = {
            "good": (finish_call, finish(call_id, **used, at=self.now)),
            "bad": (fail_call, fail(call_id, "timeout", **used, at=self.now)),
            "rejected": (fail_call, fail(call_id, "request_rejected", at=self.now)),
        }
        assert self.carry_out(*answers[ends], f"job-{job_id}") == 1
        call["end"], job["active"] = ends, self.now
        if ends == "good":
            job["cost"] += client_cost(TARGETS[call["model"]][number], prompt, completion, job["terms"])
            job["tokens"] += prompt + completion
        for decide, wish in answers.values():
            assert self.carry_out(decide, wish, f"job-{job_id}") == 0

    # -- ends ------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def a_job_is_completed(self, data: st.DataObject) -> None:
        job_id = self.any_job(data, "in_progress")
        job = self.job[job_id]
        wish = CompleteJob(**self.who(), charge_id=self.an_id(), metadata={})
        answer = self.charging(complete_job, wish, job_id, THE_TEAM)
        running = sum(call["end"] is None for call in job["calls"].values())
        terms = job["terms"] or self.budget
        credits = due(terms, job["cost"], job["tokens"])
        if job["status"] == "completed":
            assert answer == 0
        elif job["status"] in ("failed", "cancelled"):
            refused(answer, JobClosed, status=job["status"])
        elif running:
            refused(answer, CallsInProgress, running_calls=running)
        elif not self.is_due(job, terms):
            job |= {"status": "completed", "held": 0}
        elif not job["calls"] and self.lacks(credits):
            refused(answer, InsufficientCredits, credits_needed=credits, credits_available=self.available)
        else:
            self.charge(job, credits)
            job["status"] = "completed"

    @rule(data=st.data(), status=st.sampled_from(["expired", "failed", "cancelled"]))
    def a_job_ends_otherwise(self, data: st.DataObject, status: str) -> None:
        job_id = self.any_job(data, "in_progress")
        job = self.job[job_id]
        if status == "expired":
            self.expire(job_id)
            return
        if status == "failed":
            answer = self.charging(fail_job, FailJob(**self.who(), charge_id=self.an_id(), metadata={}), job_id)
        else:
            answer = self.charging(cancel_job, CancelJob(**self.who(), charge_id=self.an_id()), job_id)
        if job["status"] == status:
            assert answer == 0
        elif job["status"] in ("pending", "in_progress"):
            assert answer == (2 if job["held"] else 1)
            job |= {"status": status, "held": 0}
        else:
            refused(answer, JobClosed, status=job["status"])

    def expire(self, job_id: str) -> None:
        job = self.job[job_id]
        answer = self.charging(expire_job, ExpireJob(**self.who(), charge_id=self.an_id(), idle=DAY), job_id)
        ends = [call["end"] for call in job["calls"].values()]
        if job["status"] not in ("pending", "in_progress") or None in ends or self.now - job["active"] < DAY:
            assert answer == 0
            return
        if "good" in ends and job["terms"].mode != "job_based":
            self.charge(job, due(job["terms"], job["cost"], job["tokens"]))
        job |= {"status": "failed", "held": 0}

    @precondition(lambda self: self.audit.charged)
    @rule(data=st.data(), credits=st.none() | st.integers(1, 60))
    def a_job_is_refunded(self, data: st.DataObject, credits: int | None) -> None:
        job_id = data.draw(st.sampled_from([*list(self.audit.charged) * 4, *self.job]), label="job")
        job = self.job[job_id]
        wish = RefundJob(**self.who(), transaction_id=self.an_id(), credits=credits)
        answer = self.charging(refund_job, wish, job_id)
        left = job["charged"] - job["refunded"]
        if not job["charged"]:
            refused(answer, NotCharged)
        elif left == 0 or (credits or 0) > left:
            refused(answer, RefundExceedsCharge, credits_refundable=left)
        else:
            job["refunded"] += credits or left
            self.account["used"] -= credits or left

    # -- credits ---------------------------------------------------------------------------------------------

    @rule(data=st.data(), what=st.sampled_from(["grant", "grant", "correct", "set_budget"]))
    def an_administrator_acts(self, data: st.DataObject, what: str) -> None:
        if what == "grant":
            payment = data.draw(st.none() | st.sampled_from(["payment 1", "payment 2"]), label="payment")
            ends_in = data.draw(st.none() | st.integers(0, 4), label="days")
            self.grant(data.draw(st.integers(1, 60), label="credits"), ends_in, payment)
        elif what == "correct":
            self.correct(data.draw(st.integers(-30, 30), label="credits"), data.draw(st.booleans(), label="whole"))
        else:
            self.set_budget(data.draw(budgets, label="budget"))

    def grant(self, credits: int, ends_in: int | None, payment: str | None) -> None:
        grant_id, ends = self.an_id(), None if ends_in is None else self.now + ends_in * DAY
        wish = GrantCredits(
            **self.who(), transaction_id=grant_id, credits=credits, expires_at=ends, payment_reference=payment
        )
        answer = self.carry_out(grant_credits, wish, ACCOUNT)
        if payment in self.account["payments"]:
            assert answer == 0
            return
        if ends_in == 0:
            refused(answer, OutOfBounds, field="expires_at", message="expected a moment that is still to come")
            return
        self.account["allocated"] += credits
        self.account["payments"] |= {payment} - {None}
        if ends is not None:
            left = max(0, min(credits, self.remaining))  # what pays an overdraft back is spent
            self.account["expiring"].append({"id": grant_id, "left": left, "ends": ends})

    def correct(self, credits: int, whole: bool) -> None:
        wish: dict[str, Any] = {**self.who(), "transaction_id": self.an_id()}
        if whole:
            allocation = SetAllocation(**wish, allocated_credits=self.account["allocated"] + credits)
            assert self.carry_out(set_allocation, allocation, ACCOUNT) == bool(credits)
        else:
            assert self.carry_out(adjust_credits, AdjustCredits(**wish, credits=credits), ACCOUNT) == bool(credits)
        self.account["allocated"] += credits
        self.spend(-credits)
        self.may_fall = max(0, -credits)

    @rule(hours=st.integers(1, 40))
    def time_passes_and_credits_end(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        self.carry_out(expire_credits, ExpireCredits(**self.who()), ACCOUNT)
        held = self.held
        for grant in sorted(self.account["expiring"], key=lambda each: (each["ends"], each["id"])):
            kept = max(0, min(grant["left"], held))
            held -= kept
            if grant["ends"] <= self.now:
                self.account["allocated"] -= grant["left"] - kept
                grant["left"] = kept

    def set_budget(self, budget: Budget) -> None:
        self.carry_out(change_budget, ChangeBudget(**self.who(), **msgspec.structs.asdict(budget)), THE_TEAM)
        self.budget, self.may_fall = budget, None

    # -- what holds at every moment --------------------------------------------------------------------------

    @invariant()
    def the_account_is_as_the_model_says(self) -> None:
        account = self.states[ACCOUNT]
        assert isinstance(account, Account)
        assert (self.account["allocated"], self.account["used"]) == (account.allocated, account.used)
        assert (self.remaining, self.held) == (account.remaining, account.held)
        assert self.available == account.available(self.budget.overdraft_credits)
        expected = {grant["id"]: grant["left"] for grant in self.account["expiring"] if grant["left"] > 0}
        assert expected == {grant.grant_id: grant.credits_left for grant in account.expiring}
        assert sum(expected.values()) <= max(0, self.remaining)

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        for job_id, job in self.job.items():
            state = self.states[f"job-{job_id}"]
            assert isinstance(state, Job)
            assert (job["status"], job["held"], job["charged"], job["refunded"], job["tokens"], job["cost"]) == (
                state.status,
                state.held_credits,
                state.credits_charged,
                state.credits_refunded,
                state.tokens,
                Fraction(state.client_cost_usd),
            )
            assert (job["charged"] > 0) == state.credit_applied
            assert set(job["calls"]) == {*state.running, *(call.call_id for call in state.ended)}

    @invariant()
    def available_falls_below_zero_only_by_what_an_estimate_was_too_low(self) -> None:
        """... or by what an administrator takes away: less overdraft, a correction."""
        before, self.available_before = self.available_before, self.available
        may_fall, self.may_fall = self.may_fall, 0
        if before is not None and self.available is not None and may_fall is not None:
            assert self.available >= min(0, before) - may_fall

    def teardown(self) -> None:
        """Replayed from what was written, every state is what it was after each event."""
        states: dict[str, State] = {}
        for stream, topic, written, state in self.journal:
            category = streams.category_of(stream)
            states[stream] = category.evolve(states.get(stream), streams.decode(topic, written))
            assert states[stream] == state


class Audit:
    """Reads line after line and adds up; knows neither states nor decisions."""

    def __init__(self) -> None:
        self.allocated = self.used = self.held = 0
        self.held_by: Counter[str] = Counter()
        self.charged: dict[str, int] = {}
        self.refunded: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    def read(self, event: Event) -> None:
        match event:
            case CreditsGranted(credits=credits) | CreditsAdjusted(credits=credits):
                self.allocated += credits
            case CreditsExpired(credits=credits):
                self.allocated -= credits
            case CreditsHeld(credits=credits, job_id=job_id):
                self.held_by[job_id] += credits
            case HoldReleased(credits=credits, job_id=job_id):
                self.held_by[job_id] -= credits
            case CreditsCharged(credits=credits, job_id=job_id):
                assert job_id not in self.charged, "a job is charged at most once"
                assert credits >= max(1, event.credits_from_hold)
                self.charged[job_id] = credits
                self.held_by[job_id] -= event.credits_from_hold
                self.used += credits
            case CreditsRefunded(credits=credits, job_id=job_id):
                self.refunded[job_id] += credits
                self.used -= credits
                assert self.refunded[job_id] <= self.charged[job_id]
            case CallFinished(call_id=call_id) | CallFailed(call_id=call_id):
                self.ended[call_id] += 1
                assert self.ended[call_id] == 1, "a call ends at most once"
        if isinstance(event, CreditMovement):
            assert min(self.held_by.values(), default=0) >= 0
            left_behind = (event.allocated_credits, event.remaining_credits, event.held_credits)
            assert (self.allocated, self.allocated - self.used, sum(self.held_by.values())) == left_behind


def refused(answer: Refusal | int, kind: type[Refusal], **facts: Any) -> None:
    assert isinstance(answer, Refusal), f"{answer} events instead of {kind.__name__} {facts}"
    assert (kind, facts) == (type(answer), answer.facts)


def client_cost(target: str, prompt: int, completion: int, terms: Budget) -> Fraction:
    price_in, price_out = map(Fraction, PRICES[target])
    provider = eight_decimals(prompt * price_in / 1_000_000) + eight_decimals(completion * price_out / 1_000_000)
    return eight_decimals(provider * (100 + Fraction(terms.markup_percentage)) / 100)


def due(terms: Budget, cost: Fraction, tokens: int) -> int:
    match terms.mode:
        case "job_based":
            return 1
        case "consumption_usd":
            return max(1, ceil(cost * Fraction(terms.credits_per_dollar or 10)))
        case "consumption_tokens":
            return max(1, ceil(Fraction(tokens, terms.tokens_per_credit or 10_000)))


pytestmark = pytest.mark.timeout(600)  # only a failure takes long: it is made small before it is shown
TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=80, stateful_step_count=50, derandomize="CI" in os.environ)


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_accounting_at_length() -> None:
    examples = 250 if os.environ.get("PROOFS") == "short" else 5000
    run_state_machine_as_test(Accounting, settings=settings(max_examples=examples, stateful_step_count=50))
