"""Text that is shown while it is written.

API_URL=http://localhost:8003 TEAM_ID=acme-corp VIRTUAL_KEY=sk-... python -m examples.streaming
"""

import asyncio
import os

from examples.typed_client import SaaSLLMClient


async def main() -> None:
    async with SaaSLLMClient(os.environ["API_URL"], os.environ["TEAM_ID"], os.environ["VIRTUAL_KEY"]) as client:
        await client.create_job("story")
        question = [{"role": "user", "content": "Tell a story in five sentences."}]
        async for chunk in client.chat_stream(messages=question, model=os.environ.get("MODEL")):
            print(chunk.choices[0].delta.get("content", "") if chunk.choices[0].delta else "", end="", flush=True)
            if chunk.usage is not None:  # the last one
                print(f"\n{chunk.usage.total_tokens} tokens")
        await client.complete_job()


if __name__ == "__main__":
    asyncio.run(main())
