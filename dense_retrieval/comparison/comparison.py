"""What differs between runs, and what it did to the results."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas

from dense_retrieval.comparison.lines import (
    Line,
    Seeds,
    comparable,
    in_common,
    lines_of,
    only,
    settings_of,
)
from dense_retrieval.comparison.runs import Run
from dense_retrieval.comparison.settings import differing
from dense_retrieval.evaluation import significance
from dense_retrieval.evaluation.evaluate import canonical
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.evaluation.verdict import spread
from dense_retrieval.records import InputError

AVERAGE = "average"  # of all corpora that were tested on the same split
_TESTS = ("difference", "low", "high", "seeds_compared", "p_randomization", "p_t", "p_holm")


class Comparison:
    """Runs beside each other, seeds averaged, each tested against a baseline.

    Args:
        runs: on one corpus or several.
        baseline: a system that every run has, such as "untuned student" or "BM25": each line is compared
            with it as its own runs have it. Or settings, such as "loss=infonce": each line is compared with
            the one that differs from it in these only.
        metrics: which, the main one first; all that the runs have if empty.
        samples: of the randomization test and the bootstrap.

    Attributes:
        metrics: those that all runs have, in the order of the first run; its first is the main one.
        unshared: those that some runs have and others lack.
        columns: the settings that differ.
        follow: choice among them -> the settings that follow from it.

    Raises:
        InputError: no run; the baseline is none of theirs; a metric that some run lacks.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        baseline: str = UNTUNED,
        *,
        metrics: Sequence[str] = (),
        samples: int = 10_000,
    ) -> None:
        if not runs:
            raise InputError("there is no finished run to compare")
        kept, self.excluded = comparable(runs)
        self.metrics = _asked(metrics, in_common(kept))
        had = dict.fromkeys(metric for run in kept for metric in run.metrics)
        self.unshared = [metric for metric in had if metric not in in_common(kept)]
        self.runs = only(kept, self.metrics)
        self.baseline = baseline
        self.samples = samples
        self.columns, self.follow = differing(self.runs)
        self.corpora = list(dict.fromkeys(run.corpus for run in self.runs))
        self.lines = lines_of(self.runs, self.columns)
        self._baselines = dict(zip(self.lines, self._find_baselines(), strict=True))

    @property
    def main(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A line a corpus, system and metric.

        Columns: corpus, name, system, the settings that differ, seeds, queries, metric, mean and std (over the
        seeds), difference to the baseline with the ends ``low`` and ``high`` of its 95 % interval,
        ``seeds_compared``, of which it is; ``p_randomization`` over the queries alone, ``p_t``, and ``p_holm``, which
        is corrected for all lines of the same corpus and metric.

        Of one seed the interval is the bootstrap's, ``p_t`` the paired t-test's, and ``p_holm`` of
        ``p_randomization``: all over the queries. Of several both are over the queries and the seeds, see
        :func:`dense_retrieval.evaluation.verdict.spread`, and ``p_holm`` is of ``p_t``.
        """
        parts = [self._of([corpus], corpus) for corpus in self.corpora]
        splits = {run.corpus: run.facts["split"] for run in self.runs}
        one = "test" if "test" in splits.values() else min(splits.values())
        corpora = [corpus for corpus in self.corpora if splits[corpus] == one]  # not two splits of one
        if len(corpora) > 1 and any(line.values.keys() >= {*corpora} for line in self.lines):
            parts.append(self._of(corpora, AVERAGE))
        return pandas.concat(parts, ignore_index=True)

    def baseline_of(self, line: Line) -> Line | None:
        """What a line is compared with."""
        other = self._baselines[line]
        return None if other is line else other

    def difference(self, line: Line, corpus: str, metric: str) -> pandas.Series | None:
        """A line's differences to its baseline by query id, the mean over the seeds; None if it is the baseline or
        has none."""
        of_seeds = self._differences(line, corpus)
        if of_seeds is None:
            return None
        values = np.mean(list(of_seeds.values()), axis=0)[self.metrics.index(metric)]
        return pandas.Series(values, line.values[corpus].index)

    def _differences(self, line: Line, corpus: str) -> dict[int | None, np.ndarray] | None:
        """Seed -> ``(M, Q)``: of the seeds that both lines have, in pairs; where they share none, in order."""
        other = self.baseline_of(line)
        if other is None or corpus not in line.seeds or corpus not in other.seeds:
            return None
        ours, theirs = line.seeds[corpus], other.seeds[corpus]
        found = {}
        for seed, one, two in _pairs(ours, theirs):
            of = (one - two).to_numpy().T
            found[seed] = np.where(np.abs(of) <= 1e-9, 0.0, of)
        return found

    def _strata(self, line: Line, corpora: list[str]) -> list[np.ndarray] | None:
        """``(S, M, Q_c)`` differences a corpus, of the seeds that were tested on all."""
        found = [of for corpus in corpora if (of := self._differences(line, corpus))]
        if len(found) < len(corpora):
            return None
        seeds = [seed for seed in found[0] if all(seed in of for of in found)]
        if not seeds:
            return [np.mean(list(of.values()), axis=0, keepdims=True) for of in found]
        return [np.stack([of[seed] for seed in seeds]) for of in found]

    def _of(self, corpora: list[str], name: str) -> pandas.DataFrame:
        lines = [line for line in self.lines if all(corpus in line.values for corpus in corpora)]
        entries = [self._entry(line, corpora, metric) for metric in self.metrics for line in lines]
        table = pandas.DataFrame(entries)
        table.insert(0, "corpus", name)
        found = {line: of for line in lines if (of := self._strata(line, corpora)) is not None}
        tested = self._tested(list(found.values()), len(corpora)) if found else np.empty((0, len(_TESTS)))
        table[list(_TESTS)] = np.nan
        table.loc[[line in found for line in lines] * len(self.metrics), list(_TESTS)] = tested
        return table

    def _tested(self, of_lines: list[list[np.ndarray]], corpora: int) -> np.ndarray:
        """Of each metric and line, in this order, the numbers that ``_TESTS`` names."""
        # All metrics at once: they share the random numbers.
        strata = [
            np.stack([of[c].mean(0) for of in of_lines], 1).reshape(-1, of_lines[0][c].shape[2])
            for c in range(corpora)
        ]
        low, high = significance.bootstrap(strata, samples=self.samples).T
        random = significance.randomization_test(strata, samples=self.samples)
        mean, p_t = significance.mean(strata), significance.t_test(strata)
        p = random.copy()
        seeds = np.array([len(of[0]) for of in of_lines] * len(self.metrics))
        for row in np.flatnonzero(seeds > 1):
            metric, line = divmod(row, len(of_lines))
            of = [d[:, metric] for d in of_lines[line]]
            over = spread([d[:, ~np.isnan(d).any(0)] for d in of])
            low[row], high[row] = over.mean - over.half, over.mean + over.half
            p_t[row] = p[row] = over.p_value
        holm = np.concatenate([significance.holm(of) for of in np.split(p, len(self.metrics))])
        return np.stack([mean, low, high, seeds, random, p_t, holm], axis=1)

    def _entry(self, line: Line, corpora: list[str], metric: str) -> dict[str, Any]:
        of_corpus = [line.means[corpus][metric].to_numpy() for corpus in corpora]
        if len({len(means) for means in of_corpus}) > 1:  # unequal numbers of seeds: no deviation over them
            of_corpus = [means.mean(keepdims=True) for means in of_corpus]
        of_seed = np.mean(of_corpus, axis=0)
        return {
            "name": line.name,
            "system": line.system,
            **{column: line.settings.get(column, "") for column in self.columns},
            "seeds": min(len(line.means[corpus]) for corpus in corpora),
            "queries": sum(len(line.values[corpus][metric].dropna()) for corpus in corpora),
            "metric": metric,
            "mean": of_seed.mean(),
            "std": of_seed.std(ddof=1) if len(of_seed) > 1 else np.nan,
        }

    def _find_baselines(self) -> list[Line | None]:
        systems = {line.system for line in self.lines}
        if self.baseline in systems - {TUNED}:
            return [self._baseline_of(line, self.baseline, {}) for line in self.lines]
        changed = dict(part.partition("=")[::2] for part in self.baseline.split())
        for column, value in changed.items():
            there = {str(line.settings.get(column)) for line in self.lines if line.system == TUNED}
            if column not in self.columns or value not in there:
                known = ", ".join(
                    f"{c}={v}"
                    for c in self.columns
                    for v in dict.fromkeys(
                        str(line.settings[c]) for line in self.lines if line.system == TUNED
                    )
                )
                raise InputError(
                    f"baseline {self.baseline!r}: no run has it; there are "
                    + ", ".join([*sorted(systems - {TUNED}), known]).rstrip(", ")
                )
        found = [self._baseline_of(line, TUNED, changed) for line in self.lines]
        tuned = [(line, of) for line, of in zip(self.lines, found, strict=True) if line.system == TUNED]
        if all(of is None or of is line for line, of in tuned):
            raise InputError(
                f"baseline {self.baseline!r}: no run differs from another in this alone; give all settings in which "
                f"they differ, of {', '.join(self.columns)}: 'loss=infonce trainer.learning_rate=0.0001'"
            )
        return found

    def _baseline_of(self, line: Line, system: str, changed: dict[str, str]) -> Line | None:
        """The one line of a system that has the settings of ``line`` but for the changed ones."""
        if system == TUNED:
            wanted = [
                {c: str(v) for c, v in (settings_of(run, self.columns) | changed).items()}
                for run in line.runs
            ]
            found = [
                other
                for other in self.lines
                if other.system == TUNED and {c: str(v) for c, v in other.settings.items()} in wanted
            ]
        else:
            found = [
                o for o in self.lines if o.system == system and {*map(id, line.runs)} & {*map(id, o.runs)}
            ]
        return found[0] if len(found) == 1 else None


def _asked(metrics: Sequence[str], there: list[str]) -> list[str]:
    """The metrics asked for, by ir_measures' own names."""
    found = [canonical(name) or name for name in metrics]
    if missing := [name for name in found if name not in there]:
        raise InputError(f"--metrics: not every run has {', '.join(missing)}; there are {', '.join(there)}")
    return list(dict.fromkeys(found)) or there


def _pairs(ours: Seeds, theirs: Seeds) -> list[tuple[int | None, pandas.DataFrame, pandas.DataFrame]]:
    """Seed, and what two lines have of it; a reference is the same for each seed of the other."""
    if None in theirs:
        return [(seed, table, theirs[None]) for seed, table in ours.items()]
    if None in ours:
        return [(seed, ours[None], table) for seed, table in theirs.items()]
    shared = [(seed, table, theirs[seed]) for seed, table in ours.items() if seed in theirs]
    return shared or [(seed, *of) for seed, *of in zip(ours, ours.values(), theirs.values(), strict=False)]
