"""What transformers, the hub client and torch raise, as errors of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from fsgen_router.errors import (
    BackendError,
    ConfigurationError,
    FsgenError,
    ModelFileCorrupt,
    ModelNotFound,
    NotEnoughMemory,
)

from .source import Source


@contextmanager
def errors_of_loading(source: Source) -> Iterator[None]:
    """Whatever transformers, the hub client or torch raise, as an error of this package."""
    name = source.name
    try:
        yield
    except FsgenError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise NotEnoughMemory(
            f"memory ran out while {name} was loaded: {first_line(error)}",
            hint="a smaller dtype, quantization_config, n_ctx or n_seq, or another device",
        ) from None
    except ImportError as error:  # a package that only this model or this option needs
        raise ConfigurationError(f"{name} needs a package that is not installed: {first_line(error)}") from None
    except OSError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError | OfflineModeIsEnabled):
            raise ModelNotFound(
                f"{name} is not in the local cache and the hub was not reached",
                hint="unset HF_HUB_OFFLINE, or use a folder",
            ) from None
        if "safetensors" in str(error):
            raise ModelNotFound(
                f"{name} has no safetensors: {first_line(error)}",
                hint="allow_pickle=true loads other weights, which can run code: only from someone you trust",
            ) from None
        kind = ModelNotFound if source.on_hub else ModelFileCorrupt
        raise kind(f"{name} cannot be loaded: {first_line(error)}") from None
    except Exception as error:
        said = first_line(error)
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise ConfigurationError(
                f"{name} comes with code of its own", hint="trust_remote_code=true runs it: read it first"
            ) from None
        if "for this kind of AutoModel" in said:
            raise ConfigurationError(f"{name} is no causal language model", hint="take a decoder") from None
        raise ModelFileCorrupt(f"{name} cannot be loaded: {said}", hint="is it complete?") from None


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def errors_of_working(name: str, device: torch.device, free: Callable[[], None]) -> Iterator[None]:
    """Whatever a forward raises, as :class:`BackendError`; ``free`` is called where memory ran out."""
    try:
        yield
    except FsgenError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        free()
        raise BackendError(
            f"{name} ran out of memory on {device}: {first_line(error)}",
            hint="load it with a smaller n_batch, n_ctx or n_seq, or a smaller dtype",
        ) from error
    except Exception as error:
        raise BackendError(f"{name}: {type(error).__name__}: {first_line(error)}") from error
