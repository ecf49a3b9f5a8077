"""The two shapes everything here is made of: a fact that happened, and a wish that it should."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, dataclass_transform
from uuid import UUID, uuid5

import msgspec

Json = Any
"""Whatever JSON can say; ours only to keep and give back."""
JsonObject = Mapping[str, Json]


class _Sealed(msgspec.StructMeta):
    """Makes every event, command and state immutable and built by keyword, without each saying so."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any) -> Any:
        config = {**config, "frozen": True, "kw_only": True}
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


def derived_id(source_id: str, purpose: str) -> str:
    """A uuid that follows from another: the same decision made again names the same things."""
    return str(uuid5(UUID(source_id), purpose))
