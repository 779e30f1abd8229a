"""An HTTP server of a Router (extra ``serve``): chat completions, completions, responses and messages.

:mod:`.options` is what it is told, :mod:`.app` puts it together and :mod:`.running` runs it. A request goes through
:mod:`.guard` (keys, hosts), :mod:`.body` (bytes to a checked body) and its API's module, which translates and does
nothing else (:mod:`.chat_completions`, :mod:`.completions`, :mod:`.responses`, :mod:`.messages`; :mod:`.dialect` has
what they have in common). :mod:`.runner` then has the Router answer, and streams: :mod:`.merging` makes one stream of
several answers, :mod:`.telling` says what may be sent of it, :mod:`.wire` sends it. :mod:`.named` are the policies
behind model names, :mod:`.truth` is what an answer says of itself, :mod:`.observing` metrics, spans and the request
log, :mod:`.errors` what goes wrong, :mod:`.openapi` the description of all of it, :mod:`.page_files` the
page for people.
"""

try:
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError("the server needs the extra 'serve': pip install 'fsgen-router[serve]'") from error

from .app import make_app
from .options import ServeOptions
from .running import serve

__all__ = ["ServeOptions", "make_app", "serve"]
