"""Whatever is changed behind the back of the journal, verify names the place."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.credit import AccountOpened
from infra import journal, verify
from infra.verify import Break, Verification, verify_snapshots
from tests.infra.accounts import (
    ACCOUNT,
    NOON,
    a_draft,
    a_ledger,
    connected,
    grant_credits,
    granting,
    open_with,
    spend,
    spending,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ACCOUNTS = [f"credit-team-{number}" for number in range(7)]
EVENTS = 14 + 7 * 8


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    return random.Random(seed)


@pytest.fixture
def filled(database: str, runner: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection[TupleRow]]:
    """A journal of some streams over several pages, whose owner has put the triggers out of the way."""
    monkeypatch.setattr(verify, "PAGE", 16)

    async def story() -> None:
        async with a_ledger(database) as ledger:
            for account in ACCOUNTS:
                await open_with(ledger, 100, account)
            for _ in range(8):
                await asyncio.gather(*(ledger.carry_out(spend, spending(), account) for account in ACCOUNTS))

    runner(story())
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("alter table journal.events disable trigger user")
        connection.execute("alter table journal.head disable trigger user")
        yield connection


def first_break(connection: Connection[TupleRow], **options: Any) -> tuple[int, str] | None:
    found = verify.verify(connection, **options).first_break
    return None if found is None else (found.position, found.kind)


def head(connection: Connection[TupleRow]) -> tuple[int, str]:
    row = connection.execute("select position, encode(hash, 'hex') from journal.head").fetchone()
    assert row is not None
    return row[0], row[1]


# -- nothing wrong -----------------------------------------------------------------------------------------------------


def test_a_journal_that_nobody_touched_is_whole(filled: Connection[TupleRow]) -> None:
    seen: list[int] = []

    verification = verify.verify(filled, progress=seen.append, readable=True)

    assert Verification(1, EVENTS, head(filled)[1], None, EVENTS, verification.seconds) == verification
    assert [16, 32, 48, 64, EVENTS] == seen


def test_an_empty_journal_is_whole(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        verification = verify.verify(connection)

    assert (None, 0, "00" * 32) == (verification.first_break, verification.events, verification.hash)


def test_a_part_can_be_verified_alone(filled: Connection[TupleRow]) -> None:
    verification = verify.verify(filled, 20, 30)

    assert (None, 11, 20, 30) == (
        verification.first_break,
        verification.events,
        verification.from_position,
        verification.to_position,
    )
    assert EVENTS == verify.verify(filled, 20, 10_000).to_position
    assert verification.hash == verify.verify(filled, 1, 30).hash


def test_a_break_outside_of_the_part_is_not_looked_at(filled: Connection[TupleRow]) -> None:
    filled.execute("update journal.events set state = 'x' where notification_id = 25")

    assert first_break(filled, from_position=26) is None
    assert first_break(filled, to_position=24) is None
    assert (25, "hash") == first_break(filled, from_position=25)


def test_the_journal_grows_while_it_is_verified(database: str, runner: Run) -> None:
    async def story() -> None:
        async with a_ledger(database) as ledger:
            await open_with(ledger, 1)

            async def grow() -> None:
                while not done.is_set():
                    await ledger.carry_out(grant_credits, granting(1), ACCOUNT)

            done = asyncio.Event()
            growing = asyncio.gather(*(grow() for _ in range(10)))
            with psycopg.connect(database, autocommit=True) as connection:
                verified: list[Verification] = []
                while len(verified) < 20 or verified[0].events == verified[-1].events:
                    verified.append(await asyncio.to_thread(verify.verify, connection))
            done.set()
            await growing
        assert {None} == {verification.first_break for verification in verified}
        assert verified[0].events < verified[-1].events

    runner(story())


# -- changed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, kind",
    [
        ("originator_id = originator_id || 'x'", "hash"),
        ("originator_version = originator_version + 1000", "hash"),
        ("topic = topic || 'x'", "hash"),
        ("state = state || 'x'", "hash"),
        ("state = overlay(state placing '9' from 12)", "hash"),
        ("notification_id = notification_id + 1000", "missing"),
        ("hash = sha256(hash)", "hash"),
    ],
)
def test_a_changed_column_is_found(filled: Connection[TupleRow], dice: random.Random, change: str, kind: str) -> None:
    position = dice.randint(1, EVENTS)
    filled.execute(f"update journal.events set {change} where notification_id = {position}".encode())

    assert (position, kind) == first_break(filled)


def test_a_deleted_event_is_missed(filled: Connection[TupleRow], dice: random.Random) -> None:
    position = dice.randint(1, EVENTS)
    filled.execute("delete from journal.events where notification_id = %s", [position])

    assert (position, "missing") == first_break(filled)
    if position < EVENTS:
        assert (position, "missing") == first_break(filled, from_position=position + 1)


def test_an_inserted_event_is_found(filled: Connection[TupleRow], dice: random.Random) -> None:
    position = dice.randint(1, EVENTS)
    filled.execute("alter table journal.events drop constraint events_notification_id_check")
    filled.execute(
        "update journal.events set notification_id = -notification_id where notification_id >= %s", [position]
    )
    filled.execute("update journal.events set notification_id = 1 - notification_id where notification_id < 0")
    filled.execute(
        "insert into journal.events values ('credit-forged', 1, 'AccountOpened', '{}', %s, sha256(''))", [position]
    )

    assert (position, "hash") == first_break(filled)


def test_an_event_beyond_the_head_is_found(filled: Connection[TupleRow]) -> None:
    filled.execute(
        "insert into journal.events"
        " select 'credit-forged', 1, 'AccountOpened', '{}', position + 1,"
        " journal.chain(hash, 'credit-forged', 1, 'AccountOpened', '{}') from journal.head"
    )

    assert (EVENTS + 1, "added") == first_break(filled)


def test_two_events_at_one_position_are_found(filled: Connection[TupleRow], dice: random.Random) -> None:
    position = dice.randint(1, EVENTS)
    filled.execute("drop index journal.events_one_position_once")
    filled.execute(
        "insert into journal.events values ('credit-forged', 1, 'AccountOpened', '{}', %s, sha256(''))", [position]
    )

    assert first_break(filled) in {(position, "hash"), (position, "added")}


def test_two_events_that_changed_places_are_found(filled: Connection[TupleRow], dice: random.Random) -> None:
    first, second = sorted(dice.sample(range(1, EVENTS + 1), 2))
    for old, new in ((first, 10_000), (second, first), (10_000, second)):
        filled.execute("update journal.events set notification_id = %s where notification_id = %s", [new, old])

    assert (first, "hash") == first_break(filled)


def test_a_cut_off_tail_is_missed(filled: Connection[TupleRow], dice: random.Random) -> None:
    last = dice.randint(0, EVENTS - 1)
    filled.execute("delete from journal.events where notification_id > %s", [last])

    assert (last + 1, "missing") == first_break(filled)


def test_a_changed_head_is_found(filled: Connection[TupleRow]) -> None:
    filled.execute("update journal.head set hash = sha256(hash)")

    assert (EVENTS, "head") == first_break(filled)


def test_a_head_that_was_set_back_is_found(filled: Connection[TupleRow]) -> None:
    filled.execute(
        "update journal.head set position = 20, hash = (select hash from journal.events where notification_id = 20)"
    )

    assert (21, "added") == first_break(filled)


@pytest.mark.parametrize(
    "change",
    [
        "delete from journal.head",
        "alter table journal.head drop constraint head_only_row_check; insert into journal.head values (false, 3, '')",
        "alter table journal.head alter hash drop not null; update journal.head set hash = null",
        "alter table journal.head alter position drop not null; update journal.head set position = null",
    ],
)
def test_a_head_that_is_gone_or_not_the_only_one_is_found(filled: Connection[TupleRow], change: str) -> None:
    filled.execute(change.encode())

    assert (EVENTS, "head") == first_break(filled)
    filled.execute("update journal.events set state = 'x' where notification_id = 25")
    assert (25, "hash") == first_break(filled)


@pytest.mark.parametrize("column", ["originator_id", "originator_version", "topic", "state", "hash"])
def test_a_column_that_was_emptied_is_found(filled: Connection[TupleRow], column: str) -> None:
    filled.execute("alter table journal.events drop constraint events_one_version_once")
    filled.execute(f"alter table journal.events alter {column} drop not null".encode())
    filled.execute(f"update journal.events set {column} = null where notification_id = 25".encode())

    assert (25, "hash") == first_break(filled)
    if column == "hash":
        assert (25, "missing") == first_break(filled, from_position=26)


def test_a_tail_cut_off_together_with_the_head_is_found_by_what_an_auditor_noted(filled: Connection[TupleRow]) -> None:
    noted = dict([head(filled)])
    assert first_break(filled, noted=noted) is None
    filled.execute("delete from journal.events where notification_id > 20")
    filled.execute(
        "update journal.head set position = 20, hash = (select hash from journal.events where notification_id = 20)"
    )

    assert first_break(filled) is None
    assert (EVENTS, "noted") == first_break(filled, noted=noted)
    assert (EVENTS, "noted") == first_break(filled, noted=noted, to_position=19)


def test_a_chain_that_was_made_anew_is_found_by_what_an_auditor_noted(filled: Connection[TupleRow]) -> None:
    earlier, later = verify.verify(filled, 1, 30), verify.verify(filled, 1, 50)
    noted = {each.to_position: each.hash for each in (earlier, later)}
    filled.execute("update journal.events set state = state || ' ' where notification_id = 40")
    filled.execute(
        """
        do $$
        declare digest bytea := decode(repeat('00', 32), 'hex'); event record;
        begin
            for event in select * from journal.events order by notification_id loop
                digest := journal.chain(
                    digest, event.originator_id, event.originator_version, event.topic, event.state);
                update journal.events set hash = digest where notification_id = event.notification_id;
            end loop;
            update journal.head set hash = digest;
        end $$
        """
    )

    assert first_break(filled) is None
    assert (50, "noted") == first_break(filled, noted=noted)
    assert (50, "noted") == first_break(filled, from_position=51, noted=noted)


def test_functions_that_shadow_those_of_postgresql_hide_nothing(filled: Connection[TupleRow]) -> None:
    [(written,)] = filled.execute("select topic from journal.events where notification_id = 40").fetchall()
    filled.execute("update journal.events set topic = 'Forged' where notification_id = 40")
    filled.execute("create schema forged")
    filled.execute(
        f"""
        create function forged.convert_to(said text, encoding name) returns bytea language sql as $$
            select pg_catalog.convert_to(case said when 'Forged' then '{written}' else said end, encoding) $$
        """
    )
    filled.execute("set search_path = forged, pg_catalog")

    assert (40, "hash") == first_break(filled)


# -- written wrongly ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [0, 1000])
@pytest.mark.parametrize("stream, version", [(ACCOUNTS[3], 12), (ACCOUNTS[3], 1012), ("credit-new", 2)])
def test_an_event_that_skips_a_version_is_found_though_the_chain_is_whole(
    filled: Connection[TupleRow], monkeypatch: pytest.MonkeyPatch, stream: str, version: int, in_memory: int
) -> None:
    monkeypatch.setattr(verify, "STREAMS_IN_MEMORY", in_memory)
    assert first_break(filled) is None
    filled.execute(
        """
        with added as (
            insert into journal.events
            select %(stream)s, %(version)s, 'AccountOpened', '{}', position + 1,
                   journal.chain(hash, %(stream)s, %(version)s, 'AccountOpened', '{}')
            from journal.head returning notification_id, hash)
        update journal.head set position = added.notification_id, hash = added.hash from added
        """,
        {"stream": stream, "version": version},
    )

    assert (EVENTS + 1, "version") == first_break(filled)
    assert (EVENTS + 1, "version") == first_break(filled, from_position=EVENTS)


def test_an_event_that_nobody_can_read_is_found_when_asked_for(
    filled: Connection[TupleRow], database: str, runner: Run
) -> None:
    async def story() -> None:
        async with await connected(database) as connection:
            draft = journal.Draft(read={"credit-odd": 0})
            draft.add("credit-odd", "AccountOpened", b'{"team_id": 7}')
            await journal.append(connection, draft)

    runner(story())

    assert first_break(filled) is None
    assert (EVENTS + 1, "unreadable") == first_break(filled, readable=True)


def test_a_break_says_what_is_wrong(filled: Connection[TupleRow]) -> None:
    filled.execute("update journal.events set state = 'x' where notification_id = 2")

    assert Break(2, "hash", f"event 2 of {ACCOUNTS[0]} is not what was written") == verify.verify(filled).first_break


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_that_its_events_do_not_add_up_to_is_named(
    filled: Connection[TupleRow], database: str, runner: Run
) -> None:
    async def story() -> None:
        async with await connected(database) as connection:
            for stream, versioned in (await journal.load(connection, ACCOUNTS[:4])).items():
                assert isinstance(versioned, journal.Versioned)
                await journal.save_snapshot(connection, stream, versioned)
            opened = AccountOpened(at=NOON, team_id="new", organization_id="acme")
            await journal.append(connection, a_draft(("credit-new", opened)))

    runner(story())
    assert [] == verify_snapshots(filled)
    change = "update journal.snapshots set state = %s where stream = %s"
    filled.execute(change, [b"{}", ACCOUNTS[0]])
    wrong = b'{"team_id":"team-2","organization_id":"acme","allocated":1,"updated_at":"2026-03-04T12:00:00Z"}'
    filled.execute(change, [wrong, ACCOUNTS[2]])
    filled.execute("update journal.snapshots set category_version = 99 where stream = %s", [ACCOUNTS[3]])

    assert [ACCOUNTS[0], ACCOUNTS[2]] == verify_snapshots(filled)
    filled.execute(
        "update journal.events set state = 'x' where originator_id = %s and originator_version = 1", ACCOUNTS[1:2]
    )
    assert ACCOUNTS[:3] == verify_snapshots(filled)
    filled.execute("delete from journal.events where originator_id = %s and originator_version = 1", ACCOUNTS[1:2])
    assert ACCOUNTS[:3] == verify_snapshots(filled)
