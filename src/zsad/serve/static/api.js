// The description of the interface, drawn from the schema that the service gives of itself.

import { byId, el } from "./dom.js";

const slug = (text) => text.replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").toLowerCase();
const last = (reference) => reference.split("/").pop();

/** A schema in a few words, with links to the named ones. */
function kind(schema) {
  if (!schema) return ["-"];
  if (schema.$ref) return [el("a", { href: `#${slug(last(schema.$ref))}` }, last(schema.$ref))];
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return several.flatMap((one, index) => [index ? " or " : "", ...kind(one)]);
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.type === "array" && schema.prefixItems) return ["(", ...schema.prefixItems.flatMap((one, index) => [index ? ", " : "", ...kind(one)]), ")"];
  if (schema.type === "array") return ["list of ", ...kind(schema.items)];
  if (schema.type === "object" && schema.additionalProperties) return ["object of ", ...kind(schema.additionalProperties)];
  if (schema.format === "binary") return ["file"];
  return [schema.type ?? "any"];
}

function table(head, rows) {
  return el("div", { class: "scrolls" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells)))));
}

const named = (name, required) => el("th", { scope: "row" }, el("code", {}, name), required ? el("span", { class: "meta" }, " required") : null);

function parameters(operation) {
  if (!operation.parameters?.length) return [];
  const rows = operation.parameters.map((one) => [
    named(one.name, one.required),
    el("td", { class: "kind" }, kind(one.schema)),
    el("td", {}, one.description ?? "", one.schema?.default !== undefined ? el("span", { class: "meta" }, ` default ${JSON.stringify(one.schema.default)}`) : null),
  ]);
  return [el("h3", {}, "Query"), table(["Name", "Kind", "Meaning"], rows)];
}

function body(operation) {
  const content = Object.entries(operation.requestBody?.content ?? {});
  if (!content.length) return [];
  const rows = content.map(([media, { schema }]) => {
    const fields = Object.entries(schema?.properties ?? {});
    return [el("th", { scope: "row" }, el("code", {}, media)), el("td", {}, fields.length ? fields.flatMap(([name, one]) => [el("code", {}, name), ": ", ...kind(one)]) : schema ? kind(schema) : "JSON")];
  });
  return [el("h3", {}, "Body"), table(["Content type", "Content"], rows)];
}

function answers(operation) {
  const rows = Object.entries(operation.responses).map(([status, one]) => {
    const schema = Object.values(one.content ?? {}).map((content) => content.schema).find(Boolean);
    return [el("th", { scope: "row" }, el("code", {}, status)), el("td", { class: "kind" }, schema ? kind(schema) : "-"), el("td", {}, one.description)];
  });
  return [el("h3", {}, "Answers"), table(["Status", "Content", "When"], rows)];
}

function example(method, path, operation, secured) {
  const parts = ["curl"];
  if (method !== "get") parts.push(`-X ${method.toUpperCase()}`);
  if (secured) parts.push('-H "Authorization: Bearer $ZSAD_TOKEN"');
  const form = operation.requestBody?.content["multipart/form-data"]?.schema.properties;
  if (form?.image) parts.push("-F image=@part.png");
  else if (form) parts.push("-F images=@one.png -F images=@two.png");
  else if (operation.requestBody) parts.push("-H 'Content-Type: application/json' --data-binary @calibration.json");
  return el("pre", { tabindex: "0", "aria-label": "Example" }, el("code", {}, [...parts.filter((part) => part !== "-X POST" || !form), `${location.origin}${path}`].join(" ")));
}

function endpoint(path, method, operation, secured) {
  const id = slug(`${method} ${path}`);
  return el("section", { class: "panel endpoint", id, "aria-labelledby": `h-${id}` },
    el("h2", { id: `h-${id}` }, el("span", { class: `verb ${method}` }, method.toUpperCase()), el("code", {}, path)),
    el("p", {}, operation.description ?? operation.summary), example(method, path, operation, secured),
    ...parameters(operation), ...body(operation), ...answers(operation));
}

function schemaPanel(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([field, one]) => [
    named(field, false), el("td", { class: "kind" }, kind(one)), el("td", {}, one.description ?? ""),
  ]);
  const id = slug(name);
  return el("section", { class: "panel endpoint", id, "aria-labelledby": `h-${id}` }, el("h2", { id: `h-${id}` }, el("code", {}, name)),
    el("p", {}, schema.description ?? ""), rows.length ? table(["Field", "Kind", "Meaning"], rows) : null);
}

async function draw() {
  const document_ = await (await fetch("/openapi.json")).json();
  byId("version").textContent = `Interface, version ${document_.info.version}`;
  const operations = Object.entries(document_.paths).flatMap(([path, verbs]) => Object.entries(verbs).map(([method, operation]) => ({ path, method, operation })));
  const schemas = Object.entries(document_.components?.schemas ?? {}).filter(([name]) => !/ValidationError$/.test(name));
  byId("contents").replaceChildren(el("h2", {}, "Endpoints"),
    ...operations.map(({ path, method }) => el("a", { href: `#${slug(`${method} ${path}`)}` }, el("span", { class: `verb ${method}` }, method.toUpperCase()), el("code", {}, path))),
    el("h2", {}, "Content"), ...schemas.map(([name]) => el("a", { href: `#${slug(name)}` }, name)));
  byId("endpoints").replaceChildren(
    ...operations.map(({ path, method, operation }) => endpoint(path, method, operation, Boolean(document_.security))),
    el("div", { class: "schemas" }, ...schemas.map(([name, schema]) => schemaPanel(name, schema))));
}

draw().catch((error) => { byId("endpoints").textContent = `The description cannot be read: ${error.message}`; });
