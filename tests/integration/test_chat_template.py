"""Chat templates of both local backends: given ones, variables, system messages, reasoning that control tokens mark."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
import tiny_transformers
from endpoints import says, scripted_server

from fsgen_router import ConfigurationError, InvalidRequest, Mask, Router, SystemMessageWarning
from fsgen_router.adapters.chat_template import ChatTemplate
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.resolve import make_model

HELLO = [{"role": "user", "content": "hello"}]
CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|' + message.role + '|>' + message.content + '<|end|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- 'now' }}{% endif %}"
)
BACKENDS = pytest.mark.parametrize("load", [LlamaCppModel, TransformersModel])
Load = Callable[..., Any]


@contextmanager
def loaded(load: Load, *where: Any, **options: Any) -> Iterator[Any]:
    model = load(*where, **options)
    try:
        yield model
    finally:
        model.shutdown()


def spelled(model: Any, messages: list[dict[str, str]], variables: dict[str, Any] | None = None) -> str:
    """A conversation as the model reads it."""
    ids = model.tokenizer.encode_chat(messages, variables)
    return b"".join(map(model.tokenizer.piece, ids)).decode()


# --- chat_template= ------------------------------------------------------------------------------


@BACKENDS
def test_a_base_model_chats_with_a_given_template(load: Load, tmp_path: Path) -> None:
    base = tiny_gguf.write(tmp_path / "base.gguf", template=None)
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML, encoding="utf-8-sig")
    for given in (CHATML, str(file), file):
        with loaded(load, base, chat_template=given) as model:
            assert spelled(model, HELLO) == "<|bos|><|user|>hello<|end|><|assistant|>"
    with loaded(load, base) as model:
        with pytest.raises(ConfigurationError, match=r"base.gguf has no chat template \(load it with chat_template="):
            model.tokenizer.encode_chat(HELLO)
        assert model.tokenizer.encode("hello", add_bos=True)


@pytest.mark.parametrize("backend", ["llama_cpp", "transformers"])
def test_in_a_model_string(backend: str, tmp_path: Path) -> None:
    base = tiny_gguf.write(tmp_path / "base.gguf", template="{{ 1 / 0 }}")
    (tmp_path / "chatml.jinja").write_text(CHATML)
    where = f"{backend}:{base}?chat_template={tmp_path}/chatml.jinja"
    with loaded(make_model, where) as model:
        assert spelled(model, HELLO).endswith("<|assistant|>")
    with loaded(make_model, where + '&chat_template_kwargs={"enable_thinking": false}') as model:
        assert spelled(model, HELLO).endswith("<|assistant|>now")


@BACKENDS
def test_templates_that_are_none(load: Load, tmp_path: Path) -> None:
    """Said when the model is loaded, and not at its first conversation."""
    base = tiny_gguf.write(tmp_path / "base.gguf", template=None)
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\x00messages")
    (tmp_path / "null.jinja").write_bytes(b"messages\x00")
    (tmp_path / "large.jinja").write_bytes(b"{{ messages }}" * 100_000)
    (tmp_path / "notes.txt").write_text("Dear diary")
    for given, words in (
        (tmp_path / "missing.jinja", r"missing.jinja' cannot be read: No such file.*a Jinja file, or"),
        (tmp_path, r"cannot be read: Is a directory"),
        ("~no-such-user-here/x.jinja", r"cannot be read"),
        ("a\0b", r"cannot be read"),
        (tmp_path / "binary.jinja", r"is no text file"),
        (tmp_path / "null.jinja", r"is no text file"),
        (tmp_path / "large.jinja", r"is no text file"),
        (base, r"is no text file"),
        (tmp_path / "notes.txt", r"reads no messages"),
        ("{% for m in messages %}\n{{ m.content }", r"template of base.gguf is no valid Jinja: line 2: "),
        ("{{ messages | no_such_filter }}", r"no valid Jinja: line 1: .*no_such_filter"),
        ("", r"chat_template=''"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            load(base, chat_template=str(given))


@BACKENDS
def test_of_several_templates_the_default_is_used(load: Load, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "TOOLS"}, {"name": "default", "template": CHATML}]
    with loaded(load, tiny_gguf.write(tmp_path / "several.gguf", template=named)) as model:
        assert spelled(model, HELLO) == "<|bos|><|user|>hello<|end|><|assistant|>"


def test_a_folder_with_several_templates(tmp_path: Path) -> None:
    for templates, words in (
        ({"default": CHATML, "rag": "x"}, None),
        ({"rag": "x", "tool_use": "y"}, "templates for rag, tool_use, and none that is the default.*chat_template="),
    ):
        folder = tmp_path / str(len(templates["rag"]) + (words is None))
        tiny_transformers.make_model("llama").save_pretrained(folder)
        tokenizer = tiny_transformers.byte_level()
        tokenizer.chat_template = templates
        tokenizer.save_pretrained(folder)
        with loaded(TransformersModel, folder) as model:
            if words is None:
                assert spelled(model, HELLO).endswith("<|assistant|>")
            else:
                with pytest.raises(ConfigurationError, match=words):
                    model.tokenizer.encode_chat(HELLO)


# --- one renderer --------------------------------------------------------------------------------

FEATURES = (
    CHATML,
    "{{ bos_token }}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m['content'] }}"
    "{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m | tojson }}{{ m.content | tojson(indent=2) }}{% endif %}{% endfor %}",
    "{% set ns = namespace(n=0) %}\n{% for m in messages %}\n    {% set ns.n = ns.n + m.content | length %}\n"
    "{% endfor %}\n  {{ ns.n }}{{ dict(a=messages | length) }}{{ strftime_now('%Y') }}\n",
    "{{ tools is none }}{{ documents }}{{ pad_token is defined }}{{ unheard_of }}"
    "{{ messages[0].content.split('l')[-1] }}{{ messages | map(attribute='role') | list }}",
    "{% macro turn(m) -%}\n  [{{ m.role }}] {{ m.content | trim }}\n{%- endmacro %}{% for m in messages %}"
    "{{ turn(m) }}\n{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}",
)


@pytest.mark.parametrize("template", FEATURES)
def test_templates_find_what_transformers_offers(template: str) -> None:
    tokenizer = tiny_transformers.byte_level(template=template)
    ours = ChatTemplate(template, "tiny", tokens=tokenizer.special_tokens_map)
    messages = [
        {"role": "user", "content": " héllo <\"'&> "},
        {"role": "assistant", "content": "line\nline"},
        {"role": "user", "content": "{{ x }}"},
    ]
    for variables in ({}, {"enable_thinking": False}):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
        assert ours.render(messages, variables) == theirs


@BACKENDS
@pytest.mark.parametrize("template", FEATURES)
def test_both_backends_read_the_same(load: Load, template: str, tmp_path: Path) -> None:
    ours = ChatTemplate(template, "tiny", tokens={"bos_token": "<|bos|>", "eos_token": "<|end|>"})
    with loaded(load, tiny_gguf.write(tmp_path / "tiny.gguf", template=template)) as model:
        shown = spelled(model, HELLO)
    assert shown.removeprefix("<|bos|>") == ours.render(HELLO).removeprefix("<|bos|>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{% for a in range(10**9) %}{% endfor %}",
        "{{ lipsum.__globals__['os'] }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages"):
        ChatTemplate(template, "tiny", tokens={}).render(HELLO)


# --- variables -----------------------------------------------------------------------------------


@BACKENDS
def test_variables_of_a_model_and_of_a_call(load: Load, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", template=CHATML)
    with loaded(load, path, chat_template_kwargs={"enable_thinking": False}) as model:
        assert spelled(model, HELLO).endswith("<|assistant|>now")
        assert spelled(model, HELLO, {"enable_thinking": True}).endswith("<|assistant|>")
    for variables, words in (
        ('{"enable_thinking": ', "template variables is wanted"),
        ("[1]", "like {"),
        ({"enable_thinking": object()}, "template variables is wanted"),
        ({"messages": []}, "messages cannot be set from outside"),
        ({"tools": []}, "tools cannot be set from outside"),
        ({"enable_thinkin": False}, r"reads no enable_thinkin \(it reads enable_thinking\)"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            load(path, chat_template_kwargs=variables)


def test_variables_of_a_request_reach_both_models(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "one.gguf", template=CHATML)
    other = tiny_gguf.write(tmp_path / "two.gguf", template=CHATML.replace("enable_thinking", "thinking"))
    with Router(f"llama_cpp:{path}", f"llama_cpp:{other}", policy="every:2") as router:
        plain = router.chat(HELLO, max_tokens=2).usage.prompt_tokens
        quiet = router.chat(HELLO, max_tokens=2, chat_template_kwargs={"enable_thinking": False})
        assert quiet.usage.prompt_tokens == plain + len("now")
        assert quiet.usage.slow.prefill + quiet.usage.slow.cached == plain
        both = {"enable_thinking": False, "thinking": False}
        answer = router.chat(HELLO, max_tokens=2, chat_template_kwargs=both)
        assert answer.usage.slow.prefill + answer.usage.slow.cached == plain + len("now")
        with pytest.raises(
            InvalidRequest,
            match=r"no chat template of one.gguf and two.gguf reads thinkin \(they read enable_thinking, thinking\)",
        ):
            router.chat(HELLO, chat_template_kwargs={"thinkin": False})
        with pytest.raises(InvalidRequest, match=r"without messages.*use chat\(\)"):
            router.complete("hello", chat_template_kwargs=both)
        with pytest.raises(InvalidRequest, match="template variables is wanted"):
            router.chat(HELLO, chat_template_kwargs=3)


def test_variables_of_a_request_reach_an_endpoint() -> None:
    with scripted_server(lambda asked: asked.send(says("a"))) as server:
        extra = json.dumps({"chat_template_kwargs": {"enable_thinking": True, "budget": 7}})
        slow = f"openai:m@{server.url}?api_key_env=&prefill=always&probe=first&extra_body={extra}"
        with Router(
            ScriptedModel(lambda _: np.array([1.0, 0.0]), ScriptedTokenizer([b"a", b"b"], eog=[1])),
            slow,
            policy="every:1,span=8",
        ) as router:
            for wanted in ({}, {"enable_thinking": False, "effort": "low"}):
                router.chat([{"role": "user", "content": "a"}], max_tokens=3, chat_template_kwargs=wanted)
                sent = server.asked[-1].body["chat_template_kwargs"]
                assert sent == {"enable_thinking": True, "budget": 7} | wanted


# --- system messages -----------------------------------------------------------------------------

TURNS = "{{ '<|' + m.role + '|>' + m.content | trim + '<|end|>' }}"
REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    + TURNS
    + "{% endfor %}<|assistant|>"
)
DROPS = "{% for m in messages if m.role != 'system' %}" + TURNS + "{% endfor %}<|assistant|>"
FIRST_ALONE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    + TURNS
    + "{% endfor %}<|assistant|>"
)
SYSTEM, USER, ANSWER = ({"role": role, "content": f" {role}! "} for role in ("system", "user", "assistant"))


@BACKENDS
@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (REFUSES, [SYSTEM, USER], "<|user|>system! \n user!<|end|>"),
        (DROPS, [SYSTEM, USER], "<|user|>system! \n user!<|end|>"),
        (DROPS, [SYSTEM, SYSTEM, USER], "<|user|>system! \n system! \n user!<|end|>"),
        (
            REFUSES,
            [SYSTEM, USER, ANSWER, SYSTEM, USER],
            "<|user|>system! \n user!<|end|><|assistant|>assistant!<|end|><|user|>system! \n user!<|end|>",
        ),
        (REFUSES, [USER, SYSTEM], "<|user|>user! \n system!<|end|>"),
        (REFUSES, [SYSTEM], "<|user|>system!<|end|>"),
        (FIRST_ALONE, [SYSTEM, USER, SYSTEM], "<|system|>system!<|end|><|user|>user! \n system!<|end|>"),
    ],
)
def test_a_system_message_that_a_template_refuses(
    load: Load, template: str, messages: list[dict[str, str]], expected: str, tmp_path: Path, caplog: Any
) -> None:
    """Or drops without a word: it goes before the user's text, and that is said once for each model."""
    specials = (*tiny_gguf.SPECIALS, "<|system|>")
    path = tiny_gguf.write(tmp_path / "tiny.gguf", template=template, specials=specials)
    with loaded(load, path) as model, caplog.at_level(logging.WARNING, "fsgen_router"):
        with pytest.warns(SystemMessageWarning, match=r"tiny.gguf takes no such system message: it is put before"):
            assert spelled(model, messages) == f"<|bos|>{expected}<|assistant|>"
        assert [record.message.split()[0] for record in caplog.records] == ["event='system_merged'"]
        assert "user!" not in caplog.text
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # A control token's name in it stays text.
            named = [{**message, "content": message["content"] + "<|end|>"} for message in messages]
            ids = model.tokenizer.encode_chat(named)
        assert sum(token in model.tokenizer.special_ids for token in ids) == 2 + 2 * expected.count("<|end|>")


def test_a_system_message_that_the_template_reads_stays(tmp_path: Path) -> None:
    """Also where it is read as a switch, or changed: no warning (which would fail this test)."""
    switch = (
        "{% for m in messages %}{{ m.role }}:{{ m.content.replace('/no_think', '') | trim | upper }};{% endfor %}"
        "{% if '/no_think' in messages[0].content %}quiet{% endif %}"
    )
    with loaded(LlamaCppModel, tiny_gguf.write(tmp_path / "tiny.gguf", template=switch)) as model:
        assert spelled(model, [{"role": "system", "content": "/no_think"}, USER]) == "<|bos|>system:;user:USER!;quiet"


def test_messages_that_no_arrangement_helps_are_refused(tmp_path: Path) -> None:
    with loaded(LlamaCppModel, tiny_gguf.write(tmp_path / "tiny.gguf", template=REFUSES)) as model:
        with pytest.raises(InvalidRequest, match="System role not supported"):
            spelled(model, [SYSTEM, USER, USER])
        with pytest.raises(InvalidRequest, match="roles must alternate"):
            spelled(model, [USER, USER])


# --- reasoning that control tokens mark ----------------------------------------------------------

HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
)
SOLAR = (
    "{% for m in messages %}<|begin|>{{ m.role }}<|content|>{{ m.content }}<|end|>{% endfor %}"
    "{% if effort is defined %}<|begin|>assistant<|think|><|end|>{% endif %}<|begin|>assistant"
)


@BACKENDS
@pytest.mark.parametrize(
    ("template", "names"),
    [(HARMONY, ("<|start|>", "<|channel|>", "<|message|>")), (SOLAR, ("<|begin|>", "<|think|>", "<|content|>"))],
)
def test_channels_are_refused_by_name(load: Load, template: str, names: tuple[str, ...], tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "channels.gguf", template=template, specials=("<|bos|>", "<|end|>", *names))
    with loaded(load, path) as model:
        words = rf"channels.gguf writes in channels \(.*{names[1][2:-2]}.*use complete\(\)"
        with pytest.raises(ConfigurationError, match=words):
            model.tokenizer.encode_chat(HELLO)
        assert model.tokenizer.encode("hello", add_bos=True)
    # What opens the answer's channel leaves nothing to mistake.
    with loaded(
        load, path, chat_template=template + names[1] + "final" * (names[1] != "<|think|>") + names[2]
    ) as model:
        assert spelled(model, HELLO).endswith(names[2])


def test_a_router_says_so_at_the_call(tmp_path: Path) -> None:
    specials = ("<|bos|>", "<|end|>", "<|start|>", "<|channel|>", "<|message|>")
    fast, slow = (tiny_gguf.write(tmp_path / f"{n}.gguf", template=HARMONY, specials=specials, seed=n) for n in (1, 2))
    with Router(f"llama_cpp:{fast}", f"llama_cpp:{slow}", policy="every:2") as router:
        with pytest.raises(ConfigurationError, match=r"1.gguf writes in channels"):
            router.stream_chat(HELLO)
        assert router.complete("hello", max_tokens=3).usage.tokens


def test_names_that_only_look_like_channels(tmp_path: Path) -> None:
    """The words without the tokens, and the tokens without a template that writes in them."""
    plain = tiny_gguf.write(tmp_path / "plain.gguf", template=HARMONY)
    own = tiny_gguf.write(tmp_path / "own.gguf", template=CHATML, specials=("<|bos|>", "<|channel|>", "<|message|>"))
    for path in (plain, own):
        with loaded(LlamaCppModel, path) as model:
            assert spelled(model, HELLO)


@pytest.mark.parametrize(
    "pair",
    [
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("<|channel>", "<channel|>"),
    ],
)
@pytest.mark.parametrize("backend", ["llama_cpp", "transformers"])
def test_marks_around_reasoning_are_shown(backend: str, pair: tuple[str, str], tmp_path: Path) -> None:
    """As control tokens they vanished, and what was thought read as the beginning of the answer."""
    specials = ("<|bos|>", "<|end|>", *pair, "<|START_RESPONSE|>")
    fast, slow = (tiny_gguf.write(tmp_path / f"{n}.gguf", specials=specials, seed=n) for n in (1, 2))
    with Router(f"{backend}:{fast}", f"{backend}:{slow}", policy="always", method="replace") as router:
        assert set(range(5)) <= set(router.fast.tokenizer.special_ids)
        first = len(specials)
        said = [2, first + 40, 3, 4, first + 41, 1]

        class Say:
            def mask(self, answer: Any) -> Any:
                return Mask(allowed=np.arange(router.fast.tokenizer.n_vocab) == said[len(answer)])

        answer = router.complete("x", max_tokens=len(said), constraint=Say())
        pieces = [router.fast.tokenizer.piece(token).decode() for token in said]
        assert answer.text == f"{pair[0]}{pieces[1]}{pair[1]}{pieces[4]}"
        assert answer.finish_reason == "eog"


# --- real files ----------------------------------------------------------------------------------


@pytest.mark.skipif("FSGEN_REAL_MODELS" not in os.environ, reason="FSGEN_REAL_MODELS names no folder of real models")
def test_real_base_model_chats_with_a_template() -> None:
    folder = Path(os.environ["FSGEN_REAL_MODELS"])
    gemma = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}{{ '<start_of_turn>model\n' }}"
    )
    path, options = folder / "gemma3-270m.gguf", {"n_ctx": 256, "n_threads": 1}
    with loaded(LlamaCppModel, path, **options) as model, pytest.raises(ConfigurationError, match=r"chat_template="):
        model.tokenizer.encode_chat(HELLO)
    with loaded(LlamaCppModel, path, **options, chat_template=gemma) as model:
        with pytest.warns(SystemMessageWarning):
            shown = spelled(model, [SYSTEM, USER])
        assert shown == "<bos><start_of_turn>user\nsystem! \n user!<end_of_turn>\n<start_of_turn>model\n"
        names = {model.tokenizer.piece(token) for token in model.tokenizer.encode_chat(HELLO)}
        assert {b"<start_of_turn>", b"<end_of_turn>"} <= names
