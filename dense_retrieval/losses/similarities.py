"""What a loss may read of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Similarities:
    """The cosines of B queries with their K candidates and with all U unique passages of the batch.

    Both are computed when they are first asked for, in float32 or better.
    """

    queries: Tensor  # (B, D) unit vectors
    passages: Tensor  # (U, D) unit vectors, no passage twice
    slots: Tensor  # (B, K) rows of `passages`, the candidates of each query; any row at padding
    teacher: Tensor  # (B, K) teacher scores in 0..1, -inf = padding
    positives: Tensor  # (B,) rows of `passages`: each query's positive, its first candidate
    multiplicity: Tensor  # (U,) how often each passage stands among the B x K candidates
    masked: Tensor  # (M, 2) pairs (query, row of `passages`) that are no in-batch negatives

    @cached_property
    def candidates(self) -> Tensor:
        """``(B, K)`` each query with its own candidates; of no meaning at padding."""
        import torch

        return torch.einsum("bd,bkd->bk", exact(self.queries), exact(self.passages)[self.slots])

    @cached_property
    def in_batch(self) -> Tensor:
        """``(B, U)`` each query with every unique passage."""
        return exact(self.queries) @ exact(self.passages).T

    def truncated(self, dimension: int) -> Similarities:
        """Of the embeddings' first ``dimension`` components, scaled to length 1 again."""
        from torch.nn.functional import normalize

        if dimension == self.queries.shape[1]:
            return self
        cut = (normalize(exact(of[:, :dimension]), dim=1) for of in (self.queries, self.passages))
        return replace(self, **dict(zip(("queries", "passages"), cut, strict=True)))

    @property
    def padding(self) -> Tensor:
        """``(B, K)`` bool: where a list is shorter than K."""
        import torch

        return torch.isneginf(self.teacher)


def exact(embeddings: Tensor) -> Tensor:
    import torch

    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
