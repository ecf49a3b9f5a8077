"""The whole story, played against a server over real HTTP and told as it goes.

Each step shows the request, what matters of the answer, and the lines of the journal that it wrote, found by the id of
the request. The story checks itself: a ✓ is something that was looked at, and a single ✗ ends it with exit code 1.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
from rich.console import Console
from rich.text import Text

from api.console import OUT, facts
from infra import journal, readable
from infra.journal import Connection
from infra.secrets import mask_key
from infra.settings import Settings
from infra.verify import verify

START_SECONDS = 60.0
STOP_SECONDS = 60.0
MATTERS = {
    "OrganizationCreated": ["name"],
    "AccessGroupCreated": ["display_name"],
    "AliasCreated": ["model_alias", "terms.provider", "terms.actual_model"],
    "AccessGroupChanged": ["model_aliases"],
    "BudgetSet": ["budget.mode", "budget.charge_policy"],
    "ModelAccessAssigned": ["access_groups"],
    "VirtualKeyIssued": ["masked"],
    "TeamJoined": ["team_id"],
    "GroupsUsed": ["team_id", "access_groups_added"],
    "CreditsGranted": ["credits", "reason", "remaining_credits"],
    "JobCreated": ["job_type"],
    "CallStarted": ["model", "streaming", "held_credits"],
    "CreditsHeld": ["credits", "held_credits", "remaining_credits"],
    "CallFinished": ["resolved_model", "prompt_tokens", "completion_tokens", "client_cost_usd"],
    "JobCompleted": ["total_calls", "credits_charged", "credits_remaining"],
    "CreditsCharged": ["credits", "held_credits", "remaining_credits"],
}
"""What a newcomer wants to see of each event; `saas-litellm events` shows all of it."""


class DidNotStart(Exception):
    """The server for the demo ended before it answered; the text is the last thing it said."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the story is played.

    Args:
        url: of the server.
        key: its master key.
        dsn: its database, to show its journal; None if that is out of reach.
        suffix: makes the names of the story new on a server that has seen it before.
    """

    url: str
    key: str
    dsn: str | None
    suffix: str = ""


def play_afresh(console: Console = OUT) -> bool:
    """Plays against a server of its own in a temporary folder, which is gone afterwards.

    Returns:
        Whether everything was as told.
    """
    began = time.perf_counter()
    with fresh_server() as stage:
        healthy_after = time.perf_counter() - began
        console.print(f"A fresh server with a PostgreSQL of its own: {stage.url}, healthy after {healthy_after:.1f} s.")
        return asyncio.run(play(stage, console))


def play_against(url: str, key: str, *, dsn: str | None = None, console: Console = OUT) -> bool:
    """Plays against a running server.

    Args:
        key: its master key.
        dsn: a database, whose journal is shown if it is the server's.

    Returns:
        Whether everything was as told.
    """
    stage = Stage(url.removesuffix("/"), key, dsn, suffix=f"-{uuid4().hex[:6]}")
    console.print(f"A running server: {stage.url}.")
    return asyncio.run(play(stage, console))


@contextmanager
def fresh_server() -> Iterator[Stage]:
    """`saas-litellm serve` as anybody would start it, in a temporary DATA_DIR on a free port."""
    ours = {setting.encode_name for setting in msgspec.structs.fields(Settings)}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    with tempfile.TemporaryDirectory(prefix="saas-litellm-demo-") as folder:
        data_dir, port = Path(folder) / "data", free_port()
        settings = {"DATA_DIR": str(data_dir), "PORT": str(port), "LOG_LEVEL": "warning"}
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen([sys.executable, "-m", "api.cli", "serve"], env=inherited | settings, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_healthy(url, server, Path(folder) / "log")
            key, dsn = ((data_dir / file).read_text().strip() for file in ("master-key", "postgres/dsn"))
            yield Stage(url, key, dsn)
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise DidNotStart((log.read_text().strip().splitlines() or ["the server did not start"])[-1])


# -- the story ---------------------------------------------------------------------------------------------------------


async def play(stage: Stage, console: Console) -> bool:
    """Tells the story from the first organization to the verified chain; says whether all of it was true."""
    async with narrator(stage, console) as tell:
        await onboarding(tell, stage.suffix)
        job_id = await the_job(tell)
        await the_end_of_the_job(tell, job_id)
        await the_books(tell)
        tell.chapter("The hash chain over everything that was written")
        await tell.verify(stage.dsn)
        return tell.the_end()


async def onboarding(tell: "Narrator", suffix: str) -> None:
    """From nothing to a team with a key and ten credits."""
    organization_id, team_id = f"acme{suffix}", f"acme-web{suffix}"
    group, alias = f"starter{suffix}", f"chat-fast{suffix}"

    tell.chapter("An organization: a company that buys LLM work")
    body: dict[str, Any] = {"organization_id": organization_id, "name": "Acme Corporation"}
    await tell.ask("POST", "/api/organizations/create", body, show=["organization_id", "status"])
    tell.wrote("OrganizationCreated")

    tell.chapter("An access group: which models its teams may use")
    body = {"group_name": group, "display_name": "Models to start with"}
    await tell.ask("POST", "/api/model-access-groups/create", body, show=["group_name", "status", "model_count"])
    tell.wrote("AccessGroupCreated")

    tell.chapter("A model alias: a public name and a price for demo/echo, which needs no provider key")
    body = {
        "alias": alias,
        "litellm_model": "demo/echo",
        "pricing_input": 2.5,
        "pricing_output": 10,
        "access_groups": [group],
    }
    shown = ["alias", "litellm_model", "pricing_input", "pricing_output"]
    await tell.ask("POST", "/api/model-aliases/create", body, show=shown)
    tell.wrote("AliasCreated", "AccessGroupChanged")

    tell.chapter("A team, with a virtual key that is shown this once")
    body = {"organization_id": organization_id, "team_id": team_id, "access_groups": [group]}
    shown = ["team_id", "virtual_key", "allowed_model_aliases", "credits_remaining"]
    team = await tell.ask("POST", "/api/teams/create", body, show=shown)
    tell.wrote(
        *("TeamCreated", "BudgetSet", "ModelAccessAssigned", "VirtualKeyIssued"),
        *("AccountOpened", "KeyClaimed", "TeamJoined", "GroupsUsed"),
    )
    tell.check("it may use the alias of its group", alias in team.get("allowed_model_aliases", []))
    tell.enter_team(team_id, str(team.get("virtual_key")), model=alias)

    tell.chapter("Ten credits")
    body = {"team_id": team_id, "amount": 10, "reason": "Welcome"}
    await tell.ask("POST", "/api/credits/add", body, show=["credits_added", "credits_remaining"], as_admin=True)
    tell.wrote("CreditsGranted")
    tell.check("the team has 10 credits", tell.balance == Balance(remaining=10, held=0))


async def the_job(tell: "Narrator") -> str:
    """A job with a plain call and a stream; from here on the team speaks, with its own key."""
    tell.chapter("A job: the unit of work that is paid for")
    body: dict[str, Any] = {"team_id": tell.team_id, "job_type": "introduction"}
    job = await tell.ask("POST", "/api/jobs/create", body, show=["job_id", "status"])
    tell.wrote("JobCreated")
    tell.check("opening a job moves no credits", tell.balance == Balance(remaining=10, held=0))
    job_id = str(job.get("job_id"))

    tell.chapter("A call to a language model")
    body = {"model": tell.model, "messages": [{"role": "user", "content": "What do you write down?"}]}
    shown = ["response.content", "metadata.tokens_used", "metadata.latency_ms"]
    call = await tell.ask("POST", f"/api/jobs/{job_id}/llm-call", body, show=shown)
    tell.wrote("CallStarted", "CreditsHeld", "CallFinished")
    tell.check("the model answered", call.get("response", {}).get("content") == "What do you write down?")
    tell.check("one credit is set aside before the provider is asked", tell.balance == Balance(remaining=10, held=1))

    tell.chapter("The same as a stream: the text is shown as it arrives")
    said = "Every event, for ever, in order."
    body = {"model": tell.model, "messages": [{"role": "user", "content": said}]}
    heard = await tell.listen(f"/api/jobs/{job_id}/llm-call-stream", body)
    tell.wrote("CallStarted", "CallFinished")
    tell.check("it came in pieces and ended with [DONE]", len(heard) > 1 and "".join(heard) == said)
    tell.check("a second call in the same job needs no further credit", tell.balance == Balance(remaining=10, held=1))
    return job_id


async def the_end_of_the_job(tell: "Narrator", job_id: str) -> None:
    """Completed once, charged once, closed for ever."""
    tell.chapter("Completing the job: charged once, in the same transaction")
    path, body = f"/api/jobs/{job_id}/complete", {"status": "completed"}
    shown = ["status", "costs.total_calls", "costs.total_cost_usd", "costs.credits_charged", "credits_remaining"]
    completed = await tell.ask("POST", path, body, show=shown)
    tell.wrote("JobCompleted", "CreditsCharged")
    tell.check("one credit is gone, none is held", tell.balance == Balance(remaining=9, held=0))

    tell.chapter("Completing it again: the same answer, and nothing happens")
    again = await tell.ask("POST", path, body, show=shown)
    tell.wrote()
    tell.check("the answer is the same to the last digit", again == completed)
    tell.check("nothing was charged again", tell.balance == Balance(remaining=9, held=0))

    tell.chapter("A call to a job that has ended is refused")
    one_more = {"model": tell.model, "messages": [{"role": "user", "content": "One more?"}]}
    path = f"/api/jobs/{job_id}/llm-call"
    refused = await tell.ask("POST", path, one_more, show=["detail", "code", "status"], expected=400)
    tell.wrote()
    tell.check("the refusal has a code that programs can read", refused.get("code") == "job_closed")


async def the_books(tell: "Narrator") -> None:
    """What finance and auditors see of it."""
    tell.chapter("The transactions of the team, newest first")
    path = f"/api/credits/transactions?team_id={tell.team_id}&include=holds"
    listed = await tell.ask("GET", path, show=["total"])
    columns = ("transaction_type", "credits_amount", "credits_before", "credits_after", "actor")
    transactions = listed.get("transactions", [])
    for transaction in transactions:
        kind, amount, before, after, actor = (transaction[column] for column in columns)
        tell.say(f"{kind:<12}{amount:>4}{before:>6} -> {after:<4} by {actor}")
    kinds = [transaction["transaction_type"] for transaction in transactions]
    tell.check("one charge, one grant, one hold", sorted(kinds) == ["allocation", "deduction", "hold"])


# -- the narrator ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Balance:
    """Credits of the team: what remains of them, and how many of these are set aside."""

    remaining: int
    held: int

    def __str__(self) -> str:
        return f"{self.remaining} remaining, {self.held} held"


@asynccontextmanager
async def narrator(stage: Stage, console: Console) -> AsyncIterator["Narrator"]:
    async with httpx.AsyncClient(base_url=stage.url, timeout=60) as client:
        tell = Narrator(console, client, stage.key)
        if stage.dsn is None:
            yield tell
            return
        async with await readable.connect(stage.dsn) as connection:
            tell.journal, tell.position = connection, await journal.position(connection)
            tell.journal_is_the_servers = not stage.suffix
            yield tell


@dataclass
class Narrator:
    """Speaks to the server and shows what comes of it."""

    console: Console
    client: httpx.AsyncClient
    admin_key: str
    journal: Connection | None = None
    journal_is_the_servers: bool = False
    position: int = 0
    team_id: str = ""
    team_key: str = ""
    model: str = ""
    balance: Balance | None = None
    chapters: int = 0
    failures: int = 0
    topics: list[str] = field(default_factory=list)

    def enter_team(self, team_id: str, key: str, *, model: str) -> None:
        """From now on requests are made with the key of this team, and its balance is shown."""
        self.team_id, self.team_key, self.model = team_id, key, model
        self.balance = Balance(0, 0)

    def chapter(self, title: str) -> None:
        self.chapters += 1
        self.console.print(Text(f"\n{self.chapters:>2}  {title}", style="bold"))

    def say(self, text: str | Text, style: str = "") -> None:
        self.console.print(Text("    ") + (text if isinstance(text, Text) else Text(text, style=style)))

    def check(self, told: str, holds: bool) -> None:
        """Shows whether something that the story tells is so."""
        self.failures += not holds
        self.say(f"{'✓' if holds else '✗ not so:'} {told}", style="green" if holds else "bold red")

    def wrote(self, *topics: str) -> None:
        """The last request wrote just these events, where the journal can be seen."""
        if topics and not self.topics and not self.journal_is_the_servers:
            self.journal = None
        if self.journal is None:
            return
        self.journal_is_the_servers = True
        if self.topics != list(topics):
            self.check(f"it wrote {', '.join(topics) or 'nothing'}", False)
        elif not topics:
            self.check("the journal has not grown", True)

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        show: Sequence[str],
        expected: int = 200,
        as_admin: bool = False,
    ) -> dict[str, Any]:
        """Makes a request and shows it, its answer, its lines in the journal, and what it did to the balance."""
        request_id = self._show_request(method, path, body)
        headers = self._headers(request_id, as_admin=as_admin)
        answer = await self.client.request(method, path, json=body, headers=headers)
        content: dict[str, Any] = answer.json()
        self._show_answer(answer.status_code, " · ".join(_picked(content, name) for name in show), expected)
        await self._show_consequences(request_id, for_balance=method != "GET")
        return content

    async def listen(self, path: str, body: Mapping[str, Any]) -> list[str]:
        """The same for a stream of server-sent events: gives its pieces if it ended as it should."""
        request_id = self._show_request("POST", path, body)
        pieces: list[str] = []
        async with self.client.stream("POST", path, json=body, headers=self._headers(request_id)) as answer:
            self._show_answer(answer.status_code, answer.headers.get("content-type", ""), 200)
            self.console.print("    ", end="")
            last = ""
            async for line in answer.aiter_lines():
                last = line or last
                piece = _piece(line)
                if piece:
                    pieces.append(piece)
                    self.console.print(Text.assemble(piece, ("|", "dim")), end="")
            self.console.print()
        await self._show_consequences(request_id)
        return pieces if last == "data: [DONE]" else []

    async def verify(self, dsn: str | None) -> None:
        """Recomputes the chain from the first event on."""
        if dsn is None or self.journal is None:
            self.say("The database of this server is out of reach from here; there, run `saas-litellm verify`.", "dim")
            return
        with readable.connect_blocking(dsn) as connection:
            result = await asyncio.to_thread(verify, connection, readable=True)
        self.say(f"#1 to #{result.to_position}: {result.events} events, the last hash is {result.hash[:16]}…")
        self.check("every event is what was written, in its place, and none is missing", result.first_break is None)

    def the_end(self) -> bool:
        """Says how it went."""
        if self.failures:
            self.console.print(f"\n{self.failures} things were not as told.", style="bold red")
        else:
            self.console.print("\nEverything was as told.", style="bold green")
        return not self.failures

    def _headers(self, request_id: str, *, as_admin: bool = False) -> dict[str, str]:
        key = self.admin_key if as_admin or not self.team_key else self.team_key
        return {"Authorization": f"Bearer {key}", "X-Request-Id": request_id}

    def _show_request(self, method: str, path: str, body: Mapping[str, Any] | None) -> str:
        self.say(Text.assemble((f"{method} ", "bold blue"), (path, "blue")))
        if body is not None:
            self.say(f"     {msgspec.json.encode(body).decode()}")
        return f"demo-{uuid4()}"

    def _show_answer(self, status: int, text: str, expected: int) -> None:
        self.say(Text.assemble((f"{status}  ", "bold green" if status == expected else "bold red"), text))
        if status != expected:
            self.check(f"the answer has status {expected}", False)

    async def _show_consequences(self, request_id: str, *, for_balance: bool = True) -> None:
        written = await self._written_by(request_id)
        self.topics = [line.topic for line in written]
        for line in written:
            told = facts({path.rpartition(".")[2]: _at(line.event, path) for path in MATTERS.get(line.topic, [])})
            place = (f"#{line.position:<4}", "dim"), (f"{_short(line.stream)}  ", "cyan")
            self.say(Text.assemble(*place, (f"{line.topic}  ", "bold"), told))
        if for_balance and self.balance is not None:
            before, self.balance = self.balance, await self._current_balance()
            as_before = before == self.balance
            self.say(f"balance: {before}{', as before' if as_before else f'  ->  {self.balance}'}", style="magenta")

    async def _written_by(self, request_id: str) -> list[readable.Line]:
        if self.journal is None:
            return []
        written: list[readable.Line] = []
        while page := await readable.lines(self.journal, after=self.position, limit=1000):
            self.position = page[-1].position
            written += [line for line in page if line.request == request_id]
        return written

    async def _current_balance(self) -> Balance:
        headers = self._headers(f"demo-{uuid4()}")
        answer = await self.client.get("/api/credits/balance", params={"team_id": self.team_id}, headers=headers)
        balance = answer.raise_for_status().json()
        return Balance(balance["credits_remaining"], balance["credits_held"])


def _picked(answer: Mapping[str, Any], path: str) -> str:
    """A field of an answer with its name, a key without what makes it one."""
    name, value = path.rpartition(".")[2], _at(answer, path)
    if name == "virtual_key" and isinstance(value, str):
        value = mask_key(value)
    return f"{name} {value if isinstance(value, str) else msgspec.json.encode(value).decode()}"


def _at(content: Mapping[str, Any], path: str) -> Any:
    """What stands at a path such as `costs.total_calls`; None if nothing does."""
    value: Any = content
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _piece(line: str) -> str:
    """The text that a line of a stream brings."""
    if not line.startswith("data: {"):
        return ""
    content = msgspec.json.decode(line.removeprefix("data: ")).get("content")
    return content if isinstance(content, str) else ""


def _short(stream: str) -> str:
    """The name of a stream; of an id that nobody chose only the end, since all of one minute begin alike."""
    category, _, thing = stream.partition("-")
    return f"{category}-…{thing[-8:]}" if category in {"job", "key"} else stream
