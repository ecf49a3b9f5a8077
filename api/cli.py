"""The command line: `saas-litellm --help`.

Settings come from the environment, as they do for the server. Every command works beside a running server as well as
without one: the embedded PostgreSQL is shared with whoever has it open, and what a command writes goes through the
same ledger as everything else.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import psycopg
import typer

from api.auditing import NO_JOURNAL, checkpoint, verify
from api.console import event_line, facts, progress_bar, say, say_json
from api.database import as_it_is, database
from api.printing import statement
from domain.credit import Account, CreditMovement, CreditsGranted, GrantCredits, grant_to_team, require_account
from domain.errors import NotFound, Refusal
from domain.event import Command, Event
from domain.pricing import MOST_CREDITS
from domain.streams import CREDIT, KEY, TEAM
from domain.team import IssueKey, issue_key
from domain.user import Role, User
from infra import log as logging
from infra import postgres, readable
from infra.embedded import DatabaseUnusable
from infra.ids import new_id
from infra.journal import Connection, PoisonEvent
from infra.ledger import Ledger, Outcome, Unavailable
from infra.passwords import is_acceptable
from infra.secrets import hash_key, mask_key, new_virtual_key
from infra.settings import Settings, SettingsError
from projections import evidence

T = TypeVar("T")

FOLLOW_SECONDS = 0.5

app = typer.Typer(
    name="saas-litellm",
    help="An event-sourced ledger for companies that resell LLM work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
credits_app = typer.Typer(help="Credits of a team.", no_args_is_help=True)
keys_app = typer.Typer(help="Virtual keys of a team.", no_args_is_help=True)
users_app = typer.Typer(help="Administrators: people who log in.", no_args_is_help=True)
app.add_typer(credits_app, name="credits")
app.add_typer(keys_app, name="keys")
app.add_typer(users_app, name="users")

Team = Annotated[str, typer.Argument(metavar="TEAM", help="The team's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, one object a line.")]


@app.callback()
def house() -> None:
    """Settings come from the environment; see docs/operations.md."""


# -- running -----------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    api_only: Annotated[bool, typer.Option("--api-only", help="Leave the background work to `work`.")] = False,
) -> None:
    """Serve the API. Without DATABASE_URL it starts a PostgreSQL of its own in DATA_DIR."""
    from api import server  # the other commands do without, and start in a third of the time

    server.serve(running_settings(), api_only=api_only)


@app.command()
def work() -> None:
    """Do the background work only, beside servers that were started with --api-only."""
    from api import server

    server.work(running_settings())


@app.command()
def migrate(as_json: AsJson = False) -> None:
    """Bring the database to what this version needs. Safe to repeat, and to run from several machines at once."""
    settings = quiet_settings()
    with as_it_is(settings) as dsn:
        postgres.require_safe_role(dsn, embedded=settings.embedded)
        applied = postgres.migrate(dsn)
    if as_json:
        say_json({"applied": applied})
    else:
        say("\n".join(f"applied {name}" for name in applied) or "nothing to do")


@app.command()
def demo(
    url: Annotated[str | None, typer.Option(help="A running server; without it, one is started for the demo.")] = None,
    key: Annotated[str | None, typer.Option(help="Its master key; without it, the one in DATA_DIR is used.")] = None,
) -> None:
    """Play the whole story against a server and print it: requests, answers, and what the journal says of them."""
    import httpx

    from api.demo import DidNotStart, play_afresh, play_against

    try:
        if url is None:
            went_well = play_afresh()
        else:
            settings = quiet_settings()
            address = settings.data_dir / "postgres" / "dsn"
            dsn = settings.database_url or (address.read_text().strip() if address.exists() else None)
            went_well = play_against(url, key or settings.master_key, dsn=dsn)
    except DidNotStart as problem:
        give_up(f"the server for the demo did not start: {problem}")
    except httpx.HTTPError as problem:
        reason, *_ = str(problem).splitlines()
        give_up(f"the server does not answer as it should: {reason}")
    raise typer.Exit(0 if went_well else 1)


@app.command()
def openapi() -> None:
    """Print the OpenAPI document of the server (`make openapi` keeps it in openapi.json)."""
    from api.app import described

    say(msgspec.json.format(msgspec.json.encode(described())).decode())


# -- looking -----------------------------------------------------------------------------------------------------------


@app.command()
def events(
    stream: Annotated[str | None, typer.Argument(help="For example job-<id> or credit-<team>; all without it.")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="The first ones behind this position.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they are written, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the journal: the latest events, or those behind a position, of one stream or of all."""

    async def show_behind(connection: Connection, position: int, most: int) -> int:
        """Prints page by page, and gives the last position that was printed."""
        while page := await readable.lines(connection, stream=stream, after=position, limit=min(most, readable.PAGE)):
            for line in page:
                say_json(line) if as_json else say(event_line(line))
            position, most = page[-1].position, most - len(page)
        return position

    async def show(connection: Connection) -> None:
        latest = await readable.before_latest(connection, 0, stream=stream)
        if stream is not None and not latest and not follow:
            raise NotFound(f"stream {stream}")
        position = await readable.before_latest(connection, limit, stream=stream) if after is None else after
        position = await show_behind(connection, position, limit)
        while follow:
            await asyncio.sleep(FOLLOW_SECONDS)
            position = await show_behind(connection, position, sys.maxsize)

    reading(show)


@app.command()
def replay(team: Team, as_json: AsJson = False) -> None:
    """Add up a team's credits from nothing, event by event, and compare with what was recorded each time."""

    async def add_up(connection: Connection) -> bool:
        account: Account | None = None
        agrees = True
        async for written in evidence.of_stream(connection, CREDIT.stream(team)):
            event = evidence.event_of(written)
            before, account = account, evidence.account_after(account, event, written)
            agrees &= show_movement(written.position, event, before, account, as_json=as_json)
        account = require_account(account)
        if not as_json:
            say(
                f"\n{account.allocated} given - {account.used} used = {account.remaining} remaining, "
                f"{account.held} held; {'every event agrees' if agrees else 'NOT every event agrees'}"
            )
        return agrees

    if not reading(add_up):
        raise typer.Exit(1)


def show_movement(position: int, event: Event, before: Account | None, after: Account, *, as_json: bool) -> bool:
    """Print what an event did to an account; says whether the event recorded just that."""
    agrees = not isinstance(event, CreditMovement) or (
        (event.remaining_credits, event.held_credits, event.allocated_credits)
        == (after.remaining, after.held, after.allocated)
    )
    change = after.remaining - (before.remaining if before else 0)
    held = after.held - (before.held if before else 0)
    if as_json:
        movement = {
            "position": position,
            "at": event.at,
            "event": type(event).__name__,
            "credits": change,
            "held": held,
            "credits_remaining": after.remaining,
            "credits_held": after.held,
            "job_id": getattr(event, "job_id", None),
            "agrees": agrees,
        }
        say_json(movement)
        return agrees
    moved = (f"{change:+}" if change else "", f"{held:+} held" if held else "")
    why = getattr(event, "job_id", None) or getattr(event, "reason", None) or ""
    say(
        f"{position:>7}  {event.at:%Y-%m-%d %H:%M:%S}  {type(event).__name__:<15}{moved[0]:>8}{moved[1]:>10}"
        f"{after.remaining:>10} remaining{after.held:>6} held  {why}{'' if agrees else '  << RECORDED OTHERWISE'}"
    )
    return agrees


app.command()(verify)
app.command()(checkpoint)
app.command()(statement)


@app.command()
def rebuild(
    name: Annotated[str, typer.Argument(help="The read model, such as balances.")], as_json: AsJson = False
) -> None:
    """Build a read model again from the first event on, compare, and put it in place. Nobody has to wait for it."""
    from api.app import read_models
    from projections.rebuild import AlreadyRebuilding
    from projections.rebuild import rebuild as build_again

    settings = quiet_settings()
    projections = {each.name: each for each in read_models(settings)}
    projection = projections.get(name)
    if projection is None:
        give_up(f"no read model {name}; there are {', '.join(sorted(projections))}")

    async def build(dsn: str, progress: Callable[[int, int], None]) -> None:
        async with await postgres.connect(dsn, name="saas-litellm rebuild") as connection:
            rebuilt = await build_again(connection, projection, progress)
        if as_json:
            say_json({"name": name, **{field: getattr(rebuilt, field) for field in rebuilt.__slots__}})
            return
        differing = rebuilt.differing_rows
        verdict = "by a new definition" if differing is None else f"rows that differ from before: {differing}"
        say(f"{name}: built up to position {rebuilt.position}, rows: {rebuilt.rows}, {verdict}")

    with database(settings) as dsn, progress_bar(f"rebuild {name}") as progress:
        try:
            asyncio.run(build(dsn, progress))
        except AlreadyRebuilding:
            give_up("somebody else is rebuilding a read model just now")
        except psycopg.errors.UndefinedTable:
            give_up(f"{name} has never been built; the server builds it when it starts")


# -- writing -----------------------------------------------------------------------------------------------------------


@credits_app.command("grant")
def grant(
    team: Team,
    amount: Annotated[int, typer.Argument(min=1, max=MOST_CREDITS, help="How many credits.")],
    reason: Annotated[str | None, typer.Option(help="What the ledger entry says.")] = None,
    as_json: AsJson = False,
) -> None:
    """Grant credits to a team."""
    outcome = carry_out(
        grant_to_team,
        partial(GrantCredits, transaction_id=new_id(), credits=amount, source="allocation", reason=reason),
        CREDIT.stream(team),
        TEAM.stream(team),
    )
    granted = next(event for event in outcome.events if isinstance(event, CreditsGranted))
    if as_json:
        say_json(
            {
                "team_id": team,
                "credits_added": granted.credits,
                "credits_remaining": granted.remaining_credits,
                "transaction_id": granted.transaction_id,
                "position": outcome.position,
            }
        )
    else:
        say(f"{team}: {granted.credits} credits granted, {granted.remaining_credits} remaining")


@keys_app.command("issue")
def issue(
    team: Team,
    name: Annotated[str | None, typer.Option(help="What to tell the key by.")] = None,
    as_json: AsJson = False,
) -> None:
    """Issue a further virtual key. It is printed this once: the journal knows it by its hash only."""
    key, key_id = new_virtual_key(), new_id()
    key_hash = hash_key(key)
    carry_out(
        issue_key,
        partial(IssueKey, key_id=key_id, key_hash=key_hash, masked=mask_key(key), name=name),
        TEAM.stream(team),
        KEY.stream(key_hash),
    )
    if as_json:
        say_json({"key_id": key_id, "team_id": team, "name": name, "virtual_key": key})
    else:
        say(key)


@users_app.command("create")
def create(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="To log in with.")],
    name: Annotated[str | None, typer.Option(help="The name to show; the e-mail without it.")] = None,
    role: Annotated[Role, typer.Option(help="What the person may do.")] = "owner",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input, without asking.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an administrator; the password is asked for. An owner can do everything, also make others over HTTP."""
    from api.admin_users import Email, add_user
    from api.app import open_house

    password = sys.stdin.readline().rstrip("\n") if password_stdin else ask_password()
    try:
        msgspec.convert(email, Email)
    except msgspec.ValidationError:
        give_up(f"{email} is not an e-mail address")
    if not is_acceptable(password):
        give_up("a password has 8 to 1024 characters")

    async def added(dsn: str) -> User:
        async with open_house(settings, dsn, works=False) as house:
            return await add_user(house, email=email, display_name=name or email, password=password, role=role)

    settings = quiet_settings()
    with database(settings) as dsn:
        user = asyncio.run(added(dsn))
    if as_json:
        say_json({"user_id": user.user_id, "email": user.email, "role": user.role})
    else:
        say(f"{user.role} {user.email} made: {user.user_id}")


def ask_password() -> str:
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


def carry_out(decide: Callable[..., Any], command: Callable[..., Command], *streams: str) -> Outcome:
    """Carry out a command in the operator's name, who could as well use the master key."""

    async def decided(dsn: str) -> Outcome:
        ledger = Ledger(partial(postgres.connect, dsn, name="saas-litellm command"))
        await ledger.start()
        try:
            wish = command(at=datetime.now(UTC), by="master", request=f"cli-{new_id()}")
            return await ledger.carry_out(decide, wish, *streams)
        finally:
            await ledger.stop()

    with database(quiet_settings()) as dsn:
        return asyncio.run(decided(dsn))


# -- what the commands have in common ----------------------------------------------------------------------------------


def reading(read: Callable[[Connection], Awaitable[T]]) -> T:
    """Read the journal on a connection that can change nothing."""

    async def read_on(dsn: str) -> T:
        async with await readable.connect(dsn) as connection:
            if not await readable.exists(connection):
                raise DatabaseUnusable(NO_JOURNAL)
            return await read(connection)

    with as_it_is(quiet_settings()) as dsn:
        return asyncio.run(read_on(dsn))


def running_settings() -> Settings:
    """The settings of a process that stays, and logs."""
    settings = Settings.from_environment(os.environ)
    logging.configure(settings.log_level, settings.log_format)
    return settings


def quiet_settings() -> Settings:
    """The settings of a command: what it does is its answer, so only trouble is logged."""
    settings = Settings.from_environment(os.environ)
    logging.configure("error", "console")
    return settings


def give_up(line: str, status: int = 2) -> NoReturn:
    sys.stderr.write(f"saas-litellm: {line}\n")
    raise SystemExit(status)


@contextmanager
def in_one_line() -> Iterator[None]:
    """What an operator can mend is told in one line, not in a traceback."""
    try:
        yield
    except (SettingsError, DatabaseUnusable, Unavailable) as problem:
        give_up(str(problem))
    except Refusal as refusal:
        give_up(f"{refusal.code} {facts(refusal.facts)}".strip(), status=1)
    except PoisonEvent as problem:
        give_up(str(problem), status=1)
    except psycopg.Error as problem:
        give_up(str(problem).strip().partition("\n")[0])
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def main() -> None:
    """The entry point of the console script."""
    with in_one_line():
        app(prog_name="saas-litellm")


if __name__ == "__main__":
    main()
