"""Errors of the machine, as the libraries raise them, told in one line."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from sae.errors import shortage

MEMORY = "out of memory; run fewer jobs at once (--cores), or lower extraction.batch, training.batch or threads; "
ROOM = "No space left on device; make room, then run the same command again"


def raised(action) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def write_text() -> None:
    with open("/dev/full", "w") as file:  # noqa: PTH123
        file.write("x")


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (lambda: torch.empty(2**45, dtype=torch.uint8), MEMORY),
        (lambda: np.empty(2**50), MEMORY),
        (lambda: pa.allocate_buffer(2**55), MEMORY),
        (write_text, f"results/out.npy: {ROOM}"),
        (lambda: np.ones(10**6).tofile("/dev/full"), f"results/out.npy: {ROOM}"),
    ],
)
def test_errors_of_the_machine_are_one_line(action, line):
    told = shortage(raised(action), "results/out.npy")
    assert told.startswith(line) and "\n" not in told


def test_the_line_names_the_file_that_the_error_names():
    told = "correct its permissions, then run the same command again"
    for number, problem in ((13, "Permission denied"), (30, "Read-only file system")):
        assert shortage(OSError(number, "", "a.png"), "out.npy") == f"a.png: {problem}; {told}"
    arrow = OSError(13, "Failed to open local file 'm.parquet'. Detail: [errno 13] Permission denied")
    assert shortage(arrow, "out.npy") == f"m.parquet: Permission denied; {told}"


def test_causes_count_and_other_errors_are_bugs():
    cause = raised(write_text)
    bug = ValueError("a")
    bug.__cause__ = cause
    assert shortage(bug, "out.npy") == f"out.npy: {ROOM}"
    assert shortage(ValueError("a"), "out.npy") is None
    assert shortage(FileNotFoundError(2, "", "a"), "out.npy") is None
