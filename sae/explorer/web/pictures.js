"use strict";
// Images as the ViT sees them, and maps of the patches on which a latent fires.

const pictures = (() => {
  const { h, ramp, viridis } = core;

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
      const dim = (event) => ((opacity = Number(event.target.value)), apply());
      return h(
        "div",
        { class: "heat-controls" },
        h("label", {}, box, " heat map"),
        h("label", {}, "opacity ", h("input", { ...slider, oninput: dim })),
        h("span", { class: "ramp-label" }, "weak ", ramp(), " strong"),
      );
    }

    /**
     * A canvas of one pixel per patch, transparent where the latent is silent.
     * values: 1 to 255 for each of `patches`, in steps of 1/255 of the scale.
     */
    function map(grid, patches, values) {
      const [height, width] = grid.geometry.patches;
      const canvas = h("canvas", { class: "heat", width, height, "aria-hidden": "true" });
      const context = canvas.getContext("2d");
      const pixels = context.createImageData(width, height);
      patches.forEach((patch, n) => {
        const strength = values[n] / 255;
        pixels.data.set([...viridis(strength), Math.round(255 * (0.35 + 0.65 * strength))], 4 * patch);
      });
      context.putImageData(pixels, 0, 0);
      return canvas;
    }

    return { apply, controls, map, toggle };
  })();

  let known = null;
  /** Resolves to {all, facts}: the ids of the images that can be opened, and a function from an id to its facts. */
  function load() {
    known ??= parts.load("images").then((list) => {
      const place = new Map(list.id.map((id, i) => [id, i]));
      const heldOut = parts.unpack(list.held_out, 1);
      const opened = new Map(list.opened.map((i, n) => [list.id[i], n]));
      const attributes = Object.entries(list.attributes);
      const facts = (id) => {
        const i = place.get(id);
        const values = attributes.map(([name, { names, codes }]) => [name, names[codes[i]]]);
        const named = values.filter(([, value]) => value !== undefined);
        return { id, path: list.path[i], heldOut: heldOut[i] === 1, place: opened.get(id), named };
      };
      return { all: list.opened.map((i) => list.id[i]), facts };
    });
    return known;
  }

  const label = (facts) => facts.named.find(([name]) => name === "label")?.[1] ?? facts.path.split("/").pop();

  /** A star behind the label of a held-out image. */
  const star = (facts) => (facts.heldOut ? h("abbr", { title: "held-out image" }, "*") : "");

  /** The row and column of a patch. */
  const position = (grid, patch) => {
    const [, columns] = grid.geometry.patches;
    return [Math.floor(patch / columns), patch % columns];
  };

  /** The CSS of a box around a patch. */
  function around(grid, patch) {
    const [rows, columns] = grid.geometry.patches;
    const [row, column] = position(grid, patch);
    const edges = { left: column / columns, top: row / rows, width: 1 / columns, height: 1 / rows };
    return Object.entries(edges)
      .map(([edge, share]) => `${edge}:${100 * share}%`)
      .join(";");
  }

  /** An image with an optional heat map and a box around one patch. */
  function picture(grid, facts, { map, patch = -1, caption, href }) {
    const [height, width] = grid.geometry.side;
    const box = patch >= 0 && h("span", { class: "box", style: around(grid, patch) });
    const image = h("img", { src: `pictures/${facts.id}.webp`, alt: facts.path, loading: "lazy", width, height });
    const frame = h("span", { class: "frame", style: `aspect-ratio:${width}/${height}` }, image, map, box);
    const shown = href ? h("a", { href, title: facts.path }, frame) : frame;
    return h("figure", { class: "picture" }, shown, caption && h("figcaption", {}, caption));
  }

  return { around, heat, label, load, picture, position, star };
})();
