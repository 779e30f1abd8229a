// Elements from code. Text goes in as text nodes alone: nothing that a model wrote is ever markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => NUMBER.format(value);
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
export const percent = (value) => (value === undefined ? "unknown" : `${(100 * value).toFixed(1)}%`);
export const seconds = (value) => `${value.toFixed(value < 10 ? 2 : 1)} s`;
export const digits = (value) => String(Number(value.toPrecision(3)));
export const say = (text) => ($("said").textContent = text);
