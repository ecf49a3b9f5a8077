"""The OpenAPI document: whole, valid, in step with what is served, and good enough for tools."""

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft7Validator
from litestar import Litestar
from litestar.routes import HTTPRoute
from openapi_spec_validator import validate

from api.app import CONTROLLERS, SURROUNDINGS, described
from api.chat_completions import in_openai_words
from api.openapi import CALLERS, TAGS, Json, operations_of
from api.problems import PROBLEMS
from api.request_examples import EXAMPLES
from api.tables import MEDIA_TYPES
from tests.api.test_mistakes import query_of
from tests.api.world import World

COMMITTED = Path(__file__).parents[2] / "openapi.json"
NOT_DESCRIBED = {("GET", "/docs/assets/{name}")}  # what the two pages are made of


@pytest.fixture(scope="module")
def document() -> Json:
    return described()


def test_the_document_is_valid_3_0(document: Json) -> None:
    validate(document)
    assert document["openapi"].startswith("3.0.")


def test_the_committed_document_is_the_present_one(document: Json) -> None:
    """If this fails: `make openapi`, and look at the diff."""
    assert document == json.loads(COMMITTED.read_text())


def test_the_server_serves_the_document(document: Json, admin: httpx.Client) -> None:
    answer = admin.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert document == answer.json()


def test_whoever_asks_for_the_document_leaves_the_log_as_it_is(document: Json) -> None:
    """Its lines are one JSON object each and hide secrets, whatever the framework thinks that a log should be."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    assert document == described()
    assert (handlers, level) == (root.handlers, root.level)


def test_every_route_is_described(document: Json) -> None:
    app = Litestar(list(CONTROLLERS), openapi_config=None, logging_config=None, **SURROUNDINGS)
    served = {
        (method, route.path_format)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for method in route.methods - {"OPTIONS"}
    }
    assert served - NOT_DESCRIBED == {(method, path) for method, path, _ in operations_of(document)}


def test_every_operation_has_a_name_a_title_a_category_and_a_caller(document: Json) -> None:
    names = [operation["operationId"] for _, _, operation in operations_of(document)]
    assert len(names) == len(set(names))
    for _, path, operation in operations_of(document):
        assert operation["operationId"].isidentifier(), path
        assert 3 < len(operation["summary"]) <= 120, path
        assert operation["tags"][0] in TAGS, path
        assert operation["x-caller"] in CALLERS, path


def test_categories_come_in_their_order_and_all_are_used(document: Json) -> None:
    assert [tag["name"] for tag in document["tags"]] == list(TAGS)
    assert set(TAGS) == {operation["tags"][0] for _, _, operation in operations_of(document)}


def test_no_parameter_comes_twice_and_all_of_the_path_are_there(document: Json) -> None:
    for _, path, operation in operations_of(document):
        found = [(each["in"], each["name"]) for each in operation.get("parameters", [])]
        assert len(found) == len(set(found)), path
        assert path.count("{") == len([name for place, name in found if place == "path"]), path


def test_every_post_takes_an_idempotency_key(document: Json) -> None:
    for method, path, operation in operations_of(document):
        names = {each["name"] for each in operation.get("parameters", [])}
        assert ("Idempotency-Key" in names) == (method == "POST"), path


def test_a_parameter_of_few_words_names_them_and_takes_them_in_any_letter_case(world: World, document: Json) -> None:
    owner = world.server.client(world.callers["owner"])
    for method, path, operation in operations_of(document):
        for parameter in operation.get("parameters", []) if method == "GET" else []:
            if parameter["in"] != "query" or parameter["name"] == "group_by":  # which takes several
                continue
            words = parameter["schema"].get("enum", [])
            for word in [*words, "no-such-word"]:
                query = {**query_of(world, operation), parameter["name"]: word.upper()}
                answer = owner.get(world.path(path), params=query)
                is_refused = answer.status_code == 422 and "value_error.enum" in answer.text
                assert is_refused == (bool(words) and word not in words), (path, query, answer.text)


def test_fields_of_few_words_name_them(document: Json) -> None:
    few = {"budget_mode", "charge_policy", "refill_period", "payment_type", "role"}
    for name, schema in document["components"]["schemas"].items():
        for field in few & schema.get("properties", {}).keys() if name.endswith("Body") else ():
            assert schema["properties"][field].get("enum"), (name, field)


def test_creations_are_200_but_for_two(document: Json) -> None:
    created = {path for _, path, operation in operations_of(document) if "201" in operation["responses"]}
    assert created == {"/api/webhooks/register", "/api/provider-credentials/create"}


def test_streams_are_described_as_server_sent_events(document: Json) -> None:
    for _, path, operation in operations_of(document):
        if path.endswith("-stream"):
            assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"], path


def test_every_format_is_described(document: Json) -> None:
    for path, kinds in {
        "/api/reports/costs": {"application/json", "text/csv", "application/x-ndjson"},
        "/api/reports/statements/{team_id}/{period}": set(MEDIA_TYPES.values()),
        "/api/audit/events": {"application/json", "application/x-ndjson"},
        "/v1/chat/completions": {"application/json", "text/event-stream"},
    }.items():
        (operation,) = document["paths"][path].values()
        assert kinds == operation["responses"]["200"]["content"].keys(), path


def test_every_error_is_described_with_its_codes(document: Json) -> None:
    for status in {problem.status for problem in PROBLEMS.values()}:
        answer = document["components"]["responses"][str(status)]
        for code, problem in PROBLEMS.items():
            if problem.status == status:
                assert code in answer["description"]


def test_the_example_of_an_error_is_one_of_its_status(document: Json) -> None:
    for status in {problem.status for problem in PROBLEMS.values()}:
        ours, openais = (
            document["components"]["responses"][f"{prefix}{status}"]["content"]["application/json"]["example"]
            for prefix in ("", "openai-")
        )
        assert status == PROBLEMS[ours["code"]].status
        assert in_openai_words(ours, status) == openais
        if status != 422:
            assert PROBLEMS[ours["code"]].detail == ours["detail"]


def test_open_routes_ask_for_nothing_and_sessions_for_a_token(document: Json) -> None:
    for _, path, operation in operations_of(document):
        match operation["x-caller"]:
            case "anybody":
                assert operation["security"] == [], path
            case "person":
                assert operation["security"] == [{"bearerAuth": []}], path


def test_examples_of_bodies_are_what_their_schemas_say(document: Json) -> None:
    schemas = document["components"]["schemas"]
    for name, example in EXAMPLES.items():
        assert schemas[name]["example"] == example
        schema = {**schemas[name], "components": document["components"]}
        assert [] == [error.message for error in Draft7Validator(_plain(schema)).iter_errors(example)], name


def test_every_body_has_an_example(document: Json) -> None:
    for _, path, operation in operations_of(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert _names_in(content["schema"]) & EXAMPLES.keys(), path


def test_ids_and_times_keep_their_format(document: Json) -> None:
    job = document["components"]["schemas"]["JobAnswer"]["properties"]
    assert (job["job_id"]["format"], job["created_at"]["format"]) == ("uuid", "date-time")
    assert job["completed_at"] == {"type": "string", "format": "date-time", "nullable": True}


def test_bounds_are_told_also_where_they_are_zero(document: Json) -> None:
    schemas = document["components"]["schemas"]
    credits = schemas["CreateTeamBody"]["properties"]["credits_allocated"]
    assert ("integer", 0, 10**12) == (credits["type"], credits["minimum"], credits["maximum"])
    for field, most in (("temperature", 2), ("top_p", 1)):
        chosen = schemas["CallBody"]["properties"][field]
        assert ("number", 0, most) == (chosen["type"], chosen["minimum"], chosen["maximum"])


def test_nothing_of_3_1_is_left(document: Json) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            assert not isinstance(node.get("type"), list), node
            assert node.get("type") != "null", node
            assert "const" not in node, node
            for each in node.values():
                walk(each)
        elif isinstance(node, list):
            for each in node:
                walk(each)

    walk(document["paths"])
    walk(document["components"]["responses"])
    walk({name: {**schema, "example": None} for name, schema in document["components"]["schemas"].items()})


def _names_in(schema: Json) -> set[str]:
    found = {schema["$ref"].rpartition("/")[2]} if "$ref" in schema else set()
    options = [*schema.get("oneOf", []), *schema.get("anyOf", []), *schema.get("allOf", [])]
    return found.union(*(_names_in(option) for option in options))


def _plain(node: Any) -> Any:
    """The schema as JSON Schema has it: nullable is a type."""
    if isinstance(node, dict):
        plain = {key: _plain(value) for key, value in node.items() if key != "nullable"}
        return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain
    return [_plain(each) for each in node] if isinstance(node, list) else node
