"""One command in several processes, by torchrun and under SLURM's variables: what one process gives, said once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SLURM_", "TORCHELASTIC", "MASTER_")) and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
} | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def by_torchrun(folder: Path, *overrides: str) -> list[subprocess.CompletedProcess]:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", free_port()]
    arguments = [sys.executable, *torchrun, "-m", "dense_retrieval.run", *overrides]
    return [subprocess.run(arguments, cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=300)]


def by_slurm(folder: Path, *overrides: str) -> list[subprocess.CompletedProcess]:
    """Two tasks with the variables that srun sets."""
    processes = []
    shared = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    shared |= {"SLURM_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    shared |= {"SLURM_STEP_ID": "0", "MASTER_PORT": free_port()}
    for rank in range(2):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
        arguments = [sys.executable, "-m", "dense_retrieval.run", *overrides]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(arguments, cwd=folder, env=CLEAN | shared | own, **pipes))
    said = [process.communicate(timeout=300) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *of)
        for process, of in zip(processes, said, strict=True)
    ]


LAUNCHERS = {"torchrun": by_torchrun, "slurm": by_slurm}


def tuned(folder: Path) -> torch.Tensor:
    weights = load_file(folder / "model/model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_what_one_gives(launcher, project, command):
    """Without a dev set the tuned weights are never the untuned ones; a second run finds the training and calls nobody."""
    own = [*command, "groups.dev_fraction=0", "logger=none"]
    one = [sys.executable, "-m", "dense_retrieval.run", *own, "hydra.run.dir=runs/one"]
    subprocess.run(one, cwd=project, env=CLEAN, check=True, capture_output=True)
    facts = json.loads((project / "runs/one/metrics.json").read_text())
    assert facts["training"]["best_epoch"] == 2
    for training in (project / "cache").glob("training-*"):
        if training.is_dir() and training.name in facts["artifacts"]["training"]:
            training.rename(project / f"{launcher}-one")
    for again in ("first", "again"):
        ended = LAUNCHERS[launcher](project, *own, f"hydra.run.dir=runs/{launcher}-{again}")
        assert [process.returncode for process in ended] == [0] * len(ended), ended[-1].stderr[-3000:]
        out = "".join(process.stdout for process in ended)
        assert out.count("tuned student") == 2  # in the table: the untuned one, and it
        assert out.count("training: built in") == (again == "first")
        two = json.loads((project / f"runs/{launcher}-{again}/metrics.json").read_text())
        assert two["training"]["steps"] == facts["training"]["steps"]
        torch.testing.assert_close(
            tuned(project / f"runs/{launcher}-{again}"), tuned(project / "runs/one"), atol=1e-6, rtol=1e-5
        )
