// The settings: what each is, and what it does.
import { $, el } from "./dom.js";
import { t } from "./words.js";

const NUMBERS = [
  ["temperature", 0, 2, 0.05, 0.7], ["top_p", 0.05, 1, 0.01, 0.95], ["top_k", 0, 200, 1, 0], ["min_p", 0, 1, 0.01, 0],
  ["max_tokens", 1, 8192, 1, 1024], ["repetition_penalty", 0.5, 2, 0.01, 1], ["presence_penalty", -2, 2, 0.05, 0],
  ["frequency_penalty", -2, 2, 0.05, 0],
];
const NEUTRAL = { top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 };
const DEFAULTS = { system: "", seed: "", stops: "", probabilities: false, ...Object.fromEntries(NUMBERS.map(([n, , , , d]) => [n, d])) };

export const settings = { ...DEFAULTS, ...JSON.parse(localStorage.getItem("settings") ?? "{}") };

function keep(name, value) {
  settings[name] = value;
  localStorage.setItem("settings", JSON.stringify(settings));
  document.dispatchEvent(new CustomEvent("settings", { detail: name }));
}

// The fields of a request; what is at its default is not said.
export function asked() {
  const found = {};
  for (const [name] of NUMBERS) if (settings[name] !== NEUTRAL[name]) found[name] = settings[name];
  if (/^\d{1,15}$/.test(settings.seed)) found.seed = Number(settings.seed);
  const stops = settings.stops.split("\n").filter(Boolean);
  if (stops.length) found.stop = stops;
  return found;
}

export function build() {
  const fields = $("fields");
  fields.replaceChildren(
    area("system", 4),
    toggle("probabilities"),
    ...NUMBERS.map(([name, low, high, step]) => number(name, low, high, step)),
    text("seed", { inputmode: "numeric", pattern: "\\d*" }),
    area("stops", 2),
    key(),
    el("button", { class: "wide quiet", type: "button", on: { click: reset } }, t("defaults")),
  );
}

function reset() {
  for (const [name, value] of Object.entries(DEFAULTS)) keep(name, value);
  build();
}

const about = (name) => el("small", { id: `about-${name}` }, t(`${name}About`));

function number(name, low, high, step) {
  const box = el("input", { type: "number", id: `set-${name}`, min: low, max: high, step: "any", "aria-describedby": `about-${name}` });
  const slide = el("input", { type: "range", min: low, max: high, step, "aria-label": t(name), tabindex: "-1" });
  box.value = slide.value = settings[name];
  slide.addEventListener("input", () => { box.value = slide.value; keep(name, Number(slide.value)); });
  box.addEventListener("change", () => {
    const value = Math.min(high, Math.max(low, Number(box.value) || 0));
    box.value = slide.value = step === 1 ? Math.round(value) : value;
    keep(name, Number(box.value));
  });
  return el("div", { class: "field" }, el("label", { for: `set-${name}` }, t(name)), box, slide, about(name));
}

function area(name, rows) {
  const box = el("textarea", { id: `set-${name}`, rows, "aria-describedby": `about-${name}` });
  box.value = settings[name];
  box.addEventListener("input", () => keep(name, box.value));
  return el("div", { class: "field tall" }, el("label", { for: `set-${name}` }, t(name)), about(name), box);
}

function text(name, more) {
  const box = el("input", { type: "text", id: `set-${name}`, "aria-describedby": `about-${name}`, autocomplete: "off", ...more });
  box.value = settings[name];
  box.addEventListener("input", () => keep(name, box.value.trim()));
  return el("div", { class: "field" }, el("label", { for: `set-${name}` }, t(name)), box, about(name));
}

function toggle(name) {
  const box = el("input", { type: "checkbox", id: `set-${name}`, role: "switch", "aria-describedby": `about-${name}`, checked: settings[name] });
  box.addEventListener("change", () => keep(name, box.checked));
  return el("div", { class: "field" }, el("label", { for: `set-${name}` }, t(name)), box, about(name));
}

function key() {
  const box = el("input", { type: "password", id: "set-key", "aria-describedby": "about-key", autocomplete: "off" });
  box.value = sessionStorage.getItem("key") ?? "";
  box.addEventListener("change", () => { sessionStorage.setItem("key", box.value.trim()); keep("key", undefined); });
  return el("div", { class: "field" }, el("label", { for: "set-key" }, t("key")), box, about("key"));
}
