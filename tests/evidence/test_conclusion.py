"""The conclusion: SAEs against baselines, in sentences and as a page."""

import pytest
import small

from sae.evidence import conclusion, summary


@pytest.mark.parametrize(("ours", "verdict"), [(0.3, "worse than"), (0.9, "better than")])
def test_the_page_says_whether_the_sae_beats_the_best_baseline(ours, verdict):
    table = small.summaries({"topk": ours, "pca": 0.5, "random": 0.2})
    page = conclusion.page(table, summary.compare(table, ["topk"], ["pca", "random"]), "<img src=x onerror=alert(1)>")
    assert f"{verdict} pca" in " ".join(page.split())  # the best baseline, not the weakest
    assert "random" not in page.split("</tr>", 1)[1]  # beyond the heading of its column
    assert f"{ours:.3f}" in page and "0.500" in page and "0.200" in page
    assert "<img" not in page and "&lt;img" in page


def test_the_sentences_say_what_is_bought_or_that_it_is_nothing():
    for ours, words in ((0.3, "the SAE gains nothing"), (0.9, "better than every baseline in: concept recovery")):
        compared = summary.compare(
            small.summaries({"topk": ours, "pca": 0.5, "random": 0.2}), ["topk"], ["pca", "random"]
        )
        first, *lines = conclusion.sentences(conclusion.against_best(compared))
        assert words in first and first.startswith("Over 1 grid point,")
        assert len(lines) == 1 and f"at {int(ours > 0.5)} of 1 grid points" in lines[0]
    assert "A baseline is mostly better in" not in first


def test_what_does_not_depend_on_the_seed_does_not_count_as_stable():
    table = small.summaries({"topk": 0.5, "pca": 1.0, "random": 0.2}, measure="stability")
    best = conclusion.against_best(summary.compare(table, ["topk"], ["pca", "random"]))
    assert best["baseline"].tolist() == ["random"] and best["verdict"].tolist() == ["better"]
