// Conversations: trees of messages, kept in the browser. A leaf and its ancestors are what is shown.
import { t } from "./words.js";

const KEY = "terakoya.", INDEX = "terakoya";
const id = () => Math.random().toString(36).slice(2, 10) + Date.now().toString(36);

export function begin(mode, settings) {
  return { terakoya: 1, id: id(), mode, title: "", text: "", system: settings.system ?? "", updated: Date.now(), nodes: {}, leaf: null };
}

export function all() {
  return JSON.parse(localStorage.getItem(INDEX) ?? "[]");
}

export function load(key) {
  const found = localStorage.getItem(KEY + key);
  return found && JSON.parse(found);
}

// True where it was kept; false where the browser has no room.
export function save(talk) {
  talk.updated = Date.now();
  try {
    localStorage.setItem(KEY + talk.id, JSON.stringify(talk));
    const others = all().filter((x) => x.id !== talk.id);
    localStorage.setItem(INDEX, JSON.stringify([{ id: talk.id, title: title(talk), mode: talk.mode, updated: talk.updated }, ...others]));
    return true;
  } catch { return false; }
}

export function remove(key) {
  localStorage.removeItem(KEY + key);
  localStorage.setItem(INDEX, JSON.stringify(all().filter((x) => x.id !== key)));
}

export function title(talk) {
  const first = talk.mode === "note" ? talk.text : path(talk).find((n) => n.role === "user")?.text;
  return (first ?? "").trim().replace(/\s+/g, " ").slice(0, 60);
}

// ---- the tree

export function add(talk, parent, role, text) {
  const node = { id: id(), parent, role, text };
  talk.nodes[node.id] = node;
  talk.leaf = node.id;
  return node;
}

export function path(talk, leaf = talk.leaf) {
  const found = [];
  for (let node = talk.nodes[leaf]; node; node = talk.nodes[node.parent]) found.unshift(node);
  return found;
}

export const siblings = (talk, node) => Object.values(talk.nodes).filter((n) => n.parent === node.parent && n.role === node.role);

// Show another version: its newest descendant becomes the leaf.
export function show(talk, node) {
  let at = node;
  for (;;) {
    const next = Object.values(talk.nodes).filter((n) => n.parent === at.id).at(-1);
    if (!next) break;
    at = next;
  }
  talk.leaf = at.id;
}

// ---- files

export function toMarkdown(talk) {
  if (talk.mode === "note") return talk.text;
  const parts = talk.system ? [`> ${talk.system.replaceAll("\n", "\n> ")}`] : [];
  for (const n of path(talk)) parts.push(`## ${n.role === "user" ? t("you") : n.model || "assistant"}`, n.text);
  return parts.join("\n\n") + "\n";
}

// Read an exported file; anything that does not have the right shape is refused.
export function fromFile(text) {
  const given = JSON.parse(text);
  const nodes = {};
  if (given?.terakoya !== 1 || !["chat", "note"].includes(given.mode)) throw new Error("shape");
  for (const [key, n] of Object.entries(given.nodes ?? {})) {
    if (!["user", "assistant"].includes(n.role) || typeof n.text !== "string" || n.id !== key) throw new Error("shape");
    if (n.parent !== null && !Object.hasOwn(given.nodes, n.parent)) throw new Error("shape");
    nodes[key] = { id: key, parent: n.parent, role: n.role, text: n.text, model: String(n.model ?? "") };
  }
  for (const start of Object.keys(nodes)) {
    const seen = new Set();
    for (let at = start; at !== null; at = nodes[at].parent) if (seen.has(at) || !seen.add(at)) throw new Error("shape");
  }
  const leaf = Object.hasOwn(nodes, given.leaf) ? given.leaf : null;
  return { ...begin(given.mode, {}), text: String(given.text ?? ""), system: String(given.system ?? ""), nodes, leaf };
}
