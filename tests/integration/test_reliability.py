"""A kill ends in the same result; damage to the cache is named and built again. The long version is
``experiments/reliability/campaign.py``."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hydra import compose, initialize_config_dir

from dense_retrieval.chain import describe
from dense_retrieval.config import CONF
from dense_retrieval.store import Store


def test_each_damaged_file_is_named_and_built_again(finished, command, tmp_path, caplog):
    """One flipped bit in each in turn: of what is read when a run starts all, the same bytes as before."""
    shutil.copytree(finished / "cache", tmp_path / "cache")
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=[*command, f"cache_dir={tmp_path}/cache"])
    steps = {step.key: step for step in describe(config, lambda *_: None).steps}
    Store(tmp_path / "cache").build(*steps.values())
    assert "built in" not in caplog.text
    for key, step in steps.items():
        folder = tmp_path / "cache" / key
        outputs = json.loads((folder / "stage.json").read_text())["outputs"]
        for name in [*outputs, "stage.json"]:
            if step.stage.name == "training" and name not in ("model/model.safetensors", "training.json"):
                continue  # a second of training for each file
            file = folder / name
            content = file.read_bytes() or b"\0"
            caplog.clear()
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
            os.utime(file, ns=(1, 1))
            Store(tmp_path / "cache").build(*steps.values())
            (line,) = [message for message in caplog.messages if "building it again" in message]
            assert key in line
            again = json.loads((folder / "stage.json").read_text())["outputs"]
            varying = {"training.json"} if step.stage.name == "training" else set()
            for other in outputs.keys() - varying:
                assert again[other]["sha256"] == outputs[other]["sha256"], (key, other)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_killed_in_training_ends_with_the_same_model(finished, command, tmp_path, which):
    arguments = [sys.executable, "-m", "dense_retrieval.run", *command, "logger=none", "hydra.run.dir=run"]
    shutil.copytree(finished / "cache", tmp_path / "cache", ignore=shutil.ignore_patterns("training-*"))
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(arguments, **quiet)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cache/training-*.partial/curves")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(which)
    said = process.communicate()[1]
    assert process.returncode == (143 if which == signal.SIGTERM else -which)
    if which == signal.SIGTERM:
        assert "ended by SIGTERM; the same command goes on" in said and "Traceback" not in said
    assert not (tmp_path / "run/model").exists()
    subprocess.run(arguments, check=True, **quiet)
    first, second = (
        folder / "model/model.safetensors" for folder in (finished / "runs/first", tmp_path / "run")
    )
    assert first.read_bytes() == second.read_bytes()
