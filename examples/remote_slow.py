"""A slow model behind an endpoint that bills tokens: a real server on loopback, its prices, and the bill.

pip install 'fsgen-router[llama,openai]' xllamacpp
python examples/remote_slow.py [QUESTIONS]

llama.cpp's own server (the package xllamacpp carries it) serves the reference pair's slow model, and counts tokens as
vendors do, those that its cache held too. The prices are made up, in the ratios that are usual. Each question is also
asked of the slow model alone, on the same server: both bills are measured.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from fsgen_router import Budget, MachinePrice, Prices, Router, reference
from fsgen_router.reference import world

# The server has no end of its own, so it runs in a process that can be ended.
SERVER = """
import sys, threading
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], {"slow"}
params.n_ctx, params.n_parallel = 1024, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def served(model: str) -> Iterator[str]:
    """The base URL of a server with this GGUF file, on a free port of loopback."""
    command = [sys.executable, "-c", SERVER, model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise SystemExit("the server did not start: pip install xllamacpp")
            yield f"{address}/v1"
        finally:
            process.kill()


count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
prices = Prices(input=1.0, cached_input=0.05, output=5.0, source="made up for this example")
problems = list(world.problems("test", count))
with (
    served(str(reference.path("slow"))) as url,
    Router(
        fast="reference:fast",
        slow=f"openai:slow@{url}?api_key_env=",
        policy="entropy>1,span=16",  # where the fast model is uncertain, the slow one writes 16 tokens
        prices=prices,
        budget=Budget(usd=0.05),  # more than this is never spent, whatever is asked
        machine=MachinePrice(usd_per_hour=0.10),  # what the fast model's own machine costs
    ) as router,
):
    right = alone_right = 0
    for problem in problems:
        answer = router.complete(f"{problem.prompt}\n", max_tokens=200, baseline=True)
        assert answer.baseline is not None
        right += problem.check(answer.text)
        alone_right += problem.check(answer.baseline.text)
    print(answer.report())
    print()
    savings, ledger = router.ledger.savings, router.ledger
    billed = ledger.billed
    print(f"{count} questions, each also asked of the slow model alone:")
    print(f"routed      ${savings.usd:.6f}, {right} right")
    print(f"slow alone  ${savings.slow_usd:.6f}, {alone_right} right")
    print(f"saved       {savings.saving:.1%}")
    print(f"The server bills ${ledger.cost_usd:.6f} for both, {billed.calls} calls: {billed.input} tokens of input,")
    print(
        f"{billed.cached_input} from its cache, {billed.output} of output, of which {billed.estimated} are estimates."
    )
    print(f"{ledger.declined} escalations were not worth their price.")
