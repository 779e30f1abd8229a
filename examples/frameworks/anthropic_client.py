"""The anthropic client against the same server: a conversation of two turns, streamed.

fsgen-router serve
python examples/frameworks/anthropic_client.py [http://127.0.0.1:8000]
"""

import sys

from anthropic import Anthropic

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = Anthropic(base_url=url, api_key="none")
messages = []
for question in (
    "How many coins do 3 lamps and 4 ropes cost in Norvale?",
    "How many coins do 3 lamps and 4 ropes cost in Norvale?",
):
    messages.append({"role": "user", "content": question})
    with client.messages.stream(model="local/router", max_tokens=200, messages=messages) as stream:
        for event in stream:
            if event.type == "text":
                print(end=event.text)
            elif event.type == "message_delta":
                usage = event.usage
        answer = stream.get_final_message()
    messages.append({"role": "assistant", "content": answer.content})
    print(f"\n{usage.output_tokens} tokens, {usage.fsgen['slow_forwards']} steps of the slow model")
