"""The curves of a training, which its processes left behind."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas
from pytorch_lightning.loggers import Logger


class Curves(Logger):
    """Hands curves on to a function."""

    name = "curves"
    version = ""

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        super().__init__()
        self.log = log

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log(metrics, step or 0)

    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        pass


def replay(folder: Path, log: Callable[[Mapping[str, float], int], None]) -> None:
    """Hand on the curves of a training that ended, or was killed, in ``folder``."""
    for curves in _files(folder):
        with curves.open(newline="") as stream:
            for row in csv.DictReader(stream):
                step = int(row.pop("step"))
                log({name: float(value) for name, value in row.items() if value}, step)


def training_loss(folder: Path, points: int = 300) -> list[tuple[int, float]]:
    """Steps and training losses of a training in ``folder``, evenly thinned."""
    parts = [pandas.read_csv(file) for file in _files(folder)]
    losses = pandas.concat(parts).dropna(subset="train/loss").drop_duplicates("step", keep="last")
    losses = losses.sort_values("step").iloc[:: -(-len(losses) // points)]
    return list(zip(losses["step"].tolist(), losses["train/loss"].tolist(), strict=True))


def _files(folder: Path) -> list[Path]:
    """In the order of the processes."""
    return sorted(folder.glob("curves/*/metrics.csv"), key=lambda file: int(file.parent.name))
