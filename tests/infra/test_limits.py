"""Rate limits: the same story on the embedded store and on a real Redis, then what happens when Redis is away."""

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
import redis
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import metrics
from infra.limits import TIMEOUT_S, Allowance, Limits, _Embedded
from tests.hearing import heard
from tests.redis_server import RedisServer, answers
from tests.waiting import PATIENCE_SECONDS, eventually, free_port, until

T = TypeVar("T")
Story = Callable[[Limits], Awaitable[T]]

NOON = 1_700_000_000.0
PREFIX = f"test-{uuid.uuid4().hex}:"
FOR_EVER = -1  # Redis says so


@pytest.fixture(scope="module")
def real_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Redis that is there anyway, or one of our own; either is left as it was found."""
    own = None
    url = os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0"
    if not answers(url):
        if not shutil.which("redis-server"):
            pytest.skip("no Redis answers and no redis-server to start")
        own = RedisServer(tmp_path_factory.mktemp("redis"))
        own.start()
        url = own.url
    try:
        yield url
    finally:
        if own:
            own.kill()
        else:
            with redis.Redis.from_url(url) as client:
                for key in client.scan_iter(match=f"{PREFIX}*"):
                    client.delete(key)


@pytest.fixture(params=["embedded", "redis"])
def store(request: pytest.FixtureRequest) -> str | None:
    """The address for both stores: None, or a real Redis."""
    return None if request.param == "embedded" else str(request.getfixturevalue("real_redis"))


def tell(url: str | None, story: Story[T], *, workers: int = 1, timeout_s: float = PATIENCE_SECONDS) -> T:
    """Tells a story; with a time-out only if it is about one."""

    async def whole_story() -> T:
        prefix = f"{PREFIX}{uuid.uuid4().hex}:"
        limits = Limits(url, workers=workers, prefix=prefix, timeout_s=timeout_s, clock=lambda: NOON)
        try:
            return await story(limits)
        finally:
            await limits.close()

    return asyncio.run(whole_story())


async def take(limits: Limits, after_s: float = 0, *, rpm: int = 0, tpm: int = 0, tokens: int = 0) -> Allowance:
    return await limits.take("acme", rpm_limit=rpm, tpm_limit=tpm, tokens=tokens, now=NOON + after_s)


def test_the_request_above_the_limit_is_refused_and_told_when_to_come_back(store: str | None) -> None:
    async def story(limits: Limits) -> list[Allowance]:
        return [await take(limits, after, rpm=2) for after in (0, 20, 30)]

    first, second, third = tell(store, story)

    assert (first.allowed, second.allowed, third.allowed) == (True, True, False)
    assert (third.limit, third.retry_after_s) == ("requests", 30)
    assert third.ticket is None


def test_a_place_is_free_again_sixty_seconds_after_it_was_taken(store: str | None) -> None:
    async def story(limits: Limits) -> list[bool]:
        return [(await take(limits, after, rpm=1)).allowed for after in (0, 59.999, 60, 119.999, 120)]

    assert tell(store, story) == [True, False, True, False, True]


def test_a_refused_call_takes_nothing(store: str | None) -> None:
    async def story(limits: Limits) -> tuple[list[str | None], dict[str, str]]:
        refused = [await take(limits, 1, rpm=5, tpm=100, tokens=tokens) for tokens in (90, 20, 20, 20)]
        last = await take(limits, 2, rpm=5, tpm=100, tokens=10)
        return [each.limit for each in refused], last.headers

    refusals, headers = tell(store, story)

    assert refusals == [None, "tokens", "tokens", "tokens"]
    assert headers["x-ratelimit-remaining-requests"] == "3"
    assert headers["x-ratelimit-remaining-tokens"] == "0"


def test_the_headers_say_limit_remaining_and_reset_of_both_kinds(store: str | None) -> None:
    async def story(limits: Limits) -> dict[str, str]:
        await take(limits, 0, rpm=10, tpm=1000, tokens=300)
        return (await take(limits, 47.5, rpm=10, tpm=1000, tokens=200)).headers

    assert tell(store, story) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "8",
        "x-ratelimit-reset-requests": "60s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "60s",
    }


def test_a_refusal_carries_the_headers_with_a_fraction_of_a_second(store: str | None) -> None:
    async def story(limits: Limits) -> Allowance:
        await take(limits, 0, rpm=1)
        return await take(limits, 47.5, rpm=1)

    refused = tell(store, story)

    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == "12.5s"
    assert refused.retry_after_s == 13


def test_an_unlimited_kind_has_no_headers_and_refuses_nothing(store: str | None) -> None:
    async def story(limits: Limits) -> list[Allowance]:
        return [
            await take(limits, rpm=0, tpm=100, tokens=100),
            await take(limits, rpm=5, tpm=0, tokens=10**30),
            await take(limits, rpm=0, tpm=0, tokens=10**30),
        ]

    tokens_only, requests_only, neither = tell(store, story)

    assert {name.rpartition("-")[2] for name in tokens_only.headers} == {"tokens"}
    assert {name.rpartition("-")[2] for name in requests_only.headers} == {"requests"}
    assert (neither.allowed, neither.headers) == (True, {})


def test_one_call_bigger_than_the_limit_passes_an_empty_window_and_fills_it(store: str | None) -> None:
    async def story(limits: Limits) -> list[str | None]:
        return [(await take(limits, tpm=100, tokens=tokens)).limit for tokens in (5_000, 1)]

    assert tell(store, story) == [None, "tokens"]


def test_a_body_too_broken_to_estimate_is_checked_against_requests_only(store: str | None) -> None:
    async def story(limits: Limits) -> list[str | None]:
        return [(await take(limits, rpm=2, tpm=100, tokens=tokens)).limit for tokens in (100, 0, 0)]

    assert tell(store, story) == [None, None, "requests"]


@pytest.mark.parametrize("actual, remaining", [(10, 89), (0, 99), (40, 59), (70, 29), (500, 0)])
def test_an_estimate_is_corrected_to_the_real_number(store: str | None, actual: int, remaining: int) -> None:
    async def story(limits: Limits) -> str:
        call = await take(limits, 0, rpm=10, tpm=100, tokens=40)
        await limits.settle(call.ticket, actual, now=NOON + 5)
        after = await take(limits, 6, rpm=10, tpm=100, tokens=1)
        return after.headers["x-ratelimit-remaining-tokens"]

    assert int(tell(store, story)) == remaining


def test_giving_tokens_back_keeps_the_request_counted(store: str | None) -> None:
    async def story(limits: Limits) -> dict[str, str]:
        call = await take(limits, 0, rpm=10, tpm=100, tokens=40)
        await limits.settle(call.ticket, 0)
        return (await take(limits, 6, rpm=10, tpm=100, tokens=0)).headers

    headers = tell(store, story)

    assert headers["x-ratelimit-remaining-requests"] == "8"
    assert headers["x-ratelimit-remaining-tokens"] == "100"
    assert headers["x-ratelimit-reset-tokens"] == "0s"


def test_a_ticket_is_settled_once(store: str | None) -> None:
    async def story(limits: Limits) -> str:
        call = await take(limits, 0, tpm=100, tokens=40)
        for actual in (60, 0, 100):
            await limits.settle(call.ticket, actual)
        return (await take(limits, 1, tpm=100, tokens=1)).headers["x-ratelimit-remaining-tokens"]

    assert tell(store, story) == "39"


def test_a_correction_lands_where_its_estimate_stands_among_others(store: str | None) -> None:
    async def story(limits: Limits) -> list[bool]:
        calls = [await take(limits, after, tpm=100, tokens=10) for after in (0, 10, 20)]
        await limits.settle(calls[1].ticket, 80, now=NOON + 30)
        return [(await take(limits, after, tpm=100, tokens=81)).allowed for after in (69.9, 70)]

    assert tell(store, story) == [False, True]


def test_an_excess_that_shows_itself_late_counts_when_it_does(store: str | None) -> None:
    async def story(limits: Limits) -> list[bool]:
        slow = await take(limits, 0, tpm=100, tokens=10)
        await limits.settle(slow.ticket, 100, now=NOON + 90)
        return [(await take(limits, after, tpm=100, tokens=20)).allowed for after in (91, 149.9, 150)]

    assert tell(store, story) == [False, False, True]


def test_an_estimate_that_was_too_high_is_not_given_back_after_it_has_left(store: str | None) -> None:
    async def story(limits: Limits) -> str:
        slow = await take(limits, 0, tpm=100, tokens=50)
        await take(limits, 70, tpm=100, tokens=60)
        await limits.settle(slow.ticket, 1, now=NOON + 90)
        return (await take(limits, 91, tpm=100, tokens=1)).headers["x-ratelimit-remaining-tokens"]

    assert tell(store, story) == "39"


def test_teams_do_not_share_a_window(store: str | None) -> None:
    async def story(limits: Limits) -> list[bool]:
        teams = ("a", "a", "b", "ü/%*", "ü/%*")
        taken = [await limits.take(team, rpm_limit=1, tpm_limit=0, tokens=0) for team in teams]
        return [each.allowed for each in taken]

    assert tell(store, story) == [True, False, True, True, False]


def test_a_lower_limit_applies_at_once(store: str | None) -> None:
    async def story(limits: Limits) -> list[bool]:
        return [(await take(limits, rpm=rpm)).allowed for rpm in (5, 5, 5, 3, 4)]

    assert tell(store, story) == [True, True, True, False, True]


def test_a_clock_a_little_behind_forgets_nothing_and_a_mad_one_does_not_block_for_long(
    store: str | None,
) -> None:
    async def story(limits: Limits) -> list[bool]:
        behind = [(await take(limits, after, rpm=2)).allowed for after in (10, 7.5, 9, 69.9, 70)]
        await take(limits, 36_000, rpm=2)
        await take(limits, 36_000, rpm=2)
        return [*behind, (await take(limits, 200, rpm=2)).allowed]

    assert tell(store, story) == [True, True, False, False, True, True]


def test_huge_numbers_are_counted(store: str | None) -> None:
    async def story(limits: Limits) -> list[Allowance]:
        call = await take(limits, rpm=10**12, tpm=10**12, tokens=10**30)
        await limits.settle(call.ticket, 10**30)
        return [call, await take(limits, rpm=10**12, tpm=10**12, tokens=1)]

    first, second = tell(store, story)

    assert (first.allowed, second.limit) == (True, "tokens")
    assert first.headers["x-ratelimit-remaining-requests"] == "999999999999"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 60)), min_size=1, max_size=60),
    st.integers(1, 12),
    st.integers(20, 200),
)
def test_no_sixty_seconds_see_more_than_the_limit_nor_much_less(
    steps: list[tuple[int, int]], rpm: int, tpm: int
) -> None:
    """Against the exact list of all calls: never above the limit, at most a second later than necessary."""

    async def story(limits: Limits) -> None:
        passed: list[tuple[int, int]] = []
        at_ms = int(NOON * 1000)

        def sums(window_ms: int) -> tuple[int, int]:
            inside = [tokens for at, tokens in passed if at > at_ms - window_ms]
            return len(inside), sum(inside)

        for pause_ms, tokens in steps:
            at_ms += pause_ms
            wanted = min(tokens, tpm)
            answer = await limits.take("acme", rpm_limit=rpm, tpm_limit=tpm, tokens=tokens, now=at_ms / 1000 + 1e-5)
            if answer.allowed:
                passed.append((at_ms, wanted))
                assert sums(60_000)[0] <= rpm
                assert sums(60_000)[1] <= tpm
            else:
                requests, used = sums(61_000)
                assert requests + 1 > rpm if answer.limit == "requests" else used + wanted > tpm
                assert 1 <= answer.retry_after_s <= 60

    tell(None, story)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(-1_500, 25_000), st.integers(0, 80), st.none() | st.integers(0, 120)),
        min_size=1,
        max_size=30,
    )
)
def test_both_stores_answer_alike(real_redis: str, steps: list[tuple[int, int, int | None]]) -> None:
    """Takes and late corrections, clocks that go back a little included."""

    async def story(limits: Limits) -> list[tuple[object, ...]]:
        seen: list[tuple[object, ...]] = []
        at_s = 0.0
        unsettled: list[Allowance] = []
        for pause_ms, tokens, actual in steps:
            at_s += pause_ms / 1000
            if actual is not None and unsettled:
                await limits.settle(unsettled.pop(0).ticket, actual, now=NOON + at_s)
            answer = await take(limits, at_s, rpm=6, tpm=200, tokens=tokens)
            unsettled.append(answer)
            seen.append((answer.allowed, answer.limit, answer.retry_after_s, answer.headers))
        return seen

    assert tell(None, story) == tell(real_redis, story)


def test_who_waits_as_told_passes(store: str | None) -> None:
    async def story(limits: Limits) -> list[bool]:
        passed, now = [], 0.0
        for step in range(40):
            answer = await take(limits, now, rpm=3, tpm=100, tokens=7 * step % 50 + 1)
            if not answer.allowed:
                now += answer.retry_after_s
                passed.append((await take(limits, now, rpm=3, tpm=100, tokens=7 * step % 50 + 1)).allowed)
            now += 1.7
        return passed

    passed = tell(store, story)

    assert passed
    assert all(passed)


def test_a_rejection_is_metered_by_its_kind() -> None:
    def rejected() -> float:
        return metrics.registry.get_sample_value("saas_limit_rejections_total", {"limit": "requests"}) or 0.0

    async def story(limits: Limits) -> None:
        await take(limits, rpm=1)
        await take(limits, rpm=1)

    before = rejected()
    tell(None, story)

    assert rejected() == before + 1


def test_many_at_once_in_one_process_never_exceed_the_limit(store: str | None) -> None:
    async def story(limits: Limits) -> int:
        answers = await asyncio.gather(*(take(limits, rpm=37) for _ in range(200)))
        return sum(answer.allowed for answer in answers)

    assert tell(store, story) == 37


CONTENDER = """
import asyncio, sys
from infra.limits import Limits

async def main():
    limits = Limits(sys.argv[1], prefix=sys.argv[2], timeout_s=60)
    takes = (limits.take("acme", rpm_limit=53, tpm_limit=0, tokens=0) for _ in range(50))
    print(sum(answer.allowed for answer in await asyncio.gather(*takes)))
    await limits.close()

asyncio.run(main())
"""


def test_four_processes_together_never_exceed_the_limit(real_redis: str) -> None:
    command = [sys.executable, "-c", CONTENDER, real_redis, f"{PREFIX}{uuid.uuid4().hex}:"]

    contenders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    allowed = [int(contender.communicate(timeout=PATIENCE_SECONDS)[0]) for contender in contenders]

    assert sum(allowed) == 53


def test_nothing_is_left_in_redis_for_ever(real_redis: str) -> None:
    prefix = f"{PREFIX}{uuid.uuid4().hex}:"

    async def story() -> None:
        limits = Limits(real_redis, prefix=prefix, timeout_s=PATIENCE_SECONDS)
        await limits.take("acme", rpm_limit=1, tpm_limit=1, tokens=1)
        await limits.attempt("ada@example.com 127.0.0.1")
        await limits.ping()
        await limits.close()

    asyncio.run(story())

    with redis.Redis.from_url(real_redis) as client:
        keys = list(client.scan_iter(match=f"{prefix}*"))
        assert len(keys) in (2, 3), "what a ping leaves behind is gone after two seconds"
        assert all(client.pttl(key) <= 1_800_000 for key in keys)
        assert not any(client.pttl(key) == FOR_EVER for key in keys)
        assert not any(b"ada" in key for key in keys)


# Failed logins


def test_the_eleventh_attempt_in_fifteen_minutes_is_refused_until_the_first_is_old(store: str | None) -> None:
    async def story(limits: Limits) -> list[Allowance]:
        return [await limits.attempt("ada", now=NOON + after) for after in [*range(10), 100, 899, 900]]

    *first_ten, eleventh, twelfth, later = tell(store, story)

    assert all(each.allowed for each in first_ten)
    assert (eleventh.allowed, eleventh.limit) == (False, None)
    assert 800 <= eleventh.retry_after_s <= 815
    assert not twelfth.allowed
    assert not later.allowed, "a bucket is 15 s wide here and leaves with its last attempt"


def test_a_throttled_login_opens_again(store: str | None) -> None:
    async def story(limits: Limits) -> bool:
        for after in range(11):
            await limits.attempt("ada", now=NOON + after)
        return (await limits.attempt("ada", now=NOON + 10 + 900)).allowed

    assert tell(store, story)


def test_a_success_forgives_the_failures_before_it(store: str | None) -> None:
    async def story(limits: Limits) -> list[bool]:
        for _ in range(9):
            await limits.attempt("ada")
        await limits.forgive("ada")
        return [(await limits.attempt("ada")).allowed for _ in range(11)]

    assert tell(store, story) == [True] * 10 + [False]


def test_an_attempt_that_nobody_judged_is_withdrawn_once_and_the_others_stay(store: str | None) -> None:
    async def story(limits: Limits) -> list[bool]:
        for after in range(9):
            await limits.attempt("ada", now=NOON + after)
        unjudged = await limits.attempt("ada", now=NOON + 9)
        refused = await limits.attempt("ada", now=NOON + 10)
        for ticket in (unjudged.ticket, unjudged.ticket, refused.ticket):
            await limits.withdraw(ticket, now=NOON + 20)
        return [(await limits.attempt("ada", now=NOON + 30)).allowed for _ in range(2)]

    assert tell(store, story) == [True, False]


def test_a_hundred_logins_at_once_get_ten_tries(store: str | None) -> None:
    async def story(limits: Limits) -> int:
        tries = await asyncio.gather(*(limits.attempt("ada") for _ in range(100)))
        return sum(each.allowed for each in tries)

    assert tell(store, story) == 10


def test_one_address_does_not_lock_out_another(store: str | None) -> None:
    async def story(limits: Limits) -> bool:
        for _ in range(20):
            await limits.attempt("ada 10.0.0.1")
        return (await limits.attempt("ada 10.0.0.2")).allowed

    assert tell(store, story)


# Without a shared Redis


def test_workers_without_a_shared_redis_take_their_share_and_say_so_once() -> None:
    async def story(limits: Limits) -> tuple[list[bool], str, bool]:
        taken = [await take(limits, rpm=10) for _ in range(4)]
        tiny = await limits.take("tiny", rpm_limit=1, tpm_limit=0, tokens=0)
        return [each.allowed for each in taken], taken[0].headers["x-ratelimit-limit-requests"], tiny.allowed

    with heard() as logs:
        taken, limit, tiny = tell(None, story, workers=4)

    assert (taken, limit, tiny) == ([True, True, False, False], "2", True)
    assert [entry["event"] for entry in logs] == ["limits.divided"]


def test_the_embedded_store_is_ok() -> None:
    assert tell(None, lambda limits: limits.ping()) == "ok"


def test_the_embedded_store_forgets_what_has_expired() -> None:
    async def story() -> int:
        clock = itertools.count(step=10)
        store = _Embedded(monotonic=lambda: next(clock))
        for number in range(500):
            await store.run(f"made up {number}", 1_000_000, 900_000, 0, 1, 0, 10, 0)
        await store.close()
        return len(store._expiries)

    assert asyncio.run(story()) < 200


# Redis away


def gauge() -> float | None:
    return metrics.registry.get_sample_value("saas_limits_degraded")


def test_redis_killed_limits_go_on_here_and_redis_back_they_are_shared_again(own_redis: RedisServer) -> None:
    async def story(limits: Limits) -> tuple[list[bool], list[object]]:
        seen: list[object] = [await limits.ping(), gauge()]
        shared = await take(limits, rpm=2, tpm=100, tokens=30)
        own_redis.kill()
        here = [(await take(limits, rpm=2)).allowed for _ in range(4)]
        await limits.settle(shared.ticket, 90)
        seen += [await limits.ping(), gauge()]

        own_redis.start()

        async def recovered() -> bool:
            return await limits.ping() == "ok"

        await eventually(recovered)
        seen.append(gauge())
        # The new server knows nothing of the old one's windows, and the script is loaded again.
        return here, [*seen, (await take(limits, rpm=1)).allowed, (await take(limits, rpm=1)).allowed]

    with heard() as logs:
        here, seen = tell(own_redis.url, story)

    assert here == [True, True, False, False]
    assert seen == ["ok", 0, "degraded", 1, 0, True, False]
    assert [entry["event"] for entry in logs] == ["limits.degraded", "limits.recovered"]


def test_a_redis_that_hangs_costs_one_time_out_not_one_for_each_request(own_redis: RedisServer) -> None:
    async def story(limits: Limits) -> tuple[int, int]:
        await take(limits, rpm=1000)
        assert limits._shared is not None
        limits._shared._timeout_s = TIMEOUT_S  # not before: a Redis that is only slow is another story
        own_redis.freeze()
        try:
            together = await asyncio.gather(*(take(limits, rpm=50) for _ in range(200)))
            one_by_one = [await take(limits, 30, rpm=100) for _ in range(200)]
        finally:
            own_redis.thaw()
        return sum(each.allowed for each in together), sum(each.allowed for each in one_by_one)

    with heard() as logs:
        assert tell(own_redis.url, story) == (50, 50)

    assert [entry["event"] for entry in logs].count("limits.degraded") == 1


def be_busy(seconds: float) -> None:
    """Hold up the event loop, as a long computation would."""
    time.sleep(seconds)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("busy_before_s, busy_after_s", [(0, 0.4), (0.26, 0), (0.4, 0)])
def test_a_process_that_was_busy_does_not_blame_redis(
    real_redis: str, run: Callable[[Awaitable[bool]], bool], busy_before_s: float, busy_after_s: float
) -> None:
    async def story() -> bool:
        limits = Limits(real_redis, prefix=f"{PREFIX}{uuid.uuid4().hex}:")
        await take(limits, rpm=10)
        be_busy(busy_before_s)
        asking = asyncio.create_task(take(limits, rpm=10))
        await asyncio.sleep(0)
        be_busy(busy_after_s)
        allowance, health = await asking, await limits.ping()
        await limits.close()
        return allowance.allowed and health == "ok"

    def blames_nobody() -> bool:
        with heard() as logs:
            return run(story()) and logs == []

    # On a busy machine a Redis may be late indeed; who blames it for what it has not done does so every time.
    until(blames_nobody)


def test_a_redis_that_refuses_to_write_counts_as_away(own_redis: RedisServer) -> None:
    async def story(limits: Limits) -> list[object]:
        with redis.Redis.from_url(own_redis.url) as client:
            client.replicaof("127.0.0.1", str(free_port()))
            during = [(await take(limits, rpm=1)).allowed for _ in range(2)]
            state = await limits.ping()
            client.replicaof("NO", "ONE")

        async def recovered() -> bool:
            return await limits.ping() == "ok"

        await eventually(recovered)
        return [*during, state, (await take(limits, rpm=1)).allowed]

    with heard():
        assert tell(own_redis.url, story) == [True, False, "degraded", True]


def test_a_black_hole_is_no_reason_for_an_error() -> None:
    # The kernel completes the connection, nobody ever reads or answers.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as hole, heard() as logs:

        async def story(limits: Limits) -> list[object]:
            call = await take(limits, rpm=1, tpm=10, tokens=5)
            await limits.settle(call.ticket, 1)
            await limits.forgive("ada")
            return [
                call.allowed,
                (await take(limits, rpm=1)).allowed,
                (await limits.attempt("ada")).allowed,
                await limits.ping(),
            ]

        url = f"redis://127.0.0.1:{hole.getsockname()[1]}/0"
        assert tell(url, story, timeout_s=TIMEOUT_S) == [True, False, True, "degraded"]

    assert [entry["event"] for entry in logs] == ["limits.degraded"]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis://no-such-host.invalid:6379/0"])
def test_an_address_where_nobody_is_degrades(url: str) -> None:
    async def story(limits: Limits) -> list[object]:
        return [(await take(limits, rpm=1)).allowed, (await take(limits, rpm=1)).allowed, await limits.ping()]

    with heard():
        assert tell(url, story, workers=1, timeout_s=TIMEOUT_S) == [True, False, "degraded"]


def test_during_an_outage_each_worker_takes_its_share() -> None:
    async def story(limits: Limits) -> int:
        return sum([(await take(limits, rpm=8)).allowed for _ in range(10)])

    with heard():
        assert tell("redis://127.0.0.1:1/0", story, workers=4) == 2
