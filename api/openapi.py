"""The description of the API, as OpenAPI 3.0, and two pages that show it without any help from the internet.

Litestar describes the routes in OpenAPI 3.1. Most generators and tools still speak 3.0, so the document is translated;
what Litestar cannot know (credentials, errors, idempotency keys) is added in the same walk.
"""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Controller, Litestar, Response, get
from litestar._openapi.schema_generation import SchemaCreator
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.params import FromPath
from litestar.plugins import OpenAPISchemaPlugin
from litestar.types import ControllerRouterHandler
from litestar.typing import FieldDefinition

from api.problems import PROBLEMS
from infra.version import VERSION

Json = dict[str, Any]

# The order in which the categories are read.
TAGS = {
    "Jobs": "Open jobs, look at them, end them. One job is one charge.",
    "LLM Calls": "Call language models inside a job.",
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
}

OPEN_PATHS = re.compile(
    r"^(/health(/.*)?|/api/health|/api/health-check|/metrics|/examples/.*|/api/admin-users/(setup.*|login)|/api/admin/login)$"
)
DESCRIPTION = """
Jobs group calls to language models; a job is one charge to the credits of its team. Everything lives under `/api`, and
under `/api/v1` just the same. Send a virtual key (`Authorization: Bearer sk-...`) for the data of its team; whatever
needs an administrator takes the master key, as Bearer or as `X-Admin-Key`, or the token of a session.

Every POST takes an `Idempotency-Key`: asked again within 24 hours, it answers as before and does nothing twice.
"""

_NOISE = {"deprecated", "allowEmptyValue", "allowReserved"}
_STATUS_OF_BODIES = (400, 409, 413, 422)
_STATUS_OF_ALL = (401, 403, 429, 500, 503)
_STATUSES = sorted((*_STATUS_OF_BODIES, *_STATUS_OF_ALL, 404))

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


class DecimalsAreNumbers(OpenAPISchemaPlugin):
    """Money is a JSON number here, digit for digit."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        return value is Decimal

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: SchemaCreator) -> Schema:
        return Schema(type=OpenAPIType.NUMBER)


def document(controllers: Sequence[ControllerRouterHandler], **app: Any) -> Json:
    """The OpenAPI 3.0 document of these controllers; `app` is what they need to be registered."""
    described = Litestar(
        list(controllers),
        openapi_config=OpenAPIConfig(title="SaaS LiteLLM API", version=VERSION, use_handler_docstrings=True),
        plugins=[DecimalsAreNumbers()],
        **app,
    ).openapi_schema.to_schema()
    schemas = described.get("components", {}).get("schemas", {})
    names = _short_names(schemas)
    paths = {path: _path_item(path, item) for path, item in sorted(described["paths"].items())}
    found: Json = {
        "openapi": "3.0.3",
        "info": {"title": "SaaS LiteLLM API", "version": VERSION, "description": DESCRIPTION.strip()},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": [{"bearerAuth": []}, {"adminKey": []}],
        "paths": paths,
        "components": {
            "schemas": {
                **{names[name]: schema for name, schema in sorted(schemas.items())},
                "Error": ERROR,
                "ValidationError": VALIDATION_ERROR,
            },
            "responses": {
                str(status): _error_response(status) for status in (*_STATUS_OF_BODIES, *_STATUS_OF_ALL, 404)
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


def _short_names(schemas: Json) -> dict[str, str]:
    """`CreateJobBody` instead of the whole path of its module, where that is clear."""
    short: dict[str, str] = {}
    for name, schema in schemas.items():
        title = str(schema.get("title", name))
        short[name] = title if title not in short.values() else name
    return short


def _path_item(path: str, item: Json) -> Json:
    return {method: _operation(path, method, operation) for method, operation in item.items()}


def _operation(path: str, method: str, operation: Json) -> Json:
    statuses = list(_STATUS_OF_ALL)
    if method == "post":
        operation.setdefault("parameters", []).append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
                "description": "Asked again with the same key, the request is answered as before and does nothing.",
            }
        )
    if method != "get":
        statuses += _STATUS_OF_BODIES
    if operation.get("parameters"):
        statuses += [422]
    if "{" in path:
        statuses += [404]
    if OPEN_PATHS.match(path):
        operation["security"] = []
    responses = {status: answer for status, answer in operation["responses"].items() if status[0] == "2"}
    for status in sorted(set(statuses)):
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    return {**operation, "responses": responses}


def _error_response(status: int) -> Json:
    codes = sorted(code for code, entry in PROBLEMS.items() if entry.status == status)
    schema = "ValidationError" if status == 422 else "Error"
    return {
        "description": f"One of: {', '.join(codes)}",
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


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
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(exclusive), int | float) and not isinstance(schema[exclusive], bool):
            schema[bound], schema[exclusive] = schema[exclusive], True
    if isinstance(schema.get("enum"), list) and None in schema["enum"]:
        schema["enum"] = [word for word in schema["enum"] if word is not None]
        schema["nullable"] = True
    return schema


# -- the pages ---------------------------------------------------------------------------------------------------------

_CLIENT = files("examples") / "typed_client.py"
_ASSETS = files("drf_spectacular_sidecar") / "static" / "drf_spectacular_sidecar"
_SERVED = {
    "swagger-ui.css": ("swagger-ui-dist/swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": ("swagger-ui-dist/swagger-ui-bundle.js", "text/javascript"),
    "redoc.js": ("redoc/bundles/redoc.standalone.js", "text/javascript"),
    "favicon.png": ("swagger-ui-dist/favicon-32x32.png", "image/png"),
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SaaS LiteLLM API</title>
<link rel="icon" type="image/png" href="/docs/assets/favicon.png">
{head}
</head>
<body>{body}</body>
</html>
"""
_SWAGGER = _PAGE.format(
    head='<link rel="stylesheet" href="/docs/assets/swagger-ui.css">',
    body="""<div id="page"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", deepLinking: true, persistAuthorization: true,
                 tagsSorter: undefined, docExpansion: "none", validatorUrl: null});
</script>""",
)
_REDOC = _PAGE.format(
    head="<style>body { margin: 0 }</style>",
    body="""<div id="page"></div>
<script src="/docs/assets/redoc.js"></script>
<script>
Redoc.init("/openapi.json", {disableGoogleFont: true, hideDownloadButton: false}, document.getElementById("page"));
</script>""",
)


class OpenAPIController(Controller):
    include_in_schema = False

    @get("/openapi.json", sync_to_thread=True)
    def openapi(self) -> Response[bytes]:
        """The document, made at the first request."""
        return Response(_document_bytes(), media_type="application/json")

    @get("/docs", sync_to_thread=False)
    def swagger(self) -> Response[str]:
        return Response(_SWAGGER, media_type="text/html")

    @get("/redoc", sync_to_thread=False)
    def redoc(self) -> Response[str]:
        return Response(_REDOC, media_type="text/html")

    @get("/examples/typed_client.py", sync_to_thread=True)
    def typed_client(self) -> Response[bytes]:
        """The source of the typed client."""
        return Response(_CLIENT.read_bytes(), media_type="text/x-python")

    @get("/docs/assets/{name:str}", sync_to_thread=True)
    def asset(self, name: FromPath[str]) -> Response[bytes]:
        if name not in _SERVED:
            raise NotFoundException
        place, media_type = _SERVED[name]
        content = (_ASSETS / place).read_bytes()
        return Response(content, media_type=media_type, headers={"Cache-Control": "public, max-age=86400"})


@lru_cache(maxsize=1)
def _document_bytes() -> bytes:
    from api.app import described  # the application knows its controllers; they include this one

    return msgspec.json.encode(described())


def paths_of(openapi: Json) -> Iterator[tuple[str, str]]:
    """Every method and path of a document."""
    for path, item in openapi["paths"].items():
        for method in item:
            yield method.upper(), path
