"""What differs between runs, and what it did to the results."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas

from dense_retrieval.comparison.lines import (
    Line,
    comparable,
    differing,
    in_common,
    lines_of,
    only,
    settings_of,
)
from dense_retrieval.comparison.runs import Run
from dense_retrieval.evaluation import significance
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.records import InputError

AVERAGE = "average"  # of all corpora that were tested on the same split


class Comparison:
    """Runs beside each other, seeds averaged, each tested against a baseline.

    Args:
        runs: on one corpus or several.
        baseline: a system that every run has, such as "untuned student" or "BM25": each line is compared
            with it as its own runs have it. Or settings, such as "loss=infonce": each line is compared with
            the one that differs from it in these only.
        samples: of the randomization test and the bootstrap.

    Attributes:
        metrics: those that all runs have, in the order of the first run; its first is the main one.
        unshared: those that some runs have and others lack.

    Raises:
        InputError: no run; the baseline is none of theirs.
    """

    def __init__(self, runs: Sequence[Run], baseline: str = UNTUNED, *, samples: int = 10_000) -> None:
        if not runs:
            raise InputError("there is no finished run to compare")
        kept, self.excluded = comparable(runs)
        self.metrics = in_common(kept)
        had = dict.fromkeys(metric for run in kept for metric in run.metrics)
        self.unshared = [metric for metric in had if metric not in self.metrics]
        self.runs = only(kept, self.metrics)
        self.baseline = baseline
        self.samples = samples
        self.columns = differing(self.runs)
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
        seeds), difference to the baseline with the ends ``low`` and ``high`` of its 95 % bootstrap interval,
        ``p_randomization``, ``p_t``, and ``p_holm``: the randomization test's, corrected for all lines of the
        same corpus and metric.
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
        """A line's differences to its baseline by query id; None if it is the baseline or has none."""
        other = self.baseline_of(line)
        if other is None or corpus not in line.values or corpus not in other.values:
            return None
        difference = line.values[corpus][metric] - other.values[corpus][metric]
        return difference.mask(difference.abs() <= 1e-9, 0.0)  # a mean over seeds is off by rounding

    def _of(self, corpora: list[str], name: str) -> pandas.DataFrame:
        lines = [line for line in self.lines if all(corpus in line.values for corpus in corpora)]
        entries = [self._entry(line, corpora, metric) for metric in self.metrics for line in lines]
        table = pandas.DataFrame(entries)
        table.insert(0, "corpus", name)
        for column in ("difference", "low", "high", "p_randomization", "p_t", "p_holm"):
            table[column] = np.nan
        # All metrics at once: they share the random numbers.
        differences = {
            line: [[self.difference(line, corpus, metric) for corpus in corpora] for metric in self.metrics]
            for line in lines
        }
        tested = [line for line in lines if all(of is not None for of in differences[line][0])]
        if tested:
            strata = [
                np.array([differences[line][m][c] for m in range(len(self.metrics)) for line in tested])
                for c in range(len(corpora))
            ]
            interval = significance.bootstrap(strata, samples=self.samples)
            random = significance.randomization_test(strata, samples=self.samples)
            corrected = np.concatenate([significance.holm(p) for p in np.split(random, len(self.metrics))])
            found = [significance.mean(strata), *interval.T, random, significance.t_test(strata), corrected]
            is_tested = [line in tested for line in lines] * len(self.metrics)
            table.loc[is_tested, "difference":"p_holm"] = np.stack(found, axis=1)  # type: ignore[misc]
        return table

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
                    for v in dict.fromkeys(line.settings[c] for line in self.lines if line.system == TUNED)
                )
                raise InputError(
                    f"baseline {self.baseline!r}: no run has it; there are "
                    + ", ".join([*sorted(systems - {TUNED}), known]).rstrip(", ")
                )
        return [self._baseline_of(line, TUNED, changed) for line in self.lines]

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
