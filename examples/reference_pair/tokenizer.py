"""The reference pair's tokenizer: whole words of its world, single digits, and 256 byte tokens.

It is a byte-level BPE whose words are matched whole (``ignore_merges``, as Llama 3 does it), so it
needs no learned merges: what is not a known word falls apart into bytes. The pre-tokenizer is
Llama 3's, which llama.cpp knows as ``llama-bpe``; both therefore cut any text alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fsgen_router.reference import world

BOS, END, SYSTEM, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIALS = (BOS, END, SYSTEM, USER, ASSISTANT)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The only merge: both tokenizers' file formats want at least one.
_MERGE = ("Ġ", "Ġ")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build(samples: int = 20_000, *, more: Sequence[str] = (), specials: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The tokenizer over every word that ``samples`` training problems use (the same each time).

    ``more``: texts whose words are tokens too, and ``specials`` further control tokens, for models of another world.
    """
    split = _pre_tokenizer()
    words: Counter[str] = Counter()
    texts = [text for p in world.problems("train", samples) for text in (p.prompt, p.solution)]
    for text in [*texts, world.OUT_OF_WORLD, *more]:
        words.update(piece for piece, _ in split.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = sorted(word for word in words if len(word) > 1 and not word.isdigit())
    control = [*SPECIALS, *specials]
    vocabulary = [*control, *alphabet, "".join(_MERGE), *known]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[_MERGE], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(control)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
