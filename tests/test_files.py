import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from sae import InputError, files


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
    files.write_table(tmp_path / "t.parquet", table, {"rule": "rank"})
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    assert files.read_provenance(tmp_path / "t.parquet") == {"rule": "rank"}


def test_points_have_the_layer_k_method_and_seed_of_their_paths(tmp_path):
    paths = [tmp_path / f"layer={layer}/k=8/method=topk/seed=3/m.parquet" for layer in (10, 2)]
    for i, path in enumerate(paths):
        files.write_table(path, pd.DataFrame({"fvu": [i / 2]}))
    table = files.read_points([str(path) for path in paths]).sort_values("layer")
    assert table[["layer", "k", "method", "seed", "fvu"]].values.tolist() == [
        [2, 8, "topk", 3, 0.5],
        [10, 8, "topk", 3, 0],
    ]


ARRAYS = {"b": np.arange(3), "a": np.eye(2, dtype=np.float32), "c": np.float64(0.5), "empty": np.empty((0, 2))}


def test_arrays_are_those_of_the_safetensors_library(tmp_path):
    path = tmp_path / "ours.safetensors"
    files.write_arrays(path, {name: np.asarray(array) for name, array in ARRAYS.items()}, {"version": 1})
    for read in (load_file(path), files.read_arrays(path)[0], files.read_arrays(path, mapped=True)[0]):
        assert read.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(read[name], array, strict=True)
    assert files.read_arrays(path)[1]["version"] == 1
    same = {"z": np.ones((3, 2), np.float32), "y": np.full((), 2, np.float32)}
    files.write_arrays(path, same)
    save_file(same, tmp_path / "theirs.safetensors")
    ours, theirs = path.read_bytes(), (tmp_path / "theirs.safetensors").read_bytes()
    assert ours[-28:] == theirs[-28:]  # the order of the arrays is the library's too


@pytest.mark.parametrize("part", [slice(None), slice(1, None), slice(0, 1)])
@pytest.mark.parametrize("rows", [range(20), range(3, 9), [5], [2, 3, 4, 9, 11, 12], [7, 1, 1], []])
def test_rows_are_those_of_the_array(tmp_path, rows, part):
    whole = np.random.default_rng(0).standard_normal((20, 5, 3)).astype(np.float16)
    with (tmp_path / "a.npy").open("wb") as file:
        head = files.write_header(file, np.float16, whole.shape)
        file.write(whole.data)
    assert (tmp_path / "a.npy").read_bytes() == head + whole.tobytes()
    assert np.array_equal(np.load(tmp_path / "a.npy"), whole)
    read = files.Rows(tmp_path / "a.npy")
    assert (len(read), read.shape, read.dtype) == (20, (20, 5, 3), np.float16)
    np.testing.assert_array_equal(read.read(rows, part), whole[np.array(rows, int)][:, part])


def test_rows_of_a_file_that_ends_too_early_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones((20, 5, 3)))
    read = files.Rows(path)
    path.write_bytes(path.read_bytes()[:-8])
    assert read.read(range(19)).all()
    with pytest.raises(InputError, match=r"a\.npy: the file is damaged"):
        read.read([19])
    with pytest.raises(ValueError):
        files.Rows(path)
    np.save(path, np.asfortranarray(np.ones((20, 5))))
    with pytest.raises(ValueError, match="rows"):
        files.Rows(path)


@pytest.mark.parametrize("name", ["facts.json", "arrays.safetensors"])
def test_every_flipped_byte_is_found(tmp_path, name):
    path = tmp_path / name
    if name.endswith("json"):
        files.write_json(path, {"k": 16, "mean": [0.1, 1e-7]})
        read = files.read_json
    else:
        files.write_arrays(path, {"mean": np.arange(4.0)}, {"k": 16})
        read = files.read_arrays
    whole = path.read_bytes()
    read(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(InputError, match=rf"{name}: the file is damaged"):
            read(path)
    for other in (b"", whole[:-1], whole + b" "):
        path.write_bytes(other)
        with pytest.raises(InputError, match="damaged"):
            read(path)


def test_pages_of_tables_have_checksums(tmp_path):
    path = tmp_path / "t.parquet"
    table = pd.DataFrame({"x": np.random.default_rng(0).standard_normal(1000)})
    files.write_table(path, table)
    whole = path.read_bytes()
    path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    with pytest.raises(OSError, match="CRC"):
        pd.read_parquet(path, page_checksum_verification=True)
