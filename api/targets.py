"""Where the target of a call is, and with which key it is reached.

The key is the alias's own, else that of the credential which the alias names, else that of the credential which the
calling organization activated last for this provider, else the operator's in the environment. An address belongs to the
key beside which it was written: a key is never carried to the address of somebody else's. Only an alias may name an
address for whatever key is used there.
"""

import time
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from typing import Annotated, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import structlog
from msgspec import Meta
from psycopg_pool import PoolTimeout

from api.bodies import NO_CONTROL
from api.keeping import keeping_if_given
from api.problems import Invalid
from domain import catalog
from domain.credential import Credential, Credentials, active_credential, named_credential
from domain.streams import CREDENTIALS, THE_CATALOG
from infra.ledger import Ledger, Unavailable
from infra.llm import ProviderFailure, Target
from infra.secrets import SecretMissing, SecretStore, Undecryptable

T = TypeVar("T")

Address = Annotated[str, Meta(max_length=500, pattern=NO_CONTROL)]
ApiKey = Annotated[str, Meta(max_length=4096, pattern=NO_CONTROL)]

log = structlog.get_logger()

PROVIDER_KEY = "provider_key"  # the kind of its secret
KNOWN_KEYS = 1000
KNOWN_ORGANIZATIONS = 10_000
# A rotation in another process is noticed after so long; in this one at once.
CREDENTIALS_FRESH_SECONDS = 1.0


def address(api_base: str) -> str | None:
    """The `api_base` of a body; an empty one is none.

    Raises:
        Invalid: calls cannot be sent there, or it contains a password, which would not stay one here.
    """
    if not api_base:
        return None
    try:
        parts = urlsplit(api_base)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        is_sound = False
    if not is_sound:
        raise Invalid(["body", "api_base"], "expected an http or https address, without a user", "value_error.format")
    return api_base


class _Recent(OrderedDict[str, T]):
    """What was used last, bounded by number."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, name: str, thing: T) -> T:
        self[name] = thing
        self.move_to_end(name)
        if len(self) > self._most:
            self.popitem(last=False)
        return thing


class Targets:
    """Provider keys: kept, found, and handed to the calls that need them.

    Args:
        ledger: knows the credentials of each organization.
        secrets: keeps the keys, encrypted.
    """

    def __init__(self, ledger: Ledger, secrets: SecretStore) -> None:
        self._ledger = ledger
        self._secrets = secrets
        # A secret never changes, so what is known of it stays true.
        self._keys: _Recent[str] = _Recent(KNOWN_KEYS)
        self._credentials: _Recent[tuple[float, Credentials | None]] = _Recent(KNOWN_ORGANIZATIONS)

    # -- for whoever writes aliases and credentials --------------------------------------------------------------------

    def keeping(self, api_key: str | None) -> AbstractAsyncContextManager[str | None]:
        """Keeps a key for as long as a command needs it: for good, unless the command is refused."""
        return keeping_if_given(self._secrets, PROVIDER_KEY, api_key)

    async def forget(self, secret_id: str | None) -> None:
        """Deletes a key that nothing refers to any more."""
        if secret_id is not None:
            self._keys.pop(secret_id, None)
            await self._secrets.delete(UUID(secret_id))

    # -- for calls -----------------------------------------------------------------------------------------------------

    async def reach(self, target: catalog.Target, organization_id: str) -> Target:
        """The address and the key of a target.

        Raises:
            ProviderFailure: the key cannot be read; another target may do.
        """
        try:
            return await self._reach(target, organization_id)
        except (SecretMissing, Undecryptable) as problem:
            log.warning("target.key_unreadable", target=target.name, reason=type(problem).__name__)
            raise ProviderFailure("not_configured", f"the API key for {target.name} cannot be read") from problem
        except (Unavailable, psycopg.Error, PoolTimeout, OSError) as problem:
            log.warning("target.unreachable", target=target.name, reason=type(problem).__name__)
            raise ProviderFailure("error", "the database is out of reach") from problem

    async def _reach(self, target: catalog.Target, organization_id: str) -> Target:
        if target.secret_id is not None:
            return Target(target.provider, target.model, target.api_base, await self._alias_key(target))
        credential = self._credential(target, await self._credentials_of(organization_id))
        if credential is None:
            return Target(target.provider, target.model, target.api_base)
        try:
            key = await self._key(credential.secret_id)
        except SecretMissing:
            # Replaced by another process a moment ago.
            credential = self._credential(target, await self._credentials_of(organization_id, anew=True))
            if credential is None:
                return Target(target.provider, target.model, target.api_base)
            key = await self._key(credential.secret_id)
        return Target(target.provider, target.model, target.api_base or credential.api_base, key)

    async def _alias_key(self, target: catalog.Target) -> str:
        """The alias's own key, also if it was replaced after the call had started."""
        assert target.secret_id is not None
        try:
            return await self._key(target.secret_id)
        except SecretMissing:
            names: catalog.Catalog | None = (await self._ledger.read(THE_CATALOG)).states[0]
            alias = (names or catalog.EMPTY).aliases.get(target.alias or "")
            if alias is None or alias.terms.secret_id is None or _moved(target, alias.terms):
                raise
            return await self._key(alias.terms.secret_id)

    async def _key(self, secret_id: str) -> str:
        known = self._keys.get(secret_id)
        if known is None:
            known = (await self._secrets.get(UUID(secret_id))).decode()
        return self._keys.keep(secret_id, known)

    @staticmethod
    def _credential(target: catalog.Target, credentials: Credentials | None) -> Credential | None:
        if target.credential_name is not None:
            named = named_credential(credentials, target.provider, target.credential_name)
            if named is not None and named.is_active:
                return named
        return active_credential(credentials, target.provider)

    async def _credentials_of(self, organization_id: str, *, anew: bool = False) -> Credentials | None:
        """An organization's credentials; asked for at the ledger at most once in CREDENTIALS_FRESH_SECONDS."""
        stream = CREDENTIALS.stream(organization_id)
        now = time.monotonic()
        known = self._credentials.get(organization_id)
        if anew or known is None or known[0] < now:
            state: Credentials | None = (await self._ledger.read(stream)).states[0]
            self._credentials.keep(organization_id, (now + CREDENTIALS_FRESH_SECONDS, state))
            return state
        glimpse = self._ledger.glance(stream)
        return glimpse if isinstance(glimpse, Credentials) else known[1]


def _moved(target: catalog.Target, terms: catalog.AliasTerms) -> bool:
    """Whether an alias means another provider or address by now, to which alone its new key may go."""
    return (target.provider, target.api_base) != (terms.provider, terms.api_base)
