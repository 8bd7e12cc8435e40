"""All that one command builds: the pipeline, and the rankings that its students are measured by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dense_retrieval import needed
from dense_retrieval.budget import Ended, never, prepared
from dense_retrieval.candidates.difficulty import SAMPLE, Difficulty
from dense_retrieval.config import Config
from dense_retrieval.corpus.read import test_split
from dense_retrieval.evaluation import evaluate
from dense_retrieval.evaluation.rank import bm25_ranking, hybrid_ranking, student_ranking, teacher_ranking
from dense_retrieval.evaluation.table import HYBRID, REPEATED, TUNED, UNTUNED
from dense_retrieval.evaluation.vectors import WHOLE, Vectors, all_vectors
from dense_retrieval.hardware import hardware
from dense_retrieval.models import engine_of, teachers
from dense_retrieval.nodes import corpora
from dense_retrieval.pipeline import Log, tune
from dense_retrieval.prepare import Labels, Part, Searched
from dense_retrieval.queries.draw import dev_queries
from dense_retrieval.records import CandidateList, InputError, TestSet
from dense_retrieval.stage import SPEED, Folder, Step
from dense_retrieval.views import (
    bm25,
    dimensions,
    embedded,
    measured,
    searchers_views,
    untuned,
    whole_dimension,
)


@dataclass(frozen=True)
class Chain:
    """All that one command builds, by corpus."""

    parts: dict[str, Part]
    labels: dict[str, Labels]  # of the last round
    tests: dict[str, Step[TestSet]]
    before: dict[str, dict[str, Step[CandidateList]]]  # system -> ranking
    students: list[Step[Path]]  # one a seed
    after: dict[str, dict[str, Step[CandidateList]]]  # likewise, of the tuned student
    by_type: dict[str, dict[str, Step[CandidateList]]]  # of all students, for the held-out passages' queries
    difficulty: dict[str, dict[str, Step[Difficulty]]]  # of "training queries" and "test queries"
    by_torch: dict[
        str, Step[CandidateList]
    ]  # of the untuned student, where another engine computes embeddings
    smaller: dict[
        str, dict[str, dict[Vectors, Step[CandidateList]]]
    ]  # by student, whole float32 vectors first

    @property
    def student(self) -> Step[Path]:
        """The one that a run leaves."""
        return self.students[0]

    @property
    def steps(self) -> list[Step[Any]]:
        """In the order in which a run builds them."""
        of_parts = [
            step for part in self.parts.values() for step in (part.by_type, part.corpus, *part.filtered[:1])
        ]
        curves = [step for part in self.parts.values() if part.spent for step in part.spent.curve]
        groups = [labels.groups for labels in self.labels.values()]
        before = [step for of in self.before.values() for step in of.values()]
        by_type = [step for of in self.by_type.values() for step in of.values()]
        found = [
            *self.tests.values(),
            *of_parts,
            *curves,
            *groups,
            *before,
            *self.students,
            *(step for of in self.after.values() for step in of.values()),
            *by_type,
            *(step for of in self.difficulty.values() for step in of.values()),
            *self.by_torch.values(),
            *(step for of in self.smaller.values() for rankings in of.values() for step in rankings.values()),
        ]
        return [step for step in found if step]


def describe(c: Config, log: Log, ended: Ended = never) -> Chain:
    """The whole of it, from the corpora to the last ranking.

    Args:
        ended: says which part of a budget is the last one, see :mod:`dense_retrieval.budget`.
    """
    evaluate.check(c.evaluation.metrics)
    configs = corpora(c)
    needed.require([*configs.values()], *needed.ALL)
    parts = {name: prepared(of, ended) for name, of in configs.items()}
    labels, students = tune(c, parts, log)
    tested = {name: tests(part, labels[name]) for name, part in parts.items()}
    tuned = students[0].part("model")
    repeated = {f"{REPEATED}{c.seed + n}": s.part("model") for n, s in enumerate(students[1:], 1)}
    teacher = f"teacher (reranks top {c.evaluation.headroom_k})"
    return Chain(
        parts,
        labels,
        tested,
        {n: baselines(part, tested[n]) | {teacher: reranked(part, tested[n])} for n, part in parts.items()},
        students,
        {
            name: with_hybrid(part, tested[name], TUNED, tuned)
            | {seed: ranked(part, tested[name], weights) for seed, weights in repeated.items()}
            for name, part in parts.items()
        },
        {
            name: baselines(part, part.by_type) | with_hybrid(part, part.by_type, TUNED, tuned)
            for name, part in parts.items()
            if part.by_type
        },
        {
            name: {
                "training queries": measured(part.c, part.corpus, part.queries, "queries", SAMPLE),
                "test queries": measured(part.c, part.corpus, tested[name], "test queries", SAMPLE),
            }
            for name, part in parts.items()
        },
        {
            name: ranked(part, tested[name], untuned(part.c), "torch")
            for name, part in parts.items()
            if engine_of(part.c) != "torch"
        },
        {
            name: {
                UNTUNED: smaller(part, tested[name], untuned(part.c)),
                TUNED: smaller(part, tested[name], tuned),
            }
            for name, part in parts.items()
            if part.c.evaluation.dimensions or part.c.evaluation.vectors
        },
    )


def tests(part: Part, labels: Labels) -> Step[TestSet]:
    """The queries that are tested on."""
    split = part.c.evaluation.split
    if split == "train" and "human" in part.c.querytype.types:
        raise InputError("evaluation.split=train with querytype=human would test on what is trained on")
    if split == "synthetic_dev":
        if part.spent:
            return part.spent.dev
        return dev_queries(part.queries, labels.groups)
    if split == "synthetic":
        assert part.by_type
        return part.by_type
    return test_split(part.corpus, split=split)


def baselines(part: Searched, tested: Step[TestSet]) -> dict[str, Step[CandidateList]]:
    """What BM25, the untuned student, and both together find."""
    return {"BM25": by_words(part, tested)} | with_hybrid(part, tested, UNTUNED, untuned(part.c))


def with_hybrid(
    part: Searched, tested: Step[TestSet], name: str, weights: Folder[Path]
) -> dict[str, Step[CandidateList]]:
    """What a student finds, and what it finds together with BM25."""
    found = ranked(part, tested, weights)
    fused = hybrid_ranking(by_words(part, tested), found, fusion_k=part.c.retriever.fusion_k)
    return {name: found, HYBRID[name]: fused}


def by_words(part: Searched, tested: Step[TestSet]) -> Step[CandidateList]:
    """What BM25 finds."""
    self_matches = part.c.data.drop_self_matches
    return bm25_ranking(bm25(part.c, part.corpus), tested, part.corpus if self_matches else None)


def smaller(part: Part, tested: Step[TestSet], weights: Folder[Path]) -> dict[Vectors, Step[CandidateList]]:
    """What a student finds by its whole embeddings, and by what smaller vectors keep of them."""
    c = part.c
    cuts, kinds = dimensions(c, "evaluation.dimensions"), c.evaluation.vectors
    return {
        vectors: ranked(part, tested, weights, vectors=vectors)
        for vectors in all_vectors(cuts, kinds, whole_dimension(c))
    }


def ranked(
    part: Searched,
    tested: Step[TestSet],
    weights: Folder[Path],
    engine: str | None = None,
    vectors: Vectors = WHOLE,
) -> Step[CandidateList]:
    """What a student finds; its embeddings are computed by the configuration's engine, or by another."""
    c = part.c
    return student_ranking(
        embedded(c, tested, "test queries", weights, engine),
        embedded(c, part.corpus, "passages", weights, engine),
        part.corpus if c.data.drop_self_matches else None,
        tested if c.data.drop_self_matches else None,
        device=hardware(c).workers,
        executor=hardware(c).executor,
        dimension=vectors.dimension,
        vectors=vectors.kind,
    )


def reranked(
    part: Searched, tested: Step[TestSet], found: Step[CandidateList] | None = None
) -> Step[CandidateList]:
    """The teacher's order of what another finds; None is the untuned student."""
    c, on = part.c, hardware(part.c)
    members, weights, shares = teachers(c)
    return teacher_ranking(
        found or ranked(part, tested, untuned(c)),
        part.corpus,
        tested,
        *searchers_views(c, tested, "test queries", part.corpus, members),
        weights,
        k=c.evaluation.headroom_k,
        n=c.evaluation.headroom_queries,
        teachers=members,
        shares=shares,
        bf16=on.bf16,
        device=on.workers,
        max_tokens=on.max_tokens,
        memos=on.memos,
        executor=on.executor,
    )


def speed_only() -> frozenset[str]:
    """Names of settings that change no result: what the stage functions leave out of their keys."""
    return frozenset(SPEED)
