// The page: images in, findings out. Its state is a list of items and the one that is looked at.

import * as calibration from "./calibration.js";
import { announce, byId } from "./dom.js";
import { dropped, fileOf, isImage, smallPicture } from "./files.js";
import * as list from "./list.js";
import { saveJson, saveReport } from "./report.js";
import { Refused, ask, keepToken, predict } from "./service.js";
import * as viewer from "./viewer.js";

const AT_ONCE = 2;
const THUMBNAIL = 112;

let items = [];
let chosen = null;
let byHand = false; // whether the visitor chose what is looked at
let model = null;
let running = 0;
let round = new AbortController();

const drawList = () => list.draw(items, chosen, pick);
const drawView = () => viewer.show(chosen, { model, normals: calibration.normals() });

function choose(item) {
  chosen = item;
  for (const one of items) one.button?.toggleAttribute("aria-current", false);
  item.button?.setAttribute("aria-current", "true");
  item.button?.scrollIntoView({ block: "nearest", inline: "nearest" });
  drawView();
}

function pick(item) {
  byHand = true;
  choose(item);
}

function add(files) {
  const images = files.filter(isImage);
  if (!images.length && files.length) announce("None of these files is an image.");
  for (const file of images) items.push({ file, name: file.name || "pasted image", state: "waiting" });
  if (!images.length) return;
  announce(`${images.length} added.`);
  if (!chosen) choose(items[0]);
  drawList();
  work();
}

function work() {
  while (running < AT_ONCE) {
    const item = items.find((one) => one.state === "waiting");
    if (!item) break;
    running += 1;
    item.state = "scoring";
    score(item, round.signal).finally(() => { running -= 1; work(); });
  }
  if (!running && items.length) announce(`Finished: ${list.tally(items)}.`);
}

async function score(item, signal) {
  drawList();
  if (item === chosen) drawView();
  try {
    if (item.file.size > model.limits.max_bytes) {
      throw new Refused(413, "too_many_bytes", `the file has ${item.file.size.toLocaleString("en")} bytes, at most ${model.limits.max_bytes.toLocaleString("en")} are taken`);
    }
    item.thumbnail ??= await smallPicture(item.file, THUMBNAIL);
    const include = item.thumbnail ? ["heatmap"] : ["heatmap", "picture"];
    if (item.thumbnail && !item.shown) {
      item.shown = URL.createObjectURL(item.file);
      drawList();
      if (item === chosen) drawView();
    }
    const answer = await predict(item.file, { include, signal });
    if (signal.aborted) return;
    if (answer.picture) item.thumbnail = await smallPicture(await fileOf(answer.picture), THUMBNAIL);
    item.shown ??= answer.picture;
    Object.assign(item, { answer, error: null, state: "done" });
    if (items.length === 1) announce(`${item.name}: ${answer.verdict ? `${answer.verdict}, ` : ""}score ${answer.score.toFixed(3)}.`);
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    if (error.status === 401) askToken();
    Object.assign(item, { answer: null, error: error.message, state: "failed" });
  }
  drawList();
  if (item === chosen) drawView();
  else if (!byHand && item.answer && !chosen?.answer && chosen?.state === "failed") choose(item);
}

/** Scores everything anew, after verdicts may have changed. */
function again() {
  round.abort();
  round = new AbortController();
  for (const item of items) if (item.state !== "failed") item.state = "waiting";
  drawList();
  work();
}

function clear() {
  round.abort();
  round = new AbortController();
  for (const item of items) if (item.shown?.startsWith("blob:")) URL.revokeObjectURL(item.shown);
  items = [];
  chosen = null;
  byHand = false;
  drawList();
  drawView();
  announce("Cleared.");
  byId("files").focus();
}

async function connectService() {
  try {
    [model] = (await ask("/v1/models")).models;
    await calibration.refresh(model.calibrated);
  } catch (error) {
    byId("served").textContent = error.message;
    byId("served").classList.add("failed");
    if (error.status === 401) askToken();
    return;
  }
  byId("served").classList.remove("failed");
  byId("served").replaceChildren(Object.assign(document.createElement("strong"), { textContent: model.name }), ` ${model.method} on ${model.backbone}`);
  document.title = `${model.name} · zsad`;
  byId("note").textContent = model.note;
  byId("note").hidden = !model.note;
  byId("files").disabled = false;
}

function askToken() {
  const dialog = byId("ask-token");
  if (!dialog.open) dialog.showModal();
}

function connectDrops(takeNormals) {
  const [normalsPlace, place] = [byId("calibration"), byId("drop")];
  const mark = (event) => {
    const over = event?.dataTransfer?.types.includes("Files");
    const onNormals = over && normalsPlace.contains(event.target);
    byId("drop-normals").classList.toggle("over", Boolean(onNormals));
    place.classList.toggle("over", Boolean(over && !onNormals));
    byId("hero").classList.toggle("over", Boolean(over && !onNormals));
  };
  addEventListener("dragover", (event) => { event.preventDefault(); mark(event); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) mark(null); });
  addEventListener("drop", async (event) => {
    event.preventDefault();
    mark(null);
    const normal = normalsPlace.contains(event.target);
    const files = await dropped(event.dataTransfer);
    if (normal) takeNormals(files);
    else add(files);
  });
  addEventListener("paste", (event) => add([...(event.clipboardData?.files ?? [])]));
}

function connect() {
  viewer.connect();
  list.connect(() => items, pick);
  connectDrops(calibration.connect(again));
  const files = byId("files");
  files.addEventListener("change", () => { add([...files.files]); files.value = ""; });
  byId("sorting").addEventListener("change", drawList);
  byId("clear").addEventListener("click", clear);
  const known = () => ({ model, calibration: calibration.inUse(), normals: calibration.normals(), opacity: viewer.opacity() });
  byId("save-json").addEventListener("click", () => saveJson(items, known()));
  byId("save-report").addEventListener("click", () => saveReport(items, known()));
  byId("ask-token").addEventListener("close", async () => {
    keepToken(byId("token").value.trim());
    byId("token").value = "";
    await connectService();
    for (const item of items) if (item.state === "failed") item.state = "waiting";
    work();
  });
}

connect();
connectService();
