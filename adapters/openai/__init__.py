"""Models behind an OpenAI-compatible HTTP endpoint (extra ``openai``).

A :class:`~fsgen_router.contracts.text_models.TextModel` over ``/chat/completions`` and ``/completions``, streamed as
server-sent events: hosted vendors, vLLM, SGLang, llama-server, Ollama and the like. What these endpoints
have in common is little, so what one of them refuses (a parameter's name, a partial answer) is found out
at the first need and remembered.

:mod:`.endpoint` is where it is, :mod:`.options` how it is asked, :mod:`.requests` what is sent, :mod:`.connection` how;
:mod:`.replies` are the shapes that come back, :mod:`.responses` makes events of them, :mod:`.errors` what went wrong;
:mod:`.probing` finds out what an endpoint can do, :mod:`.prices` what it costs, :mod:`.metering` what is billed beside;
:mod:`.model` puts them together.
"""

try:
    import httpx2  # noqa: F401
    import tenacity  # noqa: F401
except ImportError as error:
    raise ImportError("the openai backend needs the extra 'openai': pip install 'fsgen-router[openai]'") from error

from .endpoint import DEFAULT_URL, Endpoint, parse_endpoint
from .errors import EndpointError
from .model import OpenAIModel
from .options import OpenAIKeywords, OpenAIOptions
from .requests import DIALECTS, Dialect

__all__ = [
    "DEFAULT_URL",
    "DIALECTS",
    "Dialect",
    "Endpoint",
    "EndpointError",
    "OpenAIKeywords",
    "OpenAIModel",
    "OpenAIOptions",
    "parse_endpoint",
]
