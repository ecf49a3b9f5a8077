"""An answer of a shape that the program knows: a pydantic model.

API_URL=http://localhost:8003 TEAM_ID=acme-corp VIRTUAL_KEY=sk-... python -m examples.structured_output "text"
"""

import asyncio
import os
import sys

from pydantic import BaseModel

from examples.typed_client import SaaSLLMClient


class Person(BaseModel):
    name: str
    age: int
    interests: list[str] = []


async def main(text: str) -> None:
    async with SaaSLLMClient(os.environ["API_URL"], os.environ["TEAM_ID"], os.environ["VIRTUAL_KEY"]) as client:
        await client.create_job("extraction")
        question = [{"role": "user", "content": f"Who is this about? Answer in JSON. {text}"}]
        person = await client.structured_output(
            messages=question, response_model=Person, model=os.environ.get("MODEL"), temperature=0
        )
        await client.complete_job(result=person.model_dump())
        print(f"{person.name} is {person.age} and likes {', '.join(person.interests) or 'nothing in particular'}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Ada, 36, plays the harp and breeds horses."))
