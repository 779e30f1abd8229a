"""What a type checker sees of the package as ``make install`` installs it, from outside the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from pydantic import BaseModel

from fsgen_router import RequestKeywords, RequestOptions
from fsgen_router.adapters.llama_cpp import LlamaCppKeywords, LlamaCppOptions
from fsgen_router.adapters.openai import OpenAIKeywords, OpenAIOptions
from fsgen_router.adapters.tokens import TokensKeywords, TokensOptions
from fsgen_router.adapters.transformers import TransformersKeywords, TransformersOptions

PROGRAM = """
from pathlib import Path

from fsgen_router import Finished, Generation, Message, Prices, RequestOptions, Router, TextDelta
from fsgen_router import reference
from fsgen_router.adapters.llama_cpp import LlamaCppModel, LlamaCppOptions
from fsgen_router.adapters.openai import OpenAIModel, OpenAIOptions
from fsgen_router.adapters.transformers import TransformersModel, TransformersOptions
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

LlamaCppModel("a.gguf", n_ctx=8192, lora={"b.gguf": 0.5}, tensor_split=[0.6, 0.4], type_k="f32")
LlamaCppModel(Path("a.gguf"), lora={Path("b.gguf"): 0.5}, tensor_split="0.6,0.4", chat_template=Path("c.jinja"))
LlamaCppOptions(n_ctx=8192)
TransformersModel("a", device="cpu", dtype="bfloat16", quantization_config={"load_in_4bit": True})
TransformersOptions(n_seq=4)
OpenAIModel("a", extra_body={"b": 1}, api="chat", n_ctx=None)
OpenAIOptions(max_retries=0)
reference.load("fast", n_seq=4)

router.complete("a", max_token=5)  # E: call-arg
router.complete("a", temperature="hot")  # E: arg-type
router.stream("a", stop=5)  # E: arg-type
router.chat([{"role": "usr", "content": "a"}])  # E: typeddict-item
router.chat([{"role": "user", "content": [{"type": "image_url", "text": "a"}]}])  # E: typeddict-item
RequestOptions(max_token=5)  # E: call-arg
LlamaCppModel("a.gguf", n_ctxt=8192)  # E: call-arg
LlamaCppModel("a.gguf", n_ctx="8192")  # E: arg-type
LlamaCppModel("a.gguf", type_k="f64")  # E: arg-type
LlamaCppOptions(n_ctxt=8192)  # E: call-arg
TransformersModel("a", dtype="float64")  # E: arg-type
TransformersModel("a", devices="cpu")  # E: call-arg
TransformersOptions(n_seqs=4)  # E: call-arg
OpenAIModel("a", api="responses")  # E: arg-type
OpenAIModel("a", api_key="b")  # E: call-arg
OpenAIOptions(timeout=1.0)  # E: call-arg
reference.load("fast", n_sequences=4)  # E: call-arg
reference.load("medium")  # E: arg-type
answer.models["medium"]  # E: index
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


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        (RequestKeywords, RequestOptions),
        (LlamaCppKeywords, LlamaCppOptions),
        (OpenAIKeywords, OpenAIOptions),
        (TokensKeywords, TokensOptions),
        (TransformersKeywords, TransformersOptions),
    ],
)
def test_keywords_are_the_options(keywords: type, options: type[BaseModel]) -> None:
    assert get_type_hints(keywords).keys() == options.model_fields.keys()
