"""python -m dense_retrieval.run: from a corpus to a tuned student and a table that says whether it helped."""

import json
import logging
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console

from dense_retrieval import sweep
from dense_retrieval.config import CONF, Config, one_line_errors
from dense_retrieval.evaluation import evaluate, report, table
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.records import CandidateList
from dense_retrieval.stage import commit, versions
from dense_retrieval.stages import Stages, build
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
    stages = build(config, tracker.log)
    before = {title: _before_training(of) for title, of in stages.members.items()}
    log.info("loss: %s", stages.loss)

    training = stages.training_folder
    if "training" in stages.store.reused:
        replay(training, tracker.log)
    trained = json.loads((training / "training.json").read_text())
    if trained["best_epoch"] == 0:
        log.warning(
            "no epoch lowered the dev loss: the tuned student is the untuned one. %d dev queries chose; for "
            "more of them groups.dev_fraction= or querytype.total=",
            stages.groups.dev.sum(),
        )
    shared = {
        "loss": asdict(stages.loss),
        "training": trained,
        "curve": _curve(training),
        "choices": {group: choice for group, choice in choices.items() if "/" not in group},
        "inputs": made_from,
        "command": " ".join(map(shlex.quote, ["python", "-m", "dense_retrieval.run", *job.overrides.task])),
        "versions": versions(),
        "commit": commit(),
    }
    rows: dict[str, list[table.Row]] = {}
    for title, of in stages.members.items():
        caption = f"{name} {title}".strip()
        path = of.config.data.get("path")
        known_as = title.partition("-")[2] or choices.data  # a member's title is "0-fiqa"
        facts = shared | {"corpus": Path(path).stem if path else known_as}
        rows[title] = _after_training(of, before[title], folder / title, caption, facts)
        tracker.table(
            f"{title} results".strip(), ["system", "queries", *table.SHOWN], table.cells(rows[title])
        )
        tracker.table(f"{title} queries".strip(), *_by_query(of, before[title]))
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
    if stages.store.reused:
        log.info("from the cache: %s", ", ".join(dict.fromkeys(stages.store.reused)))
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
    warning: str | None


def _before_training(stages: Stages) -> Measured:
    stages.teacher_inputs  # noqa: B018  what cannot be loaded is better known before queries are written
    _, qrels = stages.test_queries(stages.split)
    if stages.config.evaluation.heldout_types:
        stages.heldout_folder  # noqa: B018  what cannot be tested on is better known before training
    log.info("training queries:\n%s", report.yields(stages.yields))
    teacher = f"teacher (reranks top {stages.config.evaluation.headroom_k})"
    rankings = {
        "BM25": stages.bm25_ranking(stages.split),
        UNTUNED: stages.student_ranking(False, stages.split),
        teacher: stages.teacher_ranking,
    }
    values = {name: evaluate.per_query(ranking, qrels) for name, ranking in rankings.items()}
    values[teacher] = evaluate.per_query(rankings[teacher], qrels, stages.teacher_queries)
    warning = table.headroom_warning(table.rows(values, UNTUNED)[2])
    if warning:
        log.warning("%s", warning)
    return Measured(rankings, values, warning)


def _after_training(
    stages: Stages, measured: Measured, folder: Path, title: str, shared: dict[str, Any]
) -> list[table.Row]:
    """Measure the tuned student, write what there is of this corpus, and show its table."""
    queries, qrels = stages.test_queries(stages.split)
    measured.rankings[TUNED] = stages.student_ranking(True, stages.split)
    measured.values[TUNED] = evaluate.per_query(measured.rankings[TUNED], qrels)
    heldout = _by_querytype(stages) if stages.config.evaluation.heldout_types else {}
    rows = table.rows(measured.values, UNTUNED)
    facts = shared | {
        "split": stages.split,
        "yields": stages.yields,
        "headroom_warning": measured.warning,
        "heldout": {kind: [asdict(row) for row in of] for kind, of in heldout.items()},
        "artifacts": {name: str(path) for name, path in stages.artifacts.items()},
    }
    folder.mkdir(exist_ok=True)
    ids = queries["id"], stages.corpus.passages["id"]
    report.write(folder, *ids, measured.rankings, measured.values, rows, facts)
    Console().print(table.terminal(rows, title))
    if heldout:
        Console().print(table.by_querytype(heldout, "synthetic queries of held-out passages"))
    return rows


def _by_query(stages: Stages, measured: Measured) -> tuple[list[str], list[list[Any]]]:
    """Columns and lines of a table: a line a test query, its nDCG@10 by system."""
    queries, _ = stages.test_queries(stages.split)
    values = [of_system["nDCG@10"] for of_system in measured.values.values()]
    judged = np.flatnonzero(~np.isnan(values[0])).tolist()
    ids, texts = queries["id"][:], queries["text"][:]
    lines = [[ids[row], texts[row], *(v[row] for v in values)] for row in judged]
    return ["query", "text", *measured.values], lines


def _by_querytype(stages: Stages) -> dict[str, list[table.Row]]:
    """Query type -> a row a system, on the synthetic queries of the held-out passages."""
    queries, qrels = stages.test_queries("heldout")
    rankings = {"BM25": stages.bm25_ranking("heldout")}
    rankings |= {name: stages.student_ranking(name == TUNED, "heldout") for name in (UNTUNED, TUNED)}
    values = {name: evaluate.per_query(ranking, qrels) for name, ranking in rankings.items()}
    types = np.array(queries["querytype"])
    of_type = {
        kind: {name: {m: v[types == kind] for m, v in of.items()} for name, of in values.items()}
        for kind in np.unique(types).tolist()
    }
    return {kind: table.rows(of, UNTUNED) for kind, of in of_type.items()}


if __name__ == "__main__":
    main()
