"""What a type checker sees of the package as ``make install`` installs it, from outside the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

from fsgen_router import RequestKeywords, RequestOptions

PROGRAM = """
from fsgen_router import Finished, Generation, Message, Prices, RequestOptions, Router, TextDelta
from fsgen_router.policies import Threshold

RequestOptions(max_tokens=5)
Prices(input=1.0, output=2.0)
router = Router()
answer: Generation = router.complete("a", max_tokens=5, temperature=0.5, stop=["b"], policy="never", method="replace")
router.complete("a", policy=Threshold("entropy", 1.0, above=True), seed=None)
messages: list[Message] = [{"role": "developer", "content": [{"type": "text", "text": "b"}]}]
messages.append({"role": "user", "content": "c"})
router.chat(messages, logit_bias={3: 1.0})
entropy: float | None = max(s["entropy_nats"] or 0 for t in answer.to_dict()["tokens"] if (s := t["signals"]))
for event in router.stream("a"):
    match event:
        case TextDelta(text=text):
            print(text.upper())
        case Finished(generation=last):
            print(last.models["fast"].n_params, last.tokens[0].source == "slow")

router.complete("a", max_token=5)  # E: call-arg
router.complete("a", temperature="hot")  # E: arg-type
router.stream("a", stop=5)  # E: arg-type
router.chat([{"role": "usr", "content": "a"}])  # E: typeddict-item
router.chat([{"role": "user", "content": [{"type": "image_url", "text": "a"}]}])  # E: typeddict-item
RequestOptions(max_token=5)  # E: call-arg
answer.models["tuned"]  # E: index
answer.tokens[0].source == "medium"  # E: comparison-overlap
"""


def test_what_is_right_passes_and_what_is_wrong_does_not(tmp_path: Path) -> None:
    """Found as an editable install of ``make install`` lays it out, which a finder hook would hide."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "program.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    wanted = {
        (number, code)
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        for code in re.findall(r"# E: ([\w-]+)", line)
    }
    found = re.findall(r"^program\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == wanted, done.stdout + done.stderr


def test_keywords_of_a_request_are_its_options() -> None:
    assert get_type_hints(RequestKeywords).keys() == RequestOptions.model_fields.keys()
