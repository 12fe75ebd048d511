"use strict";
// The page of one latent: its images, the evidence for and against it, and its counterparts in other SAEs.

const latents = (() => {
  const { fileName, h, latentLink, link, pathOf, show } = core;

  async function view(grid, params) {
    const point = core.pointOf(grid, params);
    if (!point) return core.notThere(`There is no SAE for ${JSON.stringify(params)} in this grid.`);
    const latent = Number(params.latent);
    const table = await tables.load(point);
    if (!Number.isInteger(latent) || !(latent >= 0 && latent < table.size)) {
      const numbers = `0 to ${table.size - 1}`;
      return core.notThere(`The latents of this SAE are numbered ${numbers}; there is no latent ${params.latent}.`);
    }
    const [about, images] = await Promise.all([
      parts.loadEntry(`${pathOf(point)}/latents`, latent, grid.files.latents),
      pictures.load(),
    ]);
    const top = [
      h("h1", {}, `Latent ${latent}`),
      h("p", { class: "answer", id: "headline" }, about.headline),
      checks(about),
      steps(grid, point, table, latent),
    ];
    if (!table.alive[latent]) return top;
    const address = latentLink(grid, point, latent);
    return [
      ...top,
      panels(grid, point, about, images),
      columns(
        [
          h("h2", {}, "How strongly it fires"),
          histogram(grid, point, table, latent, about),
          whereItFires(grid, about),
          h("h2", {}, "Effect on the ViT: estimated"),
          estimated(grid, point, latent, about),
        ],
        [
          h("h2", { id: "classes" }, "Classes"),
          classTable(about),
          h("h2", {}, "Effect on the ViT: measured"),
          measured(grid, point, latent, about),
        ],
      ),
      columns(
        [h("h2", {}, "Nearest in this SAE"), nearest(grid, point, table, about)],
        [h("h2", {}, "Counterparts elsewhere"), await relatives(grid, point, about), await compared(point, latent)],
      ),
      about.edges.length > 0 && columns(...(await Promise.all(about.edges.map((side) => causes(grid, point, side))))),
      h("p", { class: "quiet" }, "Link to this latent: ", h("a", { href: address }, address)),
    ];
  }

  /** Two columns, one below the other on a narrow screen. */
  const columns = (...parts) => h("section", { class: "columns" }, ...parts.map((part) => h("div", {}, ...part)));

  /** The evidence for and against the latent. */
  function checks(about) {
    const marks = { yes: ["✓", "for"], no: ["✗", "against"], open: ["?", "not known"] };
    const items = about.checks.map(([verdict, text]) => {
      const [mark, name] = marks[verdict];
      return h(
        "li",
        { class: verdict },
        h("span", { class: "mark", "aria-label": name, role: "img" }, mark),
        " ",
        text,
      );
    });
    return items.length > 0 && h("ul", { class: "checks" }, items);
  }

  /** The latent `step` rows further in the table that was shown last; by number if the latent was not in that table. */
  function neighbour(point, table, latent, step) {
    const rows = points.orders.get(pathOf(point)) ?? table.latent;
    const order = rows.includes(latent) ? rows : table.latent;
    return order[(order.indexOf(latent) + step + order.length) % order.length];
  }

  /** A random latent that fires, has no token type, and has a confirmed class or is stable. */
  function interesting(grid, table) {
    const alive = table.latent.filter((i) => table.alive[i] && table.token_type[i] < 0);
    const good = alive.filter((i) => table.class[i] >= 0 || table.stability[i] >= grid.found);
    const pool = good.length ? good : alive.length ? alive : table.latent;
    return pool[Math.floor(Math.random() * pool.length)];
  }

  /** Buttons to other latents of the SAE. */
  function steps(grid, point, table, latent) {
    const to = (other) => latentLink(grid, point, other);
    const jump = (event) => {
      event.preventDefault();
      const number = event.target.elements.number.value.trim();
      if (/^\d+$/.test(number)) location.hash = to(number);
    };
    const by = (step) => to(neighbour(point, table, latent, step));
    const random = () => (location.hash = to(interesting(grid, table)));
    return h(
      "div",
      { class: "row steps" },
      h("a", { class: "button", id: "previous", href: by(-1), title: "key: ←" }, "← previous"),
      h("a", { class: "button", id: "next", href: by(1), title: "key: →" }, "next →"),
      h("button", { type: "button", id: "random", title: "key: r", onclick: random }, "random interesting one"),
      h(
        "form",
        { onsubmit: jump },
        h("label", {}, "latent ", h("input", { name: "number", inputmode: "numeric", size: 5 })),
        " ",
        h("button", { type: "submit" }, "go"),
      ),
    );
  }

  /** The latent's images, strongest first, and around the quartiles of its activation. */
  function panels(grid, point, about, images) {
    const patches = grid.tokens !== "class";
    const lit = parts.spread(
      parts.unpack(about.counts, 2),
      parts.unpack(about.patches, 2),
      parts.unpack(about.values, 1),
    );
    const rows = grid.panels.map(([panel, title]) => {
      const cells = about.panels[panel].map((cell) => {
        const firing = panel === "silent" ? null : lit.shift();
        return panelPicture(grid, point, images.facts(cell[0]), cell, patches ? firing : null);
      });
      const names = { class: "panel", "data-panel": panel };
      return cells.length > 0 && h("section", names, h("h3", {}, title), h("div", { class: "pictures" }, cells));
    });
    const box = `Colour: activation of each patch, 0 to ${show(about.scale)}. Box: the strongest patch.`;
    const note = patches ? box : "This SAE reads the class token alone, so there are no maps.";
    const below =
      "Below each image: activation and label; * held-out image. Near duplicates of a shown image are left out.";
    return h(
      "section",
      { "aria-label": "Images" },
      h("div", { class: "row" }, h("h2", {}, "Images"), patches && pictures.heat.controls()),
      h("p", { class: "quiet" }, `${note} ${below}`),
      rows[0],
      h("div", { class: "panels" }, rows.slice(1)),
    );
  }

  function panelPicture(grid, point, facts, [image, activation, patch], firing) {
    const map = firing && pictures.heat.map(grid, firing.places, firing.values);
    const position = patch >= 0 ? pictures.position(grid, patch) : null;
    const title = position
      ? `strongest at row ${position[0]}, column ${position[1]}`
      : map && "strongest on a prefix token";
    const caption = [
      h("b", { title }, show(activation)),
      pictures.star(facts),
      " ",
      h("span", { title: facts.path }, pictures.label(facts)),
    ];
    const target = { ...core.pointLink(grid, point), image, patch: position?.join(",") };
    const href = facts.place === undefined ? null : link.write(target);
    const made = pictures.picture(grid, facts, { map, patch, caption, href });
    made.dataset.patch = patch;
    return made;
  }

  function histogram(grid, point, table, latent, about) {
    const values = about.histogram.map((count, i) => ({ low: grid.edges[i], high: grid.edges[i + 1], count }));
    const used = values.filter((v) => v.count);
    const total = used.reduce((sum, v) => sum + v.count, 0);
    const x = { field: "low", type: "quantitative", title: "activation", axis: { format: "~g", tickCount: 6 } };
    const spec = {
      height: 205,
      data: { values: values.filter((v) => v.high >= used[0].low && v.low <= used.at(-1).high) },
      mark: { type: "rect", tooltip: true, stroke: charts.colour("paper") },
      encoding: {
        x: { ...x, scale: { type: "log", base: 2, nice: false } },
        x2: { field: "high" },
        y: { field: "count", type: "quantitative", title: "tokens", axis: { format: "~s" } },
        y2: { datum: 0 },
        tooltip: [
          { field: "low", format: ".3~g", title: "from" },
          { field: "high", format: ".3~g", title: "to" },
          { field: "count", title: "tokens" },
        ],
      },
    };
    const [train, heldOut, images] = [...about.density, table.images[latent]].map((share) => show(share, "share"));
    const text = [
      `Activations on the ${show(total)} tokens on which it fires: mean ${show(about.mean)}, `,
      `maximum ${show(table.max[latent])}. It fires on ${train} of the train and ${heldOut} of the held-out tokens, `,
      `and somewhere in ${images} of all images.`,
    ].join("");
    return charts.chart({ name: `${fileName(grid, point)}-latent-${latent}`, about: text, spec });
  }

  function whereItFires(grid, about) {
    const entries = grid.on.map(({ name, unit, sentence }, i) => {
      const value = about.on[i];
      return value !== null && h("div", { title: sentence }, h("dt", {}, name), h("dd", {}, show(value, unit)));
    });
    return h("details", {}, h("summary", {}, "Where it fires"), h("dl", {}, entries));
  }

  /** Precision, recall and AUROC of the latent for its best classes, on both splits. */
  function classTable(about) {
    if (!about.classes.length) return h("p", { class: "quiet" }, "No image on which it fires has a label.");
    const share = (a, b) => (b ? show(a / b, "share") : "–");
    const between = ([low, high]) => (low === null ? "" : `(${show(low, "share")} to ${show(high, "share")})`);
    const cells = ([support, flagged, right, auroc], precision = "", recall = "") => [
      h("td", {}, share(right, flagged), h("small", {}, ` ${right} of ${flagged}`), " ", h("small", {}, precision)),
      h("td", {}, share(right, support), h("small", {}, ` of ${support}`), " ", h("small", {}, recall)),
      h("td", {}, show(auroc)),
    ];
    const rows = about.classes.map((c) => {
      const name = h("a", { href: link.write({ class: c.place }) }, classes.nameOf([c.attribute, c.name]));
      const verdict = c.q === null ? "too few images" : c.confirmed ? "✓ confirmed" : "not confirmed";
      const note = { class: c.confirmed ? "yes" : "quiet", title: c.q === null ? null : `q = ${c.q}` };
      const heldOut = cells(c.held_out, between(c.precision), between(c.recall));
      return h(
        "tbody",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "rowgroup", rowspan: 2, class: "text" }, name, h("br"), h("small", note, verdict)),
          h("td", {}, "train"),
          cells(c.train),
        ),
        h("tr", {}, h("td", { class: "narrow" }, "held out"), heldOut),
      );
    });
    const interval = "In brackets: exact 95 % interval (Clopper & Pearson).";
    const head = [
      ["class", "The classes with the highest MCC on train images, tested ones first.", "text"],
      [
        "split",
        "The latent flags an image if its strongest activation there reaches a threshold chosen on train images.",
      ],
      ["precision", `Share of the flagged images that show the class. ${interval}`],
      ["recall", `Share of the images of the class that the latent flags. ${interval}`],
      ["AUROC", "AUROC of the strongest activation on each image, for the class against all others. 0.5: chance."],
    ].map(([name, title, kind]) => h("th", { scope: "col", title, class: kind }, name));
    return h("div", { class: "wide" }, h("table", { class: "plain" }, h("thead", {}, h("tr", {}, head)), rows));
  }

  /** The ViT's output with the latent removed, and with it added. */
  function measured(grid, point, latent, about) {
    const { intervention } = about;
    if (!intervention) {
      const why = "This latent was not in the sample of removed latents (evidence.latents in the config).";
      return h("p", { class: "quiet" }, why);
    }
    const { images, measure, p, size } = intervention;
    const [removed, control, added] = size.map((s) => show(s));
    const text = [
      `Removing it changes the output by ${removed} ${measure === "kl" ? "nats (KL)" : measure}, on the ${images} `,
      `held-out images on which it is strongest. Removing a random latent of the same norm changes it by ${control}`,
      `${p === null ? "" : ` (p = ${p})`}. Adding it to images on which it is silent changes it by ${added}.`,
    ].join("");
    const kinds = { ablate: "removed", control: "a random latent removed", steer: "added where silent" };
    const values = intervention.effects.map(([kind, attribute, name, effect, se]) => {
      const ends = { low: effect - 2 * (se ?? 0), high: effect + 2 * (se ?? 0) };
      return { kind: kinds[kind], class: classes.nameOf([attribute, name]), effect, ...ends };
    });
    if (!values.length) return h("p", {}, text);
    const shown = Object.values(kinds).filter((kind) => values.some((v) => v.kind === kind));
    const bars =
      "Bars: the largest effects on classes: change of the log-probability, relative to the mean class, in nats.";
    return charts.chart({
      name: `${fileName(grid, point)}-latent-${latent}-interventions`,
      about: `${text} ${bars} Positive: a loss by removal, a gain by addition. Lines: ± 2 standard errors.`,
      spec: effectBars(values, shown),
      room: 15 * values.length + 60 * shown.length,
    });
  }

  const y = { field: "class", type: "nominal", sort: null, title: null, axis: { labelLimit: 150, minExtent: 150 } };

  /** The estimated effects of the latent on the classes that the ViT predicts. */
  function estimated(grid, point, latent, about) {
    const values = about.estimated.map(([attribute, name, effect, control, active, images]) => {
      return { class: classes.nameOf([attribute, name]), effect, control, fires: `on ${active} of ${images} images` };
    });
    if (!values.length) {
      return h("p", { class: "quiet" }, "No effect on a predicted class can be estimated for this latent.");
    }
    const { attribution_correlation: r, attribution_sign: sign } = point.values;
    const agree =
      typeof r === "number"
        ? ` Where latents were removed, estimates and measurements have a rank correlation of ${show(r)}, and ` +
          `${show(sign, "share")} of the effect has the estimated sign.`
        : "";
    const text =
      "Bars: gradient × activation, for all held-out images for which the ViT predicts the class; the mean change of " +
      "the class's log-probability, relative to the mean class. Ticks: a random latent of the same norm.";
    const x = { type: "quantitative", title: "estimated effect on the log-probability, nats", axis: { tickCount: 5 } };
    const tooltip = ["class", "effect", "control", "fires"].map((field) => ({ field }));
    const tick = { type: "tick", color: charts.colour("ink"), thickness: 2 };
    return charts.chart({
      name: `${fileName(grid, point)}-latent-${latent}-estimates`,
      about: text + agree,
      spec: {
        width: 240,
        autosize: undefined,
        height: { step: 15 },
        data: { values },
        encoding: { y, tooltip },
        layer: [
          { mark: "bar", encoding: { x: { ...x, field: "effect", stack: null } } },
          { mark: tick, encoding: { x: { ...x, field: "control" } } },
        ],
      },
      room: 15 * values.length + 50,
    });
  }

  function effectBars(values, kinds) {
    const domain = [Math.min(0, ...values.map((v) => v.low)), Math.max(0, ...values.map((v) => v.high))];
    const chart = (kind) => {
      const title = kind === kinds.at(-1) ? "effect on the log-probability, nats" : null;
      const x = { type: "quantitative", scale: { domain, nice: true }, axis: { tickCount: 5, title } };
      return {
        title: { text: kind, fontSize: 12, fontWeight: "normal" },
        data: { values: values.filter((v) => v.kind === kind) },
        width: 240,
        height: { step: 15 },
        encoding: { y },
        layer: [
          { mark: { type: "bar", tooltip: true }, encoding: { x: { ...x, field: "effect", stack: null } } },
          {
            mark: { type: "rule", color: charts.colour("ink") },
            encoding: { x: { ...x, field: "low" }, x2: { field: "high" } },
          },
        ],
      };
    };
    return { width: undefined, autosize: undefined, spacing: 8, vconcat: kinds.map(chart) };
  }

  function nearest(grid, point, table, about) {
    const items = about.nearest.map(([other, cosine]) => {
      const name = tables.cell(table, "class", other);
      const anchor = h("a", { href: latentLink(grid, point, other) }, `latent ${other}`);
      return h("li", {}, anchor, ` cosine ${show(cosine)}`, name && h("span", { class: "quiet" }, ` ${name}`));
    });
    const note = h("p", { class: "quiet" }, "By the cosine similarity of their decoder rows.");
    return [note, h("ul", { class: "links" }, items)];
  }

  /** The latent's counterparts in the SAEs of other ks, layers and seeds. */
  async function relatives(grid, point, about) {
    const items = await Promise.all(about.relatives.map((relative) => relativeItem(grid, point, relative)));
    const alone = "The grid has one layer, one k and one seed. So there is no other SAE to compare with.";
    if (!items.length) return h("p", { class: "quiet" }, alone);
    const note = h("p", { class: "quiet" }, "By the correlation of activations on held-out tokens.");
    return [note, h("ul", { class: "links" }, items)];
  }

  /** The latent's best match in another experiment, where `snakemake compare` compared this SAE. */
  async function compared(point, latent) {
    const there = await parts.load(`compare/${pathOf(point)}`).catch(() => null);
    if (there?.fvu !== point.values.fvu) return null; // none, or of an SAE that was trained again since
    const title = h("h2", {}, `In the experiment ${there.name}`);
    const [layer, match] = [there.layer[latent], there.latent[latent]];
    const quietly = (text) => [title, h("p", { class: "quiet" }, text)];
    if (match < 0) return quietly("This latent is silent on the images that both experiments have.");
    const note = `By the correlation of the strongest activations on ${show(there.images)} images of both experiments.`;
    const target = { layer, ...there.to, latent: match };
    const name = `layer ${layer}, k ${there.to.k}, ${there.to.method}, seed ${there.to.seed}: latent ${match}`;
    const random = there.random[latent] === null ? "" : `a random dictionary ${show(there.random[latent])}, `;
    const chance = `${random}shuffled images ${show(there.shuffled[latent])}`;
    const quiet = h("span", { class: "quiet" }, `, ${chance}`, there.class[latent] && ` ${there.class[latent]}`);
    const anchor = there.explorer ? h("a", { href: there.explorer + link.write(target) }, name) : name;
    const item = h("li", {}, anchor, ` r = ${show(there.r[latent])}`, quiet);
    return [...quietly(note), h("ul", { class: "links" }, item)];
  }

  /** The latents of another layer that raise or lower this one, or that it raises or lowers. */
  async function causes(grid, point, { layer, into, agreement, edges }) {
    const path = pathOf({ ...point, layer });
    const target = grid.points.find((p) => pathOf(p) === path);
    const table = target && (await tables.load(target));
    const items = edges.map(([latent, share, control, removed]) => {
      const name = `latent ${latent}`;
      const anchor = target ? h("a", { href: latentLink(grid, target, latent) }, name) : name;
      const told = target && tables.cell(table, "class", latent);
      const measured = removed === null ? "" : `, measured ${show(removed, "share")}`;
      const random = `, a random direction ${show(control, "share")}`;
      const quiet = h("span", { class: "quiet" }, random, told && ` ${told}`);
      return h("li", {}, anchor, ` ${show(share, "share")} estimated${measured}`, quiet);
    });
    const [r, sign] = agreement;
    const whose = into ? "this latent's activation" : "the other latent's activation";
    const agree =
      r === null
        ? ""
        : ` Where removal was measured, its rank correlation with the estimates is ${show(r)}, and ` +
          `${show(sign, "share")} of the effect has the estimated sign.`;
    const note = `Share of ${whose}, on the images on which it is strongest, by the gradient through the ViT.${agree}`;
    const title = into ? `Strongest causes in layer ${layer}` : `Strongest effects in layer ${layer}`;
    return [h("h2", {}, title), h("p", { class: "quiet" }, note), h("ul", { class: "links" }, items)];
  }

  async function relativeItem(grid, point, { to, latent, r, note, known }) {
    const [[key, value]] = Object.entries(to);
    if (latent === null) {
      const none = r === null ? "none" : `none (the highest correlation is ${show(r)})`;
      return h("li", {}, `${key} ${value}: `, h("span", { class: "quiet" }, none));
    }
    const path = pathOf({ ...point, ...to });
    const target = known && grid.points.find((p) => pathOf(p) === path);
    const alone = "This SAE was trained for comparison only: add its seed to the config to explore it.";
    const name = target && tables.cell(await tables.load(target), "class", latent);
    return h(
      "li",
      {},
      `${key} ${value}: `,
      target
        ? h("a", { href: latentLink(grid, target, latent) }, `latent ${latent}`)
        : h("span", { title: alone }, `latent ${latent}`),
      r === null ? "" : ` r = ${show(r)}`,
      note && `, ${note}`,
      name && h("span", { class: "quiet" }, ` ${name}`),
    );
  }

  return { view };
})();
