"""Local models through transformers, on CUDA, CPU or another device of torch (extra ``transformers``).

``generate`` sees one request and keeps its loop to itself; this adapter calls the model's forward,
keeps every sequence's keys and values in place (:mod:`.slot_cache`), runs several sequences as one
batch, and reduces logits on the device that they live on (:mod:`.reading`).

:mod:`.source` finds a model, :mod:`.options` say how it is loaded, :mod:`.loading` does it onto one of the
:mod:`.devices`, and :mod:`.probing` finds out what it is like; :mod:`.vocabulary` reads the files of its
:mod:`.tokenizer`; :mod:`.batches` are what a forward takes, :mod:`.memories` what is kept between them, :mod:`.errors`
what goes wrong; :mod:`.model` puts them together.
"""

try:
    import accelerate  # noqa: F401  # transformers loads onto a device, and reads GGUF files, through it
    import gguf  # noqa: F401
    import jinja2  # noqa: F401  # chat templates
    import psutil  # noqa: F401  # free_bytes reads the memory through it
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "the transformers backend needs the extra 'transformers': pip install 'fsgen-router[transformers]'"
    ) from error

from .batches import plan_batches
from .devices import device_of
from .model import TransformersModel
from .options import TransformersKeywords, TransformersOptions
from .tokenizer import TransformersTokenizer

__all__ = [
    "TransformersKeywords",
    "TransformersModel",
    "TransformersOptions",
    "TransformersTokenizer",
    "device_of",
    "plan_batches",
]
