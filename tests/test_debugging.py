"""A rule's script in Python's debugger, as docs/how-to/other-workflows.md describes it."""

import re
import shlex
import shutil
import subprocess
import sys

from conftest import ROOT

PAGE = (ROOT / "docs/how-to/other-workflows.md").read_text()


def test_a_breakpoint_stops_in_the_terminal_and_in_the_script_that_is_left(tmp_path):
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    for name in ("sae", "config.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    script = tmp_path / "workflow/scripts/images.py"
    script.write_text(script.read_text().replace("    table =", "    breakpoint()\n    table ="))
    (tmp_path / "few.yaml").write_text("concepts: {count: 12}\n")
    typed = {"input": "print('rule', snakemake.rule)\ncontinue\n", "cwd": tmp_path}

    words = shlex.split(re.search(r"^uv run (snakemake .*--skip-script-cleanup)$", PAGE, re.M)[1])
    command = [sys.executable, "-m", *words, "--configfile", "few.yaml"]
    done = subprocess.run(command, **typed, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "(Pdb) rule images" in done.stdout, done.stdout + done.stderr

    made = tmp_path / "results/concepts/images.parquet"
    made.unlink()
    (left,) = (tmp_path / ".snakemake/scripts").glob("tmp*.images.py")
    done = subprocess.run([sys.executable, left], **typed, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "(Pdb) rule images" in done.stdout, done.stdout + done.stderr
    assert made.is_file()
