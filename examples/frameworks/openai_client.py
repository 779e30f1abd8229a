"""The openai client against the server: an answer as it streams, who wrote it, and what it cost.

fsgen-router serve
python examples/frameworks/openai_client.py [http://127.0.0.1:8000/v1]
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=url, api_key="none")  # or the key that the server wants
question = {"role": "user", "content": "How many coins do 3 lamps and 4 ropes cost in Norvale?"}

with client.chat.completions.stream(
    model="local/router",
    messages=[question],
    stream_options={"include_usage": True},
    extra_body={"fsgen": {"policy": "entropy>0.8", "tokens": True}},
) as stream:
    for event in stream:
        if event.type == "chunk" and event.chunk.choices:
            for token in getattr(event.chunk.choices[0], "fsgen", {}).get("tokens", []):
                print(f"[{token['text']}]" if token["source"] == "slow" else token["text"], end="")
usage = stream.get_final_completion().usage
print(f"\n{usage.completion_tokens} tokens, {usage.fsgen['slow_forwards']} steps of the slow model")
