"""Listwise distillation: the student's distribution over a query's passages towards the teacher's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dense_retrieval.losses import temperature
from dense_retrieval.losses.similarities import Similarities

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Listwise:
    r"""Mean over queries of KL(softmax(t / τ_t) ‖ softmax(s / τ_s)) (arXiv 2505.19274).

    Over a query's own candidates; in float64, as the paper does. 0 where the two distributions agree.

    Attributes:
        weight: in the loss.
        student_temperature, teacher_temperature: of the cosines s and the teacher scores t;
            "auto": those of the whole loss, which are given or found before training.
    """

    weight: float
    student_temperature: float | str = "auto"
    teacher_temperature: float | str = "auto"

    def __post_init__(self) -> None:
        temperature.check("loss.student_temperature", self.student_temperature, automatic=True)
        temperature.check("loss.teacher_temperature", self.teacher_temperature, automatic=True)

    def found(self, student: float, teacher: float) -> Listwise:
        return replace(
            self,
            student_temperature=student if self.student_temperature == "auto" else self.student_temperature,
            teacher_temperature=teacher if self.teacher_temperature == "auto" else self.teacher_temperature,
        )

    def __call__(self, of: Similarities) -> Tensor:
        s = of.candidates.double() / float(self.student_temperature)
        t = of.teacher.double() / float(self.teacher_temperature)
        log_p, log_q = t.log_softmax(1), s.masked_fill(of.padding, -math.inf).log_softmax(1)
        # 0 * (-inf - -inf) is NaN: both sides are set to 0 at padding, which is the limit.
        difference = (log_p - log_q).masked_fill(of.padding, 0.0)
        return (log_p.exp() * difference).sum(1).mean()
