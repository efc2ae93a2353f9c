// The routes and their fields, from the schema that the server checks requests with.
import { $, el } from "./dom.js";

const response = await fetch("/openapi.json", { headers: sessionStorage.getItem("key") ? { authorization: `Bearer ${sessionStorage.getItem("key")}` } : {} });
const schema = await response.json();
const named = (ref) => schema.components.schemas[ref.split("/").pop()];

function kind(s) {
  if (s.$ref) return s.$ref.split("/").pop();
  if (s.anyOf) return s.anyOf.filter((x) => x.type !== "null").map(kind).join(" | ");
  const bounds = Object.entries({ minimum: "≥ ", exclusiveMinimum: "> ", maximum: "≤ ", exclusiveMaximum: "< ", maxLength: "length ≤ ", maxItems: "items ≤ " })
    .filter(([key]) => key in s).map(([key, sign]) => sign + s[key]);
  const base = s.enum ? s.enum.map((x) => JSON.stringify(x)).join(" | ") : "const" in s ? JSON.stringify(s.const) : s.type === "array" ? `${kind(s.items ?? {})}[]` : s.type ?? "any";
  return bounds.length ? `${base} (${bounds.join(", ")})` : base;
}

function fields(s) {
  return el("table", {}, Object.entries(s.properties ?? {}).map(([name, p]) =>
    el("tr", {}, el("td", {}, name + (s.required?.includes(name) ? " *" : "")), el("td", {}, kind(p)), el("td", {}, p.description ?? ""))));
}

const groups = {};
for (const [path, methods] of Object.entries(schema.paths ?? {})) {
  for (const [method, route] of Object.entries(methods)) {
    const body = route.requestBody?.content?.["application/json"]?.schema;
    const inside = body ? [fields(body.$ref ? named(body.$ref) : body)] : [];
    const made = el("details", {}, el("summary", {}, el("b", {}, method.toUpperCase()), ` ${path} `, el("small", {}, route.description ?? "")), inside);
    (groups[route.tags?.[0] ?? ""] ??= []).push(made);
  }
}
$("routes").replaceChildren(...Object.entries(groups).flatMap(([name, made]) => [el("h2", {}, name), ...made]));
