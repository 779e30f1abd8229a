"""Log events with stable names, through the standard library's logging: silent until it is configured.

Events: ``answered``, ``degraded``, ``context_beyond_training``, ``endpoint_retry``, ``endpoint_parameter``,
``prefill_probed``, ``policy_pair``, ``policy_drift``, ``small_extent``,
``swapped_models``. Prompts and keys are never in them.
"""

from __future__ import annotations

import logging

import structlog

logging.getLogger("fsgen_router").addHandler(logging.NullHandler())

log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    logging.getLogger("fsgen_router"),
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.processors.KeyValueRenderer(key_order=["event"]),
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)
