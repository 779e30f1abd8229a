"""Rows of logits reduced with torch, on the accelerator that they live on.

The numbers are those of :func:`fsgen_router.rows.reading.reduce_row`, to 1e-5, and the drawn tokens are the
same. Many rows are reduced at once, and what is left of them reaches the host in one transfer. For rows
in the host's own memory numpy is two to nine times faster.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsgen_router.errors import ConfigurationError
from fsgen_router.rows.acceptance import judge
from fsgen_router.rows.reading import (
    FORBIDDEN,
    UNREADABLE,
    Alignment,
    Floats,
    Ints,
    Mask,
    Read,
    Row,
    Scratch,
    Warp,
    check_row,
    reduce_row,
)

# Rows times vocabulary that are reduced at once: sorting them takes some 40 bytes for each.
_ELEMENTS = 1 << 23
# Ids travel among the numbers, as float32, which holds integers up to here exactly.
_MAX_VOCAB = 1 << 24


@dataclass(frozen=True, slots=True)
class _Kind:
    """Reads that take the same steps, and so are reduced as one batch."""

    signals: bool
    top_k: int
    n_ids: int
    warp: Warp
    whole: bool
    """The whole row is brought to the host."""
    hidden: bool
    alignment: Alignment | None

    @classmethod
    def of(cls, read: Read) -> _Kind:
        whole = read.full or (read.check is not None and read.check.rule.needs_fast_row)
        return cls(read.signals, read.top_k, len(read.ids), read.warp, whole, read.hidden, read.alignment)

    def n_vocab(self, width: int) -> int:
        """Ids that are read of a row of this width."""
        return width if self.alignment is None else self.alignment.n_vocab


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the parts of a reduced row stand."""

    n_top: int
    n_ids: int
    n_hidden: int

    # The same for every kind: argmax, its logit, the sum of exp(x - peak), and the sums of that times
    # (x - peak) and (x - peak)^2; then the token that is drawn and one that is drawn in its place, with
    # their logits, and the logit of a drafted token.
    FIXED = 10

    @property
    def top(self) -> slice:
        return slice(self.FIXED, self.FIXED + self.n_top)

    @property
    def top_logits(self) -> slice:
        return slice(self.top.stop, self.top.stop + self.n_top)

    @property
    def id_logits(self) -> slice:
        return slice(self.top_logits.stop, self.top_logits.stop + self.n_ids)

    @property
    def hidden(self) -> slice:
        return slice(self.id_logits.stop, self.id_logits.stop + self.n_hidden)

    @property
    def row(self) -> slice:
        return slice(self.hidden.stop, None)


def reduce_rows(logits: Tensor, reads: Sequence[tuple[int, Read]], hidden: Tensor | None = None) -> list[Row]:
    """Read rows of ``logits``, of shape (m, n_vocab): for each pair of a row and a read its Row.

    ``hidden``, of shape (m, n_embd), is needed where a read asks for hidden states.
    """
    if logits.shape[-1] >= _MAX_VOCAB:
        raise ConfigurationError(f"a vocabulary of {logits.shape[-1]} is more than {_MAX_VOCAB}")
    groups: dict[_Kind, list[int]] = defaultdict(list)
    for number, (_, read) in enumerate(reads):
        groups[_Kind.of(read)].append(number)
    at_once = max(_ELEMENTS // logits.shape[-1], 1)
    batches = [
        (kind, members[start : start + at_once])
        for kind, members in groups.items()
        for start in range(0, len(members), at_once)
    ]
    states = logits[:, :0] if hidden is None else hidden
    reduced = [_reduce(logits, states, [reads[number] for number in members], kind) for kind, members in batches]
    if not reduced:
        return []
    flat = torch.cat([numbers.reshape(-1) for numbers in reduced]).cpu().numpy()
    rows: dict[int, Row] = {}
    start = 0
    for (kind, members), numbers in zip(batches, reduced, strict=True):
        table = flat[start : start + numbers.numel()].reshape(numbers.shape)
        start += numbers.numel()
        n_top = min(kind.top_k, kind.n_vocab(logits.shape[-1]))
        columns = _Columns(n_top, kind.n_ids, states.shape[-1] if kind.hidden else 0)
        for number, values in zip(members, table, strict=True):
            rows[number] = _row(values, reads[number][1], columns)
    return [rows[number] for number in range(len(reads))]


# --- on the device -------------------------------------------------------------------------------


def _reduce(logits: Tensor, states: Tensor, reads: Sequence[tuple[int, Read]], kind: _Kind) -> Tensor:
    """What is left of the rows: float32 of shape (len(reads), columns)."""
    device = logits.device
    # A copy, which masks may change. Adding 0 makes -0 and 0 the tie that they are.
    at = _tensor([row for row, _ in reads], device)
    rows = logits[:, : kind.n_vocab(logits.shape[1])][at].float() + 0.0
    if kind.alignment is not None and len(kind.alignment.ends):
        rows[:, kind.alignment.end] = logits[at[:, None], _tensor(kind.alignment.ends, device)].float().logsumexp(1)
    _apply_masks(rows, [read.mask for _, read in reads])
    if kind.alignment is not None and len(kind.alignment.forbidden):
        rows[:, _tensor(kind.alignment.forbidden, device)] = float(FORBIDDEN)  # behind masks, which could lift them
    best = _best(rows, max(kind.top_k, 1))
    argmax = best[:, :1]
    peak = rows.gather(1, argmax)
    centred = rows - peak
    weights = centred.exp()
    total = weights.sum(1, keepdim=True)
    if kind.signals:
        # Not below FORBIDDEN: -inf (a backend's own mask) times a weight of 0 would not be 0.
        centred.clamp_(min=float(FORBIDDEN))
        weights *= centred
        first = weights.sum(1, keepdim=True)
        second = weights.mul_(centred).sum(1, keepdim=True)
    else:
        first = second = torch.full_like(total, math.nan)
    if kind.warp.greedy:
        drawn = redrawn = argmax
    else:
        uniforms = [(read.uniform, read.check.residual_uniform if read.check else 0.0) for _, read in reads]
        drawn, redrawn = _draw(rows, kind.warp, _tensor(uniforms, device, torch.float64))
    drafted = _tensor([[read.check.token if read.check else 0] for _, read in reads], device)
    ids = _tensor([read.ids for _, read in reads], device).reshape(len(reads), kind.n_ids)
    top = best[:, : kind.top_k]
    parts = [
        *(argmax, peak, total, first, second),
        *(drawn, rows.gather(1, drawn), redrawn, rows.gather(1, redrawn), rows.gather(1, drafted)),
        *(top, rows.gather(1, top), rows.gather(1, ids)),
        *([states[at]] if kind.hidden else []),
        *([rows] if kind.whole else []),
    ]
    return torch.cat([part.float() for part in parts], 1)


def _tensor(values: Sequence[object] | Ints, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """The values on the device. From pinned memory, for which nobody waits until the forward before has ended."""
    held = torch.tensor(values, dtype=dtype)
    if device.type == "cuda" and held.numel():
        held = held.pin_memory()
    return held.to(device, non_blocking=True)


def _apply_masks(rows: Tensor, masks: Sequence[Mask | None]) -> None:
    n_vocab = rows.shape[1]
    allowed: dict[int, Tensor] = {}
    for row, mask in zip(rows, masks, strict=True):
        if mask is None:
            continue
        if mask.ids is not None and mask.bias is not None:
            ids = torch.as_tensor(np.asarray(mask.ids), device=rows.device)
            row[ids] += torch.as_tensor(np.asarray(mask.bias, np.float32), device=rows.device)
        if mask.allowed is not None:
            if mask.allowed.shape != (n_vocab,):
                raise ConfigurationError(
                    f"a constraint's allowed has shape {mask.allowed.shape}, the vocabulary ({n_vocab},)"
                )
            # The rows of a draft often share one: it is sent once.
            known = allowed.get(id(mask.allowed))
            if known is None:
                known = allowed[id(mask.allowed)] = torch.as_tensor(~mask.allowed, device=rows.device)
            row.masked_fill_(known, float(FORBIDDEN))


def _best(rows: Tensor, k: int) -> Tensor:
    """Ids of the ``k`` largest of each row, best first, ties by lower id: shape (n, k)."""
    if k == 1:
        return rows.argmax(1, keepdim=True)
    n_vocab = rows.shape[1]
    # topk does not say which of equals it takes. An integer that orders as the float does, with the id
    # below it, leaves no equals.
    bits = rows.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = ordered.long() * n_vocab + torch.arange(n_vocab - 1, -1, -1, device=rows.device)
    return keys.topk(min(k, n_vocab), sorted=True).indices


def _draw(rows: Tensor, warp: Warp, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Two tokens of each row, by the two columns of ``uniforms``: as ``draw(*warped(row, warp), uniform)``."""
    # By a number on the device: by one of the host it would be multiplied by the inverse, infinite for the least ones.
    temperature = rows.new_full((), warp.temperature, dtype=torch.float64)
    scaled = (rows.double() - rows.amax(1, keepdim=True).double()) / temperature
    if warp.top_k:
        ids = _best(rows, warp.top_k)
        scaled = scaled.gather(1, ids)
    else:
        scaled, ids = scaled.sort(dim=1, descending=True, stable=True)
    probabilities = scaled.exp_()
    probabilities /= probabilities.sum(1, keepdim=True)
    kept = torch.ones_like(probabilities, dtype=torch.bool)
    if warp.top_p < 1.0:
        kept &= probabilities.cumsum(1) - probabilities < warp.top_p
    if warp.min_p > 0.0:
        kept &= probabilities >= warp.min_p * probabilities[:, :1]
    cumulative = (probabilities * kept).cumsum(1)
    # Against the sum as it came out, and never behind the last that is kept: see reading.draw.
    at = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    tokens = ids.gather(1, at.minimum(kept.sum(1, keepdim=True) - 1).clamp_(min=0))
    return tokens[:, :1], tokens[:, 1:]


# --- on the host ---------------------------------------------------------------------------------


def _row(values: Floats, read: Read, columns: _Columns) -> Row:
    argmax, peak, total, first, second, drawn, drawn_logit, redrawn, redrawn_logit, draft_logit = map(
        float, values[: columns.FIXED]
    )
    if math.isnan(total):
        return UNREADABLE
    log_partition = peak + math.log(total)
    mean = first / total
    logits = {int(argmax): peak, int(drawn): drawn_logit}
    token, accepted = int(drawn), None
    check = read.check
    if check is not None:
        logits |= {int(redrawn): redrawn_logit, check.token: draft_logit}
        if check.rule.needs_fast_row:
            row = values[columns.row]
            accepted, token = check_row(row, check, read.warp, token, int(argmax), log_partition)
            logits[token] = float(row[token])
        else:
            accepted, token = judge(
                check,
                drawn=token,
                draft_logprob=draft_logit - log_partition,
                best_logprob=peak - log_partition,
                redraw=lambda _: int(redrawn),
                distributions=_no_distributions,
            )
    return Row(
        token=token,
        logprob=logits[token] - log_partition,
        argmax=int(argmax),
        argmax_logprob=peak - log_partition,
        log_partition=log_partition,
        entropy=max(math.log(total) - mean, 0.0) if read.signals else math.nan,
        varentropy=max(second / total - mean * mean, 0.0) if read.signals else math.nan,
        top_ids=tuple(values[columns.top].astype(int).tolist()),
        top_logprobs=tuple(_below(values[columns.top_logits], log_partition)),
        id_logprobs=tuple(_below(values[columns.id_logits], log_partition)),
        accepted=accepted,
        logits=np.array(values[columns.row]) if read.full else None,
        hidden=np.array(values[columns.hidden]) if read.hidden else None,
    )


def _below(logits: Floats, log_partition: float) -> Iterator[float]:
    return (logit - log_partition for logit in logits.tolist())


def _no_distributions(_: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    raise AssertionError("this rule needs no distributions")


def reduce_on_host(
    scratch: Scratch, logits: Tensor, reads: Sequence[tuple[int, Read]], hidden: Tensor | None = None
) -> list[Row]:
    """The same with numpy, for rows in the host's own memory."""
    rows = logits.float().cpu().numpy()
    if hidden is None:
        return [reduce_row(rows[row], read, scratch) for row, read in reads]
    states = hidden.float().cpu().numpy()
    return [reduce_row(rows[row], read, scratch, states[row]) for row, read in reads]
