"""The page of the server, in a real browser on the reference pair."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving import serving, until

from fsgen_router import Router, reference
from fsgen_router.contracts.models import TokenModel
from fsgen_router.policies import Learned
from fsgen_router.report.report import FSGEN_RATE
from fsgen_router.serve.options import digest
from fsgen_router.serve.page_files import FOLDER, POLICY

CHROMIUM = shutil.which("chromium")
QUESTION = "How many coins do 3 lamps and 4 ropes cost in Norvale?"
KEY = "a-key-of-the-tests"
UPDATE_DOCS = os.environ.get("FSGEN_UPDATE_DOCS") == "1"
PICTURE = Path(__file__).parents[2] / "docs/assets/page.png"
"""What the documentation shows of it."""


@pytest.fixture(scope="module")
def router(fast_model: TokenModel, slow_model: TokenModel) -> Iterator[Router]:
    with Router(fast_model, slow_model, policy=reference.policy_path(), audit=1.0) as made:
        yield made


@pytest.fixture(scope="module")
def url(router: Router) -> Iterator[str]:
    with serving(router, models={"mine": "entropy>0.5"}) as made:
        yield made


# --- without a browser: no test here is a coroutine, since a browser's driver has a loop of its own ---


def test_the_page_wants_no_key_and_may_ask_its_own_server_alone(router: Router) -> None:
    with serving(router, keys=frozenset({digest(KEY)})) as url, httpx2.Client(base_url=url) as client:
        page = client.get("/")
        files = ["/page/" + path.name for path in FOLDER.iterdir() if path.suffix != ".html"]
        replies = [page, *[client.get(file) for file in files]]
        for path in ("/v1/models", "/pages", "/page"):
            assert client.get(path).status_code == 401
        assert client.get("/page/main.py").status_code == 404
    assert [reply.status_code for reply in replies] == [200] * len(replies)
    assert {reply.headers["content-security-policy"] for reply in replies} == {POLICY}
    assert "unsafe" not in POLICY
    # All that the page loads is a file of its own; there is no script, style or handler in its markup.
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page.text)) <= set(files)
    assert not re.search(r"<script(?! type=\"module\" src)|<style|\sstyle=|\son\w+=", page.text)
    assert not [path for path in FOLDER.glob("*.js") if re.search(r"innerHTML|https?://(?!www\.w3)", path.read_text())]


def test_a_policys_threshold_is_told_and_moved_for_one_request(router: Router) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}]}
    models = {"mine": "entropy>0.5,span=rest"}
    with serving(router, models=models) as url, httpx2.Client(base_url=url) as client:

        def ask(**fsgen: Any) -> Any:
            name = fsgen.pop("model", "local/router")
            return client.post("/v1/chat/completions", json={**body, "model": name, "fsgen": fsgen})

        told = {one["id"]: one["fsgen"].get("threshold") for one in client.get("/v1/models").json()["data"]}
        assert told["local/fast"] is told["local/slow"] is None
        assert told["mine"] == {
            "value": 0.5, "compared": "entropy", "unit": "nats", "asks": "above", "low": 0.0, "high": 4.0,
        }  # fmt: skip
        own, made = told["local/router"], router.policy
        assert isinstance(made, Learned)
        assert own["value"] == own["certified"] == made.threshold
        assert [point["threshold"] for point in own["curve"]] == [point.threshold for point in made.curve]
        assert all(0 <= point["accuracy"] <= 1 for point in own["curve"])
        for threshold, asked in ((0.0, True), (1.0, False)):
            reply = ask(threshold=threshold)
            assert reply.headers["x-fsgen-policy"] == f"learned:logistic>{threshold:g}"
            usage = reply.json()["usage"]["fsgen"]
            assert (usage["escalations"] > 0) == asked
            assert usage["guarantee"]["suspended_by"] == ["the policy is not the certified one"]
        assert ask(threshold=made.threshold).json()["usage"]["fsgen"]["guarantee"]["holds"]
        assert ask(model="mine", threshold=0.25).headers["x-fsgen-policy"] == "entropy>0.25,span=rest"
        assert ask(policy="margin<0.5", threshold=0.25).headers["x-fsgen-policy"] == "margin<0.25"
        for wrong in ({"model": "local/fast", "threshold": 0.5}, {"threshold": "0.5"}, {"threshold": 1e999}):
            content = json.dumps({**body, "model": wrong.pop("model", "local/router"), "fsgen": wrong})
            refused = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "fsgen.threshold"


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives a browser, is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


class Seen:
    """A page, with what its console said and where it sent requests."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.page = browser.new_page(**context)
        self.page.set_default_timeout(20_000)
        self.said: list[str] = []
        self.requests: list[Any] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.goto(url)
        self.answers = 0

    def send(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        self.answers += 1

    def ask(self, text: str) -> Any:
        """The answer, when it is finished."""
        self.send(text)
        self.page.locator(f"#answer-{self.answers}:not([aria-busy])").wait_for()
        return self.page.locator(f"#answer-{self.answers}")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.post_data) for request in self.requests if request.method == "POST"]


@pytest.fixture
def seen(browser: Any, url: str) -> Iterator[Seen]:
    made = Seen(browser, url, viewport={"width": 900, "height": 900})
    made.page.locator("#model option").first.wait_for(state="attached")
    yield made
    made.page.close()


def test_a_chat_is_coloured_told_about_routed_and_stopped(seen: Seen, router: Router, url: str) -> None:
    page = seen.page
    expected = router.chat([{"role": "user", "content": QUESTION}])
    answer = seen.ask(QUESTION)
    assert answer.locator("> .text").text_content() == expected.text
    pieces = {kind: answer.locator(f".token.{kind}").all_text_contents() for kind in ("slow", "accepted", "fast")}
    written = [token for token in expected.tokens if token.piece]
    assert pieces["slow"] == [token.text for token in written if token.source == "slow"]
    assert pieces["accepted"] == [token.text for token in written if token.verdict == "accepted"]
    assert all(pieces.values())

    # Under the pointer, and under the keyboard.
    slow = [token for token in written if token.source == "slow"]
    answer.locator(".token.slow").last.hover()
    tip = seen.text("#tip")
    if UPDATE_DOCS:
        page.screenshot(path=PICTURE)
    assert "the slow model" in tip
    assert slow[-1].decision is not None
    assert f"{slow[-1].decision.score:.3g} against {slow[-1].decision.threshold:.3g}" in tip
    for choice in (slow[-1].fast_choice, slow[-1].slow_choice):
        assert choice is not None
        assert json.dumps(router.fast.tokenizer.piece(choice).decode()) in tip
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()
    page.keyboard.press("Shift+Tab")  # from the question back into the answer
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == written[1].text
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == slow[1].text
    assert "written by: the slow model" in seen.text("#said")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()

    # Rates: the server's own, and the 20% beside the one that it compares with.
    usage = expected.usage
    for name in ("slow_token_share", "escalation_rate", "slow_position_share", "disagreement_rate"):
        row = page.locator(f"tr[data-rate={name}]")
        if name != "slow_position_share":  # which follows what the KV cache still held
            assert row.locator("td.number").all_inner_texts() == [f"{getattr(usage, name):.1%}"] * 2
        assert row.locator(".mark").count() == (name == "disagreement_rate")
    assert f"FS-GEN's {FSGEN_RATE:.0%}" in seen.text("#rates-note")
    line = seen.text("#history tbody tr")
    assert all(part in line for part in (QUESTION, f"{usage.slow_forwards} of {usage.tokens}", "no price"))

    # The threshold: of the curve there are the calibration's points, and where it is moved the request says so.
    assert page.locator("#curve circle.accuracy").count() == 17
    assert "This threshold is certified" in seen.text("#curve-note")
    assert "threshold" not in seen.bodies[0]["fsgen"]
    page.locator("#slider").fill("100")
    assert "certificate is of another threshold" in seen.text("#curve-note")
    page.click("#fresh")
    moved = seen.ask(QUESTION)
    threshold = seen.bodies[1]["fsgen"]["threshold"]
    assert 0 < threshold < 1e-5
    assert seen.bodies[1]["messages"] == [{"role": "user", "content": QUESTION}]
    assert f">{threshold:.6g}" in seen.text("#history tbody tr >> nth=0")
    assert "suspended: the policy is not the certified one" in moved.inner_text()
    now, session = page.locator("tr[data-rate=escalation_rate] td.number").all_inner_texts()
    assert float(now[:-1]) > float(session[:-1]) > 100 * (usage.escalation_rate or 0)
    page.click("#reset")
    assert "This threshold is certified" in seen.text("#curve-note")

    # Another model name has another policy; Esc stops, and the server is free again.
    page.select_option("#model", "mine")
    assert "entropy over 0.5 nats" in seen.text("#threshold-value")
    assert page.locator("#curve").is_hidden()
    page.click("#options summary")
    end = {str(one): -1000 for one in router.fast.tokenizer.eog_ids}
    page.fill("#extra", json.dumps({"logit_bias": end, "max_tokens": 900}))
    page.click("#fresh")
    seen.send(QUESTION)
    page.locator("#answer-3 .token").first.wait_for()
    page.keyboard.press("Escape")
    page.locator("#answer-3 >> text=Stopped.").wait_for()
    until(lambda: router.load.running == 0)
    assert 0 < page.locator("#answer-3 .token").count() < 900
    assert "stopped" in seen.text("#history tbody tr >> nth=0")
    assert page.locator("#send").is_enabled()

    assert seen.said == []
    assert all(request.url.startswith(f"{url}/") for request in seen.requests)


def test_what_goes_wrong_is_said_in_words_and_what_is_typed_is_text(seen: Seen) -> None:
    page = seen.page
    page.click("#options summary")
    for extra, words in (
        ("{", "no JSON"),
        ('{"n": 2}', "one answer"),
        ('{"temperature": -1}', "temperature"),
        ('{"fsgen": {"threshold": 0.5, "policy": "never"}}', "has none to set"),
        ('{"audio": {}}', "audio: is not supported"),
    ):
        page.fill("#extra", extra)
        answer = seen.ask("<img src=/nothing onerror=alert(1)>")
        assert words in answer.locator(".error").inner_text()
        assert page.input_value("#question") == "<img src=/nothing onerror=alert(1)>"
    assert page.locator("img").count() == 0
    assert page.locator(".question .text").first.inner_text() == "<img src=/nothing onerror=alert(1)>"
    assert page.locator("#history tbody tr").count() == 5
    page.fill("#extra", "")
    assert "Answer: 63" in seen.ask(QUESTION).inner_text()  # what failed is no part of the conversation
    assert len(seen.bodies[-1]["messages"]) == 1


def _token(data: str, **record: Any) -> dict[str, Any]:
    return {"bytes": data, "text": bytes.fromhex(data).decode(errors="replace"), **record}


STREAM = [
    {"delta": {"role": "assistant", "content": ""}},
    {"delta": {"reasoning_content": "Is it <b>"}},
    {"delta": {"reasoning_content": "7?"}},
    {"delta": {"content": ""}, "fsgen": {"tokens": [_token("e282", source="fast", verdict="unchecked")]}},
    {"delta": {"content": "€7"}, "fsgen": {"tokens": [_token("ac37", source="slow", verdict="written")]}},
]
"""What the reference pair does not do, in the API's words: reasoning, and a character cut in two."""


def test_reasoning_cut_characters_and_a_broken_stream_are_shown(seen: Seen) -> None:
    def answer(route: Any) -> None:
        events = [{"choices": [{"index": 0, "finish_reason": None, **part}]} for part in STREAM]
        events += [{"error": {"message": "a model failed in the middle of its work"}}]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        route.fulfill(status=200, content_type="text/event-stream", body="".join(lines))

    seen.page.route("**/v1/chat/completions", answer)
    shown = seen.ask("How much?")
    assert shown.locator("details").first.text_content() == "ReasoningIs it <b>7?"
    assert shown.locator("> .text").text_content() == "€7"
    assert shown.locator("> .text > .slow").inner_text() == "€7"
    assert shown.locator(".error").inner_text() == "a model failed in the middle of its work"
    seen.ask("And now?")  # what came stays in the conversation
    assert seen.bodies[1]["messages"][1] == {"role": "assistant", "content": "€7", "reasoning_content": "Is it <b>7?"}


def test_a_tool_call_is_shown_as_it_was_written_and_its_result_is_typed(seen: Seen) -> None:
    pytest.importorskip("llguidance", reason="tools need the extra 'constrain'")
    page = seen.page
    thing = {"type": "object", "properties": {"of": {"enum": ["<i>lamp</i>", "<i>rope</i>"]}}, "required": ["of"]}
    tool = {"type": "function", "function": {"name": "price", "parameters": thing}}
    page.click("#options summary")
    page.fill("#extra", json.dumps({"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}))
    called = seen.ask("What does a lamp cost?")
    arguments = called.locator(".call code").inner_text()
    assert called.locator(".call b").inner_text() == "Calls price"
    assert json.loads(arguments)["of"] in ("<i>lamp</i>", "<i>rope</i>")
    assert page.locator("#conversation i").count() == 0
    called.locator("summary").click()
    assert arguments in called.locator("details p").inner_text()
    assert called.locator("details .forced").count() > 5
    # What is typed next is the call's result.
    assert page.get_attribute("#question", "placeholder") == "What price gave back"
    page.fill("#extra", json.dumps({"max_tokens": 5}))
    seen.ask("9 coins")
    call, result = seen.bodies[1]["messages"][1:]
    assert call["tool_calls"][0]["function"] == {"name": "price", "arguments": arguments}
    assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "9 coins"}
    assert page.get_attribute("#question", "placeholder") == "Ask something"
    assert seen.said == []


def test_a_server_with_keys_is_asked_with_one_that_is_typed_and_kept_nowhere(browser: Any, router: Router) -> None:
    with serving(router, keys=frozenset({digest(KEY)})) as url:
        seen = Seen(browser, url)
        page = seen.page
        page.fill("#key", "a-key-that-is-wrong")
        page.keyboard.press("Enter")
        page.locator("text=the key is not known").wait_for()
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.locator("#model option").first.wait_for(state="attached")
        assert page.locator("#key-form").is_hidden()
        assert "Answer: 63" in seen.ask(QUESTION).inner_text()
        assert KEY not in page.content() + page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert page.context.cookies() == []
        assert not [request for request in seen.requests if KEY in request.url]
        page.close()


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const paper = (element) => {
    const own = numbers(getComputedStyle(element).backgroundColor);
    return own[3] === 0 ? paper(element.parentElement) : own;
  };
  return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.disabled
      && [...one.childNodes].some((child) => child.nodeType === 3 && child.data.trim())).map((one) => {
    const style = getComputedStyle(one);
    const ink = numbers(one instanceof SVGElement ? style.fill : style.color);
    const [low, high] = [light(ink), light(paper(one))].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), `${one.tagName} ${one.className} ${one.textContent.slice(0, 20)}`];
  });
}"""
"""The contrast of every text with what is behind it, by WCAG 2.2's formula."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_with_contrast_and_without_colour(browser: Any, url: str, scheme: str) -> None:
    seen = Seen(browser, url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = seen.page
    seen.ask(QUESTION)
    page.click("#options summary")
    page.fill("#extra", "{")
    seen.ask(QUESTION)
    page.locator(".token.slow").first.hover()
    found = page.evaluate(CONTRAST)
    assert len(found) > 60
    assert [one for one in found if one[0] < 4.5] == []  # WCAG 2.2, level AA
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 64) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Each kind of writer has a line of its own under it, or none.
    lines = [
        page.locator(f".legend .{kind}").evaluate("one => getComputedStyle(one).textDecorationStyle + "
                                                  "getComputedStyle(one).textDecorationLine")
        for kind in ("fast", "accepted", "slow", "forced")
    ]  # fmt: skip
    assert len(set(lines)) == 4
    # What is a control, or a picture, has a name.
    tree = page.locator("body").aria_snapshot()
    assert not re.search(
        r"^\s*- (button|textbox|slider|combobox|img|spinbutton|link)(?: \[.*\])?:?$", tree, re.MULTILINE
    )
    page.close()
