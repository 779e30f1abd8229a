"""lm-evaluation-harness against the server, unchanged: the reference pair's own questions, by both of its API models.

The harness lives in an environment of its own: pip install 'lm_eval[api]'. It asks ``--count`` held-out problems
through ``local-chat-completions`` and ``local-completions``, and finds the answer in the text by a pattern; the same
questions are asked of the Router in process, and judged alike.

    python benchmarks/harness.py --harness PATH/TO/bin/lm_eval
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from serve import URL, serving

from fsgen_router import Router
from fsgen_router.reference import world

from common import save

TASK = """
task: tarn
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n\\n"]
  max_gen_toks: 160
  do_sample: false
filter_list:
  - name: answer
    filter:
      - function: regex
        regex_pattern: "{pattern}"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
PATTERN = "Answer: (.+)$"
WAYS = {
    "local-chat-completions": ("/v1/chat/completions", "", ["--apply_chat_template"]),
    "local-completions": ("/v1/completions", ",tokenized_requests=False,tokenizer_backend=None", ["--batch_size", "4"]),
}


def harness(binary: str, way: str, folder: Path) -> float:
    path, more, options = WAYS[way]
    arguments = f"model=local/router,base_url={URL}{path},num_concurrent=4{more}"
    command = [binary, "run", "--model", way, "--model_args", arguments, "--tasks", "tarn"]
    command += ["--include_path", str(folder), "--output_path", str(folder / way), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
    (results,) = (folder / way).rglob("results_*.json")
    found: dict[str, Any] = json.loads(results.read_text())["results"]["tarn"]
    return float(found["exact_match,answer"])


def in_process(router: Router, problems: list[world.Problem], *, chat: bool) -> float:
    right = 0
    for problem in problems:
        if chat:
            text = router.chat([{"role": "user", "content": problem.prompt}], max_tokens=160).text
        else:
            text = router.complete(problem.prompt, max_tokens=160).text
        found = re.search(PATTERN, text)
        right += found is not None and found[1].strip() == str(problem.answer)
    return right / len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harness", required=True, help="its program, lm_eval")
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    problems = list(world.problems("test", args.count))
    figures: dict[str, Any] = {"n": args.count, "pair": world.VERSION}
    with tempfile.TemporaryDirectory() as made, Router() as router, serving(router):
        folder = Path(made)
        lines = [json.dumps({"question": one.prompt, "answer": str(one.answer)}) for one in problems]
        (folder / "tarn.jsonl").write_text("\n".join(lines))
        (folder / "tarn.yaml").write_text(TASK.format(data=folder / "tarn.jsonl", pattern=PATTERN))
        for way in WAYS:
            figures[way] = {
                "harness": harness(args.harness, way, folder),
                "router": in_process(router, problems, chat="chat" in way),
            }
    save("harness", figures)


if __name__ == "__main__":
    main()
