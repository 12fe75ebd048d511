import pandas as pd
import pytest

from sae import files


def test_a_file_that_fails_half_way_leaves_the_old_one_and_no_litter(tmp_path):
    path = tmp_path / "deep" / "table.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.whole(path) as part:
        part.write_text("{")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("old", "new"):
        with files.whole(tmp_path / "folder") as part:
            part.mkdir()
            (part / name).touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["new"]


def test_a_table_records_its_origin(tmp_path):
    table = pd.DataFrame({"x": [1.5, 2.5], "name": ["a", "b"]})
    files.write_table(tmp_path / "t.parquet", table, {"rule": "rank", "seconds": 1.0})
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    assert files.read_provenance(tmp_path / "t.parquet") == {"rule": "rank", "seconds": 1.0}


def test_points_have_the_layer_k_method_and_seed_of_their_paths(tmp_path):
    paths = [tmp_path / f"layer={layer}/k=8/method=topk/seed=3/m.parquet" for layer in (10, 2)]
    for i, path in enumerate(paths):
        files.write_table(path, pd.DataFrame({"fvu": [i / 2]}))
    table = files.read_points([str(path) for path in paths]).sort_values("layer")
    assert table[["layer", "k", "method", "seed", "fvu"]].values.tolist() == [
        [2, 8, "topk", 3, 0.5],
        [10, 8, "topk", 3, 0],
    ]
