"""The notary: a tree that is grown piece by piece says what one says that was grown leaf by leaf."""

from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest

from infra import journal, merkle, postgres, readable
from infra.journal import Draft
from infra.merkle import TILE, Frontier
from infra.receipts import GROWN_AT_ONCE, HistoryRewritten, Notary, grow, leaf_of, verify_receipts
from infra.secrets import KeyRing, SecretStore
from tests.infra.accounts import connected

Run = Callable[[Coroutine[Any, Any, None]], None]

SIZE = 3 * GROWN_AT_ONCE + 5 * TILE + 7


def test_a_tree_that_was_left_half_grown_is_grown_on_from_there(database: str, runner: Run) -> None:
    async def kept() -> int:
        async with await connected(database) as other:
            cursor = await other.execute("select count(*) from app.merkle where level = 1")
            [(count,)] = await cursor.fetchall()
            assert isinstance(count, int)
            return count

    async def story() -> None:
        async with await connected(database) as connection:
            draft = Draft(read={"team-research": 0})
            for _ in range(SIZE):
                draft.add("team-research", "TeamChanged", b"{}")
            await journal.append(connection, draft)
            pieces = [(await grow(connection, SIZE), await kept()) for _ in range(2)]
            assert [(False, GROWN_AT_ONCE // TILE), (False, 2 * GROWN_AT_ONCE // TILE)] == pieces
            tree = Frontier()
            cursor = await connection.execute("select topic, state, hash from journal.events order by notification_id")
            rows: list[Any] = await cursor.fetchall()
            for row in rows:
                tree.add(merkle.leaf_hash(leaf_of(*row)))
        pool = await postgres.open_pool(database, size=1, name="notary")
        try:
            checkpoint = await Notary(pool, SecretStore(pool, KeyRing("k" * 32))).checkpoint()
        finally:
            await pool.close()
        assert checkpoint is not None
        assert (SIZE, tree.root, SIZE // TILE) == (checkpoint.size, checkpoint.root, await kept())

    runner(story())
    with readable.connect_blocking(database) as auditor, psycopg.connect(database, autocommit=True) as owner:
        assert [] == list(verify_receipts(auditor))
        owner.execute("update app.merkle set hash = sha256(hash) where number = 1")
        owner.execute("delete from app.merkle where number = 2")
        assert [
            (2 * TILE, "app.merkle 1/1", "is not the hash of what is below it"),
            (3 * TILE, "app.merkle 1/2", "is missing"),
        ] == list(verify_receipts(auditor))


@pytest.fixture
def signed(database: str, runner: Run) -> str:
    """A journal of three events that was signed at two and at three; its owner has put the triggers out of the way."""

    async def grow_by(events: int, version: int) -> None:
        draft = Draft(read={"credit-acme": version})
        for _ in range(events):
            draft.add("credit-acme", "CreditsGranted", b'{"credits":1}')
        async with await connected(database) as connection:
            await journal.append(connection, draft)
        await sign(database)

    async def story() -> None:
        await grow_by(2, version=0)
        await grow_by(1, version=2)

    runner(story())
    with psycopg.connect(database, autocommit=True) as owner:
        for table in ("journal.events", "journal.head", "app.checkpoints"):
            owner.execute(f"alter table {table} disable trigger user".encode())
        owner.execute("alter table app.checkpoints drop constraint checkpoints_size_check")
        owner.execute("alter table journal.events alter state drop not null, alter hash drop not null")
    return database


async def sign(database: str) -> None:
    pool = await postgres.open_pool(database, size=1, name="notary")
    try:
        await Notary(pool, SecretStore(pool, KeyRing("k" * 32))).checkpoint()
    finally:
        await pool.close()


OTHERWISE, THREE = "what was signed is not what the journal says", "but the journal has 3 events"
BOTH = [(2, "app.checkpoints 2", OTHERWISE), (3, "app.checkpoints 3", OTHERWISE)]
CHANGE = "update journal.events set {} where notification_id = 1"


@pytest.mark.parametrize(
    "statement,found",
    [
        ("update app.checkpoints set note = note", []),
        *(
            (CHANGE.format(change), BOTH)
            for change in (
                "state = '[]'",
                "state = 'null'",
                "state = null",
                "state = 'x'",
                """state = '{"reason":"'::bytea || '\\xff'::bytea || '"}'::bytea""",
                "state = convert_to(repeat('[', 100000), 'UTF8')",
                "hash = null",
            )
        ),
        ("update app.checkpoints set note = ''", BOTH),
        ("update app.checkpoints set note = note || 'x'", BOTH),
        ("update app.checkpoints set note = 'x' || note", BOTH),
        ("update app.checkpoints set note = regexp_replace(note, '.{5}\n$', E'\n')", BOTH),
        ("update app.checkpoints set note = replace(note, E'\n2\n', E'\n3\n')", BOTH[:1]),
        ("insert into app.checkpoints values (5, sha256(''), ''), (6, sha256(''), '')", [
            (3, "app.checkpoints 5", f"was signed, {THREE}"), (3, "app.checkpoints 6", f"was signed, {THREE}"),
        ]),
        ("insert into app.checkpoints values (0, sha256(''), '')", [
            (None, "app.checkpoints 0", "nothing of this size can be signed"),
        ]),
        (f"{CHANGE.format('hash = sha256(hash)')}; insert into app.checkpoints values (0, '', ''), (-1, '', '')", [
            (None, "app.checkpoints -1", "nothing of this size can be signed"),
            (None, "app.checkpoints 0", "nothing of this size can be signed"),
            *BOTH,
        ]),
        ("insert into app.merkle values (7, 1000000000000000000, sha256(''))", [
            (3, "app.merkle 7/1000000000000000000", f"is kept, {THREE}"),
        ]),
        ("drop table app.merkle", [(None, "app.merkle", "the table is missing")]),
        ("drop table app.checkpoints", [(None, "app.checkpoints", "the table is missing")]),
    ],
)  # fmt: skip
def test_whatever_somebody_changed_in_what_was_signed_is_found(
    signed: str, statement: str, found: list[tuple[int | None, str, str]]
) -> None:
    with psycopg.connect(signed, autocommit=True) as owner, readable.connect_blocking(signed) as auditor:
        owner.execute("alter table app.checkpoints drop constraint if exists checkpoints_root_check")
        owner.execute(statement.encode())
        assert found == list(verify_receipts(auditor))


def test_nothing_is_signed_when_all_of_what_was_signed_is_gone(signed: str, runner: Run) -> None:
    with psycopg.connect(signed, autocommit=True) as owner:
        owner.execute("truncate journal.events")
        owner.execute("update journal.head set position = 0, hash = decode(repeat('00', 32), 'hex')")
    with pytest.raises(HistoryRewritten):
        runner(sign(signed))
