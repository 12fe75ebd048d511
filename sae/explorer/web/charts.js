"use strict";
// Charts are Vega-Lite specifications; the library is loaded when the first one is drawn.

const charts = (() => {
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

  /** Layers in the order of the blocks: dark to light where the page is light, and the other way round. */
  function layerScale(layers) {
    const dark = document.documentElement.dataset.theme === "dark";
    const extent = dark ? [1, 0.25] : [0, 0.82];
    const at = (i) => (layers.length > 1 ? i / (layers.length - 1) : 0.4);
    const colours = layers.map((_, i) => `rgb(${viridis(extent[0] + at(i) * (extent[1] - extent[0]))})`);
    return { domain: layers, range: colours };
  }

  /**
   * Draws a chart with a button that saves it as SVG.
   * name: of the saved file. about: what it shows, for those who do not see it. spec: its height is the whole chart's.
   * drawn: called with Vega's view. room: kept free in pixels, so that nothing below moves when the chart comes.
   */
  function chart({ name, about, spec, drawn, room = spec.height }) {
    const place = h("div", { class: "plot", role: "img", "aria-label": about, style: `min-height:${room}px` }, h("span", { class: "quiet" }, "Drawing…"));
    let view = null;
    const button = h("button", { type: "button", class: "minor", onclick: saveSvg }, "save SVG");
    async function saveSvg() {
      if (view) save(`${name}.svg`, "image/svg+xml", await view.toSVG());
    }
    loaded()
      .then((embed) => {
        const whole = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", autosize: { type: "fit", contains: "padding" }, ...spec };
        // Waits until the element has a width: charts follow it.
        return new Promise((r) => requestAnimationFrame(r)).then(() =>
          embed(place, whole, { actions: false, config: theme(), renderer: "canvas", tooltip: true, ast: false }),
        );
      })
      .then((result) => {
        view = result.view;
        drawn?.(view);
      })
      .catch((error) => place.replaceChildren(h("p", { class: "error" }, String(error.message ?? error))));
    return h("figure", { class: "chart" }, place, h("figcaption", {}, about, " ", button));
  }

  return { chart, colour, layerScale };
})();
