"""The log: one JSON line an event, `noun.verb` with fields, and no secret in it.

Our own code says `log.info("call.finished", call_id=..., latency_ms=...)`; what libraries say through `logging` comes
out of the same mouth. Values bound with `structlog.contextvars` (request_id, team_id, job_id) stand in every line
of their request.
"""

import logging
import re
import sys
from functools import lru_cache
from typing import Any, BinaryIO, Literal

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

HIDDEN = "[hidden]"
SECRET_FIELDS = re.compile(
    r"(authorization|cookie|password|secret|token|(admin|api|encryption|master|secret|virtual)[-_]?key)$",
    re.IGNORECASE,
)
SECRET_SHAPES = re.compile(
    r"""
      \b (?: (?: sk | rk | pk | gsk | xai | hf | ghp | whsec ) [-_] [A-Za-z0-9+/=_\-]{4,}
          | (?: AIza | AKIA ) [A-Za-z0-9_\-]{12,}
          # A JSON web token. Its head is short: else a long text of such beginnings were read to its end from each.
          | eyJ [A-Za-z0-9_\-]{1,1024}+ \. [A-Za-z0-9_\-]+ \. [A-Za-z0-9_\-]*
          | ( [Bb]earer\  ) \S+
          )
    | ( :// ) [^\s/:@]* : [^\s/@]+ (?= @ )                            # user and password of an address
    """,
    re.VERBOSE,
)
# They tell each request, or each connection lent, at a level that ours takes for news.
CHATTY = ("LiteLLM", "aiohttp.access", "httpcore", "httpx", "psycopg.pool")

log: FilteringBoundLogger = structlog.get_logger()


def configure(level: str = "info", form: Literal["json", "console"] = "json", file: BinaryIO | None = None) -> None:
    """Send everything that is logged, by us and by libraries, to one place in one form.

    Args:
        level: the least that is written: debug, info, warning, error.
        form: `json` for machines, `console` for people.
        file: where to; standard error if not given, since standard output belongs to a command's answer.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    said: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    written: list[Processor] = [structlog.processors.format_exc_info, hide_secrets]
    written.append(_json if form == "json" else structlog.dev.ConsoleRenderer(colors=False))
    structlog.configure(
        processors=[*said, *written, _bytes],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: structlog.BytesLogger(file or sys.stderr.buffer),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(file)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*said, structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(least)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(least, logging.WARNING))


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace what looks like a key, a token or a password, wherever in the line it stands."""
    return {name: _harmless(name, value) for name, value in event.items()}


def _harmless(name: str, value: Any) -> Any:
    match value:
        case str():
            if _names_a_secret(name):
                return HIDDEN
            whole = value if value.isascii() else value.encode(errors="replace").decode()
            return SECRET_SHAPES.sub(_hide, whole)
        case None | bool() | int() | float():
            return value
        case dict():
            return {str(key): _harmless(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_harmless(name, item) for item in value]
        case _:
            # Anything else becomes its text here: what is rendered later has not been looked at.
            return _harmless(name, str(value))


def _hide(secret: re.Match[str]) -> str:
    return (secret[1] or secret[2] or "") + HIDDEN


@lru_cache(1024)
def _names_a_secret(name: str) -> bool:
    return SECRET_FIELDS.search(name) is not None


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return msgspec.json.encode({"event": event.pop("event", None), **event}).decode()


def _bytes(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    return str(line).encode()


class _Handler(logging.Handler):
    """The end of `logging`: the same bytes to the same place as our own lines."""

    def __init__(self, file: BinaryIO | None) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        structlog.BytesLogger(self._file or sys.stderr.buffer).msg(self.format(record).encode())
