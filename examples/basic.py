"""A job with one call: open it, ask, complete it, see what it cost.

API_URL=http://localhost:8003 TEAM_ID=acme-corp VIRTUAL_KEY=sk-... python -m examples.basic
"""

import asyncio
import os

from examples.typed_client import InsufficientCredits, SaaSLLMClient


async def main() -> None:
    async with SaaSLLMClient(os.environ["API_URL"], os.environ["TEAM_ID"], os.environ["VIRTUAL_KEY"]) as client:
        job_id = await client.create_job("greeting", metadata={"example": "basic"})
        try:
            answer = await client.chat(
                messages=[{"role": "user", "content": "Say hello in one sentence."}],
                model=os.environ.get("MODEL"),  # none: the team's default model
                purpose="say hello",
            )
        except InsufficientCredits as refusal:
            await client.complete_job(status="failed", error_message=refusal.code)
            raise
        print((answer.choices[0].message or {})["content"])
        done = await client.complete_job()
        print(f"job {job_id}: {done.total_calls} call, {done.credits_remaining} credits remaining")


if __name__ == "__main__":
    asyncio.run(main())
