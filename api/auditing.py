"""`saas-litellm verify` and `checkpoint`: what is right is said, what is wrong is named, what is so is signed."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from api.console import progress_bar, say, say_json
from api.database import as_it_is, database
from infra import log as logging
from infra import postgres, readable
from infra.embedded import DatabaseUnusable
from infra.receipts import Checkpoint, HistoryRewritten, Notary
from infra.secrets import KeyRing, SecretStore
from infra.settings import Settings
from infra.verify import Verification
from infra.verify import verify as verify_journal
from projections.afresh import compare_rows
from projections.audit import Report, audit
from projections.webhook_deliveries import WEBHOOKS

NO_JOURNAL = "there is no journal in this database yet; `saas-litellm migrate` makes one"
PUBLISH_SECONDS = 30.0
SHOWN = 50  # findings; --json has more

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, one object a line.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="DSN", help="Another one: a replica, a restored backup; any role that may read."
    ),
]


def verify(
    first: Annotated[int, typer.Option("--from", min=1, help="The first position; what is before it is trusted.")] = 1,
    last: Annotated[int | None, typer.Option("--to", min=1, help="The last position; the head without it.")] = None,
    noted: Annotated[
        list[str] | None, typer.Option(metavar="POSITION:HASH", help="What an earlier run said; may be repeated.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep/--quick", help="Replay everything and run all checks, or the hash chain only.")
    ] = True,
    dsn: Database = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the hash chain, replay the journal and compare. Exit code 1 and the places if anything differs.

    With --from or --to only the chain of that part is looked at.
    """
    hashes = dict(map(noted_down, noted or []))
    for position in hashes:
        if position < first or (last is not None and position > last):
            raise typer.BadParameter(f"position {position} would not be looked at", param_hint="--noted")
    report: Report | None = None
    with database_to_read(dsn) as place, readable.connect_blocking(place) as connection:
        [(head,)] = connection.execute("select coalesce(max(position), 0) from journal.head").fetchall()
        until = min(head, last or head)
        with progress_bar("hash chain") as progress:
            result = verify_journal(
                connection,
                first,
                last,
                noted=hashes,
                progress=lambda position: progress(position - first + 1, until - first + 1),
            )
        if deep and first == 1 and last is None:
            report = audited(place)
    if as_json:
        say_json({**asdict(result), "audit": None if report is None else asdict(report)})
    else:
        say_verified(result)
        if report is not None:
            say_audited(report)
        if result.first_break is None:
            say(f"to note down: {result.to_position}:{result.hash}")
    if result.first_break is not None or (report is not None and report.found):
        raise typer.Exit(1)


def audited(dsn: str) -> Report:
    """Replays the journal, runs all checks, and compares every row of every read model."""
    from api.app import PROJECTIONS  # the other commands do without

    async def compare(report: Report, progress: Callable[[int, int], None]) -> None:
        async with await readable.connect(dsn) as connection:
            await compare_rows(connection, (*PROJECTIONS, WEBHOOKS), report, progress)

    with readable.connect_blocking(dsn) as connection, progress_bar("audit") as progress:
        report = audit(connection, lambda _, done, total: progress(done, total))
    started = time.perf_counter()
    with progress_bar("read models") as progress:
        asyncio.run(compare(report, progress))
    report.seconds += time.perf_counter() - started
    return report


def checkpoint(
    publish: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="A file for auditors and customers to find, or a URL that takes it with PUT."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign how the journal is now: size and Merkle root, as a note that anybody can verify with the public key."""
    settings = command_settings()
    with database(settings) as dsn:
        signed, key = asyncio.run(_sign(settings, dsn))
    if signed is None:
        raise typer.BadParameter("the journal is empty")
    if publish is not None and publish.startswith(("https://", "http://")):
        asyncio.run(_put(publish, signed.note))
    elif publish is not None:
        _write(Path(publish), signed.note)
    if as_json:
        say_json({"size": signed.size, "root": signed.root.hex(), "note": signed.note, "verifier_key": key})
    elif publish is None:
        say(signed.note.rstrip("\n"))
    else:
        say(f"{publish}: {signed.size} events, root {signed.root.hex()}")
        say(f"verifier key: {key}")


async def _sign(settings: Settings, dsn: str) -> tuple[Checkpoint | None, str]:
    pool = await postgres.open_pool(dsn, size=2, name="saas-litellm checkpoint", statement_timeout_ms=0)
    try:
        notary = Notary(pool, SecretStore(pool, KeyRing(*settings.encryption_keys)))
        return await notary.checkpoint(), (await notary.signer()).verifier_key
    except HistoryRewritten as problem:
        raise DatabaseUnusable(f"nothing is signed: {problem}") from problem
    finally:
        await pool.close()


def _write(file: Path, note: str) -> None:
    """Beside it first, so that nobody finds half a note."""
    draft = file.with_name(f".{file.name}.draft")
    try:
        draft.write_text(note)
        draft.replace(file)
    except OSError as problem:
        raise typer.BadParameter(f"{file}: {problem.strerror}", param_hint="--publish") from problem


async def _put(url: str, note: str) -> None:
    import aiohttp  # the other commands do without

    patience = aiohttp.ClientTimeout(PUBLISH_SECONDS)
    headers = {"Content-Type": "text/plain"}
    try:
        async with (
            aiohttp.ClientSession(timeout=patience, headers=headers) as session,
            session.put(url, data=note.encode(), allow_redirects=False) as answer,
        ):
            if not 200 <= answer.status < 300:  # a redirection takes nothing either
                raise typer.BadParameter(f"{url}: it answered {answer.status}", param_hint="--publish")
    except (aiohttp.ClientError, TimeoutError) as problem:
        why = str(problem) or f"no answer within {PUBLISH_SECONDS:.0f} seconds"
        raise typer.BadParameter(f"{url}: {why}", param_hint="--publish") from problem


def say_verified(result: Verification) -> None:
    found = result.first_break
    if found is not None:
        say(f"BROKEN at position {found.position} ({found.kind}): {found.detail}")
        return
    speed = f"{result.events / result.seconds:,.0f} a second" if result.seconds else "at once"
    say(f"positions {result.from_position} to {result.to_position}: {result.events} events, {speed}, nothing changed")


def say_audited(report: Report) -> None:
    for finding in report.findings[:SHOWN]:
        place = "" if finding.position is None else f" at position {finding.position}"
        say(f"WRONG{place}: {finding.subject} ({finding.check}): {finding.detail}")
    if report.found > SHOWN:
        say(f"... and {report.found - SHOWN} more")
    for name in report.skipped:
        say(f"not compared: {name}")
    found = f"{report.found} things are wrong" if report.found else "everything agrees"
    say(f"{report.events} events replayed, {len(report.checks)} checks, {report.seconds:,.1f} seconds: {found}")


def noted_down(text: str) -> tuple[int, str]:
    """A position and its hash, as `verify` said them."""
    found = readable.noted_down(text)
    if found is None:
        raise typer.BadParameter(f"{text} is not POSITION:HASH", param_hint="--noted")
    return found


def command_settings() -> Settings:
    """The settings of a command: what it does is its answer, so only trouble is logged."""
    logging.configure("error", "console")
    return Settings.from_environment(os.environ)


@contextmanager
def database_to_read(dsn: str | None) -> Iterator[str]:
    """Where the journal is: ours, or another one."""
    with as_it_is(command_settings()) if dsn is None else nullcontext(dsn) as place:
        with readable.connect_blocking(place) as connection:
            if connection.execute("select to_regclass('journal.events')").fetchall() == [(None,)]:
                raise DatabaseUnusable(NO_JOURNAL)
        yield place
