"""Random cuts: a fast model and an endpoint that copy texts take turns, and every byte of the answer is looked at.

The fast model's ids are those of real tokenizers; the endpoint's text comes in pieces of any size, and ends anywhere.
"""

from __future__ import annotations

import bisect
import codecs
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fsgen_router import Router, TextDelta
from fsgen_router.adapters.scripted import ScriptedTextModel
from fsgen_router.contracts.models import Capabilities, Opened, Work
from fsgen_router.contracts.tokenizer import Tokenizer
from fsgen_router.rows.reading import Row
from fsgen_router.text.boundaries import breaks, whole_words
from fsgen_router.text.conversation import encode_within

TEXTS = (
    "The lamps cost 3*9=27 coins, the ropes 36. Together: 63! “Is that so?” she asked; it's 3.14159 times 1,000.",
    "Die Straße hört nicht auf, und der Fluß fließt über Öl. Größe: 12 m². Ça va? Où est l’œuvre d’art? ¿Qué tal?",
    "Привет, мир! Съешь же ещё этих мягких французских булок. Ελληνικά: καλημέρα κόσμε. Հայերեն: բարև։",
    "日本語の文章です。東京は大きい！本当ですか？「はい」と言った。カタカナとひらがな、漢字。",
    "我们今天去北京，明天回来。价格是３５０元。你好！“再见”。",
    "한국어 문장입니다. 오늘은 날씨가 좋네요! 값은 3,000원이다.",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ เขาไปตลาดซื้อของ น้ำแข็งใส",
    "မြန်မာဘာသာ ចក្រភព ລາວ བོད་སྐད་ ",
    "हिन्दी में लिखा गया वाक्य। क्या यह ठीक है? क्षत्रिय ज्ञान।",
    "السلام عليكم، كيف حالك؟ العدد ٣٤٥. עברית: שלום עולם! نعم۔",
    "Tiếng Việt có dấu: Nguyễn, phở, đường. Decomposed: e\u0301 a\u0308 o\u0302\u0323 n\u0303 \u1112\u1161\u11ab.",
    "👩‍👩‍👧‍👦 family, 👍🏽 thumbs, 🏳️‍🌈 flag, 🇩🇪🇯🇵, ❤️, 1️⃣ keycap; 😀😃😄 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒜ℬ. 🤷🏾‍♀️\u200d",
    "def f(x: int) -> str:\n    if x>0:\n\t\treturn f\"{x!r:>10}\"  # ok\n\n\n    return ''\n",
    "for(i=0;i<n;i++){a[i]+=b[i]*c[i];}//loop\r\n\r\n#include <stdio.h>\r\nint main(void)\r\n{\r\n\treturn 0;\r\n}\r\n",
    '{"a": [1, 2.50, null], "b": {"c\\n": "\\u00e9"}}\n<div class="x">&nbsp;</div>\n',
    "| a | b |\n|---|---|\n```sh\n$ ls -la | wc\n```",
    "     leading,   several    spaces\t\ttabs \n\n \n\t\n  and\u00a0no-break\u2003em\u3000wide ",
    "\u2028 line\u2029 par \x0b\x0c end   ",
    "<|im_start|>user\n<|im_end|> </s><s> [INST] <bos><eos> <start_of_turn>model ",
    "<|endoftext|><unk><0x0A>▁▁<pad> Ġ Ċ <think></think>",
    "https://example.org/a/very-long_path?query=value&other=%20%C3%A9#frag user@example.org C:\\Users\\x ~/bin --opt=1",
    "supercalifragilisticexpialidociousdonaudampfschifffahrtsgesellschaftskapitaenswitwenrentenauszahlungsstelle",
    "\ufeffBOM, zero\u200bwidth, soft\u00adhyphen, \u202eright-to-left\u202c, combining: Z͑ͫ̓͏̴̙̤A͑",
    ", controls \x01\x02\x7f, private \ue000, last \U0010fffd.",
)


class Copyist:
    """A fast model that writes tokens of a text one by one, and looks at no logits.

    Behind what the endpoint wrote it goes on at some token that begins with a whole character.
    """

    name, n_params, n_ctx, n_seq, capabilities = "copyist", 1000, 1 << 20, 1, Capabilities()

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self.tokenizer, self._rng = tokenizer, rng
        self.ids: list[int] = []
        self._begins: list[int] = []
        self._held: list[int] = []
        self._at: dict[int, int] = {}
        """By the position of an answer, which of ``ids`` was written there."""

    def open(self, ids: Sequence[int]) -> Opened:
        """Take the texts in another order."""
        texts = self._rng.sample(TEXTS, len(TEXTS))
        self.ids, self._held, self._at = encode_within(self.tokenizer, "".join(texts)), [], {}
        self._begins, before = [], b""
        for at, token in enumerate(self.ids):
            if _whole(before):
                self._begins.append(at)
            before = (before + self.tokenizer.piece(token))[-8:]
        return Opened(0, 0)

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        (work,) = works
        del self._held[work.keep :]
        self._held += work.ids
        length = len(self._held)
        last = self._at.get(length - 1)
        goes_on = last is not None and self.ids[last] == self._held[-1] and last + 1 < len(self.ids)
        at = last + 1 if goes_on and last is not None else self._rng.choice(self._begins)
        self._at[length] = at
        row = Row(self.ids[at], 0.0, self.ids[at], 0.0, 0.0, 0.0, 0.0, (self.ids[at],) * 2, (0.0, -9.0))
        return [[row] * len(work.reads)]

    def close(self, sequence: int) -> None:
        return None

    def shutdown(self) -> None:
        return None


def _whole(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return not decoder.getstate()[0]


@dataclass
class Found:
    """What was looked at: calls of the endpoint, those of them in the middle of a word, and tokens of answers."""

    cuts: int = 0
    in_words: int = 0
    tokens: int = 0


SPANS = ("8", "3", "sentence,max=12", "line,max=20", "step,max=20", "1")


def run_cuts(tokenizer: Tokenizer, cuts: int, seed: int) -> Found:
    """At least ``cuts`` escalations on answers in this vocabulary, which has tokens for all bytes.

    Raises AssertionError at the first wrong byte.
    """
    rng, found, said = random.Random(seed), Found(), list[str]()
    fast, endpoint = Copyist(tokenizer, rng), ScriptedTextModel(lambda request: _says(rng, said))
    with Router(fast, endpoint, policy="never", batching=False) as router:
        while found.cuts < cuts:
            said.clear()
            endpoint.requests.clear()
            policy = f"random:{rng.choice((0.1, 0.3, 0.6))},span={rng.choice(SPANS)}"
            _look_at(router, fast, endpoint, said, found, policy=policy, seed=rng.randrange(1 << 30))
    return found


def _says(rng: random.Random, said: list[str]) -> Iterator[str]:
    """A piece of a text from anywhere to anywhere, in pieces of any size; kept in ``said``."""
    text = rng.choice(TEXTS)
    start = rng.randrange(len(text))
    said.append("")
    for _ in range(100):
        size = rng.choice((1, 1, 2, 3, 5, 20))
        piece, start = text[start : start + size], start + size
        if not piece:
            text, start = rng.choice(TEXTS), 0
            continue
        said[-1] += piece
        yield piece


def _look_at(
    router: Router, fast: Copyist, endpoint: ScriptedTextModel, said: list[str], found: Found, **options: Any
) -> None:
    shown, answer = "", None
    for event in router.stream("x", max_tokens=400, **options):
        if isinstance(event, TextDelta):
            shown += event.text
        else:
            answer = event.generation
    assert answer is not None
    assert answer.degraded is None, answer.degraded
    assert shown == answer.text
    found.cuts += len(endpoint.requests)
    found.tokens += len(answer.tokens)
    found.in_words += sum(not request.gap for request in endpoint.requests)
    pieces = [token.piece for token in answer.tokens]
    assert b"".join(pieces).decode(errors="replace") == answer.text
    assert {token.id for token in answer.tokens if token.source == "fast"} <= set(fast.ids)
    sizes = list(itertools.accumulate(map(len, pieces), initial=0))
    whole = b"".join(pieces)
    for request, text in zip(endpoint.requests, said, strict=True):
        before = request.answer.encode()
        assert whole.startswith(before)  # what was sent stands: no byte was taken back behind it
        at = bisect.bisect_right(sizes, len(before)) - 1
        assert sizes[at] == len(before)  # and ends with a token
        call = answer.tokens[at].decision
        wrote = [token for token in answer.tokens[at : at + 4 * len(text) + 1] if token.decision is call]
        if not text.strip() or wrote[0].source != "slow":
            assert not text.strip()
            continue
        kept = b"".join(token.piece for token in wrote).decode()
        assert text.startswith(kept), (kept, text)
        rest = text[len(kept) :]
        # Cut between words, unless it is one, or the answer's end.
        is_end = len(before) + len(kept.encode()) == len(whole)
        assert not rest or breaks(kept, rest) or whole_words(kept) == len(kept) or len(kept.split()) <= 1 or is_end, (
            kept,
            rest,
        )


def trained(name: str) -> Tokenizer:
    """A tokenizer of this kind, trained on the texts; its bytes are all there."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trained
    from transformers import PreTrainedTokenizerFast

    from fsgen_router.adapters.transformers.tokenizer import TransformersTokenizer

    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    if name == "byte-level BPE":  # GPT-2's
        made = Trained(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif name == "byte-level BPE, normalised":  # Qwen's, which composes characters and cuts digits apart
        made = Trained(models.BPE())
        made.normalizer = normalizers.NFC()
        split = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif name == "SentencePiece BPE":  # Llama 2's: a space before every text, bytes for what has no piece
        made = Trained(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=1200, special_tokens=[*special, *every_byte], limit_alphabet=100, show_progress=False
        )
    else:  # Unigram, T5's and XLM-R's
        made = Trained(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        trainer = trainers.UnigramTrainer(
            vocab_size=900, special_tokens=[*special, *every_byte], unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator([*TEXTS, *" ".join(TEXTS).split()], trainer)
    spec = json.loads(made.to_str())
    spec["added_tokens"] = [entry for entry in spec["added_tokens"] if entry["content"] not in every_byte]
    if name == "Unigram":
        spec["model"]["byte_fallback"] = True
    made = Trained.from_str(json.dumps(spec))
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return TransformersTokenizer(fast, name, width=made.get_vocab_size())


TRAINED = ("byte-level BPE", "byte-level BPE, normalised", "SentencePiece BPE", "Unigram")
