"""What differs between runs, and what it did to the results."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas

from dense_retrieval.comparison.rows import Row, comparable, differing, rows_of, settings_of
from dense_retrieval.comparison.runs import Run
from dense_retrieval.evaluation import significance
from dense_retrieval.evaluation.evaluate import METRICS
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

    Raises:
        InputError: no run; the baseline is none of theirs.
    """

    def __init__(self, runs: Sequence[Run], baseline: str = UNTUNED, *, samples: int = 10_000) -> None:
        if not runs:
            raise InputError("there is no finished run to compare")
        self.runs, self.excluded = comparable(runs)
        self.baseline = baseline
        self.samples = samples
        self.columns = differing(self.runs)
        self.corpora = list(dict.fromkeys(run.corpus for run in self.runs))
        self.rows = rows_of(self.runs, self.columns)
        self._baselines = dict(zip(self.rows, self._find_baselines(), strict=True))

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
        if len(corpora) > 1 and any(row.values.keys() >= {*corpora} for row in self.rows):
            parts.append(self._of(corpora, AVERAGE))
        return pandas.concat(parts, ignore_index=True)

    def baseline_of(self, row: Row) -> Row | None:
        """What a line is compared with."""
        other = self._baselines[row]
        return None if other is row else other

    def difference(self, row: Row, corpus: str, metric: str) -> pandas.Series | None:
        """A line's differences to its baseline by query id; None if it is the baseline or has none."""
        other = self.baseline_of(row)
        if other is None or corpus not in row.values or corpus not in other.values:
            return None
        difference = row.values[corpus][metric] - other.values[corpus][metric]
        return difference.mask(difference.abs() <= 1e-9, 0.0)  # a mean over seeds is off by rounding

    def _of(self, corpora: list[str], name: str) -> pandas.DataFrame:
        rows = [row for row in self.rows if all(corpus in row.values for corpus in corpora)]
        lines = [self._line(row, corpora, metric) for metric in METRICS for row in rows]
        table = pandas.DataFrame(lines)
        table.insert(0, "corpus", name)
        for column in ("difference", "low", "high", "p_randomization", "p_t", "p_holm"):
            table[column] = np.nan
        # All metrics at once: they share the random numbers.
        differences = {
            row: [[self.difference(row, corpus, metric) for corpus in corpora] for metric in METRICS]
            for row in rows
        }
        tested = [row for row in rows if all(of is not None for of in differences[row][0])]
        if tested:
            strata = [
                np.array([differences[row][m][c] for m in range(len(METRICS)) for row in tested])
                for c in range(len(corpora))
            ]
            interval = significance.bootstrap(strata, samples=self.samples)
            random = significance.randomization_test(strata, samples=self.samples)
            corrected = np.concatenate([significance.holm(p) for p in np.split(random, len(METRICS))])
            found = [significance.mean(strata), *interval.T, random, significance.t_test(strata), corrected]
            is_tested = [row in tested for row in rows] * len(METRICS)
            table.loc[is_tested, "difference":"p_holm"] = np.stack(found, axis=1)  # type: ignore[misc]
        return table

    def _line(self, row: Row, corpora: list[str], metric: str) -> dict[str, Any]:
        of_corpus = [row.means[corpus][metric].to_numpy() for corpus in corpora]
        if len({len(means) for means in of_corpus}) > 1:  # unequal numbers of seeds: no deviation over them
            of_corpus = [means.mean(keepdims=True) for means in of_corpus]
        of_seed = np.mean(of_corpus, axis=0)
        return {
            "name": row.name,
            "system": row.system,
            **{column: row.settings.get(column, "") for column in self.columns},
            "seeds": min(len(row.means[corpus]) for corpus in corpora),
            "queries": sum(len(row.values[corpus][metric].dropna()) for corpus in corpora),
            "metric": metric,
            "mean": of_seed.mean(),
            "std": of_seed.std(ddof=1) if len(of_seed) > 1 else np.nan,
        }

    def _find_baselines(self) -> list[Row | None]:
        systems = {row.system for row in self.rows}
        if self.baseline in systems - {TUNED}:
            return [self._baseline_of(row, self.baseline, {}) for row in self.rows]
        changed = dict(part.partition("=")[::2] for part in self.baseline.split())
        for column, value in changed.items():
            there = {str(row.settings.get(column)) for row in self.rows if row.system == TUNED}
            if column not in self.columns or value not in there:
                known = ", ".join(
                    f"{c}={v}"
                    for c in self.columns
                    for v in dict.fromkeys(row.settings[c] for row in self.rows if row.system == TUNED)
                )
                raise InputError(
                    f"baseline {self.baseline!r}: no run has it; there are "
                    + ", ".join([*sorted(systems - {TUNED}), known]).rstrip(", ")
                )
        return [self._baseline_of(row, TUNED, changed) for row in self.rows]

    def _baseline_of(self, row: Row, system: str, changed: dict[str, str]) -> Row | None:
        """The one line of a system that has the settings of ``row`` but for the changed ones."""
        if system == TUNED:
            wanted = [
                {c: str(v) for c, v in (settings_of(run, self.columns) | changed).items()} for run in row.runs
            ]
            found = [
                other
                for other in self.rows
                if other.system == TUNED and {c: str(v) for c, v in other.settings.items()} in wanted
            ]
        else:
            found = [o for o in self.rows if o.system == system and {*map(id, row.runs)} & {*map(id, o.runs)}]
        return found[0] if len(found) == 1 else None
