"""LangChain against the server: ChatOpenAI with another base_url, in a chain, streamed.

fsgen-router serve
python examples/frameworks/langchain_client.py [http://127.0.0.1:8000/v1]
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
model = ChatOpenAI(model="local/router", base_url=url, api_key="none", extra_body={"fsgen": {"policy": "entropy>0.8"}})
prompt = ChatPromptTemplate.from_messages([("user", "How many coins do {count} lamps and 4 ropes cost in {town}?")])

for text in (prompt | model | StrOutputParser()).stream({"count": 3, "town": "Norvale"}):
    print(end=text)
print()
answer = (prompt | model).invoke({"count": 3, "town": "Norvale"})
usage = answer.response_metadata["token_usage"]
print(f"{usage['completion_tokens']} tokens, {usage['fsgen']['slow_forwards']} steps of the slow model")
