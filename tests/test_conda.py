"""`--use-conda`, with a stand-in: no conda can be had on a machine without its channels.

The stand-in answers the calls that Snakemake makes and "creates" an environment as a venv that borrows this one's
packages. So this shows that every rule has an environment, that Snakemake creates it from our file, and that the jobs
run inside it, finding `sae` beside the Snakefile. It does not show that a real conda can solve the file; that the file
agrees with the tested pins is test_pins' business.
"""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, snakemake

STAND_IN = """#!{python}
import json, pathlib, shutil, subprocess, sys
here, args = pathlib.Path(__file__).parent.parent, sys.argv[1:]
if args == ["--version"]:
    print("conda 25.1.0")
elif args[:2] == ["info", "--json"]:
    print(json.dumps({{"conda_prefix": str(here), "platform": "linux-64"}}))
elif args[:1] == ["config"]:
    print(json.dumps({{"get": {{"channel_priority": "strict"}}}}))
elif args[:2] == ["env", "create"]:
    file, prefix = args[args.index("--file") + 1], pathlib.Path(args[args.index("--prefix") + 1])
    shutil.copy(file, here / "asked-for.yaml")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    site = next(prefix.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text("{packages}\\n")
    note = f"import sys; open({{str(here / 'ran-in.txt')!r}}, 'a').write(sys.prefix + chr(10))"
    (site / "sitecustomize.py").write_text(note)
elif args[:1] == ["clean"]:
    pass
else:
    sys.exit(f"the stand-in for conda does not know: {{args}}")
"""


@pytest.fixture
def conda(tmp_path):
    home = tmp_path / "conda"
    (home / "bin").mkdir(parents=True)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (home / "bin" / "conda").write_text(STAND_IN.format(python=sys.executable, packages=packages))
    (home / "bin" / "conda").chmod(0o755)
    (home / "bin" / "activate").write_text('export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n')
    return home


def test_jobs_run_in_the_environment_that_our_file_describes(conda, tmp_path):
    import os

    done = snakemake(
        tmp_path / "work",
        "--use-conda",
        "results/c/manifest.parquet",
        config={"name": "c", "concepts": {"count": 12}},
        PATH=f"{conda / 'bin'}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "work/results/c/manifest.parquet")) == 12
    assert yaml.safe_load((conda / "asked-for.yaml").read_text()) == yaml.safe_load(
        (ROOT / "workflow/envs/sae.yaml").read_text()
    )
    prefixes = set((conda / "ran-in.txt").read_text().split())
    assert prefixes and all(Path(p).is_relative_to(tmp_path / "work/.snakemake/conda") for p in prefixes)


# Prints each rule's name, whether it runs a script, and its environment, as Snakemake understands the files.
RULES = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, ResourceSettings

with SnakemakeApi(OutputSettings()) as api:
    cores = ResourceSettings(cores=1)
    workflow = api.workflow(resource_settings=cores, snakefile=Path(sys.argv[1]), workdir=Path(sys.argv[2]))._workflow
    print(json.dumps([[rule.name, rule.script is not None, str(rule.conda_env)] for rule in workflow.rules]))
"""


def test_every_rule_with_a_script_names_the_environment(tmp_path):
    command = [sys.executable, "-c", RULES, str(ROOT / "Snakefile"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rules = json.loads(done.stdout.splitlines()[-1])
    scripts = {name: environment for name, script, environment in rules if script}
    assert {"measure", "measure_baselines", "evidence_baselines", "train", "explorer"} <= set(scripts)
    assert len(scripts) > 30
    for name, environment in scripts.items():
        assert environment.endswith("envs/sae.yaml"), name
