"""What is logged while a test listens, by its own thread: the log is one for all, and a server that other tests have
started in a thread of its own may be saying things, too."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict, WrappedLogger


@contextmanager
def heard() -> Iterator[list[EventDict]]:
    """Collects the entries instead of writing them."""
    here = threading.get_ident()

    def of_this_thread(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
        if threading.get_ident() != here:
            raise structlog.DropEvent
        return entry

    with capture_logs([of_this_thread]) as entries:
        yield entries
