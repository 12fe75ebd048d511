"use strict";
// The first page: a map of the grid points, coloured by one measure, with the baselines beside them.

const grids = (() => {
  const { h, link, pointLink, pointName, ramp, show, viridis } = core;

  const known = (point, key) => typeof point.values[key] === "number";
  const measureOf = (grid, key) => grid.measures.find((measure) => measure.key === key);

  function view(grid, params) {
    const saes = grid.points.filter((p) => grid.methods.includes(p.method));
    const measures = grid.measures.filter((m) => saes.some((p) => known(p, m.key)));
    const measure = measures.find((m) => m.key === params.metric) ?? measures[0];
    const choose = (event) => (location.hash = link.write({ metric: event.target.value }));
    const options = measures.map((m) => h("option", { value: m.key, selected: m === measure }, m.name));
    const arrow = measure.higher === null ? "" : measure.higher ? " ↑ higher is better" : " ↓ lower is better";
    const { outputs, width, blocks } = grid.geometry;
    const vit = `${grid.model} (width ${width}, ${blocks} blocks${outputs ? "" : ", no head"})`;
    const about = `Experiment ${grid.name}: ${saes.length} SAEs on ${vit}, tokens: ${grid.tokens}. Choose one below.`;
    return [
      h("h1", {}, `Latents of ${grid.model}`),
      h("p", { class: "quiet" }, about),
      grid.answer && h("p", { class: "answer" }, grid.answer),
      h(
        "section",
        { "aria-label": "Map of the grid" },
        h(
          "div",
          { class: "row" },
          h("label", {}, "Colour by ", h("select", { id: "metric", onchange: choose }, options)),
          h("span", { class: "quiet" }, arrow),
        ),
        h("p", { class: "about" }, measure.sentence),
        map(grid, saes, measure),
      ),
      h("section", { class: "columns" }, frontier(grid, saes), overLayers(grid, saes, measure)),
    ];
  }

  /** Tables of layers × ks, one per method and seed, all coloured on the scale of the SAEs. */
  function map(grid, saes, measure) {
    const values = saes.filter((p) => known(p, measure.key)).map((p) => p.values[measure.key]);
    const range = [Math.min(...values), Math.max(...values)];
    const seeds = [...new Set(grid.points.map((p) => p.seed))];
    const { layer: layers, k: ks } = grid.scales;

    function block(points, caption) {
      const corner = h("th", { scope: "col" }, h("span", { class: "quiet" }, "layer \\ k"));
      const head = h(
        "tr",
        {},
        corner,
        ks.values.map((k) => h("th", { scope: "col" }, k)),
      );
      const rows = layers.values.map((layer) => {
        const cells = ks.values.map((k) => points.filter((p) => p.layer === layer && p.k === k));
        return h(
          "tr",
          {},
          h("th", { scope: "row" }, layer),
          cells.map((found) => mapCell(grid, found, measure, range)),
        );
      });
      return h("table", { class: "map" }, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, rows));
    }

    const of = (method) => grid.points.filter((p) => p.method === method);
    const blocks = grid.methods.flatMap((method) =>
      seeds.map((seed) => {
        const points = of(method).filter((p) => p.seed === seed);
        return block(points, seeds.length > 1 ? `SAE: ${method}, seed ${seed}` : `SAE: ${method}`);
      }),
    );
    const [low, high] = range.map((v) => show(v, measure.unit));
    const note = grid.baselines.length ? " Hatched: outside this range." : "";
    return h(
      "div",
      { class: "maps" },
      h("div", { class: "saes" }, blocks),
      grid.baselines.length > 0 &&
        h(
          "div",
          { class: "baselines" },
          grid.baselines.map((b) => block(of(b), b)),
        ),
      h("p", { class: "scale quiet" }, low, ramp(), `${high} (colours: the range of the SAEs).${note}`),
    );
  }

  /** A cell of the map: the value of one point, or the mean over its seeds. */
  function mapCell(grid, points, measure, [low, high]) {
    const given = points.filter((p) => known(p, measure.key)).map((p) => p.values[measure.key]);
    if (!given.length) return h("td", { class: "none" }, "–");
    const value = given.reduce((a, b) => a + b) / given.length;
    const t = high > low ? (value - low) / (high - low) : 0.5;
    const rgb = viridis(t);
    // Black or white, whichever contrasts more with the colour (WCAG's relative luminance).
    const luminance = rgb.map((c) => (c / 255) ** 2.2).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const text = show(value, measure.unit);
    const beyond = t < -1e-9 || t > 1 + 1e-9;
    const [point] = points;
    const interval = points.length === 1 && point.intervals[measure.key];
    const title = [
      `${point.method}, ${points.length === 1 ? pointName(grid, point) : `mean of ${points.length} seeds`}: `,
      `${measure.name} ${text}`,
      interval ? `, 95 % interval ${interval.map((v) => show(v, measure.unit)).join(" to ")}` : "",
      beyond ? ". Outside the range of the SAEs." : "",
    ].join("");
    const style = `background:rgb(${rgb});color:${luminance > 0.18 ? "#000" : "#fff"}`;
    const sae = grid.methods.includes(point.method);
    const content = sae ? h("a", { href: link.write(pointLink(grid, point)) }, text) : text;
    return h("td", { style, title, class: beyond ? "beyond" : null }, content);
  }

  /** The points as rows of a chart's data. */
  function rowsOf(grid, points, key) {
    return points
      .filter((p) => known(p, key))
      .map((p) => {
        const [low, high] = p.intervals[key] ?? [null, null];
        const { layer, k, method, seed } = p;
        return { layer, k, method, seed, l0: p.values.l0, value: p.values[key], low, high };
      });
  }

  const tooltip = (fields, titles = {}) =>
    fields.map((field) => {
      const format = ["layer", "k", "method", "seed"].includes(field) ? undefined : ".3";
      return { field, format, title: titles[field] ?? field };
    });

  const openPoint = (grid) => (view) =>
    view.addEventListener("click", (_event, item) => {
      const datum = item?.datum?.datum ?? item?.datum;
      const sae = datum?.layer !== undefined && grid.methods.includes(datum.method);
      if (sae) location.hash = link.write(pointLink(grid, datum));
    });

  /** The encoding of methods by `channel`, where there are several. */
  const byMethod = (grid, channel) => {
    const encoding = { field: "method", type: "nominal", scale: { domain: grid.methods }, title: "SAE" };
    return grid.methods.length > 1 ? { [channel]: encoding } : {};
  };

  function frontier(grid, saes) {
    const [fvu, l0] = ["fvu", "l0"].map((key) => measureOf(grid, key).name);
    const color = { field: "layer", type: "ordinal", scale: charts.scale(grid, "layer"), title: "layer" };
    const data = { values: rowsOf(grid, saes, "fvu") };
    const fields = tooltip(["method", "layer", "k", "seed", "l0", "value"], { l0: "L0", value: "FVU" });
    const spec = {
      title: "Reconstruction against sparsity",
      height: 330,
      data,
      encoding: {
        x: { field: "l0", type: "quantitative", title: l0, scale: { zero: false, nice: true } },
        y: { field: "value", type: "quantitative", title: fvu, axis: { format: "%" }, scale: { zero: false } },
        color,
      },
      layer: [
        {
          mark: { type: "line", strokeWidth: 2 },
          encoding: { detail: [{ field: "method" }, { field: "seed" }], ...byMethod(grid, "strokeDash") },
        },
        {
          mark: { type: "point", filled: true, size: 90, opacity: 1, cursor: "pointer" },
          encoding: { tooltip: fields, ...byMethod(grid, "shape") },
        },
      ],
    };
    const about = "FVU against L0: one point per SAE, one line per layer; lower left is better. A click opens the SAE.";
    return charts.chart({ name: `${grid.name}-frontier`, about, spec, drawn: openPoint(grid) });
  }

  function overLayers(grid, saes, measure) {
    const baselines = grid.points.filter((p) => grid.baselines.includes(p.method));
    const [ours, theirs] = [saes, baselines].map((points) => rowsOf(grid, points, measure.key));
    const log = measure.log && Math.min(...[...ours, ...theirs].map((row) => row.value)) > 0;
    const x = { field: "layer", type: "ordinal", title: "layer", axis: { labelAngle: 0 } };
    const axis = { format: measure.unit === "share" ? "%" : "~g", tickCount: 6 };
    const y = { type: "quantitative", title: measure.name, axis, scale: log ? { type: "log" } : { zero: false } };
    const value = { ...y, field: "value" };
    const color = { field: "k", type: "ordinal", title: "k (SAEs)", scale: charts.scale(grid, "k") };
    const detail = [{ field: "method" }, { field: "seed" }];
    const fields = tooltip(["method", "layer", "k", "seed", "value", "low", "high"]);
    const shape = { field: "method", type: "nominal", title: "baselines", scale: { domain: grid.baselines } };
    const measured = ours.filter((row) => row.low !== null);
    const area = new Set(measured.map((row) => row.layer)).size > 1;
    const layer = [
      theirs.length > 0 && {
        data: { values: theirs },
        mark: { type: "point", size: 45, color: charts.colour("quiet"), opacity: 0.7 },
        encoding: { y: value, shape, tooltip: fields },
      },
      measured.length > 0 && {
        data: { values: measured },
        mark: area ? { type: "area", opacity: 0.18 } : { type: "rule", strokeWidth: 2 },
        encoding: { y: { ...y, field: "low" }, y2: { field: "high" }, color, detail },
      },
      {
        data: { values: ours },
        mark: { type: "line", strokeWidth: 2 },
        encoding: { y: value, color, detail, ...byMethod(grid, "strokeDash") },
      },
      {
        data: { values: ours },
        mark: { type: "point", filled: true, size: 80, opacity: 1, cursor: "pointer" },
        encoding: { y: value, color, tooltip: fields },
      },
    ].filter(Boolean);
    const title = `${measure.name[0].toUpperCase()}${measure.name.slice(1)} by layer`;
    const encoding = { x: { ...x, scale: { type: "point", padding: 0.6 } } };
    const spec = { title, height: 330, encoding, layer };
    const about = [
      `${title}.`,
      measured.length > 0 && `${area ? "Bands" : "Bars"}: 95 % intervals on held-out images.`,
      theirs.length > 0 && "Grey: baselines.",
    ].filter(Boolean);
    const name = `${grid.name}-${measure.key}`;
    return charts.chart({ name, about: about.join(" "), spec, drawn: openPoint(grid) });
  }

  return { view };
})();
