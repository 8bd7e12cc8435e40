"""Teacher scores of candidate lists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

import numpy as np
from rich.progress import Progress

from dense_retrieval.batching import halved, out_of_memory, pack
from dense_retrieval.executor import HERE, Advance, Compute, Executor, even
from dense_retrieval.memo import Memo, key
from dense_retrieval.progress import unwatched
from dense_retrieval.records import CandidateList, InputError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_PAIRS_IN_MEMORY = 1_000_000  # whose texts and keys are
_PAIRS_AT_ONCE = 2048  # a shard: what a kill can cost

Pairs: TypeAlias = tuple[list[str], list[str]]  # N queries, N passages


class Teacher(Protocol):
    """A frozen cross-encoder."""

    def parameters(self) -> Iterator[Tensor]: ...

    def to(self, device: str) -> Self: ...

    def score(self, queries: Sequence[str], passages: Sequence[str], max_tokens: int) -> np.ndarray:
        """Scores ``(N,)`` float32 of N (query, passage) pairs, higher is more relevant."""


def score_batches(
    lengths: np.ndarray, max_tokens: int, forward: Callable[[np.ndarray], Tensor]
) -> np.ndarray:
    """Scores ``(N,)`` float32 of N tokenised pairs.

    Args:
        lengths: ``(N,)`` tokens of each pair.
        max_tokens: padded tokens a forward pass.
        forward: gives the scores ``(B,)`` of B rows.
    """
    import torch

    from dense_retrieval.matmul import fastest_matmul

    scores = np.empty(len(lengths), dtype=np.float32)
    with torch.inference_mode(), fastest_matmul():
        for rows in pack(lengths, max_tokens):
            scores[rows] = forward(rows).float().cpu().numpy()
    return scores


@dataclass(frozen=True)
class Scorer:
    """Scores pairs of texts, wherever it is loaded.

    Args:
        reads: files of the teacher.
    """

    load_teacher: Callable[[], Teacher]
    bf16: bool
    max_tokens: int
    reads: Sequence[Path] = ()

    def __call__(self, device: str) -> Compute:
        import torch

        teacher, max_tokens = self.load_teacher().to(device), self.max_tokens

        def scored(pairs: Pairs) -> np.ndarray | None:
            on = torch.device(device).type
            try:
                with torch.autocast(on, torch.bfloat16) if self.bf16 else nullcontext():
                    return teacher.score(*pairs, max_tokens=max_tokens)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            return None

        def compute(pairs: Pairs, advance: Advance) -> np.ndarray:
            nonlocal max_tokens
            # The longest pairs come first: little is lost of a shard that does not fit.
            while (values := scored(pairs)) is None:
                max_tokens = halved(max_tokens, 1)
            advance(len(values))
            return values

        return compute


def score_candidates(
    load_teacher: Callable[[], Teacher],
    candidates: CandidateList,
    queries: Sequence[str],
    passages: Sequence[str],
    memo: Memo,
    *,
    max_tokens: int = 4096,
    bf16: bool = False,
    label: str = "teacher scores",
    executor: Executor = HERE,
    device: str = "cpu",
    reads: Sequence[Path] = (),
) -> tuple[CandidateList, int]:
    """The candidates with the teacher's scores, in the retriever's order; and how many pairs were scored anew.

    Pairs that the memo has, of this or another run, are not scored again. The others are sorted by
    length, those of many queries together, so that little is padding, and put into the memo as they come.

    Args:
        load_teacher: called if there is a pair to score; with several devices, on each.
        candidates: ``(Q, K)``, -1 = padding, which is not scored.
        queries: Q texts.
        passages: texts that the candidates are rows of.
        memo: of this teacher's scores, open.
        max_tokens: padded tokens a forward pass.
        bf16: compute under bfloat16 autocast.
        reads: files of the teacher.

    Raises:
        InputError: the teacher gave a score that is not a finite number.
    """
    load = Scorer(load_teacher, bf16, max_tokens, reads)
    at_once = max(1, _PAIRS_IN_MEMORY // candidates.passages.shape[1])
    scored, new = [], 0
    for start in range(0, max(1, len(candidates.passages)), at_once):
        rows = slice(start, start + at_once)
        some = CandidateList(candidates.passages[rows], candidates.scores[rows])
        texts = [queries[row] for row in range(start, start + len(some.passages))]
        part, computed = _score_some(load, some, texts, passages, memo, label, executor, device)
        scored.append(part.scores)
        new += computed
    return CandidateList(candidates.passages, np.concatenate(scored)), new


def _score_some(
    load: Scorer,
    candidates: CandidateList,
    queries: Sequence[str],
    passages: Sequence[str],
    memo: Memo,
    label: str,
    executor: Executor,
    device: str,
) -> tuple[CandidateList, int]:
    """As :func:`score_candidates`; all pairs' texts are in memory."""
    query, position = np.nonzero(candidates.passages >= 0)
    query_texts = [queries[int(q)] for q in query]
    used, inverse = np.unique(candidates.passages[query, position], return_inverse=True)
    used_texts = [passages[int(row)] for row in used]
    passage_texts = [used_texts[p] for p in inverse]
    keys = [key(q, p) for q, p in zip(query_texts, passage_texts, strict=True)]
    known = memo.get(keys)
    length = np.array([len(q) + len(p) for q, p in zip(query_texts, passage_texts, strict=True)])
    missing = np.array([i for i, k in enumerate(keys) if k not in known], dtype=np.int64)
    missing = missing[np.argsort(-length[missing], kind="stable")]
    if len(missing) < len(keys):
        log.info("%s: %d of %d pairs are there", label, len(keys) - len(missing), len(keys))
    if not len(missing):
        return _filled(candidates, query, position, [known[k] for k in keys]), 0

    def pairs_of(part: np.ndarray) -> Pairs:
        return [query_texts[i] for i in part], [passage_texts[i] for i in part]

    parts = even(len(missing), _PAIRS_AT_ONCE)
    shards = ((n, pairs_of(missing[part])) for n, part in enumerate(parts))
    with (
        Progress(transient=True, disable=unwatched()) as progress,
        executor.workers(load, device) as computed,
    ):
        bar = progress.add_task(label, total=len(missing))
        for number, values in computed(shards, partial(progress.advance, bar)):
            part = missing[parts[number]]
            _require_finite(values, *pairs_of(part))
            new = {keys[i]: float(value) for i, value in zip(part, values, strict=True)}
            memo.put(new.items())
            known |= new
    return _filled(candidates, query, position, [known[k] for k in keys]), len(missing)


def _filled(
    candidates: CandidateList, query: np.ndarray, position: np.ndarray, values: list[float]
) -> CandidateList:
    scores = np.full(candidates.passages.shape, -np.inf, dtype=np.float32)
    scores[query, position] = values
    return CandidateList(candidates.passages, scores)


def _require_finite(values: np.ndarray, queries: Sequence[str], passages: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"the teacher scored {len(bad)} of {len(values)} pairs as {values[bad[0]]}, the first one "
            f"query {queries[bad[0]]!r} with passage {passages[bad[0]][:60]!r}; run it in float32 "
            "(precision=32-true) or choose another teacher="
        )
