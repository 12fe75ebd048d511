"use strict";
// Charts are Vega-Lite specifications; the library is loaded when the first chart is drawn.

const charts = (() => {
  const { h, save } = core;
  let library = null;

  function loaded() {
    library ??= new Promise((resolve, reject) => {
      const script = h("script", { src: "app/vega.js" });
      script.onload = () => resolve(window.vegaEmbed);
      script.onerror = () => reject(new Error("app/vega.js is missing: copy the whole explorer folder."));
      document.head.append(script);
    });
    return library;
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function theme() {
    const [ink, quiet, line] = ["ink", "quiet", "line"].map(colour);
    const axis = { domainColor: line, gridColor: line, tickColor: line, labelColor: quiet, titleColor: ink };
    return {
      background: "transparent",
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: { ...axis, titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12, gridOpacity: 0.6 },
      legend: { labelColor: ink, titleColor: ink, titleFontWeight: "normal", symbolOpacity: 1 },
      title: { color: ink, anchor: "start", fontSize: 13 },
      header: { labelColor: ink, titleColor: ink },
      mark: { color: colour("accent") },
      text: { color: ink },
    };
  }

  /** The colours of the grid's layers (`kind` layer) or ks. */
  function scale(grid, kind) {
    const { values, ...colours } = grid.scales[kind];
    return { domain: values, range: colours[document.documentElement.dataset.theme] };
  }

  /**
   * A chart with a button that saves it as SVG.
   * name: of the saved file. about: a description, also for screen readers. spec: its height includes the axes.
   * drawn: is called with Vega's view. room: height in pixels that is kept free until the chart is drawn.
   */
  function chart({ name, about, spec, drawn, room = spec.height }) {
    const waiting = h("span", { class: "quiet" }, "Drawing…");
    const place = h("div", { class: "plot", role: "img", "aria-label": about, style: `min-height:${room}px` }, waiting);
    let view = null;
    async function saveSvg() {
      if (view) save(`${name}.svg`, "image/svg+xml", await view.toSVG());
    }
    async function draw() {
      const embed = await loaded();
      await new Promise(requestAnimationFrame); // until the element has a width: charts follow it
      const $schema = "https://vega.github.io/schema/vega-lite/v6.json";
      const whole = { $schema, width: "container", autosize: { type: "fit", contains: "padding" }, ...spec };
      const options = { actions: false, config: theme(), renderer: "canvas", tooltip: true, ast: false };
      ({ view } = await embed(place, whole, options));
      drawn?.(view);
    }
    draw().catch((error) => place.replaceChildren(h("p", { class: "error" }, String(error.message ?? error))));
    const button = h("button", { type: "button", class: "minor", onclick: saveSvg }, "save SVG");
    return h("figure", { class: "chart" }, place, h("figcaption", {}, about, " ", button));
  }

  return { chart, colour, scale };
})();
