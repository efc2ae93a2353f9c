// The part of LaTeX that chats use, as MathML, which browsers draw themselves. What is not known stays as it was typed.
const NS = "http://www.w3.org/1998/Math/MathML";
const SIGNS = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ϵ", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ", iota: "ι", kappa: "κ",
  lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", phi: "ϕ", varphi: "φ", chi: "χ", psi: "ψ", omega: "ω",
  Gamma: "Γ", Delta: "Δ", Theta: "Θ", Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ", Phi: "Φ", Psi: "Ψ", Omega: "Ω", infty: "∞", partial: "∂",
  nabla: "∇", ell: "ℓ", hbar: "ℏ", emptyset: "∅", forall: "∀", exists: "∃", Re: "ℜ", Im: "ℑ",
};
const OPERATORS = {
  times: "×", cdot: "⋅", div: "÷", pm: "±", mp: "∓", leq: "≤", le: "≤", geq: "≥", ge: "≥", neq: "≠", ne: "≠", approx: "≈", equiv: "≡",
  sim: "∼", propto: "∝", in: "∈", notin: "∉", subset: "⊂", subseteq: "⊆", cup: "∪", cap: "∩", to: "→", rightarrow: "→", leftarrow: "←",
  Rightarrow: "⇒", implies: "⟹", iff: "⟺", Leftrightarrow: "⇔", mapsto: "↦", ldots: "…", cdots: "⋯", dots: "…", sum: "∑", prod: "∏", int: "∫",
  oint: "∮", mid: "∣", parallel: "∥", perp: "⟂", angle: "∠", circ: "∘", ast: "∗", star: "⋆", land: "∧", lor: "∨", neg: "¬", oplus: "⊕",
  otimes: "⊗", langle: "⟨", rangle: "⟩", lfloor: "⌊", rfloor: "⌋", lceil: "⌈", rceil: "⌉", "{": "{", "}": "}", "|": "∥", "%": "%", "$": "$", "#": "#", "&": "&", _: "_",
};
const NAMES = new Set("sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln exp lim max min sup inf det gcd dim ker arg mod Pr".split(" "));
const LARGE = new Set(["∑", "∏", "lim", "max", "min", "sup", "inf"]);
const ACCENTS = { hat: "^", bar: "¯", vec: "→", dot: "˙", ddot: "¨", tilde: "~", overline: "¯", widehat: "^" };
const VARIANTS = { mathbb: "double-struck", mathbf: "bold", mathrm: "normal", mathcal: "script", boldsymbol: "bold", mathit: "italic", mathsf: "sans-serif" };

const make = (name, ...children) => {
  const e = document.createElementNS(NS, name);
  e.append(...children);
  return e;
};

export function math(source, block) {
  const tokens = source.match(/\\[A-Za-z]+|\\.|[{}^_&]|\d+(?:\.\d+)?|\s+|./gsu) ?? [];
  const root = make("math", row(new Reader(tokens)));
  if (block) root.setAttribute("display", "block");
  root.setAttribute("title", source.trim());
  return root;
}

class Reader {
  constructor(tokens) { this.tokens = tokens; this.at = 0; this.depth = 0; }
  peek() { while (/^\s/.test(this.tokens[this.at] ?? "")) this.at += 1; return this.tokens[this.at]; }
  next() { const found = this.peek(); this.at += 1; return found; }
}

function row(reader, end = null) {
  const out = make("mrow");
  if (++reader.depth > 40) { reader.at = reader.tokens.length; return out; }
  while (reader.peek() !== undefined && reader.peek() !== end && !(end === "\\right" && reader.peek() === "\\right")) {
    if (reader.peek() === "}") { reader.next(); continue; }
    out.append(scripted(reader));
  }
  if (end !== null && reader.peek() === end) reader.next();
  reader.depth -= 1;
  return out;
}

function scripted(reader) {
  const base = atom(reader);
  let low = null, high = null;
  while (["^", "_"].includes(reader.peek())) {
    if (reader.next() === "^") high = argument(reader);
    else low = argument(reader);
  }
  while (reader.peek() === "'") { reader.next(); high = make("mo", "′"); }
  if (!low && !high) return base;
  const under = LARGE.has(base.textContent);
  if (low && high) return make(under ? "munderover" : "msubsup", base, low, high);
  return low ? make(under ? "munder" : "msub", base, low) : make(under ? "mover" : "msup", base, high);
}

function argument(reader) {
  if (reader.peek() === "{") { reader.next(); return row(reader, "}"); }
  return reader.peek() === undefined ? make("mrow") : atom(reader);
}

function words(reader) {
  let text = "", deep = 0;
  if (reader.peek() !== "{") return reader.next() ?? "";
  for (reader.at += 1; reader.at < reader.tokens.length; reader.at += 1) {
    const token = reader.tokens[reader.at];
    if (token === "}" && deep-- === 0) { reader.at += 1; break; }
    if (token === "{") deep += 1;
    text += token.replace(/^\\/, "");
  }
  return text;
}

function atom(reader) {
  const token = reader.next();
  if (token === "{") return row(reader, "}");
  if (/^\d/.test(token)) return make("mn", token);
  if (/^\p{L}/u.test(token)) return make("mi", token);
  if (!token.startsWith("\\")) return make(token === "&" ? "mspace" : "mo", token === "&" ? "" : token === "-" ? "−" : token);
  const name = token.slice(1);
  if (SIGNS[name]) return make("mi", SIGNS[name]);
  if (OPERATORS[name]) return make("mo", OPERATORS[name]);
  if (NAMES.has(name)) return make("mi", name);
  if (["frac", "dfrac", "tfrac"].includes(name)) return make("mfrac", argument(reader), argument(reader));
  if (name === "binom") { const f = make("mfrac", argument(reader), argument(reader)); f.setAttribute("linethickness", "0"); return make("mrow", make("mo", "("), f, make("mo", ")")); }
  if (name === "sqrt") {
    if (reader.peek() !== "[") return make("msqrt", argument(reader));
    reader.next();
    const degree = row(reader, "]");
    return make("mroot", argument(reader), degree);
  }
  if (["text", "textrm", "textbf", "operatorname", "mbox"].includes(name)) return make("mtext", words(reader));
  if (ACCENTS[name]) return make("mover", argument(reader), make("mo", ACCENTS[name]));
  if (name === "underline") return make("munder", argument(reader), make("mo", "_"));
  if (VARIANTS[name]) { const inside = argument(reader); for (const e of [inside, ...inside.querySelectorAll("mi")]) e.setAttribute("mathvariant", VARIANTS[name]); if (name === "mathbf" || name === "boldsymbol") inside.setAttribute("class", "bold"); return inside; }
  if (name === "left") {
    const open = reader.next() ?? "", inside = row(reader, "\\right"), close = reader.next() ?? "";
    return make("mrow", make("mo", fence(open)), inside, make("mo", fence(close)));
  }
  if (name === "begin") return matrix(reader, words(reader));
  if ([",", ";", ":", "!", " ", "quad", "qquad", "\\"].includes(name)) { const s = make("mspace"); s.setAttribute("width", name === "quad" ? "1em" : name === "qquad" ? "2em" : "0.2em"); return s; }
  if (["displaystyle", "limits", "nolimits", "big", "Big", "bigg", "bigl", "bigr", "Bigl", "Bigr", "right"].includes(name)) return make("mrow");
  return make("mtext", token);
}

const fence = (token) => (token === "." ? "" : token.startsWith("\\") ? OPERATORS[token.slice(1)] ?? "" : token);

function matrix(reader, kind) {
  const table = make("mtable");
  let line = make("mtr"), cell = make("mtd");
  const close = () => { line.append(cell); cell = make("mtd"); };
  while (reader.peek() !== undefined && reader.peek() !== "\\end") {
    if (reader.peek() === "&") { reader.next(); close(); }
    else if (reader.peek() === "\\\\") { reader.next(); close(); table.append(line); line = make("mtr"); }
    else cell.append(scripted(reader));
  }
  reader.next();
  words(reader);
  close();
  if (line.textContent) table.append(line);
  const [open, shut] = { pmatrix: "()", bmatrix: "[]", vmatrix: "||", Bmatrix: "{}" }[kind]?.split("") ?? (kind === "cases" ? ["{", ""] : ["", ""]);
  return make("mrow", make("mo", open), table, make("mo", shut));
}
