// What is taken home: a page in one file that opens anywhere, or the answers as JSON.

import { pValueText, routingBars, scaleTexts, scoreLine, verdictTag } from "./charts.js";
import { download, el, plural } from "./dom.js";
import { smallPicture } from "./files.js";
import { tally } from "./list.js";
import { layers } from "./viewer.js";

const SIDE = 800;
const STYLE = "style";
const stamp = () => new Date().toISOString().slice(0, 16).replace("T", " ");
const fileName = (ending) => `zsad-${stamp().replace(/[ :]/g, "-")}.${ending}`;

const named = (items) => items.filter((item) => item.answer || item.error);

/** Downloads the answers, without pictures. */
export function saveJson(items, { model, calibration }) {
  const results = named(items).map((item) => {
    if (!item.answer) return { name: item.name, error: item.error };
    const { heatmap, picture, ...rest } = item.answer;
    return rest;
  });
  const document = { written: new Date().toISOString(), model, calibration: calibration?.calibration ?? null, results };
  download(fileName("json"), `${JSON.stringify(document, null, 1)}\n`, "application/json");
}

async function card(item, { model, normals, opacity }) {
  if (!item.answer) {
    return el("article", { class: "panel" }, el("h2", { class: "name" }, item.name), el("p", { class: "failed" }, item.error));
  }
  const { answer } = item;
  const picture = (await smallPicture(item.file, SIDE)) ?? item.shown;
  const frame = el("div", { class: "frame" }, ...layers(answer, picture, { opacity, name: item.name }));
  frame.style.setProperty("--ratio", answer.size[1] / answer.size[0]);
  const count = answer.regions ? ` · ${plural(answer.regions.length, "region")}` : "";
  return el("article", { class: "panel" },
    el("h2", { class: "name" }, item.name),
    frame,
    el("p", { class: "score-now" }, el("span", { class: "value" }, answer.score.toFixed(3)), verdictTag(answer.verdict)),
    scoreLine(answer, normals),
    el("p", { class: "meta" }, `${answer.size[1]} × ${answer.size[0]} px${count}`, answer.p_value === undefined ? "" : ` · ${pValueText(answer.p_value)}`),
    answer.routing ? el("details", {}, el("summary", {}, "Experts that spoke"), el("div", { class: "pools" }, routingBars(answer.routing, model.layers))) : null);
}

/** Downloads a page with all pictures, heat maps and findings, the highest score first. */
export async function saveReport(items, { model, calibration, normals, opacity }) {
  const sheets = await Promise.all(["/static/base.css", "/static/page.css"].map(async (path) => (await fetch(path)).text()));
  const shown = named(items).sort((one, other) => (other.answer?.score ?? -1) - (one.answer?.score ?? -1));
  const cards = [];
  for (const item of shown) cards.push(await card(item, { model, normals, opacity }));
  const scale = shown.find((item) => item.answer)?.answer.heatmap.scale;
  const page = document.implementation.createHTMLDocument(`zsad · ${plural(shown.length, "image")}`);
  page.documentElement.lang = "en";
  page.head.append(
    el("meta", { charset: "utf-8" }),
    el("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }),
    el("meta", { name: "color-scheme", content: "light dark" }),
    el("meta", { "http-equiv": "Content-Security-Policy", content: "default-src 'none'; img-src data:; style-src 'unsafe-inline'" }),
    page.createComment(STYLE));
  page.body.className = "report";
  page.body.append(
    el("header", {},
      el("p", { class: "eyebrow" }, "zsad · zero-shot anomaly detection"),
      el("h1", {}, tally(shown)),
      el("p", { class: "meta" }, `${model.name} (${model.method} on ${model.backbone}, ${model.identity}) · ${stamp()} UTC`),
      calibration ? el("ul", { class: "promises" }, calibration.summary.map((line) => el("li", {}, line))) : el("p", { class: "meta" }, "No calibration: scores rank images, there are no verdicts."),
      scale ? el("div", { class: "legend" }, el("span", {}, scaleTexts(scale)[0]), el("div", { class: "ramp" }), el("span", {}, scaleTexts(scale)[1]), el("span", {}, "map value, the same colours for all images")) : null,
      model.note ? el("p", { class: "warn" }, model.note) : null),
    el("main", { class: "cards" }, cards));
  // As text: the policy of this page would forbid a style within a document, even one that is not shown.
  const text = page.documentElement.outerHTML.replace(`<!--${STYLE}-->`, () => `<style>${sheets.join("\n")}</style>`);
  download(fileName("html"), `<!DOCTYPE html>\n${text}\n`, "text/html");
}
