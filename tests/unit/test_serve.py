"""What the server's APIs say: bodies to the Router's options and events to each API's own, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fsgen_router import (
    ConfigurationError,
    Finished,
    Generation,
    InvalidRequest,
    Restarted,
    TextDelta,
    ToolCall,
    Usage,
)
from fsgen_router.policies import make_policy
from fsgen_router.serve import ServeOptions, chat_completions, completions, messages, responses
from fsgen_router.serve.body import Body, parse
from fsgen_router.serve.dialect import Ask, Dialect, Facts, Reply
from fsgen_router.serve.errors import ApiError, as_api_error
from fsgen_router.serve.events import Heard, Reasoning, Text, ToolArguments
from fsgen_router.serve.options import KEYS_VARIABLE, digest, read_keys
from fsgen_router.serve.telling import Telling, held_from

FACTS = Facts(request_id="7", created=1, model="local/router", text_of=str, prompt_tokens=5)
QUESTION = [{"role": "user", "content": "a"}]
BODIES: dict[str, tuple[Dialect[Any], dict[str, Any]]] = {
    "chat": (chat_completions.CHAT, {"messages": QUESTION}),
    "completions": (completions.COMPLETIONS, {"prompt": "a"}),
    "responses": (responses.RESPONSES, {"input": "a"}),
    "messages": (messages.MESSAGES, {"messages": QUESTION, "max_tokens": 9}),
}


def ask(api: str, **fields: Any) -> Ask:
    dialect, body = BODIES[api]
    return dialect.ask(parse(dialect.body, json.dumps(body | fields).encode()))


def answer(text: str = "", calls: tuple[ToolCall, ...] = (), **fields: Any) -> Generation:
    made: dict[str, Any] = {"finish_reason": "eog", "tokens": (), "usage": Usage(), "seed": 0, **fields}
    return Generation(text=text, policy="never", method="replace", tool_calls=calls, **made)


def streamed(api: str, heard: list[Heard], last: Generation, **fields: Any) -> list[tuple[str | None, dict[str, Any]]]:
    """The events of a stream: their names and what they hold."""
    dialect, body = BODIES[api]
    reply = dialect.reply(parse(dialect.body, json.dumps(body | {"stream": True} | fields).encode()), FACTS)
    frames = [*reply.opening()]
    for what in heard:
        frames += reply.heard(0, what)
    sent = b"".join([*frames, *reply.ended(0, last), *reply.closing([last])])
    events = []
    for block in sent.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        if lines["data"] != "[DONE]":
            events.append((lines.get("event"), json.loads(lines["data"])))
    return events


# --- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize("api", BODIES)
def test_options_reach_the_router_by_its_own_names(api: str) -> None:
    length = {"chat": "max_completion_tokens", "responses": "max_output_tokens"}.get(api, "max_tokens")
    stop = {"messages": "stop_sequences"}.get(api, "stop")
    asked = ask(api, **{length: 3, stop: ["x"]}, temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, seed=2)
    assert asked.options == {
        "max_tokens": 3, "stop": ["x"], "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 2,
    }  # fmt: skip


@pytest.mark.parametrize("api", BODIES)
def test_null_is_the_same_as_absent(api: str) -> None:
    given = {"temperature": None, "stream": None, "seed": None, "fsgen": None, "model": None}
    assert ask(api, **given) == ask(api)


@pytest.mark.parametrize("api", BODIES)
def test_fields_that_are_not_supported_are_refused_by_their_names(api: str) -> None:
    for field in ("best_friend", "speed"):
        with pytest.raises(ApiError, match=f"{field}: is not supported") as refused:
            ask(api, **{field: 1})
        assert (refused.value.status, refused.value.param) == (400, field)


@pytest.mark.parametrize(
    ("api", "field", "taken", "refused"),
    [
        ("chat", "presence_penalty", 0, 0.5),
        ("chat", "store", False, True),
        ("chat", "modalities", ["text"], ["audio"]),
        ("chat", "functions", None, [{}]),
        ("completions", "echo", False, True),
        ("completions", "best_of", 1, 2),
        ("responses", "previous_response_id", None, "resp_1"),
        ("responses", "background", False, True),
        ("messages", "thinking", {"type": "disabled"}, {"type": "enabled", "budget_tokens": 9}),
        ("messages", "mcp_servers", [], [{}]),
    ],
)
def test_a_value_that_changes_nothing_is_taken(api: str, field: str, taken: Any, refused: Any) -> None:
    assert ask(api, **{field: taken}) == ask(api)
    with pytest.raises(ApiError, match=f"{field}: is not supported"):
        ask(api, **{field: refused})


FUNCTION = {"name": "price", "description": "of a thing", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
OWN_TOOLS: dict[str, list[dict[str, Any]]] = {
    "chat": TOOLS,
    "responses": [{"type": "function", **FUNCTION}],
    "messages": [{"name": "price", "description": "of a thing", "input_schema": {"type": "object"}}],
}
ONE = {"type": "function", "function": {"name": "price"}}


@pytest.mark.parametrize("api", OWN_TOOLS)
def test_tools_are_told_in_one_form(api: str) -> None:
    choices = {
        "chat": ["auto", "required", "none", ONE],
        "responses": ["auto", "required", "none", {"type": "function", "name": "price"}],
        "messages": [{"type": "auto"}, {"type": "any"}, {"type": "none"}, {"type": "tool", "name": "price"}],
    }[api]
    for choice, told in zip(choices, ["auto", "required", "none", ONE], strict=True):
        options = ask(api, tools=OWN_TOOLS[api], tool_choice=choice).options
        assert (options["tools"], options["tool_choice"]) == (TOOLS, told)
    assert "tools" not in ask(api, tools=[]).options
    with pytest.raises(ApiError, match="tool_choice without tools"):
        ask(api, tool_choice=choices[-1])


SCHEMA = {"name": "n", "schema": {"type": "object"}, "strict": True}


def test_a_format_is_told_in_one_form() -> None:
    told = {"type": "json_schema", "json_schema": SCHEMA}
    assert ask("chat", response_format=told).options["response_format"] == told
    assert ask("responses", text={"format": {"type": "json_schema", **SCHEMA}}).options["response_format"] == told
    for none in (ask("chat", response_format={"type": "text"}), ask("responses", text={"format": {"type": "text"}})):
        assert none.options == {}


TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {
        "role": "assistant",
        "content": "look",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "price", "arguments": '{"of": "bell"}'}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "3"},
    {"role": "user", "content": "and?"},
]


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_a_conversation_with_tools_is_told_in_one_form(api: str) -> None:
    said = {
        "chat": {"messages": TURNS},
        "responses": {
            "instructions": "s",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
                {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "look"}]},
                {"type": "function_call", "call_id": "1", "name": "price", "arguments": '{"of": "bell"}'},
                {"type": "function_call_output", "call_id": "1", "output": "3"},
                {"role": "user", "content": "and?"},
            ],
        },
        "messages": {
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": ""},
                        {"type": "text", "text": "look"},
                        {"type": "tool_use", "id": "1", "name": "price", "input": {"of": "bell"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": "3"},
                        {"type": "text", "text": "and?"},
                    ],
                },
            ],
        },
    }[api]
    assert ask(api, **said).prompts == (TURNS,)


def test_a_tool_that_failed_is_told_in_words() -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": "no such thing", "is_error": True}
    (prompt,) = ask("messages", messages=[{"role": "user", "content": [result]}]).prompts
    assert prompt == [{"role": "tool", "tool_call_id": "1", "content": "Error: no such thing"}]


# --- what is told --------------------------------------------------------------------------------

HEARD: list[Heard] = [
    Reasoning("hm"),
    Text("lo", None),
    Text("ok", None),
    ToolArguments(0, "", id="1", name="price"),
    ToolArguments(0, '{"of":'),
    ToolArguments(0, ' "bell"}'),
    ToolArguments(1, "{}", id="2", name="stop"),
]
LAST = answer(
    "look", (ToolCall("1", "price", '{"of": "bell"}'), ToolCall("2", "stop", "{}")), finish_reason="tool_calls"
)


def test_chat_completions_stream_thoughts_and_tool_calls() -> None:
    chunks = [chunk for _, chunk in streamed("chat", HEARD, LAST)]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert "".join(delta.get("content", "") for delta in deltas) == "look"
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls[0] == {"index": 0, "id": "1", "type": "function", "function": {"name": "price", "arguments": ""}}
    assert calls[1] == {"index": 0, "function": {"arguments": '{"of":'}}
    assert [call["index"] for call in calls] == [0, 0, 0, 1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert "usage" in chunks[-1]


def test_messages_stream_blocks_that_open_and_close() -> None:
    events = streamed("messages", HEARD, LAST)
    assert all(name == event["type"] for name, event in events)
    blocks = [event["content_block"] for name, event in events if name == "content_block_start"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert blocks[2] == {"type": "tool_use", "id": "1", "name": "price", "input": {}}
    arguments = "".join(
        event["delta"].get("partial_json", "") for name, event in events if event.get("index") == 2 and "delta" in event
    )
    assert json.loads(arguments) == {"of": "bell"}
    opened = [event["index"] for name, event in events if name == "content_block_start"]
    closed = [event["index"] for name, event in events if name == "content_block_stop"]
    assert opened == closed == [0, 1, 2, 3]
    assert events[0][1]["message"]["usage"]["input_tokens"] == 5
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
    assert [name for name, _ in events[-2:]] == ["message_delta", "message_stop"]


def test_responses_stream_items_in_order() -> None:
    events = streamed("responses", HEARD, LAST)
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    last = events[-1][1]["response"]
    done = [event["item"] for name, event in events if name == "response.output_item.done"]
    assert last["output"] == done
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call", "function_call"]
    assert (done[1]["content"][0]["text"], done[2]["arguments"]) == ("look", '{"of": "bell"}')
    assert events[-1][0] == "response.completed"


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_an_answer_that_is_not_streamed_says_the_same(api: str) -> None:
    dialect, body = BODIES[api]
    whole = dialect.reply(parse(dialect.body, json.dumps(body).encode()), FACTS).whole([LAST])
    assert set(whole) >= set(dialect.fields)
    if api == "chat":
        calls = whole["choices"][0]["message"]["tool_calls"]
        told = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
    elif api == "responses":
        calls = [item for item in whole["output"] if item["type"] == "function_call"]
        told = [(call["call_id"], call["name"], call["arguments"]) for call in calls]
    else:
        calls = [block for block in whole["content"] if block["type"] == "tool_use"]
        told = [(call["id"], call["name"], json.dumps(call["input"])) for call in calls]
    assert told == [("1", "price", '{"of": "bell"}'), ("2", "stop", "{}")]


def test_a_stream_that_breaks_says_so_in_its_own_words() -> None:
    error = ApiError(500, "server", "broken")
    for api, said in (
        ("chat", '"error"'),
        ("completions", '"error"'),
        ("messages", "event: error"),
        ("responses", "response.failed"),
    ):
        dialect, body = BODIES[api]
        reply = dialect.reply(parse(dialect.body, json.dumps(body).encode()), FACTS)
        list(reply.opening())
        sent = b"".join(reply.failed(error)).decode()
        assert said in sent
        assert "broken" in sent


class Sent(Reply):
    """A translation that tells texts as they are."""

    def whole(self, answers: Any) -> Any:
        raise AssertionError("it is streamed")

    def heard(self, index: int, what: Heard) -> list[bytes]:
        return [what.text.encode()] if isinstance(what, Text) and what.text else []

    def ended(self, index: int, answer: Generation) -> list[bytes]:
        return [b"."]


class Unseen:
    def heard(self, index: int, what: Heard) -> None: ...


@pytest.mark.parametrize("draft", [True, False])
def test_what_may_not_stand_is_held_back(draft: bool) -> None:
    """An answer that is begun anew is told at its end; where nobody could know of that, its stream breaks."""
    policy = make_policy("every:2,span=rest,draft=drop" if draft else "every:2")
    telling = Telling(Sent(), Unseen(), streamed=True, held_from=held_from(ask("chat"), policy))  # type: ignore[arg-type]
    sent = [telling.take(0, TextDelta("a", None)), telling.take(1, TextDelta("x", None))]
    if not draft:
        assert sent == [[b"a"], [b"x"]]
        assert telling.take(2, Restarted()) == []  # nothing of it was told
        with pytest.raises(ApiError, match="begun anew"):
            telling.take(0, Restarted())
        return
    sent += [telling.take(0, Restarted()), telling.take(0, TextDelta("b", None)), telling.take(0, TextDelta("c", None))]
    assert sent == [[]] * 5
    assert telling.take(0, Finished(LAST)) == [b"b", b"c", b"."]
    assert telling.take(1, Finished(LAST)) == [b"x", b"."]


def test_tool_calls_are_held_back_where_one_may_be_made_twice() -> None:
    policy, called = make_policy("never"), {"messages": TURNS}
    assert held_from(ask("chat", tools=TOOLS, **called), policy) is not None
    assert held_from(ask("chat", **called), policy) is None
    assert held_from(ask("chat", tools=TOOLS), policy) is ToolArguments
    assert held_from(ask("chat", tools=TOOLS, parallel_tool_calls=False), policy) is None


def test_what_the_router_does_not_know_is_refused_by_its_name() -> None:
    told = as_api_error(InvalidRequest("unknown option 'tools'", hint="available: ..."), 1)
    assert (told.status, told.param, told.message) == (400, "tools", "tools is not supported by this server")
    told = as_api_error(InvalidRequest("temperature=-1.0: too small"), 1)
    assert (told.status, told.param) == (400, "temperature")


# --- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"messages": [{"role": "user", "content": "\\ud800"}]}'],
    ids=["empty", "cut", "no UTF-8", "list", "null", "deep", "surrogate"],
)
def test_what_is_no_body_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse(chat_completions.ChatBody, raw)
    assert refused.value.status == 400


def test_numbers_and_texts_are_told_apart() -> None:
    """Not ``"3"`` for 3, nor 1 for true: a client that writes them means something else."""
    for field, value in (("max_tokens", "3"), ("stream", 1), ("seed", 1.5), ("stop", 3), ("messages", "a")):
        with pytest.raises(ApiError, match=f"^{field}"):
            ask("chat", **{field: value})


def test_every_model_of_a_body_refuses_what_it_does_not_know() -> None:
    def below(model: type[Body]) -> list[type[Body]]:
        return [model, *(one for child in model.__subclasses__() for one in below(child))]

    assert len(below(Body)) > 20
    assert all(model.model_config["extra"] == "forbid" and model.model_config["strict"] for model in below(Body))


# --- keys and options ----------------------------------------------------------------------------


def test_keys_are_kept_as_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = "first-key-of-some-length", "second-key-of-some-length", "third-key-of-some-length"
    file = tmp_path / "keys"
    file.write_text(f"# who\n{one}  # a comment\n\nsha256:{digest(two)}\n")
    monkeypatch.setenv(KEYS_VARIABLE, f"{three},{one}")
    keys = read_keys(file)
    assert keys == {digest(one), digest(two), digest(three)}
    assert not any(one in str(value) for value in ServeOptions.of(keys=keys).model_dump().values())


@pytest.mark.parametrize("text", ["short", "a key with spaces in it", "", "# nothing"])
def test_a_file_without_usable_keys_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read_keys(tmp_path / "keys")
    assert not text or text not in str(refused.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_listening_elsewhere_wants_keys() -> None:
    for host in ("0.0.0.0", "192.168.0.1", "::", "example.org"):
        with pytest.raises(ConfigurationError, match="without keys"):
            ServeOptions.of(host=host)
        assert ServeOptions.of(host=host, no_keys=True).host == host
        assert ServeOptions.of(host=host, keys={digest("k" * 20)}).host == host
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert ServeOptions.of(host=host).loopback


def test_an_option_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigurationError, match="prot"):
        ServeOptions.of(prot=1)
    with pytest.raises(ConfigurationError, match="no origin"):
        ServeOptions.of(cors=("https://example.org/path",))
    with pytest.raises(ConfigurationError, match="no model name"):
        ServeOptions.of(models={"a b": "never"})
