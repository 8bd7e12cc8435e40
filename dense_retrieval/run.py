"""python -m dense_retrieval.run: from a corpus to a tuned student and a table that says whether it helped."""

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console

from dense_retrieval import pipeline, sweep
from dense_retrieval.config import CONF, Config, one_line_errors
from dense_retrieval.evaluation import evaluate, report, table
from dense_retrieval.evaluation.rank import asked, headroom_rows
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.losses import temperature
from dense_retrieval.losses.combined import DistillationLoss
from dense_retrieval.pipeline import Labelled, Part, Tested
from dense_retrieval.records import CandidateList
from dense_retrieval.stage import Folder, Outside
from dense_retrieval.store import Store, commit, versions
from dense_retrieval.teacher.scores import scored_later
from dense_retrieval.tracking import Tracker
from dense_retrieval.training.fit import replay

log = logging.getLogger(__name__)


@hydra.main(version_base=None, config_path=CONF, config_name="config")
@one_line_errors
def main(config: Config) -> float:
    """One run; returns the tuned student's nDCG@10."""
    # A confident softmax has gradients so small that a CPU computes with them ten times slower. Set
    # before torch starts its threads, which take it over.
    torch.set_flush_denormal(True)
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    settings: Any = OmegaConf.to_container(config, resolve=True)
    made_from = sweep.inputs(settings)
    if done := sweep.finished(folder, settings, made_from):
        log.info("finished before: %s", folder)
        return float(np.mean([metrics["systems"][TUNED]["means"]["nDCG@10"] for metrics in done]))
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    group = folder.parent.name if job.mode == RunMode.MULTIRUN else None
    choices: Any = job.runtime.choices
    name = f"{choices.data} {choices.loss} {choices.querytype}"
    tracker = Tracker(config.logger.enabled, config.logger.project, name, group, settings, folder)

    store = Store(Path(config.cache_dir))
    parts = {title: pipeline.prepare(of) for title, of in pipeline.corpora(config).items()}
    labelled = {title: pipeline.label(part) for title, part in parts.items()}
    store.build(*(part.corpus for part in parts.values()))
    tested = {
        title: pipeline.tested_on(part, labelled[title], list(store.load(part.corpus).queries))
        for title, part in parts.items()
    }
    before = {title: _before_training(store, parts[title], labelled[title], tested[title]) for title in parts}
    loss = _with_temperatures(store, config, parts, labelled)
    log.info("loss: %s", loss)
    trained = pipeline.distil(config, parts, labelled, loss, tracker.log)
    store.build(trained)
    training = store.load(trained)
    if trained.key not in store.built:
        replay(training, tracker.log)
    summary = json.loads((training / "training.json").read_text())
    if summary["best_epoch"] == 0:
        log.warning(
            "no epoch lowered the dev loss: the tuned student is the untuned one. %d dev queries chose; for "
            "more of them groups.dev_fraction= or querytype.total=",
            sum(store.load(of.groups).dev.sum() for of in labelled.values()),
        )
    shared = {
        "loss": asdict(loss),
        "training": summary,
        "curve": _curve(training),
        "choices": {group: choice for group, choice in choices.items() if "/" not in group},
        "inputs": made_from,
        "command": " ".join(map(shlex.quote, ["python", "-m", "dense_retrieval.run", *job.overrides.task])),
        "versions": versions(),
        "commit": commit(),
    }
    rows: dict[str, list[table.Row]] = {}
    for title, part in parts.items():
        caption = f"{name} {title}".strip()
        path = part.config.data.get("path")
        known_as = title.partition("-")[2] or choices.data  # a member's title is "0-fiqa"
        facts = shared | {"corpus": Path(path).stem if path else known_as}
        facts |= {"artifacts": _artifacts(store, part, labelled[title], training)}
        measured, weights = before[title], Outside(training / "model")
        rows[title] = _after_training(
            store, part, tested[title], weights, measured, folder / title, caption, facts
        )
        tracker.table(
            f"{title} results".strip(), ["system", "queries", *table.SHOWN], table.cells(rows[title])
        )
        tracker.table(f"{title} queries".strip(), *_by_query(store, part, tested[title], measured))
    card = report.model_card(settings, rows, shared)
    report.link_model(training / "model", folder / "model", card)
    if config.logger.model:
        tracker.model(folder / "model")
    tracker.finish(
        {
            "/".join(filter(None, (title, row.system, metric))): value
            for title, of_corpus in rows.items()
            for row in of_corpus
            for metric, value in row.means.items()
        }
    )
    if store.reused:
        log.info("from the cache: %s", ", ".join(store.reused))
    log.info("everything is in %s", folder)
    return float(np.mean([of_corpus[-1].means["nDCG@10"] for of_corpus in rows.values()]))


def _curve(training: Path, points: int = 300) -> list[tuple[int, float]]:
    """Steps and training losses, evenly thinned."""
    parts = [pandas.read_csv(file) for file in sorted(training.glob("curves/*/metrics.csv"))]
    losses = pandas.concat(parts).dropna(subset="train/loss").drop_duplicates("step", keep="last")
    losses = losses.iloc[:: -(-len(losses) // points)]
    return list(zip(losses["step"].tolist(), losses["train/loss"].tolist(), strict=True))


@dataclass
class Measured:
    """Of each system its ranking, and its metrics ``(Q,)``."""

    rankings: dict[str, CandidateList]
    values: dict[str, dict[str, np.ndarray]]
    yields: dict[str, Any]
    warning: str | None


def _before_training(store: Store, part: Part, labelled: Labelled, tested: Tested) -> Measured:
    if part.heldout:
        store.build(part.heldout)  # what cannot be tested on is better known before training
    store.build(labelled.groups)
    yields = _yields(store, part, labelled)
    log.info("training queries:\n%s", report.yields(yields))
    _, qrels = _asked(store, part, tested)
    evaluation = part.config.evaluation
    judged = headroom_rows(qrels, evaluation.headroom_queries)
    teacher = f"teacher (reranks top {evaluation.headroom_k})"
    steps = {
        "BM25": pipeline.bm25(part, tested),
        UNTUNED: pipeline.by_student(part, tested, part.student),
        teacher: pipeline.by_teacher(part, tested, judged),
    }
    store.build(*steps.values())
    rankings = {name: store.load(step) for name, step in steps.items()}
    values = {name: evaluate.per_query(ranking, qrels) for name, ranking in rankings.items()}
    values[teacher] = evaluate.per_query(rankings[teacher], qrels, judged)
    warning = table.headroom_warning(table.rows(values, UNTUNED)[2])
    if warning:
        log.warning("%s", warning)
    return Measured(rankings, values, yields, warning)


def _yields(store: Store, part: Part, labelled: Labelled) -> dict[str, dict[str, Any]]:
    """Query type -> step -> queries left; and under "dropped" what cleaning dropped, by reason."""
    if part.cleaned:
        store.build(part.cleaned)
    cleaned = store.counts(part.cleaned) if part.cleaned else {}
    return {name: cleaned.get(name, {}) | steps for name, steps in store.counts(labelled.groups).items()}


def _asked(store: Store, part: Part, tested: Tested) -> tuple[Any, Any]:
    if tested.queries:
        store.build(tested.queries)
    return asked(store.load(part.corpus), tested.of, store.load(tested.queries) if tested.queries else None)


def _with_temperatures(
    store: Store, config: Config, parts: Mapping[str, Part], labelled: Mapping[str, Labelled]
) -> DistillationLoss:
    """The loss with the temperatures that are "auto" found."""
    loss = instantiate(config.loss)
    if loss.teacher_temperature == "auto":
        lists = [_scored_lists(store, parts[title], of) for title, of in labelled.items()]
        scores, source = (np.concatenate(part) for part in zip(*lists, strict=True))
        loss = replace(loss, teacher_temperature=temperature.teacher_temperature(scores, source))
    if loss.student_temperature == "auto":
        cosines = np.concatenate([_cosines(store, parts[title], of) for title, of in labelled.items()])
        groups = [store.load(of.groups) for of in labelled.values()]
        labels = np.concatenate([of.teacher[~of.dev] for of in groups])
        found = temperature.student_temperature(cosines, labels, loss.teacher_temperature)
        loss = replace(loss, student_temperature=found)
    return loss


def _scored_lists(store: Store, part: Part, labelled: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Unfiltered lists that hold their source: normalised scores ``(Q, K)``, its position ``(Q,)``."""
    store.build(labelled.candidates, part.queries)
    normalised = np.load(store.open(labelled.groups).path / "normalised.npy")
    queries = store.load(part.queries)
    is_source = store.load(labelled.candidates).passages == np.array(queries["source"])[:, None]
    later = scored_later(len(queries), part.config.groups.scored_before)
    usable = is_source.any(1) & np.isfinite(normalised).any(1) & ~later
    return normalised[usable], is_source[usable].argmax(1)


def _cosines(store: Store, part: Part, labelled: Labelled) -> np.ndarray:
    """``(G, K)`` of the untuned student, of the groups to train on."""
    steps = [
        pipeline.embedded(part, "training", part.queries, part.student),
        pipeline.embedded(part, "passages", part.corpus, part.student),
    ]
    store.build(*steps)
    queries, passages = (store.load(step) for step in steps)
    groups = store.load(labelled.groups)
    train = ~groups.dev
    return np.einsum("gd,gkd->gk", queries[groups.query[train]], passages[groups.passages[train]])


def _artifacts(store: Store, part: Part, labelled: Labelled, training: Path) -> dict[str, str]:
    """The folders of the main stages."""
    steps = {"corpus": part.corpus, "queries": part.queries, "candidates": labelled.candidates}
    steps |= {"scores": labelled.scores, "groups": labelled.groups}
    return {name: str(store.root / step.key) for name, step in steps.items()} | {"training": str(training)}


def _after_training(
    store: Store,
    part: Part,
    tested: Tested,
    weights: Folder[Path],
    measured: Measured,
    folder: Path,
    title: str,
    shared: dict[str, Any],
) -> list[table.Row]:
    """Measure the tuned student, write what there is of this corpus, and show its table."""
    queries, qrels = _asked(store, part, tested)
    ranking = pipeline.by_student(part, tested, weights)
    store.build(ranking)
    measured.rankings[TUNED] = store.load(ranking)
    measured.values[TUNED] = evaluate.per_query(measured.rankings[TUNED], qrels)
    heldout = _by_querytype(store, part, weights) if part.heldout else {}
    rows = table.rows(measured.values, UNTUNED)
    facts = shared | {
        "split": tested.of,
        "yields": measured.yields,
        "headroom_warning": measured.warning,
        "heldout": {kind: [asdict(row) for row in of] for kind, of in heldout.items()},
    }
    folder.mkdir(exist_ok=True)
    ids = queries["id"], store.load(part.corpus).passages["id"]
    report.write(folder, *ids, measured.rankings, measured.values, rows, facts)
    Console().print(table.terminal(rows, title))
    if heldout:
        Console().print(table.by_querytype(heldout, "synthetic queries of held-out passages"))
    return rows


def _by_query(
    store: Store, part: Part, tested: Tested, measured: Measured
) -> tuple[list[str], list[list[Any]]]:
    """Columns and lines of a table: a line a test query, its nDCG@10 by system."""
    queries, _ = _asked(store, part, tested)
    values = [of_system["nDCG@10"] for of_system in measured.values.values()]
    judged = np.flatnonzero(~np.isnan(values[0])).tolist()
    ids, texts = queries["id"][:], queries["text"][:]
    lines = [[ids[row], texts[row], *(v[row] for v in values)] for row in judged]
    return ["query", "text", *measured.values], lines


def _by_querytype(store: Store, part: Part, tuned: Folder[Path]) -> dict[str, list[table.Row]]:
    """Query type -> a row a system, on the synthetic queries of the held-out passages."""
    heldout = Tested("heldout", part.heldout)
    queries, qrels = _asked(store, part, heldout)
    steps = {"BM25": pipeline.bm25(part, heldout)}
    for name, weights in {UNTUNED: part.student, TUNED: tuned}.items():
        steps[name] = pipeline.by_student(part, heldout, weights)
    store.build(*steps.values())
    values = {name: evaluate.per_query(store.load(step), qrels) for name, step in steps.items()}
    types = np.array(queries["querytype"])
    of_type = {
        kind: {name: {m: v[types == kind] for m, v in of.items()} for name, of in values.items()}
        for kind in np.unique(types).tolist()
    }
    return {kind: table.rows(of, UNTUNED) for kind, of in of_type.items()}


if __name__ == "__main__":
    main()
