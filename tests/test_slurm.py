"""The workflow on a Slurm of one node, which a test starts for itself: jobs, groups, resources, a killed job."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, snakemake

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "unshare", "nsenter")
ABSENT = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
ABSENT += [] if importlib.util.find_spec("snakemake_executor_plugin_slurm") else ["snakemake-executor-plugin-slurm"]
OWN = [
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
]  # what it starts and mounts ends with it
pytestmark = [
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may start Slurm's daemons"),
    pytest.mark.skipif(
        shutil.which("unshare") is None or subprocess.run([*OWN, "true"], capture_output=True).returncode != 0,
        reason="this machine allows no namespaces",
    ),
]
CONFIG = {
    "name": "small",
    "concepts": {"count": 40},
    "grid": {"layers": [3], "ks": [4], "methods": ["topk"], "baselines": []},
    "sae": {"expansion": 1},
    "training": {"epochs": 1, "batch": 128},
    "evidence": {"latents": 2, "images": 2},
}
POINT, R = "layer=3/k=4/method=topk/seed=0", "results/small"
# Slurm and its plugin for Snakemake look into /etc/slurm alone: the folder there is laid over it, for these processes.
START = """
set -e
mkdir -p /etc/slurm /run/munge
chown munge munge
mount --bind etc /etc/slurm
mount --bind munge /run/munge
runuser -u munge -- munged
slurmctld
slurmd
exec sleep infinity
"""
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
EnforcePartLimits=ALL
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=16000 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for opened in (one, other):
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in (one, other)]


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[list[str]]:
    """A running Slurm: the words before a command that make it see this Slurm."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("etc", "munge", "state", "spool"):
        (folder / name).mkdir()
    text = SETTINGS.format(host=socket.gethostname().split(".")[0], ports=free_ports(), folder=folder)
    (folder / "etc/slurm.conf").write_text(text)
    (folder / "etc/gres.conf").write_text("Name=gpu Count=1 File=/dev/null\n")
    path = f"{os.environ['PATH']}:/usr/sbin"
    command = [*OWN, "sh", "-c", START]
    with (folder / "start.log").open("w") as log:
        started = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"PATH": path})
    try:
        end = time.monotonic() + 60
        while True:
            inner = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
            enter = ["nsenter", "--target", *inner, "--mount", "--pid", f"--wd={ROOT}"]
            if inner and answer([*enter, "sinfo", "-h", "-o", "%T"]) == "idle\n":
                break
            logs = "".join(log.read_text() for log in folder.glob("*.log"))
            assert time.monotonic() < end and started.poll() is None, logs
            time.sleep(0.2)
        yield enter
    finally:
        started.kill()
        started.wait()


def answer(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def jobs(node: list[str]) -> list[dict[str, str]]:
    """Returns Slurm's jobs, those that ended too, in the order in which they came."""
    lines = answer([*node, "scontrol", "show", "job", "--oneliner"]).splitlines()
    found = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
    return sorted(found, key=lambda job: int(job["JobId"]))


def test_a_run_on_slurm_gets_to_its_figures_though_a_job_is_killed(node, tmp_path):
    # The jobs before the training are made here: on Slurm each takes many times as long.
    done = snakemake(tmp_path, f"{R}/activations/layer=3/statistics.json", config=CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = [f"{R}/report/{POINT}/training.svg", f"{R}/report/layer=3/statistics.svg"]
    command = [sys.executable, "-m", "snakemake", *figures, "-s", "Snakefile", "--directory", str(tmp_path)]
    command += ["--configfile", str(tmp_path / "experiment.yaml"), "--workflow-profile", "profiles/slurm"]
    command += ["--cores", "2", "--set-resources", "train:gpu=1"]
    command += ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"]
    command += ["--seconds-between-status-checks", "1"]
    with (tmp_path / "output.txt").open("w") as out:
        run = subprocess.Popen([*node, *command], stdout=out, stderr=out)
    try:
        while not (begun := [job["JobId"] for job in jobs(node) if job["JobState"] == "RUNNING"]):
            assert run.poll() is None, (tmp_path / "output.txt").read_text()
            time.sleep(0.1)
        subprocess.run([*node, "scancel", *begun], check=True)
        status = run.wait(300)
    finally:
        run.kill()
    assert status == 0, (tmp_path / "output.txt").read_text()
    for path in (f"{R}/sae/{POINT}/sae.safetensors", *figures):
        assert (tmp_path / path).stat().st_size > 0

    ended = jobs(node)
    assert [job["JobState"] for job in ended] == ["CANCELLED", "COMPLETED", "COMPLETED"]
    first, again, both = ended
    assert first["Comment"].startswith("rule_train_") and again["Comment"] == first["Comment"]
    memory = [float(job["MinMemoryNode"].removesuffix("M")) for job in (first, again)]
    store = (tmp_path / f"{R}/activations/layer=3/shard=0000.npy").stat().st_size / 1e6
    assert memory[0] == pytest.approx(2000 + 2 * store, abs=5)  # of the size of its input, and then twice as much
    assert memory[1] == pytest.approx(2 * memory[0], abs=2)
    assert "gpu:1" in first["TresPerJob"]
    assert "statistics_figure_training_figure" in both["Comment"]  # two figures, one job
