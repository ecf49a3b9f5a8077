"""The description of the API, as OpenAPI 3.0.

Litestar describes the routes in OpenAPI 3.1. Most generators and tools still speak 3.0, so the document is translated;
what Litestar cannot know (who may ask, errors, idempotency keys) is added in the same walk.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec
from litestar import Litestar
from litestar._openapi.schema_generation import SchemaCreator
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import OpenAPIFormat, OpenAPIType, Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.routes import HTTPRoute
from litestar.types import ControllerRouterHandler
from litestar.typing import FieldDefinition

from api.caller import Door
from api.chat_completions import in_openai_words
from api.problems import PROBLEMS
from api.request_examples import EXAMPLES, STREAM
from api.tables import MEDIA_TYPES
from infra.version import VERSION

Json = dict[str, Any]

# The order in which the categories are read.
TAGS = {
    "Jobs": "Open jobs, look at them, end them. One job is one charge.",
    "LLM Calls": "Call language models inside a job.",
    "OpenAI": "The same for programs that speak OpenAI's API: its address is `/v1`, its key a virtual key.",
    "Teams": "Teams, their access and their usage.",
    "Keys": "The virtual keys of a team.",
    "Organizations": "Customers, and the teams they have.",
    "Credits": "What teams were given and have used.",
    "Model Access Groups": "Which teams may use which models.",
    "Model Aliases": "Public names for the models of providers, and their prices.",
    "Model Groups": "Ordered fallbacks under one name.",
    "Provider Credentials": "The keys with which an organization's calls are made.",
    "Webhooks": "Notifications of what happens.",
    "Admin Users": "Administrators, their sessions and what they did.",
    "Reports": "Figures for dashboards and finance.",
    "Audit": "The journal, and the proof that it is whole.",
    "Health": "Whether the server lives, and whether it can do its work.",
    "Documentation": "This description, and a client.",
}

DESCRIPTION = """
Jobs group calls to language models; a job is one charge to the credits of its team. Everything lives under `/api`, and
under `/api/v1` just the same; `/v1` is for programs that speak OpenAI's API. Send a virtual key
(`Authorization: Bearer sk-...`) for the data of its team; whatever needs an administrator takes the master key, as
Bearer or as `X-Admin-Key`, or the token of a session.

Every POST takes an `Idempotency-Key`: asked again within 24 hours, it answers as before and does nothing twice.
"""

IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "Asked again with the same key, the request is answered as before and does nothing.",
}

# Who may ask, by what the routes ask of them; open routes ask nothing.
ANYBODY = "anybody"
CALLERS = {
    "anybody": "Open to everybody.",
    "team": "For the team's virtual key, and for administrators.",
    "key": "For a team's virtual key.",
    "admin": "For administrators.",
    "auditor": "For owners, administrators and auditors.",
    "person": "For an administrator's session.",
}

# What open routes may answer besides what they are asked for; all others may answer what their method allows.
_OPEN_STATUSES = {"/health/ready": [503], "/health/db": [503], "/metrics": [401, 403]}
_LOGIN = re.compile(r"/login$")

_NOISE = {"deprecated", "allowEmptyValue", "allowReserved"}
_UUIDS = {"job_id", "key_id", "webhook_id", "delivery_id", "credential_id", "transaction_id"}
_BEFORE_THE_DOT = re.compile(r"^(?P<first>.*?)\.(?:\s+(?P<rest>.*))?$", re.DOTALL)
_MOST_EXACT = 2**53
_NOT_BEFORE_A_LINE_FEED = r"(?!\n)"
ERROR: Json = {
    "type": "object",
    "required": ["detail", "code"],
    "properties": {
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": sorted(code for code in PROBLEMS if code != "validation_error")},
    },
    "additionalProperties": True,
    "example": {"detail": "Insufficient credits", "code": "insufficient_credits", "credits_needed": 1},
}
VALIDATION_ERROR: Json = {
    "type": "object",
    "required": ["detail", "code"],
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "integer"}]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
            },
        },
        "code": {"type": "string", "enum": ["validation_error"]},
    },
    "example": {
        "detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "value_error.missing"}],
        "code": "validation_error",
    },
}
OPENAI_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "string", "nullable": True},
                "code": {"type": "string", "enum": sorted(PROBLEMS)},
            },
        },
    },
    "example": {
        "error": {
            "message": "Insufficient credits",
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_credits",
        }
    },
}
# What is shown of each status, with its facts.
_REFUSED: dict[int, tuple[str, Json]] = {
    400: ("job_closed", {"status": "completed"}),
    401: ("unauthorized", {}),
    403: ("insufficient_credits", {"credits_needed": 1, "credits_available": 0}),
    404: ("not_found", {"resource": "job"}),
    405: ("method_not_allowed", {}),
    409: ("idempotency_in_flight", {}),
    413: ("payload_too_large", {}),
    429: ("rate_limited", {"limit": "requests"}),
    500: ("provider_error", {}),
    503: ("unavailable", {}),
}
_OPENAI = "openai-"  # before the status of what is answered under /v1


class SpecialStrings(OpenAPISchemaPlugin):
    """Strings of a format, like `Uuid`, or of a few words, like `BudgetModeName`, which Litestar does not see."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        return bool(_said_of(field_definition))

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: SchemaCreator) -> Schema:
        said = _said_of(field_definition)
        kind = said.get("format")
        return Schema(
            type=OpenAPIType.STRING, format=None if kind is None else OpenAPIFormat(kind), enum=said.get("enum")
        )


def _said_of(field: FieldDefinition) -> Json:
    found = (each.extra_json_schema for each in field.metadata if isinstance(each, msgspec.Meta))
    return next((extra for extra in found if extra), {})


class NumbersFromZero(OpenAPISchemaPlugin):
    """Numbers of bodies that begin at 0, a bound that Litestar takes for none."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        return _from_zero(field_definition) is not None

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: SchemaCreator) -> Schema:
        bounds = _from_zero(field_definition)
        assert bounds is not None
        kind = OpenAPIType.INTEGER if field_definition.annotation is int else OpenAPIType.NUMBER
        return Schema(type=kind, minimum=0, maximum=bounds.le)


def _from_zero(field: FieldDefinition) -> msgspec.Meta | None:
    return next((each for each in field.metadata if isinstance(each, msgspec.Meta) and each.ge == 0), None)


class DecimalsAreNumbers(OpenAPISchemaPlugin):
    """Money is a JSON number here, digit for digit."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        return value is Decimal

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: SchemaCreator) -> Schema:
        return Schema(type=OpenAPIType.NUMBER)


def document(controllers: Sequence[ControllerRouterHandler], **app: Any) -> Json:
    """The OpenAPI 3.0 document of these controllers; `app` is what they need to be registered."""
    served = Litestar(
        list(controllers),
        openapi_config=OpenAPIConfig(
            title="SaaS LiteLLM API", version=VERSION, use_handler_docstrings=True, create_examples=False
        ),
        logging_config=None,  # or it would take over the log of the process that is asked for the document
        plugins=[DecimalsAreNumbers(), NumbersFromZero(), SpecialStrings()],
        **app,
    )
    described = served.openapi_schema.to_schema()
    schemas = described.get("components", {}).get("schemas", {})
    names = _short_names(schemas)
    handlers = {(method, path): handler for method, path, handler in _handlers(served)}
    paths = {
        path: {method: _operation(path, method, each, handlers[method, path]) for method, each in item.items()}
        for path, item in sorted(described["paths"].items())
    }
    _name_operations(paths)
    found: Json = {
        "openapi": "3.0.3",
        "info": {"title": "SaaS LiteLLM API", "version": VERSION, "description": DESCRIPTION.strip()},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": [{"bearerAuth": []}, {"adminKey": []}],
        "paths": paths,
        "components": {
            "schemas": {
                **{names[name]: _with_example(names[name], schema) for name, schema in sorted(schemas.items())},
                "Error": ERROR,
                "ValidationError": VALIDATION_ERROR,
                "OpenAIError": OPENAI_ERROR,
            },
            "responses": {
                **{str(status): _error_response(status) for status in _statuses()},
                **{f"{_OPENAI}{status}": _error_response(status, openai=True) for status in _statuses()},
            },
            "securitySchemes": {
                "bearerAuth": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A team's virtual key, the master key, or the token of an administrator's session.",
                },
                "adminKey": {"type": "apiKey", "in": "header", "name": "X-Admin-Key", "description": "The master key."},
            },
        },
    }
    translated = _translated(found, names)
    assert isinstance(translated, dict)
    return translated


def operations_of(openapi: Json) -> Iterator[tuple[str, str, Json]]:
    """Method, path and description of every operation of a document."""
    for path, item in openapi["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _handlers(served: Litestar) -> Iterator[tuple[str, str, HTTPRouteHandler]]:
    for route in served.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in handler.http_methods:
                    yield method.lower(), route.path_format, handler


def _short_names(schemas: Json) -> dict[str, str]:
    """`CreateJobBody` instead of the whole path of its module, where that is clear."""
    titles = Counter(str(schema.get("title", name)) for name, schema in schemas.items())
    clear = {name: str(schema.get("title", name)) for name, schema in schemas.items()}
    return {name: title if titles[title] == 1 else _module_and(name, title) for name, title in clear.items()}


def _module_and(name: str, title: str) -> str:
    """`UsageStats` of two modules as `ModelAliasesUsageStats` and `TeamsUsageStats`."""
    words = name.removesuffix(title).strip("_.").split("_")
    return "".join(word.title() for word in words if word not in ("api", "domain", "infra", "")) + title


def _with_example(name: str, schema: Json) -> Json:
    named = {**schema, "title": name}
    return {**named, "example": EXAMPLES[name]} if name in EXAMPLES else named


# -- operations --------------------------------------------------------------------------------------------------------


def _operation(path: str, method: str, operation: Json, handler: HTTPRouteHandler) -> Json:
    door = _door(handler)
    caller = _caller(door)
    summary, description = _told(str(operation["description"]))
    made: Json = {
        "tags": operation["tags"],
        "summary": summary,
        "description": f"{description}\n\n{CALLERS[caller]}".strip(),
        "operationId": handler.handler_name,
        "x-caller": caller,
    }
    if door is None:
        made["security"] = []
    elif not door.master:
        made["security"] = [{"bearerAuth": []}]
    parameters = [_parameter(path, each) for each in _once(operation.get("parameters", []))]
    if method == "post":
        parameters.append(IDEMPOTENCY_KEY)
    if parameters:
        made["parameters"] = parameters
    if "requestBody" in operation:
        made["requestBody"] = _request_body(operation["requestBody"], handler)
    made["responses"] = _responses(path, method, {**made, "responses": operation["responses"]})
    for media_type in _other_media_types(made, handler):
        made["responses"]["200"]["content"].setdefault(media_type, {"schema": {}})
    return made


def _other_media_types(operation: Json, handler: HTTPRouteHandler) -> list[str]:
    """How else an operation may answer: in a format that the query names, or as its handler says (`also`)."""
    formats = [each["schema"]["enum"] for each in operation.get("parameters", []) if each["name"] == "format"]
    return [*(MEDIA_TYPES[name] for names in formats for name in names), *handler.opt.get("also", ())]


def _caller(door: Door | None) -> str:
    if door is None:
        return ANYBODY
    if door.teams:
        return "team" if door.admins else "key"
    if door.reading == "audit":
        return "auditor"
    return "admin" if door.master else "person"


def _door(handler: HTTPRouteHandler) -> Door | None:
    return door if isinstance(door := handler.resolve_before_request(), Door) else None


def _told(docstring: str) -> tuple[str, str]:
    """The first sentence as a title; the whole of it too if there is more."""
    text = docstring.strip()
    found = _BEFORE_THE_DOT.match(text)
    if found is None:
        return text.replace("`", ""), ""
    return found["first"].replace("`", ""), text if found["rest"] or "`" in text else ""


def _once(parameters: Sequence[Json]) -> list[Json]:
    """A parameter that both a handler and what it depends on ask for is still one."""
    return list({(each["in"], each["name"]): each for each in parameters}.values())


def _parameter(path: str, parameter: Json) -> Json:
    name, schema = parameter["name"], _without_null(parameter["schema"])
    if parameter["in"] == "path" and (name in _UUIDS or (name == "user_id" and "/admin-users/" in path)):
        schema["format"] = "uuid"
    if schema.get("maximum", 0) > _MOST_EXACT:
        del schema["maximum"]  # JavaScript would round it
    return {**parameter, "schema": schema}


def _without_null(schema: Json) -> Json:
    """What can be left out need not be null as well."""
    options = [option for option in schema.get("oneOf", []) if option != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "oneOf"}
    return {**rest, **options[0]} if len(options) == 1 else dict(schema)


def _request_body(body: Json, handler: HTTPRouteHandler) -> Json:
    field = handler.parsed_data_field
    is_optional = field is not None and (field.is_optional or field.has_default)
    content = {kind: {**each, "schema": _without_null(each["schema"])} for kind, each in body["content"].items()}
    return {"content": content, "required": not is_optional}


def _responses(path: str, method: str, operation: Json) -> Json:
    found: Json = {}
    for status, answer in operation["responses"].items():
        if status[0] == "2":
            streams = "text/event-stream" in answer.get("content", {})
            found[status] = _event_stream() if streams else _answer(answer, operation)
    for status in _refusals(path, method, operation):
        found[str(status)] = {"$ref": f"#/components/responses/{_OPENAI if path.startswith('/v1/') else ''}{status}"}
    return found


def _answer(answer: Json, operation: Json) -> Json:
    headers = {}
    if any(parameter["name"] == "limit" for parameter in operation.get("parameters", [])):
        headers["X-Total-Count"] = _header("How many matches there are on all pages", "integer")
    if IDEMPOTENCY_KEY in operation.get("parameters", []):
        headers["Idempotent-Replayed"] = _header("`true` if this is the answer to an earlier request with this key")
    made = {"description": "As asked for", "content": answer.get("content", {})}
    return {**made, "headers": headers} if headers else made


def _event_stream() -> Json:
    return {
        "description": "Server-sent events: chunks of an OpenAI chat completion, then `[DONE]`. A line that begins "
        "with a colon is a comment. A chunk with the key `error` tells of a failure.",
        "headers": {"X-Job-Id": _header("The job"), "X-Call-Id": _header("The call")},
        # No type: to some readers of this document the schema is that of the whole text, to others of one event.
        "content": {"text/event-stream": {"schema": {}, "example": STREAM}},
    }


def _header(description: str, kind: str = "string") -> Json:
    return {"description": description, "schema": {"type": kind}}


def _refusals(path: str, method: str, operation: Json) -> list[int]:
    """What else may be answered."""
    is_open = operation["x-caller"] == ANYBODY
    found = {500, *_OPEN_STATUSES.get(path, [])}
    if is_open and method == "get":
        return sorted(found | ({503} if path.startswith("/api/admin-users") else set()))
    found |= {401, 403, 429, 503} if not is_open or _LOGIN.search(path) else {503}
    if method == "get":
        found.discard(429)
    if method != "get" or "{period}" in path:  # a period may not have ended yet
        found |= {400}
    if method == "post":
        found |= {409, 413, 422}
    if "requestBody" in operation:
        found |= {413, 422}
    parameters = [parameter for parameter in operation.get("parameters", []) if parameter["in"] != "header"]
    if any(parameter["in"] == "query" for parameter in parameters):
        found |= {422}
    if not is_open and (parameters or "requestBody" in operation):
        found |= {404}
    return sorted(found)


def _statuses() -> list[int]:
    return sorted({entry.status for entry in PROBLEMS.values()})


def _refused(status: int) -> Json:
    """An answer of this status."""
    if status == 422:
        return dict(VALIDATION_ERROR["example"])
    code, facts = _REFUSED[status]
    return {"detail": PROBLEMS[code].detail, "code": code, **facts}


def _error_response(status: int, *, openai: bool = False) -> Json:
    codes = sorted(code for code, entry in PROBLEMS.items() if entry.status == status)
    schema = "OpenAIError" if openai else "ValidationError" if status == 422 else "Error"
    example = in_openai_words(_refused(status), status) if openai else _refused(status)
    made: Json = {
        "description": f"One of: {', '.join(codes)}",
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}},
    }
    if status in (409, 429, 503):
        made["headers"] = {"Retry-After": _header("Seconds to wait", "integer")}
    return made


def _name_operations(paths: Json) -> None:
    """Gives every operation a name of its own: `jobs_create`; behind another path, that path says which one it is."""
    plain: dict[str, list[tuple[str, str, Json]]] = {}
    for path, item in paths.items():
        for method, operation in item.items():
            plain.setdefault(_plain_name(path, operation), []).append((path, method, operation))
    for name, bearers in plain.items():
        tag = bearers[0][2]["tags"][0].lower().replace(" ", "-").removesuffix("s")
        bearers.sort(key=lambda bearer: (f"/{tag}" not in bearer[0], len(bearer[0]), bearer[0], bearer[1]))
        first_path, _, first = bearers[0]
        first["operationId"] = name
        for path, method, operation in bearers[1:]:
            operation["operationId"] = f"{name}_by_{method}" if path == first_path else f"{name}_at_{_words_of(path)}"


def _plain_name(path: str, operation: Json) -> str:
    """The handler's name behind that of its category, without what would be said twice."""
    tag, handler = _slug(operation["tags"][0]), str(operation["operationId"])
    if handler.startswith("list_") and handler.removeprefix("list_") in tag:
        handler = "list"
    if handler.startswith("of_"):
        handler = _words_of(path).rpartition("_")[2]
    return handler if handler == tag else f"{tag}_{handler}"


def _words_of(path: str) -> str:
    return _slug(re.sub(r"\{\w+\}", "", path.removeprefix("/api/")))


def _slug(text: str) -> str:
    return "_".join(re.findall(r"\w+", text.lower().replace("_", " ")))


# -- from 3.1 to 3.0 ---------------------------------------------------------------------------------------------------


def _translated(node: Any, names: dict[str, str]) -> Any:
    match node:
        case {"$ref": str(reference)}:
            head, _, name = reference.rpartition("/")
            return {"$ref": f"{head}/{names.get(name, name)}"}
        case dict():
            return _plain({key: _translated(value, names) for key, value in node.items() if not _is_noise(key, value)})
        case list():
            return [_translated(each, names) for each in node]
        case msgspec.Struct():
            return msgspec.to_builtins(node)
        case _:
            return node


def _is_noise(key: str, value: Any) -> bool:
    return key in _NOISE and value is False


def _plain(schema: Json) -> Json:
    """Null, constants and exclusive bounds, as 3.0 says them."""
    for union in ("oneOf", "anyOf"):
        options = schema.get(union)
        if isinstance(options, list) and {"type": "null"} in options:
            rest = [option for option in options if option != {"type": "null"}]
            schema = {key: value for key, value in schema.items() if key != union}
            if len(rest) == 1 and "$ref" not in rest[0]:
                schema = {**rest[0], **schema}
            else:
                schema["allOf" if len(rest) == 1 else union] = rest
            schema["nullable"] = True
        elif isinstance(options, list) and len(options) == 1:
            schema = {**{key: value for key, value in schema.items() if key != union}, **options[0]}
    if isinstance(schema.get("type"), list):
        kinds = [kind for kind in schema["type"] if kind != "null"]
        schema["nullable"] = "null" in schema["type"]
        schema["type"] = kinds[0]
    if schema.get("required") == []:
        del schema["required"]
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = schema["pattern"].removesuffix(_NOT_BEFORE_A_LINE_FEED)
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(exclusive), int | float) and not isinstance(schema[exclusive], bool):
            schema[bound], schema[exclusive] = schema[exclusive], True
    if isinstance(schema.get("enum"), list) and None in schema["enum"]:
        schema["enum"] = [word for word in schema["enum"] if word is not None]
        schema["nullable"] = True
    return schema
