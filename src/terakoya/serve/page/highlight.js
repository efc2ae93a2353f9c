// Colours for code, by a handful of rules that fit most languages.
import { el } from "./dom.js";

const WORDS = new Set(("and as assert async await bool break case catch char class const continue def default del do elif else enum " +
  "except export extends extern false False finally float fn for from func function go if impl import in include int interface is " +
  "lambda let long match mod mut new nil None nonlocal not null or package pass private protected pub public raise return self " +
  "SELECT FROM WHERE INSERT UPDATE DELETE CREATE TABLE JOIN ON GROUP BY ORDER static str struct super switch template then this throw " +
  "trait true True try type typedef undefined unsigned use using var void where while with yield").split(" "));
const HASH = new Set(["python", "py", "bash", "sh", "shell", "zsh", "ruby", "rb", "yaml", "yml", "toml", "r", "perl", "make", "dockerfile", ""]);

export function highlight(text, name = "") {
  const lang = name.toLowerCase();
  const comment = HASH.has(lang) ? "#[^\\n]*" : lang === "sql" || lang === "lua" || lang === "haskell" ? "--[^\\n]*" : "//[^\\n]*|/\\*[\\s\\S]*?\\*/";
  const rule = new RegExp(
    `(?<comment>${comment})|(?<string>"""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)|"(?:\\\\.|[^"\\\\\\n])*"|'(?:\\\\.|[^'\\\\\\n])*'|\`(?:\\\\.|[^\`\\\\])*\`)` +
      "|(?<number>\\b\\d[\\w.]*)|(?<word>[A-Za-z_]\\w*)(?<call>(?=\\s*\\())?", "g");
  const out = document.createDocumentFragment();
  let last = 0;
  for (const m of text.matchAll(rule)) {
    const g = m.groups;
    const kind = g.comment ? "comment" : g.string ? "string" : g.number ? "number" : WORDS.has(g.word) ? "word" : g.call !== undefined ? "call" : "";
    if (!kind) continue;
    out.append(text.slice(last, m.index), el("span", { class: `h-${kind}` }, m[0]));
    last = m.index + m[0].length;
  }
  out.append(text.slice(last));
  return out;
}
