"use strict";
// What each number means, shown wherever it stands.

/** What can colour the grid's map. higher: whether more is better; null where neither is. log: spread over powers of ten. */
const MEASURES = [
  { key: "fvu", name: "FVU", unit: "share", log: true, higher: false, about: "Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean‖² over held-out tokens. 0: reconstructed exactly; 100 %: no better than always answering the mean." },
  { key: "l0", name: "L0", unit: "number", higher: null, about: "Latents that fire on a token, mean over held-out tokens." },
  { key: "dead", name: "dead latents", unit: "share", higher: false, about: "Share of latents that fire on no held-out token." },
  { key: "dense", name: "dense latents", unit: "share", higher: null, about: "Share of latents that fire on more than 10 % of the held-out tokens." },
  { key: "top1_agreement", name: "top-1 agreement", unit: "share", higher: true, about: "With the reconstruction in place of the layer's output: share of held-out images whose most likely class stays the same." },
  { key: "ce_recovered_mean", name: "cross-entropy recovered", unit: "share", higher: true, about: "With the reconstruction in place of the layer's output: how much of the cross-entropy is kept. 100 %: all of it; 0: as if every token were the mean token." },
  { key: "kl", name: "KL", unit: "number", log: true, higher: false, about: "How far the ViT's output moves when it sees the reconstruction: KL(untouched ‖ with the SAE), nats per image." },
  { key: "output_cosine", name: "output cosine", unit: "number", higher: true, about: "Cosine of the ViT's outputs with and without the reconstruction." },
  { key: "concept_recovery", name: "concept recovery", unit: "number", higher: true, about: "For each class the latent that finds it best, chosen on train images: its F1 on held-out images, mean over classes." },
  { key: "class_coverage", name: "class coverage", unit: "share", higher: true, about: "Share of classes that some latent, chosen on train images, finds with an F1 of 0.5 or more on held-out images." },
  { key: "pointing", name: "pointing game", unit: "share", higher: true, about: "How often the strongest patch of a class's best latent lies on the object, on held-out images." },
  { key: "class_selectivity", name: "class selectivity", unit: "number", higher: true, about: "How well latents tell their class from the others: MCC on held-out images (0 by chance), mean over latents that fire; a latent without a class counts 0." },
  { key: "probe_1", name: "probe, one latent", unit: "number", higher: true, about: "How well a class can be read from one latent: AUROC on held-out images (0.5 by chance), mean over classes." },
  { key: "probe_5", name: "probe, five latents", unit: "number", higher: true, about: "How well a class can be read from five latents: AUROC on held-out images (0.5 by chance), mean over classes." },
  { key: "stability", name: "stability", unit: "number", higher: true, about: "Whether a latent is found again when the SAE is trained from another seed: correlation with its counterpart on held-out tokens, mean over latents that fire." },
  { key: "causal_size", name: "moves the output", unit: "share", higher: true, about: "Of the latents drawn for ablation: share that move the ViT's output more than a random latent of the same norm." },
  { key: "causal_agreement", name: "cause agrees with class", unit: "number", higher: true, about: "Whether taking a latent out lowers the class that it correlates with: its rank among the classes, 1: most of all, 0.5: by chance." },
];

/** Columns of the latents' table, in order. */
const COLUMNS = [
  { key: "latent", name: "latent", unit: "id", about: "Row of the decoder matrix W_dec, from 0." },
  { key: "class", name: "class", unit: "text", about: "The class that it stands for: the one with the highest MCC on train images, if a test on held-out images confirms it (false discovery rate 5 % over all latents and classes)." },
  { key: "mcc", name: "selectivity", unit: "number", about: "How well its strongest activation tells its best class from the others on held-out images: Matthews correlation (MCC), 0 by chance, 1 perfect. Given for classes that are not confirmed too; empty where none has enough images to be tested." },
  { key: "density", name: "density", unit: "share", about: "Share of the held-out tokens on which it fires. Above 10 %: dense." },
  { key: "images", name: "images", unit: "share", about: "Share of all images on which it fires anywhere." },
  { key: "max", name: "max", unit: "number", about: "Largest activation on any token, in the SAE's units." },
  { key: "stability", name: "stability", unit: "number", about: "Correlation with its counterpart in SAEs of other seeds, on held-out tokens. Below 0.5: unstable." },
  { key: "monosemanticity", name: "alike", unit: "number", about: "Monosemanticity: how alike the images are on which it fires, by an embedding of the whole image. 0: as any two images, 1: all the same." },
  { key: "effect", name: "effect", unit: "number", about: "How many times as far the ViT's output moves when this latent is taken out as when a random latent of the same norm is. Measured for a random draw of latents alone." },
  { key: "role", name: "role", unit: "text", about: "What explains most of its firing other than content: position, border, prefix (class and register tokens), artefact (tokens of unusual norm). Empty: none of these." },
];

/** What the table can be filtered by: `is` says it of row i of a point's table. */
const FILTERS = [
  { key: "dead", about: "It fires on no token of any image.", is: (t, i) => !t.alive[i] },
  { key: "dense", about: "It fires on more than 10 % of the held-out tokens.", is: (t, i) => t.density[i] > 0.1 },
  { key: "position-driven", about: "It fires by place in the image or along its border, whatever is shown there.", is: (t, i) => ["position", "border"].includes(t.roles[t.role[i]]) },
  { key: "artefact or prefix", about: "It fires on tokens of unusual norm, or on class and register tokens.", is: (t, i) => ["artefact", "prefix"].includes(t.roles[t.role[i]]) },
  { key: "unstable", about: "Its counterparts in SAEs of other seeds correlate below 0.5 with it.", is: (t, i, found) => t.stability[i] !== null && t.stability[i] < found },
  { key: "no confirmed class", about: "The class that fits it best on train images does not pass the test on held-out ones, or there is none.", is: (t, i) => t.class[i] < 0 },
];

/** Where a latent fires: the entries of grid.on, in words. */
const ON = {
  on_class: ["on class tokens", "share", "Share of its firing that is on class tokens."],
  on_register: ["on registers", "share", "Share of its firing that is on other prefix tokens."],
  on_patch: ["on patches", "share", "Share of its firing that is on patches."],
  on_border: ["on the border", "share", "Of its firing on patches: share on the outermost ones."],
  on_high_norm: ["on high norms", "share", "Share of its firing on tokens with a norm above four times the patches' median."],
  by_row: ["by row", "number", "How far the rows in which it fires are from all rows alike (total variation distance, less chance): 0 anywhere, near 1 in one row."],
  by_column: ["by column", "number", "The same for columns."],
  by_place: ["by place", "number", "The same for single patches."],
};

const KEYS = [
  ["←  →", "previous and next latent, in the order of the table you came from"],
  ["r", "a random interesting latent: it fires, no place or artefact explains it, and its class is confirmed or it is stable"],
  ["h", "heat maps on or off"],
  ["u", "up: latent → table → grid"],
  ["g", "the grid"],
  ["i", "the images"],
  ["↑ ↓ Home End", "move in the table; Enter opens a latent"],
  ["arrows", "move the patch, on an opened image; Esc: the whole image again"],
  ["?", "this help"],
];
