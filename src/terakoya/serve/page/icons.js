// Icons as strokes, so that no font has to have them.
const PATHS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  done: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20l1-4.5L16.5 4 20 7.5 8.5 19z",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  back: "M14.5 6L8.5 12l6 6",
  on: "M9.5 6l6 6-6 6",
  down: "M12 4v11M7 11l5 5 5-5M5 20h14",
  braces: "M9 4c-2.5 0-3 1-3 3v2c0 2-1 3-2 3 1 0 2 1 2 3v2c0 2 .5 3 3 3M15 4c2.5 0 3 1 3 3v2c0 2 1 3 2 3-1 0-2 1-2 3v2c0 2-.5 3-3 3",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M13 4.5v5h4v-5zM7 14.5v5h4v-5z",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  plus: "M12 5v14M5 12h14",
  note: "M6 3.5h9l4 4v13H6zM9 11h7M9 15h7",
  bin: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13",
};
const NS = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(NS, "svg"), path = document.createElementNS(NS, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

export function draw(root = document) {
  for (const e of root.querySelectorAll("[data-icon]")) e.replaceChildren(icon(e.dataset.icon));
}
