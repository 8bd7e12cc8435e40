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
        """On a device, but for the row numbers, by which texts are looked up on the CPU."""
        names = [f.name for f in fields(self) if f.name not in ("queries", "passages")]
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def pin_memory(self) -> "Batch":
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


def collate(groups: Groups, rows: np.ndarray, false_negative_ratio: float) -> Batch:
    """The batch of some groups.

    What is masked for a group is masked wherever in the batch it occurs: its positive, its own
    candidates that score high, and all passages judged relevant for its query.

    Args:
        rows: ``(B,)`` which groups, of different queries.
        false_negative_ratio: a group's own candidate whose teacher score exceeds this fraction of
            its top score is masked.
    """
    candidates, teacher = groups.passages[rows], groups.teacher[rows]
    there = candidates >= 0
    passages, inverse = np.unique(candidates[there], return_inverse=True)
    slots = np.zeros(candidates.shape, dtype=np.int64)
    slots[there] = inverse
    likely = _likely_positive(teacher, slots, false_negative_ratio)
    judged = _judged_relevant(groups.relevant, groups.query[rows], passages)
    return Batch(
        queries=torch.from_numpy(groups.query[rows]),
        passages=torch.from_numpy(passages),
        slots=torch.from_numpy(slots),
        teacher=torch.from_numpy(teacher),
        positives=torch.from_numpy(slots[:, 0].copy()),
        multiplicity=torch.from_numpy(np.bincount(inverse, minlength=len(passages))),
        masked=torch.from_numpy(np.concatenate([likely, judged])),
    )


def _likely_positive(teacher: np.ndarray, slots: np.ndarray, false_negative_ratio: float) -> np.ndarray:
    # Padding is -inf, which exceeds nothing; so is what is not scored yet, NaN.
    positive_like = teacher > false_negative_ratio * teacher[:, :1]
    positive_like[:, 0] = True  # also where the top score is 0
    group, position = np.nonzero(positive_like)
    return np.stack([group, slots[group, position]], 1)


def _judged_relevant(relevant: np.ndarray, query: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Pairs (group, position) of the judged pairs that meet in a batch; ``passages`` are sorted."""
    query_row, passage_row = relevant.T
    met = np.isin(query_row, query) & np.isin(passage_row, passages)
    order = np.argsort(query)
    group = order[np.searchsorted(query, query_row[met], sorter=order)]
    return np.stack([group, np.searchsorted(passages, passage_row[met])], 1)


def with_scores(batch: Batch, teacher: np.ndarray, false_negative_ratio: float) -> Batch:
    """The batch with teacher scores ``(B, K)`` where it had none, and with what they mask."""
    likely = _likely_positive(teacher, batch.slots.cpu().numpy(), false_negative_ratio)
    device = batch.teacher.device
    return replace(
        batch,
        teacher=torch.from_numpy(teacher).to(device),
        masked=torch.cat([batch.masked, torch.from_numpy(likely).to(device)]),
    )
