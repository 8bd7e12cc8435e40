"""One training batch: groups with their unique passages."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from dense_retrieval.records import Groups


@dataclass(frozen=True)
class Batch:
    """B groups of K candidates, whose U different passages are each encoded once."""

    queries: Tensor  # (B,) query rows
    passages: Tensor  # (U,) passage rows, no row twice
    slots: Tensor  # (B, K) positions in `passages`; 0 at padding
    teacher: Tensor  # (B, K) scores in 0..1, -inf = padding, NaN = not scored yet
    positives: Tensor  # (B,) positions in `passages` of the top-scored candidates
    multiplicity: Tensor  # (U,) how often each passage stands among the B x K candidates
    masked: Tensor  # (M, 2) pairs (group, position in `passages`) that are no InfoNCE negatives

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(groups: Groups, rows: np.ndarray, false_negative_ratio: float) -> Batch:
    """The batch of some groups.

    Args:
        rows: ``(B,)`` which groups.
        false_negative_ratio: a group's own candidate whose teacher score exceeds this fraction of
            its top score is masked wherever in the batch it occurs, and so is its positive.
    """
    candidates, teacher = groups.passages[rows], groups.teacher[rows]
    there = candidates >= 0
    passages, inverse = np.unique(candidates[there], return_inverse=True)
    slots = np.zeros(candidates.shape, dtype=np.int64)
    slots[there] = inverse
    return Batch(
        queries=torch.from_numpy(groups.query[rows]),
        passages=torch.from_numpy(passages),
        slots=torch.from_numpy(slots),
        teacher=torch.from_numpy(teacher),
        positives=torch.from_numpy(slots[:, 0].copy()),
        multiplicity=torch.from_numpy(np.bincount(inverse, minlength=len(passages))),
        masked=torch.from_numpy(_masked(teacher, slots, false_negative_ratio)),
    )


def _masked(teacher: np.ndarray, slots: np.ndarray, false_negative_ratio: float) -> np.ndarray:
    # Padding is -inf, which exceeds nothing; so is what is not scored yet, NaN.
    positive_like = teacher > false_negative_ratio * teacher[:, :1]
    positive_like[:, 0] = True  # also where the top score is 0
    group, position = np.nonzero(positive_like)
    return np.stack([group, slots[group, position]], 1)


def with_scores(batch: Batch, teacher: np.ndarray, false_negative_ratio: float) -> Batch:
    """The batch with other teacher scores ``(B, K)``, and what they mask."""
    masked = _masked(teacher, batch.slots.cpu().numpy(), false_negative_ratio)
    device = batch.teacher.device
    return replace(
        batch,
        teacher=torch.from_numpy(teacher).to(device),
        masked=torch.from_numpy(masked).to(device),
    )
