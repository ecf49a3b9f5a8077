"""Passwords of admin users: argon2id, off the event loop, bounded so that a login flood harms nobody."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST: Final = 8
LONGEST: Final = 1024

# OWASP's smallest argon2id setting: a flood must not cost hundreds of megabytes beside the ledger.
MEMORY_KIB: Final = 19 * 1024
PASSES: Final = 2

T = TypeVar("T")

_THREADS = 2
_MOST_WAITING = 64


class PasswordsBusy(Exception):
    """So many passwords wait to be hashed that one more is turned away (503)."""


def is_acceptable(password: str) -> bool:
    """Say whether a password has 8 to 1024 characters; there are no other rules (contract, appendix E)."""
    return SHORTEST <= len(password) <= LONGEST


class Passwords:
    """Hashes and checks passwords in two threads of its own.

    Args:
        memory_kib: memory of one hash, in KiB.
        passes: passes over that memory.
    """

    def __init__(self, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=1, type=Type.ID)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="passwords")
        self._waiting = 0
        # An unknown user costs the same work as a known one, so time does not tell who exists.
        self._nobody = self._hasher.hash(b"nobody has this password")

    async def hash(self, password: str) -> str:
        """Return the salted hash of a password, in argon2's own text form.

        Raises:
            ValueError: the password is not acceptable.
            PasswordsBusy: too many are waiting.
        """
        if not is_acceptable(password):
            raise ValueError("a password has 8 to 1024 characters")
        return await self._in_thread(self._hash, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Say whether a password is the one behind a stored hash.

        Args:
            stored: what `hash` returned, or None for an unknown user: the same work, always False.
            password: what was typed in.

        Raises:
            PasswordsBusy: too many are waiting.
        """
        matches = await self._in_thread(self._matches, stored or self._nobody, password[:LONGEST])
        return matches and stored is not None and is_acceptable(password)

    def needs_rehash(self, stored: str) -> bool:
        """Say whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _in_thread(self, work: Callable[..., T], *arguments: str) -> T:
        if self._waiting >= _MOST_WAITING:
            raise PasswordsBusy
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._waiting -= 1

    def _hash(self, password: str) -> str:
        return self._hasher.hash(_every_byte(password))

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, _every_byte(password))
        except (VerificationError, InvalidHashError):
            return False


def _every_byte(password: str) -> bytes:
    # JSON can carry lone surrogates, which plain UTF-8 refuses: they count like any other character.
    return password.encode("utf-8", "surrogatepass")
