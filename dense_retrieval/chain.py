"""All that one command builds: the pipeline, and the rankings that its students are measured by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dense_retrieval.config import Config
from dense_retrieval.corpus.read import test_split
from dense_retrieval.evaluation import evaluate
from dense_retrieval.evaluation.rank import bm25_ranking, student_ranking, teacher_ranking
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.nodes import corpora, engine_of, hardware, teachers
from dense_retrieval.pipeline import (
    Labels,
    Log,
    Part,
    bm25,
    embedded,
    prepare,
    searchers_views,
    tune,
    untuned,
)
from dense_retrieval.queries.draw import dev_queries
from dense_retrieval.records import CandidateList, InputError, TestSet
from dense_retrieval.stage import SPEED, Folder, Step


@dataclass(frozen=True)
class Chain:
    """All that one command builds, by corpus."""

    parts: dict[str, Part]
    labels: dict[str, Labels]  # of the last round
    tests: dict[str, Step[TestSet]]
    before: dict[str, dict[str, Step[CandidateList]]]  # system -> ranking
    student: Step[Path]
    after: dict[str, Step[CandidateList]]  # of the tuned student
    by_type: dict[str, dict[str, Step[CandidateList]]]  # of all students, for the held-out passages' queries
    by_torch: dict[
        str, Step[CandidateList]
    ]  # of the untuned student, where another engine computes embeddings

    @property
    def steps(self) -> list[Step[Any]]:
        """In the order in which a run builds them."""
        of_parts = [
            step for part in self.parts.values() for step in (part.by_type, part.corpus, part.cleaned)
        ]
        groups = [labels.groups for labels in self.labels.values()]
        before = [step for of in self.before.values() for step in of.values()]
        by_type = [step for of in self.by_type.values() for step in of.values()]
        found = [
            *self.tests.values(),
            *of_parts,
            *groups,
            *before,
            self.student,
            *self.after.values(),
            *by_type,
            *self.by_torch.values(),
        ]
        return [step for step in found if step]


def describe(c: Config, log: Log) -> Chain:
    """The whole of it, from the corpora to the last ranking."""
    evaluate.check(c.evaluation.metrics)
    parts = {name: prepare(of) for name, of in corpora(c).items()}
    labels, student = tune(c, parts, log)
    tested = {name: tests(part, labels[name]) for name, part in parts.items()}
    tuned = student.part("model")
    teacher = f"teacher (reranks top {c.evaluation.headroom_k})"
    return Chain(
        parts,
        labels,
        tested,
        {n: baselines(part, tested[n]) | {teacher: reranked(part, tested[n])} for n, part in parts.items()},
        student,
        {name: ranked(part, tested[name], tuned) for name, part in parts.items()},
        {
            name: baselines(part, part.by_type) | {TUNED: ranked(part, part.by_type, tuned)}
            for name, part in parts.items()
            if part.by_type
        },
        {
            name: ranked(part, tested[name], untuned(part.c), "torch")
            for name, part in parts.items()
            if engine_of(part.c) != "torch"
        },
    )


def tests(part: Part, labels: Labels) -> Step[TestSet]:
    """The queries that are tested on."""
    split = part.c.evaluation.split
    if split == "train" and "human" in part.c.querytype.types:
        raise InputError("evaluation.split=train with querytype=human would test on what is trained on")
    if split == "synthetic_dev":
        return dev_queries(part.queries, labels.groups)
    return test_split(part.corpus, split=split)


def baselines(part: Part, tested: Step[TestSet]) -> dict[str, Step[CandidateList]]:
    """What BM25 and the untuned student find."""
    self_matches = part.c.data.drop_self_matches
    found = bm25_ranking(bm25(part.c, part.corpus), tested, part.corpus if self_matches else None)
    return {"BM25": found, UNTUNED: ranked(part, tested, untuned(part.c))}


def ranked(
    part: Part, tested: Step[TestSet], weights: Folder[Path], engine: str | None = None
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
    )


def reranked(part: Part, tested: Step[TestSet]) -> Step[CandidateList]:
    """The teacher's order of what the untuned student finds."""
    c, on = part.c, hardware(part.c)
    members, weights, shares = teachers(c)
    return teacher_ranking(
        ranked(part, tested, untuned(c)),
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
