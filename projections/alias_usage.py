"""What was called through each alias: one row an alias. A name that is given anew begins anew."""

from collections.abc import Iterable
from decimal import Decimal

import msgspec

from domain.catalog import AliasCreated
from domain.job import CallFinished
from domain.pricing import ZERO, add
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import fetch_one

DDL = """
create table alias_usage (
    model_alias     text primary key,
    calls           bigint not null default 0,
    tokens          bigint not null default 0,
    client_cost_usd numeric not null default 0
);
"""

_BEGIN = """
delete from alias_usage using json_to_recordset(%s) as created (model_alias text)
where alias_usage.model_alias = created.model_alias
"""

_ADD = """
insert into alias_usage (model_alias, calls, tokens, client_cost_usd)
select model_alias, calls, tokens, client_cost_usd
from json_to_recordset(%s) as change (model_alias text, calls bigint, tokens bigint, client_cost_usd numeric)
on conflict (model_alias) do update
set calls = alias_usage.calls + excluded.calls,
    tokens = alias_usage.tokens + excluded.tokens,
    client_cost_usd = alias_usage.client_cost_usd + excluded.client_cost_usd
"""

_ONE = "select model_alias, calls, tokens, client_cost_usd from alias_usage where model_alias = %(model_alias)s"


class AliasName(msgspec.Struct):
    model_alias: str


class AliasUsage(msgspec.Struct):
    """The calls that an alias answered."""

    model_alias: str
    calls: int = 0
    tokens: int = 0
    client_cost_usd: Decimal = ZERO


def project(batch: Batch) -> Iterable[Statement]:
    begun: dict[str, AliasName] = {}
    used: dict[str, AliasUsage] = {}
    for recorded in batch.recorded(AliasCreated, CallFinished):
        match recorded.event:
            case AliasCreated(model_alias=name):
                begun[name] = AliasName(name)
                used.pop(name, None)
            case CallFinished(alias=str(name)) as event:
                usage = used.setdefault(name, AliasUsage(name))
                usage.calls += 1
                usage.tokens += event.prompt_tokens + event.completion_tokens
                usage.client_cost_usd = add(usage.client_cost_usd, event.client_cost_usd)
    yield _BEGIN, list(begun.values())
    yield _ADD, list(used.values())


async def one(connection: Connection, model_alias: str) -> AliasUsage:
    """What an alias was used for since it has this name."""
    found = await fetch_one(connection, AliasUsage, _ONE, {"model_alias": model_alias})
    return found or AliasUsage(model_alias)


ALIAS_USAGE = Projection(
    name="alias_usage", version=1, tables=("alias_usage",), ddl=DDL, project=project, wants=(AliasCreated, CallFinished)
)
