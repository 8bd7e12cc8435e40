"""Whether the tuned student is better than the untuned one: by the queries, and by the seeds it was trained with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MARGIN = 0.01  # of the main metric: what is worse by less is no worse
CONFIDENCE = 0.95
POWER = 0.8  # the chance with which what "would settle it" does
_MOST = 100  # times the queries or seeds there are; more is no advice


@dataclass(frozen=True)
class Spread:
    """How far a mean difference may be from the one over all queries and all seeds of which there are samples.

    Attributes:
        by_query, by_seed: the variance of the mean that more queries, and more seeds, make smaller.
        freedom: degrees of freedom, by Satterthwaite.
    """

    mean: float
    by_query: float
    by_seed: float
    freedom: float

    @property
    def half(self) -> float:
        """Of the 95 % interval."""
        return _quantile(self.freedom, (1 + CONFIDENCE) / 2) * math.sqrt(self.by_query + self.by_seed)

    @property
    def p_value(self) -> float:
        """Of no difference, two-sided; 1 where it cannot be known."""
        from scipy.special import stdtr

        error = math.sqrt(self.by_query + self.by_seed)
        if not error > 0:
            return 0.0 if error == 0 and self.mean else 1.0
        return float(2 * stdtr(self.freedom, -abs(self.mean) / error))


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


def spread(strata: Sequence[np.ndarray]) -> Spread:
    """Of the mean over several corpora of the mean over their queries and the seeds.

    By the mean squares of the analysis of variance with two crossed random factors; of one corpus
    Var = (MS_queries + MS_seeds - MS_rest) / (S Q). With one seed it is the paired t-test's, of several corpora
    Welch's.

    Args:
        strata: ``(S, Q_c)`` a corpus: the differences of the same S seeds on its Q_c queries, none NaN.
    """
    seeds, parts = len(strata[0]), len(strata) ** 2
    of_seed = np.mean([d.mean(1) for d in strata], axis=0)
    mean = float(of_seed.mean())
    counts = np.array([d.shape[1] for d in strata])
    if counts.min() < 2:
        return Spread(mean, math.nan, 0.0, math.nan)
    of_queries = np.array([d.mean(0).var(ddof=1) for d in strata]) / counts / parts
    by_query, by_seed = of_queries.sum(), 0.0
    squares = (of_queries**2 / (counts - 1)).sum()
    freedom = by_query**2 / squares if squares > 0 else counts.min() - 1
    if seeds > 1:
        rests = np.array([_rest(d) for d in strata]) / seeds / counts / parts
        of_seeds = of_seed.var(ddof=1) / seeds
        # Where the seeds differ by less than chance would have it, only the queries count.
        by_seed = max(0.0, of_seeds - rests.sum())
        if by_seed > 0:
            squares += of_seeds**2 / (seeds - 1) + (rests**2 / (counts - 1)).sum() / (seeds - 1)
            freedom = (by_query + by_seed) ** 2 / squares
    return Spread(mean, float(by_query), float(by_seed), float(freedom))


def verdict(differences: np.ndarray, metric: str) -> Verdict:
    """What the differences to the untuned student say, by the interval of :func:`spread`.

    Args:
        differences: ``(S, Q)`` of S seeds on the Q queries, in the metric; NaN where one was not measured.
    """
    differences = differences[:, ~np.isnan(differences).any(0)]
    found = spread([differences])
    low, high = found.mean - found.half, found.mean + found.half
    if low > 0:
        word = "better"
    elif high < 0:
        word = "worse"
    else:
        word = "no worse" if low > -MARGIN else "cannot tell"
    settled_by = _enough(differences) if word == "cannot tell" else ""
    seeds, queries = differences.shape
    return Verdict(word, metric, found.mean, low, high, queries, seeds, settled_by)


def _rest(differences: np.ndarray) -> float:
    """The mean square that neither query nor seed explains, of ``(S, Q)``."""
    seeds, queries = differences.shape
    rest = differences - differences.mean(0) - differences.mean(1)[:, None] + differences.mean()
    return float((rest**2).sum() / (seeds - 1) / (queries - 1))


def _quantile(freedom: float, share: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def _enough(differences: np.ndarray) -> str:
    """About how many more queries or seeds give a verdict with the chance ``POWER``, if the mean stays what it is.

    Either alone where that is possible, otherwise both.
    """
    seeds, queries = differences.shape
    if queries < 2:
        return "more test queries"
    mean = float(differences.mean())
    to_settle = max(abs(mean), mean + MARGIN)  # to 0, or to what is no worse
    expected = _expected(differences)

    def settled(more_queries: float, more_seeds: float) -> bool:
        of = expected(queries * more_queries, seeds * more_seeds)
        tails = (1 + CONFIDENCE) / 2, POWER
        within = sum(_quantile(of.freedom, share) for share in tails)
        return within * math.sqrt(of.by_query + of.by_seed) <= to_settle

    by_queries = _least(lambda factor: settled(factor, 1))
    by_seeds = _least(lambda factor: settled(1, factor)) if seeds > 1 else None
    both = _least(lambda factor: settled(factor, factor)) if seeds > 1 else None
    options = [f"about {_rounded(queries * (by_queries - 1)):,} more test queries"] if by_queries else []
    if by_seeds:
        options.append(_seeds(seeds * (by_seeds - 1)))
    if not options and both:
        more = f"about {_rounded(queries * (both - 1)):,} more test queries"
        options.append(f"{more} together with {_seeds(seeds * (both - 1))}")
    return " or ".join(options) or "many more test queries"


def _expected(differences: np.ndarray) -> Callable[[float, float], Spread]:
    """What :func:`spread` is about of other numbers of queries and seeds like these."""
    seeds, queries = differences.shape
    rest = _rest(differences) if seeds > 1 else 0.0
    of_queries = max(0.0, differences.mean(0).var(ddof=1) - rest / seeds)
    of_seeds = max(0.0, differences.mean(1).var(ddof=1) - rest / queries) if seeds > 1 else 0.0

    def expected(q: float, s: float) -> Spread:
        by_query, by_seed, left = of_queries / q + rest / q / s, of_seeds / s, rest / q / s
        if not by_seed > 0:
            return Spread(0.0, by_query, 0.0, q - 1)
        squares = by_query**2 / (q - 1) + (by_seed + left) ** 2 / (s - 1) + left**2 / (q - 1) / (s - 1)
        return Spread(0.0, by_query, by_seed, (by_query + by_seed) ** 2 / squares)

    return expected


def _least(enough: Callable[[float], bool]) -> float | None:
    """The least factor that is enough; None if none below ``_MOST`` is."""
    low, high = 1.0, float(_MOST)
    if not enough(high):
        return None
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _seeds(more: float) -> str:
    number = math.ceil(more)
    return f"about {number} more seed" + "s" * (number > 1)


def _rounded(number: float) -> int:
    """Up, to two digits."""
    digit = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return math.ceil(number / digit) * digit
