"""pydantic-ai against the server: an agent whose output keeps to a schema, whichever of the two models wrote it.

fsgen-router serve
python examples/frameworks/pydantic_ai_agent.py [http://127.0.0.1:8000/v1]
"""

import sys
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"


class Order(BaseModel):
    thing: Literal["lamp", "rope", "map"]
    town: Literal["Norvale", "Eastmoor"]
    count: int = Field(ge=1, le=9)


model = OpenAIChatModel("local/router", provider=OpenAIProvider(base_url=url, api_key="none"))
order = Agent(model, output_type=NativeOutput(Order)).run_sync("3 lamps in Norvale, please.")
print(repr(order.output))
answer = Agent(model).run_sync("How many coins do 3 lamps and 4 ropes cost in Norvale?")
print(answer.output)
print(f"{answer.usage.output_tokens} tokens")
