"""The manifest: every image of a folder, with its split, its class and its status."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from sae.errors import InputError, plain
from sae.images import labelling
from sae.images.labelling import BESIDE, HELD_OUT, TRAIN
from sae.images.near_duplicates import near_duplicates
from sae.images.reading import EXTENSIONS, LEFT_OUT, image_files, inspect

COLUMNS = ["id", "path", "label", "split", "sha256", "width", "height", "mode", "status", "reason", "group"]
_CHUNK = 256  # images whose rows are Python objects at once
MOST_RANKED = 50_000  # images: each takes about 10 kB of a dictionary's measurement


def list_images(
    folder: str | Path,
    labels: str | Path | None = None,
    held_out: float = 0.2,
    threads: int = 1,
    most: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Lists every image under `folder`, with its status and the reason if it is not used.

    Sub-folders called train and val, test or the like give the split, see `labelling.by_folder`. Otherwise a hash of
    the content decides the split, so that new images never change the split of old ones.

    Args:
        folder: searched at all levels; links are followed; names that begin with a dot are skipped.
        labels: a CSV, see `labelling.by_csv`. Images that it does not list are not used; it may give the split.
        held_out: the share of images that are not used for training, 0..1.
        threads: how many images are read at once.
        most, seed: how many images may be used, see `choose`.

    Returns:
        one row per image file in the order of the paths, the columns of COLUMNS without the label. `status` is
        ok, broken, duplicate, huge, unlisted or left_out; only ok images are used. `reason` explains a status other
        than ok, or the conversion of an ok image that is not plain upright RGB. `group`: the id of the first used image
        that looks the same, see `near_duplicates`; the image's own id if there is none.

    Raises:
        InputError: the folder is missing, empty or has no readable image; the CSV does not fit the folder; a split is
            empty.
    """
    folder = Path(folder).expanduser()
    paths = sorted(image_files(folder))
    if not paths:
        known = " ".join(sorted(EXTENSIONS))
        raise InputError(f"images {folder}: no image in it or below it; known endings: {known}")
    chosen = choose(paths, folder, labels, most, seed)
    parts, looks = [], []
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(paths), desc="images", unit="image") as progress:
        for first in range(0, len(paths), _CHUNK):
            rows, chunk = [], paths[first : first + _CHUNK]
            found = pool.map(lambda path: inspect(folder / path) if path in chosen else LEFT_OUT.copy(), chunk)
            for path, row in zip(chunk, found, strict=True):
                name = path.encode("utf-8", "backslashreplace").decode()
                if name != path:
                    row |= {"status": "broken", "reason": "its name is not UTF-8; rename it"}
                looks.append(row.pop("thumbnail"))
                rows.append({"path": name} | row)
                progress.update()
            parts.append(pd.DataFrame(rows))  # takes less memory than the rows
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "id", np.arange(len(table)))
    table = labelling.by_folder(table)
    if labels is not None:
        table = labelling.by_csv(table, folder, Path(labels).expanduser(), COLUMNS)
    _mark_duplicates(table)

    ok = table["status"] == "ok"
    if not ok.any():
        worst = table.iloc[0]
        raise InputError(
            f"images {folder}: none of the {len(table)} images can be used; "
            f"the first, {worst['path']}, is {worst['status']}: {worst['reason']}"
        )
    by_content = [int(h[:8] or "0", 16) / 2**32 < held_out for h in table["sha256"]]
    table["split"] = table["split"].where(table["split"].notna(), np.where(by_content, HELD_OUT, TRAIN))
    for split in (TRAIN, HELD_OUT):
        if not (ok & (table["split"] == split)).any():
            raise InputError(
                f"images {folder}: no image of {int(ok.sum())} falls into the split {split}; "
                f"add images, change held_out (now {held_out}), or set the split in a labels CSV"
            )
    table["group"] = table["id"]
    thumbnails = np.stack([look for look, used in zip(looks, ok, strict=True) if used])
    table.loc[ok, "group"] = table.loc[ok, "id"].to_numpy()[near_duplicates(thumbnails)]
    text = ["split", "sha256", "mode", "status", "reason"]
    table[text] = table[text].astype("string")
    return table[[column for column in COLUMNS if column != "label"]]


def choose(
    paths: Sequence[str], folder: Path, labels: str | Path | None = None, most: int | None = None, seed: int = 0
) -> set[str]:
    """Returns the images to read: all, or a random choice of `most` by their paths, of those that the CSV lists.

    The choice hardly changes with new images.

    Args:
        paths: of all images, below `folder`.
        labels: see `list_images`.
    """
    if most is None:
        return {*paths}
    names = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
    if labels is not None:
        table = pd.DataFrame({"path": names, "status": "ok", "reason": ""})
        listed = labelling.by_csv(table, folder, Path(labels).expanduser(), COLUMNS)["status"] == "ok"
    else:
        listed = pd.Series(True, range(len(paths)))
    every = zip(names, paths, listed, strict=True)
    order = sorted((hashlib.sha256(f"{seed} {name}".encode()).digest(), path) for name, path, here in every if here)
    return {path for _hash, path in order[:most]}


def label(table: pd.DataFrame, folder: str | Path, labels: str | Path | None = None) -> pd.DataFrame:
    """Returns the manifest: the rows of `list_images` with the label and the attributes of each image.

    An image's label is its sub-folder ("animals/cat"), none for images that lie in `folder` itself.

    Args:
        labels: a CSV, see `labelling.by_csv`. It may give the labels, and gives the attributes.

    Returns:
        the columns of COLUMNS, then the attributes. The reason of a duplicate names the label of the image that is
        used if it is another one.

    Raises:
        InputError: the CSV does not fit the folder.
    """
    found = labelling.by_folder(table.copy())
    if labels is not None:
        found = labelling.by_csv(found, Path(folder).expanduser(), Path(labels).expanduser(), COLUMNS)
    manifest = table.assign(label=found["label"].astype("string"))
    original = used(manifest).drop_duplicates("sha256").set_index("sha256")["label"]
    other = manifest["sha256"].map(original).astype("string").fillna("")
    differs = (manifest["status"] == "duplicate") & (manifest["label"].fillna("") != other)
    manifest.loc[differs, "reason"] += ", which is labelled " + other[differs].replace("", "None")
    return manifest[COLUMNS].join(found[[column for column in found if column not in COLUMNS]])


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Returns a manifest, or a list of images, as `label` and `list_images` made it.

    Raises:
        InputError: the file is damaged, or no manifest; or a path leads out of the folder of images.
    """
    try:
        table = pd.read_parquet(path)
        if table["id"].dtype.kind != "i" or not table["id"].is_unique:
            raise ValueError("its ids are not different whole numbers")
        if lead_out := [p for p in table["path"] if Path(p).is_absolute() or ".." in Path(p).parts]:
            raise ValueError(f"the path {lead_out[0]} leads out of the folder of images")
        first = [column for column in COLUMNS if column in table or column != "label"]
        return table[[*first, *table.columns.drop(first)]]
    except Exception as error:  # of many kinds: pyarrow's, pandas' and those of damaged values
        what = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as a manifest: {what}; delete it and run again") from error


def used(manifest: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """Returns the rows of the used images, of one split or of both, in the order of their ids."""
    chosen = manifest["status"] == "ok"
    if split is not None:
        chosen &= manifest["split"] == split
    return manifest[chosen].sort_values("id")


def sample(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Returns at most `most` rows, a sample by content that hardly changes with new images and favours no split.

    The hash's first digits decide the split, so the sample uses its last ones.
    """
    return rows.loc[rows["sha256"].str[32:].sort_values(kind="stable").index[:most]].sort_values("id")


def ranked(manifest: pd.DataFrame, always: Sequence[int] | np.ndarray = ()) -> pd.DataFrame:
    """Returns the rows of the ranked images: all used ones, or a sample by content if they are too many.

    Args:
        always: ids of images that are always included.
    """
    rows = used(manifest)
    return rows[rows["id"].isin(sample(rows, MOST_RANKED)["id"]) | rows["id"].isin(always)]


def summary(manifest: pd.DataFrame) -> str:
    """Returns a text about a manifest: the number of used images, and the reasons for the others."""
    counts = manifest["status"].value_counts()
    splits = used(manifest)["split"].value_counts()
    lines = [
        f"{len(manifest)} images: {', '.join(f'{n} {status}' for status, n in counts.items())}; "
        f"{splits.get(TRAIN, 0)} train, {splits.get(HELD_OUT, 0)} held out; "
        f"{used(manifest)['label'].nunique()} classes"
    ]
    if beside := int((used(manifest)["reason"].str.contains(BESIDE)).sum()):
        lines.append(f"  {beside} lie {BESIDE}")
    bad = manifest[~manifest["status"].isin(["ok", "unlisted", "left_out"])]
    lines += [plain(f"  {row.path}: {row.status}: {row.reason}") for row in bad.head(20).itertuples()]
    if len(bad) > 20:
        lines.append(f"  and {len(bad) - 20} more, see the manifest's column `reason`")
    return "\n".join(lines)


def shard(manifest: pd.DataFrame, index: int, shards: int) -> pd.DataFrame:
    """Returns the rows of the used images that belong to shard `index` of `shards`, in the order of their ids.

    Raises:
        InputError: there are more shards than images.
    """
    rows = used(manifest)
    if shards > len(rows):
        raise InputError(f"shards {shards}: there are only {len(rows)} images; use fewer shards")
    bounds = np.linspace(0, len(rows), shards + 1).astype(int)
    return rows.iloc[bounds[index] : bounds[index + 1]]


def _mark_duplicates(table: pd.DataFrame) -> None:
    first: dict[str, object] = {}
    for index, digest in table.loc[table["status"] == "ok", "sha256"].items():
        original = first.setdefault(digest, index)
        if index != original:
            table.loc[index, ["status", "reason"]] = ["duplicate", f"same content as {table.at[original, 'path']}"]
