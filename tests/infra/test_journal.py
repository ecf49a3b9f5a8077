"""The journal itself: one door, no gaps, a chain, and nobody who rewrites history."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection, errors, sql
from psycopg.rows import TupleRow

from domain.credit import AccountOpened, CreditsAdjusted
from domain.event import Event
from infra import journal, postgres
from infra.journal import Answer, Draft, PoisonEvent
from tests.infra.accounts import (
    ACCOUNT,
    NOON,
    OTHER,
    a_draft,
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
    waiting_for_the_lock,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]

OPENED = AccountOpened(at=NOON, by="key-1", request="request-1", team_id="research", organization_id="acme")


def adjusted(credits: int, reason: str | None = None) -> CreditsAdjusted:
    return CreditsAdjusted(
        at=NOON,
        by="key-1",
        request="request-1",
        transaction_id=f"adjustment-{credits}",
        team_id="research",
        organization_id="acme",
        credits=credits,
        remaining_credits=credits,
        held_credits=0,
        reason=reason,
    )


async def appended(dsn: str, *drafts: Draft) -> list[journal.Appended]:
    async with await connected(dsn) as connection:
        return [await journal.append(connection, draft) for draft in drafts]


def as_owner(dsn: str) -> Connection[TupleRow]:
    return psycopg.connect(dsn, autocommit=True)


def as_role(dsn: str, role: str) -> Connection[TupleRow]:
    connection = as_owner(dsn)
    if role == postgres.AUDITOR_ROLE:
        connection.execute(sql.SQL("grant {} to current_user").format(sql.Identifier(role)))
    connection.execute("select set_config('role', %s, false)", [role])
    return connection


@pytest.fixture
def filled(database: str, runner: Run) -> str:
    """A database with three events in its journal."""
    runner(appended(database, a_draft((ACCOUNT, OPENED), (ACCOUNT, adjusted(5)), (ACCOUNT, adjusted(-1)))))
    return database


# -- the door ----------------------------------------------------------------------------------------------------------


def test_an_append_numbers_its_events_and_moves_the_head(database: str, runner: Run) -> None:
    first = a_draft((ACCOUNT, OPENED), (OTHER, OPENED), (ACCOUNT, adjusted(5)))
    second = a_draft((OTHER, adjusted(7)), credit_sales=1)

    results = runner(appended(database, first, second))
    events = runner(everything(database))

    assert [journal.Appended(3, ()), journal.Appended(4, ())] == results
    assert [
        (1, ACCOUNT, 1, OPENED),
        (2, OTHER, 1, OPENED),
        (3, ACCOUNT, 2, adjusted(5)),
        (4, OTHER, 2, adjusted(7)),
    ] == [(event.position, event.stream, event.version, event.event) for event in events]


def test_an_append_on_a_stream_that_moved_names_it_and_writes_nothing(filled: str, runner: Run) -> None:
    async def story() -> None:
        draft = a_draft((OTHER, OPENED), credit_sales=0, credit_research=2)
        [result] = await appended(filled, draft)
        assert journal.Appended(3, (ACCOUNT,)) == result
        assert 3 == len(await everything(filled))

    runner(story())


@pytest.mark.parametrize("version", [2, 4])
def test_a_stream_that_was_only_read_is_checked_too(filled: str, runner: Run, version: int) -> None:
    [result] = runner(appended(filled, a_draft(credit_research=version)))

    assert (ACCOUNT,) == result.stale


def test_each_event_vouches_for_all_events_before_it(filled: str) -> None:
    with as_owner(filled) as connection:
        rows = connection.execute(
            "select originator_id, originator_version, topic, state, hash from journal.events order by notification_id"
        ).fetchall()
        head = connection.execute("select position, hash from journal.head").fetchone()

    digest = bytes(32)
    for stream, version, topic, state, written in rows:
        said = stream.encode() + b"\0" + version.to_bytes(8) + topic.encode() + b"\0" + state
        digest = hashlib.sha256(digest + said).digest()
        assert digest == written
    assert (3, digest) == head


def test_writers_wait_for_each_other_and_leave_no_gap(database: str, runner: Run) -> None:
    async def story() -> None:
        async with await connected(database) as slow, await connected(database) as fast:
            async with slow.transaction():
                await journal.append(slow, a_draft((ACCOUNT, OPENED)))
                waiting = asyncio.create_task(journal.append(fast, a_draft((OTHER, OPENED))))
                await waiting_for_the_lock(slow, 1)
                assert not waiting.done()
                assert [] == await everything(database)
            assert 2 == (await waiting).position
        assert [1, 2] == [event.position for event in await everything(database)]

    runner(story())


def test_a_rolled_back_append_leaves_no_gap(database: str, runner: Run) -> None:
    async def story() -> None:
        async with await connected(database) as connection:
            async with connection.transaction(force_rollback=True):
                assert 1 == (await journal.append(connection, a_draft((ACCOUNT, OPENED)))).position
            assert 1 == (await journal.append(connection, a_draft((OTHER, OPENED)))).position

    runner(story())


def test_an_answer_is_kept_with_the_events_that_it_speaks_of(database: str, runner: Run) -> None:
    claim = claimed(database)
    draft = a_draft((ACCOUNT, OPENED))
    draft.keep(claim, Answer(201, b'{"ok":true}', encrypted=True))

    [result] = runner(appended(database, draft))

    assert () == result.stale
    assert ("finished", 201, b'{"ok":true}', True) == kept(database, claim)


def test_an_append_for_a_claim_that_was_lost_writes_nothing(database: str, runner: Run) -> None:
    claim = str(uuid4())
    draft = a_draft((ACCOUNT, OPENED))
    draft.keep(claim, Answer(200, b"{}"))

    [result] = runner(appended(database, draft))

    assert journal.Appended(0, (claim,)) == result
    assert [] == runner(everything(database))


def test_a_claim_cannot_be_taken_over_while_its_answer_is_being_written(database: str, runner: Run) -> None:
    claim = claimed(database)

    async def story() -> None:
        async with await connected(database) as writer, await connected(database) as rival:
            async with writer.transaction():
                draft = a_draft((ACCOUNT, OPENED))
                draft.keep(claim, Answer(200, b"{}"))
                await journal.append(writer, draft)
                taking = asyncio.create_task(
                    rival.execute(
                        "update app.idempotency set claim_id = gen_random_uuid() where claim_id = %s"
                        " and state = 'claimed'",
                        [claim],
                    )
                )
                await waiting_for_the_lock(writer, 1)
                assert not taking.done()
            assert 0 == (await taking).rowcount

    runner(story())
    assert "finished" == kept(database, claim)[0]


def test_a_claim_taken_over_at_the_last_moment_stops_the_append(database: str, runner: Run) -> None:
    """The taker is first and holds the row: the append waits, sees that the claim is gone, and writes nothing."""
    claim = claimed(database)

    async def story() -> None:
        async with await connected(database) as writer, await connected(database) as rival:
            draft = a_draft((ACCOUNT, OPENED))
            draft.keep(claim, Answer(200, b"{}"))
            async with rival.transaction():
                await rival.execute(
                    "update app.idempotency set claim_id = gen_random_uuid() where claim_id = %s", [claim]
                )
                writing = asyncio.create_task(journal.append(writer, draft))
                await waiting_for_the_lock(rival, 1)
                assert not writing.done()
            assert (claim,) == (await writing).stale

    runner(story())
    assert [] == runner(everything(database))


def claimed(dsn: str) -> str:
    """A claim on a request that somebody is carrying out."""
    claim = str(uuid4())
    with as_owner(dsn) as connection:
        connection.execute(
            "insert into app.idempotency (scope, key, fingerprint, state, claim_id, lease_until)"
            " values ('scope', %s, '', 'claimed', %s, now() + interval '1 minute')",
            [claim, claim],
        )
    return claim


def kept(dsn: str, claim: str) -> TupleRow:
    with as_owner(dsn) as connection:
        row = connection.execute(
            "select state, status, body, encrypted from app.idempotency where key = %s", [claim]
        ).fetchone()
    assert row is not None
    return row


def test_a_job_is_charged_once_even_if_a_decision_has_a_bug(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as ledger:
            await open_with(ledger, 10)
            await ledger.carry_out(charge_without_looking, charging("job-1"), ACCOUNT)
            with pytest.raises(errors.UniqueViolation):
                await ledger.carry_out(charge_without_looking, charging("job-1"), ACCOUNT)
            await ledger.carry_out(charge_without_looking, charging("job-2"), ACCOUNT)

    runner(story())
    assert 4 == len(runner(everything(database)))


# -- was it written? ---------------------------------------------------------------------------------------------------


def test_an_attempt_is_known_again_only_if_all_of_it_is_there(filled: str, runner: Run) -> None:
    async def was_appended(draft: Draft) -> bool:
        async with await connected(filled) as connection:
            return await journal.was_appended(connection, draft)

    async def story() -> None:
        assert await was_appended(a_draft((ACCOUNT, OPENED), (ACCOUNT, adjusted(5)), (ACCOUNT, adjusted(-1))))
        assert await was_appended(a_draft((ACCOUNT, adjusted(5)), credit_research=1))
        assert not await was_appended(a_draft((ACCOUNT, adjusted(6)), credit_research=1))
        assert not await was_appended(a_draft((ACCOUNT, adjusted(5)), credit_research=2))
        assert not await was_appended(a_draft((ACCOUNT, adjusted(-1)), (OTHER, OPENED), credit_research=2))

    runner(story())


def test_two_attempts_with_the_same_first_event_are_told_apart_by_what_they_rest_on(database: str, runner: Run) -> None:
    before = a_draft((ACCOUNT, OPENED), credit_sales=0)
    after = a_draft((ACCOUNT, OPENED), credit_sales=1)

    async def story() -> None:
        async with await connected(database) as connection:
            await journal.append(connection, a_draft((OTHER, OPENED)))
            await journal.append(connection, after)
            assert await journal.was_appended(connection, after)
            assert not await journal.was_appended(connection, before)

    runner(story())


def test_what_somebody_reads_later_does_not_hide_an_attempt(database: str, runner: Run) -> None:
    attempt = a_draft((ACCOUNT, OPENED), credit_sales=0)

    async def story() -> None:
        async with await connected(database) as connection:
            await journal.append(connection, attempt)
            await journal.append(connection, a_draft((OTHER, OPENED)))
            await journal.append(connection, a_draft((ACCOUNT, adjusted(1)), credit_research=1))
            assert await journal.was_appended(connection, attempt)

    runner(story())


# -- reading -----------------------------------------------------------------------------------------------------------


def test_streams_are_loaded_together_each_to_its_latest_state(filled: str, runner: Run) -> None:
    async def story() -> None:
        async with await connected(filled) as connection:
            loaded = await journal.load(connection, [ACCOUNT, OTHER])
        account, other = loaded[ACCOUNT], loaded[OTHER]
        assert isinstance(account, journal.Versioned)
        assert (3, 3) == (account.version, account.unsaved)
        assert account.state is not None
        assert 4 == account.state.remaining  # type: ignore[attr-defined]
        assert journal.NOTHING == other

    runner(story())


def test_a_broken_stream_does_not_keep_others_from_being_loaded(filled: str, runner: Run) -> None:
    async def story() -> None:
        draft = Draft(read={OTHER: 0})
        draft.add(OTHER, "AccountOpened", b'{"nonsense": true}')
        await appended(filled, draft)
        async with await connected(filled) as connection:
            loaded = await journal.load(connection, [OTHER, ACCOUNT])
            assert isinstance(loaded[OTHER], Exception)
            assert isinstance(loaded[ACCOUNT], journal.Versioned)
            assert 3 == len(await journal.read(connection, 0, 3))
            with pytest.raises(PoisonEvent, match="event 4"):
                await journal.read(connection, 0, 4)

    runner(story())


def test_one_load_brings_a_bounded_amount_into_memory(
    database: str, runner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LOAD_BYTES", 2_000)
    streams = [f"credit-team-{number}" for number in range(5)]
    events: list[tuple[str, Event]] = [
        (stream, event) for stream in streams for event in (OPENED, adjusted(1, reason="x" * 1500))
    ]

    async def story() -> None:
        await appended(database, a_draft(*events))
        async with await connected(database) as connection:
            assert streams[:2] == list(await journal.load(connection, streams))
            assert streams[2:4] == list(await journal.load(connection, streams[2:]))

    runner(story())


def test_a_snapshot_is_folded_on_from_and_never_believed_against_the_events(filled: str, runner: Run) -> None:
    async def story() -> None:
        async with await connected(filled) as connection:
            [before] = (await journal.load(connection, [ACCOUNT])).values()
            assert isinstance(before, journal.Versioned)
            await journal.save_snapshot(connection, ACCOUNT, before)
            await journal.append(connection, a_draft((ACCOUNT, adjusted(2)), credit_research=3))

            [after] = (await journal.load(connection, [ACCOUNT])).values()
            [from_events] = (await journal.load(connection, [ACCOUNT], snapshots=False)).values()
            assert isinstance(after, journal.Versioned)
            assert isinstance(from_events, journal.Versioned)
            assert (4, 1) == (after.version, after.unsaved)
            assert from_events.state == after.state

    runner(story())


@pytest.mark.parametrize(
    "damage",
    [
        "delete from journal.snapshots",
        "update journal.snapshots set category_version = category_version + 1",
        "update journal.snapshots set state = 'no json'",
        "update journal.snapshots set state = '{}'",
    ],
)
def test_a_snapshot_that_is_gone_old_or_broken_costs_time_only(filled: str, runner: Run, damage: str) -> None:
    async def story() -> None:
        async with await connected(filled) as connection:
            [before] = (await journal.load(connection, [ACCOUNT])).values()
            assert isinstance(before, journal.Versioned)
            await journal.save_snapshot(connection, ACCOUNT, before)
            await connection.execute(damage.encode())

            [after] = (await journal.load(connection, [ACCOUNT])).values()
            assert before == after

    runner(story())


def test_a_snapshot_never_goes_back(filled: str, runner: Run) -> None:
    async def story() -> None:
        async with await connected(filled) as connection:
            [latest] = (await journal.load(connection, [ACCOUNT])).values()
            assert isinstance(latest, journal.Versioned)
            await journal.save_snapshot(connection, ACCOUNT, latest)
            await journal.save_snapshot(connection, ACCOUNT, latest._replace(version=2))
            [loaded] = (await journal.load(connection, [ACCOUNT])).values()
            assert isinstance(loaded, journal.Versioned)
            assert (3, 0) == (loaded.version, loaded.unsaved)

    runner(story())


def test_the_readable_view_needs_nothing_of_ours(filled: str) -> None:
    with as_owner(filled) as connection:
        row = connection.execute(
            "select position, stream, version, topic, at, by, request, event ->> 'credits' from journal.readable"
            " where position = 2"
        ).fetchone()

    assert (2, ACCOUNT, 2, "CreditsAdjusted", NOON, "key-1", "request-1", "5") == row


def test_a_nul_in_a_text_does_not_blind_the_auditor(filled: str, runner: Run) -> None:
    runner(appended(filled, a_draft((ACCOUNT, adjusted(9, reason="a\0b")), credit_research=3)))

    with as_owner(filled) as connection:
        row = connection.execute("select event ->> 'reason' from journal.readable where position = 4").fetchone()

    assert ("a\ufffdb",) == row


# -- immutability ------------------------------------------------------------------------------------------------------

REWRITES = (
    "update journal.events set state = state",
    "update journal.events set topic = 'Nothing' where notification_id = 1",
    "delete from journal.events where notification_id = 3",
    "truncate journal.events",
    "delete from journal.head",
    "truncate journal.head",
)
BACKWARDS = (
    "update journal.head set position = 2",
    "update journal.head set position = position - 1, hash = sha256('')",
    "update journal.head set hash = sha256('')",
)
SIDE_DOORS = (
    "insert into journal.events select originator_id, 9, topic, state, 9, hash from journal.events limit 1",
    "update journal.head set position = 9",
    "insert into journal.head (position, hash) values (9, '')",
    "alter table journal.events disable trigger all",
    "drop table journal.events",
    "create table journal.more ()",
)


def assert_refused(connection: Connection[TupleRow], *statements: str) -> None:
    for statement in statements:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement.encode())


def test_nobody_rewrites_history_not_even_its_owner(filled: str) -> None:
    with as_owner(filled) as owner:
        assert_refused(owner, *REWRITES, *BACKWARDS)


@pytest.mark.parametrize("role", [postgres.APP_ROLE, postgres.AUDITOR_ROLE])
def test_events_enter_through_the_door_only(filled: str, role: str) -> None:
    with as_role(filled, role) as connection:
        assert_refused(connection, *REWRITES, *BACKWARDS, *SIDE_DOORS)


def test_there_is_one_head(filled: str) -> None:
    with as_owner(filled) as connection, pytest.raises(errors.IntegrityError):
        connection.execute("insert into journal.head (only_row, position, hash) values (false, 0, '')")


def test_an_auditor_reads_everything_and_writes_nothing(filled: str) -> None:
    with as_role(filled, postgres.AUDITOR_ROLE) as connection:
        for table in ("events", "head", "snapshots", "readable"):
            assert connection.execute(sql.SQL("select from {}").format(sql.Identifier("journal", table))).rowcount >= 0
        assert connection.execute("select journal.chain('', 'a', 1, 'b', 'c')").fetchone()
        assert_refused(
            connection,
            "select journal.append('{}', '{}', '{}', '{}', '{}')",
            "select journal.lock_head()",
            "delete from journal.snapshots",
            "select * from app.secrets",
        )


def test_triggers_fire_in_a_session_that_replays_another_server_too(filled: str) -> None:
    with as_owner(filled) as connection:
        modes = connection.execute(
            "select distinct tgenabled from pg_trigger join pg_class on pg_class.oid = tgrelid"
            " where relnamespace = 'journal'::regnamespace and not tgisinternal"
        ).fetchall()

    assert [(b"A",)] == modes or [("A",)] == modes


def test_an_account_opened_in_one_process_is_seen_in_another(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as one, a_ledger(database) as another:
            await one.carry_out(open_account, opening(), ACCOUNT)
            outcome = await another.carry_out(grant_credits, granting(3), ACCOUNT)
            assert 3 == outcome.states[0].remaining

    runner(story())
