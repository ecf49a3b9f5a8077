"""The PostgreSQL that a process works on: the one of DATABASE_URL, else our own for as long as somebody needs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from infra import postgres
from infra.embedded import EmbeddedServer
from infra.settings import Settings


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """Gives the address of the database, migrated. The embedded one is shared with whoever has it open already.

    Raises:
        DatabaseUnusable: and the text says why in one line.
    """
    with as_it_is(settings) as dsn:
        if settings.database_url is not None:
            postgres.require_safe_role(dsn, embedded=False)
        postgres.migrate(dsn)
        yield dsn


@contextmanager
def as_it_is(settings: Settings) -> Iterator[str]:
    """Gives the address of the database and changes nothing in it, so that it may be a replica or a backup."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = EmbeddedServer(settings.data_dir)
    server.start()
    try:
        yield server.dsn
    finally:
        server.stop()
