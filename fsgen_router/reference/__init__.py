"""The embedded reference pair: two small models trained on the world of :mod:`.world`.

It shows and tests routing without a download. It stands for no real chat model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack, get_args

from ..contracts.models import TokenModel
from ..errors import ModelNotFound
from ..records import Source

if TYPE_CHECKING:
    from ..adapters.llama_cpp import LlamaCppKeywords

# F32 keys and values: with F16 ones, "equal to the slow model" would hold up to ties only.
_OPTIONS: LlamaCppKeywords = {"n_ctx": 1024, "n_seq": 8, "type_k": "f32", "type_v": "f32", "n_threads": 1}


def path(which: Source) -> Path:
    """Where the weights of ``fast`` or ``slow`` lie."""
    return Path(__file__).with_name(f"{which}.gguf")


def policy_path() -> Path:
    """Where the pair's certified policy lies, which ``Router()`` runs with (``benchmarks/calibration.py``)."""
    return Path(__file__).with_name("policy.safetensors")


def load(which: Source, /, **options: Unpack[LlamaCppKeywords]) -> TokenModel:
    """One model of the pair through llama.cpp; ``options`` as in ``LlamaCppOptions``."""
    from ..adapters.llama_cpp import LlamaCppModel

    if which not in get_args(Source):
        raise ModelNotFound(f"the reference pair has no {which!r}", hint=" or ".join(get_args(Source)))
    chosen: LlamaCppKeywords = {**_OPTIONS, **options}
    return LlamaCppModel(path(which), **chosen)
