"""Rate limits of LLM calls, taken before the body is looked at closely, corrected when the tokens are known."""

from dataclasses import dataclass
from typing import Any, cast

import msgspec
from litestar import Request

from api.bodies import printable
from api.house import House
from api.problems import Trouble
from domain import catalog as names
from domain.event import UNREADABLE
from domain.job import Job
from domain.streams import JOB, TEAM, THE_CATALOG
from domain.team import Team
from infra.limits import Ticket
from infra.llm import Target


@dataclass(slots=True)
class Admission:
    """That a call was let through, and on which estimate."""

    house: House
    prompt_tokens: int
    ticket: Ticket | None = None

    async def settle(self, tokens: int) -> None:
        """Corrects the estimate to what was really used; only the first word counts."""
        await self.house.limits.settle(self.ticket, tokens)

    async def give_back(self) -> None:
        """The call did not happen: it counts as a request, its tokens do not count."""
        await self.settle(0)


async def limited(request: Request[Any, Any, Any]) -> None:
    """Counts the call against its team's limits: requests always, tokens if the body can be estimated.

    Raises:
        Trouble: a limit is reached.
    """
    state: dict[str, Any] = request.scope["state"]
    house: House = request.app.state.house
    body = _object(await request.body())
    team = await _team(request, house, body)
    if team is None:
        return
    prompt_tokens = await estimate_prompt(house, team, body)
    settings = house.settings
    output_tokens = body.get("max_tokens") or body.get("max_completion_tokens")
    if isinstance(output_tokens, float) and output_tokens.is_integer():  # 100.0 is a whole number too
        output_tokens = int(output_tokens)
    output_tokens = output_tokens if isinstance(output_tokens, int) else settings.default_output_tokens
    allowance = await house.limits.take(
        team.team_id,
        rpm_limit=settings.default_rpm if team.rpm_limit is None else team.rpm_limit,
        tpm_limit=settings.default_tpm if team.tpm_limit is None else team.tpm_limit,
        tokens=prompt_tokens + max(0, output_tokens) if prompt_tokens else 0,
    )
    state["limits"] = allowance.headers
    state["admission"] = Admission(house, prompt_tokens, allowance.ticket)
    if not allowance.allowed:
        retry_after = {"Retry-After": str(max(1, allowance.retry_after_s))}
        raise Trouble("rate_limited", headers=retry_after, limit=allowance.limit)


async def _team(request: Request[Any, Any, Any], house: House, body: dict[str, Any]) -> Team | None:
    """The team whose call it is; None if there is none, which the checks that follow will say."""
    caller = request.scope["state"]["caller"]
    team_id = caller.team_id
    if team_id is None and "job_id" in request.path_params:
        stream = JOB.stream(str(request.path_params["job_id"]).lower())
        job = house.ledger.glance(stream) or (await house.ledger.read(stream)).states[0]
        team_id = job.team_id if isinstance(job, Job) else None
    if team_id is None:
        team_id = body.get("team_id")
    if not isinstance(team_id, str) or not team_id:
        return None
    stream = TEAM.stream(team_id)
    return cast("Team | None", house.ledger.glance(stream) or (await house.ledger.read(stream)).states[0])


async def estimate_prompt(house: House, team: Team, body: dict[str, Any]) -> int:
    """How many tokens the prompt has, by the tokenizer of the first model that may answer; 0 if there is no telling."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return 0
    asked = body.get("model") or body.get("model_group")
    target = Target("openai", "unknown")
    catalog = house.ledger.glance(THE_CATALOG)
    if isinstance(catalog, names.Catalog) and (asked is None or isinstance(asked, str)):
        open_aliases = house.settings.open_aliases
        if found := names.find(catalog, team, None, asked, open_aliases=open_aliases):
            target = Target(found.targets[0].provider, found.targets[0].model)
    return await house.models.count_messages(target, messages)


def _object(body: bytes) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(printable(body))
    except UNREADABLE:
        return {}
    return parsed if isinstance(parsed, dict) else {}
