"""Folders of images, as people have them."""

import hashlib
import shutil
import struct

import numpy as np
import pandas as pd
import pytest
from conftest import manifest, picture
from hostile import exif, with_exif
from PIL import Image, ImageOps

from sae import images
from sae.errors import InputError
from sae.images.near_duplicates import near_duplicates
from sae.images.pixels import decode
from sae.images.reading import read_image


def row(table, path):
    return table.set_index("path").loc[path]


def test_lists_every_image_with_its_class_in_the_order_of_the_paths(pets):
    picture(pets / "bird" / "small" / "x.jpg", seed=99)
    (pets / "notes.txt").write_text("not an image")
    table = manifest(pets)
    assert list(table.columns) == images.COLUMNS
    assert table["path"].tolist() == sorted(table["path"])
    assert table["id"].tolist() == list(range(13))
    assert row(table, "bird/small/x.jpg")["label"] == "bird/small"
    assert set(table["label"]) == {"cat", "dog", "bird/small"}
    assert set(table["split"]) == {"train", "held_out"}
    assert row(table, "cat/1.png")[["width", "height", "mode", "status", "reason"]].tolist() == [
        40,
        30,
        "RGB",
        "ok",
        "",
    ]


def test_flat_folder_has_no_labels(tmp_path):
    for i in range(8):
        picture(tmp_path / f"{i}.png", seed=i)
    assert manifest(tmp_path)["label"].isna().all()


def test_split_follows_the_content_not_the_name_or_the_neighbours(pets):
    before = manifest(pets).set_index("sha256")["split"]
    for i in range(20):
        picture(pets / "aardvark" / f"{i}.png", seed=1000 + i)
    shutil.move(pets / "cat" / "1.png", pets / "cat" / "renamed.png")
    after = manifest(pets).set_index("sha256")["split"]
    assert (after.loc[before.index] == before).all()


def test_sixteen_bits_are_scaled_not_clipped(pets):
    values = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
    Image.fromarray(values).save(pets / "deep.png")
    assert row(manifest(pets), "deep.png")["status"] == "ok"
    grey = np.asarray(read_image(pets / "deep.png").convert("L")).ravel()
    assert abs(int(grey[200]) - 128) <= 2


def test_large_images_are_used(pets):
    Image.new("1", (12000, 9000)).save(pets / "large.png")
    assert row(manifest(pets), "large.png")["status"] == "ok"


def test_labels_csv_gives_labels_splits_and_attributes(pets, tmp_path):
    csv = tmp_path / "labels.csv"
    csv.write_text(
        "path,label,split,breed\ncat/1.png,None,train,siamese\ncat/3.png,tiger,val,\n"
        f"{(pets / 'dog' / '0.png').resolve()},hound,train,NA\ndog/2.png,,,\n"
    )
    table = manifest(pets, labels=csv)
    assert row(table, "cat/1.png")[["label", "split", "breed"]].tolist() == ["None", "train", "siamese"]
    assert row(table, "cat/3.png")["split"] == "held_out"
    assert row(table, "dog/0.png")["breed"] == "NA"
    assert pd.isna(row(table, "cat/3.png")["breed"])
    assert pd.isna(row(table, "dog/2.png")["label"])
    assert row(table, "dog/4.png")["status"] == "unlisted"
    assert (table["status"] == "ok").sum() == 4


def test_folders_without_images_are_explained(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        manifest(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no image in it"):
        manifest(tmp_path)
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"none of the 3 images can be used; the first, 0\.jpg, is broken"):
        manifest(tmp_path)


def test_an_empty_split_is_explained(tmp_path):
    picture(tmp_path / "only.png")
    with pytest.raises(InputError, match="held_out"):
        manifest(tmp_path)


def test_a_class_with_one_image_is_used(pets):
    picture(pets / "lonely" / "1.png", seed=500)
    assert row(manifest(pets), "lonely/1.png")["status"] == "ok"


def test_pixels_are_decoded_in_order_and_changes_are_noticed(pets, tmp_path):
    table = manifest(pets)
    rows = images.shard(table, 1, 3)
    assert len(rows) == 4

    def transform(image):
        return np.asarray(image.resize((8, 8))).transpose(2, 0, 1)

    out = tmp_path / "pixels.npy"
    decode(rows, pets, transform, out, threads=2)
    pixels = np.load(out)
    assert pixels.shape == (4, 8, 8, 3)
    third = transform(read_image(pets / rows["path"].iloc[2])).transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels[2], third)

    picture(pets / rows["path"].iloc[0], seed=4242)
    with pytest.raises(InputError, match="changed since"):
        decode(rows, pets, transform, out)
    with pytest.raises(InputError, match="only 12 images"):
        images.shard(table, 0, 13)


def test_near_duplicates_are_grouped_and_different_pictures_are_not(tmp_path):
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(30):
        blobs = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
        blobs.save(folder / f"{i:02d}.png")
    first = Image.open(folder / "00.png")
    first.save(folder / "00-jpeg.jpg", quality=60)
    first.resize((300, 225)).save(folder / "00-large.png")
    Image.fromarray((np.asarray(first) * 0.97).astype(np.uint8)).save(folder / "00-darker.png")
    Image.fromarray(255 - np.asarray(first)).save(folder / "00-negative.png")
    table = manifest(folder)
    group = table.set_index("path")["group"]
    copies = ["00-darker.png", "00-jpeg.jpg", "00-large.png", "00.png"]
    assert (group[copies] == table.set_index("path").loc["00-darker.png", "id"]).all()  # the first of them
    others = table[~table["path"].isin(copies)]
    assert (others["group"] == others["id"]).all()


def test_chains_of_near_duplicates_are_one_group():
    base = np.random.default_rng(0).integers(60, 180, (8, 9, 3))
    steps = np.stack([base + 8 * i for i in range(4)] + [255 - base]).astype(np.uint8)
    assert near_duplicates(steps).tolist() == [0, 0, 0, 0, 4]
    assert near_duplicates(steps[[3, 4, 0]]).tolist() == [0, 1, 2]  # without what links them


def test_a_sample_keeps_both_splits_and_its_images_when_others_come():
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(2000)]
    rows = pd.DataFrame({"id": range(2000), "sha256": hashes})
    rows["split"] = np.where([int(h[:8], 16) / 2**32 < 0.2 for h in hashes], "held_out", "train")
    chosen = images.sample(rows, 300)
    assert len(chosen) == 300 and chosen["id"].is_monotonic_increasing
    assert 0.12 < (chosen["split"] == "held_out").mean() < 0.28
    before = images.sample(rows.head(1900), 300)
    assert len(set(chosen["id"]) & set(before["id"])) > 250
    assert len(images.sample(rows, 5000)) == 2000


TURNED = (0x0112, 3, 1, struct.pack("<H", 6))


@pytest.mark.parametrize("tag", [0x010E, 0x011A, 0x0128, 0x8769, 0x02BC, 0x8825, 0xA005])
@pytest.mark.parametrize("kind", [1, 2, 3, 5, 7, 12])
def test_a_malformed_exif_tag_beside_the_orientation_stops_nothing(pets, tag, kind):
    path = picture(pets / "cat" / "phone.jpg", seed=7, size=(40, 24))
    jpeg, block = path.read_bytes(), exif(TURNED, (tag, kind, 2, b"2\0"))
    path.write_bytes(with_exif(jpeg, block))
    found = row(manifest(pets), "cat/phone.jpg")
    assert found[["status", "width", "height"]].tolist() == ["ok", 24, 40]
    assert read_image(path).size == (24, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_every_orientation_in_every_format_is_turned_as_pillow_does(pets, ending, orientation):
    path = pets / f"cat/turned.{ending}"
    plain = Image.open(picture(pets / "dog/plain.png", seed=3, size=(40, 24))).convert("RGB")
    tags = Image.Exif()
    tags[0x0112] = orientation
    plain.save(path, exif=tags)
    with Image.open(path) as image:
        image.load()
        wanted = ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(wanted))
    found = row(manifest(pets), f"cat/turned.{ending}")
    assert (found["width"], found["height"]) == wanted.size == ((24, 40) if orientation >= 5 else (40, 24))


@pytest.mark.parametrize("dtype, high, bits", [("i4", 255, 8), ("i4", 65535, 16), ("u2", 4095, 12), ("u2", 65535, 16)])
def test_tiffs_of_more_than_eight_bits_are_scaled_by_the_bits_that_hold_them(pets, dtype, high, bits):
    grey = np.linspace(0, high, 32 * 32).reshape(32, 32).astype(dtype)
    Image.fromarray(grey).save(pets / "cat/cell.tif")
    seen = np.asarray(read_image(pets / "cat/cell.tif"))[..., 0]
    np.testing.assert_array_equal(seen, grey >> (bits - 8))
    assert seen.max() == 255 and row(manifest(pets), "cat/cell.tif")["status"] == "ok"


@pytest.mark.parametrize("values", [(-5, 100), (0, 2**20)])
def test_pixels_of_unknown_range_are_broken_with_a_reason(pets, values):
    Image.fromarray(np.array([values] * 8, np.int32)).save(pets / "cat/cell.tif")
    found = row(manifest(pets), "cat/cell.tif")
    assert found["status"] == "broken" and "their range is unknown" in found["reason"]


def test_files_that_are_no_images_of_the_user_are_passed_over(pets, monkeypatch):
    for place in ("@eaDir/x.png", "#recycle/x.png"):
        picture(pets / "cat" / place, seed=50)
    picture(pets / "cat/new.avif", seed=51)
    monkeypatch.chdir(pets)
    picture(pets / "results/x/explorer/0.png", seed=52)
    table = manifest(pets)
    assert set(table["label"]) == {"cat", "dog"}
    assert row(table, "cat/new.avif")["status"] == "ok"


@pytest.mark.parametrize(
    "names, labels, held_out",
    [
        (["train/cat", "val/cat", ""], {"cat", None}, {"val/cat"}),
        (["train/cat", "val/cat", "unlabeled"], {"cat", "unlabeled"}, {"val/cat"}),
        (["data/train/cat", "data/val/cat"], {"cat"}, {"data/val/cat"}),
        (["cat/train", "cat/test", "dog/train"], {"cat", "dog"}, {"cat/test"}),
        (["train2017", "val2017"], {None}, {"val2017"}),
        (["train/cat", "train/dog"], {"cat", "dog"}, None),
        (["train", "car", "plane"], {"train", "car", "plane"}, None),
        (["test", "cat"], {"test", "cat"}, None),
    ],
)
def test_split_folders_wherever_people_put_them(tmp_path, names, labels, held_out):
    for number, name in enumerate(names):
        for seed in range(6):
            picture(tmp_path / name / f"{seed}.png", seed=100 * number + seed)
    table = manifest(tmp_path)
    assert {None if pd.isna(label) else label for label in table["label"]} == labels
    if held_out is None:  # by content: both splits in all folders
        assert table["split"].nunique() == 2
        return
    folder = table["path"].str.rpartition("/")[0]
    inside = folder.str.contains("train|val|test")
    assert set(folder[inside & (table["split"] == "held_out")]) == held_out
    assert set(folder[inside & (table["split"] == "train")]) == set(folder[inside]) - held_out
    if not inside.all():
        assert table.loc[~inside, "split"].nunique() == 2
        assert "6 lie beside the folders that give the split" in images.summary(table)


@pytest.mark.parametrize(
    "text",
    [
        "path, label\ndog/0.png, tom\n",
        " Path ;LABEL\r\ndog/0.png;tom\r\n",
        "path\tlabel\ndog/0.png\ttom\n\n",
        'path,label\n"dog/0.png","tom"\n,\n',
        "path,label,\ndog\\0.png,tom,\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_labels_in_every_common_dialect(pets, tmp_path, text, encoding):
    labels = tmp_path / "labels.csv"
    extra = "".join(f"{('dog', 'cat')[i % 2]}/{i}.png,x\n" for i in range(1, 12))
    separator = ";" if ";" in text else "\t" if "\t" in text else ","
    end = separator if text.startswith("path,label,") else ""
    lines = [line.replace(",", separator) + end for line in extra.splitlines()]
    labels.write_bytes((text + "\n".join(lines) + "\n").encode(encoding))
    table = manifest(pets, labels=labels)
    assert list(table.columns) == images.COLUMNS
    assert row(table, "dog/0.png")["label"] == "tom"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,label\na,b\n", "no column `path`"),
        (b"path,label\ncat/1.png,a\ncat/nothing.png,b\n", "cat/nothing.png"),
        (b"path,label\ncat/1.png,a\ncat/1.png,b\n", "more than once"),
        (b"path,split\ncat/1.png,exam\n", "'exam'"),
        (b"path,sha256\ncat/1.png,1\n", "sha256"),
        (b"path,label\ndog/0.png,tom, the cat\n", "line 2 has 3 cells, the first line 2"),
        (b"path,label,label\ndog/0.png,a,b\n", "'label' of a column is empty or used twice"),
        ("path,label\ndog/0.png,Bär\n".encode("latin-1"), "cannot be read as text in UTF-8"),
        (b"", "the file is empty"),
    ],
)
def test_a_labels_csv_that_cannot_be_used_is_explained(pets, tmp_path, content, message):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        manifest(pets, labels=tmp_path / "labels.csv")


def test_a_limit_reads_a_random_choice_that_hardly_changes(pets, tmp_path):
    for i in range(40):
        picture(pets / "cat" / f"more{i}.png", seed=500 + i)
    (pets / "dog" / "broken.png").write_bytes(b"no image")
    read = {seed: images.list_images(pets, held_out=0.5, most=20, seed=seed).set_index("path") for seed in (0, 1)}
    for table in read.values():
        assert table["status"].isin(["ok", "left_out", "broken"]).all() and (table["status"] != "left_out").sum() == 20
        assert (table.loc[table["status"] == "left_out", "sha256"] == "").all()
    chosen = {seed: {*table.index[table["status"] != "left_out"]} for seed, table in read.items()}
    assert chosen[0] != chosen[1]
    picture(pets / "cat" / "new.png", seed=600)
    again = images.list_images(pets, held_out=0.5, most=20).set_index("path")
    assert len({*again.index[again["status"] != "left_out"]} & chosen[0]) >= 19
    told = images.summary(images.label(again.reset_index(), pets))
    assert "34 left_out" in told and "left_out:" not in told

    listed = [path for path in read[0].index if path.startswith("cat/more")][:30]
    labels = tmp_path / "some.csv"
    labels.write_text("\n".join(["path", *listed]))
    table = images.list_images(pets, labels, 0.5, most=10).set_index("path")
    assert table["status"].value_counts()[["ok", "left_out"]].to_dict() == {"ok": 10, "left_out": 20}
    assert {*table.index[table["status"] == "ok"]} < {*listed}
    assert (table["status"] == "unlisted").sum() == len(table) - 30
