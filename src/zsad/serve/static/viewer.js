// The picture that is looked at, with its heat map and regions, and what was found in it.

import { outlines, pValueText, routingBars, scaleTexts, scoreLine, verdictTag } from "./charts.js";
import { byId, el, plural } from "./dom.js";

const state = { opacity: 0.7, regions: true };

/** The picture with the layers over it. */
export function layers(answer, picture, { opacity, name }) {
  const heat = el("img", { class: "heat", src: answer.heatmap.png, alt: `Heat map, highest value ${answer.heatmap.peak.toFixed(2)}` });
  heat.style.opacity = opacity;
  return [el("img", { class: "picture", src: picture, alt: name }), heat, outlines(answer)];
}

/** Shows an item; one without an answer yet shows its picture alone. */
export function show(item, { model, normals }) {
  byId("hero").hidden = Boolean(item);
  byId("view").hidden = byId("facts").hidden = !item;
  if (!item) return;
  const { answer } = item;
  const frame = byId("frame");
  if (answer) {
    frame.style.setProperty("--ratio", answer.size[1] / answer.size[0]);
    frame.replaceChildren(...layers(answer, item.shown, { opacity: state.opacity, name: item.name }));
    frame.querySelector(".outlines").toggleAttribute("hidden", !state.regions);
    [byId("scale-low").textContent, byId("scale-high").textContent] = scaleTexts(answer.heatmap.scale);
  } else if (item.shown) {
    const picture = el("img", { class: "picture", src: item.shown, alt: item.name });
    picture.addEventListener("load", () => { if (picture.isConnected) frame.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight); });
    frame.replaceChildren(picture);
  } else {
    frame.replaceChildren(el("div", { class: `waiting ${item.state}` }, item.state === "failed" ? "no picture" : ""));
  }
  facts(item, { model, normals });
}

const STATES = { waiting: "Waiting …", scoring: "Scoring …" };

function facts({ answer, name, error, state: now }, { model, normals }) {
  byId("h-name").textContent = name;
  byId("h-regions").parentElement.hidden = !answer;
  byId("experts-panel").hidden = !answer?.routing;
  if (!answer) {
    byId("about").textContent = "";
    byId("judgement").replaceChildren(el("p", { class: error ? "failed" : "meta" }, error ?? STATES[now] ?? ""));
    return;
  }
  const [height, width] = answer.size;
  byId("about").textContent = `${width} × ${height} px · ${Math.round(answer.ms).toLocaleString("en")} ms`;
  byId("judgement").replaceChildren(...judgement(answer, normals));
  byId("regions").replaceChildren(...regionTable(answer));
  byId("experts").replaceChildren(...(answer.routing ? routingBars(answer.routing, model.layers) : []));
  if (answer.routing) byId("experts").append(el("p", { class: "meta" }, "A row for each layer of the backbone, a bar for each expert, as high as its weight."));
}

function judgement(answer, normals) {
  return [
    el("p", { class: "score-now" }, el("span", { class: "value" }, answer.score.toFixed(3)), verdictTag(answer.verdict)),
    scoreLine(answer, normals),
    el("p", { class: "meta" }, answer.p_value === undefined ? "Higher is more anomalous. Without a calibration a score only ranks images." : pValueText(answer.p_value)),
  ];
}

/** The regions as a table; a row under the pointer or with the focus is lit in the picture. */
function regionTable(answer) {
  if (!answer.regions) return [el("p", { class: "meta" }, "Regions lie above a pixel threshold, which comes with a calibration.")];
  if (!answer.regions.length) return [el("p", { class: "meta" }, `Nothing lies above the pixel threshold of ${answer.pixel_threshold.toFixed(3)}.`)];
  const [height, width] = answer.size;
  const rows = answer.regions.map((region, index) => {
    const [x, y, across, down] = region.box.map(Math.round);
    const share = (100 * region.area) / (height * width);
    const lit = (on) => light(on ? index : null);
    return el("tr", { onpointerenter: () => lit(true), onpointerleave: () => lit(false) },
      el("th", { scope: "row" }, el("button", { type: "button", onfocus: () => lit(true), onblur: () => lit(false), "aria-label": `Region ${index + 1}, light it in the picture` }, String(index + 1))),
      el("td", { class: "number" }, region.score.toFixed(3)),
      el("td", { class: "number" }, `${share < 0.1 ? "< 0.1" : share.toFixed(1)} %`),
      el("td", { class: "number" }, `${x}, ${y} · ${across} × ${down}`));
  });
  const head = ["", "Peak", "Area", "Place and size, px"].map((text, index) => el("th", { scope: "col", class: index ? "number" : null }, text || el("span", { class: "unseen" }, "Number")));
  return [el("table", { class: "regions" }, el("caption", { class: "unseen" }, plural(rows.length, "region")), el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows))];
}

function light(index) {
  for (const shape of byId("frame").querySelectorAll(".region")) {
    shape.classList.toggle("lit", shape.dataset.region === String(index));
    shape.classList.toggle("dim", index !== null && shape.dataset.region !== String(index));
  }
}

/** How strong the heat map is shown, in [0, 1]. */
export const opacity = () => state.opacity;

/** Connects slider and box. */
export function connect() {
  const [slider, box] = [byId("opacity"), byId("show-regions")];
  const apply = () => {
    state.opacity = Number(slider.value) / 100;
    state.regions = box.checked;
    byId("opacity-value").textContent = `${slider.value} %`;
    const frame = byId("frame");
    const heat = frame.querySelector(".heat");
    if (heat) heat.style.opacity = state.opacity;
    frame.querySelector(".outlines")?.toggleAttribute("hidden", !state.regions);
  };
  slider.addEventListener("input", apply);
  box.addEventListener("change", apply);
  apply();
}
