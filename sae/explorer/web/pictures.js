"use strict";
// Images as the model saw them, and where a latent fires on them.

const heat = (() => {
  let on = true;
  let opacity = 0.75;

  function apply() {
    document.documentElement.style.setProperty("--heat", on ? opacity : 0);
    document.documentElement.dataset.heat = on ? "on" : "off";
    for (const box of document.querySelectorAll("input.heat-on")) box.checked = on;
  }

  function toggle() {
    on = !on;
    apply();
  }

  /** The controls of all maps on the page. */
  function controls() {
    const slider = { type: "range", min: 0.1, max: 1, step: 0.05, value: opacity };
    const box = h("input", { type: "checkbox", class: "heat-on", onchange: toggle });
    box.checked = on;
    const scale = Array.from({ length: 9 }, (_, i) => `rgb(${viridis(i / 8)})`);
    return h(
      "div",
      { class: "heat-controls" },
      h("label", {}, box, " heat map"),
      h("label", {}, "opacity ", h("input", { ...slider, oninput: (e) => ((opacity = Number(e.target.value)), apply()) })),
      h("span", { class: "ramp-label" }, "weak ", h("span", { class: "ramp", style: `background:linear-gradient(90deg,${scale})` }), " strong"),
    );
  }

  /**
   * A canvas of one pixel per patch: transparent where the latent is silent.
   * patches: their places; values: 1 to 255, in steps of 1/255 of the scale.
   */
  function map(rows, columns, patches, values) {
    const canvas = h("canvas", { class: "heat", width: columns, height: rows, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    patches.forEach((patch, n) => {
      const strength = values[n] / 255;
      pixels.data.set([...viridis(strength), Math.round(255 * (0.35 + 0.65 * strength))], 4 * patch);
    });
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  return { apply, controls, map, toggle };
})();

/** Splits packed places and values by `counts`: a list of {places, values}. */
function spread(counts, places, values) {
  const found = [];
  let first = 0;
  for (const count of counts) {
    found.push({ places: places.slice(first, first + count), values: values.slice(first, first + count) });
    first += count;
  }
  return found;
}

/** What is known of the images, by id; made once. */
let imagesKnown = null;
async function imageFacts() {
  imagesKnown ??= parts.load("images").then((list) => {
    const place = new Map(list.id.map((id, i) => [id, i]));
    const heldOut = unpack(list.held_out, 1);
    const opened = new Map(list.opened.map((i, n) => [list.id[i], n]));
    const attributes = Object.entries(list.attributes);
    const facts = (id) => {
      const i = place.get(id);
      const named = attributes.map(([name, { names, codes }]) => [name, names[codes[i]]]).filter(([, v]) => v !== undefined);
      return { id, path: list.path[i], heldOut: heldOut[i] === 1, place: opened.get(id), named };
    };
    return { facts, all: list.opened.map((i) => list.id[i]) };
  });
  return imagesKnown;
}

const labelOf = (facts) => facts.named.find(([name]) => name === "label")?.[1] ?? facts.path.split("/").pop();

/** An image with an optional heat map and a box around one patch. */
function picture(grid, facts, { map, patch = -1, caption, href }) {
  const [rows, columns] = grid.geometry.grid;
  const [height, width] = grid.geometry.side;
  const box =
    patch >= 0 &&
    h("span", {
      class: "box",
      style: `left:${(100 * (patch % columns)) / columns}%;top:${(100 * Math.floor(patch / columns)) / rows}%;width:${100 / columns}%;height:${100 / rows}%`,
    });
  const image = h("img", { src: `pictures/${facts.id}.webp`, alt: facts.path, loading: "lazy", width, height });
  const frame = h("span", { class: "frame", style: `aspect-ratio:${width}/${height}` }, image, map, box);
  const wrapped = href ? h("a", { href, title: facts.path }, frame) : frame;
  return h("figure", { class: "picture" }, wrapped, caption && h("figcaption", {}, caption));
}
