"""The independent auditor: folds the whole journal again and looks whether everybody kept to the rules.

It is a list of small checks over a replay, and it trusts nothing that the server has derived from the journal: not the
amounts that events carry along, not the snapshots, the read models or the tree of receipts. What it finds it names,
with the position at which it shows.

Everything is read page by page on a connection that changes nothing, so a replica or a restored backup will do. What
it keeps in memory are accounts, teams and the jobs that are open just then: as many as there are of these, however
long the journal is.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec
from psycopg import Connection, errors
from psycopg.rows import class_row

from domain.credit import (
    Account,
    CreditMovement,
    CreditsCharged,
    CreditsHeld,
    HoldReleased,
)
from domain.event import Event, State
from domain.job import (
    CallFailed,
    CallFinished,
    CallStarted,
    EndedCall,
    Job,
    JobCancelled,
    JobCompleted,
    JobCreated,
    JobEnd,
    JobExpired,
    JobFailed,
    RunningCall,
)
from domain.pricing import Price, call_cost, credits_for
from domain.streams import CREDIT, JOB, TEAM, Category, category_of, decode
from domain.team import Team
from infra.receipts import verify_receipts
from infra.verify import verify_snapshots
from projections.balances import BALANCES, MOVEMENTS, BalanceRecord
from projections.calls import CALLS, CallRecord
from projections.jobs import JOBS, JobRecord
from projections.projection import Projection
from projections.signed_off import verify_bills, verify_statements
from projections.transactions import TRANSACTIONS, TransactionRecord

R = TypeVar("R", bound=msgspec.Struct)
Say = Iterator[str]

PAGE = 5000
JOBS_AT_ONCE = 500
MOST_FINDINGS = 1000  # who has found so many need not list the others; they are counted
NIL, LAST = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Args:
        check: what was looked at.
        position: where in the journal it shows; None if nowhere there.
        subject: the stream, or the row of a read model.
        detail: what is there, and what should be.
    """

    check: str
    position: int | None
    subject: str
    detail: str


@dataclass(slots=True)
class Report:
    """What an audit has found."""

    position: int = 0
    events: int = 0
    jobs: int = 0
    checks: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    found: int = 0
    seconds: float = 0.0

    def add(self, check: str, position: int | None, subject: str, detail: str) -> None:
        self.found += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(check, position, subject, detail))

    def skip(self, what: str) -> None:
        """Says of something, once, that it was not looked at."""
        if what not in self.skipped:
            self.skipped.append(what)

    def skip_version(self, name: str) -> None:
        self.skip(f"{name}, which another version of this program has built")


# -- the replay --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hold:
    """What is set aside for a job, and since which event it is just that."""

    team_id: str
    credits: int
    position: int


@dataclass(slots=True)
class Books:
    """The world at one position, as the events up to it have it.

    A job is forgotten when nothing more can happen to it that has to do with another stream: when it has ended, none
    of its calls is running, and its charge is on record.
    """

    accounts: dict[str, Account] = field(default_factory=dict)
    teams: dict[str, Team] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    due: dict[str, tuple[int, int]] = field(default_factory=dict)  # credits that a job ended at, and where it did
    charged: dict[str, tuple[int, int]] = field(default_factory=dict)  # ... or was charged at, before it ended

    def states_of(self, category: Category) -> dict[str, Any]:
        return self.jobs if category is JOB else self.accounts if category is CREDIT else self.teams

    def overdraft_of(self, team_id: str) -> int | None:
        team = self.teams.get(team_id)
        return 0 if team is None else team.budget.overdraft_credits


@dataclass(frozen=True, slots=True)
class Step:
    """An event, and the state of its stream before and after it. The books are as they were before it."""

    position: int
    event: Any
    before: Any
    after: Any
    books: Books


def _fold(category: Category, before: State | None, event: Event) -> State | None:
    """The next state; None for a job that has been forgotten, whose story is told in `jobs`."""
    if category is JOB and before is None and not isinstance(event, JobCreated):
        return None
    return category.evolve(before, event)


def _turn(step: Step, thing_id: str, category: Category) -> None:
    """Turns the page: the books after the event."""
    books, event = step.books, step.event
    if step.after is not None:
        books.states_of(category)[thing_id] = step.after
    match event:
        case CreditsHeld(job_id=job_id, credits=credits):
            _hold(step, job_id, credits)
        case HoldReleased(job_id=job_id, credits=credits):
            _hold(step, job_id, -credits)
        case CreditsCharged(job_id=job_id, credits_from_hold=credits):
            _hold(step, job_id, -credits)
            if books.due.pop(job_id, None) is None and job_id in books.jobs:
                books.charged[job_id] = (event.credits, step.position)
            _forget(books, job_id)
        case JobEnd(job_id=job_id):
            if books.charged.pop(job_id, None) is None and event.credit_applied:
                books.due[job_id] = (event.credits_charged, step.position)
            _forget(books, job_id)
        case CallFinished(job_id=job_id) | CallFailed(job_id=job_id):
            _forget(books, job_id)


def _hold(step: Step, job_id: str, credits: int) -> None:
    holds = step.books.holds
    total = credits + (holds[job_id].credits if job_id in holds else 0)
    if total:
        holds[job_id] = Hold(step.event.team_id, total, step.position)
    else:
        holds.pop(job_id, None)


def _forget(books: Books, job_id: str) -> None:
    job = books.jobs.get(job_id)
    if job is not None and not job.is_open and not job.running and job_id not in books.due:
        del books.jobs[job_id]


# -- checks of an event ------------------------------------------------------------------------------------------------


def recorded_credits_are_those_of_the_replay(step: Step) -> Say:
    event, account = step.event, step.after
    recorded = (event.remaining_credits, event.held_credits, event.allocated_credits)
    replayed = (account.remaining, account.held, account.allocated)
    if recorded != replayed:
        yield f"recorded remaining, held, allocated {recorded}, replayed {replayed}"


def a_hold_stays_within_the_overdraft(step: Step) -> Say:
    """What a charge takes beyond its hold was not known when the call started; a hold is always covered."""
    available = step.after.available(step.books.overdraft_of(step.event.team_id))
    if available is not None and available < 0:
        yield f"{step.event.credits} credits are held although {-available} of them are not there"


def a_charge_without_a_call_is_covered(step: Step) -> Say:
    job = step.books.jobs.get(step.event.job_id)
    available = step.after.available(step.books.overdraft_of(step.event.team_id))
    if job is not None and not job.total_calls and available is not None and available < 0:
        yield f"{step.event.credits} credits are charged although {-available} of them are not there"


def a_job_is_charged_once(step: Step) -> Say:
    books, job_id = step.books, step.event.job_id
    if job_id not in books.due and (job_id not in books.jobs or job_id in books.charged):
        yield f"job {job_id} is charged again, or does not exist"


def a_job_is_charged_as_its_end_says(step: Step) -> Say:
    """End and charge are written together; which of them stands first does not matter."""
    event, books = step.event, step.books
    if isinstance(event, CreditsCharged):
        charged, ended = event.credits, books.due.get(event.job_id, (event.credits, 0))[0]
    else:
        ended = event.credits_charged if event.credit_applied else 0
        charged = books.charged.get(event.job_id, (ended, 0))[0]
    if charged != ended:
        yield f"job {event.job_id} ends at {ended} credits and is charged {charged}"


def a_charge_is_what_the_calls_cost(step: Step) -> Say:
    event, job = step.event, step.books.jobs.get(step.event.job_id)
    if job is None:
        return
    if (event.client_cost_usd, event.tokens) != (job.client_cost_usd, job.tokens):
        charged, cost = (
            f"{event.client_cost_usd} USD, {event.tokens} tokens",
            f"{job.client_cost_usd} USD, {job.tokens}",
        )
        yield f"charged for {charged}; the calls cost {cost}"
    if job.terms is not None and event.terms != job.terms:
        yield "charged on other terms than those of its first call"
    credits = credits_for(event.terms, event.client_cost_usd, event.tokens)
    if credits != event.credits:
        yield f"charged {event.credits} credits, by its terms it is {credits}"


def no_more_is_taken_from_a_hold_than_is_in_it(step: Step) -> Say:
    event, hold = step.event, step.books.holds.get(step.event.job_id)
    taken = event.credits_from_hold if isinstance(event, CreditsCharged) else event.credits
    held = 0 if hold is None else hold.credits
    if taken > held:
        yield f"{taken} credits are taken from the hold of job {event.job_id}, which has {held}"


def a_call_starts_in_an_open_job(step: Step) -> Say:
    if step.before is None or not step.before.is_open:
        yield f"call {step.event.call_id} starts in a job that is not open"


def a_call_ends_once(step: Step) -> Say:
    if step.before is None or step.event.call_id not in step.before.running:
        yield f"call {step.event.call_id} ends a second time, or never started"


def a_call_costs_its_tokens_times_its_price(step: Step) -> Say:
    event = step.event
    price = Price(event.price_input_usd_per_million, event.price_output_usd_per_million)
    cost = call_cost(event.prompt_tokens, event.completion_tokens, price, event.markup_percentage)
    for name in cost.__struct_fields__:
        if getattr(cost, name) != getattr(event, name):
            yield f"{name} is {getattr(event, name)}, computed {getattr(cost, name)}"


Check = Callable[[Step], Say]
CHECKS: Mapping[Check, tuple[type[Event], ...]] = {
    recorded_credits_are_those_of_the_replay: MOVEMENTS,
    a_hold_stays_within_the_overdraft: (CreditsHeld,),
    a_charge_without_a_call_is_covered: (CreditsCharged,),
    a_job_is_charged_once: (CreditsCharged,),
    a_job_is_charged_as_its_end_says: (CreditsCharged, JobCompleted, JobFailed, JobCancelled, JobExpired),
    a_charge_is_what_the_calls_cost: (CreditsCharged,),
    no_more_is_taken_from_a_hold_than_is_in_it: (CreditsCharged, HoldReleased),
    a_call_starts_in_an_open_job: (CallStarted,),
    a_call_ends_once: (CallFinished, CallFailed),
    a_call_costs_its_tokens_times_its_price: (CallFinished,),
}
_CHECKS_OF: dict[type[Event], list[Check]] = defaultdict(list)
for _check, _kinds in CHECKS.items():
    for _kind in _kinds:
        _CHECKS_OF[_kind].append(_check)


# -- checks of the books at the end of the journal ---------------------------------------------------------------------

Located = Iterator[tuple[int | None, str, str]]


def holds_are_those_of_open_jobs(books: Books) -> Located:
    for job_id, hold in books.holds.items():
        job = books.jobs.get(job_id)
        if job is None or not job.is_open:
            yield hold.position, JOB.stream(job_id), f"has ended, and {hold.credits} credits are still held for it"
        elif job.held_credits != hold.credits:
            yield hold.position, JOB.stream(job_id), f"knows of {job.held_credits} held credits, held: {hold.credits}"


def what_a_job_holds_is_held_by_its_account(books: Books) -> Located:
    for job_id, job in books.jobs.items():
        if job.is_open and job.held_credits and job_id not in books.holds:
            yield None, JOB.stream(job_id), f"knows of {job.held_credits} held credits, its account of none"


def holds_add_up_to_what_accounts_hold(books: Books) -> Located:
    held: dict[str, int] = defaultdict(int)
    for hold in books.holds.values():
        held[hold.team_id] += hold.credits
    for team_id, account in books.accounts.items():
        if account.held != held[team_id]:
            yield None, CREDIT.stream(team_id), f"holds {account.held} credits, for its open jobs {held[team_id]}"


def every_charge_is_that_of_an_ended_job(books: Books) -> Located:
    for job_id, (credits, position) in books.charged.items():
        yield position, JOB.stream(job_id), f"was charged {credits} credits and has not ended"


def every_job_that_is_due_is_charged(books: Books) -> Located:
    for job_id, (credits, position) in books.due.items():
        yield position, JOB.stream(job_id), f"ended at {credits} credits and was never charged"


CHECKS_AT_THE_END: tuple[Callable[[Books], Located], ...] = (
    holds_are_those_of_open_jobs,
    what_a_job_holds_is_held_by_its_account,
    holds_add_up_to_what_accounts_hold,
    every_charge_is_that_of_an_ended_job,
    every_job_that_is_due_is_charged,
)

# -- reading -----------------------------------------------------------------------------------------------------------

# Without a head, which somebody may have removed, the journal ends with its last event.
HEAD = """
select coalesce((select max(position) from journal.head), (select max(notification_id) from journal.events), 0)
"""
_EVENTS = """
select notification_id, originator_id, topic, state
from journal.events
where notification_id > %b and notification_id <= %b
order by notification_id
limit %b
"""
_READ_MODELS = "select count(*) from pg_catalog.pg_class where relnamespace = to_regnamespace('readmodel')"
_MISSING = """
select name from unnest(array['readmodel.tracking', 'readmodel.definitions']) as needed (name)
where to_regclass(name) is null
"""
STAND_SOMEWHERE = "select count(*) = 1 and count(position) = 1 from readmodel.tracking"
_TRACKED = "select position from readmodel.tracking"
VERSIONS = "select projection, version from readmodel.definitions"
_TRANSACTIONS = """
select position, transaction_id::text, team_id, organization_id, job_id::text, transaction_type, source,
       credits_amount, credits_before, credits_after, held_after, allocated_after, reason, payment_amount_usd,
       payment_reference, expires_at, actor, created_at
from readmodel.transactions
where position > %s and position <= %s
order by position
"""
_BALANCES = """
select team_id, organization_id, credits_allocated, credits_used, credits_held, last_refill_at, updated_at
from readmodel.balances
"""
_JOB_STREAMS = """
select originator_id
from journal.events
where originator_id > %s and originator_id < 'job.' and originator_version = 1
  and originator_id ~ '^job-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
order by originator_id
limit %s
"""
_JOB_EVENTS = """
select originator_id, notification_id, topic, state
from journal.events
where originator_id > %s and originator_id <= %s and notification_id <= %s
order by originator_id, originator_version
"""
_JOBS = """
select job_id::text, team_id, organization_id, user_id, external_task_id, job_type, status, created_at, started_at,
       completed_at, error_message, models_used, metadata, credit_applied, credits_charged, credits_refunded,
       running_calls, successful_calls, failed_calls, rejected_calls, total_tokens, latency_ms, latencies,
       provider_cost_usd, client_cost_usd
from readmodel.jobs
where job_id > %s and job_id <= %s
"""
_CALLS = """
select job_id::text, call_id::text, status, model, purpose, streaming, created_at, attempts, latency_ms, provider,
       resolved_model, alias, prompt_tokens, completion_tokens, usage_estimated, price_input_usd_per_million,
       price_output_usd_per_million, markup_percentage, input_cost_usd, output_cost_usd, provider_cost_usd,
       client_cost_usd, finish_reason, partial, error, provider_error
from readmodel.calls
where job_id > %s and job_id <= %s
"""
_SELECTS = {TRANSACTIONS.name: _TRANSACTIONS, BALANCES.name: _BALANCES, JOBS.name: _JOBS, CALLS.name: _CALLS}
_SNAPSHOT_POSITION = """
select event.notification_id
from journal.snapshots as snapshot
left join journal.events as event
    on event.originator_id = snapshot.stream and event.originator_version = snapshot.version
where snapshot.stream = %s
"""


class TransactionRow(TransactionRecord, kw_only=True):
    position: int
    held_after: int
    allocated_after: int


class CallRow(CallRecord, kw_only=True):
    job_id: str


# -- the audit ---------------------------------------------------------------------------------------------------------


def audit(connection: Connection[Any], progress: Callable[[str, int, int], None] = lambda *_: None) -> Report:
    """Replays the journal and runs all checks.

    Args:
        connection: in autocommit mode, for nobody else meanwhile.
        progress: called with what is looked at, how far that is, and how far it goes.
    """
    return _Audit(connection, progress).run()


class _Audit:
    def __init__(self, connection: Connection[Any], progress: Callable[[str, int, int], None]) -> None:
        self._connection = connection
        self._progress = progress
        self._books = Books()
        self._report = Report()
        self._compared: set[str] = set()
        self._created = 0  # jobs

    def run(self) -> Report:
        started = time.perf_counter()
        report = self._report
        report.checks = [check.__name__ for check in (*CHECKS, *CHECKS_AT_THE_END)]
        has_read_models = self._has_read_models()
        tracked = self._number(_TRACKED) if has_read_models else 0  # before the head, behind which it never is
        head = self._number(HEAD)
        if tracked > head:
            report.add("read_models", head, "readmodel.tracking", f"stands at {tracked}, the journal ends at {head}")
        elif has_read_models:
            self._compared = self._comparable()
            self._replay(tracked, head, compare=True)
            head = max(head, self._compare_balances())
        self._replay(head, head)
        for check in CHECKS_AT_THE_END:
            for position, subject, detail in check(self._books):
                report.add(check.__name__, position, subject, detail)
        self._compare_jobs()
        self._look_at_what_was_signed_off()
        self._look_at_snapshots()
        self._look_at_receipts()
        report.seconds = time.perf_counter() - started
        return report

    def _has_read_models(self) -> bool:
        """Whether there are any, and it is on record where they stand."""
        if not self._number(_READ_MODELS):
            self._report.skip("read models, of which there are none")
            return False
        missing = [name for (name,) in self._connection.execute(_MISSING).fetchall()]
        for name in missing:
            self._report.add("read_models", None, name, "the table is missing")
        if missing:
            return False
        if self._connection.execute(STAND_SOMEWHERE.encode()).fetchall() != [(True,)]:
            self._report.add("read_models", None, "readmodel.tracking", "does not say where the read models stand")
            return False
        return True

    def _comparable(self) -> set[str]:
        """The read models that can be compared."""
        same = self._in_place()
        self._report.checks += sorted(same)
        return {name for name in same if self._can_be_read(name)}

    def _in_place(self) -> set[str]:
        """The read models whose tables mean what this program means by them."""
        versions = dict(self._connection.execute(VERSIONS).fetchall())
        ours: Sequence[Projection] = (TRANSACTIONS, BALANCES, JOBS, CALLS)
        same = {each.name for each in ours if versions.get(each.name, each.version) == each.version}
        for each in ours:
            if each.name not in same:
                self._report.skip_version(each.name)
        return same

    def _can_be_read(self, name: str) -> bool:
        """Whether the table is there with its columns, which somebody may have changed."""
        try:
            between = 0 if name == TRANSACTIONS.name else NIL  # what kind of thing their rows are asked for by
            self._connection.execute(f"explain {_SELECTS[name]}".encode(), [between] * _SELECTS[name].count("%s"))
        except (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction) as problem:
            self._report.add(name, None, f"readmodel.{name}", str(problem.diag.message_primary))
            return False
        return True

    # -- event by event --------------------------------------------------------------------------------------------

    def _replay(self, until: int, head: int, *, compare: bool = False) -> None:
        """Goes on from where the books are."""
        report = self._report
        while report.position < until:
            after = report.position
            rows = self._connection.execute(_EVENTS, (after, until, PAGE), binary=True).fetchall()
            last = rows[-1][0] if len(rows) == PAGE else until
            movements = [step for row in rows if (step := self._take(*row)) is not None]
            if compare and TRANSACTIONS.name in self._compared:
                self._compare_transactions(after, last, movements)
            report.position = last
            report.events += len(rows)
            self._progress("replay", last, head)

    def _take(self, position: int, stream: str, topic: str, state: bytes) -> Step | None:
        """Looks at an event and adds it to the books; gives it back if it moved credits."""
        report = self._report
        try:
            event = decode(topic, state)
            category = category_of(stream)
        except (KeyError, TypeError, AttributeError, msgspec.DecodeError) as problem:
            report.add("every_event_can_be_read", position, stream, f"{topic}: {problem!r}")
            return None
        if category not in (CREDIT, JOB, TEAM):
            return None
        self._created += isinstance(event, JobCreated)
        thing_id = stream.partition("-")[2]
        books = self._books
        before = books.states_of(category).get(thing_id)
        try:
            step = Step(position, event, before, _fold(category, before, event), books)
            for check in _CHECKS_OF[type(event)]:
                for detail in check(step):
                    report.add(check.__name__, position, stream, detail)
            _turn(step, thing_id, category)
        except Exception as problem:  # noqa: BLE001 whatever a forged history does to the fold is a finding
            report.add("every_history_adds_up", position, stream, f"{topic} cannot follow here: {problem!r}")
            return None
        return step if isinstance(event, CreditMovement) else None

    # -- read models -----------------------------------------------------------------------------------------------

    def _compare_transactions(self, after: int, last: int, movements: Iterable[Step]) -> None:
        rows = {row.position: row for row in self._rows(TransactionRow, _TRANSACTIONS, after, last)}
        for step in movements:
            event = step.event
            expected = TransactionRow(
                **msgspec.structs.asdict(TransactionRecord.of(event)),
                position=step.position,
                held_after=event.held_credits,
                allocated_after=event.allocated_credits,
            )
            self._compare("transactions", step.position, event.transaction_id, expected, rows.pop(step.position, None))
        for position, row in rows.items():
            self._compare("transactions", position, row.transaction_id, None, row)

    @contextmanager
    def _as_of_one_moment(self, *tables: str) -> Iterator[None]:
        """These tables stay for as long: in one that takes their place, most rows would be younger than the moment.

        What another version of this program has left behind or built meanwhile is not compared any more.
        """
        with self._connection.transaction():
            self._connection.execute("set transaction isolation level repeatable read, read only")
            for table in sorted(self._compared.intersection(tables)):
                self._connection.execute(f"lock table readmodel.{table} in access share mode".encode())
            self._compared &= self._in_place()
            yield

    def _compare_balances(self) -> int:
        """Compares at the position at which the tables stand by now, which it gives back."""
        if BALANCES.name not in self._compared:
            return 0
        with self._as_of_one_moment(BALANCES.name, TRANSACTIONS.name):
            tracked, head = self._number(_TRACKED), self._number(HEAD)
            self._replay(tracked, head, compare=True)
            if BALANCES.name not in self._compared:
                return head
            rows = {row.team_id: row for row in self._rows(BalanceRecord, _BALANCES)}
        for team_id, account in self._books.accounts.items():
            self._compare("balances", tracked, team_id, BalanceRecord.of(account), rows.pop(team_id, None))
        for team_id, row in rows.items():
            self._compare("balances", None, team_id, None, row)
        return head

    def _compare_jobs(self) -> None:
        """Job by job, each from its first event on; some at a time, and for a moment only, as of that moment."""
        if not self._compared & {JOBS.name, CALLS.name}:
            return
        after = NIL
        while after < LAST:
            with self._as_of_one_moment(JOBS.name, CALLS.name):
                found = self._connection.execute(_JOB_STREAMS, (JOB.stream(after), JOBS_AT_ONCE)).fetchall()
                last = found[-1][0].partition("-")[2] if len(found) == JOBS_AT_ONCE else LAST
                self._compare_some(after, last, {stream for (stream,) in found})
            self._report.jobs += len(found)
            self._progress("jobs", self._report.jobs, self._created)
            after = last

    def _compare_some(self, after: str, last: str, streams: set[str]) -> None:
        jobs = {row.job_id: row for row in self._rows(JobRecord, _JOBS, after, last)}
        calls: dict[str, dict[str, CallRow]] = defaultdict(dict)
        for call in self._rows(CallRow, _CALLS, after, last):
            calls[call.job_id][call.call_id] = call
        for position, job in self._jobs(after, last, streams):
            if job.credits_refunded > job.credits_charged:
                detail = f"{job.credits_refunded} credits are refunded of {job.credits_charged}"
                self._report.add("no_more_is_refunded_than_was_charged", position, JOB.stream(job.job_id), detail)
            if JOBS.name in self._compared:
                self._compare("jobs", position, job.job_id, JobRecord.of(job), jobs.pop(job.job_id, None))
            if CALLS.name in self._compared:
                self._compare_calls(position, job, calls.pop(job.job_id, {}))
        for row in jobs.values() if JOBS.name in self._compared else ():
            self._compare("jobs", None, row.job_id, None, row)
        for rows in calls.values() if CALLS.name in self._compared else ():
            for call in rows.values():
                self._compare("calls", None, call.call_id, None, call)

    def _compare_calls(self, position: int, job: Job, rows: dict[str, CallRow]) -> None:
        calls: tuple[EndedCall | RunningCall, ...] = (*job.ended, *job.running.values())
        for call in calls:
            record = CallRow(**msgspec.structs.asdict(CallRecord.of(call)), job_id=job.job_id)
            self._compare("calls", position, call.call_id, record, rows.pop(call.call_id, None))
        for row in rows.values():
            self._compare("calls", None, row.call_id, None, row)

    def _jobs(self, after: str, last: str, streams: set[str]) -> Iterator[tuple[int, Job]]:
        """Each job as the read models should have it, and the position of its last event."""
        job: Any = None
        current, reached = "", 0
        within = (JOB.stream(after), JOB.stream(last), self._number(_TRACKED))
        with self._connection.cursor("jobs", binary=True) as cursor:
            cursor.itersize = PAGE
            for stream, position, topic, state in cursor.execute(_JOB_EVENTS, within):
                if stream not in streams:
                    continue
                if stream != current:
                    if job is not None:
                        yield reached, job
                    job, current = None, stream
                try:
                    job, reached = JOB.evolve(job, decode(topic, state)), position
                except Exception:  # noqa: BLE001 it has been told already what is wrong with this event
                    job = None
        if job is not None:
            yield reached, job

    def _compare(self, table: str, position: int | None, key: str, expected: R | None, row: R | None) -> None:
        if row is None:
            self._report.add(table, position, key, "the row is missing")
        elif expected is None:
            self._report.add(table, position, key, "there is a row without an event")
        elif expected != row:
            differing = [
                f"{name} is {getattr(row, name)!s}, replayed {getattr(expected, name)!s}"
                for name in expected.__struct_fields__
                if getattr(expected, name) != getattr(row, name)
            ]
            self._report.add(table, position, key, "; ".join(differing))

    # -- statements and bills --------------------------------------------------------------------------------------

    def _look_at_what_was_signed_off(self) -> None:
        for name, verify in (("closed_statements", verify_statements), ("booked_bills", verify_bills)):
            self._report.checks.append(name)
            for position, stream, detail in verify(self._connection):
                self._report.add(name, position, stream, detail)

    # -- snapshots -------------------------------------------------------------------------------------------------

    def _look_at_snapshots(self) -> None:
        self._report.checks.append("snapshots")
        for stream in verify_snapshots(self._connection):
            position = self._connection.execute(_SNAPSHOT_POSITION, (stream,)).fetchone()
            self._report.add(
                "snapshots", None if position is None else position[0], stream, "is not what its events add up to"
            )

    # -- receipts --------------------------------------------------------------------------------------------------

    def _look_at_receipts(self) -> None:
        self._report.checks.append("receipts")
        progress = partial(self._progress, "receipts")
        for position, subject, detail in verify_receipts(self._connection, progress):
            self._report.add("receipts", position, subject, detail)

    def _rows(self, kind: type[R], select: str, *parameters: Any) -> list[R]:
        with self._connection.cursor(row_factory=class_row(kind)) as cursor:
            return cursor.execute(select.encode(), parameters).fetchall()

    def _number(self, select: str) -> int:
        [(number,)] = self._connection.execute(select.encode()).fetchall()
        return int(number)
