"""Passwords: every byte counts, nobody is told who exists, the event loop goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from infra.passwords import Passwords, PasswordsBusy, is_acceptable
from tests.waiting import eventually


@asynccontextmanager
async def quick_passwords() -> AsyncIterator[Passwords]:
    """The real hash with the smallest parameters that argon2 takes."""
    async with Passwords(memory_kib=8, passes=1) as passwords:
        yield passwords


def verified(hashed: str, typed: str) -> bool:
    async def scenario() -> bool:
        async with quick_passwords() as passwords:
            return await passwords.verify(await passwords.hash(hashed), typed)

    return asyncio.run(scenario())


def test_the_right_password_is_accepted() -> None:
    assert verified("correct horse", "correct horse")


def test_a_wrong_password_is_refused() -> None:
    assert not verified("correct horse", "correct horsf")


def test_eight_plain_characters_are_enough() -> None:
    assert verified("12345678", "12345678")


def test_the_last_byte_of_the_longest_password_counts() -> None:
    assert verified("ü" * 1023 + "a", "ü" * 1023 + "a")
    assert not verified("ü" * 1023 + "a", "ü" * 1023 + "b")


def test_a_longer_password_does_not_match_its_beginning() -> None:
    assert not verified("x" * 1024, "x" * 1025)


def test_nul_and_lone_surrogates_are_characters_like_any_other() -> None:
    assert verified("abc\0defgh", "abc\0defgh")
    assert not verified("abc\0defgh", "abc\0defgi")
    assert verified("12345678\ud800", "12345678\ud800")


@pytest.mark.parametrize("password", ["", "1234567", "x" * 1025])
def test_too_short_and_too_long_passwords_are_not_hashed(password: str) -> None:
    async def scenario() -> None:
        async with quick_passwords() as passwords:
            await passwords.hash(password)

    assert not is_acceptable(password)
    with pytest.raises(ValueError, match="8 to 1024"):
        asyncio.run(scenario())


def test_an_unknown_user_never_matches_but_costs_a_hash() -> None:
    async def scenario() -> bool:
        async with quick_passwords() as passwords:
            return await passwords.verify(None, "nobody has this password")

    assert asyncio.run(scenario()) is False


def test_a_damaged_hash_matches_nothing() -> None:
    async def scenario() -> bool:
        async with quick_passwords() as passwords:
            return await passwords.verify("$argon2id$broken", "12345678")

    assert asyncio.run(scenario()) is False


def test_the_stored_text_is_salted_argon2id_and_says_when_it_is_outdated() -> None:
    async def scenario() -> tuple[str, str, bool, bool]:
        async with quick_passwords() as old, Passwords(memory_kib=16, passes=1) as new:
            first, second = await old.hash("12345678"), await old.hash("12345678")
            return first, second, old.needs_rehash(first), new.needs_rehash(first)

    first, second, outdated_for_old, outdated_for_new = asyncio.run(scenario())

    assert first.startswith("$argon2id$")
    assert first != second
    assert (outdated_for_old, outdated_for_new) == (False, True)


def test_a_login_flood_is_turned_away_and_the_next_login_works() -> None:
    async def scenario() -> tuple[int, int, bool]:
        async with Passwords() as passwords:
            stored = await passwords.hash("12345678")
            guesses = (passwords.verify(stored, f"guess-{n:04}") for n in range(100))
            outcomes = await asyncio.gather(*guesses, return_exceptions=True)
            busy = sum(isinstance(outcome, PasswordsBusy) for outcome in outcomes)
            return busy, outcomes.count(False), await passwords.verify(stored, "12345678")

    assert asyncio.run(scenario()) == (36, 64, True)


def test_the_event_loop_goes_on_while_passwords_are_hashed() -> None:
    async def goes_on(passwords: Passwords) -> bool:
        hashing, turns = asyncio.create_task(passwords.hash("12345678")), 0
        while not hashing.done():
            await asyncio.sleep(0)
            turns += 1
        return turns > 10

    async def scenario() -> None:
        async with Passwords() as passwords:
            # A busy machine may hold up the loop itself for as long as a hash takes, but not each time.
            await eventually(lambda: goes_on(passwords))

    asyncio.run(scenario())
