"""The explorer's data about another experiment: the best match there of every latent."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sae.evidence.compare import OTHER, THIS, Comparison
from sae.explorer.parts import number, numbers, script
from sae.files import whole


def write(folder: Path, found: Comparison, explorer: str | None) -> None:
    """Writes a script for each SAE: layer=L/k=K/method=M/seed=S.js.

    Keys: name (of the other experiment), explorer (its address, or null), images (how many the latents were matched
    on), fvu (of this SAE: the page passes over the matches of an SAE that was trained again since), to (k, method and
    seed of the other SAEs), and lists by latent: layer and latent of its match (-1: it is silent), r, random and
    shuffled (see `evidence.compare.match`), and class (the confirmed one of the match, or null).

    Args:
        found: without latents, the folder stays empty.
        explorer: the address of the other experiment's explorer, from this one; None: it has none.
    """
    own, latents = found.own, found.latents
    point = ["layer", "k", "method", "seed"]
    match = ["match_layer", "match_k", "match_method", "match_seed", "match"]
    with whole(folder) as part:
        part.mkdir()
        if not len(latents):
            return
        sides = dict([*latents.groupby("of")])
        names = sides[OTHER].set_index([*point, "latent"])["name"].to_dict()
        fvu = own.summaries[own.summaries["measure"] == "fvu"].set_index(point)["value"]
        for where, rows in sides[THIS].groupby(point):
            place = dict(zip(point, where, strict=True))
            name = "/".join(f"{key}={value}" for key, value in place.items())
            told = [names.get(key) for key in rows[match].itertuples(index=False, name=None)]
            first = rows.iloc[0]
            value = {
                "name": found.other.name,
                "explorer": explorer,
                "images": len(found.rows),
                "fvu": number(fvu[where], 4),
                "to": {"k": int(first["match_k"]), "method": first["match_method"], "seed": int(first["match_seed"])},
                "layer": rows["match_layer"].tolist(),
                "latent": rows["match"].tolist(),
                **{key: numbers(rows[key]) for key in ("r", "random", "shuffled")},
                "class": [None if pd.isna(text) else text for text in told],
            }
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / f"{name}.js").write_text(script(f"compare/{name}", value))
