"""InfoNCE with in-batch and hard negatives, and id-based masks for false negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dense_retrieval.losses import temperature
from dense_retrieval.losses.similarities import Similarities, exact

if TYPE_CHECKING:
    from torch import Tensor


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
        from dense_retrieval.losses.blockwise import infonce

        queries, passages = exact(of.queries) / self.temperature, exact(of.passages)
        return infonce(queries, passages, of.positives, of.multiplicity, of.masked)
