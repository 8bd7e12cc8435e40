"""The training loss: a weighted sum of listwise distillation and InfoNCE."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dense_retrieval.losses.infonce import infonce
from dense_retrieval.losses.listwise import listwise
from dense_retrieval.records import InputError


@dataclass(frozen=True)
class DistillationLoss:
    """``listwise_weight · listwise + infonce_weight · InfoNCE``; a term of weight 0 is not computed.

    Attributes:
        student_temperature, teacher_temperature: of :func:`listwise`; "auto" until they are found.
        infonce_temperature: of :func:`infonce`.
        false_negative_ratio: a query's own candidate with more than this fraction of the
            positive's teacher score is no negative.

    Raises:
        InputError: a temperature that is not positive, a negative weight, or both weights 0.
    """

    listwise_weight: float
    infonce_weight: float
    student_temperature: float | str = "auto"
    teacher_temperature: float | str = "auto"
    infonce_temperature: float = 0.01
    false_negative_ratio: float = 0.6

    def __post_init__(self) -> None:
        for name in ("student_temperature", "teacher_temperature", "infonce_temperature"):
            value = getattr(self, name)
            automatic = value == "auto" and name != "infonce_temperature"
            if not automatic and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise InputError(
                    f"loss.{name}={value!r} is not a positive number{' or auto' * (name[0] != 'i')}"
                )
        if (
            min(self.listwise_weight, self.infonce_weight) < 0
            or not 0 < self.listwise_weight + self.infonce_weight < math.inf
        ):
            raise InputError(
                f"loss.listwise_weight={self.listwise_weight} and loss.infonce_weight={self.infonce_weight}: "
                "none may be negative, one must be above 0"
            )

    def __call__(
        self,
        candidate_similarities: Callable[[], Tensor],
        batch_similarities: Callable[[], Tensor],
        teacher: Tensor,
        positives: Tensor,
        multiplicity: Tensor,
        masked: Tensor,
    ) -> dict[str, Tensor]:
        """The terms by name, and their weighted sum as ``loss``.

        Args:
            candidate_similarities: gives ``(B, K)``, called only where the listwise term counts.
            batch_similarities: gives ``(B, U)``, called only where InfoNCE counts.
            teacher: ``(B, K)``; see :func:`listwise`.
            positives, multiplicity, masked: see :func:`infonce`.
        """
        terms: dict[str, Tensor] = {}
        if self.listwise_weight:
            terms["listwise"] = listwise(
                candidate_similarities(),
                teacher,
                float(self.student_temperature),
                float(self.teacher_temperature),
            )
        if self.infonce_weight:
            terms["infonce"] = infonce(
                batch_similarities(), positives, multiplicity, masked, self.infonce_temperature
            )
        weights = {"listwise": self.listwise_weight, "infonce": self.infonce_weight}
        return terms | {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum()}
