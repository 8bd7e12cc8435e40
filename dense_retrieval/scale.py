"""What size a run has: which of ``conf/scale/`` this machine asks for, and the line that says so."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_FOR_ITS_GENERATOR = (
    30e9  # bytes of memory that a GPU has, if it is to hold the model of gpu.yaml and its work
)


def gpu_memory() -> int:
    """Bytes of the GPU that torch finds, 0 if none; torch is not loaded where the system has none."""
    if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
        return 0
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def of_machine(folder: Path, setting: str, device: str) -> Any:
    """What ``gpu.yaml`` or ``laptop.yaml`` of a folder says; of a small GPU the language model is the laptop's.

    Args:
        device: cpu, cuda, or auto: cuda where there is one.
    """
    laptops = setting == "generator" and gpu_memory() < _FOR_ITS_GENERATOR
    return _values(folder / ("gpu.yaml" if on_gpu(device) and not laptops else "laptop.yaml"))[setting]


def on_gpu(device: str) -> bool:
    """Whether work is done on a GPU, with ``device=`` as in :func:`of_machine`."""
    return device != "cpu" and (device != "auto" or gpu_memory() > 0)


@functools.cache
def _values(file: Path) -> Any:
    return OmegaConf.load(file)


def line(c: Any, choice: str, tokens: Mapping[str, Any]) -> str:
    """How large a run is, such as ``scale=auto: laptop, for a CPU: passages of up to 96 tokens (61 % are
    cut, which loses 34 % of all tokens), lists of 10, steps of 32 queries, 1 epoch at most``.

    Args:
        c: the configuration, whose own settings count, wherever they come from.
        choice: what ``scale=`` says.
        tokens: what the passages' tokens counted, as far as that is known.
    """
    machine = "GPU" if on_gpu(c.device) else "CPU"
    size = "" if choice == c.scale.name else f" {c.scale.name}, for a {machine}:"
    length, written = tokens.get("length", c.student.passage_length), c.generator.get("passages", 0)
    known = f"passages of up to {length} tokens"
    parts = [known if length != "auto" else "passages whole, but for the 5 % longest"]
    if "cut" in tokens:
        cut, lost = 100 * tokens["cut"], 100 * tokens["lost"]
        parts[0] += f" ({cut:.0f} % are cut, which loses {lost:.0f} % of all tokens)"
    if written != 0:
        parts.append(f"queries written for {'all' if written is None else f'{written:,}'} passages")
    epochs = c.trainer.max_epochs
    parts += [f"lists of {c.groups.list_size}", f"steps of {c.trainer.batch_size:,} queries"]
    return f"scale={choice}:{size} {', '.join(parts)}, {epochs} epoch{'s' * (epochs > 1)} at most"
