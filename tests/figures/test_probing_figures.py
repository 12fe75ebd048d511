"""The figures of sparse probes and of monosemanticity."""

import numpy as np
import pandas as pd
from written import written

from sae.figures import probing


def table(shift=0.0, probes=("1", "2", "5", "dense", "shuffled")):
    """Returns a probe table of four classes."""
    auroc = {"1": 0.7, "2": 0.8, "5": 0.85, "dense": 0.9, "shuffled": 0.5}
    rows = [(probe, "label", f"c{i}", auroc[probe] + shift + i / 100) for probe in probes for i in range(4)]
    return pd.DataFrame(rows, columns=["probe", "attribute", "class", "auroc"])


def test_probes_are_drawn_beside_those_of_other_dictionaries():
    figure = probing.probes({"topk": table(), "neurons": table(-0.1)}, "layer 4")
    axes = figure.axes[0]
    assert [len(part.get_offsets()) for part in axes.collections] == [4] * 9  # dense only once: it is the same for all
    marks = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 1]
    np.testing.assert_allclose(
        sorted(y for _, y in marks), [0.415, 0.515, 0.615, 0.715, 0.715, 0.765, 0.815, 0.865, 0.915]
    )
    shown = written(figure)
    assert "Mean AUROC from one latent: 0.72; from all dimensions: 0.92" in shown
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["topk", "neurons"]


def test_a_baseline_is_drawn_like_an_sae():
    tables = {name: table(probes=("1", "2", "5", "shuffled")) for name in ("pca", "neurons")}
    axes = probing.probes(tables, "layer 4").axes[0]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["1 latent", "2 latents", "5 latents", "5 latents,\nlabels shuffled"]


def test_no_class_to_probe_is_said():
    assert "No class has enough images" in written(probing.probes({"topk": table()[:0]}, "layer 4"))


def test_monosemanticity_counts_the_latents_above_the_control():
    rng = np.random.default_rng(0)
    control = rng.normal(0, 0.1, 40)
    scores = np.where(np.arange(40) < 13, 0.5, -0.5)
    scores[39] = control[39] = np.nan
    figure = probing.monosemanticity(scores, control, "layer 4")
    assert "33% of the latents" in written(figure)  # 13 of 39
    assert "1 of 40 latents" in figure.get_supxlabel()
    unknown = np.full(3, np.nan)
    assert "No latent fires on two images" in written(probing.monosemanticity(unknown, unknown, "layer 4"))
