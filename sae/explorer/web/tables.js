"use strict";
// The table of the latents of a grid point: filters, search and order; only the visible rows are drawn.

const tables = (() => {
  const { h, pathOf } = core;

  /** A point's table with its packed columns opened. */
  async function load(point) {
    const table = await parts.load(`${pathOf(point)}/table`);
    if (typeof table.alive === "string") table.alive = parts.unpack(table.alive, 1);
    table.latent ??= Array.from({ length: table.size }, (_, i) => i);
    return table;
  }

  /** The value of latent i in a column: text for classes and token types, else a number; null where there is none. */
  function cell(table, key, i) {
    if (key === "class") return table.names[table.class[i]] ?? null;
    if (key === "token_type") return table.token_types[table.token_type[i]] ?? null;
    return table[key][i];
  }

  /** Whether a filter matches latent i. */
  function matches({ column, among, above, below }, table, i) {
    const value = cell(table, column, i);
    if (above !== null) return value !== null && value > above;
    if (below !== null) return value !== null && value < below;
    return among.includes(value);
  }

  /** "dead,-dense" -> Map {dead: true, dense: false}: only dead ones, no dense ones. */
  function readFilters(grid, text) {
    const asked = (text ?? "").split(",").filter(Boolean);
    const entries = asked.map((word) => (word.startsWith("-") ? [word.slice(1), false] : [word, true]));
    return new Map(entries.filter(([name]) => grid.filters.some((filter) => filter.name === name)));
  }

  const writeFilters = (filters) => [...filters].map(([name, only]) => (only ? name : `-${name}`)).join(",");

  /**
   * The latents that the table shows, in order.
   * search: a number finds that latent, any other text is looked for in the class names, ignoring case.
   * sort: a column's key, with "-" in front for descending order. Missing values come last either way.
   * brush: {key: [low, high]} per column, or null.
   */
  function select(grid, table, { filters = new Map(), search = "", sort = "latent", brush = null } = {}) {
    const used = grid.filters.filter(({ name }) => filters.has(name));
    const tests = used.map((filter) => (i) => matches(filter, table, i) === filters.get(filter.name));
    const text = search.trim().toLowerCase();
    if (/^#?\d+$/.test(text)) tests.push((i) => i === Number(text.replace("#", "")));
    else if (text) tests.push((i) => cell(table, "class", i)?.toLowerCase().includes(text));
    for (const [key, [low, high]] of Object.entries(brush ?? {})) {
      tests.push((i) => table[key][i] !== null && table[key][i] >= low && table[key][i] <= high);
    }
    const rows = table.latent.filter((i) => tests.every((passes) => passes(i)));
    const key = sort.replace("-", "");
    const sign = sort.startsWith("-") ? -1 : 1;
    if (!grid.columns.some((c) => c.key === key)) return rows;
    return rows.sort((a, b) => {
      const [x, y] = [cell(table, key, a), cell(table, key, b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return (typeof x === "string" ? sign * x.localeCompare(y) : sign * (x - y)) || a - b;
    });
  }

  /** The columns that hold any value. */
  function filled(grid, table) {
    return grid.columns.filter(({ key }) => table.latent.some((i) => cell(table, key, i) !== null));
  }

  const ROW = 34; // pixels; style.css agrees

  /**
   * A table that holds only the visible rows. Arrow keys, Home, End and Page keys move; Enter opens.
   * Returns {element, update(rows, sort)}.
   */
  function virtual({ columns, content, open, sorted, label }) {
    let rows = [];
    let active = 0;
    const body = h("tbody", { role: "rowgroup" });
    const head = h("tr", { role: "row" });
    const table = h("table", { class: "latents", role: "presentation" }, h("thead", { role: "rowgroup" }, head), body);
    // The focus stays on the box, which names the active row by its id.
    const grid = { class: "scroll", tabindex: "0", role: "grid", "aria-label": label };
    const box = h("div", { ...grid, onscroll: draw, onkeydown: keys }, table);
    const inSight = () => Math.max(1, Math.floor((box.clientHeight - ROW) / ROW));
    const kind = (column) => (column.unit === "text" ? "text" : null);

    function line(row, at) {
      const state = { class: at === active ? "active" : null, "aria-selected": String(at === active) };
      const names = { "aria-rowindex": at + 2, "data-row": row, id: `row-${row}`, role: "row" };
      const press = (event) => event.target.closest("a") || open(row);
      const cells = columns.map((c) => h("td", { role: "gridcell", class: kind(c) }, content(row, c)));
      return h("tr", { ...names, ...state, onclick: press }, cells);
    }

    function draw() {
      const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
      const last = Math.min(rows.length, first + inSight() + 10);
      const spacer = (n) => h("tr", { "aria-hidden": "true", style: `height:${n * ROW}px` });
      const lines = rows.slice(first, last).map((row, n) => line(row, first + n));
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
      const steps = {
        ArrowDown: 1,
        ArrowUp: -1,
        PageDown: inSight(),
        PageUp: -inSight(),
        Home: -Infinity,
        End: Infinity,
      };
      const step = steps[event.key];
      if (event.key === "Enter" && rows.length && event.target === box) open(rows[active]);
      else if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      else move(active + step);
      event.preventDefault();
    }

    function heading(column, sort) {
      const chosen = sort.replace("-", "") === column.key;
      const down = sort.startsWith("-");
      const downFirst = column.unit !== "text" && column.unit !== "id";
      const next = (chosen ? !down : downFirst) ? `-${column.key}` : column.key;
      const [state, mark] = !chosen ? ["none", ""] : down ? ["descending", " ▼"] : ["ascending", " ▲"];
      const press = { type: "button", title: column.sentence, onclick: () => sorted(next) };
      const names = { scope: "col", role: "columnheader", "aria-sort": state, class: kind(column) };
      return h("th", names, h("button", press, column.name, mark));
    }

    function update(shown, sort) {
      rows = shown;
      active = 0;
      box.scrollTop = 0;
      box.setAttribute("aria-rowcount", rows.length + 1);
      const pressed = [...head.children].findIndex((th) => th.contains(document.activeElement));
      head.replaceChildren(...columns.map((column) => heading(column, sort)));
      head.children[pressed]?.firstChild.focus({ preventScroll: true });
      draw();
    }

    new ResizeObserver(draw).observe(box);
    return { element: box, update };
  }

  return { cell, filled, load, matches, readFilters, select, virtual, writeFilters };
})();
