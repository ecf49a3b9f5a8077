"""The demo is a test of the house by itself; this one sees to it that it runs, and that it would notice."""

import io
import re
from pathlib import Path

from rich.console import Console

from api import demo
from tests.api.conftest import MASTER_KEY, Server


def test_the_demo_plays_afresh_and_everything_is_as_the_readme_tells():
    told = io.StringIO()
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    excerpt = re.search(r"<!-- demo excerpt -->\n```\n(.*?)```", readme, re.DOTALL)
    assert excerpt is not None

    assert demo.play_afresh(Console(file=told, soft_wrap=True)), told.getvalue()

    assert "every event is what was written" in told.getvalue()
    lines = without_chance(told.getvalue())
    assert [line for line in without_chance(excerpt[1]) if line not in lines] == []


def test_the_demo_plays_against_a_running_server_and_shows_its_journal(server: Server):
    told = io.StringIO()

    assert demo.play_against(server.url, MASTER_KEY, dsn=server.dsn, console=Console(file=told)), told.getvalue()

    assert "JobCompleted" in told.getvalue()


def test_the_demo_does_not_mistake_another_journal_for_the_servers(server: Server, database: str):
    told = io.StringIO()

    assert demo.play_against(server.url, MASTER_KEY, dsn=database, console=Console(file=told)), told.getvalue()

    assert "JobCompleted" not in told.getvalue()


def without_chance(text: str) -> list[str]:
    """The lines of a story without what differs each time it is played: ids and durations."""
    by_chance = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8}…|…[0-9a-f]{8}|latency_ms \d+"
    return re.sub(by_chance, "~", text).splitlines()


def test_the_demo_ends_badly_if_something_is_not_as_told():
    told = io.StringIO()
    tell = demo.Narrator(Console(file=told), client=None, admin_key="")  # type: ignore[arg-type]

    tell.check("water runs uphill", False)

    assert not tell.the_end()
    assert "✗ not so: water runs uphill" in told.getvalue()
