"""How commands end: one line, an exit status, and what a sweep does with a job that fails."""

import os
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dense_retrieval import sweep
from dense_retrieval.config import Config, TeacherTraining
from dense_retrieval.errors import command
from dense_retrieval.records import InputError

QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Runs a task as a command, in an empty folder; returns its exit status."""
    monkeypatch.chdir(tmp_path)

    def start(task, *arguments: str, config: str = "train_teacher", schema: type = TeacherTraining):
        monkeypatch.setattr(sys, "argv", ["command", *arguments, *QUIET])
        try:
            command(config, schema)(task)()
        except SystemExit as stop:
            return stop.code
        finally:
            assert "HYDRA_FULL_ERROR" not in os.environ
        return 0

    return start


@pytest.mark.parametrize(
    "arguments", [["batchsize=3"], ["-m", "batchsize=3,4"], ["--cfg", "job", "batchsize=3"]]
)
def test_a_wrong_name_is_one_line(started, capsys, arguments):
    said = "error: batchsize: there is no such setting; did you mean batch_size?"
    assert started(lambda config: None, *arguments) == said
    assert capsys.readouterr() == ("", "")


def test_a_wrong_value_in_a_sweep_is_known_before_its_first_job(started, capsys):
    ran = []
    assert started(lambda config: ran.append(config.seed), "-m", "seed=1,many").startswith(
        "error: seed=many: "
    )
    assert not ran and capsys.readouterr().err == ""


def test_a_task_gets_its_settings(started, capsys):
    ran = []
    assert (
        started(lambda config: ran.append((config.seed, config.queries)), "-m", "seed=1,2", "queries=7") == 0
    )
    assert ran == [(1, 7), (2, 7)]
    assert started(ran.append, "--cfg", "job") == 0 and len(ran) == 2
    assert "negatives_each: 2" in capsys.readouterr().out


def failing(config):
    ends = {1: InputError("no such folder"), 2: KeyError("a bug"), 3: SystemExit(143), 4: KeyboardInterrupt()}
    raise ends[config.seed]


def test_what_a_task_raises_is_one_line(started, capsys):
    assert started(failing, "seed=1") == "error: no such folder"
    assert started(failing, "seed=2") == "error: KeyError('a bug')"
    assert started(failing, "seed=-1") == "error: seed=-1 is out of range; it is 0 to 4294967295"
    assert capsys.readouterr().err == ""


def test_a_sweep_goes_on_after_a_job_that_failed(started, tmp_path):
    assert started(failing, "-m", "seed=2,1", "hydra.sweep.dir=sweep") == 0  # what AfterSweep then says is 1
    lines = [(tmp_path / "sweep" / job / sweep.FAILURE).read_text() for job in "01"]
    assert lines == ["error: KeyError('a bug')", "error: no such folder"]


@pytest.mark.parametrize(("seed", "status", "said"), [(3, 143, "ended by SIGTERM"), (4, 130, "interrupted")])
@pytest.mark.parametrize("arguments", [["seed=SEED"], ["-m", "seed=1,SEED,2", "hydra.sweep.dir=sweep"]])
def test_a_signal_ends_the_command_and_its_sweep(started, tmp_path, capsys, arguments, seed, status, said):
    assert started(failing, *(word.replace("SEED", str(seed)) for word in arguments)) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {said}; the same command goes on from there"
    assert not (tmp_path / "sweep/2").exists()


def test_a_finished_run_is_left_as_it_is_by_one_with_other_settings(started, tmp_path):
    def run(config):
        folder = tmp_path / "runs/here"
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model/README.md").touch()
        (folder / "metrics.json").write_text("{}")
        OmegaConf.save(config, folder / "config.yaml", resolve=True)

    def again(*overrides: str):
        fixed = ["hydra.run.dir=runs/here", "logger=none"]
        return started(run, *fixed, *overrides, config="config", schema=Config)

    def files() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    assert again("evaluation.heldout_types=[claim]", "data.mixed=[claim]") == 0
    before = files()
    assert again("evaluation.heldout_types=${data.mixed}", "data.mixed=[claim]", "seed=1") == (
        "error: runs/here holds a finished run with seed=0; choose another hydra.run.dir, or delete it"
    )
    assert files() == before
    assert again("evaluation.heldout_types=${data.mixed}", "data.mixed=[claim]") == 0  # the same settings
    (tmp_path / "runs/here/metrics.json").unlink()  # not finished
    assert again("seed=1") == 0
