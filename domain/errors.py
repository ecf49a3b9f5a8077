"""Every way in which a wish can be refused. The code is stable; its HTTP status is in api/problems.py.

A refusal carries facts as fields, so that nobody has to parse prose. Accidents are no refusals.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(eq=False)
class Refusal(Exception):
    """A typed no. `facts` becomes extra top-level fields of the error answer."""

    code: ClassVar[str]

    @property
    def facts(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        return f"{self.code} {self.facts}" if self.facts else self.code


@dataclass(eq=False)
class NotFound(Refusal):
    """There is no such thing: `resource` says what kind was looked for."""

    code = "not_found"
    resource: str


@dataclass(eq=False)
class AlreadyExists(Refusal):
    """Another thing has this name, or once had it."""

    code = "already_exists"
    resource: str


@dataclass(eq=False)
class InvalidValue(Refusal):
    """A well-formed value that means nothing here, such as an unknown provider."""

    code = "invalid_value"
    field: str


@dataclass(eq=False)
class OutOfBounds(Refusal):
    """Only the decision could see that a value is too large; answered like any other failed validation."""

    code = "validation_error"
    field: str
    message: str


@dataclass(eq=False)
class InUse(Refusal):
    """Something else still refers to it."""

    code = "in_use"


@dataclass(eq=False)
class Protected(Refusal):
    """The house needs it: a default team, the last owner."""

    code = "protected"


@dataclass(eq=False)
class Unauthorized(Refusal):
    """No credential, or one that is unknown, revoked or expired."""

    code = "unauthorized"


@dataclass(eq=False)
class Forbidden(Refusal):
    """Another team's data."""

    code = "forbidden"
    team_id: str


@dataclass(eq=False)
class AdminRequired(Refusal):
    """A virtual key asked for something only an administrator may do."""

    code = "admin_required"


@dataclass(eq=False)
class RoleForbidden(Refusal):
    """An administrator whose role does not allow this."""

    code = "role_forbidden"


@dataclass(eq=False)
class SuspendedTeam(Refusal):
    """The team may read its data and nothing else."""

    code = "team_suspended"


@dataclass(eq=False)
class PausedTeam(Refusal):
    """The team may read its data and come back later."""

    code = "team_paused"


@dataclass(eq=False)
class SuspendedOrganization(Refusal):
    """All teams of the organization may read and nothing else."""

    code = "organization_suspended"


@dataclass(eq=False)
class PausedOrganization(Refusal):
    """All teams of the organization may read and come back later."""

    code = "organization_paused"


@dataclass(eq=False)
class JobClosed(Refusal):
    """The job ended with another status."""

    code = "job_closed"
    status: str


@dataclass(eq=False)
class CallsInProgress(Refusal):
    """A job is charged for what it used, which is not known while a call is running."""

    code = "calls_in_progress"
    running_calls: int


@dataclass(eq=False)
class ModelNotAllowed(Refusal):
    """Unknown and not allowed look alike, on purpose."""

    code = "model_not_allowed"
    model: str | None
    available_models: list[str]


@dataclass(eq=False)
class InsufficientCredits(Refusal):
    """The account cannot set aside what this would cost."""

    code = "insufficient_credits"
    credits_needed: int
    credits_available: int


@dataclass(eq=False)
class NotCharged(Refusal):
    """Only a charged job can be refunded."""

    code = "not_charged"


@dataclass(eq=False)
class RefundExceedsCharge(Refusal):
    """All refunds of a job together never exceed its charge."""

    code = "refund_exceeds_charge"
    credits_refundable: int


@dataclass(eq=False)
class AlreadyRegistered(Refusal):
    """Another administrator has this e-mail."""

    code = "already_registered"


@dataclass(eq=False)
class SetupDone(Refusal):
    """There is a first owner already; further ones are made by an owner."""

    code = "setup_done"


@dataclass(eq=False)
class SelfChange(Refusal):
    """Nobody changes its own role or takes away its own account."""

    code = "self_change"


@dataclass(eq=False)
class JwtRequired(Refusal):
    """Only a person may do this: the master key is nobody."""

    code = "jwt_required"


@dataclass(eq=False)
class AccountInactive(Refusal):
    """The right password of an account that was deactivated."""

    code = "account_inactive"


@dataclass(eq=False)
class InvalidLogin(Refusal):
    """Unknown e-mail and wrong password look alike, on purpose."""

    code = "invalid_login"


@dataclass(eq=False)
class WrongPassword(Refusal):
    """The current password, asked for once more, is not this one."""

    code = "wrong_password"


@dataclass(eq=False)
class TooManyAttempts(Refusal):
    """Too many failed logins for this e-mail from this address."""

    code = "too_many_attempts"
    retry_after_seconds: int


@dataclass(eq=False)
class TooManyWebhooks(Refusal):
    """Each event of a team is sent to each of its webhooks, so there is a limit to their number."""

    code = "too_many_webhooks"
    limit: int


@dataclass(eq=False)
class PeriodNotEnded(Refusal):
    """More may happen in this period, so its statement cannot be closed yet."""

    code = "period_not_ended"
    period: str


@dataclass(eq=False)
class PeriodOutOfOrder(Refusal):
    """Statements are closed one after the other, since each opens with what the one before left."""

    code = "period_out_of_order"
    next_period: str


@dataclass(eq=False)
class StatementUnbalanced(Refusal):
    """Opening credits and entries do not add up to the closing credits: nothing is signed before that is understood."""

    code = "statement_unbalanced"
    credits_expected: int
    credits_found: int
