"use strict";
// One SAE: its numbers, a scatter of its latents, and the table of them.

const points = (() => {
  const { csv, fileName, h, latentLink, link, pathOf, pointLink, pointName, save, show } = core;

  /** The rows that each point's table showed last, in order; "next" follows this order. */
  const orders = new Map();

  async function view(grid, params, address) {
    const point = core.pointOf(grid, params);
    if (!point) return core.notThere(`There is no SAE for ${JSON.stringify(params)} in this grid.`);
    const table = await tables.load(point);
    const columns = tables.filled(grid, table);
    const sortKey = ["mcc", "stability"].find((key) => columns.some((c) => c.key === key));
    const usual = sortKey ? `-${sortKey}` : "latent";
    const filters = tables.readFilters(grid, params.filter);
    const state = { filters, search: params.search ?? "", sort: params.sort ?? usual, brush: null };
    const count = h("p", { class: "count", role: "status" });
    const clear = h("button", { type: "button", class: "minor", hidden: true }, "clear the brush");
    const list = latentTable(grid, point, table, columns, (sort) => ((state.sort = sort), refresh()));
    const plot = scatter(grid, point, table, columns, (brush) => ((state.brush = brush), refreshRows()));

    /** Updates everything but the scatter: the table, the count, and the address, so that a link shows the same. */
    function refreshRows() {
      const rows = tables.select(grid, table, state);
      orders.set(pathOf(point), rows);
      list.update(rows, state.sort);
      const dead = table.alive.filter((alive) => !alive).length;
      const ofAll = `${show(rows.length)} of ${show(table.size)} latents`;
      count.textContent = dead ? `${ofAll} (${show(dead)} of them dead)` : ofAll;
      clear.hidden = !state.brush;
      const sort = state.sort === usual ? "" : state.sort;
      const filter = tables.writeFilters(state.filters);
      address(link.write({ ...pointLink(grid, point), filter, search: state.search, sort }));
    }

    function refresh() {
      refreshRows();
      plot.show(tables.select(grid, table, { ...state, brush: null }));
    }

    clear.onclick = () => {
      state.brush = null;
      plot.clear();
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
    const chips = grid.filters.map((filter) => chip(filter, table, state.filters, refresh));
    const exported = () => {
      const keys = grid.columns.map((c) => c.key);
      const rows = orders.get(pathOf(point)).map((i) => keys.map((key) => tables.cell(table, key, i)));
      save(`${fileName(grid, point)}.csv`, "text/csv", csv([keys, ...rows]));
    };
    const untested = "No class has enough images in both splits to be tested.";
    refresh();
    return {
      view: [
        h("h1", {}, `SAE at ${pointName(grid, point)}`),
        numbers(grid, point),
        h(
          "section",
          { "aria-label": "Filters" },
          h("div", { class: "row" }, h("label", {}, "Search ", search), chips),
          !columns.some((c) => c.key === "mcc") && h("p", { class: "quiet" }, untested),
        ),
        h("section", {}, plot.element),
        h(
          "section",
          {},
          h(
            "div",
            { class: "row" },
            count,
            clear,
            h("button", { type: "button", class: "minor", onclick: exported }, "save this table as CSV"),
          ),
          list.element,
        ),
      ],
      shown: () => list.element.focus({ preventScroll: true }),
    };
  }

  /** All measures of the SAE, folded. */
  function numbers(grid, point) {
    const given = grid.measures.filter((measure) => typeof point.values[measure.key] === "number");
    const entries = given.map(({ key, name, unit, sentence }) => {
      const interval = point.intervals[key]?.map((v) => show(v, unit)).join(" to ");
      const value = h("dd", {}, show(point.values[key], unit), h("small", {}, interval ? ` (${interval})` : ""));
      return h("div", { title: sentence }, h("dt", {}, name), value);
    });
    const { fvu, l0, dead } = point.values;
    const summary = `FVU ${show(fvu, "share")}, L0 ${show(l0)}, ${show(dead, "share")} dead: all numbers`;
    const note = "In brackets: 95 % bootstrap intervals over held-out images.";
    return h(
      "details",
      { class: "numbers" },
      h("summary", {}, summary),
      h("dl", {}, entries),
      h("p", { class: "quiet" }, note),
    );
  }

  function latentTable(grid, point, table, columns, sorted) {
    return tables.virtual({
      label: `Latents of ${pointName(grid, point)}`,
      columns,
      content(row, { key, unit }) {
        const value = tables.cell(table, key, row);
        if (key === "latent") return h("a", { href: latentLink(grid, point, row), tabindex: "-1" }, row);
        if (key === "class" && !table.alive[row]) return h("span", { class: "quiet" }, "dead");
        return unit === "text" ? (value ?? "") : show(value, unit);
      },
      open: (row) => (location.hash = latentLink(grid, point, row)),
      sorted,
    });
  }

  /** A button that turns a filter from off to "only" to "not", and off again. */
  function chip(filter, table, filters, refresh) {
    const matching = table.latent.filter((i) => tables.matches(filter, table, i)).length;
    const button = h("button", { type: "button", class: "chip", title: filter.sentence, onclick: turn });
    function label() {
      const state = { undefined: "any", true: "only", false: "not" }[filters.get(filter.name)];
      button.textContent = `${state === "any" ? "" : `${state} `}${filter.name} (${show(matching)})`;
      button.setAttribute("aria-pressed", state !== "any");
      button.dataset.state = state;
    }
    function turn() {
      const only = filters.get(filter.name);
      if (only === false) filters.delete(filter.name);
      else filters.set(filter.name, only === undefined);
      label();
      refresh();
    }
    label();
    return button;
  }

  /**
   * A scatter of the latents: density against selectivity.
   * Returns {element, show(rows), clear()}; brushed: is called with the ranges of the brush, or null.
   */
  function scatter(grid, point, table, columns, brushed) {
    const key = ["mcc", "monosemanticity"].find((k) => columns.some((c) => c.key === k)) ?? "stability";
    const { name, sentence } = grid.columns.find((c) => c.key === key);
    const dots = (rows) => {
      const plotted = rows.filter((i) => table.density[i] > 0 && table[key][i] !== null);
      return plotted.map((i) => {
        const known = tables.cell(table, "class", i);
        const values = { density: table.density[i], [key]: table[key][i] };
        return { latent: i, ...values, class: known ?? "not confirmed", confirmed: known !== null };
      });
    };
    const all = dots(table.latent);
    if (!all.length) {
      const none = h("p", { class: "quiet" }, "No latent fires on held-out images.");
      return { element: none, show: () => {}, clear: () => {} };
    }
    let chart = null;
    let shown = all;

    function drawn(made) {
      chart = made;
      let soon = 0;
      chart.addSignalListener("brush", (_name, ranges) => {
        clearTimeout(soon);
        soon = setTimeout(() => brushed(Object.keys(ranges).length ? ranges : null), 60);
      });
      chart.addEventListener("dblclick", (_event, item) => {
        if (item?.datum?.latent !== undefined) location.hash = latentLink(grid, point, item.datum.latent);
      });
      draw();
    }
    const draw = () => chart?.data("latents", shown).run();

    const extent = (field) => [Math.min, Math.max].map((f) => f(...all.map((dot) => dot[field])));
    const scale = (field, options) => ({ domain: extent(field), nice: true, ...options }); // whatever the filters leave
    const colours = { domain: [true, false], range: [charts.colour("accent"), charts.colour("quiet")] };
    const legend = { labelExpr: "datum.label == 'true' ? 'confirmed' : 'not confirmed'" };
    const spec = {
      height: 310,
      data: { name: "latents", values: all },
      params: [{ name: "brush", select: "interval" }],
      mark: { type: "point", filled: true, size: 22, opacity: 0.65 },
      encoding: {
        x: {
          field: "density",
          type: "quantitative",
          scale: scale("density", { type: "log" }),
          title: "density: share of the held-out tokens on which it fires",
          axis: { format: "~%", tickCount: 5 },
        },
        y: { field: key, type: "quantitative", title: name, scale: scale(key, { zero: false }) },
        color: { field: "confirmed", type: "nominal", scale: colours, title: "class", legend },
        tooltip: [
          { field: "latent" },
          { field: "class" },
          { field: "density", format: ".2%" },
          { field: key, title: name, format: ".2f" },
        ],
      },
    };
    const use = "Drag to select latents for the table; a double click opens one.";
    const about = `Density and ${name} of the latents. ${sentence.split(". ")[0]}. ${use}`;
    return {
      element: charts.chart({ name: `${fileName(grid, point)}-latents`, about, spec, drawn }),
      show: (rows) => ((shown = dots(rows)), draw()),
      clear: () => chart?.signal("brush_tuple", null).run(),
    };
  }

  return { orders, view };
})();
