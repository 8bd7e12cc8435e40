"""RankNet: each pair of a query's candidates in the teacher's order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dense_retrieval.losses import temperature
from dense_retrieval.losses.similarities import Similarities

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RankNet:
    r"""Mean over pairs of log(1 + exp(−(s_i − s_j) / τ)) (Burges et al. 2005).

    A pair is two candidates i, j of one query with t_i > t_j. Ties of the teacher are no pairs, nor
    is what stands beside padding.

    Attributes:
        weight: in the loss.
        temperature: τ, of the cosines; "auto": the listwise loss's, at which a pair's probability
            is that of the two passages in the student's distribution over the list.
    """

    weight: float
    temperature: float | str = "auto"

    def __post_init__(self) -> None:
        temperature.check("loss.terms.ranknet.temperature", self.temperature, automatic=True)

    def found(self, student: float, teacher: float) -> RankNet:
        return replace(self, temperature=student) if self.temperature == "auto" else self

    def __call__(self, of: Similarities) -> Tensor:
        from torch.nn.functional import softplus

        s, t = of.candidates / float(self.temperature), of.teacher
        pairs = (t[:, :, None] > t[:, None, :]) & ~of.padding[:, None, :]
        losses = softplus(s[:, None, :] - s[:, :, None])  # (B, K, K): i, then j
        return losses.masked_fill(~pairs, 0.0).sum() / pairs.sum().clamp(min=1)
