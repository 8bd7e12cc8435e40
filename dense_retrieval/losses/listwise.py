"""Listwise distillation: the student's distribution over a query's passages towards the teacher's."""

import torch
from torch import Tensor


def listwise(
    similarities: Tensor, teacher: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    r"""Mean over queries of KL(softmax(t / τ_t) ‖ softmax(s / τ_s)) (arXiv 2505.19274).

    Computed in float64, as the paper does.

    Args:
        similarities: ``(B, K)`` the student's cosines of each query with its own candidates.
        teacher: ``(B, K)`` teacher scores in 0..1; ``-inf`` is padding, which drops out of both
            distributions.

    Returns:
        A scalar, 0 where the two distributions agree.
    """
    padding = torch.isneginf(teacher)
    s = (similarities.double() / student_temperature).masked_fill(padding, -torch.inf)
    t = teacher.double() / teacher_temperature
    log_p, log_q = t.log_softmax(1), s.log_softmax(1)
    # 0 * (-inf - -inf) is NaN: both sides are set to 0 at padding, which is the limit.
    difference = (log_p - log_q).masked_fill(padding, 0.0)
    return (log_p.exp() * difference).sum(1).mean()
