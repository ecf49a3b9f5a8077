"""Which streams there are, and how each is read back.

The name of a stream is its category, a hyphen and the id of the thing: `job-<uuid>`, `credit-<team_id>`. The topic of
an event is the name of its class, for ever.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args

import msgspec

from domain import catalog, credential, credit, job, organization, statement, team, user, webhook
from domain.event import Event, State

Decoder = msgspec.json.Decoder[Event]


@dataclass(frozen=True)
class Category:
    """One kind of stream: its events, its state and the fold between them.

    `version` is raised whenever `state` or `evolve` change, so that older snapshots are left unread.
    """

    name: str
    events: tuple[type[Event], ...]
    state: type[State]
    evolve: Callable[[Any, Any], State]
    version: int = 1

    def stream(self, thing_id: str) -> str:
        return f"{self.name}-{thing_id}"


def _category(
    name: str,
    events: UnionType | type[Event],
    state: type[State],
    evolve: Callable[[Any, Any], State],
    version: int = 1,
) -> Category:
    return Category(name, get_args(events) or (events,), state, evolve, version)


JOB = _category("job", job.JobEvent, job.Job, job.evolve)
CREDIT = _category("credit", credit.CreditEvent, credit.Account, credit.evolve)
TEAM = _category("team", team.TeamEvent, team.Team, team.evolve)
KEY = _category("key", team.KeyClaimed, team.KeyOwner, team.evolve_key)
ORGANIZATION = _category("organization", organization.OrganizationEvent, organization.Organization, organization.evolve)
CATALOG = _category("catalog", catalog.CatalogEvent, catalog.Catalog, catalog.evolve)

USERS = _category("users", user.UserEvent, user.Users, user.evolve)
WEBHOOK = _category("webhook", webhook.RegisteredWebhookEvent, webhook.Webhook, webhook.evolve)
SHORTAGE = _category("shortage", webhook.CreditsRanOut, webhook.Shortage, webhook.evolve_shortage)
CREDENTIALS = _category("credentials", credential.CredentialEvent, credential.Credentials, credential.evolve)
STATEMENT = _category("statement", statement.StatementClosed, statement.Statements, statement.evolve)
RECONCILIATION = _category(
    "reconciliation",
    statement.ReconciliationEvent,
    statement.Reconciliation,
    statement.evolve_reconciliation,
    version=3,
)

CATEGORIES = {
    each.name: each
    for each in (
        JOB,
        CREDIT,
        TEAM,
        KEY,
        ORGANIZATION,
        CATALOG,
        USERS,
        WEBHOOK,
        SHORTAGE,
        CREDENTIALS,
        STATEMENT,
        RECONCILIATION,
    )
}
DECODERS: dict[str, Decoder] = {
    event.__name__: msgspec.json.Decoder(event) for each in CATEGORIES.values() for event in each.events
}

THE_CATALOG = CATALOG.stream("main")
THE_USERS = USERS.stream("main")


def category_of(stream: str) -> Category:
    return CATEGORIES[stream.partition("-")[0]]


def decode(topic: str, state: bytes) -> Event:
    """An event as it was recorded; fields added since have their defaults.

    Raises:
        KeyError: nobody knows such an event.
        msgspec.DecodeError: it is not what its topic says.
    """
    try:
        return DECODERS[topic].decode(state)
    except (UnicodeDecodeError, RecursionError) as problem:
        raise msgspec.DecodeError(str(problem)) from problem
