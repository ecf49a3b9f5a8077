"""What was once written is read for ever: a stored sample of every event, append-only, and every order of them.

`tests/history/<Topic>.json` is an event as the journal has it, `<Topic>.2.json` the same event after it has got a new
field. Samples are added and never edited: a sample that cannot be read any more is a journal that cannot be read.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.event import Event
from domain.streams import CATEGORIES, DECODERS, Category, decode

HISTORY = Path(__file__).parent.parent / "history"
SAMPLES = sorted(HISTORY.glob("*.json"))
EVENTS = [event for category in CATEGORIES.values() for event in category.events]


def sample(path: Path) -> dict[str, Any]:
    written = msgspec.json.decode(path.read_bytes())
    assert isinstance(written, dict)
    return written


def read(path: Path) -> Event:
    written = sample(path)
    return decode(written["topic"], msgspec.json.encode(written["state"]))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_every_event_has_a_stored_sample(event: type[Event]) -> None:
    topic = event.__name__
    kinds = {field.encode_name: field.type for field in msgspec.structs.fields(event)}
    fields = {name: kind.__name__ if isinstance(kind, type) else str(kind) for name, kind in kinds.items()}
    assert topic in {path.name.partition(".")[0] for path in SAMPLES}, (
        f"{topic} is new and has no sample. Write tests/history/{topic}.json with every field set to something "
        f"other than its default, commit it, and never edit it again:\n"
        + msgspec.json.format(msgspec.json.encode({"topic": topic, "state": fields}), indent=2).decode()
    )


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_stored_sample_is_still_read_and_nothing_of_it_is_lost(path: Path) -> None:
    topic = path.name.partition(".")[0]
    written = sample(path)
    assert topic == written["topic"], f"{path.name} must be named after its topic, {written['topic']}"
    assert topic in DECODERS, (
        f"Nobody reads {topic} any more, but journals have it. Put its Struct and its case in evolve back; "
        "to retire an event, just stop emitting it."
    )
    event = read(path)
    assert topic == type(event).__name__
    lost = missing(written["state"], msgspec.json.decode(msgspec.json.encode(event)))
    assert not lost, (
        f"{topic} forgets {', '.join(lost)} of an event that was written before. Fields are for ever: put them back "
        "as they were. A new shape is a new event with a new name."
    )


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_says_everything_that_could_be_said_when_it_was_written(path: Path) -> None:
    """A field that a sample leaves out is not watched; what was added since is watched by `<Topic>.2.json`."""
    topic = path.name.partition(".")[0]
    watched = {field for each in SAMPLES if each.name.partition(".")[0] == topic for field in sample(each)["state"]}
    unwatched = sorted({field.encode_name for field in msgspec.structs.fields(type(read(path)))} - watched)
    assert not unwatched, f"no sample of {topic} has {', '.join(unwatched)}: add tests/history/{topic}.2.json with it"


@pytest.mark.parametrize("category", CATEGORIES.values(), ids=lambda category: category.name)
@given(data=st.data())
def test_a_state_accepts_every_past_and_survives_its_snapshot(category: Category, data: st.DataObject) -> None:
    """Whatever follows the first event of a stream, in any order and however often: history is not on trial."""
    stored = [read(path) for path in SAMPLES if DECODERS[path.name.partition(".")[0]].type in category.events]
    births = [event for event in stored if isinstance(event, category.events[0])]
    if not births:
        pytest.skip(f"no sample of {category.events[0].__name__}")
    state = category.evolve(None, data.draw(st.sampled_from(births)))
    for event in data.draw(st.lists(st.sampled_from(stored), max_size=12)):
        state = category.evolve(state, event)
    assert state == msgspec.json.decode(msgspec.json.encode(state), type=category.state)


def missing(before: Any, now: Any, where: str = "") -> list[str]:
    """The paths of everything that `before` says and `now` does not."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [each for key, value in before.items() for each in missing(value, now.get(key), f"{where}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [each for index, (old, new) in pairs for each in missing(old, new, f"{where}[{index}]")]
    return [] if before == now else [where.lstrip(".")]
