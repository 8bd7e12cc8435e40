"""The teacher's scores of groups that came without."""

from collections.abc import Sequence

import numpy as np

from dense_retrieval.groups.batch import Batch, with_scores
from dense_retrieval.records import InputError
from dense_retrieval.teacher.ensemble import unit_scale
from dense_retrieval.teacher.score import Teacher


class ScoredLater:
    """Scores the groups of a batch that carry none.

    Args:
        teacher: frozen.
        queries, passages: texts by row.
        scale: ``(n, 2)`` offset and width of the raw scores, by query row.
        false_negative_ratio: of :func:`collate`.
    """

    def __init__(
        self,
        teacher: Teacher,
        queries: Sequence[str],
        passages: Sequence[str],
        scale: np.ndarray,
        false_negative_ratio: float,
    ) -> None:
        self.teacher = teacher
        self.queries = queries
        self.passages = passages
        self.scale = scale
        self.false_negative_ratio = false_negative_ratio

    def scored(self, batch: Batch, max_tokens: int) -> Batch:
        """The batch with scores wherever it had none (NaN)."""
        scores = batch.teacher.cpu().numpy().copy()
        group, position = np.nonzero(np.isnan(scores))
        queries = batch.queries.numpy()[group]
        passages = batch.passages[batch.slots.cpu()[group, position]].numpy()
        texts = [self.queries[int(q)] for q in queries], [self.passages[int(p)] for p in passages]
        raw = self.teacher.score(*texts, max_tokens=max_tokens)
        if not np.isfinite(raw).all():
            raise InputError("the teacher gave a score that is no finite number; use precision=32-true")
        scores[group, position] = unit_scale(raw, *self.scale[queries].T)
        return with_scores(batch, scores, self.false_negative_ratio)
