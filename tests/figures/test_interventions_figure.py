"""The figure of interventions."""

import pandas as pd
from written import written

from sae.figures.interventions import interventions

LATENTS = pd.DataFrame(
    {
        "latent": [3, 5, 8, 9],
        "measure": "kl",
        "size": [0.5, 0.25, 0.01, 0.0],
        "size_control": [0.1, 0.3, 0.001, 0.0],
        "agreement": [1.0, 0.9, 0.4, None],
        "agreement_control": [0.5, 0.25, 0.75, None],
        "causal_attribute": ["shape", "colour", "shape", None],
        "causal_class": ["ring", "red", "star", None],
        "causal_effect": [2.0, 1.0, 0.1, None],
        "control_effect": [0.2, 0.1, 0.1, None],
        "correlated_attribute": ["shape", "shape", None, None],
        "correlated_class": ["ring", "star", None, None],
    }
)
EFFECTS = pd.DataFrame(
    [(3, "shape", "ring", "ablate", 0.25), (5, "colour", "red", "ablate", 0.5), (3, "shape", "ring", "steer", 9.0)],
    columns=["latent", "attribute", "class", "kind", "se"],
)


def test_the_figure_shows_sizes_ranks_and_the_strongest_latents():
    figure = interventions(LATENTS, EFFECTS, "planted", most=2)
    left, middle, right = figure.axes
    assert left.get_xscale() == left.get_yscale() == "log"
    assert "67% of 3 latents exceed their control" in left.get_title("left") and "1 not shown" in written(figure)
    assert "n = 3" in middle.get_title("left") and "latent removed: median 0.90" in written(figure)
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names == ["latent 5: colour red\n(its class: shape star)", "latent 3: shape ring\n(also its class)"]
    bars = right.collections[0].get_segments()  # the standard errors of the ablation, not of the steering
    assert [(bar[0][0], bar[1][0]) for bar in bars] == [(0.5, 1.5), (1.75, 2.25)]


def test_nothing_to_show_is_said():
    assert "no latent was removed" in written(interventions(LATENTS[:0], EFFECTS, "none"))
    shown = written(interventions(LATENTS[3:], EFFECTS, "unmoved"))
    assert "no latent changes the output" in shown and "no class is known to change" in shown
