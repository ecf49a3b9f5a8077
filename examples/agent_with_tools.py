"""A model that asks for tools until it knows enough. All of its calls are one job, and so one charge.

API_URL=http://localhost:8003 TEAM_ID=acme-corp VIRTUAL_KEY=sk-... python -m examples.agent_with_tools
"""

import asyncio
import json
import os
from typing import Any

from examples.typed_client import SaaSLLMClient, ToolCall

MOST_TURNS = 5
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city, now.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def weather(city: str) -> str:
    return f"12 degrees and rain in {city}"


def use(call: ToolCall) -> dict[str, Any]:
    """What a tool says, as the message that the model expects."""
    result = weather(**json.loads(call.function.arguments)) if call.function.name == "weather" else "no such tool"
    print(f"{call.function.name}({call.function.arguments}) -> {result}")
    return {"role": "tool", "tool_call_id": call.id, "content": result}


async def main() -> None:
    async with SaaSLLMClient(os.environ["API_URL"], os.environ["TEAM_ID"], os.environ["VIRTUAL_KEY"]) as client:
        await client.create_job("agent")
        messages: list[dict[str, Any]] = [{"role": "user", "content": "Do I need an umbrella in Oslo?"}]
        for turn in range(MOST_TURNS):
            answer = await client.chat(
                messages=messages, tools=TOOLS, model=os.environ.get("MODEL"), purpose=f"turn {turn + 1}"
            )
            message = answer.choices[0].message or {}
            calls = [ToolCall.model_validate(call) for call in message.get("tool_calls") or []]
            if not calls:
                print(message["content"])
                break
            messages += [message, *(use(call) for call in calls)]
        done = await client.complete_job()
        print(f"{done.total_calls} calls, {done.costs['credits_charged']} credit charged")


if __name__ == "__main__":
    asyncio.run(main())
