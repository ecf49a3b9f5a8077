"""What administrators did: one row for each of their writes, made from the journal, which says it all already.

An event is an entry if it is the wish itself and an administrator's: who is one, the users' stream tells. What merely
followed from a wish is left out (`CONSEQUENCES`), and so are the jobs and calls of a service that works with the master
key: they are the business itself, and tell their own story. Events hold no secrets, only digests and the ids under
which secrets are kept; not even these are shown.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from domain import catalog, credential, credit, job, organization, statement, team, user, webhook
from domain.event import Event
from infra.journal import Connection, Recorded
from projections.projection import Batch, Projection, Question, Statement
from projections.reading import count, fetch_all

DDL = """
create table audit_log (
    position      bigint primary key,
    actor         text not null,
    user_id       text,
    request_id    text not null,
    action        text not null,
    resource_type text not null,
    resource_id   text not null,
    details       jsonb not null,
    ip_address    text,
    created_at    timestamptz not null
);
create index audit_log_by_time on audit_log (created_at desc, position desc);
create index audit_log_by_user on audit_log (user_id, created_at desc, position desc);
create index audit_log_by_action on audit_log (action, created_at desc, position desc);
create index audit_log_by_resource on audit_log (resource_type, created_at desc, position desc);

create table audit_log_people (user_id text primary key);
"""

_MEET = """
insert into audit_log_people (user_id)
select user_id from json_to_recordset(%s) as row (user_id text)
on conflict do nothing
"""

_WHO = """
select person.user_id
from json_to_recordset(%s) as row (user_id text)
join audit_log_people as person using (user_id)
"""

_INSERT = """
insert into audit_log (
    position, actor, user_id, request_id, action, resource_type, resource_id, details, ip_address, created_at)
select position, actor, user_id, request_id, action, resource_type, resource_id, details, ip_address, created_at
from json_to_recordset(%s) as row (
    position bigint, actor text, user_id text, request_id text, action text, resource_type text, resource_id text,
    details jsonb, ip_address text, created_at timestamptz)
"""

_SELECT = """
select position, actor, user_id, request_id, action, resource_type, resource_id, details::text as details, ip_address,
       created_at
from audit_log where """

_NEWEST_FIRST = " order by created_at desc, position desc limit %(limit)s offset %(offset)s"

_COUNT = "select count(*) from audit_log where "

_CONDITIONS = {
    "action": "action = %(action)s",
    "user_id": "user_id = %(user_id)s",
    "resource_type": "resource_type = %(resource_type)s",
    "start": "created_at >= %(start)s",
    "end": "created_at < %(end)s",
}


class AuditRecord(msgspec.Struct, kw_only=True):
    """One entry. `user_id` is None where nobody in person did it: `actor` is then `master` or `system`."""

    position: int
    actor: str
    user_id: str | None
    request_id: str
    action: str
    resource_type: str
    resource_id: str
    details: str
    """A JSON object, with the amounts digit for digit."""
    ip_address: str | None
    created_at: datetime


class Person(msgspec.Struct, frozen=True):
    user_id: str


class Row(msgspec.Struct):
    position: int
    actor: str
    user_id: str | None
    request_id: str
    action: str
    resource_type: str
    resource_id: str
    details: msgspec.Raw
    ip_address: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """How an event is told: what was done, to what kind of thing, and which field names the thing."""

    action: str
    resource_type: str
    id_field: str


def _entries(resource_type: str, id_field: str, **actions: type[Event]) -> dict[type[Event], Entry]:
    return {event: Entry(action, resource_type, id_field) for action, event in actions.items()}


ENTRIES: Mapping[type[Event], Entry] = {
    **_entries(
        "admin_user",
        "user_id",
        setup_owner=user.OwnerSetUp,
        login=user.UserLoggedIn,
        logout=user.UserLoggedOut,
        created_user=user.UserCreated,
        updated_user=user.UserChanged,
        deleted_user=user.UserDeleted,
        changed_password=user.PasswordChanged,
    ),
    user.UserRoleChanged: Entry("updated_user", "admin_user", "user_id"),
    user.UserActivated: Entry("updated_user", "admin_user", "user_id"),
    user.UserDeactivated: Entry("updated_user", "admin_user", "user_id"),
    **_entries(
        "organization",
        "organization_id",
        created_organization=organization.OrganizationCreated,
        updated_organization=organization.OrganizationChanged,
        suspended_organization=organization.OrganizationSuspended,
        paused_organization=organization.OrganizationPaused,
        resumed_organization=organization.OrganizationResumed,
        deleted_organization=organization.OrganizationDeleted,
    ),
    **_entries(
        "team",
        "team_id",
        created_team=team.TeamCreated,
        updated_team=team.TeamChanged,
        suspended_team=team.TeamSuspended,
        paused_team=team.TeamPaused,
        resumed_team=team.TeamResumed,
        deleted_team=team.TeamDeleted,
        assigned_models=team.ModelAccessAssigned,
        set_limits=team.LimitsSet,
        set_budget=team.BudgetSet,
        set_auto_refill=team.AutoRefillSet,
    ),
    **_entries(
        "virtual_key",
        "key_id",
        created_key=team.VirtualKeyIssued,
        revoked_key=team.VirtualKeyRevoked,
    ),
    **_entries(
        "credits",
        "team_id",
        added_credits=credit.CreditsGranted,
        refunded_credits=credit.CreditsRefunded,
        adjusted_credits=credit.CreditsAdjusted,
    ),
    **_entries(
        "model_alias",
        "model_alias",
        created_model_alias=catalog.AliasCreated,
        updated_model_alias=catalog.AliasChanged,
        deleted_model_alias=catalog.AliasRetired,
    ),
    **_entries(
        "access_group",
        "group_name",
        created_access_group=catalog.AccessGroupCreated,
        updated_access_group=catalog.AccessGroupChanged,
        deleted_access_group=catalog.AccessGroupDeleted,
    ),
    **_entries(
        "model_group",
        "group_name",
        created_model_group=catalog.ModelGroupCreated,
        updated_model_group=catalog.ModelGroupChanged,
        deleted_model_group=catalog.ModelGroupDeleted,
    ),
    **_entries(
        "provider_credential",
        "credential_id",
        created_credential=credential.CredentialCreated,
        updated_credential=credential.CredentialChanged,
        activated_credential=credential.CredentialActivated,
        deactivated_credential=credential.CredentialDeactivated,
        deleted_credential=credential.CredentialDeleted,
    ),
    **_entries(
        "webhook",
        "webhook_id",
        created_webhook=webhook.WebhookRegistered,
        updated_webhook=webhook.WebhookChanged,
        rotated_webhook_secret=webhook.WebhookSecretRotated,
        disabled_webhook=webhook.WebhookDisabled,
        enabled_webhook=webhook.WebhookEnabled,
        deleted_webhook=webhook.WebhookDeleted,
    ),
    **_entries(
        "job",
        "job_id",
        created_job=job.JobCreated,
        updated_job=job.MetadataMerged,
        called_model=job.CallStarted,
        completed_job=job.JobCompleted,
        failed_job=job.JobFailed,
        cancelled_job=job.JobCancelled,
    ),
    statement.StatementClosed: Entry("closed_statement", "statement", "team_id"),
    **_entries(
        "provider_bill",
        "reference",
        imported_provider_bill=statement.ProviderBillImported,
        booked_bill_difference=statement.BillDifferenceBooked,
    ),
}

CONSEQUENCES: frozenset[type[Event]] = frozenset(
    {
        organization.TeamJoined,
        organization.TeamLeft,
        team.KeyClaimed,
        catalog.GroupsUsed,
        credit.AccountOpened,
        credit.CreditsHeld,
        credit.HoldReleased,
        credit.CreditsCharged,
        credit.CreditsExpired,
        job.CallAttemptFailed,
        job.CallFinished,
        job.CallFailed,
        job.JobExpired,
        job.ChargeRefunded,
        webhook.CreditsRanOut,
    }
)

ACTIONS = tuple(dict.fromkeys(entry.action for entry in ENTRIES.values()))
RESOURCE_TYPES = tuple(dict.fromkeys(entry.resource_type for entry in ENTRIES.values()))

# Beginning and end of a job are told by the job itself: here only what it was about.
_BRIEF: Mapping[type[Event], frozenset[str]] = {
    job.JobCreated: frozenset({"team_id", "job_type"}),
    job.MetadataMerged: frozenset(),
    job.CallStarted: frozenset({"team_id", "call_id", "model"}),
    job.JobCompleted: frozenset({"team_id", "credits_charged"}),
    job.JobFailed: frozenset({"team_id", "credits_charged"}),
    job.JobCancelled: frozenset({"team_id", "credits_charged", "reason"}),
}
# What these say without a field for it.
_ADDED: Mapping[type[Event], dict[str, Any]] = {
    user.UserActivated: {"is_active": True},
    user.UserDeactivated: {"is_active": False},
}
_LEFT_OUT = frozenset(
    {
        *("at", "by", "request", "ip_address"),
        *("password_id", "session_id", "kept_session", "secret_id", "old_secret_id", "auth_header_id", "key_hash"),
    }
)

# What the house does by itself when the time has come.
_AUTOMATIC = (webhook.WebhookDisabled, statement.StatementClosed)


def asks(batch: Batch) -> Iterable[Question]:
    """Who of those that act in the batch are persons: ids of keys and of persons look alike."""
    actors = {recorded.event.by for recorded in batch.recorded(*ENTRIES)} - {user.MASTER, user.SYSTEM}
    yield Question(_WHO, [Person(actor) for actor in sorted(actors)], Person)


def project(batch: Batch, known: Sequence[Person]) -> Iterable[Statement]:
    new = [Person(event.user_id) for kind in (user.OwnerSetUp, user.UserCreated) for event in batch.of(kind)]
    yield _MEET, new
    people = {person.user_id for person in (*known, *new)}
    yield _INSERT, [_row(each, people) for each in batch.recorded(*ENTRIES) if _is_entry(each.event, people)]


def _is_entry(event: Event, people: Container[str]) -> bool:
    if event.by in people:
        return True
    if ENTRIES[type(event)].resource_type == "job":
        return False
    is_automatic = isinstance(event, _AUTOMATIC) or getattr(event, "refill_period", None) is not None
    return event.by == user.MASTER or (event.by == user.SYSTEM and not is_automatic)


def _row(recorded: Recorded, people: Container[str]) -> Row:
    event = recorded.event
    entry = ENTRIES[type(event)]
    return Row(
        position=recorded.position,
        actor=event.by,
        user_id=event.by if event.by in people else None,
        request_id=event.request,
        action=entry.action,
        resource_type=entry.resource_type,
        resource_id=str(getattr(event, entry.id_field)),
        details=msgspec.Raw(msgspec.json.encode(_details(event, entry))),
        ip_address=getattr(event, "ip_address", None),
        created_at=event.at,
    )


def _details(event: Event, entry: Entry) -> dict[str, Any]:
    """What else an event says, as it is shown."""
    brief = _BRIEF.get(type(event))
    names = event.__struct_fields__ if brief is None else brief
    said = {name: getattr(event, name) for name in names if name not in _LEFT_OUT and name != entry.id_field}
    return {**{name: _shown(value) for name, value in said.items()}, **_ADDED.get(type(event), {})}


def _shown(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
        case Decimal():
            return msgspec.Raw(format(value, "f").encode())
        case msgspec.Struct():
            fields = ((name, getattr(value, name)) for name in value.__struct_fields__ if name not in _LEFT_OUT)
            return {name: _shown(each) for name, each in fields}
        case list() | tuple():
            return [_shown(each) for each in value]
        case _:
            return value


class Filter(msgspec.Struct, kw_only=True, frozen=True):
    """Which entries are wanted; `end` is the first moment that is not."""

    action: str | None = None
    user_id: str | None = None
    resource_type: str | None = None
    start: datetime | None = None
    end: datetime | None = None

    @property
    def where(self) -> str:
        conditions = [text for name, text in _CONDITIONS.items() if getattr(self, name) is not None]
        return " and ".join(conditions) or "true"


async def page(connection: Connection, wanted: Filter, *, limit: int, offset: int) -> tuple[int, list[AuditRecord]]:
    """How many entries there are, and some of them, the newest first."""
    parameters = {**msgspec.structs.asdict(wanted), "limit": limit, "offset": offset}
    found = await fetch_all(connection, AuditRecord, _SELECT + wanted.where + _NEWEST_FIRST, parameters)
    return await count(connection, _COUNT + wanted.where, parameters), found


AUDIT_LOG = Projection(
    name="audit_log",
    version=1,
    tables=("audit_log", "audit_log_people"),
    ddl=DDL,
    project=project,
    asks=asks,
    wants=tuple(ENTRIES),
)
