// Tokens coloured by who wrote them, and what is known of the one that is pointed at.

import { $, digits, make, say } from "./dom.js";

/** How a token's record is shown: who wrote it, in a word. */
export function writer(record) {
  if (record.reason === "forced") return "forced";
  return record.verdict === "accepted" ? "accepted" : record.source;
}

const WRITERS = {
  fast: "the fast model; the slow one has not checked it",
  accepted: "the fast model; the slow one checked it",
  slow: "the slow model",
  forced: "nobody: no choice was left",
};

/** Lines about a token: [name, value]. */
function about(record) {
  const corrects = record.source === "slow" && record.escalated === false;
  const lines = [["written by", corrects ? "the slow model, correcting the fast one" : WRITERS[writer(record)]]];
  if (record.score !== undefined && record.threshold !== undefined) {
    const asked = record.escalated ? "asked" : "did not ask";
    lines.push(["score", `${digits(record.score)} against ${digits(record.threshold)}: ${asked}`]);
  } else if (record.escalated !== undefined) {
    lines.push(["policy", record.escalated ? "asked the slow model" : "did not ask"]);
  }
  if (record.reason) lines.push(["reason", record.reason]);
  lines.push(["fast model's choice", shown(record.fast_choice)]);
  lines.push(["slow model's choice", shown(record.slow_choice)]);
  if (record.logprob !== undefined) lines.push(["log-probability", `${digits(record.logprob)} nats`]);
  if (record.entropy_nats !== undefined) lines.push(["entropy", `${digits(record.entropy_nats)} nats`]);
  return lines;
}

const shown = (choice) => (choice === undefined ? "not asked" : JSON.stringify(choice.text));

const known = new WeakMap(); // element to record

/** The text of an answer, token by token as it comes. `text` of the API is what stands; tokens say who wrote it. */
export class Written {
  constructor() {
    const label = "Answer. Left and right go from token to token, up and down between those of the slow model.";
    this.element = make("p", { class: "text", role: "group", "aria-label": label });
    this.text = "";
    this.apart = []; // records whose text is no part of the answer's
    this.counts = { tokens: 0, slow: 0, decisions: 0, escalated: 0 };
    this._waiting = []; // records whose text has not come yet
    this._bytes = new Uint8Array(); // text that no token has been found for yet
    this._decoder = new TextDecoder();
  }

  add(text, records = []) {
    this.text += text;
    for (const record of records) {
      this.counts.tokens += 1;
      this.counts.slow += record.source === "slow";
      this.counts.decisions += record.escalated !== undefined && record.reason !== "forced";
      this.counts.escalated += record.escalated === true;
      if (record.bytes) this._waiting.push(record);
    }
    this._bytes = joined(this._bytes, new TextEncoder().encode(text));
    while (this._waiting.length && this._bytes.length) {
      const own = fromHex(this._waiting[0].bytes);
      if (begins(this._bytes, own)) this._place(this._waiting.shift(), own.length);
      else if (begins(own, this._bytes)) break; // the rest of its text is still held back
      else this.apart.push(this._waiting.shift());
    }
    if (!this._waiting.length) this._place(undefined, this._bytes.length);
  }

  /** Nothing more comes: what a stop string cut off is no part of the answer. */
  end() {
    if (this._bytes.length) this._place(this._waiting.shift(), this._bytes.length);
    this.apart.push(...this._waiting.splice(0));
  }

  _place(record, size) {
    const text = this._decoder.decode(this._bytes.subarray(0, size), { stream: true });
    this._bytes = this._bytes.subarray(size);
    if (!text) return;
    const element = record ? token(record, text) : text;
    this.element.append(element);
    if (record && !this._entered) {
      this._entered = true; // one token is in the order of tabs; arrow keys go on from it
      element.tabIndex = 0;
    }
  }
}

export function token(record, text) {
  const element = make("span", { class: `token ${writer(record)}`, tabindex: "-1" }, text);
  known.set(element, record);
  return element;
}

function joined(first, second) {
  const all = new Uint8Array(first.length + second.length);
  all.set(first);
  all.set(second, first.length);
  return all;
}

const begins = (bytes, start) => start.length <= bytes.length && start.every((byte, at) => byte === bytes[at]);
const fromHex = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (byte) => parseInt(byte, 16));

// --- what is pointed at ---

let pointed = null;

function point(element) {
  const record = known.get(element);
  if (!record) return;
  unpoint();
  pointed = element;
  element.setAttribute("aria-describedby", "tip");
  const lines = about(record);
  const list = make("dl", {}, ...lines.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  const tip = $("tip");
  tip.replaceChildren(make("code", {}, JSON.stringify(element.textContent)), list);
  tip.hidden = false;
  const box = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8));
  const below = box.bottom + 6;
  const fits = below + tip.offsetHeight < innerHeight;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(fits ? below : Math.max(8, box.top - tip.offsetHeight - 6)) + scrollY}px`;
}

export function unpoint() {
  pointed?.removeAttribute("aria-describedby");
  pointed = null;
  $("tip").hidden = true;
}

const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };

function move(event) {
  const here = event.target;
  if (!known.has(here) || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...here.parentElement.querySelectorAll(".token")];
  const at = all.indexOf(here);
  let next;
  if (event.key === "Home") next = all[0];
  else if (event.key === "End") next = all.at(-1);
  else if (event.key in STEPS) {
    const step = STEPS[event.key];
    const slow = event.key === "ArrowUp" || event.key === "ArrowDown";
    next = (step > 0 ? all.slice(at + 1) : all.slice(0, at).reverse()).find((one) => !slow || one.matches(".slow"));
  } else return;
  event.preventDefault();
  next?.focus();
}

/** Have tokens inside `root` tell about themselves, under a pointer and under the keyboard. */
export function watch(root) {
  root.addEventListener("pointerover", (event) => known.has(event.target) && point(event.target));
  root.addEventListener("pointerout", (event) => {
    const focused = document.activeElement;
    if (!known.has(event.target)) return;
    if (known.has(focused) && root.contains(focused)) point(focused);
    else unpoint();
  });
  root.addEventListener("focusin", (event) => {
    if (!known.has(event.target)) return;
    for (const one of event.target.parentElement.querySelectorAll("[tabindex='0']")) one.tabIndex = -1;
    event.target.tabIndex = 0;
    point(event.target);
    say(about(known.get(event.target)).map(([name, value]) => `${name}: ${value}`).join("; "));
  });
  root.addEventListener("focusout", unpoint);
  root.addEventListener("keydown", move);
}
