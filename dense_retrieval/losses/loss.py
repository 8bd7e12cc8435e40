"""The training loss: a weighted sum of terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from dense_retrieval.losses import temperature
from dense_retrieval.losses.similarities import Similarities
from dense_retrieval.records import InputError

if TYPE_CHECKING:
    from torch import Tensor


class Term(Protocol):
    """A summand: anything with a weight that makes a scalar of a batch; best a frozen dataclass.

    One that has settings "auto" gives itself with numbers in their place by
    ``found(student_temperature, teacher_temperature)``.
    """

    @property
    def weight(self) -> float: ...

    def __call__(self, of: Similarities, /) -> Tensor: ...


@dataclass(frozen=True)
class Loss:
    """``Σ weight · term``; a term of weight 0 is not computed.

    With ``dimensions`` each term is the sum, over these, of what it is for the embeddings' first so many components,
    scaled to length 1 again (Matryoshka representation learning, arXiv 2205.13147; all dimensions weigh alike).

    Attributes:
        terms: by name.
        student_temperature, teacher_temperature: at which the untuned student's cosines and the
            teacher's scores agree best, what "auto" in a term stands for; "auto" until :meth:`found`. At every
            dimension those of the whole embeddings.
        dimensions: see :func:`require_dimensions`; none: of the whole embeddings alone.

    Raises:
        InputError: a temperature that is not positive, a negative weight, or no weight above 0.
    """

    terms: Mapping[str, Term]
    student_temperature: float | str = "auto"
    teacher_temperature: float | str = "auto"
    dimensions: Sequence[int] = ()

    def __post_init__(self) -> None:
        temperature.check("loss.student_temperature", self.student_temperature, automatic=True)
        temperature.check("loss.teacher_temperature", self.teacher_temperature, automatic=True)
        for name, term in self.terms.items():
            if not callable(term) or name == "loss":
                raise InputError(f"loss.terms.{name}: a term has a _target_, and is not called loss")
            weight = getattr(term, "weight", None)
            if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
                raise InputError(f"loss.terms.{name}.weight={weight!r} is not a number of 0 or more")
        if not self.active:
            weights = "".join(f" (loss.terms.{name}.weight=0)" for name in self.terms)
            raise InputError(f"no term of the loss has a weight above 0{weights}; try loss=combined")

    @property
    def active(self) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if term.weight}

    def found(self, student: float, teacher: float) -> Loss:
        """With these temperatures wherever there is "auto"."""
        terms = {
            name: term.found(student, teacher) if hasattr(term, "found") else term
            for name, term in self.terms.items()
        }
        return replace(self, terms=terms, student_temperature=student, teacher_temperature=teacher)

    def __call__(self, of: Similarities) -> dict[str, Tensor]:
        """The active terms by name, and their weighted sum as ``loss``."""
        import torch

        views = [of.truncated(dimension) for dimension in self.dimensions] or [of]
        terms = {name: torch.stack([term(v) for v in views]).sum() for name, term in self.active.items()}
        weighted = [self.terms[name].weight * term for name, term in terms.items()]
        return terms | {"loss": torch.stack(weighted).sum()}

    def described(self) -> dict[str, Any]:
        """The temperatures, and of each active term under ``terms`` what it is set to, for reports."""
        settings = {
            name: {key: value for key, value in vars(term).items() if isinstance(value, int | float | str)}
            for name, term in self.active.items()
        }
        described = {
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature,
            "terms": settings,
        }
        return described | ({"dimensions": list(self.dimensions)} if self.dimensions else {})


def require_dimensions(setting: str, dimensions: Sequence[int], size: int) -> None:
    """Raise InputError unless dimensions are some of 1 to ``size``, each less than the one before."""
    around = [size + 1, *dimensions, 0]
    if any(not above > below for above, below in pairwise(around)):
        raise InputError(
            f"{setting}=[{','.join(map(str, dimensions))}]: give dimensions from large to small, none twice, and "
            f"none above the student's {size}"
        )


def active(terms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the terms that count, name -> settings: what a loss is made from and keyed by.

    >>> active({"listwise": {"weight": 1.0}, "infonce": {"weight": 0.0, "temperature": 0.01}})
    {'listwise': {'weight': 1.0}}
    """
    return {name: dict(term) for name, term in terms.items() if term and term.get("weight") != 0}
