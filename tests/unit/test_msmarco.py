"""The commands of experiments/msmarco compose, and say what there is to do, without a network or a GPU."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from dense_retrieval import plan
from dense_retrieval.chain import describe
from dense_retrieval.checks import check
from dense_retrieval.config import CONF
from dense_retrieval.store import Store

README = Path(__file__).parents[2] / "experiments/msmarco/README.md"
PASSAGES = {"msmarco": 8_841_823, "fiqa": 57_638}


def commands() -> list[list[str]]:
    """The overrides of each command of the README that runs this package."""
    text = README.read_text().replace("\\\n", " ")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [of[of.index("dense_retrieval.run") + 1 :] for of in words if "dense_retrieval.run" in of]


def test_the_readme_has_all_of_them():
    found = commands()
    assert len(found) >= 9
    for wanted in ("executor=local", "executor=ray", "trainer.num_nodes=2", "hydra/launcher=submitit_slurm"):
        assert any(wanted in of for of in found), wanted
    assert {o for of in found for o in of if o.startswith("data=")} == {"data=msmarco", "data=fiqa"}


@pytest.mark.parametrize("overrides", commands(), ids=" ".join)
def test_a_command_is_planned(overrides, encoder_folder, cross_encoder_folder, tmp_path):
    """Its models are folders here: a key is made of their content."""
    local = [f"student.path={encoder_folder}", f"teacher.path={cross_encoder_folder}"]
    local += [f"generator.path={encoder_folder}", f"cache_dir={tmp_path}/cache", "plan=true"]
    given = [o for o in overrides if o not in ("-m", "--multirun")]
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=[*given, *local])
        check(config)
        steps = describe(config, lambda *_: None).steps
    lines = plan.lines(Store(tmp_path / "cache"), steps)
    data = next(o.partition("=")[2] for o in overrides if o.startswith("data="))
    assert lines[0].work["passages"] == PASSAGES[data]
    work = {line.stage: line.work for line in lines}
    asked = min(PASSAGES[data] - 100, config.generator.passages)  # 100 are held out
    assert work["raw_queries"]["queries"] in (asked * 6, 100 * 6)  # of the last such stage: the held-out ones
    assert max(line.work.get("pairs", 0) for line in lines if line.stage == "scores") == asked * 6 * 20
    if "scale=gpu" not in overrides:
        assert (config.trainer.batch_size, config.groups.list_size) == (4096, 20)
        assert (config.student.passage_length, config.precision) == (512, "bf16-mixed")
        assert config.generator.passages == (200_000 if data == "msmarco" else 100_000)
