"""How a setting is declared: its default, what it means, and which numbers it may be."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Range:
    """The finite numbers of a setting. None is without limit."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.above is None and self.below is None and self.least is not None:
            return f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"
        limits = {
            "more than": self.above,
            "at least": self.least,
            "less than": self.below,
            "at most": self.most,
        }
        return " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)


def setting(
    default: Any,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its documentation: ``metadata["meaning"]`` and, of a number, ``["range"]``.

    Args:
        meaning: one line, with the unit.
        least, most, above, below: of the number, or of each number of a list.
    """
    limits = Range(least, most, above, below)
    metadata = {"meaning": meaning, "range": None if limits == Range() else limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
