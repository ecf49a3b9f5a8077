"""The HTTP targets: durable job creation, LLM calls and what they add to the provider's time, one hot team.

    python -m bench.http [--seconds 8]

Every figure stands beside its yardstick of the same run: a bare Litestar route on the same server software, the same
provider called directly. Client, server, provider and PostgreSQL share the machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import httpx
import psutil

from bench.load import Result, load, request
from tests.proofs.house import House, a_house, make_team
from tests.waiting import free_port

QUESTION = {"messages": [{"role": "user", "content": "Say yes."}]}


@contextmanager
def _process(*command: str, url: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                httpx.get(url, timeout=1)
                break
            except httpx.TransportError:
                time.sleep(0.05)
                assert process.poll() is None, command
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def bare_route() -> Iterator[int]:
    """The bare Litestar route on Granian; gives its port."""
    port = free_port()
    arguments = ["--interface", "asgi", "--loop", "uvloop", "--no-ws", "--host", "127.0.0.1", "--port", str(port)]
    with _process("-m", "granian", *arguments, "bench.bare:app", url=f"http://127.0.0.1:{port}/"):
        yield port


@contextmanager
def a_provider() -> Iterator[int]:
    """The fake provider in a process of its own; gives its port."""
    port = free_port()
    with _process("-m", "tests.provider", "--port", str(port), url=f"http://127.0.0.1:{port}/v1/models"):
        yield port


def say(what: str, result: Result, beside: str = "") -> None:
    """One line of the table."""
    wrong = {status: n for status, n in result.statuses.items() if status != 200}
    print(
        f"{what:<44} {result.per_second:>9,.0f}/s   p50 {result.percentile_ms(50):>7.2f} ms"
        f"   p99 {result.percentile_ms(99):>7.2f} ms   {beside}{f'   NOT 200: {wrong}' if wrong else ''}",
        flush=True,
    )


def provider_alias(house: House, port: int, alias: str) -> None:
    """An alias that reaches the fake provider."""
    body = {
        "alias": alias,
        "litellm_model": "openai/gpt-ok",
        "api_base": f"http://127.0.0.1:{port}/v1",
        "api_key": "sk-of-the-bench",
        "pricing_input": 2.5,
        "pricing_output": 10,
    }
    with house.admin() as admin:
        answer = admin.post("/api/model-aliases/create", json=body)
        assert answer.status_code == 200, answer.text


def job_creation(house: House, team_id: str, key: str, seconds: float) -> None:
    body = {"team_id": team_id, "job_type": "bench"}
    ours_request = request("POST", "/api/jobs/create", key=key, body=body)
    with bare_route() as port:
        # Taken in turns, so that whatever else the machine does falls on both.
        bare = load(port, cycle([ours_request]), connections=128, seconds=seconds / 2)
        ours = load(house.port, cycle([ours_request]), connections=128, seconds=seconds)
        again = load(port, cycle([ours_request]), connections=128, seconds=seconds / 2)
    say("bare Litestar route, 128 connections", bare)
    say("bare Litestar route, again", again)
    ratio = ours.per_second / ((bare.per_second + again.per_second) / 2)
    say("durable POST /api/jobs/create, 128", ours, f"{ratio:.2f} of the bare route")
    say("durable POST /api/jobs/create, 1", load(house.port, cycle([ours_request]), connections=1, seconds=2))


def llm_calls(house: House, team_id: str, key: str, seconds: float, *, through: str = "llm-call") -> None:
    with a_provider() as port:
        provider_alias(house, port, "bench")
        direct = request("POST", "/v1/chat/completions", key="sk-of-the-bench", body={**QUESTION, "model": "gpt-ok"})
        with httpx.Client(base_url=house.url, headers={"Authorization": f"Bearer {key}"}) as client:
            body = {"team_id": team_id, "job_type": "bench"}
            jobs = [client.post("/api/jobs/create", json=body).json()["job_id"] for _ in range(2000)]
        paths = cycle(
            request("POST", f"/api/jobs/{job}/llm-call", key=key, body={**QUESTION, "model": "bench"}) for job in jobs
        )
        load(house.port, paths, connections=4, seconds=1)
        memory(house, f"after a second of {through}")
        alone = load(port, cycle([direct]), connections=1, seconds=seconds / 2)
        one = load(house.port, paths, connections=1, seconds=seconds / 2)
        many_alone = load(port, cycle([direct]), connections=32, seconds=seconds / 2)
        many = load(house.port, paths, connections=32, seconds=seconds)
    added = one.percentile_ms(50) - alone.percentile_ms(50)
    say("provider directly, 1 connection", alone)
    say(f"{through}, 1 connection", one, f"adds {added:.2f} ms at p50")
    say("provider directly, 32 connections", many_alone)
    say(f"{through}, 32 connections", many, f"{many.per_second / many_alone.per_second:.2f} of the provider alone")


def hot_team(house: House, team_id: str, key: str) -> None:
    with httpx.Client(base_url=house.url, headers={"Authorization": f"Bearer {key}"}) as client:
        body = {"team_id": team_id, "job_type": "bench"}
        before = client.get("/api/credits/balance").json()
        jobs = [client.post("/api/jobs/create", json=body).json()["job_id"] for _ in range(5000)]
        ends = (request("POST", f"/api/jobs/{job}/complete", key=key, body={"status": "completed"}) for job in jobs)
        result = load(house.port, ends, connections=1000)
        after = client.get("/api/credits/balance").json()
    charged = before["credits_remaining"] - after["credits_remaining"]
    say("completions of one team, 1,000 at once", result, f"{len(jobs):,} jobs, {charged:,} credits charged")
    assert charged == len(jobs)


def memory(house: House, when: str) -> None:
    assert house.process is not None
    for worker in psutil.Process(house.process.pid).children():
        print(f"{f'worker, {when}':<44} {worker.memory_info().rss / 1e6:>9,.0f} MB", flush=True)


def start_up(data_dir: Path) -> None:
    """Start to healthy, database initialised."""
    house = House(data_dir)
    started = time.perf_counter()
    house.start()
    print(f"{'start to ready, database initialised':<44} {time.perf_counter() - started:>9.2f} s", flush=True)
    house.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data_dir = Path(folder) / "lean"
        data_dir.mkdir()
        with a_house(data_dir) as house:
            memory(house, "fresh")
            team_id, key = make_team(house, credits=10_000_000)
            job_creation(house, team_id, key, seconds)
            llm_calls(house, team_id, key, seconds)
            hot_team(house, team_id, key)
            memory(house, "after all of this")
        start_up(data_dir)
        through_litellm = Path(folder) / "litellm"
        through_litellm.mkdir()
        with a_house(through_litellm, LLM_TRANSPORT="litellm") as house:
            team_id, key = make_team(house, credits=10_000_000)
            llm_calls(house, team_id, key, seconds, through="llm-call through LiteLLM")
            memory(house, "after all of this")


if __name__ == "__main__":
    main()
