import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sae import InputError, jobs
from sae.files import read_json, sha256

DAMAGED = "the file is damaged: its content does not match its checksum; delete it and run again"


@pytest.fixture
def rule(tmp_path):
    """What Snakemake gives the script of a small rule."""
    (tmp_path / "in.txt").write_text("as input")
    return SimpleNamespace(
        rule="rank",
        wildcards={"layer": "6"},
        params={"settings": {"images": 3}},
        input=[str(tmp_path / "in.txt"), str(tmp_path)],
        output=[str(tmp_path / "out.txt")],
        threads=2,
        config={"receipts": True},
        log=[str(tmp_path / "logs/deep/rank.log")],
    )


def log(rule) -> list[str]:
    return Path(rule.log[0]).read_text().splitlines()


def test_messages_go_to_the_terminal_and_the_log_which_ends_with_the_cost(rule, capsys):
    with jobs.job(rule):
        print("epoch 1", file=sys.stderr)
        assert log(rule) == ["epoch 1"]  # at once: a person may follow it
    assert capsys.readouterr().err == "epoch 1\n"
    assert log(rule)[0] == "epoch 1"
    assert re.fullmatch(r"rule rank: \d+\.\d s, peak memory [1-9]\d+ MB", log(rule)[-1])


def test_an_error_of_the_user_is_one_line_and_one_of_ours_keeps_its_traceback(rule, capsys):
    with pytest.raises(SystemExit) as end, jobs.job(rule):
        raise InputError("layer 14: this model has blocks 0..11")
    assert end.value.code == 1
    assert log(rule) == ["error: layer 14: this model has blocks 0..11"] == capsys.readouterr().err.splitlines()
    with pytest.raises(ZeroDivisionError), jobs.job(rule):
        print(1 / 0)
    assert log(rule)[0].startswith("Traceback") and log(rule)[-1] == "ZeroDivisionError: division by zero"


def test_an_error_of_the_machine_is_one_line_even_without_room_for_the_log(rule, tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/full").symlink_to("/dev/full")
    for log_file in (rule.log[0], str(tmp_path / "logs/full")):
        rule.log = [log_file]
        with pytest.raises(SystemExit) as end, jobs.job(rule):
            print("epoch 1", file=sys.stderr)
            raise OSError(28, "No space left on device")
        assert end.value.code == 1
        line = f"error: {rule.output[0]}: No space left on device; make room, then run the same command again"
        assert capsys.readouterr().err.splitlines() == ["epoch 1", line]
        if not log_file.endswith("full"):
            assert log(rule) == ["epoch 1", line]
    with jobs.job(rule):
        pass  # the cost that ends the log is lost, and not the results


def test_the_origin_is_found_once_and_holds_no_times_and_no_commit(rule, tmp_path, monkeypatch):
    started = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: started.append(a) or real(*a, **k))
    with jobs.job(rule) as provenance:
        first = provenance()
        Path(rule.input[0]).write_text("changed by somebody else")
        Path(rule.output[0]).write_text("result")
        assert provenance() == first
    assert len(started) == 1  # git, for the receipt
    assert list(first["inputs"]) == rule.input[:1]
    assert first["settings"] == {"images": 3} and first["wildcards"] == {"layer": "6"} and first["threads"] == 2
    receipt = read_json(tmp_path / "receipts/out.txt.json")
    assert receipt.pop("seconds") >= 0 and receipt.pop("peak_memory_mb") > 10 and receipt.pop("started")
    del receipt["commit"]
    assert receipt == {"files": {".": sha256(rule.output[0])}} | first


def test_an_input_that_is_not_what_was_written_is_refused(rule, tmp_path, capsys):
    before = SimpleNamespace(**vars(rule) | {"input": [], "output": rule.input[:1]})
    with jobs.job(before):
        pass
    with jobs.job(rule):
        pass
    (tmp_path / "in.txt").write_text("as inpud")
    with pytest.raises(SystemExit), jobs.job(rule):
        raise AssertionError("the job ran")
    assert capsys.readouterr().err == f"error: {tmp_path}/in.txt: {DAMAGED}\n"


def test_jobs_without_tables_import_none_of_the_libraries():
    heavy = "set(sys.modules) & {'numpy', 'pandas', 'pyarrow', 'torch', 'timm', 'matplotlib'}"
    code = f"import sys; from sae import files, jobs, sources, warm; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
