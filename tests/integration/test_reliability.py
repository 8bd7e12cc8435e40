"""A kill ends in the same result; damage to the cache is named and built again. The long version is
``experiments/reliability/campaign.py``."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from hydra import compose, initialize_config_dir
from pyarrow import parquet

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


def test_a_run_that_was_killed_three_times_ends_with_the_same_result(run, command, tmp_path):
    """Without a dev set the tuned weights are never the untuned ones, which no kill could change."""
    own = [*command, "groups.dev_fraction=0", "logger=none"]
    run(tmp_path, *own, "hydra.run.dir=whole", "cache_dir=another")
    facts = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert facts["training"]["best_epoch"] == 2
    arguments = [sys.executable, "-m", "dense_retrieval.run", *own, "hydra.run.dir=run"]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    for which, begun, statuses in [
        (signal.SIGINT, "candidates-*.lock", {1, 130, -signal.SIGINT}),
        (signal.SIGKILL, "scores-*.lock", {-signal.SIGKILL}),
        (signal.SIGTERM, "training-*.partial/curves", {128 + signal.SIGTERM}),
    ]:
        process = subprocess.Popen(arguments, **quiet)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "cache").glob(begun)):
            assert process.poll() is None and time.monotonic() < deadline, begun
            time.sleep(0.01)
        process.send_signal(which)
        said = process.communicate()[1]
        assert process.returncode in statuses, said[-2000:]
        assert not (tmp_path / "run/model").exists()
    assert "ended by SIGTERM; the same command goes on" in said and "Traceback" not in said
    subprocess.run(arguments, check=True, **quiet)
    first, second = tmp_path / "whole", tmp_path / "run"
    names = ["model/model.safetensors", *(file.name for file in first.glob("*.trec"))]
    assert len(names) == 8
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    systems = [json.loads((run / "metrics.json").read_text())["systems"] for run in (first, second)]
    assert systems[0] == systems[1]
    tables = [parquet.read_table(run / "per_query.parquet") for run in (first, second)]
    assert tables[0].equals(tables[1])
