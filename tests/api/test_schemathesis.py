"""Every operation is called as its description says, and against it: the answers are those described.

Schemathesis makes the requests from the OpenAPI document. `make test` does a few of each operation, always the same;
`make proofs` does many, and prints the seed.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import described
from tests.api.world import World, a_world

# What a provider does is not the server's fault; the aliases made here have none that would answer.
OF_PROVIDERS = {"provider_error", "provider_not_configured"}


def nothing_crashed(_: Any, response: schemathesis.Response, case: schemathesis.Case) -> bool | None:
    if response.status_code >= 500:
        refusal = response.json()
        code = refusal.get("error", refusal)["code"]  # under /v1 in the words of OpenAI
        assert code in OF_PROVIDERS, f"{response.status_code} {response.text}: {case.as_curl_command()}"
    return None


CHECKS: list[Any] = [
    nothing_crashed,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
CREDENTIALS = {"Authorization", "X-Admin-Key"}
CALLERS = ("master", "owner", "auditor", "user", "team", "stranger")
FAREWELLS = ("logout", "password", "deactivate", "suspend", "pause", "cancel", "complete", "revoke", "rotate", "status")

# The server lives in this process and may use `random` at any time.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@pytest.fixture(scope="module")
def world(owner_dsn: str, template: str) -> Iterator[World]:
    with a_world(owner_dsn, template) as world:
        yield world


@pytest.mark.timeout(240)
def test_answers_are_those_described(world: World) -> None:
    check(world, examples=3, derandomize=True)


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_answers_are_those_described_whatever_is_asked(world: World) -> None:
    # In its short form, which stands before every change, it asks the same each time; at full length always anew.
    is_short = os.environ.get("PROOFS") == "short"
    seed = 2696607405 if is_short else random.randrange(2**32)
    print(f"seed {seed}")
    check(world, examples=20 if is_short else 150, seed=seed)


def check(world: World, *, examples: int, seed: int | None = None, derandomize: bool = False) -> None:
    """Calls every operation with requests of both kinds, as everybody; says all that is wrong in the end."""
    schema = schemathesis.openapi.from_dict(described())
    session = requests.Session()
    wrong, statuses = [], Counter[int]()
    operations = sorted((found.ok() for found in schema.get_all_operations()), key=_peaceful_first)
    for operation in operations:
        asked = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in MODES))

        @settings(
            max_examples=examples,
            derandomize=derandomize,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=asked, caller=st.sampled_from(CALLERS), real=st.booleans())
        def ask(case: schemathesis.Case, caller: str, real: bool) -> None:
            if real and case.path_parameters:
                case.path_parameters.update(
                    {name: world.ids.get(name, value) for name, value in case.path_parameters.items()}
                )
            for name in CREDENTIALS & case.headers.keys():
                del case.headers[name]  # nobody gets far with what is made up
            headers = {"Authorization": f"Bearer {world.callers[caller]}"}
            answer = case.call(base_url=world.server.url, headers=headers, session=session, timeout=30)
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        try:
            (ask if seed is None else hypothesis.seed(seed)(ask))()
        except* Exception as group:  # noqa: BLE001 - whatever it is, the others shall be called too
            wrong += [f"{operation.label}: {error}" for error in group.exceptions]
    print(f"statuses: {dict(statuses)}")
    assert not wrong, "\n\n".join(wrong)


def _peaceful_first(operation: Any) -> tuple[bool, bool, bool]:
    """What ends sessions, teams and keys comes last."""
    ends = any(word in operation.path for word in FAREWELLS)
    return operation.method == "delete", ends, operation.method != "get"
