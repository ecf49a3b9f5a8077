"""Ids that follow from others."""

from uuid import UUID

from domain.event import derived_id

TIMED = "01a20945-5475-71ca-a02a-8dbcf08b4535"
RANDOM = "4c7f7a1e-52a4-4f2e-9a1c-0d7f5a8e6b11"


def test_the_same_purpose_of_the_same_thing_has_the_same_id() -> None:
    for source in (TIMED, RANDOM):
        assert derived_id(source, "hold") == derived_id(source, "hold") != derived_id(source, "release")
    assert derived_id(TIMED, "hold") != derived_id(RANDOM, "hold")


def test_it_keeps_the_time_of_an_id_that_begins_with_one() -> None:
    derived = UUID(derived_id(TIMED, "hold"))
    assert (derived.version, derived.variant) == (8, UUID(TIMED).variant)
    assert derived.int >> 80 == UUID(TIMED).int >> 80


def test_of_a_random_one_it_is_the_uuid_of_its_name() -> None:
    """Ids of the days before ids had times stay what they were."""
    assert derived_id(RANDOM, "hold") == "c80aef81-ecdf-59b7-b37a-4473c5339632"
