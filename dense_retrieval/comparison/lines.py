"""The lines of a comparison: which runs are one, and what tells it from the others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas

from dense_retrieval.comparison.runs import Run
from dense_retrieval.comparison.settings import shown, text
from dense_retrieval.evaluation.table import HYBRID, TUNED

_TRAINED = (TUNED, HYBRID[TUNED])  # of each seed another

# Seed -> (Q, M) each metric by query id; the seed of a reference that is the same for all of them is None.
Seeds = dict[int | None, pandas.DataFrame]


@dataclass(frozen=True, eq=False)
class Line:
    """A system that is one line of the comparison: a reference, or the runs that differ in their seed only.

    Attributes:
        settings: column -> value; only those that tell it from the other lines of its system.
        runs: those whose files it comes from.
        seeds: corpus -> seed -> ``(Q, M)`` each metric by query id.
        values: corpus -> ``(Q, M)``, the mean over the seeds.
        means: corpus -> ``(S, M)`` mean over the queries, a line a seed.
    """

    system: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    seeds: dict[str, Seeds]

    @cached_property
    def values(self) -> dict[str, pandas.DataFrame]:
        return {corpus: _mean(of) for corpus, of in self.seeds.items()}

    @cached_property
    def means(self) -> dict[str, pandas.DataFrame]:
        return {
            corpus: pandas.DataFrame([table.mean() for table in of.values()])
            for corpus, of in self.seeds.items()
        }

    @property
    def name(self) -> str:
        """``loss=listwise querytype=claim``; of a reference its name first."""
        parts = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join(parts if parts and self.system == TUNED else [self.system, *parts])


def comparable(runs: Sequence[Run]) -> tuple[list[Run], dict[Run, str]]:
    """The runs to compare, their corpora told apart; the others with the reason."""
    measured, otherwise = _with_a_common_metric(runs)
    once, repeated = _once(_told_apart(measured))
    kept, others = _on_the_same_queries(once)
    return kept, otherwise | repeated | others


def in_common(runs: Sequence[Run]) -> list[str]:
    """The metrics that all runs have, in the order of the first run."""
    return [metric for metric in runs[0].metrics if all(metric in run.metrics for run in runs)]


def only(runs: Sequence[Run], metrics: list[str]) -> list[Run]:
    """The runs with these metrics alone; tables that runs share stay shared."""
    tables: dict[int, pandas.DataFrame] = {}
    for run in runs:
        for table in run.systems.values():
            if id(table) not in tables:
                tables[id(table)] = table if list(table.columns) == metrics else table[metrics]
    return [
        replace(run, systems={name: tables[id(table)] for name, table in run.systems.items()}) for run in runs
    ]


def _with_a_common_metric(runs: Sequence[Run]) -> tuple[list[Run], dict[Run, str]]:
    """The runs that have the metric that most of them have."""
    counts = Counter(metric for run in runs for metric in run.metrics)
    ((usual, _),) = counts.most_common(1)
    kept = [run for run in runs if usual in run.metrics]
    excluded = {
        run: f"{run.folder} was measured by {', '.join(run.metrics)}, not by {usual} as {kept[0].folder}; "
        f"run its command again with {usual} in evaluation.metrics: nothing is trained anew"
        for run in runs
        if usual not in run.metrics
    }
    return kept, excluded


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
    last = {text([run.corpus, run.settings]): run for run in runs}
    repeats = {run: last[text([run.corpus, run.settings])] for run in runs}
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


def lines_of(runs: Sequence[Run], columns: Sequence[str]) -> list[Line]:
    """References first, then the tuned students in the order of the runs."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(text([run.settings.get(c) for c in columns]), []).append(run)
    systems = list(dict.fromkeys(name for run in runs for name in run.systems if name != TUNED))
    lines: list[Line] = []
    for system in [*systems, TUNED]:
        if system not in _TRAINED:
            lines += _references(system, list(alike.values()), columns)
            continue
        for of in alike.values():
            if having := [run for run in of if system in run.systems]:
                lines.append(
                    Line(system, settings_of(of[0], columns), tuple(having), _by_seed(system, having))
                )
    return lines


def settings_of(run: Run, columns: Sequence[str]) -> dict[str, Any]:
    """What a run has in each column, as a table shows it."""
    return {c: shown(run.settings.get(c)) for c in columns}


def _references(system: str, alike: Sequence[list[Run]], columns: Sequence[str]) -> list[Line]:
    """A system that is the same in many runs is one line; its settings are those that it depends on."""
    groups: list[tuple[dict[str, pandas.DataFrame], list[Run]]] = []  # values by corpus, in which runs
    for of in alike:
        if having := [run for run in of if system in run.systems]:
            values = {corpus: _mean(tables) for corpus, tables in _by_seed(system, having).items()}
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
    lines: list[Line] = []
    for _, runs in groups:
        settings = settings_of(runs[0], _in_common(runs, columns)) if len(groups) > 1 else {}
        if len(groups) > 1 and any(line.settings == settings for line in lines):
            settings["variant"] = len(lines) + 1  # no setting tells it from the others: another machine, say
        lines.append(Line(system, settings, tuple(runs), _by_seed(system, runs)))
    return lines


def _agree(one: pandas.DataFrame, other: pandas.DataFrame) -> bool:
    """Where both have a value: a teacher reranks for some of the queries, and in another run for more of them."""
    a, b = one.to_numpy(), other.to_numpy()
    return bool(((a == b) | np.isnan(a) | np.isnan(b)).all())


def _in_common(runs: Sequence[Run], columns: Sequence[str]) -> list[str]:
    """The columns in which all runs agree."""
    return [c for c in columns if len({text(run.settings.get(c)) for run in runs}) == 1]


def _by_seed(system: str, runs: Sequence[Run]) -> dict[str, Seeds]:
    """``seeds`` of a :class:`Line`; a reference counts once for all runs that share it."""
    found: dict[str, Seeds] = {}
    for corpus in dict.fromkeys(run.corpus for run in runs):
        on_it = [run for run in runs if run.corpus == corpus]
        queries = on_it[0].systems[TUNED].index
        if system in _TRAINED:
            found[corpus] = {run.seed: run.systems[system].reindex(queries) for run in on_it}
            continue
        merged: Seeds = {}
        for run in {id(run.systems[system]): run for run in reversed(on_it)}.values():
            table = run.systems[system].reindex(queries)
            known = next((seed for seed in merged if _agree(merged[seed], table)), run.seed)
            merged[known] = merged[known].fillna(table) if known in merged else table
        found[corpus] = merged if len(merged) > 1 else {None: next(iter(merged.values()))}
    return found


def _mean(tables: Seeds) -> pandas.DataFrame:
    """Over the seeds for which a query was measured."""
    first = next(iter(tables.values()))
    stacked = np.stack([table.to_numpy() for table in tables.values()])
    there = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        mean = np.where(there, stacked, 0.0).sum(0) / there.sum(0)
    return pandas.DataFrame(mean, index=first.index, columns=first.columns)
