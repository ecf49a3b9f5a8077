"""Server-sent events as they come off the wire: bytes in, whole events out, nothing held back.

Works on bytes, so that a character or a line end split between two packets needs no care: text is decoded only
when its event is whole. Comments, ids and event names are skipped; lines may end in LF, CRLF or CR; data may
span several lines (WHATWG HTML, section 9.2).
"""

from typing import Final

LONGEST_EVENT: Final = 4 << 20


class TooLong(Exception):
    """An event, or a stream, that never ends."""


class EventReader:
    """Feed it pieces of a stream, cut anywhere; it gives back the data of each event that they complete.

    Args:
        longest_stream: bytes in all.
        longest_event: bytes of one event, or of one line.
    """

    def __init__(self, longest_stream: int, longest_event: int = LONGEST_EVENT) -> None:
        self._left = longest_stream
        self._longest = longest_event
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that end in this piece, oldest first.

        Raises:
            TooLong: there are more bytes than allowed.
        """
        self._left -= len(piece)
        lines = (self._rest + piece).splitlines(keepends=True)
        # The last line may go on in the next piece; after a CR there may come the LF that belongs to it.
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        events: list[bytes] = []
        for line in lines:
            self._read(line.rstrip(b"\r\n"), events)
        if self._left < 0 or self._size + len(self._rest) > self._longest:
            raise TooLong
        return events

    def end(self) -> list[bytes]:
        """What an upstream left that forgot the last blank line."""
        return self.feed(b"\n\n")

    def _read(self, line: bytes, events: list[bytes]) -> None:
        if line.startswith(b"data:"):
            data = line[6:] if line[5:6] == b" " else line[5:]
            self._data.append(data)
            self._size += len(data)
        elif not line and self._data:
            events.append(b"\n".join(self._data))
            self._data = []
            self._size = 0
