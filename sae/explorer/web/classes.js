"use strict";
// The list of classes; and the page of one class: the latents that find it and those that raise its prediction.

const classes = (() => {
  const { h, latentLink, link, pathOf, pointLink, show } = core;

  /** "colour: red", or the name alone where the attribute says nothing. */
  const nameOf = ([attribute, name]) => (["label", "class"].includes(attribute) ? name : `${attribute}: ${name}`);

  function listView(grid) {
    const place = h("div", { class: "class-list" });
    const count = h("p", { role: "status", class: "count" });
    const search = h("input", { type: "search", id: "search", placeholder: "class", oninput: draw });

    function draw() {
      const text = search.value.trim().toLowerCase();
      const numbered = grid.classes.map((known, number) => ({ known, number }));
      const found = numbered.filter(({ known }) => nameOf(known).toLowerCase().includes(text));
      const groups = Map.groupBy(found, ({ known }) => known[0]);
      place.replaceChildren(
        ...[...groups].map(([attribute, rows]) => {
          const items = rows.map(({ known, number }) => {
            const anchor = h("a", { href: link.write({ class: number }) }, known[1]);
            return h("li", {}, anchor, h("span", { class: "quiet" }, ` ${show(known[2])} images`));
          });
          return h("section", {}, h("h2", {}, attribute), h("ul", { class: "links" }, items));
        }),
      );
      count.textContent = `${show(found.length)} of ${show(grid.classes.length)} classes`;
    }
    draw();
    const note = "Choose a class to see its latents in every layer.";
    return [
      h("h1", {}, "Classes"),
      h("p", { class: "quiet" }, note),
      h("div", { class: "row" }, h("label", {}, "Search ", search), count),
      place,
    ];
  }

  async function view(grid, params) {
    const number = Number(params.class);
    const known = grid.classes[number];
    if (!known) return core.notThere(`There is no class ${params.class}.`);
    const first = core.pointOf(grid, params) ?? grid.points[0];
    const { facts } = await pictures.load();
    const load = async (point) => ({
      point,
      entry: await parts.loadEntry(`${pathOf(point)}/classes`, number, grid.files.classes),
    });
    const loaded = await Promise.all(core.layersBeside(grid, first).map(load));
    const linkTo = (point) => link.write({ class: number, ...pointLink(grid, point), layer: undefined });
    const [, , all, heldOut] = known;
    const finest = loaded.filter(({ entry }) => entry.best).sort((a, b) => b.entry.best[2] - a.entry.best[2])[0];
    return [
      h("h1", {}, nameOf(known)),
      h("p", {}, `${show(all)} images, ${show(heldOut)} of them held out. `, answer(grid, finest)),
      finest && missed(grid, finest, facts),
      h(
        "div",
        { class: "row" },
        h("h2", {}, "Its latents by layer"),
        h("label", {}, "SAEs with ", core.kindSelect(grid, first, linkTo)),
      ),
      h(
        "div",
        { class: "layers wide-layers" },
        loaded.map((layer) => layerOf(grid, layer)),
      ),
    ];
  }

  /** One sentence about the best latent of all layers. */
  function answer(grid, finest) {
    if (!finest) return "It has too few images to be tested.";
    const { point, entry } = finest;
    const [latent, f1] = entry.best;
    const anchor = h("a", { href: latentLink(grid, point, latent) }, `latent ${latent} of layer ${point.layer}`);
    return [
      "On train images, the latent that finds it best is ",
      anchor,
      `. On held-out images, its F1 is ${show(f1)}.`,
    ];
  }

  /** Held-out images of the class that its best latent flags, and those that it misses. */
  function missed(grid, { entry, point }, facts) {
    const [latent, , , flagged, missing] = entry.best;
    const strip = (ids, title) => {
      const shown = ids.map((id) => pictures.picture(grid, facts(id), { href: link.write({ image: id }) }));
      const none = h("p", { class: "quiet" }, "None of the images that can be opened.");
      return h("div", {}, h("h3", {}, title), ids.length ? h("div", { class: "pictures" }, shown) : none);
    };
    const where = `Latent ${latent}, layer ${point.layer}`;
    return h(
      "section",
      { class: "columns" },
      strip(flagged, `${where} flags these held-out images of the class`),
      strip(missing, "and misses these"),
    );
  }

  function layerOf(grid, { point, entry }) {
    const anchor = (latent) => h("a", { href: latentLink(grid, point, latent) }, latent);
    const selective = entry.latents.map(([latent, mcc, confirmed, precision, recall, also]) =>
      h(
        "tr",
        {},
        h("td", {}, anchor(latent)),
        h("td", { class: confirmed ? null : "quiet" }, show(mcc)),
        h("td", {}, show(precision, "share")),
        h("td", {}, show(recall, "share")),
        h("td", { class: "text quiet" }, also.join(", ")),
      ),
    );
    const most = Math.max(...entry.effects.map((row) => row[1]), 1e-9);
    const effects = entry.effects.map(([latent, effect, control, active, images]) =>
      h(
        "tr",
        { title: `fires on ${active} of ${images} images; random direction: ${show(control)} nats` },
        h("td", {}, anchor(latent)),
        h("td", {}, show(effect)),
        h(
          "td",
          { class: "text" },
          h("span", { class: "bar" }, h("span", { style: `width:${(100 * effect) / most}%` })),
        ),
      ),
    );
    const located = entry.pointing?.every((value) => value !== null) && [
      `The strongest patch of its best latent lies on the object in ${show(entry.pointing[0], "share")} of its images `,
      `(${show(entry.pointing[1], "share")} by chance).`,
    ];
    const table = (name, head, rows, none) => [
      h("h4", {}, name),
      rows.length
        ? h("table", { class: "plain" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))
        : h("p", { class: "quiet" }, none),
    ];
    const th = (name, title, kind) => h("th", { scope: "col", title, class: kind }, name);
    return h(
      "section",
      {},
      h("h3", {}, `layer ${point.layer}`),
      table(
        "Most selective",
        [
          th("latent"),
          th("MCC", "Correlation with the class on held-out images; grey: not confirmed."),
          th("precision", "Share of the held-out images it flags that show the class."),
          th("recall", "Share of the held-out images of the class that it flags."),
          th("also", "Other classes that are confirmed for it.", "text"),
        ],
        selective,
        "No latent has this class among its best.",
      ),
      located && h("p", { class: "quiet" }, located),
      table(
        "Raise the ViT's prediction (estimated)",
        [
          th("latent"),
          th("nats", "Mean estimated effect over the held-out images for which the ViT predicts the class."),
          th(""),
        ],
        effects,
        "The ViT predicts this class for no held-out image, or no latent raises it.",
      ),
    );
  }

  return { listView, nameOf, view };
})();
