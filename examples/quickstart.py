"""The first ten lines: the embedded pair answers, and the report says what routing saved.

python examples/quickstart.py
"""

from fsgen_router import Router

with Router() as router:
    question = "How many coins do 3 lamps and 4 ropes cost in Norvale?"
    answer = router.chat([{"role": "user", "content": question}], baseline=True)
    print(answer.text.strip())
    print(answer.report())
