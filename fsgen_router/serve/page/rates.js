// The four rates, of the answer that is written now and of all of them, and what compares with FS-GEN's 20%.

import { $, draw, make, percent } from "./dom.js";

const FSGEN = 0.2; // arXiv 2406.12295: under about this share of the tokens in most settings

const RATES = [
  ["slow_token_share", "written", "tokens that the slow model wrote"],
  ["escalation_rate", "asked", "decisions that asked the slow model"],
  ["slow_position_share", "read", "tokens that the slow model read"],
  ["disagreement_rate", "differ", "tokens at which the two models' choices differ (FS‑GEN: under about 20%)"],
];

/** What a rate is a share of, so that a session's is made of its answers'. */
const WEIGHTS = {
  slow_token_share: (usage) => usage.completion_tokens,
  escalation_rate: (usage) => usage.fsgen.decisions,
  slow_position_share: (usage) => usage.prompt_tokens + usage.completion_tokens,
  disagreement_rate: (usage) => usage.completion_tokens,
};

const totals = Object.fromEntries(RATES.map(([name]) => [name, { part: 0, whole: 0 }]));

const ofSession = (name) => (totals[name].whole ? totals[name].part / totals[name].whole : undefined);

/** Rates so far, of the tokens that have come. */
export function soFar(counts) {
  const share = (part, whole) => (whole ? part / whole : undefined);
  show({
    slow_token_share: share(counts.slow, counts.tokens),
    escalation_rate: share(counts.escalated, counts.decisions),
  }, true);
}

/** Rates of an answer that is finished, as the server counted them. */
export function finished(usage) {
  for (const [name] of RATES) {
    const rate = usage.fsgen[name];
    if (rate === undefined) continue;
    const weight = WEIGHTS[name](usage);
    totals[name].part += rate * weight;
    totals[name].whole += weight;
  }
  show(usage.fsgen, false);
}

export function show(answer = {}, live = false) {
  const rows = RATES.map(([name, word, meaning]) => {
    const session = ofSession(name);
    const mark = name === "disagreement_rate" ? FSGEN : undefined;
    return make("tr", { "data-rate": name },
      make("th", { scope: "row" }, make("b", {}, word), make("span", { class: "quiet" }, meaning)),
      make("td", { class: "number" }, cell(name, answer[name], live)),
      make("td", { class: "number" }, session === undefined ? "–" : percent(session)),
      make("td", { class: "bars" }, bars(answer[name], session, mark)),
    );
  });
  $("rates").tBodies[0].replaceChildren(...rows);
  $("rates-note").textContent = note(answer.disagreement_rate, ofSession("disagreement_rate"));
}

const cell = (name, rate, live) => (rate === undefined ? (live ? "…" : "–") : percent(rate));

function note(answer, session) {
  const what = `FS-GEN's ${percent(FSGEN).replace(".0", "")} is how often the two models' choices differ where the ` +
    "slow one is asked at every token. It compares with “differ” alone, never with “asked” or “written”: a policy " +
    "may ask far less often than they differ.";
  const known = answer ?? session;
  if (known === undefined) {
    return `${what} “Differ” is not known here: the slow model has to read every token, as it does for answers that ` +
      "are audited (fsgen-router serve --audit 1).";
  }
  const here = answer === undefined ? "In this session they differ" : "In this answer they differ";
  return `${what} ${here} at ${percent(known)}.`;
}

function bars(answer, session, mark) {
  const bar = (rate, top, name) => (rate === undefined ? null
    : draw("rect", { class: name, x: 0, y: top, width: Math.max(100 * rate, 0.6), height: 4 }));
  return draw("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { class: "track", x: 0, y: 2, width: 100, height: 12 }),
    bar(answer, 3, "answer"),
    bar(session, 9, "session"),
    mark === undefined ? null : draw("line", { class: "mark", x1: 100 * mark, x2: 100 * mark, y1: 0, y2: 16 }),
  );
}
