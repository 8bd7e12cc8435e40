"""What a run finds out of each corpus: each builds the steps that it reads, and says what it found."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from dense_retrieval.chain import Chain
from dense_retrieval.evaluation import agreement, report, vectors
from dense_retrieval.evaluation.learning_curve import Point
from dense_retrieval.evaluation.measure import Measured, measure
from dense_retrieval.evaluation.table import UNTUNED
from dense_retrieval.models import engine_of
from dense_retrieval.prepare import Labels, Part
from dense_retrieval.records import CandidateList, Column, Qrels, TestSet
from dense_retrieval.stage import Step
from dense_retrieval.store import Store

log = logging.getLogger(__name__)


def spent(store: Store, chain: Chain) -> dict[str, list[Point]]:
    """By corpus, how a budget of queries was spent."""
    found = {}
    for title, part in chain.parts.items():
        if part.spent is None:
            continue
        store.build(*part.spent.curve)
        found[title] = [store.load(point) for point in part.spent.curve]
        log.info("%s", f"{title} the budget of queries:\n{report.curve(found[title])}".strip())
    return found


def prepared(store: Store, part: Part, labels: Labels) -> dict[str, dict[str, Any]]:
    """Query type -> step -> queries left; and under "dropped" those dropped before any was drawn, by reason."""
    store.build(part.corpus, labels.groups, *part.filtered)
    left = store.counts(part.filtered[-1])["by type"] if part.filtered else {}
    yields = {
        name: left.get(name, {}) | steps for name, steps in store.counts(labels.groups)["by type"].items()
    }
    log.info("training queries:\n%s", report.yields(yields))
    return yields


def measured(store: Store, chain: Chain, title: str, systems: Mapping[str, Step[CandidateList]]) -> Measured:
    store.build(*systems.values())
    rankings = {name: store.load(step) for name, step in systems.items()}
    evaluation = chain.parts[title].c.evaluation
    some = {name: evaluation.headroom_queries for name in systems if name.startswith("teacher")}
    return measure(qrels(store, chain.tests[title]), rankings, evaluation.metrics, some)


def difficulty(store: Store, chain: Chain, title: str) -> dict[str, dict[str, float]]:
    """How hard the queries are: of each type that is trained on, and those that are tested on."""
    steps, queries = chain.difficulty[title], chain.parts[title].queries
    store.build(*steps.values(), queries)
    trained, tested = (store.load(of) for of in steps.values())
    types = np.array(list(column(store, queries, "queries", "querytype")))[trained.rows]
    found = {kind: trained[types == kind].profile() for kind in np.unique(types).tolist()}
    found["test queries"] = tested.profile()
    log.info("how hard the queries are:\n%s", report.difficulty(found))
    return found


# Of tables only single columns are read: to load them whole takes datasets, which takes as long to import as all else.
def column(store: Store, step: Step[Any], table: str, name: str) -> Column:
    return Column(store.open(step).path / f"{table}.arrow", name)


def qrels(store: Store, step: Step[TestSet]) -> Qrels:
    return Qrels.load(store.open(step).path / "qrels.npz")


def engine_cost(store: Store, chain: Chain, title: str, untuned: CandidateList) -> dict[str, Any]:
    """What it cost that another engine than torch computed the untuned student's embeddings."""
    c, ours, exact = chain.parts[title].c, chain.before[title][UNTUNED], chain.by_torch[title]
    engine = engine_of(c)
    cosines = {}
    for name in ("query_embeddings", "passage_embeddings"):
        steps = ours.arguments[name], exact.arguments[name]
        store.build(exact, *steps)
        cosines[name.partition("_")[0]] = agreement.cosine(*map(store.load, steps))
    rankings = {agreement.TORCH: store.load(exact), engine: untuned}
    values = measure(qrels(store, chain.tests[title]), rankings, c.evaluation.metrics, {})
    found = agreement.cost(engine, cosines, values)
    log.info("%s", agreement.line(found, c.evaluation.metrics[0]))
    return found


def smaller_vectors(store: Store, chain: Chain, title: str) -> list[vectors.VectorsRow]:
    """What the untuned and the tuned student's embeddings are worth, kept in less room."""
    rows = []
    for student, rankings in chain.smaller[title].items():
        embedded = rankings[vectors.WHOLE].arguments["passage_embeddings"]
        store.build(embedded)
        full = store.load(embedded).shape[1]
        named = {kept.named(full): step for kept, step in rankings.items()}
        values = measured(store, chain, title, named).values
        rows += vectors.rows(student, full, {kept: values[kept.named(full)] for kept in rankings})
    return rows
