"""Whether the tuned student is better than the untuned one: by the queries, and by the seeds it was trained with."""

import math
from dataclasses import dataclass

import numpy as np

MARGIN = 0.01  # of the main metric: what is worse by less is no worse
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """A mean difference with its interval.

    Attributes:
        word: better, no worse, worse, or cannot tell.
        settled_by: of what cannot be told, what would tell it; else empty.
    """

    word: str
    metric: str
    mean: float
    low: float
    high: float
    queries: int
    seeds: int
    settled_by: str

    def __str__(self) -> str:
        of = f"{self.queries} queries" + (f" and {self.seeds} seeds" if self.seeds > 1 else ", one seed")
        interval = f"{self.metric} {self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] over {of}"
        return f"{self.word}: {interval}" + (
            f"; {self.settled_by} would settle it" if self.settled_by else ""
        )


def verdict(differences: np.ndarray, metric: str) -> Verdict:
    """What the differences to the untuned student say.

    The interval is of the mean over all queries and all seeds of which these are samples: by the mean squares of the
    analysis of variance with two crossed random factors, Var = (MS_queries + MS_seeds - MS_rest) / (S Q), and
    Student's t with Satterthwaite's degrees of freedom. With one seed it is the paired t-test's.

    Args:
        differences: ``(S, Q)`` of S seeds on the Q queries, in the metric; NaN where one was not measured.
    """
    differences = differences[:, ~np.isnan(differences).any(0)]
    seeds, queries = differences.shape
    mean = float(differences.mean())
    by_query, by_seed, freedom = _variances(differences)
    half = _quantile(freedom) * math.sqrt(by_query + by_seed)
    low, high = mean - half, mean + half
    if low > 0:
        word = "better"
    elif high < 0:
        word = "worse"
    else:
        word = "no worse" if low > -MARGIN else "cannot tell"
    settled_by = ""
    if word == "cannot tell":
        settled_by = _enough(half / max(abs(mean), mean + MARGIN), by_query, by_seed, queries, seeds)
    return Verdict(word, metric, mean, low, high, queries, seeds, settled_by)


def _variances(differences: np.ndarray) -> tuple[float, float, float]:
    """Of the grand mean: the part that more queries lessen, the part that more seeds lessen, degrees of freedom."""
    seeds, queries = differences.shape
    if queries < 2:
        return math.nan, 0.0, math.nan
    of_query, of_seed = differences.mean(0), differences.mean(1)
    ms_query = seeds * of_query.var(ddof=1)
    if seeds == 1:
        return ms_query / queries, 0.0, queries - 1.0
    rest = differences - of_query - of_seed[:, None] + differences.mean()
    ms_seed = queries * of_seed.var(ddof=1)
    ms_rest = (rest**2).sum() / (seeds - 1) / (queries - 1)
    n = seeds * queries
    by_query, by_seed = ms_query / n, max(0.0, ms_seed - ms_rest) / n
    squares = (
        ms_query**2 / (queries - 1) + ms_seed**2 / (seeds - 1) + ms_rest**2 / (seeds - 1) / (queries - 1)
    )
    total = ms_query + ms_seed - ms_rest
    # Where the seeds differ by less than chance would have it, only the queries count.
    freedom = total**2 / squares if ms_seed > ms_rest and squares > 0 else queries - 1.0
    return float(by_query), float(by_seed), float(freedom)


def _quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _enough(ratio: float, by_query: float, by_seed: float, queries: int, seeds: int) -> str:
    """About how many queries or seeds make the interval ``ratio`` times as narrow, by whichever is the wider part."""
    if not math.isfinite(ratio):
        return "more test queries"
    if by_seed > by_query:
        return f"about {math.ceil(seeds * ratio**2)} seeds"
    return f"about {math.ceil(queries * ratio**2):,} test queries"
