"""Query-passage groups with teacher scores, as batches for Lightning."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from dense_retrieval.groups.batch import collate
from dense_retrieval.records import Groups


class GroupsDataModule(LightningDataModule):
    """Train and dev batches; a batch is the whole effective batch of one optimiser step.

    Every process gets every batch: the work is shared inside the step.

    Args:
        batch_size: groups a step. The last batch of an epoch may be smaller.
        seed: with the epoch it decides the order, so that a resumed run sees the same batches.
        corpus: ``(G,)`` which corpus each group is of: then all groups of a batch are of one, the
            batches of an epoch in random order. In-batch negatives of another corpus are too easy.
        workers: processes that make batches ahead, in pinned memory, while a GPU computes; 0 is none.
    """

    def __init__(
        self,
        groups: Groups,
        batch_size: int,
        false_negative_ratio: float,
        seed: int,
        corpus: np.ndarray | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.batch_size = batch_size
        self.false_negative_ratio = false_negative_ratio
        self.seed = seed
        self.workers = workers
        self.corpus = np.zeros(len(groups.query), dtype=np.int64) if corpus is None else corpus

    def train_dataloader(self) -> DataLoader:
        # Lightning makes the loader when it has restored the step of a killed process.
        done = self.trainer.global_step if self.trainer else 0
        return self._loader(~self.groups.dev, self.seed, done)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.groups.dev, None)

    def _loader(self, chosen: np.ndarray, seed: int | None, done: int = 0) -> DataLoader:
        parts = [np.flatnonzero(chosen & (self.corpus == number)) for number in np.unique(self.corpus)]
        batches = _Batches(parts, self.batch_size, seed, done)
        # The "dataset" is the batches' rows themselves; collating them is one vectorised call.
        together = partial(collate, self.groups, false_negative_ratio=self.false_negative_ratio)
        ahead: dict[str, Any] = {"num_workers": self.workers, "pin_memory": self.workers > 0}
        return DataLoader(_Rows(), sampler=batches, batch_size=None, collate_fn=together, **ahead)


class _Rows(Dataset):
    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return rows


class _Batches(Sampler):
    """The rows of each batch; Lightning calls ``set_epoch`` before each epoch.

    Args:
        parts: rows that may share a batch.
        done: batches of all epochs together that are left out, as training goes on behind them.
    """

    def __init__(self, parts: list[np.ndarray], batch_size: int, seed: int | None, done: int) -> None:
        self.parts = parts
        self.done = done
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = done // max(1, len(self))  # workers ask before Lightning says it

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(part) // self.batch_size) for part in self.parts)

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = None if self.seed is None else np.random.default_rng([self.seed, self.epoch])
        batches = []
        for part in self.parts:
            rows = part if rng is None else rng.permutation(part)
            if len(rows):
                batches += np.array_split(rows, np.arange(self.batch_size, len(rows), self.batch_size))
        if rng is not None and len(self.parts) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        yield from batches[max(0, self.done - self.epoch * len(batches)) :]
