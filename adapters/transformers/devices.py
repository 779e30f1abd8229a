"""Devices of torch: which one, and whether a model fits on it."""

from __future__ import annotations

from typing import Any

import torch

from fsgen_router.errors import ConfigurationError, NotEnoughMemory
from fsgen_router.support.machine import free_bytes, usable_cores, usable_physical_cores


def device_of(wanted: str) -> torch.device:
    """The device of that name, or :class:`ConfigurationError` with those that are here."""
    if wanted == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.empty(0, device=wanted).device  # with its number: another thread may have another current one
    except (RuntimeError, AssertionError, NotImplementedError):  # torch says each in another way
        device = torch.device("meta")
    if device.type == "meta":
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise ConfigurationError(f"there is no device {wanted!r} here", hint=f"available: {', '.join(here)}")
    return device


def set_threads(wanted: int | None, device: torch.device) -> None:
    """As many as wanted. Torch counts the machine's cores where a container's quota allows fewer."""
    if wanted is None and device.type == "cpu" and torch.get_num_threads() > usable_cores():
        wanted = usable_cores()
    if wanted is not None:
        torch.set_num_threads(wanted)


def records_graphs(device: torch.device) -> bool:
    """Whether forwards can be recorded there as CUDA graphs."""
    return device.type == "cuda" and torch.version.hip is None


def share_of(device: torch.device) -> float:
    """How much of its device a forward keeps busy."""
    return torch.get_num_threads() / usable_physical_cores() if device.type == "cpu" else 1.0


def _free_bytes(device: torch.device) -> int | None:
    """What the device still has; None where nobody can say."""
    if device.type == "cpu":
        return free_bytes()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and nobody uses. The pools of recorded graphs are nobody else's.
        unused = sum(
            segment["total_size"] - segment["allocated_size"]
            for segment in torch.cuda.memory_snapshot()
            if segment["device"] == device.index and tuple(segment["segment_pool_id"]) == (0, 0)
        )
        return int(free + unused)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def require_memory(name: str, device: torch.device, *, weights: float, per_token: int, n_seq: int, n_ctx: int) -> None:
    free = _free_bytes(device)
    cache = per_token * n_seq * n_ctx
    if free is None or weights + cache <= free:
        return
    parts = [f"weights {weights / 2**30:.1f} GiB"] if weights else []
    parts.append(f"KV cache {cache / 2**30:.1f} GiB for {n_seq} x {n_ctx} tokens")
    fits = int((free - weights) * 0.8 / per_token / n_seq) if per_token else 0
    raise NotEnoughMemory(
        f"{name} needs {(weights + cache) / 2**30:.1f} GiB on {device} ({', '.join(parts)}), {free / 2**30:.1f} GiB "
        f"are free: {(weights + cache - free) / 2**30:.1f} GiB short",
        hint=f"n_ctx={fits} would fit, or lower n_seq" if fits >= 16 else "a smaller dtype, or quantization_config",
    )


def weight_bytes(model: Any, quantization: object) -> float:
    """What the weights take at least. How far a quantisation goes is its own business: 4 bits are the least."""
    parameters = [*model.parameters(), *model.buffers()]
    if quantization:
        return 0.5 * float(sum(parameter.numel() for parameter in parameters))
    return float(sum(parameter.numel() * parameter.element_size() for parameter in parameters))


def give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
