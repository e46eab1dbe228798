"use strict";
// Shows ten rows at a time, and those with a chosen finding. Without it the page shows all rows, one below the other.

const PER_PAGE = 10;
const cards = [...document.querySelectorAll("article.row")];
const bars = [...document.querySelectorAll(".browse .controls")];
let shown = cards;
let page = 0;

function made(parent, name, text, settings) {
  const one = Object.assign(document.createElement(name), settings);
  if (text) one.textContent = text;
  parent.append(one);
  return one;
}

function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  page = Math.max(0, Math.min(pages - 1, page));
  const first = page * PER_PAGE;
  const visible = new Set(shown.slice(first, first + PER_PAGE));
  for (const card of cards) card.hidden = !visible.has(card);
  const number = (value) => value.toLocaleString("en");
  const last = Math.min(first + PER_PAGE, shown.length);
  for (const bar of bars) {
    bar.querySelector(".where").textContent = shown.length
      ? `${number(first + 1)} to ${number(last)} of ${number(shown.length)}`
      : "no such row on this page";
    bar.querySelector(".previous").disabled = page === 0;
    bar.querySelector(".next").disabled = page >= pages - 1;
  }
}

function turn(by, bar) {
  page += by;
  draw();
  if (bar !== bars[0]) document.querySelector(".browse").scrollIntoView();
}

function choose(fault) {
  const has = (card) => card.dataset.faults.split(" ").includes(fault);
  shown = fault === "all" ? cards : fault === "any" ? cards.filter((card) => card.dataset.faults) : cards.filter(has);
  page = 0;
  draw();
}

function filter(bar) {
  const counts = new Map();
  for (const card of cards)
    for (const fault of card.dataset.faults.split(" ").filter(Boolean)) counts.set(fault, (counts.get(fault) || 0) + 1);
  if (!counts.size) return;
  const select = made(bar, "select", "", { className: "right", ariaLabel: "which rows" });
  made(select, "option", `all ${cards.length} rows`, { value: "all" });
  made(select, "option", "rows with a finding of their own", { value: "any" });
  for (const [fault, count] of counts) made(select, "option", `${fault.replace("_", " ")} (${count})`, { value: fault });
  select.addEventListener("change", () => choose(select.value));
}

function jump() {
  const card = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!card || !cards.includes(card)) return;
  if (!shown.includes(card)) shown = cards;
  page = Math.floor(shown.indexOf(card) / PER_PAGE);
  draw();
  card.scrollIntoView();
}

if (cards.length) {
  for (const bar of bars) {
    made(bar, "button", "← Previous", { type: "button", className: "previous" }).onclick = () => turn(-1, bar);
    made(bar, "button", "Next →", { type: "button", className: "next" }).onclick = () => turn(1, bar);
    made(bar, "span", "", { className: "where" });
  }
  filter(bars[0]);
  draw();
  jump();
  addEventListener("hashchange", jump);
}
