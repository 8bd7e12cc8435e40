"""Query-passage groups with teacher scores, as batches for Lightning."""

from collections.abc import Iterator
from functools import partial

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
    """

    def __init__(self, groups: Groups, batch_size: int, false_negative_ratio: float, seed: int) -> None:
        super().__init__()
        self.groups = groups
        self.batch_size = batch_size
        self.false_negative_ratio = false_negative_ratio
        self.seed = seed
        self.train_rows = np.flatnonzero(~groups.dev)
        self.dev_rows = np.flatnonzero(groups.dev)

    def train_dataloader(self) -> DataLoader:
        return self._loader(_Batches(self.train_rows, self.batch_size, self.seed))

    def val_dataloader(self) -> DataLoader:
        return self._loader(_Batches(self.dev_rows, self.batch_size, None))

    def _loader(self, batches: "_Batches") -> DataLoader:
        # The "dataset" is the batches' rows themselves; collating them is one vectorised call.
        together = partial(collate, self.groups, false_negative_ratio=self.false_negative_ratio)
        return DataLoader(_Rows(), sampler=batches, batch_size=None, collate_fn=together)


class _Rows(Dataset):
    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return rows


class _Batches(Sampler):
    """The rows of each batch; Lightning calls ``set_epoch`` before each epoch."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int | None) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        rows = self.rows
        if self.seed is not None:
            rows = np.random.default_rng([self.seed, self.epoch]).permutation(rows)
        yield from np.array_split(rows, np.arange(self.batch_size, len(rows), self.batch_size))
