"""How a language model's answers are drawn."""

from dataclasses import dataclass

from dense_retrieval.records import InputError


@dataclass(frozen=True)
class Sampling:
    """Settings that all backends have.

    Raises:
        InputError: one is out of its range.
    """

    temperature: float = 0.8  # 0 is greedy
    top_p: float = 0.95  # of the probability mass, the likeliest tokens first
    max_tokens: int = 50  # of an answer

    def __post_init__(self) -> None:
        for name, fits, limit in [
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and 1 at most"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
        ]:
            if not fits:
                raise InputError(f"generator.{name}={getattr(self, name)} is out of range; it is {limit}")
