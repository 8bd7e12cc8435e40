"""Schemas of ``conf/loss/``."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import II

from dense_retrieval.schemas.setting import setting


@dataclass
class ListwiseTerm:
    """:class:`dense_retrieval.losses.listwise.Listwise`"""

    _target_: str = "dense_retrieval.losses.listwise.Listwise"
    weight: float = setting(II("loss.listwise_weight"), "of this term; 0 = none", least=0)
    student_temperature: Any = setting("auto", "of the cosines; auto: the whole loss's", above=0)
    teacher_temperature: Any = setting("auto", "of the teacher scores; auto: the whole loss's", above=0)


@dataclass
class InfoNCETerm:
    """:class:`dense_retrieval.losses.infonce.InfoNCE`"""

    _target_: str = "dense_retrieval.losses.infonce.InfoNCE"
    weight: float = setting(II("loss.infonce_weight"), "of this term; 0 = none", least=0)
    temperature: float = setting(II("loss.infonce_temperature"), "of the cosines", above=0)


@dataclass
class MarginMSETerm:
    """:class:`dense_retrieval.losses.margin_mse.MarginMSE`"""

    _target_: str = "dense_retrieval.losses.margin_mse.MarginMSE"
    weight: float = setting(0, "of this term; 0 = none", least=0)
    scale: Any = setting(
        "auto", "teacher score a unit of cosine; auto: teacher_temperature / student_temperature", above=0
    )


@dataclass
class RankNetTerm:
    """:class:`dense_retrieval.losses.ranknet.RankNet`"""

    _target_: str = "dense_retrieval.losses.ranknet.RankNet"
    weight: float = setting(0, "of this term; 0 = none", least=0)
    temperature: Any = setting("auto", "of the cosines; auto: student_temperature", above=0)


def _terms() -> dict[str, Any]:
    terms = {"listwise": ListwiseTerm(), "infonce": InfoNCETerm()}
    return terms | {"margin_mse": MarginMSETerm(), "ranknet": RankNetTerm()}


@dataclass
class Loss:
    """``conf/loss/``: a weighted sum of terms.

    One of one's own: ``'+loss.terms.mine={_target_: my_package.my_file.MyLoss, weight: 1}'``
    """

    listwise_weight: float = setting(0, "of the listwise loss", least=0)
    infonce_weight: float = setting(0, "of InfoNCE", least=0)
    student_temperature: Any = setting("auto", "of the cosines; a number, or auto: found", above=0)
    teacher_temperature: Any = setting("auto", "of the normalised teacher scores; likewise", above=0)
    infonce_temperature: float = setting(0.01, "of the cosines, in InfoNCE", above=0)
    false_negative_ratio: float = setting(
        0.6, "of the positive's teacher score: above it no negative", least=0
    )
    terms: dict[str, Any] = field(default_factory=_terms, metadata={"meaning": "name: settings of a term"})
