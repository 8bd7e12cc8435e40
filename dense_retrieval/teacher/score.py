"""Teacher scores of candidate lists."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.stage import in_shards

_PAIRS_A_SHARD = 2048  # what a kill can cost


class Teacher(Protocol):
    """A frozen cross-encoder."""

    def parameters(self) -> Iterator[Tensor]: ...

    def score(self, queries: Sequence[str], passages: Sequence[str], max_tokens: int) -> np.ndarray:
        """Scores ``(N,)`` float32 of N (query, passage) pairs, higher is more relevant."""


def score_candidates(
    teacher: Teacher,
    candidates: CandidateList,
    queries: Sequence[str],
    passages: Sequence[str],
    folder: Path,
    *,
    max_tokens: int = 4096,
    bf16: bool = False,
    label: str = "teacher scores",
) -> CandidateList:
    """The candidates with the teacher's scores, in the retriever's order.

    All pairs of all queries are sorted by length together, so that little is padding, and scored
    in shards kept in ``folder``: a second call, after a kill, scores only what is missing.

    Args:
        candidates: ``(Q, K)``, -1 = padding, which is not scored.
        queries: Q texts.
        passages: texts that the candidates are rows of.
        max_tokens: padded tokens a forward pass.
        bf16: compute under bfloat16 autocast.

    Raises:
        InputError: the teacher gave a score that is not a finite number.
    """
    query, position = np.nonzero(candidates.passages >= 0)
    passage = candidates.passages[query, position]
    length = np.array([len(text) for text in queries])[query]
    used, inverse = np.unique(passage, return_inverse=True)
    length = length + np.array([len(passages[int(row)]) for row in used])[inverse]
    order = np.argsort(-length, kind="stable")
    parts = np.split(order, np.arange(_PAIRS_A_SHARD, len(order), _PAIRS_A_SHARD))
    device = next(teacher.parameters()).device.type
    autocast = torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()
    with Progress(transient=True) as progress, autocast:
        bar = progress.add_task(label, total=len(order))

        def compute(pairs: np.ndarray) -> np.ndarray:
            texts = [queries[int(q)] for q in query[pairs]], [passages[int(p)] for p in passage[pairs]]
            values = teacher.score(*texts, max_tokens=max_tokens)
            _require_finite(values, *texts)
            progress.advance(bar, len(pairs))
            return values

        shards = in_shards(folder, parts, compute)
    scores = np.full(candidates.passages.shape, -np.inf, dtype=np.float32)
    scores[query[order], position[order]] = np.concatenate(shards)
    for file in folder.glob("shard-*.npy"):
        file.unlink()
    return CandidateList(candidates.passages, scores)


def _require_finite(values: np.ndarray, queries: Sequence[str], passages: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"the teacher scored {len(bad)} of {len(values)} pairs as {values[bad[0]]}, the first one "
            f"query {queries[bad[0]]!r} with passage {passages[bad[0]][:60]!r}; run it in float32 "
            "(precision=32-true) or choose another teacher="
        )
