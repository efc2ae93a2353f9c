// Markdown to elements: what models write, no more. Unknown marks stay as they are.
import { copy, el } from "./dom.js";
import { highlight } from "./highlight.js";
import { math } from "./math.js";
import { t } from "./words.js";

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;

export function markdown(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const out = document.createDocumentFragment();
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    const fence = line.match(/^\s{0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/);
    if (!line.trim()) i += 1;
    else if (fence) {
      let end = i + 1;
      while (end < lines.length && !isFenceEnd(lines[end], fence[1])) end += 1;
      out.append(code(lines.slice(i + 1, end).join("\n"), fence[2]));
      i = end + 1;
    } else if (/^\s{0,3}(\$\$|\\\[)/.test(line)) {
      const close = line.trim().startsWith("$$") ? "$$" : "\\]";
      let end = i;
      const rest = line.trim().slice(2);
      if (!rest.includes(close)) do end += 1; while (end < lines.length && !lines[end].includes(close));
      const whole = [rest, ...lines.slice(i + 1, end + 1)].join("\n");
      out.append(math(whole.split(close)[0], true));
      i = end + 1;
    } else if (/^\s{0,3}#{1,6}\s/.test(line)) {
      const [, marks, words] = line.match(/^\s*(#{1,6})\s+(.*?)\s*#*\s*$/) ?? [null, "#", line];
      out.append(el(`h${Math.min(6, marks.length + 2)}`, {}, inline(words)));
      i += 1;
    } else if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) {
      out.append(el("hr"));
      i += 1;
    } else if (/^\s{0,3}>/.test(line) && depth < 8) {
      let end = i;
      while (end < lines.length && /^\s{0,3}>/.test(lines[end])) end += 1;
      out.append(el("blockquote", {}, blocks(lines.slice(i, end).map((x) => x.replace(/^\s{0,3}> ?/, "")), depth + 1)));
      i = end;
    } else if (ITEM.test(line) && depth < 8) {
      i = list(lines, i, out, depth);
    } else if (line.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) {
      i = table(lines, i, out);
    } else {
      let end = i + 1;
      while (end < lines.length && lines[end].trim() && !/^\s{0,3}(#{1,6}\s|>|```|~~~|\$\$)/.test(lines[end]) && !ITEM.test(lines[end])) end += 1;
      out.append(el("p", {}, inline(lines.slice(i, end).join("\n"))));
      i = end;
    }
  }
  return out;
}

const isFenceEnd = (line, mark) => line.trim().startsWith(mark) && /^[`~]+$/.test(line.trim());

function list(lines, i, out, depth) {
  const [, indent, mark] = lines[i].match(ITEM);
  const ordered = /\d/.test(mark);
  const made = el(ordered ? "ol" : "ul", ordered && parseInt(mark) !== 1 ? { start: parseInt(mark) } : {});
  while (i < lines.length) {
    const m = lines[i].match(ITEM);
    if (!m || m[1].length > indent.length + 1 || m[1].length < indent.length || /\d/.test(m[2]) !== ordered) break;
    const inner = [m[3]];
    const inside = m[1].length + m[2].length + 1;
    i += 1;
    while (i < lines.length) {
      const next = lines[i];
      const deep = next.match(/^\s*/)[0].length;
      if (!next.trim()) {
        const after = lines.slice(i + 1).find((x) => x.trim());
        if (after === undefined || after.match(/^\s*/)[0].length <= m[1].length) break;
      } else if (deep <= m[1].length && (ITEM.test(next) || !lines[i - 1].trim() || /^(#{1,6}\s|>|```)/.test(next))) break;
      inner.push(next.slice(Math.min(deep, inside)));
      i += 1;
    }
    const parts = blocks(inner, depth + 1);
    const only = parts.firstElementChild;
    if (only?.tagName === "P") only.replaceWith(...only.childNodes);
    made.append(el("li", {}, parts));
    while (i < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1] ?? "")) i += 1;
  }
  out.append(made);
  return i;
}

function table(lines, i, out) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((c) => c.trim().replace(/\\\|/g, "|"));
  const sides = cells(lines[i + 1]).map((c) => (/^:-+:$/.test(c) ? "center" : /-:$/.test(c) ? "right" : ""));
  const row = (line, kind) => el("tr", {}, cells(line).map((c, at) => el(kind, { class: sides[at] || null }, inline(c))));
  const body = el("tbody");
  const made = el("table", {}, el("thead", {}, row(lines[i], "th")), body);
  for (i += 2; i < lines.length && lines[i].includes("|") && lines[i].trim(); i += 1) body.append(row(lines[i], "td"));
  out.append(el("div", { class: "table" }, made));
  return i;
}

function code(text, name) {
  const button = el("button", { class: "quiet", type: "button" }, t("copy"));
  button.addEventListener("click", async () => {
    await copy(text);
    button.textContent = t("copied");
    setTimeout(() => (button.textContent = t("copy")), 1500);
  });
  const head = el("div", { class: "code-head" }, el("span", {}, name || ""), button);
  return el("div", { class: "code" }, head, el("pre", { tabindex: "0" }, el("code", {}, highlight(text, name))));
}

// In order: code, maths, pictures and links, bare addresses, strong, emphasis, struck out, escapes, line ends.
const INLINE = new RegExp(
  [
    /(?<tick>`+)(?<code>[^`]|[^`][\s\S]*?[^`])\k<tick>(?!`)/,
    /\$\$(?<block>[^$]+)\$\$|\\\((?<round>[\s\S]+?)\\\)|\\\[(?<square>[\s\S]+?)\\\]|(?<![\w$])\$(?<math>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?![\w$])/,
    /(?<bang>!?)\[(?<label>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?<to>[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+"[^"]*")?\)/,
    /(?<url>https?:\/\/[^\s<>"'）」』】、。]+[^\s<>"'.,;:!?)）」』】、。])/,
    /\*\*\*(?<both>(?=\S)[\s\S]*?\S)\*\*\*|\*\*(?<strong>(?=\S)[\s\S]*?\S)\*\*|__(?<strong2>(?=\S)[\s\S]*?\S)__(?!\w)/,
    /\*(?<em>(?=[^\s*])[\s\S]*?[^\s*])\*(?!\*)|(?<!\w)_(?<em2>(?=[^\s_])[\s\S]*?[^\s_])_(?!\w)/,
    /~~(?<struck>(?=\S)[\s\S]*?\S)~~/,
    /\\(?<plain>[\\`*_{}\[\]()#+\-.!|~$>])/,
    /(?<end> {2,}\n|\\\n)/,
  ].map((r) => r.source).join("|"), "g");

function inline(text, depth = 0) {
  const out = document.createDocumentFragment();
  if (depth > 8) return out.append(text), out;
  let last = 0;
  for (const m of text.matchAll(INLINE)) {
    const g = m.groups;
    out.append(text.slice(last, m.index));
    last = m.index + m[0].length;
    const strong = g.strong ?? g.strong2, em = g.em ?? g.em2, formula = g.block ?? g.round ?? g.square ?? g.math;
    if (g.code !== undefined) out.append(el("code", {}, g.code.replace(/^ (.*\S.*) $/s, "$1")));
    else if (formula !== undefined) out.append(math(formula, false));
    else if (g.label !== undefined) out.append(link(g.to, g.bang ? [`🖼 ${g.label || t("picture")}`] : inline(g.label, depth + 1), m[0]));
    else if (g.url) out.append(link(g.url, [g.url], g.url));
    else if (g.both) out.append(el("strong", {}, el("em", {}, inline(g.both, depth + 1))));
    else if (strong) out.append(el("strong", {}, inline(strong, depth + 1)));
    else if (em) out.append(el("em", {}, inline(em, depth + 1)));
    else if (g.struck) out.append(el("del", {}, inline(g.struck, depth + 1)));
    else if (g.plain) out.append(g.plain);
    else out.append(el("br"));
  }
  out.append(text.slice(last));
  return out;
}

// Only what leads to a page; a picture of elsewhere is a link that one may follow, never loaded unasked.
function link(to, inside, source) {
  let url;
  try { url = new URL(to); } catch { return document.createTextNode(source); }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return document.createTextNode(source);
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", title: url.href }, inside);
}
