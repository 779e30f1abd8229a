"""Local GGUF models through llama.cpp's low-level API (extra ``llama``).

``Llama.create_completion`` costs up to two milliseconds of Python a token and sees one sequence; this
adapter calls ``llama_decode`` itself, keeps several sequences in one context, and reduces logits in
place.

:mod:`.files` finds a model, :mod:`.options` say how it is loaded, :mod:`.loading` does it, :mod:`.native` holds what
llama.cpp allocated; :mod:`.tokenizer` is its vocabulary, :mod:`.batch` what one decode takes, :mod:`.ggml` its
arithmetic, and :mod:`.model` puts them together.
"""

try:
    import jinja2  # noqa: F401  # chat templates
    import llama_cpp  # noqa: F401
    import psutil  # noqa: F401
except ImportError as error:
    raise ImportError("the llama_cpp backend needs the extra 'llama': pip install 'fsgen-router[llama]'") from error

from .files import locate
from .model import LlamaCppModel
from .options import LlamaCppKeywords, LlamaCppOptions
from .tokenizer import LlamaCppTokenizer

__all__ = ["LlamaCppKeywords", "LlamaCppModel", "LlamaCppOptions", "LlamaCppTokenizer", "locate"]
