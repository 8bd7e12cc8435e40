"""Sweeps as a user starts them: launchers, failures, repetition, the comparison at the end, what W&B gets."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest
import yaml
from omegaconf import OmegaConf
from wandb.proto import wandb_internal_pb2

from dense_retrieval.compare import AfterSweep


@pytest.fixture(scope="module")
def once(run, command, tmp_path_factory) -> Path:
    """A folder with a sweep over two losses."""
    folder = tmp_path_factory.mktemp("sweeps")
    run(folder, "-m", *command, "loss=infonce,listwise", "hydra.sweep.dir=runs/losses", "logger.model=true")
    return folder


def reports(folder: Path) -> dict[str, float]:
    """Job -> the tuned student's nDCG@10."""
    found = {}
    for file in folder.glob("*/metrics.json"):
        found[file.parent.name] = json.loads(file.read_text())["systems"]["tuned student"]["means"]["nDCG@10"]
    return found


def started(folder: Path, command: list[str], *overrides: str) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "dense_retrieval.run", "-m", *command, *overrides]
    return subprocess.Popen(
        arguments,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"WANDB_MODE": "disabled"},
    )


def test_a_sweep_ends_in_a_comparison(once):
    table = pandas.read_csv(once / "runs/losses/comparison/comparison.csv")
    tuned = table[(table["system"] == "tuned student") & (table["metric"] == "nDCG@10")]
    assert dict(zip(tuned["name"], tuned["mean"], strict=True)) == pytest.approx(
        {
            f"loss={loss}": reports(once / "runs/losses")[job]
            for job, loss in enumerated("infonce", "listwise")
        }
    )
    assert (once / "runs/losses/comparison/comparison.html").stat().st_size > 100_000


def enumerated(*names: str) -> list[tuple[str, str]]:
    return [(str(number), name) for number, name in enumerate(names)]


def test_the_same_command_runs_only_what_is_missing_or_failed(once, run, command):
    """One job of three is impossible, and one has lost its results."""
    overrides = ["-m", *command, "querytype=claim,web,question", "logger=none"]
    first = run(once, *overrides, check=False)
    (folder,) = (once / "runs").glob("data=beir*")
    assert first.returncode == 1
    assert first.stderr.splitlines()[-1].startswith("error: job 1 failed")
    assert (folder / "1/error.txt").read_text().startswith("error: ") and "Traceback" not in first.stderr
    done = reports(folder)
    assert set(done) == {"0", "2"}
    assert "did not finish (error:" in (folder / "comparison/comparison.html").read_text()
    (folder / "2/metrics.json").unlink()
    second = run(once, *overrides, check=False)
    assert second.returncode == 1 and reports(folder) == done
    finished = {job: (folder / job / "run.log").read_text().count("finished before") for job in "012"}
    assert finished == {"0": 1, "1": 0, "2": 0}


def test_a_sweep_that_cannot_be_compared_says_why(tmp_path):
    """Hydra would make an exception of the callback a warning, and the exit status 0."""
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / "metrics.json").write_text("{}")
    (tmp_path / "0" / "config.yaml").write_text("{}")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "job": {"name": "run"}}})
    with pytest.raises(SystemExit, match="error: there is no finished run to compare: .*another version"):
        AfterSweep().on_multirun_end(config)


def test_a_finished_run_is_found_again_and_not_replaced_by_another(once, run, command):
    at = "hydra.run.dir=runs/here"
    run(once, *command, at, "logger=none")
    assert "finished before" in run(once, *command, at, "logger=none").stdout
    refused = run(once, *command, at, "logger=none", "evaluation.headroom_k=4", check=False)
    assert refused.returncode == 1 and refused.stderr == (
        "error: runs/here holds a finished run with evaluation.headroom_k=20; choose another hydra.run.dir, "
        "or delete it\n"
    )
    assert "finished before" in run(once, *command, at, "logger=none").stdout


def test_a_killed_sweep_goes_on(command, run, tmp_path):
    grid = [*command, "seed=0,1,2", "trainer.max_epochs=1", "logger=none"]
    process = started(tmp_path, grid)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/1/.hydra")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "2").exists()
    run(tmp_path, "-m", *grid)
    assert set(reports(folder)) == {"0", "1", "2"}
    assert "finished before" in (folder / "0/run.log").read_text()
    table = pandas.read_csv(folder / "comparison/comparison.csv")
    assert set(table[table["system"] == "tuned student"]["seeds"]) == {3}


def test_two_sweeps_at_once_build_nothing_twice(command, tmp_path):
    grid = [*command, "loss=infonce,listwise", "trainer.max_epochs=1", "logger=none"]
    processes = [started(tmp_path, grid, f"hydra.sweep.dir=runs/{name}") for name in "ab"]
    logs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    built = [re.findall(r" INFO (\w+): built", log) for log in logs]
    keys = {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir() and "-" in path.name}
    assert len(built[0]) + len(built[1]) == len([key for key in keys if not key.endswith(".partial")])
    assert reports(tmp_path / "runs/a") == reports(tmp_path / "runs/b")


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_launchers_give_what_one_process_gives(launcher, once, run, command):
    if launcher == "ray":  # not among the tests' own packages: it has joblib's before 1.6
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    overrides = ["loss=infonce,listwise", f"hydra/launcher={launcher}", "logger=none", "cache_dir=other"]
    if launcher == "joblib":
        overrides.append("hydra.launcher.n_jobs=2")
    run(once, "-m", *command, *overrides, f"hydra.sweep.dir=runs/{launcher}")
    assert reports(once / "runs" / launcher) == pytest.approx(reports(once / "runs/losses"), abs=1e-6)
    assert (once / "runs" / launcher / "comparison/comparison.html").exists()


def test_a_search_for_settings_is_by_the_dev_queries(once, run, command):
    values = "hydra.sweeper.params={trainer.learning_rate: 'choice(1e-9, 1e-2)'}"
    search = ["experiment=hyperparameters", "hydra.sweeper.n_trials=3", values, "logger=none"]
    run(once, "-m", *command, *search, "hydra.sweep.dir=runs/search")
    found = reports(once / "runs/search")
    assert len(found) == 3
    best = yaml.safe_load((once / "runs/search/optimization_results.yaml").read_text())
    assert best["best_value"] == pytest.approx(max(found.values()))
    facts = json.loads((once / "runs/search/0/metrics.json").read_text())
    assert facts["split"] == "synthetic_dev"
    measured = facts["systems"]["tuned student"]["n"]
    assert measured == sum(steps["dev"] for steps in facts["yields"].values())


def chunks(content: bytes) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format behind seven bytes of header.

    wandb's own reader is not in its Python package any more; its record type is.
    """
    position, parts = 7, b""
    while position + 7 <= len(content):
        if (left := 32_768 - position % 32_768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or a record's last part
            yield parts
            parts = b""


def records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """What an offline run in a folder holds."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    found = []
    for data in chunks(content):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        found.append(record)
    return found


def history(found: list[wandb_internal_pb2.Record]) -> dict[str, list]:
    """Name -> the values logged, in order."""
    values: dict[str, list] = {}
    for record in found:
        for item in record.history.item:
            values.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    return values


def table_of(folder: Path, path: str) -> pandas.DataFrame:
    (file,) = folder.glob(f"wandb/offline-run-*/files/{path}")
    content = json.loads(file.read_text())
    return pandas.DataFrame(content["data"], columns=content["columns"])


def test_weights_and_biases_gets_each_run(once):
    folder = once / "runs/losses/0"
    found = records(folder)
    run = next(record.run for record in found if record.HasField("run"))
    assert run.run_group == "losses" and run.project == "dense_retrieval"
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["loss"]["listwise_weight"] == 0 and config["trainer"]["max_epochs"] == 2
    metrics = json.loads((folder / "metrics.json").read_text())
    logged = history(found)
    assert logged["dev/loss"] == pytest.approx([epoch["loss"] for epoch in metrics["training"]["dev"]])
    assert logged["train/loss"] == pytest.approx([loss for _, loss in metrics["curve"]])
    summary = {}
    for record in found:
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    for system, of in metrics["systems"].items():
        for metric, value in of["means"].items():
            assert summary[f"{system}/{metric}"] == pytest.approx(value)
    per_query = pandas.read_parquet(folder / "per_query.parquet")
    tuned = per_query[per_query["system"] == "tuned student"].set_index("query")["nDCG@10"]
    table = table_of(folder, logged["queries/path"][0]).set_index("query")
    assert table["tuned student"].to_dict() == pytest.approx(tuned.to_dict())
    assert (table["text"].str.len() > 0).all()
    names = [record.request.log_artifact.artifact for record in found] + [r.artifact for r in found]
    models = [artifact for artifact in names if artifact.type == "model"]
    assert any(entry.path == "model.safetensors" for entry in models[0].manifest.contents)


def test_weights_and_biases_gets_the_curves_of_a_training_from_the_cache(once, run, command):
    run(once, *command, "loss=infonce", "evaluation.headroom_k=4", "hydra.run.dir=runs/again")
    first, again = (history(records(once / "runs" / name)) for name in ("losses/0", "again"))
    for name in ("dev/loss", "train/loss"):
        assert len(first[name]) > 1 and again[name] == pytest.approx(first[name])


def test_weights_and_biases_gets_the_comparison(once):
    folder = once / "runs/losses/comparison"
    found = records(folder)
    run = next(record.run for record in found if record.HasField("run"))
    assert run.display_name == "comparison losses" and run.run_group == "losses"
    logged = history(found)
    table = table_of(folder, logged["comparison/path"][0])
    written = pandas.read_csv(folder / "comparison.csv")
    assert table["mean"].to_list() == pytest.approx(written["mean"].to_list())
    (page,) = folder.glob(f"wandb/offline-run-*/files/{logged['page/path'][0]}")
    assert page.read_text() == (folder / "comparison.html").read_text()
