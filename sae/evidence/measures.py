"""The registry of measures: the name, definition, unit and direction of each. Tables, figures and the explorer use it.

It also holds the thresholds that measures, figures and the explorer share.
"""

from __future__ import annotations

from dataclasses import dataclass

DENSE = 0.1  # share of the held-out tokens; a latent that is active on more is called dense
FOUND = 0.5  # correlation from which a latent of another SAE counts as the same latent
RELATED = 0.3  # correlation from which a latent of another SAE counts as related
ONE_FACTOR = 0.5  # share of a latent's change from which it responds to one factor
COVERED = 0.5  # F1 from which a class counts as covered by its best latent


@dataclass(frozen=True)
class Measure:
    """A number that describes a dictionary.

    Attributes:
        key: its column of metrics, or its name in the table `measure` of `summary.table`.
        name: for titles, axes and lists.
        sentence: its definition.
        higher: whether higher values are better; None if neither direction is better.
        unit: `share` (shown as a percentage) or `number`.
        log: whether figures show it on a logarithmic axis.
    """

    key: str
    name: str
    sentence: str
    higher: bool | None = True
    unit: str = "number"
    log: bool = False


_REGISTRY = (
    Measure(
        "fvu",
        "unexplained variance (FVU)",
        "Fraction of variance unexplained on held-out tokens: Σ‖x − x̂‖² / Σ‖x − mean‖². 0 %: perfect "
        "reconstruction; 100 %: no better than the mean token.",
        higher=False,
        unit="share",
        log=True,
    ),
    Measure(
        "l0",
        "active latents per token (L0)",
        "Number of latents that are active on a token, averaged over held-out tokens.",
        higher=None,
    ),
    Measure(
        "dead",
        "dead latents",
        "Share of latents that are active on no held-out token.",
        higher=False,
        unit="share",
    ),
    Measure(
        "dense",
        "dense latents",
        f"Share of latents that are active on more than {DENSE:.0%} of the held-out tokens.",
        higher=None,
        unit="share",
    ),
    Measure(
        "top1_agreement",
        "top-1 agreement",
        "Share of held-out images whose predicted class stays the same when the reconstruction replaces the "
        "layer's output.",
        unit="share",
    ),
    Measure(
        "ce_recovered_mean",
        "cross-entropy recovered",
        "Share of the cross-entropy that the reconstruction recovers when it replaces the layer's output. 100 %: "
        "as good as the original output; 0 %: no better than the mean token.",
        unit="share",
    ),
    Measure(
        "kl",
        "KL divergence",
        "KL divergence between the ViT's predictions with the original and with the reconstructed output of the "
        "layer, in nats per image.",
        higher=False,
        log=True,
    ),
    Measure(
        "output_cosine",
        "output cosine",
        "Cosine similarity between the ViT's outputs with and without the reconstruction.",
    ),
    Measure(
        "concept_recovery",
        "concept recovery (F1)",
        "F1 on held-out images of the best latent of each class, averaged over classes. The best latent is chosen"
        " on train images.",
    ),
    Measure(
        "class_coverage",
        "class coverage",
        f"Share of classes whose best latent, chosen on train images, reaches an F1 of {COVERED} on held-out images.",
        unit="share",
    ),
    Measure(
        "pointing",
        "pointing game",
        "Share of held-out images on which the strongest patch of the class's best latent lies on the object, "
        "averaged over classes.",
        unit="share",
    ),
    Measure(
        "class_selectivity",
        "class selectivity (MCC)",
        "Matthews correlation (MCC) between each latent and its best class on held-out images, averaged over the "
        "latents that fire. 0: chance; 1: perfect. A latent without a class counts as 0.",
    ),
    Measure(
        "one_factor",
        "response to one factor",
        "Share of a latent's change that its own factor causes, over pairs of images that differ in one factor alone, "
        "averaged over the latents that change. The factor is chosen on half of the pairs and measured on the others.",
    ),
    Measure(
        "probe_1",
        "probe on one latent (AUROC)",
        "AUROC on held-out images of a probe that reads one latent, averaged over classes. 0.5: chance.",
    ),
    Measure(
        "probe_5",
        "probe on five latents (AUROC)",
        "AUROC on held-out images of a probe that reads five latents, averaged over classes. 0.5: chance.",
    ),
    Measure(
        "stability",
        "stability",
        "Correlation on held-out tokens between each latent and its counterpart in an SAE trained with another "
        "seed, averaged over the latents that fire.",
    ),
    Measure(
        "causal_size",
        "effect above control",
        "Share of the ablated latents whose removal changes the ViT's output more than the removal of a random "
        "latent of the same norm.",
        unit="share",
    ),
    Measure(
        "causal_agreement",
        "effect on the latent's class",
        "Rank of the latent's class among all classes by the loss of log-probability when the latent is removed, "
        "averaged over the ablated latents. 1: the class loses most; 0.5: chance.",
    ),
)
MEASURES = {measure.key: measure for measure in _REGISTRY}
# The order in which dictionaries are compared: first what a person who looks for features needs.
COMPARED = (
    *("concept_recovery", "class_coverage", "class_selectivity", "stability", "causal_size", "causal_agreement"),
    *("pointing", "one_factor", "probe_1", "probe_5", "fvu"),
)
