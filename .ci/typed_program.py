"""What a type checker sees of the package from outside: what is right passes, and each wrong line is an error that an
unused comment would tell of. Never run."""

from pathlib import Path

from fsgen_router import Finished, Generation, Message, Prices, RequestOptions, Router, TextDelta, reference
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

router.complete("a", max_token=5)  # type: ignore[call-arg]
router.complete("a", temperature="hot")  # type: ignore[arg-type]
router.stream("a", stop=5)  # type: ignore[arg-type]
router.chat([{"role": "usr", "content": "a"}])  # type: ignore[typeddict-item]
router.chat([{"role": "user", "content": [{"type": "image_url", "text": "a"}]}])  # type: ignore[typeddict-item]
RequestOptions(max_token=5)  # type: ignore[call-arg]
LlamaCppModel("a.gguf", n_ctxt=8192)  # type: ignore[call-arg]
LlamaCppModel("a.gguf", n_ctx="8192")  # type: ignore[arg-type]
LlamaCppModel("a.gguf", type_k="f64")  # type: ignore[arg-type]
LlamaCppOptions(n_ctxt=8192)  # type: ignore[call-arg]
TransformersModel("a", dtype="float64")  # type: ignore[arg-type]
TransformersModel("a", devices="cpu")  # type: ignore[call-arg]
TransformersOptions(n_seqs=4)  # type: ignore[call-arg]
OpenAIModel("a", api="responses")  # type: ignore[arg-type]
OpenAIModel("a", api_key="b")  # type: ignore[call-arg]
OpenAIOptions(timeout=1.0)  # type: ignore[call-arg]
reference.load("fast", n_sequences=4)  # type: ignore[call-arg]
reference.load("medium")  # type: ignore[arg-type]
answer.models["medium"]  # type: ignore[index]
assert answer.tokens[0].source == "medium"  # type: ignore[comparison-overlap]
