"use strict";
// Shows the view that the address names, with the path to it, keys, theme and help.

const app = (() => {
  const { h, link, pointLink, pointName, pointOf } = core;
  const main = document.getElementById("main");
  let grid = null;
  let params = {};
  let turn = 0;
  // These show the view again; whoever uses them by keyboard stays on them.
  const KEEP_FOCUS = ["metric", "which", "theme"];
  const KEYS = [
    ["←  →", "previous and next latent, in the order of the last table"],
    ["r", "a random interesting latent: one without a token type that has a confirmed class or is stable"],
    ["h", "heat maps on or off"],
    ["u", "up: latent → table → grid"],
    ["g", "the grid"],
    ["i", "the images"],
    ["c", "the classes"],
    ["↑ ↓ Home End", "move in the table; Enter opens a latent"],
    ["arrows", "on an image: move the patch; Esc: the whole image again"],
    ["?", "this help"],
  ];

  /** Shows the view that the address asks for. */
  async function route() {
    const mine = ++turn;
    const asked = location.hash || "#";
    params = link.read(asked);
    // A view keeps its address up to date; a view that has been left must not.
    const address = (text) => mine === turn && history.replaceState(null, "", text);
    const focused = document.activeElement?.id;
    try {
      grid ??= await parts.load("grid");
      const made = await viewOf(params, address);
      if (mine !== turn) return; // another link was followed meanwhile
      const { view, shown } = Array.isArray(made) ? { view: made } : made;
      main.replaceChildren(...view.flat(Infinity).filter(Boolean));
      document.title = `${main.querySelector("h1")?.textContent ?? ""} · ${grid.name}`;
      trail();
      if (KEEP_FOCUS.includes(focused) && document.getElementById(focused)) {
        document.getElementById(focused).focus({ preventScroll: true });
      } else {
        window.scrollTo(0, 0);
        if (shown) shown();
        else main.focus({ preventScroll: true });
      }
      main.dataset.ready = asked;
      performance.mark("shown");
    } catch (error) {
      if (mine !== turn) return;
      const text = h("p", { class: "error" }, String(error.message ?? error));
      main.replaceChildren(h("h1", {}, "This cannot be shown"), text);
    }
  }

  const ofPoint = (asked) => asked.layer !== undefined || asked.k !== undefined;

  function viewOf(asked, address) {
    if (asked.image !== undefined) return images.view(grid, asked, address);
    if (asked.images !== undefined) return images.listView(grid, asked, address);
    if (asked.class !== undefined) return classes.view(grid, asked);
    if (asked.classes !== undefined) return classes.listView(grid);
    if (asked.latent !== undefined) return latents.view(grid, asked);
    if (ofPoint(asked)) return points.view(grid, asked, address);
    return grids.view(grid, asked);
  }

  const inClasses = () => params.class !== undefined || params.classes !== undefined;

  /** Grid › layer 6, k 32 › latent 17 */
  function trail() {
    const steps = [h("a", { href: "#" }, grid.name)];
    const point = ofPoint(params) ? pointOf(grid, params) : null;
    if (params.image !== undefined || params.images !== undefined) steps.push(h("a", { href: "#images=" }, "images"));
    else if (inClasses()) steps.push(h("a", { href: "#classes=" }, "classes"));
    else if (point) steps.push(h("a", { href: link.write(pointLink(grid, point)) }, pointName(grid, point)));
    if (params.class !== undefined) {
      const known = grid.classes[params.class];
      steps.push(h("span", { "aria-current": "page" }, known ? classes.nameOf(known) : params.class));
    }
    for (const key of ["latent", "image"]) {
      if (params[key] !== undefined) steps.push(h("span", { "aria-current": "page" }, `${key} ${params[key]}`));
    }
    document.getElementById("trail").replaceChildren(...steps.flatMap((s, i) => (i ? [" › ", s] : [s])));
  }

  function up() {
    const point = pointOf(grid, params);
    if (params.image !== undefined) return "#images=";
    if (params.class !== undefined) return "#classes=";
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
      h: pictures.heat.toggle,
      u: () => (location.hash = up()),
      g: () => (location.hash = "#"),
      i: () => (location.hash = "#images="),
      c: () => (location.hash = "#classes="),
      "?": () => click("help"),
    }[event.key];
    does?.();
  }

  /** Follows the system's theme until the reader chooses one. */
  function startTheme() {
    const { dataset } = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)");
    const follow = () => (dataset.theme = core.remembered.get("theme") ?? (system.matches ? "dark" : "light"));
    follow();
    system.addEventListener("change", () => (follow(), route()));
    document.getElementById("theme").addEventListener("click", () => {
      dataset.theme = dataset.theme === "dark" ? "light" : "dark";
      core.remembered.set("theme", dataset.theme);
      route(); // charts take their colours when they are drawn
    });
  }

  function startHelp() {
    const dialog = document.getElementById("help-text");
    const list = KEYS.map(([key, text]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)));
    const note = "Point at a number's name to read its definition. Charts: Vega-Lite (BSD 3-clause).";
    dialog.append(
      h("h2", {}, "Keys"),
      h("dl", { class: "keys" }, list),
      h("p", { class: "quiet" }, note),
      h("form", { method: "dialog" }, h("button", {}, "close")),
    );
    document.getElementById("help").addEventListener("click", () => dialog.showModal());
  }

  function start() {
    startTheme();
    startHelp();
    document.getElementById("skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));
    document.addEventListener("keydown", keys);
    window.addEventListener("hashchange", route);
    pictures.heat.apply();
    route();
  }

  return { start };
})();

app.start();
