"""Encryption at rest, fingerprints, fresh keys, and the store of secrets on a real PostgreSQL."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.postgres import open_pool
from infra.secrets import (
    KeyRing,
    SecretMissing,
    SecretStore,
    Undecryptable,
    hash_key,
    mask_key,
    new_virtual_key,
    new_webhook_secret,
)

T = TypeVar("T")

OLD, NEW = "the old key of this ring", "the new key of this ring"


@given(st.binary(max_size=2000), st.text(max_size=50).filter(str.isascii))
def test_what_was_encrypted_is_decrypted(plaintext: bytes, context: str) -> None:
    ring = KeyRing(OLD)

    assert ring.decrypt(ring.encrypt(plaintext, context), context) == plaintext


def test_a_ciphertext_opens_only_in_its_own_context() -> None:
    ciphertext = KeyRing(OLD).encrypt(b"sk-live", "provider_key/1")

    with pytest.raises(Undecryptable):
        KeyRing(OLD).decrypt(ciphertext, "provider_key/2")


def test_any_changed_byte_is_noticed() -> None:
    ring = KeyRing(OLD)
    ciphertext = ring.encrypt(b"sk-live", "a")

    for position in range(len(ciphertext)):
        changed = ciphertext[:position] + bytes([ciphertext[position] ^ 1]) + ciphertext[position + 1 :]
        with pytest.raises(Undecryptable):
            ring.decrypt(changed, "a")


@pytest.mark.parametrize("length", range(34))
def test_a_ciphertext_cut_short_is_noticed(length: int) -> None:
    ring = KeyRing(OLD)

    with pytest.raises(Undecryptable):
        ring.decrypt(ring.encrypt(b"x", "a")[:length], "a")


def test_equal_plaintexts_have_different_ciphertexts() -> None:
    ring = KeyRing(OLD)

    assert ring.encrypt(b"same", "a") != ring.encrypt(b"same", "a")


def test_a_new_key_in_front_encrypts_and_the_old_one_still_decrypts() -> None:
    before = KeyRing(OLD).encrypt(b"kept", "a")
    ring = KeyRing(f" {NEW} , {OLD} ")

    assert ring.decrypt(before, "a") == b"kept"
    assert not before.startswith(ring.mark)
    assert ring.encrypt(b"kept", "a").startswith(ring.mark)
    assert KeyRing(NEW).decrypt(ring.encrypt(b"kept", "a"), "a") == b"kept"


def test_a_key_that_left_the_ring_opens_nothing() -> None:
    with pytest.raises(Undecryptable):
        KeyRing(NEW).decrypt(KeyRing(OLD).encrypt(b"kept", "a"), "a")


def test_a_ring_reads_its_keys_whole_or_in_parts() -> None:
    ciphertext = KeyRing(f"{NEW},{OLD}").encrypt(b"kept", "a")

    assert KeyRing(NEW, OLD).decrypt(ciphertext, "a") == b"kept"


@pytest.mark.parametrize("keys", ["", " , ", "fifteen letters", f"{OLD},short"])
def test_a_ring_without_a_sound_key_is_refused(keys: str) -> None:
    with pytest.raises(ValueError, match="ENCRYPTION_KEY"):
        KeyRing(keys)


def test_a_ring_does_not_print_its_keys() -> None:
    assert OLD not in f"{KeyRing(OLD)!r} {KeyRing(OLD)} {vars(KeyRing(OLD))}"


def test_a_fingerprint_depends_on_the_data_and_on_the_key() -> None:
    ring = KeyRing(OLD)

    assert ring.fingerprint(b"a") == KeyRing(OLD).fingerprint(b"a")
    assert len({ring.fingerprint(b"a"), ring.fingerprint(b"b"), KeyRing(NEW).fingerprint(b"a")}) == 3
    assert hashlib.sha256(b"a").digest() != ring.fingerprint(b"a")


def test_a_fingerprint_is_recognised_after_a_rotation() -> None:
    before = KeyRing(OLD).fingerprint(b"body")

    assert KeyRing(NEW, OLD).recognises(before, b"body")
    assert not KeyRing(NEW, OLD).recognises(before, b"other body")
    assert not KeyRing(NEW).recognises(before, b"body")


# Keys


def test_a_fresh_virtual_key_has_43_random_url_safe_characters() -> None:
    keys = {new_virtual_key() for _ in range(100)}

    assert len(keys) == 100
    assert all(re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", key) for key in keys)


def test_a_key_is_looked_up_by_its_sha256() -> None:
    assert hash_key("sk-1234") == hashlib.sha256(b"sk-1234").hexdigest()
    assert len(hash_key("\ud800")) == 64


@pytest.mark.parametrize(
    "key, masked",
    [
        ("sk-abcdefghijklmnopqrstuvwxyz", "sk-abcd...wxyz"),
        ("12345678901234567890", "1234567...7890"),
        ("1234567890123456789", "123..."),
        ("sk-1234", "sk-..."),
    ],
)
def test_a_masked_key_shows_only_its_ends(key: str, masked: str) -> None:
    assert mask_key(key) == masked


def test_a_fresh_webhook_secret_is_32_bytes_in_base64() -> None:
    prefix, _, secret = new_webhook_secret().partition("_")

    assert prefix == "whsec"
    assert len(base64.b64decode(secret, validate=True)) == 32
    assert new_webhook_secret() != new_webhook_secret()


# The store


def tell(database: str, story: Callable[[SecretStore], Awaitable[T]], ring: KeyRing) -> T:
    async def whole_story() -> T:
        pool = await open_pool(database, size=2)
        try:
            return await story(SecretStore(pool, ring))
        finally:
            await pool.close()

    return asyncio.run(whole_story())


def stored(database: str) -> list[tuple[UUID, str, bytes]]:
    with psycopg.connect(database) as connection:
        return connection.execute("select secret_id, kind, ciphertext from app.secrets order by secret_id").fetchall()


def test_a_secret_is_stored_encrypted_and_read_back(database: str) -> None:
    secret_id = uuid4()

    async def story(store: SecretStore) -> bytes:
        await store.put(secret_id, "provider_key", b"sk-live-and-secret")
        return await store.get(secret_id)

    assert tell(database, story, KeyRing(OLD)) == b"sk-live-and-secret"
    [(row_id, kind, ciphertext)] = stored(database)
    assert (row_id, kind) == (secret_id, "provider_key")
    assert b"sk-live" not in ciphertext


def test_a_secret_copied_into_another_row_does_not_open(database: str) -> None:
    mine, stolen = uuid4(), uuid4()

    async def story(store: SecretStore) -> bytes:
        await store.put(mine, "provider_key", b"mine")
        await store.put(stolen, "provider_key", b"stolen")
        with psycopg.connect(database) as connection:
            connection.execute(
                "update app.secrets set ciphertext = (select ciphertext from app.secrets where secret_id = %s) "
                "where secret_id = %s",
                (stolen, mine),
            )
        return await store.get(mine)

    with pytest.raises(Undecryptable):
        tell(database, story, KeyRing(OLD))


def test_a_deleted_secret_is_missing_and_deleting_again_is_fine(database: str) -> None:
    secret_id = uuid4()

    async def story(store: SecretStore) -> bytes:
        await store.put(secret_id, "webhook", b"whsec")
        await store.delete(secret_id)
        await store.delete(secret_id)
        return await store.get(secret_id)

    with pytest.raises(SecretMissing) as missing:
        tell(database, story, KeyRing(OLD))
    assert missing.value.secret_id == secret_id


def test_rewrapping_moves_every_secret_to_the_newest_key(database: str) -> None:
    secrets = {uuid4(): f"secret {number}".encode() for number in range(1203)}

    async def write(store: SecretStore) -> None:
        for secret_id, plaintext in secrets.items():
            await store.put(secret_id, "webhook", plaintext)

    async def rotate(store: SecretStore) -> tuple[int, int]:
        return await store.rewrap(), await store.rewrap()

    async def read(store: SecretStore) -> dict[UUID, bytes]:
        return {secret_id: await store.get(secret_id) for secret_id in secrets}

    tell(database, write, KeyRing(OLD))

    assert tell(database, rotate, KeyRing(NEW, OLD)) == (1203, 0)
    assert tell(database, read, KeyRing(NEW)) == secrets


def test_a_secret_whose_key_has_left_the_ring_keeps_no_other_from_being_rewrapped(database: str) -> None:
    lost, readable = UUID(int=1), UUID(int=2)

    async def write(store: SecretStore, secret_id: UUID) -> None:
        await store.put(secret_id, "webhook", b"secret")

    tell(database, lambda store: write(store, lost), KeyRing("a-key-that-somebody-lost"))
    tell(database, lambda store: write(store, readable), KeyRing(OLD))

    assert 1 == tell(database, lambda store: store.rewrap(), KeyRing(NEW, OLD))
    assert b"secret" == tell(database, lambda store: store.get(readable), KeyRing(NEW))


@pytest.mark.parametrize("table", ["app.secrets", "app.idempotency", "app.conversations"])
def test_the_app_works_on_our_tables_and_the_auditor_reads_none_of_them(database: str, table: str) -> None:
    query = """
        select has_table_privilege('saas_ledger_app', %(table)s, 'select'),
               has_table_privilege('saas_ledger_app', %(table)s, 'insert'),
               has_table_privilege('saas_ledger_app', %(table)s, 'update'),
               has_table_privilege('saas_ledger_app', %(table)s, 'delete'),
               has_table_privilege('saas_ledger_auditor', %(table)s, 'select')
    """

    with psycopg.connect(database) as connection:
        row = connection.execute(query, {"table": table}).fetchone()

    assert row == (True, True, True, True, False)
