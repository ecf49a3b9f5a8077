"""What must not be read by whoever reads the database: encryption at rest, fingerprints, fresh keys.

A ciphertext is `version (1) | key id (4) | nonce (12) | AES-256-GCM`. Its context (what it is for, and whose)
is authenticated with it, so that one row's ciphertext copied into another row does not decrypt there. The key
id says which key of the ring wrote it, so that rotation is: put the new key first, `rewrap`, drop the old key.
"""

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from infra.postgres import Pool

log = structlog.get_logger()

SHORTEST_KEY: Final = 16

_VERSION: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(_VERSION) + _KEY_ID_BYTES + _NONCE_BYTES


class Undecryptable(Exception):
    """A ciphertext that was changed, belongs to another context, or whose key has left the ring."""


class SecretMissing(Exception):
    """No secret has this id."""

    def __init__(self, secret_id: UUID) -> None:
        super().__init__(str(secret_id))
        self.secret_id = secret_id


class _Key(NamedTuple):
    key_id: bytes
    cipher: AESGCM
    fingerprint_key: bytes


class KeyRing:
    """Encrypts with its first key, decrypts with any.

    Args:
        keys: ENCRYPTION_KEY, whole or already parted at its commas, the newest first; any strings of 16
            characters or more.

    Raises:
        ValueError: no key, or one that is too short.
    """

    def __init__(self, *keys: str) -> None:
        given = [key.strip() for part in keys for key in part.split(",") if key.strip()]
        if not given:
            raise ValueError("ENCRYPTION_KEY: at least one key is needed")
        if any(len(key) < SHORTEST_KEY for key in given):
            raise ValueError(f"ENCRYPTION_KEY: each key has at least {SHORTEST_KEY} characters")
        self._keys = [_derived(key) for key in given]

    def encrypt(self, plaintext: bytes, context: str) -> bytes:
        """Encrypt with the newest key.

        Args:
            plaintext: what to hide.
            context: what it is for and whose; `decrypt` needs the same.
        """
        key, nonce = self._keys[0], os.urandom(_NONCE_BYTES)
        return _VERSION + key.key_id + nonce + key.cipher.encrypt(nonce, plaintext, context.encode())

    def decrypt(self, ciphertext: bytes, context: str) -> bytes:
        """Return the plaintext.

        Raises:
            Undecryptable: for whatever reason; which one is nobody's business.
        """
        head, sealed = ciphertext[:_HEAD_BYTES], ciphertext[_HEAD_BYTES:]
        nonce = head[-_NONCE_BYTES:]
        for key in self._keys:
            if head.startswith(_VERSION + key.key_id) and len(head) == _HEAD_BYTES:
                try:
                    return key.cipher.decrypt(nonce, sealed, context.encode())
                except InvalidTag:
                    continue
        raise Undecryptable(context)

    @property
    def is_rotating(self) -> bool:
        """Whether there are older keys than the newest."""
        return len(self._keys) > 1

    @property
    def mark(self) -> bytes:
        """What everything begins with that the newest key wrote; as long as that of any other key."""
        return _VERSION + self._keys[0].key_id

    def fingerprint(self, data: bytes) -> bytes:
        """Return a keyed digest: equal for equal data, and no help in guessing them without the key."""
        return _fingerprint(self._keys[0], data)

    def recognises(self, fingerprint: bytes, data: bytes) -> bool:
        """Say whether `fingerprint` is that of `data` under any key, so that a rotation breaks no retry."""
        return any(hmac.compare_digest(fingerprint, _fingerprint(key, data)) for key in self._keys)

    def __repr__(self) -> str:
        return f"KeyRing({len(self._keys)} keys)"


def _derived(key: str) -> _Key:
    # One secret, three uses: each gets bytes of its own, so that none tells of another.
    key_id, cipher_key, fingerprint_key = (
        HKDF(SHA256(), length=length, salt=None, info=f"saas-ledger {use}".encode()).derive(key.encode())
        for use, length in (("key id", _KEY_ID_BYTES), ("aes-256-gcm", 32), ("fingerprint", 32))
    )
    return _Key(key_id, AESGCM(cipher_key), fingerprint_key)


def _fingerprint(key: _Key, data: bytes) -> bytes:
    return hmac.digest(key.fingerprint_key, data, "sha256")


def new_virtual_key() -> str:
    """Return a fresh key: `sk-` and 43 random URL-safe characters (contract, section 5)."""
    return f"sk-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """Return what a virtual key is looked up by: its SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def mask_key(key: str) -> str:
    """Return what may be shown of a virtual key (contract, section 5)."""
    return f"{key[:7]}...{key[-4:]}" if len(key) >= 20 else f"{key[:3]}..."


def new_webhook_secret() -> str:
    """Return a fresh signing secret in the form of Standard Webhooks."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


_INSERT = "insert into app.secrets (secret_id, kind, ciphertext) values (%s, %s, %s)"
_SELECT = "select kind, ciphertext from app.secrets where secret_id = %s"
_DELETE = "delete from app.secrets where secret_id = %s"
_PAGE = """
    select secret_id, ciphertext, kind from app.secrets
    where secret_id > %s and substring(ciphertext for 5) <> %s order by secret_id limit 500 for update
"""
_REWRAP = "update app.secrets set ciphertext = %s where secret_id = %s"


async def rewrap(pool: Pool, ring: KeyRing, page: str, update: str, context: Callable[..., str]) -> int:
    """Encrypt with the newest key what older ones wrote in a table; what nobody can read stays as it is.

    Args:
        page: selects id, ciphertext and what else the context needs, behind an id and without a beginning.
        update: writes a ciphertext to an id.
        context: of a row, from its id and what else was selected.

    Returns:
        How many rows that were.
    """
    rewrapped, after = 0, UUID(int=0)
    while ring.is_rotating:  # otherwise there is nothing else that could be read, and a large table to look through
        async with pool.connection() as connection, connection.transaction():
            rows = await (await connection.execute(page.encode(), (after, ring.mark))).fetchall()
            if not rows:
                break
            renewed = []
            for row_id, ciphertext, *more in rows:
                try:
                    plaintext = ring.decrypt(ciphertext, context(row_id, *more))
                except Undecryptable:
                    log.warning("secret.unreadable", secret_id=str(row_id))
                else:
                    renewed.append((ring.encrypt(plaintext, context(row_id, *more)), row_id))
            async with connection.cursor() as cursor:
                await cursor.executemany(update.encode(), renewed)
        rewrapped, after = rewrapped + len(renewed), rows[-1][0]
    return rewrapped


class SecretStore:
    """Provider keys, webhook secrets and the like, encrypted in `app.secrets`; events carry only their ids.

    A secret never changes: a new value is a new id, so that an event that was refused has changed nothing.

    Args:
        pool: connections to the database.
        ring: the keys.
    """

    def __init__(self, pool: Pool, ring: KeyRing) -> None:
        self._pool = pool
        self._ring = ring

    async def put(self, secret_id: UUID, kind: str, plaintext: bytes) -> None:
        """Store a secret under a fresh id."""
        ciphertext = self._ring.encrypt(plaintext, _context(secret_id, kind))
        async with self._pool.connection() as connection:
            await connection.execute(_INSERT, (secret_id, kind, ciphertext))

    async def get(self, secret_id: UUID) -> bytes:
        """Return a secret.

        Raises:
            SecretMissing: it was never stored, or it was deleted.
            Undecryptable: the row was changed, or its key has left the ring.
        """
        async with self._pool.connection() as connection:
            row = await (await connection.execute(_SELECT, (secret_id,))).fetchone()
        if row is None:
            raise SecretMissing(secret_id)
        kind, ciphertext = row
        return self._ring.decrypt(ciphertext, _context(secret_id, kind))

    async def delete(self, secret_id: UUID) -> None:
        """Forget a secret; it may be gone already."""
        async with self._pool.connection() as connection:
            await connection.execute(_DELETE, (secret_id,))

    async def rewrap(self) -> int:
        """Encrypt with the newest key whatever an older one wrote, and return how many secrets that were."""
        return await rewrap(self._pool, self._ring, _PAGE, _REWRAP, _context)


def _context(secret_id: UUID, kind: str) -> str:
    return f"{kind}/{secret_id}"
