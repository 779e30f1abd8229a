// The policy's threshold as a slider, in front of what other thresholds did in calibration.

import { $, count, digits, draw, percent } from "./dom.js";

const STEPS = 1000; // of the slider
const PAD = 9; // half a thumb: where the slider's ends are
const TOP = 16;
const BOTTOM = 18;
const HEIGHT = 150;

let facts = null; // what the server says of the threshold
let moved = false;
let scale = null;

const logit = (value) => Math.log(value / (1 - value));

/** Where a value is on the slider (0 to 1), and back. Scores are small where it matters, so they go by their odds. */
function makeScale(threshold) {
  if (threshold.unit !== "score") {
    const { low, high } = threshold;
    return { at: (value) => (value - low) / (high - low), value: (at) => low + at * (high - low) };
  }
  const inside = [threshold.value, ...(threshold.curve ?? []).map((point) => point.threshold)]
    .filter((value) => value > 0 && value < 1);
  const low = logit(Math.min(...inside, 1e-3) / 2);
  const high = logit(Math.max(...inside.map((value) => 1 - (1 - value) / 2), 0.9));
  const at = (value) => (value <= 0 ? 0 : value >= 1 ? 1 : (logit(value) - low) / (high - low));
  return { at, value: (place) => 1 / (1 + Math.exp(-(low + place * (high - low)))) };
}

/** The threshold to ask with; undefined where the policy's own stays. */
export const chosen = () => (facts && moved ? current() : undefined);

const current = () => (moved ? scale.value($("slider").value / STEPS) : facts.value);

export function use(threshold) {
  facts = threshold ?? null;
  moved = false;
  $("threshold").hidden = !facts;
  if (!facts) return;
  scale = makeScale(facts);
  $("slider").value = Math.round(STEPS * scale.at(facts.value));
  const [low, high] = facts.asks === "above" ? ["asks more", "asks less"] : ["asks less", "asks more"];
  $("low").textContent = `← ${low}`;
  $("high").textContent = `${high} →`;
  show();
}

/** Points of the curve by rising threshold, without those that stand for "always". */
const points = () => (facts.curve ?? []).filter((point) => scale.at(point.threshold) >= 0 && point.threshold > 0);

function show() {
  const value = current();
  const unit = facts.unit === "nats" ? " nats" : "";
  const words = `${facts.compared} ${facts.asks === "above" ? "over" : "under"} ${digits(value)}${unit}`;
  $("threshold-value").textContent = moved ? words : `${words}, the policy's own`;
  $("slider").setAttribute("aria-valuetext", words);
  $("reset").hidden = !moved;
  $("curve-note").textContent = note(value);
  paint(value);
}

function note(value) {
  const curve = points();
  if (!curve.length) return "No calibration curve: what other thresholds do was not measured for this policy.";
  const prompts = count(curve[0].n_prompts);
  const [first, last] = [curve[0], curve.at(-1)];
  let text;
  if (value < first.threshold || value > last.threshold) {
    const edge = value < first.threshold ? first : last;
    text = `Calibration (${prompts} prompts) measured nothing there. At ${digits(edge.threshold)}, its nearest point, ` +
      `${percent(edge.escalation_rate)} of the decisions asked and ${percent(edge.accuracy)} of the answers were right.`;
  } else {
    const [asked, right] = ["escalation_rate", "accuracy"].map((name) => between(curve, value, name));
    text = `In calibration (${prompts} prompts) about ${percent(asked)} of the decisions asked the slow model there, ` +
      `and ${percent(right)} of the answers were right.`;
  }
  if (facts.certified === undefined) return text;
  return `${text} ${moved && value !== facts.certified ? "The certificate is of another threshold and does not hold here."
    : "This threshold is certified."}`;
}

function between(curve, value, name) {
  const after = Math.max(1, curve.findIndex((point) => point.threshold >= value));
  const [low, high] = [curve[after - 1], curve[after]];
  if (!high) return low[name];
  const [from, to] = [scale.at(low.threshold), scale.at(high.threshold)];
  const part = (scale.at(value) - from) / (to - from || 1);
  return low[name] + part * (high[name] - low[name]);
}

function paint(value) {
  const svg = $("curve");
  const curve = points().filter((point) => point.escalation_rate !== undefined);
  svg.toggleAttribute("hidden", !curve.length);
  if (!curve.length) return;
  const width = svg.clientWidth || $("slider").clientWidth;
  if (!width) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("height", HEIGHT);
  const x = (threshold) => PAD + scale.at(threshold) * (width - 2 * PAD);
  const y = (share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
  const path = (name) => curve.map((point) => `${x(point.threshold)},${y(point[name])}`).join(" ");
  const upright = (at, name) => draw("line", { class: name, x1: x(at), x2: x(at), y1: TOP - 4, y2: HEIGHT - BOTTOM });
  const parts = [0, 0.5, 1].flatMap((share) => [
    draw("line", { class: "grid", x1: PAD, x2: width - PAD, y1: y(share), y2: y(share) }),
    draw("text", { x: width - PAD, y: y(share) - 3, "text-anchor": "end" }, `${100 * share}%`),
  ]);
  for (const [name, word] of [["accuracy", "right"], ["escalation_rate", "asked"]]) {
    parts.push(draw("polyline", { class: name, points: path(name) }));
    parts.push(...curve.map((point) => draw("circle", { class: name, cx: x(point.threshold), cy: y(point[name]), r: 2.5 })));
    const first = curve[0];
    const label = { x: x(first.threshold), y: y(first[name]) + (name === "accuracy" ? 14 : -8), class: name };
    parts.push(draw("text", label, word));
  }
  if (facts.certified !== undefined) {
    parts.push(upright(facts.certified, "certified"));
    const end = x(facts.certified) > width / 2;
    const label = { x: x(facts.certified) + (end ? -5 : 5), y: HEIGHT - 4, "text-anchor": end ? "end" : "start" };
    parts.push(draw("text", label, "certified"));
  }
  parts.push(upright(value, "here"));
  svg.replaceChildren(...parts);
}

export function begin() {
  $("slider").addEventListener("input", () => {
    moved = true;
    show();
  });
  $("reset").addEventListener("click", () => {
    use(facts);
    $("slider").focus();
  });
  $("threshold").addEventListener("toggle", () => facts && show());
  new ResizeObserver(() => facts && paint(current())).observe($("slider"));
}
