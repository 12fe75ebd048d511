"""The choice of a grid point: which layer, k and method to look at first, and which dictionaries are too large."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sae.evidence.measures import MEASURES, RELATED

# By these a person who looks for features chooses; by FVU only where there is none of them.
ASKED = ("concept_recovery", "class_selectivity", "stability", "causal_size")
HANDFUL = 10  # images; a latent that fires on fewer has shown too little to be trusted
MOST = 0.5  # share of the latents; a dictionary is too large where more are lost or rare
GRID_POINT = ["layer", "k", "method"]
READ = ["status", "image_frequency", "confirmed", "top_mcc", "partner_correlations"]


def grid_points(
    summaries: pd.DataFrame, latents: pd.DataFrame, compared: pd.DataFrame, methods: Sequence[str], images: int
) -> pd.DataFrame:
    """Ranks the grid points by their mean rank over the measures of `ASKED`, and gives the reasons.

    Measures are means over the seeds; shares are of the latents of all seeds.

    Args:
        summaries: tables of `summary.table` with layer, k, method and seed.
        latents: tables of latents (`judge.judge`) of the SAEs, with layer, k, method and seed; the columns `READ`.
        compared: from `conclusion.against_best`.
        methods: the SAEs'; summaries of other methods are left out.
        images: how many are ranked.

    Returns:
        A row per grid point, the best first: layer, k, method, a column per measure, mean_rank, first (share of the
        bootstrap draws in which the point is the best; points that share a place share the draw), dead (share of the
        latents), confirmed, lost and rare (shares of the alive latents: with a confirmed class; with a correlation
        below `RELATED` with every counterpart in another seed; on fewer than `HANDFUL` images; NaN where no latent has
        such a number), too_large, reasons.
    """
    ours = summaries[summaries["method"].isin(methods)]
    counts = ours.groupby("measure")["value"].count()
    complete = set(counts.index[counts == counts.max()])
    measures = [key for key in ASKED if key in complete] or ["fvu"]
    points = ours.groupby(GRID_POINT).size().index
    table, ranks, drawn = pd.DataFrame(index=points), pd.DataFrame(index=points), []
    for key in measures:
        rows, lower = ours[ours["measure"] == key].groupby(GRID_POINT), not MEASURES[key].higher
        table[key] = rows["value"].mean()
        ranks[key] = table[key].rank(ascending=lower)
        draws = np.stack([np.mean(np.stack([*rows.get_group(point)["draws"]]), 0) for point in points])
        drawn.append(pd.DataFrame(draws).rank(ascending=lower).to_numpy())
    table["mean_rank"] = ranks.mean(axis=1)
    in_draws = np.mean(drawn, axis=0)
    best = in_draws == in_draws.min(0)
    table["first"] = (best / best.sum(0)).mean(1)
    table = table.join(_sizes(latents, images)).sort_values(["mean_rank", "first"], ascending=[True, False])
    ranks = ranks.loc[table.index]
    table["reasons"] = [
        _reasons(len(points), ranks.loc[p], _weak(compared, p, measures), table.loc[p]) for p in table.index
    ]
    return table.reset_index()


def _sizes(latents: pd.DataFrame, images: int) -> pd.DataFrame:
    alive = (latents["status"] == "alive").to_numpy()
    partners = latents["partner_correlations"]  # none where nobody trained another seed
    found = np.array([np.nan if them is None or not len(them) else np.max(them) for them in partners])
    facts = latents[GRID_POINT].assign(
        dead=~alive,
        confirmed=latents["confirmed"].eq(True),
        lost=found < RELATED,
        rare=(latents["image_frequency"] * images).round() < HANDFUL,
    )
    facts["unsure"] = facts["lost"] | facts["rare"]
    of_all, of_alive = facts.groupby(GRID_POINT), facts[alive].groupby(GRID_POINT)
    known = latents[GRID_POINT].assign(confirmed=latents["top_mcc"].notna(), lost=~np.isnan(found))[alive]
    columns = ["confirmed", "lost", "rare", "unsure"]
    table = of_alive[columns].mean().reindex(of_all.size().index).assign(dead=of_all["dead"].mean())
    for column in ("confirmed", "lost"):
        any_known = known.groupby(GRID_POINT)[column].any().reindex(table.index, fill_value=False)
        table[column] = table[column].where(any_known)
    return table.assign(too_large=table.pop("unsure") > MOST)


def _weak(best: pd.DataFrame, point: tuple[int, int, str], measures: Sequence[str]) -> list[str]:
    """Returns the measures by which a baseline is better at most seeds."""
    here = best[(best[GRID_POINT] == list(point)).all(axis=1)]
    worse = (here["verdict"] == "worse").groupby(here["measure"]).mean()
    return [key for key in measures if worse.get(key, 0) > 0.5]


def _reasons(points: int, ranks: pd.Series, weak: Sequence[str], row: pd.Series) -> str:
    said = []
    if points > 1:
        for place, at in ("best", 1), ("last", points):
            if keys := [str(key) for key, rank in ranks.items() if rank == at]:
                said.append(f"{place} of {points} by {_listed(keys)}")
    if weak:
        said.append(f"a baseline is better by {_listed(weak)}")
    if row["dead"] == 1:
        said.append("all of its latents are dead")
    if row["too_large"]:
        parts = []
        if row["lost"] > 0:
            parts.append(f"no other seed finds {row['lost']:.0%} of its latents")
        if row["rare"] > 0:
            parts.append(f"{row['rare']:.0%} fire on fewer than {HANDFUL} images")
        said.append(f"too large for its data: {' and '.join(parts)}; try a smaller expansion, more images or epochs")
    return "; ".join(said)


def _listed(keys: Sequence[str]) -> str:
    *most, last = (MEASURES[key].name for key in keys)
    return f"{', '.join(most)} and {last}" if most else last
