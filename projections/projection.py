"""What a projection is: tables, and a pure function from a batch of events to set-based statements.

Table names are unqualified: the engine puts `readmodel` on the search path, or the schema of a rebuild's shadow. Rows
reach a statement as one JSON array in its only parameter, to be unfolded with `json_to_recordset`; so a batch costs one
statement a table, however many events are in it.

What a batch needs to know and does not say, because it was said long before, a projection asks for first: the function
stays pure, and the questions cost one round trip together.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from domain.event import Event
from infra.journal import Recorded

E = TypeVar("E", bound=Event)
Statement = tuple[str, Sequence[msgspec.Struct]]

_CREATE_INDEX = re.compile(r"^create (?:unique )?index .*?;", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """A select with rows as its only parameter, like a statement; it is answered by records of this kind."""

    select: str
    rows: Sequence[msgspec.Struct]
    kind: type[Any]


class Batch:
    """Events in the order of the journal, decoded once, to be looked at by kind."""

    def __init__(self, events: Sequence[Recorded]) -> None:
        self.events = events

    @cached_property
    def _by_kind(self) -> dict[type[Event], list[Recorded]]:
        kinds: dict[type[Event], list[Recorded]] = defaultdict(list)
        for recorded in self.events:
            kinds[type(recorded.event)].append(recorded)
        return kinds

    def of(self, kind: type[E]) -> Iterator[E]:
        """The events of one kind."""
        for recorded in self._by_kind.get(kind, ()):
            yield recorded.event  # type: ignore[misc]

    def recorded(self, *kinds: type[Event]) -> list[Recorded]:
        """The events of some kinds with their positions, in the order of the journal."""
        found = [recorded for kind in kinds for recorded in self._by_kind.get(kind, ())]
        return sorted(found, key=_position) if len(kinds) > 1 else found


def _position(recorded: Recorded) -> int:
    return recorded.position


def _nothing(batch: Batch) -> Iterable[Question]:
    return ()


@dataclass(frozen=True)
class Projection:
    """A read model.

    Args:
        name: also the name of its file.
        version: raised when tables or meaning change; the engine then builds it again.
        tables: the tables it owns.
        ddl: makes them, with their indexes.
        project: what a batch of events changes in them, given the answers to its questions, a list each.
        wants: the kinds of events that it looks at; None if it looks at all of them.
        asks: what it has to know, as it was before the batch.
        looks_up: the projections whose tables its statements read; they stand before it in each batch.
    """

    name: str
    version: int
    tables: tuple[str, ...]
    ddl: str
    project: Callable[..., Iterable[Statement]]
    wants: tuple[type[Event], ...] | None = None
    asks: Callable[[Batch], Iterable[Question]] = _nothing
    looks_up: tuple[str, ...] = ()

    @property
    def bare_ddl(self) -> str:
        """Makes the tables without those indexes that only readers need."""
        return _CREATE_INDEX.sub("", self.ddl)

    @property
    def indexes(self) -> list[str]:
        """Make those indexes, a statement each."""
        return _CREATE_INDEX.findall(self.ddl)


def wanted(projections: Iterable[Projection]) -> frozenset[type[Event]] | None:
    """The kinds of events that any of them looks at; None if that is all of them."""
    kinds: set[type[Event]] = set()
    for projection in projections:
        if projection.wants is None:
            return None
        kinds.update(projection.wants)
    return frozenset(kinds)


def encode(rows: Sequence[Any]) -> str:
    """Rows as the one parameter of a statement; decimals travel as exact strings, unset fields not at all."""
    return msgspec.json.encode(rows).decode()
