"""Who started a process, with how many others; what keeps them from training together."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from dense_retrieval import ranks
from dense_retrieval.config import CONF
from dense_retrieval.ranks import Place
from dense_retrieval.records import InputError

SRUN = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
STARTED = {
    "by hand": ({}, None),
    "torchrun": (TORCHRUN, Place(1, 2, 1, "torchrun")),
    "torchrun in a SLURM job": (TORCHRUN | SRUN, Place(1, 2, 1, "torchrun")),
    "srun": (SRUN | {"SLURM_STEP_NUM_TASKS": "4"}, Place(3, 4, 1, "srun")),
    "srun that says no more": (SRUN, Place(3, 4, 1, "srun")),
    "srun in a batch script": (
        SRUN | {"SLURM_STEP_NUM_TASKS": "2", "ENVIRONMENT": "BATCH"},
        Place(3, 2, 1, "srun"),
    ),
    "one task": (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    "a batch script for four tasks": (SRUN | {"SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}, None),
    "a shell in an allocation of four": ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, None),
    "an interactive step": (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
}


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in (*TORCHRUN, "ENVIRONMENT"):
            monkeypatch.delenv(name)

    def given(of: dict[str, str]) -> None:
        for name, value in of.items():
            monkeypatch.setenv(name, value)

    return given


@pytest.mark.parametrize("how", STARTED)
def test_who_started_a_process(how, environment):
    given, expected = STARTED[how]
    environment(given)
    assert ranks.started() == expected


def test_a_training_has_the_processes_that_were_started_or_one_a_device(environment):
    assert ranks.processes(1, 1, lambda: 8) == 1
    assert ranks.processes("auto", 1, lambda: 8) == 8
    assert ranks.processes("auto", 1, lambda: None) == 1
    assert ranks.processes(8, 2, lambda: None) == 16  # planned on another machine
    environment(TORCHRUN)
    assert ranks.processes(1, 1, lambda: 8) == ranks.processes("auto", 1, lambda: 8) == 2


@pytest.mark.parametrize(
    ("devices", "nodes", "gpus", "launcher", "line"),
    [
        (9, 1, 8, {}, "trainer.num_nodes=1 trainer.devices=9: there are 8 GPUs here"),
        (8, 2, 8, {}, "needs a process for each device of each node: start this command on all nodes"),
        (8, 2, 8, TORCHRUN, "is 16 processes, torchrun started 2"),
        ("auto", 2, 8, {}, "by srun with one task a device, or by torchrun"),
    ],
)
def test_more_devices_than_there_are(devices, nodes, gpus, launcher, line, environment):
    environment(launcher)
    with pytest.raises(InputError, match=line):
        ranks.check(devices, nodes, lambda: gpus)


def test_what_there_is_passes(environment):
    for devices, gpus in [(8, 8), ("auto", 8), (1, 0), (3, None), ("auto", None)]:
        ranks.check(devices, 1, lambda gpus=gpus: gpus)
    environment(TORCHRUN)
    for devices, nodes in [(1, 1), ("auto", 1), (2, 1), (1, 2), ("auto", 2)]:
        ranks.check(devices, nodes, lambda: 8)


def test_a_sweep_on_slurm_has_one_task_a_device():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    overrides = ["hydra/launcher=slurm", "trainer.num_nodes=2", "trainer.devices=8"]
    with initialize_config_dir(CONF, version_base=None):
        launcher = compose("config", overrides=overrides, return_hydra_config=True).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 8, 8)


SCRIPT = """
import os, signal, sys
from pathlib import Path
from dense_retrieval import ranks
from dense_retrieval.records import InputError

def command():
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    here = ranks.here()
    here.job = "a job"
    try:
        here.require(Path(sys.argv[2]), cuda=False)
        here.call(Path("training"), "cpu")
    except InputError as error:
        print(error)
    raise SystemExit(int(sys.argv[1]))

def follow(here):
    if sys.argv[1] == "7":  # as on a node without the folder
        Path.exists = lambda path: False
    for job, folder, device in here.calls():
        print("called:", job, folder.name, flush=True)
        here.answer("no such folder" if sys.argv[1] == "3" else None)

try:
    ranks.together(command, follow)
except InputError as error:
    raise SystemExit(f"error: {error}")
"""


@pytest.mark.parametrize("ending", ["0", "3", "7", "killed"])
def test_the_others_are_called_and_end_like_the_first(ending, environment, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    processes = []
    for rank in range(2):
        place = {
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_JOB_ID": "7",
        }
        place |= {"SLURM_NODELIST": "localhost", "MASTER_PORT": port}
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, ending, str(tmp_path)],
            env=os.environ | place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
    (first, _), (second, error) = [process.communicate(timeout=120) for process in processes]
    statuses = [process.returncode for process in processes]
    if ending == "killed":
        assert statuses == [-signal.SIGKILL, 1]
        assert error.splitlines()[-1] == "error: process 0 has ended without a word"
        return
    assert statuses == [int(ending)] * 2, error
    assert second == ("called: a job training\n" if ending != "7" else "")
    begins = {
        "0": "",
        "3": "process 1 of 2: no such folder (on ",
        "7": f"process 1 of 2: {tmp_path} is not shared; ",
    }
    assert first.startswith(begins[ending]) and bool(first) == (ending != "0")
    assert error.splitlines()[-1:] == (
        ["error: process 0 of 2 has ended with an error"] if ending != "0" else []
    )
    assert list(tmp_path.iterdir()) == []
