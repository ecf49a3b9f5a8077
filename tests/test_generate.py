"""The made-up business of bench/generate.py keeps to the rules, and the same seed tells the same story."""

import psycopg
import pytest

from bench.generate import Business, generate, rows
from infra.verify import verify
from projections.audit import audit

EVENTS = 4_000


@pytest.mark.parametrize("seed", [1, 2])
def test_an_auditor_finds_nothing_in_a_generated_journal(database: str, seed: int) -> None:
    generate(database, EVENTS, seed=seed)
    with psycopg.connect(database, autocommit=True) as connection:
        chain, report = verify(connection, readable=True), audit(connection)
    assert (chain.first_break, chain.events) == (None, EVENTS)
    assert (report.findings, report.events) == ([], EVENTS)


def test_the_same_seed_tells_the_same_story() -> None:
    def told(seed: int) -> bytes:
        *_, last = rows(Business(EVENTS, seed=seed).exactly(EVENTS))
        return last[-1]

    assert told(1) == told(1) != told(2)


def test_much_of_what_can_happen_happens() -> None:
    topics = {topic for _, _, topic, *_ in rows(Business(EVENTS).exactly(EVENTS))}
    assert topics >= {
        *("CallFinished", "CallFailed", "CallAttemptFailed"),
        *("JobCompleted", "JobFailed", "JobCancelled", "JobExpired"),
        *("CreditsGranted", "CreditsExpired", "CreditsCharged", "HoldReleased", "CreditsRefunded"),
    }
