"""InfoNCE with in-batch and hard negatives, and id-based masks for false negatives."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def infonce(
    similarities: Tensor, positives: Tensor, multiplicity: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    r"""Mean over queries of −log exp(s⁺/τ) / (exp(s⁺/τ) + Σ_u m_u exp(s_u/τ)) (arXiv 2505.19274).

    u runs over the batch's unique passages but query i's masked ones. A passage that stands m
    times among the batch's candidates counts m times.

    Args:
        similarities: ``(B, U)`` cosines of each query with every unique passage of the batch.
        positives: ``(B,)`` column of each query's positive.
        multiplicity: ``(U,)`` how often each passage stands among the batch's candidates.
        masked: ``(M, 2)`` pairs (query, column) that are no negatives of that query: likely false
            negatives, and its own positive, which is counted once, as the positive.
    """
    logits = similarities.float() if similarities.dtype != torch.float64 else similarities
    logits = logits / temperature
    negatives = logits + multiplicity.to(logits.dtype).log()
    negatives = negatives.index_put((masked[:, 0], masked[:, 1]), logits.new_tensor(-torch.inf))
    positive = logits.gather(1, positives[:, None])
    return cross_entropy(torch.cat([positive, negatives], 1), torch.zeros_like(positives))
