"""The ledger: every decision on the latest state, everything acknowledged on record, once, whatever breaks."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
import pytest
from msgspec.structs import replace
from psycopg import errors
from psycopg.rows import TupleRow

from domain.credit import Account, AdjustCredits, adjust_credits
from domain.errors import InsufficientCredits
from domain.event import Command, Event
from domain.job import MetadataMerged
from infra import journal, ledger
from infra.embedded import throwaway_server
from infra.journal import Answer, Connection, PoisonEvent
from infra.ledger import ClaimLost, Guard, Ledger, Outcome, Receipt, Unavailable
from infra.postgres import migrate
from infra.verify import verify
from tests.infra.accounts import (
    ACCOUNT,
    NOON,
    OTHER,
    a_ledger,
    charge_without_looking,
    charging,
    connected,
    everything,
    grant_credits,
    granting,
    open_account,
    open_with,
    opening,
    spend,
    spending,
    waiting_for_the_lock,
    who,
)
from tests.infra.proxy import Failure, a_proxy

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Broken(Exception):
    """A bug in a decision."""


def fail(*states_and_command: object) -> list[Event]:
    raise Broken


def look(account: Account | None, command: Command) -> list[Event]:
    return []


def move(
    source: Account | None, target: Account | None, command: AdjustCredits
) -> tuple[Sequence[Event], Sequence[Event]]:
    """Takes credits from one account and gives them to another."""
    return spend(source, command), adjust_credits(target, replace(command, credits=-command.credits))


async def together(*wishes: Coroutine[Any, Any, Outcome]) -> list[Outcome | BaseException]:
    """Wishes uttered in one breath: the ledger finds them in one batch."""
    return await asyncio.gather(*wishes, return_exceptions=True)


def remaining(outcome: Outcome | BaseException) -> int:
    assert isinstance(outcome, Outcome), outcome
    account = outcome.states[0]
    assert isinstance(account, Account)
    return account.remaining


async def balance(of: Ledger, account: str = ACCOUNT) -> int:
    return remaining(await of.read(account))


async def topics(dsn: str) -> list[str]:
    return [type(event.event).__name__ for event in await everything(dsn)]


async def requests(dsn: str) -> list[str]:
    """Which requests are on record, in the order of the journal."""
    return [event.event.request for event in await everything(dsn)]


async def connection_of(owner: psycopg.AsyncConnection[TupleRow], dsn: str) -> int:
    """The process id of the ledger's connection."""
    cursor = await owner.execute(
        "select pid from pg_stat_activity where datname = current_database() and application_name = 'ledger'"
    )
    [(pid,)] = await cursor.fetchall()
    return int(pid)


# -- deciding ----------------------------------------------------------------------------------------------------------


def test_a_command_is_answered_with_the_states_it_left_and_their_place_in_the_journal(
    database: str, runner: Run
) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            opened = await of.carry_out(open_account, opening(request="r-1"), ACCOUNT)
            granted = await of.carry_out(grant_credits, granting(10, "r-2"), ACCOUNT)
        recorded = await everything(database)
        assert [1, 2] == [opened.position, granted.position]
        assert [opened.events[0], granted.events[0]] == [event.event for event in recorded]
        assert [("key-1", "r-1"), ("key-1", "r-2")] == [(event.event.by, event.event.request) for event in recorded]
        assert 10 == remaining(granted)

    runner(story())


def test_wishes_that_come_together_are_decided_in_order_each_on_what_the_others_left(
    database: str, runner: Run
) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 3)
            outcomes = await together(*(of.carry_out(spend, spending(), ACCOUNT) for _ in range(5)))
        assert [2, 1, 0] == [remaining(outcome) for outcome in outcomes[:3]]
        assert all(isinstance(outcome, InsufficientCredits) for outcome in outcomes[3:])
        assert {5} == {outcome.position for outcome in outcomes[:3] if isinstance(outcome, Outcome)}

    runner(story())


def test_a_refusal_answers_only_its_own_command(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 3)
            first, refused, last = await together(
                of.carry_out(spend, spending(1), ACCOUNT),
                of.carry_out(spend, spending(100), ACCOUNT),
                of.carry_out(spend, spending(2), ACCOUNT),
            )
        assert [2, 0] == [remaining(first), remaining(last)]
        assert isinstance(refused, InsufficientCredits)
        assert {"credits_needed": 100, "credits_available": 2} == refused.facts

    runner(story())


def test_a_bug_in_a_decision_answers_only_its_own_command(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 3)
            first, broken, last = await together(
                of.carry_out(spend, spending(1), ACCOUNT),
                of.carry_out(fail, spending(1), ACCOUNT),
                of.carry_out(spend, spending(1), ACCOUNT),
            )
        assert [2, 1] == [remaining(first), remaining(last)]
        assert isinstance(broken, Broken)

    runner(story())


def test_an_event_that_could_not_be_read_back_is_never_written(database: str, runner: Run) -> None:
    def grant_nonsense(account: Account | None, command: Command) -> list[Event]:
        [event] = grant_credits(account, granting())
        return [replace(event, credits="many")]

    def in_the_wrong_stream(account: Account | None, other: Account | None, command: Command) -> Any:
        return [MetadataMerged(at=NOON, job_id="job-1", metadata={})], []

    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 3)
            with pytest.raises(msgspec.ValidationError):
                await of.carry_out(grant_nonsense, spending(), ACCOUNT)
            with pytest.raises(TypeError):
                await of.carry_out(in_the_wrong_stream, spending(), ACCOUNT, OTHER)
        assert ["AccountOpened", "CreditsGranted"] == await topics(database)

    runner(story())


def test_two_streams_of_one_decision_are_written_together(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 5)
            await open_with(of, 0 + 1, OTHER)
            moved = await of.carry_out(move, spending(2), ACCOUNT, OTHER)
            with pytest.raises(InsufficientCredits):
                await of.carry_out(move, spending(4), ACCOUNT, OTHER)
            assert (3, 3) == (await balance(of), await balance(of, OTHER))
            assert [3, 3] == [state.remaining for state in moved.states]

    runner(story())


def test_a_stream_named_twice_is_one_stream(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 5)
            await of.carry_out(move, spending(2), ACCOUNT, ACCOUNT)
            await of.carry_out(spend, spending(1), ACCOUNT)
        async with a_ledger(database) as fresh:
            assert 4 == await balance(fresh)
        assert [1, 2, 3, 4, 5] == [event.version for event in await everything(database)]

    runner(story())


def test_a_guard_is_checked_on_the_latest_state_before_the_decision(database: str, runner: Run) -> None:
    def solvent(account: Account | None, at: object) -> None:
        assert account is not None
        assert NOON == at
        if account.remaining == 0:
            raise InsufficientCredits(credits_needed=1, credits_available=0)

    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 1)
            guard = Guard((ACCOUNT,), solvent)
            outcomes = await together(
                of.carry_out(open_account, opening(OTHER), OTHER, guard=guard),
                of.carry_out(spend, spending(), ACCOUNT, guard=guard),
                of.carry_out(fail, spending(), OTHER, guard=guard),
            )
        assert [Outcome, Outcome, InsufficientCredits] == [type(outcome) for outcome in outcomes]

    runner(story())


def test_a_look_changes_nothing_and_is_not_older_than_the_question(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of, a_ledger(database) as rival:
            await open_with(of, 5)
            assert (2, 5) == ((seen := await of.read(ACCOUNT)).position, remaining(seen))
            await rival.carry_out(spend, spending(2), ACCOUNT)
            assert (3, 3) == ((seen := await of.read(ACCOUNT)).position, remaining(seen))
            assert (None,) == (await of.read(OTHER)).states
        assert 3 == len(await everything(database))

    runner(story())


def test_a_glance_shows_what_was_last_seen(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            assert of.glance(ACCOUNT) is None
            opened = await open_with(of, 5)
            assert of.glance(ACCOUNT) == opened.states[0]

    runner(story())


def test_a_misspelt_stream_is_its_callers_own_error(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            with pytest.raises(KeyError):
                await of.read("cerdit-research")

    runner(story())


# -- several processes -------------------------------------------------------------------------------------------------


def test_a_stale_state_is_noticed_and_the_wish_decided_again(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of, a_ledger(database) as rival:
            await open_with(of, 3)
            assert 3 == await balance(rival)
            for left in (2, 1, 0):
                assert left == remaining(await (of if left % 2 else rival).carry_out(spend, spending(), ACCOUNT))
            with pytest.raises(InsufficientCredits):
                await of.carry_out(spend, spending(), ACCOUNT)

    runner(story())


def test_a_refusal_that_rested_on_a_stale_state_is_decided_again(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of, a_ledger(database) as rival:
            await open_with(of, 0 + 1)
            await of.carry_out(spend, spending(), ACCOUNT)
            await rival.carry_out(grant_credits, granting(5), ACCOUNT)
            assert 0 == of.glance(ACCOUNT).remaining  # type: ignore[union-attr]
            assert 4 == remaining(await of.carry_out(spend, spending(), ACCOUNT))

    runner(story())


def test_a_decision_that_only_read_a_stream_is_made_again_when_that_moved(database: str, runner: Run) -> None:
    def open_if_rich(other: Account | None, rich: Account | None, command: Any) -> Any:
        assert rich is not None
        if rich.remaining < 5:
            raise InsufficientCredits(credits_needed=5, credits_available=rich.remaining)
        return open_account(other, command), []

    async def story() -> None:
        async with a_ledger(database) as of, a_ledger(database) as rival:
            await open_with(of, 5)
            await rival.carry_out(spend, spending(), ACCOUNT)
            with pytest.raises(InsufficientCredits):
                await of.carry_out(open_if_rich, opening(OTHER), OTHER, ACCOUNT)
            assert (None,) == (await of.read(OTHER)).states

    runner(story())


def test_the_second_attempt_ends_however_busy_the_rivals_are(database: str, runner: Run) -> None:
    """Under the writer lock nobody else can be faster: each wish is decided three times at most."""
    tries: list[str] = []

    def counted(account: Account | None, command: AdjustCredits) -> list[Event]:
        tries.append(command.transaction_id)
        return spend(account, command)

    async def rival(of: Ledger) -> None:
        for _ in range(50):
            await of.carry_out(grant_credits, granting(1), ACCOUNT)

    async def story() -> None:
        async with a_ledger(database) as of, a_ledger(database) as one, a_ledger(database) as two:
            await open_with(of, 100)
            rivals = asyncio.gather(rival(one), rival(two))
            for _ in range(50):
                await of.carry_out(counted, spending(), ACCOUNT)
            await rivals
            assert 150 == await balance(of)
        assert 50 == len(set(tries))
        assert 2 >= max(tries.count(wish) for wish in tries)

    runner(story())


def test_ledgers_that_share_a_team_act_as_one(database: str, runner: Run) -> None:
    """Strict serializability: what was acknowledged, in this order, is what a single ledger would have answered."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    answers: list[tuple[str, bool]] = []

    async def wish(of: Ledger, name: str, credits: int) -> None:
        try:
            if credits > 0:
                await of.carry_out(grant_credits, granting(credits, name), ACCOUNT)
            else:
                await of.carry_out(spend, spending(-credits, name), ACCOUNT)
        except InsufficientCredits:
            answers.append((name, False))
        else:
            answers.append((name, True))

    async def story() -> None:
        async with a_ledger(database) as one, a_ledger(database) as two, a_ledger(database) as three:
            await open_with(one, 10)
            for round_ in range(40):
                wishes = [
                    wish(dice.choice((one, two, three)), f"{round_}-{number}", dice.choice((-7, -4, -2, -1, 1, 3)))
                    for number in range(dice.randint(1, 12))
                ]
                await asyncio.gather(*wishes)
            balances = [await balance(of) for of in (one, two, three)]
        recorded = await everything(database)
        written = [event.event.request for event in recorded[2:]]
        assert sorted(name for name, done in answers if done) == sorted(written)
        assert all(event.event.remaining_credits >= 0 for event in recorded[1:])  # type: ignore[attr-defined]
        assert {recorded[-1].event.remaining_credits} == set(balances)  # type: ignore[attr-defined]
        assert list(range(1, len(recorded) + 1)) == [event.version for event in recorded]

    runner(story())


def test_a_wrong_promise_that_a_stream_is_new_does_no_harm(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of, a_ledger(database) as rival:
            await open_with(rival, 5)
            outcome = await of.carry_out(open_account, opening(), ACCOUNT, new=ACCOUNT)
            assert (5, ()) == (remaining(outcome), outcome.events)
            await rival.carry_out(open_account, opening(OTHER), OTHER)
            again = await of.carry_out(open_account, opening(OTHER), OTHER, new=OTHER)
            assert () == again.events
        assert 3 == len(await everything(database))

    runner(story())


# -- the culprit alone -------------------------------------------------------------------------------------------------


def test_a_second_charge_is_refused_by_the_database_and_only_the_culprit_suffers(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 10)
            await of.carry_out(charge_without_looking, charging("job-1"), ACCOUNT)
            outcomes = await together(
                *(of.carry_out(spend, spending(1, f"before-{number}"), ACCOUNT) for number in range(3)),
                of.carry_out(charge_without_looking, charging("job-1", "guilty"), ACCOUNT),
                *(of.carry_out(spend, spending(1, f"after-{number}"), ACCOUNT) for number in range(3)),
            )
            assert 3 == await balance(of)
        assert isinstance(outcomes.pop(3), errors.UniqueViolation)
        assert [8, 7, 6, 5, 4, 3] == [remaining(outcome) for outcome in outcomes]
        assert "guilty" not in await requests(database)

    runner(story())


def test_a_stream_that_nobody_can_read_answers_only_who_asks_for_it(database: str, runner: Run) -> None:
    async def story() -> None:
        async with await connected(database) as connection:
            draft = journal.Draft(read={OTHER: 0})
            draft.add(OTHER, "AccountOpened", b"{}")
            await journal.append(connection, draft)
        async with a_ledger(database) as of:
            fine, poisoned = await together(
                of.carry_out(open_account, opening(), ACCOUNT), of.carry_out(open_account, opening(OTHER), OTHER)
            )
        assert isinstance(fine, Outcome)
        assert isinstance(poisoned, PoisonEvent)

    runner(story())


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_large_wishes_are_written_in_several_appends(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "APPEND_BYTES", 10_000)
    sizes: list[int] = []
    append = journal.append

    async def weighed(connection: Connection, draft: journal.Draft) -> journal.Appended:
        sizes.append(draft.size)
        return await append(connection, draft)

    monkeypatch.setattr(journal, "append", weighed)

    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 100)
            outcomes = await together(
                *(of.carry_out(spend, spending(1, reason="x" * 4000), ACCOUNT) for _ in range(20))
            )
        assert list(range(99, 79, -1)) == [remaining(outcome) for outcome in outcomes]
        positions = [outcome.position for outcome in outcomes if isinstance(outcome, Outcome)]
        assert sorted(positions) == positions
        assert 7 == len(set(positions))

    runner(story())
    assert max(sizes) < 15_000


def test_a_batch_that_would_load_too_much_is_carried_out_in_parts(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LOAD_BYTES", 5_000)
    accounts = [f"credit-team-{number}" for number in range(6)]

    async def story() -> None:
        async with a_ledger(database) as of:
            for account in accounts:
                await open_with(of, 10, account)
                await of.carry_out(spend, spending(1, reason="x" * 4000), account)
        async with a_ledger(database) as fresh:
            outcomes = await together(*(fresh.carry_out(move, spending(), *pair) for pair in pairwise(accounts)))
            assert [8, 9, 9, 9, 9] == [remaining(outcome) for outcome in outcomes]
            assert [8, 9, 9, 9, 9, 10] == [await balance(fresh, account) for account in accounts]

    runner(story())


def test_the_cache_is_bounded_by_number_and_by_size() -> None:
    cache = ledger._Cache(states=3, size=100_000)
    for number in range(5):
        cache.put(f"credit-{number}", journal.Versioned(1, None, size=10))
    assert 3 == len(cache)
    assert cache.get("credit-1") is None

    command = opening()
    state = Account(team_id="t" * 60_000, organization_id="acme", updated_at=command.at)
    cache.put("credit-large", journal.Versioned(1, state, size=60_000))
    assert 3 == len(cache)
    cache.put("credit-larger", journal.Versioned(1, state, size=60_000))
    assert cache.get("credit-larger") is not None
    assert cache.get("credit-large") is None


def test_a_long_history_of_a_small_state_costs_no_room(database: str) -> None:
    cache = ledger._Cache(states=3, size=100_000)
    state = Account(team_id="research", organization_id="acme", updated_at=NOON)
    cache.put("credit-other", journal.Versioned(1, state, size=100))
    for size in range(0, 10_000_000, 100_000):
        cache.put(ACCOUNT, journal.Versioned(1, state, size=size))
    assert cache.get("credit-other") is not None
    assert cache.get(ACCOUNT) is not None


def test_a_state_that_does_not_fit_the_cache_is_loaded_each_time(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database, cache_size=1) as of:
            await open_with(of, 5)
            await open_with(of, 7, OTHER)
            assert of.glance(ACCOUNT) is None
            assert (5, 7) == (await balance(of), await balance(of, OTHER))

    runner(story())


def test_a_full_queue_sends_away_at_once(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database, queue_size=3) as of:
            outcomes = await together(*(of.carry_out(open_account, opening(), ACCOUNT) for _ in range(5)))
            assert [Outcome, Outcome, Outcome, Unavailable, Unavailable] == [type(outcome) for outcome in outcomes]
            assert 0 == of.depth
            assert (None,) != (await of.read(ACCOUNT)).states

    runner(story())


# -- receipts ----------------------------------------------------------------------------------------------------------


async def claimed(dsn: str) -> str:
    claim = str(uuid4())
    async with await connected(dsn) as connection:
        await connection.execute(
            "insert into app.idempotency (scope, key, fingerprint, state, claim_id, lease_until)"
            " values ('scope', %s, '', 'claimed', %s, now() + interval '1 minute')",
            (claim, claim),
        )
    return claim


async def kept(dsn: str, claim: str) -> tuple[object, ...]:
    async with await connected(dsn) as connection:
        cursor = await connection.execute("select state, status, body from app.idempotency where key = %s", (claim,))
        row = await cursor.fetchone()
    assert row is not None
    return row


def with_remaining(outcome: Outcome) -> Answer:
    return Answer(200, str(remaining(outcome)).encode())


def test_the_answer_to_a_repeat_is_written_with_the_events(database: str, runner: Run) -> None:
    async def story() -> None:
        claim = await claimed(database)
        async with a_ledger(database) as of:
            await open_with(of, 5)
            await of.carry_out(spend, spending(2), ACCOUNT, receipt=Receipt(claim, with_remaining))
        assert ("finished", 200, b"3") == await kept(database, claim)

    runner(story())


def test_a_refusal_keeps_no_answer(database: str, runner: Run) -> None:
    async def story() -> None:
        claim = await claimed(database)
        async with a_ledger(database) as of:
            await open_with(of, 1)
            with pytest.raises(InsufficientCredits):
                await of.carry_out(spend, spending(2), ACCOUNT, receipt=Receipt(claim, with_remaining))
        assert "claimed" == (await kept(database, claim))[0]

    runner(story())


def test_an_answer_is_kept_also_if_nothing_happened(database: str, runner: Run) -> None:
    async def story() -> None:
        claim = await claimed(database)
        async with a_ledger(database) as of:
            await open_with(of, 5)
            await of.carry_out(look, spending(2), ACCOUNT, receipt=Receipt(claim, with_remaining))
        assert ("finished", 200, b"5") == await kept(database, claim)

    runner(story())


def test_who_lost_the_claim_writes_nothing_and_the_others_do(database: str, runner: Run) -> None:
    async def story() -> None:
        claim = await claimed(database)
        async with a_ledger(database) as of:
            await open_with(of, 5)
            lost, fine, first = await together(
                of.carry_out(spend, spending(1, "lost"), ACCOUNT, receipt=Receipt(str(uuid4()), with_remaining)),
                of.carry_out(spend, spending(1, "fine"), ACCOUNT, receipt=Receipt(claim, with_remaining)),
                of.carry_out(spend, spending(1, "first"), ACCOUNT),
            )
        assert isinstance(lost, ClaimLost)
        assert [4, 3] == [remaining(fine), remaining(first)]
        assert ["fine", "first"] == (await requests(database))[2:]
        assert ("finished", 200, b"4") == await kept(database, claim)

    runner(story())


def test_an_answer_that_cannot_be_made_leaves_no_trace(database: str, runner: Run) -> None:
    def broken(outcome: Outcome) -> Answer:
        raise Broken

    async def story() -> None:
        claim = await claimed(database)
        async with a_ledger(database) as of:
            await open_with(of, 5)
            with pytest.raises(Broken):
                await of.carry_out(spend, spending(), ACCOUNT, receipt=Receipt(claim, broken))
            assert 5 == await balance(of)
        assert "claimed" == (await kept(database, claim))[0]

    runner(story())


# -- what breaks on the way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", list(Failure))
def test_an_append_whose_answer_is_lost_happens_once(database: str, runner: Run, failure: Failure) -> None:
    async def story() -> None:
        async with a_proxy(database) as proxy, a_ledger(proxy.dsn, answer_s=0.5) as of:
            await open_with(of, 10)
            proxy.fail("the-one", failure)
            outcomes = await together(
                of.carry_out(spend, spending(1, "the-one"), ACCOUNT),
                of.carry_out(spend, spending(100, "too-much"), ACCOUNT),
                of.carry_out(spend, spending(2, "another"), ACCOUNT),
            )
            assert proxy.happened.is_set()
            assert [9, InsufficientCredits, 7] == [
                remaining(outcome) if isinstance(outcome, Outcome) else type(outcome) for outcome in outcomes
            ]
            if failure is Failure.LATE:
                assert b"research" in await proxy.deliver()  # it was stale, and says of what
            assert 7 == await balance(of)
        assert ["the-one", "another"] == (await requests(database))[2:]

    runner(story())


@pytest.mark.parametrize("failure", [Failure.BEFORE, Failure.AFTER, Failure.LATE])
def test_a_commit_whose_answer_is_lost_happens_once(database: str, runner: Run, failure: Failure) -> None:
    """The second attempt, under the writer lock, is a transaction of several steps, and may break at the last."""

    async def story() -> None:
        async with a_proxy(database) as proxy, a_ledger(proxy.dsn) as of, a_ledger(database) as rival:
            await open_with(of, 10)
            await rival.carry_out(spend, spending(1, "theirs"), ACCOUNT)
            proxy.fail("COMMIT", failure)
            wish = asyncio.create_task(of.carry_out(spend, spending(1, "ours"), ACCOUNT))
            await proxy.happened.wait()
            if failure is Failure.LATE:
                async with await connected(database) as other:
                    await waiting_for_the_lock(other, 1)  # that the late one still holds
                await proxy.deliver()
            assert 8 == remaining(await wish)
        assert ["theirs", "ours"] == (await requests(database))[2:]

    runner(story())


def test_who_falls_silent_with_the_writer_lock_in_hand_loses_it(database: str, runner: Run) -> None:
    async def story() -> None:
        async with await connected(database) as silent, a_ledger(database) as of:
            await silent.execute("begin")
            await journal.lock(silent)
            await of.carry_out(open_account, opening(), ACCOUNT)
            with pytest.raises(errors.IdleInTransactionSessionTimeout):
                await journal.position(silent)

    runner(story())


def test_an_append_that_arrives_late_while_it_is_looked_for_happens_once(database: str, runner: Run) -> None:
    """The moment between looking for an attempt and deciding again belongs to the writer lock."""

    async def story() -> None:
        async with a_proxy(database) as proxy, a_ledger(proxy.dsn, cache_size=0) as of:
            await open_with(of, 10)
            async with await connected(database) as other, other.transaction():
                await journal.lock(other)
                proxy.fail("late-one", Failure.LATE)
                wish = asyncio.create_task(of.carry_out(spend, spending(1, "late-one"), ACCOUNT))
                await waiting_for_the_lock(other, 1)  # who looks for it
                late = asyncio.create_task(proxy.deliver())
                await waiting_for_the_lock(other, 2)  # and it itself
            assert 9 == remaining(await wish)
            await late
        assert ["late-one"] == (await requests(database))[2:]

    runner(story())


def test_an_append_that_arrives_after_rivals_have_moved_on_is_stale(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_proxy(database) as proxy, a_ledger(proxy.dsn) as of, a_ledger(database) as rival:
            await open_with(of, 1)
            async with await connected(database) as other, other.transaction():
                await journal.lock(other)
                proxy.fail("late-one", Failure.LATE)
                wish = asyncio.create_task(of.carry_out(spend, spending(1, "late-one"), ACCOUNT))
                await proxy.happened.wait()
                theirs = asyncio.create_task(rival.carry_out(spend, spending(1, "theirs"), ACCOUNT))
                await waiting_for_the_lock(other, 2)  # the rival, and who looks for the late one
            answers = await asyncio.gather(wish, theirs, return_exceptions=True)
            await proxy.deliver()
            assert {Outcome, InsufficientCredits} == {type(answer) for answer in answers}
            assert 0 == await balance(of)
        assert 3 == len(await everything(database))

    runner(story())


def test_a_lost_answer_is_not_mistaken_for_that_of_an_earlier_attempt(database: str, runner: Run) -> None:
    """Two attempts at one batch begin with the same event, but a rival came in between: told is what was written."""

    async def story() -> None:
        async with a_proxy(database) as proxy, a_ledger(proxy.dsn) as of, a_ledger(database) as rival:
            await open_with(of, 10)
            await open_with(of, 1, OTHER)
            async with await connected(database) as other, other.transaction():
                await journal.lock(other)
                theirs = asyncio.create_task(rival.carry_out(grant_credits, granting(10, "theirs"), OTHER))
                await waiting_for_the_lock(other, 1)
                proxy.fail("first", Failure.BEFORE)
                ours = asyncio.create_task(
                    together(
                        of.carry_out(spend, spending(1, "first"), ACCOUNT),
                        of.carry_out(spend, spending(5, "refused-at-first"), OTHER),
                    )
                )
                await proxy.happened.wait()
                proxy.fail("COMMIT", Failure.AFTER)
                await waiting_for_the_lock(other, 2)
            await theirs
            first, second = await ours
            assert proxy.happened.is_set()
            assert [9, 6] == [remaining(first), remaining(second)]
        assert ["theirs", "first", "refused-at-first"] == (await requests(database))[4:]

    runner(story())


def test_a_killed_connection_costs_nothing_but_time(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of, await psycopg.AsyncConnection.connect(database, autocommit=True) as owner:
            await open_with(of, 10)

            async def kill() -> None:
                await owner.execute("select pg_terminate_backend(%s)", [await connection_of(owner, database)])

            await kill()
            assert 9 == remaining(await of.carry_out(spend, spending(1, "before"), ACCOUNT))

            async with await connected(database) as other:
                async with other.transaction():
                    await journal.lock(other)
                    wish = asyncio.create_task(of.carry_out(spend, spending(1, "during"), ACCOUNT))
                    await waiting_for_the_lock(other, 1)
                    await kill()
                assert 8 == remaining(await wish)

            wish = asyncio.create_task(of.carry_out(spend, spending(1, "after"), ACCOUNT))
            while 5 > len(await everything(database)):  # noqa: ASYNC110 the database does not tell
                await asyncio.sleep(0)
            await kill()
            assert 7 == remaining(await wish)
        assert ["before", "during", "after"] == (await requests(database))[2:]

    runner(story())


def test_connections_killed_at_any_moment_lose_nothing_and_double_nothing(database: str, runner: Run) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    acknowledged: list[str] = []

    async def spender(of: Ledger, name: str) -> None:
        for number in range(20):
            with suppress(Unavailable):
                await of.carry_out(spend, spending(1, f"{name}-{number}"), ACCOUNT)
                acknowledged.append(f"{name}-{number}")

    async def killer(done: asyncio.Event) -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as owner:
            while not done.is_set():
                await asyncio.sleep(0.02 + dice.random() * 0.1)
                await owner.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and application_name = 'ledger'"
                )

    async def story() -> None:
        done = asyncio.Event()
        async with a_ledger(database) as one, a_ledger(database) as two:
            await open_with(one, 1000)
            killing = asyncio.create_task(killer(done))
            await asyncio.gather(
                *(spender(of, f"{name}{n}") for of, name in ((one, "a"), (two, "b")) for n in range(8))
            )
            done.set()
            await killing
            written = (await requests(database))[2:]
            assert len(set(written)) == len(written)
            assert set(acknowledged) <= set(written)
            assert 1000 - len(written) == await balance(one) == await balance(two)

    runner(story())
    with psycopg.connect(database, autocommit=True) as connection:
        assert verify(connection).first_break is None


def test_an_answer_kept_in_a_lost_append_is_known_again(database: str, runner: Run) -> None:
    async def story() -> None:
        claim = await claimed(database)
        async with a_proxy(database) as proxy, a_ledger(proxy.dsn) as of:
            await open_with(of, 5)
            proxy.fail("remaining-is", Failure.AFTER)
            receipt = Receipt(claim, lambda outcome: Answer(200, b"remaining-is-%d" % remaining(outcome)))
            outcome = await of.carry_out(look, spending(1), ACCOUNT, receipt=receipt)
            assert proxy.happened.is_set()
            assert 5 == remaining(outcome)
        assert ("finished", 200, b"remaining-is-5") == await kept(database, claim)

    runner(story())


def test_postgresql_stopped_and_started_again(runner: Run) -> None:
    async def story() -> None:
        with throwaway_server() as server:
            await asyncio.to_thread(migrate, server.dsn)
            async with a_ledger(server.dsn, patience_s=0.3) as of:
                await open_with(of, 10)
                await asyncio.to_thread(server.stop)
                away = await together(*(of.carry_out(spend, spending(1), ACCOUNT) for _ in range(20)))
                again = await together(of.carry_out(spend, spending(1), ACCOUNT), of.read(ACCOUNT))
                assert {Unavailable} == {type(answer) for answer in (*away, *again)}
                assert 20 == len({id(answer) for answer in away})
                assert all(answer.retry_after_s > 0 for answer in away if isinstance(answer, Unavailable))
                await asyncio.to_thread(server.start)
                assert 9 == remaining(await of.carry_out(spend, spending(1), ACCOUNT))

    runner(story())


def test_patience_bridges_a_restart(runner: Run) -> None:
    async def story() -> None:
        with throwaway_server() as server:
            await asyncio.to_thread(migrate, server.dsn)
            async with a_ledger(server.dsn, patience_s=30) as of:
                await open_with(of, 10)
                await asyncio.to_thread(server.stop)
                wish = asyncio.create_task(of.carry_out(spend, spending(1), ACCOUNT))
                await asyncio.sleep(0.1)
                await asyncio.to_thread(server.start)
                assert 9 == remaining(await wish)

    runner(story())


def test_a_cancelled_caller_does_not_cancel_the_append(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of, await connected(database) as other:
            await open_with(of, 10)
            async with other.transaction():
                await journal.lock(other)
                wish = asyncio.create_task(of.carry_out(spend, spending(1, "cancelled"), ACCOUNT))
                refused = asyncio.create_task(of.carry_out(spend, spending(100), ACCOUNT))
                await waiting_for_the_lock(other, 1)
                wish.cancel()
                refused.cancel()
                await asyncio.wait([wish, refused])
                assert wish.cancelled()
            assert 9 == await balance(of)
        assert "cancelled" == (await requests(database))[-1]

    runner(story())


def test_stop_carries_out_what_is_waiting_and_takes_nothing_new(database: str, runner: Run) -> None:
    async def story() -> None:
        of = Ledger(lambda: connected(database), batch_size=3)
        await of.start()
        await open_with(of, 10)
        wishes = [asyncio.create_task(of.carry_out(spend, spending(), ACCOUNT)) for _ in range(10)]
        await asyncio.sleep(0)
        stopping = asyncio.create_task(of.stop())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await of.carry_out(spend, spending(), ACCOUNT)
        await stopping
        assert list(range(9, -1, -1)) == [remaining(wish.result()) for wish in wishes]

    runner(story())


def test_whoever_wants_to_know_is_told_about_each_append(database: str, runner: Run) -> None:
    positions: list[int] = []

    async def story() -> None:
        async with a_ledger(database, appended=positions.append) as of:
            await open_with(of, 1)
            await of.read(ACCOUNT)
            with pytest.raises(InsufficientCredits):
                await of.carry_out(spend, spending(9), ACCOUNT)

    runner(story())
    assert [1, 2] == positions


# -- snapshots ---------------------------------------------------------------------------------------------------------


async def snapshot(dsn: str) -> tuple[object, ...] | None:
    async with await connected(dsn) as connection:
        cursor = await connection.execute("select version, category_version from journal.snapshots")
        return await cursor.fetchone()


def test_a_long_stream_gets_a_snapshot_and_is_read_from_it(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SNAPSHOT_EVERY", 10)

    async def story() -> None:
        async with a_ledger(database) as of:
            await open_with(of, 100)
            for _ in range(8):
                await of.carry_out(spend, spending(), ACCOUNT)
        assert (10, 1) == await snapshot(database)
        async with await connected(database) as connection:
            changed = (
                b'{"team_id":"research","organization_id":"acme","allocated":7,"updated_at":"2026-03-04T12:00:00Z"}'
            )
            await connection.execute("update journal.snapshots set state = %b", (changed,))
        async with a_ledger(database) as fresh:
            assert 7 == await balance(fresh)  # so it is read
        async with await connected(database) as connection:
            await connection.execute("update journal.snapshots set category_version = 2")
        async with a_ledger(database) as fresh:
            assert 92 == await balance(fresh)  # so it is not, if the category has changed
        assert (10, 1) == await snapshot(database)

    runner(story())


def test_a_snapshot_ahead_of_its_stream_is_found_out(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            opened = await open_with(of, 5)
        async with await connected(database) as connection:
            await journal.save_snapshot(connection, ACCOUNT, journal.Versioned(7, opened.states[0]))
        async with a_ledger(database) as fresh:
            assert 4 == remaining(await fresh.carry_out(spend, spending(), ACCOUNT))
            assert 4 == await balance(fresh)

    runner(story())


def test_who_is_who_in_every_event(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as of:
            await of.carry_out(open_account, replace(opening(), by="admin", request="r-9"), ACCOUNT)
        assert [("admin", "r-9")] == [(each.event.by, each.event.request) for each in await everything(database)]

    runner(story())
    assert "request-1" == who()["request"]
