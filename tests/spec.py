"""Given what happened, when a wish is decided, then this follows.

    given(CREATED, STARTED).when(finish_call, FINISH).then(FINISHED).leaving(Job, tokens=300)
    given(CREATED, STARTED).when(complete_job, COMPLETE).then_refused(CallsInProgress, running_calls=1)
    given(CREATED, COMPLETED).when(complete_job, COMPLETE).then_nothing()

Events find their streams by themselves, and a decision gets the states that its signature asks for. A story goes on:
what was decided has happened when the next wish comes.
"""

from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar, get_args, get_type_hints

import msgspec

from domain.errors import Refusal
from domain.event import Command, Event, State
from domain.streams import CATEGORIES, decode

STREAM_OF = {event: category for category in CATEGORIES.values() for event in category.events}
Decision = Callable[..., Any]
States = dict[type[State], State]
S = TypeVar("S", bound=State)


def given(*history: Event) -> "Story":
    return Story({}).meanwhile(*history)


class Story:
    """The states that a history adds up to, and what the last wish led to: events, or a refusal."""

    def __init__(self, states: States, decided: Iterable[Event] = (), refusal: Refusal | None = None) -> None:
        self.states = states
        self.decided = list(decided)
        self.refusal = refusal

    def when(self, decide: Decision, command: Command) -> "Story":
        """Decides as the ledger does; whatever is decided must be readable and evolve."""
        assert self.refusal is None, f"nothing follows {self.refusal!r}"
        asked = states_asked_by(decide)
        try:
            answer = decide(*map(self.states.get, asked), command)
        except Refusal as refusal:
            return Story(self.states, refusal=refusal)
        decided = []
        for state, events in zip(asked, answer if isinstance(answer, tuple) else (answer,), strict=True):
            assert all(STREAM_OF[type(event)].state is state for event in events), f"{events} in the stream of {state}"
            decided += events
        assert decided == [decode(type(event).__name__, msgspec.json.encode(event)) for event in decided]
        return Story(fold(self.states, decided), decided)

    def then(self, *events: Event) -> Self:
        assert self.refusal is None, f"refused: {self.refusal!r}"
        assert list(events) == self.decided
        return self

    def then_nothing(self) -> Self:
        return self.then()

    def then_refused(self, kind: type[Refusal], **facts: Any) -> "Story":
        """Refused for just this reason; the story goes on as if the wish had never been uttered."""
        assert (kind, facts) == (type(self.refusal), self.refusal and self.refusal.facts)
        return Story(self.states)

    def leaving(self, state: type[State], **facts: Any) -> Self:
        """What is so now."""
        assert self.refusal is None, f"refused: {self.refusal!r}"
        assert facts == {fact: getattr(self.the(state), fact) for fact in facts}
        return self

    def the(self, state: type[S]) -> S:
        """The job, the account, ... as it is now."""
        found = self.states[state]
        assert isinstance(found, state)
        return found

    def meanwhile(self, *events: Event) -> "Story":
        """What happens without a wish of ours."""
        return Story(fold(self.states, events))

    def another(self, state: type[State]) -> "Story":
        """The same house with a thing of this kind that has no history yet: a second job of the same team."""
        return Story({kind: each for kind, each in self.states.items() if kind is not state})


def fold(states: States, events: Iterable[Event]) -> States:
    for event in events:
        stream = STREAM_OF[type(event)]
        states = {**states, stream.state: stream.evolve(states.get(stream.state), event)}
    return states


def states_asked_by(decide: Decision) -> list[type[State]]:
    """The `Job` of each `job: Job | None`."""
    hints = {name: hint for name, hint in get_type_hints(decide).items() if name not in ("command", "return")}
    return [get_args(hint)[0] for hint in hints.values()]
