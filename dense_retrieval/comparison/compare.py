"""What differs between runs, and what it did to the results."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas

from dense_retrieval.comparison.runs import Run
from dense_retrieval.evaluation import significance
from dense_retrieval.evaluation.evaluate import METRICS
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.records import InputError

AVERAGE = "average"  # of all corpora that were tested on the same split
_GROUPS = ("loss", "querytype", "teacher", "student", "retriever", "generator", "trainer", "experiment")


@dataclass(frozen=True, eq=False)
class Row:
    """A system that is one line of the comparison: a reference, or the runs that differ in their seed only.

    Attributes:
        settings: column -> value; only those that tell it from the other lines of its system.
        runs: those whose files it comes from.
        values: corpus -> ``(Q, 4)`` :data:`METRICS` by query id, the mean over the seeds.
        means: corpus -> ``(S, 4)`` mean over the queries, a line a seed.
    """

    system: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    values: dict[str, pandas.DataFrame]
    means: dict[str, pandas.DataFrame]

    @property
    def name(self) -> str:
        """``loss=listwise querytype=claim``; of a reference its name first."""
        shown = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join(shown if shown and self.system == TUNED else [self.system, *shown])


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
        once, repeated = _once(_told_apart(runs))
        self.runs, others = _on_the_same_queries(once)
        self.excluded = repeated | others
        self.baseline = baseline
        self.samples = samples
        self.columns = _columns(self.runs)
        self.corpora = list(dict.fromkeys(run.corpus for run in self.runs))
        self.rows = _rows(self.runs, self.columns)
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

    def _baseline_of(self, row: Row, system: str, changed: Mapping[str, str]) -> Row | None:
        """The one line of a system that has the settings of ``row`` but for the changed ones."""
        if system == TUNED:
            wanted = [
                {c: changed.get(c, str(_shown(run.settings.get(c)))) for c in self.columns}
                for run in row.runs
            ]
            found = [
                other
                for other in self.rows
                if other.system == TUNED and {c: str(v) for c, v in other.settings.items()} in wanted
            ]
        else:
            found = [o for o in self.rows if o.system == system and {*map(id, row.runs)} & {*map(id, o.runs)}]
        return found[0] if len(found) == 1 else None


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Corpora that share their name but no query are others: all but the first get a run's name behind theirs."""
    known: dict[str, dict[str, set[str]]] = {}  # name -> name that tells it apart -> queries
    names: dict[tuple[str, int], str] = {}  # runs on the same queries have the same index
    for run in runs:
        index = run.systems[TUNED].index
        if (run.corpus, id(index)) not in names:
            alike = known.setdefault(run.corpus, {})
            name = next((name for name, queries in alike.items() if not queries.isdisjoint(index)), None)
            if name is None:
                name = f"{run.corpus} ({run.folder.name})" if alike else run.corpus
            alike.setdefault(name, set()).update(index)
            names[run.corpus, id(index)] = name
    return [replace(run, corpus=names[run.corpus, id(run.systems[TUNED].index)]) for run in runs]


def _once(runs: Sequence[Run]) -> tuple[list[Run], dict[Run, str]]:
    """Of runs with the same settings, seed and corpus the last."""
    last = {_text([run.corpus, run.settings]): run for run in runs}
    repeats = {run: last[_text([run.corpus, run.settings])] for run in runs}
    excluded = {
        run: f"{run.folder} has the settings of {by.folder}" for run, by in repeats.items() if by is not run
    }
    return [run for run in runs if run not in excluded], excluded


def _on_the_same_queries(runs: Sequence[Run]) -> tuple[list[Run], dict[Run, str]]:
    """Of each corpus the runs that were tested on the queries that most of them were tested on."""
    kept, excluded = [], {}
    queries: dict[str, Counter[frozenset[str]]] = {}
    asked = {run: frozenset(run.systems[TUNED].index) for run in runs}
    for run in runs:
        queries.setdefault(run.corpus, Counter())[asked[run]] += 1
    usual = {corpus: sets.most_common(1)[0][0] for corpus, sets in queries.items()}
    for run in runs:
        if asked[run] == usual[run.corpus]:
            kept.append(run)
        else:
            other = next(of.folder for of in runs if asked[of] == usual[run.corpus])
            excluded[run] = f"{run.folder} was tested on other queries of {run.corpus} than {other}"
    return kept, excluded


def _columns(runs: Sequence[Run]) -> list[str]:
    """The settings that differ between runs on the same corpus, but for the seed.

    One that follows from others is none: loss.infonce_weight from loss, say.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    first = [name for name in _GROUPS if name in names]
    columns: list[str] = []
    for name in [*first, *(n for n in names if n not in first and "." not in n), *names]:
        if name in (*columns, "seed"):
            continue
        seen: dict[str, str] = {}
        for run in runs:
            value = _text(run.settings.get(name))
            if seen.setdefault(_text([run.corpus, *(run.settings.get(c) for c in columns)]), value) != value:
                columns.append(name)
                break
    return columns


def _rows(runs: Sequence[Run], columns: Sequence[str]) -> list[Row]:
    """References first, then the tuned students in the order of the runs."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_text([run.settings.get(c) for c in columns]), []).append(run)
    systems = list(dict.fromkeys(name for run in runs for name in run.systems if name != TUNED))
    rows = [row for system in systems for row in _references(system, list(alike.values()), columns)]
    for of in alike.values():
        settings = {c: _shown(of[0].settings.get(c)) for c in columns}
        rows.append(Row(TUNED, settings, tuple(of), *_averaged(TUNED, of)))
    return rows


def _references(system: str, alike: Sequence[list[Run]], columns: Sequence[str]) -> list[Row]:
    """A system that is the same in many runs is one line; its settings are those that it depends on."""
    groups: list[tuple[dict[str, pandas.DataFrame], list[Run]]] = []  # values by corpus, in which runs
    for of in alike:
        if having := [run for run in of if system in run.systems]:
            values, _ = _averaged(system, having)
            fitting = [
                g for g in groups if all(_agree(g[0][c], values[c]) for c in g[0].keys() & values.keys())
            ]
            if fitting:
                # of other corpora only: of those with the most settings in common the first
                known, runs = max(fitting, key=lambda g: len(_in_common([*g[1], *having], columns)))
                known |= {c: known[c].fillna(table) if c in known else table for c, table in values.items()}
                runs += having
            else:
                groups.append((values, having))
    rows: list[Row] = []
    for _, runs in groups:
        settings = {c: _shown(runs[0].settings.get(c)) for c in _in_common(runs, columns) if len(groups) > 1}
        if len(groups) > 1 and any(row.settings == settings for row in rows):
            settings["variant"] = len(rows) + 1  # no setting tells it from the others: another machine, say
        rows.append(Row(system, settings, tuple(runs), *_averaged(system, runs)))
    return rows


def _agree(one: pandas.DataFrame, other: pandas.DataFrame) -> bool:
    """Where both have a value: a teacher reranks for some of the queries, and in another run for more of them."""
    a, b = one.to_numpy(), other.to_numpy()
    return bool(((a == b) | np.isnan(a) | np.isnan(b)).all())


def _in_common(runs: Sequence[Run], columns: Sequence[str]) -> list[str]:
    """The columns in which all runs agree."""
    return [c for c in columns if len({_text(run.settings.get(c)) for run in runs}) == 1]


def _averaged(
    system: str, runs: Sequence[Run]
) -> tuple[dict[str, pandas.DataFrame], dict[str, pandas.DataFrame]]:
    """``values`` and ``means`` of a :class:`Row`; a reference counts once for all runs that share it."""
    values, means = {}, {}
    for corpus in dict.fromkeys(run.corpus for run in runs):
        on_it = [run for run in runs if run.corpus == corpus]
        queries = on_it[0].systems[TUNED].index
        given = [run.systems[system] for run in on_it]
        if system != TUNED:
            given = list({id(table): table for table in given}.values())
        tables = [table.reindex(queries) for table in given]
        if system != TUNED:
            merged: list[pandas.DataFrame] = []
            for table in tables:
                fitting = [number for number, known in enumerate(merged) if _agree(known, table)]
                if fitting:
                    merged[fitting[0]] = merged[fitting[0]].fillna(table)
                else:
                    merged.append(table)
            tables = merged
        stacked = np.stack([table.to_numpy() for table in tables])
        there = ~np.isnan(stacked)
        with np.errstate(invalid="ignore"):
            mean = np.where(there, stacked, 0.0).sum(0) / there.sum(0)
        values[corpus] = pandas.DataFrame(mean, index=queries, columns=list(METRICS))
        means[corpus] = pandas.DataFrame([table.mean() for table in tables], columns=list(METRICS))
    return values, means


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else _text(value)
