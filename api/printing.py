"""`saas-litellm statement`: a team's month, to be read, sent, printed or put into a spreadsheet."""

import asyncio
import json
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.auditing import AsJson, command_settings
from api.console import progress_bar, say
from api.database import database
from api.statement_page import TYPES
from infra.embedded import DatabaseUnusable
from infra.settings import Settings

if TYPE_CHECKING:
    from api.house import House

STANDSTILL_SECONDS = 10.0
BUILDING_SECONDS = 0.1  # between two looks at read models that are being built anew


def statement(
    team: Annotated[str, typer.Argument(metavar="TEAM", help="The team's id.")],
    period: Annotated[str, typer.Argument(metavar="PERIOD", help="The month, such as 2026-03.")],
    kind: Annotated[
        Literal["text", "json", "csv", "ndjson", "html"],
        typer.Option("--format", help="For people, programs, spreadsheets; html is a page to be printed."),
    ] = "text",
    as_json: AsJson = False,
) -> None:
    """Print a team's statement of a month, as the server answers it; a preview while the month is not closed.

    All of its entries are in it, however many. `saas-litellm statement acme 2026-03 --format html > acme.html`
    """
    chosen = "json" if as_json else kind
    settings = command_settings()
    with database(settings) as dsn:
        answer = asyncio.run(pieces(settings, dsn, team, period, "json" if chosen == "text" else chosen))
    if chosen == "text":
        say_statement(json.loads("".join(answer), parse_float=Decimal))
    else:
        sys.stdout.writelines(answer)


async def pieces(
    settings: Settings, dsn: str, team: str, period: str, kind: Literal["json", "csv", "ndjson", "html"]
) -> list[str]:
    """A statement from read models that know everything that was written before it was asked for."""
    from api.app import open_house  # the other commands do without
    from api.statements import statement_as

    async with open_house(settings, dsn, works=False) as house:
        await house.engine.start()  # nobody else may be there to bring the read models up to date
        await catch_up(house)
        return [piece async for piece in statement_as(house, team, period, kind)]


async def catch_up(house: "House") -> None:
    """Waits until the read models know what has been written up to now.

    Raises:
        DatabaseUnusable: they do not move.
    """
    head, before = (await house.ledger.read()).position, None
    with progress_bar("read models") as progress:
        while behind := await house.progress.reach(head, timeout_s=STANDSTILL_SECONDS):
            if house.engine.health.building:
                await asyncio.sleep(BUILDING_SECONDS)
            elif behind == before:
                raise DatabaseUnusable(f"the read models stand still, {behind} events behind; a server's log says why")
            progress(head - behind, head)
            before = behind


def say_statement(statement: dict[str, Any]) -> None:
    """A statement for a person at a terminal."""
    closed = f"closed on {statement['closed_at'][:10]}" if statement["closed_at"] else "a preview, not closed yet"
    customer = statement["organization_name"] or statement["organization_id"]
    say(f"{customer}, {statement['team_alias'] or statement['team_id']}: {statement['period']}, {closed}\n")
    say(line("", "opening balance", "", statement["opening_credits"]))
    for entry in statement["entries"]:
        about = entry["reason"] or entry["payment_reference"] or entry["job_id"] or ""
        name = TYPES.get(entry["type"], entry["type"])
        amounts = line(entry["created_at"][:10], name, f"{entry['credits']:+}", entry["credits_after"])
        say(f"{amounts}  {about}".rstrip())
    say(line("", "closing balance", "", statement["closing_credits"]))
    say(f"\ncalls behind the charges: {statement['totals']['total_cost_usd']:f} USD")
    if statement["head_hash"]:
        say(f"the ledger up to position {statement['position']}: {statement['head_hash']}")


def line(day: str, name: str, credits: str, balance: int) -> str:
    """An entry, or one of the two balances around them."""
    return f"{day:<12}{name:<22}{credits:>12}{balance:>14}"
