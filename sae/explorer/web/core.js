"use strict";
// Helpers that every view uses: elements, numbers as text, links, grid points, CSV.

const core = (() => {
  /**
   * An element. Attributes: `on…` are listeners, all others are set as they are; true is an empty attribute; null,
   * undefined and false are left out. Children: elements, text, or lists of these. Text stays text, whatever it holds:
   * this page never parses anything as HTML.
   */
  function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
    return element;
  }

  /** A number as text: shares in %, others with three digits; – for null. */
  function show(value, unit = "number") {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (unit === "share") {
      const percent = 100 * value;
      const small = percent !== 0 && Math.abs(percent) < 0.0095;
      return small ? "<0.01\u00a0%" : `${Number(percent.toPrecision(percent < 10 ? 2 : 3))}\u00a0%`;
    }
    if (unit === "id") return String(value);
    return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(3)));
  }

  const link = {
    /** "#layer=6&k=32" -> {layer: "6", k: "32"} */
    read: (hash) => Object.fromEntries(new URLSearchParams(hash.replace(/^#/, ""))),
    /** The reverse; leaves out empty values. */
    write(values) {
      const given = Object.entries(values).filter(([, v]) => v !== null && v !== undefined && v !== "");
      return `#${new URLSearchParams(given)}`;
    },
  };

  /** Rows of cells as CSV (RFC 4180). Text that a spreadsheet would run as a formula gets an apostrophe in front. */
  function csv(rows) {
    const cell = (value) => {
      if (value === null || value === undefined) return "";
      const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return `${rows.map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
  }

  /** Offers text as a file to save. */
  function save(name, type, text) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    h("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  /** Viridis (Smith & van der Walt 2015) at 0 to 1, linear between nine of its colours; [r, g, b]. */
  function viridis(t) {
    const stops = [0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c, 0x28ae80, 0x5ec962, 0xaddc30, 0xfde725];
    const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    const channel = (stop, shift) => (stop >> shift) & 255;
    const [below, above] = [stops[low], stops[low + 1]];
    return [16, 8, 0].map((s) => Math.round(channel(below, s) + (at - low) * (channel(above, s) - channel(below, s))));
  }

  /** A bar that shows viridis from its low to its high end. */
  function ramp() {
    const stops = Array.from({ length: 9 }, (_, i) => `rgb(${viridis(i / 8)})`);
    return h("span", { class: "ramp", style: `background:linear-gradient(90deg,${stops})` });
  }

  /** localStorage, where the browser gives one to pages from disk. */
  const remembered = {
    get(key) {
      try {
        return localStorage.getItem(key);
      } catch {
        return null;
      }
    },
    set(key, value) {
      try {
        localStorage.setItem(key, value);
      } catch {
        // Then the page forgets it.
      }
    },
  };

  /** A grid point's folder under data/. */
  const pathOf = (point) => `layer=${point.layer}/k=${point.k}/method=${point.method}/seed=${point.seed}`;

  /** The name of a file that is saved from the page of a grid point. */
  const fileName = (grid, point) => `${grid.name}-${pathOf(point).replaceAll("/", "-")}`;

  /** The first SAE of the grid that fits a link's parameters; undefined if there is none. */
  function pointOf(grid, params) {
    const wanted = ["layer", "k", "method", "seed"].filter((key) => params[key] !== undefined);
    const fits = (point) => wanted.every((key) => String(point[key]) === params[key]);
    return grid.points.find((point) => grid.methods.includes(point.method) && fits(point));
  }

  /** The parameters of a link to a point; method and seed only where the grid has several. */
  function pointLink(grid, point) {
    const seeds = new Set(grid.points.map((p) => p.seed));
    return {
      layer: point.layer,
      k: point.k,
      method: grid.methods.length > 1 ? point.method : undefined,
      seed: seeds.size > 1 ? point.seed : undefined,
    };
  }

  /** A link to a latent of a point. */
  const latentLink = (grid, point, latent) => link.write({ ...pointLink(grid, point), latent });

  /** "layer 6, k 32, seed 0" */
  function pointName(grid, point) {
    const named = Object.entries(pointLink(grid, point)).filter(([, value]) => value !== undefined);
    return named.map(([key, value]) => (key === "method" ? value : `${key} ${value}`)).join(", ");
  }

  const sameKind = (a, b) => a.k === b.k && a.method === b.method && a.seed === b.seed;

  /** The SAEs of all layers with the k, method and seed of a point. */
  const layersBeside = (grid, point) =>
    grid.points.filter((other) => sameKind(other, point)).sort((a, b) => a.layer - b.layer);

  /** A list of the grid's ks, methods and seeds; linkTo: the address of a view for a point. */
  function kindSelect(grid, chosen, linkTo) {
    const saes = grid.points.filter((p) => grid.methods.includes(p.method));
    const kinds = [...new Map(saes.map((p) => [JSON.stringify([p.k, p.method, p.seed]), p])).values()];
    const name = (p) => pointName(grid, p).replace(/^layer \d+, /, "");
    const options = kinds.map((p, n) => h("option", { value: n, selected: sameKind(p, chosen) }, name(p)));
    const open = (event) => (location.hash = linkTo(kinds[event.target.value]));
    return h("select", { id: "which", onchange: open }, options);
  }

  /** The view of a link without a target. */
  const notThere = (text) => [
    h("h1", {}, "Not here"),
    h("p", {}, text),
    h("p", {}, h("a", { href: "#" }, "To the grid")),
  ];

  return {
    csv,
    fileName,
    h,
    kindSelect,
    latentLink,
    layersBeside,
    link,
    notThere,
    pathOf,
    pointLink,
    pointName,
    pointOf,
    ramp,
    remembered,
    save,
    show,
    viridis,
  };
})();
