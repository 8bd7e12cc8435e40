"""The pipeline: which stage reads what, with which settings. Nothing is computed here.

The order of the lines is the order of the work: a corpus and its queries, their candidates, scores and groups,
the student, its rankings. Everything is a step, which a :class:`~dense_retrieval.store.Store` builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from dense_retrieval import ranks
from dense_retrieval.candidates.ann import ann_index, require_kind
from dense_retrieval.candidates.mine import candidates
from dense_retrieval.config import Config
from dense_retrieval.groups.labels import groups
from dense_retrieval.groups.mixture import mixture
from dense_retrieval.hardware import asked_devices, hardware, token_limits
from dense_retrieval.losses.loss import Loss, active
from dense_retrieval.models import adapters, student_settings, teachers, tunes_passages
from dense_retrieval.nodes import plain, settings
from dense_retrieval.prepare import Labels, Part
from dense_retrieval.records import InputError
from dense_retrieval.stage import Folder, Later, Step, resolved
from dense_retrieval.student.tokens import mixture_tokens
from dense_retrieval.teacher.scores import scores
from dense_retrieval.training.temperatures import temperatures
from dense_retrieval.training.train import train
from dense_retrieval.views import (
    NOT_TRAINING,
    bm25,
    dimensions,
    embedded,
    searchers_views,
    tokenized,
    untuned,
)

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
        None
        if tunes_passages(c)
        else {n: embedded(part.c, part.corpus, "passages", start) for n, part in parts.items()},
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
        {name: embedded(part.c, part.queries, "queries", start) for name, part in parts.items()},
        {name: embedded(part.c, part.corpus, "passages", start) for name, part in parts.items()},
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
