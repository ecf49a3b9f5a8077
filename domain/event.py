"""The two shapes everything here is made of: a fact that happened, and a wish that it should."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar, dataclass_transform
from uuid import UUID, uuid5

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

Json = Any
"""Whatever JSON can say; ours only to keep and give back."""
JsonObject = Mapping[str, Json]
Unset = UnsetType
"""In a command: leave it as it is, where None would say something."""
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises of bytes that are not what they should be: no JSON, no UTF-8, or nested too deeply."""


class _Sealed(msgspec.StructMeta):
    """Makes every event, command and state immutable and built by keyword, without each saying so.

    What is immutable and made of values holds no cycles: Python's garbage collector need not look through it.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any) -> Any:
        config = {**config, "frozen": True, "kw_only": True, "gc": False}
        return super().__new__(mcs, name, bases, namespace, **config)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record(msgspec.Struct, metaclass=_Sealed, frozen=True, kw_only=True):
    """An immutable struct, built by keyword."""


class Event(Record):
    """A fact, in the past tense. Names and fields are for ever: new fields get defaults, new shapes new names.

    `by` (key id, admin, `master` or `system`) and `request` (request id) are stamped by the ledger from the
    command, so that decisions speak of the business only.
    """

    at: datetime
    by: str = ""
    request: str = ""


class Command(Record):
    """A wish, complete in itself: clock, ids and prices are in it, so that deciding it is a pure function."""

    at: datetime
    by: str
    request: str


class State(Record):
    """What the events of one stream add up to. Cheap to copy: the hot ones stay of constant size."""


Changed = TypeVar("Changed", bound=Record)


def with_changes(record: Changed, command: Command, *fields: str) -> Changed:
    """The record with what a command says of these fields.

    Commands say only what shall change, and the decision lays it over what is: of two changes at once, neither
    takes back the other.
    """
    said = {field: getattr(command, field) for field in fields}
    return replace(record, **{field: value for field, value in said.items() if value is not UNSET})


def derived_id(source_id: str, purpose: str) -> str:
    """A uuid that follows from another: the same decision made again names the same things.

    Of an id that begins with its time (version 7) it keeps the time, as version 8: so it lies beside it in an index.
    """
    derived = str(uuid5(UUID(source_id), purpose))
    return f"{source_id[:14]}8{derived[15:]}" if source_id[14] == "7" else derived
