"""The example programs, each as a process of its own, as a reader would start it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import Server, TestTeam, make_alias
from tests.api.world import World
from tests.provider import FakeProvider
from tests.waiting import PATIENCE_SECONDS, free_port

ROOT = Path(__file__).parents[2]


def play(name: str, server: Server, team: TestTeam, *arguments: str, model: str) -> str:
    """Run an example to its end; what it prints."""
    settings = {"API_URL": server.url, "TEAM_ID": team.team_id, "VIRTUAL_KEY": team.key, "MODEL": model}
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_basic_asks_and_says_what_it_cost(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    said = play("basic", server, team, model=make_alias(admin, provider))
    assert "Hello from the fake provider.\n" in said
    assert said.endswith(": 1 call, 99 credits remaining\n")


def test_basic_ends_its_job_when_there_are_no_credits(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    assert admin.put(f"/api/teams/{team.team_id}", json={"credits_allocated": 0}).status_code == 200
    with pytest.raises(AssertionError, match="InsufficientCredits"):
        play("basic", server, team, model=make_alias(admin, provider))
    (job,) = team.client.get("/api/jobs").json()["jobs"]
    assert (job["status"], job["error_message"]) == ("failed", "insufficient_credits")


def test_streaming_shows_text_and_then_its_tokens(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    said = play("streaming", server, team, model=make_alias(admin, provider, "stream-5-1"))
    assert said == "w0 w1 w2 w3 w4 \n10 tokens\n"


def test_structured_output_finds_the_person(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    about = '{"name": "Ada", "age": 36, "interests": ["horses", "harps"]}'
    said = play("structured_output", server, team, about, model=make_alias(admin, provider, "echo"))
    assert said == "Ada is 36 and likes horses, harps\n"
    assert provider.last.body["response_format"]["json_schema"]["name"] == "Person"


def test_the_agent_uses_its_tool_and_is_charged_once(
    server: Server, admin: httpx.Client, provider: FakeProvider, team: TestTeam
) -> None:
    said = play("agent_with_tools", server, team, model=make_alias(admin, provider, "agent"))
    assert said.splitlines() == [
        'weather({"city": "Oslo"}) -> 12 degrees and rain in Oslo',
        "Hello from the fake provider.",
        "2 calls, 1 credit charged",
    ]


@contextmanager
def receiving(port: int, secret: str) -> Iterator[subprocess.Popen[str]]:
    settings = {"WEBHOOK_SECRET": secret, "PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "-m", "examples.webhook_receiver"],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
    ) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == f"listening on port {port}\n"
        try:
            yield receiver
        finally:
            receiver.terminate()


def test_the_webhook_receiver_believes_what_is_signed(world: World) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    registration = {"team_id": world.stranger.team_id, "webhook_url": url, "events": ["job.cancelled"]}
    webhook = world.stranger.client.post("/api/webhooks/register", json=registration)
    assert webhook.status_code == 201, webhook.text
    with receiving(port, webhook.json()["secret"]) as receiver:
        job_id = world.stranger.job()
        assert world.stranger.client.post(f"/api/jobs/{job_id}/cancel").status_code == 200
        assert receiver.stdout is not None
        assert receiver.stdout.readline().startswith(f'job.cancelled: job {job_id}, {{"total_calls": 0')
        forged = {"webhook-id": "msg_1", "webhook-signature": "v1,AAAA"}
        answer = httpx.post(url, content=b"{}", headers=forged, verify=False)
        assert answer.status_code == 401
