"""What commands print: people get lines and colours, programs get JSON, one object a line."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from domain.streams import CATEGORIES
from infra.readable import Line

OUT = Console(highlight=False, emoji=False, soft_wrap=True)
ASIDE = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
"""For what is no answer: standard output stays clean for whoever reads on."""


KINDS = {kind.__name__: kind for category in CATEGORIES.values() for kind in category.events}


def say(text: Text | str) -> None:
    """Prints a line of the answer, as it is."""
    OUT.print(text, markup=False)


def say_json(answer: Any) -> None:
    """Prints the answer for a program."""
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()


def facts(event: Mapping[str, Any]) -> str:
    """What an event says, in one line: `credits=10 kind=allocation`. What says nothing is left out."""
    empty: tuple[Any, ...] = (None, [], {}, "")
    return " ".join(f"{name}={_fact(value)}" for name, value in event.items() if value not in empty)


def _fact(value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and not set(value) & set(' "='):
        return value
    return msgspec.json.encode(value).decode()


def in_order(line: Line) -> dict[str, Any]:
    """What an event says in the order in which it is defined, without the ids that the stream's name tells already."""
    kind = KINDS.get(line.topic)
    names = line.event if kind is None else [name for name in kind.__struct_fields__ if name in line.event]
    return {name: line.event[name] for name in names if not line.stream.endswith(f"-{line.event[name]}")}


def event_line(line: Line) -> Text:
    """An event as a line of the journal."""
    return Text.assemble(
        (f"{line.position:>7}  ", "dim"),
        (f"{line.at:%Y-%m-%d %H:%M:%S}  ", "dim"),
        (line.stream, "cyan"),
        "  ",
        (line.topic, "bold"),
        "  ",
        facts(in_order(line)),
        (f"  by {line.by}", "dim"),
    )


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal; gives what is to be called with (done, of how many)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ASIDE, transient=True, disable=not ASIDE.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
