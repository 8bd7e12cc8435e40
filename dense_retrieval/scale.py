"""What size a run has: which of ``conf/scale/`` this machine asks for, and the line that says so."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def there_is_a_gpu() -> bool:
    """Whether torch finds one; without loading it where the system has none."""
    if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
        return False
    import torch

    return torch.cuda.is_available()


def of_machine(folder: Path, setting: str, device: str) -> Any:
    """What ``gpu.yaml`` or ``laptop.yaml`` of a folder says.

    Args:
        device: cpu, cuda, or auto: cuda where there is one.
    """
    return _values(folder / ("gpu.yaml" if on_gpu(device) else "laptop.yaml"))[setting]


def on_gpu(device: str) -> bool:
    """Whether work is done on a GPU, with ``device=`` as in :func:`of_machine`."""
    return device != "cpu" and (device != "auto" or there_is_a_gpu())


@functools.cache
def _values(file: Path) -> Any:
    return OmegaConf.load(file)


def line(c: Any, choice: str, tokens: Mapping[str, Any]) -> str:
    """How large a run is, such as ``scale=auto: laptop, there being no GPU: passages of up to 96 tokens (61 % are
    cut, which loses 34 % of all tokens), lists of 10, steps of 32 queries, 1 epoch at most``.

    Args:
        c: the configuration, whose own settings count, wherever they come from.
        choice: what ``scale=`` says.
        tokens: what the passages' tokens counted, as far as that is known.
    """
    size = (
        ""
        if choice == c.scale.name
        else f" {c.scale.name}, there being {'a' if on_gpu(c.device) else 'no'} GPU:"
    )
    length = tokens.get("length", c.student.passage_length)
    parts = [
        "passages whole, but for the 5 % longest"
        if length == "auto"
        else f"passages of up to {length} tokens"
    ]
    if "cut" in tokens:
        parts[0] += (
            f" ({100 * tokens['cut']:.0f} % are cut, which loses {100 * tokens['lost']:.0f} % of all tokens)"
        )
    if (written := c.generator.get("passages", 0)) != 0:
        parts.append(f"queries written for {'all' if written is None else f'{written:,}'} passages")
    epochs = c.trainer.max_epochs
    parts += [f"lists of {c.groups.list_size}", f"steps of {c.trainer.batch_size:,} queries"]
    return f"scale={choice}:{size} {', '.join(parts)}, {epochs} epoch{'s' * (epochs > 1)} at most"
