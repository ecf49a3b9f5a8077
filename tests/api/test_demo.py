"""The demo is a test of the house by itself; this one sees to it that it runs, and that it would notice."""

import io

from rich.console import Console

from api import demo
from tests.api.conftest import MASTER_KEY, Server


def test_the_demo_plays_afresh_and_everything_is_as_told():
    told = io.StringIO()

    assert demo.play_afresh(Console(file=told, width=120))

    assert "CreditsCharged" in told.getvalue()
    assert "every event is what was written" in told.getvalue()
    assert "✗" not in told.getvalue()


def test_the_demo_plays_against_a_running_server_and_shows_its_journal(server: Server):
    told = io.StringIO()

    assert demo.play_against(server.url, MASTER_KEY, dsn=server.dsn, console=Console(file=told)), told.getvalue()

    assert "JobCompleted" in told.getvalue()


def test_the_demo_does_not_mistake_another_journal_for_the_servers(server: Server, database: str):
    told = io.StringIO()

    assert demo.play_against(server.url, MASTER_KEY, dsn=database, console=Console(file=told)), told.getvalue()

    assert "JobCompleted" not in told.getvalue()


def test_the_demo_ends_badly_if_something_is_not_as_told():
    told = io.StringIO()
    tell = demo.Narrator(Console(file=told), client=None, admin_key="")  # type: ignore[arg-type]

    tell.check("water runs uphill", False)

    assert not tell.the_end()
    assert "✗ not so: water runs uphill" in told.getvalue()
