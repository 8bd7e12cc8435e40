"""The pipeline: which stage reads what, with which settings. Nothing is computed here.

The order of the lines is the order of the work: a corpus and its queries, their candidates, scores and groups,
the student, its rankings. Everything is a step, which a :class:`~dense_retrieval.store.Store` builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval import ranks
from dense_retrieval.candidates.ann import ann_index, require_kind
from dense_retrieval.candidates.difficulty import hard_queries
from dense_retrieval.candidates.mine import candidates
from dense_retrieval.config import Config, LanguageModel
from dense_retrieval.corpus.dedup import find_duplicates
from dense_retrieval.corpus.holdout import hold_out
from dense_retrieval.groups.labels import groups
from dense_retrieval.groups.mixture import mixture
from dense_retrieval.losses.loss import Loss, active
from dense_retrieval.nodes import (
    asked_devices,
    hardware,
    outside,
    plain,
    settings,
    student_settings,
    teachers,
    token_limits,
)
from dense_retrieval.queries.clean import clean_queries
from dense_retrieval.queries.draw import draw_queries, heldout_queries
from dense_retrieval.queries.files import from_file
from dense_retrieval.queries.prompts import prompts_of, type_name
from dense_retrieval.queries.write import write
from dense_retrieval.records import CandidateList, Corpus, Groups, InputError, TestSet
from dense_retrieval.stage import Folder, Later, Outside, Settings, Step, resolved
from dense_retrieval.student.tokens import mixture_tokens
from dense_retrieval.teacher.scores import scores
from dense_retrieval.training.temperatures import temperatures
from dense_retrieval.training.train import train
from dense_retrieval.views import (
    NOT_TRAINING,
    bm25,
    corpus_of,
    embedded,
    measured,
    searchers_views,
    tokenized,
    untuned,
)

if TYPE_CHECKING:
    from datasets import Dataset


Log = Callable[[Mapping[str, float], int], None]  # of training's curves: values by name, and the step
_WHAT_IS_ASKED = ("passages", "passage_characters", "passage_first", "seed")


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
    cleaned: Step[Dataset] | None
    hard: Step[Dataset] | None  # of these, where only the hardest are trained on
    queries: Step[Dataset]
    by_type: Step[TestSet] | None

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


def prepare(c: Config) -> Part:
    """From a corpus to its training queries."""
    corpus = corpus_of(c)
    duplicates = find_duplicates(corpus, titled=c.data.text == "title_and_text")
    heldout = hold_out(corpus, duplicates, n=c.data.get("heldout", 100))
    untrained = {"heldout": heldout, "duplicates": duplicates}
    types = [type_name(t) for t in c.querytype.types]
    raw = written(c, corpus, heldout, duplicates, "train") if types != ["human"] else None
    cleaned = clean_queries(corpus, heldout, raw) if raw else None
    hard, share = None, c.querytype.difficulty
    if cleaned and share is not None:
        hard = hard_queries(cleaned, measured(c, corpus, cleaned, "queries"), untrained, share=share)
    queries = draw_queries(
        corpus, untrained, hard or cleaned, types=types, total=c.querytype.total, seed=c.seed
    )
    by_type = None
    if asked := [type_name(t) for t in heldout_types(c)]:
        of_heldout = written(c, corpus, heldout, duplicates, "heldout")
        by_type = heldout_queries(heldout, clean_queries(corpus, heldout, of_heldout), types=asked)
    return Part(c, corpus, heldout, duplicates, raw, cleaned, hard, queries, by_type)


def heldout_types(c: Config) -> list[str]:
    """Types of the queries that are written for the held-out passages."""
    given = list(c.evaluation.heldout_types)
    return given or (list(c.querytype.types) if c.evaluation.split == "synthetic" else [])


def written(
    c: Config, corpus: Step[Corpus], heldout: Step[np.ndarray], duplicates: Step[np.ndarray], of: str
) -> Step[Dataset]:
    """Synthetic queries, not cleaned: of passages to "train" on, or of the "heldout" ones."""
    if not issubclass(OmegaConf.get_type(c.generator) or object, LanguageModel):
        return from_file(corpus, outside("generator.path", c.generator.path))
    backend, files = language_model(c)
    types = c.querytype.types if of == "train" else heldout_types(c)
    return write(
        corpus,
        heldout,
        duplicates,
        files,
        of=of,
        prompts=[asdict(prompt) for prompt in prompts_of(types)],
        backend=backend,
        memos=Path(c.cache_dir),
        executor=hardware(c).executor,
        **plain(c.generator, only=_WHAT_IS_ASKED),
    )


def language_model(c: Config) -> tuple[Settings, Outside | None]:
    """What writes queries, but for what it is asked, and its files where it has any.

    Raises:
        InputError: it is not there, or settings that it refuses.
    """
    backend = settings(c.generator, *_WHAT_IS_ASKED, unkeyed=("path", "revision", "url"))
    model: Any = instantiate(backend)
    if dtype := getattr(model, "dtype", None):  # "auto" is another one on another machine
        backend["dtype"] = backend.keyed["dtype"] = str(dtype).removeprefix("torch.")
    files = getattr(model, "files", None)
    return backend, Outside(files) if files else None


def label(part: Part, student: Folder[Path], earlier: Labels | None) -> Labels:
    """From training queries to groups.

    Args:
        student: the weights that search for candidates.
        earlier: of the round before.
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
    fitted = temperatures(
        of_groups,
        {name: of.candidates for name, of in labels.items()},
        of_queries,
        {name: embedded(c, part.queries, "queries", start) for name, part in parts.items()},
        {name: embedded(c, part.corpus, "passages", start) for name, part in parts.items()},
        student=taus[0],
        teacher=taus[1],
    )
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
        fitted,
        {name.removesuffix(" 0"): folder for name, folder in weights.items()} if later else None,
        later.queries if later else None,
        later.corpus if later else None,
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
        devices=devices,
        shard_optimizer=trainer.shard_optimizer,
        every_n_steps=trainer.every_n_steps,
        chunk_tokens=chunk_tokens,
        graph_tokens=graph_tokens,
        compile=trainer.compile,
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
    for _ in range(c.rounds):
        labels = {name: label(part, searching, labels.get(name)) for name, part in parts.items()}
        start = searching if c.rounds_from == "tuned" else untuned(c)
        student = distil(c, parts, labels, start, c.seed, log)
        searching = student.part("model")
    others = range(c.seed + 1, c.seed + c.seeds)
    return labels, [student, *(distil(c, parts, labels, start, seed, lambda *_: None) for seed in others)]
