// Small drawings, for the page and for the report.

import { el, percent, svg } from "./dom.js";

const BINS = 40;

/** A score on a line from 0 to 1, with the threshold and, above it, where the normal images lie. */
export function scoreLine(answer, normals) {
  const [width, base] = [300, normals ? 44 : 14];
  const parts = [];
  if (normals) {
    const counts = new Array(BINS).fill(0);
    for (const score of normals) counts[Math.min(BINS - 1, Math.max(0, Math.floor(score * BINS)))] += 1;
    const top = Math.max(...counts);
    counts.forEach((count, bin) => {
      if (!count) return;
      const height = Math.max(2, (count / top) * (base - 16));
      parts.push(svg("rect", { class: "normals", x: (bin * width) / BINS + 0.75, y: base - 7 - height, width: width / BINS - 1.5, height, rx: 1.5 }));
    });
  }
  const state = answer.verdict ?? "unknown";
  parts.push(svg("rect", { class: "track", x: 0, y: base - 5, width, height: 8, rx: 4 }));
  parts.push(svg("rect", { class: `filled ${state}`, x: 0, y: base - 5, width: Math.max(4, Math.min(1, answer.score) * width), height: 8, rx: 4 }));
  if (answer.threshold !== undefined) {
    const x = Math.min(1, Math.max(0, answer.threshold)) * width;
    parts.push(svg("line", { class: "limit", x1: x, x2: x, y1: normals ? 4 : 0, y2: base + 9 }));
    const anchor = x < 40 ? "start" : x > width - 40 ? "end" : "middle";
    parts.push(svg("text", { x, y: base + 22, "text-anchor": anchor }, `threshold ${answer.threshold.toFixed(3)}`));
  }
  let said = `Score ${answer.score.toFixed(3)} on a scale from 0 to 1`;
  if (answer.threshold !== undefined) said += `, threshold ${answer.threshold.toFixed(3)}`;
  if (normals) said += `; ${normals.length} normal images score ${normals[0].toFixed(3)} to ${normals[normals.length - 1].toFixed(3)}`;
  const height = base + (answer.threshold === undefined ? 8 : 26);
  return svg("svg", { class: "score-line", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said }, parts);
}

/** What a p-value means, in words. */
export const pValueText = (value) => `p ${Number(value.toPrecision(2))}: about ${percent(value)} of normal images score as high.`;

const LABELS = { normal: "Normal", anomalous: "Anomalous" };

/** The verdict with a sign of its own shape, not told by colour alone. */
export function verdictTag(verdict) {
  if (!verdict) return el("span", { class: "verdict none" }, "no verdict");
  return el("span", { class: `verdict ${verdict}` }, verdictSign(verdict), LABELS[verdict]);
}

/** A tick or an exclamation mark in a disc or a diamond. */
export function verdictSign(verdict) {
  const shape = verdict === "normal"
    ? [svg("circle", { cx: 8, cy: 8, r: 7.5 }), svg("path", { class: "mark", d: "M4.6 8.3 7 10.7l4.4-5" })]
    : [svg("path", { d: "M8 .4 15.6 8 8 15.6.4 8z" }), svg("path", { class: "mark", d: "M8 4.4v4.4M8 11.2v.4" })];
  return svg("svg", { class: `sign ${verdict}`, viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" }, shape);
}

/** For each pool of experts a row a layer and a bar an expert. */
export function routingBars(routing, layers) {
  return Object.entries(routing).map(([pool, weights], number) => {
    const experts = weights[0].length;
    const [cell, tall, left] = [Math.max(8, Math.min(22, 230 / experts)), 24, 24];
    const most = Math.max(...weights.flat());
    const rows = layers.length === weights.length ? layers : weights.map((_, index) => index + 1);
    const parts = weights.flatMap((row, index) => {
      const base = (index + 1) * (tall + 5);
      const bars = row.flatMap((weight, expert) => {
        if (weight <= 0) return [];
        const height = Math.max(1.5, (weight / most) * tall);
        return [svg("rect", { class: "bar", x: left + expert * cell + 1.5, y: base - height, width: cell - 3, height, rx: 1.5 },
          svg("title", {}, `layer ${rows[index]}, expert ${expert + 1}: ${percent(weight)}`))];
      });
      return [svg("text", { x: left - 8, y: base - 2, "text-anchor": "end" }, String(rows[index])),
        svg("line", { class: "axis", x1: left, x2: left + experts * cell, y1: base + 0.5, y2: base + 0.5 }), ...bars];
    });
    const base = weights.length * (tall + 5);
    const marks = [1, experts].map((expert) => svg("text", { x: left + (expert - 0.5) * cell, y: base + 14, "text-anchor": "middle" }, String(expert)));
    const strongest = weights.map((row, index) => {
      const best = row.indexOf(Math.max(...row));
      return `layer ${rows[index]} expert ${best + 1} with ${percent(row[best])}`;
    });
    const [width, height] = [left + experts * cell + 4, base + 18];
    return el("figure", { class: `pool pool-${number % 2}` }, el("figcaption", {}, `${pool} pool, up to ${percent(most)}`),
      svg("svg", { class: "routing", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${pool} pool, strongest in each layer: ${strongest.join(", ")}` }, parts, marks));
  });
}

/** Outlines of regions over a picture of height and width `size`, with their numbers. */
export function outlines(answer) {
  const [height, width] = answer.size;
  const unit = Math.max(width, height) / 100;
  const shapes = (answer.regions ?? []).map((region, index) => {
    const points = region.polygon.map((point) => point.join(",")).join(" ");
    const x = Math.min(Math.max(region.box[0] + region.box[2] / 2, 2 * unit), width - 2 * unit);
    const above = region.box[1] > 4.5 * unit;
    const y = above ? region.box[1] - 1.2 * unit : Math.min(height - unit, region.box[1] + region.box[3] + 3.4 * unit);
    const number = svg("text", { x, y, "text-anchor": "middle" }, String(index + 1));
    number.style.fontSize = `${2.6 * unit}px`; // an attribute would yield to the style sheet
    return svg("g", { class: "region", "data-region": index },
      svg("polygon", { class: "under", points, "vector-effect": "non-scaling-stroke" }),
      svg("polygon", { class: "over", points, "vector-effect": "non-scaling-stroke" }), number);
  });
  const said = shapes.length ? `${shapes.length} region${shapes.length === 1 ? "" : "s"} outlined` : "no region";
  return svg("svg", { class: "outlines", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": said }, shapes);
}

/** The ends of a colour scale, with as many digits as tell them apart. */
export function scaleTexts([low, high]) {
  const digits = Math.min(6, Math.max(2, 1 - Math.floor(Math.log10(high - low))));
  return [low.toFixed(digits), high.toFixed(digits)];
}
