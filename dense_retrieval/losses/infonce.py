"""InfoNCE with in-batch and hard negatives, and id-based masks for false negatives."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from dense_retrieval.losses import temperature
from dense_retrieval.losses.similarities import Similarities, exact

_BLOCK = 2**25  # cosines at once; half of them cost a tenth of the speed


@dataclass(frozen=True)
class InfoNCE:
    r"""Mean over queries of −log exp(s⁺/τ) / (exp(s⁺/τ) + Σ_u m_u exp(s_u/τ)) (arXiv 2505.19274).

    u runs over the batch's unique passages but query i's masked ones: likely false negatives, and
    its own positive, which is counted once, as the positive. A passage that stands m times among
    the batch's candidates counts m times.

    The cosines ``(B, U)`` are computed a block of queries at a time and not kept; without second derivatives.

    Attributes:
        weight: in the loss.
        temperature: τ, of the cosines s.
    """

    weight: float
    temperature: float = 0.01

    def __post_init__(self) -> None:
        temperature.check("loss.infonce_temperature", self.temperature)

    def __call__(self, of: Similarities) -> Tensor:
        queries, passages = exact(of.queries) / self.temperature, exact(of.passages)
        multiplicity = of.multiplicity.to(queries.dtype)
        wanted = torch.is_grad_enabled()
        return _Mean.apply(queries, passages, of.positives, multiplicity, of.masked, wanted)


class _Mean(torch.autograd.Function):
    """The loss of queries ``(B, D)``, divided by τ, and passages ``(U, D)``.

    A block of queries sees all passages at once, so that its gradient is known with its loss: three
    products of matrices, none of them ``(B, U)``, and none computed again.
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
        log_multiplicity = multiplicity.log()[None]
        for block, logits, pairs in _blocks(queries, passages, masked):
            torch.addmm(log_multiplicity, queries[block], passages.T, out=logits)
            logits[pairs] = -torch.inf
            greatest = logits.amax(1).clamp(min=torch.finfo(logits.dtype).min)  # -inf - -inf is NaN
            weights = logits.sub_(greatest[:, None]).exp_()
            total = weights.sum(1)
            negatives[block] = greatest + total.log()
            if wanted:
                share = torch.sigmoid(negatives[block] - positive[block]) / total.clamp(min=1)
                torch.mm(weights, passages, out=of_queries[block]).mul_(share[:, None])
                of_passages.addmm_(weights.T, share[:, None] * queries[block])
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


def _blocks(
    queries: Tensor, passages: Tensor, masked: Tensor
) -> Iterator[tuple[slice, Tensor, tuple[Tensor, Tensor]]]:
    """Blocks of queries, each with room for its logits, the same memory for all, and its masked pairs."""
    n = len(queries)
    size = max(1, min(n, _BLOCK // max(1, len(passages))))
    masked = masked[masked[:, 0].argsort()]
    starts = torch.arange(0, n + size, size, device=masked.device)
    ends = torch.searchsorted(masked[:, 0].contiguous(), starts).tolist()  # waits for a GPU, once
    memory = queries.new_empty(size, len(passages))
    for number, start in enumerate(range(0, n, size)):
        rows, columns = masked[ends[number] : ends[number + 1]].T
        yield slice(start, start + size), memory[: n - start], (rows - start, columns)
