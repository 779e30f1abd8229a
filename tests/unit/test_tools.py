"""Tools: what callers may give, how calls are written and read, and which policy holds within them."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fsgen_router import (
    ConfigurationError,
    Context,
    Decision,
    Generation,
    InvalidRequest,
    Ledger,
    Restarted,
    Router,
    Signals,
    TextDelta,
    ToolCallDelta,
)
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
from fsgen_router.contracts.policy import InCall
from fsgen_router.policies import ByTool, Every, Never
from fsgen_router.text.messages import require_messages
from fsgen_router.tools import FORMATS, GENERIC, Choice, Tool, ToolPlan, in_words, make_choice, make_tools
from fsgen_router.tools.reading import Argued, Began, CallReader, Ended, Said

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look a price up.",
        "parameters": {
            "type": "object",
            "properties": {"thing": {"type": "string", "maxLength": 5}, "count": {"type": "integer", "minimum": 0}},
            "required": ["thing"],
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
TOOLS = make_tools([LOOK, NOW])
NAMES = frozenset(tool.name for tool in TOOLS)
ARGUMENTS = ['{"thing": "a"}', '{"thing": "}{\\"", "count": 2}', "{}", '{"a": [{"b": "]"}]}']


# --- what callers give ---------------------------------------------------------------------------


def test_tools_are_openais_dictionaries_or_pydantic_models() -> None:
    class Look(BaseModel):
        """Look a price up."""

        thing: str
        count: int = 1

    look, now = make_tools([Look, NOW])
    assert (look.name, look.description) == ("Look", "Look a price up.")
    assert look.parameters["required"] == ["thing"]
    assert now.parameters == {"type": "object", "properties": {}}
    assert look.to_dict()["function"]["parameters"]["properties"]["count"]["default"] == 1
    assert make_tools([look]) == (look,)


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("look", "tools is a str"),
        ({"look": 1}, "tools is a dict"),
        ([3], "tool 0 is a int"),
        ([{"type": "retrieval"}], "no function"),
        ([{"type": "function", "function": {"name": "a b"}}], "the name 'a b'"),
        ([{"type": "function", "function": {"name": "x" * 65}}], "the name"),
        ([{"type": "function", "function": {}}], "the name None"),
        ([{"type": "function", "function": {"name": "a", "code": 1}}], "unknown fields: code"),
        ([{"type": "function", "function": {"name": "a", "description": 3}}], "description of tool a is a int"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], "parameters of tool a are a list"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}], "of type 'array'"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"x": object()}}}], "no JSON"),
        ([NOW, NOW], "two tools have the name 'now'"),
        ([NOW] * 129, "129 tools"),
    ],
)
def test_what_is_no_tool_is_refused(tools: object, said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        make_tools(tools)


def test_choices() -> None:
    assert make_choice(None, TOOLS) == make_choice("auto", TOOLS) == Choice("auto")
    assert make_choice("required", TOOLS) == Choice("required")
    assert make_choice({"type": "function", "function": {"name": "now"}}, TOOLS) == Choice("required", "now")
    for choice, tools, said in (
        ("any", TOOLS, "tool_choice='any'"),
        ({"type": "function", "function": {"name": "no"}}, TOOLS, "names 'no'"),
        ("required", (), "without tools"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            make_choice(choice, tools)


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"thing": "a"}'}}
ASKED = {"role": "user", "content": "x"}


def test_calls_and_their_results_are_messages() -> None:
    checked = require_messages(
        [
            ASKED,
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "c1", "content": ""},
        ]
    )
    assert checked[1]["tool_calls"][0]["function"]["arguments"] == {"thing": "a"}
    assert (checked[1]["content"], checked[1]["reasoning_content"]) == ("", "hm")
    assert checked[2] == {"role": "tool", "content": "", "tool_call_id": "c1", "name": "look"}


def with_call(**changed: object) -> list[dict[str, Any]]:
    function = {**CALL["function"], **{k: v for k, v in changed.items() if k in ("name", "arguments")}}  # type: ignore[dict-item]
    call = {**CALL, "function": function, **{k: v for k, v in changed.items() if k == "id"}}
    return [ASKED, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "9"}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([ASKED, {"role": "tool", "tool_call_id": "c9", "content": "9"}], "no message before it has: 'c9'"),
        ([ASKED, {"role": "tool", "content": "9"}], "no message before it has: None"),
        (with_call(arguments="{"), "are no JSON"),
        (with_call(arguments="[1]"), "are no object"),
        (with_call(name=""), "name of tool call 0 of message 1 is empty"),
        (with_call(id=""), "has no id"),
        ([*with_call()[:2], *with_call()[1:]], "an earlier call has: 'c1'"),
        ([ASKED, {"role": "assistant", "tool_calls": "x"}, ASKED], "tool_calls of message 1 is a str"),
        ([ASKED, {"role": "assistant", "tool_calls": [3]}, ASKED], "has no function"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "unsupported fields: tool_calls"),
        ([ASKED, {"role": "assistant", "content": None}, ASKED], "content of message 1 must be a str"),
    ],
)
def test_messages_with_wrong_calls_are_refused(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        require_messages(messages)


def test_words_for_templates_that_know_no_tools() -> None:
    messages = require_messages([{"role": "system", "content": "Be brief."}, *with_call(), ASKED])
    shown = in_words(messages, [tool.to_dict() for tool in TOOLS])
    assert [message["role"] for message in shown] == ["system", "user", "assistant", "user", "user"]
    assert shown[0]["content"].startswith("Be brief.\n\n")
    assert '"name": "now"' in shown[0]["content"]
    assert shown[2]["content"] == GENERIC.calls([("look", '{"thing": "a"}')])
    assert shown[3]["content"] == "<tool_response>\n9\n</tool_response>"


# --- reading calls -------------------------------------------------------------------------------


def read(form: Any, pieces: list[str]) -> tuple[str, list[tuple[str, str]], list[tuple[str, str]]]:
    """What is said, the whole calls, and the calls as their deltas add up."""
    reader, said, calls, grown = CallReader(form, NAMES), "", [], []
    for piece in pieces:
        for part in reader.push(piece):
            match part:
                case Said(text):
                    said += text
                case Began(name):
                    grown.append((name, ""))
                case Argued(text):
                    grown[-1] = (grown[-1][0], grown[-1][1] + text)
                case Ended(name, arguments):
                    calls.append((name, arguments))
    return said + reader.flush(), calls, grown


def cut(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randint(0, 8))))
    return [text[start:stop] for start, stop in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@given(
    said=st.sampled_from(["", "Let me see. ", "a < b, [1]\n", '{"name": 3}', "<tool_cal "]),
    calls=st.lists(st.tuples(st.sampled_from(sorted(NAMES)), st.sampled_from(ARGUMENTS)), max_size=3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_what_is_written_is_read_however_it_is_cut(
    form: Any, said: str, calls: list[tuple[str, str]], seed: int
) -> None:
    if not form.open:
        said, calls = ("", calls[:1]) if calls else (said, [])
    if not form.between:
        calls = calls[:1]
    text = said + (form.calls(calls) if calls else "")
    assert read(form, cut(text, random.Random(seed))) == (said, calls, calls)


@pytest.mark.parametrize("fence", [("", ""), ("```json\n", "\n```"), ("```\n", "```"), ("{", "}")])
@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_an_answer_that_is_a_calls_object_is_a_call(fence: tuple[str, str], key: str) -> None:
    written = f'{fence[0]}{{\n  "name": "look",\n  "{key}": {{\n    "thing": "a"\n  }}\n}}{fence[1]}'
    for seed in range(20):
        said, calls, _ = read(GENERIC, cut(written, random.Random(seed)))
        assert (said, [name for name, _ in calls]) == ("", ["look"])
        assert json.loads(calls[0][1]) == {"thing": "a"}
    for other in ('{"name": "lamp", "arguments": {}}', '```json\n{"a": 1}\n```', '{"name": "look"}', "{", '{"name'):
        assert read(GENERIC, list(other)) == (other, [], [])


# --- answers -------------------------------------------------------------------------------------

PIECES = [bytes([byte]) for byte in range(256)] + [b'{"', b'": ', b"look", b"now", b"<tool_call>", b"<call>", b"<end>"]
TAG, CONTROL, END = len(PIECES) - 3, len(PIECES) - 2, len(PIECES) - 1


def pair(seed: int, *, writes: list[list[str]] | None = None, batching: bool = False, **options: Any) -> Router:
    """A pair that writes at random; with ``writes``, one of them its text, whatever the other likes."""
    tokenizer = ScriptedTokenizer(PIECES, eog=[END], special=[CONTROL])

    def model(number: int) -> ScriptedModel:
        def script(ids: Any) -> np.ndarray:
            row = np.random.default_rng([seed, number, *ids[-6:]]).normal(size=len(PIECES)).astype(np.float32)
            row[TAG] += 3
            row[END] += 1
            if writes is not None:
                answer = (
                    b"".join(PIECES[token] for token in ids).rpartition(b"|")[2].removeprefix(b"\n</tool_response>")
                )
                text = next((one for one in writes[number] if one.encode().startswith(answer)), None)
                left = b"" if text is None else text.encode()[len(answer) :]
                row[END if not left else TAG if left.startswith(PIECES[TAG]) else left[0]] += 50
            return row

        return ScriptedModel(script, tokenizer, name=f"m{number}", n_params=10 + number, n_ctx=1 << 14)

    return Router(model(0), model(1), batching=batching, seed=seed, **options)


def ask(router: Router, **options: Any) -> Generation:
    messages = options.pop("messages", [{"role": "user", "content": "x|"}])
    return router.chat(messages, **{"tools": [LOOK, NOW], "max_tokens": 160} | options)


def require_valid(answer: Generation) -> None:
    for call in answer.tool_calls:
        assert call.name in NAMES
        arguments = call.parsed
        if call.name == "look":
            assert set(arguments) <= {"thing", "count"}
            assert isinstance(arguments["thing"], str)
            assert len(arguments["thing"]) <= 5
            assert isinstance(arguments.get("count", 0), int)
        else:
            assert arguments == {}
    assert (answer.finish_reason == "tool_calls") == bool(answer.tool_calls and answer.finish_reason != "length")


@pytest.mark.parametrize("choice", ["auto", "required", "none", {"type": "function", "function": {"name": "look"}}])
@pytest.mark.parametrize("policy", ["never", "every:3", "always"])
def test_whatever_models_write_calls_are_valid(choice: Any, policy: str) -> None:
    pytest.importorskip("llguidance")
    made = 0
    for seed in range(6):
        with pair(seed, policy=policy, method="verify" if policy == "every:3" else "replace", batching=seed > 3) as one:
            answer = ask(one, tool_choice=choice, temperature=0.8 * (seed % 2))
            require_valid(answer)
            made += len(answer.tool_calls)
            if choice == "none":
                assert not answer.tool_calls
                assert "<tool_call>" not in answer.text
            elif isinstance(choice, dict):
                assert [call.name for call in answer.tool_calls] in (["look"], [])
                assert answer.tool_calls or answer.finish_reason == "length"
    assert made or choice == "none"


def test_a_stream_tells_calls_apart_from_what_is_said() -> None:
    pytest.importorskip("llguidance")
    text = "Let me look.\n" + GENERIC.calls([("look", '{"thing": "lamp", "count": 3}'), ("now", "{}")])
    with pair(0, writes=[[text], [text]], policy="every:4") as router:
        events = list(router.stream_chat([{"role": "user", "content": "x|"}], tools=[LOOK, NOW], max_tokens=300))
        answer = events[-1].generation  # type: ignore[union-attr]
        assert (
            answer.text == "".join(event.text for event in events if isinstance(event, TextDelta)) == "Let me look.\n"
        )
        deltas = [event for event in events if isinstance(event, ToolCallDelta)]
        for number, call in enumerate(answer.tool_calls):
            own = [delta for delta in deltas if delta.index == number]
            assert (own[0].id, own[0].name) == (call.id, call.name)
            assert "".join(delta.arguments for delta in own) == call.arguments
        assert [call.name for call in answer.tool_calls] == ["look", "now"]
        assert answer.finish_reason == "tool_calls"
        assert len([e for e in events if isinstance(e, TextDelta) and e.token]) == len(answer.tokens)
        assert answer.usage.forced > 0
        assert answer.to_dict()["tool_calls"][0]["name"] == "look"
        again = router.chat(
            [
                {"role": "user", "content": "x"},
                answer.message,
                *({"role": "tool", "tool_call_id": call.id, "content": "9|"} for call in answer.tool_calls),
            ],
            tools=[LOOK, NOW],
            max_tokens=20,
        )
        assert again.finish_reason in ("eog", "length", "tool_calls")


SAME = GENERIC.calls([("look", '{"thing": "a"}')])


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("method", ["replace", "verify"])
def test_a_call_that_was_made_before_is_the_slow_models_to_make(method: str, batching: bool) -> None:
    pytest.importorskip("llguidance")
    messages = with_call()
    messages[-1]["content"] = "9|"
    with pair(0, writes=[[SAME], ["It is 9."]], policy="random:0.0001", method=method, batching=batching) as router:
        events = list(router.stream_chat(messages, tools=[LOOK, NOW], max_tokens=200))
        answer = events[-1].generation  # type: ignore[union-attr]
        assert (answer.text, answer.tool_calls, answer.usage.restarts) == ("It is 9.", (), 1)
        assert not any(isinstance(event, ToolCallDelta) for event in events)
        assert sum(isinstance(event, Restarted) for event in events) == 1
        assert answer.tokens[0].decision is not None
        assert answer.tokens[0].decision.reason == "the same call again: look"
        assert answer.usage.discarded_tokens >= answer.usage.tokens
        # After the user has spoken again, the same question may be asked again; nor does "never" ask.
        later = ask(
            router, messages=[*messages[:-1], {**messages[-1], "content": "9"}, {"role": "user", "content": "|"}]
        )
        assert [call.name for call in later.tool_calls] == ["look"]
        assert [call.name for call in ask(router, messages=messages, policy="never").tool_calls] == ["look"]
        capped = ask(router, messages=messages, max_slow_calls=0)
        assert [call.name for call in capped.tool_calls] == ["look"]
        assert "cap on slow calls" in (capped.degraded or "")


def test_an_answer_that_calls_nothing_keeps_to_its_form() -> None:
    pytest.importorskip("llguidance")

    class Price(BaseModel):
        coins: int

    call = GENERIC.calls([("look", '{"thing": "a"}')])
    with pair(0, writes=[[call, '{"coins": 9}'], ["x"]], policy="never") as router:
        called = ask(router, response_format=Price)
        assert (called.finish_reason, called.parsed, called.parse_error) == ("tool_calls", None, None)
        told = with_call()
        told[-1]["content"] = "9|"
        with pair(0, writes=[['{"coins": 9}'], ["x"]], policy="never") as other:
            answer = ask(other, messages=told, response_format=Price)
            assert (answer.parsed, answer.tool_calls) == (Price(coins=9), ())
            assert ask(other, messages=told, response_format=Price, tool_choice="none").parsed == Price(coins=9)
    for seed in range(6):  # whatever is written, it is one of both
        with pair(seed, policy="every:3") as router:
            answer = ask(router, response_format=Price, temperature=0.8)
            require_valid(answer)
            assert answer.tool_calls or answer.finish_reason == "length" or isinstance(answer.parsed, Price)


def test_tools_need_messages_and_rows() -> None:
    with pair(0, policy="never") as router:
        with pytest.raises(InvalidRequest, match="tools without messages"):
            router.complete("x", tools=[LOOK])
        with pytest.raises(InvalidRequest, match="tools and regex at once"):
            ask(router, regex="a+")
        recursive = {"type": "object", "properties": {"a": {"$ref": "http://elsewhere/x"}}}
        tool = {"type": "function", "function": {"name": "far", "parameters": recursive}}
        with pytest.raises(InvalidRequest, match="parameters of tool far cannot be used"):
            ask(router, tools=[NOW, tool])


# --- where in a call, and which policy -----------------------------------------------------------


def test_where_in_a_call_a_position_is() -> None:
    plan = ToolPlan.make(
        TOOLS,
        Choice(),
        parallel=True,
        template=None,
        tokenizer=ScriptedTokenizer(PIECES, eog=[END], special=[CONTROL]),
        messages=[],
        piece=lambda token: PIECES[token],
    )
    text = "Hm. " + GENERIC.calls([("look", '{"thing": "é"}')])
    ids = list(text.encode())
    fresh = ToolPlan(**{name: getattr(plan, name) for name in plan.__dataclass_fields__})
    inside = {at: fresh.place(ids[:at]) for at in range(len(ids) + 1)}
    assert inside[3] is None
    assert inside[text.index("look") + 1] == InCall(None, "name")
    assert inside[text.index("thing")] == InCall("look", "arguments")
    rng = random.Random(0)
    for _ in range(300):  # rewound and changed at random
        at = rng.randint(0, len(ids))
        assert plan.place(ids[:at]) == inside[at]
        plan.place([*ids[: rng.randint(0, at)], 33])
    assert inside[len(ids)] is None or inside[len(ids)] == InCall("look", "arguments")


SURE = Signals.__new__(Signals)


def decisions(policy: ByTool, places: list[InCall | None]) -> list[Decision]:
    state, found = policy.begin(Ledger()), []
    for at, place in enumerate(places):
        context = Context(at, at, 0, 0, lambda: 0.5, place)
        state, decision = policy.decide(state, SURE, context)
        found.append(decision)
    return found


def test_a_policy_by_tool() -> None:
    name, look, now = InCall(None, "name"), InCall("look", "arguments"), InCall("now", "arguments")
    places = [None, name, *[look] * 12, None, name, now, now, None]
    policy = ByTool("never", {"look": "verify", "now": "always"})
    escalated = [at for at, decision in enumerate(decisions(policy, places)) if decision.escalate]
    assert escalated == [2, 10, 14, 16, 17]  # the call's first token, the ninth, the end of it; then all of the other
    assert policy.name == "never; look=verify; now=always"
    assert policy.asks
    others = ByTool(Never(), {"now": Every(9), "*": "always"})
    assert [decision.escalate for decision in decisions(others, [look, now, now, None])] == [True, False, False, False]
    assert not ByTool("never", {"now": "never"}).asks
    for wrong, said in (({}, "tools="), ({"now": "always,span=rest"}, "hands whole answers over")):
        with pytest.raises(ConfigurationError, match=said):
            ByTool("never", wrong)


def test_a_policy_by_tool_has_the_slow_model_judge_the_call() -> None:
    pytest.importorskip("llguidance")
    wrong, right = (GENERIC.calls([("look", f'{{"thing": "{thing}"}}')]) for thing in ("lamp", "rope"))
    with pair(0, writes=[[wrong], [right]], policy="never") as router:
        assert ask(router).tool_calls[0].parsed == {"thing": "lamp"}
        for method in ("verify", "replace"):
            judged = ask(router, policy=ByTool("never", {"look": "verify"}), method=method)
            assert judged.usage.escalations > 0
            if method == "verify":
                assert judged.tool_calls[0].parsed == {"thing": "rope"}
        assert ask(router, policy=ByTool("never", {"look": "always"}), method="replace").usage.slow_tokens > 0
        assert ask(router, policy=ByTool("never", {"now": "always"})).usage.slow_tokens == 0


def test_a_tool_object_is_a_tool() -> None:
    assert make_tools([Tool("a", parameters={"properties": {}})])[0].parameters["type"] == "object"
