"""``student.engine=auto``: the engine that embeds fastest on this machine."""

import functools
import json
import logging
import os
import platform
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import BertConfig, BertModel

from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.engine import PACKAGES, Forward, Inputs, by_file, by_torch
from dense_retrieval.student.export_engine import export_to

log = logging.getLogger(__name__)

_WORTH = 1.05  # times torch's speed, for another engine
_REPEATS = 5


@functools.cache
def fastest(folder: Path, bf16: bool) -> str:
    """The fastest of the installed engines that compute as exactly as torch: none of int8.

    Measured once a machine, number of threads, and versions, and kept in ``folder``: a choice that changed from run
    to run would change keys.
    """
    names = [name for name in ("openvino", "onnx") if all(map(find_spec, PACKAGES[name]))]
    names = [name for name in names if not (bf16 and name == "onnx")]
    versions = [
        f"{package} {version(package)}" for name in ("torch", *names) for package in PACKAGES[name] or [name]
    ]
    machine = f"{platform.node()}, {torch.get_num_threads()} threads, {', '.join(versions)}" + ", bf16" * bf16
    file = folder / "engines.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        known = json.loads(file.read_text()) if file.exists() else {}
        if machine not in known:
            known[machine] = _speeds(names, bf16)
            unfinished = file.with_suffix(".tmp")
            unfinished.write_text(json.dumps(known, indent=1))
            os.replace(unfinished, file)
    speeds = known[machine]
    best = max(speeds, key=lambda name: speeds[name] * (_WORTH if name == "torch" else 1))
    of = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    log.info("student.engine=auto: %s (tokens a second of a small model: %s)", best, of)
    return best


def _speeds(names: list[str], bf16: bool) -> dict[str, float]:
    """Engine -> tokens a second, of two layers of all-MiniLM-L6-v2's size."""
    sizes: dict[str, Any] = {
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "num_hidden_layers": 2,
    }
    model = BiEncoder(BertModel(BertConfig(**sizes)), None, pooling="mean")
    ids = torch.randint(30_000, (16, 128), generator=torch.Generator().manual_seed(0))
    batches: list[Inputs] = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}] * 4
    with tempfile.TemporaryDirectory() as temporary:
        forwards: dict[str, Forward] = {"torch": by_torch(model, bf16=bf16)}
        for name in names:
            folder = Path(temporary) / name
            folder.mkdir()
            export_to(name, model, folder)
            forwards[name] = by_file(folder, bf16)
        seconds: dict[str, list[float]] = {name: [] for name in forwards}
        for _ in range(1 + _REPEATS):  # the first warms up
            for name, forward in forwards.items():
                start = time.perf_counter()
                for _ in forward(batches):
                    pass
                seconds[name].append(time.perf_counter() - start)
    return {name: ids.numel() * len(batches) / min(of[1:]) for name, of in seconds.items()}
