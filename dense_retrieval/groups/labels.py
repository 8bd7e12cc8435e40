"""From scored candidate lists to training groups: the teacher's filter, labels, train and dev."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dense_retrieval.queries import human
from dense_retrieval.records import CandidateList, Corpus, Groups, InputError
from dense_retrieval.stage import Counted, Counts, Folder, stage
from dense_retrieval.teacher.ensemble import percentile_range, unit_scale
from dense_retrieval.teacher.scores import scored_later

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Labelled:
    """The groups, and what is reported of how they came about."""

    groups: Groups
    normalised: np.ndarray  # (Q, K) scores 0..1 of all lists, also those filtered out; -inf = padding
    scale: np.ndarray  # (G, 2) what is subtracted from raw scores, and what they are divided by
    yields: dict[str, dict[str, int]]  # query type -> step -> queries left


def label(
    scored: CandidateList,
    source: np.ndarray,
    querytypes: Sequence[str],
    *,
    list_size: int,
    teacher_top1: bool = True,
    min_top_percentile: float = 25.0,
    dev_fraction: float = 0.1,
    seed: int = 0,
    later: np.ndarray | None = None,
    relevant: np.ndarray | None = None,
) -> Labelled:
    """The paper's steps 8 to 10.

    A query stays if its list has ``list_size`` passages, if (``teacher_top1``) the teacher ranks
    its source passage first, and if its top score reaches the ``min_top_percentile`` of all scores of its
    type. The 1st..99th percentile of a type's scores is mapped to 0..1 and clipped. All queries of
    one source passage fall on the same side of train and dev.

    Args:
        scored: ``(Q, K)`` raw teacher scores; a query without candidates was dropped before.
        source: ``(Q,)`` row of each query's source passage.
        querytypes: Q names.
        later: ``(Q,)`` bool: queries that the teacher scores while they are trained on. Their source
            stands first, then the retriever's order; no filter of the teacher's applies to them.
        relevant: ``(J, 2)`` (query, passage) rows judged relevant by people, for human queries.

    Raises:
        InputError: a score is NaN; no group is left, or too few to have one on each side.
    """
    later = np.zeros(len(source), dtype=bool) if later is None else later
    scored = _with_placeholders(scored, source, later)
    _require_scored(scored)
    ranked = scored.ranked()
    types = np.array(querytypes)
    listed = ranked.passages[:, 0] >= 0
    full = listed & ((ranked.passages[:, :list_size] >= 0).sum(1) == list_size)
    first = full & (ranked.passages[:, 0] == source if teacher_top1 else True)
    normalised, scale, high = _by_type(scored, ranked, types, first, later, list_size, min_top_percentile)
    kept = full & later | high
    steps = {
        "retriever filter": listed,
        f"{list_size} passages": full,
        "teacher filter": first,
        "labels": kept,
    }
    if kept.sum() < 2:
        counts = ", ".join(f"{int(mask.sum())} after {step}" for step, mask in steps.items())
        raise InputError(
            f"of {len(source)} training queries {counts}: too few to train on; loosen groups.source_top_k, "
            "groups.list_size, groups.teacher_top1=false or groups.min_top_percentile, or bring more queries"
        )
    raw = np.where(scored.passages >= 0, scored.scores, -np.inf)
    order = np.argsort(-raw[kept], axis=1, kind="stable")[:, :list_size]
    groups = Groups(
        query=np.flatnonzero(kept),
        passages=np.take_along_axis(scored.passages[kept], order, 1),
        teacher=np.take_along_axis(normalised[kept], order, 1),
        source=source[kept],
        dev=dev_side(source[kept], dev_fraction, seed),
    )
    if relevant is not None:
        groups = replace(groups, relevant=relevant[kept[relevant[:, 0]]])
    return Labelled(groups, normalised, scale[kept], _yields(steps, types, groups))


def _by_type(
    scored: CandidateList,
    ranked: CandidateList,
    types: np.ndarray,
    first: np.ndarray,
    later: np.ndarray,
    list_size: int,
    min_top_percentile: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(Q, K)`` normalised scores, ``(Q, 2)`` their scale, ``(Q,)`` bool: whose top score is high enough."""
    normalised = np.full(scored.scores.shape, -np.inf, dtype=np.float32)
    scale = np.zeros((len(types), 2))
    high = np.zeros(len(types), dtype=bool)
    for name in np.unique(types):
        of_type = types == name
        known = of_type & first & ~later
        if not known.any() and (of_type & later).any():  # scaled like the other types
            known = first & ~later
        if not known.any():
            continue
        scores = ranked.scores[known, :list_size]
        floor = np.percentile(scores, min_top_percentile)
        low, width = percentile_range(scores)
        scale[of_type] = low, width
        high |= of_type & first & ~later & (ranked.scores[:, 0] >= floor)
        scaled = unit_scale(scored.scores[of_type], low, width)
        normalised[of_type] = np.where(scored.passages[of_type] >= 0, scaled, -np.inf)
    normalised[later] = np.where(scored.passages[later] >= 0, np.nan, -np.inf)
    return normalised, scale, high


def _yields(steps: dict[str, np.ndarray], types: np.ndarray, groups: Groups) -> dict[str, dict[str, int]]:
    yields = {}
    for name in np.unique(types):
        of_type = types == name
        counts = {"drawn": of_type} | {step: mask & of_type for step, mask in steps.items()}
        trained = types[groups.query] == name
        counts |= {"train": trained & ~groups.dev, "dev": trained & groups.dev}
        yields[str(name)] = {step: int(mask.sum()) for step, mask in counts.items()}
    return yields


def _with_placeholders(scored: CandidateList, source: np.ndarray, later: np.ndarray) -> CandidateList:
    """Scores that put the source first and keep the retriever's order, for what is scored later."""
    order = np.where(scored.passages == source[:, None], 1.0, -np.arange(scored.passages.shape[1]))
    placeholders = np.where(scored.passages >= 0, order, -np.inf)
    scores = np.where(later[:, None], placeholders, scored.scores).astype(np.float32)
    return CandidateList(scored.passages, scores)


def _require_scored(scored: CandidateList) -> None:
    missing = np.argwhere(np.isnan(scored.scores) & (scored.passages >= 0))
    if len(missing):
        query, position = missing[0]
        raise InputError(
            f"{len(missing)} teacher scores are NaN, the first one that of query row {query} with passage "
            f"row {scored.passages[query, position]}; score them again in float32 (precision=32-true) or "
            "choose another teacher="
        )


def dev_side(source: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """``(G,)`` bool: the groups of a random ``fraction`` of the source passages, of one at least; of 0, none.

    Raises:
        InputError: there is only one source passage.
    """
    if fraction == 0:
        return np.zeros(len(source), dtype=bool)
    passages = np.random.default_rng(seed).permutation(np.unique(source))
    if len(passages) < 2:
        raise InputError("all training queries come from one passage: there is none left for the dev set")
    n = min(max(1, round(fraction * len(passages))), len(passages) - 1)
    return np.isin(source, passages[:n])


def load_groups(folder: Path) -> Groups:
    return Groups.load(folder / "groups.npz")


def _most(queries: Counted, list_size: int, dev_fraction: float, **_: Any) -> dict[str, float]:
    n = queries["queries"]
    return {"queries": n, "groups": n, "dev": np.ceil(n * dev_fraction), "pairs": n * list_size}


@stage(load_groups, version=2, forecast=_most)
def groups(
    folder: Path,
    candidates: Folder[CandidateList],
    scores: Folder[CandidateList],
    queries: Folder[Dataset],
    corpus: Folder[Corpus],
    earlier: Folder[Groups] | None,
    /,
    *,
    list_size: int,
    teacher_top1: bool,
    min_top_percentile: float,
    dev_fraction: float,
    seed: int,
    scored_before: int | None = None,
) -> Counts:
    """Training groups. The normalised scores of all lists are in ``normalised.npy``, their scale in ``scale.npy``.

    Args:
        earlier: the groups of the round before: what was trained on there does not choose the checkpoint here,
            nor the other way round.
    """
    asked = queries.load()
    labelled = label(
        CandidateList(candidates.load().passages, scores.load().scores),
        np.array(asked["source"]),
        asked["querytype"],
        list_size=list_size,
        teacher_top1=teacher_top1,
        min_top_percentile=min_top_percentile,
        dev_fraction=dev_fraction,
        seed=seed,
        later=scored_later(len(asked), scored_before),
        relevant=human.relevant(corpus.load(), asked),
    )
    found = labelled.groups
    if earlier:
        before = earlier.load()
        found = replace(found, dev=np.isin(found.source, before.source[before.dev]))
    np.save(folder / "scale.npy", labelled.scale)
    found.save(folder / "groups.npz")
    np.save(folder / "normalised.npy", labelled.normalised)
    return {
        "queries": len(asked),
        "groups": len(found.query),
        "dev": int(found.dev.sum()),
        "pairs": found.passages.size,
        "by type": labelled.yields,
    }
