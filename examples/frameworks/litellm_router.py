"""LiteLLM in front of the server: its Router chooses among deployments, some of which are this pair's policies.

fsgen-router serve
python examples/frameworks/litellm_router.py [http://127.0.0.1:8000/v1]
"""

import os
import sys

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its list of prices, and not one from the network
import litellm

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"


def deployment(name: str, model: str) -> dict[str, object]:
    return {"model_name": name, "litellm_params": {"model": f"openai/{model}", "api_base": url, "api_key": "none"}}


front = litellm.Router(
    model_list=[deployment("cheap", "local/router"), deployment("careful", "local/slow")],
    fallbacks=[{"cheap": ["careful"]}],
)
question = [{"role": "user", "content": "How many coins do 3 lamps and 4 ropes cost in Norvale?"}]
for name in ("cheap", "careful"):
    answer = front.completion(name, question, max_tokens=200)
    usage = answer.usage
    print(f"{name}: {answer.choices[0].message.content[-10:]}, {usage.completion_tokens} tokens")
for chunk in front.completion("cheap", question, stream=True):
    print(end=chunk.choices[0].delta.content or "")
print()
