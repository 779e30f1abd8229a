"""The first ten lines: the embedded pair answers, and the report says what routing saved.

python examples/quickstart.py
"""

from fsgen_router import Router

with Router() as router:
    answer = router.complete(
        "Ada has 38 shells. Eva has 58 more shells than Ada. Leo has twice as many shells as Eva. "
        "How many shells does Leo have?",
        baseline=True,
    )
    print(answer.text.strip())
    print(answer.report())
