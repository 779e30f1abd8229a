"""Random scripted pairs: logits are a hash of the ids, so a case is one integer and repeats exactly.

The vocabulary is small and nasty: characters of two to four bytes split over tokens, one token that
ends a character and begins the next, a control token, two tokens that end a generation.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
from fsgen_router.contracts.methods import Method
from fsgen_router.contracts.policy import Ledger, Policy
from fsgen_router.decode import Engine, Request
from fsgen_router.generation import Generation
from fsgen_router.methods import make_method
from fsgen_router.policies import make_policy
from fsgen_router.records import Role
from fsgen_router.run import drivers

PIECES = (
    b"a",
    b"b",
    b" c",
    b" ",
    b"\n",
    b"7",
    b",",
    b"stop",
    b"top",
    b"\xc3",  # é = c3 a9
    b"\xa9",
    b"\xe2\x82",  # € = e2 82 ac
    b"\xac",
    b"\xf0\x9f",  # a face = f0 9f 98 80
    b"\x98",
    b"\x80",
    b"\xacx\xc3",  # the end of one character and the beginning of the next
    "né".encode(),
    b"<control>",
    b"<end>",
    b"<turn>",
)
CONTROL, END, TURN = 18, 19, 20
EOG = frozenset({END, TURN})
N_VOCAB = len(PIECES)

Script = Callable[[Sequence[int]], np.ndarray]


def tokenizer() -> ScriptedTokenizer:
    return ScriptedTokenizer(PIECES, eog=EOG, special=[CONTROL])


def _noise(seed: int, ids: Sequence[int]) -> np.ndarray:
    digest = hashlib.blake2b(array("H", ids).tobytes(), digest_size=2 * N_VOCAB, key=seed.to_bytes(8, "big")).digest()
    return np.frombuffer(digest, np.uint16).astype(np.float32) / 8192  # 0 to 8


def script(seed: int, *, shared: int = 0, own: float = 1.0, levels: int = 0, eog_bias: float = -1.5) -> Script:
    """Logits from a hash of ``ids``; two scripts with one ``shared`` seed often agree.

    ``levels`` > 0 rounds to a few values, so that ties are common.
    """

    def logits(ids: Sequence[int]) -> np.ndarray:
        row = _noise(shared, ids) + np.float32(own) * _noise(seed, ids)
        if levels:
            row = np.round(row / 8 * levels) * np.float32(8 / levels)
        row[[END, TURN]] += np.float32(eog_bias)
        return row.astype(np.float32)

    return logits


HIDDEN = 6


def hidden(seed: int) -> Script:
    """Hidden states, shape (HIDDEN,), from a hash of ``ids``."""
    return lambda ids: _noise(seed + (1 << 32), ids)[:HIDDEN] - np.float32(4)


@dataclass
class Pair:
    """Two scripted models and the scripts that they are made of."""

    fast: ScriptedModel
    slow: ScriptedModel

    @property
    def models(self) -> dict[Role, ScriptedModel]:
        return {"fast": self.fast, "slow": self.slow}

    @property
    def all_free(self) -> bool:
        """Every sequence of both models can be opened at once."""
        for model in (self.fast, self.slow):
            opened = [model.open([]).sequence for _ in range(model.n_seq)]
            for sequence in opened:
                model.close(sequence)
        return True


def pair(
    case: int,
    *,
    n_ctx: int = 4096,
    n_seq: int = 2,
    slow_fails_after: int | None = None,
    device: str | None = None,
) -> Pair:
    """Two models; with ``device`` they take turns on it."""
    rng = random.Random(case)
    shared, levels = rng.randrange(1 << 30), rng.choice((0, 0, 6))
    bias = rng.choice((-6.0, -1.5, 0.0))
    words = tokenizer()
    return Pair(
        ScriptedModel(
            script(2 * case, shared=shared, levels=levels, eog_bias=bias),
            words,
            name="fast",
            n_ctx=n_ctx,
            n_seq=n_seq,
            device=device,
        ),
        ScriptedModel(
            script(2 * case + 1, shared=shared, levels=levels, eog_bias=bias),
            words,
            name="slow",
            n_ctx=n_ctx,
            n_seq=n_seq,
            n_params=10_000,
            fail_after=slow_fails_after,
            device=device,
        ),
    )


def prompt(case: int) -> list[int]:
    rng = random.Random(f"prompt/{case}")
    return [rng.randrange(CONTROL) for _ in range(rng.randint(1, 12))]


class Vocabulary:
    """What the engine needs of a vocabulary."""

    eog_ids = EOG
    n_vocab = N_VOCAB

    def encode_after(self, before: str, text: str) -> list[int]:
        return tokenizer().encode(text, add_bos=False)

    def piece(self, token: int) -> bytes:
        return PIECES[token]

    def class_of(self, token: int) -> int:
        return token % 7


def make_engine(
    models: Pair,
    policy: Policy | str,
    ids: Sequence[int],
    *,
    ledger: Ledger | None = None,
    method: Method | str = "replace",
    read_ahead: int = 0,
    **request,
):
    request.setdefault("max_tokens", 24)
    return Engine(
        Request(prompts={"fast": ids, "slow": ids}, key="case", **request),
        policy=make_policy(policy),
        method=make_method(method),
        vocabulary=Vocabulary(),
        contexts={role: model.n_ctx for role, model in models.models.items()},
        ledger=Ledger() if ledger is None else ledger,
        read_ahead=read_ahead,
    )


def finish(engine: Engine, models: Pair) -> tuple[Generation, list[str]]:
    """Run with the synchronous driver: the answer and the pieces of text in order."""
    shown = [emit.text for emit in drivers.run(engine, models.models)]
    assert engine.generation is not None
    return engine.generation, shown


def answer(models: Pair, policy: Policy | str, ids: Sequence[int], **request) -> Generation:
    return finish(make_engine(models, policy, ids, **request), models)[0]


def greedy(script: Script, ids: Sequence[int], max_tokens: int) -> list[int]:
    """What a model writes on its own: the plainest loop there is."""
    written: list[int] = []
    while len(written) < max_tokens:
        written.append(int(np.argmax(script([*ids, *written]))))
        if written[-1] in EOG:
            break
    return written


def ids_of(generation: Generation) -> list[int]:
    return [token.id for token in generation.tokens]
