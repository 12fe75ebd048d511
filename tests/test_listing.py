"""What the user's files say is known by their content, and asked when a run is planned."""

import os
import shutil

import pytest
import torch
from conftest import picture, planned, snakemake

from sae import listing as listings
from sae.errors import InputError
from sae.images.manifest import choose
from sae.images.reading import image_files
from sae.listing import listing, weights


@pytest.fixture
def now(tmp_path):
    """Returns the hashes of a folder, and of a CSV with these lines."""

    def ask(folder, lines=None):
        labels = None
        if lines is not None:
            labels = tmp_path / "labels.csv"
            labels.write_text("\n".join(lines) + "\n")
        return listing(folder, labels, tmp_path / "memory")

    return ask


def test_a_touched_or_moved_folder_is_the_same(pets, now, tmp_path):
    first = now(pets)
    os.utime(pets / "cat/1.png", (0, 0))
    shutil.copytree(pets, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    assert [now(f"{pets}/"), now(tmp_path / "copy"), now(tmp_path / "link"), now(os.path.relpath(pets))] == [first] * 4


def test_each_change_of_the_images_is_seen(pets, now):
    seen = [now(pets)]
    before = (pets / "cat/1.png").stat()
    picture(pets / "cat/1.png", seed=3000)
    with (pets / "cat/1.png").open("ab") as file:
        file.truncate(before.st_size)  # the same size at the same time
    os.utime(pets / "cat/1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    seen.append(now(pets))
    (pets / "cat/3.png").rename(pets / "cat/03.png")
    seen.append(now(pets))
    (pets / "cat/03.png").unlink()
    seen.append(now(pets))
    for name, target in (("link", "nowhere"), ("endless", "/dev/zero"), ("loop", "loop.png")):
        (pets / f"cat/{name}.png").symlink_to(target)
    os.mkfifo(pets / "cat/pipe.png")
    seen.append(now(pets))
    for part in ("images", "labels"):
        assert len({hashes[part] for hashes in seen}) == 5


def test_with_a_limit_only_changes_of_the_chosen_images_are_seen(pets, tmp_path):
    def now(**limits):
        return listing(pets, None, tmp_path / "memory", **limits)["images"]

    paths = sorted(image_files(pets))
    chosen = choose(paths, pets, None, 5)
    first, of_all = now(most=5), now()
    picture(pets / next(path for path in paths if path not in chosen), seed=3000)
    assert now(most=5) == first != now(most=5, seed=1) and now() != of_all
    picture(pets / min(chosen), seed=3001)
    assert now(most=5) != first


def test_a_mended_label_leaves_the_images_as_they_are(pets, now):
    lines = ["path,label,split,mood", "cat/1.png,tom,train,sad", "dog/0.png,rex,held_out,glad"]
    first = now(pets, lines)
    mended = now(pets, [lines[0], lines[1].replace("tom", "tim").replace("sad", "mad"), lines[2]])
    assert mended["images"] == first["images"] and mended["labels"] != first["labels"]
    other_split = now(pets, [lines[0], lines[1].replace("train", "val"), lines[2]])
    fewer = now(pets, lines[:2])
    assert len({hashes["images"] for hashes in (first, other_split, fewer, now(pets))}) == 4


def test_a_memory_that_is_damaged_or_cannot_be_written_changes_nothing(pets, now, tmp_path):
    first = now(pets)
    for file in (tmp_path / "memory").iterdir():
        file.write_text("{")
    assert now(pets) == first
    shutil.rmtree(tmp_path / "memory")
    (tmp_path / "memory").write_text("no folder")
    assert now(pets) == first


def test_weights_are_known_by_their_content(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "b.pth")
    first = weights(tmp_path / "a.pth", tmp_path / "memory")
    assert weights(tmp_path / "b.pth", tmp_path / "memory") == first
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth")
    assert weights(tmp_path / "a.pth", tmp_path / "memory") != first
    with pytest.raises(InputError, match="no such file"):
        weights(tmp_path / "c.pth", tmp_path / "memory")


GRID = {"layers": [0], "ks": [4], "baselines": []}


def test_an_imported_sae_is_known_by_the_content_of_its_files(tmp_path):
    folder, memory = tmp_path / "sae", tmp_path / "memory"
    folder.mkdir()
    (folder / "cfg.json").write_text("{}")
    (folder / "sae.safetensors").write_bytes(b"one")
    first, alone = listings.sae(folder, memory), listings.sae(folder / "sae.safetensors", memory)
    moved = folder.rename(tmp_path / "moved")
    assert (listings.sae(moved, memory), listings.sae(moved / "sae.safetensors", memory)) == (first, alone)
    (moved / "sae.safetensors").write_bytes(b"two")
    assert listings.sae(moved, memory) != first and listings.sae(moved / "sae.safetensors", memory) != alone
    with pytest.raises(InputError, match="imported SAE nowhere: no such file or folder"):
        listings.sae("nowhere", memory)


def test_a_missing_folder_is_one_line_of_the_plan_and_no_matter_to_a_list_of_rules(tmp_path):
    config = {"name": "mine", "images": str(tmp_path / "none"), "grid": GRID}
    done = snakemake(tmp_path, "--list-rules", config=config)
    assert done.returncode == 0 and "manifest" in done.stdout
    done = snakemake(tmp_path, "results/mine/manifest.parquet", "--quiet", "all", config=config)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: images {tmp_path / 'none'}: no such folder")
    assert "Traceback" not in done.stderr and not (tmp_path / "results").exists()


def test_only_what_a_change_can_reach_runs_again(pets, tmp_path):
    """Contents decide: of images, labels and weights; not times, places, names or the device's name."""
    from timm import create_model

    lines = [f"{path.relative_to(pets)},{path.parent.name}\n" for path in sorted(pets.rglob("*.png"))]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(lines))
    config = {
        "name": "x",
        "images": str(pets),
        "labels": str(tmp_path / "labels.csv"),
        "held_out": 0.3,
        "model": {"name": "vit_tiny_patch16_224", "checkpoint": "random", "image_size": 32},
        "grid": GRID,
        "sae": {"expansion": 0.5},
        "training": {"epochs": 1, "batch": 16},
    }
    targets = ["results/x/sae/layer=0/k=4/method=topk/seed=0/sae.json", "results/x/reference/reference.json"]
    work = tmp_path / "work"

    def plan(**changes):
        return planned(work, *targets, config=config | changes)

    done = snakemake(work, *targets, config=config)
    assert done.returncode == 0, done.stdout + done.stderr

    os.utime(pets / "cat/1.png", (0, 0))
    shutil.copytree(pets, tmp_path / "copy")
    shutil.copy(tmp_path / "labels.csv", tmp_path / "copy.csv")
    assert plan() == {}
    assert plan(images=f"{tmp_path / 'copy'}/", labels=str(tmp_path / "copy.csv"), device="cpu", threads=2) == {}

    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(lines).replace(",cat", ",tom"))
    assert plan() == {"manifest": 1, "reference": 1}
    picture(tmp_path / "copy/cat/1.png", seed=3000)
    images_on = {"images": 1, "manifest": 1, "pixels": 1, "reference": 1, "extract": 1, "statistics": 1, "train": 1}
    assert plan(images=str(tmp_path / "copy")) == images_on

    model_on = {"reference": 1, "extract": 1, "statistics": 1, "train": 1, "manifest": 1}  # and the mended label
    torch.save(create_model("vit_tiny_patch16_224", img_size=32).state_dict(), tmp_path / "best.pth")
    given = {"name": "timm/vit_tiny_patch16_224", "checkpoint": str(tmp_path / "best.pth")}
    assert plan(model=config["model"] | given) == model_on
