// The page's scripts share one global scope: each file defines one name, its own, and uses those of the files before it.
import { readFileSync } from "node:fs";
import js from "@eslint/js";
import globals from "globals";

const page = readFileSync(new URL("../../sae/explorer/web/index.html", import.meta.url), "utf8");
const names = [...page.matchAll(/src="app\/(\w+)\.js"/g)].map(([, name]) => name);

export default names.map((name, place) => ({
  files: [`**/${name}.js`],
  languageOptions: {
    sourceType: "script",
    globals: { ...globals.browser, ...Object.fromEntries(names.slice(0, place).map((n) => [n, "readonly"])) },
  },
  rules: {
    ...js.configs.recommended.rules,
    "no-unused-vars": ["error", { vars: "local" }],
    "no-var": "error",
    "prefer-const": "error",
    eqeqeq: "error",
    strict: ["error", "global"],
    "max-lines-per-function": ["error", { max: 90, skipComments: true, IIFEs: false }],
  },
}));
