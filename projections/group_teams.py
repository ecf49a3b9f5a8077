"""Which teams use which groups: one row a team in a group. The catalog itself only counts them."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from domain.catalog import GroupsUsed
from infra.journal import Connection
from projections.projection import Batch, Projection, Statement
from projections.reading import fetch_all

Kind = Literal["access_group", "model_group"]

DDL = """
create table group_teams (
    kind       text not null,
    group_name text not null,
    team_id    text not null,
    primary key (kind, group_name, team_id)
);
"""

_LEAVE = """
delete from group_teams using json_to_recordset(%s) as change (kind text, group_name text, team_id text)
where group_teams.kind = change.kind and group_teams.group_name = change.group_name
  and group_teams.team_id = change.team_id
"""

_JOIN = """
insert into group_teams (kind, group_name, team_id)
select kind, group_name, team_id
from json_to_recordset(%s) as change (kind text, group_name text, team_id text)
on conflict do nothing
"""

_OF_GROUPS = """
select kind, group_name, team_id from group_teams
where kind = %(kind)s and group_name = any (%(names)s)
order by group_name, team_id
"""


class Membership(msgspec.Struct, frozen=True):
    """A team that uses a group."""

    kind: Kind
    group_name: str
    team_id: str


def project(batch: Batch) -> Iterable[Statement]:
    latest: dict[Membership, bool] = {}
    for event in batch.of(GroupsUsed):
        changes: Sequence[tuple[Kind, Iterable[str], bool]] = (
            ("access_group", event.access_groups_removed, False),
            ("model_group", event.model_groups_removed, False),
            ("access_group", event.access_groups_added, True),
            ("model_group", event.model_groups_added, True),
        )
        for kind, names, is_in in changes:
            for name in names:
                latest[Membership(kind, name, event.team_id)] = is_in
    yield _LEAVE, [membership for membership, is_in in latest.items() if not is_in]
    yield _JOIN, [membership for membership, is_in in latest.items() if is_in]


async def of_groups(connection: Connection, kind: Kind, names: Iterable[str]) -> dict[str, list[str]]:
    """The teams of each of these groups, by name. A group that nobody uses is left out."""
    teams: dict[str, list[str]] = {}
    for row in await fetch_all(connection, Membership, _OF_GROUPS, {"kind": kind, "names": list(names)}):
        teams.setdefault(row.group_name, []).append(row.team_id)
    return teams


GROUP_TEAMS = Projection(
    name="group_teams", version=1, tables=("group_teams",), ddl=DDL, project=project, wants=(GroupsUsed,)
)
