"""Passwords of administrators: their hashes lie among the secrets, so that events carry only ids.

A password never changes: a new one is a new secret, and the old one is deleted once an event has replaced it.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta

from api import keeping as secrets
from api.house import House
from domain.event import Event
from domain.user import User, Users
from infra.ids import new_id
from infra.ledger import Decide
from infra.passwords import LONGEST, SHORTEST
from infra.secrets import SecretMissing

PASSWORD = "password"  # noqa: S105 the kind of its secret

NewPassword = Annotated[str, Meta(min_length=SHORTEST, max_length=LONGEST)]
TypedPassword = Annotated[str, Meta(max_length=LONGEST)]
"""However short it is, all that is to be said of it is that it is wrong."""


@asynccontextmanager
async def keeping(house: House, password: str) -> AsyncIterator[str]:
    """Keeps a new password for as long as a command needs it: for good, unless the command is refused."""
    async with secrets.keeping(house.secrets, PASSWORD, await house.passwords.hash(password)) as password_id:
        yield password_id


async def matched(house: House, user: User | None, password: str) -> str | None:
    """The id of the user's password, if it is this one. Nobody costs the same time as somebody."""
    password_id = new_id() if user is None else user.password_id
    try:
        stored = (await house.secrets.get(UUID(password_id))).decode()
    except SecretMissing:
        stored = None
    return password_id if await house.passwords.verify(stored, password) else None


class Replacing:
    """A decision about a user that notes which password the user had until then.

    Args:
        decide: the decision.
        user_id: whose password may be replaced by it.
    """

    def __init__(self, decide: Decide, user_id: str) -> None:
        self._decide = decide
        self._user_id = user_id
        self._password_id: str | None = None

    def __call__(self, users: Users | None, command: Any) -> Sequence[Event]:
        user = None if users is None else users.user(self._user_id)
        self._password_id = None if user is None else user.password_id
        return self._decide(users, command)  # type: ignore[return-value]

    async def forget(self, house: House) -> None:
        """Deletes that password, after the decision has been carried out."""
        if self._password_id is not None:
            await house.secrets.delete(UUID(self._password_id))
