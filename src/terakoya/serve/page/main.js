// The page: what is shown, and what happens when somebody types, clicks or waits.
import * as api from "./api.js";
import { $, copy, download, el } from "./dom.js";
import { draw, icon } from "./icons.js";
import { markdown } from "./markdown.js";
import { asked, build as buildSettings, settings } from "./setup.js";
import * as store from "./store.js";
import { chatTokens, noteTokens, view } from "./tokens.js";
import { language, nextLanguage, t, translate } from "./words.js";

const state = { models: [], model: "", talk: null, running: null, tokens: new Map(), used: 0, undo: [] };
const input = $("input"), talkView = $("talk"), note = $("note-text");

// ---- what is shown

function render() {
  const talk = state.talk, isNote = talk.mode === "note";
  talkView.hidden = isNote;
  $("note").hidden = !isNote;
  input.hidden = isNote;
  $("undo").hidden = !isNote || !state.undo.length;
  $("send-text").textContent = t(isNote ? "go" : "send");
  if (isNote) {
    note.value = talk.text;
    note.placeholder = t("noteHint");
  } else {
    const nodes = store.path(talk);
    talkView.replaceChildren(...(nodes.length ? nodes.map(message) : [hello()]));
    scrollDown(true);
  }
  showNoteTokens();
  list();
  meter();
}

function hello() {
  const tries = ["try1", "try2", "try3"].map((key) => el("button", { class: "try", type: "button", on: { click: () => { input.value = t(key); grow(); submit(); } } }, t(key)));
  const base = chosen()?.chat === false ? el("p", { class: "warn" }, t("base")) : null;
  return el("div", { class: "hello" }, el("img", { src: "/page/icon.svg", alt: "", width: 56, height: 56 }), el("h1", {}, t("hello")), el("p", { class: "dim" }, t("helloMore")), base, el("div", { class: "tries" }, tries));
}

function message(node) {
  const mine = node.role === "user";
  const body = el("div", { class: "body" });
  const box = el("article", { class: node.role, "data-id": node.id, "aria-label": mine ? t("you") : node.model || "assistant" }, mine ? null : el("div", { class: "who" }, node.model || "assistant"), body, tools(node));
  fill(body, node);
  return box;
}

function fill(body, node) {
  const tokens = state.tokens.get(node.id);
  if (node.role === "user") body.replaceChildren(el("p", { class: "plain" }, node.text));
  else if (settings.probabilities && tokens?.length) body.replaceChildren(view(tokens));
  else body.replaceChildren(...(node.thought ? [folded(node)] : []), markdown(node.text));
}

// Reasoning is open while it comes, and folded once the answer begins.
function folded(node) {
  return el("details", { open: !node.text }, el("summary", {}, t("thinking")), markdown(node.thought));
}

function tools(node) {
  const button = (key, sign, act) => el("button", { class: "icon", type: "button", title: t(key), "aria-label": t(key), on: { click: act } }, icon(sign));
  const versions = store.siblings(state.talk, node), at = versions.indexOf(node);
  const step = (by) => { if (!state.running) { store.show(state.talk, versions[at + by]); keep(); render(); } };
  const row = el("div", { class: "tools" });
  if (versions.length > 1) {
    const back = button("earlier", "back", () => step(-1)), on = button("later", "on", () => step(1));
    back.disabled = at === 0;
    on.disabled = at === versions.length - 1;
    row.append(back, el("span", { class: "dim" }, `${at + 1}/${versions.length}`), on);
  }
  row.append(button("copy", "copy", (e) => { copy(node.text); flash(e.currentTarget, "done"); }));
  if (node.role === "user") row.append(button("edit", "edit", () => edit(node)));
  else row.append(button("again", "again", () => { if (!state.running) answer(node.parent); }));
  if (node.stats) row.append(el("span", { class: "dim stats" }, stats(node.stats)));
  return row;
}

function stats(s) {
  const parts = [`${s.tokens} ${t("tokens")}`];
  if (s.rate) parts.push(`${s.rate.toFixed(1)} ${t("speed")}`);
  if (s.first != null) parts.push(language() === "ja" ? `${t("first")} ${(s.first / 1000).toFixed(2)} 秒` : `${t("first")} ${(s.first / 1000).toFixed(2)} s`);
  if (s.end === "length") parts.push(t("cut"));
  if (s.end === "stopped") parts.push(t("stopped"));
  return parts.join(" · ");
}

function flash(button, sign) {
  const was = [...button.childNodes];
  button.replaceChildren(icon(sign));
  setTimeout(() => button.replaceChildren(...was), 1200);
}

function edit(node) {
  if (state.running) return;
  const box = talkView.querySelector(`[data-id="${node.id}"] .body`);
  const area = el("textarea", { rows: Math.min(12, node.text.split("\n").length + 1), "aria-label": t("edit") });
  area.value = node.text;
  const done = () => {
    if (!area.value.trim()) return;
    const made = store.add(state.talk, node.parent, "user", area.value);
    render();
    answer(made.id);
  };
  area.addEventListener("keydown", (e) => { if (entered(e)) { e.preventDefault(); done(); } else if (e.key === "Escape") { e.stopPropagation(); render(); } });
  box.replaceChildren(area, el("div", { class: "row" }, el("button", { type: "button", class: "quiet", on: { click: render } }, t("cancel")), el("button", { type: "button", class: "send", on: { click: done } }, t("save"))));
  area.focus();
}

function list() {
  const items = store.all().sort((a, b) => b.updated - a.updated).map((x) => {
    const open = el("button", { class: "open", type: "button", "aria-current": x.id === state.talk.id ? "true" : null, on: { click: () => choose(x.id) } }, x.mode === "note" ? icon("note") : null, x.title || t(x.mode === "note" ? "newNote" : "newChat"));
    const gone = el("button", { class: "icon", type: "button", title: t("remove"), "aria-label": t("remove"), on: { click: () => discard(x.id) } }, icon("bin"));
    return el("div", { class: "item" }, open, gone);
  });
  $("list").replaceChildren(...items);
}

function meter() {
  const most = chosen()?.max_model_len, box = $("meter");
  box.hidden = !most;
  if (!most) return;
  const share = Math.min(1, state.used / most);
  box.querySelector("i").style.width = `${share * 100}%`;
  box.classList.toggle("high", share > 0.85);
  box.querySelector("span").textContent = `${state.used.toLocaleString()} / ${most.toLocaleString()}`;
  box.setAttribute("aria-valuemax", most);
  box.setAttribute("aria-valuenow", state.used);
  box.title = `${t("context")}: ${state.used} / ${most} ${t("tokens")}`;
}

function scrollDown(force = false) {
  const near = talkView.scrollHeight - talkView.scrollTop - talkView.clientHeight < 120;
  if (near || force) talkView.scrollTop = talkView.scrollHeight;
}

function fail(error) {
  const box = $("error");
  if (error.name === "AbortError") return;
  box.textContent = error instanceof TypeError ? t("network") : error.message;
  box.hidden = false;
  if (error.status === 401) { openSetup(true); $("set-key").focus(); }
}

function keep() {
  sessionStorage.setItem("talk", state.talk.id);
  if (!store.save(state.talk)) fail(new Error(t("full")));
}

// ---- asking

const chosen = () => state.models.find((m) => m.id === state.model);

function messages(leaf) {
  const said = store.path(state.talk, leaf).map((n) => ({ role: n.role, content: n.text }));
  return settings.system.trim() ? [{ role: "system", content: settings.system }, ...said] : said;
}

function submit() {
  if (state.running) return;
  if (state.talk.mode === "note") return more();
  const text = input.value.trim();
  if (!text) return;
  input.value = "";
  grow();
  const node = store.add(state.talk, state.talk.leaf, "user", text);
  state.talk.system = settings.system;
  keep();
  render();
  answer(node.id);
}

function busy(controller) {
  state.running = controller;
  $("stop").hidden = !controller;
  $("send").hidden = !!controller;
  talkView.setAttribute("aria-busy", String(!!controller));
  if (controller) $("error").hidden = true;
}

// Ask, and feed every piece to `take`; returns what it took.
async function run(path, body, take) {
  const controller = new AbortController(), began = performance.now();
  const s = { tokens: 0, rate: null, first: null, end: "stop" };
  busy(controller);
  try {
    for await (const chunk of api.stream(path, { model: state.model, ...asked(), ...body }, controller.signal)) {
      const choice = chunk.choices[0];
      if (choice?.finish_reason) s.end = choice.finish_reason;
      if (choice) {
        const text = choice.delta?.content ?? choice.text ?? "";
        const said = text || choice.delta?.reasoning_content;
        if (said && s.first === null) s.first = performance.now() - began;
        if (said) s.tokens += 1;
        take(text, choice);
      }
      if (chunk.usage) {
        Object.assign(s, { tokens: chunk.usage.completion_tokens, rate: chunk.timings?.tokens_per_second });
        state.used = chunk.usage.total_tokens;
      }
    }
  } catch (error) {
    s.end = "stopped";
    fail(error);
  } finally {
    busy(null);
  }
  return s;
}

async function answer(parent) {
  const talk = state.talk, asking = messages(parent);
  const node = store.add(talk, parent, "assistant", "");
  node.model = state.model;
  render();
  const box = talkView.querySelector(`[data-id="${node.id}"]`), body = box.querySelector(".body");
  box.classList.add("running");
  const tokens = [];
  let waiting = false;
  const paint = () => { waiting = false; if (state.talk === talk) { fill(body, node); scrollDown(); } };
  const extra = settings.probabilities ? { logprobs: true, top_logprobs: 5 } : {};
  node.stats = await run("/v1/chat/completions", { messages: asking, ...extra }, (text, choice) => {
    node.text += text;
    node.thought = (node.thought ?? "") + (choice.delta.reasoning_content ?? "");
    tokens.push(...chatTokens(choice));
    if (tokens.length) state.tokens.set(node.id, tokens);
    if (!waiting) { waiting = true; setTimeout(() => requestAnimationFrame(paint), Math.min(250, node.text.length / 20)); }
  });
  if (!node.text && !node.thought && node.stats.end === "stopped") {
    delete talk.nodes[node.id];
    talk.leaf = parent;
  }
  if (!store.save(talk)) fail(new Error(t("full")));
  if (state.talk === talk) { render(); $("said").textContent = t("answered"); }
  refresh();
}

async function more() {
  const talk = state.talk;
  state.undo.push(note.value);
  talk.text = note.value;
  const tokens = [];
  const extra = settings.probabilities ? { logprobs: 5 } : {};
  note.readOnly = true;
  const s = await run("/v1/completions", { prompt: talk.text, ...extra }, (text, choice) => {
    talk.text += text;
    tokens.push(...noteTokens(choice));
    if (state.talk === talk) { note.value = talk.text; note.scrollTop = note.scrollHeight; }
  });
  note.readOnly = false;
  state.tokens.set(talk.id, tokens);
  keep();
  render();
  note.scrollTop = note.scrollHeight;
  $("draft").textContent = stats(s);
  $("said").textContent = t("answered");
}

function showNoteTokens() {
  const tokens = state.talk.mode === "note" && settings.probabilities ? state.tokens.get(state.talk.id) : null;
  $("note-tokens").hidden = !tokens?.length;
  if (tokens?.length) $("note-tokens").replaceChildren(view(tokens));
}

let counting = 0;
function count() {
  clearTimeout(counting);
  counting = setTimeout(async () => {
    const isNote = state.talk.mode === "note", text = isNote ? note.value : input.value;
    if (!text || state.running || !chosen()?.loaded) return void (isNote || ($("draft").textContent = ""));
    try {
      const found = await api.post("/tokenize", { model: state.model, prompt: text, add_special_tokens: false });
      $("draft").textContent = `${found.count} ${t("tokens")}`;
      if (isNote) { state.used = found.count; meter(); }
    } catch { $("draft").textContent = ""; }
  }, 400);
}

// ---- moving about

function start(mode) {
  if (state.running) state.running.abort();
  Object.assign(state, { talk: store.begin(mode, settings), used: 0, undo: [] });
  sessionStorage.removeItem("talk");
  openSide(false);
  render();
  (mode === "note" ? note : input).focus();
}

function choose(key) {
  if (state.running) state.running.abort();
  const talk = store.load(key);
  if (!talk) return;
  const last = store.path(talk).findLast((n) => n.stats);
  Object.assign(state, { talk, used: 0, undo: [] });
  if (talk.system && talk.system !== settings.system) { settings.system = talk.system; buildSettings(); }
  sessionStorage.setItem("talk", key);
  openSide(false);
  render();
  if (last || talk.mode === "note") measure();
}

async function measure() {
  const talk = state.talk, isNote = talk.mode === "note";
  if (!chosen()?.loaded || (!isNote && chosen().chat === false)) return;
  const body = isNote ? { prompt: talk.text } : { messages: messages(talk.leaf) };
  const found = await api.post("/tokenize", { model: state.model, ...body }).catch(() => null);
  if (found && state.talk === talk) { state.used = found.count; meter(); }
}

function discard(key) {
  if (!confirm(t("surely"))) return;
  store.remove(key);
  if (state.talk.id === key) start("chat");
  else list();
}

function openSide(open) {
  document.body.classList.toggle("side", open);
  $("veil").hidden = !(open || !$("setup").hidden);
  if (open) $("side-close").focus();
}

function openSetup(open) {
  $("setup").hidden = !open;
  $("setup-open").setAttribute("aria-expanded", String(open));
  $("veil").hidden = !(open || document.body.classList.contains("side"));
  document.body.classList.toggle("setup", open);
  if (open) $("setup-close").focus();
  else $("setup-open").focus();
}

const themes = ["", "light", "dark"];
function theme(next) {
  if (next !== undefined) localStorage.setItem("theme", next);
  document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "";
}

async function refresh() {
  try {
    state.models = (await api.models()).filter((m) => m.writes !== false); // encoders give vectors, and say nothing
  } catch (error) { return fail(error); }
  state.model = state.models.some((m) => m.id === state.model) ? state.model : localStorage.getItem("model") ?? "";
  if (!state.models.some((m) => m.id === state.model)) state.model = state.models[0]?.id ?? "";
  $("model").replaceChildren(...state.models.map((m) => el("option", { value: m.id }, m.id)));
  $("model").value = state.model;
  meter();
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, innerHeight * 0.4)}px`;
}

// Enter that sends: not the one that ends the choice of characters in an input method, whatever the browser calls it.
const entered = (e) => e.key === "Enter" && !e.shiftKey && !e.isComposing && e.keyCode !== 229;

function wire() {
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("form", "submit", (e) => { e.preventDefault(); submit(); });
  input.addEventListener("keydown", (e) => { if (entered(e)) { e.preventDefault(); submit(); } });
  input.addEventListener("input", () => { grow(); count(); });
  note.addEventListener("input", () => { state.talk.text = note.value; keep(); list(); count(); });
  note.addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); submit(); } });
  on("stop", "click", () => state.running?.abort());
  on("undo", "click", () => { state.talk.text = state.undo.pop(); state.tokens.delete(state.talk.id); keep(); render(); count(); });
  on("new-chat", "click", () => start("chat"));
  on("new-note", "click", () => start("note"));
  on("model", "change", () => { state.model = $("model").value; localStorage.setItem("model", state.model); render(); });
  on("language", "click", () => { nextLanguage(); retell(); });
  on("theme", "click", () => theme(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % 3]));
  on("side-open", "click", () => openSide(true));
  on("side-close", "click", () => openSide(false));
  on("setup-open", "click", () => openSetup($("setup").hidden));
  on("setup-close", "click", () => openSetup(false));
  on("veil", "click", () => { openSide(false); if (!$("setup").hidden) openSetup(false); });
  on("export-md", "click", () => download(`${store.title(state.talk) || "terakoya"}.md`, "text/markdown", store.toMarkdown(state.talk)));
  on("export-json", "click", () => download(`${store.title(state.talk) || "terakoya"}.json`, "application/json", JSON.stringify(state.talk, null, 2)));
  on("import", "click", () => $("file").click());
  on("file", "change", takeFile);
  document.addEventListener("settings", (e) => { if (e.detail === "key") refresh(); if (e.detail === "probabilities" && !state.running) render(); });
  document.addEventListener("keydown", (e) => {
    if (e.key !== "Escape" || e.isComposing) return;
    if (state.running) state.running.abort();
    else if (!$("setup").hidden) openSetup(false);
    else openSide(false);
  });
}

async function takeFile() {
  const [file] = $("file").files;
  $("file").value = "";
  try {
    state.talk = store.fromFile(await file.text());
    keep();
    choose(state.talk.id);
  } catch { fail(new Error(t("badFile"))); }
}

function retell() {
  translate();
  $("language").textContent = language() === "en" ? "日本語" : "English";
  $("language").lang = language() === "en" ? "ja" : "en";
  input.placeholder = t("ask");
  buildSettings();
  if (state.talk && !state.running) render();
}

theme();
draw();
state.talk = store.begin("chat", settings);
wire();
retell();
await refresh();
const last = store.all().find((x) => x.id === sessionStorage.getItem("talk")) ?? null;
if (last) choose(last.id);
else render();
if (matchMedia("(min-width: 700px)").matches) input.focus();
