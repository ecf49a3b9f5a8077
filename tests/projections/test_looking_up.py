"""What a projection reads of others' tables it says: only so are these in step with it, and built together with it."""

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from api.app import PROJECTIONS
from domain.streams import decode
from domain.webhook import RegisteredWebhookEvent, WebhookRegistered
from infra.journal import Recorded
from projections.projection import Batch, Projection
from projections.webhook_deliveries import webhook_deliveries

HISTORY = Path(__file__).parent.parent / "history"
NAMED = re.compile(r"\b(?:from|join|into|update|using)\s+(?:readmodel\.)?([a-z_]+)")
ALL = (*PROJECTIONS, webhook_deliveries((50, 10)))
OWNERS = {table: projection.name for projection in ALL for table in projection.tables}


@pytest.fixture(scope="module")
def everything() -> Batch:
    """A batch with each kind of event, as they were once written."""
    samples = [msgspec.json.decode(path.read_bytes()) for path in sorted(HISTORY.glob("*.json"))]
    events = [decode(sample["topic"], msgspec.json.encode(sample["state"])) for sample in samples]
    # A webhook begins with its registration, and from then on listens to whatever its team does.
    events.sort(key=lambda event: (isinstance(event, RegisteredWebhookEvent), not isinstance(event, WebhookRegistered)))
    return Batch([Recorded(position, "some-stream", 1, event) for position, event in enumerate(events, start=1)])


def sql_of(projection: Projection, batch: Batch) -> Iterable[str]:
    questions = list(projection.asks(batch))
    statements = projection.project(batch, *([] for _ in questions))
    return [question.select for question in questions] + [statement for statement, _ in statements]


@pytest.mark.parametrize("projection", ALL, ids=lambda projection: projection.name)
def test_a_projection_says_whose_tables_it_reads(projection: Projection, everything: Batch) -> None:
    named = {table for statement in sql_of(projection, everything) for table in NAMED.findall(statement)}
    owners = {OWNERS[table] for table in named & set(OWNERS)}
    assert projection.name in owners
    assert owners - {projection.name} == set(projection.looks_up)


@pytest.mark.parametrize("projection", ALL, ids=lambda projection: projection.name)
def test_what_a_projection_reads_is_projected_before_it(projection: Projection) -> None:
    before = {each.name for each in ALL[: ALL.index(projection)]}
    assert before >= set(projection.looks_up)
