// What was asked in this page, and what it cost.

import { $, count, make, percent, seconds } from "./dom.js";

const sums = { requests: 0, tokens: 0, seconds: 0, steps: [0, 0], usd: [0, 0], priced: 0 };

const number = (...content) => make("td", { class: "number" }, ...content);

/** "5 of 73", "93.2% saved": against the slow model alone; a loss is said as one. */
function against(routed, alone, shown) {
  if (alone === undefined) return number(shown(routed));
  const saving = alone ? 1 - routed / alone : 0;
  const word = saving < 0 ? `${percent(-saving)} lost` : `${percent(saving)} saved`;
  return number(`${shown(routed)} of ${shown(alone)}`, make("span", { class: "quiet" }, word));
}

const usd = (value) => `$${value.toPrecision(3)}`;

function cost(compared) {
  const money = compared.money_usd;
  return money?.routed === undefined ? number("no price") : against(money.routed, money.slow_only, usd);
}

/** A line for a request: `usage` of its answer, or `outcome` in a word where it has none. */
export function enter({ question, model, policy, link, usage, outcome, tokens = 0 }) {
  $("history-empty").hidden = true;
  $("history-scroll").hidden = false;
  const told = usage?.fsgen;
  const asked = make("a", { href: `#${link}` }, question);
  const cells = usage
    ? [
        number(count(usage.completion_tokens)),
        against(told.slow_forwards, told.compared.slow_forwards?.slow_only, count),
        number(seconds(told.seconds)),
        cost(told.compared),
      ]
    : [number(count(tokens)), make("td", { colspan: 3 }, outcome)];
  const row = make("tr", {},
    make("th", { scope: "row" }, asked),
    make("td", {}, model, make("span", { class: "quiet" }, policy ?? "")),
    ...cells,
  );
  $("history").tBodies[0].prepend(row);
  if (usage) total(usage);
}

function total(usage) {
  const { slow_forwards: steps, money_usd: money } = usage.fsgen.compared;
  sums.requests += 1;
  sums.tokens += usage.completion_tokens;
  sums.seconds += usage.fsgen.seconds;
  sums.steps[0] += usage.fsgen.slow_forwards;
  sums.steps[1] += steps?.slow_only ?? usage.fsgen.slow_forwards;
  if (money?.routed !== undefined && money.slow_only !== undefined) {
    sums.priced += 1;
    sums.usd[0] += money.routed;
    sums.usd[1] += money.slow_only;
  }
  const row = make("tr", {},
    make("th", { scope: "row" }, `All ${count(sums.requests)} that were finished`),
    make("td"),
    number(count(sums.tokens)),
    against(...sums.steps, count),
    number(seconds(sums.seconds)),
    sums.priced ? against(...sums.usd, usd) : number("–"),
  );
  $("history").tFoot.replaceChildren(row);
}

/** The conversation is gone that lines led to. */
export function unlink() {
  for (const link of $("history").querySelectorAll("a")) link.replaceWith(link.textContent);
}
