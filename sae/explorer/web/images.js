"use strict";
// The list of images; and the page of one image: the latents that fire on it or on one of its patches, by layer.

const images = (() => {
  const { h, link, pathOf, pointLink, show } = core;
  const AT_ONCE = 120;

  async function listView(grid, params, address) {
    const { all, facts } = await pictures.load();
    const every = all.map(facts);
    let most = AT_ONCE;
    const place = h("div", { class: "pictures" });
    const count = h("p", { role: "status", class: "count" });
    const more = h("button", { type: "button", onclick: () => ((most += AT_ONCE), draw()) }, "more");
    const given = { type: "search", id: "search", placeholder: "class or file name", value: params.search ?? "" };
    const search = h("input", { ...given, oninput: draw });

    function draw() {
      const text = search.value.trim().toLowerCase();
      const found = every.filter((f) =>
        [f.path, ...f.named.map(([, v]) => v)].some((v) => v.toLowerCase().includes(text)),
      );
      const shown = found.slice(0, most).map((f) => {
        const caption = [pictures.label(f), pictures.star(f)];
        return pictures.picture(grid, f, { href: link.write({ image: f.id }), caption });
      });
      place.replaceChildren(...shown);
      count.textContent = `${show(found.length)} of ${show(every.length)} images`;
      more.hidden = found.length <= most;
      address(`#images=${text ? link.write({ search: text }).replace("#", "&") : ""}`);
    }
    draw();
    const note = "As the ViT sees them. Choose one to see the latents that fire on it. * held-out image.";
    return [
      h("h1", {}, "Images"),
      h("p", { class: "quiet" }, note),
      h("div", { class: "row" }, h("label", {}, "Search ", search), count),
      place,
      more,
    ];
  }

  /** The names of the prefix tokens that the SAEs read, numbered where several have the same. */
  function prefixNames(grid) {
    const names = { all: grid.geometry.prefix, class: ["class"] }[grid.tokens] ?? [];
    const count = (list, name) => list.filter((other) => other === name).length;
    return names.map((name, n) => (count(names, name) > 1 ? `${name} ${count(names.slice(0, n + 1), name)}` : name));
  }

  /** The tokens that the SAEs read: prefix tokens, by name, then patches. null stands for the whole image. */
  function tokensOf(grid) {
    const [rows, columns] = grid.geometry.patches;
    const patches = grid.tokens !== "class";
    const names = prefixNames(grid);
    const prefix = names.length;
    const at = (row, column) => prefix + row * columns + column;
    const position = (token) => (token === null || token < prefix ? null : pictures.position(grid, token - prefix));

    /** "3,4" or a name such as "class" -> the token; null for anything else. */
    function read(text) {
      const [row, column] = /^\d+,\d+$/.test(text ?? "") ? text.split(",").map(Number) : [];
      if (patches && row < rows && column < columns) return at(row, column);
      const named = patches ? names.indexOf(text) : -1;
      return named >= 0 ? named : null;
    }

    /** The patch next to a token; undefined beyond the border. */
    function moved(token, [down, right]) {
      if (position(token) === null) return prefix;
      const [row, column] = [position(token)[0] + down, position(token)[1] + right];
      return row >= 0 && row < rows && column >= 0 && column < columns ? at(row, column) : undefined;
    }

    /** The patch at a share of the image's height and width. */
    function under(down, right) {
      const inside = (share, size) => Math.min(Math.max(Math.floor(share * size), 0), size - 1);
      return at(inside(down, rows), inside(right, columns));
    }

    const write = (token) => (token === null ? undefined : (names[token] ?? position(token).join(",")));

    function describe(token) {
      if (token === null) return "the whole image";
      const [row, column] = position(token) ?? [];
      return names[token] ? `the ${names[token]} token` : `the patch in row ${row}, column ${column}`;
    }

    return { describe, moved, names, patches, prefix, read, under, write };
  }

  /** The latents that fire on an image at a point, strongest first, with tokens, values and effect; the predictions. */
  async function firing(grid, point, facts) {
    const part = await parts.loadEntry(`${pathOf(point)}/images`, facts.place, grid.files.images);
    const effect = (n) => part.effects?.[n] && { on: part.predicted[part.effects[n][0]], value: part.effects[n][1] };
    const lit = parts.spread(parts.unpack(part.counts, 2), parts.unpack(part.tokens, 2), parts.unpack(part.values, 1));
    const found = parts.unpack(part.latents, 4).map((latent, n) => {
      return {
        latent,
        ...lit[n],
        scale: part.scale,
        everywhere: n < part.everywhere,
        strongest: part.strongest[n],
        effect: effect(n),
      };
    });
    return { found, predicted: part.predicted ?? [] };
  }

  /** The latents to list: the strongest of the whole image, or those of one token. */
  function listed(found, token) {
    if (token === null) return found.filter((f) => f.everywhere).map((f) => ({ ...f, value: f.strongest }));
    const there = found.filter((f) => f.places.includes(token));
    const valued = there.map((f) => ({ ...f, value: (f.values[f.places.indexOf(token)] / 255) * f.scale }));
    return valued.sort((a, b) => b.value - a.value);
  }

  /** The list of one layer; light: is called with the latent that is pointed at. */
  function latentList(grid, tokens, { point, table, found }, token, light) {
    const fired = listed(found, token);
    const most = Math.max(...fired.map((f) => f.value), 1e-9);
    const [rows, columns] = grid.geometry.patches;
    const items = fired.map((f) => {
      const [name, type] = ["class", "token_type"].map((key) => tables.cell(table, key, f.latent));
      const lit = f.everywhere ? f.places.filter((place) => place >= tokens.prefix).length : "some";
      const extent = tokens.patches ? `; fires on ${lit} of ${rows * columns} patches` : "";
      const title = `${name ?? type ?? "no confirmed class"}${extent}`;
      const shown = () => light(f);
      return h(
        "li",
        { onmouseenter: shown, onfocusin: shown },
        h("a", { href: core.latentLink(grid, point, f.latent) }, f.latent),
        h("span", { class: "bar" }, h("span", { style: `width:${(100 * f.value) / most}%` })),
        h("span", { class: "number" }, show(f.value)),
        h("span", { class: "name", title }, name ?? (type ? `(${type})` : "")),
        f.effect &&
          h("span", { class: "moves" }, `${f.effect.value < 0 ? "▼" : "▲"} ${f.effect.on} ${show(f.effect.value)}`),
      );
    });
    const list = items.length ? h("ol", {}, items) : h("p", { class: "quiet" }, "None.");
    return h("section", {}, h("h3", {}, `layer ${point.layer}`), list);
  }

  async function view(grid, params, address) {
    const { all, facts: factsOf } = await pictures.load();
    const id = Number(params.image);
    if (!all.includes(id)) {
      return core.notThere(`Image ${params.image} cannot be opened; explorer.images in the config sets how many can.`);
    }
    const facts = factsOf(id);
    const first = core.pointOf(grid, params) ?? grid.points[0];
    const load = async (p) => ({ point: p, table: await tables.load(p), ...(await firing(grid, p, facts)) });
    const loaded = await Promise.all(core.layersBeside(grid, first).map(load));
    const tokens = tokensOf(grid);
    const { predicted } = loaded[0];
    const overlay = h("div", { class: "overlay" });
    const box = h("span", { class: "box", hidden: true });
    const lists = h("div", { class: "layers" });
    const where = h("p", { role: "status", class: "count", id: "where" });
    let token = tokens.read(params.patch);
    const linkTo = (point) =>
      link.write({ image: id, ...pointLink(grid, point), layer: undefined, patch: tokens.write(token) });

    function light({ places, values }) {
      if (!tokens.patches) return;
      const lit = places.map((place, n) => [place - tokens.prefix, values[n]]).filter(([patch]) => patch >= 0);
      overlay.replaceChildren(
        pictures.heat.map(
          grid,
          lit.map(([patch]) => patch),
          lit.map(([, value]) => value),
        ),
      );
    }

    function choose(to) {
      token = to;
      box.hidden = token === null || token < tokens.prefix;
      if (!box.hidden) box.style.cssText = pictures.around(grid, token - tokens.prefix);
      overlay.replaceChildren();
      where.textContent = `Latents that fire on ${tokens.describe(token)}`;
      lists.replaceChildren(...loaded.map((layer) => latentList(grid, tokens, layer, token, light)));
      address(linkTo(first));
    }

    const shot = pictures.picture(grid, facts, { map: overlay });
    const frame = shot.querySelector(".frame");
    frame.append(box);
    if (tokens.patches) listen(frame, tokens, () => token, choose);
    choose(token);
    const choice = (name, to) => h("button", { type: "button", class: "minor", onclick: () => choose(to) }, name);
    const choices = [choice("whole image", null), ...tokens.names.map((name, n) => choice(`${name} token`, n))];
    const classOf = ([name, value]) => grid.classes.findIndex((known) => known[0] === name && known[1] === value);
    const named = facts.named.map((pair) => {
      const anchor = h("a", { href: link.write({ class: classOf(pair) }) }, pair[1]);
      return h("div", {}, h("dt", {}, pair[0]), h("dd", {}, anchor));
    });
    return {
      view: [
        h("h1", {}, pictures.label(facts)),
        h(
          "div",
          { class: "image-view" },
          h(
            "div",
            { class: "large" },
            shot,
            h("div", { class: "row" }, tokens.patches && choices),
            tokens.patches && pictures.heat.controls(),
            h("p", { class: "quiet" }, facts.path, facts.heldOut ? " (held-out image)" : " (train image)"),
            h("dl", {}, named),
          ),
          h(
            "div",
            {},
            h("div", { class: "row" }, where, h("label", {}, "SAEs with ", core.kindSelect(grid, first, linkTo))),
            h("p", { class: "quiet" }, listNote(grid), predicted.length > 0 && effectNote(predicted)),
            lists,
          ),
        ),
      ],
      shown: () => frame.focus({ preventScroll: true }),
    };
  }

  /** Chooses patches by mouse and by arrow keys. */
  function listen(frame, tokens, chosen, choose) {
    frame.addEventListener("click", (event) => {
      const { left, top, width, height } = frame.getBoundingClientRect();
      choose(tokens.under((event.clientY - top) / height, (event.clientX - left) / width));
    });
    frame.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (event.key === "Escape") choose(null);
      else if (step && !event.altKey && !event.ctrlKey && !event.metaKey)
        choose(tokens.moved(chosen(), step) ?? chosen());
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    frame.setAttribute("tabindex", 0);
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-label", "The image's patches: arrow keys choose one, Escape chooses the whole image");
  }

  const effectNote = (predicted) =>
    ` The ViT predicts ${predicted.join(", ")}. ▲ ▼: the latent's largest estimated effect on these, in nats.`;

  function listNote(grid) {
    const { image, patch } = grid.kept;
    if (grid.tokens === "class")
      return `These SAEs read the class token alone. The list holds its ${image} strongest latents.`;
    return [
      `The list holds the ${image} strongest latents of the whole image. For a patch, it holds the ${patch} strongest `,
      `there, and those of the ${image} that fire on it. Point at a latent to see where it fires.`,
    ].join("");
  }

  return { listView, prefixNames, view };
})();
