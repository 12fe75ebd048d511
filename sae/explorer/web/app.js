"use strict";
// Which view a link means, and what is the same in all of them: the trail, keys, theme, help.

const app = (() => {
  const main = document.getElementById("main");
  let grid = null;
  let params = {};
  let turn = 0;
  // These show the view anew; whoever uses them by keyboard stays on them.
  const KEEP_FOCUS = ["metric", "which", "theme"];

  /** Shows what the address asks for. */
  async function route() {
    const mine = ++turn;
    const asked = location.hash || "#";
    params = link.read(asked);
    // A view keeps its address up to date; one that has been left must not.
    const address = (text) => mine === turn && history.replaceState(null, "", text);
    const focused = document.activeElement?.id;
    try {
      grid ??= await parts.load("grid");
      const made = await viewOf(params, address);
      if (mine !== turn) return; // another link was followed meanwhile
      const { view, shown } = Array.isArray(made) ? { view: made } : made;
      main.replaceChildren(...view.flat(Infinity).filter(Boolean));
      const title = main.querySelector("h1")?.textContent ?? "";
      document.title = `${title} · ${grid.name}`;
      trail();
      if (KEEP_FOCUS.includes(focused) && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
      else {
        window.scrollTo(0, 0);
        if (shown) shown();
        else main.focus({ preventScroll: true });
      }
      main.dataset.ready = asked;
      performance.mark("shown");
    } catch (error) {
      if (mine !== turn) return;
      main.replaceChildren(h("h1", {}, "This cannot be shown"), h("p", { class: "error" }, String(error.message ?? error)));
    }
  }

  function viewOf(asked, address) {
    if (asked.image !== undefined) return imageView(grid, asked, address);
    if (asked.images !== undefined) return imagesView(grid, asked, address);
    if (asked.latent !== undefined) return latentView(grid, asked);
    if (asked.layer !== undefined || asked.k !== undefined) return pointView(grid, asked, address);
    return gridView(grid, asked);
  }

  /** Grid › layer 6, k 32 › latent 17 */
  function trail() {
    const steps = [h("a", { href: "#" }, grid.name)];
    const point = params.layer !== undefined || params.k !== undefined ? pointOf(grid, params) : null;
    if (params.image !== undefined || params.images !== undefined) steps.push(h("a", { href: "#images=" }, "images"));
    else if (point) steps.push(h("a", { href: link.write(pointLink(grid, point)) }, pointName(grid, point)));
    if (params.latent !== undefined) steps.push(h("span", { "aria-current": "page" }, `latent ${params.latent}`));
    if (params.image !== undefined) steps.push(h("span", { "aria-current": "page" }, `image ${params.image}`));
    document.getElementById("trail").replaceChildren(...steps.flatMap((s, i) => (i ? [" › ", s] : [s])));
  }

  function up() {
    const point = pointOf(grid, params);
    if (params.image !== undefined) return "#images=";
    return params.latent !== undefined && point ? link.write(pointLink(grid, point)) : "#";
  }

  function keys(event) {
    const typing = event.target.closest?.("input, select, textarea, dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !grid) return;
    const click = (id) => document.getElementById(id)?.click();
    const does = {
      ArrowLeft: () => click("previous"),
      ArrowRight: () => click("next"),
      r: () => click("random"),
      h: heat.toggle,
      u: () => (location.hash = up()),
      g: () => (location.hash = "#"),
      i: () => (location.hash = "#images="),
      "?": () => click("help"),
    }[event.key];
    does?.();
  }

  function theme(name) {
    document.documentElement.dataset.theme = name;
    remembered.set("theme", name);
  }

  function start() {
    const system = matchMedia("(prefers-color-scheme: dark)");
    document.documentElement.dataset.theme = remembered.get("theme") ?? (system.matches ? "dark" : "light");
    system.addEventListener("change", (event) => {
      if (!remembered.get("theme")) document.documentElement.dataset.theme = event.matches ? "dark" : "light";
      route();
    });
    document.getElementById("theme").addEventListener("click", () => {
      theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
      route(); // charts take their colours when they are drawn
    });
    document.getElementById("skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));
    const dialog = document.getElementById("help-text");
    dialog.append(
      h("h2", {}, "Keys"),
      h("dl", { class: "keys" }, KEYS.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)))),
      h("p", { class: "quiet" }, "What a number means stands under it when you point at it. Charts: Vega-Lite (BSD 3-clause)."),
      h("form", { method: "dialog" }, h("button", {}, "close")),
    );
    document.getElementById("help").addEventListener("click", () => dialog.showModal());
    document.addEventListener("keydown", keys);
    window.addEventListener("hashchange", route);
    heat.apply();
    route();
  }

  return { start };
})();

app.start();
