"use strict";
// What every view uses: loading parts, making elements, writing numbers, links and CSV. Plain scripts share their
// top-level names, since browsers load no modules from disk.

/** Data parts: each is a script that calls parts.take(name, value). */
const parts = (() => {
  const known = new Map();

  function entry(name) {
    if (!known.has(name)) {
      const made = {};
      made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
      known.set(name, made);
    }
    return known.get(name);
  }

  /** Loads data/<name>.js once; rejects where it is missing or broken. */
  function load(name) {
    const { promise, reject, asked } = entry(name);
    if (!asked) {
      entry(name).asked = true;
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      const failed = () => reject(new Error(`data/${name}.js is missing or broken: copy the whole explorer folder.`));
      script.onerror = failed;
      script.onload = () => (script.remove(), failed()); // no effect if the part has been taken
      document.head.append(script);
    }
    return promise;
  }

  return { load, take: (name, value) => entry(name).resolve(value) };
})();

/** Unsigned integers of `bytes` bytes each from base64, little-endian. */
function unpack(text, bytes) {
  const raw = atob(text);
  const octets = Uint8Array.from(raw, (c) => c.charCodeAt(0));
  if (bytes === 1) return octets;
  const view = new DataView(octets.buffer);
  const read = bytes === 2 ? (i) => view.getUint16(2 * i, true) : (i) => view.getUint32(4 * i, true);
  return Array.from({ length: octets.length / bytes }, (_, i) => read(i));
}

/**
 * An element. Attributes: `on…` are listeners, `class` and all others are set as they are; true is an empty attribute;
 * null, undefined and false are left out. Children: elements, text, or lists of these. Text stays text, whatever it
 * holds: nothing in this page is ever parsed as HTML.
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

/** A number for people: shares as %, others at three digits; – for what is not known. */
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
  /** The reverse; leaves out what is missing. */
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
  const anchor = h("a", { href: url, download: name });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Viridis (Smith & van der Walt 2015) at 0 to 1, by straight lines between nine of its colours; [r, g, b]. */
function viridis(t) {
  const stops = [0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c, 0x28ae80, 0x5ec962, 0xaddc30, 0xfde725];
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const part = (stop, shift) => (stop >> shift) & 255;
  return [16, 8, 0].map((s) => Math.round(part(stops[low], s) + (at - low) * (part(stops[low + 1], s) - part(stops[low], s))));
}

/** The browser's store where it has one: some give none to pages from disk. */
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
      // Not remembered, then.
    }
  },
};

/** A grid point's folder under data/, and its name for people. */
const pathOf = (point) => `layer=${point.layer}/k=${point.k}/method=${point.method}/seed=${point.seed}`;

/** The point that a link means: what it leaves out is the first SAE's. Undefined if the grid has none like it. */
function pointOf(grid, params) {
  const wanted = ["layer", "k", "method", "seed"].filter((key) => params[key] !== undefined);
  return grid.points.find((p) => grid.methods.includes(p.method) && wanted.every((key) => String(p[key]) === params[key]));
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

function pointName(grid, point) {
  const { layer, k, method, seed } = pointLink(grid, point);
  return `layer ${layer}, k ${k}${method ? `, ${method}` : ""}${seed === undefined ? "" : `, seed ${seed}`}`;
}
