"""From scored candidate lists to training groups: the teacher's filter, labels, train and dev."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from dense_retrieval.records import CandidateList, Groups, InputError
from dense_retrieval.stage import Counts, Folder, stage
from dense_retrieval.teacher.ensemble import percentile_range, unit_scale
from dense_retrieval.teacher.scores import scored_later


@dataclass(frozen=True)
class Built:
    """The groups, and what is reported of how they came about."""

    groups: Groups
    normalised: np.ndarray  # (Q, K) scores 0..1 of all lists, also those filtered out; -inf = padding
    scale: np.ndarray  # (G, 2) what is subtracted from raw scores, and what they are divided by
    yields: dict[str, dict[str, int]]  # query type -> step -> queries left


def build(
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
) -> Built:
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
    kept = full & later
    normalised = np.full(scored.scores.shape, -np.inf, dtype=np.float32)
    scale = np.zeros((len(source), 2))
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
        kept |= of_type & first & ~later & (ranked.scores[:, 0] >= floor)
        scaled = unit_scale(scored.scores[of_type], low, width)
        normalised[of_type] = np.where(scored.passages[of_type] >= 0, scaled, -np.inf)
    normalised[later] = np.where(scored.passages[later] >= 0, np.nan, -np.inf)
    steps = {
        "retriever filter": listed,
        f"{list_size} passages": full,
        "teacher filter": first,
        "labels": kept,
    }
    yields = {
        str(name): {"drawn": int((types == name).sum())}
        | {step: int((mask & (types == name)).sum()) for step, mask in steps.items()}
        for name in np.unique(types)
    }
    if kept.sum() < 2:
        counts = ", ".join(f"{int(mask.sum())} after {step}" for step, mask in steps.items())
        raise InputError(
            f"of {len(source)} training queries {counts}: too few to train on; loosen groups.source_top_k, "
            "groups.list_size, groups.teacher_top1=false or groups.min_top_percentile, or bring more queries"
        )
    labelled = CandidateList(scored.passages, np.where(scored.passages >= 0, scored.scores, -np.inf))
    order = np.argsort(-labelled.scores[kept], axis=1, kind="stable")[:, :list_size]
    groups = Groups(
        query=np.flatnonzero(kept),
        passages=np.take_along_axis(scored.passages[kept], order, 1),
        teacher=np.take_along_axis(normalised[kept], order, 1),
        source=source[kept],
        dev=dev_side(source[kept], dev_fraction, seed),
    )
    for name in yields:
        of_type = types[groups.query] == name
        yields[name] |= {
            "train": int((of_type & ~groups.dev).sum()),
            "dev": int((of_type & groups.dev).sum()),
        }
    return Built(groups, normalised, scale[kept], yields)


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


@stage(load_groups, speed=("candidates", "queries", "scored_before"))
def groups(
    folder: Path,
    scores: Folder[CandidateList],
    candidates: Folder[CandidateList],
    queries: Folder[Dataset],
    /,
    *,
    list_size: int,
    teacher_top1: bool,
    min_top_percentile: float,
    dev_fraction: float,
    seed: int,
    scored_before: int | None,
) -> Counts:
    """Training groups, and the normalised scores of all lists."""
    asked = queries.load()
    built = build(
        CandidateList(candidates.load().passages, scores.load().scores),
        np.array(asked["source"]),
        asked["querytype"],
        list_size=list_size,
        teacher_top1=teacher_top1,
        min_top_percentile=min_top_percentile,
        dev_fraction=dev_fraction,
        seed=seed,
        later=scored_later(len(asked), scored_before),
    )
    np.save(folder / "scale.npy", built.scale)
    built.groups.save(folder / "groups.npz")
    np.save(folder / "normalised.npy", built.normalised)
    return built.yields
