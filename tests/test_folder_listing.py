"""The user's image folder is walked when a run is planned, and not whenever the Snakefile is read."""

from conftest import picture, planned, snakemake


def test_a_missing_folder_is_one_line_of_the_plan_and_no_matter_to_a_list_of_rules(tmp_path):
    config = {"name": "mine", "images": str(tmp_path / "none")}
    done = snakemake(tmp_path, "--list-rules", config=config)
    assert done.returncode == 0 and "manifest" in done.stdout
    done = snakemake(tmp_path, "results/mine/manifest.parquet", "--quiet", "all", config=config)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: images {tmp_path / 'none'}: no such folder")


def test_a_new_image_is_listed_again(pets, tmp_path):
    target, config = "results/mine/manifest.parquet", {"name": "mine", "images": str(pets)}
    done = snakemake(tmp_path / "work", target, config=config)
    assert done.returncode == 0, done.stderr
    assert planned(tmp_path / "work", target, config=config) == {}
    picture(pets / "cat/new.png", seed=99)
    assert planned(tmp_path / "work", target, config=config) == {"manifest": 1}
