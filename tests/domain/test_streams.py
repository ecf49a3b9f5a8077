"""Streams have names, topics are unique, and what nobody knows is not guessed."""

from collections import Counter

import msgspec
import pytest

from domain.streams import CATEGORIES, DECODERS, JOB, Category, category_of, decode
from tests.domain.scene import CREATED

EVERY = pytest.mark.parametrize("category", CATEGORIES.values(), ids=lambda category: category.name)


@EVERY
def test_a_stream_is_found_by_its_name_whatever_the_thing_is_called(category: Category) -> None:
    for thing in ("7", "acme-research", "-", "credit-acme"):
        assert category is category_of(category.stream(thing))


def test_a_topic_means_one_event_in_the_whole_house() -> None:
    topics = Counter(event.__name__ for category in CATEGORIES.values() for event in category.events)
    assert dict.fromkeys(topics, 1) == topics
    assert set(topics) == set(DECODERS)


def test_a_stream_nobody_keeps_has_no_category() -> None:
    with pytest.raises(KeyError):
        category_of("weather-london")


def test_an_event_is_read_back_as_it_was_written() -> None:
    assert CREATED == decode("JobCreated", msgspec.json.encode(CREATED))
    assert "job-7" == JOB.stream("7")


def test_an_unknown_topic_and_a_broken_event_are_not_guessed() -> None:
    with pytest.raises(KeyError):
        decode("JobForgotten", b"{}")
    with pytest.raises(msgspec.ValidationError):
        decode("JobCreated", b"{}")
    with pytest.raises(msgspec.ValidationError):
        decode("JobCreated", msgspec.json.encode(CREATED).replace(b'"metadata":{}', b'"metadata":[]'))
    for written in (b'{"team_id":"\xff"}', b'{"metadata":{"a":' + b"[" * 100_000):
        with pytest.raises(msgspec.DecodeError):
            decode("JobCreated", written)
