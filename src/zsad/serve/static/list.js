// The list of images, each a button that shows it.

import { verdictSign } from "./charts.js";
import { byId, el, plural } from "./dom.js";

const STATES = { waiting: "waiting", scoring: "scoring …", failed: "cannot be used" };

/** Items in the order that is wished for. */
export function ordered(items) {
  if (byId("sorting").value !== "score") return items;
  return [...items].sort((one, other) => (other.answer?.score ?? -1) - (one.answer?.score ?? -1));
}

/** What one item says of itself in a few words. */
function said(item) {
  if (!item.answer) return item.error ?? STATES[item.state];
  return `${item.answer.verdict ? `${item.answer.verdict}, ` : ""}score ${item.answer.score.toFixed(3)}`;
}

function entry(item, chosen, choose) {
  const { answer } = item;
  const meter = el("span", { class: "meter", "aria-hidden": "true" }, el("b", { class: answer?.verdict ?? "unknown" }));
  meter.firstChild.style.width = `${100 * Math.min(1, answer?.score ?? 0)}%`;
  const button = el("button", { type: "button", class: `item ${item.state}`, "aria-current": item === chosen ? "true" : null, "aria-label": `${item.name}, ${said(item)}`, title: item.error ?? item.name, onclick: () => choose(item) },
    item.thumbnail ? el("img", { src: item.thumbnail, alt: "" }) : el("span", { class: "blank" }),
    el("span", { class: "words" },
      el("span", { class: "name" }, item.name),
      answer ? meter : el("span", { class: "meta" }, item.error ?? STATES[item.state])),
    answer ? el("span", { class: "end" }, answer.verdict ? verdictSign(answer.verdict) : null, el("span", { class: "score" }, answer.score.toFixed(2))) : null);
  item.button = button;
  return el("li", {}, button);
}

/** "12 images, 3 anomalous, 1 unusable, 2 to go". */
export function tally(items) {
  const count = (test) => items.filter(test).length;
  const parts = [plural(items.length, "image")];
  const judged = count((item) => item.answer?.verdict);
  if (judged) parts.push(`${count((item) => item.answer?.verdict === "anomalous")} anomalous`);
  const failed = count((item) => item.state === "failed");
  if (failed) parts.push(`${failed} unusable`);
  const open = count((item) => item.state === "waiting" || item.state === "scoring");
  if (open) parts.push(`${open} to go`);
  return parts.join(" · ");
}

/** Draws the list anew, the focus staying where it was. */
export function draw(items, chosen, choose) {
  byId("list-panel").hidden = !items.length;
  const focused = items.find((item) => item.button === document.activeElement);
  const place = byId("items");
  const top = place.scrollTop;
  place.replaceChildren(...ordered(items).map((item) => entry(item, chosen, choose)));
  place.scrollTop = top;
  focused?.button.focus({ preventScroll: true });
  byId("tally").textContent = tally(items);
}

/** Lets arrows, Home and End move through the list. */
export function connect(items, choose) {
  byId("items").addEventListener("keydown", (event) => {
    const shown = ordered(items());
    const at = shown.findIndex((item) => item.button === document.activeElement);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: shown.length - 1 };
    const next = shown[Math.min(shown.length - 1, Math.max(0, moves[event.key]))];
    if (at < 0 || !next) return;
    event.preventDefault();
    choose(next);
    next.button.focus();
  });
}
