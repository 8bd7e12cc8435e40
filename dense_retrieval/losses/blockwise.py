"""InfoNCE of a large batch in little memory."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from dense_retrieval.matmul import product

_BLOCK = 2**25  # cosines at once; half of them cost a tenth of the speed


def infonce(
    queries: Tensor, passages: Tensor, positives: Tensor, multiplicity: Tensor, masked: Tensor
) -> Tensor:
    """The loss of :class:`~dense_retrieval.losses.infonce.InfoNCE`.

    Args:
        queries: ``(B, D)``, divided by the temperature.
        passages: ``(U, D)``
        positives, multiplicity, masked: of :class:`~dense_retrieval.losses.similarities.Similarities`.
    """
    of_passage = multiplicity.to(queries.dtype)
    loss: Any = _Mean.apply(queries, passages, positives, of_passage, masked, torch.is_grad_enabled())
    return loss


class _Mean(torch.autograd.Function):
    """A block of queries sees all passages at once, so that its gradient is known with its loss: three products of
    matrices, none of them ``(B, U)``, and none computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        passages: Tensor,
        positives: Tensor,
        multiplicity: Tensor,
        masked: Tensor,
        wanted: bool,
    ) -> Tensor:
        positive = (queries * passages[positives]).sum(1)
        negatives = torch.empty_like(positive)  # their log-sum-exp
        of_queries, of_passages = torch.empty_like(queries), torch.zeros_like(passages)
        for block, pairs in _blocks(len(queries), len(passages), masked):
            logits = product(queries[block], passages, multiplicity.log())
            logits[pairs] = -torch.inf
            greatest = logits.amax(1).clamp(min=torch.finfo(logits.dtype).min)  # -inf - -inf is NaN
            weights = logits.sub_(greatest[:, None]).exp_()
            total = weights.sum(1)
            negatives[block] = greatest + total.log()
            if wanted:
                share = torch.sigmoid(negatives[block] - positive[block]) / total.clamp(min=1)
                of_queries[block] = product(weights, passages.T) * share[:, None]
                of_passages += product(weights.T, (share[:, None] * queries[block]).T)
        if wanted:
            share = torch.sigmoid(negatives - positive)[:, None]
            of_queries.sub_(share * passages[positives])
            of_passages.index_add_(0, positives, share * queries, alpha=-1)
            ctx.save_for_backward(of_queries.div_(len(queries)), of_passages.div_(len(queries)))
        # log(1 + exp(x)); torch takes x for it from a threshold on, which is 20 and too little for float64.
        return softplus(negatives - positive, threshold=50).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_queries, of_passages = ctx.saved_tensors
        return gradient * of_queries, gradient * of_passages, None, None, None, None


def _blocks(n: int, passages: int, masked: Tensor) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Blocks of the n queries, each with its masked pairs."""
    size = max(1, min(n, _BLOCK // max(1, passages)))
    masked = masked[masked[:, 0].argsort()]
    starts = torch.arange(0, n + size, size, device=masked.device)
    ends = torch.searchsorted(masked[:, 0].contiguous(), starts).tolist()  # waits for a GPU, once
    for number, start in enumerate(range(0, n, size)):
        rows, columns = masked[ends[number] : ends[number + 1]].T
        yield slice(start, start + size), (rows - start, columns)
