"""Secrets of commands that may be refused: stored before the event that speaks of them, and not without it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from domain.errors import Refusal
from infra.ledger import ClaimLost
from infra.secrets import SecretStore


@asynccontextmanager
async def keeping(secrets: SecretStore, kind: str, plaintext: str) -> AsyncIterator[str]:
    """Keeps a secret, under the id that it gives, for as long as a command needs it: for good, unless that is refused.

    If nobody knows whether the command was carried out, the secret stays: an event may speak of it.
    """
    secret_id = uuid4()
    await secrets.put(secret_id, kind, plaintext.encode())
    try:
        yield str(secret_id)
    except (Refusal, ClaimLost):
        await secrets.delete(secret_id)
        raise


@asynccontextmanager
async def keeping_if_given(secrets: SecretStore, kind: str, plaintext: str | None) -> AsyncIterator[str | None]:
    """The same for a secret that need not be there; an empty one is none."""
    if not plaintext:
        yield None
        return
    async with keeping(secrets, kind, plaintext) as secret_id:
        yield secret_id
