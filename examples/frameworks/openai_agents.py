"""The OpenAI Agents SDK against the server: an agent that calls a tool and goes on with what it gave back.

The tool's arguments are valid by construction: the server holds both models to its schema. The reference pair was not
trained on tools: it has to be told to call one (tool_choice), and what it says then is worth little.

fsgen-router serve
python examples/frameworks/openai_agents.py [http://127.0.0.1:8000/v1]
"""

import sys
from typing import Literal

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
set_tracing_disabled(True)  # which would send what is said to its maker


@function_tool
def get_price(thing: Literal["lamp", "rope"], town: Literal["Norvale"]) -> str:
    """The price of one thing in a town, in coins."""
    print(f"get_price({thing!r}, {town!r})")
    return "9 coins"


agent = Agent(
    "shopper",
    model=OpenAIChatCompletionsModel("local/router", AsyncOpenAI(base_url=url, api_key="none")),
    model_settings=ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=100),
    tools=[get_price],
)
result = Runner.run_sync(agent, "Look up the price of a lamp in Norvale.", max_turns=3)
print([type(item).__name__ for item in result.new_items])
print(repr(result.final_output[:60]))
