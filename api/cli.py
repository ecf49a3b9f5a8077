"""The command line: `saas-litellm --help`."""

import os
import sys
from typing import NoReturn

import typer

from infra import log as logging
from infra.embedded import DatabaseUnusable
from infra.settings import Settings, SettingsError

app = typer.Typer(
    name="saas-litellm",
    help="An event-sourced ledger for companies that resell LLM work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def house() -> None:
    """Settings come from the environment; `make` lists what else there is."""


@app.command()
def serve() -> None:
    """Serve the API. Without DATABASE_URL it starts a PostgreSQL of its own in DATA_DIR."""
    from api import server  # the other commands do without

    settings = settings_or_exit()
    try:
        server.serve(settings)
    except DatabaseUnusable as problem:
        give_up(str(problem))


def settings_or_exit() -> Settings:
    """The settings, or the end of the process with the one line that says what is wrong with them."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as problem:
        give_up(str(problem))
    logging.configure(settings.log_level, settings.log_format)
    return settings


def give_up(line: str) -> NoReturn:
    print(f"saas-litellm: {line}", file=sys.stderr)
    raise typer.Exit(2)


def main() -> None:
    """The entry point of the console script."""
    app()
