// What is normal: thresholds from normal images, taken by the service for everybody from then on.

import { announce, byId, download, el, plural } from "./dom.js";
import { isImage } from "./files.js";
import { ask, calibrate } from "./service.js";

const CONFIDENCE = 0.95;
const NONE = byId("calibration-state").textContent;
let current = null;
let stop = null;

/** Image scores of the normals, rising; null without calibration. */
export const normals = () => current?.calibration.scores ?? null;

/** The calibration in use with its promises, or null. */
export const inUse = () => current;

const needed = (rate) => Math.ceil(Math.log(1 - CONFIDENCE) / Math.log1p(-rate) - 1e-9);

function draw() {
  const made = current?.calibration;
  byId("calibrated").textContent = made ? "in use" : "none";
  byId("calibrated").classList.toggle("t0", Boolean(made));
  byId("calibration-state").textContent = made
    ? `From ${plural(made.scores.length, "normal image")}, ${made.created.replace("T", " ").slice(0, 16)} UTC. Download it to keep it: the service forgets it when it ends.`
    : NONE;
  byId("promises").hidden = !made;
  byId("promises").replaceChildren(...(current?.summary ?? []).map((line) => el("li", {}, line)));
  const warnings = [...(current?.warnings ?? [])];
  const skipped = current?.skipped ?? [];
  if (skipped.length) warnings.push(`${plural(skipped.length, "image")} left out; the first: ${skipped[0].error.detail}`);
  byId("calibration-warning").hidden = !warnings.length;
  byId("calibration-warning").textContent = warnings.join(". ");
  byId("save-calibration").hidden = byId("remove-calibration").hidden = !made;
}

function hint() {
  const rate = Number(byId("rate").value);
  byId("rate-hint").textContent = `Takes ${needed(rate).toLocaleString("en")} normal images or more, to hold with 95 % confidence.`;
}

/** Asks the service what it uses; `calibrated` says whether there is anything. */
export async function refresh(calibrated) {
  current = calibrated ? await ask("/v1/calibration") : null;
  draw();
}

function told(text) {
  const place = byId("calibration-warning");
  place.hidden = !text;
  place.textContent = text;
  if (text) announce(text);
}

/** Calibrates on files; resolves to whether it did. */
async function from(files) {
  const images = files.filter(isImage);
  if (!images.length) return told("None of these files is an image.");
  if (stop) return told("A calibration is under way.");
  const bar = byId("calibrating-bar");
  stop = new AbortController();
  byId("calibrating").hidden = false;
  byId("calibrating-text").textContent = `Scoring ${plural(images.length, "normal image")} …`;
  bar.value = 0;
  told("");
  try {
    current = await calibrate(images, { rate: byId("rate").value, signal: stop.signal, progress: (share) => { bar.value = share; } });
    draw();
    announce(`Calibrated on ${plural(current.calibration.scores.length, "normal image")}. ${current.summary.join(". ")}`);
    return true;
  } catch (error) {
    if (error.name !== "AbortError") told(error.message);
    return false;
  } finally {
    stop = null;
    byId("calibrating").hidden = true;
  }
}

async function fromFile(file) {
  try {
    current = await ask("/v1/calibration", { method: "PUT", body: await file.text(), headers: { "content-type": "application/json" } });
    draw();
    announce("The calibration of the file is in use.");
    return true;
  } catch (error) {
    told(error.message);
    return false;
  }
}

async function remove() {
  await ask("/v1/calibration", { method: "DELETE" });
  current = null;
  draw();
  announce("There is no calibration any more: scores only.");
  byId("normals").focus();
}

/** Connects the panel; `changed` is called whenever verdicts may have changed. */
export function connect(changed) {
  const after = (work) => async (...given) => { if ((await work(...given)) !== false) changed(); };
  const input = byId("normals");
  const take = async (files) => { if (await from(files)) changed(); };
  input.addEventListener("change", () => { take([...input.files]); input.value = ""; });
  byId("calibration-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file && await fromFile(file)) changed();
  });
  byId("save-calibration").addEventListener("click", () => download("calibration.json", `${JSON.stringify(current.calibration, null, 1)}\n`, "application/json"));
  byId("remove-calibration").addEventListener("click", after(remove));
  byId("calibrating-stop").addEventListener("click", () => stop?.abort());
  byId("rate").addEventListener("change", hint);
  hint();
  draw();
  return take;
}
