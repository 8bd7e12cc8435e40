"""The pipeline: which stage reads what, with which settings. Nothing is computed here.

The order of the lines is the order of the work: a corpus and its queries, their candidates, scores and groups,
the student, its rankings. Everything is a step, which a :class:`~dense_retrieval.store.Store` builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate

from dense_retrieval import ranks
from dense_retrieval.candidates.ann import ann_index, require_kind
from dense_retrieval.candidates.mine import candidates
from dense_retrieval.config import Config
from dense_retrieval.corpus.dedup import find_duplicates
from dense_retrieval.corpus.holdout import hold_out
from dense_retrieval.evaluation.learning_curve import Point
from dense_retrieval.groups.labels import groups
from dense_retrieval.groups.mixture import mixture
from dense_retrieval.losses.loss import Loss, active
from dense_retrieval.nodes import (
    adapters,
    asked_devices,
    hardware,
    outside,
    plain,
    settings,
    student_settings,
    teachers,
    token_limits,
    tunes_passages,
)
from dense_retrieval.queries.asked import bought_queries
from dense_retrieval.queries.draw import draw_queries, heldout_queries
from dense_retrieval.queries.files import from_file
from dense_retrieval.queries.prompts import prompts_of, type_name
from dense_retrieval.queries.write import write
from dense_retrieval.records import Asked, CandidateList, Corpus, Groups, InputError, TestSet
from dense_retrieval.stage import Folder, Later, Step, resolved
from dense_retrieval.student.tokens import mixture_tokens
from dense_retrieval.synthetic import WHAT_IS_ASKED, cleaned, filtered, is_language_model, language_model
from dense_retrieval.teacher.scores import scores
from dense_retrieval.training.temperatures import temperatures
from dense_retrieval.training.train import train
from dense_retrieval.views import (
    NOT_TRAINING,
    bm25,
    corpus_of,
    dimensions,
    embedded,
    searchers_views,
    tokenized,
    untuned,
)

if TYPE_CHECKING:
    from datasets import Dataset


Log = Callable[[Mapping[str, float], int], None]  # of training's curves: values by name, and the step
_HOW_TO_TRAIN = (
    "devices",
    "num_nodes",
    "shard_optimizer",
    "every_n_steps",
    "chunk_tokens",
    "graph_tokens",
    "compile",
)


@dataclass(frozen=True)
class Searched:
    """One corpus, and the configuration by which it is searched."""

    c: Config
    corpus: Step[Corpus]


@dataclass(frozen=True)
class Part(Searched):
    """One corpus, its training queries, and the synthetic queries of its held-out passages."""

    heldout: Step[np.ndarray]
    duplicates: Step[np.ndarray]
    raw: Step[Dataset] | None  # None where all training queries are human
    filtered: list[Step[Dataset]]  # of these: cleaned, and what each further filter leaves
    queries: Step[Dataset]
    by_type: Step[TestSet] | None
    spent: Spent | None = None  # where the queries are had for a budget

    @property
    def untrained(self) -> dict[str, Step[np.ndarray]]:
        """Passages that are neither a query's source nor a candidate."""
        return {"heldout": self.heldout, "duplicates": self.duplicates}


@dataclass(frozen=True)
class Labels:
    """The training queries' candidates, their scores, and the groups to train on."""

    candidates: Step[CandidateList]
    scores: Step[CandidateList]
    groups: Step[Groups]


@dataclass(frozen=True)
class Spent:
    """What was found out while a budget of queries was spent.

    Attributes:
        labels: of the queries that were had, their dev side that of the first part.
        dev: the queries of the dev side's passages, also those that no group is made of.
        curve: the untuned student on them, and that of each part.
    """

    labels: Labels
    dev: Step[TestSet]
    curve: list[Step[Point]]


def prepare(c: Config, asked: Step[Asked] | None = None) -> Part:
    """From a corpus to its training queries.

    Args:
        asked: the passages that queries are had of, where a budget is spent.
    """
    corpus = corpus_of(c)
    duplicates = find_duplicates(corpus, titled=c.data.text == "title_and_text")
    heldout = hold_out(corpus, duplicates, n=c.data.get("heldout", 100))
    untrained = {"heldout": heldout, "duplicates": duplicates}
    types = [type_name(t) for t in c.querytype.types]
    raw = written(c, corpus, heldout, duplicates, "train", asked) if types != ["human"] else None
    left = filtered(c, corpus, untrained, raw) if raw else []
    queries = draw_queries(
        corpus, untrained, left[-1] if left else None, types=types, total=c.querytype.total, seed=c.seed
    )
    by_type = None
    if tested := [type_name(t) for t in heldout_types(c)]:
        of_heldout = written(c, corpus, heldout, duplicates, "heldout")
        fit = cleaned(corpus, heldout, of_heldout, heldout_types(c))
        by_type = heldout_queries(heldout, fit, types=tested)
    return Part(c, corpus, heldout, duplicates, raw, left, queries, by_type)


def heldout_types(c: Config) -> list[str]:
    """Types of the queries that are written for the held-out passages."""
    given = list(c.evaluation.heldout_types)
    return given or (list(c.querytype.types) if c.evaluation.split == "synthetic" else [])


def written(
    c: Config,
    corpus: Step[Corpus],
    heldout: Step[np.ndarray],
    duplicates: Step[np.ndarray],
    of: str,
    asked: Step[Asked] | None = None,
) -> Step[Dataset]:
    """Synthetic queries, not cleaned: of passages to "train" on, or of the "heldout" ones.

    Args:
        asked: see :func:`prepare`.
    """
    if not is_language_model(c.generator):
        there = from_file(corpus, outside("generator.path", c.generator.path))
        return bought_queries(there, asked, types=synthetic_types(c)) if asked else there
    backend, weights = language_model(c.generator)
    types = c.querytype.types if of == "train" else heldout_types(c)
    return write(
        corpus,
        heldout,
        duplicates,
        weights,
        asked,
        of=of,
        prompts=[prompt.asked for prompt in prompts_of(types)],
        backend=backend,
        memos=Path(c.cache_dir),
        executor=hardware(c).executor,
        **plain(c.generator, only=WHAT_IS_ASKED) | ({"passages": None} if asked else {}),
    )


def synthetic_types(c: Config) -> list[str]:
    """Names of the types of training queries that nobody has to write himself."""
    return [type_name(t) for t in c.querytype.types if t != "human"]


def label(
    part: Part, student: Folder[Path], earlier: Labels | None, dev_fraction: float | None = None
) -> Labels:
    """From training queries to groups.

    Args:
        student: the weights that search for candidates.
        earlier: of the round before, or of a budget's first part.
        dev_fraction: where it is not the configuration's.
    """
    c, on = part.c, hardware(part.c)
    r = c.retriever
    require_kind(r.index)
    passages = embedded(c, part.corpus, "passages", student) if r.dense else None
    found = candidates(
        part.untrained,
        part.queries,
        bm25(c, part.corpus) if r.bm25 else None,
        embedded(c, part.queries, "queries", student) if r.dense else None,
        passages,
        ann_index(passages, kind=r.index) if passages and r.index != "flat" else None,
        k=r.k,
        fusion_k=r.fusion_k,
        source_top_k=c.groups.source_top_k,
        list_size=c.groups.list_size,
        device=on.workers,
        executor=on.executor,
    )
    members, weights, shares = teachers(c)
    scored = scores(
        found,
        part.corpus,
        part.queries,
        *searchers_views(c, part.queries, "queries", part.corpus, members),
        weights,
        teachers=members,
        shares=shares,
        scored_before=c.groups.scored_before,
        bf16=on.bf16,
        device=on.workers,
        max_tokens=on.max_tokens,
        memos=on.memos,
        executor=on.executor,
    )
    kept = plain(c.groups, "source_top_k")
    kept |= {} if dev_fraction is None else {"dev_fraction": dev_fraction}
    before = earlier.groups if earlier else None
    return Labels(
        found, scored, groups(found, scored, part.queries, part.corpus, before, seed=c.seed, **kept)
    )


def distil(
    c: Config,
    parts: Mapping[str, Part],
    labels: Mapping[str, Labels],
    start: Folder[Path],
    seed: int,
    log: Log,
) -> Step[Path]:
    """The student that is tuned on all corpora together.

    Args:
        start: the weights that training starts from.
        seed: of training alone.
    """
    on, trainer = hardware(c), c.trainer
    if trainer.select not in ("loss", "ndcg"):
        raise InputError(f"trainer.select={trainer.select} is unknown; use loss or ndcg")
    queries = {name: tokenized(c, part.queries, "queries") for name, part in parts.items()}
    passages = {name: tokenized(c, part.corpus, "passages") for name, part in parts.items()}
    of_queries = {name: part.queries for name, part in parts.items()}
    of_groups = {name: of.groups for name, of in labels.items()}
    taus = c.loss.student_temperature, c.loss.teacher_temperature
    stored = {n: embedded(part.c, part.corpus, "passages", start) for n, part in parts.items()}
    config: Any = c.loss.terms
    terms = {name: settings(config[name]) for name in active(plain(config))}
    Loss({name: instantiate(term) for name, term in terms.items()}, *taus)  # refuses what is out of range
    alone = parts.get("")
    later = alone if c.groups.scored_before is not None else None
    members, weights, _ = teachers(c)
    chunk_tokens, graph_tokens = token_limits(c)
    devices: Any = Later(partial(ranks.processes, *asked_devices(c)))
    return train(
        of_groups[""] if alone else mixture(of_groups, of_queries, {n: p.corpus for n, p in parts.items()}),
        passages[""] if alone else mixture_tokens(passages),
        queries[""] if alone else mixture_tokens(queries),
        start,
        temperatures_of(c, parts, labels, start),
        {name.removesuffix(" 0"): folder for name, folder in weights.items()} if later else None,
        later.queries if later else None,
        later.corpus if later else None,
        None if tunes_passages(c) else stored,
        student=student_settings(c, *NOT_TRAINING),
        terms=terms,
        false_negative_ratio=c.loss.false_negative_ratio,
        trainer=settings(trainer, *_HOW_TO_TRAIN),
        precision=on.precision,
        seed=seed,
        device=on.device,
        log=log,
        teacher=members[0] if later else None,
        # With dropout each pass draws its own random numbers.
        cut={"devices": resolved(devices), "chunk_tokens": resolved(chunk_tokens)}
        if c.student.dropout
        else None,
        matryoshka=tuple(dimensions(c, "student.matryoshka")),
        lora=adapters(c),
        gradient_checkpointing=c.student.gradient_checkpointing,
        devices=devices,
        shard_optimizer=trainer.shard_optimizer,
        every_n_steps=trainer.every_n_steps,
        chunk_tokens=chunk_tokens,
        graph_tokens=graph_tokens,
        compile=trainer.compile,
    )


def temperatures_of(
    c: Config, parts: Mapping[str, Part], labels: Mapping[str, Labels], start: Folder[Path]
) -> Step[dict[str, float]]:
    """The temperatures by which the loss compares the teacher with the student that training starts from."""
    return temperatures(
        {name: of.groups for name, of in labels.items()},
        {name: of.candidates for name, of in labels.items()},
        {name: part.queries for name, part in parts.items()},
        {name: embedded(c, part.queries, "queries", start) for name, part in parts.items()},
        {name: embedded(c, part.corpus, "passages", start) for name, part in parts.items()},
        student=c.loss.student_temperature,
        teacher=c.loss.teacher_temperature,
    )


def tune(c: Config, parts: Mapping[str, Part], log: Log) -> tuple[dict[str, Labels], list[Step[Path]]]:
    """The last round's labels, and the students that it trains, one a seed; the first one's curves are logged."""
    if c.rounds_from not in ("untuned", "tuned"):
        raise InputError(f"rounds_from={c.rounds_from} is unknown; use untuned or tuned")
    if c.rounds > 1 and not c.retriever.dense:
        raise InputError(f"rounds={c.rounds} needs a student that searches: choose retriever=dense or hybrid")
    searching: Folder[Path] = untuned(c)
    labels: dict[str, Labels] = {}
    start = searching
    for number in range(c.rounds):
        labels = {
            name: part.spent.labels if part.spent and not number else label(part, searching, labels.get(name))
            for name, part in parts.items()
        }
        start = searching if c.rounds_from == "tuned" else untuned(c)
        student = distil(c, parts, labels, start, c.seed, log)
        searching = student.part("model")
    others = range(c.seed + 1, c.seed + c.seeds)
    return labels, [student, *(distil(c, parts, labels, start, seed, lambda *_: None) for seed in others)]
