"""What of a configuration enters a key."""

import sys
from dataclasses import dataclass

import pytest
from omegaconf import MISSING, OmegaConf

from dense_retrieval.config import Config, Trainer
from dense_retrieval.hardware import hardware, token_limits
from dense_retrieval.nodes import settings, sources
from dense_retrieval.records import InputError
from dense_retrieval.schemas.executors import Local


@dataclass
class Schema:
    path: str = MISSING
    k: int = 3
    ratio: float = 0.5


def keyed(**values) -> dict:
    return settings(OmegaConf.structured(Schema(**values)), unkeyed=["path"]).keyed


def test_what_differs_from_the_schema_s_default_is_keyed():
    assert keyed(path="here") == keyed(path="there", k=3, ratio=0.5) == {}
    assert keyed(path="here", k=4) == {"k": 4} and keyed(path="here", ratio=1) == {"ratio": 1.0}
    node = OmegaConf.structured(Schema(path="here", k=4))
    assert settings(node) == {"path": "here", "k": 4, "ratio": 0.5} and settings(node, "k") == {
        "path": "here",
        "ratio": 0.5,
    }


def config(**trainer):
    groups = {"trainer": OmegaConf.structured(Trainer(**trainer)), "executor": OmegaConf.structured(Local)}
    return OmegaConf.merge(OmegaConf.structured(Config), groups)


def test_auto_is_float32_but_on_a_gpu_that_has_bfloat16(monkeypatch):
    found = []
    for has_bf16, device in [(False, "auto"), (True, "auto"), (True, "cpu")]:
        monkeypatch.setattr("dense_retrieval.hardware._gpu_has_bf16", lambda has=has_bf16: has)
        of = OmegaConf.merge(config(), {"device": device})
        found.append((hardware(of).precision, hardware(of).bf16))
        given = hardware(OmegaConf.merge(of, {"precision": "32-true"}))
        assert (given.precision, given.bf16) == ("32-true", False)
    assert found == [("32-true", False), ("bf16-mixed", True), ("32-true", False)]


def test_the_tokens_of_a_pass_are_numbers_or_auto():
    assert token_limits(config(chunk_tokens=100, graph_tokens=0)) == (100, 0)
    chunk, graph = token_limits(OmegaConf.merge(config(), {"device": "cpu"}))
    assert (chunk.find(), graph) == (2048, None)
    with pytest.raises(
        InputError, match=r"^trainer.graph_tokens=many is neither a number of tokens nor auto$"
    ):
        token_limits(config(graph_tokens="many"))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A class in one file that inherits from one in another."""
    (tmp_path / "keyed_base.py").write_text("import torch\nclass Base(torch.nn.Module):\n    scale = 1\n")
    (tmp_path / "keyed_loss.py").write_text(
        "from keyed_base import Base\nclass Mine(Base):\n    @classmethod\n    def load(cls, path): return cls()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("keyed_base", "keyed_loss"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("target", ["keyed_loss.Mine", "keyed_loss.Mine.load"])
def test_a_class_of_one_s_own_is_keyed_by_its_source(own, target):
    assert [file.name for file in sources(target)] == ["keyed_base.py", "keyed_loss.py"]
    node = OmegaConf.create({"_target_": target, "weight": 1})
    before = settings(node).keyed
    assert before["_target_"] == target and before["weight"] == 1
    (own / "keyed_base.py").write_text("import torch\nclass Base(torch.nn.Module):\n    scale = 10\n")
    assert settings(node).keyed != before
    assert settings(OmegaConf.create({"_target_": "dense_retrieval.losses.infonce.InfoNCE"})).keyed == {
        "_target_": "dense_retrieval.losses.infonce.InfoNCE"
    }


def test_a_class_that_is_not_there():
    with pytest.raises(InputError, match="_target_=nowhere.Mine: .*nowhere"):
        sources("nowhere.Mine")
