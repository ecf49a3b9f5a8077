"""A process full of writers: each with a ledger of its own, to an account of its own and to one that all share.

    python -m tests.infra.writers DSN NAME WRITERS COMMANDS

Prints the request of each command that was acknowledged, once all are.
"""

import asyncio
import sys

import uvloop

from tests.infra.accounts import a_ledger, grant_credits, granting, open_account, opening

SHARED = "credit-shared"
AT_ONCE = 10


async def write(dsn: str, name: str, commands: int) -> list[str]:
    own = f"credit-{name}"
    acknowledged: list[str] = []
    async with a_ledger(dsn) as ledger:
        for account in (own, SHARED):
            await ledger.carry_out(open_account, opening(account), account)

        async def some(first: int) -> None:
            for number in range(first, commands, AT_ONCE):
                request = f"{name}-{number}"
                await ledger.carry_out(grant_credits, granting(1, request), SHARED if number % 2 else own)
                acknowledged.append(request)

        await asyncio.gather(*(some(first) for first in range(AT_ONCE)))
    return acknowledged


async def main(dsn: str, name: str, writers: int, commands: int) -> None:
    for acknowledged in await asyncio.gather(*(write(dsn, f"{name}{n}", commands) for n in range(writers))):
        print("\n".join(acknowledged))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
