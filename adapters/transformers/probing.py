"""What a model is like, found out by asking it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from fsgen_router.errors import ModelLoadError

_PROBED = 8


def probe(model: Any, argument: str, device: torch.device) -> tuple[Any, torch.Tensor]:
    """The cache behind one token, and its logits."""
    cache = DynamicCache(config=model.config)
    logits = _run(model, argument, cache, torch.zeros((1, 1), dtype=torch.int64, device=device))
    return cache, logits


def _run(model: Any, argument: str, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=True, **{argument: cache}).logits
        return logits


def reads_in_pieces(model: Any, config: Any, argument: str, device: torch.device, name: str) -> bool:
    """Whether several tokens on top of a state give what they give at once.

    Each way is held against reading one token at a time, which every model must get right: the piece
    may be off by some times that, which is rounding.
    """
    ids = (torch.arange(2 * _PROBED, device=device) * 37 + 1)[None] % config.get_text_config().vocab_size

    def differs(*sizes: int) -> float:
        cache = DynamicCache(config=config)
        logits = torch.cat([_run(model, argument, cache, piece) for piece in ids.split(sizes, 1)], 1)
        return float((logits - whole).abs().max())

    whole = _run(model, argument, DynamicCache(config=config), ids)
    spread = float(whole.std())
    singly, piece = differs(_PROBED, *[1] * _PROBED), differs(_PROBED, _PROBED)
    if not singly < 0.1 * spread:
        raise ModelLoadError(
            f"{name} does not go on from where it was: what it reads token by token differs by {singly:.2g} from what "
            f"it reads at once",
            hint="its memory is not one that transformers' caches can hold; load it through another backend",
        )
    return bool(piece <= 4 * singly + torch.finfo(whole.dtype).eps * spread)
