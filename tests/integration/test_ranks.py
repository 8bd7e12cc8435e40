"""One command in several processes, by torchrun and under SLURM's variables: what one process gives, said once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SLURM_", "TORCHELASTIC", "MASTER_"))
    and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
} | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def by_torchrun(folder: Path, *overrides: str) -> list[subprocess.CompletedProcess]:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", free_port()]
    arguments = [sys.executable, *torchrun, "-m", "dense_retrieval.run", *overrides]
    return [subprocess.run(arguments, cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=300)]


def by_slurm(
    folder: Path, *overrides: str, ended: bool = True, module: tuple[str, ...] = ("-m", "dense_retrieval.run")
) -> list[Any]:
    """Two tasks with the variables that srun sets."""
    processes = []
    shared = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    shared |= {"SLURM_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    shared |= {"SLURM_STEP_ID": "0", "MASTER_PORT": free_port()}
    for rank in range(2):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
        arguments = [sys.executable, *module, *overrides]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(arguments, cwd=folder, env=CLEAN | shared | own, **pipes))
    if not ended:
        return processes
    said = [process.communicate(timeout=300) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *of)
        for process, of in zip(processes, said, strict=True)
    ]


LAUNCHERS = {"torchrun": by_torchrun, "slurm": by_slurm}


def tuned(folder: Path) -> torch.Tensor:
    weights = load_file(folder / "model/model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes with a CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    of = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False},
    )
    of.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield of.address
    of.shutdown()


def by_ray(address: str, folder: Path, *overrides: str, processes: int = 2) -> subprocess.CompletedProcess:
    arguments = [
        sys.executable,
        "-m",
        "dense_retrieval.on_ray",
        f"--processes={processes}",
        f"--address={address}",
    ]
    return subprocess.run(
        [*arguments, *overrides], cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=300
    )


def test_a_ray_cluster_gives_what_one_process_gives(cluster, project, own, one):
    ended = by_ray(cluster, project, *own, "hydra.run.dir=runs/ray")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert sum("training: built in" in line for line in ended.stdout.splitlines()) == 1
    torch.testing.assert_close(tuned(project / "runs/ray"), tuned(project / "runs/one"), atol=1e-6, rtol=1e-5)
    forget_training(project, "ray")


def test_a_process_lost_on_ray_is_replaced(cluster, project, own, one):
    """With it the others are started again; the training goes on from its last checkpoint."""
    arguments = [
        sys.executable,
        "-m",
        "dense_retrieval.on_ray",
        "--processes=2",
        f"--address={cluster}",
        *own,
    ]
    arguments += ["hydra.run.dir=runs/lost", "trainer.every_n_steps=2"]
    running = subprocess.Popen(
        arguments, cwd=project, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((project / "cache").glob("training-*.partial/curves")):
        assert running.poll() is None
        time.sleep(0.01)
    for process in psutil.process_iter(["cmdline"]):
        if "dense_retrieval.run" in (process.info["cmdline"] or []) and process.environ().get("RANK") == "1":
            process.parent().kill()
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0 and said.count("starting again") == 1, said[-3000:]
    torch.testing.assert_close(
        tuned(project / "runs/lost"), tuned(project / "runs/one"), atol=1e-6, rtol=1e-5
    )
    forget_training(project, "lost")


def test_a_ray_cluster_says_what_is_wrong(cluster, project, own):
    too_many = by_ray(cluster, project, *own, processes=3)
    assert too_many.stderr.splitlines()[-1] == "error: --processes 3: the cluster has 2 CPUs"
    nowhere = by_ray("127.0.0.1:1", project, *own)
    assert nowhere.stderr.splitlines()[-1].startswith(
        "error: --address 127.0.0.1:1: no Ray cluster answers there"
    )
    refused = by_ray(cluster, project, *own, "trainer.devices=3", "hydra.run.dir=refused")
    assert refused.returncode == 1 and "started 2; leave both settings out" in refused.stdout


@pytest.fixture(scope="module")
def own(command) -> list[str]:
    """Without a dev set the tuned weights are never the untuned ones; in small chunks both processes have some."""
    fixed = [
        "groups.dev_fraction=0",
        "logger=none",
        "evaluation.heldout_types=[]",
        "trainer.chunk_tokens=100",
    ]
    return [*command, *fixed]


@pytest.fixture(scope="module")
def one(project, own) -> subprocess.CompletedProcess:
    """The run of one process; its training is not in the cache any more."""
    arguments = [sys.executable, "-m", "dense_retrieval.run", *own, "hydra.run.dir=runs/one"]
    ended = subprocess.run(arguments, cwd=project, env=CLEAN, check=True, capture_output=True, text=True)
    forget_training(project, "one")
    return ended


def forget_training(project: Path, run: str) -> None:
    facts = json.loads((project / "runs" / run / "metrics.json").read_text())
    assert facts["training"]["best_epoch"] == 2
    shutil.rmtree(project / facts["artifacts"]["training"])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_what_one_gives(launcher, project, own, one):
    """A second run finds the training in the cache, and calls nobody."""
    sharded = ["trainer.shard_optimizer=true", "trainer.devices=auto"] if launcher == "slurm" else []
    for name in (launcher, f"{launcher} again"):
        ended = LAUNCHERS[launcher](project, *own, *sharded, f"hydra.run.dir='runs/{name}'")
        assert [process.returncode for process in ended] == [0] * len(ended), ended[-1].stderr[-3000:]
        out = [line for process in ended for line in process.stdout.splitlines()]
        table, expected = (
            [line for line in of if " tuned student " in line] for of in (out, one.stdout.splitlines())
        )
        assert len(table) == len(expected) > 0
        assert len([line for line in out if "training: built in" in line]) == (name == launcher)
        assert launcher != "slurm" or ended[1].stdout == ""
        torch.testing.assert_close(
            tuned(project / "runs" / name), tuned(project / "runs/one"), atol=1e-6, rtol=1e-5
        )
    assert not [folder for folder in (project / "runs").iterdir() if not (folder / "model").exists()]
    forget_training(project, launcher)


def test_a_sweep_goes_from_training_to_training(project, own, one):
    ended = by_slurm(project, "-m", *own, "loss=infonce,listwise", "hydra.sweep.dir=runs/sweep")
    assert [process.returncode for process in ended] == [0, 0], ended[1].stderr[-3000:]
    assert ended[0].stdout.count("training: built in") == 2 and ended[1].stdout == ""
    assert (project / "runs/sweep/comparison/comparison.html").exists()
    shutil.rmtree(project / "runs/sweep")


def test_what_cannot_start_is_one_line(project, own, one):
    """Before anything is built; the others end too."""
    ended = by_slurm(project, *own, "trainer.num_nodes=2", "trainer.devices=2", "cache_dir=none")
    assert [process.returncode for process in ended] == [1, 1]
    first, second = (process.stderr.strip().splitlines() for process in ended)
    assert first[-1].startswith("error: trainer.num_nodes=2 trainer.devices=2 is 4 processes, srun started 2")
    assert second == ["error: process 0 of 2 has ended with an error"]
    assert not (project / "none").exists()


def test_sigterm_ends_all_and_the_command_goes_on(project, own, one):
    long = [
        *own,
        "trainer.max_epochs=40",
        "trainer.every_n_steps=1",
        "hydra.run.dir=runs/ended",
        "cache_dir=cache",
    ]
    processes = by_slurm(project, *long, ended=False)
    deadline = time.monotonic() + 120
    while not list((project / "cache").glob("training-*.partial/last.ckpt")):
        assert processes[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    assert "Traceback" not in "".join(said) and "the same command goes on" in said[0]
    ended = by_slurm(project, *long)
    assert [process.returncode for process in ended] == [0, 0]
    assert json.loads((project / "runs/ended/metrics.json").read_text())["training"]["epochs"] == 40
    assert len(list((project / "cache").glob("training-*/curves/*/metrics.csv"))) >= 2


def test_a_launcher_may_start_several_processes_a_job(project, own, one):
    """As submitit does: all of them begin the job."""
    code = ("-c", "from dense_retrieval.run import main; main()")
    ended = by_slurm(project, "-m", *own, "hydra.sweep.dir=runs/job", module=code)
    assert [process.returncode for process in ended] == [0, 0], ended[1].stderr[-3000:]
    torch.testing.assert_close(
        tuned(project / "runs/job/0"), tuned(project / "runs/one"), atol=1e-6, rtol=1e-5
    )
