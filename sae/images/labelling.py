"""The labels and splits of images, from the names of their folders or from a CSV."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from sae.errors import InputError

TRAIN, HELD_OUT = "train", "held_out"
_SPLIT_NAMES = dict.fromkeys(("train", "training"), TRAIN) | dict.fromkeys(
    ("held_out", "held-out", "heldout", "val", "valid", "validation", "test", "testing", "dev", "eval"), HELD_OUT
)
BESIDE = "beside the folders that give the split: split by content"  # a reason


def by_folder(table: pd.DataFrame) -> pd.DataFrame:
    """Adds split and label by the sub-folders.

    Where train and held-out folders lie side by side (below folders that all images share, or each class has its own),
    they give the split of the images in them. A train folder alone gives no split, and is no class.
    """
    parents = [Path(p).parent.parts for p in table["path"]]
    table["split"] = None
    shared = 0  # folders that all images have in common
    while len({p[: shared + 1] for p in parents if len(p) > 1}) == 1 and all(len(p) > shared + 1 for p in parents):
        shared += 1
    for place in (*range(shared + 1), -1):
        names = [p[place] if len(p) > max(place, 0) else "" for p in parents]
        here = [_split_name(name) for name in names]
        known, alone = set(here) - {None}, None not in here and len(set(names)) == 1
        if alone or (known == {TRAIN, HELD_OUT} and (place >= 0 or None not in here)):
            inside = [p[:-1] if place < 0 else p[place + 1 :] for p in parents]
            parents = [part if split else p for p, part, split in zip(parents, inside, here, strict=True)]
            if not alone:
                table["split"] = here
                beside = table["split"].isna() & (table["status"] == "ok")
                reasons = table.loc[beside, "reason"]
                table.loc[beside, "reason"] = [f"{r}; {BESIDE}" if r else BESIDE for r in reasons]
            break
    table["label"] = ["/".join(p) or None for p in parents]
    return table


def _split_name(folder: str) -> str | None:
    """Returns the split that a folder's name tells, such as `train`, `val2017` or `Test_images`."""
    return _SPLIT_NAMES.get(re.sub(r"[-_ ]*(\d+|set|images)$", "", folder.lower()))


def read_csv(labels: Path) -> pd.DataFrame:
    """Returns the cells of a CSV as text without spaces around them; lines without a cell are skipped.

    Raises:
        InputError: it cannot be read, or has no column `path`.
    """
    try:
        content = labels.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise InputError(f"labels {labels}: cannot be read as text in UTF-8: {error}") from error
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"labels {labels}: cannot be read as CSV: {error}") from error
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines:
        raise InputError(f"labels {labels}: the file is empty")
    header = [name.lower() if name.lower() in ("path", "label", "split") else name for name in lines[0][1]]
    while header and not header[-1] and all(len(row) < len(header) or not row[-1] for _number, row in lines):
        header = header[:-1]  # separators at the end
        lines = [(number, row[: len(header)]) for number, row in lines]
    if repeated := [name for name in header if header.count(name) > 1 or not name]:
        raise InputError(f"labels {labels}: the name {repeated[0]!r} of a column is empty or used twice; rename it")
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise InputError(
                f"labels {labels}: line {number} has {len(row)} cells, the first line {len(header)}; "
                "quote cells that contain the separator"
            )
    if "path" not in header:
        raise InputError(f"labels {labels}: no column `path`; it has {', '.join(header)}")
    return pd.DataFrame([row for _number, row in lines[1:]], columns=header, dtype=object)


def by_csv(table: pd.DataFrame, folder: Path, labels: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Writes the columns of a CSV into the table; images that are not in it become `unlisted`.

    Args:
        folder: of the images.
        labels: a CSV in UTF-8 or UTF-16 with the columns path (relative to `folder`, or absolute) and, each optional,
            label and split (train or held_out); every further column is an attribute of the image. Commas, semicolons
            or tabs separate the cells.
        columns: of the manifest, whose names no attribute may have.

    Raises:
        InputError: the CSV cannot be read, or does not fit the folder.
    """
    listed = read_csv(labels)
    clash = sorted(set(listed.columns) & ({*columns, "thumbnail"} - {"path", "label", "split"}))
    if clash:
        raise InputError(f"labels {labels}: the column {clash[0]} has a name that the manifest uses; rename it")
    for root in (f"{folder.resolve().as_posix()}/", f"{folder.as_posix()}/", "./"):
        listed["path"] = listed["path"].str.removeprefix(root)
    plain = {_plain(path): path for path in table["path"]}
    known = set(table["path"])
    listed["path"] = [path if path in known else plain.get(_plain(path), path) for path in listed["path"]]
    repeated = listed["path"][listed["path"].duplicated()]
    if len(repeated):
        raise InputError(f"labels {labels}: {repeated.iloc[0]} is listed more than once; keep one row")
    missing = sorted(set(listed["path"]) - set(table["path"]))
    if missing and os.path.isfile(folder / missing[0]):  # noqa: PTH113 -- pathlib's raises errors for odd names
        raise InputError(
            f"labels {labels}: {missing[0]} is no image of {folder}: it lies outside, or in a folder that is skipped, "
            "or has no ending of an image; correct its path"
        )
    if missing:
        raise InputError(
            f"labels {labels}: {len(missing)} of its images are not in {folder}, the first is {missing[0]}; "
            "correct the paths, or the key images"
        )

    unlisted = ~table["path"].isin(listed["path"])
    listed = listed.set_index("path").reindex(table["path"]).reset_index(drop=True)
    listed = listed.map(lambda text: text if isinstance(text, str) and text else None)
    if "split" in listed:
        wrong = sorted({s for s in listed["split"].dropna() if s.lower() not in _SPLIT_NAMES})
        if wrong:
            raise InputError(f"labels {labels}: split {wrong[0]!r} is neither train nor held_out; write one of these")
        listed["split"] = [_SPLIT_NAMES[s.lower()] if isinstance(s, str) else None for s in listed["split"]]
    table[listed.columns] = listed
    unlisted &= table["status"].isin(["ok", "left_out"])
    table.loc[unlisted, ["status", "reason"]] = ["unlisted", f"not in {labels.name}"]
    return table


def _plain(path: str) -> str:
    """Returns a path as other systems write it: Windows' backslashes, and macOS's letters with separate accents."""
    return unicodedata.normalize("NFC", path.replace("\\", "/").removeprefix("./").strip())


def describe(label: str) -> str:
    """Returns ImageNet's first word for a synset ("n02123045" -> "tabby"), any other label as it is."""
    synset = label.split("/")[-1]
    if not re.fullmatch(r"n\d{8}", synset):
        return label
    return _synsets().get(synset, label).split(",")[0]


@cache
def _synsets() -> dict[str, str]:
    # Read from timm's files: the import of timm takes seconds, and jobs without a ViT need these words too.
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    lines = (Path(spec.origin).parent / "data/_info/imagenet_synset_to_lemma.txt").read_text().splitlines()
    return dict(line.split("\t") for line in lines)
