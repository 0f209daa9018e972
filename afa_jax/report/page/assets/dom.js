// Elements by name, from text only: what a run is called is never read as HTML.

const data = JSON.parse(document.getElementById("data").textContent);

const byId = (id) => document.getElementById(id);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const make = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);

const draw = (name, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function choose(select, names, chosen = 0) {
  select.replaceChildren(...names.map((name, i) => make("option", { value: i }, name)));
  select.selectedIndex = Math.min(Math.max(chosen, 0), names.length - 1);
}

const unique = (list) => [...new Set(list)];

// Colours and dashes as in the figures: when the colours are used up, the next dash begins.
const look = (i) => `c${i % 7} d${Math.floor(i / 7) % 4}`;

function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(3)));
}
