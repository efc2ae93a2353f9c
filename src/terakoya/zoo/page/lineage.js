"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const nodes = new Map(data.nodes.map((n) => [n.name, n]));
  const at = (id) => document.getElementById(id);
  const root = document.documentElement;
  const hidden = new Set();
  const rows = new Map();
  let lang = data.lang;
  let chosen = null;
  let current = data.nodes[0].name;

  const word = (key) => data.words[lang][key];
  const make = (tag, className, ...children) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };

  // The tree: one row a node, its rails computed from who is the last child of whom.
  const isLast = (name) => {
    const trunk = nodes.get(nodes.get(name).trunk);
    return trunk.branches[trunk.branches.length - 1] === name;
  };
  const rails = (n) => {
    if (!n.trunk) return [];
    const line = [...n.path.slice(1), n.name];
    return line.map((name, i) => {
      const tip = i === line.length - 1;
      const kind = tip ? (isLast(name) ? "end" : "tee") : isLast(name) ? "" : "pass";
      return make("span", `rail ${kind}${tip && n.parent !== n.trunk ? " dotted" : ""}`);
    });
  };
  const plant = () => {
    for (const n of data.nodes) {
      const title = make("span", "title", n.title);
      const delta = make("span", "delta", n.changes.length ? `Δ ${n.changes.length}` : "");
      const mark = make("span", `mark ${n.kind}`, data.kinds[n.kind].mark);
      mark.setAttribute("aria-hidden", "true");
      const row = make("div", "row", make("span", "born", n.born), ...rails(n), mark, title, make("span", "said"), delta);
      row.setAttribute("role", "treeitem");
      row.setAttribute("aria-level", String(n.path.length + 1));
      row.setAttribute("aria-selected", "false");
      row.tabIndex = -1;
      row.addEventListener("click", () => go(n.name));
      row.dataset.name = n.name;
      rows.set(n.name, row);
      at("tree").append(row);
    }
  };

  // Search and marks: what matches stays, its forebears stay faint.
  const plain = (text) => text.normalize("NFKC").toLowerCase();
  const squeezed = (text) => plain(text).replace(/[\s\-_.]/g, "");
  const texts = new Map(data.nodes.map((n) => [n.name, [
    n.name, n.title, n.born, n.note.en, n.note.ja, n.licence, n.paper, n.recipe,
    ...(n.data ? [n.data.en, n.data.ja] : []), ...(n.method ? [n.method.en, n.method.ja] : []),
  ].join("\n")]));
  const sift = () => {
    const asked = plain(at("search").value.trim());
    const short = squeezed(asked);
    const found = new Set(data.nodes.filter((n) => !hidden.has(n.kind) && (!asked
      || plain(texts.get(n.name)).includes(asked)
      || (short && (squeezed(n.name).includes(short) || squeezed(n.title).includes(short))))).map((n) => n.name));
    const kept = new Set([...found].flatMap((name) => [...nodes.get(name).path, name]));
    for (const [name, row] of rows) {
      row.hidden = !kept.has(name);
      row.classList.toggle("faint", !found.has(name));
    }
    at("none").hidden = found.size > 0;
    focusable();
  };
  const shown = () => data.nodes.filter((n) => !rows.get(n.name).hidden).map((n) => n.name);
  const focusable = () => {
    const names = shown();
    if (!names.includes(current) && names.length) current = names[0];
    for (const [name, row] of rows) row.tabIndex = name === current ? 0 : -1;
  };

  // The panel.
  const link = (name) => {
    const n = nodes.get(name);
    if (!n) return make("span", "", name);
    const a = make("a", "", n.title);
    a.href = `#${encodeURIComponent(name)}`;
    return a;
  };
  const links = (names) => names.flatMap((name, i) => (i ? [", ", link(name)] : [link(name)]));
  const cited = (paper) => {
    const arxiv = /arXiv:(\d{4}\.\d{4,5})/.exec(paper);
    const address = arxiv ? `https://arxiv.org/abs/${arxiv[1]}` : /^https:\/\/\S+$/.test(paper) ? paper : null;
    if (!address) return paper;
    const a = make("a", "", paper);
    a.href = address;
    a.rel = "noopener noreferrer";
    return a;
  };
  const facts = (n) => {
    const list = make("dl");
    const tell = (key, ...children) => list.append(make("dt", "", word(key)), make("dd", "", ...children));
    if (n.parent) tell("parent", link(n.parent));
    if (n.takes.length) tell("takes", ...links(n.takes));
    if (n.branches.length) tell("children", ...links(n.branches));
    if (n.inspired.length) tell("inspired", ...links(n.inspired));
    if (n.data) tell("data", n.data[lang]);
    if (n.method) tell("method", n.method[lang]);
    if (n.recipe) tell("recipe", make("code", "", n.recipe));
    if (n.licence) tell("licence", n.licence);
    if (n.paper) tell("paper", cited(n.paper));
    if (n.proof) tell("proof", n.proof[lang]);
    return list;
  };
  const changed = (n) => {
    const head = make("tr", "", ...["what", "before", "after"].map((w) => make("th", "", word(w))));
    // A whole block as a value: one under the other, in a table of its own.
    const long = n.changes.filter(([, before, after]) => Math.max(before.length, after.length) > 36);
    const lines = (changes, kind) => changes.map(([what, before, after]) => make("tr", kind,
      make("td", "mono what", what), make("td", "mono was", before), make("td", "mono now", after)));
    const short = lines(n.changes.filter((c) => !long.includes(c)), "");
    const tables = [...(short.length ? [make("table", "", head, ...short)] : []),
      ...(long.length ? [make("table", "", ...lines(long, "long"))] : [])];
    return [make("h3", "", `${word("changed")} ${nodes.get(n.parent).title}`), make("div", "scroll", ...tables)];
  };
  const sizes = (n) => {
    const most = Math.max(...n.sizes.map(([, count]) => count));
    const lines = n.sizes.map(([size, count]) => {
      const bar = make("div");
      bar.style.width = `${(100 * count) / most}%`;
      return make("tr", "", make("td", "mono", size), make("td", "number", count.toLocaleString("en")), make("td", "gauge", bar));
    });
    return [make("h3", "", `${word("sizes")} · ${word("parameters")}`), make("table", "", ...lines)];
  };
  const command = (key, text) => [make("h3", "", word(key)), make("pre", "", text)];
  const chain = (n) => {
    const names = [...n.path, n.name];
    return make("div", "chain", ...names.map((name, i) =>
      make("span", "", i === names.length - 1 ? make("b", "", n.title) : link(name))));
  };
  const sort = (n) => make("div", "sort",
    make("span", n.kind, `${data.kinds[n.kind].mark} ${data.kinds[n.kind].meaning[lang]}`), make("span", "", n.born));
  const shut = () => {
    const button = make("button", "shut", "✕");
    button.type = "button";
    button.setAttribute("aria-label", word("close"));
    button.addEventListener("click", close);
    return button;
  };
  const overview = () => {
    const items = Object.entries(data.kinds).map(([kind, k]) => make("li", "", make("span", kind, k.mark),
      make("span", "", k.meaning[lang]), make("span", "count", String(data.nodes.filter((n) => n.kind === kind).length))));
    return [make("p", "note", word("pick")), make("h3", "", word("legend")), make("ul", "legend", ...items),
      make("p", "hint", word("delta")), make("p", "hint", word("keys"))];
  };
  const card = (n) => [
    shut(), sort(n), make("h2", "", n.title), ...(n.title === n.name ? [] : [make("code", "", n.name)]),
    make("p", "note", n.note[lang]), facts(n),
    ...(n.path.length ? [make("h3", "", word("path")), chain(n)] : []),
    ...(n.changes.length ? changed(n) : []), ...(n.sizes.length ? sizes(n) : []),
    ...(n.load ? command("load", n.load) : []), ...(n.train ? command("train", n.train) : []),
  ];
  const show = () => {
    const n = nodes.get(chosen);
    at("panel").replaceChildren(...(n ? card(n) : overview()));
    at("panel").scrollTop = 0;
    document.body.classList.toggle("open", Boolean(n));
    for (const [name, row] of rows) {
      row.setAttribute("aria-selected", String(name === chosen));
      row.classList.toggle("path", Boolean(n) && n.path.includes(name));
      row.classList.toggle("near", Boolean(n) && n.takes.includes(name));
    }
  };

  // Going about: the address after # is the node.
  const go = (name) => {
    if (location.hash === `#${encodeURIComponent(name)}`) return follow();
    location.hash = encodeURIComponent(name);
  };
  const close = () => {
    history.replaceState(null, "", location.pathname + location.search);
    chosen = null;
    show();
    rows.get(current).focus({ preventScroll: true });
  };
  const follow = () => {
    let name = "";
    try { name = decodeURIComponent(location.hash.slice(1)); } catch { name = ""; }
    chosen = nodes.has(name) ? name : null;
    if (chosen) {
      if (rows.get(chosen).hidden) { at("search").value = ""; hidden.clear(); speak(); }
      current = chosen;
      focusable();
    }
    show();
    if (chosen) reveal(rows.get(chosen));
  };
  // On a narrow screen the panel covers the lower part: bring the row above it.
  const reveal = (row) => {
    const sheet = getComputedStyle(at("panel")).position === "fixed";
    const covered = sheet && row.getBoundingClientRect().bottom > at("panel").getBoundingClientRect().top;
    row.scrollIntoView({ block: covered ? "start" : "nearest", behavior: "instant" });
  };
  const step = (name) => {
    if (!name || rows.get(name).hidden) return;
    current = name;
    focusable();
    rows.get(name).focus();
  };
  at("tree").addEventListener("keydown", (event) => {
    const names = shown();
    const i = names.indexOf(current);
    const moves = {
      ArrowDown: () => step(names[i + 1]), ArrowUp: () => step(names[i - 1]),
      ArrowLeft: () => step(nodes.get(current).trunk), ArrowRight: () => step(nodes.get(current).branches.find((b) => names.includes(b))),
      Home: () => step(names[0]), End: () => step(names[names.length - 1]),
      Enter: () => go(current), " ": () => go(current),
    };
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moves[event.key]();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== at("search")) {
      event.preventDefault();
      at("search").focus();
    }
    if (event.key === "Escape") {
      if (at("search").value) { at("search").value = ""; sift(); } else if (chosen) close();
    }
  });
  at("search").addEventListener("input", sift);
  at("search").addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const first = shown().find((name) => !rows.get(name).classList.contains("faint"));
    if (event.key === "Enter" && first) go(first);
    if (event.key === "ArrowDown" && first) { event.preventDefault(); step(first); }
  });

  // Words and light.
  const speak = () => {
    root.lang = lang;
    document.title = `${word("heading")} · Terakoya`;
    at("heading").textContent = word("heading");
    at("lead").textContent = word("lead");
    at("none").textContent = word("none");
    at("tree").setAttribute("aria-label", word("heading"));
    at("search").placeholder = `${word("search")} ( / )`;
    at("search").setAttribute("aria-label", word("search"));
    at("lang").textContent = lang === "ja" ? "English" : "日本語";
    at("lang").lang = lang === "ja" ? "en" : "ja";
    at("theme").setAttribute("aria-label", word("theme"));
    at("theme").title = word("theme");
    at("kinds").replaceChildren(...Object.entries(data.kinds).map(([kind, k]) => {
      const button = make("button", "", make("span", kind, k.mark), ` ${k.name[lang]}`);
      button.type = "button";
      button.title = k.meaning[lang];
      button.setAttribute("aria-pressed", String(!hidden.has(kind)));
      button.addEventListener("click", () => {
        if (!hidden.delete(kind)) hidden.add(kind);
        button.setAttribute("aria-pressed", String(!hidden.has(kind)));
        sift();
      });
      return button;
    }));
    for (const [name, row] of rows) row.querySelector(".said").textContent = nodes.get(name).note[lang];
    sift();
    show();
  };
  at("lang").addEventListener("click", () => { lang = lang === "ja" ? "en" : "ja"; speak(); });
  at("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  addEventListener("hashchange", follow);
  plant();
  speak();
  follow();
})();
