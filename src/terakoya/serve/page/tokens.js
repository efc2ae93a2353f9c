// Tokens with their probabilities: colour says how sure the model was, hover or focus what else it thought of.
import { $, el } from "./dom.js";

const decode = (bytes) => new TextDecoder().decode(new Uint8Array(bytes));

// What a chunk tells of its tokens, in few words: [bytes, log-probability, alternatives].
export function chatTokens(chunk) {
  return (chunk.logprobs?.content ?? []).map((p) => [p.bytes, p.logprob, p.top_logprobs.map((q) => [q.token, q.logprob])]);
}

export function noteTokens(choice) {
  const l = choice.logprobs;
  return (l?.tokens ?? []).map((token, i) => [Array.from(new TextEncoder().encode(token)), l.token_logprobs[i], Object.entries(l.top_logprobs[i] ?? {})]);
}

export function view(tokens) {
  const out = el("div", { class: "tokens" });
  let i = 0;
  while (i < tokens.length) {
    let bytes = [...tokens[i][0]], end = i + 1; // a character may lie across tokens
    while (decode(bytes).endsWith("\ufffd") && end < tokens.length && end - i < 4) bytes = [...bytes, ...tokens[end++][0]];
    const sure = Math.exp(Math.min(...tokens.slice(i, end).map((x) => x[1])));
    const piece = el("span", { class: `p${Math.min(9, Math.floor(sure * 10))}`, tabindex: "0" }, decode(bytes));
    const about = tokens.slice(i, end);
    for (const event of ["mouseenter", "focus"]) piece.addEventListener(event, () => tip(piece, about));
    for (const event of ["mouseleave", "blur"]) piece.addEventListener(event, () => ($("tip").hidden = true));
    out.append(piece);
    i = end;
  }
  return out;
}

const shown = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";

function tip(piece, tokens) {
  const rows = tokens.flatMap(([bytes, logprob, others]) => {
    const own = decode(bytes);
    const list = others.some(([text]) => text === own) ? others : [[own, logprob], ...others];
    return list.map(([text, value]) => {
      const bar = el("i");
      bar.style.width = `${Math.exp(value) * 100}%`;
      return el("tr", { class: text === own ? "own" : null }, el("td", {}, shown(text)), el("td", {}, `${(Math.exp(value) * 100).toFixed(1)} %`), el("td", {}, bar));
    });
  });
  const box = $("tip");
  box.replaceChildren(el("table", {}, rows));
  box.hidden = false;
  const at = piece.getBoundingClientRect(), size = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
  box.style.top = `${at.bottom + size.height + 8 > innerHeight ? at.top - size.height - 6 : at.bottom + 6}px`;
}
