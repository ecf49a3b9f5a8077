"""The log: one JSON line an event, from us and from libraries, and no secret in it."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from infra import log as house_log
from infra.log import HIDDEN, configure, log

VIRTUAL_KEY = "sk-7f3kQ9vXw2LmN8pR4tYbZc"
WEB_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyX2lkIjoiNDIifQ.c2lnbmF0dXJl"


class Page(io.BytesIO):
    """What this thread says: a server that another test has started may be saying things, too."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def write(self, said: Any) -> int:
        return super().write(said) if threading.get_ident() == self._thread else len(said)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def page() -> Iterator[Page]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    file = Page()
    configure("info", "json", file)
    yield file
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers, root.level = handlers, level


def test_an_event_is_one_json_line_with_its_fields(page: Page):
    log.info("call.finished", call_id="c-1", latency_ms=12)

    (line,) = page.lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "call.finished", "level": "info", "call_id": "c-1", "latency_ms": 12}


def test_what_is_bound_to_a_request_stands_in_each_of_its_lines(page: Page):
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        log.info("call.started")
        logging.getLogger("some.library").warning("it is %s", "late")
    log.info("call.finished")

    assert ["r-1", "r-1", None] == [line.get("request_id") for line in page.lines()]


def test_libraries_log_through_the_same_mouth(page: Page):
    logging.getLogger("some.library").warning("only %d left", 3)

    (line,) = page.lines()
    assert line["event"] == "only 3 left"
    assert line["logger"] == "some.library"
    assert line["level"] == "warning"


def test_what_is_below_the_level_is_not_written(page: Page):
    log.debug("call.chunk")
    logging.getLogger("some.library").debug("chatter")
    logging.getLogger("psycopg.pool").info("connection requested")

    assert page.lines() == []


def test_an_exception_is_written_with_its_traceback_and_without_its_secrets(page: Page):
    try:
        raise RuntimeError(f"provider refused {VIRTUAL_KEY}")
    except RuntimeError:
        log.exception("call.failed")

    (line,) = page.lines()
    assert "Traceback" in line["exception"]
    assert f"provider refused {HIDDEN}" in line["exception"]


@pytest.mark.parametrize(
    "said,secret",
    [
        (f"used {VIRTUAL_KEY} twice", VIRTUAL_KEY),
        ("key sk-1234", "sk-1234"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("Authorization: Bearer opaque.thing", "opaque.thing"),
        (f"token {WEB_TOKEN}", WEB_TOKEN),
        ("postgresql://ledger:hunter2@db/ledger", "hunter2"),
        ("AIzaSyD-9tSrke72PouQMnMX", "SyD-9tSrke72PouQMnMX"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(page: Page, said: str, secret: str):
    log.info(said, note=said, inside={"deep": [said]}, cause=ValueError(said))
    logging.getLogger("some.library").warning("said %s", said)

    assert secret.encode() not in page.getvalue()
    assert len(page.lines()) == 2


@pytest.mark.parametrize("name", ["authorization", "X-Admin-Key", "webhook_secret", "api_key", "password"])
def test_what_is_called_a_secret_is_hidden_whatever_it_looks_like(page: Page, name: str):
    log.info("request.refused", headers={name: "plain"}, **{name: "plain"})

    assert b"plain" not in page.getvalue()


def test_ordinary_words_are_left_alone(page: Page):
    said = {"stream": "job-1234", "note": "task-1234 on disk-full", "prompt_tokens": 7, "url": "http://h:1/x"}
    log.info("call.finished", **said)

    (line,) = page.lines()
    assert said == {name: line[name] for name in said}


def test_a_long_text_of_beginnings_of_tokens_is_soon_looked_through(page: Page):
    """It would take minutes if each of them were followed to the end of the text."""
    said = "-eyJ" * 250_000
    log.info("request.answered", path=said)

    assert page.lines()[0]["path"] == said


def test_a_broken_text_does_not_break_the_log(page: Page):
    log.info("call.finished", note="half a \ud800 pair")

    assert page.lines()[0]["note"] == "half a ? pair"


def test_people_get_lines_they_can_read(page: Page):
    configure("info", "console", page)
    log.info("call.finished", call_id="c-1", key=VIRTUAL_KEY)

    assert b"call.finished" in page.getvalue()
    assert b"call_id=c-1" in page.getvalue()
    assert VIRTUAL_KEY.encode() not in page.getvalue()
    assert house_log.HIDDEN.encode() in page.getvalue()
