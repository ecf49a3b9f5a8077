"""One of everything: a house with all kinds of callers, and something behind every id that a path can name."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import psycopg
from psycopg import sql

from api.openapi import Json
from tests.api.conftest import MASTER_KEY, Server, TestTeam, make_team, running
from tests.api.people import add, set_up
from tests.conftest import _database_on


@dataclass(frozen=True)
class World:
    """A server with two teams, and what the first one has.

    Args:
        callers: a credential of each kind.
        ids: what a path may name, by the name of its parameter; all of it belongs to `team`.
        stranger: another team, of another organization.
    """

    server: Server
    admin: httpx.Client
    team: TestTeam
    stranger: TestTeam
    callers: dict[str, str]
    ids: dict[str, str]

    def path(self, template: str, **ids: str) -> str:
        """A path with what it names filled in; every `user_id` is an administrator."""
        return template.format_map(defaultdict(lambda: "unknown", {**self.ids, **ids}))

    def head(self) -> int:
        """The position of the last event in the journal."""
        with psycopg.connect(self.server.dsn) as connection:
            return head_of(connection)


def head_of(connection: psycopg.Connection[Any]) -> int:
    """The position of the last event in the journal."""
    row = connection.execute("select position from journal.head").fetchone()
    assert row is not None
    return int(row[0])


def everything_in(dsn: str) -> str:
    """All rows of all tables; what is kept as bytes is written in hex."""
    tables = """select table_schema, table_name from information_schema.tables
        where table_type = 'BASE TABLE' and table_schema not in ('pg_catalog', 'information_schema')"""
    with psycopg.connect(dsn) as connection:
        names = connection.execute(tables).fetchall()
        assert {("app", "secrets"), ("journal", "events")} <= set(names)
        return "\n".join(
            str(row)
            for name in names
            for row in connection.execute(sql.SQL("select each::text from {} as each").format(sql.Identifier(*name)))
        )


@contextmanager
def a_world(owner_dsn: str, template: str, **settings: Any) -> Iterator[World]:
    """A world on a server and a database of its own."""
    with (
        _database_on(owner_dsn, f"world_{uuid4().hex[:8]}", template) as dsn,
        running(dsn, webhook_allow_private=True, **settings) as server,
    ):
        yield make_world(server)


def make_world(server: Server) -> World:
    admin = server.client()
    owner = set_up(server)
    people = {role: add(owner, server, role) for role in ("admin", "auditor", "user")}
    team, stranger = make_team(server, admin), make_team(server, admin)

    def made(path: str, **body: Any) -> Json:
        answer = admin.post(path, json=body)
        assert answer.status_code in (200, 201), answer.text
        found: Json = answer.json()
        return found

    alias, access, group = "echo-of-the-first", "access-of-the-first", "group-of-the-first"
    made("/api/model-aliases/create", alias=alias, litellm_model="demo/echo")
    made("/api/model-access-groups/create", group_name=access, model_aliases=[alias])
    made("/api/model-groups/create", group_name=group, models=[alias])
    answer = admin.put(f"/api/teams/{team.team_id}", json={"access_groups": [access], "model_groups": [group]})
    assert answer.status_code == 200, answer.text
    credential = made(
        "/api/provider-credentials/create",
        organization_id=team.organization_id,
        provider="openai",
        credential_name="main",
        api_key="sk-provider-key-of-this-world",
    )
    webhook = made(
        "/api/webhooks/register", team_id=team.team_id, webhook_url="http://127.0.0.1:9/", events=["job.created"]
    )
    job_id = team.job(metadata={"secret": "of-the-first"})
    delivery = team.client.get(f"/api/webhooks/{webhook['webhook_id']}/deliveries").json()[0]
    ids = {
        "team_id": team.team_id,
        "organization_id": team.organization_id,
        "org_id": team.organization_id,
        "job_id": job_id,
        "key_id": team.client.get(f"/api/teams/{team.team_id}/keys").json()[0]["key_id"],
        "webhook_id": webhook["webhook_id"],
        "delivery_id": delivery["delivery_id"],
        "credential_id": credential["credential_id"],
        "user_id": people["user"].user_id,
        "alias_name": alias,
        "group_name": group,
        "provider": "openai",
        "section": "1,100",
        "period": "2024-10",
    }
    callers = {
        "master": MASTER_KEY,
        "owner": owner.token,
        **{role: person.token for role, person in people.items()},
        "team": team.key,
        "stranger": stranger.key,
    }
    return World(server, admin, team, stranger, callers, ids)
