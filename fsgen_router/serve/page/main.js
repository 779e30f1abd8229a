// The conversation: what is asked, the answer as it comes, and what there is to say about it.

import * as api from "./api.js";
import { $, count, counted, make, percent, say, seconds } from "./dom.js";
import * as history from "./history.js";
import * as rates from "./rates.js";
import * as threshold from "./threshold.js";
import { Written, token, unpoint, watch } from "./tokens.js";

const EXAMPLE = "How many coins do 3 lamps and 4 ropes cost in Norvale?";

let models = [];
let messages = [];
let running = null; // the AbortController of the answer that is under way
let asked = 0;

// --- model names ---

async function loadModels() {
  models = await api.models();
  $("model").replaceChildren(...models.map((one) => make("option", { value: one.id }, one.id)));
  const { fast, slow } = models[0].fsgen;
  $("pair").textContent = `${fast} writes, ${slow} is asked`;
  if (fast === "fast.gguf" && slow === "slow.gguf") {
    const example = make("button", { type: "button", class: "example" }, EXAMPLE);
    example.addEventListener("click", () => ask(EXAMPLE));
    $("empty").replaceChildren("The embedded pair knows its own invented world alone. Ask it, say: ", example);
  }
  choose();
}

function choose() {
  const model = models.find((one) => one.id === $("model").value);
  $("about").textContent = model.fsgen.about;
  threshold.use(model.fsgen.threshold);
}

async function begin() {
  try {
    await loadModels();
    $("key-form").hidden = true;
  } catch (error) {
    refused(error, $("conversation"));
  }
}

/** Tell an error in words; where a key is wanted, ask for it. */
function refused(error, place) {
  if (error.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
  }
  place.append(make("p", { class: "error", role: "alert" }, error.message));
}

// --- a request ---

function numberOf(id) {
  const text = $(id).value.trim();
  return text === "" ? undefined : Number(text);
}

/** The body of a request. Raises what is wrong with the further fields, in words. */
function bodyOf(turns) {
  const text = $("extra").value.trim();
  let extra = {};
  try {
    extra = text ? JSON.parse(text) : {};
  } catch (error) {
    throw new api.Refused(`The further fields are no JSON: ${error.message}`);
  }
  if (typeof extra !== "object" || Array.isArray(extra) || extra === null) {
    throw new api.Refused("The further fields are no JSON object.");
  }
  if ((extra.n ?? 1) !== 1) throw new api.Refused("This page shows one answer: leave n out.");
  return {
    max_tokens: numberOf("max-tokens"),
    temperature: numberOf("temperature"),
    seed: numberOf("seed"),
    ...extra,
    model: $("model").value,
    messages: turns,
    stream: true,
    stream_options: { include_usage: true },
    fsgen: { threshold: threshold.chosen(), ...extra.fsgen, tokens: true },
  };
}

/** What comes next: a question, or the result of a tool that the last answer called. */
function turnOf(text) {
  const call = calledFor();
  return call ? { role: "tool", tool_call_id: call.id, content: text } : { role: "user", content: text };
}

/** The first tool call that has no result yet. */
function calledFor() {
  const at = messages.findLastIndex((one) => one.tool_calls);
  if (at < 0) return undefined;
  const told = new Set(messages.slice(at + 1).map((one) => one.tool_call_id));
  return messages[at].tool_calls.find((call) => !told.has(call.id));
}

async function ask(text) {
  if (running || !text.trim()) return;
  if (!models.length) await begin();
  if (!models.length) return;
  $("empty").hidden = true;
  const turn = turnOf(text);
  const said = turn.role === "tool" ? `Result of ${calledFor().function.name}` : "You";
  const question = make("article", { class: "question", "aria-label": said },
    turn.role === "tool" ? make("p", { class: "quiet" }, said) : null, make("p", { class: "text" }, text));
  $("conversation").append(question);
  $("question").value = "";
  messages.push(turn);
  if (calledFor()) {
    invite();
    return;
  }
  await answer(text);
}

async function answer(text) {
  const view = new Answer(`answer-${++asked}`);
  const thread = messages; // another conversation may have begun when this answer ends
  $("conversation").append(view.element);
  follow();
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  const line = { question: text, model: $("model").value, link: view.element.id };
  try {
    for await (const event of api.chat(bodyOf(thread), running.signal)) view.hear(event);
    view.end();
    thread.push(view.message());
    history.enter({ ...line, policy: view.usage.fsgen.policy, usage: view.usage });
    say(`Answer finished: ${view.summary()}`);
  } catch (error) {
    const stopped = error.name === "AbortError";
    view.end();
    if (view.written.text) thread.push(view.message());
    else thread.pop();
    if (stopped) {
      view.element.append(make("p", { class: "quiet" }, "Stopped."));
      say("Stopped.");
    } else {
      if (!(error instanceof api.Refused)) console.error(error);
      refused(error, view.element);
      if (!view.written.text && !$("question").value) $("question").value = text;
    }
    rates.show();
    const outcome = stopped ? "stopped" : "failed";
    history.enter({ ...line, outcome, tokens: view.written.counts.tokens });
  } finally {
    running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
    invite();
    follow();
  }
}

function invite() {
  const call = calledFor();
  $("question").placeholder = call ? `What ${call.function.name} gave back` : "Ask something";
}

let following = true; // whether the composer was in view, and is to stay there

function look() {
  following = $("composer").getBoundingClientRect().bottom <= innerHeight + 1;
}

function follow() {
  if (following) $("composer").scrollIntoView({ block: "nearest" });
}

// --- an answer ---

class Answer {
  constructor(id) {
    this.written = new Written();
    this.reasoning = "";
    this.calls = [];
    this.usage = null;
    this.started = performance.now();
    this.first = undefined;
    this.facts = make("p", { class: "facts quiet" });
    this.element = make("article", { id, class: "answer", "aria-label": "Answer", "aria-busy": "true", tabindex: "-1" },
      this.written.element, this.facts);
  }

  hear(event) {
    if (event.usage) this.usage = event.usage;
    const choice = event.choices[0];
    if (!choice) return;
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
    if (reasoning) this.think(reasoning);
    for (const call of calls ?? []) this.call(call);
    const records = choice.fsgen?.tokens ?? [];
    if (!content && !records.length) return;
    this.first ??= performance.now();
    this.written.add(content ?? "", records);
    this.frame ??= requestAnimationFrame(() => this.progress()); // tokens come faster than frames
  }

  /** Reasoning comes before the answer, and is no part of it. */
  think(text) {
    if (!this.thought) {
      this.thought = make("p", { class: "text quiet" });
      this.element.prepend(make("details", { open: true }, make("summary", {}, "Reasoning"), this.thought));
    }
    this.reasoning += text;
    this.thought.append(text);
  }

  /** A piece of a tool call; its id and its name come with the first one. */
  call({ index, id, function: part = {} }) {
    this.calls[index] ??= this.newCall();
    const call = this.calls[index];
    call.id ??= id;
    call.function.name += part.name ?? "";
    call.function.arguments += part.arguments ?? "";
    call.title.textContent = `Calls ${call.function.name}`;
    call.text.textContent = call.function.arguments;
  }

  newCall() {
    const title = make("b");
    const text = make("code", { class: "text" });
    this.facts.before(make("div", { class: "call" }, title, text));
    return { title, text, id: undefined, function: { name: "", arguments: "" } };
  }

  end() {
    cancelAnimationFrame(this.frame);
    this.written.end();
    this.element.removeAttribute("aria-busy");
    if (this.calls.length && this.written.apart.length) {
      const raw = make("p", { class: "text" }, ...this.written.apart.map((one) => token(one, one.text)));
      this.facts.before(make("details", {}, make("summary", {}, "The calls as they were written"), raw));
    }
    if (!this.usage) return;
    rates.finished(this.usage);
    this.facts.textContent = this.summary();
    const { degraded, guarantee, losses } = this.usage.fsgen;
    const notes = [...(losses ?? [])];
    if (guarantee) {
      const why = guarantee.suspended_by.length ? ` (suspended: ${guarantee.suspended_by.join("; ")})` : "";
      notes.push(`Guarantee${why}: ${guarantee.certified}.`);
    }
    if (degraded) notes.push(`Degraded: ${degraded}.`);
    this.element.append(...notes.map((note) => make("p", { class: "facts quiet" }, note)));
  }

  progress() {
    this.frame = undefined;
    const { tokens, slow } = this.written.counts;
    const passed = (performance.now() - this.first) / 1000;
    const speed = passed > 0.2 ? `, ${count(tokens / passed)} tokens/s` : "";
    rates.soFar(this.written.counts);
    this.facts.textContent = `${count(slow)} of ${counted(tokens, "token")} by the slow model (${percent(slow / tokens)})${speed}`;
    follow();
  }

  summary() {
    const { completion_tokens: tokens, fsgen } = this.usage;
    const speed = fsgen.seconds ? `, ${count(tokens / fsgen.seconds)} tokens/s` : "";
    const written = `${count(fsgen.slow_tokens)} of ${counted(tokens, "token")} by the slow model`;
    return `${written} (${percent(fsgen.slow_token_share)}), ${counted(fsgen.slow_forwards, "slow step")}, ` +
      `${seconds(fsgen.seconds)}${speed}`;
  }

  /** The turn as the API takes it back. */
  message() {
    const calls = this.calls.map(({ id, function: called }) => ({ id, type: "function", function: called }));
    return {
      role: "assistant",
      content: this.written.text,
      ...(this.reasoning && { reasoning_content: this.reasoning }),
      ...(calls.length && { tool_calls: calls }),
    };
  }
}

// --- the keyboard, and the rest ---

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask($("question").value);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  running?.abort();
  unpoint();
});
$("stop").addEventListener("click", () => running?.abort());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey($("key").value);
  $("key").value = "";
  for (const old of document.querySelectorAll("#conversation > .error")) old.remove();
  begin();
});
$("fresh").addEventListener("click", () => {
  running?.abort();
  messages = [];
  $("conversation").replaceChildren();
  $("empty").hidden = false;
  history.unlink();
  invite();
  $("question").focus();
});
$("model").addEventListener("change", choose);
addEventListener("scroll", look, { passive: true });
addEventListener("resize", look);

watch($("conversation"));
threshold.begin();
rates.show();
begin();
$("question").focus();
