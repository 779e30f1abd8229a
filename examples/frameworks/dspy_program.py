"""DSPy against the server: a program whose fields are typed, and an answer's parts come back as JSON that parses.

fsgen-router serve
python examples/frameworks/dspy_program.py [http://127.0.0.1:8000/v1]
"""

import sys
from typing import Literal

import dspy

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"


class Pair(dspy.LM):
    """DSPy asks models that it does not know for no schema; this server holds any model to one."""

    supports_response_schema = True
    supported_params = frozenset({"max_tokens", "response_format", "stop", "temperature", "tools", "tool_choice"})


lm = Pair("openai/local/router", api_base=url, api_key="none", max_tokens=200, temperature=0.0, cache=False)
dspy.configure(lm=lm, adapter=dspy.JSONAdapter())


class Sort(dspy.Signature):
    """The kind of question that this is."""

    question: str = dspy.InputField()
    kind: Literal["price", "family", "sharing"] = dspy.OutputField()


sort = dspy.Predict(Sort)
print(sort(question="How many coins do 3 lamps and 4 ropes cost in Norvale?").kind)
print(lm("How many coins do 3 lamps and 4 ropes cost in Norvale?")[0])
