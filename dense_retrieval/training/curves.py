"""The curves of a training, which its processes left behind."""

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path


def replay(folder: Path, log: Callable[[Mapping[str, float], int], None]) -> None:
    """Hand on the curves of a training that ended, or was killed, in ``folder``."""
    for step, values in _logged(folder):
        log(values, step)


def training_loss(folder: Path, points: int = 300) -> list[tuple[int, float]]:
    """Steps and training losses of a training in ``folder``, evenly thinned."""
    # A step that a killed process had taken was taken again: the last one counts.
    losses = {step: values["train/loss"] for step, values in _logged(folder) if "train/loss" in values}
    return sorted(losses.items())[:: -(-len(losses) // points)]


def _logged(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps and what was logged at them, in the order of the processes."""
    for file in sorted(folder.glob("curves/*/metrics.csv"), key=lambda file: int(file.parent.name)):
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                step = int(row.pop("step"))
                yield step, {name: float(value) for name, value in row.items() if value}
