"use strict";
// One latent: what it responds to, what speaks for and against it, and where else it is found.

const PANELS = [
  ["top", "Strongest images"],
  ["q75", "Around 75 % of its images"],
  ["q50", "Around the middle (50 %)"],
  ["q25", "Around 25 %"],
  ["silent", "Silent on these, drawn at random"],
];
const EDGES = Array.from({ length: 25 }, (_, i) => 2 ** (-6 + i / 2)); // of the histogram, as in sae/ranking.py

async function aboutLatent(grid, point, latent) {
  const [file, place] = [Math.floor(latent / grid.files.latents), latent % grid.files.latents];
  return (await parts.load(`${pathOf(point)}/latents/${String(file).padStart(4, "0")}`))[place];
}

async function latentView(grid, params) {
  const point = pointOf(grid, params);
  if (!point) return notThere(grid, `There is no SAE for ${JSON.stringify(params)} in this grid.`);
  const latent = Number(params.latent);
  const table = await tableOf(grid, point);
  if (!Number.isInteger(latent) || !(latent >= 0 && latent < table.size)) {
    return notThere(grid, `Latents of this SAE are numbered 0 to ${table.size - 1}; there is no latent ${params.latent}.`);
  }
  const [about, images] = await Promise.all([aboutLatent(grid, point, latent), imageFacts()]);
  const here = pointLink(grid, point);
  const marks = { yes: "✓", no: "✗", open: "?" };
  const words = { yes: "for", no: "against", open: "not known" };
  const checks = about.checks.map(([verdict, text]) =>
    h("li", { class: verdict }, h("span", { class: "mark", "aria-label": words[verdict], role: "img" }, marks[verdict]), " ", text),
  );
  const top = [h("h1", {}, `Latent ${latent}`), h("p", { class: "answer", id: "headline" }, about.headline), checks.length > 0 && h("ul", { class: "checks" }, checks), steps(grid, point, table, latent)];
  if (!table.alive[latent]) return top;
  return [
    ...top,
    pictureRows(grid, point, about, images),
    h(
      "section",
      { class: "columns" },
      h("div", {}, h("h2", {}, "How strongly it fires"), histogram(grid, point, table, latent, about), whereItFires(grid, about)),
      h("div", {}, h("h2", { id: "classes" }, "Classes"), classTable(about), h("h2", {}, "What it does to the ViT's output"), causes(grid, point, latent, about)),
    ),
    h("section", { class: "columns" }, h("div", {}, h("h2", {}, "Nearest in this SAE"), nearest(grid, point, table, about)), h("div", {}, h("h2", {}, "Its relatives elsewhere"), await relatives(grid, point, about))),
    h("p", { class: "quiet" }, "Link to this latent: ", h("a", { href: link.write({ ...here, latent }) }, link.write({ ...here, latent }))),
  ];
}

/** The latent `step` places on in the order of the table last shown, or by number where none was. */
function neighbour(point, table, latent, step) {
  const rows = orders.get(pathOf(point)) ?? table.latent;
  const at = rows.indexOf(latent);
  const order = at < 0 ? table.latent : rows;
  return order[(order.indexOf(latent) + step + order.length) % order.length];
}

/** A latent that fires, that no place or artefact explains, and whose class is confirmed or which is stable. */
function interesting(grid, table) {
  const alive = table.latent.filter((i) => table.alive[i] && table.role[i] < 0);
  const good = alive.filter((i) => table.class[i] >= 0 || table.stability[i] >= grid.found);
  const pool = good.length ? good : alive.length ? alive : table.latent;
  return pool[Math.floor(Math.random() * pool.length)];
}

function steps(grid, point, table, latent) {
  const here = pointLink(grid, point);
  const to = (other) => link.write({ ...here, latent: other });
  const jump = (event) => {
    event.preventDefault();
    const number = event.target.elements.number.value.trim();
    if (/^\d+$/.test(number)) location.hash = to(number);
  };
  return h(
    "div",
    { class: "row steps" },
    h("a", { class: "button", id: "previous", href: to(neighbour(point, table, latent, -1)), title: "key: ←" }, "← previous"),
    h("a", { class: "button", id: "next", href: to(neighbour(point, table, latent, 1)), title: "key: →" }, "next →"),
    h("button", { type: "button", id: "random", title: "key: r", onclick: () => (location.hash = to(interesting(grid, table))) }, "random interesting one"),
    h("form", { onsubmit: jump }, h("label", {}, "latent ", h("input", { name: "number", inputmode: "numeric", size: 5 })), " ", h("button", { type: "submit" }, "go")),
  );
}

function pictureRows(grid, point, about, images) {
  const [, columns] = grid.geometry.grid;
  const lit = spread(unpack(about.counts, 2), unpack(about.patches, 2), unpack(about.values, 1));
  const patches = grid.tokens !== "class";
  let next = 0;
  const rows = PANELS.map(([panel, title]) => {
    const cells = about.panels[panel].map(([image, activation, patch]) => {
      const facts = images.facts(image);
      const where = panel === "silent" || !patches ? null : lit[next];
      if (panel !== "silent") next += 1;
      const map = where && heat.map(...grid.geometry.grid, where.places, where.values);
      const at = patch >= 0 ? `row ${Math.floor(patch / columns)}, column ${patch % columns}` : panel === "silent" ? "" : patches ? "on a prefix token" : "";
      const caption = [
        h("b", { title: at ? `strongest at ${at}` : null }, show(activation)),
        facts.heldOut ? h("abbr", { title: "held-out image" }, "*") : "",
        " ",
        h("span", { title: facts.path }, labelOf(facts)),
      ];
      const href = facts.place === undefined ? null : link.write({ ...pointLink(grid, point), image, patch: patch >= 0 ? `${Math.floor(patch / columns)},${patch % columns}` : undefined });
      const made = picture(grid, facts, { map, patch, caption, href });
      made.dataset.patch = patch;
      return made;
    });
    return cells.length > 0 && h("section", { class: "panel", "data-panel": panel }, h("h3", {}, title), h("div", { class: "pictures" }, cells));
  });
  const note = patches
    ? `Lit where it fires (scale: 0 to ${show(about.scale)}); the box is its strongest patch. Below: activation there, label; * held-out image. Near duplicates of a shown image are left out.`
    : "This SAE reads the class token alone, so there are no maps. Below: activation, label; * held-out image.";
  return h("section", { "aria-label": "Images" }, h("div", { class: "row" }, h("h2", {}, "Images"), patches && heat.controls()), h("p", { class: "quiet" }, note), rows[0], h("div", { class: "panels" }, rows.slice(1)));
}

function histogram(grid, point, table, latent, about) {
  const values = about.histogram.map((count, i) => ({ low: EDGES[i], high: EDGES[i + 1], count }));
  const used = values.filter((v) => v.count);
  const total = used.reduce((sum, v) => sum + v.count, 0);
  const spec = {
    height: 205,
    data: { values: values.filter((v) => v.high >= used[0].low && v.low <= used.at(-1).high) },
    mark: { type: "rect", tooltip: true, stroke: charts.colour("paper") },
    encoding: {
      x: { field: "low", type: "quantitative", scale: { type: "log", base: 2, nice: false }, title: "activation", axis: { format: "~g", tickCount: 6 } },
      x2: { field: "high" },
      y: { field: "count", type: "quantitative", title: "tokens", axis: { format: "~s" } },
      y2: { datum: 0 },
      tooltip: [{ field: "low", format: ".3~g", title: "from" }, { field: "high", format: ".3~g", title: "to" }, { field: "count", title: "tokens" }],
    },
  };
  const [train, heldOut] = about.density;
  const text = `Activations on the ${show(total)} tokens on which it fires; mean ${show(about.mean)}, largest ${show(table.max[latent])}. It fires on ${show(train, "share")} of the train and ${show(heldOut, "share")} of the held-out tokens, somewhere in ${show(table.images[latent], "share")} of all images.`;
  return charts.chart({ name: `${grid.name}-${pathOf(point).replaceAll("/", "-")}-latent-${latent}`, about: text, spec });
}

function whereItFires(grid, about) {
  const entries = grid.on.map((key, i) => {
    const [name, unit, text] = ON[key];
    return about.on[i] !== null && h("div", { title: text }, h("dt", {}, name), h("dd", {}, show(about.on[i], unit)));
  });
  return h("details", {}, h("summary", {}, "Where it fires"), h("dl", {}, entries));
}

function classTable(about) {
  if (!about.classes.length) return h("p", { class: "quiet" }, "No image on which it fires has a label.");
  const share = (a, b) => (b ? show(a / b, "share") : "–");
  const between = ([low, high]) => (low === null ? "" : `(${show(low, "share")} to ${show(high, "share")})`);
  const rows = about.classes.map((c) => {
    const [support, flagged, right, auroc] = c.held_out;
    const [supportTrain, flaggedTrain, rightTrain, aurocTrain] = c.train;
    const name = c.attribute === "label" ? c.name : `${c.attribute}: ${c.name}`;
    const verdict = c.q === null ? "too few images" : c.confirmed ? "✓ confirmed" : "not confirmed";
    return h(
      "tbody",
      {},
      h("tr", {}, h("th", { scope: "rowgroup", rowspan: 2, class: "text" }, name, h("br"), h("small", { class: c.confirmed ? "yes" : "quiet", title: c.q === null ? null : `q = ${c.q}` }, verdict)),
        h("td", {}, "train"), h("td", {}, share(rightTrain, flaggedTrain), h("small", {}, ` ${rightTrain} of ${flaggedTrain}`)), h("td", {}, share(rightTrain, supportTrain), h("small", {}, ` of ${supportTrain}`)), h("td", {}, show(aurocTrain))),
      h("tr", {}, h("td", { class: "narrow" }, "held out"), h("td", {}, share(right, flagged), h("small", {}, ` ${right} of ${flagged}`), " ", h("small", {}, between(c.precision))), h("td", {}, share(right, support), h("small", {}, ` of ${support}`), " ", h("small", {}, between(c.recall))), h("td", {}, show(auroc))),
    );
  });
  const head = [
    ["class", "The classes with the highest MCC on train images, tested ones first.", "text"],
    ["split", "The threshold is chosen on train images; held-out ones are judged at the same.", null],
    ["precision", "Of the images on which it reaches its threshold: share that show the class. In brackets: exact 95 % interval (Clopper & Pearson).", null],
    ["recall", "Of the images that show the class: share on which it reaches its threshold. In brackets: exact 95 % interval.", null],
    ["AUROC", "Of its strongest activation, for the class against the rest: 0.5 by chance.", null],
  ].map(([name, title, kind]) => h("th", { scope: "col", title, class: kind }, name));
  return h("div", { class: "wide" }, h("table", { class: "plain" }, h("thead", {}, h("tr", {}, head)), rows));
}

function causes(grid, point, latent, about) {
  const { cause } = about;
  if (!cause) return h("p", { class: "quiet" }, "Not measured: it was not among the latents drawn for ablation (evidence.latents in the config).");
  const kinds = { ablate: "taken out", control: "a random latent taken out", steer: "added where silent" };
  const [own, control, steered] = cause.size.map((s) => show(s));
  const unit = cause.measure === "kl" ? "nats (KL)" : cause.measure;
  const text = `Taken out on the ${cause.images} held-out images on which it is strongest, it moves the output by ${own} ${unit}; a random latent of the same norm moves it by ${control}${cause.p === null ? "" : ` (p = ${cause.p})`}; added to images on which it is silent, by ${steered}.`;
  const values = cause.effects.map(([kind, attribute, name, effect, se]) => ({ kind: kinds[kind], class: attribute === "label" || attribute === "class" ? name : `${attribute}: ${name}`, effect, low: effect - 2 * (se ?? 0), high: effect + 2 * (se ?? 0) }));
  if (!values.length) return h("p", {}, text);
  const ends = [Math.min(0, ...values.map((v) => v.low)), Math.max(0, ...values.map((v) => v.high))];
  const x = { type: "quantitative", scale: { domain: ends, nice: true }, axis: { tickCount: 5 }, title: null };
  const y = { field: "class", type: "nominal", sort: null, title: null, axis: { labelLimit: 150, minExtent: 150 } };
  const shown = Object.values(kinds).filter((kind) => values.some((v) => v.kind === kind));
  const spec = {
    width: undefined,
    autosize: undefined,
    spacing: 8,
    vconcat: shown.map((kind, place) => ({
      title: { text: kind, fontSize: 12, fontWeight: "normal" },
      data: { values: values.filter((v) => v.kind === kind) },
      width: 240,
      height: { step: 15 },
      layer: [
        { mark: { type: "bar", tooltip: true }, encoding: { y, x: { ...x, field: "effect", stack: null, title: place === shown.length - 1 ? "effect on the log-odds, nats" : null } } },
        { mark: { type: "rule", color: charts.colour("ink") }, encoding: { y, x: { ...x, field: "low" }, x2: { field: "high" } } },
      ],
    })),
  };
  const about2 = `${text} Bars: effect on the log-odds, in nats, of the classes that move most (what the latent does for them; when it is taken out they lose this). Lines: ± 2 standard errors.`;
  return charts.chart({ name: `${grid.name}-${pathOf(point).replaceAll("/", "-")}-latent-${latent}-causes`, about: about2, spec, room: 15 * values.length + 60 * shown.length });
}

function nearest(grid, point, table, about) {
  const items = about.nearest.map(([other, cosine]) => {
    const name = cellOf(table, "class", other);
    return h("li", {}, h("a", { href: link.write({ ...pointLink(grid, point), latent: other }) }, `latent ${other}`), ` cosine ${show(cosine)}`, name && h("span", { class: "quiet" }, ` ${name}`));
  });
  return [h("p", { class: "quiet" }, "By the cosine of what they write: their rows of the decoder."), h("ul", { class: "links" }, items)];
}

async function relatives(grid, point, about) {
  // A word on what becomes of a latent from one k to the next: seen from the first, and from the second.
  const fates = { same: ["the same", "the same"], split: ["a part of it", "of which it is a part"], changed: ["changed", "changed"], merged: ["in which it merges with others", "merged into it"] };
  const items = await Promise.all(
    about.relatives.map(async ({ to, latent, r, note, known }) => {
      const [[key, value]] = Object.entries(to);
      const where = `${key} ${value}: `;
      const words = fates[note]?.[key === "k" && value > point.k ? 0 : 1];
      if (latent === null) return h("li", {}, where, h("span", { class: "quiet" }, r === null ? "none" : `none (the best correlation there is ${show(r)})`));
      const other = { ...point, ...to };
      const text = `latent ${latent}`;
      const target = known && grid.points.find((p) => pathOf(p) === pathOf(other));
      const anchor = target ? h("a", { href: link.write({ ...pointLink(grid, target), latent }) }, text) : h("span", { title: "This SAE was trained for comparison alone: add its seed to the grid to look at it." }, text);
      const name = target && cellOf(await tableOf(grid, target), "class", latent);
      return h("li", {}, where, anchor, r === null ? "" : ` r = ${show(r)}`, words && `, ${words}`, name && h("span", { class: "quiet" }, ` ${name}`));
    }),
  );
  if (!items.length) return h("p", { class: "quiet" }, "The grid has one layer, one k and one seed: there is nothing to compare with.");
  return [h("p", { class: "quiet" }, "By the correlation of activations on held-out tokens."), h("ul", { class: "links" }, items)];
}
