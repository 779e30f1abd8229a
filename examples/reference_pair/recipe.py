"""What every model that is trained here shares: architecture, optimisers, schedule, one step, checkpoints.

It reads no data, so it runs where the package is not installed (on a machine with a GPU, say).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

CONTEXT = 1024
IGNORE = -100  # the label of a token that is not trained on
_WARM, _DECAY_FROM, _DECAY_TO = 0.4 / 52, 16 / 52, 41 / 52  # of the way

Shape = tuple[int, int, int, int]  # width, layers, heads, feed-forward width
Trained = tuple[Qwen2ForCausalLM, list[torch.optim.Optimizer]]


def make_model(shape: Shape, vocabulary: int, *, seed: int) -> Qwen2ForCausalLM:
    width, layers, heads, feed_forward = shape
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=feed_forward,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            dtype="float32",
        )
    )


def parameters(model: Qwen2ForCausalLM) -> dict[str, int]:
    """How many parameters a model has, with and without its embeddings."""
    return {
        "n_params": sum(p.numel() for p in model.parameters()),
        "n_params_without_embeddings": sum(p.numel() for n, p in model.named_parameters() if "embed" not in n),
    }


# --- optimisation --------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by five Newton-Schulz steps (Jordan et al., 2024), for matrices.

    torch.optim.Muon in single precision (its bfloat16 takes most of the time where a CPU has to emulate it),
    and with matrices of one shape taken together, since a GPU's time goes into the number of its kernels.
    Rates may be tensors, which a captured CUDA graph reads anew at each step.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float | torch.Tensor) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for param in group["params"]:
                by_shape.setdefault(param.shape, []).append(param)
                if not self.state[param]:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param)
            for (rows, columns), params in by_shape.items():
                gradients = torch.stack([param.grad for param in params])
                buffers = [self.state[param]["momentum_buffer"] for param in params]
                momentum = torch.stack(buffers).lerp_(gradients, 1 - group["momentum"])
                update = _orthogonalised(gradients.lerp(momentum, group["momentum"]))
                update = update * (group["lr"] * max(1.0, rows / columns) ** 0.5)
                kept = 1 - group["lr"] * group["weight_decay"]
                for param, buffer, moved, changed in zip(params, buffers, momentum, update, strict=True):
                    buffer.copy_(moved)
                    param.mul_(kept).sub_(changed)


def _orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Each of ``matrices``, shape (n, rows, columns), with its singular values brought near 1."""
    a, b, c = 3.4445, -4.775, 2.0315
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def make_optimizers(
    model: Qwen2ForCausalLM, rates: tuple[float, float], *, captured: bool = False
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and AdamW for the rest; ``captured`` in a CUDA graph, which needs tensors as rates."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon, adam = (torch.tensor(rate, device=model.device) for rate in rates) if captured else rates
    optimizers = [
        Muon(matrices, lr=muon),
        torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.98), weight_decay=0.0, capturable=captured),
    ]
    if captured:
        optimizers[0].param_groups[0]["weight_decay"] = torch.tensor(0.0, device=model.device)
    return optimizers


def set_rates(optimizers: list[torch.optim.Optimizer], rates: tuple[float, float], progress: float) -> None:
    """Learning rates and weight decay for where the training stands, a number from 0 to 1."""
    for optimizer, base in zip(optimizers, rates, strict=True):
        _put(optimizer.param_groups[0], "lr", base * schedule(progress))
    _put(optimizers[0].param_groups[0], "weight_decay", weight_decay(progress))


def _put(group: dict[str, Any], name: str, value: float) -> None:
    if isinstance(group[name], torch.Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


def schedule(progress: float) -> float:
    """Learning-rate factor: constant (after a short warm-up), then linear to 1%, then flat for a fifth."""
    if progress < _WARM:
        return max(progress / _WARM, 0.01)
    return max(1 - max(progress - _DECAY_FROM, 0.0) / (_DECAY_TO - _DECAY_FROM), 0.01)


def weight_decay(progress: float) -> float:
    """Muon's weight decay: none while the rate is constant (it slows learning), then some.

    Without it residuals grow to thousands, and single precision no longer holds logits to 1e-4.
    """
    return 0.0 if progress < _DECAY_FROM else 0.03


def learn(model: Qwen2ForCausalLM, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor) -> None:
    """One step down the gradient of ``loss``."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


# --- checkpoints ---------------------------------------------------------------------------------


def save_checkpoint(out: Path, trained: Mapping[str, Trained], state: dict[str, Any]) -> None:
    """Weights and optimiser state of each model as safetensors, then the JSON that makes them current."""
    tensors = {}
    for name, (model, optimizers) in trained.items():
        tensors |= {f"{name}/model/{key}": value.clone() for key, value in model.model.state_dict().items()}
        for k, optimizer in enumerate(optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"{name}/optimizer/{k}/{index}/{key}": torch.as_tensor(value).clone()
                    for key, value in values.items()
                }
    save_file(tensors, out / f"checkpoint-{state['step']}.safetensors")
    write_json(out / "state.json", state)
    for old in out.glob("checkpoint-*.safetensors"):
        if old.name != f"checkpoint-{state['step']}.safetensors":
            old.unlink()


def read_checkpoint(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """The last checkpoint of a folder: its state and tensors, or None where there is none."""
    if not (out / "state.json").exists():
        return None
    state = json.loads((out / "state.json").read_text())
    return state, load_file(out / f"checkpoint-{state['step']}.safetensors")


def restore(name: str, tensors: Mapping[str, torch.Tensor], trained: Trained) -> None:
    """Bring a model and its optimisers to where a checkpoint's ``tensors`` had them."""
    model, optimizers = trained
    own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
    weights = {key.removeprefix("model/"): value for key, value in own.items() if key.startswith("model/")}
    model.model.load_state_dict(weights)
    for k, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        for key, value in own.items():
            kind, *where = key.split("/")
            if kind == "optimizer" and int(where[0]) == k:
                whole["state"].setdefault(int(where[1]), {})[where[2]] = value
        optimizer.load_state_dict(whole)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)
