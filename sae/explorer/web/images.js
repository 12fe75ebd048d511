"use strict";
// Images: all that can be opened, and of one (or of a patch in it) the latents that fire there, per layer.

async function imagesView(grid, params, address) {
  const { all, facts } = await imageFacts();
  const every = all.map(facts);
  const most = 120;
  let shown = most;
  const place = h("div", { class: "pictures" });
  const count = h("p", { role: "status", class: "count" });
  const more = h("button", { type: "button", onclick: () => ((shown += most), draw()) }, "more");
  const search = h("input", { type: "search", id: "search", placeholder: "class or file name", value: params.search ?? "", oninput: draw });

  function draw() {
    const text = search.value.trim().toLowerCase();
    const hits = every.filter((f) => !text || f.path.toLowerCase().includes(text) || f.named.some(([, v]) => v.toLowerCase().includes(text)));
    place.replaceChildren(
      ...hits.slice(0, shown).map((f) => picture(grid, f, { href: link.write({ image: f.id }), caption: [labelOf(f), f.heldOut ? h("abbr", { title: "held-out image" }, "*") : ""] })),
    );
    count.textContent = `${show(hits.length)} of ${show(every.length)} images`;
    more.hidden = hits.length <= shown;
    address(text ? link.write({ images: "", search: text }).replace("#search", "#images=&search") : "#images=");
  }
  draw();
  return [h("h1", {}, "Images"), h("p", { class: "quiet" }, "As the model sees them. Choose one to see which latents fire on it. * held-out image."), h("div", { class: "row" }, h("label", {}, "Search ", search), count), place, more];
}

/** What fires on an image at a point: its latents by falling strength, each with its places and values. */
async function firing(grid, point, facts) {
  const [file, at] = [Math.floor(facts.place / grid.files.images), facts.place % grid.files.images];
  const part = (await parts.load(`${pathOf(point)}/images/${String(file).padStart(4, "0")}`))[at];
  const latents = unpack(part.latents, 4);
  const lit = spread(unpack(part.counts, 2), unpack(part.tokens, 2), unpack(part.values, 1));
  return latents.map((latent, n) => ({ latent, ...lit[n], scale: part.scale, everywhere: n < part.everywhere, strongest: part.strongest[n] }));
}

/** What the tokens in front of the patches are called that the SAE reads: roles, numbered where there are several. */
function prefixNames(grid) {
  const roles = { all: grid.geometry.prefix, class: ["class"] }[grid.tokens] ?? [];
  const same = (role) => roles.filter((other) => other === role).length;
  return roles.map((role, n) => (same(role) > 1 ? `${role} ${roles.slice(0, n + 1).filter((other) => other === role).length}` : role));
}

async function imageView(grid, params, address) {
  const images = await imageFacts();
  const id = Number(params.image);
  if (!images.all.includes(id)) return notThere(grid, `Image ${params.image} is not among those that can be opened (explorer.images in the config).`);
  const facts = images.facts(id);
  const first = pointOf(grid, params) ?? grid.points[0];
  const [rows, columns] = grid.geometry.grid;
  const patches = grid.tokens !== "class";
  const names = prefixNames(grid);
  const prefix = names.length;
  const layers = grid.points.filter((p) => p.k === first.k && p.method === first.method && p.seed === first.seed).sort((a, b) => a.layer - b.layer);
  const loaded = await Promise.all(layers.map(async (p) => ({ point: p, table: await tableOf(grid, p), found: await firing(grid, p, facts) })));

  let token = readToken(params.patch);
  const overlay = h("div", { class: "overlay" });
  const box = h("span", { class: "box", hidden: true });
  const lists = h("div", { class: "layers" });
  const where = h("p", { role: "status", class: "count", id: "where" });

  /** "3,4" or a role such as "class" -> the token's place among those that the SAE reads; null: the whole image. */
  function readToken(text) {
    const found = /^(\d+),(\d+)$/.exec(text ?? "");
    if (found && patches && Number(found[1]) < rows && Number(found[2]) < columns) return prefix + Number(found[1]) * columns + Number(found[2]);
    const named = patches ? names.indexOf(text) : -1;
    return named >= 0 ? named : null;
  }

  const writeToken = () => (token === null ? undefined : token < prefix ? names[token] : `${Math.floor((token - prefix) / columns)},${(token - prefix) % columns}`);

  function light({ places, values }) {
    if (!patches) return;
    const kept = places.map((place, n) => [place - prefix, values[n]]).filter(([place]) => place >= 0);
    overlay.replaceChildren(heat.map(rows, columns, kept.map(([p]) => p), kept.map(([, v]) => v)));
  }

  /** The latents to list: of the whole image its strongest, of a token those that are strongest there. */
  function listed(found) {
    if (token === null) return found.filter((f) => f.everywhere).map((f) => ({ ...f, value: f.strongest }));
    const here = found.flatMap((f) => {
      const n = f.places.indexOf(token);
      return n < 0 ? [] : [{ ...f, value: (f.values[n] / 255) * f.scale }];
    });
    return here.sort((a, b) => b.value - a.value);
  }

  function choose(to) {
    token = to;
    const patch = token !== null && token >= prefix ? token - prefix : -1;
    box.hidden = patch < 0;
    if (patch >= 0) box.style.cssText = `left:${(100 * (patch % columns)) / columns}%;top:${(100 * Math.floor(patch / columns)) / rows}%;width:${100 / columns}%;height:${100 / rows}%`;
    overlay.replaceChildren();
    where.textContent = token === null ? "Latents that fire on the whole image" : patch < 0 ? `Latents that fire on the ${names[token]} token` : `Latents that fire on the patch in row ${Math.floor(patch / columns)}, column ${patch % columns}`;
    lists.replaceChildren(...loaded.map(column));
    address(link.write({ image: id, ...pointLink(grid, first), layer: undefined, patch: writeToken() }));
  }

  function column({ point, table, found }) {
    const latents = listed(found);
    const most = Math.max(...latents.map((f) => f.value), 1e-9);
    const items = latents.map((f) => {
      const name = cellOf(table, "class", f.latent);
      const role = cellOf(table, "role", f.latent);
      const href = link.write({ ...pointLink(grid, point), latent: f.latent });
      const shown = () => light(f);
      return h(
        "li",
        { onmouseenter: shown, onfocusin: shown },
        h("a", { href }, f.latent),
        h("span", { class: "bar" }, h("span", { style: `width:${(100 * f.value) / most}%` })),
        h("span", { class: "number" }, show(f.value)),
        h("span", { class: "name", title: `${name ?? role ?? "no confirmed class"}${patches ? `; fires on ${f.everywhere ? f.places.filter((p) => p >= prefix).length : "some"} of ${rows * columns} patches` : ""}` }, name ?? (role ? `(${role})` : "")),
      );
    });
    return h("section", {}, h("h3", {}, `layer ${point.layer}`), items.length ? h("ol", {}, items) : h("p", { class: "quiet" }, "None."));
  }

  function press(event) {
    const bounds = frame.getBoundingClientRect();
    const column = Math.floor(((event.clientX - bounds.left) / bounds.width) * columns);
    const row = Math.floor(((event.clientY - bounds.top) / bounds.height) * rows);
    choose(prefix + Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1));
  }

  function keys(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (event.key === "Escape") choose(null);
    else if (step && !event.altKey && !event.ctrlKey && !event.metaKey) {
      const at = token === null || token < prefix ? 0 : token - prefix;
      const [row, column] = [Math.floor(at / columns) + step[0], (at % columns) + step[1]];
      if (token === null || token < prefix) choose(prefix);
      else if (row >= 0 && row < rows && column >= 0 && column < columns) choose(prefix + row * columns + column);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  const shot = picture(grid, facts, { map: overlay });
  const frame = shot.querySelector(".frame");
  frame.append(box);
  if (patches) {
    frame.addEventListener("click", press);
    frame.addEventListener("keydown", keys);
    for (const [name, value] of Object.entries({ tabindex: 0, role: "application", "aria-label": "The image's patches: arrow keys choose one, Escape the whole image" })) frame.setAttribute(name, value);
  }
  const kinds = [...new Map(grid.points.filter((p) => grid.methods.includes(p.method)).map((p) => [JSON.stringify([p.k, p.method, p.seed]), p])).values()];
  const select = h("select", { id: "which", onchange: (e) => (location.hash = link.write({ image: id, ...pointLink(grid, kinds[e.target.value]), layer: undefined, patch: writeToken() })) },
    kinds.map((p, n) => h("option", { value: n, selected: p.k === first.k && p.method === first.method && p.seed === first.seed }, pointName(grid, p).replace(/^layer \d+, /, ""))));
  const buttons = [h("button", { type: "button", class: "minor", onclick: () => choose(null) }, "whole image"), ...names.map((name, n) => h("button", { type: "button", class: "minor", onclick: () => choose(n) }, `${name} token`))];
  const named = facts.named.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  const note = !patches ? `These SAEs read the class token alone. Listed: its ${grid.kept.image} strongest latents.` : `Listed of the whole image: its ${grid.kept.image} strongest latents; of a patch: the ${grid.kept.patch} strongest there, and those of the ${grid.kept.image} that fire on it. Point at one to see where it fires.`;
  choose(token);
  return {
    view: [
      h("h1", {}, labelOf(facts)),
      h("div", { class: "image-view" },
        h("div", { class: "large" }, shot, h("div", { class: "row" }, patches && buttons), patches && heat.controls(), h("p", { class: "quiet" }, facts.path, facts.heldOut ? " (held-out image)" : " (train image)"), h("dl", {}, named)),
        h("div", {}, h("div", { class: "row" }, where, h("label", {}, "SAEs with ", select)), h("p", { class: "quiet" }, note), lists)),
    ],
    shown: () => frame.focus({ preventScroll: true }),
  };
}
