"""A client made from the OpenAPI document by a generator calls the API like one made by hand."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from api.app import described
from tests.api.conftest import Server, TestTeam, make_alias
from tests.provider import FakeProvider

NAME = "generated_saas_llm_client"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the package that openapi-python-client writes; it may find nothing to complain about."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(described()))
    (folder / "config.yml").write_text("post_hooks: []\n")
    arguments = ["--path", "openapi.json", "--config", "config.yml", "--meta", "none", "--output-path", NAME]
    command = [str(Path(sys.executable).parent / "openapi-python-client"), "generate", "--fail-on-warning", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for module in [each for each in sys.modules if each.startswith(NAME)]:
        del sys.modules[module]


def part(path: str) -> Any:
    """A module of the generated package."""
    module: ModuleType = importlib.import_module(f"{NAME}.{path}")
    return module


def client_of(server: Server, team: TestTeam) -> Any:
    return part("client").AuthenticatedClient(
        base_url=server.url, token=team.key, raise_on_unexpected_status=True, verify_ssl=False
    )


@pytest.mark.usefixtures("generated")
def test_a_generated_client_opens_asks_completes_and_looks(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    alias, models = make_alias(admin, provider), part("models")
    with client_of(server, team) as client:
        body = models.CreateJobBody(team_id=team.team_id, job_type="generated")
        job = part("api.jobs.jobs_create").sync(client=client, body=body, idempotency_key="once")
        again = part("api.jobs.jobs_create").sync(client=client, body=body, idempotency_key="once")
        assert (job.status, job.job_id) == ("pending", again.job_id)

        question = models.CallBody.from_dict({"model": alias, "messages": [{"role": "user", "content": "Hello"}]})
        answer = part("api.llm_calls.llm_calls_call").sync(job.job_id, client=client, body=question)
        assert answer.choices[0].message.content == answer.response.content == "Hello from the fake provider."

        done = models.CompleteJobBody.from_dict({"status": "completed"})
        ended = part("api.jobs.jobs_complete").sync(job.job_id, client=client, body=done)
        assert (ended.credits_remaining, ended.total_calls, ended.credit_applied) == (99, 1, True)

        balance = part("api.credits_.credits_balance").sync(client=client)
        assert balance.credits_remaining == 99
        details = part("api.jobs.jobs_details").sync(job.job_id, client=client)
        assert details.calls[0].purpose is None
        assert details.completed_at == ended.completed_at


@pytest.mark.usefixtures("generated")
def test_a_generated_client_understands_refusals(server: Server, team: TestTeam) -> None:
    models = part("models")
    with client_of(server, team) as client:
        body = models.CreateJobBody(team_id="another", job_type="generated")
        refused = part("api.jobs.jobs_create").sync(client=client, body=body)
        assert isinstance(refused, models.Error)
        assert str(refused.code) == "forbidden"

        odd = part("api.jobs.jobs_list").sync(client=client, start_date="sideways")
        assert isinstance(odd, models.ValidationError)
        assert odd.detail[0].loc == ["query", "start_date"]
