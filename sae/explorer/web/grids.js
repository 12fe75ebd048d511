"use strict";
// The first view: every point of the grid, coloured by one measure, with the baselines beside it.

function gridView(grid, params) {
  const saes = grid.points.filter((p) => grid.methods.includes(p.method));
  const known = MEASURES.filter((m) => saes.some((p) => typeof p.values[m.key] === "number"));
  const measure = known.find((m) => m.key === params.metric) ?? known[0];
  const choose = (event) => (location.hash = link.write({ metric: event.target.value }));
  const options = known.map((m) => h("option", { value: m.key, selected: m === measure }, m.name));
  const arrow = measure.higher === null ? "" : measure.higher ? " ↑ higher is better" : " ↓ lower is better";
  const { outputs, width, blocks } = grid.geometry;
  const latents = `${width} wide, ${blocks} blocks${outputs ? "" : ", no head"}`;
  return [
    h("h1", {}, `What the latents of ${grid.model} respond to`),
    h("p", { class: "quiet" }, `Experiment ${grid.name}: ${saes.length} SAEs on ${grid.model} (${latents}), tokens: ${grid.tokens}. Choose one below.`),
    grid.answer && h("p", { class: "answer" }, grid.answer),
    h(
      "section",
      { "aria-label": "Map of the grid" },
      h("div", { class: "row" }, h("label", {}, "Colour by ", h("select", { id: "metric", onchange: choose }, options)), h("span", { class: "quiet" }, arrow)),
      h("p", { class: "about" }, measure.about),
      gridMap(grid, saes, measure),
    ),
    h("section", { class: "columns" }, frontier(grid, saes), overLayers(grid, saes, measure)),
  ];
}

/** A table of layers × ks per method and seed, coloured on one scale: that of the SAEs. */
function gridMap(grid, saes, measure) {
  const values = saes.map((p) => p.values[measure.key]).filter((v) => typeof v === "number");
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const layers = [...new Set(grid.points.map((p) => p.layer))].sort((a, b) => a - b);
  const ks = [...new Set(grid.points.map((p) => p.k))].sort((a, b) => a - b);
  const seeds = [...new Set(grid.points.map((p) => p.seed))];

  function cell(points) {
    const given = points.map((p) => p.values[measure.key]).filter((v) => typeof v === "number");
    if (!given.length) return h("td", { class: "none" }, "–");
    const value = given.reduce((a, b) => a + b) / given.length;
    const t = high > low ? (value - low) / (high - low) : 0.5;
    const rgb = viridis(t);
    // Which of black and white stands out more on it (WCAG's relative luminance).
    const bright = rgb.map((c) => (c / 255) ** 2.2).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0) > 0.18;
    const text = show(value, measure.unit);
    const beyond = t < -1e-9 || t > 1 + 1e-9;
    const interval = points.length === 1 ? points[0].intervals[measure.key] : null;
    const name = points.length === 1 ? pointName(grid, points[0]) : `mean of ${points.length} seeds`;
    const title = `${points[0].method}, ${name}: ${measure.name} ${text}${interval ? `, 95 % interval ${interval.map((v) => show(v, measure.unit)).join(" to ")}` : ""}${beyond ? ". Beyond the scale of the SAEs." : ""}`;
    const style = `background:rgb(${rgb});color:${bright ? "#000" : "#fff"}`;
    const sae = grid.methods.includes(points[0].method);
    const content = sae ? h("a", { href: link.write(pointLink(grid, points[0])) }, text) : text;
    return h("td", { style, title, class: beyond ? "beyond" : null }, content);
  }

  function block(method, points, caption) {
    const head = h("tr", {}, h("th", { scope: "col" }, h("span", { class: "quiet" }, "layer \\ k")), ks.map((k) => h("th", { scope: "col" }, k)));
    const rows = layers.map((layer) =>
      h("tr", {}, h("th", { scope: "row" }, layer), ks.map((k) => cell(points.filter((p) => p.layer === layer && p.k === k)))),
    );
    return h("table", { class: "map" }, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, rows));
  }

  const of = (method) => grid.points.filter((p) => p.method === method);
  const blocks = grid.methods.flatMap((method) =>
    seeds.map((seed) => block(method, of(method).filter((p) => p.seed === seed), seeds.length > 1 ? `SAE: ${method}, seed ${seed}` : `SAE: ${method}`)),
  );
  const stops = Array.from({ length: 9 }, (_, i) => `rgb(${viridis(i / 8)})`);
  const note = grid.baselines.length ? " Hatched: beyond this scale." : "";
  return h(
    "div",
    { class: "maps" },
    h("div", { class: "saes" }, blocks),
    grid.baselines.length > 0 && h("div", { class: "baselines" }, grid.baselines.map((b) => block(b, of(b), b))),
    h("p", { class: "scale quiet" }, show(low, measure.unit), h("span", { class: "ramp", style: `background:linear-gradient(90deg,${stops})` }), `${show(high, measure.unit)} (colours: the SAEs' range).${note}`),
  );
}

function rowsOf(grid, points, key) {
  return points
    .filter((p) => typeof p.values[key] === "number")
    .map((p) => {
      const [low, high] = p.intervals[key] ?? [null, null];
      return { ...pointLink(grid, p), layer: p.layer, k: p.k, method: p.method, seed: p.seed, l0: p.values.l0, value: p.values[key], low, high };
    });
}

const openPoint = (grid) => (view) =>
  view.addEventListener("click", (_event, item) => {
    const datum = item?.datum?.datum ?? item?.datum;
    if (datum?.layer !== undefined && grid.methods.includes(datum.method)) location.hash = link.write(pointLink(grid, datum));
  });

function frontier(grid, saes) {
  const layers = [...new Set(saes.map((p) => p.layer))].sort((a, b) => a - b);
  const colour = { field: "layer", type: "ordinal", scale: charts.layerScale(layers), title: "layer" };
  const x = { field: "l0", type: "quantitative", title: "L0: latents that fire on a token", scale: { zero: false, nice: true } };
  const y = { field: "value", type: "quantitative", title: "FVU on held-out tokens", axis: { format: "%" }, scale: { zero: false } };
  const tooltip = ["method", "layer", "k", "seed", "l0", "value"].map((field) => ({ field, format: ["l0", "value"].includes(field) ? ".3" : undefined, title: field === "value" ? "FVU" : field }));
  const shape = grid.methods.length > 1 ? { field: "method", type: "nominal", scale: { domain: grid.methods }, title: "SAE" } : undefined;
  const spec = {
    title: "Reconstruction against sparsity",
    height: 330,
    encoding: { x, y },
    layer: [
      {
        data: { values: rowsOf(grid, saes, "fvu") },
        mark: { type: "line", strokeWidth: 2 },
        encoding: { color: colour, detail: [{ field: "method" }, { field: "seed" }], ...dashed(grid) },
      },
      {
        data: { values: rowsOf(grid, saes, "fvu") },
        mark: { type: "point", filled: true, size: 90, opacity: 1, cursor: "pointer" },
        encoding: { color: colour, tooltip, ...(shape && { shape }) },
      },
    ],
  };
  const about = `FVU against L0: a point per SAE, a line per layer; lower left is better. Points open an SAE.`;
  return charts.chart({ name: `${grid.name}-frontier`, about, spec, drawn: openPoint(grid) });
}

/** Methods by dashes, where there are several. */
const dashed = (grid) => (grid.methods.length > 1 ? { strokeDash: { field: "method", type: "nominal", scale: { domain: grid.methods }, title: "SAE" } } : {});

function overLayers(grid, saes, measure) {
  const baselines = grid.points.filter((p) => grid.baselines.includes(p.method));
  const format = measure.unit === "share" ? "%" : "~g";
  const every = [...saes, ...baselines].map((p) => p.values[measure.key]).filter((v) => typeof v === "number");
  const scale = measure.log && Math.min(...every) > 0 ? { type: "log" } : { zero: false };
  const y = { field: "value", type: "quantitative", title: measure.name, axis: { format, tickCount: 6 }, scale };
  const x = { field: "layer", type: "ordinal", title: "layer", axis: { labelAngle: 0 }, scale: { type: "point", padding: 0.6 } };
  const ks = [...new Set(saes.map((p) => p.k))].sort((a, b) => a - b);
  const dark = document.documentElement.dataset.theme === "dark";
  const shades = { domain: ks, scheme: { name: "plasma", extent: dark ? [0.3, 1] : [0, 0.8] } };
  const color = { field: "k", type: "ordinal", title: "k (SAEs)", scale: shades };
  const ours = { values: rowsOf(grid, saes, measure.key) };
  const tooltip = ["method", "layer", "k", "seed", "value", "low", "high"].map((field) => ({ field, format: ["value", "low", "high"].includes(field) ? ".3" : undefined }));
  const detail = [{ field: "method" }, { field: "seed" }];
  const layer = [
    { data: ours, mark: { type: "line", strokeWidth: 2 }, encoding: { x, y, color, detail, ...dashed(grid) } },
    { data: ours, mark: { type: "point", filled: true, size: 80, opacity: 1, cursor: "pointer" }, encoding: { x, y, color, tooltip } },
  ];
  const known = ours.values.filter((v) => v.low !== null);
  const band = new Set(known.map((v) => v.layer)).size > 1 ? { type: "area", opacity: 0.18 } : { type: "rule", strokeWidth: 2 };
  if (known.length) layer.unshift({ data: { values: known }, mark: band, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color, detail } });
  const lines = rowsOf(grid, baselines, measure.key);
  if (lines.length) {
    const shape = { field: "method", type: "nominal", title: "baselines", scale: { domain: grid.baselines } };
    layer.unshift({ data: { values: lines }, mark: { type: "point", size: 45, color: charts.colour("quiet"), opacity: 0.7 }, encoding: { x, y, shape, tooltip } });
  }
  const about = `${measure.name} over the layers; ${band.type === "area" ? "band" : "bar"}: 95 % interval on held-out images, where there is one; grey: baselines.`;
  const spec = { title: `${measure.name[0].toUpperCase()}${measure.name.slice(1)} by layer`, height: 330, layer };
  return charts.chart({ name: `${grid.name}-${measure.key}`, about, spec, drawn: openPoint(grid) });
}
