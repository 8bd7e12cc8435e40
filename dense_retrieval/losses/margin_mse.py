"""Margin-MSE: the student's margins towards the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dense_retrieval.losses import temperature
from dense_retrieval.losses.similarities import Similarities

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MarginMSE:
    r"""Mean over pairs of (c (s⁺ − s_k) − (t⁺ − t_k))² (Hofstätter et al. 2020, arXiv 2010.02666).

    A pair is a query's positive and another candidate k of its list.

    Attributes:
        weight: in the loss.
        scale: c, teacher score a unit of cosine. The paper's student scores by dot products, which
            take on any scale by themselves; cosines cannot, and a student's relevant and random
            passages may lie 0.1 apart where the teacher's scores lie 1 apart. "auto": the teacher's
            temperature over the student's, at which the untuned student's margins resemble the
            teacher's most.
    """

    weight: float
    scale: float | str = "auto"

    def __post_init__(self) -> None:
        temperature.check("loss.terms.margin_mse.scale", self.scale, automatic=True)

    def found(self, student: float, teacher: float) -> MarginMSE:
        return replace(self, scale=teacher / student) if self.scale == "auto" else self

    def __call__(self, of: Similarities) -> Tensor:
        pairs = ~of.padding[:, 1:]
        s = float(self.scale) * (of.candidates[:, :1] - of.candidates[:, 1:])
        t = of.teacher[:, :1] - of.teacher[:, 1:]
        return (s - t).masked_fill(~pairs, 0.0).square().sum() / pairs.sum().clamp(min=1)
