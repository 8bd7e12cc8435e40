"""A generator that spends its budget: queries are had in parts, and each part says what the next one is for.

The first part's passages are drawn at random. Teacher and untuned student score the candidates of all queries so far,
and the next passages are those about which the two disagree most (:mod:`dense_retrieval.groups.disagreement`). A
student is trained on all queries so far, and measured on the dev queries, which are of the first part for good. When
its gain over the part before is surely small, no further part is had (:mod:`dense_retrieval.evaluation.learning_curve`
says when that is).

Everything is a step that reads the steps of the part before, so that whoever repeats this pays for nothing twice.
Only whether a part is the last has to be known to describe the next, which is what ``ended`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dense_retrieval.config import Config
from dense_retrieval.evaluation.learning_curve import Point, learning_curve
from dense_retrieval.evaluation.rank import student_ranking
from dense_retrieval.groups.disagreement import disagreement
from dense_retrieval.hardware import hardware
from dense_retrieval.pipeline import distil, label, temperatures_of
from dense_retrieval.prepare import Labels, Part, Spent, prepare, synthetic_types
from dense_retrieval.queries.asked import asked_passages
from dense_retrieval.queries.draw import dev_queries
from dense_retrieval.records import Asked, CandidateList, InputError, TestSet
from dense_retrieval.stage import Folder, Step
from dense_retrieval.store import Store
from dense_retrieval.synthetic import is_language_model
from dense_retrieval.views import embedded, untuned

Ended = Callable[[Step[Point]], bool]

_MOST_DEV = 0.5  # of the first part's passages


def never(point: Step[Point]) -> bool:
    """Describes the most that a budget can cost."""
    return False


def found_out(store: Store) -> Ended:
    """Builds each part, to know whether it is the last."""

    def ended(point: Step[Point]) -> bool:
        store.build(point)
        return store.load(point).ended

    return ended


def known(store: Store) -> Ended:
    """Builds nothing: a part that is not there is not the last."""
    return lambda point: store.has(point) and found_out(store)(point)


def prepared(c: Config, ended: Ended) -> Part:
    """From a corpus to its training queries: all at once, or by spending a budget."""
    return prepare(c) if c.generator.get("budget") is None else _spent(c, ended)


def _spent(c: Config, ended: Ended) -> Part:
    _check(c)
    whole, start = prepare(c), untuned(c)
    asked = _asked(c, whole, 0, None, None)
    part = prepare(c, asked)
    # As many dev queries as all parts would have.
    labels = first = label(part, start, None, min(_MOST_DEV, c.groups.dev_fraction * c.generator.parts))
    dev = dev_queries(part.queries, first.groups, filtered=False)
    ranking = _ranking(c, part, dev, start)
    metric = c.evaluation.metrics[0]
    curve = [learning_curve(dev, ranking, None, None, metric=metric, first=True)]
    for number in range(c.generator.parts):
        if number:
            disagreed = _disagreed(c, part, labels) if c.generator.choose == "disagreement" else None
            asked = _asked(c, whole, number, asked, disagreed)
            part = prepare(c, asked)
            labels = label(part, start, first)
        student = distil(c, {"": part}, {"": labels}, start, c.seed, lambda *_: None)
        before, ranking = ranking, _ranking(c, part, dev, student.part("model"))
        curve.append(learning_curve(dev, ranking, before, asked, metric=metric, first=not number))
        if ended(curve[-1]):
            break
    return replace(part, spent=Spent(labels, dev, curve))


def _asked(
    c: Config, whole: Part, number: int, before: Step[Asked] | None, disagreed: Step[np.ndarray] | None
) -> Step[Asked]:
    return asked_passages(
        whole.corpus,
        whole.untrained,
        None if is_language_model(c.generator) else whole.raw,
        before,
        disagreed,
        types=synthetic_types(c),
        queries=c.generator.budget * (number + 1) // c.generator.parts,
        seed=c.generator.get("seed", c.seed),
    )


def _disagreed(c: Config, part: Part, labels: Labels) -> Step[np.ndarray]:
    start = untuned(c)
    return disagreement(
        labels.candidates,
        labels.groups,
        part.queries,
        embedded(c, part.queries, "queries", start),
        embedded(c, part.corpus, "passages", start),
        temperatures_of(c, {"": part}, {"": labels}, start),
    )


def _ranking(c: Config, part: Part, dev: Step[TestSet], weights: Folder[Path]) -> Step[CandidateList]:
    on = hardware(c)
    return student_ranking(
        embedded(c, dev, "test queries", weights),
        embedded(c, part.corpus, "passages", weights),
        None,
        None,
        device=on.workers,
        executor=on.executor,
    )


def _check(c: Config) -> None:
    if c.generator.choose not in ("disagreement", "random"):
        raise InputError(f"generator.choose={c.generator.choose} is unknown; use disagreement or random")
    budget = f"generator.budget={c.generator.budget}"
    if not synthetic_types(c):
        raise InputError(f"{budget}: querytype=human has no queries to write; leave one of them out")
    if c.querytype.total is not None:
        raise InputError(
            f"{budget} and querytype.total={c.querytype.total}: the budget says how many; give querytype.total=null"
        )
    if c.groups.dev_fraction == 0:
        raise InputError(
            f"{budget} is spent by what helps on the dev queries: groups.dev_fraction must be above 0"
        )
    if c.groups.scored_before is not None:
        raise InputError(
            f"{budget}: what the teacher says of all queries decides on the next ones; leave groups.scored_before out"
        )
