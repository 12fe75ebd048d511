"""The choices of a probe that the second opinion changes, on codes whose answer is known."""

import numpy as np
from workers.probes import probe


def test_redundant_latents_fill_a_small_probe_unless_classes_take_turns():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 40)
    shows = labels[:, None] == np.arange(10)
    # Class 0 has twenty latents, which are nearly perfect; every other class has one, which is noisier.
    z = np.concatenate([np.repeat(shows[:, :1], 20, 1) + rng.normal(0, 0.05, (400, 20)), shows[:, 1:]], 1)
    z[:, 20:] += rng.normal(0, 0.2, (400, 9))
    assert probe(z, labels, 0)[20] < 0.3
    assert probe(z, labels, 0, in_turn=True)[10] > 0.9


def test_latents_chosen_on_test_images_predict_labels_that_are_random():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(300, 2000)), np.repeat([0, 1], 150)
    leaked, fair = (np.mean([probe(z, labels, seed, leak=leak)[20] for seed in range(3)]) for leak in (True, False))
    assert leaked > 0.75 and 0.35 < fair < 0.65


def test_standardised_latents_count_whatever_their_scale():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 60)
    z = (labels[:, None] == np.arange(4)) * 1e-4 + rng.normal(0, 1e-5, (240, 4))
    z = np.concatenate([z, rng.normal(size=(240, 1)) + labels[:, None] * 2], 1)
    assert probe(z, labels, 0)[5] < 0.9 < probe(z, labels, 0, standardise=True)[5]
