"""The notary: a tree that is grown piece by piece says what one says that was grown leaf by leaf."""

from collections.abc import Callable, Coroutine
from typing import Any

import psycopg

from infra import journal, merkle, postgres, readable
from infra.journal import Draft
from infra.merkle import TILE, Frontier
from infra.receipts import GROWN_AT_ONCE, Notary, grow, leaf_of, verify_receipts
from infra.secrets import KeyRing, SecretStore
from tests.infra.accounts import connected

SIZE = 3 * GROWN_AT_ONCE + 5 * TILE + 7


def test_a_tree_that_was_left_half_grown_is_grown_on_from_there(
    database: str, runner: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
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
