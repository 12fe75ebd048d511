"use strict";
// One SAE: its numbers, a scatter of its latents, and the table of them.

/** What the table of each point shows last: the order in which "next" walks. */
const orders = new Map();

/** What a table is sorted by at first: what says most of what there is. */
function first(columns) {
  const key = ["mcc", "stability"].find((k) => columns.some((c) => c.key === k));
  return key ? `-${key}` : "latent";
}

async function pointView(grid, params, address) {
  const point = pointOf(grid, params);
  if (!point) return notThere(grid, `There is no SAE for ${JSON.stringify(params)} in this grid.`);
  const table = await tableOf(grid, point);
  const columns = filledColumns(table);
  const state = { filters: readFilters(params.filter), search: params.search ?? "", sort: params.sort ?? first(columns), brush: null };
  const count = h("p", { class: "count", role: "status" });
  const clear = h("button", { type: "button", class: "minor", hidden: true }, "clear the brush");
  const height = columns.some((c) => c.key === "mcc") ? "mcc" : columns.some((c) => c.key === "monosemanticity") ? "monosemanticity" : "stability";
  const here = pointLink(grid, point);
  let scatter = null;

  const shownTable = virtualTable({
    label: `Latents of ${pointName(grid, point)}`,
    columns,
    cell(row, column) {
      const value = cellOf(table, column.key, row);
      if (column.key === "latent") return h("a", { href: link.write({ ...here, latent: row }), tabindex: "-1" }, row);
      if (column.key === "class" && !table.alive[row]) return h("span", { class: "quiet" }, "dead");
      return column.unit === "text" ? (value ?? "") : show(value, column.unit);
    },
    open: (row) => (location.hash = link.write({ ...here, latent: row })),
    sorted: (sort) => ((state.sort = sort), refresh()),
  });

  /** The dots of the rows that pass, whatever the brush. */
  function redraw() {
    scatter?.data("latents", dots(select(table, { ...state, brush: null, found: grid.found }))).run();
  }

  /** The rows as they are everywhere but in the scatter: table, count, and the address, so that a link shows the same. */
  function refreshRows() {
    const rows = select(table, { ...state, found: grid.found });
    orders.set(pathOf(point), rows);
    shownTable.update(rows, state.sort);
    const dead = table.alive.filter((a) => !a).length;
    count.textContent = `${show(rows.length)} of ${show(table.size)} latents${dead ? ` (${show(dead)} of them dead)` : ""}`;
    clear.hidden = !state.brush;
    const asked = { ...here, filter: writeFilters(state.filters), search: state.search, sort: state.sort === first(columns) ? "" : state.sort };
    address(link.write(asked));
  }

  function refresh() {
    refreshRows();
    redraw();
  }

  const dots = (rows) => rows.filter((i) => table.density[i] > 0 && table[height][i] !== null).map((i) => ({ latent: i, density: table.density[i], [height]: table[height][i], class: cellOf(table, "class", i) ?? "not confirmed", confirmed: table.class[i] >= 0 }));
  const column = COLUMNS.find((c) => c.key === height);
  const colours = { domain: [true, false], range: [charts.colour("accent"), charts.colour("quiet")] };
  // Axes that stay, whatever the filters leave.
  const domain = (field) => [Math.min, Math.max].map((f) => f(...dots(table.latent).map((d) => d[field])));
  const spec = {
    height: 310,
    data: { name: "latents", values: dots(table.latent) },
    params: [{ name: "brush", select: "interval" }],
    mark: { type: "point", filled: true, size: 22, opacity: 0.65 },
    encoding: {
      x: { field: "density", type: "quantitative", scale: { type: "log", domain: domain("density"), nice: true }, title: "density: share of the held-out tokens on which it fires", axis: { format: "~%", tickCount: 5 } },
      y: { field: height, type: "quantitative", title: column.name, scale: { zero: false, domain: domain(height), nice: true } },
      color: { field: "confirmed", type: "nominal", scale: colours, title: "class", legend: { labelExpr: "datum.label == 'true' ? 'confirmed' : 'not confirmed'" } },
      tooltip: [{ field: "latent" }, { field: "class" }, { field: "density", format: ".2%" }, { field: height, title: column.name, format: ".2f" }],
    },
  };
  const drawn = (view) => {
    scatter = view;
    view.addSignalListener("brush", (_name, ranges) => {
      state.brush = Object.keys(ranges).length ? ranges : null;
      clearTimeout(drawn.soon);
      drawn.soon = setTimeout(refreshRows, 60); // brushing must not redraw what is brushed
    });
    view.addEventListener("dblclick", (_event, item) => item?.datum?.latent !== undefined && (location.hash = link.write({ ...here, latent: item.datum.latent })));
    redraw(); // filters may have been set before it came
  };
  clear.onclick = () => {
    state.brush = null;
    scatter?.signal("brush_tuple", null).run();
    refreshRows();
  };

  const search = h("input", {
    type: "search",
    id: "search",
    size: 26,
    placeholder: "class name or latent number",
    value: state.search,
    oninput: (event) => ((state.search = event.target.value), refresh()),
  });
  const chips = FILTERS.map((filter) => {
    const button = h("button", { type: "button", class: "chip", title: filter.about, onclick: turn });
    function name() {
      const only = state.filters.get(filter.key);
      const matching = table.latent.filter((i) => filter.is(table, i, grid.found)).length;
      button.textContent = `${only === undefined ? "" : only ? "only " : "not "}${filter.key} (${show(matching)})`;
      button.setAttribute("aria-pressed", only !== undefined);
      button.dataset.state = only === undefined ? "any" : only ? "only" : "not";
    }
    function turn() {
      const only = state.filters.get(filter.key);
      if (only === undefined) state.filters.set(filter.key, true);
      else if (only) state.filters.set(filter.key, false);
      else state.filters.delete(filter.key);
      name();
      refresh();
    }
    name();
    return button;
  });
  const exported = () => {
    const rows = orders.get(pathOf(point));
    const cells = [COLUMNS.map((c) => c.key), ...rows.map((i) => COLUMNS.map((c) => cellOf(table, c.key, i)))];
    save(`${grid.name}-${pathOf(point).replaceAll("/", "-")}.csv`, "text/csv", csv(cells));
  };
  const facts = MEASURES.filter((m) => typeof point.values[m.key] === "number").map((m) => {
    const interval = point.intervals[m.key];
    const text = interval ? ` (${interval.map((v) => show(v, m.unit)).join(" to ")})` : "";
    return h("div", { title: m.about }, h("dt", {}, m.name), h("dd", {}, show(point.values[m.key], m.unit), h("small", {}, text)));
  });
  const untested = columns.some((c) => c.key === "mcc") ? "" : " No class has enough images in both splits to be tested.";
  const view = [
    h("h1", {}, `SAE at ${pointName(grid, point)}`),
    h("details", { class: "numbers" }, h("summary", {}, `FVU ${show(point.values.fvu, "share")}, L0 ${show(point.values.l0)}, ${show(point.values.dead, "share")} dead: all numbers`), h("dl", {}, facts), h("p", { class: "quiet" }, "In brackets: 95 % intervals on held-out images drawn again.")),
    h("section", { "aria-label": "Filters" }, h("div", { class: "row" }, h("label", {}, "Search ", search), chips), untested && h("p", { class: "quiet" }, untested)),
    h("section", {}, !dots(table.latent).length ? h("p", { class: "quiet" }, "No latent fires on held-out images.") : charts.chart({ name: `${grid.name}-${pathOf(point).replaceAll("/", "-")}-latents`, about: `How often the latents fire, and ${column.name} (${column.about.split(":")[0].toLowerCase()}). Drag to choose some of them for the table; double click opens one.`, spec, drawn })),
    h("section", {}, h("div", { class: "row" }, count, clear, h("button", { type: "button", class: "minor", onclick: exported }, "save this table as CSV")), shownTable.element),
  ];
  refresh();
  return { view, shown: () => shownTable.element.focus({ preventScroll: true }) };
}

const notThere = (grid, text) => [h("h1", {}, "Not here"), h("p", {}, text), h("p", {}, h("a", { href: "#" }, "To the grid"))];
