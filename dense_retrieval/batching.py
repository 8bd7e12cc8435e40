"""The one place where work of unequal length is cut into padded batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dense_retrieval.records import InputError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def pack(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Cut items into batches of at most ``max_tokens`` padded tokens, longest first.

    Args:
        lengths: ``(N,)`` tokens of each item.
        max_tokens: bound on ``items x longest item`` of a batch. An item longer than this gets
            a batch of its own.

    Returns:
        Index arrays that together hold ``0..N-1`` once each. The longest batch comes first, so
        that a size that does not fit in memory fails at once.

    Examples:
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


def out_of_memory(error: Exception) -> bool:
    """Whether a forward pass found no memory, on a GPU or on a CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halved(max_tokens: int, longest: int) -> int:
    """Half of the padded tokens of a batch that did not fit in memory; said once, as it is done for all that follow.

    Args:
        longest: tokens of the batch's longest text.

    Raises:
        InputError: the batch was of one text.
    """
    import torch

    if max_tokens < 2 * longest:
        raise InputError(
            f"a text of {longest} tokens alone does not fit in the memory; lower student.passage_length or "
            "teacher.max_length, or choose precision=bf16-mixed or another device"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("out of memory in a forward pass of %d padded tokens: going on with half of them", max_tokens)
    return max_tokens // 2
