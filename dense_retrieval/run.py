"""python -m dense_retrieval.run: from a corpus to a tuned student and a table that says whether it helped."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console

from dense_retrieval.config import CONF, Config, one_line_errors
from dense_retrieval.evaluation import evaluate, report, table
from dense_retrieval.stages import Stages
from dense_retrieval.tracking import Tracker

log = logging.getLogger(__name__)

UNTUNED, TUNED = "untuned student", "tuned student"


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
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    group = folder.parent.name if job.mode == RunMode.MULTIRUN else None
    choices: Any = job.runtime.choices
    name = f"{choices.data} {choices.loss} {choices.querytype}"
    tracker = Tracker(config.logger.enabled, config.logger.project, name, group, settings, folder)
    stages = Stages(config, tracker.log)
    queries, qrels = stages.test_queries(stages.split)

    log.info("training queries:\n%s", report.yields(stages.yields))
    teacher = f"teacher (reranks top {config.evaluation.headroom_k})"
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
    log.info("loss: %s", stages.loss)
    rankings[TUNED] = stages.student_ranking(True, stages.split)
    values[TUNED] = evaluate.per_query(rankings[TUNED], qrels)

    heldout = _by_querytype(stages) if config.evaluation.heldout_types else {}
    rows = table.rows(values, UNTUNED)
    facts = {
        "loss": asdict(stages.loss),
        "training": json.loads((stages.training_folder / "training.json").read_text()),
        "yields": stages.yields,
        "headroom_warning": warning,
        "heldout": {kind: [asdict(row) for row in of] for kind, of in heldout.items()},
        "artifacts": {name: str(path) for name, path in stages.artifacts.items()},
    } | {group: choices[group] for group in ("data", "querytype", "retriever", "teacher", "student")}
    report.write(folder, queries["id"], stages.corpus.passages["id"], rankings, values, rows, facts)
    card = report.model_card(settings, rows, facts)
    report.link_model(stages.training_folder / "model", folder / "model", card)
    tracker.table("results", ["system", "queries", *table.SHOWN], table.cells(rows))
    tracker.finish({f"{row.system}/{metric}": value for row in rows for metric, value in row.means.items()})

    if stages.store.reused:
        log.info("from the cache: %s", ", ".join(dict.fromkeys(stages.store.reused)))
    Console().print(table.terminal(rows, name))
    if heldout:
        Console().print(table.by_querytype(heldout, f"{name}: synthetic queries of held-out passages"))
    log.info("everything is in %s", folder)
    return rows[-1].means["nDCG@10"]


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
