"use strict";
// The latents of a grid point: which rows are shown, in what order; and a table that draws only the rows in sight.

/** A point's table with its packed columns opened. */
async function tableOf(grid, point) {
  const table = await parts.load(`${pathOf(point)}/table`);
  table.alive = typeof table.alive === "string" ? unpack(table.alive, 1) : table.alive;
  table.latent ??= Array.from({ length: table.size }, (_, i) => i);
  return table;
}

/** What stands in a cell: text for classes and roles, else a number or null. */
function cellOf(table, key, i) {
  if (key === "class") return table.class[i] < 0 ? null : table.names[table.class[i]];
  if (key === "role") return table.role[i] < 0 ? null : table.roles[table.role[i]];
  return table[key][i];
}

/** "dead,-dense" -> Map {dead: true, dense: false}: only these, none of those. */
function readFilters(text) {
  const asked = (text ?? "").split(",").filter(Boolean);
  const found = asked.map((word) => (word.startsWith("-") ? [word.slice(1), false] : [word, true]));
  return new Map(found.filter(([key]) => FILTERS.some((f) => f.key === key)));
}

const writeFilters = (filters) => [...filters].map(([key, only]) => (only ? key : `-${key}`)).join(",");

/**
 * The latents that pass, in order: what the table shows.
 * search: a number is a latent's, anything else is looked for in the class names, whatever the case.
 * sort: a column's key, "-" in front for the highest first. What is not known comes last either way.
 * brush: {key: [low, high]} per column, or null.
 */
function select(table, { filters = new Map(), search = "", sort = "latent", brush = null, found = 0.5 } = {}) {
  const wanted = FILTERS.filter((f) => filters.has(f.key)).map((f) => (i) => f.is(table, i, found) === filters.get(f.key));
  const text = search.trim().toLowerCase();
  if (/^#?\d+$/.test(text)) wanted.push((i) => i === Number(text.replace("#", "")));
  else if (text) {
    const hits = new Set(table.names.flatMap((name, n) => (name.toLowerCase().includes(text) ? [n] : [])));
    wanted.push((i) => hits.has(table.class[i]));
  }
  for (const [key, [low, high]] of Object.entries(brush ?? {})) {
    wanted.push((i) => table[key][i] !== null && table[key][i] >= low && table[key][i] <= high);
  }
  const rows = table.latent.filter((i) => wanted.every((passes) => passes(i)));
  const key = sort.replace("-", "");
  const sign = sort.startsWith("-") ? -1 : 1;
  if (!COLUMNS.some((c) => c.key === key)) return rows;
  return rows.sort((a, b) => {
    const [x, y] = [cellOf(table, key, a), cellOf(table, key, b)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return (typeof x === "string" ? sign * x.localeCompare(y) : sign * (x - y)) || a - b;
  });
}

/** The columns that have anything in them. */
function filledColumns(table) {
  return COLUMNS.filter((c) => c.key === "latent" || table.latent.some((i) => cellOf(table, c.key, i) !== null));
}

const ROW = 34; // pixels; style.css agrees

/**
 * A table of which only the rows in sight exist. Arrow keys, Home, End and Page keys move; Enter opens.
 * Returns {element, update(rows, sort)}.
 */
function virtualTable({ columns, cell, open, sorted, label }) {
  let rows = [];
  let active = 0;
  const body = h("tbody", { role: "rowgroup" });
  const head = h("tr", { role: "row" });
  const table = h("table", { class: "latents", role: "presentation" }, h("thead", { role: "rowgroup" }, head), body);
  // The focus stays on the box; which row is meant is told by its id.
  const box = h("div", { class: "scroll", tabindex: "0", role: "grid", "aria-label": label, onscroll: draw, onkeydown: keys }, table);
  const inSight = () => Math.max(1, Math.floor((box.clientHeight - ROW) / ROW));

  function draw() {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
    const last = Math.min(rows.length, first + inSight() + 10);
    const spacer = (n) => h("tr", { "aria-hidden": "true", style: `height:${n * ROW}px` });
    const lines = rows.slice(first, last).map((row, n) => {
      const at = first + n;
      const cells = columns.map((c) => h("td", { role: "gridcell", class: c.unit === "text" ? "text" : null }, cell(row, c)));
      return h("tr", { "aria-rowindex": at + 2, class: at === active ? "active" : null, "data-row": row, id: `row-${row}`, role: "row", "aria-selected": String(at === active), onclick: (event) => event.target.closest("a") || open(row) }, cells);
    });
    body.replaceChildren(spacer(first), ...lines, spacer(rows.length - last));
    if (active >= first && active < last) box.setAttribute("aria-activedescendant", `row-${rows[active]}`);
    else box.removeAttribute("aria-activedescendant");
  }

  function move(to) {
    active = Math.min(Math.max(to, 0), rows.length - 1);
    const top = active * ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    if (top + 2 * ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + 2 * ROW - box.clientHeight;
    draw();
  }

  function keys(event) {
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, Home: 0, End: rows.length - 1, PageDown: active + inSight(), PageUp: active - inSight() }[event.key];
    if (event.key === "Enter" && rows.length && event.target === box) open(rows[active]);
    else if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    else move(to);
    event.preventDefault();
  }

  function update(shown, sort) {
    rows = shown;
    active = 0;
    box.scrollTop = 0;
    box.setAttribute("aria-rowcount", rows.length + 1);
    const pressed = [...head.children].findIndex((th) => th.contains(document.activeElement));
    head.replaceChildren(
      ...columns.map((c) => {
        const by = sort.replace("-", "") === c.key;
        const down = sort.startsWith("-");
        const next = by ? (down ? c.key : `-${c.key}`) : c.unit === "text" || c.unit === "id" ? c.key : `-${c.key}`;
        const state = by ? (down ? "descending" : "ascending") : "none";
        const mark = by ? (down ? " ▼" : " ▲") : "";
        const button = h("button", { type: "button", title: c.about, onclick: () => sorted(next) }, c.name, mark);
        return h("th", { scope: "col", role: "columnheader", "aria-sort": state, class: c.unit === "text" ? "text" : null }, button);
      }),
    );
    head.children[pressed]?.firstChild.focus({ preventScroll: true });
    draw();
  }

  new ResizeObserver(draw).observe(box);
  return { element: box, update, reveal: (row) => rows.includes(row) && move(rows.indexOf(row)) };
}
