"""Every error that a client can get: one table from code to status and sentence, and the handlers that apply it.

The details of all 403 answers are constant and speak of credits only when credits are the reason: existing clients look
for that word. Whatever a caller chose (names, ids) goes into facts, never into the sentence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import psycopg
import structlog
from litestar import Request, Response
from litestar.enums import ParamType
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from litestar.types import ExceptionHandlersMap

from api.answers import reply
from domain.errors import OutOfBounds, Refusal
from infra import metrics
from infra.ledger import ClaimLost, Unavailable
from infra.passwords import PasswordsBusy
from infra.receipts import HistoryRewritten

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client sees of an error code."""

    status: int
    detail: str


PROBLEMS: dict[str, Problem] = {
    "malformed_json": Problem(400, "The body is not valid JSON"),
    "already_exists": Problem(400, "This already exists"),
    "already_registered": Problem(400, "This e-mail is already registered"),
    "invalid_value": Problem(400, "A value is not one of those allowed"),
    "job_closed": Problem(400, "The job has already ended"),
    "calls_in_progress": Problem(400, "A call of this job is still running"),
    "request_rejected": Problem(400, "The model's provider refused this request"),
    "in_use": Problem(400, "Something else still uses this"),
    "protected": Problem(400, "This cannot be removed or changed"),
    "not_charged": Problem(400, "This job was not charged"),
    "refund_exceeds_charge": Problem(400, "A refund cannot exceed what is left of the charge"),
    "setup_done": Problem(400, "The first owner has already been set up"),
    "self_change": Problem(400, "You cannot change this about yourself"),
    "wrong_password": Problem(400, "The current password is wrong"),
    "too_many_webhooks": Problem(400, "The team has as many webhooks as it may have; remove one first"),
    "period_not_ended": Problem(400, "This period has not ended yet"),
    "period_out_of_order": Problem(400, "An earlier period has to be closed first"),
    "statement_unbalanced": Problem(400, "Opening credits and entries do not add up to the closing credits"),
    "unauthorized": Problem(401, "Invalid or missing credential"),
    "invalid_login": Problem(401, "Invalid e-mail or password"),
    "forbidden": Problem(403, "This belongs to another team"),
    "admin_required": Problem(403, "Administrator access is required"),
    "role_forbidden": Problem(403, "Your role does not allow this"),
    "jwt_required": Problem(403, "This needs the session of an administrator"),
    "account_inactive": Problem(403, "This account is not active"),
    "team_suspended": Problem(403, "The team is suspended"),
    "organization_suspended": Problem(403, "The organization is suspended"),
    "model_not_allowed": Problem(403, "This model is not available to the team"),
    "insufficient_credits": Problem(403, "Insufficient credits"),
    "not_found": Problem(404, "Not found"),
    "method_not_allowed": Problem(405, "Method not allowed"),
    "idempotency_in_flight": Problem(409, "The first request with this idempotency key is still running"),
    "payload_too_large": Problem(413, "The body is too large"),
    "validation_error": Problem(422, "The request is not valid"),
    "rate_limited": Problem(429, "Rate limit exceeded"),
    "team_paused": Problem(429, "The team is paused"),
    "organization_paused": Problem(429, "The organization is paused"),
    "too_many_attempts": Problem(429, "Too many failed attempts"),
    "internal_error": Problem(500, "Internal server error"),
    "history_rewritten": Problem(500, "The journal is not the one that was signed; an auditor has to look at it"),
    "provider_error": Problem(500, "The model could not be reached"),
    "unavailable": Problem(503, "Service temporarily unavailable"),
    "took_too_long": Problem(503, "This took too long; ask for less at once, or again when less is going on"),
    "provider_not_configured": Problem(503, "The model is not configured"),
    "not_ready": Problem(503, "Not ready"),
}

RETRY_AFTER_SECONDS = {409: 1, 429: 30, 503: 2}


_MISSING = re.compile(r"^Missing required (?P<where>\w+) parameter '(?P<name>[^']+)'")


class Trouble(Exception):
    """A refusal that only HTTP knows: of a credential, a body, a limit, a provider."""

    def __init__(self, code: str, *, headers: Mapping[str, str] | None = None, **facts: Any) -> None:
        super().__init__(code)
        self.code = code
        self.headers = dict(headers or {})
        self.facts = facts


class Invalid(Exception):
    """A value that is not what it should be: answered 422 with the place of each one.

    Args:
        loc: where it is, beginning with body, query, path or header.
        message: what is wrong with it.
        kind: one of the contract's types, such as `value_error.length`.
    """

    def __init__(self, loc: Sequence[str | int], message: str, kind: str) -> None:
        super().__init__(message)
        self.items = [{"loc": list(loc), "msg": message, "type": kind}]


def problem(
    code: str, facts: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> Response[Any]:
    """The answer for an error code."""
    entry = PROBLEMS[code]
    content = {"detail": entry.detail, "code": code, **(facts or {})}
    return _answer(entry.status, content, headers)


def invalid(items: Sequence[Mapping[str, Any]]) -> Response[Any]:
    """The answer for values that are not what they should be."""
    return _answer(422, {"detail": list(items), "code": "validation_error"})


def _answer(status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response[Any]:
    sent = dict(headers or {})
    if status == HTTPStatus.UNAUTHORIZED:
        sent.setdefault("WWW-Authenticate", "Bearer")
    if status in RETRY_AFTER_SECONDS:
        sent.setdefault("Retry-After", str(RETRY_AFTER_SECONDS[status]))
    return reply(content, status=status, headers=sent)


# -- handlers --------------------------------------------------------------------------------------------------------


def _refused(_: Request[Any, Any, Any], refusal: Refusal) -> Response[Any]:
    if isinstance(refusal, OutOfBounds):
        return invalid([{"loc": ["body", refusal.field], "msg": refusal.message, "type": "value_error.range"}])
    wait = refusal.facts.get("retry_after_seconds")
    return problem(refusal.code, refusal.facts, None if wait is None else {"Retry-After": str(wait)})


def _troubled(_: Request[Any, Any, Any], trouble: Trouble) -> Response[Any]:
    return problem(trouble.code, trouble.facts, trouble.headers)


def _invalid(_: Request[Any, Any, Any], error: Invalid) -> Response[Any]:
    return invalid(error.items)


def _unavailable(_: Request[Any, Any, Any], error: Unavailable) -> Response[Any]:
    return problem("unavailable", headers={"Retry-After": str(error.retry_after_s)})


def _away(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.warning("request.without_database", reason=repr(error))
    return problem("unavailable")


def _took_too_long(request: Request[Any, Any, Any], _: Exception) -> Response[Any]:
    log.warning("request.took_too_long", path=request.url.path)
    return problem("took_too_long")


def _not_built(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Migrations make all tables but those of the read models, which are built while the server answers."""
    log.warning("request.before_read_model", reason=str(error).partition("\n")[0])
    return problem("not_ready", {"reasons": ["a read model is being built"]})


def _busy(_: Request[Any, Any, Any], __: PasswordsBusy) -> Response[Any]:
    return problem("unavailable")


def _rewritten(request: Request[Any, Any, Any], error: HistoryRewritten) -> Response[Any]:
    log.error("history.rewritten", path=request.url.path, reason=str(error))
    metrics.replay_disagreed(1)
    return problem("history_rewritten")


def _claim_lost(_: Request[Any, Any, Any], __: ClaimLost) -> Response[Any]:
    return problem("idempotency_in_flight")


def _parameters(request: Request[Any, Any, Any], error: ValidationException) -> Response[Any]:
    """Litestar's own finding about a query or path parameter, in the contract's shape."""
    if missing := _MISSING.match(error.detail):
        where = ParamType(missing["where"]).value
        return invalid([{"loc": [where, missing["name"]], "msg": "field required", "type": "value_error.missing"}])
    found = [item for item in error.extra if isinstance(item, dict)] if isinstance(error.extra, list) else []
    items = [
        {"loc": ["body"], "msg": "field required", "type": "value_error.missing"}  # there was none at all
        if item.get("source") == "body"
        else {
            "loc": [ParamType(item.get("source", "query")).value, _asked_as(request, str(item.get("key", "")))],
            "msg": str(item.get("message", "invalid")),
            "type": kind_of(str(item.get("message", ""))),
        }
        for item in found
    ]
    return invalid(items or [{"loc": ["query"], "msg": "invalid value", "type": "value_error.format"}])


def _asked_as(request: Request[Any, Any, Any], argument: str) -> str:
    """What clients call a parameter whose argument has another name, such as `from`, there or in a dependency."""
    handler = request.route_handler
    needed = (dependency.parsed_fn_signature for dependency in handler.resolve_dependencies().values())
    fields = (signature.parameters.get(argument) for signature in (handler.parsed_fn_signature, *needed))
    names = (getattr(field.kwarg_definition, "name", None) for field in fields if field is not None)
    return next(filter(None, names), argument)


def _http(_: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    match error:
        case NotFoundException():
            return problem("not_found", {"resource": "route"})
        case MethodNotAllowedException():
            return problem("method_not_allowed", headers=error.headers)
        case _ if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return problem("payload_too_large")
        case _ if error.status_code == HTTPStatus.BAD_REQUEST:
            return problem("malformed_json")
        case _:
            return _crashed(_, error)


def _crashed(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error("request.crashed", path=request.url.path, exc_info=error)
    return problem("internal_error")


HANDLERS: ExceptionHandlersMap = {
    Refusal: _refused,
    Trouble: _troubled,
    Invalid: _invalid,
    Unavailable: _unavailable,
    psycopg.OperationalError: _away,
    psycopg.InterfaceError: _away,
    psycopg.errors.QueryCanceled: _took_too_long,
    psycopg.errors.UndefinedTable: _not_built,
    psycopg.errors.UndefinedColumn: _not_built,
    PasswordsBusy: _busy,
    ClaimLost: _claim_lost,
    HistoryRewritten: _rewritten,
    ValidationException: _parameters,
    HTTPException: _http,
    Exception: _crashed,
}


def kind_of(message: str) -> str:
    """The contract's word for what msgspec complains about."""
    if "missing required field" in message or "got `null`" in message:
        return "value_error.missing"
    if "of length" in message:
        return "value_error.length"
    if "enum value" in message:
        return "value_error.enum"
    if "matching regex" in message or "Invalid" in message:
        return "value_error.format"
    if any(sign in message for sign in (">", "<", "multiple of", "out of range")):
        return "value_error.range"
    for word, kind in _TYPE_WORDS.items():
        if message.startswith(f"Expected `{word}"):
            return f"type_error.{kind}"
    return "value_error.format"


_TYPE_WORDS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "decimal": "number",
    "bool": "boolean",
    "array": "list",
    "object": "object",
}
