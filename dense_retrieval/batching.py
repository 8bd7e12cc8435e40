"""The one place where work of unequal length is cut into padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def pack(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Cut items into batches of at most ``max_tokens`` padded tokens, longest first.

    Args:
        lengths: ``(N,)`` tokens of each item.
        max_tokens: bound on ``items x longest item`` of a batch. An item longer than this gets
            a batch of its own.

    Returns:
        Index arrays that together hold ``0..N-1`` once each. The longest batch comes first, so
        that a size that does not fit in memory fails at once.

    >>> [b.tolist() for b in pack(np.array([3, 9, 4, 5]), max_tokens=10)]
    [[1], [3, 2], [0]]
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        width = max(1, int(lengths[order[start]]))
        stop = start + max(1, max_tokens // width)
        batches.append(order[start:stop])
        start = stop
    return batches


def pad(sequences: Sequence[np.ndarray], pad_id: int) -> dict[str, Tensor]:
    """Right-padded ``input_ids`` and ``attention_mask``, both ``(B, T)`` int64."""
    import torch

    width = max(len(s) for s in sequences)
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
