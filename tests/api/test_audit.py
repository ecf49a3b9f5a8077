"""What an auditor sees over HTTP: the journal with its hashes, balances added up again, and the reasons for them."""

import csv
import hashlib
import io
import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from eventsourcing.application import NotificationLog, ProcessingEvent, Section
from eventsourcing.persistence import Notification
from eventsourcing.system import ProcessApplication

from api import audit
from domain.credit import CreditsCharged
from projections import evidence
from tests.api.conftest import Server, TestTeam, make_alias, make_team, running
from tests.api.people import Person, add, code, set_up
from tests.provider import FakeProvider

NDJSON = {"Accept": "application/x-ndjson"}
MISMATCHES = "saas_replay_mismatches_total"
ENDPOINTS = ["head", "events", "verify", "teams/none/replay", "explain?team_id=none", "notifications/1,10"]


@dataclass(frozen=True)
class Story:
    """A team of consumption mode whose job called a model twice, was charged and refunded a credit."""

    team: TestTeam
    job_id: str
    charged: int


@pytest.fixture(scope="module")
def story(server: Server, admin: httpx.Client, provider: FakeProvider) -> Story:
    team = make_team(server, admin, credits=1000, budget_mode="consumption_usd", credits_per_dollar=1000)
    alias, job_id = make_alias(admin, provider, "usage-1000-2000"), team.job()
    for _ in range(2):
        body = {"model": alias, "messages": [{"role": "user", "content": "Hello"}]}
        assert team.client.post(f"/api/jobs/{job_id}/llm-call", json=body).status_code == 200
    ended = team.client.post(f"/api/jobs/{job_id}/complete", json={"status": "completed"})
    charged = ended.json()["costs"]["credits_charged"]
    refund = admin.post(f"/api/credits/teams/{team.team_id}/refund", json={"job_id": job_id, "credits": 1})
    assert refund.status_code == 200, refund.text
    return Story(team, job_id, charged)


@pytest.fixture(scope="session")  # a server has its first owner once, even if these tests do not follow one another
def owner(server: Server) -> Person:
    return set_up(server)


def get(client: httpx.Client, path: str, **query: Any) -> Any:
    answer = client.get(f"/api/audit/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def lines(client: httpx.Client, path: str, **query: Any) -> list[Any]:
    answer = client.get(f"/api/audit/{path}", params=query, headers=NDJSON)
    assert answer.status_code == 200, answer.text
    assert "application/x-ndjson" == answer.headers["Content-Type"].partition(";")[0]
    return [json.loads(line) for line in answer.text.splitlines()]


# -- who may -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ENDPOINTS)
def test_an_auditor_reads_what_a_mere_user_and_a_team_may_not(
    server: Server, owner: Person, team: TestTeam, path: str
) -> None:
    auditor, user = add(owner, server, "auditor"), add(owner, server, "user")
    assert (auditor.client.get(f"/api/audit/{path}").status_code, "none" in path) in ((200, False), (404, True))
    assert (403, "role_forbidden") == code(user.client.get(f"/api/audit/{path}"))
    assert (403, "admin_required") == code(team.client.get(f"/api/audit/{path}"))


def test_an_auditor_changes_nothing(server: Server, owner: Person, team: TestTeam) -> None:
    auditor = add(owner, server, "auditor")
    answer = auditor.client.post("/api/credits/add", json={"team_id": team.team_id, "amount": 1})
    assert (403, "role_forbidden") == code(answer)


# -- events ------------------------------------------------------------------------------------------------------------


def test_whoever_has_the_raw_events_can_compute_the_hash_of_the_head(admin: httpx.Client, story: Story) -> None:
    head = get(admin, "head")
    chained = bytes(32)
    for event in lines(admin, "events", raw="true", limit=head["position"]):
        said = event["stream"].encode() + b"\0" + event["version"].to_bytes(8) + event["type"].encode() + b"\0"
        chained = hashlib.sha256(chained + said + event["state"].encode()).digest()
        assert event["hash"] == chained.hex()
        assert event["event"] == json.loads(event["state"])
    assert head["hash"] == chained.hex()


def test_pages_of_events_follow_one_another(admin: httpx.Client, story: Story) -> None:
    whole, after = lines(admin, "events"), 0
    paged: list[Any] = []
    while after is not None and len(paged) < len(whole):
        page = get(admin, "events", after=after, limit=7)
        assert len(page["events"]) <= 7
        paged += page["events"]
        after = page["next_after"]
    assert whole == paged[: len(whole)]


def test_a_stream_goes_on_where_its_last_page_ended(admin: httpx.Client, story: Story) -> None:
    stream = f"credit-{story.team.team_id}"
    whole = lines(admin, "events", stream=stream)
    first = get(admin, "events", stream=stream, limit=2)
    rest = get(admin, "events", stream=stream, after=first["next_after"])
    assert whole == first["events"] + rest["events"]
    assert [*range(1, len(whole) + 1)] == [event["version"] for event in whole]
    assert rest["next_after"] is None


def test_the_events_of_a_team_are_all_of_its_own_and_nobody_elses(
    server: Server, admin: httpx.Client, story: Story
) -> None:
    liar = make_team(server, admin)
    lie = liar.job(metadata={"team_id": story.team.team_id})
    found = lines(admin, "events", team_id=story.team.team_id)
    streams = {event["stream"] for event in found}
    assert {f"credit-{story.team.team_id}", f"team-{story.team.team_id}", f"job-{story.job_id}"} <= streams
    assert f"job-{lie}" not in streams
    types = [event["type"] for event in found if event["stream"] == f"job-{story.job_id}"]
    whole = [event["type"] for event in lines(admin, "events", stream=f"job-{story.job_id}")]
    assert whole == types


def test_events_of_one_type_of_one_team(admin: httpx.Client, story: Story) -> None:
    [charge] = get(admin, "events", type="CreditsCharged", team_id=story.team.team_id)["events"]
    assert (story.job_id, story.charged) == (charge["event"]["job_id"], charge["event"]["credits"])


@pytest.mark.parametrize(
    "query,place",
    [
        ({"type": "Nonsense"}, "type"),
        ({"limit": 1001}, "limit"),
        ({"limit": 0}, "limit"),
        ({"after": -1}, "after"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(admin: httpx.Client, query: dict[str, Any], place: str) -> None:
    answer = admin.get("/api/audit/events", params=query)
    assert (422, ["query", place]) == (answer.status_code, answer.json()["detail"][0]["loc"])


def test_long_answers_are_put_together_from_pages(
    admin: httpx.Client, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    team_id = story.team.team_id
    questions: list[tuple[str, dict[str, Any]]] = [
        ("events", {"limit": get(admin, "head")["position"]}),
        ("events", {"team_id": team_id}),
        ("events", {"stream": f"credit-{team_id}"}),
        ("events", {"type": "CreditsHeld"}),
        (f"teams/{team_id}/replay", {}),
    ]
    whole = [lines(admin, path, **query) for path, query in questions]
    monkeypatch.setattr(audit, "PAGE", 3)
    monkeypatch.setattr(evidence, "WINDOW", 5)
    monkeypatch.setattr(evidence, "MOST_LOOKED_AT", 11)
    assert whole == [lines(admin, path, **query) for path, query in questions]


# -- verify ------------------------------------------------------------------------------------------------------------


def test_the_chain_is_verified_from_any_position_and_against_what_was_noted(admin: httpx.Client, story: Story) -> None:
    head = get(admin, "head")
    whole = get(admin, "verify", to=head["position"], noted=f"{head['position']}:{head['hash'].upper()}")
    assert (True, head["hash"], head["position"], None) == (
        whole["ok"],
        whole["hash"],
        whole["events"],
        whole["next_from"],
    )
    part = get(admin, "verify", **{"from": 5, "to": 9})
    assert (True, 5, 5, 9) == (part["ok"], part["events"], part["from_position"], part["to_position"])
    lied = get(admin, "verify", noted=f"3:{'00' * 32}")
    assert (False, 3, "noted") == (lied["ok"], lied["first_break"]["position"], lied["first_break"]["kind"])


def test_a_break_is_counted(admin: httpx.Client, story: Story) -> None:
    def counted() -> float:
        figures = admin.get("/metrics").text
        return next(float(line.split()[1]) for line in figures.splitlines() if line.startswith(MISMATCHES))

    before = counted()
    get(admin, "verify", to=5)
    assert before == counted()
    get(admin, "verify", noted=f"3:{'00' * 32}")
    assert before + 1 == counted()


@pytest.mark.parametrize(
    "query,place",
    [
        ({"from": 10**9}, "from"),
        ({"from": 0}, "from"),
        ({"from": 5, "to": 4}, "to"),
        ({"noted": "nonsense"}, "noted"),
        ({"noted": "3:beef"}, "noted"),
        ({"noted": f"three:{'00' * 32}"}, "noted"),
    ],
)
def test_what_cannot_be_verified_is_refused(
    admin: httpx.Client, story: Story, query: dict[str, Any], place: str
) -> None:
    answer = admin.get("/api/audit/verify", params=query)
    assert (422, ["query", place]) == (answer.status_code, answer.json()["detail"][0]["loc"])


# -- replay ------------------------------------------------------------------------------------------------------------


def test_a_replay_from_nothing_ends_at_the_balance(admin: httpx.Client, story: Story) -> None:
    replay = get(admin, f"teams/{story.team.team_id}/replay")
    balance = story.team.client.get("/api/credits/balance").json()
    for field in ("credits_allocated", "credits_used", "credits_remaining", "credits_held"):
        assert balance[field] == replay[field] == replay["movements"][-1][field]
    assert replay["agrees"]
    assert 1000 - story.charged + 1 == sum(movement["credits_change"] for movement in replay["movements"])


def test_a_replay_until_a_position_is_the_balance_as_of_it(admin: httpx.Client, story: Story) -> None:
    team_id = story.team.team_id
    movements = lines(admin, f"teams/{team_id}/replay")
    for movement in movements[1:]:
        position = movement["position"]
        as_of = admin.get("/api/credits/balance", params={"team_id": team_id, "as_of": position}).json()
        replay = get(admin, f"teams/{team_id}/replay", until=position)
        assert replay["movements"][-1] == movement
        assert (as_of["credits_remaining"], as_of["credits_held"]) == (
            replay["credits_remaining"],
            replay["credits_held"],
        )


def test_a_replay_in_pages_adds_up_like_one_in_a_piece(admin: httpx.Client, story: Story) -> None:
    path = f"teams/{story.team.team_id}/replay"
    whole, paged, after = lines(admin, path), [], 0
    while after is not None:
        page = get(admin, path, after=after, limit=2)
        paged += page["movements"]
        after = page["next_after"]
        totals = {name: page[name] for name in ("credits_allocated", "credits_remaining", "credits_held")}
        assert (len(paged), totals) == (page["events"], {name: paged[-1][name] for name in totals})
    assert whole == paged
    assert whole[3:5] == lines(admin, path, after=whole[2]["position"], limit=2)


def test_a_replay_goes_past_an_event_that_nobody_can_read_and_says_so(database: str) -> None:
    with running(database) as server, server.client() as admin:
        team = make_team(server, admin, credits=5)
        admin.post("/api/credits/add", json={"team_id": team.team_id, "amount": 2})
        # The read models have seen what is about to be damaged: they would stop before it, and reads wait for them.
        assert 7 == admin.get("/api/credits/balance", params={"team_id": team.team_id}).json()["credits_remaining"]
        with psycopg.connect(database) as owner:
            owner.execute("alter table journal.events disable trigger user")
            [[position]] = owner.execute(
                "update journal.events set state = 'x' where topic = 'CreditsGranted' and originator_version = 2"
                " returning notification_id"
            ).fetchall()
        replay = get(admin, f"teams/{team.team_id}/replay")
        opened, unreadable, granted = replay["movements"]
        assert (position, "CreditsGranted", None, 0, False) == tuple(
            unreadable[name] for name in ("position", "type", "at", "credits_change", "agrees")
        )
        assert (2, 7, False) == (
            granted["credits_remaining"],
            granted["recorded"]["credits_remaining"],
            granted["agrees"],
        )
        assert (True, False) == (opened["agrees"], replay["agrees"])
        assert replay["movements"] == lines(admin, f"teams/{team.team_id}/replay")
        with psycopg.connect(database) as owner:
            owner.execute("delete from journal.events where topic = 'AccountOpened'")
            owner.execute(
                """
                update journal.events set state = convert_to('{"by":"', 'UTF8') || '\\xff'
                where topic = 'CreditsGranted' and originator_version = 2
                """
            )
        told = lines(admin, f"teams/{team.team_id}/replay")
        assert [(position, None, 0, False), (granted["position"], "master", 0, False)] == [
            (each["position"], each["by"], each["credits_remaining"], each["agrees"]) for each in told
        ]
        assert position in [each["position"] for each in lines(admin, "events") if each["event"] is None]


def test_before_its_first_moment_a_team_has_nothing(admin: httpx.Client, story: Story) -> None:
    replay = get(admin, f"teams/{story.team.team_id}/replay", until="2020-01-01")
    assert ([], 0) == (replay["movements"], replay["credits_remaining"])


def test_a_replay_comes_as_a_table_for_spreadsheets(
    admin: httpx.Client, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"teams/{story.team.team_id}/replay"
    monkeypatch.setattr(audit, "PAGE", 3)
    answer = admin.get(f"/api/audit/{path}", params={"format": "csv"})
    accepted = admin.get(f"/api/audit/{path}", headers={"Accept": "text/csv"})
    assert (answer.text, "text/csv; charset=utf-8") == (accepted.text, accepted.headers["content-type"])
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    movements = lines(admin, path)
    assert [(str(each["credits_remaining"]), each["hash"], "true") for each in movements] == [
        (row["credits_remaining"], row["hash"], row["agrees"]) for row in rows
    ]
    part = admin.get(f"/api/audit/{path}", params={"format": "csv", "after": rows[2]["position"], "limit": 4})
    assert rows[3:7] == list(csv.DictReader(io.StringIO(part.text)))


def test_a_replay_ends_at_a_position_or_at_a_moment(admin: httpx.Client, story: Story) -> None:
    for until in ("-1", "soon", "2026-02-30"):
        answer = admin.get(f"/api/audit/teams/{story.team.team_id}/replay", params={"until": until})
        [item] = answer.json()["detail"]
        assert (422, ["query", "until"]) == (answer.status_code, item["loc"])
        assert item["msg"].startswith("expected a position, ")


def test_there_is_no_replay_of_a_team_that_never_was(admin: httpx.Client) -> None:
    assert (404, "not_found") == code(admin.get("/api/audit/teams/nobody/replay"))


# -- stories and reasons -----------------------------------------------------------------------------------------------


def test_a_job_tells_its_whole_story(admin: httpx.Client, story: Story) -> None:
    told = get(admin, f"jobs/{story.job_id}")
    types = [event["type"] for event in told["events"]]
    assert ("JobCreated", 2, 2) == (types[0], types.count("CallStarted"), types.count("CallFinished"))
    assert {"CreditsHeld", "CreditsCharged", "JobCompleted", "ChargeRefunded", "CreditsRefunded"} <= set(types)
    positions = [event["position"] for event in told["events"]]
    assert sorted(positions) == positions
    assert [1000, 1000] == [call["prompt_tokens"] for call in told["calls"]]
    credits = told["credits"]
    assert (story.charged, 1) == (credits["credits_charged"], credits["credits_refunded"])
    first = get(admin, f"jobs/{story.job_id}", limit=3)
    rest = get(admin, f"jobs/{story.job_id}", after=first["next_after"])
    assert told["events"] == first["events"] + rest["events"]


@pytest.mark.parametrize("job_id", ["nonsense", "00000000-0000-4000-8000-000000000000"])
def test_there_is_no_story_of_an_unknown_job(admin: httpx.Client, job_id: str) -> None:
    assert (404, "not_found") == code(admin.get(f"/api/audit/jobs/{job_id}"))


def test_a_balance_is_explained_down_to_tokens_and_prices(admin: httpx.Client, story: Story) -> None:
    tree = get(admin, "explain", team_id=story.team.team_id)
    assert tree["balance"]["credits_allocated"] == sum(each["credits"] for each in tree["given"])
    [job] = tree["jobs"]
    assert tree["balance"]["credits_used"] == job["credits"]["credits_charged"] - job["credits"]["credits_refunded"]
    for call in job["calls"]:
        paid = 1000 * call["price_input_usd_per_million"] + 2000 * call["price_output_usd_per_million"]
        assert round(paid / 1_000_000, 8) == call["provider_cost_usd"]
    [charge] = job["credits"]["charges"]
    assert round(sum(call["client_cost_usd"] for call in job["calls"]), 6) == charge["client_cost_usd"]
    assert charge["because"].endswith(f"= {story.charged}")
    credits = job["credits"]
    kept = charge["credits_from_hold"] + credits["credits_released"] + credits["credits_still_held"]
    assert credits["credits_held"] == kept


def test_an_explanation_says_how_much_of_it_is_shown(
    admin: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = make_team(server, admin, credits=5)
    for _ in range(3):
        admin.post("/api/credits/add", json={"team_id": team.team_id, "amount": 1})
        team.job()
    monkeypatch.setattr("api.explanation.MOST_GIVEN", 2)
    tree = get(admin, "explain", team_id=team.team_id, limit=1)
    assert (2, 4, 1, 3) == (len(tree["given"]), tree["total_given"], len(tree["jobs"]), tree["total_jobs"])


def test_nobody_explains_a_team_that_never_was(admin: httpx.Client) -> None:
    assert (404, "not_found") == code(admin.get("/api/audit/explain", params={"team_id": "nobody"}))


# -- the library's own reader ------------------------------------------------------------------------------------------


class HttpLog(NotificationLog):
    """The notification log of a server, as an application of the library follows it."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def __getitem__(self, section_id: str) -> Section:
        section = get(self._client, f"notifications/{section_id}")
        items = [Notification(**{**item, "state": b64decode(item["state"])}) for item in section["items"]]
        return Section(id=section["id"], items=items, next_id=section["next_id"])

    def select(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> list[Notification]:
        first = max(1, (start or 0) + (not inclusive_of_start))
        return list(self[f"{first},{first + limit - 1}"].items)


def sections(log: NotificationLog, first: str) -> Iterator[Section]:
    section_id: str | None = first
    while section_id is not None:
        section = log[section_id]
        yield section
        section_id = section.next_id


def test_the_librarys_sections_hold_the_whole_journal(admin: httpx.Client, story: Story) -> None:
    head = get(admin, "head")["position"]
    notifications = [item for section in sections(HttpLog(admin), "1,50") for item in section.items]
    assert [*range(1, head + 1)] == [notification.id for notification in notifications][:head]
    events = lines(admin, "events", limit=head)
    assert [(event["stream"], event["version"], event["type"]) for event in events] == [
        (each.originator_id, each.originator_version, each.topic) for each in notifications[:head]
    ]


class Bookkeeper(ProcessApplication[str]):
    """An application of the library that adds up charges, wherever its own events are kept."""

    env = {"MAPPER_TOPIC": "infra.recorder:JournalMapper", "ORIGINATOR_ID_TYPE": "text"}
    charged = 0

    def policy(self, domain_event: Any, processing_event: ProcessingEvent[str]) -> None:
        if isinstance(domain_event.event, CreditsCharged):
            self.charged += domain_event.event.credits


def test_an_application_of_the_library_follows_over_http(admin: httpx.Client, story: Story) -> None:
    with Bookkeeper() as bookkeeper:
        bookkeeper.follow("ledger", HttpLog(admin))
        bookkeeper.pull_and_process("ledger")
        charged = sum(event["event"]["credits"] for event in lines(admin, "events", type="CreditsCharged"))
        assert charged == bookkeeper.charged > 0


def test_behind_the_head_a_section_is_empty(admin: httpx.Client) -> None:
    assert {"id": None, "next_id": None, "items": []} == get(admin, "notifications/1000000000,1000000010")


@pytest.mark.parametrize("section", ["nonsense", "1", "1,x", "1,2,3"])
def test_a_section_that_is_none_is_not_found(admin: httpx.Client, section: str) -> None:
    assert (404, "not_found") == code(admin.get(f"/api/audit/notifications/{section}"))
